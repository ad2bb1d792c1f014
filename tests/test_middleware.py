"""The entry: which request needs a slot of which endpoint, and the order of the two lifespans."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_balancer.admission import Admission
from fastapi_balancer.errors import BalancerError, StorageError
from fastapi_balancer.limiter import Limiter
from fastapi_balancer.middleware import BalancerMiddleware, Routes
from fastapi_balancer.stats import Collector
from fastapi_balancer.storage.memory import MemorySlots
from tests.exchange import Exchange, Lifespan
from tests.virtual import virtual


class Health:
    healthy = True


def admission(endpoint: str, methods: frozenset[str] | None = None) -> Admission:
    """An admission to an app that answers with the endpoint's name."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(endpoint)(scope, receive, send)

    limiter = Limiter(MemorySlots(), queue_timeout=1)
    stats = Collector("").endpoint(endpoint)
    return Admission(app, endpoint, limiter, stats, Health(), methods=methods)


async def unwatched(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("unwatched")(scope, receive, send)


class Cycle:
    """A lifecycle that watches some endpoints, and notes what is asked of it."""

    def __init__(
        self, log: list[str], endpoints: Iterable[str] = (), error: Exception | None = None
    ) -> None:
        self.ready = False
        self.log = log
        self.endpoints = endpoints
        self.error = error

    async def start(self, middleware: BalancerMiddleware, scope: Scope) -> None:
        self.log.append("balancer starts")
        await asyncio.sleep(1)
        if self.error is not None:
            raise self.error
        middleware.routes = Routes({each: admission(each) for each in self.endpoints})
        self.ready = True

    async def start_late(self, middleware: BalancerMiddleware, scope: Scope) -> None:
        await self.start(middleware, scope)

    async def stop(self) -> None:
        self.log.append("balancer stops")
        await asyncio.sleep(1)


def logging_app(log: list[str], fails: str = "") -> ASGIApp:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        log.append("app starts")
        await asyncio.sleep(1)
        if fails == "startup":
            raise ValueError("no model here")
        yield {"model": "m"}
        await asyncio.sleep(1)
        if fails == "shutdown":
            raise ValueError("the model stays")
        log.append("app stopped")

    return Starlette(lifespan=lifespan)


async def found(endpoints: Iterable[str], path: str, **scope: Any) -> str:
    middleware = BalancerMiddleware(unwatched, Cycle([], endpoints))
    return (await Exchange(middleware, path, **scope).end()).body.decode()


@virtual
@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/predict", "/predict"),
        ("/predict/", "unwatched"),
        ("/predictx", "unwatched"),
        ("/x/predict", "unwatched"),
        ("/", "unwatched"),
        ("/items/7", "/items/{id}"),
        ("/items/seven", "/items/{id}"),
        ("/items/special", "/items/special"),
        ("/items/", "unwatched"),
        ("/items/7/8", "unwatched"),
        ("/items/7/parts/8", "/items/{id}/parts/{part}"),
        ("/numbers/7", "/numbers/{n:int}"),
        ("/numbers/seven", "unwatched"),
        ("/files/a", "/files/{name}"),
        ("/files/a/b/c", "/files/{rest:path}"),
        ("/files/deep/a", "/files/deep/{rest:path}"),
        ("/items/7.json", "/items/{id}.json"),
    ],
)
async def test_the_literal_path_is_found_first_and_then_the_most_literal_template(
    path: str, endpoint: str
) -> None:
    endpoints = [
        "/files/{rest:path}",
        "/files/{name}",
        "/files/deep/{rest:path}",
        "/items/{id}",
        "/items/special",
        "/items/{id}.json",
        "/items/{id}/parts/{part}",
        "/numbers/{n:int}",
        "/predict",
    ]
    assert await found(endpoints, path) == endpoint
    assert await found(reversed(endpoints), path) == endpoint


@virtual
@pytest.mark.parametrize(
    ("root_path", "path", "endpoint"),
    [
        ("/api", "/api/predict", "/predict"),  # the prefix is there, as uvicorn puts it
        ("/api", "/predict", "/predict"),  # a proxy has stripped it
        ("/api", "/apix/predict", "unwatched"),
        ("/api", "/api/api/predict", "unwatched"),
        ("/api", "/api", "unwatched"),
        ("", "/api/predict", "unwatched"),
    ],
)
async def test_paths_are_matched_below_the_root_path(
    root_path: str, path: str, endpoint: str
) -> None:
    assert await found(["/predict"], path, root_path=root_path) == endpoint


@virtual
async def test_an_outer_app_watches_what_is_mounted_in_it() -> None:
    inner = Starlette(routes=[Route("/x", PlainTextResponse("inner"))])
    outer = Starlette(routes=[Mount("/sub", inner)])
    middleware = BalancerMiddleware(outer, Cycle([], ["/sub/x"]))
    assert (await Exchange(middleware, "/sub/x").end()).body == b"/sub/x"


