"""What the probe of an endpoint came to, as it is stored and shown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from fastapi_balancer.prober.measure import Thresholds, Verdict, Window
from fastapi_balancer.prober.search import Kind, Point

FORMAT = 1  # of the stored record; another one is not read


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The capacity of an endpoint and the evidence for it.

    The latencies and rates are those at the answer: the highest level that passed, or, when none
    did, the last one tried.
    """

    endpoint: str
    capacity: int | None  # None: not even one request at a time kept the thresholds
    kind: Kind
    reason: str
    curve: tuple[Point, ...]  # in the order in which the levels were tried
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    throughput: float | None  # successes per second
    error_rate: float  # 0 to 1
    requests: int  # sent in all
    seconds: float  # that the probe took
    probed_at: str  # wall time, ISO 8601, UTC
    worker: str
    start_id: str
    thresholds: Thresholds

    def to_json(self) -> bytes:
        """The record as it is stored."""
        return json.dumps({"format": FORMAT, **asdict(self)}).encode()

    @classmethod
    def from_json(cls, record: bytes) -> ProbeResult:
        """Read a stored record. Raises `ValueError` when it is not one of this format."""
        try:
            fields = json.loads(record)
            if fields.pop("format") != FORMAT:
                raise ValueError("another version wrote it")
            fields["curve"] = tuple(_point(point) for point in fields["curve"])
            fields["thresholds"] = Thresholds(**fields["thresholds"])
            return cls(**fields)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not the record of a probe: {error!r}") from error


def _point(fields: dict[str, Any]) -> Point:
    return Point(fields["level"], Window(**fields["window"]), Verdict(**fields["verdict"]))
