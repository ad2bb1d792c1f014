"""Adds the reports of all workers up to one snapshot, the only source of what is shown (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypedDict

from fastapi_balancer.stats.collector import EndpointReport, Report
from fastapi_balancer.stats.histogram import Histogram, HistogramData

STALE_AFTER = 5.0  # seconds; five reports missed: the worker is gone, or the store is
LISTED_FOR = 60.0  # seconds that a worker without a sign of life is still listed


class Quantiles(TypedDict):
    """Quantiles over all requests of the last minute; None: there were none."""

    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class Rates(TypedDict):
    """Requests per second over the last 5 to 10 seconds."""

    requests_per_second: float  # that ended, in whatever way
    served_per_second: float


class WorkerPart(TypedDict):
    """One worker's share in an endpoint."""

    active_requests: int
    queued: int
    own: int
    peak_active: int
    served: int
    errors: int
    requests_per_second: float


class EndpointSnapshot(TypedDict):
    """One endpoint over all workers. Capacity is the sum over all its scopes."""

    capacity: int | None
    active_requests: int
    available_slots: int | None
    queued: int
    queue_wait: Quantiles
    service_time: Quantiles
    rates: Rates
    served: int
    errors: int
    refused: dict[str, int]
    left: int
    oversold: int
    peak_active: int
    oldest_wait_ms: float
    scope: str
    queue_timeout: float
    queue_size: int | None
    probe: Mapping[str, Any] | None
    workers: dict[str, WorkerPart]


class WorkerSnapshot(TypedDict):
    """One worker. `stale`: its last report is too old to count."""

    host: str
    pid: int
    age_s: float
    uptime_s: float
    state: str
    stale: bool
    healthy: bool
    storage_degraded: bool


class Snapshot(TypedDict):
    """All there is to show."""

    endpoints: dict[str, EndpointSnapshot]
    workers: dict[str, WorkerSnapshot]
    storage: dict[str, Any]
    health: dict[str, Any]
    service: dict[str, str]
    time: str


Owned = Mapping[str, Mapping[str, int]]  # endpoint -> worker -> slots, at one moment


def merge(reports: Mapping[str, Report], now: float, owned: Owned | None = None) -> Snapshot:
    """Add up the newest report of each worker.

    The reports are of different moments, so active requests may add up to more than ever ran at
    once. Where that is more than the capacity, each worker counts for at most what it owns.

    `Report.time` and `now` are on the reader's clock. Gauges, rates and quantiles come from live
    workers; counters from every report that is still there, so that a worker's death takes nothing
    back. Where one view is wanted (settings, storage), the freshest report wins, or the first of
    equals.
    Raises `ValueError` when there is no report at all.
    """
    ordered = sorted(reports.values(), key=lambda report: -report["time"])
    if not ordered:
        raise ValueError("A snapshot needs at least one report.")
    live = [report for report in ordered if _is_live(report, now)]
    seen = [report for report in ordered if _is_listed(report, now)]
    freshest = (live or ordered)[0]
    paths = sorted({path for report in live for path in report["endpoints"]})
    return {
        "endpoints": {path: _endpoint(path, live, ordered, owned or {}) for path in paths},
        "workers": {report["worker"]: _worker(report, now) for report in seen},
        "storage": _storage(freshest, live),
        "health": _health(freshest, live),
        "service": dict(freshest["service"]),
        "time": iso(now),
    }


