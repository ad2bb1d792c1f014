from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastapi_balancer.config import BalancerConfig
from fastapi_balancer.errors import ConfigError
from fastapi_balancer.models import EndpointProbeConfig


def read(directory: Path, text: str) -> BalancerConfig:
    path = directory / "balancer.yml"
    path.write_text(text, encoding="utf-8")
    return BalancerConfig.from_yaml(path)


def test_the_text_has_the_layout_of_0_2_1() -> None:
    config = BalancerConfig(
        ui={"path": "/dashboard"},
        scope="host",
        queue_timeout=1.5,
        endpoints={"/x": {"body": {"a": [1]}, "headers": {"Accept": "*/*"}, "capacity": 3}},
    )
    assert (
        config.to_yaml()
        == """\
storage:
  type: memory
routing_strategy: round-robin
health_endpoint: /health
health_check_interval: 10
queue_timeout: 1.5
probe_on_startup: true
force_reprobe: false
error_threshold: 0.05
latency_threshold_ms: 2000
scope: host
ui:
  enable: true
  path: /dashboard
endpoints:
  /x:
    method: GET
    capacity: 3
    headers:
      Accept: '*/*'
    body:
      a:
      - 1
"""
    )


def test_secrets_become_variables_named_after_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BalancerConfig(
        storage={"type": "redis", "url": "redis://:canary@h"},
        ui={"username": "admin", "password": "canary"},
        endpoints={"/predict": {"headers": {"Authorization": "canary", "Accept": "text/plain"}}},
    )
    text, names = config.to_yaml(), config.variables()
    assert "canary" not in text
    assert "Accept: text/plain" in text
    assert names == (
        "BALANCER_STORAGE_URL",
        "BALANCER_UI_PASSWORD",
        "BALANCER_PREDICT_AUTHORIZATION",
    )
    for name, value in zip(names, ("redis://:canary@h", "canary", "canary"), strict=True):
        monkeypatch.setenv(name, value)
    assert read(tmp_path, text) == config


@pytest.mark.parametrize(
    "line",
    [
        "url: redis://localhost:6379/0",
        "url: ${REDIS_URL}",
        "url: ${NO_URL:-redis://localhost:6379}",
        "url: redis://:${PW}@${HOST}:6379/0",
        "url: redis://h?password=${PW}",
    ],
)
def test_an_address_without_literal_credentials_is_written_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:canary@h")
    monkeypatch.setenv("PW", "canary")
    monkeypatch.setenv("HOST", "h")
    text = read(tmp_path, f"storage:\n  type: redis\n  {line}\n").to_yaml()
    assert f"\n  {line}\n" in text
    assert "canary" not in text


@pytest.mark.parametrize(
    "url",
    ["redis://:canary@${H}", "redis://:${H:-canary}@h", "redis://canary:@h", "unix://canary@/x"],
)
def test_an_address_with_literal_credentials_becomes_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("H", "h")
    config = read(tmp_path, f'storage: {{type: redis, url: "{url}"}}')
    assert "  url: ${BALANCER_STORAGE_URL}\n" in config.to_yaml()
    assert config.variables() == ("BALANCER_STORAGE_URL",)


def test_a_password_option_of_an_address_is_a_secret() -> None:
    config = BalancerConfig(storage={"type": "redis", "url": "redis://h?password=canary"})
    assert "canary" not in config.to_yaml()


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("${TOKEN}", True),
        ("Bearer ${TOKEN}", True),
        ("${NONE:-canary}", False),
        ("canary${TOKEN}", False),
        ("Bearer canary${TOKEN}", False),
    ],
)
def test_a_reference_is_kept_if_nothing_around_it_is_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, kept: bool
) -> None:
    monkeypatch.setenv("TOKEN", "canary")
    text = f'endpoints: {{/x: {{headers: {{Authorization: "{value}"}}}}}}'
    config = read(tmp_path, text)
    assert "canary" not in config.to_yaml()
    assert config.variables() == (("TOKEN",) if kept else ("BALANCER_X_AUTHORIZATION",))


def test_a_reference_survives_in_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "canary")
    config = read(tmp_path, "endpoints: {/x: {headers: {A: '${TOKEN}'}, body: ['${TOKEN}']}}")
    endpoint = config.endpoints["/x"].model_copy(update={"capacity": 7})
    text = config.model_copy(update={"endpoints": {"/x": endpoint}}).to_yaml()
    assert "capacity: 7\n" in text
    assert text.count("${TOKEN}") == 2
    assert "canary" not in text


def test_a_derived_name_is_never_that_of_another_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALANCER_A_B_KEY", "other")
    text = """\
endpoints:
  /a-b: {headers: {Key: one}}
  /a_b: {headers: {Key: two}}
  /c: {headers: {Key: "${BALANCER_A_B_KEY}"}}
"""
    assert read(tmp_path, text).variables() == (
        "BALANCER_A_B_KEY_2",
        "BALANCER_A_B_KEY_3",
        "BALANCER_A_B_KEY",
    )


def test_a_variable_with_a_default_is_needed_only_if_it_was_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'storage: {type: redis, url: "${MY_URL:-redis://localhost}"}'
    assert read(tmp_path, text).variables() == ()
    monkeypatch.setenv("MY_URL", "redis://h")
    assert read(tmp_path, text).variables() == ("MY_URL",)


@pytest.mark.parametrize("name", ["body", "url", "password"])
def test_a_header_named_like_a_key_is_still_a_secret(name: str) -> None:
    config = BalancerConfig(endpoints={"/x": {"headers": {name: "canary"}}})
    assert "canary" not in config.to_yaml()
    assert config.variables() == (f"BALANCER_X_{name.upper()}",)


def test_a_body_that_is_no_json_is_named() -> None:
    config = BalancerConfig(endpoints={"/x": EndpointProbeConfig(body={"inputs": [1, ...]})})
    with pytest.raises(ConfigError) as error:
        config.to_yaml()
    assert str(error.value) == (
        "endpoints./x.body.inputs.1: an object of type ellipsis cannot be written; "
        "a body is made of JSON's types"
    )


BODIES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=BODIES,
    name=st.text(min_size=1, max_size=20),
    queue_timeout=st.floats(min_value=0, allow_infinity=False),
    capacity=st.none() | st.integers(1, 10**9),
)
def test_what_was_written_reads_back_as_the_same(
    tmp_path: Path, body: Any, name: str, queue_timeout: float, capacity: int | None
) -> None:
    endpoint = EndpointProbeConfig(body=body, capacity=capacity, methods=["GET", "PUT"])
    try:
        config = BalancerConfig(
            name=name, queue_timeout=queue_timeout, endpoints={"/i/{a}": endpoint}
        )
    except ConfigError:
        return  # not every text is a name
    assert read(tmp_path, config.to_yaml()) == config
