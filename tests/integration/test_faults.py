"""Workers and the store are killed, stopped and wiped under load; slots and order outlive it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from tests.integration.clients import fetch
from tests.integration.fleet import (
    CAPACITY,
    MARGIN,
    Figure,
    Fleet,
    ask,
    no_slot_is_lost,
    run,
    statuses,
    store,
)
from tests.integration.journal import now
from tests.servers import StoreServer


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with store() as server:
        yield server


@pytest.fixture(scope="module")
def service(server: StoreServer) -> Iterator[Fleet]:
    with Fleet(server.url) as service:
        yield service


@pytest.fixture
def fleet(service: Fleet, server: StoreServer) -> Iterator[Fleet]:
    """Four workers, and after each test the proof that no slot was lost."""
    service.journal.clear()
    yield service
    run(lambda: no_slot_is_lost(service, server))


# ---------------------------------------------------------------------- workers


def test_the_slots_of_a_killed_worker_are_back_within_a_second(
    fleet: Fleet, record_property: Figure
) -> None:
    async def main() -> None:
        victim, *others = fleet.worker_pids()
        async with fleet.lines(8, victim) as held, fleet.lines(24, *others) as waiting:
            running = await ask(held, "/work?ms=5000")
            await fleet.inside(8)
            queued = await ask(waiting, "/work?ms=200")
            await asyncio.sleep(0.3)
            killed = fleet.kill(victim)
            assert await statuses(running) == [0] * 8
            assert await statuses(queued) == [200] * 24
        record_property("full after", fleet.journal.full_after(killed, CAPACITY))
        assert fleet.journal.full_after(killed, CAPACITY) < 1.0
        assert fleet.journal.most_inside() == CAPACITY
        assert fleet.journal.overtaken(killed - 0.3) <= 1

    starts = fleet.starts()
    run(main)
    fleet.wait_for_starts(starts + 1)


def test_those_who_waited_on_a_killed_worker_hold_nobody_up(fleet: Fleet) -> None:
    async def main() -> None:
        victim, *others = fleet.worker_pids()
        async with (
            fleet.lines(8, *others) as held,
            fleet.lines(40, victim) as gone,
            fleet.lines(16, *others) as waiting,
        ):
            running = await ask(held, "/work?ms=1000")
            await fleet.inside(8)
            lost = await ask(gone, "/work", "gone")
            await asyncio.sleep(0.2)
            queued = await ask(waiting, "/work?ms=200")
            await asyncio.sleep(0.2)
            fleet.kill(victim)
            assert await statuses(lost) == [0] * 40
            assert await statuses(running + queued) == [200] * 24
        assert fleet.journal.most_inside() == CAPACITY
        assert not any(e.kind == "enter" and "gone" in e.request for e in fleet.journal.events())

    starts = fleet.starts()
    run(main)
    fleet.wait_for_starts(starts + 1)


def test_a_worker_that_replaces_a_killed_one_shares_the_limit(fleet: Fleet) -> None:
    async def main() -> None:
        before = fleet.worker_pids()
        fleet.kill(before[0])
        await asyncio.to_thread(fleet.wait_for_starts, starts + 1)
        [new] = set(fleet.worker_pids()) - set(before)
        async with fleet.lines(12, new) as here, fleet.lines(12, *before[1:]) as there:
            answers = await ask(here, "/work?ms=200") + await ask(there, "/work?ms=200")
            assert await statuses(answers) == [200] * 24
        assert fleet.journal.most_inside() == CAPACITY
        assert sum(e.kind == "enter" and e.pid == new for e in fleet.journal.events()) == 12

    starts = fleet.starts()
    run(main)


def test_a_service_whose_workers_are_all_killed_starts_anew_with_all_slots(fleet: Fleet) -> None:
    async def main() -> None:
        async with fleet.crowd() as crowd:
            await asyncio.sleep(0.5)
            fleet.kill(*fleet.worker_pids())
            await asyncio.to_thread(fleet.wait_for_starts, starts + 4)
            ready = now()
            await asyncio.sleep(2.0)
        assert crowd.statuses() == {0, 200}
        assert all(record.status == 200 for record in crowd.records if record.start > ready)
        assert fleet.journal.full_after(ready, CAPACITY) < 2.0
        assert fleet.journal.most_inside() == CAPACITY

    starts = fleet.starts()
    run(main)


def test_a_blocked_event_loop_keeps_no_idle_slot(fleet: Fleet, record_property: Figure) -> None:
    async def main() -> None:
        blocked, *others = fleet.worker_pids()
        async with (
            fleet.lines(8, blocked) as first,
            fleet.lines(1, blocked) as line,
            fleet.lines(8, *others) as rest,
        ):
            assert await statuses(await ask(first, "/work?ms=20")) == [200] * 8
            begin = now()
            block = await ask(line, "/block?ms=2000")  # while its 8 idle slots linger
            await asyncio.sleep(0.02)
            assert await statuses(await ask(rest, "/work?ms=500")) == [200] * 8
            others_full = fleet.journal.full_after(begin, CAPACITY, *others)
            record_property("others full after", others_full)
            assert others_full < 0.3 + MARGIN
            assert await statuses(block) == [200]
            assert await statuses(await ask(first, "/work?ms=20")) == [200] * 8
        assert fleet.journal.most_inside() <= CAPACITY + 1  # the blocking handler is not watched

    run(main)


# ---------------------------------------------------------------------- the store


def freeze(seconds: float) -> Callable[[StoreServer], None]:
    def fault(server: StoreServer) -> None:
        server.pause()
        time.sleep(seconds)
        server.resume()

    return fault


def die(server: StoreServer) -> None:
    server.kill()
    time.sleep(2)
    server.start()


def lose_data_again_and_again(server: StoreServer) -> None:
    """Each time before all workers are back, so that those who are know less and less."""
    for pause in (0.1, 0.2, 0.1):
        server.restart(empty=True)
        time.sleep(pause)
    freeze(0.5)(server)


FAULTS: dict[str, Callable[[StoreServer], None]] = {
    "killed, back empty after 2 s": die,
    "restarted empty": lambda server: server.restart(empty=True),
    "restarted with its data": lambda server: server.restart(empty=False),
    "restarted empty again and again, then frozen": lose_data_again_and_again,
    "frozen for 2 s": freeze(2),
    "frozen for 5 s": freeze(5),
    "wiped": lambda server: server.cli("FLUSHALL"),
    "its scripts forgotten": lambda server: server.cli("SCRIPT", "FLUSH"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_store_costs_half_a_second_and_no_request(
    fleet: Fleet, server: StoreServer, record_property: Figure, fault: str
) -> None:
    async def main() -> None:
        async with fleet.crowd() as crowd:
            await asyncio.sleep(0.7)
            begin = now()
            await asyncio.to_thread(FAULTS[fault], server)
            end = now()
            await asyncio.sleep(1.6)
        journal = fleet.journal
        record_property("added wait", crowd.longest(begin) - crowd.longest(until=begin))
        record_property("overtaken meanwhile", journal.overtaken(begin - 0.3, end + 1))
        assert crowd.statuses() == {200}
        assert crowd.longest(begin) - crowd.longest(until=begin) <= 0.5 + MARGIN
        assert journal.most_inside() == CAPACITY
        assert journal.overtaken(until=begin - 0.3) <= CAPACITY
        assert journal.overtaken(end + 1) <= CAPACITY
        assert [journal.overtaken(pid=pid) for pid in fleet.worker_pids()] == [0] * 4

    run(main)


def test_stats_answer_in_time_and_say_that_the_store_is_away(
    fleet: Fleet, server: StoreServer
) -> None:
    async def poll(degraded: bool, within: float) -> float:
        """Ask until the stats say so; returns the longest time to an answer."""
        longest, end = 0.0, now() + within
        while now() < end:
            begin = now()
            stats = await fleet.stats()
            longest = max(longest, now() - begin)
            if stats["storage"]["degraded"] is degraded:
                return longest
            await asyncio.sleep(0.02)
        raise AssertionError(f"degraded is not {degraded} after {within} s")

    async def main() -> None:
        assert await poll(degraded=False, within=1) < 0.25
        server.pause()
        try:
            assert await poll(degraded=True, within=2) < 0.25 + MARGIN
            assert (await fetch(fleet.address, "/work")).status == 200
            assert await poll(degraded=True, within=1) < 0.25 + MARGIN
        finally:
            server.resume()
        assert await poll(degraded=False, within=2) < 0.25 + MARGIN

    run(main)


def test_a_service_that_starts_without_its_store_shares_the_capacity_out() -> None:
    async def main() -> None:
        lists = [late.lines(12, pid) for pid in late.worker_pids()]
        async with lists[0] as a, lists[1] as b, lists[2] as c, lists[3] as d:
            assert await statuses(await ask([*a, *b, *c, *d], "/work?ms=100")) == [200] * 48
        assert late.journal.most_inside() == CAPACITY
        absent.start()
        await asyncio.sleep(1.5)
        await no_slot_is_lost(late, absent)
        assert late.journal.most_inside() == CAPACITY

    with closing(store()) as absent, Fleet(absent.url) as late:
        run(main)
