"""The network between the workers and their store loses, cuts, delays and swallows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator

import pytest

from fastapi_balancer.storage.redis.scripts import SHA
from tests.integration.fleet import CAPACITY, Figure, Fleet, idle, run, store
from tests.integration.journal import now
from tests.integration.proxy import BOTH, Direction, FaultProxy
from tests.servers import StoreServer

Fault = Callable[[FaultProxy], Awaitable[None]]
SEED = 20


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with store() as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: StoreServer) -> Iterator[FaultProxy]:
    with FaultProxy(server) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def service(proxy: FaultProxy) -> Iterator[Fleet]:
    with Fleet(proxy.url) as service:
        yield service


@pytest.fixture
def fleet(service: Fleet, proxy: FaultProxy, server: StoreServer) -> Iterator[Fleet]:
    """Four workers behind the proxy, and after each test the proof that no slot was lost."""
    service.journal.clear()
    yield service

    async def no_slot_is_lost() -> None:
        await asyncio.to_thread(proxy.heal)
        assert await service.at_once() == CAPACITY
        await idle(server)

    run(no_slot_is_lost)


async def cut_all(proxy: FaultProxy) -> None:
    for _ in range(12):
        proxy.cut()
        await asyncio.sleep(0.15)


async def cut_anywhere(proxy: FaultProxy) -> None:
    chance = random.Random(SEED)
    for _ in range(30):
        direction: Direction = chance.choice(BOTH)
        proxy.cut_after(chance.randrange(1, 4000), direction)
        await asyncio.sleep(0.1)


def lose_replies(script: str) -> Fault:
    async def fault(proxy: FaultProxy) -> None:
        for _ in range(8):
            if script == "attach":
                proxy.cut()
            loss = proxy.drop_reply(SHA[script].encode())
            await asyncio.to_thread(loss.wait)

    return fault


async def lose_requests(proxy: FaultProxy) -> None:
    for _ in range(8):
        await asyncio.to_thread(proxy.drop_request(SHA["sync"].encode()).wait)


async def slow(proxy: FaultProxy) -> None:
    proxy.slow_down(0.1)
    await asyncio.sleep(2)
    proxy.heal()


def black_hole(*directions: Direction) -> Fault:
    async def fault(proxy: FaultProxy) -> None:
        proxy.black_hole(*directions)
        await asyncio.sleep(1.0)
        await asyncio.to_thread(proxy.heal)

    return fault


async def refuse(proxy: FaultProxy) -> None:
    proxy.refuse()
    proxy.cut()
    await asyncio.sleep(1.0)
    await asyncio.to_thread(proxy.heal)


FAULTS: dict[str, Fault] = {
    "all connections cut at once, again and again": cut_all,
    "connections cut after any number of bytes": cut_anywhere,
    "replies to sync lost": lose_replies("sync"),
    "replies to attach lost": lose_replies("attach"),
    "replies to beat lost": lose_replies("beat"),
    "syncs lost": lose_requests,
    "0.1 s late each way": slow,
    "requests swallowed": black_hole("request"),
    "replies swallowed": black_hole("reply"),
    "everything swallowed": black_hole(*BOTH),
    "refused": refuse,
}


# Whom such a fault keeps away from the store for 0.25 s goes on with its share, a quarter, while
# the others have all slots.
HITS_ONE = {"connections cut after any number of bytes", "replies to attach lost"}
AWAY = "the store is away"

# Seconds that a request may take; 0.1 without a fault.
LONGEST = {"replies to attach lost": 2.0, "0.1 s late each way": 2.0}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_network_loses_no_slot_and_no_request(
    fleet: Fleet, proxy: FaultProxy, record_property: Figure, fault: str
) -> None:
    async def main() -> None:
        async with fleet.crowd(6, ms=30) as crowd:
            await asyncio.sleep(0.4)
            begin, was_away = now(), fleet.output.count(AWAY)
            await FAULTS[fault](proxy)
            await asyncio.sleep(0.8)
        record_property("added wait", crowd.longest(begin) - crowd.longest(until=begin))
        record_property("overtaken", fleet.journal.overtaken())
        assert crowd.statuses() == {200}
        away = fleet.output.count(AWAY) - was_away if fault in HITS_ONE else 0
        assert fleet.journal.most_inside() <= CAPACITY + min(away, 3) * CAPACITY // 4
        assert fleet.journal.most_inside(now() - 0.5) <= CAPACITY
        assert crowd.longest(begin) < LONGEST.get(fault, 1.0)
        assert [fleet.journal.overtaken(pid=pid) for pid in fleet.worker_pids()] == [0] * 4

    run(main)
