"""Says in words what is wrong with a configuration: where, what was found, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from fastapi_balancer.environment import FromEnvironment, variables

Key = str | int
Schema = dict[str, Any]
_LONGEST = 60  # characters of a wrong value that a message repeats
_KINDS = {"boolean": "true or false", "string": "text", "null": "nothing"}
_FORMATS = {
    "path": "a path such as /predict",
    "endpoint": "a path such as /predict or /items/{id}",
    "target": "a path such as /items/1 or /items/1?full=1",
    "http-method": "an HTTP method such as GET",
    "uri": "an address such as redis://localhost:6379",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `path` are the keys that lead to it, from the top."""

    path: tuple[Key, ...]
    text: str


def wrong(text: str, *keys: str) -> PydanticCustomError:
    """Make the error that a validator raises. `keys` lead on to the value that is meant.

    `text` must not repeat the value, which may be a secret.
    """
    return PydanticCustomError("wrong", "{text}", {"text": text, "keys": keys})


def problems_of(model: type[BaseModel], error: ValidationError) -> list[Problem]:
    """Explain each of pydantic's errors. Values of secret or free fields are not repeated."""
    schema = model.model_json_schema(schema_generator=GenerateJsonSchema)
    return [_problem(schema, details) for details in error.errors(include_url=False)]


def report(
    problems: Iterable[Problem],
    source: str,
    position: Callable[[tuple[Key, ...]], tuple[int, int] | None] = lambda path: None,
) -> str:
    """Write one line for each problem, `source:line:column: key: text`, in the file's order."""
    lines = []
    for problem in problems:
        found = position(problem.path) or ()
        place = ":".join([source, *map(str, found)])
        key = ".".join(_segment(key) for key in problem.path)
        lines.append(
            (found, f"{place}: {key}: {problem.text}" if key else f"{place}: {problem.text}")
        )
    return "\n".join(line for _, line in sorted(lines, key=lambda each: each[0]))


def allowed(schema: Schema, root: Schema) -> str:
    """Name what a field takes, from its JSON schema; `root` holds the definitions."""
    schema = _resolved(schema, root)
    if "anyOf" in schema:
        return ", or ".join(allowed(each, root) for each in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    if schema.get("format") in _FORMATS:
        return _FORMATS[str(schema["format"])]
    match schema.get("type"):
        case "integer":
            return "a whole number" + _bounds(schema)
        case "number":
            return "a number" + _bounds(schema)
        case "array":
            return f"a list, each {allowed(schema['items'], root)}"
        case "object":
            return "keys with values"
        case kind:
            return _KINDS.get(str(kind), "anything")


def suggestion(word: str, known: Iterable[str]) -> str:
    """Name the nearest known word, if one is near, and all known ones."""
    words = list(known)
    near = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}known keys: {', '.join(words)}"


def _bounds(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}" if high < 1e6 else f" from {low:g} to {high:,}"
    parts = [f"of at least {low:g}"] if low is not None else []
    if "exclusiveMinimum" in schema:
        parts.append(f"above {schema['exclusiveMinimum']:g}")
    if high is not None:
        parts.append(f"at most {high:g}")
    return "".join(f" {part}" if i == 0 else f" and {part}" for i, part in enumerate(parts))


def _problem(root: Schema, details: ErrorDetails) -> Problem:
    path = tuple(key for key in details["loc"] if key != "[key]")
    if details["type"] == "extra_forbidden":
        known = _at(root, path[:-1]).get("properties", {})
        return Problem(path, f"unknown key; {suggestion(str(path[-1]), known)}")
    if details["type"] == "invalid_key" or details["loc"][-1:] == ("[key]",):
        return Problem(path, _wrong_key(details))
    schema = _at(root, path)
    found = _found(details["input"], shown=_is_plain(schema, root))
    if details["type"] != "wrong":
        return Problem(path, f"{found}; allowed: {allowed(schema, root)}")
    context = details.get("ctx", {})
    start = f"{found}; " if _is_plain(schema, root) else ""
    return Problem((*path, *context["keys"]), f"{start}{context['text']}")


def _wrong_key(details: ErrorDetails) -> str:
    if details["type"] == "wrong":
        return str(details.get("ctx", {})["text"])
    return f"found {_kind(details['input'])} as a key; a key is text, so put it in quotes"


def _at(root: Schema, path: tuple[Key, ...]) -> Schema:
    schema = _resolved(root, root)
    for key in path:
        schema = _resolved(_child(schema, key), root)
    return schema


def _child(schema: Schema, key: Key) -> Schema:
    for branch in schema.get("anyOf", [schema]):
        if key in branch.get("properties", {}):
            return dict(branch["properties"][key])
        if branch.get("type") == "array":
            return dict(branch["items"])
        values = [*branch.get("patternProperties", {}).values(), branch.get("additionalProperties")]
        if values[0]:
            return dict(values[0])
    return {}


def _resolved(schema: Schema, root: Schema) -> Schema:
    if "allOf" in schema:  # how pydantic before 2.9 refers to a definition
        return _resolved(schema["allOf"][0], root)
    if "$ref" in schema:
        target: Schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
        return target
    return schema


def _is_plain(schema: Schema, root: Schema) -> bool:
    """Whether a wrong value may be repeated: neither a secret nor free content."""
    branches = [_resolved(each, root) for each in schema.get("anyOf", [schema])]
    return all(
        each.get("type") in ("integer", "number", "boolean", "null")
        or "enum" in each
        or ("format" in each and "writeOnly" not in each)
        for each in branches
    )


def _found(value: object, *, shown: bool) -> str:
    if isinstance(value, FromEnvironment):
        names = ", ".join(variables(value.reference))
        return f"what the environment variable {names} holds does not fit"
    if not shown or not isinstance(value, str | int | float) or _looks_secret(value):
        return f"found {_kind(value)}"
    return f"found {str(value).lower() if isinstance(value, bool) else repr(value)}"


def _looks_secret(value: object) -> bool:
    """Whether text may be an address with credentials, or is just long, in the wrong place."""
    return isinstance(value, str) and (len(value) > _LONGEST or "@" in value or "://" in value)


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, BaseModel):
        return f"a {type(value).__name__}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    names |= {dict: "keys with values", list: "a list", tuple: "a list"}
    return names.get(type(value), f"an object of type {type(value).__name__}")


def _segment(key: Key) -> str:
    """Write one key of a path; not an address, which may hold credentials."""
    return "(an address)" if "://" in str(key) else str(key) or "''"
