"""The virtual clock that the other tests rely on."""

from __future__ import annotations

import asyncio
import time

import pytest

from fastapi_balancer import testing
from fastapi_balancer.testing import JumpingLoop, run_virtual


def test_an_hour_of_sleep_takes_no_time_and_the_clock_shows_it() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    before = time.monotonic()
    assert run_virtual(main()) == 3600
    assert time.monotonic() - before < 5


def test_timers_fire_in_the_order_of_their_time() -> None:
    async def main() -> list[int]:
        order: list[int] = []

        async def note(number: int) -> None:
            await asyncio.sleep(number)
            order.append(number)

        await asyncio.gather(note(3), note(1), note(2))
        return order

    assert run_virtual(main()) == [1, 2, 3]


def test_a_blocking_handler_can_be_simulated_by_a_jump() -> None:
    async def main() -> bool:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, JumpingLoop)
        async with asyncio.timeout(5) as bound:
            loop.jump(4)
            await asyncio.sleep(0.5)
        return bound.expired()

    assert run_virtual(main()) is False


def test_an_answer_from_a_thread_arrives_when_no_timer_is_pending() -> None:
    async def main() -> int:
        return await asyncio.to_thread(sum, (1, 2))

    assert run_virtual(main()) == 3


def test_waiting_for_what_cannot_come_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(testing, "STUCK_AFTER", 0.0)
    with pytest.raises(RuntimeError, match="no timer is left"):
        run_virtual(main())
