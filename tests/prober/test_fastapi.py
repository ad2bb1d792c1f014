"""The load generator against the frameworks' own ways of using `receive` and `send`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint

from fastapi_balancer.models import EndpointProbeConfig, ProbeConfig
from fastapi_balancer.prober import Prober, ProbeResult
from fastapi_balancer.testing import run_virtual
from tests.prober.stores import FakeStorage

POST = EndpointProbeConfig(method="POST", body={"inputs": ["a"]})


class Question(BaseModel):
    inputs: list[str]


async def timed(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.headers["x-timed"] = "1"
    return response


@pytest.fixture
def app() -> FastAPI:
    made = FastAPI()
    made.add_middleware(BaseHTTPMiddleware, dispatch=timed)
    return made


def probe(app: FastAPI, settings: EndpointProbeConfig | None = None) -> ProbeResult:
    budget = ProbeConfig(max_concurrency=64)
    prober = Prober(
        app, FakeStorage(), probe=budget, error_threshold=0.05, latency_threshold_ms=150
    )
    return run_virtual(prober.probe("/x", settings or EndpointProbeConfig()))


def test_a_handler_with_a_body_and_a_pool_behind_it(app: FastAPI) -> None:
    connections = asyncio.Semaphore(5)

    async def connection() -> AsyncIterator[None]:
        async with connections:
            yield

    @app.post("/x", dependencies=[Depends(connection)])
    async def handler(question: Question) -> list[str]:
        await asyncio.sleep(0.1)
        return question.inputs

    assert probe(app, POST).capacity == 5


def test_a_stream_is_measured_to_its_last_chunk(app: FastAPI) -> None:
    generators = asyncio.Semaphore(4)

    async def tokens() -> AsyncIterator[str]:
        async with generators:
            for _ in range(10):
                await asyncio.sleep(0.01)
                yield "token"

    @app.get("/x")
    async def handler() -> StreamingResponse:
        return StreamingResponse(tokens())

    result = probe(app)
    assert result.capacity == 4
    assert result.p50_ms == pytest.approx(100)


def test_a_background_task_holds_its_place_but_is_not_waited_for(app: FastAPI) -> None:
    @app.get("/x")
    async def handler(background: BackgroundTasks) -> str:
        background.add_task(asyncio.sleep, 0.5)
        await asyncio.sleep(0.1)
        return "done"

    result = probe(app)
    assert (result.capacity, result.kind) == (64, "no_failure_in_range")
    assert result.p99_ms == pytest.approx(100)
    assert result.throughput == pytest.approx(64 / 0.6, rel=0.2)


def test_an_unhandled_exception_is_told_by_its_answer(app: FastAPI) -> None:
    seen: Iterator[int] = iter(range(1_000_000))

    @app.get("/x")
    async def handler() -> str:
        await asyncio.sleep(0.1)
        if next(seen) > 60:
            raise KeyError("gone")
        return "done"

    result = probe(app)
    assert result.capacity == 1
    assert "mostly: KeyError" in result.reason


def test_a_request_is_told_that_it_is_a_probe(app: FastAPI) -> None:
    @app.get("/x")
    async def handler(request: Request) -> str:
        assert request.state.balancer_probe is True
        assert request.headers["x-balancer-probe"] == "1"
        assert str(request.url) == "http://localhost/x"
        await asyncio.sleep(0.1)
        return "done"

    assert probe(app).error_rate == 0
