"""Latency histograms that can be added up: quantiles within 5 %, of the last minute and of all."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from itertools import accumulate
from math import ceil, log
from typing import TypedDict

LOWEST = 1e-5  # seconds; what took no longer counts as 0
GROWTH = 1.1  # of a bucket's bounds: the middle is off by (1.1 - 1) / (1.1 + 1) = 4.8 % at most
WINDOW = 60.0  # seconds that a `Window` looks back
SLICE = 5.0  # seconds after which a `Window` begins a new histogram and drops its oldest

_SCALE = 1 / log(GROWTH)
_OFFSET = 1 - log(LOWEST) * _SCALE  # the bucket above LOWEST is number 1
_MIDDLE = 2 / (GROWTH + 1)


class HistogramData(TypedDict):
    """A histogram as it travels: parallel lists of bucket numbers and their counts."""

    sum: float
    buckets: list[int]
    counts: list[int]


class Histogram:
    """Counts of durations in buckets whose bounds grow by 10 %.

    Bucket `i` holds `LOWEST * GROWTH**(i - 1) <= seconds < LOWEST * GROWTH**i`, bucket 0 what is
    shorter. Its middle in relative terms, `2 * lower * GROWTH / (GROWTH + 1)`, stands for all of it
    (DDSketch, Masson et al., VLDB 2019). Empty buckets take no room, and there is no upper bound.
    """

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.sum = 0.0

    @classmethod
    def from_data(cls, *parts: HistogramData) -> Histogram:
        """Build the sum of what `data` returned. Raises `ValueError` if lists differ in length."""
        histogram = cls()
        counts = histogram.counts
        for part in parts:
            for index, count in zip(part["buckets"], part["counts"], strict=True):
                counts[index] = counts.get(index, 0) + count
            histogram.sum += part["sum"]
        return histogram

    def data(self) -> HistogramData:
        """Return the form for JSON."""
        counts = self.counts
        return {"sum": self.sum, "buckets": list(counts), "counts": list(counts.values())}

    @property
    def count(self) -> int:
        """How many durations were recorded."""
        return sum(self.counts.values())

    def record(self, seconds: float) -> None:
        """Count one finite duration. On the hot path: about 0.15 µs."""
        index = int(log(seconds) * _SCALE + _OFFSET) if seconds > LOWEST else 0
        counts = self.counts
        counts[index] = counts.get(index, 0) + 1
        self.sum += seconds

    def merge(self, other: Histogram) -> None:
        """Add all that another histogram counted."""
        counts = self.counts
        for index, count in other.counts.items():
            counts[index] = counts.get(index, 0) + count
        self.sum += other.sum

    def copy(self) -> Histogram:
        """Return an independent copy."""
        result = Histogram()
        result.counts = self.counts.copy()
        result.sum = self.sum
        return result

    def quantile(self, q: float) -> float | None:
        """Return the duration in seconds that the share `q` (0 to 1) does not exceed.

        It is the nearest rank: element `ceil(q * count)` of the sorted durations, within 5 %.
        None when nothing was recorded.
        """
        return self.quantiles((q,))[0]

    def quantiles(self, qs: Iterable[float]) -> list[float | None]:
        """Return several quantiles, for little more than the price of one."""
        if not self.counts:
            return [None for _ in qs]
        buckets = sorted(self.counts)
        up_to = list(accumulate(map(self.counts.__getitem__, buckets)))
        ranks = (max(1, ceil(q * up_to[-1])) for q in qs)
        return [_middle(buckets[bisect_left(up_to, rank)]) for rank in ranks]


def _middle(bucket: int) -> float:
    return LOWEST * GROWTH**bucket * _MIDDLE if bucket else 0.0


class Window:
    """Durations of the last `WINDOW` seconds, and the sum over all time.

    Time is what the caller passes, on any clock that never runs backwards. The window is made of
    slices, so it covers the last 55 to 60 seconds.
    """

    def __init__(self) -> None:
        self._current = Histogram()
        self._ends = float("-inf")  # when the current slice is over
        # The older slices of the window with the time when each ended, and their sum.
        self._slices: deque[tuple[float, Histogram]] = deque()
        self._older = Histogram()
        self._before = Histogram()  # the sum of all slices ever but the current one

    def record(self, seconds: float, now: float) -> None:
        """Count one duration that ended now."""
        if now >= self._ends:
            self.turn(now)
        self._current.record(seconds)

    def turn(self, now: float) -> None:
        """Begin a new slice if the current one is over."""
        if now < self._ends:
            return
        self._slices.append((self._ends, self._current))
        self._before.merge(self._current)
        self._current = Histogram()
        self._ends = (now // SLICE + 1) * SLICE
        while self._slices and self._slices[0][0] <= self._ends - WINDOW:
            self._slices.popleft()
        self._older = merged(histogram for _, histogram in self._slices)

    def recent(self, now: float) -> Histogram:
        """Return the durations of the window that ends now."""
        self.turn(now)
        recent = self._older.copy()
        recent.merge(self._current)
        return recent

    def count(self) -> int:
        """Return how many durations were recorded since the start."""
        return self._before.count + self._current.count

    def total(self) -> Histogram:
        """Return all durations since the start."""
        total = self._before.copy()
        total.merge(self._current)
        return total


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """Return the sum of histograms as a new one."""
    result = Histogram()
    for histogram in histograms:
        result.merge(histogram)
    return result
