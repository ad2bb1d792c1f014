from __future__ import annotations

import copy
import pickle

import pytest

from fastapi_balancer.environment import FromEnvironment, escape, expand, literal, variables
from fastapi_balancer.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("${A}", "1"),
        ("x${A}y${B:-2}z", "x1y2z"),
        ("${EMPTY}", ""),
        ("${EMPTY:-full}", "full"),
        ("${A:-other}", "1"),
        ("${NONE:-}", ""),
        ("${NONE:-redis://h:6379/0}", "redis://h:6379/0"),
        ("$${A}", "${A}"),
        ("$A and $5", "$A and $5"),
        ("$$A", "$$A"),
    ],
)
def test_references_are_replaced_as_a_shell_would(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1", "EMPTY": ""}) == expanded


def test_a_variable_that_is_not_set_is_named_without_the_text_around_it() -> None:
    with pytest.raises(ConfigError, match="variable NONE is not set") as error:
        expand("canary${NONE}", {})
    assert "canary" not in str(error.value)


@pytest.mark.parametrize("text", ["${", "${}", "${1A}", "${A", "${A-x}", "${A B}"])
def test_a_broken_reference_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"\$\{NAME:-default\}"):
        expand(text, {"A": "1"})


def test_expanded_text_remembers_its_reference_through_copies_and_pickles() -> None:
    text = expand("Bearer ${A}", {"A": "1"})
    for each in (text, copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert isinstance(each, FromEnvironment)
        assert (each, each.reference) == ("Bearer 1", "Bearer ${A}")


def test_text_without_a_reference_is_plain_text() -> None:
    assert type(expand("$${A}", {})) is str


@pytest.mark.parametrize("text", ["", "${A}", "$${A}", "$$${", "a$b", "${"])
def test_escaped_text_expands_to_itself(text: str) -> None:
    assert expand(escape(text), {}) == text


def test_variables_come_with_their_defaults() -> None:
    assert variables("$${X} ${A} ${B:-b}") == {"A": None, "B": "b"}


def test_the_literal_part_holds_the_defaults_and_no_reference() -> None:
    assert literal("redis://:${PW}@${HOST:-h}/$${x}") == "redis://:@h/${x}"
