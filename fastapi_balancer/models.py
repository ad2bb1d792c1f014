"""The sections of the configuration, and its closed sets of words."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class StorageType(StrEnum):
    """Where slots and results are kept."""

    MEMORY = "memory"
    REDIS = "redis"
    EMBEDDED = "embedded"


class RoutingStrategy(StrEnum):
    """How a pool picks one of its backends."""

    ROUND_ROBIN = "round-robin"
    LEAST_CONNECTIONS = "least-connections"
    WEIGHTED = "weighted"


class Scope(StrEnum):
    """The processes that share one capacity."""

    GLOBAL = "global"
    HOST = "host"
    WORKER = "worker"


class OnStorageError(StrEnum):
    """What is admitted while the store is away."""

    LOCAL = "local"
    OPEN = "open"
    CLOSED = "closed"


class Section(BaseModel):
    """Base of every section: an unknown key is an error, and a section never changes once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class StorageConfig(Section):
    """Where the slots, the queue and the results of probes are kept."""

    type: StorageType = StorageType.MEMORY
    """`memory` (one process), `redis` (any number of workers and hosts), or `embedded` (all workers
    of one host, with a server that starts by itself)."""
    url: SecretStr | None = None
    """Address of the Redis or Valkey server, for `type: redis`: `redis://`, `rediss://`, `unix://`,
    or `redis+sentinel://host:port,host:port/service/db`."""
    timeout: Annotated[float, Field(gt=0, le=5, allow_inf_nan=False)] = 0.25
    """How long one call to the store may take, in seconds, before the store counts as away."""
    lease: Annotated[float, Field(ge=1, le=300, allow_inf_nan=False)] = 10.0
    """How long a worker without a sign of life keeps its slots, in seconds."""


class UIConfig(Section):
    """The dashboard, and the credentials for everything below `/balancer/` that shows something."""

    enable: bool = True
    """Whether the dashboard is served."""
    path: str = "/balancer/ui"
    """Where the dashboard is served."""
    username: str | None = None
    """User name for HTTP Basic authentication. Unset, with `password`: open to everybody."""
    password: SecretStr | None = None
    """Password for HTTP Basic authentication."""


class ProbeConfig(Section):
    """Budget of the probe, for each endpoint."""

    max_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    """Longest time that the probe of one endpoint may take, in seconds."""
    max_requests: Count = 10_000
    """Most requests that the probe of one endpoint may send."""
    max_concurrency: Count = 1024
    """The highest level that is tried, in requests at once."""


class EndpointProbeConfig(Section):
    """One watched endpoint: how it is probed, and its own limits."""

    method: str = "GET"
    """HTTP method of the probe's requests."""
    headers: dict[str, SecretStr] = Field(default_factory=dict, repr=False)
    """Headers of the probe's requests."""
    body: Any = Field(default=None, repr=False)
    """Body of the probe's requests: text is sent as it is, anything else as JSON."""
    capacity: Count | None = None
    """How many requests may run at once, when you know it. Skips the probe."""
    methods: tuple[str, ...] | None = None
    """The HTTP methods that are limited. Unset: all but OPTIONS."""
    scope: Scope | None = None
    """The processes that share this capacity. Unset: the global `scope`."""
    queue_timeout: Seconds | None = None
    """How long a request may wait for a slot, in seconds. Unset: the global `queue_timeout`."""
    queue_size: Annotated[int, Field(ge=0)] | None = None
    """How many requests may wait at once, in its scope. Unset: the global `queue_size`."""
