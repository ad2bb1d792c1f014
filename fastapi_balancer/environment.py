"""Text with `${NAME}` references to environment variables: expanded, and traced back."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fastapi_balancer.errors import ConfigError

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_TOKEN = re.compile(
    rf"(?P<escape>\$\$\{{)|\$\{{(?P<name>{_NAME})(?::-(?P<default>[^}}]*))?\}}|(?P<broken>\$\{{)"
)


class FromEnvironment(str):
    """Text made from a reference, which `reference` holds as it stood in the file."""

    reference: str

    def __new__(cls, text: str, reference: str = "") -> FromEnvironment:
        """Make the text; an empty `reference` only serves copying and pickling."""
        made = super().__new__(cls, text)
        made.reference = reference
        return made


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Replace `${NAME}` and `${NAME:-default}`; `$${` stands for the characters `${`.

    As in a shell, `:-` takes the default for an empty variable too. Raises `ConfigError`, without
    the text around the reference, since that may be a secret.
    """
    expanded = _TOKEN.sub(lambda token: _value(token, environ), text)
    return FromEnvironment(expanded, text) if variables(text) else expanded


def _value(token: re.Match[str], environ: Mapping[str, str]) -> str:
    if token["escape"]:
        return "${"
    if token["broken"]:
        raise ConfigError(
            "'${' must go on as ${NAME} or ${NAME:-default}; write '$${' for the characters '${'"
        )
    name, default = token["name"], token["default"]
    if default is not None:
        return environ.get(name) or default
    if name not in environ:
        raise ConfigError(
            f"the environment variable {name} is not set; "
            f"set it, or write ${{{name}:-default}} to do without"
        )
    return environ[name]


def escape(text: str) -> str:
    """Write text so that `expand` returns it unchanged."""
    return text.replace("${", "$${")


def variables(text: str) -> dict[str, str | None]:
    """The names that `text` refers to, with their defaults; None: the variable must be set."""
    tokens = (token for token in _TOKEN.finditer(text) if token["name"])
    return {token["name"]: token["default"] for token in tokens}


def literal(text: str) -> str:
    """What `text` is when no variable is set: its own characters and the defaults."""
    return _TOKEN.sub(lambda t: "${" if t["escape"] else t["default"] or "", text)
