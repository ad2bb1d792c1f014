"""The sections of the configuration, and its closed sets of words."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    model_validator,
)

from fastapi_balancer.errors import ConfigError
from fastapi_balancer.fields import (
    Address,
    Count,
    Duration,
    EndpointPath,
    HeaderName,
    HeaderValue,
    Lease,
    Method,
    Methods,
    MountPath,
    QueueSize,
    RequestTarget,
    Seconds,
    Secret,
    Timeout,
    nothing_is_empty,
    template_key,
)
from fastapi_balancer.problems import problems_of, report, wrong


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
    """Base of every section: an unknown key is an error, and a section never changes once made.

    Made with keywords it raises `ConfigError`, which lists all that is wrong and shows no secret.
    `model_validate` raises pydantic's own error.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    def __init__(self, /, **data: Any) -> None:
        """Check the keywords. Raises `ConfigError`."""
        try:
            super().__init__(**data)
            return
        except ValidationError as error:
            problems = problems_of(type(self), error)
        # Outside the handler, so that no traceback leads to pydantic's error, which holds the input
        raise ConfigError(report(problems, type(self).__name__))

    # Tells pydantic to go on validating a nested section in one pass, instead of calling __init__
    # for it: so the outermost section reports all errors at once.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # pydantic's own marker

    @model_validator(mode="before")
    @classmethod
    def _empty_section(cls, data: object) -> object:
        return nothing_is_empty(data)


class StorageConfig(Section):
    """Where the slots, the queue and the results of probes are kept."""

    type: StorageType = StorageType.MEMORY
    """`memory` (one process), `redis` (any number of workers and hosts), or `embedded` (all workers
    of one host, with a server that starts by itself)."""
    url: Address | None = None
    """Address of the Redis (6.2 or newer) or Valkey server, for `type: redis`: `redis://`,
    `rediss://`, `unix://`, or `redis+sentinel://host:port,host:port/service/db`."""
    timeout: Timeout = 0.25
    """How long one call to the store may take before the store counts as away."""
    lease: Lease = 10.0
    """How long a worker without a sign of life keeps its slots."""

    @model_validator(mode="after")
    def _complete(self) -> StorageConfig:
        if self.type == StorageType.REDIS and self.url is None:
            raise wrong("type redis needs an address, such as redis://localhost:6379", "url")
        if self.url is not None and "type" not in self.model_fields_set:
            raise wrong("an address without `type: redis` would not be used", "type")
        if self.timeout >= self.lease:
            raise wrong("a call must end before the lease does", "timeout")
        return self


class UIConfig(Section):
    """The dashboard, and the credentials for everything below `/balancer/` that shows something."""

    enable: bool = True
    """Whether the dashboard is served. No effect yet: it is being rebuilt."""
    path: MountPath = "/balancer/ui"
    """Where the dashboard is served. No effect yet."""
    username: str | None = None
    """User name for HTTP Basic authentication. Unset, as `password` then must be: open to all."""
    password: Secret | None = None
    """Password for HTTP Basic authentication."""

    @model_validator(mode="after")
    def _credentials(self) -> UIConfig:
        if self.username is None and self.password is None:
            return self
        if self.username is None:
            raise wrong("a password needs a user name, or the dashboard is open", "username")
        if self.password is None:
            raise wrong("a user name needs a password, or the dashboard is open", "password")
        if not self.username or ":" in self.username:
            raise wrong("a user name is not empty and holds no colon (RFC 7617 2)", "username")
        if not self.password.get_secret_value():
            raise wrong("an empty password protects nothing", "password")
        return self


class ProbeConfig(Section):
    """Budget of the probe, for each endpoint."""

    max_seconds: Duration = 60.0
    """Longest time that the probe of one endpoint may take."""
    max_requests: Count = 10_000
    """Most requests that the probe of one endpoint may send."""
    max_concurrency: Count = 1024
    """The highest level that is tried: so many requests at once."""


class EndpointProbeConfig(Section):
    """One watched endpoint: how it is probed, and its own limits."""

    method: Method = "GET"
    """HTTP method of the probe's requests."""
    methods: Methods | None = None
    """The HTTP methods that are limited. Unset: all but OPTIONS, which never is."""
    capacity: Count | None = None
    """How many requests may run at once, when you know it. Skips the probe."""
    scope: Scope | None = None
    """The processes that share this capacity. Unset: the global `scope`."""
    queue_timeout: Seconds | None = None
    """How long a request may wait for a slot. Unset: the global `queue_timeout`."""
    queue_size: QueueSize | None = None
    """How many requests may wait at once, in its scope. Unset: the global `queue_size`."""
    headers: Annotated[dict[HeaderName, HeaderValue], BeforeValidator(nothing_is_empty)] = Field(
        default_factory=dict, repr=False
    )
    """Headers of the probe's requests."""
    probe_path: RequestTarget | None = None
    """Where the probe's requests go, for an endpoint with parameters: `/items/1?full=1`."""
    body: Any = Field(default=None, repr=False)
    """Body of the probe's requests: text is sent as it is, anything else as JSON."""

    @field_serializer("body", when_used="json")
    def _hide_body(self, body: object) -> str | None:
        return None if body is None else "**********"


def _different(endpoints: dict[str, EndpointProbeConfig]) -> dict[str, EndpointProbeConfig]:
    seen: dict[str, str] = {}
    for path in endpoints:
        other = seen.setdefault(template_key(path), path)
        if other != path:
            raise wrong(f"matches the same requests as {other}; keep one of them", path)
    return endpoints


Endpoints = Annotated[
    dict[EndpointPath, EndpointProbeConfig],
    BeforeValidator(nothing_is_empty),
    AfterValidator(_different),
]
