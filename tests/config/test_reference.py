from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from fastapi_balancer.config import BalancerConfig, load_config
from fastapi_balancer.config.__main__ import main
from fastapi_balancer.config.reference import params
from fastapi_balancer.models import EndpointProbeConfig, ProbeConfig, StorageConfig, UIConfig

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "balancer.yml.example"
SECTIONS = (BalancerConfig, StorageConfig, UIConfig, ProbeConfig, EndpointProbeConfig)


def full_example() -> str:
    """The example with the keys that it shows as comments."""
    return re.sub(r"^( {0,6})# (\w+: )", r"\1\2", EXAMPLE.read_text(), flags=re.MULTILINE)


def faults(document: Any) -> list[str]:
    """Where a document does not fit the schema, as dotted keys."""
    validator = Draft202012Validator(BalancerConfig.model_json_schema())
    errors = validator.iter_errors(document)
    return sorted(".".join(str(key) for key in error.absolute_path) for error in errors)


def test_params_md_is_what_the_models_say() -> None:
    assert (ROOT / "PARAMS.md").read_text() == params(BalancerConfig), (
        "write it anew: python -m fastapi_balancer.config params > PARAMS.md"
    )


def test_the_schema_file_is_what_the_models_say() -> None:
    stored = json.loads((ROOT / "balancer.schema.json").read_text())
    assert stored == BalancerConfig.model_json_schema(), (
        "write it anew: python -m fastapi_balancer.config schema > balancer.schema.json"
    )


def test_params_md_tells_meaning_unit_default_and_allowed_values_of_every_key() -> None:
    rows = [line for line in params(BalancerConfig).splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(section.model_fields) for section in SECTIONS)
    for row in rows:
        meaning, _, default, allowed = (cell.strip() for cell in row.split("|")[2:6])
        assert meaning.endswith(".")
        assert default
        assert allowed
    assert (
        "| `queue_timeout` | How long a request may wait for a slot; then it is answered with 504."
        " 0: not at all, but for asking a shared store, which takes `storage.timeout` at the most."
        " | s | `30` | a number of at least 0 |" in rows
    )


def test_the_schema_is_one_that_editors_understand() -> None:
    schema = BalancerConfig.model_json_schema()
    Draft202012Validator.check_schema(schema)
    text = json.dumps(schema)
    for noise in ("title", "writeOnly", "SecretStr", "format"):
        assert f'"{noise}"' not in text
    for section in (schema, *schema["$defs"].values()):
        if "properties" in section:
            assert section["additionalProperties"] is False
            assert section["description"]
            assert all("description" in p or "$ref" in p for p in section["properties"].values())


def test_the_example_fits_the_schema_with_and_without_references() -> None:
    document = yaml.safe_load(full_example())
    assert faults(document) == []
    document["endpoints"]["/items/{id}"]["capacity"] = "${CAP:-10}"
    document["probe_on_startup"] = "${PROBE}"
    document["scope"] = "${SCOPE}"
    assert faults(document) == []


def test_a_wrong_file_does_not_fit_the_schema() -> None:
    document = {
        "storage": {"type": "mysql"},
        "queue_timeot": 3,
        "queue_timeout": -1,
        "health_endpoint": "health",
        "endpoints": {
            "predict": None,
            "/x": {"capacity": 0, "capcity": 1, "methods": ["P T"], "headers": {"A": 1}},
            "/y": {"capacity": "many"},
            "/z": None,
        },
    }
    assert faults(document) == [
        "",
        "endpoints",
        "endpoints./x",
        "endpoints./x.capacity",
        "endpoints./x.headers.A",
        "endpoints./x.methods",
        "endpoints./y.capacity",
        "health_endpoint",
        "queue_timeout",
        "storage.type",
    ]


def test_the_example_shows_every_key() -> None:
    document = yaml.safe_load(full_example())
    endpoints = document["endpoints"].values()
    assert set(document) == set(BalancerConfig.model_fields)
    assert set(document["storage"]) == set(StorageConfig.model_fields)
    assert set(document["ui"]) == set(UIConfig.model_fields)
    assert set(document["probe"]) == set(ProbeConfig.model_fields)
    assert {key for each in endpoints for key in each} == set(EndpointProbeConfig.model_fields)


def test_the_example_shows_the_defaults() -> None:
    config = load_config(EXAMPLE)
    assert config == BalancerConfig(endpoints=config.endpoints)
    shown = set(yaml.safe_load(EXAMPLE.read_text())) - {"endpoints"}
    unset = {name for name in shown if getattr(config, name) is None}
    assert unset == set()


def test_the_full_example_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALANCER_UI_PASSWORD", "secret")
    monkeypatch.setenv("API_TOKEN", "token")
    path = tmp_path / "balancer.yml"
    path.write_text(full_example())
    config = load_config(path)
    assert config.default_capacity == 20
    header = config.endpoints["/predict"].headers["Authorization"]
    assert header.get_secret_value() == "Bearer token"


@pytest.mark.parametrize(
    ("argument", "start"), [("params", "# Parameters\n"), ("schema", '{\n  "$schema"')]
)
def test_the_command_writes_what_is_asked_for(
    capsys: pytest.CaptureFixture[str], argument: str, start: str
) -> None:
    assert main([argument]) == 0
    assert capsys.readouterr().out.startswith(start)


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: ")
