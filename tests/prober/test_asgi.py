from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_balancer.models import EndpointProbeConfig
from fastapi_balancer.prober.asgi import AsgiSender
from fastapi_balancer.prober.load import Reply
from fastapi_balancer.prober.measure import Sample
from fastapi_balancer.prober.request import build_request
from fastapi_balancer.testing import run_virtual
from tests.prober.apps import (
    Recorder,
    answer,
    constant,
    raising,
    sending,
)

START = {"type": "http.response.start", "status": 200, "headers": []}
CHUNK = {"type": "http.response.body", "body": b"chunk", "more_body": True}
END = {"type": "http.response.body", "body": b""}


def sender_for(
    app: ASGIApp,
    settings: EndpointProbeConfig | None = None,
    *,
    timeout: float = 10,
    state: dict[str, Any] | None = None,
    root_path: str = "",
) -> AsgiSender:
    request = build_request("/x", settings or EndpointProbeConfig())
    return AsgiSender(app, request, timeout, state or {}, root_path)


def send_one(app: ASGIApp, keep: int = 0, timeout: float = 10) -> Reply:
    async def main() -> Reply:
        return await sender_for(app, timeout=timeout).send(keep)

    return run_virtual(main())


def test_a_stream_that_never_waits_leaves_the_loop_to_others() -> None:
    async def main() -> int:
        turns = 0
        sending_one = asyncio.create_task(sender_for(sending(START, *[CHUNK] * 50, END)).send())
        while not sending_one.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert run_virtual(main()) >= 50


def test_the_sample_of_a_stream_ends_with_its_last_byte() -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        for _ in range(5):
            await asyncio.sleep(1)
            await send(CHUNK)
        await send(END)
        await asyncio.sleep(2)  # a background task

    async def main() -> tuple[Reply, float]:
        reply = await sender_for(stream).send(keep=8)
        return reply, asyncio.get_running_loop().time()

    reply, returned = run_virtual(main())
    assert reply == Reply(Sample(0, 5), 200, b"chunkchu")
    assert returned == 7


def test_background_work_past_the_timeout_is_a_failure() -> None:
    async def lingering(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send)
        await asyncio.sleep(3600)

    assert send_one(lingering).sample == Sample(0, 10, "timeout")


@pytest.mark.parametrize(
    ("app", "failure"),
    [
        (constant(1), None),
        (constant(1, status=399), None),
        (constant(1, status=400), "status 400"),
        (constant(11), "timeout"),
        (raising(KeyError("x")), "KeyError"),
        (raising(TimeoutError()), "TimeoutError"),
        (sending(), "no response"),
        (sending(START), "incomplete response"),
        (sending(START, CHUNK), "incomplete response"),
        (sending(END), "RuntimeError"),
        (sending(START, START), "RuntimeError"),
        (sending(START, END, END), "RuntimeError"),
    ],
)
def test_a_failure_is_named(app: ASGIApp, failure: str | None) -> None:
    assert send_one(app).sample.failure == failure


def test_the_scope_is_complete() -> None:
    app = Recorder()
    settings = EndpointProbeConfig(method="POST", body={"a": 1})
    state = {"model": "loaded"}

    async def main() -> None:
        await sender_for(app, settings, state=state, root_path="/api").send()

    run_virtual(main())
    (scope,) = app.scopes
    headers = dict(scope.pop("headers"))
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/api/x",
        "raw_path": b"/api/x",
        "query_string": b"",
        "root_path": "/api",
        "client": ("127.0.0.1", 0),
        "server": ("localhost", 80),
        "state": {"model": "loaded", "balancer_probe": True},
        "extensions": {},
    }
    assert headers[b"x-balancer-probe"] == b"1"
    assert headers[b"content-length"] == b"8"
    assert app.body == b'{"a": 1}'
    assert state == {"model": "loaded"}


def test_a_large_body_arrives_in_chunks() -> None:
    app = Recorder()
    settings = EndpointProbeConfig(method="POST", body="x" * 150_000)

    async def main() -> None:
        await sender_for(app, settings).send()

    run_virtual(main())
    assert [len(message["body"]) for message in app.messages] == [65_536, 65_536, 18_928]
    assert [message["more_body"] for message in app.messages] == [True, True, False]


def test_the_disconnect_comes_only_when_the_response_is_complete() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        disconnected = asyncio.ensure_future(receive())
        await asyncio.sleep(3)
        assert not disconnected.done()
        await answer(send)
        assert await disconnected == {"type": "http.disconnect"}

    assert send_one(app).sample == Sample(0, 3)
