from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_balancer.models import EndpointProbeConfig
from fastapi_balancer.prober.asgi import AsgiSender
from fastapi_balancer.prober.load import LevelPlan, Measurement, run_level
from fastapi_balancer.prober.measure import Thresholds
from fastapi_balancer.prober.request import build_request
from fastapi_balancer.testing import run_virtual
from tests.prober.apps import (
    Watched,
    answer,
    breaking_above,
    constant,
    pool,
)


async def measure(
    app: ASGIApp,
    level: int,
    *,
    latency_ms: float = 1000,
    give_up: float = 10,
    requests: int = 10_000,
    seconds: float = 1000,
    patience: float = 1000,
) -> Measurement:
    deadline = asyncio.get_running_loop().time() + seconds
    plan = LevelPlan(level, requests, deadline, patience)
    sender = AsgiSender(app, build_request("/x", EndpointProbeConfig()), give_up, {})
    return await run_level(sender, plan, Thresholds(0.05, latency_ms))


@pytest.mark.parametrize("level", [1, 3, 16])
def test_exactly_the_level_is_in_flight_inside_the_app(level: int) -> None:
    app = Watched(constant(0.1))
    run_virtual(measure(app, level))
    assert app.entries[:level] == list(range(1, level + 1))
    assert max(app.entries) == level
    assert app.now == 0


def test_each_completion_is_refilled_at_once_without_waves() -> None:
    numbers = iter(range(10_000))

    async def uneven(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.05 + next(numbers) * 0.618034 % 1 / 10)  # no two end together
        await answer(send)

    app = Watched(uneven)
    run_virtual(measure(app, 4))
    assert set(app.entries[4:]) == {4}


@pytest.mark.parametrize(("level", "samples"), [(1, 40), (6, 40), (7, 42), (20, 120)])
def test_two_waves_are_discarded_and_six_waves_or_40_samples_taken(
    level: int, samples: int
) -> None:
    measured = run_virtual(measure(constant(0.1), level))
    assert measured.window.count == samples
    assert measured.window.p99_ms == pytest.approx(100)
    assert measured.verdict.outcome == "pass"
    # the last sample ends the level; what was in flight then is not replaced
    assert 2 * level + samples <= measured.sent < 3 * level + samples


def test_the_discarded_completions_are_in_no_figure() -> None:
    seen = iter(range(10_000))

    async def cold_at_first(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(5 if next(seen) < 6 else 0.1)
        await answer(send)

    measured = run_virtual(measure(cold_at_first, 3))
    assert measured.window.p99_ms == pytest.approx(100)
    assert measured.window.throughput == pytest.approx(30, rel=0.05)


def test_the_throughput_is_that_of_the_steady_state() -> None:
    measured = run_virtual(measure(pool(3, 0.1), 8))
    assert measured.window.throughput == pytest.approx(30, rel=0.07)


def test_a_level_ends_early_when_it_cannot_pass_any_more() -> None:
    measured = run_virtual(measure(breaking_above(3), 4))
    assert measured.verdict.outcome == "fail"
    assert measured.window.errors == 3
    assert measured.window.commonest_failure == "status 503"
    assert measured.window.throughput is None, "less than one wave tells no rate"


def test_the_level_ends_with_nothing_in_flight() -> None:
    app = Watched(pool(2, 0.5))
    assert run_virtual(measure(app, 8)).verdict.outcome == "fail"
    assert app.now == 0


def test_what_is_in_flight_when_a_level_is_decided_is_let_finish() -> None:
    finished = 0
    numbers = iter(range(1000))

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal finished
        await asyncio.sleep(2 + next(numbers) % 5)
        await answer(send)
        finished += 1

    measured = run_virtual(measure(slow, 8))
    assert measured.verdict.outcome == "fail"
    assert finished == measured.sent > 2 * 8


def test_requests_past_the_timeout_are_cancelled_and_count_as_errors() -> None:
    app = Watched(constant(3600))
    measured = run_virtual(measure(app, 2, give_up=4))
    assert measured.verdict.outcome == "fail"
    assert measured.window.commonest_failure == "timeout"
    assert measured.window.p50_ms == 4000
    assert app.now == 0


def test_a_level_that_outlasts_the_deadline_is_cancelled_and_undecided() -> None:
    async def main() -> tuple[Measurement, float]:
        measured = await measure(app, 2, seconds=1)
        return measured, asyncio.get_running_loop().time()

    app = Watched(constant(0.3))
    measured, now = run_virtual(main())
    assert (measured.verdict.outcome, measured.window.count, now) == ("undecided", 2, 1)
    assert app.now == 0


def test_no_more_requests_are_sent_than_allowed() -> None:
    app = Watched(constant(0.1))
    measured = run_virtual(measure(app, 4, requests=30))
    assert (measured.sent, len(app.entries)) == (30, 30)
    assert (measured.verdict.outcome, measured.window.count) == ("undecided", 22)


def test_a_slow_level_settles_for_fewer_samples_when_patience_ends() -> None:
    measured = run_virtual(measure(constant(0.9), 2, patience=7.5))
    assert (measured.verdict.outcome, measured.window.count) == ("pass", 13)


def test_past_half_of_its_patience_a_level_takes_samples_after_one_wave() -> None:
    measured = run_virtual(measure(constant(3), 2, latency_ms=5000, patience=7.5))
    assert (measured.verdict.outcome, measured.window.count) == ("pass", 3)


def test_a_very_slow_level_discards_one_wave_and_samples_one() -> None:
    measured = run_virtual(measure(constant(60), 2, latency_ms=80_000, give_up=99, patience=7.5))
    assert (measured.verdict.outcome, measured.window.count) == ("pass", 2)


def test_cancelling_a_level_cancels_all_that_is_in_flight() -> None:
    app = Watched(constant(5))

    async def main() -> int:
        task = asyncio.create_task(measure(app, 16))
        await asyncio.sleep(1)
        before = app.now
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return before

    assert run_virtual(main()) == 16
    assert app.now == 0


def test_an_app_that_ignores_being_cancelled_is_reported_and_not_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < 100:
            try:
                await asyncio.sleep(100 - loop.time())
            except asyncio.CancelledError:
                continue

    async def main() -> float:
        await measure(stubborn, 2, seconds=1, give_up=50)
        return asyncio.get_running_loop().time()

    with caplog.at_level(logging.WARNING):
        assert run_virtual(main()) == 2
    assert "2 probe requests ignore being cancelled" in caplog.text


def test_an_app_that_never_waits_leaves_the_loop_to_others() -> None:
    async def main() -> int:
        turns = 0
        level = asyncio.create_task(measure(constant(0), 4))
        while not level.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert run_virtual(main()) > 40 / 4


def test_what_the_app_leaves_in_its_context_is_gone_with_the_request() -> None:
    seen: list[str] = []
    variable: ContextVar[str] = ContextVar("variable", default="clean")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(variable.get())
        variable.set("dirty")
        await asyncio.sleep(0.1)
        await answer(send)

    run_virtual(measure(app, 2))
    assert set(seen) == {"clean"}


def test_an_app_that_cancels_itself_is_a_failure_and_its_place_is_refilled() -> None:
    async def giving_up(scope: Scope, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    measured = run_virtual(measure(giving_up, 2))
    assert measured.window.commonest_failure == "cancelled by itself"
    assert measured.verdict.outcome == "fail"
