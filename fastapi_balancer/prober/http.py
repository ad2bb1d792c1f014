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
    """Sends the probe's request to a server, over as many connections as the level asks for."""

    def __init__(self, base_url: str, request: ProbeRequest, timeout: float) -> None:
        query = b"?" + request.query_string if request.query_string else b""
        self.url = base_url + (request.raw_path + query).decode("ascii")
        self.request = request
        self.timeout = timeout
        # the server's own name, unless the user's headers say otherwise
        self._headers = [h for h in request.headers if h != (b"host", b"localhost")]
        self._trust = httpx.create_ssl_context()  # loading the certificates once is enough
        self._client = self._new_client(1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def prepare(self, level: int) -> None:
        """Change to a client with one connection for each request in flight."""
        await self._client.aclose()
        self.connect(self._new_client(level))

    def connect(self, client: httpx.AsyncClient) -> None:
        """Send through this client from now on; it is closed with the sender."""
        self._client = client

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
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            failure = TIMEOUT if bound.expired() else type(error).__name__
        if failure is None and reply.status >= 400:
            failure = f"status {reply.status}"
        sample = Sample(began, loop.time(), failure)
        return Reply(sample, reply.status or None, reply.body, reply.location)

    def _new_client(self, connections: int) -> httpx.AsyncClient:
        limits = httpx.Limits(
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=KEEPALIVE,
        )
        # no timeouts of its own: the bound on the whole request is ours
        return httpx.AsyncClient(limits=limits, timeout=None, verify=self._trust)

    async def _exchange(self, reply: _Read, keep: int) -> None:
        request = self._client.build_request(
            self.request.method, self.url, headers=self._headers, content=self.request.body or None
        )
        response = await self._client.send(request, stream=True)
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
