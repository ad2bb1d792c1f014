"""Counts what happens in this worker, and puts it into this worker's report."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from fastapi_balancer.stats.histogram import SLICE, HistogramData, Window

REPORT_VERSION = 1  # reports of another version are not understood, and left out

State = Literal["ready", "draining", "stopped"]


@dataclass(frozen=True, slots=True)
class EndpointGauges:
    """How one endpoint is in this worker now, and how it is configured."""

    capacity: int | None = None  # of its scope; None: not limited
    active: int = 0
    queued: int = 0
    own: int = 0  # slots that this worker owns, in use or not
    oversold: int = 0  # slots taken back while their requests still ran, since its start
    oldest_wait: float = 0.0  # seconds that the first in this worker's queue has waited
    peak_active: int = 0  # most at once in this worker since its start, where somebody counts it
    scope: str = "global"
    queue_timeout: float = 0.0
    queue_size: int | None = None
    probe: Mapping[str, Any] | None = None  # summary of the last probe, JSON-able


@dataclass(frozen=True, slots=True)
class WorkerGauges:
    """How this worker is now. All mappings are JSON-able."""

    endpoints: Mapping[str, EndpointGauges]
    state: State = "ready"
    storage: Mapping[str, Any] = field(default_factory=dict)
    health: Mapping[str, Any] = field(default_factory=dict)


class EndpointReport(TypedDict):
    """One endpoint of one worker."""

    capacity: int | None
    active: int
    queued: int
    own: int
    oversold: int
    oldest_wait: float
    peak_active: int
    scope: str
    queue_timeout: float
    queue_size: int | None
    probe: Mapping[str, Any] | None
    served: int
    errors: int
    refused: dict[str, int]
    left: int
    requests_per_second: float
    served_per_second: float
    queue_wait: HistogramData
    service_time: HistogramData


class Report(TypedDict):
    """What one worker tells the others."""

    version: int
    worker: str
    host: str
    pid: int
    uptime: float
    time: float
    state: State
    service: dict[str, str]
    storage: Mapping[str, Any]
    health: Mapping[str, Any]
    endpoints: dict[str, EndpointReport]


class EndpointStats:
    """The counters of one endpoint in this worker. Admission calls `served`, `refused` and `left`.

    To be used from the event loop's thread only.
    """

    def __init__(self) -> None:
        self._queue_wait = Window()
        self._service_time = Window()
        self._errors = 0
        self._refused: dict[str, int] = {}
        self._left = 0
        self._peak_active = 0
        self._pace = _Pace()

    def served(self, status: int, waited: float, took: float, now: float) -> None:
        """Count a request that had its slot and has ended.

        `waited` is 0.0 if it never queued; `took` is the time it held its slot; both are seconds on
        the clock of `now`.
        """
        if status >= 500:
            self._errors += 1
        self._queue_wait.record(waited, now)
        self._service_time.record(took, now)

    def refused(self, reason: str) -> None:
        """Count a request that was refused."""
        self._refused[reason] = self._refused.get(reason, 0) + 1

    def left(self) -> None:
        """Count a request whose client left the queue."""
        self._left += 1

    def report(self, gauges: EndpointGauges, now: float) -> EndpointReport:
        """Return all counters and gauges as plain values."""
        self._peak_active = max(self._peak_active, gauges.active, gauges.peak_active)
        served = self._service_time.count()
        ended = served + sum(self._refused.values()) + self._left
        ended_per_second, served_per_second = self._pace.rates(now, ended, served)
        return {
            "capacity": gauges.capacity,
            "active": gauges.active,
            "queued": gauges.queued,
            "own": gauges.own,
            "oversold": gauges.oversold,
            "oldest_wait": gauges.oldest_wait,
            "peak_active": self._peak_active,
            "scope": gauges.scope,
            "queue_timeout": gauges.queue_timeout,
            "queue_size": gauges.queue_size,
            "probe": gauges.probe,
            "served": served,
            "errors": self._errors,
            "refused": dict(self._refused),
            "left": self._left,
            "requests_per_second": ended_per_second,
            "served_per_second": served_per_second,
            "queue_wait": self._queue_wait.recent(now).data(),
            "service_time": self._service_time.recent(now).data(),
        }


class _Pace:
    """How fast two totals have grown lately: since a mark that is `SLICE` to twice that old."""

    def __init__(self) -> None:
        self._mark: tuple[float, int, int] | None = None
        self._next: tuple[float, int, int] | None = None

    def rates(self, now: float, first: int, second: int) -> tuple[float, float]:
        """Take the totals as they are now, and return how much each grew per second."""
        if self._mark is None or self._next is None:
            self._mark = self._next = (now, first, second)
        elif now - self._next[0] >= SLICE:
            self._mark, self._next = self._next, (now, first, second)
        since, first_before, second_before = self._mark
        if now <= since:
            return 0.0, 0.0
        return (first - first_before) / (now - since), (second - second_before) / (now - since)


class Collector:
    """The counters of all endpoints of this worker."""

    def __init__(self, worker: str, *, name: str = "", version: str = "") -> None:
        self.worker = worker
        self._service = {"name": name, "version": version}
        self._host = socket.gethostname()
        self._endpoints: dict[str, EndpointStats] = {}
        self._started: float | None = None

    def endpoint(self, path: str) -> EndpointStats:
        """Return the counters of an endpoint: the same object each time."""
        return self._endpoints.setdefault(path, EndpointStats())

    def report(self, gauges: WorkerGauges, now: float, time: float) -> Report:
        """Return this worker's report as plain values for JSON.

        `now` is on the clock of `EndpointStats.served`; `time` is wall time, which only labels.
        """
        if self._started is None:
            self._started = now
        return {
            "version": REPORT_VERSION,
            "worker": self.worker,
            "host": self._host,
            "pid": os.getpid(),
            "uptime": now - self._started,
            "time": time,
            "state": gauges.state,
            "service": self._service,
            "storage": gauges.storage,
            "health": gauges.health,
            "endpoints": {
                path: self.endpoint(path).report(endpoint, now)
                for path, endpoint in gauges.endpoints.items()
            },
        }