def iso(seconds: float) -> str:
    """Return a wall time as ISO 8601 text in UTC, with milliseconds."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _is_live(report: Report, now: float) -> bool:
    return now - report["time"] <= STALE_AFTER and report["state"] != "stopped"


def _is_listed(report: Report, now: float) -> bool:
    return now - report["time"] <= LISTED_FOR and report["state"] != "stopped"


def _endpoint(
    path: str, live: Sequence[Report], known: Sequence[Report], owned: Owned
) -> EndpointSnapshot:
    parts = {r["worker"]: r["endpoints"][path] for r in live if path in r["endpoints"]}
    counted = [r["endpoints"][path] for r in known if path in r["endpoints"]]
    newest = next(iter(parts.values()))
    capacity = _capacity(path, newest["scope"], live)
    actives = _actives(parts, capacity, owned.get(path))
    active = sum(actives.values())
    probes = (part["probe"] for part in parts.values())
    return {
        "capacity": capacity,
        "active_requests": active,
        "available_slots": None if capacity is None else max(0, capacity - active),
        "queued": sum(part["queued"] for part in parts.values()),
        "queue_wait": _quantiles([part["queue_wait"] for part in parts.values()]),
        "service_time": _quantiles([part["service_time"] for part in parts.values()]),
        "rates": _rates(list(parts.values())),
        "served": sum(part["served"] for part in counted),
        "errors": sum(part["errors"] for part in counted),
        "refused": _refused(counted),
        "left": sum(part["left"] for part in counted),
        "oversold": sum(part["oversold"] for part in counted),
        "peak_active": _peak(list(parts.values()), active, capacity),
        "oldest_wait_ms": _ms(max(part["oldest_wait"] for part in parts.values())),
        "scope": newest["scope"],
        "queue_timeout": newest["queue_timeout"],
        "queue_size": newest["queue_size"],
        "probe": next((probe for probe in probes if probe is not None), None),
        "workers": {worker: _worker_part(part, actives[worker]) for worker, part in parts.items()},
    }


def _actives(
    parts: Mapping[str, EndpointReport], capacity: int | None, owned: Mapping[str, int] | None
) -> dict[str, int]:
    """Active requests of each worker, put right with what each owns if they cannot be true."""
    actives = {worker: part["active"] for worker, part in parts.items()}
    if capacity is None or owned is None or sum(actives.values()) <= capacity:
        return actives
    return {worker: min(active, owned.get(worker, 0)) for worker, active in actives.items()}


def _capacity(path: str, scope: str, live: Sequence[Report]) -> int | None:
    """Sum over the scopes: one for all, one for each host, or one for each worker."""
    by_scope: dict[str, int | None] = {}
    for report in live:
        if path in report["endpoints"]:
            name = {"host": report["host"], "worker": report["worker"]}.get(scope, "")
            by_scope.setdefault(name, report["endpoints"][path]["capacity"])
    total = 0
    for capacity in by_scope.values():
        if capacity is None:
            return None
        total += capacity
    return total


def _peak(parts: Sequence[EndpointReport], active: int, capacity: int | None) -> int:
    """The most at once over all workers, at most.

    The workers' peaks need not have met, so their sum is a bound; the capacity is another one.
    """
    peaks = sum(part["peak_active"] for part in parts)
    return max(active, peaks if capacity is None else min(peaks, capacity))


def _refused(parts: Sequence[EndpointReport]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for part in parts:
        for reason, count in part["refused"].items():
            totals[reason] = totals.get(reason, 0) + count
    return totals


def _rates(parts: Sequence[EndpointReport]) -> Rates:
    return {
        "requests_per_second": round(sum(part["requests_per_second"] for part in parts), 3),
        "served_per_second": round(sum(part["served_per_second"] for part in parts), 3),
    }


def _quantiles(parts: Sequence[HistogramData]) -> Quantiles:
    p50, p95, p99 = Histogram.from_data(*parts).quantiles((0.5, 0.95, 0.99))
    return {"p50_ms": _ms_or_none(p50), "p95_ms": _ms_or_none(p95), "p99_ms": _ms_or_none(p99)}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _ms_or_none(seconds: float | None) -> float | None:
    return None if seconds is None else _ms(seconds)


def _worker_part(part: EndpointReport, active: int) -> WorkerPart:
    return {
        "active_requests": active,
        "queued": part["queued"],
        "own": part["own"],
        "peak_active": part["peak_active"],
        "served": part["served"],
        "errors": part["errors"],
        "requests_per_second": round(part["requests_per_second"], 3),
    }


def _worker(report: Report, now: float) -> WorkerSnapshot:
    return {
        "host": report["host"],
        "pid": report["pid"],
        "age_s": round(now - report["time"], 3),
        "uptime_s": round(report["uptime"], 3),
        "state": report["state"],
        "stale": not _is_live(report, now),
        "healthy": _is_healthy(report),
        "storage_degraded": bool(report["storage"].get("degraded", False)),
    }


def _is_healthy(report: Report) -> bool:
    return bool(report["health"].get("healthy", True))


def _storage(freshest: Report, live: Sequence[Report]) -> dict[str, Any]:
    degraded = sum(bool(report["storage"].get("degraded", False)) for report in live)
    return {**freshest["storage"], "degraded_workers": degraded}


def _health(freshest: Report, live: Sequence[Report]) -> dict[str, Any]:
    """The health of the first worker that is not healthy, else that of the freshest."""
    sick = [report for report in live if not _is_healthy(report)]
    shown = sick[0] if sick else freshest
    return {"healthy": True, **shown["health"], "unhealthy_workers": len(sick)}
