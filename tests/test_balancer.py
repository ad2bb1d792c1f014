"""The whole balancer around an app: start, stop, draining, and which capacity is enforced."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.types import Receive, Scope, Send

from fastapi_balancer import Balancer, EndpointProbeConfig
from fastapi_balancer.errors import StorageError
from fastapi_balancer.prober import Prober, ProbeResult
from fastapi_balancer.prober.measure import Thresholds
from fastapi_balancer.storage.memory import MemoryStorage
from tests.exchange import Exchange, Lifespan, settle
from tests.virtual import virtual

WORK = {"/work": {"capacity": 1}}


def service(**keywords: Any) -> FastAPI:
    """An app whose `/work` takes a second, wrapped."""
    app = FastAPI(title="test")

    @app.get("/work")
    async def work() -> str:
        await asyncio.sleep(1)
        return "done"

    @app.get("/other")
    async def other() -> str:
        return "other"

    keywords.setdefault("endpoints", WORK)
    return Balancer(**keywords).wrap(app)


async def stats(app: Any, path: str = "/balancer/stats") -> Any:
    return (await Exchange(app, path).end()).json()["endpoints"]


async def capacity(app: Any) -> Any:
    return (await stats(app))["/work"]["capacity"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# Requests


@virtual
async def test_a_wrapped_app_takes_no_more_than_its_capacity() -> None:
    app = service(endpoints={"/work": {"capacity": 2}})
    async with Lifespan(app):
        exchanges = [Exchange(app).start() for _ in range(6)]
        await settle()
        work = (await stats(app))["/work"]
        assert (work["active_requests"], work["queued"], work["capacity"]) == (2, 4, 2)
        await asyncio.gather(*(exchange.end() for exchange in exchanges))
        assert asyncio.get_running_loop().time() == pytest.approx(3.0, abs=0.01)
        assert [exchange.json() for exchange in exchanges] == ["done"] * 6
        work = (await stats(app))["/work"]
        assert (work["served"], work["active_requests"], work["queued"]) == (6, 0, 0)


@virtual
async def test_the_balancers_own_paths_and_unwatched_ones_need_no_slot() -> None:
    app = service(queue_timeout=5)
    async with Lifespan(app):
        running = [Exchange(app).start() for _ in range(3)]
        await settle()
        before = asyncio.get_running_loop().time()
        paths = ("/balancer/livez", "/balancer/readyz", "/balancer/stats", "/other")
        assert [(await Exchange(app, path).end()).status for path in paths] == [200] * 4
        assert asyncio.get_running_loop().time() == before
        await asyncio.gather(*(exchange.end() for exchange in running))


@virtual
async def test_an_endpoint_may_have_a_queue_timeout_of_its_own() -> None:
    endpoints = {"/work": {"capacity": 1, "queue_timeout": 0.5}}
    app = service(endpoints=endpoints, queue_timeout=60)
    async with Lifespan(app):
        running = Exchange(app).start()
        await settle()
        refused = await Exchange(app).end()
        assert (refused.status, refused.json()["reason"]) == (504, "queue_timeout")
        await running.end()


@virtual
async def test_a_service_without_a_health_endpoint_is_healthy() -> None:
    app = service()
    async with Lifespan(app):
        await asyncio.sleep(100)
        assert (await Exchange(app).end()).status == 200
        assert (await Exchange(app, "/balancer/readyz").end()).status == 200


@virtual
async def test_an_unhealthy_service_refuses_and_recovers() -> None:
    app = service(health_check_interval=1)
    status = 500

    @app.get("/health")
    async def health() -> Any:
        if status != 200:
            raise RuntimeError("no GPU")

    async with Lifespan(app):
        await asyncio.sleep(5)
        assert (await Exchange(app).end()).json()["reason"] == "unhealthy"
        assert (await Exchange(app, "/balancer/readyz").end()).status == 503
        status = 200
        await asyncio.sleep(5)
        assert (await Exchange(app).end()).status == 200


@virtual
async def test_probe_and_health_check_see_the_app_and_the_state_of_its_lifespan() -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        app.state.model = "model"
        yield {"state": "state"}

    app = FastAPI(lifespan=lifespan)
    seen: list[tuple[str, str]] = []

    @app.get("/work")
    @app.get("/health")
    async def work(request: Request) -> None:
        seen.append((request.app.state.model, request.state.state))

    small = {"max_requests": 60, "max_concurrency": 1}
    Balancer(endpoints={"/work": {}}, probe=small).wrap(app)
    async with Lifespan(app):
        await settle()
        assert await capacity(app) is not None
    assert set(seen) == {("model", "state")}


# Draining


@virtual
async def test_a_signal_sends_those_who_wait_away_while_others_finish() -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        app = service()
        async with Lifespan(app):
            running, waiting = Exchange(app).start(), Exchange(app).start()
            await settle()
            signal.raise_signal(signal.SIGTERM)
            await waiting.end()
            assert waiting.json()["reason"] == "draining"
            assert waiting.headers["connection"] == "close"
            readiness = await Exchange(app, "/balancer/readyz").end()
            assert (readiness.status, readiness.json()["reasons"]) == (503, ["draining"])
            assert (await running.end()).json() == "done"
        assert told == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is not None
    finally:
        now = signal.signal(signal.SIGTERM, before)
    assert now.__qualname__.endswith("<lambda>")  # type: ignore[union-attr]


@virtual
async def test_a_signal_ends_a_probe_and_the_start_up_goes_on_to_its_end() -> None:
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        app = service(endpoints={"/work": {}, "/other": {}}, probe={"max_seconds": 3000})
        asyncio.get_running_loop().call_later(2.5, signal.raise_signal, signal.SIGTERM)
        async with Lifespan(app):
            assert 2.5 <= asyncio.get_running_loop().time() < 5
    finally:
        signal.signal(signal.SIGTERM, before)


@virtual
async def test_after_the_shutdown_requests_are_refused_and_nothing_starts_again() -> None:
    app = service()
    async with Lifespan(app):
        pass
    late = await Exchange(app).end()
    assert (late.status, late.json()["reason"]) == (503, "draining")
    assert len(asyncio.all_tasks()) == 1


# Start and stop


@virtual
async def test_a_balancer_starts_stops_and_starts_again() -> None:
    app = service()
    for _ in range(3):
        async with Lifespan(app):
            assert (await Exchange(app).end()).status == 200
            assert (await stats(app))["/work"]["served"] == 1
    assert len(asyncio.all_tasks()) == 1


@virtual
async def test_a_store_that_refuses_us_fails_the_start_up_clearly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(self: object) -> None:
        raise StorageError("the store refuses the credentials of storage.url")

    monkeypatch.setattr(MemoryStorage, "open", refuse)
    before = signal.getsignal(signal.SIGINT)
    answer = await Lifespan(service()).startup()
    assert answer["type"] == "lifespan.startup.failed"
    assert answer["message"] == (
        "fastapi-balancer: the store refuses the credentials of storage.url"
    )
    await settle()
    assert len(asyncio.all_tasks()) == 1
    assert signal.getsignal(signal.SIGINT) is before


@virtual
async def test_a_start_that_breaks_unexpectedly_leaves_nothing_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(*given: object, **named: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(MemoryStorage, "set_capacity", broken)
    before = signal.getsignal(signal.SIGINT)
    lifespan = Lifespan(
        service(endpoints={"/work": {}}, probe_on_startup=False, default_capacity=3)
    )
    assert (await lifespan.startup())["type"] == "lifespan.startup.failed"
    with pytest.raises(ZeroDivisionError):
        await lifespan.end()
    await settle()
    assert len(asyncio.all_tasks()) == 1
    assert signal.getsignal(signal.SIGINT) is before


@virtual
async def test_a_start_that_is_cancelled_leaves_no_probe_running() -> None:
    lifespan = Lifespan(service(endpoints={"/work": {}}, probe={"max_seconds": 3000}))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(lifespan.startup(), 2.5)
    lifespan.cancel()
    await asyncio.sleep(2)
    assert len(asyncio.all_tasks()) == 1


# Without a lifespan


@virtual
async def test_without_a_lifespan_limits_hold_from_the_first_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = service(endpoints={"/work": {"capacity": 2}})
    exchanges = [Exchange(app).start() for _ in range(6)]
    await settle()
    work = (await stats(app))["/work"]
    assert (work["active_requests"], work["queued"]) == (2, 4)
    await asyncio.gather(*(exchange.end() for exchange in exchanges))
    assert len([w for w in warnings(caplog) if "no lifespan" in w]) == 1


@virtual
async def test_a_mounted_app_is_limited_and_says_that_nothing_is_measured(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outer = FastAPI()
    outer.mount("/sub", service(endpoints={"/work": {}}, default_capacity=1))
    async with Lifespan(outer):
        exchanges = [Exchange(outer, "/sub/work").start() for _ in range(3)]
        await settle()
        work = (await stats(outer, "/sub/balancer/stats"))["/work"]
        assert (work["active_requests"], work["queued"], work["capacity"]) == (1, 2, 1)
        await asyncio.gather(*(exchange.end() for exchange in exchanges))
    (warning,) = warnings(caplog)
    assert "nothing is measured" in warning


@virtual
async def test_a_late_start_that_is_cancelled_is_made_up_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def slow(self: MemoryStorage) -> None:
        await asyncio.sleep(1)

    monkeypatch.setattr(MemoryStorage, "open", slow)
    app = service()
    first = Exchange(app).start()
    exchanges = [Exchange(app).start() for _ in range(3)]
    await asyncio.sleep(0.5)
    first.cancel()
    await asyncio.sleep(1.0)
    assert (await stats(app))["/work"]["active_requests"] == 1
    await asyncio.gather(*(exchange.end() for exchange in exchanges))


@virtual
async def test_a_late_start_that_fails_is_never_taken_for_no_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(self: object) -> None:
        raise StorageError("the store refuses the credentials of storage.url")

    monkeypatch.setattr(MemoryStorage, "open", refuse)
    app = service()
    for _ in range(2):
        with pytest.raises(StorageError):
            await Exchange(app).end()
    monkeypatch.undo()
    assert (await Exchange(app).end()).status == 200
    assert (await stats(app))["/work"]["served"] == 1


def test_requests_in_event_loops_of_their_own_are_all_limited(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = service()

    async def several() -> list[Any]:
        exchanges = [Exchange(app).start() for _ in range(4)]
        await settle()
        work = (await stats(app))["/work"]
        for exchange in exchanges:
            exchange.cancel()
        await asyncio.gather(*(exchange.end() for exchange in exchanges), return_exceptions=True)
        return [work["active_requests"], work["queued"]]

    before = signal.getsignal(signal.SIGINT)
    assert [asyncio.run(several()) for _ in range(3)] == [[1, 3]] * 3
    assert len([w for w in warnings(caplog) if "no lifespan" in w]) == 1
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_after_the_loop_was_closed_is_still_an_interrupt() -> None:
    app = service()
    before = signal.getsignal(signal.SIGINT)
    asyncio.run(_end(Exchange(app, "/other")))
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


async def _end(exchange: Exchange) -> None:
    await exchange.end()


def test_the_test_client_works_with_and_without_its_context() -> None:
    app = service(endpoints={"/other": {"capacity": 1}})
    client = TestClient(app)
    assert [client.get("/other").json() for _ in range(3)] == ["other"] * 3
    for _ in range(2):
        with TestClient(app) as client:
            assert [client.get("/other").json() for _ in range(3)] == ["other"] * 3
            served = client.get("/balancer/stats").json()["endpoints"]["/other"]["served"]
            assert served == 3
    assert TestClient(app).get("/other").json() == "other"


# Plain apps


@virtual
@pytest.mark.parametrize("method", ["wrap", "asgi"])
async def test_an_app_that_is_a_function_is_limited_too(method: str) -> None:
    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await asyncio.sleep(1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"plain"})

    balancer = Balancer(endpoints=WORK, probe_on_startup=False)
    app = getattr(balancer, method)(plain)
    assert app is not plain
    async with Lifespan(app):
        exchanges = [Exchange(app).start() for _ in range(2)]
        await settle()
        assert (await stats(app))["/work"]["queued"] == 1
        assert [(await exchange.end()).body for exchange in exchanges] == [b"plain"] * 2


@virtual
async def test_a_fastapi_app_can_be_wrapped_from_outside() -> None:
    inner = FastAPI()

    @inner.get("/work")
    async def work(request: Request) -> str:
        return str(request.app.title)

    app = Balancer(endpoints={"/work": {"capacity": 1}}).asgi(inner)
    async with Lifespan(app):
        assert (await Exchange(app).end()).json() == "FastAPI"
        assert (await stats(app))["/work"]["served"] == 1


# Capacities


class Store(MemoryStorage):
    """One that remembers, as Redis does, from one start to the next."""

    records: dict[str, bytes]
    capacities: dict[str, int | None]

    async def open(self) -> None:
        await super().open()
        self._records = self.records
        for endpoint, known in self.capacities.items():
            if self.slots(endpoint).capacity is None:
                await super().set_capacity(endpoint, known)

    async def set_capacity(self, endpoint: str, capacity: int | None) -> None:
        self.capacities[endpoint] = capacity
        await super().set_capacity(endpoint, capacity)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> type[Store]:
    Store.records, Store.capacities = {}, {}
    monkeypatch.setattr("fastapi_balancer.parts.MemoryStorage", Store)
    return Store


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """What the next probes find, by path, in the place of real probes."""
    found: dict[str, int | None] = {}

    async def capacity_of(
        self: Prober, endpoint: str, settings: EndpointProbeConfig, **options: Any
    ) -> ProbeResult | None:
        number = found.get(endpoint)
        if number is None:
            return None
        result = make_result(endpoint, number)
        Store.records[f"probe:{endpoint}"] = result.to_json()
        return result

    monkeypatch.setattr(Prober, "capacity_of", capacity_of)
    return found


def make_result(endpoint: str, capacity: int) -> ProbeResult:
    return ProbeResult(
        endpoint=endpoint,
        capacity=capacity,
        kind="boundary",
        reason="",
        curve=(),
        p50_ms=1.0,
        p90_ms=1.0,
        p99_ms=1.0,
        throughput=1.0,
        error_rate=0.0,
        requests=1,
        seconds=1.0,
        probed_at="2026-01-01T00:00:00Z",
        worker="w",
        start_id="s",
        thresholds=Thresholds(0.05, 2000),
    )


async def started_with(**settings: Any) -> Any:
    """The capacity of `/work` after a start."""
    endpoint = {"capacity": settings.pop("capacity", None)}
    app = service(endpoints={"/work": endpoint}, **settings)
    async with Lifespan(app):
        return await capacity(app)


@virtual
async def test_a_configured_capacity_wins_over_a_measured_one(
    store: type[Store], probed: dict[str, int | None]
) -> None:
    probed["/work"] = 9
    assert await started_with(capacity=4, default_capacity=2) == 4


@virtual
async def test_a_measured_capacity_wins_over_stored_and_default(
    store: type[Store], probed: dict[str, int | None]
) -> None:
    probed["/work"] = 9
    assert await started_with() == 9
    probed["/work"] = 7
    assert await started_with(default_capacity=2) == 7


@virtual
async def test_a_stored_result_wins_over_the_default(
    store: type[Store], probed: dict[str, int | None]
) -> None:
    probed["/work"] = 9
    assert await started_with() == 9
    assert await started_with(default_capacity=2, probe_on_startup=False) == 9
    probed.clear()  # the next probe comes to nothing
    assert await started_with(default_capacity=2) == 9


@virtual
async def test_a_new_default_wins_over_the_default_of_an_earlier_start(
    store: type[Store], probed: dict[str, int | None]
) -> None:
    assert await started_with(default_capacity=2) == 2
    assert await started_with(default_capacity=5) == 5


@virtual
async def test_a_default_wins_over_a_capacity_that_was_configured_once(
    store: type[Store], probed: dict[str, int | None]
) -> None:
    store.capacities["/work"] = 4
    assert await started_with(default_capacity=5) == 5


@virtual
async def test_without_any_capacity_an_endpoint_is_not_limited_and_that_is_said(
    store: type[Store], probed: dict[str, int | None], caplog: pytest.LogCaptureFixture
) -> None:
    assert await started_with() is None
    assert warnings(caplog) == [
        "/work: no capacity is known: it is NOT limited; set `capacity:` of this endpoint, or "
        "`default_capacity:`"
    ]


@virtual
async def test_a_real_probe_finds_and_enforces_a_capacity() -> None:
    free = asyncio.Semaphore(3)
    app = FastAPI()

    @app.get("/work")
    async def work() -> None:
        if free.locked():
            raise RuntimeError("out of memory")
        async with free:
            await asyncio.sleep(0.1)

    Balancer(endpoints={"/work": {}}).wrap(app)
    async with Lifespan(app):
        assert await capacity(app) == 3
        exchanges = [Exchange(app).start() for _ in range(12)]
        await asyncio.gather(*(exchange.end() for exchange in exchanges))
        assert {exchange.status for exchange in exchanges} == {200}


@virtual
async def test_a_default_holds_where_the_store_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def away(*given: object) -> None:
        raise StorageError("away")

    monkeypatch.setattr(MemoryStorage, "load", away)
    app = service(endpoints={"/work": {}}, probe_on_startup=False, default_capacity=3)
    async with Lifespan(app):
        assert await capacity(app) == 3


@virtual
async def test_nothing_is_logged_per_request(caplog: pytest.LogCaptureFixture) -> None:
    app = service(endpoints={"/work": {"capacity": 1}}, queue_timeout=0)
    async with Lifespan(app):
        await settle()
        caplog.set_level(logging.INFO)
        caplog.clear()
        exchanges = [Exchange(app).start() for _ in range(50)]
        for exchange in exchanges:
            await exchange.end()
        assert [exchange.status for exchange in exchanges] == [200] + [504] * 49
        assert warnings(caplog) == [
            "/work: refused 1 (queue_timeout); capacity 1, 1 active and 0 queued in this worker"
        ]


@virtual
async def test_a_path_with_a_final_newline_reaches_the_endpoint_and_is_limited() -> None:
    app = service(endpoints={"/work": {"capacity": 1}})
    async with Lifespan(app):
        assert (await Exchange(app, "/work\n").end()).status == 200
        assert (await stats(app))["/work"]["served"] == 1
