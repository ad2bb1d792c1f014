"""Documents the configuration from its models: the JSON schema for editors, and PARAMS.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core.core_schema import CoreSchema

from fastapi_balancer.fields import Unit
from fastapi_balancer.problems import allowed

_FROM_ENVIRONMENT = {
    "type": "string",
    "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}",
    "description": "A value from the environment: ${NAME} or ${NAME:-default}.",
}
_ABOUT = ("description", "default")
_NOISE = ("title", "format", "writeOnly", "propertyNames")
_PREAMBLE = """\
# Parameters

Every key of `balancer.yml`, which is at the same time every keyword of `BalancerConfig`, and of
`Balancer` itself. All are optional. A key that is not listed here is an error.

In the YAML file, text may hold `${NAME}` and `${NAME:-default}`, which are replaced by environment
variables; `$${` stands for the characters `${`. Keys are not replaced.

This file is written by `python -m fastapi_balancer.config params`, and `balancer.schema.json`, by
which an editor completes and checks `balancer.yml`, by `python -m fastapi_balancer.config schema`.
"""


class EditorSchema(GenerateJsonSchema):
    """JSON schema of the file as users write it: `${NAME}` for any value, empty sections."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Leave out titles: they only repeat the key."""
        return False

    def generate(self, schema: CoreSchema, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        """Generate as pydantic does, then tidy."""
        made = _tidy(super().generate(schema, mode))
        definitions = {name: _tidy(each) for name, each in made.get("$defs", {}).items()}
        made["$defs"] = {**definitions, "FromEnvironment": _FROM_ENVIRONMENT}
        return {"$schema": self.schema_dialect, **made}


def _tidy(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Make the schema of a value that of its text in the file, without words about Python."""
    tidy = {word: value for word, value in schema.items() if word not in _NOISE}
    if "allOf" in tidy:  # how pydantic before 2.9 refers to a definition
        tidy |= tidy.pop("allOf")[0]
    if "description" in tidy:
        tidy["description"] = " ".join(tidy["description"].split())
    if isinstance(tidy.get("default"), float) and tidy["default"].is_integer():
        tidy["default"] = int(tidy["default"])
    if tidy.get("type") == "object":
        return _tidy_section(tidy)
    return _or_reference(tidy)


def _tidy_section(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Allow a key without a value, which is an empty section, and name what may stand in it."""
    tidy = {"additionalProperties": False, **schema, "type": ["object", "null"]}
    for word in ("properties", "patternProperties"):
        if word in tidy:
            tidy[word] = {name: _tidy(each) for name, each in tidy[word].items()}
    if isinstance(tidy["additionalProperties"], dict):
        tidy["additionalProperties"] = _tidy(tidy["additionalProperties"])
    return tidy


def _or_reference(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Allow `${NAME}` where not any text is allowed already."""
    branches = schema.get("anyOf") or [
        {word: value for word, value in schema.items() if word not in _ABOUT}
    ]
    branches = [_branch(each) for each in branches]
    if not any(_takes_no_text(each) for each in branches):
        return {**schema, "anyOf": branches} if "anyOf" in schema else schema
    about = {word: schema[word] for word in _ABOUT if word in schema}
    return {**about, "anyOf": [*branches, {"$ref": "#/$defs/FromEnvironment"}]}


def _branch(schema: JsonSchemaValue) -> JsonSchemaValue:
    tidy = {word: value for word, value in schema.items() if word not in _NOISE}
    return {**tidy, "items": _tidy(tidy["items"])} if "items" in tidy else tidy


def _takes_no_text(schema: JsonSchemaValue) -> bool:
    is_closed_text = schema.get("type") == "string" and ("enum" in schema or "pattern" in schema)
    return is_closed_text or schema.get("type") in ("integer", "number", "boolean")


def params(model: type[BaseModel]) -> str:
    """Write PARAMS.md: a table for each section."""
    root = model.model_json_schema(schema_generator=GenerateJsonSchema)
    return _PREAMBLE + "".join(_section(*each, root) for each in _sections(model))


def _sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield "", model
    for name, field in model.model_fields.items():
        if (section := _section_of(field.annotation)) is not None:
            key = name if section is field.annotation else f"{name}.<path>"
            yield key, section


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """Find the section in an annotation such as `dict[str, Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_of(each) for each in get_args(annotation))
    return next((each for each in found if each is not None), None)


def _section(key: str, model: type[BaseModel], root: JsonSchemaValue) -> str:
    title = f"`{key}`" if key else "Top level"
    about = " ".join((model.__doc__ or "").split())
    properties = (root if not key else root["$defs"][model.__name__])["properties"]
    rows = "".join(
        f"| `{name}` | {_meaning(field)} | {_unit(field)} | {_default(field)} "
        f"| {allowed(properties[name], root)} |\n"
        for name, field in model.model_fields.items()
    )
    head = "| key | meaning | unit | default | allowed |\n|---|---|---|---|---|\n"
    return f"\n## {title}\n\n{about}\n\n{head}{rows}"


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


def _unit(field: FieldInfo) -> str:
    annotations = [*field.metadata, field.annotation]
    return next((unit.name for each in annotations for unit in _units(each)), "")


def _units(annotation: Any) -> Iterator[Unit]:
    if isinstance(annotation, Unit):
        yield annotation
    metadata = getattr(annotation, "__metadata__", ())
    for each in (*metadata, *get_args(annotation)):
        yield from _units(each)


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel) or default == {}:
        return "empty"
    if default is None:
        return "unset"
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    return f"`{json.dumps(default).strip(chr(34))}`"
