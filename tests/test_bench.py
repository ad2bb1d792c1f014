from __future__ import annotations

import asyncio
import inspect
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from fastapi_balancer.bench import BenchBalancer
from fastapi_balancer.config import BalancerConfig
from fastapi_balancer.errors import ConfigError, ProbeError
from fastapi_balancer.models import (
    EndpointProbeConfig,
    RoutingStrategy,
    StorageConfig,
    StorageType,
    UIConfig,
)
from fastapi_balancer.prober.http import HttpSender
from fastapi_balancer.prober.probe import Progress, Prospect
from fastapi_balancer.prober.result import ProbeResult
from tests.prober.test_result import RESULT


def answer_probes(monkeypatch: pytest.MonkeyPatch, answers: dict[str, int | None]) -> None:
    """Replace the measuring: these endpoints have these capacities, others refuse."""

    async def run_probe(
        sender: HttpSender, prospect: Prospect, progress: Progress | None
    ) -> ProbeResult:
        if prospect.endpoint not in answers:
            raise ProbeError(f"{prospect.endpoint} answered 401")
        fields: Any = {name: getattr(RESULT, name) for name in RESULT.__slots__}
        return ProbeResult(**{**fields, "capacity": answers[prospect.endpoint]})

    monkeypatch.setattr("fastapi_balancer.bench.run_probe", run_probe)


def bench(*endpoints: str) -> BenchBalancer:
    return BenchBalancer("http://127.0.0.1:1", {path: EndpointProbeConfig() for path in endpoints})


def test_the_constructor_takes_what_it_always_took() -> None:
    parameters = inspect.signature(BenchBalancer).parameters
    assert {name: p.default for name, p in parameters.items()} == {
        "base_url": inspect.Parameter.empty,
        "endpoints": inspect.Parameter.empty,
        "storage": None,
        "routing_strategy": RoutingStrategy.ROUND_ROBIN,
        "health_endpoint": "/health",
        "health_check_interval": 10,
        "queue_timeout": 30.0,
        "probe_on_startup": True,
        "force_reprobe": False,
        "error_threshold": 0.05,
        "latency_threshold_ms": 2000.0,
        "ui": None,
    }


def test_build_gives_the_configuration_of_its_parameters() -> None:
    made = BenchBalancer(
        base_url="http://localhost:8005/",
        endpoints={"/x": EndpointProbeConfig(method="POST", capacity=3)},
        storage=StorageConfig(type=StorageType.REDIS, url=SecretStr("redis://localhost:6379")),
        routing_strategy=RoutingStrategy.WEIGHTED,
        health_endpoint="/ok",
        health_check_interval=5,
        queue_timeout=90.0,
        probe_on_startup=False,
        force_reprobe=True,
        error_threshold=0.1,
        latency_threshold_ms=80_000,
        ui=UIConfig(enable=False),
    )
    config = made.build()
    for name in set(inspect.signature(BenchBalancer).parameters) - {"base_url"}:
        assert getattr(config, name) == getattr(made, name), name


def test_to_yaml_writes_what_the_balancer_reads(tmp_path: Path) -> None:
    made = bench("/x")
    written = made.to_yaml(tmp_path / "balancer.yml")
    assert written == tmp_path / "balancer.yml"
    assert BalancerConfig.from_yaml(written) == made.build()


def test_variables_that_the_file_needs_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = BenchBalancer(
        "http://x", {}, ui=UIConfig(username="admin", password=SecretStr("hunter2"))
    )
    written = made.to_yaml(tmp_path / "balancer.yml")
    assert "hunter2" not in written.read_text() + caplog.text
    assert "BALANCER_UI_PASSWORD" in caplog.text


def test_run_writes_the_measured_capacities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_probes(monkeypatch, {"/x": 12, "/y": 7})
    given = {"/x": EndpointProbeConfig(capacity=99), "/y": EndpointProbeConfig(method="POST")}
    made = BenchBalancer("http://127.0.0.1:1", given)
    written = asyncio.run(made.run(tmp_path / "out.yml"))
    endpoints = yaml.safe_load(written.read_text())["endpoints"]
    assert {path: settings["capacity"] for path, settings in endpoints.items()} == {
        "/x": 12,
        "/y": 7,
    }
    assert given["/x"].capacity == 99
    assert made.build().endpoints["/y"].method == "POST"


def test_an_endpoint_that_cannot_be_measured_is_written_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer_probes(monkeypatch, {"/x": 12, "/slow": None})
    made = bench("/closed", "/slow", "/x")
    asyncio.run(made.run(tmp_path / "out.yml"))
    assert {path: s.capacity for path, s in made.endpoints.items()} == {
        "/closed": None,
        "/slow": None,
        "/x": 12,
    }
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings[0] == "No capacity was measured: /closed answered 401"
    assert warnings[1].startswith("No capacity was measured: /slow: ")


def test_nothing_is_written_when_nothing_could_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_probes(monkeypatch, {})
    with pytest.raises(ProbeError, match=r"/x answered 401 /y answered 401"):
        asyncio.run(bench("/x", "/y").run(tmp_path / "out.yml"))
    assert not (tmp_path / "out.yml").exists()


def test_a_wrong_parameter_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer_probes(monkeypatch, {})
    with pytest.raises(ConfigError, match="without their query"):
        asyncio.run(bench("/x?a=1").run(tmp_path / "out.yml"))
    assert caplog.text == ""


@pytest.mark.parametrize("base_url", ["localhost:8005", "", "ftp://x", "http://", "/x"])
def test_an_address_that_cannot_be_probed_is_told_at_once(base_url: str, tmp_path: Path) -> None:
    made = BenchBalancer(base_url, {"/x": EndpointProbeConfig()})
    with pytest.raises(ConfigError, match=r"base_url: .* such as http://localhost:8005"):
        asyncio.run(made.run(tmp_path / "out.yml"))
