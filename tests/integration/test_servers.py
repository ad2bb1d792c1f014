"""The same promises on every server: limits, the queue, bodies, streams, WebSockets, the end."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from tests.integration.clients import Connection, Load, Response, WebSocket, fetch
from tests.integration.service import Service

APP = "tests.integration.apps.limited:app"
SERVERS = {
    "uvicorn": {},
    "uvicorn-h11-asyncio": {"http": "h11", "loop": "asyncio"},
    "hypercorn": {"server": "hypercorn", "loop": "asyncio"},
    "hypercorn-uvloop": {"server": "hypercorn", "loop": "uvloop"},
    "granian": {"server": "granian", "loop": "asyncio"},
}
CAPACITY = 2


@pytest.fixture(scope="module", params=SERVERS)
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """One server for all tests here that leave it running."""
    with started(request.param) as service:
        yield service


@pytest.fixture(params=SERVERS)
def own_service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """A server that this test may end.

    hypercorn's worker processes learn of the end when all requests are done, so it has none here.
    """
    alone = ("--workers", "0") if "hypercorn" in request.param else ()
    with started(request.param, arguments=alone) as service:
        yield service


def started(name: str, arguments: tuple[str, ...] = ()) -> Service:
    options: dict[str, Any] = SERVERS[name]
    env = {"CAPACITY": str(CAPACITY), "QUEUE_TIMEOUT": "1.5"}
    return Service(APP, env=env, arguments=arguments, **options)


def awaited(test: Callable[[Service], Awaitable[None]]) -> Callable[[Service], None]:
    def run(service: Service) -> None:
        asyncio.run(_bounded(test(service)))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def _bounded(test: Awaitable[None]) -> None:
    async with asyncio.timeout(30):
        await test


async def stats(service: Service, path: str) -> Any:
    answer = await fetch(service.address, "/balancer/stats")
    return json.loads(answer.body)["endpoints"][path]


async def most(service: Service, path: str) -> int:
    """Most requests that ran at once, counted within the handler."""
    answer = await fetch(service.address, "/counts")
    return int(json.loads(answer.body)["most"].get(path, 0))


async def begun(service: Service, path: str) -> int:
    answer = await fetch(service.address, "/counts")
    return int(json.loads(answer.body)["begun"].get(path, 0))


async def idle(service: Service, path: str, within: float = 5.0) -> None:
    """Wait until all slots are back and nobody waits."""
    await until(service, path, within, active_requests=0, queued=0)


async def until(service: Service, path: str, within: float = 5.0, **wanted: int) -> float:
    """Wait until the statistics say so. Returns how long it took."""
    since = time.monotonic()
    while True:
        found = await stats(service, path)
        if all(found[name] == value for name, value in wanted.items()):
            return time.monotonic() - since
        assert time.monotonic() - since < within, {name: found[name] for name in wanted}
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("path", "count"), [("/slow", 20), ("/thread", 20), ("/stream", 12), ("/items/{n:int}", 10)]
)
def test_no_more_than_the_capacity_runs_at_once(service: Service, path: str, count: int) -> None:
    async def main() -> None:
        load = Load(service.address, path.replace("{n:int}", "7"), count, count=count)
        await load.run()
        assert load.statuses() == {200: count}
        assert await most(service, path) == CAPACITY
        await idle(service, path)

    asyncio.run(main())


@awaited
async def test_background_tasks_count_as_running(service: Service) -> None:
    load = Load(service.address, "/later", 6, count=6)
    await load.run()
    await idle(service, "/later")
    assert load.statuses() == {200: 6}
    assert await most(service, "/later") == CAPACITY


@awaited
async def test_exceptions_give_their_slots_back(service: Service) -> None:
    load = Load(service.address, "/broken", 12, count=12)  # servers close the connection
    await load.run()
    assert load.statuses() == {500: 12}
    await idle(service, "/broken")
    assert (await stats(service, "/broken"))["errors"] >= 12


@awaited
async def test_who_waits_too_long_is_answered_504(service: Service) -> None:
    slow = [asyncio.create_task(fetch(service.address, "/slow?seconds=2")) for _ in range(2)]
    await until(service, "/slow", active_requests=CAPACITY)
    since = time.monotonic()
    refused = await fetch(service.address, "/slow")
    assert 1.4 < time.monotonic() - since < 1.9
    check_problem(refused, 504, "queue_timeout")
    assert {(await task).status for task in slow} == {200}


def check_problem(answer: Response, status: int, reason: str) -> None:
    problem = json.loads(answer.body)
    assert (answer.status, problem["status"], problem["reason"]) == (status, status, reason)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == str(problem["retry_after"])


@awaited
async def test_forty_of_forty_that_leave_the_queue_are_never_run(service: Service) -> None:
    before = await begun(service, "/slow"), (await stats(service, "/slow"))["left"]
    slow = [asyncio.create_task(fetch(service.address, "/slow?seconds=1.5")) for _ in range(2)]
    await until(service, "/slow", active_requests=CAPACITY)
    leavers = [Connection(service.address) for _ in range(40)]
    for number, leaver in enumerate(leavers):
        await leaver.__aenter__()
        body = b"x" * (number % 2)
        await leaver.ask("/slow", "POST" if body else "GET", body=body)
    await until(service, "/slow", queued=40)
    for number, leaver in enumerate(leavers):
        if number % 2:
            leaver.abort()
        else:
            await leaver.__aexit__(None, None, None)
    assert await until(service, "/slow", queued=0) < 0.1
    assert {(await task).status for task in slow} == {200}
    await idle(service, "/slow")
    after = await begun(service, "/slow"), (await stats(service, "/slow"))["left"]
    assert after == (before[0] + 2, before[1] + 40)
    assert "disconnect" not in service.output.lower()  # no server minds that it was answered


@awaited
async def test_a_large_body_that_queued_arrives_whole(service: Service) -> None:
    body = bytes(range(256)) * 4096
    load = Load(service.address, "/echo", 6, count=6, method="POST", body=body)
    await load.run()
    assert load.statuses() == {200: 6}
    assert (await fetch(service.address, "/echo", "POST", body=body)).body == body
    assert await most(service, "/echo") <= CAPACITY


@awaited
async def test_a_slow_upload_holds_no_slot(service: Service) -> None:
    async with Connection(service.address) as connection:
        upload = asyncio.create_task(connection.upload("/echo", [b"x"] * 6, 0.1))
        for _ in range(4):
            assert (await stats(service, "/echo"))["active_requests"] == 0
            await asyncio.sleep(0.1)
        await upload
        assert (await connection.answer()).body == b"xxxxxx"


@awaited
async def test_a_websocket_holds_its_slot_and_the_next_one_waits(service: Service) -> None:
    async with WebSocket(service.address, "/talk") as first:
        async with WebSocket(service.address, "/talk"):
            await first.send(b"hello")
            assert await first.receive() == (1, b"HELLO")
            third = asyncio.create_task(_talk_once(service))
            await until(service, "/talk", active_requests=CAPACITY, queued=1)
        assert await third == (1, b"HI")
        assert await first.close() == 1000
    await idle(service, "/talk")


async def _talk_once(service: Service) -> tuple[int, bytes]:
    async with WebSocket(service.address, "/talk") as websocket:
        assert websocket.refusal is None
        await websocket.send(b"hi")
        return await websocket.receive()


@awaited
async def test_a_websocket_that_waits_too_long_is_refused(service: Service) -> None:
    async with (
        WebSocket(service.address, "/talk"),
        WebSocket(service.address, "/talk"),
        WebSocket(service.address, "/talk") as third,
    ):
        assert third.refusal is not None
        assert third.refusal.status in (403, 504)
    await idle(service, "/talk")


@awaited
async def test_a_websocket_client_that_leaves_the_queue_is_never_run(service: Service) -> None:
    if service.server == "granian":
        pytest.skip("granian tells of no disconnect before the handshake is over")
    before = await begun(service, "/talk")
    async with WebSocket(service.address, "/talk"), WebSocket(service.address, "/talk"):
        waiting = WebSocket(service.address, "/talk")
        asking = asyncio.create_task(waiting.__aenter__())
        await until(service, "/talk", queued=1)
        waiting.abort()
        assert await until(service, "/talk", queued=0) < 0.1
        await asyncio.gather(asking, return_exceptions=True)
    await idle(service, "/talk")
    assert await begun(service, "/talk") == before + 2


@awaited
async def test_options_and_unknown_paths_need_no_slot(service: Service) -> None:
    slow = [asyncio.create_task(fetch(service.address, "/slow?seconds=1")) for _ in range(2)]
    await until(service, "/slow", active_requests=CAPACITY)
    since = time.monotonic()
    assert (await fetch(service.address, "/slow", "OPTIONS")).status == 405
    assert (await fetch(service.address, "/nothing")).status == 404
    assert time.monotonic() - since < 0.5
    await asyncio.gather(*slow)


def test_at_the_end_those_who_wait_are_answered_at_once_and_the_others_finish(
    own_service: Service,
) -> None:
    async def main() -> None:
        address = own_service.address
        slow = [asyncio.create_task(fetch(address, "/slow?seconds=1.5")) for _ in range(2)]
        await until(own_service, "/slow", active_requests=CAPACITY)
        waiting = [asyncio.create_task(fetch(address, "/slow")) for _ in range(5)]
        await until(own_service, "/slow", queued=5)
        since = time.monotonic()
        ending = asyncio.create_task(asyncio.to_thread(own_service.terminate, signal.SIGTERM))
        refused = await asyncio.gather(*waiting)
        assert time.monotonic() - since < 0.2
        for answer in refused:
            check_problem(answer, 503, "draining")
            assert answer.headers["connection"] == "close"
        assert [(await task).status for task in slow] == [200, 200]
        assert time.monotonic() - since > 1
        # uvicorn raises the signal again once it has shut down, for whoever started it
        assert await ending in (0, -signal.SIGTERM)
        assert "the app has shut down" in own_service.output

    asyncio.run(main())
