from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fastapi_balancer.config import BalancerConfig, load_config
from fastapi_balancer.errors import ConfigError
from fastapi_balancer.models import (
    EndpointProbeConfig,
    OnStorageError,
    RoutingStrategy,
    Scope,
    StorageConfig,
    StorageType,
    UIConfig,
)
from tests.release_0_2_1 import YAML


def refusal(config: object = None, **keywords: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(config, **keywords)  # type: ignore[arg-type]  # some tests pass a wrong type
    return str(error.value)


def written(directory: Path, text: str) -> Path:
    path = directory / "balancer.yml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_defaults_are_those_of_0_2_1() -> None:
    config = load_config()
    assert config.storage.type == StorageType.MEMORY
    assert config.routing_strategy == RoutingStrategy.ROUND_ROBIN
    assert (config.health_endpoint, config.health_check_interval) == ("/health", 10)
    assert (config.queue_timeout, config.probe_on_startup, config.force_reprobe) == (
        30,
        True,
        False,
    )
    assert (config.error_threshold, config.latency_threshold_ms) == (0.05, 2000)
    assert (config.ui.enable, config.ui.path, config.endpoints) == (True, "/balancer/ui", {})


def test_the_defaults_of_what_is_new() -> None:
    config = BalancerConfig()
    assert (config.name, config.queue_size, config.body_timeout) == (None, 10_000, 30)
    assert (config.default_capacity, config.scope) == (None, Scope.GLOBAL)
    assert config.on_storage_error == OnStorageError.LOCAL


def test_the_quick_start_of_0_2_1_loads() -> None:
    config = BalancerConfig(
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
    assert config.storage.url is not None
    assert config.storage.url.get_secret_value() == "redis://localhost:6379"
    header = config.endpoints["/predict"].headers["Authorization"]
    assert header.get_secret_value() == "Bearer your-token"
    assert config.endpoints["/predict"].body == {"input": "sample"}


def test_the_inline_objects_of_0_2_1_load_as_objects_and_as_keywords() -> None:
    keywords: dict[str, Any] = {
        "storage": StorageConfig(type=StorageType.REDIS, url="redis://localhost:6379"),
        "routing_strategy": RoutingStrategy.ROUND_ROBIN,
        "queue_timeout": 60.0,
        "latency_threshold_ms": 10000,
        "ui": UIConfig(username="admin", password="secret"),
        "endpoints": {
            "/ai_score": EndpointProbeConfig(
                method="POST", body={"inputs": [...], "language": "en"}
            )
        },
    }
    config = load_config(**keywords)
    assert config.latency_threshold_ms == 10_000
    assert config.endpoints["/ai_score"].body == {"inputs": [...], "language": "en"}
    assert load_config(BalancerConfig(**keywords)) == config


def test_the_file_of_0_2_1_loads(tmp_path: Path) -> None:
    config = load_config(str(written(tmp_path, YAML)))
    assert config.storage.type == StorageType.REDIS
    assert config.ui.username == "admin"
    assert config.ui.password is not None
    assert config.ui.password.get_secret_value() == "secret"
    assert list(config.endpoints) == ["/predict", "/embed"]
    assert config.endpoints["/embed"].body == {"texts": ["hello"]}


def test_the_capacities_and_timeouts_of_0_2_1_load(tmp_path: Path) -> None:
    text = """\
queue_timeout: 30  # global default
endpoints:
  /predict: {method: POST, capacity: 10, queue_timeout: 120}
  /health: {method: GET, queue_timeout: 5}
"""
    endpoints = load_config(written(tmp_path, text)).endpoints
    assert endpoints["/predict"] == EndpointProbeConfig(
        method="POST", capacity=10, queue_timeout=120.0
    )
    assert endpoints["/health"].queue_timeout == 5


def test_the_dashboards_of_0_2_1_load() -> None:
    assert UIConfig(path="/dashboard", username="admin", password="secret").path == "/dashboard"
    assert UIConfig(enable=False).enable is False


def test_an_endpoint_without_settings_has_the_defaults(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "endpoints:\n  /predict:\nui:\nstorage:\n"))
    assert config == BalancerConfig(endpoints={"/predict": EndpointProbeConfig()})


def test_a_health_endpoint_keeps_its_trailing_slash() -> None:
    assert BalancerConfig(health_endpoint="/health/").health_endpoint == "/health/"


def test_a_configuration_and_keywords_exclude_each_other() -> None:
    assert refusal(BalancerConfig(), name="x", scope="host") == (
        "give either config or keywords, not both: name, scope"
    )


def test_another_type_than_a_path_or_configuration_is_named() -> None:
    assert refusal({"name": "x"}) == (
        "config is the path of a YAML file or a BalancerConfig, not a dict"
    )


def test_every_error_stands_on_its_line_of_the_file(tmp_path: Path) -> None:
    text = """\
storage:
  type: redis
queue_timeot: 3
endpoints:
  predict:
  /x:
    capacity: 0
    capcity: 3
    methods: [GET, "P T"]
"""
    path = written(tmp_path, text)
    lines = refusal(path).splitlines()
    found = [line.removeprefix(f"{path}:").split(";")[0] for line in lines]
    assert found == [
        "1:1: storage.url: type redis needs an address, such as redis://localhost:6379",
        "3:1: queue_timeot: unknown key",
        "5:3: endpoints.predict: a path begins with /",
        "7:5: endpoints./x.capacity: found 0",
        "8:5: endpoints./x.capcity: unknown key",
        "9:20: endpoints./x.methods.1: found 'P T'",
    ]
    assert "did you mean queue_timeout? known keys: storage, " in lines[1]
    assert "did you mean capacity? known keys: method, methods, capacity, " in lines[4]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("stroage: 1", "stroage: unknown key; did you mean storage? "),
        ("storage: {typ: redis}", "storage.typ: unknown key; did you mean type? "),
        ("ui: {user: x}", "ui.user: unknown key; did you mean username? "),
        ("probe: {seconds: 1}", "probe.seconds: unknown key; did you mean max_seconds? "),
        ("scope: cluster", "scope: found 'cluster'; allowed: one of global, host, worker"),
        ("storage: redis", "storage: found text; allowed: keys with values"),
        ("endpoints: [/x]", "endpoints: found a list; allowed: keys with values"),
        ("error_threshold: .nan", "error_threshold: found nan; allowed: a number from 0 to 1"),
        ("queue_timeout: .inf", "queue_timeout: found inf; allowed: a number of at least 0"),
        ("queue_timeout: yes", "queue_timeout: found true; allowed: a number of at least 0"),
        ("queue_timeout:", "queue_timeout: found nothing; allowed: a number of at least 0"),
        ("probe_on_startup: 2", "probe_on_startup: found 2; allowed: true or false"),
        ("health_endpoint: h", "health_endpoint: found 'h'; a path begins with /"),
        ("name: 'a{b'", "name: a name has 1 to 100 characters"),
        ("body_timeout: 0", "body_timeout: found 0; allowed: a number above 0"),
        ("queue_size: -1", "queue_size: found -1; allowed: a whole number from 0 to 1,000,000,000"),
    ],
)
def test_a_wrong_setting_is_explained(tmp_path: Path, text: str, problem: str) -> None:
    path = written(tmp_path, text)
    message = refusal(path)
    assert re.sub(r":\d+:\d+: ", "|", message).startswith(f"{path}|{problem}")


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("x", "a path begins with /"),
        ("", "a path begins with /"),
        ("http://u:canary@h/x", "a path begins with /"),
        ("/x?y=1", "a path ends before ? and #"),
        ("/x#y", "a path ends before ? and #"),
        ("/x y", "a path holds no spaces"),
        ("/x%20y", "servers decode paths"),
        ("/items/{id", "broken template"),
        ("/items/id}", "broken template"),
        ("/items/{}", "broken template"),
        ("/items/{id:number}", "unknown convertor :number; known: str, path, int, float, uuid"),
        ("/{a}/{a}", "the same {parameter} stands twice"),
        ("/balancer/stats", "what is below /balancer"),
    ],
)
def test_a_bad_path_of_an_endpoint_is_refused(path: str, problem: str) -> None:
    message = refusal(endpoints={path: {}})
    assert problem in message
    assert "canary" not in message


