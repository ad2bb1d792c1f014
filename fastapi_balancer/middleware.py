"""The entry: which requests need a slot, and what the server's lifespan starts and stops."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_balancer.admin import AdminRoutes
from fastapi_balancer.admission import Admission
from fastapi_balancer.errors import BalancerError


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
            await self._lifespan(scope, receive, send)
            return
        if not self._lifecycle.ready:
            await self._lifecycle.start_late(self, scope)
        path = _route_path(scope)
        if path.startswith("/balancer/") and self.admin is not None:
            await self.admin(scope, receive, send, path)
            return
        admission = self.routes.find(path)
        if admission is None or not admission.concerns(scope):
            await self.app(scope, receive, send)
        else:
            await admission.run(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app's own lifespan starts before ours and ends after it."""
        failed = False

        async def stop_before_the_app() -> Message:
            if failed:  # the app has started, and must be able to stop
                return {"type": "lifespan.shutdown"}
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._lifecycle.stop()
            return message

        async def start_after_the_app(message: Message) -> None:
            nonlocal failed
            if message["type"] == "lifespan.startup.complete":
                try:
                    await self._lifecycle.start(self, scope)
                except BalancerError as exc:
                    failed = True
                    await self._lifecycle.stop()
                    message = {"type": "lifespan.startup.failed", "message": str(exc)}
            elif failed:
                return  # the server has been told already that there is no service
            await send(message)

        await self.app(scope, stop_before_the_app, start_after_the_app)


def _route_path(scope: Scope) -> str:
    """The path below the app's root path, as starlette routes it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path
