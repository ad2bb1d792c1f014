from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_balancer import health
from fastapi_balancer.health import HealthChecker
from fastapi_balancer.testing import run_virtual

Step = int | BaseException | float


class App:
    """Answers each check with the next of its steps, and the last one for ever.

    A status is answered, an exception raised; a float is the seconds before a 200.
    """

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.asked_at: list[float] = []
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked_at.append(asyncio.get_running_loop().time())
        self.scopes.append(scope)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, float):
            await asyncio.sleep(step)
        status = step if isinstance(step, int) else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def checked(app: ASGIApp, seconds: float, **settings: Any) -> HealthChecker:
    """Let a checker run over an app for some virtual seconds."""

    async def main() -> HealthChecker:
        checker = HealthChecker(app, **settings)
        checker.start()
        await asyncio.sleep(seconds)
        await checker.stop()
        return checker

    return run_virtual(main())


@pytest.mark.parametrize("status", [200, 204, 302, 307])
def test_2xx_and_3xx_are_healthy(status: int) -> None:
    app = App(status)
    assert checked(app, 25).healthy
    assert app.asked_at == [0, 10, 20]


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (500, "it answered 500"),
        (429, "it answered 429"),
        (RuntimeError("a secret"), "it raised RuntimeError"),
        (asyncio.CancelledError(), "it was cancelled"),
        (6.0, "no answer within 5 s"),
    ],
)
def test_failures_make_it_unhealthy_and_say_why(step: Step, reason: str) -> None:
    checker = checked(App(step), 12)
    assert (checker.healthy, checker.reason) == (False, reason)


def test_one_failure_alone_changes_nothing() -> None:
    app = App(200, 500, 200)
    assert checked(app, 15).healthy
    assert app.asked_at == [0, 10, 11]


def test_failures_must_come_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    assert checked(App(500, 200, 500, 200), 30).healthy
    assert caplog.records == []


def test_a_failure_is_checked_again_after_a_second() -> None:
    app = App(500)
    assert not checked(app, 4.5).healthy
    assert app.asked_at == [0, 1, 2, 3, 4]


def test_a_short_interval_holds_for_failures_too() -> None:
    app = App(500)
    checked(app, 1.1, interval=0.5)
    assert app.asked_at == [0, 0.5, 1.0]


def test_one_success_makes_it_healthy_again() -> None:
    app = App(500, 500, 500, 200)
    checker = checked(app, 14)
    assert (checker.healthy, checker.reason) == (True, None)
    assert app.asked_at == [0, 1, 2, 3, 13]


def test_a_change_is_one_warning_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        checked(App(500, 500, 503, 503, 200), 30)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "GET /health: unhealthy, it answered 500, 2 times in a row; "
            f"this worker (pid {os.getpid()}) answers 503 on its watched endpoints "
            "until it succeeds",
        ),
        ("WARNING", "GET /health: healthy again, after: it answered 503; this worker serves"),
    ]


@pytest.mark.parametrize("status", [404, 405])
def test_a_missing_route_is_told_once_and_healthy_for_good(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(status, 500)
    with caplog.at_level(logging.INFO):
        checker = checked(app, 60)
    assert checker.healthy
    assert app.asked_at == [0]
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_since_is_the_wall_time_of_the_last_change() -> None:
    def clock() -> float:
        return 1000.0 + asyncio.get_running_loop().time()

    checker = checked(App(200, 500), 60, clock=clock)
    status = checker.status()
    assert (status.healthy, status.since, status.reason) == (False, 1011.0, "it answered 500")
    assert checked(App(200), 60, clock=clock).status().since == 1000.0


def test_each_check_gets_a_copy_of_the_state_and_what_the_layers_above_put_there() -> None:
    app = App(200)
    state = {"model": object()}
    checked(app, 1, endpoint="/up?deep=1", state=state, scope={"app": app})
    scope = app.scopes[0]
    assert (scope["method"], scope["path"], scope["query_string"]) == ("GET", "/up", b"deep=1")
    assert scope["state"] == state
    assert scope["state"] is not state
    assert scope["app"] is app


def test_an_app_that_ignores_its_cancellation_is_not_asked_for_ever_more_at_once() -> None:
    calls = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        calls += 1
        while True:
            try:
                await asyncio.sleep(600)
                return
            except asyncio.CancelledError:
                continue

    checker = checked(app, 60)
    assert calls == 4
    assert (checker.healthy, checker.reason) == (False, "4 checks are still unanswered")


def test_an_answer_without_an_end_is_no_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    assert checked(app, 2).reason == "it did not answer"


def test_what_is_raised_after_the_answer_does_not_count() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await App(200)(scope, receive, send)
        raise RuntimeError("in a background task")

    assert checked(app, 30).healthy


def test_what_is_raised_when_nobody_waits_any_more_is_nobodys_concern(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise RuntimeError("too late") from None

    assert checked(app, 5.5).healthy
    gc.collect()  # asyncio complains of an exception that nobody took when the task goes
    assert caplog.records == []


def test_a_call_that_takes_too_long_is_cancelled_as_is_one_at_the_stop() -> None:
    cancelled_at: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled_at.append(asyncio.get_running_loop().time())
            raise

    checked(app, 7)
    assert cancelled_at == [5, 7]


def test_an_app_that_waits_for_the_client_to_go_sees_it_go_after_the_answer() -> None:
    seen: list[tuple[str, float]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}

        async def note() -> None:
            seen.append(((await receive())["type"], asyncio.get_running_loop().time()))

        await asyncio.gather(note(), App(2.0)(scope, receive, send))

    checked(app, 5)
    assert seen == [("http.disconnect", 2)]


def test_it_stops_in_the_middle_of_a_check() -> None:
    async def main() -> float:
        checker = HealthChecker(App(3.0))
        checker.start()
        await asyncio.sleep(1)
        await checker.stop()
        await checker.stop()
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 1.0


def test_a_real_app_is_asked_as_a_client_would_ask() -> None:
    app = FastAPI()
    agents: list[str] = []

    @app.get("/health")
    async def health(request: Request) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"all "
            yield b"well"

        assert request.app is app
        agents.append(request.headers["user-agent"])
        return StreamingResponse(parts())

    assert checked(app, 25).healthy
    assert agents == ["fastapi-balancer"] * 3


def test_a_real_app_that_raises_is_unhealthy() -> None:
    app = FastAPI()

    @app.get("/health")
    async def health() -> None:
        raise RuntimeError("no database")

    assert checked(app, 2).reason == "it answered 500"


def test_a_real_app_without_the_route_counts_as_healthy() -> None:
    checker = checked(FastAPI(), 60)
    assert (checker.healthy, checker.reason) == (True, None)


@pytest.mark.parametrize("status", [400, 401, 403])
def test_an_app_that_does_not_let_us_look_counts_as_healthy(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(status, status, status, 500, 500)
    checker = checked(app, 25)
    assert checker.healthy
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert f"GET /health answers {status}" in warnings[0]
    assert app.asked_at == [0, 10, 20]


def test_a_check_that_waits_for_a_thread_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_threads_are_busy", lambda: True)
    checker = checked(App(6.0), 30)
    assert checker.healthy
