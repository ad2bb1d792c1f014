from __future__ import annotations

import asyncio

import httpx
import pytest

from fastapi_balancer.models import EndpointProbeConfig
from fastapi_balancer.prober.http import HttpSender
from fastapi_balancer.prober.load import Reply
from fastapi_balancer.prober.request import build_request
from fastapi_balancer.testing import run_virtual


class Server(httpx.AsyncBaseTransport):
    """Stands in for the network, and keeps what was asked."""

    def __init__(self, *replies: httpx.Response | Exception, latency: float = 0.5) -> None:
        self.replies = list(replies)
        self.latency = latency
        self.asked: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        await asyncio.sleep(self.latency)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


def replying(status: int, body: bytes = b"") -> httpx.Response:
    return httpx.Response(status, stream=httpx.ByteStream(body))


def send(server: Server, settings: EndpointProbeConfig | None = None, keep: int = 0) -> Reply:
    async def main() -> Reply:
        request = build_request("/x y", settings or EndpointProbeConfig())
        async with HttpSender("http://service:8000/api", request, 10, lambda: server) as sender:
            return await sender.send(keep)

    return run_virtual(main())


def test_a_request_over_http_is_the_same_but_for_the_host() -> None:
    server = Server(replying(200, b"answer"))
    reply = send(server, EndpointProbeConfig(method="POST", body={"a": 1}), keep=3)
    (asked,) = server.asked
    assert (asked.method, str(asked.url)) == ("POST", "http://service:8000/api/x%20y")
    assert asked.content == b'{"a": 1}'
    assert asked.headers["host"] == "service:8000"
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["x-balancer-probe"] == "1"
    assert (reply.status, reply.body, reply.sample.failure) == (200, b"ans", None)
    assert reply.sample.latency_ms == 500


@pytest.mark.parametrize(
    ("server", "failure"),
    [
        (Server(replying(399)), None),
        (Server(replying(503)), "status 503"),
        (Server(httpx.ConnectError("refused")), "ConnectError"),
        (Server(httpx.RemoteProtocolError("closed")), "RemoteProtocolError"),
        (Server(replying(200), latency=11), "timeout"),
    ],
)
def test_a_failure_over_http_is_named(server: Server, failure: str | None) -> None:
    assert send(server).sample.failure == failure


def test_a_redirect_is_not_followed() -> None:
    server = Server(httpx.Response(307, headers={"location": "/x/"}))
    reply = send(server, keep=10)
    assert (reply.status, reply.location, len(server.asked)) == (307, "/x/", 1)


def test_a_cookie_is_not_carried_from_one_request_to_the_next() -> None:
    async def main() -> None:
        request = build_request("/x", EndpointProbeConfig())
        async with HttpSender("http://service", request, 10, lambda: server) as sender:
            await sender.send()
            await sender.send()

    with_cookie = httpx.Response(200, headers={"set-cookie": "a=b"}, stream=httpx.ByteStream(b""))
    server = Server(with_cookie, replying(200))
    run_virtual(main())
    assert ["cookie" in asked.headers for asked in server.asked] == [False, False]


def test_each_request_in_flight_has_a_connection_of_its_own_that_is_used_again() -> None:
    servers: list[Server] = []

    def connect() -> Server:
        servers.append(Server(*[replying(200) for _ in range(9)]))
        return servers[-1]

    async def main() -> None:
        request = build_request("/x", EndpointProbeConfig())
        async with HttpSender("http://service", request, 10, connect) as sender:
            for _ in range(3):
                await asyncio.gather(*[sender.send() for _ in range(4)])

    run_virtual(main())
    assert [len(server.asked) for server in servers] == [3, 3, 3, 3]
