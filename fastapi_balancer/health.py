"""Asks the app's health endpoint, and says whether this worker is fit to serve."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from anyio.to_thread import current_default_thread_limiter
from starlette.types import ASGIApp, Message, Scope

logger = logging.getLogger(__name__)

CHECK_TIMEOUT = 5.0  # seconds that the app has to answer
STOP_TIMEOUT = 1.0  # seconds
CHECK_AGAIN_AFTER = 1.0  # seconds, after a failure
FAILURES = 2  # in a row that make this worker unhealthy; one may be bad luck
LATER = (408, 425, 429)  # the 4xx that speak of the moment, not of the request
MOST_UNANSWERED = 4  # checks left running; each may hold one of the 40 threads of `def` endpoints


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """How this worker's app is."""

    healthy: bool
    since: float  # wall time, unix seconds
    reason: str | None  # why it is not healthy


class HealthChecker:
    """Checks an ASGI app that it calls directly, below admission. Healthy until proven otherwise.

    `interval` is in seconds; `state` is the lifespan's state, which each request gets a copy of;
    `scope` is added to each request's scope (what the layers above would have put there, such as
    `app`); `clock` is wall time.
    """

    def __init__(
        self,
        app: ASGIApp,
        endpoint: str = "/health",
        interval: float = 10.0,
        *,
        state: Mapping[str, Any] | None = None,
        scope: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.healthy = True
        self.since = clock()
        self.reason: str | None = None
        self._app = app
        self._endpoint = endpoint
        self._interval = interval
        self._state = state
        self._scope = scope or {}
        self._clock = clock
        self._failures = 0
        self._was_refused = False
        self._task: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to check, at once and in the background. To be called within the event loop."""
        self._task = asyncio.create_task(self._check_for_ever())

    async def stop(self) -> None:
        """Stop checking. Idempotent; takes a second at most, should the app ignore cancellation."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        for call in self._calls:
            call.cancel()
        await asyncio.wait({task, *self._calls}, timeout=STOP_TIMEOUT)

    def status(self) -> HealthStatus:
        """Return how the app is now. No I/O."""
        return HealthStatus(self.healthy, self.since, self.reason)

    async def _check_for_ever(self) -> None:
        while True:
            answer = await self._check()
            if answer is None:
                logger.debug("GET %s waits for a thread, like all requests", self._endpoint)
                await asyncio.sleep(CHECK_AGAIN_AFTER)
                continue
            if answer in (404, 405):
                self._note_success()
                logger.info(
                    "GET %s answers %d: this app has no health endpoint, and counts as healthy.",
                    self._endpoint,
                    answer,
                )
                return
            if isinstance(answer, int) and 400 <= answer < 500 and answer not in LATER:
                self._note_refusal(answer)
            failure = answer if isinstance(answer, str) else _failure(answer)
            await asyncio.sleep(self._note(failure))

    def _note_refusal(self, status: int) -> None:
        """The app does not let us look: that says nothing of its health."""
        if not self._was_refused:
            self._was_refused = True
            logger.warning(
                "GET %s answers %d to the balancer, which cannot tell its health so, and takes "
                "it for healthy: let the host localhost in without credentials, or set "
                "health_endpoint to a path that does",
                self._endpoint,
                status,
            )

    def _note(self, failure: str | None) -> float:
        """Take one check's outcome into account. Returns the seconds until the next check."""
        if failure is None:
            self._note_success()
            return self._interval
        self._failures += 1
        if not self.healthy:
            self.reason = failure
        elif self._failures >= FAILURES:
            self._change(False, failure)
        return min(CHECK_AGAIN_AFTER, self._interval)

    def _note_success(self) -> None:
        self._failures = 0
        if not self.healthy:
            self._change(True, None)

    def _change(self, healthy: bool, reason: str | None) -> None:
        if healthy:
            logger.warning(
                "GET %s: healthy again, after: %s; this worker serves", self._endpoint, self.reason
            )
        else:
            logger.warning(
                "GET %s: unhealthy, %s, %d times in a row; this worker (pid %d) answers 503 on its "
                "watched endpoints until it succeeds",
                self._endpoint,
                reason,
                FAILURES,
                os.getpid(),
            )
        self.healthy, self.since, self.reason = healthy, self._clock(), reason

    async def _check(self) -> int | str | None:
        """Return the status that the app answered, or why there is none; None: nothing is known."""
        if len(self._calls) >= MOST_UNANSWERED:
            return f"{len(self._calls)} checks are still unanswered"
        answer = _Answer()
        call = asyncio.create_task(self._call(answer))
        self._calls.add(call)
        call.add_done_callback(self._forget)
        # The call has a task of its own, because the app may ignore its cancellation, or raise one.
        try:
            await asyncio.wait({call}, timeout=CHECK_TIMEOUT)
            if not call.done() and _threads_are_busy():
                return None
        finally:
            call.cancel()
        return answer.status if answer.is_complete else _problem(call)

    def _forget(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # of a call that nobody waits for any more: or asyncio complains

    async def _call(self, answer: _Answer) -> None:
        await self._app(self._request(), answer.receive, answer.send)

    def _request(self) -> Scope:
        path, _, query = self._endpoint.partition("?")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"host", b"localhost"), (b"user-agent", b"fastapi-balancer")],
            "client": ("127.0.0.1", 0),
            "server": ("localhost", 80),
            "extensions": {},
            **self._scope,
        }
        if self._state is not None:
            scope["state"] = dict(self._state)
        return scope


class _Answer:
    """The client's side of one request: what the app reads, and what it answers."""

    def __init__(self) -> None:
        self.status = 0
        self.is_complete = False
        self._is_asked = False
        self._is_over = asyncio.Event()

    async def receive(self) -> Message:
        if not self._is_asked:
            self._is_asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._is_over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = True
            self._is_over.set()


def _failure(status: int) -> str | None:
    sick = status < 200 or status >= 500 or status in LATER
    return f"it answered {status}" if sick else None


def _threads_are_busy() -> bool:
    """Whether every thread that `def` endpoints share is taken: a check then waits its turn."""
    return current_default_thread_limiter().available_tokens <= 0


def _problem(call: asyncio.Task[None]) -> str:
    """Say why a call has brought no complete answer. An exception is named, not quoted: its text
    may hold what is nobody's business."""
    if not call.done():
        return f"no answer within {CHECK_TIMEOUT:g} s"
    if call.cancelled():
        return "it was cancelled"
    error = call.exception()
    return "it did not answer" if error is None else f"it raised {type(error).__name__}"
