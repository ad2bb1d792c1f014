"""HTTP Basic authentication (RFC 7617)."""

from __future__ import annotations

import base64
import hashlib
import hmac

from starlette.datastructures import Headers

from fastapi_balancer.errors import ConfigError

CHALLENGE = 'Basic realm="fastapi-balancer", charset="UTF-8"'


class BasicAuth:
    """One pair of credentials. A missing half is empty, never "anything will do".

    Raises `ConfigError` for a user name with a colon: RFC 7617 has no way to send it.
    """

    def __init__(self, username: str | None, password: str | None) -> None:
        if ":" in (username or ""):
            raise ConfigError("ui.username holds a colon, which HTTP Basic cannot send: remove it.")
        self._expected = _digest(f"{username or ''}:{password or ''}".encode())

    def allows(self, headers: Headers) -> bool:
        """Whether a request's headers carry the credentials. False for whatever is malformed."""
        given = _credentials(headers.get("authorization", ""))
        return given is not None and hmac.compare_digest(_digest(given), self._expected)


def _credentials(authorization: str) -> bytes | None:
    """Return `user:password` as it was sent, None if it cannot be read."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except ValueError:
        return None


def _digest(credentials: bytes) -> bytes:
    """Hash, so that the comparison takes the same time whatever the lengths are."""
    return hashlib.sha256(credentials).digest()
