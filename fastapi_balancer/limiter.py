"""The gate of one endpoint in one worker: a slot now, or a place in the queue for a while."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque

from fastapi_balancer.errors import ClientLeft, Reason, Rejected
from fastapi_balancer.storage.base import Slots, Ticket

logger = logging.getLogger(__name__)

LOG_EVERY = 60.0  # seconds between two lines about refusals
RETRY_AFTER_MOST = 60.0  # seconds
RETRY_AFTER_LEAST = 1.0
RATE_OVER = 64  # the last so many releases give the rate at which slots become free


class Limiter:
    """Slots of one endpoint, with the time that a request may wait for one.

    `ask_time` is how long the store may need to answer, in seconds: with a `queue_timeout` below
    it, a request would be refused before the store could say that a slot is free.
    """

    def __init__(
        self, slots: Slots, *, queue_timeout: float, ask_time: float = 0.0, name: str = ""
    ) -> None:
        self.name = name
        self.slots = slots
        self.queue_timeout = queue_timeout
        self.draining = False
        self.peak_active = 0  # the most at once in this worker
        self._patience = max(queue_timeout, ask_time)
        self._waiting: dict[Ticket, float] = {}  # in order of arrival -> when they came
        self._loop = asyncio.get_running_loop()
        self._refused: dict[Reason, int] = {}  # since the last line in the log
        self._silent_until = 0.0
        self._released: deque[float] = deque(maxlen=RATE_OVER)

    @property
    def oldest_wait(self) -> float:
        """Seconds that the first in this worker's queue has waited."""
        first = next(iter(self._waiting.values()), None)
        return 0.0 if first is None else self._loop.time() - first

    def take(self) -> bool:
        """Take a slot if there is one at once. Who gets one calls `release`, exactly once."""
        return not self.draining and self.slots.take()

    def join(self) -> Ticket:
        """Join the queue. Who joins calls `wait`. Raises `Rejected`."""
        if self.draining:
            raise Rejected("draining", RETRY_AFTER_LEAST)
        try:
            ticket = self.slots.join()
        except Rejected as exc:
            raise Rejected(exc.reason, self.retry_after()) from None
        self._waiting[ticket] = self._loop.time()
        return ticket

    async def wait(self, ticket: Ticket) -> None:
        """Wait until the ticket has its slot; then `release` is owed.

        Raises `Rejected` after `queue_timeout`, or `ClientLeft` when `leave` was called meanwhile.
        Nothing is owed then, nor after a cancellation.
        """
        timer = self._loop.call_later(self._patience, self.refuse, ticket, "queue_timeout")
        try:
            await ticket.granted
        except asyncio.CancelledError:
            if _is_granted(ticket):  # and cancelled before this task could run
                self.slots.release()
            raise
        except Rejected as exc:
            raise Rejected(exc.reason, self.retry_after()) from None
        finally:
            timer.cancel()
            self._waiting.pop(ticket, None)
            self.slots.leave(ticket)

    def refuse(self, ticket: Ticket, reason: Reason) -> None:
        """Send a waiting ticket away. Does nothing when it has its slot already."""
        self._end(ticket, Rejected(reason, RETRY_AFTER_LEAST))

    def leave(self, ticket: Ticket) -> None:
        """The client of a waiting ticket has gone. Does nothing when it has its slot already."""
        self._end(ticket, ClientLeft())

    def release(self, held: float) -> None:
        """Give the slot back, which was held for `held` seconds."""
        if self.slots.active > self.peak_active:
            self.peak_active = self.slots.active
        self.slots.release(held)
        self._released.append(self._loop.time())

    def drain(self) -> None:
        """Send all who wait away, and let nobody in any more. What runs goes on."""
        self.draining = True
        for ticket in list(self._waiting):
            self.refuse(ticket, "draining")

    def refused(self, reason: Reason) -> None:
        """Note a refusal for the log: the first at once, then at most one line a minute."""
        self._refused[reason] = self._refused.get(reason, 0) + 1
        now = self._loop.time()
        if now < self._silent_until:
            return
        logger.warning(
            "%s: refused %s; capacity %s, %d active and %d queued in this worker",
            self.name,
            ", ".join(f"{count} ({reason})" for reason, count in self._refused.items()),
            self.slots.capacity,
            self.slots.active,
            self.slots.queued,
        )
        self._refused.clear()
        self._silent_until = now + LOG_EVERY

    def retry_after(self) -> float:
        """Seconds until those who wait here now will have been served, at the present rate."""
        rate = self._rate()
        if not rate:
            return RETRY_AFTER_LEAST
        return min(RETRY_AFTER_MOST, max(RETRY_AFTER_LEAST, math.ceil(self.slots.queued / rate)))

    def _rate(self) -> float:
        """Slots that became free per second in this worker, over the last `RATE_OVER` of them."""
        if len(self._released) < 2:
            return 0.0
        return len(self._released) / max(self._loop.time() - self._released[0], 1e-3)

    def _end(self, ticket: Ticket, outcome: Exception) -> None:
        if not ticket.granted.done():
            self.slots.leave(ticket)
            ticket.granted.set_exception(outcome)


def _is_granted(ticket: Ticket) -> bool:
    granted = ticket.granted
    return granted.done() and not granted.cancelled() and granted.exception() is None
