from __future__ import annotations

import json
import random
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_balancer.stats.histogram import LOWEST, Histogram, Window, merged

DURATIONS = st.floats(min_value=LOWEST * 1.001, max_value=3600)
QUANTILES = st.floats(min_value=0, max_value=1)


def histogram_of(durations: list[float]) -> Histogram:
    histogram = Histogram()
    for seconds in durations:
        histogram.record(seconds)
    return histogram


def exact(durations: list[float], q: float) -> float:
    return sorted(durations)[max(1, ceil(q * len(durations))) - 1]


@given(st.lists(DURATIONS, min_size=1, max_size=200), QUANTILES)
def test_a_quantile_is_within_five_percent_of_the_exact_one(
    durations: list[float], q: float
) -> None:
    assert histogram_of(durations).quantile(q) == pytest.approx(exact(durations, q), rel=0.05)


@given(st.lists(DURATIONS, max_size=50), st.lists(DURATIONS, max_size=50))
def test_merging_is_the_same_as_recording_everything_in_one(
    first: list[float], second: list[float]
) -> None:
    both = merged([histogram_of(first), histogram_of(second)])
    assert both.counts == histogram_of(first + second).counts
    assert both.sum == pytest.approx(sum(first) + sum(second))


@given(st.lists(DURATIONS, max_size=50))
def test_a_histogram_survives_json(durations: list[float]) -> None:
    histogram = histogram_of(durations)
    copy = Histogram.from_data(json.loads(json.dumps(histogram.data())))
    assert (copy.counts, copy.sum) == (histogram.counts, histogram.sum)


def test_a_long_tail_is_seen_at_p99() -> None:
    rng = random.Random(7)
    durations = [rng.lognormvariate(-3, 1.2) for _ in range(20_000)]
    p50, p95, p99 = histogram_of(durations).quantiles((0.5, 0.95, 0.99))
    assert p50 == pytest.approx(exact(durations, 0.5), rel=0.05)
    assert p95 == pytest.approx(exact(durations, 0.95), rel=0.05)
    assert p99 == pytest.approx(exact(durations, 0.99), rel=0.05)


@pytest.mark.parametrize(
    ("durations", "q", "expected"),
    [
        ([], 0.5, None),
        ([0.0], 0.99, 0.0),
        ([LOWEST], 0.5, 0.0),
        ([-0.001], 0.5, 0.0),
        ([0.0] * 95 + [1.0] * 5, 0.95, 0.0),
        ([0.0] * 94 + [1.0] * 6, 0.95, pytest.approx(1.0, rel=0.05)),
        ([0.1, 10.0], 0.5, pytest.approx(0.1, rel=0.05)),
        ([0.1, 10.0], 0.51, pytest.approx(10.0, rel=0.05)),
        ([86_400.0], 1.0, pytest.approx(86_400.0, rel=0.05)),
    ],
)
def test_quantiles_by_nearest_rank(
    durations: list[float], q: float, expected: float | None
) -> None:
    assert histogram_of(durations).quantile(q) == expected


def test_count_and_sum_are_exact() -> None:
    histogram = histogram_of([0.0, 0.25, 0.5])
    assert (histogram.count, histogram.sum) == (3, 0.75)


def test_a_copy_does_not_follow_its_original() -> None:
    histogram = histogram_of([0.1])
    copy = histogram.copy()
    histogram.record(0.1)
    assert (copy.count, histogram.count) == (1, 2)


def test_data_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(ValueError):
        Histogram.from_data({"sum": 1.0, "buckets": [1, 2], "counts": [1]})


def test_a_window_forgets_after_a_minute_what_its_total_keeps() -> None:
    window = Window()
    window.record(1.0, now=100.0)
    window.record(2.0, now=130.0)
    assert window.recent(154.9).count == 2
    assert window.recent(160.0).count == 1
    assert window.recent(190.0).count == 0
    assert (window.total().count, window.total().sum, window.count()) == (2, 3.0, 2)


def test_a_window_reaches_back_55_to_60_seconds() -> None:
    window = Window()
    for second in range(600):
        window.record(0.1, now=float(second))
        if second >= 60:
            assert 55 < window.recent(float(second)).count <= 60


def test_a_window_forgets_everything_after_a_long_silence() -> None:
    window = Window()
    window.record(1.0, now=10.0)
    window.record(0.1, now=10_000.0)
    assert window.recent(10_000.0).sum == 0.1


@given(st.lists(st.tuples(DURATIONS, st.floats(0, 20)), max_size=60))
def test_a_window_never_loses_from_its_total(steps: list[tuple[float, float]]) -> None:
    window, now = Window(), 0.0
    for seconds, pause in steps:
        now += pause
        window.record(seconds, now)
    assert window.count() == window.total().count == len(steps)
    assert window.total().counts == histogram_of([seconds for seconds, _ in steps]).counts
