"""The capacity of an endpoint, measured once by one worker and shared with all of them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from starlette.types import ASGIApp

from fastapi_balancer.errors import ProbeError, StorageError
from fastapi_balancer.models import EndpointProbeConfig, ProbeConfig
from fastapi_balancer.prober.asgi import AsgiSender
from fastapi_balancer.prober.load import CANCEL_GRACE
from fastapi_balancer.prober.measure import Thresholds
from fastapi_balancer.prober.probe import Progress, Prospect, request_timeout, run_probe
from fastapi_balancer.prober.request import build_request
from fastapi_balancer.prober.result import ProbeResult

logger = logging.getLogger(__name__)

LOCK = "probe"  # one for all endpoints: two probes at once would measure each other
LOCK_TTL = 15.0  # longer than a handler under probe may block the event loop, and the renewal
TOGETHER = 5.0  # seconds within which the workers of one start begin
POLL = 0.2  # seconds between two looks at what the worker with the lock has found


class Records(Protocol):
    """The part of `fastapi_balancer.storage.base.Storage` that a prober needs."""

    @property
    def worker(self) -> str: ...
    async def load(self, key: str) -> bytes | None: ...
    async def lock(self, name: str, ttl: float) -> int | None: ...
    async def renew(self, name: str, fence: int, ttl: float) -> bool: ...
    async def unlock(self, name: str, fence: int) -> None: ...
    async def save_fenced(self, key: str, value: bytes, name: str, fence: int) -> bool: ...


class Prober:
    """Measures endpoints of an app, together with the other workers that share its storage."""

    def __init__(
        self,
        app: ASGIApp,
        storage: Records,
        *,
        probe: ProbeConfig,
        error_threshold: float,
        latency_threshold_ms: float,
        state: Mapping[str, Any] | None = None,
        root_path: str = "",
        progress: Progress | None = None,
    ) -> None:
        self.app = app
        self.storage = storage
        self.budget = probe
        self.thresholds = Thresholds(error_threshold, latency_threshold_ms)
        self.state = state if state is not None else {}
        self.root_path = root_path
        self.progress = progress

    async def probe(self, endpoint: str, settings: EndpointProbeConfig) -> ProbeResult:
        """Search the capacity of one endpoint here and now, within the budget.

        Raises `ProbeError` when the endpoint does not answer the probe properly.
        """
        request = build_request(endpoint, settings)
        timeout = request_timeout(self.thresholds)
        sender = AsgiSender(self.app, request, timeout, self.state, self.root_path)
        prospect = Prospect(endpoint, request, self.budget, self.thresholds, self.storage.worker)
        return await run_probe(sender, prospect, self.progress)

    async def capacity_of(
        self, endpoint: str, settings: EndpointProbeConfig, *, force: bool, start_id: str
    ) -> ProbeResult | None:
        """Agree with the other workers on one result; None, with a warning, when there is none.

        A stored result is used again; with `force`, only one of this same start of the service. A
        result that is returned has a capacity. Bounded by about three times the budget. When
        cancelled, it takes back what is in flight and gives back the lock before it ends.
        """
        try:
            async with asyncio.timeout(3 * self.budget.max_seconds + 60):
                return await self._agree(endpoint, settings, force, start_id)
        except (ProbeError, StorageError) as error:
            _warn(endpoint, str(error))
        except TimeoutError:
            _warn(endpoint, "other workers were measuring for too long")
        except Exception as error:  # noqa: BLE001 - whatever happened, the service must start
            _warn(endpoint, repr(error), exc_info=True)
        return None

    async def stored(self, endpoint: str) -> ProbeResult | None:
        """The stored result of an endpoint, from whichever start. Raises `StorageError`."""
        record = await self.storage.load(_result_key(endpoint))
        if record is None:
            return None
        try:
            return ProbeResult.from_json(record)
        except ValueError as error:
            logger.warning("probe %s: the stored result is not readable: %s", endpoint, error)
            return None

    async def _agree(
        self, endpoint: str, settings: EndpointProbeConfig, force: bool, start_id: str
    ) -> ProbeResult:
        began = time.time()
        while True:
            known = await self._known(endpoint, force, start_id, began)
            if known is not None:
                return known
            fence = await self.storage.lock(LOCK, LOCK_TTL)
            if fence is None:
                await asyncio.sleep(POLL)
                continue
            try:
                # another worker may have finished between our look and our lock
                known = await self._known(endpoint, force, start_id, began)
                found = known or await self._probe_locked(endpoint, settings, fence, start_id)
            finally:
                await self._unlock(fence)
            if found is not None:
                return found

    async def _known(
        self, endpoint: str, force: bool, start_id: str, began: float
    ) -> ProbeResult | None:
        """A stored result that may be used.

        Raises `ProbeError` if a worker of this start has failed since this one `began` to ask. An
        earlier failure says nothing: a reload keeps the supervisor, and may have mended the cause.
        """
        result = await self.stored(endpoint)
        if result is not None and (not force or result.start_id == start_id):
            self._log_reuse(result)
            return result
        record = await self.storage.load(_failure_key(endpoint))
        failure = json.loads(record) if record else {}
        if failure.get("start_id") == start_id and failure.get("at", 0) > began - TOGETHER:
            raise ProbeError(f"{failure['reason']} (found by worker {failure['worker']})")
        return None

    async def _probe_locked(
        self, endpoint: str, settings: EndpointProbeConfig, fence: int, start_id: str
    ) -> ProbeResult | None:
        """Probe for as long as the lock is ours; None when it was lost."""
        probing = asyncio.create_task(self._probe_and_save(endpoint, settings, fence, start_id))
        renewing = asyncio.create_task(self._renew(fence))
        try:
            await asyncio.wait({probing, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if probing.done():
                return probing.result()
            logger.warning("probe %s: aborted, the lock was lost to another worker", endpoint)
            return None
        finally:
            probing.cancel()
            renewing.cancel()
            await asyncio.wait({probing, renewing}, timeout=2 * CANCEL_GRACE)

    async def _probe_and_save(
        self, endpoint: str, settings: EndpointProbeConfig, fence: int, start_id: str
    ) -> ProbeResult | None:
        try:
            result = replace(await self.probe(endpoint, settings), start_id=start_id)
            if result.capacity is None:
                raise ProbeError(f"{result.reason}.")
        except ProbeError as error:
            # told to the other workers, or each of them would find out for itself, one by one
            failure = {
                "start_id": start_id,
                "at": time.time(),
                "reason": str(error),
                "worker": self.storage.worker,
            }
            record = json.dumps(failure).encode()
            await self.storage.save_fenced(_failure_key(endpoint), record, LOCK, fence)
            raise
        return result if await self._save(result, fence) else None

    async def _save(self, result: ProbeResult, fence: int) -> bool:
        """Save a result that took long to find, for as long as the lock may still be ours.

        False: the lock was lost, and with it the right to say what the capacity is.
        """
        for _ in range(round(LOCK_TTL / POLL)):
            try:
                key = _result_key(result.endpoint)
                return await self.storage.save_fenced(key, result.to_json(), LOCK, fence)
            except StorageError as error:
                logger.debug("the result of the probe was not saved: %s", error)
                await asyncio.sleep(POLL)
        logger.warning("probe %s: the result could not be saved", result.endpoint)
        return True  # it holds in this worker

    async def _renew(self, fence: int) -> None:
        """Keep the lock; return when it is lost."""
        loop = asyncio.get_running_loop()
        expires = loop.time() + LOCK_TTL
        while loop.time() < expires:
            await asyncio.sleep(LOCK_TTL / 3)
            try:
                asked = loop.time()
                if not await self.storage.renew(LOCK, fence, LOCK_TTL):
                    return
                expires = asked + LOCK_TTL
            except StorageError as error:
                logger.debug("the lock of the probe was not renewed: %s", error)

    async def _unlock(self, fence: int) -> None:
        try:
            await self.storage.unlock(LOCK, fence)
        except StorageError as error:
            logger.debug("the lock of the probe is left to expire: %s", error)

    def _log_reuse(self, result: ProbeResult) -> None:
        is_current = result.thresholds == self.thresholds
        logger.info(
            "probe %s: capacity %s, measured %s by worker %s%s",
            result.endpoint,
            result.capacity,
            result.probed_at,
            result.worker,
            "" if is_current else " for other thresholds; `force_reprobe: true` measures anew",
        )


def _result_key(endpoint: str) -> str:
    return f"probe:{endpoint}"


def _failure_key(endpoint: str) -> str:
    return f"probe-failure:{endpoint}"


def _warn(endpoint: str, reason: str, exc_info: bool = False) -> None:
    logger.warning(
        "probe %s: %s The service starts with the stored or the default capacity.",
        endpoint,
        reason if reason.endswith((".", ")")) else f"{reason}.",
        exc_info=exc_info,
    )
