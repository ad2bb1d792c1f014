"""Simulated services: small ASGI apps whose limits are known."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_balancer.testing import JumpingLoop


async def answer(send: Send, status: int = 200, body: bytes = b"ok") -> None:
    """Send a whole response."""
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


def constant(latency: float, status: int = 200, body: bytes = b"ok") -> ASGIApp:
    """Takes as long whatever the load is. A latency of 0 answers without waiting at all."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if latency:
            await asyncio.sleep(latency)
        await answer(send, status, body)

    return app


def pool(slots: int, latency: float) -> ASGIApp:
    """Works on so many requests at once; the others wait inside of it."""
    free = asyncio.Semaphore(slots)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with free:
            await asyncio.sleep(latency)
        await answer(send)

    return app


def blocking(latency: float) -> ASGIApp:
    """Holds up the whole (virtual) event loop while it works."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, JumpingLoop)
        loop.jump(latency)
        await answer(send)

    return app


def breaking_above(limit: int, latency: float = 0.1) -> ASGIApp:
    """Answers 503 at once to what comes above so many requests at once."""
    running = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal running
        if running >= limit:
            return await answer(send, 503)
        running += 1
        try:
            await asyncio.sleep(latency)
        finally:
            running -= 1
        return await answer(send)

    return app


def raising(error: Exception) -> ASGIApp:
    """Raises instead of answering."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    return app


def sending(*messages: Message) -> ASGIApp:
    """Sends these messages, whether they are allowed or not."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


class Watched:
    """Counts what is in flight inside of an app, as the app sees it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.now = 0
        self.entries: list[int] = []  # how many were in flight, seen by each request that came in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.now += 1
        self.entries.append(self.now)
        try:
            await self.app(scope, receive, send)
        finally:
            self.now -= 1


class Recorder:
    """An app that keeps the scopes and bodies of its requests, and what `receive` tells later."""

    def __init__(self, then: Callable[[Send], Awaitable[None]] = answer) -> None:
        self.then = then
        self.scopes: list[Scope] = []
        self.messages: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        while True:
            self.messages.append(await receive())
            if not self.messages[-1]["more_body"]:
                break
        await self.then(send)

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages)
