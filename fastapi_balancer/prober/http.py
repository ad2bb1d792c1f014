"""Sends a probe's requests to a running server, over HTTP."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import httpx

from fastapi_balancer.prober.load import Reply
from fastapi_balancer.prober.measure import TIMEOUT, Sample
from fastapi_balancer.prober.request import ProbeRequest

KEEPALIVE = 2.0  # seconds; below the 5 of uvicorn, or it closes a connection that we reuse


class HttpSender:
    """Sends a probe's request to a server, over as many connections as the level asks for.

    It speaks through httpx's transport, not its client, which would keep cookies from one request
    to the next and log every one of them.
    """

    def __init__(self, base_url: str, request: ProbeRequest, timeout: float) -> None:
        query = b"?" + request.query_string if request.query_string else b""
        self.timeout = timeout
        self._request = httpx.Request(
            request.method,
            base_url + (request.raw_path + query).decode("ascii"),
            # the server's own name, unless the user's headers say otherwise
            headers=[header for header in request.headers if header != (b"host", b"localhost")],
            content=request.body or None,
        )
        self._trust = httpx.create_ssl_context()  # loading the certificates once is enough
        self._most = 1
        self._transport: httpx.AsyncBaseTransport = self._connections(1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._transport.aclose()

    async def prepare(self, level: int) -> None:
        """Allow as many connections as there will be requests in flight.

        Fewer than before need no new ones, whose set-up would be measured with the first requests.
        """
        if level > self._most:
            self._most = level
            await self.use(self._connections(level))

    async def use(self, transport: httpx.AsyncBaseTransport) -> None:
        """Send through this transport from now on. It is closed with the sender."""
        await self._transport.aclose()
        self._transport = transport

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

    def _connections(self, count: int) -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(
            max_connections=count, max_keepalive_connections=count, keepalive_expiry=KEEPALIVE
        )
        return httpx.AsyncHTTPTransport(verify=self._trust, limits=limits)

    async def _exchange(self, reply: _Read, keep: int) -> None:
        response = await self._transport.handle_async_request(self._request)
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
