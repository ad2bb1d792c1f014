"""Which level to try next: double until one fails, then halve the gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastapi_balancer.prober.measure import Verdict, Window

Kind = Literal["boundary", "no_failure_in_range", "no_pass", "budget_spent"]

TOLERANCE = 0.05  # of the failing level: exact below 40, and a pool of 1000 is not asked ten times


@dataclass(frozen=True, slots=True)
class Point:
    """One level of the curve: what was measured there, and what that means."""

    level: int
    window: Window
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search came to. `capacity` is None when no level passed."""

    capacity: int | None
    kind: Kind
    reason: str


class Search:
    """Looks for the highest level that passes, from 1 to `max_concurrency`.

    Ask `next_level`, measure it, `record` the point, until `next_level` is None; then read
    `answer`. Levels must be recorded in the order in which they were asked for. The answer is
    exact, or below the lowest failing level by at most `tolerance` of it.
    """

    def __init__(self, max_concurrency: int, tolerance: float = TOLERANCE) -> None:
        self.max_concurrency = max_concurrency
        self.tolerance = tolerance
        self.curve: list[Point] = []
        self.passing: Point | None = None  # the highest level known to pass
        self.failing: Point | None = None  # the lowest level known to fail
        self._stopped: str | None = None

    @property
    def next_level(self) -> int | None:
        """The level to measure now; None when the search is over."""
        if self._stopped is not None:
            return None
        low = self.passing.level if self.passing else 0
        if self.failing is None:
            return min(2 * low or 1, self.max_concurrency) if low < self.max_concurrency else None
        high = self.failing.level
        narrow = high - low <= max(1, int(high * self.tolerance))
        return None if narrow else (low + high) // 2

    def record(self, point: Point) -> None:
        """Take in the measured point of `next_level`. An undecided one moves neither bound."""
        self.curve.append(point)
        if point.verdict.outcome == "pass":
            self.passing = point
        elif point.verdict.outcome == "fail":
            self.failing = point

    def stop(self, reason: str) -> None:
        """End the search because its budget is spent; the reason completes 'ended because'."""
        self._stopped = reason

    @property
    def answer(self) -> Answer:
        """What is known now; final once `next_level` is None."""
        capacity = self.passing.level if self.passing else None
        if self._stopped is not None:
            best = f"{capacity} is the highest that passed" if capacity else "no level passed"
            return Answer(capacity, "budget_spent", f"{self._stopped}; {best}")
        if self.failing is None:
            return Answer(capacity, "no_failure_in_range", f"no level up to {capacity} failed")
        failed = f"at {self.failing.level}, {self.failing.verdict.reason}"
        if capacity is None:
            return Answer(None, "no_pass", f"not even one request at a time passes: {failed}")
        return Answer(capacity, "boundary", f"{capacity} passed; {failed}")
