from __future__ import annotations

import json
from typing import Any

import pytest

from fastapi_balancer.stats.collector import (
    Collector,
    EndpointGauges,
    EndpointStats,
    Report,
    State,
    WorkerGauges,
)
from fastapi_balancer.stats.snapshot import iso, merge


def worker(
    name: str,
    gauges: EndpointGauges | None = None,
    *,
    stats: EndpointStats | None = None,
    time: float = 1000.0,
    state: State = "ready",
    host: str = "h1",
    **parts: dict[str, Any],
) -> Report:
    """A report of one worker with one endpoint, /a, made at a time."""
    collector = Collector(name)
    endpoint = (stats or EndpointStats()).report(gauges or EndpointGauges(), 30.0)
    report = collector.report(WorkerGauges({}, state, **parts), now=30.0, time=time)
    report["endpoints"]["/a"] = endpoint
    report["host"] = host
    return report


def merged(*reports: Report, now: float = 1000.0) -> Any:
    return merge({report["worker"]: report for report in reports}, now)


def endpoint(*reports: Report, now: float = 1000.0) -> Any:
    return merged(*reports, now=now)["endpoints"]["/a"]


def served(*took: float, waited: float = 0.0, status: int = 200) -> EndpointStats:
    stats = EndpointStats()
    for seconds in took:
        stats.served(status, waited, seconds, now=30.0)
    return stats


def test_the_first_three_keys_are_those_of_the_first_releases() -> None:
    part = endpoint(worker("w1", EndpointGauges(capacity=50, active=12)))
    assert list(part.items())[:3] == [
        ("capacity", 50),
        ("active_requests", 12),
        ("available_slots", 38),
    ]


@pytest.mark.parametrize(
    ("scope", "capacities", "total"),
    [
        ("global", (8, 8, 8), 8),
        ("host", (8, 8, 5), 13),
        ("worker", (8, 8, 5), 21),
        ("worker", (8, None, 5), None),
        ("global", (None, None, None), None),
    ],
)
def test_capacity_is_the_sum_over_its_scopes(
    scope: str, capacities: tuple[int | None, ...], total: int | None
) -> None:
    hosts = ("h1", "h1", "h2")
    reports = [
        worker(f"w{n}", EndpointGauges(capacity=capacity, active=1, scope=scope), host=host)
        for n, (capacity, host) in enumerate(zip(capacities, hosts, strict=True))
    ]
    part = endpoint(*reports)
    assert part["capacity"] == total
    assert part["available_slots"] == (None if total is None else total - 3)


def test_the_freshest_report_decides_about_a_shared_capacity() -> None:
    old = worker("w1", EndpointGauges(capacity=4, queue_timeout=10), time=998.0)
    new = worker("w2", EndpointGauges(capacity=9, queue_timeout=20), time=999.0)
    part = endpoint(old, new)
    assert (part["capacity"], part["queue_timeout"]) == (9, 20)


def test_available_slots_are_never_negative() -> None:
    assert endpoint(worker("w1", EndpointGauges(capacity=2, active=3)))["available_slots"] == 0


def test_gauges_and_counters_are_added_up_over_the_workers() -> None:
    first, second = served(0.1, 0.1), served(0.1, status=500)
    first.refused("queue_full")
    second.refused("queue_full")
    second.refused("unhealthy")
    second.left()
    part = endpoint(
        worker("w1", EndpointGauges(8, active=3, queued=2, oldest_wait=0.5), stats=first),
        worker("w2", EndpointGauges(8, active=4, queued=5, oldest_wait=1.5), stats=second),
    )
    assert (part["active_requests"], part["queued"], part["oldest_wait_ms"]) == (7, 7, 1500.0)
    assert (part["served"], part["errors"], part["left"]) == (3, 1, 1)
    assert part["refused"] == {"queue_full": 2, "unhealthy": 1}


def test_quantiles_are_those_of_all_requests_not_means_of_quantiles() -> None:
    part = endpoint(
        worker("w1", stats=served(*[0.010] * 900, waited=0.002)),
        worker("w2", stats=served(*[1.0] * 100)),
    )
    assert part["service_time"]["p50_ms"] == pytest.approx(10, rel=0.05)
    assert part["service_time"]["p95_ms"] == pytest.approx(1000, rel=0.05)
    assert part["queue_wait"]["p50_ms"] == pytest.approx(2, rel=0.05)


def test_without_requests_the_quantiles_are_null() -> None:
    nothing = {"p50_ms": None, "p95_ms": None, "p99_ms": None}
    assert endpoint(worker("w1"))["service_time"] == nothing


def test_rates_are_added_up() -> None:
    reports = []
    for name, count in (("w1", 10), ("w2", 30)):
        stats = EndpointStats()
        stats.report(EndpointGauges(), 25.0)
        for _ in range(count):
            stats.served(200, 0.0, 0.1, now=26.0)
        reports.append(worker(name, stats=stats))
    rates = {"requests_per_second": 8.0, "served_per_second": 8.0}
    assert endpoint(*reports)["rates"] == rates


@pytest.mark.parametrize(
    ("capacity", "active", "peaks", "peak"),
    [(None, 0, (3, 4), 7), (8, 0, (3, 4), 7), (5, 0, (3, 4), 5), (5, 6, (3, 4), 6)],
)
def test_the_peak_is_bounded_by_the_capacity(
    capacity: int | None, active: int, peaks: tuple[int, int], peak: int
) -> None:
    first = worker("w1", EndpointGauges(capacity, active=active, peak_active=peaks[0]))
    second = worker("w2", EndpointGauges(capacity, peak_active=peaks[1]))
    assert endpoint(first, second)["peak_active"] == peak


