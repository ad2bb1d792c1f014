"""Measures how much a FastAPI service can take, and never lets it take more."""

from fastapi_balancer.balancer import Balancer
from fastapi_balancer.bench import BenchBalancer
from fastapi_balancer.config import BalancerConfig
from fastapi_balancer.models import (
    EndpointProbeConfig,
    RoutingStrategy,
    StorageConfig,
    StorageType,
    UIConfig,
)

__all__ = [
    "Balancer",
    "BalancerConfig",
    "BenchBalancer",
    "EndpointProbeConfig",
    "RoutingStrategy",
    "StorageConfig",
    "StorageType",
    "UIConfig",
]
