"""Answers everything below `/balancer/`: statistics, and whether this worker lives and is ready."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from fastapi_balancer.admin.auth import CHALLENGE, BasicAuth

PREFIX = "/balancer/"
METHODS = ("GET", "HEAD")
HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


@dataclass(frozen=True, slots=True)
class Readiness:
    """What decides whether this worker should get requests."""

    draining: bool = False
    unhealthy: bool = False
    storage_degraded: bool = False  # told, but the worker serves all the same

    @property
    def reasons(self) -> list[str]:
        """Why this worker is not ready, in words. Empty: it is ready."""
        words = {
            "draining": self.draining,
            "unhealthy": self.unhealthy,
        }
        return [word for word, applies in words.items() if applies]


class AdminRoutes:
    """The app for all paths below `/balancer/`. Never waits for a slot, and never counts.

    `snapshot` reads the statistics; `readiness` is asked for each `/balancer/readyz`. `auth` guards
    what shows something; None: open to everybody. Probes of the orchestrator need no credentials.
    """

    def __init__(
        self,
        snapshot: Callable[[], Awaitable[Mapping[str, Any]]],
        readiness: Callable[[], Readiness],
        auth: BasicAuth | None = None,
    ) -> None:
        self._snapshot = snapshot
        self._readiness = readiness
        self._auth = auth
        self._routes: dict[str, Callable[[Scope], Awaitable[Response]]] = {
            PREFIX + "stats": self._stats,
            PREFIX + "livez": self._livez,
            PREFIX + "readyz": self._readyz,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Answer one request. `path` is the scope's path without its root path."""
        if scope["type"] == "websocket":
            # Before the handshake, as starlette's router does: the client sees a 403. A 404 through
            # the extension would be an ERROR in uvicorn's log for each try of a scanner.
            await WebSocketClose()(scope, receive, send)
            return
        response = await self._respond(scope, path)
        if scope["method"] == "HEAD":
            response.body = b""  # the headers, with the length of GET's body, are made already
        await response(scope, receive, send)

    async def _respond(self, scope: Scope, path: str) -> Response:
        route = self._routes.get(path)
        if route is None:
            return problem(404, "There is nothing at this path.")
        if scope["method"] not in METHODS:
            allow = ", ".join(METHODS)
            return problem(405, f"This path answers {allow} only.", {"allow": allow})
        return await route(scope)

    async def _stats(self, scope: Scope) -> Response:
        if self._auth is not None and not self._auth.allows(Headers(scope=scope)):
            return problem(401, "Credentials are needed.", {"www-authenticate": CHALLENGE})
        return _json(200, await self._snapshot())

    async def _livez(self, scope: Scope) -> Response:
        return _json(200, {"status": "alive"})

    async def _readyz(self, scope: Scope) -> Response:
        readiness = self._readiness()
        reasons = readiness.reasons
        content = {
            "status": "not ready" if reasons else "ready",
            "reasons": reasons,
            "storage": "degraded" if readiness.storage_degraded else "ok",
        }
        return _json(503 if reasons else 200, content)


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer as problem details (RFC 9457)."""
    content = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    return _json(status, content, headers, media_type="application/problem+json")


def _json(
    status: int,
    content: Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    body = json.dumps(content, separators=(",", ":")).encode()
    return Response(body, status, {**HEADERS, **(headers or {})}, media_type)