@virtual
async def test_a_mounted_app_watches_its_own_paths() -> None:
    middleware = BalancerMiddleware(unwatched, Cycle([], ["/x"]))
    outer = Starlette(routes=[Mount("/a", Starlette(routes=[Mount("/b", middleware)]))])
    assert (await Exchange(outer, "/a/b/x").end()).body == b"/x"
    assert (await Exchange(outer, "/a/b/y").end()).body == b"unwatched"
    exchange = await Exchange(outer, "/api/a/b/x", root_path="/api").end()
    assert exchange.body == b"/x"


@virtual
async def test_options_and_unlisted_methods_pass_through() -> None:
    middleware = BalancerMiddleware(unwatched, Cycle([]))
    await Exchange(middleware).end()
    middleware.routes = Routes({"/work": admission("/work", frozenset({"POST", "PUT"}))})
    bodies = {
        method: (await Exchange(middleware, method=method).end()).body.decode()
        for method in ("OPTIONS", "GET", "POST", "PUT")
    }
    assert bodies == {"OPTIONS": "unwatched", "GET": "unwatched", "POST": "/work", "PUT": "/work"}


@virtual
async def test_an_unwatched_request_reaches_the_app_with_the_servers_own_callables() -> None:
    async def app(*given: object) -> None:
        seen.extend(given)

    async def receive() -> Any: ...
    async def send(message: Any) -> None: ...

    seen: list[object] = []
    scope = Exchange(app, "/other").scope
    await BalancerMiddleware(app, Cycle([], ["/work"]))(scope, receive, send)
    assert [seen[0] is scope, seen[1] is receive, seen[2] is send] == [True, True, True]


@virtual
async def test_the_app_starts_before_the_balancer_and_stops_after_it() -> None:
    log: list[str] = []
    async with Lifespan(BalancerMiddleware(logging_app(log), Cycle(log))) as lifespan:
        assert log == ["app starts", "balancer starts"]
        assert lifespan.state == {"model": "m"}
    assert log[2:] == ["balancer stops", "app stopped"]
    types = [message["type"] for message in lifespan.sent]
    assert types == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@virtual
async def test_our_failure_is_told_after_the_app_has_shut_down() -> None:
    """A server may end its event loop as soon as it is told: uvicorn does."""
    log: list[str] = []
    error = StorageError("the store refuses the credentials")
    lifespan = Lifespan(BalancerMiddleware(logging_app(log), Cycle(log, error=error)))
    answer = await lifespan.startup()
    assert log == ["app starts", "balancer starts", "balancer stops", "app stopped"]
    assert answer == {
        "type": "lifespan.startup.failed",
        "message": "fastapi-balancer: the store refuses the credentials",
    }
    await lifespan.end()
    assert lifespan.sent == [answer]


@virtual
async def test_our_failure_is_told_even_when_the_app_cannot_shut_down() -> None:
    error = BalancerError("no")
    app = logging_app([], fails="shutdown")
    lifespan = Lifespan(BalancerMiddleware(app, Cycle([], error=error)))
    answer = await lifespan.startup()
    assert answer["type"] == "lifespan.startup.failed"
    assert "fastapi-balancer: no" in answer["message"]
    with pytest.raises(ValueError, match="the model stays"):
        await lifespan.end()
    assert lifespan.sent == [answer]


@virtual
async def test_an_app_that_fails_to_start_is_reported_by_itself_and_nothing_is_started() -> None:
    log: list[str] = []
    lifespan = Lifespan(BalancerMiddleware(logging_app(log, fails="startup"), Cycle(log)))
    answer = await lifespan.startup()
    assert answer["type"] == "lifespan.startup.failed"
    assert "no model here" in answer["message"]
    with pytest.raises(ValueError, match="no model here"):
        await lifespan.end()
    assert log == ["app starts"]


@virtual
@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("raises", [False, True])
async def test_an_app_without_a_lifespan_has_ours(reads: bool, raises: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if reads:
            await receive()
        if raises:
            raise NotImplementedError(scope["type"])

    log: list[str] = []
    async with Lifespan(BalancerMiddleware(app, Cycle(log))):
        assert log == ["balancer starts"]
    assert log == ["balancer starts", "balancer stops"]


@virtual
async def test_our_failure_is_told_where_the_app_has_no_lifespan() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError

    log: list[str] = []
    lifespan = Lifespan(BalancerMiddleware(app, Cycle(log, error=BalancerError("no"))))
    answer = await lifespan.startup()
    assert answer == {"type": "lifespan.startup.failed", "message": "fastapi-balancer: no"}
    await lifespan.end()
    assert log == ["balancer starts", "balancer stops"]
