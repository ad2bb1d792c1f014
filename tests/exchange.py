"""One request to an ASGI app without a server, and the lifespan; the other side is the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any, Self

from starlette.types import ASGIApp, Message, Scope

GONE = {"http": "http.disconnect", "websocket": "websocket.disconnect"}
STARTS = ("http.response.start", "websocket.http.response.start")
BODIES = ("http.response.body", "websocket.http.response.body")


class Exchange:
    """One request as a server runs it: nothing is read ahead, and no message is told twice."""

    def __init__(
        self,
        app: ASGIApp,
        path: str = "/work",
        *,
        method: str = "GET",
        body: Iterable[bytes] | None = None,
        **scope: Any,
    ) -> None:
        self.sent: list[Message] = []  # what the app has sent
        self.unread: asyncio.Queue[Message] = asyncio.Queue()
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._answered = False
        pieces = list(body or ())
        length = sum(map(len, pieces))
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-length", b"%d" % length)] if body is not None else [],
            "client": ("127.0.0.1", 5),
            "server": ("127.0.0.1", 8000),
            **scope,
        }
        if body is None and self.scope["type"] == "http":
            self.tell({"type": "http.request", "body": b"", "more_body": False})
        for number, piece in enumerate(pieces, 1):
            self.upload(piece, more=number < len(pieces))

    @classmethod
    def websocket(cls, app: ASGIApp, path: str = "/work", **scope: Any) -> Self:
        """A WebSocket whose client has asked for it."""
        exchange = cls(app, path, type="websocket", **scope)
        del exchange.scope["method"]
        exchange.tell({"type": "websocket.connect"})
        return exchange

    def tell(self, message: Message) -> None:
        """Let the app receive a message."""
        self.unread.put_nowait(message)

    def upload(self, piece: bytes, *, more: bool) -> None:
        """Let the app receive a piece of the body."""
        self.tell({"type": "http.request", "body": piece, "more_body": more})

    def disconnect(self) -> None:
        """Hang up."""
        self.tell({"type": GONE[self.scope["type"]]})

    def start(self) -> Self:
        """Begin to run the app."""
        self._task = asyncio.create_task(self._run())
        return self

    def cancel(self) -> None:
        """Cancel the app's task, as a server does that will not wait any longer."""
        assert self._task is not None
        self._task.cancel()

    async def end(self) -> Self:
        """Wait until the app has returned. Raises what it raised."""
        if self._task is None:
            self.start()
        assert self._task is not None
        await self._task
        return self

    @property
    def is_over(self) -> bool:
        """Whether the app has returned."""
        return self._task is not None and self._task.done()

    @property
    def status(self) -> int | None:
        """The status of the answer, None when there is none yet."""
        return next((m["status"] for m in self.sent if m["type"] in STARTS), None)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        pairs = next(m["headers"] for m in self.sent if m["type"] in STARTS)
        return {name.decode(): value.decode() for name, value in pairs}

    @property
    def body(self) -> bytes:
        """What has been answered so far."""
        return b"".join(m.get("body", b"") for m in self.sent if m["type"] in BODIES)

    def json(self) -> Any:
        """The body of the answer, read as JSON."""
        return json.loads(self.body)

    async def _run(self) -> None:
        await self._app(self.scope, self._receive, self._send)

    async def _receive(self) -> Message:
        """The next message; the disconnect once the answer is complete, as uvicorn has it."""
        return {"type": "http.disconnect"} if self._answered else await self.unread.get()

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._answered = True
            self.disconnect()  # for who is receiving already


class Lifespan:
    """The lifespan of an app, as a server runs it."""

    def __init__(self, app: ASGIApp, **scope: Any) -> None:
        self.sent: list[Message] = []
        self.state: dict[str, Any] = {}
        self._scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state, **scope}
        self._app = app
        self._unread: asyncio.Queue[Message] = asyncio.Queue()
        self._news: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> Message:
        """Start the app; return what it answers. An empty message: it ended without a word."""
        self._unread.put_nowait({"type": "lifespan.startup"})
        self._task = asyncio.create_task(
            self._app(self._scope, self._unread.get, self._send)  # type: ignore[arg-type]
        )
        return await self._answer()

    async def shutdown(self) -> Message:
        """Stop the app; return what it answers."""
        self._unread.put_nowait({"type": "lifespan.shutdown"})
        answer = await self._answer()
        await self.end()
        return answer

    async def end(self) -> None:
        """Wait until the app has returned. Raises what it raised."""
        assert self._task is not None
        await self._task

    def cancel(self) -> None:
        """Cancel the app's task, as a server does whose event loop ends."""
        assert self._task is not None
        self._task.cancel()

    async def __aenter__(self) -> Self:
        answer = await self.startup()
        assert answer["type"] == "lifespan.startup.complete", answer
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.shutdown()

    async def _answer(self) -> Message:
        assert self._task is not None
        news = asyncio.create_task(self._news.get())
        await asyncio.wait({news, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not news.done():
            await asyncio.sleep(0)
        if not news.done():
            news.cancel()
            return {}
        return news.result()

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        self._news.put_nowait(message)


async def settle() -> None:
    """Let everything run that can run without waiting for the time to pass."""
    for _ in range(500):
        await asyncio.sleep(0)
