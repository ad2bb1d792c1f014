"""Keeps exactly so many requests in flight, each refilled at once, and measures them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, replace
from typing import Protocol

from fastapi_balancer.prober.measure import (
    UNDECIDED,
    FixedSizeTest,
    Sample,
    Thresholds,
    Verdict,
    Window,
    judge,
    summarize,
)

logger = logging.getLogger(__name__)

CANCEL_GRACE = 1.0  # how long cancelled requests may take to clean up


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request: its sample, and the start of the answer if asked for."""

    sample: Sample
    status: int | None = None  # None: no response was begun
    body: bytes = b""
    location: str | None = None  # where a redirect points to


class Sender(Protocol):
    """Sends the probe's request, over whatever lies between the probe and the endpoint."""

    timeout: float  # a request that takes longer is cancelled, and its sample is a failure

    async def prepare(self, level: int) -> None:
        """Get ready for a level. Nothing is in flight then."""

    async def send(self, keep: int = 0) -> Reply:
        """Send one request and read the answer to its end, keeping `keep` bytes of the body.

        Never raises for what the endpoint does wrong: that is the sample's `failure`. Returns when
        the endpoint has let go of the request, which may be after the sample's end.
        """


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """How one level is measured."""

    level: int
    request_limit: int  # the most requests that may be sent
    deadline: float  # when to give up, on the clock of the event loop
    patience: float  # after so many seconds a slow level settles for the samples it has

    @property
    def discard(self) -> int:
        """Completions that belong to the filling of the pipe, not to its steady state."""
        return 2 * self.level

    @property
    def wanted(self) -> int:
        """Samples: at least six waves, or the queue that a level builds up is never seen."""
        return max(40, 6 * self.level)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a level came to."""

    window: Window
    verdict: Verdict
    sent: int


async def run_level(sender: Sender, plan: LevelPlan, thresholds: Thresholds) -> Measurement:
    """Measure one level. Nothing of it is left running afterwards, whichever way it ends."""
    level = _Level(sender, plan, FixedSizeTest(thresholds, plan.wanted))
    await sender.prepare(plan.level)
    try:
        await level.run()
        await level.land()
    finally:
        await level.abort()
    return level.measurement


class _Level:
    """The requests of one level that are in flight, and the samples of those that landed."""

    def __init__(self, sender: Sender, plan: LevelPlan, test: FixedSizeTest) -> None:
        self._loop = asyncio.get_running_loop()
        self._sender = sender
        self._plan = plan
        self._test = test
        self._due: deque[float] = deque()  # when each request was due that has not started yet
        self._in_flight: dict[asyncio.Task[Reply], float] = {}  # and when it was due
        self._over: asyncio.Future[bool] = self._loop.create_future()  # whether it is decided
        self._began = self._loop.time()
        self._steady_since = self._landed_at = self._began
        self._sent = 0
        self._discarded = 0

    async def run(self) -> None:
        """Keep the level's number of requests in flight until it is decided or given up."""
        for _ in range(self._plan.level):
            self._launch()
        self._stop_without_requests()
        await asyncio.wait([self._over], timeout=self._plan.deadline - self._loop.time())
        if self._over.done():
            self._over.result()  # raises what a sender must not raise
        else:
            self._over.set_result(False)

    async def land(self) -> None:
        """Wait until nothing is in flight, so that the next level begins with an idle endpoint."""
        left = min(self._sender.timeout, self._plan.deadline - self._loop.time())
        if self._in_flight and left > 0:
            await asyncio.wait(self._in_flight, timeout=left)

    async def abort(self) -> None:
        """Cancel what is still in flight."""
        if not self._over.done():
            self._over.cancel()
        for task in self._in_flight:
            task.cancel()
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=CANCEL_GRACE)
        if self._in_flight:
            logger.warning("%d probe requests ignore being cancelled", len(self._in_flight))

    @property
    def measurement(self) -> Measurement:
        samples = self._test.samples
        # a part of a wave may land in an instant, which would look like an enormous throughput
        is_a_wave = len(samples) >= self._plan.level
        window = summarize(samples, self._landed_at - self._steady_since if is_a_wave else None)
        decided = self._over.result()
        verdict = judge(window, self._test.thresholds) if decided else UNDECIDED
        return Measurement(window, verdict, self._sent)

    def _launch(self) -> None:
        """Have one more request sent, due now.

        Its latency counts from now, however late the loop comes to it: with a handler that blocks
        the loop, that wait is most of what a client would see.
        """
        if self._sent + len(self._due) >= self._plan.request_limit:
            return
        self._due.append(self._loop.time())
        if len(self._due) == 1:
            self._loop.call_soon(self._start_next)

    def _start_next(self) -> None:
        """Start one request, in a task of its own as servers do it.

        One in each round of the loop, so that timers get their turn between handlers that block.
        """
        if self._over.done():
            return
        self._sent += 1
        task = self._loop.create_task(self._sender.send())
        self._in_flight[task] = self._due.popleft()
        task.add_done_callback(self._landed)
        if self._due:
            self._loop.call_soon(self._start_next)

    def _landed(self, task: asyncio.Task[Reply]) -> None:
        due = self._in_flight.pop(task)
        if task.cancelled():
            return
        error = task.exception()
        if self._over.done():
            return
        if error is not None:
            self._over.set_exception(error)
            return
        self._take(replace(task.result().sample, began=due))
        if not self._over.done():
            self._launch()
            self._stop_without_requests()

    def _take(self, sample: Sample) -> None:
        self._landed_at = self._loop.time()
        elapsed = self._landed_at - self._began
        if not self._is_steady(elapsed):
            self._discarded += 1
            self._steady_since = self._landed_at
            return
        decided = self._test.add(sample)
        is_late = elapsed > self._plan.patience and len(self._test.samples) >= self._plan.level
        if decided or is_late:
            self._over.set_result(True)

    def _is_steady(self, elapsed: float) -> bool:
        # one wave has to do where two would cost a slow endpoint half of its time
        is_late = elapsed > self._plan.patience / 2
        return self._discarded >= (self._plan.level if is_late else self._plan.discard)

    def _stop_without_requests(self) -> None:
        if not self._in_flight and not self._due:
            self._over.set_result(False)
