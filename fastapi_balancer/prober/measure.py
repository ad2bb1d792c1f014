"""What the samples of one level say: percentiles, rates, and whether the level passes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pass", "fail", "undecided"]

TIMEOUT = "timeout"  # the `failure` of a sample whose request was cancelled for taking too long
PERCENTILE = 0.99  # of the latencies that must keep within the threshold


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: when it began and when its last byte came (seconds of one clock), and how."""

    began: float
    ended: float
    failure: str | None = None  # None: a success; else what went wrong, in two or three words

    @property
    def latency_ms(self) -> float:
        """Time to the last byte."""
        return (self.ended - self.began) * 1000


@dataclass(frozen=True, slots=True)
class Window:
    """Summary of the samples of one level. Percentiles are None when no request was answered."""

    count: int
    errors: int
    error_rate: float  # errors / count, 0 to 1
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    throughput: float | None  # successes per second; None: too few samples to tell
    commonest_failure: str | None = None


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a level must keep to pass."""

    error_rate: float  # the largest share of failed requests, 0 to 1
    latency_ms: float  # the largest 99th percentile of the latencies


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a level passes, and why, in words for a log."""

    outcome: Outcome
    reason: str


UNDECIDED = Verdict("undecided", "more samples are needed")


def summarize(samples: Sequence[Sample], seconds: float | None) -> Window:
    """Summarize samples that came in during `seconds`; None when that time means nothing.

    A failed request has no latency that could be compared, but for a timeout: it took at least so
    long, and leaving it out would make the percentiles of a stalling level look good.
    """
    latencies = sorted(s.latency_ms for s in samples if _has_latency(s))
    failures = Counter(s.failure for s in samples if s.failure is not None)
    errors = failures.total()
    return Window(
        count=len(samples),
        errors=errors,
        error_rate=errors / len(samples) if samples else 0.0,
        p50_ms=percentile(latencies, 0.5),
        p90_ms=percentile(latencies, 0.9),
        p99_ms=percentile(latencies, PERCENTILE),
        throughput=(len(samples) - errors) / seconds if seconds else None,
        commonest_failure=failures.most_common(1)[0][0] if failures else None,
    )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile of ascending values: the smallest that `share` do not exceed."""
    return ordered[_rank(len(ordered), share) - 1] if ordered else None


def judge(window: Window, thresholds: Thresholds) -> Verdict:
    """Compare a window with the thresholds, whatever its size."""
    if not window.count:
        return Verdict("undecided", "nothing was measured")
    if window.error_rate > thresholds.error_rate:
        return Verdict("fail", _too_many_errors(window, thresholds))
    if window.p99_ms is None:
        return Verdict("fail", "no request was answered")
    latency = f"p99 {in_ms(window.p99_ms)}"
    if window.p99_ms > thresholds.latency_ms:
        return Verdict("fail", f"{latency} is above {in_ms(thresholds.latency_ms)}")
    return Verdict("pass", f"{latency} and {window.error_rate:.1%} errors are within the limits")


def in_ms(milliseconds: float | None) -> str:
    """A latency in words, so exact that it is not rounded to the threshold it exceeds."""
    if milliseconds is None:
        return "unknown"
    return f"{milliseconds:.0f} ms" if milliseconds >= 1000 else f"{milliseconds:.4g} ms"


class FixedSizeTest:
    """Judges one level from a number of samples that is set beforehand.

    Fed sample by sample, it ends early when the rest could not make the level pass any more.
    """

    def __init__(self, thresholds: Thresholds, wanted: int) -> None:
        self.thresholds = thresholds
        self.wanted = wanted
        self.samples: list[Sample] = []
        self._errors = 0
        self._slow = 0
        self._slow_allowed = wanted - _rank(wanted, PERCENTILE)

    def add(self, sample: Sample) -> bool:
        """Take one more sample. Returns whether the level is decided now."""
        self.samples.append(sample)
        self._errors += sample.failure is not None
        self._slow += _has_latency(sample) and sample.latency_ms > self.thresholds.latency_ms
        return self._is_lost or len(self.samples) >= self.wanted

    @property
    def _is_lost(self) -> bool:
        too_many_errors = self._errors / self.wanted > self.thresholds.error_rate
        return too_many_errors or self._slow > self._slow_allowed


def _has_latency(sample: Sample) -> bool:
    return sample.failure is None or sample.failure == TIMEOUT


def _rank(count: int, share: float) -> int:
    # rounded first: 0.99 * 300 may be a hair above 297, which is meant
    return math.ceil(round(count * share, 9))


def _too_many_errors(window: Window, thresholds: Thresholds) -> str:
    return (
        f"{window.errors} of {window.count} requests failed, mostly: {window.commonest_failure} "
        f"({window.error_rate:.1%} is above {thresholds.error_rate:.1%})"
    )
