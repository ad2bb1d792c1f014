from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastapi_balancer.config import BalancerConfig, load_config
from fastapi_balancer.config.document import Document
from fastapi_balancer.errors import ConfigError


def written(directory: Path, content: str | bytes) -> Path:
    path = directory / "balancer.yml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(directory: Path, content: str | bytes) -> str:
    """What is said of a file's content, without the file's name."""
    path = written(directory, content)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    return str(error.value).replace(str(path), "F")


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "{}", "\ufeffname:\n", "null"])
def test_an_empty_file_means_the_defaults(tmp_path: Path, content: str) -> None:
    content = content.replace("name:", "ui:")
    assert load_config(written(tmp_path, content)) == BalancerConfig()


def test_a_missing_file_is_named_with_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_config("none.yml")
    assert str(error.value) == f"none.yml: no such file; looked in {tmp_path}"


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a directory; name the YAML file in it"):
        load_config(tmp_path)


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="not the name of a file"):
        load_config("a\0b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: x\nui: \xff", "F:2: not UTF-8; save the file as UTF-8"),
        ("name: \x07", "F:1: not YAML: a control character"),
        ("- 1", "F: found a list; allowed: keys with values"),
        ("text", "F: found text; allowed: keys with values"),
        ("a: [", "F:1:5: not YAML: expected the node content, but found '<stream end>'"),
        ("a: b: c", "F:1:5: not YAML: mapping values are not allowed here"),
        ("a: &x [*x]", "F:1:4: not YAML: found unconstructable recursive node"),
        ("a: 0b_", "F:1:4: not YAML: this is not a whole number; put text in quotes"),
        ("a: !!bool x", "F:1:4: not YAML: this is not true or false; put text in quotes"),
        ("? [a]\n: 1", "F:1:3: not YAML: a key is text, not a list or keys with values"),
        ("[" * 5000, "F: nested too deeply"),
        ("1: 2", "F:1:1: 1: found a whole number as a key; a key is text, so put it in quotes"),
    ],
)
def test_what_is_not_a_configuration_is_explained(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    assert refusal(tmp_path, content) == message


@pytest.mark.parametrize("secret", ["*canary", "!canary x", "!!python/name:canary x", "%canary"])
def test_a_secret_that_yaml_takes_for_its_own_sign_is_not_shown(
    tmp_path: Path, secret: str
) -> None:
    message = refusal(tmp_path, f"ui:\n  username: a\n  password: {secret}")
    assert message.startswith("F:3:13: not YAML: ")
    assert "canary" not in message


def test_a_reference_that_needs_quotes_is_explained(tmp_path: Path) -> None:
    assert refusal(tmp_path, "ui: {username: a, password: ${CANARY}}") == (
        "F:1:30: not YAML: expected ',' or '}', but got '{'; "
        "between { } and [ ] a ${NAME} must be in quotes"
    )


def test_a_key_that_stands_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    assert refusal(tmp_path, "ui:\n  path: /a\n  enable: true\n  path: /b") == (
        "F:4:3: ui.path: stands twice; it stands in line 2 already"
    )


def test_a_merged_key_may_be_replaced(tmp_path: Path) -> None:
    text = """\
endpoints:
  /a: &common {capacity: 3, queue_timeout: 1}
  /b: {<<: *common, capacity: 4}
"""
    endpoints = load_config(written(tmp_path, text)).endpoints
    assert (endpoints["/b"].capacity, endpoints["/b"].queue_timeout) == (4, 1)


def test_values_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """\
queue_timeout: ${TIMEOUT:-7.5}
probe_on_startup: ${PROBE}
endpoints:
  /${NOT_IN_KEYS}:
  /x:
    capacity: ${CAP}
    body: {text: "${CAP}", list: ["$${CAP}"]}
"""
    monkeypatch.setenv("CAP", "8")
    monkeypatch.setenv("PROBE", "false")
    with pytest.raises(ConfigError, match="is not replaced in a key") as error:
        load_config(written(tmp_path, text))
    assert len(str(error.value).splitlines()) == 1
    config = load_config(written(tmp_path, text.replace("  /${NOT_IN_KEYS}:\n", "")))
    assert (config.queue_timeout, config.probe_on_startup) == (7.5, False)
    assert config.endpoints["/x"].capacity == 8
    assert config.endpoints["/x"].body == {"text": "8", "list": ["${CAP}"]}


def test_missing_variables_are_listed_with_all_other_errors(tmp_path: Path) -> None:
    text = "queue_timeout: ${NO_A}\nui: {username: ${NO_B}, password: 3}\nendpoints: {/x: ${NO_C}}"
    text = text.replace("${NO_B}", '"${NO_B}"').replace("{/x: ${NO_C}}", '{/x: "${NO_C}"}')
    assert [line.split(" is not set")[0] for line in refusal(tmp_path, text).splitlines()] == [
        "F:1:1: queue_timeout: the environment variable NO_A",
        "F:2:6: ui.username: the environment variable NO_B",
        "F:2:27: ui.password: found a whole number; allowed: text, or nothing",
        "F:3:13: endpoints./x: the environment variable NO_C",
    ]


def test_a_value_from_the_environment_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAP", "canary")
    assert refusal(tmp_path, "endpoints: {/x: {capacity: '${CAP}'}}\nscope: ${CAP}") == (
        "F:1:18: endpoints./x.capacity: what the environment variable CAP holds does not fit; "
        "allowed: a whole number from 1 to 1,000,000,000, or nothing\n"
        "F:2:1: scope: what the environment variable CAP holds does not fit; "
        "allowed: one of global, host, worker"
    )


def test_dates_stay_text_since_json_has_none(tmp_path: Path) -> None:
    text = "endpoints: {/x: {body: {day: 2026-01-31, sign: =}}}"
    config = load_config(written(tmp_path, text))
    assert config.endpoints["/x"].body == {"day": "2026-01-31", "sign": "="}


def test_an_alias_is_reported_once(tmp_path: Path) -> None:
    document = Document.read(written(tmp_path, 'a: &x ["${NONE_SET}"]\nb: *x'), {})
    assert [problem.path for problem in document.problems] == [("a", "0")]


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["${A}", "${", "$${", "/x", "/i/{a}", "*a", "!t", "0b_", "redis", "redis://h"]),
)
KEYS = st.one_of(
    st.sampled_from(sorted(BalancerConfig.model_fields)),
    st.sampled_from(
        ["type", "url", "/x", "/i/{a}", "capacity", "headers", "body", "methods", "<<"]
    ),
    SCALARS,
)
TREES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(KEYS, inner), max_size=4),
    max_leaves=15,
)


