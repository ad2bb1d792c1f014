"""The one place where everything is built: from the configuration to all parts, and their life."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_balancer.admin import AdminRoutes, BasicAuth, Readiness
from fastapi_balancer.admission import Admission
from fastapi_balancer.config import BalancerConfig, load_config
from fastapi_balancer.errors import ConfigError, StorageError
from fastapi_balancer.health import HealthChecker
from fastapi_balancer.limiter import Limiter
from fastapi_balancer.middleware import BalancerMiddleware, Routes
from fastapi_balancer.models import EndpointProbeConfig, StorageType
from fastapi_balancer.prober import Prober, ProbeResult, start_id
from fastapi_balancer.processes import siblings
from fastapi_balancer.signals import EndingSignals
from fastapi_balancer.stats import Collector, EndpointGauges, Snapshots, WorkerGauges
from fastapi_balancer.storage import SlotsConfig, Storage
from fastapi_balancer.storage.memory import MemoryStorage
from fastapi_balancer.storage.redis import RedisStorage

if TYPE_CHECKING:
    from fastapi_balancer.storage.embedded import EmbeddedServer

logger = logging.getLogger(__name__)

App = TypeVar("App", bound=ASGIApp)
T = TypeVar("T")


class Balancer:
    """Admission control for an ASGI app: `Balancer(config="balancer.yml").wrap(app)`.

    `config` is the path of a YAML file or a `BalancerConfig`; or give the fields of a
    `BalancerConfig` as keywords. Raises `ConfigError`, which says what is wrong and where.
    """

    def __init__(self, config: str | Path | BalancerConfig | None = None, **keywords: Any) -> None:
        self.config = load_config(config, **keywords)
        self._app: ASGIApp | None = None
        self._parts: _Parts | None = None
        self._starting_late: asyncio.Task[None] | None = None
        self._has_warned = False

    def wrap(self, app: App) -> App:
        """Limit the app's endpoints. Returns the app itself; it needs no change of its routes.

        Middleware that is added to the app later stands before the balancer: so add CORS later,
        and browsers can read a refusal. An app that takes no middleware is wrapped by `asgi`; use
        what is returned then. Raises `ConfigError` when this balancer has an app already.
        """
        if not hasattr(app, "add_middleware"):
            return self.asgi(app)  # type: ignore[return-value]
        self._claim(app)
        app.add_middleware(BalancerMiddleware, lifecycle=self)
        return app

    def asgi(self, app: ASGIApp) -> ASGIApp:
        """Return any ASGI app with its endpoints limited. Raises `ConfigError` as `wrap` does."""
        self._claim(app)
        return BalancerMiddleware(app, lifecycle=self)

    def _claim(self, app: ASGIApp) -> None:
        if self._app is not None:
            raise ConfigError("this Balancer has wrapped an app already; make one Balancer per app")
        self._app = app

    # ------------------------------------------------------------------ what the middleware calls

    @property
    def ready(self) -> bool:
        """Whether requests are limited already."""
        return self._parts is not None and self._parts.keeps_running

    async def start(self, middleware: BalancerMiddleware, scope: Scope) -> None:
        """Start with the lifespan: open the store, find the capacities, begin to serve."""
        if self._parts is not None and self._parts.loop is asyncio.get_running_loop():
            await self._parts.stop()
        parts = self._make_parts(middleware, scope)
        await self._started(parts, probe=self.config.probe_on_startup)
        parts.keeps_running = True

    async def start_late(self, middleware: BalancerMiddleware, scope: Scope) -> None:
        """Start with a request: the app is mounted in another, or its server has no lifespan.

        Nothing is measured then, for the request would have to wait for it. After a `stop` nothing
        is started again in the same event loop: what still comes is refused.
        """
        loop = asyncio.get_running_loop()
        if self._parts is None or self._parts.loop is not loop:
            self._warn_of_no_lifespan()
            parts = self._make_parts(middleware, scope)
            self._starting_late = loop.create_task(self._started(parts, probe=False))
        if self._starting_late is not None:
            starting = self._starting_late
            await asyncio.shield(starting)  # many wait for it: none of them may cancel it
            if self._starting_late is starting:
                self._starting_late = None

    async def stop(self) -> None:
        """Send waiting requests away, give all slots back, close the store. Idempotent."""
        if self._parts is not None:
            await self._parts.stop()

    def _make_parts(self, middleware: BalancerMiddleware, scope: Scope) -> _Parts:
        if self._parts is not None:
            self._parts.let_go()
        self._starting_late = None
        self._parts = _Parts(self.config, self._name(), middleware, scope)
        return self._parts

    async def _started(self, parts: _Parts, *, probe: bool) -> None:
        """Start, or leave nothing behind: a half-started balancer would limit nothing."""
        try:
            await parts.start(probe=probe)
        except BaseException:
            if self._parts is parts:
                self._parts = None
            await parts.stop()
            raise

    def _warn_of_no_lifespan(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "no lifespan has reached the balancer (is the app mounted in another one?): "
                "nothing is measured; set a capacity for each endpoint, or wrap the outermost app"
            )

    def _name(self) -> str:
        return self.config.name or str(getattr(self._app, "title", "") or "default")


class _Parts:
    """Everything that runs between a start and a stop, in one event loop."""

    def __init__(
        self, config: BalancerConfig, name: str, middleware: BalancerMiddleware, scope: Scope
    ) -> None:
        self.keeps_running = False
        self.loop = asyncio.get_running_loop()
        self._config = config
        self._name = name
        self._middleware = middleware
        self._app = _routed(middleware.app, scope.get("app"))
        self._state: Mapping[str, Any] = scope.get("state") or {}
        self._root_path: str = scope.get("root_path", "")
        self._serving = False
        self._draining = False
        self._server: EmbeddedServer | None = None
        self._storage: Storage | None = None
        self._probing: asyncio.Task[ProbeResult | None] | None = None
        self._results: dict[str, ProbeResult] = {}
        self._limiters: dict[str, Limiter] = {}
        self._signals = EndingSignals(self._drain_soon)
        self._health = HealthChecker(
            self._app,
            config.health_endpoint,
            config.health_check_interval,
            state=self._state,
        )

    async def start(self, *, probe: bool) -> None:
        self._signals.install()
        storage = await self._open_storage()
        collector = Collector(storage.worker, name=self._name, version=version("fastapi-balancer"))
        self._snapshots = Snapshots(
            storage, collector, self._gauges, timeout=self._config.storage.timeout
        )
        admissions = {
            path: self._admission(path, settings, storage, collector)
            for path, settings in self._config.endpoints.items()
        }
        await self._find_capacities(storage, probe)
        self._health.start()
        self._snapshots.start()
        self._middleware.admin = AdminRoutes(
            self._snapshots.current, self._readiness, _auth(self._config)
        )
        self._middleware.routes = Routes(admissions)
        self._serving = True

    async def stop(self) -> None:
        """Stop in reverse, however far the start has come. Idempotent."""
        self.keeps_running = False
        self.drain()
        self._signals.restore()
        await self._health.stop()
        if self._serving:
            await self._snapshots.stop()
        if self._storage is not None:
            await self._storage.close()
        if self._server is not None:
            await self._server.close()

    def let_go(self) -> None:
        """Leave what is shared with other event loops; this one may be closed already."""
        self._signals.restore()

    def _drain_soon(self) -> None:
        if not self.loop.is_closed():  # a loop that was given up without a stop
            self.loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Send all waiting requests away and begin no new ones. What runs goes on."""
        self._draining = True
        for limiter in self._limiters.values():
            limiter.drain()
        if self._probing is not None:
            self._probing.cancel()

    # ------------------------------------------------------------------ building

    async def _open_storage(self) -> Storage:
        settings = self._config.storage
        endpoints = {path: self._slots_config(one) for path, one in self._config.endpoints.items()}
        storage: Storage
        if settings.type is StorageType.MEMORY:
            _warn_of_several_workers()
            storage = MemoryStorage(endpoints)
        else:
            storage = RedisStorage(
                await self._url(),
                endpoints,
                service=self._name,
                timeout=settings.timeout,
                lease=settings.lease,
                on_storage_error=self._config.on_storage_error,
                kind=settings.type,
                revive=self._server.ensure if self._server is not None else None,
            )
        self._storage = storage
        await storage.open()
        return storage

    async def _url(self) -> str:
        """The address of the server, which is started first if it is the embedded one."""
        if self._config.storage.type is StorageType.EMBEDDED:
            from fastapi_balancer.storage.embedded import EmbeddedServer  # not on Windows

            self._server = EmbeddedServer(self._name)
            try:
                await self._server.start()
            except StorageError as exc:
                logger.warning("the embedded server does not start: %s", exc)
            return self._server.url
        url = self._config.storage.url
        assert url is not None  # the configuration demands it
        return url.get_secret_value()

    def _slots_config(self, settings: EndpointProbeConfig) -> SlotsConfig:
        return SlotsConfig(
            capacity=settings.capacity,
            queue_size=_first(settings.queue_size, self._config.queue_size),
            scope=settings.scope or self._config.scope,
        )

    def _admission(
        self, path: str, settings: EndpointProbeConfig, storage: Storage, collector: Collector
    ) -> Admission:
        shared = self._config.storage.type is not StorageType.MEMORY
        limiter = self._limiters[path] = Limiter(
            storage.slots(path),
            queue_timeout=_first(settings.queue_timeout, self._config.queue_timeout),
            ask_time=self._config.storage.timeout if shared else 0.0,
        )
        return Admission(
            self._middleware.app,
            path,
            limiter,
            collector.endpoint(path),
            self._health,
            methods=frozenset(settings.methods) if settings.methods is not None else None,
            body_timeout=self._config.body_timeout,
        )

    # ------------------------------------------------------------------ capacities

    async def _find_capacities(self, storage: Storage, probe: bool) -> None:
        prober = Prober(
            self._app,
            storage,
            probe=self._config.probe,
            error_threshold=self._config.error_threshold,
            latency_threshold_ms=self._config.latency_threshold_ms,
            state=self._state,
            root_path=self._root_path,
        )
        for path, settings in self._config.endpoints.items():
            if settings.capacity is not None:
                logger.info("%s: capacity %d, as configured", path, settings.capacity)
                continue
            if probe and not self._draining:
                await self._probe(prober, path, settings)
            await self._apply(storage, prober, path)

    async def _probe(self, prober: Prober, path: str, settings: EndpointProbeConfig) -> None:
        self._probing = asyncio.create_task(
            prober.capacity_of(
                path, settings, force=self._config.force_reprobe, start_id=start_id()
            )
        )
        await asyncio.wait({self._probing})  # cancelled when the service is told to end
        probing, self._probing = self._probing, None
        if not probing.cancelled() and (result := probing.result()) is not None:
            self._results[path] = result

    async def _apply(self, storage: Storage, prober: Prober, path: str) -> None:
        """Enforce what was measured now, else what was stored, else `default_capacity`."""
        try:
            if path not in self._results and (stored := await prober.stored(path)) is not None:
                self._results[path] = stored
            result = self._results.get(path)
            capacity = None if result is None else result.capacity
            if capacity is None:
                capacity = self._config.default_capacity
            if capacity is not None:
                await storage.set_capacity(path, capacity)
        except StorageError as exc:
            logger.warning("%s: its capacity could not be agreed on: %s", path, exc)
        if storage.slots(path).capacity is None:
            logger.warning("%s: no capacity is known: it is not limited", path)
        else:
            logger.info("%s: capacity %d", path, storage.slots(path).capacity)

    # ------------------------------------------------------------------ how things are

    def _readiness(self) -> Readiness:
        assert self._storage is not None
        return Readiness(
            draining=self._draining,
            unhealthy=not self._health.healthy,
            storage_degraded=self._storage.status().degraded,
        )

    def _gauges(self) -> WorkerGauges:
        assert self._storage is not None
        return WorkerGauges(
            endpoints={path: self._endpoint_gauges(path) for path in self._limiters},
            state="draining" if self._draining else "ready",
            storage=asdict(self._storage.status()),
            health=asdict(self._health.status()),
        )

    def _endpoint_gauges(self, path: str) -> EndpointGauges:
        settings, limiter = self._config.endpoints[path], self._limiters[path]
        slots, config = limiter.slots, self._slots_config(settings)
        result = self._results.get(path)
        return EndpointGauges(
            capacity=slots.capacity,
            active=slots.active,
            queued=slots.queued,
            own=slots.owned,
            oldest_wait=limiter.oldest_wait,
            peak_active=limiter.peak_active,
            scope=config.scope,
            queue_timeout=limiter.queue_timeout,
            queue_size=config.queue_size,
            probe=None if result is None else _summary(result),
        )


def _routed(app: ASGIApp, outermost: object) -> ASGIApp:
    """The app as requests reach it: handlers ask for `request.app`, which is set further out."""
    if outermost is None:
        return app

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "app": outermost}, receive, send)

    return call


def _summary(result: ProbeResult) -> dict[str, Any]:
    """The result of a probe without its curve."""
    fields = asdict(result)
    del fields["curve"]
    return fields


def _auth(config: BalancerConfig) -> BasicAuth | None:
    if config.ui.username is None or config.ui.password is None:
        return None
    return BasicAuth(config.ui.username, config.ui.password.get_secret_value())


def _first(value: T | None, default: T) -> T:
    return default if value is None else value


def _warn_of_several_workers() -> None:
    if siblings() > 1:
        logger.warning(
            "storage.type is memory, and this looks like one of several workers: each of them has "
            "limits of its own, so the service takes several times the capacity. Use "
            "storage.type: embedded (one host) or redis."
        )
