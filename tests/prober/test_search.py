from __future__ import annotations

from collections.abc import Callable

import pytest

from fastapi_balancer.prober.measure import Outcome, Verdict, Window
from fastapi_balancer.prober.search import Answer, Point, Search


def point(level: int, outcome: Outcome) -> Point:
    return Point(level, Window(40, 0, 0, 1, 2, 3, 4), Verdict(outcome, "p99 300 ms"))


def climb(search: Search, passes: Callable[[int], bool]) -> list[int]:
    """Run a search against a rule; the levels that it asked for."""
    asked: list[int] = []
    while (level := search.next_level) is not None:
        asked.append(level)
        search.record(point(level, "pass" if passes(level) else "fail"))
    return asked


@pytest.mark.parametrize(
    ("limit", "asked"),
    [
        (1, [1, 2]),
        (2, [1, 2, 4, 3]),
        (3, [1, 2, 4, 3]),
        (4, [1, 2, 4, 8, 6, 5]),
        (12, [1, 2, 4, 8, 16, 12, 14, 13]),
        (16, [1, 2, 4, 8, 16, 32, 24, 20, 18, 17]),
    ],
)
def test_levels_double_until_one_fails_then_the_gap_is_halved(limit: int, asked: list[int]) -> None:
    search = Search(max_concurrency=1024)
    assert climb(search, lambda level: level <= limit) == asked
    assert search.answer == Answer(limit, "boundary", f"{limit} passed; at {limit + 1}, p99 300 ms")


@pytest.mark.parametrize("limit", range(1, 39))
def test_limits_below_40_are_found_exactly(limit: int) -> None:
    search = Search(max_concurrency=1024)
    climb(search, lambda level: level <= limit)
    assert search.answer.capacity == limit


@pytest.mark.parametrize("limit", [40, 57, 100, 333, 700, 1023])
def test_higher_limits_are_found_to_within_five_percent_and_never_exceeded(limit: int) -> None:
    search = Search(max_concurrency=1024)
    asked = climb(search, lambda level: level <= limit)
    assert search.answer.capacity is not None
    assert 0.95 * limit <= search.answer.capacity <= limit
    assert len(asked) <= 11 + 5


@pytest.mark.parametrize(
    ("highest", "asked"), [(1, [1]), (8, [1, 2, 4, 8]), (10, [1, 2, 4, 8, 10])]
)
def test_a_search_in_which_nothing_fails_ends_at_the_highest_level(
    highest: int, asked: list[int]
) -> None:
    search = Search(highest)
    assert climb(search, lambda level: True) == asked
    expected = Answer(highest, "no_failure_in_range", f"no level up to {highest} failed")
    assert search.answer == expected


def test_a_failure_at_one_ends_the_search_without_a_capacity() -> None:
    search = Search(1024)
    assert climb(search, lambda level: False) == [1]
    assert search.answer.capacity is None
    assert search.answer.kind == "no_pass"
    assert "p99 300 ms" in search.answer.reason


def test_a_spent_budget_leaves_the_highest_level_that_passed() -> None:
    search = Search(1024)
    for level in (1, 2, 4):
        search.record(point(level, "pass" if level < 4 else "fail"))
    search.stop("60 s are over")
    assert search.next_level is None
    assert search.answer == Answer(2, "budget_spent", "60 s are over; 2 is the highest that passed")


def test_a_budget_spent_before_anything_passed_leaves_nothing() -> None:
    search = Search(1024)
    search.record(point(1, "undecided"))
    search.stop("60 s are over")
    assert search.answer == Answer(None, "budget_spent", "60 s are over; no level passed")


def test_the_curve_keeps_every_level_in_the_order_of_trying() -> None:
    search = Search(1024)
    asked = climb(search, lambda level: level <= 3)
    assert [(p.level, p.verdict.outcome) for p in search.curve] == [
        (1, "pass"),
        (2, "pass"),
        (4, "fail"),
        (3, "pass"),
    ]
    assert asked == [p.level for p in search.curve]
