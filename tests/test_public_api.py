"""The public names, and all that the README of 0.2.1 promised: it must construct unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI

import fastapi_balancer
from fastapi_balancer import (
    Balancer,
    BalancerConfig,
    BenchBalancer,
    RoutingStrategy,
    StorageConfig,
    StorageType,
    UIConfig,
)
from fastapi_balancer.errors import ConfigError
from fastapi_balancer.middleware import BalancerMiddleware
from fastapi_balancer.models import EndpointProbeConfig
from tests.release_0_2_1 import YAML


def test_the_package_exports_these_names_and_no_others() -> None:
    assert fastapi_balancer.__all__ == [
        "Balancer",
        "BalancerConfig",
        "BenchBalancer",
        "EndpointProbeConfig",
        "RoutingStrategy",
        "StorageConfig",
        "StorageType",
        "UIConfig",
    ]
    assert all(hasattr(fastapi_balancer, name) for name in fastapi_balancer.__all__)


def test_the_endpoint_settings_have_two_names_and_are_one() -> None:
    assert fastapi_balancer.EndpointProbeConfig is EndpointProbeConfig


def test_the_quick_start_wraps_an_app() -> None:
    app = FastAPI()
    balancer = Balancer(
        config=BalancerConfig(
            storage=StorageConfig(type=StorageType.REDIS, url="redis://localhost:6379"),
            probe_on_startup=True,
            queue_timeout=30.0,
            endpoints={
                "/predict": EndpointProbeConfig(
                    method="POST",
                    headers={"Authorization": "Bearer your-token"},
                    body={"input": "sample"},
                )
            },
        )
    )
    assert balancer.wrap(app) is app
    (middleware,) = app.user_middleware
    assert repr(middleware.cls) == repr(BalancerMiddleware)


def test_the_inline_config_constructs() -> None:
    config = BalancerConfig(
        storage=StorageConfig(type=StorageType.REDIS, url="redis://localhost:6379"),
        routing_strategy=RoutingStrategy.ROUND_ROBIN,
        probe_on_startup=True,
        queue_timeout=60.0,
        latency_threshold_ms=10000,
        ui=UIConfig(username="admin", password="secret"),
        endpoints={
            "/ai_score": EndpointProbeConfig(
                method="POST",
                headers={
                    "Content-Type": "application/json",
                    "Authorization": "Bearer your-token",
                },
                body={"inputs": [...], "language": "en"},
            )
        },
    )
    assert Balancer(config=config).config is config
    assert config.endpoints["/ai_score"].body == {"inputs": [...], "language": "en"}


def test_the_yaml_config_is_read(tmp_path: Path) -> None:
    file = tmp_path / "balancer.yml"
    file.write_text(YAML)
    config = Balancer(config=str(file)).config
    assert config.storage.type is StorageType.REDIS
    assert list(config.endpoints) == ["/predict", "/embed"]
    assert config.endpoints["/predict"].method == "POST"
    assert config.ui.password is not None
    assert config.ui.password.get_secret_value() == "secret"


def test_manual_capacities_and_queue_timeouts_construct() -> None:
    config = BalancerConfig(
        endpoints={
            "/predict": EndpointProbeConfig(method="POST", capacity=10, queue_timeout=120.0),
            "/health": EndpointProbeConfig(method="GET", queue_timeout=5.0),
        }
    )
    assert config.endpoints["/predict"].capacity == 10
    assert config.endpoints["/health"].queue_timeout == 5.0


def test_the_dashboards_settings_construct() -> None:
    assert UIConfig(path="/dashboard", username="admin", password="secret").path == "/dashboard"
    assert UIConfig(enable=False).enable is False


def test_bench_balancer_constructs_and_writes_what_the_balancer_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = BenchBalancer(
        base_url="http://localhost:8005",
        endpoints={
            "/ai_score": EndpointProbeConfig(
                method="POST",
                headers={"Authorization": "Bearer your-token"},
                body={"inputs": ["a"], "language": "en"},
            )
        },
        storage=StorageConfig(type=StorageType.REDIS, url="redis://localhost:6379"),
        latency_threshold_ms=80000,
        error_threshold=0.05,
        queue_timeout=90.0,
        ui=UIConfig(username="admin", password="secret"),
    )
    written = bench.to_yaml(tmp_path / "balancer.yml")
    for name in bench.build().variables():
        monkeypatch.setenv(name, "redis://localhost:6379" if "URL" in name else "secret")
    assert Balancer(config=written).config.queue_timeout == 90.0


def test_keywords_are_a_configuration_too() -> None:
    balancer = Balancer(queue_timeout=5, endpoints={"/predict": {"capacity": 3}})
    assert balancer.config.endpoints["/predict"].capacity == 3


def test_the_defaults_of_0_2_1_are_kept() -> None:
    config = BalancerConfig()
    assert (config.storage.type, config.storage.url) == (StorageType.MEMORY, None)
    assert config.routing_strategy is RoutingStrategy.ROUND_ROBIN
    assert (config.health_endpoint, config.health_check_interval) == ("/health", 10)
    assert (config.queue_timeout, config.probe_on_startup, config.force_reprobe) == (
        30,
        True,
        False,
    )
    assert (config.error_threshold, config.latency_threshold_ms) == (0.05, 2000)
    assert (config.ui.enable, config.ui.path) == (True, "/balancer/ui")


def test_a_wrong_configuration_says_so_before_anything_is_served() -> None:
    with pytest.raises(ConfigError, match="queue_timeout"):
        Balancer(queue_timeout=-1)


def test_a_balancer_has_one_app() -> None:
    balancer = Balancer()
    balancer.wrap(FastAPI())
    with pytest.raises(ConfigError, match="make one Balancer per app"):
        balancer.wrap(FastAPI())
    with pytest.raises(ConfigError, match="make one Balancer per app"):
        balancer.asgi(FastAPI())
