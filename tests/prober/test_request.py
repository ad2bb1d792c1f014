from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import SecretStr

from fastapi_balancer.errors import ProbeError
from fastapi_balancer.models import EndpointProbeConfig
from fastapi_balancer.prober.request import (
    ProbeRequest,
    build_request,
    explain_redirect,
    explain_refusal,
)


def build(endpoint: str = "/x", **settings: Any) -> ProbeRequest:
    headers = {name: SecretStr(value) for name, value in settings.pop("headers", {}).items()}
    return build_request(endpoint, EndpointProbeConfig(headers=headers, **settings))


def headers_of(request: ProbeRequest) -> dict[bytes, bytes]:
    assert len(dict(request.headers)) == len(request.headers), "no header stands there twice"
    return dict(request.headers)


def test_a_plain_request_says_that_it_is_a_probe() -> None:
    request = build()
    assert (request.method, request.path, request.query_string) == ("GET", "/x", b"")
    assert headers_of(request) == {
        b"host": b"localhost",
        b"accept": b"*/*",
        b"user-agent": b"fastapi-balancer",
        b"x-balancer-probe": b"1",
    }


def test_a_body_that_is_not_text_is_sent_as_json() -> None:
    request = build(method="POST", body={"inputs": ["ä", 1, None]})
    assert json.loads(request.body) == {"inputs": ["ä", 1, None]}
    assert headers_of(request)[b"content-type"] == b"application/json"
    assert headers_of(request)[b"content-length"] == str(len(request.body)).encode()


def test_a_text_body_is_sent_as_it_is() -> None:
    request = build(method="POST", body="grüß", headers={"Content-Type": "text/csv"})
    assert request.body == "grüß".encode()
    assert headers_of(request)[b"content-type"] == b"text/csv"
    assert headers_of(request)[b"content-length"] == b"6"


def test_a_post_without_a_body_says_so() -> None:
    assert headers_of(build(method="POST"))[b"content-length"] == b"0"


def test_given_headers_win_over_ours_but_for_the_length() -> None:
    given = {"Host": "api.example", "USER-AGENT": "me", "Content-Length": "99", "X-A": "b"}
    headers = headers_of(build(method="PUT", body=[1], headers=given))
    assert headers[b"host"] == b"api.example"
    assert headers[b"user-agent"] == b"me"
    assert headers[b"x-a"] == b"b"
    assert headers[b"content-length"] == b"3"


def test_a_path_may_hold_spaces_and_other_letters() -> None:
    request = build("/größe/a b")
    assert request.raw_path == b"/gr%C3%B6%C3%9Fe/a%20b"
    assert request.path == "/größe/a b"


def test_a_template_needs_a_concrete_path() -> None:
    with pytest.raises(ProbeError, match=r"/items/\{id\} has parameters.*`capacity:`"):
        build("/items/{id}")


def test_a_concrete_path_for_the_probe_may_hold_a_query() -> None:
    request = build_request("/items/{id}", EndpointProbeConfig(probe_path="/items/7?full=1&q=a b"))
    assert (request.path, request.query_string) == ("/items/7", b"full=1&q=a%20b")


def test_an_echoed_secret_is_not_shown() -> None:
    request = build(headers={"Authorization": "Bearer s3cret-token", "X-Pin": "42!"})
    body = b"no access for Bearer s3cret-token (s3cret-token), pin 42!" + b"x" * 1000
    told = explain_refusal("/x", request, 403, body)
    assert "s3cret" not in told
    assert "42!" not in told
    assert "no access for *** (***), pin ***xxx" in told


def test_a_secret_is_removed_before_the_text_is_cut() -> None:
    request = build(headers={"Authorization": "t" * 600})
    told = explain_refusal("/x", request, 401, b"a" * 490 + b"t" * 600)
    assert "a***" in told
    assert "tt" not in told.partition(". To")[0]


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "set `headers:`"),
        (403, "set `headers:`"),
        (404, "check the path"),
        (405, "set `method:`"),
        (422, "set `body:`"),
        (400, "set `method:`, `headers:` and `body:`"),
    ],
)
def test_a_refusal_is_explained_with_what_to_do(status: int, hint: str) -> None:
    told = explain_refusal("/x", build(), status, b'{"detail":\n "nope"}')
    assert told.startswith(f"GET /x answered {status} to the probe's first request: ")
    assert '{"detail": "nope"}' in told
    assert hint in told
    assert "`capacity:`" in told


def test_only_500_characters_of_the_body_are_shown() -> None:
    told = explain_refusal("/x", build(), 422, b"z" * 2000)
    assert told.count("z") == 500


@pytest.mark.parametrize("target", ["/x/", "http://localhost/x/?a=1"])
def test_a_redirect_that_only_adds_a_slash_is_explained(target: str) -> None:
    told = explain_redirect("/x", build("/x"), target)
    assert told is not None
    assert "write the endpoint as /x/" in told


@pytest.mark.parametrize("target", [None, "", "/", "/elsewhere", "/x"])
def test_other_redirects_are_answers_like_any_other(target: str | None) -> None:
    assert explain_redirect("/x", build("/x"), target) is None


@pytest.mark.parametrize("target", ["https://localhost/x", "http://www.example.org/x"])
def test_a_redirect_to_another_scheme_or_host_is_explained(target: str) -> None:
    told = explain_redirect("/x", build("/x"), target)
    assert told is not None
    assert target.removesuffix("/x") in told
    assert "after `wrap`" in told
