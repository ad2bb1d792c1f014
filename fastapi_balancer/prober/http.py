"""Sends a probe's requests to a running server, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

import httpx

from fastapi_balancer.prober.load import Reply
from fastapi_balancer.prober.measure import TIMEOUT, Sample
from fastapi_balancer.prober.request import ProbeRequest

KEEPALIVE = 2.0  # seconds; below the 5 of uvicorn, or it closes a connection that we reuse


class HttpSender:
    """Sends a probe's request to a server, each request in flight over a connection of its own.

    It speaks through httpx's transport, not its client, which would keep cookies from one request
    to the next and log every one of them; and not through a pool of many connections, whose
    bookkeeping grows with the square of their number: it measured itself from 40 on.
    """

    def __init__(
        self,
        base_url: str,
        request: ProbeRequest,
        timeout: float,
        connect: Callable[[], httpx.AsyncBaseTransport] | None = None,
    ) -> None:
        query = b"?" + request.query_string if request.query_string else b""
        self.timeout = timeout
        self._request = httpx.Request(
            request.method,
            base_url + (request.raw_path + query).decode("ascii"),
            # the server's own name, unless the user's headers say otherwise
            headers=[header for header in request.headers if header != (b"host", b"localhost")],
            content=request.body or None,
        )
        self._connect = connect or _connector()
        self._idle: list[httpx.AsyncBaseTransport] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._idle:
            await self._idle.pop().aclose()

    async def prepare(self, level: int) -> None:
        """Nothing has to be got ready: connections are made as they are needed, and kept."""

    async def send(self, keep: int = 0) -> Reply:
        """Send one request over HTTP and read the response to its end."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        bound = asyncio.timeout(self.timeout)
        failure: str | None = None
        reply = _Read()
        try:
            async with bound:
                await self._exchange(reply, keep)
        except (httpx.HTTPError, TimeoutError) as error:
            failure = TIMEOUT if bound.expired() else type(error).__name__
        if failure is None and reply.status >= 400:
            failure = f"status {reply.status}"
        sample = Sample(began, loop.time(), failure)
        return Reply(sample, reply.status or None, reply.body, reply.location)

    async def _exchange(self, reply: _Read, keep: int) -> None:
        connection = self._idle.pop() if self._idle else self._connect()
        try:
            await self._read(await connection.handle_async_request(self._request), reply, keep)
        finally:
            self._idle.append(connection)  # a broken one mends itself with the next request

    async def _read(self, response: httpx.Response, reply: _Read, keep: int) -> None:
        try:
            reply.status = response.status_code
            reply.location = response.headers.get("location")
            # decoded only when somebody reads it: unpacking is no part of what is measured
            async for chunk in response.aiter_bytes() if keep else response.aiter_raw():
                reply.body += chunk[: max(0, keep - len(reply.body))]
        finally:
            await response.aclose()


class _Read:
    """What was read of a response so far."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.location: str | None = None


def _connector() -> Callable[[], httpx.AsyncBaseTransport]:
    trust = httpx.create_ssl_context()  # loading the certificates once is enough
    limits = httpx.Limits(
        max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE
    )
    return lambda: httpx.AsyncHTTPTransport(verify=trust, limits=limits)
