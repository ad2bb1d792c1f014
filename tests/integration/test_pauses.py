"""A worker is stopped (SIGSTOP), as by a debugger, a full host or a virtual machine's migration."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.integration.fleet import (
    CAPACITY,
    Fleet,
    ask,
    no_slot_is_lost,
    run,
    statuses,
    store,
)
from tests.integration.journal import now
from tests.servers import StoreServer

LEASE = 2.0


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with store() as server:
        yield server


@pytest.fixture(scope="module")
def service(server: StoreServer) -> Iterator[Fleet]:
    with Fleet(server.url, lease=LEASE) as service:
        yield service


@pytest.fixture
def fleet(service: Fleet, server: StoreServer) -> Iterator[Fleet]:
    """Four workers, and after each test the proof that no slot was lost."""
    service.journal.clear()
    yield service
    run(lambda: no_slot_is_lost(service, server))


def test_a_pause_shorter_than_the_lease_is_never_over_the_capacity(fleet: Fleet) -> None:
    async def main() -> None:
        victim, *others = fleet.worker_pids()
        async with fleet.lines(5, victim) as held, fleet.lines(12, *others) as lines:
            running = await ask(held, "/work?ms=300")
            await fleet.inside(5)
            waiting = await ask(lines, "/work?ms=400")
            await asyncio.sleep(0.1)
            fleet.stop(victim)
            await asyncio.sleep(1.2)
            fleet.go_on(victim)
            assert await statuses(running + waiting) == [200] * 17
        assert fleet.journal.most_inside() == CAPACITY

    run(main)


def test_a_pause_longer_than_the_lease_gives_the_slots_to_the_others(fleet: Fleet) -> None:
    async def main() -> None:
        victim, *others = fleet.worker_pids()
        async with fleet.lines(5, victim) as held, fleet.lines(48, *others) as lines:
            running = await ask(held, "/work?ms=3800")
            await fleet.inside(5)
            waiting = await ask(lines, "/work?ms=400")
            stopped = now()
            fleet.stop(victim)
            await asyncio.sleep(LEASE + 1.2)
            fleet.go_on(victim)
            woken = now()
            assert await statuses(running + waiting) == [200] * 53
        assert 1.0 < fleet.journal.full_after(stopped, CAPACITY, *others) < LEASE + 1.0
        assert fleet.journal.most_inside() == CAPACITY + 5
        assert fleet.journal.most_inside(since=woken + 1.0) <= CAPACITY

    run(main)


def test_what_waited_on_a_paused_worker_is_served_when_it_wakes(fleet: Fleet) -> None:
    async def main() -> None:
        victim, *others = fleet.worker_pids()
        async with fleet.lines(8, *others) as held, fleet.lines(10, victim) as lines:
            running = await ask(held, "/work?ms=800")
            await fleet.inside(8)
            waiting = await ask(lines, "/work?ms=50")
            await asyncio.sleep(0.1)
            fleet.stop(victim)
            assert await statuses(running) == [200] * 8
            await asyncio.sleep(LEASE + 0.5)
            fleet.go_on(victim)
            assert await statuses(waiting) == [200] * 10
        assert fleet.journal.most_inside() == CAPACITY

    run(main)
