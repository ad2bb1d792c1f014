from __future__ import annotations

import base64

import pytest
from starlette.datastructures import Headers

from fastapi_balancer.admin.auth import BasicAuth
from fastapi_balancer.errors import ConfigError


def basic(credentials: str | bytes, scheme: str = "Basic") -> str:
    raw = credentials.encode() if isinstance(credentials, str) else credentials
    return f"{scheme} {base64.b64encode(raw).decode()}"


def allows(auth: BasicAuth, authorization: str) -> bool:
    return auth.allows(Headers(raw=[(b"authorization", authorization.encode("latin-1"))]))


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("admin", "secret"),
        ("jürgen", "pässwörd €"),
        ("admin", "with:colons::"),
        ("admin", ""),
        ("", "secret"),
        ("管理者", "パスワード"),
    ],
)
def test_the_right_credentials_are_let_in(username: str, password: str) -> None:
    assert allows(BasicAuth(username, password), basic(f"{username}:{password}"))


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
def test_the_scheme_is_read_without_case(scheme: str) -> None:
    assert allows(BasicAuth("admin", "secret"), basic("admin:secret", scheme))


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic YWRt*aW46c2VjcmV0",
        "Basic YWRtaW46c2VjcmV0x",
        "Basic YWRtaW46c2VjcmV",
        "Basic ÿÿÿÿ",
        "Bearer YWRtaW46c2VjcmV0",
        "YWRtaW46c2VjcmV0",
        basic("admin"),
        basic("admin:"),
        basic(":secret"),
        basic("admin:secret "),
        basic("admin:Secret"),
        basic("other:secret"),
        basic(b"\xff\xfe:\xff"),
        basic("admin:secret\0"),
    ],
)
def test_anything_else_is_turned_away(authorization: str) -> None:
    assert not allows(BasicAuth("admin", "secret"), authorization)


def test_no_header_at_all_is_turned_away() -> None:
    assert not BasicAuth("admin", "secret").allows(Headers(raw=[]))


@pytest.mark.parametrize(("username", "password"), [("admin", None), (None, "secret")])
def test_a_missing_half_lets_nobody_else_in(username: str | None, password: str | None) -> None:
    auth = BasicAuth(username, password)
    assert allows(auth, basic(f"{username or ''}:{password or ''}"))
    assert not allows(auth, basic("admin:secret"))


def test_a_user_name_with_a_colon_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"ui\.username"):
        BasicAuth("ad:min", "secret")
