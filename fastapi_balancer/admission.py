"""One request's life: get a slot, run the app, give the slot back, count it; or refuse it."""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import math
from collections.abc import Awaitable
from time import monotonic
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_balancer.errors import ClientLeft, Reason, Rejected
from fastapi_balancer.inbox import Inbox
from fastapi_balancer.limiter import Limiter
from fastapi_balancer.stats import EndpointStats

STATUS = {"queue_timeout": 504, "body_timeout": 408}  # any other reason: 503
CLIENT_LEFT = 499  # nginx's word for it; never seen by a client
TRY_AGAIN_LATER = 1013  # RFC 6455 has no such code; IANA's registry of close codes does

DETAIL = {
    "queue_timeout": "No slot became free in the time that a request may wait.",
    "queue_full": "Too many requests are waiting already.",
    "unhealthy": "The service is not healthy at the moment.",
    "draining": "The service is shutting down.",
    "storage_unavailable": "The store that counts requests cannot be reached.",
    "body_timeout": "The body of the request did not arrive in time.",
}


class Health(Protocol):
    """What admission needs to know of the app's health."""

    healthy: bool


class Admission:
    """The entry to one endpoint of `app`."""

    def __init__(
        self,
        app: ASGIApp,
        endpoint: str,
        limiter: Limiter,
        stats: EndpointStats,
        health: Health,
        *,
        methods: frozenset[str] | None = None,
        body_timeout: float = 30.0,
    ) -> None:
        self.endpoint = endpoint
        self.limiter = limiter
        self.stats = stats
        self._app = app
        self._health = health
        self._methods = methods
        self._body_timeout = body_timeout

    def concerns(self, scope: Scope) -> bool:
        """Whether this request needs a slot: OPTIONS never does."""
        if scope["type"] == "websocket":
            return True
        method: str = scope["method"]
        return method != "OPTIONS" and (self._methods is None or method in self._methods)

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app with a slot, or refuse. The slot is held until the app has returned."""
        if not self._health.healthy or self.limiter.draining:
            reason: Reason = "draining" if self.limiter.draining else "unhealthy"
            await self._refuse(scope, send, Rejected(reason, 1.0))
            return
        if _has_body(scope):
            receive = inbox = Inbox(receive)
            if not await self._body_arrived(scope, inbox, send):
                return
        waited = 0.0
        if not self.limiter.take():
            arrived = monotonic()
            if not isinstance(receive, Inbox):
                receive = Inbox(receive)
            if not await self._queued(scope, receive, send):
                return
            waited = monotonic() - arrived
        await self._serve(scope, receive, send, waited)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, waited: float) -> None:
        status = 500  # what the server answers when the app raises before it has begun to answer

        def note_status(message: Message) -> Awaitable[None]:
            nonlocal status
            kind = message["type"]
            if kind == "http.response.start" or kind == "websocket.http.response.start":
                status = message["status"]
            elif kind == "websocket.accept":
                status = 101
            return send(message)

        started = monotonic()
        try:
            await self._app(scope, receive, note_status)
        except Exception:
            status = 500  # however it began, the client sees it cut off
            raise
        finally:
            now = monotonic()
            self.limiter.release(now - started)
            self.stats.served(status, waited, now - started, now)
            if isinstance(receive, Inbox):
                receive.close()

    async def _queued(self, scope: Scope, inbox: Inbox, send: Send) -> bool:
        """Wait in the queue. True: the slot is ours; else all is said and done."""
        granted = False
        try:
            ticket = self.limiter.join()
            inbox.watch(lambda: self.limiter.leave(ticket))
            await self.limiter.wait(ticket)
            if inbox.is_gone:  # in the moment it got its slot
                self.limiter.release(0.0)
                raise ClientLeft
            granted = True
        except ClientLeft:
            await self._bury(scope, send)
        except Rejected as exc:
            await self._refuse(scope, send, exc)
        finally:
            if granted:
                inbox.hand_over()
            else:
                inbox.close()
        return granted

    async def _body_arrived(self, scope: Scope, inbox: Inbox, send: Send) -> bool:
        """A slot is asked for only once a small body is here: a slow upload holds none."""
        try:
            async with asyncio.timeout(self._body_timeout):
                if await inbox.read_body():
                    return True
            await self._bury(scope, send)
        except TimeoutError:
            await self._refuse(scope, send, Rejected("body_timeout", 1.0))
        return False

    async def _bury(self, scope: Scope, send: Send) -> None:
        """End a request whose client has gone.

        Nobody reads the answer, but the user's middleware around us may wait for one: starlette's
        `BaseHTTPMiddleware` raises without, and metrics count a 500.
        """
        self.stats.left()
        if scope["type"] == "http":
            with contextlib.suppress(OSError):  # the server says so too (ASGI HTTP spec 2.4)
                await send({"type": "http.response.start", "status": CLIENT_LEFT, "headers": []})
                await send({"type": "http.response.body", "body": b""})

    async def _refuse(self, scope: Scope, send: Send, rejected: Rejected) -> None:
        self.stats.refused(rejected.reason)
        self.limiter.refused(rejected.reason)
        await refuse(scope, send, self.endpoint, rejected)


def _has_body(scope: Scope) -> bool:
    """Whether a body follows (RFC 9112 6.3). HTTP/2 does not say it in the headers."""
    if scope["type"] != "http":
        return False
    if scope.get("http_version", "1.1")[0] > "1":
        return True
    for name, value in scope["headers"]:
        if name == b"content-length":
            return bool(value != b"0")
        if name == b"transfer-encoding":
            return True
    return False


async def refuse(scope: Scope, send: Send, endpoint: str, rejected: Rejected) -> None:
    """Answer a refusal as problem+json (RFC 9457), or end a WebSocket before its handshake."""
    if scope["type"] == "websocket":
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send(
                {"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": rejected.reason}
            )
            return
        prefix = "websocket.http.response"
    else:
        prefix = "http.response"
    status = STATUS.get(rejected.reason, 503)
    retry_after = math.ceil(rejected.retry_after)
    problem = {
        "type": "about:blank",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": DETAIL[rejected.reason],
        "reason": rejected.reason,
        "endpoint": endpoint,
        "retry_after": retry_after,
    }
    body = json.dumps(problem).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"%d" % retry_after),
        (b"cache-control", b"no-store"),
    ]
    ends = rejected.reason in ("draining", "body_timeout")
    if ends and scope.get("http_version", "1.1")[0] == "1":
        headers.append((b"connection", b"close"))  # the rest of it would be read for nothing
    await send({"type": f"{prefix}.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}.body", "body": body})
