"""Admission over several uvicorn workers that share a store, and uvicorn's own ways to end."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.conftest import MakeServer
from tests.integration.clients import Connection, fetch
from tests.integration.service import Service
from tests.integration.test_servers import APP, check_problem, idle, stats, until
from tests.servers import StoreServer, wait_until

CAPACITY = 3


class Shared:
    """Services that share one store, each test under a name of its own."""

    def __init__(self, store: StoreServer, name: str) -> None:
        self.store = store
        self.name = name

    def service(
        self, app: str = APP, *, url: str = "", capacity: int = CAPACITY, **options: Any
    ) -> Service:
        env = {"STORE": url or self.store.url, "NAME": self.name, "CAPACITY": str(capacity)}
        return Service(app, env=env | {"QUEUE_TIMEOUT": "5"}, **options)

    def used(self) -> int:
        """The slots that the store counts as owned by some worker, of all endpoints together."""
        keys = self.store.cli("KEYS", f"*{self.name}*:m")
        assert keys
        return sum(int(self.store.cli("HGET", key, "used") or 0) for key in keys)


@pytest.fixture
def shared(redis_server: StoreServer, request: pytest.FixtureRequest) -> Shared:
    return Shared(redis_server, request.node.originalname)


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(bounded())


def overlap(spans: list[tuple[float, float]]) -> int:
    """How many of these spans of time run at once, at most."""
    edges = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def test_all_workers_together_take_exactly_the_capacity(shared: Shared) -> None:
    async def main(service: Service) -> None:
        answers = await asyncio.gather(*(fetch(service.address, "/timed") for _ in range(90)))
        assert {answer.status for answer in answers} == {200}
        spans: list[tuple[float, float]] = [json.loads(answer.body) for answer in answers]
        assert overlap(spans) == CAPACITY
        took = max(end for _, end in spans) - min(begin for begin, _ in spans)
        assert took < 2 * 90 / CAPACITY * 0.05  # and no slot lies idle while others wait
        await idle(service, "/timed")

    with shared.service(workers=3) as service:
        run(main(service))
        assert service.terminate() == 0
    assert shared.used() == 0


def test_sigterm_empties_the_queues_of_all_workers_and_lets_the_rest_finish(
    shared: Shared,
) -> None:
    async def main(service: Service) -> None:
        address = service.address
        slow = [asyncio.create_task(fetch(address, "/slow?seconds=4")) for _ in range(CAPACITY)]
        await until(service, "/slow", active_requests=CAPACITY)
        waiting = [asyncio.create_task(fetch(address, "/slow")) for _ in range(30)]
        await until(service, "/slow", queued=30)
        since = time.monotonic()
        ending = asyncio.create_task(asyncio.to_thread(service.terminate, signal.SIGTERM))
        refused = await asyncio.gather(*waiting)
        assert time.monotonic() - since < 0.5  # uvicorn's parent passes it on to three workers
        for answer in refused:
            check_problem(answer, 503, "draining")
            assert answer.headers["connection"] == "close"
        assert [(await task).status for task in slow] == [200] * CAPACITY
        assert await ending == 0

    with shared.service(workers=3) as service:
        run(main(service))
        assert service.output.count("the app has shut down") == 3
    assert shared.used() == 0


def test_a_forced_end_of_a_stuck_handler_gives_its_slots_back(shared: Shared) -> None:
    async def main(service: Service) -> None:
        stuck = [
            asyncio.create_task(fetch(service.address, "/slow?seconds=60")) for _ in range(CAPACITY)
        ]
        await until(service, "/slow", active_requests=CAPACITY)
        assert shared.used() >= CAPACITY
        await asyncio.to_thread(service.terminate, signal.SIGTERM)
        assert shared.used() == 0
        await asyncio.gather(*stuck, return_exceptions=True)

    with shared.service(arguments=["--timeout-graceful-shutdown", "1"]) as service:
        run(main(service))
        assert "the app has shut down" in service.output


def test_paths_are_matched_below_a_root_path(shared: Shared) -> None:
    async def main(service: Service) -> None:
        for path in ("/api/slow", "/slow"):  # a proxy may strip the prefix or not
            await fetch(service.address, path)
        answer = await fetch(service.address, "/balancer/stats")
        assert answer.status == 200

    with shared.service(root_path="/api") as service:
        run(main(service))


def test_a_mounted_app_is_limited_from_its_first_request_and_drains(shared: Shared) -> None:
    async def main(service: Service) -> None:
        answers = await asyncio.gather(*(fetch(service.address, "/sub/timed") for _ in range(20)))
        assert overlap([json.loads(answer.body) for answer in answers]) == CAPACITY
        paths = ["/sub/timed?seconds=1"] * (CAPACITY + 2)
        tasks = [asyncio.create_task(fetch(service.address, path)) for path in paths]
        await asyncio.sleep(0.3)
        ending = asyncio.create_task(asyncio.to_thread(service.terminate, signal.SIGTERM))
        statuses = sorted([(await task).status for task in tasks])
        assert statuses == [200] * CAPACITY + [503] * 2
        await ending

    with shared.service("tests.integration.apps.limited:outer") as service:
        run(main(service))
        assert "no lifespan has reached the balancer" in service.output
        assert "Traceback" not in service.output


def test_a_start_that_the_store_refuses_ends_with_a_clear_message(
    make_server: MakeServer, shared: Shared
) -> None:
    wrong = make_server(password="right").url.replace("right", "mistaken")
    service = shared.service(url=wrong, ready_within=15)
    try:
        with pytest.raises(RuntimeError, match="ended with 3"):
            service.start()
        assert "fastapi-balancer: the store refuses the credentials" in service.output
        assert "the app has shut down" in service.output
        assert "mistaken" not in service.output
    finally:
        service.close()


def test_a_store_that_is_away_at_the_start_stops_nobody(shared: Shared) -> None:
    async def main(service: Service) -> None:
        answers = await asyncio.gather(*(fetch(service.address, "/timed") for _ in range(12)))
        assert overlap([json.loads(answer.body) for answer in answers]) == CAPACITY

    with shared.service(url="unix:///nowhere/to/be/found") as service:
        run(main(service))
        assert "the store is away" in service.output


def test_sigterm_ends_a_probe_and_the_server(shared: Shared) -> None:
    service = shared.service(capacity=0)
    try:
        service._ready_within = 0.1
        with pytest.raises(TimeoutError):
            service.start()
        wait_until(lambda: "Waiting for application startup" in service.output, 10, str)
        time.sleep(1)  # it measures for much longer
        since = time.monotonic()
        service.terminate(signal.SIGTERM)
        assert time.monotonic() - since < 3
        assert "the app has shut down" in service.output
    finally:
        service.close()


def test_pipelined_requests_are_all_answered_in_order(shared: Shared) -> None:
    async def main(service: Service) -> None:
        async with Connection(service.address) as connection:
            for number in range(8):
                await connection.ask(f"/items/{number}")
            bodies = [(await connection.answer()).body for _ in range(8)]
        assert bodies == [b"%d" % number for number in range(8)]
        await idle(service, "/items/{n:int}")
        assert (await stats(service, "/items/{n:int}"))["served"] == 8

    with shared.service() as service:
        run(main(service))
