"""The gate of one endpoint: slots, the queue, and every way out of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from fastapi_balancer.errors import ClientLeft, Rejected
from fastapi_balancer.limiter import Limiter
from fastapi_balancer.storage.memory import MemorySlots
from tests.exchange import settle
from tests.virtual import virtual


def make(
    capacity: int | None = 1,
    *,
    queue_size: int = 100,
    queue_timeout: float = 30.0,
    ask_time: float = 0.0,
) -> Limiter:
    slots = MemorySlots(capacity=capacity, queue_size=queue_size)
    return Limiter(slots, queue_timeout=queue_timeout, ask_time=ask_time)


async def queued(limiter: Limiter, done: Callable[[], object] = lambda: None) -> None:
    """Wait in the queue for a slot, then tell."""
    await limiter.wait(limiter.join())
    done()


@virtual
async def test_slots_are_taken_at_once_up_to_the_capacity() -> None:
    limiter = make(3)
    assert [limiter.take() for _ in range(5)] == [True, True, True, False, False]
    assert limiter.slots.active == 3


@virtual
async def test_without_a_capacity_nothing_is_limited_but_counted() -> None:
    limiter = make(None)
    assert all(limiter.take() for _ in range(500))
    assert limiter.slots.active == 500


@virtual
async def test_the_queue_is_served_in_the_order_of_arrival() -> None:
    limiter, order = make(1), []
    limiter.take()
    tasks = [
        asyncio.create_task(queued(limiter, lambda i=i: order.append(i)))  # type: ignore[misc]
        for i in range(50)
    ]
    await settle()
    for _ in range(50):
        limiter.release(0.1)
        await settle()
    await asyncio.gather(*tasks)
    assert order == list(range(50))


@virtual
async def test_who_comes_while_others_wait_does_not_overtake_them() -> None:
    limiter = make(1)
    limiter.take()
    first = asyncio.create_task(queued(limiter))
    await settle()
    limiter.release(0.1)  # the slot is the first's now, though its task has not run yet
    assert not limiter.take()
    await first
    assert limiter.slots.active == 1


@virtual
async def test_a_wait_ends_after_the_queue_timeout_to_the_second() -> None:
    limiter = make(1, queue_timeout=7.0)
    limiter.take()
    with pytest.raises(Rejected) as refusal:
        await queued(limiter)
    assert refusal.value.reason == "queue_timeout"
    assert asyncio.get_running_loop().time() == 7.0
    assert (limiter.slots.queued, limiter.slots.active) == (0, 1)


@virtual
async def test_a_queue_timeout_of_zero_never_waits() -> None:
    limiter = make(1, queue_timeout=0.0)
    limiter.take()
    with pytest.raises(Rejected, match="queue_timeout"):
        await queued(limiter)
    assert asyncio.get_running_loop().time() == 0.0


@virtual
async def test_a_wait_is_never_shorter_than_the_store_may_take_to_answer() -> None:
    limiter = make(1, queue_timeout=0.0, ask_time=0.25)
    limiter.take()
    with pytest.raises(Rejected, match="queue_timeout"):
        await queued(limiter)
    assert asyncio.get_running_loop().time() == 0.25


@virtual
async def test_a_full_queue_takes_nobody_in_and_keeps_those_in_it() -> None:
    limiter = make(1, queue_size=2)
    limiter.take()
    tasks = [asyncio.create_task(queued(limiter)) for _ in range(2)]
    await settle()
    with pytest.raises(Rejected, match="queue_full"):
        limiter.join()
    assert limiter.slots.queued == 2
    limiter.release(1)
    await tasks[0]
    limiter.release(1)
    await tasks[1]


@virtual
async def test_who_leaves_the_queue_is_out_of_it_at_once() -> None:
    limiter = make(1)
    limiter.take()
    ticket = limiter.join()
    waiting = asyncio.create_task(limiter.wait(ticket))
    await settle()
    limiter.leave(ticket)
    assert limiter.slots.queued == 0
    with pytest.raises(ClientLeft):
        await waiting
    limiter.release(1)
    assert limiter.slots.active == 0


@virtual
async def test_leaving_twice_or_with_a_slot_does_nothing() -> None:
    limiter = make(1)
    ticket = limiter.join()
    await limiter.wait(ticket)
    limiter.leave(ticket)
    limiter.leave(ticket)
    assert limiter.slots.active == 1


@virtual
async def test_a_wait_that_is_cancelled_gives_up_its_place() -> None:
    limiter = make(1)
    limiter.take()
    waiting = asyncio.create_task(queued(limiter))
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert limiter.slots.queued == 0
    limiter.release(1)
    assert limiter.slots.active == 0


@virtual
async def test_a_slot_granted_in_the_moment_of_a_cancellation_is_given_back() -> None:
    limiter = make(1)
    limiter.take()
    waiting = asyncio.create_task(queued(limiter))
    await settle()
    limiter.release(1)  # grants: the waiter holds the slot, but has not run yet
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert limiter.slots.active == 0
    assert limiter.take()


@virtual
async def test_a_cancellation_before_the_grant_passes_the_slot_to_the_next() -> None:
    limiter = make(1)
    limiter.take()
    first, second = (asyncio.create_task(queued(limiter)) for _ in range(2))
    await settle()
    first.cancel()
    limiter.release(1)
    await second
    assert first.cancelled()
    assert limiter.slots.active == 1


@virtual
async def test_a_grant_in_the_moment_of_the_timeout_is_either_used_or_never_given() -> None:
    """The timer and the release meet in one turn of the loop, in both orders."""
    for release_first in (True, False):
        limiter = make(1, queue_timeout=5.0)
        limiter.take()
        loop = asyncio.get_running_loop()
        if release_first:
            loop.call_later(5.0, limiter.release, 1)
        waiting = asyncio.create_task(queued(limiter))
        await settle()
        if not release_first:
            loop.call_later(5.0, limiter.release, 1)
        (result,) = await asyncio.gather(waiting, return_exceptions=True)
        await settle()
        assert limiter.slots.active == (1 if result is None else 0)
        assert (result is None) is release_first


@virtual
async def test_draining_sends_all_who_wait_away_and_lets_nobody_in() -> None:
    limiter = make(2)
    limiter.take()
    limiter.take()
    tasks = [asyncio.create_task(queued(limiter)) for _ in range(3)]
    await settle()
    limiter.drain()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(result) for result in results] == ["draining"] * 3
    assert limiter.slots.active == 2
    limiter.release(1)
    assert not limiter.take()
    with pytest.raises(Rejected, match="draining"):
        limiter.join()


@virtual
async def test_the_oldest_wait_is_the_head_of_the_queues() -> None:
    limiter = make(1)
    assert limiter.oldest_wait == 0.0
    limiter.take()
    first = asyncio.create_task(queued(limiter))
    await asyncio.sleep(2)
    second = asyncio.create_task(queued(limiter))
    await asyncio.sleep(3)
    assert limiter.oldest_wait == 5.0
    limiter.release(1)
    await first
    assert limiter.oldest_wait == 3.0
    limiter.release(1)
    await second
    assert limiter.oldest_wait == 0.0


@virtual
async def test_retry_after_is_the_queue_over_the_rate_at_which_slots_become_free() -> None:
    limiter = make(1, queue_timeout=1000)
    limiter.take()
    tasks = [asyncio.create_task(queued(limiter)) for _ in range(40)]
    for _ in range(10):  # two a second
        await asyncio.sleep(0.5)
        limiter.release(0.5)
    assert limiter.slots.queued == 30
    assert limiter.retry_after() == pytest.approx(30 / 2, rel=0.15)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@virtual
async def test_who_waited_in_vain_is_told_how_long_the_others_will_take() -> None:
    limiter = make(1, queue_timeout=20)
    limiter.take()
    tasks = []
    for _ in range(40):
        tasks.append(asyncio.create_task(queued(limiter)))
        await asyncio.sleep(0.01)
    for _ in range(10):  # one in two seconds: the other thirty wait too long
        await asyncio.sleep(1.9)
        limiter.release(1.9)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    waits = [result.retry_after for result in results if isinstance(result, Rejected)]
    assert len(waits) == 30
    assert waits[0] == pytest.approx(29 * 1.9, abs=8)
    assert waits[-1] == 1.0  # nobody is left then


@virtual
async def test_retry_after_is_a_second_without_any_experience() -> None:
    limiter = make(1)
    limiter.take()
    assert limiter.retry_after() == 1.0


@virtual
async def test_retry_after_is_never_more_than_a_minute() -> None:
    limiter = make(1, queue_timeout=10_000)
    limiter.take()
    tasks = [asyncio.create_task(queued(limiter)) for _ in range(60)]
    for _ in range(3):
        await asyncio.sleep(100)
        limiter.release(100)
    assert limiter.retry_after() == 60.0
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@virtual
async def test_a_thousand_random_ways_out_lose_no_slot() -> None:
    """Waits that end by timeout, cancellation, departure and grant, all at whole milliseconds."""
    limiter = make(3, queue_timeout=0.05)
    most = 0

    async def one(i: int) -> None:
        nonlocal most
        await asyncio.sleep((i * 7 % 101) / 1000)
        if not limiter.take():
            ticket = limiter.join()
            if i % 3 == 0:
                asyncio.get_running_loop().call_later(i % 13 / 1000, limiter.leave, ticket)
            await limiter.wait(ticket)
        most = max(most, limiter.slots.active)
        try:
            await asyncio.sleep(i % 5 / 1000)
        finally:
            limiter.release(0)

    tasks = [asyncio.create_task(one(i)) for i in range(1000)]
    for i, task in enumerate(tasks):
        if i % 7 == 0:
            asyncio.get_running_loop().call_later(i % 110 / 1000, task.cancel)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = {type(result).__name__ for result in results}
    assert kinds == {"NoneType", "CancelledError", "ClientLeft", "Rejected"}
    assert (limiter.slots.active, limiter.slots.queued, most) == (0, 0, 3)


@virtual
async def test_refusals_are_told_at_once_and_then_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limiter = make(1)
    for _ in range(100):
        limiter.refused("queue_full")
    assert len(caplog.messages) == 1
    await asyncio.sleep(60)
    limiter.refused("queue_timeout")
    assert len(caplog.messages) == 2
    assert "refused 99 (queue_full), 1 (queue_timeout); capacity 1" in caplog.messages[1]
