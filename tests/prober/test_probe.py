from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_balancer.errors import ProbeError
from fastapi_balancer.models import EndpointProbeConfig, ProbeConfig
from fastapi_balancer.prober.asgi import AsgiSender
from fastapi_balancer.prober.measure import Thresholds
from fastapi_balancer.prober.probe import Prospect, request_timeout, run_probe
from fastapi_balancer.prober.request import build_request
from fastapi_balancer.prober.result import ProbeResult
from fastapi_balancer.prober.search import Point
from fastapi_balancer.testing import run_virtual
from tests.prober.apps import Watched, answer, blocking, breaking_above, constant, pool, raising


class Screen:
    """Progress that is kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, endpoint: str, level: int) -> None:
        self.lines.append(f"{endpoint} {level}?")

    def judge(self, endpoint: str, point: Point) -> None:
        self.lines.append(f"{endpoint} {point.level} {point.verdict.outcome}")

    def end(self, endpoint: str, result: ProbeResult) -> None:
        self.lines.append(f"{endpoint} = {result.capacity}")


def probe(
    app: ASGIApp, latency_ms: float = 150, screen: Screen | None = None, **budget: Any
) -> ProbeResult:
    async def main() -> ProbeResult:
        thresholds = Thresholds(0.05, latency_ms)
        request = build_request("/x", EndpointProbeConfig())
        sender = AsgiSender(app, request, request_timeout(thresholds), {})
        prospect = Prospect("/x", request, ProbeConfig(**budget), thresholds, "w1", "s1")
        return await run_probe(sender, prospect, screen)

    return run_virtual(main())


@pytest.mark.parametrize("slots", [1, 3, 12, 30])
def test_the_size_of_a_pool_is_found(slots: int) -> None:
    result = probe(pool(slots, 0.1))
    assert (result.capacity, result.kind) == (slots, "boundary")
    assert result.p50_ms == pytest.approx(100)
    assert result.p90_ms == pytest.approx(100)
    assert result.p99_ms == pytest.approx(100)
    assert result.throughput == pytest.approx(10 * slots, rel=0.05)
    assert result.error_rate == 0


def test_the_level_above_which_errors_begin_is_found() -> None:
    result = probe(breaking_above(9))
    assert (result.capacity, result.kind) == (9, "boundary")
    assert "mostly: status 503" in result.reason


def test_the_wait_for_a_handler_that_blocks_the_loop_counts_as_latency() -> None:
    result = probe(blocking(0.02))
    assert (result.capacity, result.kind) == (7, "boundary")
    assert result.p50_ms == pytest.approx(140)
    assert result.throughput == pytest.approx(50)


def test_an_app_without_a_limit_is_probed_up_to_the_highest_level() -> None:
    result = probe(constant(0.1), max_concurrency=50)
    assert (result.capacity, result.kind) == (50, "no_failure_in_range")
    assert [point.level for point in result.curve] == [1, 2, 4, 8, 16, 32, 50]


def test_an_app_too_slow_for_one_request_has_no_capacity() -> None:
    result = probe(constant(0.2))
    assert (result.capacity, result.kind) == (None, "no_pass")
    assert result.p99_ms == pytest.approx(200)
    assert "p99 200 ms is above 150 ms" in result.reason


def test_the_time_bounds_a_probe() -> None:
    result = probe(constant(3), latency_ms=5000, max_seconds=60)
    assert result.kind == "budget_spent"
    assert result.capacity == 32
    assert result.seconds == 60
    assert "`probe.max_seconds` (60 s) ended at level 64" in result.reason


def test_the_number_of_requests_bounds_a_probe() -> None:
    app = Watched(constant(0.1))
    result = probe(app, max_requests=180)
    assert (result.capacity, result.kind) == (4, "budget_spent")
    assert result.requests == len(app.entries) <= 180
    assert "`probe.max_requests` (180)" in result.reason


def test_a_level_for_which_no_requests_are_left_is_not_begun() -> None:
    result = probe(constant(0.1), max_requests=44)
    assert [point.level for point in result.curve] == [1]
    assert result.reason.startswith("`probe.max_requests` (44) is too low for level 2")


def test_the_result_says_by_whom_and_for_which_thresholds() -> None:
    result = probe(pool(3, 0.1))
    assert (result.endpoint, result.worker, result.start_id) == ("/x", "w1", "s1")
    assert result.thresholds == Thresholds(0.05, 150)
    assert result.probed_at.endswith("+00:00")


@pytest.mark.parametrize("status", [401, 403, 404, 405, 422])
def test_a_refusal_of_the_first_request_ends_the_probe_at_once(status: int) -> None:
    app = Watched(constant(0.1, status, b'{"detail":"because"}'))
    with pytest.raises(ProbeError, match=rf"GET /x answered {status} .*because.*To have it"):
        probe(app)
    assert len(app.entries) == 1


def test_a_service_that_is_still_starting_is_waited_for() -> None:
    async def loading(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.1)
        is_ready = asyncio.get_running_loop().time() > 7
        await answer(send, 200 if is_ready else 503)

    result = probe(loading, max_concurrency=1)
    assert result.capacity == 1
    assert result.requests < 2 + 40 + 15, "it is asked about once a second"


@pytest.mark.parametrize(
    ("app", "told"),
    [
        (constant(0.1, 500, b"out of memory"), "answered 500 .*out of memory"),
        (constant(0.1, 429), "answered 429"),
        (raising(KeyError("model")), r"did not answer one request in \d+ s \(KeyError\)"),
        (constant(3600), r"did not answer one request in 10 s \(timeout\)"),
    ],
)
def test_a_service_that_never_succeeds_is_given_up_after_ten_seconds(
    app: ASGIApp, told: str
) -> None:
    with pytest.raises(ProbeError, match=told):
        probe(app)


def test_a_first_request_that_hangs_is_given_up_with_the_budget() -> None:
    with pytest.raises(ProbeError, match=r"in 60 s \(timeout\)"):
        probe(constant(3600), latency_ms=80_000)


def test_a_redirect_to_the_path_with_a_slash_is_told() -> None:
    async def redirecting(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"location", b"http://localhost/x/")]
        await send({"type": "http.response.start", "status": 307, "headers": headers})
        await send({"type": "http.response.body"})

    with pytest.raises(ProbeError, match="write the endpoint as /x/"):
        probe(redirecting)


def test_each_level_and_the_result_are_logged_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        probe(pool(1, 0.1))
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == (
        "probe /x: 1 at once: 40 samples, 10.0/s, p99 100 ms, 0.0 % errors: pass "
        "(p99 100 ms and 0.0% errors are within the limits)"
    )
    assert lines[1].startswith("probe /x: 2 at once: ")
    assert "fail (p99 200 ms is above 150 ms)" in lines[1]
    assert lines[2].startswith("probe /x: capacity 1 (boundary): 1 passed; at 2, p99 200 ms")
    assert len(lines) == 3


def test_progress_is_told_as_it_comes() -> None:
    screen = Screen()
    probe(pool(1, 0.1), screen=screen)
    assert screen.lines == ["/x 1?", "/x 1 pass", "/x 2?", "/x 2 fail", "/x = 1"]


@pytest.mark.parametrize(("latency_ms", "seconds"), [(100, 10), (2500, 10), (80_000, 320)])
def test_a_request_may_take_four_times_the_threshold_and_at_least_ten_seconds(
    latency_ms: float, seconds: float
) -> None:
    assert request_timeout(Thresholds(0.05, latency_ms)) == seconds
