"""One request's life: when it holds a slot, when it gives it back, and what refused ones read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, cast

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from fastapi_balancer.admission import Admission, refuse
from fastapi_balancer.errors import Reason, Rejected
from fastapi_balancer.inbox import READ_AHEAD
from fastapi_balancer.limiter import Limiter
from fastapi_balancer.stats import Collector, EndpointGauges
from fastapi_balancer.storage.memory import MemorySlots
from tests.exchange import Exchange, settle
from tests.virtual import virtual


class Health:
    healthy = True


class Gate:
    """An admission, and what can be seen of it."""

    def __init__(
        self, app: ASGIApp, capacity: int = 1, *, queue_size: int = 100, **options: Any
    ) -> None:
        self.slots = MemorySlots(capacity=capacity, queue_size=queue_size)
        self.limiter = Limiter(self.slots, queue_timeout=options.pop("queue_timeout", 30.0))
        self.health = Health()
        self._stats = Collector("worker").endpoint("/work")
        self.run = Admission(app, "/work", self.limiter, self._stats, self.health, **options).run

    @property
    def counts(self) -> dict[str, Any]:
        report = self._stats.report(EndpointGauges(), 1e6)
        names = ("served", "errors", "left", "refused")
        return {name: cast("dict[str, Any]", report)[name] for name in names}

    def holder(self) -> None:
        """Take one slot and keep it."""
        assert self.limiter.take()


def route(handler: Callable[[Request], Any], **options: Any) -> ASGIApp:
    return Starlette(routes=[Route("/work", handler, **options)])


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def never(scope: Scope, receive: Receive, send: Send) -> None:
    pytest.fail("this request must not be run")


async def queued(gate: Gate, exchange: Exchange) -> Exchange:
    exchange.start()
    await settle()
    assert gate.slots.queued == 1
    return exchange


@virtual
async def test_an_admitted_request_is_answered_by_the_app_and_counted() -> None:
    gate = Gate(route(hello))
    exchange = await Exchange(gate.run).end()
    assert (exchange.status, exchange.body) == (200, b"hello")
    assert gate.counts == {"served": 1, "errors": 0, "left": 0, "refused": {}}
    assert gate.slots.active == 0


@virtual
async def test_a_stream_holds_its_slot_to_its_last_chunk() -> None:
    async def chunks() -> Any:
        for _ in range(3):
            await asyncio.sleep(1)
            yield b"x"

    async def stream(request: Request) -> Response:
        return StreamingResponse(chunks())

    gate = Gate(route(stream))
    exchange = Exchange(gate.run).start()
    await asyncio.sleep(2.5)
    assert (exchange.body, gate.slots.active) == (b"xx", 1)
    await exchange.end()
    assert (exchange.body, gate.slots.active) == (b"xxx", 0)


@virtual
async def test_a_background_task_holds_the_slot_of_its_request() -> None:
    async def handler(request: Request) -> Response:
        return PlainTextResponse("soon", background=BackgroundTask(asyncio.sleep, 5))

    gate = Gate(route(handler))
    exchange = Exchange(gate.run).start()
    await asyncio.sleep(4)
    assert (exchange.body, gate.slots.active) == (b"soon", 1)
    await exchange.end()
    assert gate.slots.active == 0


@virtual
async def test_an_exception_gives_the_slot_back_and_counts_as_an_error() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    gate = Gate(broken)
    with pytest.raises(ZeroDivisionError):
        await Exchange(gate.run).end()
    assert gate.slots.active == 0
    assert gate.counts == {"served": 1, "errors": 1, "left": 0, "refused": {}}


@virtual
async def test_a_forced_cancel_gives_the_slot_back_before_the_loop_turns_again() -> None:
    async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            seen.append(gate.slots.active)

    seen: list[int] = []
    gate = Gate(stuck)
    exchange = Exchange(gate.run).start()
    await settle()
    exchange.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (seen, gate.slots.active) == ([1], 0)


@virtual
async def test_a_client_that_goes_while_served_frees_no_slot_before_the_app_returns() -> None:
    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(10)

    gate = Gate(deaf)
    exchange = Exchange(gate.run).start()
    await asyncio.sleep(1)
    exchange.disconnect()
    await asyncio.sleep(8)
    assert gate.slots.active == 1
    await exchange.end()
    assert gate.slots.active == 0


@virtual
async def test_a_websocket_holds_its_slot_from_handshake_to_close() -> None:
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        await websocket.close()

    gate = Gate(Starlette(routes=[WebSocketRoute("/work", talk)]))
    exchange = Exchange.websocket(gate.run).start()
    await asyncio.sleep(60)
    assert gate.slots.active == 1
    exchange.tell({"type": "websocket.receive", "text": "hi"})
    await exchange.end()
    assert [m["type"] for m in exchange.sent] == ["websocket.accept", "websocket.close"]
    assert gate.slots.active == 0
    assert gate.counts["served"] == 1


@virtual
async def test_requests_over_the_capacity_wait_and_are_served_in_order() -> None:
    running, most, order = 0, 0, []

    async def handler(request: Request) -> Response:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        order.append(int(request.headers["n"]))
        await asyncio.sleep(1)
        running -= 1
        return PlainTextResponse("ok")

    gate = Gate(route(handler), 2)
    exchanges = [Exchange(gate.run, headers=[(b"n", b"%d" % n)]).start() for n in range(10)]
    await asyncio.gather(*(exchange.end() for exchange in exchanges))
    assert {exchange.status for exchange in exchanges} == {200}
    assert (most, order) == (2, list(range(10)))
    assert asyncio.get_running_loop().time() == 5.0


@virtual
async def test_a_wait_over_the_queue_timeout_answers_504_with_a_problem() -> None:
    gate = Gate(never, queue_timeout=3.0)
    gate.holder()
    exchange = await Exchange(gate.run).end()
    assert asyncio.get_running_loop().time() == 3.0
    assert exchange.status == 504
    assert exchange.headers["content-type"] == "application/problem+json"
    assert exchange.headers["retry-after"] == "1"
    assert exchange.headers["cache-control"] == "no-store"
    assert exchange.headers["content-length"] == str(len(exchange.body))
    assert "connection" not in exchange.headers
    assert exchange.json() == {
        "type": "about:blank",
        "title": "Gateway Timeout",
        "status": 504,
        "detail": "No slot became free in the time that a request may wait.",
        "reason": "queue_timeout",
        "endpoint": "/work",
        "retry_after": 1,
    }
    assert gate.counts == {"served": 0, "errors": 0, "left": 0, "refused": {"queue_timeout": 1}}


@virtual
async def test_a_full_queue_answers_503_at_once() -> None:
    gate = Gate(never, queue_size=0)
    gate.holder()
    exchange = await Exchange(gate.run).end()
    assert asyncio.get_running_loop().time() == 0.0
    assert (exchange.status, exchange.json()["reason"]) == (503, "queue_full")
    assert exchange.headers["retry-after"] == str(exchange.json()["retry_after"]) == "1"


@virtual
async def test_retry_after_tells_how_long_the_queue_will_take() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(2)

    gate = Gate(slow, queue_size=20, queue_timeout=600)
    exchanges = [Exchange(gate.run).start() for _ in range(21)]
    await asyncio.sleep(20.5)  # ten have been served, at one in 2 s
    late = [Exchange(gate.run).start() for _ in range(11)]
    await settle()
    assert late[-1].status == 503
    assert 30 <= int(late[-1].headers["retry-after"]) <= 40
    await asyncio.gather(*(exchange.end() for exchange in exchanges + late))
    assert gate.slots.active == 0


@virtual
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_an_unhealthy_service_answers_503_without_a_wait(kind: str) -> None:
    gate = Gate(never)
    gate.health.healthy = False
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    exchange = await Exchange(gate.run, type=kind, extensions=extensions).end()
    assert (exchange.status, exchange.json()["reason"]) == (503, "unhealthy")
    assert "connection" not in exchange.headers
    assert gate.counts["refused"] == {"unhealthy": 1}


@virtual
async def test_draining_answers_those_who_wait_at_once_and_lets_those_who_run_finish() -> None:
    async def slow(request: Request) -> Response:
        await asyncio.sleep(5)
        return PlainTextResponse("done")

    gate = Gate(route(slow))
    running = Exchange(gate.run).start()
    waiting = await queued(gate, Exchange(gate.run))
    await asyncio.sleep(1)
    gate.limiter.drain()
    await waiting.end()
    late = await Exchange(gate.run).end()
    assert asyncio.get_running_loop().time() == 1.0
    for refused in (waiting, late):
        assert (refused.status, refused.json()["reason"]) == (503, "draining")
        assert refused.headers["connection"] == "close"
    assert (await running.end()).body == b"done"
    assert gate.slots.active == 0


@virtual
@pytest.mark.parametrize(
    ("version", "header"), [("1.0", "close"), ("1.1", "close"), ("2", None), ("3", None)]
)
async def test_connection_close_is_said_only_where_http_knows_it(
    version: str, header: str | None
) -> None:
    gate = Gate(never)
    gate.limiter.drain()
    exchange = await Exchange(gate.run, http_version=version).end()
    assert exchange.status == 503
    assert exchange.headers.get("connection") == header


@virtual
@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("queue_timeout", 504),
        ("queue_full", 503),
        ("unhealthy", 503),
        ("draining", 503),
        ("storage_unavailable", 503),
        ("body_timeout", 408),
    ],
)
async def test_each_reason_has_its_status_and_a_detail(reason: Reason, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(scope, send, "/work", Rejected(reason, 2.3))

    exchange = await Exchange(app).end()
    problem = exchange.json()
    assert exchange.status == problem["status"] == status
    assert (problem["reason"], problem["retry_after"]) == (reason, 3)
    assert exchange.headers["retry-after"] == "3"
    assert problem["title"]
    assert problem["detail"].endswith(".")


@virtual
async def test_a_client_that_goes_while_queued_leaves_at_once_and_is_never_run() -> None:
    gate = Gate(never)
    gate.holder()
    exchange = await queued(gate, Exchange(gate.run))
    await asyncio.sleep(1)
    exchange.disconnect()
    await settle()
    assert (gate.slots.queued, exchange.is_over, exchange.status) == (0, True, 499)
    gate.limiter.release(1)
    await settle()
    assert gate.counts == {"served": 0, "errors": 0, "left": 1, "refused": {}}
    assert gate.slots.active == 0


@virtual
@pytest.mark.parametrize("size", [1, READ_AHEAD, 3 * READ_AHEAD])
async def test_a_client_that_goes_after_its_whole_body_is_never_run(size: int) -> None:
    gate = Gate(never)
    gate.holder()
    exchange = await queued(gate, Exchange(gate.run, method="POST", body=[b"x" * size]))
    exchange.disconnect()
    await settle()
    assert (gate.slots.queued, exchange.is_over, gate.counts["left"]) == (0, True, 1)


@virtual
async def test_a_client_that_goes_in_the_middle_of_its_body_never_queues() -> None:
    gate = Gate(never)
    exchange = Exchange(gate.run, method="POST", body=[])
    exchange.scope["headers"] = [(b"content-length", b"100")]
    exchange.upload(b"x", more=True)
    exchange.start()
    await asyncio.sleep(1)
    assert (gate.slots.queued, gate.slots.active) == (0, 0)
    exchange.disconnect()
    await exchange.end()
    assert (exchange.status, gate.counts["left"]) == (499, 1)


@virtual
async def test_a_client_that_goes_in_the_moment_it_gets_its_slot_is_not_run() -> None:
    gate = Gate(never)
    gate.holder()
    exchange = await queued(gate, Exchange(gate.run))
    exchange.disconnect()
    gate.limiter.release(1)  # in the same turn of the loop
    await exchange.end()
    assert (gate.slots.active, gate.slots.queued, gate.counts["left"]) == (0, 0, 1)


@virtual
async def test_forty_of_forty_clients_that_go_are_never_run() -> None:
    gate = Gate(never)
    gate.holder()
    exchanges = [Exchange(gate.run).start() for _ in range(40)]
    await settle()
    for exchange in exchanges:
        exchange.disconnect()
    await asyncio.gather(*(exchange.end() for exchange in exchanges))
    assert (gate.slots.queued, gate.slots.active, gate.counts["left"]) == (0, 1, 40)


@virtual
async def test_a_websocket_client_that_goes_while_queued_is_never_run() -> None:
    gate = Gate(never)
    gate.holder()
    exchange = await queued(gate, Exchange.websocket(gate.run))
    exchange.disconnect()
    await exchange.end()
    assert (gate.slots.queued, exchange.sent, gate.counts["left"]) == (0, [], 1)


@virtual
async def test_a_request_cancelled_while_queued_leaves_nothing_behind() -> None:
    gate = Gate(never)
    gate.holder()
    before = asyncio.all_tasks()
    exchange = await queued(gate, Exchange(gate.run))
    exchange.cancel()
    await settle()
    assert gate.slots.queued == 0
    assert asyncio.all_tasks() == before


async def echo(request: Request) -> Response:
    return Response(await request.body())


@virtual
async def test_a_body_read_ahead_reaches_the_app_whole_after_the_queue() -> None:
    gate = Gate(route(echo, methods=["POST"]))
    gate.holder()
    pieces = [b"%d," % n for n in range(100)]
    exchange = await queued(gate, Exchange(gate.run, method="POST", body=pieces))
    gate.limiter.release(1)
    await exchange.end()
    assert exchange.body == b"".join(pieces)


@virtual
async def test_a_large_body_is_streamed_through_and_whole() -> None:
    gate = Gate(route(echo, methods=["POST"]))
    pieces = [bytes([n]) * 20_000 for n in range(50)]
    exchange = Exchange(gate.run, method="POST", body=pieces)
    gate.holder()
    await queued(gate, exchange)
    assert 40 <= exchange.unread.qsize() < 50  # back-pressure: the rest stays with the server
    gate.limiter.release(1)
    await exchange.end()
    assert exchange.body == b"".join(pieces)


@virtual
async def test_after_the_queue_the_app_alone_sets_the_pace_of_the_upload() -> None:
    async def idle(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(10)

    gate = Gate(idle)
    gate.holder()
    exchange = Exchange(gate.run, method="POST", body=[])
    exchange.scope["headers"] = [(b"transfer-encoding", b"chunked")]
    exchange.upload(b"x" * READ_AHEAD, more=True)
    await queued(gate, exchange)
    gate.limiter.release(1)
    other = await queued_again(gate)
    for _ in range(5):
        exchange.upload(b"x", more=True)
        other.tell({"type": "websocket.receive", "text": "x"})
    await settle()
    assert (exchange.unread.qsize(), other.unread.qsize()) == (5, 4)
    await asyncio.gather(exchange.end(), other.end())


async def queued_again(gate: Gate) -> Exchange:
    """A WebSocket that waited for a slot while another request ran, and has one now."""
    exchange = await queued(gate, Exchange.websocket(gate.run))
    gate.slots.limit(2)
    await settle()
    assert gate.slots.active == 2
    return exchange


@virtual
async def test_a_slow_upload_holds_no_slot() -> None:
    gate = Gate(route(echo, methods=["POST"]))
    exchange = Exchange(gate.run, method="POST", body=[b""])
    exchange.unread.get_nowait()
    exchange.scope["headers"] = [(b"transfer-encoding", b"chunked")]
    exchange.start()
    for _ in range(4):
        exchange.upload(b"x", more=True)
        await asyncio.sleep(5)
        assert gate.slots.active == 0
    exchange.upload(b"y", more=False)
    assert (await exchange.end()).body == b"xxxxy"


@virtual
async def test_a_body_that_does_not_come_in_time_answers_408() -> None:
    gate = Gate(never, body_timeout=5.0)
    exchange = Exchange(gate.run, method="POST", body=[])
    exchange.scope["headers"] = [(b"content-length", b"10")]
    await exchange.end()
    assert asyncio.get_running_loop().time() == 5.0
    assert (exchange.status, exchange.json()["reason"]) == (408, "body_timeout")
    assert exchange.headers["connection"] == "close"
    assert gate.counts["refused"] == {"body_timeout": 1}


@virtual
async def test_a_body_over_http2_is_awaited_though_no_header_tells_of_it() -> None:
    gate = Gate(route(echo, methods=["POST"]))
    exchange = Exchange(gate.run, method="POST", body=[], http_version="2")
    exchange.scope["headers"] = []
    exchange.start()
    await asyncio.sleep(1)
    assert gate.slots.active == 0
    exchange.upload(b"x", more=False)
    assert (await exchange.end()).body == b"x"


@virtual
async def test_a_request_without_a_body_is_not_read_before_its_app() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(exchange.unread.qsize())

    seen: list[int] = []
    gate = Gate(app)
    exchange = Exchange(gate.run)
    await exchange.end()
    assert seen == [1]


@virtual
async def test_a_stream_of_a_request_that_queued_still_ends_with_its_client() -> None:
    """StreamingResponse listens for the disconnect, and cancels that when the stream ends."""

    async def chunks() -> Any:
        while True:
            await asyncio.sleep(1)
            yield b"x"

    async def stream(request: Request) -> Response:
        return StreamingResponse(chunks())

    gate = Gate(route(stream))
    gate.holder()
    exchange = await queued(gate, Exchange(gate.run))
    gate.limiter.release(1)
    await asyncio.sleep(3.5)
    assert exchange.body == b"xxx"
    exchange.disconnect()
    await exchange.end()
    assert (exchange.body, gate.slots.active) == (b"xxx", 0)


@virtual
@pytest.mark.parametrize("place", ["inside", "outside"])
async def test_bodies_and_slots_survive_a_middleware_of_the_user(place: str) -> None:
    """BaseHTTPMiddleware wraps `receive`, cancels it in between, and listens for the disconnect."""

    async def stamp(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["stamp"] = "yes"
        return response

    def stamped(app: ASGIApp) -> ASGIApp:
        return BaseHTTPMiddleware(app, dispatch=stamp)

    app = route(echo, methods=["POST"])
    gate = Gate(stamped(app) if place == "inside" else app)
    gate.holder()
    outermost = stamped(gate.run) if place == "outside" else gate.run
    pieces = [b"%d," % n for n in range(50)]
    exchange = await queued(gate, Exchange(outermost, method="POST", body=pieces))
    gate.limiter.release(1)
    await exchange.end()
    assert (exchange.body, exchange.headers["stamp"]) == (b"".join(pieces), "yes")
    assert (gate.slots.active, gate.slots.queued) == (0, 0)


@virtual
async def test_a_client_that_goes_is_seen_through_a_middleware_of_the_user() -> None:
    async def call(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response

    gate = Gate(never)
    gate.holder()
    exchange = Exchange(BaseHTTPMiddleware(gate.run, dispatch=call))
    await queued(gate, exchange)
    exchange.disconnect()
    await exchange.end()
    assert (gate.slots.queued, gate.counts["left"], exchange.status) == (0, 1, 499)


@virtual
async def test_a_server_that_raises_for_a_client_that_has_gone_is_not_minded() -> None:
    async def send(message: Message) -> None:
        raise OSError("the client has gone")

    gate = Gate(never)
    gate.holder()
    exchange = Exchange(lambda scope, receive, _: gate.run(scope, receive, send))
    await queued(gate, exchange)
    exchange.disconnect()
    await exchange.end()
    assert gate.counts["left"] == 1


@virtual
async def test_a_websocket_is_refused_with_http_where_the_server_can() -> None:
    gate = Gate(never, queue_timeout=2.0)
    gate.holder()
    exchange = Exchange.websocket(gate.run, extensions={"websocket.http.response": {}})
    await exchange.end()
    types = [message["type"] for message in exchange.sent]
    assert types == ["websocket.http.response.start", "websocket.http.response.body"]
    assert (exchange.status, exchange.json()["reason"]) == (504, "queue_timeout")
    assert exchange.headers["retry-after"] == "1"


@virtual
@pytest.mark.parametrize("extensions", [{}, None])
async def test_a_websocket_is_else_closed_with_1013(extensions: dict[str, Any] | None) -> None:
    gate = Gate(never, queue_timeout=2.0)
    gate.holder()
    exchange = await Exchange.websocket(gate.run, extensions=extensions).end()
    assert exchange.sent == [{"type": "websocket.close", "code": 1013, "reason": "queue_timeout"}]


@pytest.mark.parametrize(
    ("methods", "concerned"),
    [
        (None, {"GET", "HEAD", "POST", "DELETE", "TRACE"}),
        (frozenset({"POST"}), {"POST"}),
    ],
)
@virtual
async def test_options_never_needs_a_slot_and_others_as_configured(
    methods: frozenset[str] | None, concerned: set[str]
) -> None:
    admission = Admission(
        never, "/work", Limiter(MemorySlots(), queue_timeout=1), Collector("").endpoint(""),
        Health(), methods=methods,
    )  # fmt: skip
    known = ("GET", "HEAD", "POST", "DELETE", "TRACE", "OPTIONS")
    assert {m for m in known if admission.concerns({"type": "http", "method": m})} == concerned
    assert admission.concerns({"type": "websocket"})


@virtual
@pytest.mark.parametrize("seed", range(10))
async def test_whatever_clients_and_apps_do_all_slots_come_back(seed: int) -> None:
    """Hundreds of requests that leave, are cancelled, raise, stall and stream, at random times."""
    random = Random(seed)
    running = most = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        try:
            if random.random() < 0.5:
                await receive()
            await asyncio.sleep(random.random() / 10)
            if random.random() < 0.2:
                raise ZeroDivisionError
        finally:
            running -= 1

    def begin() -> Exchange:
        if random.random() < 0.2:
            return Exchange.websocket(gate.run).start()
        body = [b"x" * random.randrange(30_000)] * 5 if random.random() < 0.5 else None
        return Exchange(gate.run, method="POST", body=body).start()

    gate = Gate(app, 4, queue_size=30, queue_timeout=0.3)
    loop, before = asyncio.get_running_loop(), asyncio.all_tasks()
    exchanges = []
    for _ in range(400):
        exchanges.append(begin())
        if random.random() < 0.3:
            act = random.choice([exchanges[-1].disconnect, exchanges[-1].cancel])
            loop.call_later(random.random() / 3, act)
        await asyncio.sleep(random.random() / 100)
    results = await asyncio.gather(*(e.end() for e in exchanges), return_exceptions=True)
    assert {type(r).__name__ for r in results} == {
        "Exchange",
        "ZeroDivisionError",
        "CancelledError",
    }
    await settle()
    assert (gate.slots.active, gate.slots.queued, running, most) == (0, 0, 0, 4)
    assert asyncio.all_tasks() == before


@virtual
async def test_an_answer_that_breaks_off_counts_as_an_error() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    gate = Gate(broken)
    with pytest.raises(ZeroDivisionError):
        await Exchange(gate.run).end()
    assert gate.counts == {"served": 1, "errors": 1, "left": 0, "refused": {}}
    assert gate.slots.active == 0
