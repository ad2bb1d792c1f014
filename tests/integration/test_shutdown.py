"""The service is told to end under load: who waits is sent away at once, who runs may finish."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from fastapi_balancer.storage.redis.scripts import slots_keys
from tests.integration.fleet import Figure, Fleet, ask, run, statuses, store
from tests.integration.journal import now
from tests.servers import StoreServer

SUPERVISOR_LOOKS_EVERY = 0.5  # seconds, in uvicorn 0.30 and later


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with store() as server:
        yield server


def left_in(server: StoreServer) -> tuple[int, int, list[str]]:
    """What the store still counts: slots, leases, and workers that own some."""
    state, line, leases = slots_keys("fleet", "global", "/work")
    found = server.cli("HGETALL", state)
    owners = [field for field in found if field.startswith("o:")]
    return int(found["used"]), server.cli("ZCARD", leases) + server.cli("ZCARD", line), owners


async def end_under_load(fleet: Fleet, to_all: bool) -> tuple[float, int]:
    """Returns how long the waiting were kept after the signal, and the exit status."""
    async with fleet.lines(8) as first, fleet.lines(24) as rest:
        running = await ask(first, "/work?ms=2000")
        await fleet.inside(8)
        queued = await ask(rest, "/work")
        await asyncio.sleep(0.2)
        main = psutil.Process(fleet.worker_pids()[0]).ppid()
        begin = now()
        (os.killpg if to_all else os.kill)(main, signal.SIGTERM)
        assert await statuses(queued) == [503] * 24
        waited = now() - begin
        refusals = [answer for one in queued if (answer := one.result()) is not None]
        assert {answer.headers["connection"] for answer in refusals} == {"close"}
        assert {json.loads(answer.body)["reason"] for answer in refusals} == {"draining"}
        assert await statuses(running) == [200] * 8
        return waited, await asyncio.to_thread(fleet.ended)


@pytest.mark.parametrize("to_all", [True, False], ids=["to all processes", "to the supervisor"])
def test_who_waits_is_sent_away_and_who_runs_finishes(
    server: StoreServer, record_property: Figure, to_all: bool
) -> None:
    with Fleet(server.url) as fleet:
        waited, status = run(lambda: end_under_load(fleet, to_all))
        record_property("waited", waited)
        assert waited < 0.2 + (0.0 if to_all else SUPERVISOR_LOOKS_EVERY)
        assert status == 0
        assert left_in(server) == (0, 0, [])


def test_a_forced_end_gives_all_slots_back(server: StoreServer) -> None:
    async def main() -> int:
        async with fleet.lines(8) as lines:
            running = await ask(lines, "/work?ms=20000")
            await fleet.inside(8)
            status = await asyncio.to_thread(fleet.terminate)
            assert set(await statuses(running)) <= {0, 500}
            return status

    with Fleet(server.url, arguments=("--timeout-graceful-shutdown", "1")) as fleet:
        begin = now()
        assert run(main) == 0
        assert now() - begin < 5.0
        assert left_in(server) == (0, 0, [])
