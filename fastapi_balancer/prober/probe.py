"""One probe of one endpoint: a first request, then level after level until there is an answer."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from fastapi_balancer.errors import ProbeError
from fastapi_balancer.models import ProbeConfig
from fastapi_balancer.prober.load import LevelPlan, Reply, Sender, run_level
from fastapi_balancer.prober.measure import TIMEOUT, Thresholds, in_ms
from fastapi_balancer.prober.request import ProbeRequest, explain_redirect, explain_refusal
from fastapi_balancer.prober.result import ProbeResult
from fastapi_balancer.prober.search import Point, Search

logger = logging.getLogger(__name__)

FIRST_REPLY_PATIENCE = 10.0  # how long a first failure is retried: a model may still be loading
KEEP = 16 * 1024  # bytes of the first answer, enough to find the secrets in it before it is cut
LEVELS_IN_BUDGET = 8  # a level settles for fewer samples past this part of the time
TRANSIENT = {408, 425, 429}  # the 4xx that say "later" rather than "not like this"


class Progress(Protocol):
    """What a terminal needs to show a probe at work. Called from the event loop; must not block."""

    def begin(self, endpoint: str, level: int) -> None:
        """A level is about to be measured."""

    def judge(self, endpoint: str, point: Point) -> None:
        """A level was measured."""

    def end(self, endpoint: str, result: ProbeResult) -> None:
        """The probe has its answer."""


class Silent:
    """Shows nothing."""

    def begin(self, endpoint: str, level: int) -> None:
        """Show nothing."""

    def judge(self, endpoint: str, point: Point) -> None:
        """Show nothing."""

    def end(self, endpoint: str, result: ProbeResult) -> None:
        """Show nothing."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """What is probed, by whom, within which bounds."""

    endpoint: str
    request: ProbeRequest
    budget: ProbeConfig
    thresholds: Thresholds
    worker: str = ""
    start_id: str = ""


async def run_probe(
    sender: Sender, prospect: Prospect, progress: Progress | None = None
) -> ProbeResult:
    """Find the capacity of one endpoint. Raises `ProbeError` when it does not answer properly."""
    return await _Probe(sender, prospect, progress or Silent()).run()


def request_timeout(thresholds: Thresholds) -> float:
    """Seconds after which a request is given up: far enough past the threshold to be no doubt."""
    return max(4 * thresholds.latency_ms / 1000, 10.0)


class _Probe:
    """The state of one probe."""

    def __init__(self, sender: Sender, prospect: Prospect, progress: Progress) -> None:
        self._loop = asyncio.get_running_loop()
        self._sender = sender
        self._prospect = prospect
        self._progress = progress
        self._search = Search(prospect.budget.max_concurrency)
        self._began = self._loop.time()
        self._deadline = self._began + prospect.budget.max_seconds
        self._sent = 0

    async def run(self) -> ProbeResult:
        await self._sender.prepare(1)
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._first_reply()
        except TimeoutError:
            raise ProbeError(self._no_answer(TIMEOUT)) from None
        while (level := self._search.next_level) is not None:
            if level > self._requests_left:
                most = self._prospect.budget.max_requests
                self._search.stop(f"`probe.max_requests` ({most}) is too low for level {level}")
                break
            await self._measure(level)
        return self._conclude()

    async def _first_reply(self) -> None:
        """Send single requests until one succeeds. Raises `ProbeError` if that is hopeless."""
        give_up = min(self._loop.time() + FIRST_REPLY_PATIENCE, self._deadline)
        pause = 0.1
        while True:
            reply = await self._sender.send(keep=KEEP)
            self._sent += 1
            if reply.sample.failure is None:
                return self._refuse_redirect(reply)
            self._refuse_hopeless(reply)
            if self._loop.time() + pause >= give_up or not self._requests_left:
                raise ProbeError(self._no_success(reply))
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)

    async def _measure(self, level: int) -> None:
        plan = LevelPlan(
            level,
            request_limit=self._requests_left,
            deadline=self._deadline,
            patience=self._prospect.budget.max_seconds / LEVELS_IN_BUDGET,
        )
        self._progress.begin(self._prospect.endpoint, level)
        measured = await run_level(self._sender, plan, self._prospect.thresholds)
        self._sent += measured.sent
        point = Point(level, measured.window, measured.verdict)
        self._search.record(point)
        if point.verdict.outcome == "undecided":
            self._search.stop(self._what_ran_out(level))
        self._log_level(point)
        self._progress.judge(self._prospect.endpoint, point)

    @property
    def _requests_left(self) -> int:
        return self._prospect.budget.max_requests - self._sent

    def _refuse_redirect(self, reply: Reply) -> None:
        message = explain_redirect(self._prospect.endpoint, self._prospect.request, reply.location)
        if message is not None:
            raise ProbeError(message)

    def _refuse_hopeless(self, reply: Reply) -> None:
        status = reply.status
        if status is not None and 400 <= status < 500 and status not in TRANSIENT:
            raise ProbeError(self._explain(status, reply.body))

    def _no_success(self, reply: Reply) -> str:
        if reply.status is not None and reply.status >= 400:
            return self._explain(reply.status, reply.body)
        return self._no_answer(reply.sample.failure)

    def _no_answer(self, failure: str | None) -> str:
        return (
            f"{self._prospect.request.method} {self._prospect.endpoint} did not answer one request "
            f"in {self._loop.time() - self._began:.0f} s ({failure}). "
            "Mend the endpoint, or set `capacity:`, then it is not probed."
        )

    def _explain(self, status: int, body: bytes) -> str:
        return explain_refusal(self._prospect.endpoint, self._prospect.request, status, body)

    def _what_ran_out(self, level: int) -> str:
        budget = self._prospect.budget
        if self._loop.time() >= self._deadline:
            return f"`probe.max_seconds` ({budget.max_seconds:g} s) ended at level {level}"
        return f"`probe.max_requests` ({budget.max_requests}) ended at level {level}"

    def _log_level(self, point: Point) -> None:
        window = point.window
        logger.info(
            "probe %s: %d at once: %d samples, %s, p99 %s, %.1f %% errors: %s (%s)",
            self._prospect.endpoint,
            point.level,
            window.count,
            "unknown rate" if window.throughput is None else f"{window.throughput:.1f}/s",
            in_ms(window.p99_ms),
            window.error_rate * 100,
            point.verdict.outcome,
            point.verdict.reason,
        )

    def _conclude(self) -> ProbeResult:
        result = self._result()
        logger.info(
            "probe %s: capacity %s (%s): %s; %d requests in %.1f s",
            result.endpoint,
            "unknown" if result.capacity is None else result.capacity,
            result.kind,
            result.reason,
            result.requests,
            result.seconds,
        )
        self._progress.end(result.endpoint, result)
        return result

    def _result(self) -> ProbeResult:
        search, answer = self._search, self._search.answer
        if not search.curve:
            raise ProbeError(f"{self._prospect.endpoint}: {answer.reason}")
        window = (search.passing or search.curve[-1]).window
        return ProbeResult(
            endpoint=self._prospect.endpoint,
            capacity=answer.capacity,
            kind=answer.kind,
            reason=answer.reason,
            curve=tuple(search.curve),
            p50_ms=window.p50_ms,
            p90_ms=window.p90_ms,
            p99_ms=window.p99_ms,
            throughput=window.throughput,
            error_rate=window.error_rate,
            requests=self._sent,
            seconds=self._loop.time() - self._began,
            probed_at=datetime.now(UTC).isoformat(timespec="seconds"),
            worker=self._prospect.worker,
            start_id=self._prospect.start_id,
            thresholds=self._prospect.thresholds,
        )
