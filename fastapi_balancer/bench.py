"""Measures a running service from outside, over HTTP, and writes the configuration for it."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from urllib.parse import urlsplit

from fastapi_balancer.config import BalancerConfig
from fastapi_balancer.errors import ConfigError, ProbeError
from fastapi_balancer.models import (
    EndpointProbeConfig,
    ProbeConfig,
    RoutingStrategy,
    StorageConfig,
    UIConfig,
)
from fastapi_balancer.prober.http import HttpSender
from fastapi_balancer.prober.measure import Thresholds
from fastapi_balancer.prober.probe import Progress, Prospect, request_timeout, run_probe
from fastapi_balancer.prober.request import build_request
from fastapi_balancer.prober.result import ProbeResult

logger = logging.getLogger(__name__)

WAVES = 20  # a probe may take as long as so many requests at the latency threshold, one by one
REQUESTS = 100_000  # time bounds a bench; nobody waits for its service to start


class BenchBalancer:
    """Probes the endpoints of a live service, to be served with the written configuration later.

    The parameters are those of the configuration; only `base_url`, `endpoints` and the two
    thresholds matter to the measurement, the rest is written out. A capacity that is given for an
    endpoint is measured anew.
    """

    def __init__(
        self,
        base_url: str,
        endpoints: dict[str, EndpointProbeConfig],
        storage: StorageConfig | None = None,
        routing_strategy: RoutingStrategy = RoutingStrategy.ROUND_ROBIN,
        health_endpoint: str = "/health",
        health_check_interval: float = 10,
        queue_timeout: float = 30.0,
        probe_on_startup: bool = True,
        force_reprobe: bool = False,
        error_threshold: float = 0.05,
        latency_threshold_ms: float = 2000.0,
        ui: UIConfig | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.endpoints = dict(endpoints)
        self.storage = storage or StorageConfig()
        self.routing_strategy = routing_strategy
        self.health_endpoint = health_endpoint
        self.health_check_interval = health_check_interval
        self.queue_timeout = queue_timeout
        self.probe_on_startup = probe_on_startup
        self.force_reprobe = force_reprobe
        self.error_threshold = error_threshold
        self.latency_threshold_ms = latency_threshold_ms
        self.ui = ui or UIConfig()
        self.progress: Progress | None = None  # a terminal may be told what goes on

    def build(self) -> BalancerConfig:
        """The configuration as it is known now; after `run`, with the measured capacities."""
        return BalancerConfig(
            storage=self.storage,
            routing_strategy=self.routing_strategy,
            health_endpoint=self.health_endpoint,
            health_check_interval=self.health_check_interval,
            queue_timeout=self.queue_timeout,
            probe_on_startup=self.probe_on_startup,
            force_reprobe=self.force_reprobe,
            error_threshold=self.error_threshold,
            latency_threshold_ms=self.latency_threshold_ms,
            ui=self.ui,
            endpoints=self.endpoints,
        )

    def to_yaml(self, path: str | Path) -> Path:
        """Write the configuration, without measuring anything.

        Secrets are written as `${NAME}`; a warning tells which variables are still to be set.
        """
        config, written = self.build(), Path(path)
        written.write_text(config.to_yaml(), encoding="utf-8")
        logger.info("The configuration was written to %s", written.resolve())
        unset = [name for name in config.variables() if name not in os.environ]
        if unset:
            logger.warning("To read %s, first set %s", written, ", ".join(unset))
        return written

    async def run(self, output: str | Path = "balancer.yml") -> Path:
        """Probe every endpoint, one after the other, and write the configuration.

        An endpoint that cannot be measured keeps what was given for it, with a warning. Raises
        `ProbeError`, and writes nothing, when not one could be measured; `ConfigError`, before
        anything is measured, for what could not be written.
        """
        address = urlsplit(self.base_url)
        if address.scheme not in {"http", "https"} or not address.hostname:
            raise ConfigError(
                f"base_url: {self.base_url!r} is not an address such as http://localhost:8005"
            )
        self.build().to_yaml()
        failures = [await self._measure(endpoint) for endpoint in list(self.endpoints)]
        if failures and all(failures):
            raise ProbeError(" ".join(filter(None, failures)))
        # the file is small, and nothing else runs in this loop any more
        return await asyncio.to_thread(self.to_yaml, output)

    async def _measure(self, endpoint: str) -> str | None:
        """Probe one endpoint and keep its capacity. Returns why it has none."""
        settings = self.build().endpoints[endpoint]
        try:
            result = await self._probe(endpoint, settings)
            if result.capacity is None:
                raise ProbeError(f"{endpoint}: {result.reason}.")
        except ProbeError as error:
            logger.warning("No capacity was measured: %s", error)
            return str(error)
        self.endpoints[endpoint] = settings.model_copy(update={"capacity": result.capacity})
        return None

    async def _probe(self, endpoint: str, settings: EndpointProbeConfig) -> ProbeResult:
        thresholds = Thresholds(self.error_threshold, self.latency_threshold_ms)
        request = build_request(endpoint, settings)
        seconds = max(60.0, WAVES * thresholds.latency_ms / 1000)
        budget = ProbeConfig(max_seconds=seconds, max_requests=REQUESTS)
        prospect = Prospect(endpoint, request, budget, thresholds, worker="bench")
        async with HttpSender(self.base_url, request, request_timeout(thresholds)) as sender:
            return await run_probe(sender, prospect, self.progress)
