from __future__ import annotations

import pytest

from fastapi_balancer.prober.measure import (
    TIMEOUT,
    FixedSizeTest,
    Sample,
    Thresholds,
    Window,
    judge,
    percentile,
    summarize,
)

THRESHOLDS = Thresholds(error_rate=0.05, latency_ms=100)
GOOD = Sample(began=0, ended=0.05)
SLOW = Sample(began=0, ended=0.2)
FAILED = Sample(began=0, ended=0.001, failure="status 503")


def window(p99_ms: float | None = 50, error_rate: float = 0, failure: str | None = None) -> Window:
    return Window(100, round(100 * error_rate), error_rate, 1, 2, p99_ms, 10, failure)


def test_a_window_sums_up_its_samples() -> None:
    samples = [Sample(0, n / 1000) for n in range(1, 101)]
    assert summarize(samples, seconds=4) == Window(100, 0, 0, 50, 90, 99, 25)


def test_a_window_without_samples_claims_nothing() -> None:
    assert summarize([], seconds=None) == Window(0, 0, 0, None, None, None, None)


def test_quick_failures_do_not_make_the_latencies_look_better() -> None:
    summed = summarize([SLOW, FAILED, FAILED, FAILED], seconds=2)
    assert (summed.p50_ms, summed.error_rate, summed.throughput) == (200, 0.75, 0.5)
    assert summed.commonest_failure == "status 503"


def test_a_timeout_counts_as_an_error_and_with_the_time_it_took() -> None:
    summed = summarize([GOOD, Sample(0, 10, TIMEOUT)], seconds=10)
    assert (summed.p50_ms, summed.p99_ms, summed.errors) == (50, 10_000, 1)


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [
        (1, 0.99, 1),
        (40, 0.99, 40),
        (100, 0.99, 99),
        (101, 0.99, 100),
        (300, 0.99, 297),
        (4, 0.5, 2),
    ],
)
def test_a_percentile_is_the_nearest_rank(count: int, share: float, expected: float) -> None:
    assert percentile(list(range(1, count + 1)), share) == expected


def test_there_is_no_percentile_of_nothing() -> None:
    assert percentile([], 0.99) is None


@pytest.mark.parametrize(
    ("measured", "outcome", "reason"),
    [
        (window(), "pass", "p99 50 ms and 0.0% errors are within the limits"),
        (window(p99_ms=100, error_rate=0.05), "pass", "p99 100 ms and 5.0% errors"),
        (window(p99_ms=100.1), "fail", "p99 100.1 ms is above 100 ms"),
        (window(p99_ms=2000.4), "fail", "p99 2000 ms is above 100 ms"),
        (
            window(error_rate=0.06, failure="KeyError"),
            "fail",
            "6 of 100 requests failed, mostly: KeyError (6.0% is above 5.0%)",
        ),
        (summarize([], 0), "undecided", "nothing was measured"),
    ],
)
def test_a_window_is_judged_with_its_reason(measured: Window, outcome: str, reason: str) -> None:
    verdict = judge(measured, THRESHOLDS)
    assert verdict.outcome == outcome
    assert reason in verdict.reason


def test_a_level_where_nothing_answers_fails_even_when_all_errors_are_allowed() -> None:
    verdict = judge(summarize([FAILED], 1), Thresholds(error_rate=1, latency_ms=100))
    assert (verdict.outcome, verdict.reason) == ("fail", "no request was answered")


def test_a_good_level_is_decided_with_the_last_sample() -> None:
    test = FixedSizeTest(THRESHOLDS, wanted=40)
    assert [test.add(GOOD) for _ in range(40)] == [False] * 39 + [True]


def test_a_level_is_decided_by_the_first_error_above_what_is_allowed() -> None:
    test = FixedSizeTest(THRESHOLDS, wanted=40)
    assert [test.add(FAILED) for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(("wanted", "allowed"), [(40, 0), (100, 1), (200, 2), (300, 3)])
def test_a_level_is_decided_by_the_first_slow_one_above_what_p99_allows(
    wanted: int, allowed: int
) -> None:
    test = FixedSizeTest(THRESHOLDS, wanted)
    assert [test.add(SLOW) for _ in range(allowed + 1)] == [False] * allowed + [True]


@pytest.mark.parametrize("bad", [SLOW, FAILED])
@pytest.mark.parametrize("wanted", [40, 100, 290, 3000])
def test_what_is_decided_early_is_judged_a_failure_and_never_too_early(
    wanted: int, bad: Sample
) -> None:
    test = FixedSizeTest(THRESHOLDS, wanted)
    while not test.add(bad):
        pass
    bads = len(test.samples)
    lost = summarize(test.samples, 1)
    saved = summarize([bad] * (bads - 1) + [GOOD] * (wanted - bads + 1), 1)
    assert judge(lost, THRESHOLDS).outcome == "fail"
    assert judge(saved, THRESHOLDS).outcome == "pass"
