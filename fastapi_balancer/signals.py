"""Learns of SIGTERM and SIGINT when they arrive, beside the server's own handling.

A server tells an app of its end only when the last request is done; those in the queue must be sent
away long before that.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

ENDING = (signal.SIGTERM, signal.SIGINT)


class EndingSignals:
    """Calls `ending` (from a signal handler) and then whatever handled the signal before."""

    def __init__(self, ending: Callable[[], object]) -> None:
        self._ending: Callable[[], object] | None = ending
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def install(self) -> None:
        """Put ourselves before the present handlers. Does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            logger.debug(
                "not in the main thread: the end is seen with the lifespan's shutdown only"
            )
            return
        for number in ENDING:
            before = signal.getsignal(number)
            if callable(before):  # SIG_DFL ends the process at once, SIG_IGN nothing
                self._before[number] = before
                signal.signal(number, self._handle)

    def restore(self) -> None:
        """Put the former handlers back. Idempotent.

        Where somebody else has taken our place, they may still call us: we only pass it on then.
        """
        self._ending = None
        for number, before in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._ending is not None:
            self._ending()
        self._before[number](number, frame)
