"""The types of single values in a configuration: numbers with units, secrets, paths, addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core.core_schema import ValidatorFunctionWrapHandler
from starlette.convertors import CONVERTOR_TYPES

from fastapi_balancer.environment import FromEnvironment
from fastapi_balancer.problems import wrong

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2
_PARAMETER = re.compile(r"\{([a-zA-Z_][a-zA-Z0-9_]*)(?::([a-zA-Z_][a-zA-Z0-9_]*))?\}")
_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel")
_PATH_PATTERN = r"^/[^?#\s]*$"


@dataclass(frozen=True, slots=True)
class Unit:
    """Metadata of a field: what its number counts."""

    name: str


class SecretReference(SecretStr):
    """A secret that came from the environment; `reference` is what stood in the file."""

    def __init__(self, secret_value: str, reference: str) -> None:
        super().__init__(secret_value)
        self.reference = reference

    def __eq__(self, other: object) -> bool:
        """Compare the secrets alone, whatever they came from."""
        if not isinstance(other, SecretStr):
            return NotImplemented
        return self.get_secret_value() == other.get_secret_value()

    def __hash__(self) -> int:
        """Agree with `__eq__`, and with the hash of a plain `SecretStr`."""
        return hash(self.get_secret_value())


def _keep_reference(value: object, handler: ValidatorFunctionWrapHandler) -> SecretStr:
    secret: SecretStr = handler(value)
    if isinstance(value, FromEnvironment):
        return SecretReference(secret.get_secret_value(), value.reference)
    return value if isinstance(value, SecretReference) else secret


def _not_bool(value: object) -> object:
    """Refuse a boolean where a number is meant; Python would take `true` for 1."""
    if isinstance(value, bool):
        raise ValueError
    return value


def _path(path: str) -> str:
    """Check a path without parameters."""
    _check_path(path)
    if "{" in path or "}" in path:
        raise wrong("this path takes no {parameters}")
    return path


def _target(target: str) -> str:
    """Check the path, with or without a query, that a request is sent to."""
    path, _, query = target.partition("?")
    if re.search(r"[#\x00-\x1f\x7f]", query):
        raise wrong("a query holds no # and no control characters")
    _path(path)
    return target


def _mount_path(path: str) -> str:
    """Drop trailing slashes: a mount answers with and without."""
    if not path.strip("/"):
        raise wrong("the dashboard at / would hide the service")
    return path.rstrip("/")


def _endpoint(path: str) -> str:
    """Check a path that may hold starlette's `{name}` and `{name:convertor}`."""
    _check_path(path)
    names = []
    for name, convertor in _PARAMETER.findall(path):
        names.append(name)
        if convertor and convertor not in CONVERTOR_TYPES:
            raise wrong(f"unknown convertor :{convertor}; known: {', '.join(CONVERTOR_TYPES)}")
    if len(set(names)) < len(names):
        raise wrong("the same {parameter} stands twice in this path")
    if re.search(r"[{}]", _PARAMETER.sub("", path)):
        raise wrong("broken template; a parameter is written {name} or {name:path}")
    if path == "/balancer" or path.startswith("/balancer/"):
        raise wrong("what is below /balancer is answered by the balancer and cannot be limited")
    return path


def _check_path(path: str) -> None:
    if not path.startswith("/"):
        raise wrong("a path begins with /")
    if "${" in path:
        raise wrong("${NAME} is not replaced in a key or in Python; write the path itself")
    if re.search(r"[?#]", path):
        raise wrong("a path ends before ? and #; requests are matched without their query")
    if re.search(r"[\s\x00-\x1f\x7f]", path):
        raise wrong("a path holds no spaces or control characters")
    if re.search(r"%[0-9A-Fa-f]{2}", path):
        raise wrong(
            "servers decode paths before matching; write the characters themselves, not %XX"
        )


def template_key(path: str) -> str:
    """What two paths that match the same requests have in common: `/items/{}` for `/items/{id}`."""
    return _PARAMETER.sub(
        lambda match: "{}" if match[2] in (None, "str") else f"{{:{match[2]}}}", path
    )


def _method(method: str) -> str:
    if not _TOKEN.fullmatch(method):
        raise wrong("not an HTTP method; write for example GET or POST")
    return method.upper()


