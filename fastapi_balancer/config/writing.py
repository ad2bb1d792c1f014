"""Writes a configuration as YAML, with `${NAME}` in place of every secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml
from pydantic import BaseModel, SecretStr

from fastapi_balancer.environment import FromEnvironment, escape, literal, variables
from fastapi_balancer.errors import ConfigError
from fastapi_balancer.fields import SecretReference

_ALWAYS = frozenset(  # what 0.2.1 wrote even when it was the default
    [
        "storage",
        "routing_strategy",
        "health_endpoint",
        "health_check_interval",
        "queue_timeout",
        "probe_on_startup",
        "force_reprobe",
        "error_threshold",
        "latency_threshold_ms",
        "ui",
        "type",
        "enable",
        "method",
    ]
)
_HARMLESS_HEADERS = frozenset(
    [
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "content-encoding",
        "content-language",
        "content-type",
        "user-agent",
    ]
)
_AUTH_SCHEMES = ("", "Bearer ", "Basic ", "Token ", "ApiKey ")
_SECRET_OPTIONS = re.compile(r"pass|user|auth|secret|token|cred", re.IGNORECASE)
_ADDRESS = ("storage", "url")
_RARE_BREAKS = re.compile("[\r\x85\u2028\u2029\ufeff]")
_EXACT_INTEGERS = 2**53


@dataclass(frozen=True, slots=True)
class Written:
    """The text of a file, and the variables that must be set to read it."""

    text: str
    variables: tuple[str, ...]


def write(config: BaseModel) -> Written:
    """Write a configuration. Raises `ConfigError` for a body that is not made of JSON's types."""
    writer = _Writer(taken=_names_in_use(config))
    data = writer.section((), config)
    text = yaml.dump(data, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=4096)
    return Written(text, tuple(dict.fromkeys(writer.needed)))


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        """Write shared values out: an anchor would puzzle whoever edits the file."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Write text; rare line breaks escaped, since PyYAML would write them as spaces."""
        style = '"' if _RARE_BREAKS.search(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)


@dataclass(slots=True)
class _Writer:
    taken: set[str]  # names that stand for something else
    needed: list[str] = field(default_factory=list)

    def section(self, path: tuple[str, ...], section: BaseModel) -> dict[str, Any]:
        """Write the fields of a section that differ from the default, and those of 0.2.1."""
        written = {}
        for name, info in type(section).model_fields.items():
            value = getattr(section, name)
            is_default = value == info.get_default(call_default_factory=True)
            if value is not None and (name in _ALWAYS or not is_default):
                write_it = self.body if name == "body" else self.value
                written[name] = write_it((*path, name), value)
        return written

    def value(self, path: tuple[str, ...], value: object) -> object:
        """Write one value, whatever it is."""
        if isinstance(value, BaseModel):
            return self.section(path, value)
        if isinstance(value, SecretStr):
            return self.secret(path, value)
        if isinstance(value, Mapping):
            return {key: self.value((*path, key), each) for key, each in value.items()}
        if isinstance(value, tuple):
            return [self.value(path, each) for each in value]
        if isinstance(value, Enum):
            return value.value
        if isinstance(value, float) and value.is_integer() and value < _EXACT_INTEGERS:
            return int(value)
        return escape(value) if isinstance(value, str) else value

    def secret(self, path: tuple[str, ...], secret: SecretStr) -> str:
        """Write a secret as the reference it came from, or as one named after its place."""
        text = secret.get_secret_value()
        if isinstance(secret, SecretReference) and _shows_nothing(path, secret.reference):
            return self.reference(secret.reference, text)
        if _is_harmless(path, text):
            return escape(text)
        return self.reference(f"${{{self.name(path)}}}", text)

    def name(self, path: tuple[str, ...]) -> str:
        """Name a variable after a key's place: BALANCER_PREDICT_AUTHORIZATION."""
        words = [_slug(key) for key in path if key not in ("endpoints", "headers")]
        name = "_".join(["BALANCER", *(word for word in words if word)])
        free, number = name, 1
        while free in self.taken:
            number += 1
            free = f"{name}_{number}"
        self.taken.add(free)
        return free

    def reference(self, reference: str, text: str) -> str:
        """Note the variables that must be set for `reference` to become `text` again."""
        names = variables(reference)
        as_it_was = text != literal(reference)  # not all came from the defaults
        self.needed += [name for name in names if as_it_was or names[name] is None]
        return reference

    def body(self, path: tuple[str, ...], value: object) -> object:
        """Write a sample body as it is."""
        if isinstance(value, FromEnvironment):
            return self.reference(value.reference, str(value))
        if isinstance(value, str):
            return escape(value)
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, list | tuple):
            return [self.body((*path, str(i)), each) for i, each in enumerate(value)]
        if isinstance(value, Mapping):
            return {key: self.body((*path, str(key)), each) for key, each in value.items()}
        raise ConfigError(
            f"{'.'.join(path)}: an object of type {type(value).__name__} cannot be written; "
            "a body is made of JSON's types"
        )


def _names_in_use(config: BaseModel) -> set[str]:
    """Names that the file refers to already; a derived name must not be one of them."""
    found: set[str] = set()
    waiting: list[object] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, SecretReference | FromEnvironment):
            found |= set(variables(value.reference))
        elif isinstance(value, BaseModel):
            waiting += [getattr(value, name) for name in type(value).model_fields]
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    return found


def _shows_nothing(path: tuple[str, ...], reference: str) -> bool:
    """Whether a reference may be written: its own characters and its defaults are no secret."""
    rest = literal(reference)
    if path == _ADDRESS:
        return not _has_credentials(rest)
    return rest in _AUTH_SCHEMES or path[-1].lower() in _HARMLESS_HEADERS


def _is_harmless(path: tuple[str, ...], text: str) -> bool:
    if path == _ADDRESS:
        return not _has_credentials(text)
    return path[-2:-1] == ("headers",) and path[-1].lower() in _HARMLESS_HEADERS


def _has_credentials(url: str) -> bool:
    """Whether an address names a user or a password; `:@`, where a reference stood, does not."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0].strip(":")
    options = parse_qsl(parts.query)
    return bool(user) or any(_SECRET_OPTIONS.search(name) and value for name, value in options)


def _slug(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", key).strip("_").upper()