def test_templates_that_match_the_same_requests_are_refused() -> None:
    assert refusal(endpoints={"/i/{a}": {}, "/i/{b:int}": {}, "/i/{c:str}": {}}) == (
        "BalancerConfig: endpoints./i/{c:str}: "
        "matches the same requests as /i/{a}; keep one of them"
    )


def test_the_dashboard_may_not_hide_an_endpoint() -> None:
    assert refusal(ui={"path": "/x"}, endpoints={"/x": {}}) == (
        "BalancerConfig: ui.path: /x is a watched endpoint; choose another path"
    )


def test_keywords_are_explained_like_a_file_without_lines() -> None:
    message = refusal(bad=1, endpoints={"/x": {"capacity": True}}, ui={"username": "a"})
    assert [line.split(";")[0] for line in message.splitlines()] == [
        "BalancerConfig: ui.password: a user name needs a password, or the dashboard is open",
        "BalancerConfig: endpoints./x.capacity: found true",
        "BalancerConfig: bad: unknown key",
    ]


CANARIES: list[dict[str, Any]] = [
    {"storage": "redis://:canary@h"},
    {"storage": {"type": "redis", "url": "redis:canary"}},
    {"storage": {"type": "redis://:canary@h"}},
    {"storage": {"url": ["canary"], "password": "canary"}},
    {"ui": {"username": "admin", "pasword": "canary"}},
    {"ui": {"username": ["canary"], "password": {"canary": "canary"}}},
    {"ui": "canary"},
    {"endpoints": {"/x": {"headers": "Authorization: canary"}}},
    {"endpoints": {"/x": {"headers": {"A": b"canary\xff"}}}},
    {"endpoints": {"/x": {"body": "canary", "capacity": [1]}}},
    {"endpoints": {"/x": "canary"}},
    {"endpoints": "canary"},
]


@pytest.mark.parametrize("keywords", CANARIES)
def test_an_error_shows_no_secret(keywords: dict[str, Any]) -> None:
    assert "canary" not in refusal(**keywords)


def test_a_configuration_shows_no_secret() -> None:
    config = BalancerConfig(
        storage={"type": "redis", "url": "redis://u:canary@h"},
        ui={"username": "admin", "password": "canary"},
        endpoints={"/x": {"headers": {"A": "canary"}, "body": ["canary"]}},
    )
    for text in (repr(config), str(config), config.model_dump_json()):
        assert "canary" not in text


def test_pydantics_own_error_hides_the_input_too() -> None:
    with pytest.raises(ValueError, match="Extra inputs") as error:
        BalancerConfig.model_validate({"ui": {"pasword": "canary"}})
    assert "canary" not in str(error.value)