def _methods(methods: tuple[str, ...]) -> tuple[str, ...]:
    if not methods:
        raise wrong("an empty list would limit nothing; name a method, or leave the key out")
    if "OPTIONS" in methods:
        raise wrong("OPTIONS is never limited, so that browsers' preflight requests get through")
    return tuple(dict.fromkeys(methods))


def _service_name(name: str) -> str:
    if not 1 <= len(name) <= 100 or re.search(r"[{}\x00-\x1f\x7f]", name):
        raise wrong("a name has 1 to 100 characters, without braces and control characters")
    return name


def _header_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise wrong("not a header's name (RFC 9110 5.1)")
    return name


def _header_value(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if re.search(r"[\r\n\0]", text):
        raise wrong("a header's value is one line")
    if not text.isascii():
        raise wrong("a header's value is ASCII text")
    return value


def _url(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    scheme = text.partition("://")[0] if "://" in text else ""
    if scheme not in _SCHEMES:
        raise wrong("an address begins with " + ", ".join(f"{each}://" for each in _SCHEMES))
    {"unix": _check_unix, "redis+sentinel": _check_sentinel}.get(scheme, _check_redis)(text)
    return url


def _check_unix(url: str) -> None:
    if not re.fullmatch(r"unix://([^/]*@)?/[^?#]+(\?.*)?", url):
        raise wrong("write unix:///path/to/the.sock")


def _check_redis(url: str) -> None:
    hint = "write redis://host:port/0, and / # ? @ in a password as %2F %23 %3F %40"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise wrong(f"the port is not a number; {hint}") from None
    if parts.fragment or "@" in parts.path + parts.query:
        raise wrong(hint)
    if not re.fullmatch(r"/?\d*", parts.path):
        raise wrong(f"the database is a number; {hint}")


def _check_sentinel(url: str) -> None:
    servers = r"[^/,@\s]+(,[^/,@\s]+)*"
    if not re.fullmatch(rf"redis\+sentinel://([^/@]*@)?{servers}/[^/?#]+(/\d+)?(\?[^#@]*)?", url):
        raise wrong("write redis+sentinel://host:port,host:port/service/0")


# The constraints stand before the validator, or pydantic would leave them out of the JSON schema
NotBool = BeforeValidator(_not_bool)
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False), NotBool, Unit("s")]
Duration = Annotated[float, Field(gt=0, allow_inf_nan=False), NotBool, Unit("s")]
Timeout = Annotated[float, Field(gt=0, le=5, allow_inf_nan=False), NotBool, Unit("s")]
Lease = Annotated[float, Field(ge=1, le=300, allow_inf_nan=False), NotBool, Unit("s")]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False), NotBool, Unit("ms")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NotBool, Unit("share")]
Count = Annotated[int, Field(ge=1, le=10**9), NotBool, Unit("requests")]
QueueSize = Annotated[int, Field(ge=0, le=10**9), NotBool, Unit("requests")]
Secret = Annotated[SecretStr, WrapValidator(_keep_reference)]
LiteralPath = Annotated[
    str,
    AfterValidator(_path),
    WithJsonSchema({"type": "string", "format": "path", "pattern": _PATH_PATTERN}),
]
RequestTarget = Annotated[
    str,
    AfterValidator(_target),
    WithJsonSchema({"type": "string", "format": "target", "pattern": "^/"}),
]
MountPath = Annotated[LiteralPath, AfterValidator(_mount_path)]
EndpointPath = Annotated[
    str,
    AfterValidator(_endpoint),
    WithJsonSchema({"type": "string", "format": "endpoint", "pattern": _PATH_PATTERN}),
]
Method = Annotated[
    str,
    AfterValidator(_method),
    WithJsonSchema(
        {"type": "string", "format": "http-method", "pattern": f"^{_TOKEN.pattern}$"},
    ),
]
Address = Annotated[
    Secret,
    AfterValidator(_url),
    WithJsonSchema({"type": "string", "format": "uri", "writeOnly": True}),
]
ServiceName = Annotated[str, AfterValidator(_service_name)]
Methods = Annotated[tuple[Method, ...], AfterValidator(_methods)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderValue = Annotated[Secret, AfterValidator(_header_value)]


def nothing_is_empty(value: object) -> object:
    """Read a key without a value as an empty section, as YAML users write it."""
    return {} if value is None else value
