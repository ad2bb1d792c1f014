"""Measures how many requests an endpoint takes at once."""

from fastapi_balancer.prober.prober import Prober
from fastapi_balancer.prober.result import ProbeResult
from fastapi_balancer.prober.start import start_id

__all__ = ["ProbeResult", "Prober", "start_id"]
