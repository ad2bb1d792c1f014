"""Run code that waits in virtual time: an hour of sleeps and timeouts takes milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

STUCK_AFTER = 5.0  # real seconds; enough for a thread or a loopback socket to report back


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a `JumpingLoop` of its own, as `asyncio.run` would.

    Raises `RuntimeError` when everything waits for something that cannot come.
    """
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time starts at 0 and jumps to the next timer when nothing can run.

    The same code runs in the same order each time. It is meant for code without real I/O: an answer
    that comes from a socket or a thread loses against any timer.
    """

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def jump(self, seconds: float) -> None:
        """Move the time forward, as a handler that blocks the loop would."""
        self._now += seconds


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return self._select_without_timer()
        ready = super().select(0)
        if not ready and timeout > 0:
            self._loop.jump(timeout)
        return ready

    def _select_without_timer(self) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(STUCK_AFTER)
        if not ready:
            raise RuntimeError("Everything waits, and no timer is left that could end it.")
        return ready
