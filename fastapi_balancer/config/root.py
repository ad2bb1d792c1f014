"""The configuration of a balancer, from a file, from keywords, or ready-made."""

from __future__ import annotations

import os
from pathlib import Path as FilePath
from typing import Any

from pydantic import Field, ValidationError, model_validator

from fastapi_balancer.config import writing
from fastapi_balancer.config.document import Document
from fastapi_balancer.config.reference import EditorSchema
from fastapi_balancer.errors import ConfigError
from fastapi_balancer.fields import (
    Count,
    Duration,
    LiteralPath,
    Milliseconds,
    QueueSize,
    Seconds,
    ServiceName,
    Share,
)
from fastapi_balancer.models import (
    Endpoints,
    OnStorageError,
    ProbeConfig,
    RoutingStrategy,
    Scope,
    Section,
    StorageConfig,
    UIConfig,
)
from fastapi_balancer.problems import problems_of, report, wrong


class BalancerConfig(Section):
    """Settings of a balancer, as they stand in `balancer.yml`."""

    storage: StorageConfig = Field(default_factory=StorageConfig)
    """Where the slots, the queue and the results of probes are kept."""
    routing_strategy: RoutingStrategy = RoutingStrategy.ROUND_ROBIN
    """How one of several backends is picked. No effect yet: there is no gateway."""
    health_endpoint: LiteralPath = "/health"
    """The service's own health check. While it fails, twice in a row, the watched endpoints of that
    worker answer 503. A service without it (404, 405) counts as healthy."""
    health_check_interval: Duration = 10.0
    """How long after one health check the next one starts."""
    queue_timeout: Seconds = 30.0
    """How long a request may wait for a slot; then it is answered with 504. 0: not
    at all, but for asking a shared store, which takes `storage.timeout` at the most."""
    probe_on_startup: bool = True
    """Whether the capacity of an endpoint that has no `capacity` is measured at start-up."""
    force_reprobe: bool = False
    """Whether to measure at every start, although the store knows the result of an earlier one."""
    error_threshold: Share = 0.05
    """The share of failed requests up to which the probe calls a level good."""
    latency_threshold_ms: Milliseconds = 2000.0
    """The p99 latency up to which the probe calls a level good."""
    name: ServiceName | None = None
    """The service's name: services of the same name on one Redis share slots. Unset: the title
    of the app."""
    queue_size: QueueSize = 10_000
    """How many requests of one endpoint may wait at once; more are answered with 503."""
    body_timeout: Duration = 30.0
    """How long a small request body may take to arrive before its request asks for a slot; then
    it is answered with 408."""
    default_capacity: Count | None = None
    """Capacity of an endpoint that has neither `capacity` nor the result of a probe. Unset: such
    an endpoint is not limited."""
    scope: Scope = Scope.GLOBAL
    """The processes that share one capacity: all workers on all hosts, those of a host, or each
    worker alone. The probe measures one worker: where each has a limit of its own, that is
    `worker`."""
    on_storage_error: OnStorageError = OnStorageError.LOCAL
    """What is admitted while the store is away: `local` each worker's share of the last known
    capacity, `open` everything, `closed` nothing."""
    probe: ProbeConfig = Field(default_factory=ProbeConfig)
    """Budget of the probe, for each endpoint."""
    ui: UIConfig = Field(default_factory=UIConfig)
    """The dashboard, and the credentials for everything below `/balancer/` that shows something."""
    endpoints: Endpoints = Field(default_factory=dict)
    """The watched endpoints, by path: `/predict`, or a template such as `/items/{id}`."""

    @model_validator(mode="after")
    def _dashboard_hides_no_endpoint(self) -> BalancerConfig:
        if self.ui.enable and self.ui.path in self.endpoints:
            raise wrong(f"{self.ui.path} is a watched endpoint; choose another path", "ui", "path")
        return self

    @classmethod
    def from_yaml(cls, path: str | FilePath) -> BalancerConfig:
        """Read a YAML file, with `${NAME}` taken from the environment. Blocks.

        Raises `ConfigError` with a line `file:line:column: key: what is wrong` for each problem.
        """
        document = Document.read(path, os.environ)
        problems = list(document.problems)
        try:
            config = cls.model_validate(document.data)
        except ValidationError as error:
            problems += [p for p in problems_of(cls, error) if not document.is_reported(p.path)]
        if problems:
            raise ConfigError(report(problems, document.source, document.position))
        return config

    def to_yaml(self) -> str:
        """Write the settings that `from_yaml` reads back as an equal configuration.

        Secrets stand there as `${NAME}`: the reference they were read from, or one named after
        their place (`BALANCER_UI_PASSWORD`). `variables` tells which must be set to read it.
        Raises `ConfigError` for a body that is not made of JSON's types.
        """
        return writing.write(self).text

    def variables(self) -> tuple[str, ...]:
        """Name the environment variables that what `to_yaml` wrote needs, in its order."""
        return writing.write(self).variables

    @classmethod
    def model_json_schema(cls, *args: Any, **keywords: Any) -> dict[str, Any]:
        """Make the JSON schema by which an editor completes and checks `balancer.yml`.

        Where a number, a boolean or a word of a closed set is expected, `${NAME}` is valid too.
        """
        if len(args) <= 2:  # by_alias and ref_template come first
            keywords.setdefault("schema_generator", EditorSchema)
        return super().model_json_schema(*args, **keywords)


def load_config(
    config: str | FilePath | BalancerConfig | None = None, **keywords: Any
) -> BalancerConfig:
    """Make the configuration of `Balancer(config)` or `Balancer(**keywords)`.

    `keywords` are the fields of `BalancerConfig`. A file is read at once, which blocks.
    Raises `ConfigError`.
    """
    if config is None:
        return BalancerConfig(**keywords)
    if keywords:
        raise ConfigError(f"give either config or keywords, not both: {', '.join(keywords)}")
    if isinstance(config, BalancerConfig):
        return config
    if isinstance(config, str | FilePath):
        return BalancerConfig.from_yaml(config)
    raise ConfigError(
        f"config is the path of a YAML file or a BalancerConfig, not a {type(config).__name__}"
    )
