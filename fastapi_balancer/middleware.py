"""The entry: which requests need a slot, and what the server's lifespan starts and stops."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Protocol

from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_balancer.admin import PREFIX, AdminRoutes
from fastapi_balancer.admission import Admission
from fastapi_balancer.errors import BalancerError

logger = logging.getLogger(__name__)


class Lifecycle(Protocol):
    """What the middleware starts and stops."""

    @property
    def ready(self) -> bool:
        """Whether it was started by a lifespan."""

    async def start(self, middleware: BalancerMiddleware, scope: Scope) -> None:
        """Start everything, and tell the middleware what is limited. Raises `BalancerError`."""

    async def start_late(self, middleware: BalancerMiddleware, scope: Scope) -> None:
        """Start with a request, where no lifespan has come. Idempotent. Raises `BalancerError`."""

    async def stop(self) -> None:
        """Stop everything. Idempotent."""


class Routes:
    """Which admission a path needs: the literal path, else the first template that matches."""

    def __init__(self, admissions: Mapping[str, Admission]) -> None:
        self.literal = {path: one for path, one in admissions.items() if "{" not in path}
        self._templates: list[tuple[re.Pattern[str], Admission]] = [
            (compile_path(path)[0], one)
            for path, one in sorted(admissions.items(), key=_specificity)
            if "{" in path
        ]

    def find(self, path: str) -> Admission | None:
        found = self.literal.get(path)
        if found is None:
            for pattern, admission in self._templates:
                if pattern.match(path):
                    return admission
            if path.endswith("\n"):  # `$` of starlette's patterns matches before it, too
                return self.literal.get(path[:-1])
        return found


def _specificity(item: tuple[str, object]) -> tuple[int, str]:
    """Templates with the longest literal text come first."""
    return -len(re.sub(r"{[^}]*}", "", item[0])), item[0]


class BalancerMiddleware:
    """Pure ASGI. A path without a limit of its own passes through untouched."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self.app = app
        self.routes = Routes({})
        self.admin: AdminRoutes | None = None
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await _Lifespan(self, self._lifecycle, receive, send).run(scope)
            return
        if not self._lifecycle.ready:
            await self._lifecycle.start_late(self, scope)
        path = _route_path(scope)
        if path.startswith(PREFIX) and self.admin is not None:
            await self.admin(scope, receive, send, path)
            return
        admission = self.routes.find(path)
        if admission is None or not admission.concerns(scope):
            await self.app(scope, receive, send)
        else:
            await admission.run(scope, receive, send)


class _Lifespan:
    """One run of the lifespan: the app's own starts before ours and ends after it.

    An app that knows no lifespan gets ours all the same.
    """

    def __init__(
        self, middleware: BalancerMiddleware, lifecycle: Lifecycle, receive: Receive, send: Send
    ) -> None:
        self._middleware = middleware
        self._lifecycle = lifecycle
        self._receive = receive
        self._send = send
        self._scope: Scope = {}
        self._was_asked = False  # the server's startup has been received
        self._app_answered = False
        self._failure: str | None = None

    async def run(self, scope: Scope) -> None:
        self._scope = scope
        try:
            if not await self._app_takes_part():
                await self._run_alone()
        finally:
            # Not before the app has shut down: a server may end the event loop when it is told.
            if self._failure is not None:
                await self._send({"type": "lifespan.startup.failed", "message": self._failure})

    async def _app_takes_part(self) -> bool:
        """Run the app's lifespan, with ours inside it. False: it has none."""
        try:
            await self._middleware.app(self._scope, self._to_app, self._from_app)
        except Exception as exc:
            if self._app_answered:
                raise
            logger.info("the app has no lifespan: %r", exc)
        return self._app_answered

    async def _run_alone(self) -> None:
        if not self._was_asked:
            await self._receive()
        await self._from_app({"type": "lifespan.startup.complete"})
        if self._failure is None:
            await self._to_app()
            await self._send({"type": "lifespan.shutdown.complete"})

    async def _to_app(self) -> Message:
        if self._failure is not None:  # the app has started, and must be able to stop
            return {"type": "lifespan.shutdown"}
        message = await self._receive()
        self._was_asked = True
        if message["type"] == "lifespan.shutdown":
            await self._lifecycle.stop()
        return message

    async def _from_app(self, message: Message) -> None:
        self._app_answered = True
        if message["type"] == "lifespan.startup.complete":
            await self._start()
        if self._failure is None:
            await self._send(message)

    async def _start(self) -> None:
        try:
            await self._lifecycle.start(self._middleware, self._scope)
        except BalancerError as exc:
            await self._lifecycle.stop()
            self._failure = f"fastapi-balancer: {exc}"


def _route_path(scope: Scope) -> str:
    """The path below the app's root path, as starlette routes it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path
