from __future__ import annotations

import json

import pytest

from fastapi_balancer.prober.measure import Thresholds, Verdict, Window
from fastapi_balancer.prober.result import ProbeResult
from fastapi_balancer.prober.search import Point

POINT = Point(1, Window(40, 1, 0.025, 10, 20, None, 99.5, "status 503"), Verdict("pass", "good"))
RESULT = ProbeResult(
    endpoint="/x",
    capacity=12,
    kind="boundary",
    reason="12 passed",
    curve=(POINT, POINT),
    p50_ms=10,
    p90_ms=20,
    p99_ms=None,
    throughput=99.5,
    error_rate=0.025,
    requests=400,
    seconds=11.5,
    probed_at="2026-01-31T12:00:00+00:00",
    worker="host:1:2",
    start_id="host:1",
    thresholds=Thresholds(0.05, 2000),
)


def test_a_result_comes_back_from_its_record_unchanged() -> None:
    assert ProbeResult.from_json(RESULT.to_json()) == RESULT


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"12",
        b"[]",
        b"{}",
        b'{"format": 1}',
        json.dumps({**json.loads(RESULT.to_json()), "format": 2}).encode(),
        json.dumps({**json.loads(RESULT.to_json()), "curve": [1]}).encode(),
        json.dumps({**json.loads(RESULT.to_json()), "extra": 1}).encode(),
        b"\xff",
    ],
)
def test_anything_else_is_a_value_error(record: bytes) -> None:
    with pytest.raises(ValueError):
        ProbeResult.from_json(record)
