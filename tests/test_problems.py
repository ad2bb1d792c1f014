from __future__ import annotations

from typing import Any

import pytest
from pydantic.json_schema import GenerateJsonSchema

from fastapi_balancer.config import BalancerConfig
from fastapi_balancer.problems import Problem, allowed, report, suggestion


def test_problems_stand_in_the_order_of_the_file() -> None:
    lines = {("a",): (9, 1), ("b", 0): (2, 3), (): None}
    problems = [Problem(("a",), "one"), Problem(("b", 0), "two"), Problem((), "three")]
    assert report(problems, "f.yml", lines.__getitem__).splitlines() == [
        "f.yml: three",
        "f.yml:2:3: b.0: two",
        "f.yml:9:1: a: one",
    ]


def test_a_key_that_is_an_address_is_not_shown() -> None:
    assert report([Problem(("x", "redis://:pw@h"), "wrong")], "f") == "f: x.(an address): wrong"


def test_an_empty_key_is_visible() -> None:
    assert report([Problem(("x", ""), "wrong")], "f") == "f: x.'': wrong"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "a whole number of at least 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 5}, "a number above 0 and at most 5"),
        ({"type": "number", "maximum": 5}, "a number at most 5"),
        (
            {"type": "integer", "minimum": 0, "maximum": 10**9},
            "a whole number from 0 to 1,000,000,000",
        ),
        ({"enum": ["a", "b"], "type": "string"}, "one of a, b"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text, or nothing"),
        ({"type": "array", "items": {"type": "boolean"}}, "a list, each true or false"),
        ({"$ref": "#/$defs/S"}, "keys with values"),
        ({}, "anything"),
    ],
)
def test_what_is_allowed_is_said_in_words(schema: dict[str, Any], words: str) -> None:
    assert allowed(schema, {"$defs": {"S": {"type": "object"}}}) == words


def test_every_key_of_the_configuration_says_what_it_allows() -> None:
    root = BalancerConfig.model_json_schema(schema_generator=GenerateJsonSchema)
    sections = [root, *root["$defs"].values()]
    said = {
        name: allowed(field, root)
        for section in sections
        for name, field in section.get("properties", {}).items()
    }
    assert [name for name, words in said.items() if words == "anything"] == ["body"]


def test_a_near_word_is_suggested_whatever_its_case() -> None:
    assert suggestion("Capcity", ["method", "capacity"]) == (
        "did you mean capacity? known keys: method, capacity"
    )
    assert suggestion("zzz", ["method"]) == "known keys: method"
