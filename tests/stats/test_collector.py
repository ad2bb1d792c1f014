from __future__ import annotations

import json
import os

import pytest

from fastapi_balancer.stats.collector import (
    Collector,
    EndpointGauges,
    EndpointReport,
    EndpointStats,
    WorkerGauges,
)
from fastapi_balancer.stats.histogram import Histogram


def report_of(stats: EndpointStats, now: float) -> EndpointReport:
    return stats.report(EndpointGauges(), now)


def test_served_requests_are_counted_with_their_times() -> None:
    stats = EndpointStats()
    stats.served(200, 0.0, 0.1, now=10.0)
    stats.served(200, 0.5, 0.3, now=11.0)
    report = report_of(stats, now=12.0)
    assert report["served"] == 2
    assert report["queue_wait"]["sum"] == 0.5
    assert report["service_time"]["sum"] == pytest.approx(0.4)
    assert Histogram.from_data(report["queue_wait"]).quantile(0.5) == 0.0


@pytest.mark.parametrize(("status", "errors"), [(200, 0), (404, 0), (499, 0), (500, 1), (503, 1)])
def test_only_5xx_are_errors(status: int, errors: int) -> None:
    stats = EndpointStats()
    stats.served(status, 0.0, 0.1, now=1.0)
    assert report_of(stats, now=1.0)["errors"] == errors


def test_refusals_are_counted_by_reason_and_clients_that_left_apart() -> None:
    stats = EndpointStats()
    for reason in ("queue_full", "queue_timeout", "queue_full"):
        stats.refused(reason)
    stats.left()
    report = report_of(stats, now=1.0)
    assert report["refused"] == {"queue_full": 2, "queue_timeout": 1}
    assert (report["left"], report["served"]) == (1, 0)


def test_counters_outlive_the_window() -> None:
    stats = EndpointStats()
    stats.served(500, 0.2, 0.1, now=0.0)
    report = report_of(stats, now=3600.0)
    assert (report["served"], report["errors"]) == (1, 1)
    assert report["service_time"] == {"sum": 0.0, "buckets": [], "counts": []}


def test_rates_are_those_of_the_last_seconds() -> None:
    stats = EndpointStats()
    report_of(stats, now=0.0)
    for tenth in range(1, 301):
        stats.served(200, 0.0, 0.01, now=tenth / 10)
        if tenth % 5 == 0:
            stats.refused("queue_full")
            stats.left()
        report = report_of(stats, now=tenth / 10)
    assert report["served_per_second"] == pytest.approx(10.0)
    assert report["requests_per_second"] == pytest.approx(14.0)


def test_rates_fall_to_zero_within_ten_seconds_of_silence() -> None:
    stats = EndpointStats()
    report_of(stats, now=0.0)
    stats.served(200, 0.0, 0.01, now=0.5)
    rates = [report_of(stats, now=float(second))["served_per_second"] for second in range(1, 12)]
    assert rates[0] == 1.0
    assert rates[4] == pytest.approx(0.2)
    assert rates[10] == 0.0


def test_the_peak_is_the_highest_that_was_reported() -> None:
    stats = EndpointStats()
    stats.report(EndpointGauges(active=5), 1.0)
    stats.report(EndpointGauges(active=2, peak_active=7), 2.0)
    assert stats.report(EndpointGauges(active=1, peak_active=3), 3.0)["peak_active"] == 7


def test_an_endpoint_is_the_same_object_each_time() -> None:
    collector = Collector("w1")
    assert collector.endpoint("/a") is collector.endpoint("/a")
    assert collector.endpoint("/a") is not collector.endpoint("/b")


def test_a_report_carries_gauges_and_identity_and_is_json() -> None:
    collector = Collector("w1", name="shop", version="1.2")
    collector.endpoint("/a").served(200, 0.0, 0.1, now=5.0)
    probe = {"capacity": 8, "verdict": "pass"}
    gauges = EndpointGauges(capacity=8, active=3, queued=2, own=4, oldest_wait=0.5, probe=probe)
    collector.report(WorkerGauges({"/a": gauges}), now=5.0, time=1000.0)
    report = collector.report(WorkerGauges({"/a": gauges}), now=7.5, time=1002.5)
    assert json.loads(json.dumps(report)) == report
    assert (report["worker"], report["pid"], report["uptime"]) == ("w1", os.getpid(), 2.5)
    assert report["service"] == {"name": "shop", "version": "1.2"}
    part = report["endpoints"]["/a"]
    assert (part["capacity"], part["active"], part["queued"], part["own"]) == (8, 3, 2, 4)
    assert (part["oldest_wait"], part["probe"], part["served"]) == (0.5, probe, 1)
