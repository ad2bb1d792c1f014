"""Publishes this worker's report every second, and reads those of all workers as one snapshot."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from fastapi_balancer.errors import StorageError
from fastapi_balancer.stats.collector import (
    REPORT_VERSION,
    Collector,
    EndpointReport,
    Report,
    WorkerGauges,
)
from fastapi_balancer.stats.snapshot import Snapshot, merge

logger = logging.getLogger(__name__)

PUBLISHED_EVERY = 1.0  # seconds
READ_AGAIN_AFTER = 0.5  # seconds; whoever asks sooner shares the last reading


class ReportStore(Protocol):
    """What is needed of a store (see `Storage`)."""

    async def publish(self, value: bytes) -> None:
        """Put this worker's report beside the others'. Raises `StorageError`."""

    async def reports(self) -> dict[str, bytes]:
        """Return the newest report of each worker. Raises `StorageError`."""

    async def owned(self) -> dict[str, dict[str, int]]:
        """Return the slots that each worker owns, by endpoint. Raises `StorageError`."""


@dataclass(frozen=True, slots=True)
class _Seen:
    raw: bytes
    report: Report


class Snapshots:
    """Publishes this worker's report, always: who looks may be asking another worker.

    `timeout` is the longest that `current` waits for the store, in seconds; `gauges` is called for
    each report; `clock` is wall time.
    """

    def __init__(
        self,
        store: ReportStore,
        collector: Collector,
        gauges: Callable[[], WorkerGauges],
        *,
        timeout: float = 0.25,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._collector = collector
        self._gauges = gauges
        self._timeout = timeout
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._owned: dict[str, dict[str, int]] = {}
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._publishing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to publish, at once and then every second. To be called within the event loop."""
        self._publishing = asyncio.create_task(self._publish_for_ever())
        self._publishing.add_done_callback(_log_failure)

    async def stop(self) -> None:
        """Stop publishing, and tell the others that this worker is gone. Idempotent."""
        publishing, self._publishing = self._publishing, None
        if publishing is None:
            return
        await _cancelled(publishing)
        if self._reading is not None:
            await _cancelled(self._reading)
        gauges = dataclasses.replace(self._gauges(), state="stopped")
        await self._publish(self._report(gauges))

    async def current(self) -> Snapshot:
        """Return the view over all workers, of which this worker's own part is live.

        While the store is away the others' last reports are used, and grow stale.
        """
        await self._refresh()
        now = self._clock()
        own = self._report(self._gauges(), now)
        others = {worker: seen.report for worker, seen in self._seen.items()}
        return merge({own["worker"]: own, **others}, now, self._owned)

    def _report(self, gauges: WorkerGauges, wall: float | None = None) -> Report:
        now = asyncio.get_running_loop().time()
        return self._collector.report(gauges, now, self._clock() if wall is None else wall)

    async def _publish_for_ever(self) -> None:
        while True:
            await self._publish(self._report(self._gauges()))
            await asyncio.sleep(PUBLISHED_EVERY)

    async def _publish(self, report: Report) -> None:
        try:
            await self._store.publish(encode(report))
        except StorageError as error:
            # The store itself says when it goes away and when it is back.
            logger.debug("This worker's report was not published: %s", error)

    async def _refresh(self) -> None:
        """Read the others' reports, one reading for all who ask, unless the last is fresh."""
        now = asyncio.get_running_loop().time()
        if self._reading is None and now - self._read_at >= READ_AGAIN_AFTER:
            self._read_at = now
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._read_is_over)
        if self._reading is not None:
            # Unlike wait_for, this leaves the reading alone when one of those who ask goes away.
            await asyncio.wait({self._reading}, timeout=self._timeout)

    def _read_is_over(self, task: asyncio.Task[None]) -> None:
        self._reading = None
        _log_failure(task)

    async def _read(self) -> None:
        try:
            reports, self._owned = await asyncio.gather(self._store.reports(), self._store.owned())
        except StorageError as error:
            logger.debug("The other workers' reports were not read: %s", error)
            return
        reports.pop(self._collector.worker, None)
        now = self._clock()
        seen = {worker: self._see(worker, raw, now) for worker, raw in reports.items()}
        self._seen = {worker: report for worker, report in seen.items() if report is not None}

    def _see(self, worker: str, raw: bytes, now: float) -> _Seen | None:
        """Note a report, with its time on this worker's clock: the hosts' clocks may differ.

        A report that has changed since it was last seen is new, whatever its own clock says. That
        clock is asked only for a report that is seen for the first time.
        """
        known = self._seen.get(worker)
        if known is not None and known.raw == raw:
            return known
        report = decode(raw)
        if report is None:
            return None
        report["time"] = now if known is not None else min(now, report["time"])
        return _Seen(raw, report)


def encode(report: Report) -> bytes:
    """Return a report as it is published."""
    return json.dumps(report, separators=(",", ":")).encode()


def decode(raw: bytes) -> Report | None:
    """Return a published report, or None for one that another version has written."""
    try:
        report: Any = json.loads(raw)
    except ValueError:
        report = None
    if not _is_understood(report):
        logger.debug("A worker's report is not understood, and left out.")
        return None
    return cast(Report, report)


def _is_understood(report: Any) -> bool:
    if not isinstance(report, dict) or report.get("version") != REPORT_VERSION:
        return False
    if not report.keys() >= Report.__required_keys__:
        return False
    endpoints = report["endpoints"].values()
    return all(part.keys() >= EndpointReport.__required_keys__ for part in endpoints)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("The exchange of statistics failed.", exc_info=task.exception())
