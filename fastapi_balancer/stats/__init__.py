"""What this service has done and how it is: counted per worker, shown over all of them."""

from __future__ import annotations

from fastapi_balancer.stats.collector import Collector, EndpointGauges, EndpointStats, WorkerGauges
from fastapi_balancer.stats.exchange import Snapshots
from fastapi_balancer.stats.snapshot import Snapshot

__all__ = [
    "Collector",
    "EndpointGauges",
    "EndpointStats",
    "Snapshot",
    "Snapshots",
    "WorkerGauges",
]
