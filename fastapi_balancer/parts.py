"""Everything that runs between a start and a stop: built from the configuration in one place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_balancer.admin import AdminRoutes, BasicAuth, Readiness
from fastapi_balancer.admission import Admission
from fastapi_balancer.capacities import Capacities
from fastapi_balancer.config import BalancerConfig
from fastapi_balancer.errors import StorageError
from fastapi_balancer.health import HealthChecker
from fastapi_balancer.limiter import Limiter
from fastapi_balancer.middleware import BalancerMiddleware, Routes
from fastapi_balancer.models import EndpointProbeConfig, StorageType
from fastapi_balancer.prober import Prober, ProbeResult
from fastapi_balancer.processes import siblings
from fastapi_balancer.signals import EndingSignals
from fastapi_balancer.stats import Collector, EndpointGauges, Snapshots, WorkerGauges
from fastapi_balancer.storage import SlotsConfig, Storage
from fastapi_balancer.storage.memory import MemoryStorage
from fastapi_balancer.storage.redis import RedisStorage

if TYPE_CHECKING:
    from fastapi_balancer.storage.embedded import EmbeddedServer

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Parts:
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
        self._capacities: Capacities | None = None
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
        self._capacities = Capacities(self._config, storage, self._prober(storage))
        if self._draining:  # told to end before there was anything to drain
            self.drain()
        await self._capacities.find(probe=probe)
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
        if not self._draining and self._serving:
            slots = [limiter.slots for limiter in self._limiters.values()]
            logger.info(
                "ending: %d requests go on, %d that wait are sent away",
                sum(each.active for each in slots),
                sum(each.queued for each in slots),
            )
        self._draining = True
        for limiter in self._limiters.values():
            limiter.drain()
        if self._capacities is not None:
            self._capacities.abort()

    # ------------------------------------------------------------------ building

    async def _open_storage(self) -> Storage:
        settings = self._config.storage
        endpoints = {path: self._slots_config(one) for path, one in self._config.endpoints.items()}
        storage: Storage
        if settings.type is StorageType.MEMORY:
            _warn_of_several_workers()
            storage = MemoryStorage(endpoints)
        else:
            _warn_of_a_common_name(self._config, self._name)
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
            name=path,
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

    def _prober(self, storage: Storage) -> Prober:
        return Prober(
            self._app,
            storage,
            probe=self._config.probe,
            error_threshold=self._config.error_threshold,
            latency_threshold_ms=self._config.latency_threshold_ms,
            state=self._state,
            root_path=self._root_path,
        )

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
        result = self._capacities.results.get(path) if self._capacities is not None else None
        return EndpointGauges(
            capacity=slots.capacity,
            active=slots.active,
            queued=slots.queued,
            own=slots.owned,
            oversold=slots.oversold,
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


def _warn_of_a_common_name(config: BalancerConfig, name: str) -> None:
    if config.storage.type is StorageType.REDIS and config.name is None:
        logger.warning(
            "this service is called %r, after its app: any other of that name on the same store "
            "shares its slots. Set `name:`.",
            name,
        )


def _warn_of_several_workers() -> None:
    if siblings() > 1:
        logger.warning(
            "storage.type is memory, and this looks like one of several workers: each of them has "
            "limits of its own, so the service takes several times the capacity. Use "
            "storage.type: embedded (one host) or redis."
        )