def as_flow(tree: Any) -> str:
    """Write a tree as YAML a bit carelessly; a list of pairs becomes a mapping."""
    if isinstance(tree, list) and tree and all(isinstance(each, tuple) for each in tree):
        return "{" + ", ".join(f"{as_flow(key)}: {as_flow(value)}" for key, value in tree) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(as_flow(each) for each in tree) + "]"
    return "null" if tree is None else str(tree)


def loaded(path: Path | None = None, **keywords: Any) -> BalancerConfig | ConfigError:
    try:
        return load_config(path, **keywords)
    except ConfigError as error:
        return error


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.one_of(TREES.map(as_flow), st.text(max_size=60), st.binary(max_size=60)))
def test_any_file_loads_or_is_a_configuration_error(tmp_path: Path, content: str | bytes) -> None:
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    path = written(tmp_path, raw)
    outcome = loaded(path)
    if isinstance(outcome, ConfigError):
        assert all(line.startswith(str(path)) for line in str(outcome).splitlines())


@settings(max_examples=200, deadline=None)
@given(keywords=st.dictionaries(st.sampled_from(sorted(BalancerConfig.model_fields)), TREES))
def test_any_keywords_load_or_are_a_configuration_error(keywords: dict[str, Any]) -> None:
    outcome = loaded(**keywords)
    if isinstance(outcome, ConfigError):
        assert str(outcome).startswith("BalancerConfig: ")