def test_a_dead_worker_holds_nothing_but_what_it_did_still_counts() -> None:
    alive = worker("w1", EndpointGauges(8, active=1), stats=served(0.1))
    dead = worker("w2", EndpointGauges(8, active=5), stats=served(9.0, 9.0), time=994.9)
    snapshot = merged(alive, dead)
    part = snapshot["endpoints"]["/a"]
    assert (part["active_requests"], part["served"]) == (1, 3)
    assert part["service_time"]["p99_ms"] == pytest.approx(100, rel=0.05)
    assert list(part["workers"]) == ["w1"]
    assert snapshot["workers"]["w2"]["stale"] is True
    assert snapshot["workers"]["w2"]["age_s"] == 5.1


@pytest.mark.parametrize(("age", "listed"), [(0.0, True), (5.0, True), (60.0, True), (60.1, False)])
def test_a_dead_worker_is_listed_for_a_minute(age: float, listed: bool) -> None:
    snapshot = merged(worker("w1"), worker("w2", time=1000.0 - age))
    assert ("w2" in snapshot["workers"]) is listed


def test_a_worker_that_stopped_is_gone_at_once_and_its_counters_stay() -> None:
    gone = worker("w2", EndpointGauges(active=2), stats=served(0.1), state="stopped")
    snapshot = merged(worker("w1"), gone)
    assert list(snapshot["workers"]) == ["w1"]
    assert snapshot["endpoints"]["/a"]["active_requests"] == 0
    assert snapshot["endpoints"]["/a"]["served"] == 1


def test_an_endpoint_that_only_dead_workers_knew_is_not_shown() -> None:
    old = worker("w2", time=900.0)
    old["endpoints"]["/old"] = old["endpoints"]["/a"]
    assert list(merged(worker("w1"), old)["endpoints"]) == ["/a"]


def test_each_worker_shows_its_own_part() -> None:
    gauges = EndpointGauges(8, active=3, queued=2, own=4, peak_active=5)
    part = endpoint(worker("w1", gauges, stats=served(0.1)), worker("w2"))
    assert part["workers"]["w1"] == {
        "active_requests": 3,
        "queued": 2,
        "own": 4,
        "peak_active": 5,
        "served": 1,
        "errors": 0,
        "requests_per_second": 0.0,
    }


def test_storage_is_seen_by_the_freshest_and_all_degraded_workers_are_counted() -> None:
    well = worker("w1", storage={"kind": "redis", "degraded": False})
    ill = worker("w2", storage={"kind": "redis", "degraded": True}, time=999.0)
    snapshot = merged(well, ill)
    assert snapshot["storage"] == {"kind": "redis", "degraded": False, "degraded_workers": 1}
    assert snapshot["workers"]["w2"]["storage_degraded"] is True


def test_one_sick_worker_shows_in_the_health_of_all() -> None:
    sick = {"healthy": False, "reason": "it answered 500"}
    snapshot = merged(worker("w1", health={"healthy": True}), worker("w2", health=sick))
    assert snapshot["health"] == {**sick, "unhealthy_workers": 1}
    assert snapshot["workers"]["w2"]["healthy"] is False


def test_a_dead_worker_makes_nobody_sick() -> None:
    sick = worker("w2", health={"healthy": False}, time=900.0)
    assert merged(worker("w1"), sick)["health"] == {"healthy": True, "unhealthy_workers": 0}


def test_a_probe_that_any_live_worker_knows_is_shown() -> None:
    probe = {"capacity": 8}
    part = endpoint(worker("w1"), worker("w2", EndpointGauges(probe=probe), time=999.0))
    assert part["probe"] == probe


def test_a_snapshot_is_json_and_bears_its_time() -> None:
    snapshot = merged(worker("w1", stats=served(0.1)))
    assert json.loads(json.dumps(snapshot)) == snapshot
    assert snapshot["time"] == "1970-01-01T00:16:40.000Z"
    assert iso(1_700_000_000.25) == "2023-11-14T22:13:20.250Z"


def test_no_report_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one report"):
        merge({}, 0.0)


def test_an_excess_that_the_store_knows_of_is_shown() -> None:
    reports = [
        worker("w1", EndpointGauges(capacity=8, active=6)),
        worker("w2", EndpointGauges(capacity=8, active=4)),
    ]
    snapshot = merge({r["worker"]: r for r in reports}, 1000.0, {"/a": {"w1": 6, "w2": 4}})
    assert snapshot["endpoints"]["/a"]["active_requests"] == 10


def test_what_fits_the_capacity_is_shown_as_reported() -> None:
    reports = [worker("w1", EndpointGauges(capacity=8, active=6))]
    snapshot = merge({r["worker"]: r for r in reports}, 1000.0, {"/a": {"w1": 0}})
    assert snapshot["endpoints"]["/a"]["active_requests"] == 6


def test_slots_that_were_taken_back_too_early_are_added_up() -> None:
    reports = (worker("w1", EndpointGauges(oversold=2)), worker("w2", EndpointGauges(oversold=1)))
    assert endpoint(*reports)["oversold"] == 3
