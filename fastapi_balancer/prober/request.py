"""The request that a probe sends, and what to tell the user when its first answer is a refusal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from fastapi_balancer.environment import FromEnvironment
from fastapi_balancer.errors import ProbeError
from fastapi_balancer.models import EndpointProbeConfig

PROBE_HEADER = (b"x-balancer-probe", b"1")
EXCERPT = 500  # characters of a refusal's body that are worth a log line

HINTS = {
    401: "set `headers:` of this endpoint to credentials that the probe may use",
    403: "set `headers:` of this endpoint to credentials that the probe may use",
    404: "check the path of this endpoint, and that what it asks for exists",
    405: "set `method:` of this endpoint",
    415: "set `content-type` in `headers:` of this endpoint",
    422: "set `body:` (and `headers:`) of this endpoint to what it accepts",
}
ANY_HINT = "set `method:`, `headers:` and `body:` of this endpoint to what it accepts"


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """One request, ready to be sent any number of times."""

    method: str
    raw_path: bytes  # percent-encoded, without the query string
    query_string: bytes
    headers: tuple[tuple[bytes, bytes], ...]  # lower-case names
    body: bytes
    secrets: frozenset[str]  # what must never be shown, should an answer echo it

    @property
    def path(self) -> str:
        """The decoded path, without the query string."""
        return unquote(self.raw_path.decode("ascii"))


def build_request(endpoint: str, settings: EndpointProbeConfig) -> ProbeRequest:
    """Build what the probe of an endpoint sends. Raises `ProbeError` when no path is known."""
    target = _concrete_path(endpoint, settings)
    path, _, query = target.partition("?")
    body, content_type = _encode(settings.body)
    given = {name.lower(): value.get_secret_value() for name, value in settings.headers.items()}
    method = settings.method.upper()
    headers = _defaults(content_type) | given | _framing(method, body)
    return ProbeRequest(
        method=method,
        raw_path=_quote(path),
        query_string=_quote(query),
        headers=(*((k.encode(), v.encode()) for k, v in headers.items()), PROBE_HEADER),
        body=body,
        secrets=frozenset(_parts((*given.values(), *_from_environment(settings.body)))),
    )


def explain_refusal(endpoint: str, request: ProbeRequest, status: int, body: bytes) -> str:
    """Say what was answered to the first request, without secrets, and what to do about it."""
    text = body.decode("utf-8", "replace")
    for secret in sorted(request.secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = " ".join(text.split())[:EXCERPT]
    hint = HINTS.get(status, ANY_HINT)
    return (
        f"{request.method} {endpoint} answered {status} to the probe's first request"
        f"{f': {text}' if text else ''}. To have it measured, {hint}; "
        "or set `capacity:`, then it is not probed."
    )


def explain_redirect(endpoint: str, request: ProbeRequest, location: str | None) -> str | None:
    """Say that the first answer only mends the address; None when it does not.

    Frameworks and middleware give such answers without ever calling the endpoint.
    """
    parts = urlsplit(location or "")
    target = parts.path
    if target == request.path and (parts.scheme == "https" or parts.netloc):
        return (
            f"{request.method} {endpoint} only redirects to {parts.scheme}://{parts.netloc}. "
            "To have it measured, add that middleware after `wrap`, so that it stands before the "
            "balancer; or set `capacity:`, then it is not probed."
        )
    if not target or target.rstrip("/") != request.path.rstrip("/") or target == request.path:
        return None
    return (
        f"{request.method} {endpoint} only redirects to {target}. To have it measured, "
        f"write the endpoint as {target} in the configuration."
    )


def _concrete_path(endpoint: str, settings: EndpointProbeConfig) -> str:
    if settings.probe_path is None and "{" in endpoint:
        raise ProbeError(
            f"{endpoint} has parameters, and the probe needs a real path to send requests to. "
            "Set `probe_path:` of this endpoint (such as /items/1), or `capacity:`."
        )
    return settings.probe_path or endpoint


def _encode(body: Any) -> tuple[bytes, str]:
    if body is None:
        return b"", ""
    if isinstance(body, bytes):
        return body, "application/octet-stream"
    if isinstance(body, str):
        return body.encode(), "text/plain; charset=utf-8"
    # default=str: YAML reads 2024-01-31 as a date
    return json.dumps(body, ensure_ascii=False, default=str).encode(), "application/json"


def _defaults(content_type: str) -> dict[str, str]:
    headers = {"host": "localhost", "accept": "*/*", "user-agent": "fastapi-balancer"}
    return headers | {"content-type": content_type} if content_type else headers


def _framing(method: str, body: bytes) -> dict[str, str]:
    # RFC 9110 8.6: a request whose method anticipates content says so even when there is none
    wants_length = body or method in {"POST", "PUT", "PATCH"}
    return {"content-length": str(len(body))} if wants_length else {}


def _quote(text: str) -> bytes:
    # what is ASCII is taken as already encoded, so that a %2F stays one
    return b"".join(c.encode() if c.isascii() and c > " " else _percent(c) for c in text)


def _percent(character: str) -> bytes:
    return b"".join(b"%%%02X" % byte for byte in character.encode())


def _from_environment(value: object) -> Iterable[str]:
    """The texts in a body that stand in the environment: there is a reason why."""
    if isinstance(value, FromEnvironment):
        yield str(value)
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _from_environment(each)


def _parts(values: Iterable[str]) -> Iterable[str]:
    # "Bearer abcdef" may come back as "abcdef"; shorter words would garble the text
    for value in filter(None, values):
        yield value
        yield from (part for part in value.split() if len(part) >= 6)
