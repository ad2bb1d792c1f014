"""Sends a probe's requests to an ASGI app, the way a server does, without a socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from fastapi_balancer.prober.load import Reply
from fastapi_balancer.prober.measure import TIMEOUT, Sample
from fastapi_balancer.prober.request import ProbeRequest

logger = logging.getLogger(__name__)

CHUNK = 64 * 1024  # bytes of a request's body per message, as servers cut it


class AsgiSender:
    """Calls an app once for each request. Nothing of the response is buffered."""

    def __init__(
        self,
        app: ASGIApp,
        request: ProbeRequest,
        timeout: float,
        state: Mapping[str, Any],
        root_path: str = "",
    ) -> None:
        self.app = app
        self.request = request
        self.timeout = timeout
        self.state = state  # what the app's own lifespan has put there
        self.root_path = root_path

    async def prepare(self, level: int) -> None:
        """Nothing has to be got ready."""

    async def send(self, keep: int = 0) -> Reply:
        """Run the app once. Returns when the app has returned, background tasks included."""
        exchange = _Exchange(self.request.body, keep)
        failure: str | None = None
        bound = asyncio.timeout(self.timeout)
        try:
            async with bound:
                await self.app(self._scope(), exchange.receive, exchange.send)
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            failure = "cancelled by itself"
        except Exception as error:  # whatever the app raises is its failure, not ours
            logger.debug("the app raised during a probe", exc_info=True)
            failure = type(error).__name__
        return exchange.reply(TIMEOUT if bound.expired() else failure)

    def _scope(self) -> Scope:
        request = self.request
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # as uvicorn says it
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": self.root_path + request.path,
            "raw_path": self.root_path.encode() + request.raw_path,
            "query_string": request.query_string,
            "root_path": self.root_path,
            "headers": list(request.headers),
            "client": ("127.0.0.1", 0),
            "server": ("localhost", 80),
            "state": {**self.state, "balancer_probe": True},
            "extensions": {},
        }


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Exchange:
    """The `receive` and `send` of one request."""

    def __init__(self, body: bytes, keep: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._unread = [body[i : i + CHUNK] for i in range(0, len(body), CHUNK)] or [b""]
        self._unread.reverse()
        self._keep = keep
        self._kept = b""
        self._status: int | None = None
        self._location: str | None = None
        self._complete = asyncio.Event()
        self._began = self._loop.time()
        self._ended: float | None = None

    async def receive(self) -> Message:
        """The body in chunks; then, once the response is complete, the disconnect."""
        if self._unread:
            chunk = self._unread.pop()
            return {"type": "http.request", "body": chunk, "more_body": bool(self._unread)}
        await self._complete.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take one message of the response."""
        if self._complete.is_set():
            raise RuntimeError(f"{message['type']} was sent after the response was complete.")
        if message["type"] == "http.response.start":
            self._begin(message)
        elif message["type"] == "http.response.body":
            await self._go_on(message)

    def reply(self, failure: str | None) -> Reply:
        """What came of it, when the app has returned; `failure` is how the app failed, if so."""
        if failure is None and self._status is None:
            failure = "no response"
        elif failure is None and self._ended is None:
            failure = "incomplete response"
        elif failure is None and self._status is not None and self._status >= 400:
            failure = f"status {self._status}"
        if self._ended is None or failure == TIMEOUT:
            self._ended = self._loop.time()
        sample = Sample(self._began, self._ended, failure)
        return Reply(sample, self._status, self._kept, self._location)

    def _begin(self, message: Message) -> None:
        if self._status is not None:
            raise RuntimeError("The response was begun twice.")
        self._status = message["status"]
        if self._keep:
            headers = dict(message.get("headers", ()))
            self._location = headers.get(b"location", b"").decode("latin-1") or None

    async def _go_on(self, message: Message) -> None:
        if self._status is None:
            raise RuntimeError("The response's body was sent before its start.")
        missing = self._keep - len(self._kept)
        if missing > 0:
            self._kept += bytes(message.get("body", b"")[:missing])
        if message.get("more_body", False):
            await asyncio.sleep(0)  # a real connection lets others run now and then, too
        else:
            self._ended = self._loop.time()
            self._complete.set()
