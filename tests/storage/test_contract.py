"""What every store promises (`fastapi_balancer.storage.base`): memory is the one to read."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import pytest

from fastapi_balancer.errors import Rejected
from fastapi_balancer.storage.base import Slots, SlotsConfig, Storage, Ticket
from fastapi_balancer.storage.memory import MemoryStorage
from fastapi_balancer.storage.redis import RedisStorage
from fastapi_balancer.storage.redis import attachment as attachment_module
from fastapi_balancer.storage.redis import slots as slots_module
from fastapi_balancer.storage.redis import storage as storage_module
from tests.conftest import missing
from tests.servers import Binary, StoreServer, binaries

OpenStorage = Callable[..., AbstractAsyncContextManager[Storage]]
WITHIN = 2.0  # seconds; a hand-off takes a millisecond, but the machine may be busy


@asynccontextmanager
async def opened(storage: Storage) -> AsyncIterator[Storage]:
    await storage.open()
    try:
        yield storage
    finally:
        await storage.close()


@pytest.fixture(scope="module", params=[None, *binaries()], ids=lambda b: b.name if b else "memory")
def server(request: pytest.FixtureRequest) -> Iterator[StoreServer | None]:
    """None for the storage in memory."""
    binary: Binary | None = request.param
    if binary is None:
        yield None
        return
    with StoreServer(binary.path or missing(binary.reason)) as server:
        yield server


@pytest.fixture
def open_storage(server: StoreServer | None, monkeypatch: pytest.MonkeyPatch) -> OpenStorage:
    """Open a store with the endpoints /a, as the test wants it, and /b, which takes one."""
    for module in (slots_module, attachment_module, storage_module):
        monkeypatch.setattr(module, "LEARNING", 20)  # nobody else is to be waited for

    def make(
        capacity: int | None = 1, queue_size: int = 10
    ) -> AbstractAsyncContextManager[Storage]:
        endpoints = {"/a": SlotsConfig(capacity, queue_size), "/b": SlotsConfig(1)}
        if server is None:
            return opened(MemoryStorage(endpoints))
        return opened(RedisStorage(server.url, endpoints, service=secrets.token_hex(6)))

    return make


async def granted(*tickets: Ticket) -> None:
    async with asyncio.timeout(WITHIN):
        await asyncio.gather(*(ticket.granted for ticket in tickets))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN):
        while not true():  # noqa: ASYNC110 - the store says nothing when it has heard something
            await asyncio.sleep(0.002)


async def hold(slots: Slots, count: int) -> None:
    """Hold so many slots, whether they were free here or had to be asked for."""
    for _ in range(count):
        if not slots.take():
            await granted(slots.join())


async def refusal(slots: Slots) -> str:
    """Why no more may join the queue; said at once or after a word with the store."""
    with pytest.raises(Rejected) as refused:
        await granted(slots.join())
    assert refused.value.retry_after > 0
    return refused.value.reason


async def is_idle(slots: Slots) -> bool:
    """Whether nobody is granted anything, after the store has had its say."""
    before = slots.active
    await asyncio.sleep(0.03)
    return slots.active == before


def test_a_slot_is_held_until_it_is_released(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage(capacity=2) as storage:
            slots = storage.slots("/a")
            await hold(slots, 2)
            assert (slots.active, slots.owned, slots.capacity) == (2, 2, 2)
            assert not slots.take()
            slots.release(0.1)
            assert slots.active == 1
            assert slots.take()

    asyncio.run(main())


def test_who_waits_gets_the_slot_that_becomes_free(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            slots = storage.slots("/a")
            await hold(slots, 1)
            ticket = slots.join()
            assert slots.queued == 1
            assert not ticket.granted.done()
            slots.release()
            await granted(ticket)
            assert (slots.active, slots.queued) == (1, 0)

    asyncio.run(main())


def _note(served: list[int], number: int, granted: object) -> None:
    served.append(number)


def test_slots_are_given_in_the_order_of_arrival(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            slots = storage.slots("/a")
            await hold(slots, 1)
            served: list[int] = []
            tickets = [slots.join() for _ in range(10)]
            for number, ticket in enumerate(tickets):
                ticket.granted.add_done_callback(partial(_note, served, number))
            for ticket in tickets:
                slots.release()
                await granted(ticket)
            assert served == list(range(10))
            assert (slots.active, slots.queued) == (1, 0)

    asyncio.run(main())


def test_nobody_barges_in_before_those_who_wait(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            slots = storage.slots("/a")
            await hold(slots, 1)
            first = slots.join()
            slots.release()
            assert not slots.take()
            second = slots.join()
            await granted(first)
            assert not second.granted.done()

    asyncio.run(main())


def test_a_ticket_is_granted_at_once_when_a_slot_is_free(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage(capacity=3) as storage:
            slots = storage.slots("/a")
            await granted(*(slots.join() for _ in range(3)))
            assert (slots.active, slots.queued) == (3, 0)

    asyncio.run(main())


@pytest.mark.parametrize("queue_size", [0, 1, 3])
def test_a_full_queue_refuses(open_storage: OpenStorage, queue_size: int) -> None:
    async def main() -> None:
        async with open_storage(queue_size=queue_size) as storage:
            slots = storage.slots("/a")
            await hold(slots, 1)
            tickets = [slots.join() for _ in range(queue_size)]
            assert await refusal(slots) == "queue_full"
            assert slots.queued == queue_size
            assert not any(ticket.granted.done() for ticket in tickets)

    asyncio.run(main())


def test_there_is_room_again_when_one_left_the_queue(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage(queue_size=1) as storage:
            slots = storage.slots("/a")
            await hold(slots, 1)
            slots.leave(slots.join())
            ticket = slots.join()
            slots.release()
            await granted(ticket)

    asyncio.run(main())


def test_a_burst_into_free_slots_needs_no_room_in_the_queue(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage(capacity=8, queue_size=1) as storage:
            slots = storage.slots("/a")
            await granted(*[slots.join() for _ in range(8) if not slots.take()])
            assert slots.active == 8

    asyncio.run(main())


def test_who_leaves_is_never_granted(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            slots = storage.slots("/a")
            await hold(slots, 1)
            first, second = slots.join(), slots.join()
            slots.leave(first)
            slots.leave(first)
            assert slots.queued == 1
            slots.release()
            await granted(second)
            assert not first.granted.done()
            assert slots.active == 1

    asyncio.run(main())


def test_leaving_after_the_slot_came_changes_nothing(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            slots = storage.slots("/a")
            await hold(slots, 1)
            ticket = slots.join()
            slots.release()
            await granted(ticket)
            slots.leave(ticket)
            assert (slots.active, slots.queued) == (1, 0)
            assert not slots.take()
            slots.release()
            await hold(slots, 1)

    asyncio.run(main())


def test_the_slot_of_a_cancelled_task_goes_to_the_next(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            slots = storage.slots("/a")
            await hold(slots, 1)
            first, second = slots.join(), slots.join()
            first.granted.cancel()  # its task has not run yet, so it has not left
            slots.release()
            await granted(second)
            slots.leave(first)
            assert (slots.active, slots.queued) == (1, 0)

    asyncio.run(main())


def test_a_task_cancelled_right_after_the_grant_still_owes_a_release(
    open_storage: OpenStorage,
) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            slots = storage.slots("/a")
            await hold(slots, 1)
            first, second = slots.join(), slots.join()
            first.granted.add_done_callback(lambda _: slots.leave(first))
            slots.release()
            await granted(first)
            assert await is_idle(slots)
            assert not second.granted.done()
            slots.release()
            await granted(second)

    asyncio.run(main())


def test_endpoints_do_not_share_slots(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            await hold(storage.slots("/a"), 1)
            await hold(storage.slots("/b"), 1)
            assert storage.slots("/a") is storage.slots("/a")
            assert not storage.slots("/b").take()

    asyncio.run(main())


# ------------------------------------------------------------------ capacity


def test_a_raised_capacity_is_given_to_those_who_wait(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            slots = storage.slots("/a")
            await hold(slots, 1)
            tickets = [slots.join() for _ in range(3)]
            await storage.set_capacity("/a", 3)
            await granted(*tickets[:2])
            assert (slots.capacity, slots.active, slots.queued) == (3, 3, 1)

    asyncio.run(main())


def test_a_lowered_capacity_ends_nothing_and_starts_nothing(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage(capacity=3) as storage:
            slots = storage.slots("/a")
            await hold(slots, 3)
            await storage.set_capacity("/a", 1)
            assert (slots.capacity, slots.active) == (1, 3)
            ticket = slots.join()
            for _ in range(2):
                slots.release()
                assert await is_idle(slots)
            slots.release()
            await granted(ticket)

    asyncio.run(main())


def test_a_lowered_capacity_holds_without_anybody_waiting(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage(capacity=3) as storage:
            slots = storage.slots("/a")
            await hold(slots, 3)
            slots.release()
            await storage.set_capacity("/a", 1)
            await until(lambda: slots.owned == 2)
            slots.release()
            await until(lambda: slots.owned == 1)
            assert not slots.take()

    asyncio.run(main())


def test_without_a_capacity_everything_is_admitted(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage(capacity=None, queue_size=0) as storage:
            slots = storage.slots("/a")
            assert slots.capacity is None
            assert all(slots.take() for _ in range(100))
            assert slots.active == slots.owned == 100
            for _ in range(100):
                slots.release()
            assert slots.active == 0

    asyncio.run(main())


def test_a_lifted_limit_lets_all_in_who_wait(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            slots = storage.slots("/a")
            await hold(slots, 1)
            tickets = [slots.join() for _ in range(5)]
            await storage.set_capacity("/a", None)
            await granted(*tickets)
            assert slots.take()
            assert (slots.capacity, slots.active) == (None, 7)

    asyncio.run(main())


def test_a_limit_counts_what_runs_already(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage(capacity=None) as storage:
            slots = storage.slots("/a")
            assert all(slots.take() for _ in range(3))
            await storage.set_capacity("/a", 2)
            assert (slots.capacity, slots.active) == (2, 3)
            ticket = slots.join()
            slots.release()
            assert await is_idle(slots)
            slots.release()
            await granted(ticket)

    asyncio.run(main())


# ------------------------------------------------------------------ records, reports, locks


def test_a_record_is_read_as_it_was_written(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            assert await storage.load("x") is None
            await storage.save("x", b"\x00\xffone")
            await storage.save("x", b"two")
            await storage.save("y", b"")
            assert [await storage.load(key) for key in "xy"] == [b"two", b""]

    asyncio.run(main())


def test_the_newest_report_of_a_worker_counts(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            await storage.publish(b"one")
            await storage.publish(b"two")
            assert await storage.reports() == {storage.worker: b"two"}

    asyncio.run(main())


def test_a_lock_has_one_holder_and_its_numbers_grow(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            first = await storage.lock("probe", 30.0)
            assert first is not None
            assert await storage.lock("probe", 30.0) is None
            assert await storage.lock("other", 30.0) is not None
            assert await storage.renew("probe", first, 30.0)
            await storage.unlock("probe", first)
            assert not await storage.renew("probe", first, 30.0)
            second = await storage.lock("probe", 30.0)
            assert second is not None
            assert second > first
            await storage.unlock("probe", first)
            assert await storage.lock("probe", 30.0) is None

    asyncio.run(main())


def test_a_lock_ends_by_itself(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            first = await storage.lock("probe", 0.02)
            await asyncio.sleep(0.04)
            assert first is not None
            assert not await storage.renew("probe", first, 30.0)
            assert not await storage.save_fenced("x", b"late", "probe", first)
            assert await storage.lock("probe", 30.0) is not None

    asyncio.run(main())


def test_only_the_holder_of_a_lock_writes_the_record(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            old = await storage.lock("probe", 30.0)
            assert old is not None
            await storage.unlock("probe", old)
            new = await storage.lock("probe", 30.0)
            assert new is not None
            assert await storage.save_fenced("x", b"new", "probe", new)
            assert not await storage.save_fenced("x", b"old", "probe", old)
            assert await storage.load("x") == b"new"

    asyncio.run(main())


# ------------------------------------------------------------------ the store itself


def test_the_status_tells_of_a_store_that_is_well(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            status = storage.status()
            assert (status.degraded, status.degraded_seconds) == (False, 0.0)
            assert (status.degraded_count, status.workers) == (0, 1)
            assert storage.worker.count("-") == 3

    asyncio.run(main())


def test_closing_twice_is_harmless(open_storage: OpenStorage) -> None:
    async def main() -> None:
        async with open_storage() as storage:
            await hold(storage.slots("/a"), 1)
            await storage.close()

    asyncio.run(main())
