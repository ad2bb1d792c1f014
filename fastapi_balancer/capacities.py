"""The capacity of each endpoint at the start: configured, measured now, stored, or the default."""

from __future__ import annotations

import asyncio
import logging

from fastapi_balancer.config import BalancerConfig
from fastapi_balancer.errors import StorageError
from fastapi_balancer.models import EndpointProbeConfig
from fastapi_balancer.prober import Prober, ProbeResult, start_id
from fastapi_balancer.storage import Storage

logger = logging.getLogger(__name__)


class Capacities:
    """Finds them, one endpoint after the other, and has the storage enforce them."""

    def __init__(self, config: BalancerConfig, storage: Storage, prober: Prober) -> None:
        self.results: dict[str, ProbeResult] = {}
        self._config = config
        self._storage = storage
        self._prober = prober
        self._probing: asyncio.Task[ProbeResult | None] | None = None
        self._aborted = False

    async def find(self, *, probe: bool) -> None:
        """Find the capacity of every endpoint. With `probe`, those not known are measured."""
        for path, settings in self._config.endpoints.items():
            if settings.capacity is not None:
                logger.info("%s: capacity %d, as configured", path, settings.capacity)
                continue
            if probe and not self._aborted:
                await self._probe(path, settings)
            await self._enforce(path)

    def abort(self) -> None:
        """Measure no further: the service is told to end."""
        self._aborted = True
        if self._probing is not None:
            self._probing.cancel()

    async def _probe(self, path: str, settings: EndpointProbeConfig) -> None:
        force = self._config.force_reprobe
        self._probing = asyncio.create_task(
            self._prober.capacity_of(path, settings, force=force, start_id=start_id())
        )
        try:
            await asyncio.wait({self._probing})
        finally:
            self._probing.cancel()
        probing, self._probing = self._probing, None
        if not probing.cancelled() and (result := probing.result()) is not None:
            self.results[path] = result

    async def _enforce(self, path: str) -> None:
        """Enforce what was measured now, else what was stored, else `default_capacity`."""
        try:
            capacity = await self._known(path)
            if capacity is not None:
                await self._storage.set_capacity(path, capacity)
        except StorageError as exc:
            logger.warning("%s: its capacity could not be agreed on: %s", path, exc)
        if self._storage.slots(path).capacity is None:
            logger.warning(
                "%s: no capacity is known: it is NOT limited; set `capacity:` of this endpoint, or "
                "`default_capacity:`",
                path,
            )
        else:
            logger.info("%s: capacity %d", path, self._storage.slots(path).capacity)

    async def _known(self, path: str) -> int | None:
        result = self.results.get(path)
        if result is None:
            try:
                result = await self._prober.stored(path)
            except StorageError as exc:
                logger.warning("%s: whether it was measured before is not known: %s", path, exc)
        if result is None or result.capacity is None:
            return self._config.default_capacity
        self.results[path] = result
        return result.capacity
