from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from pydantic import SecretStr

from fastapi_balancer.environment import FromEnvironment
from fastapi_balancer.errors import ConfigError
from fastapi_balancer.fields import SecretReference, template_key
from fastapi_balancer.models import (
    EndpointProbeConfig,
    ProbeConfig,
    Section,
    StorageConfig,
    StorageType,
    UIConfig,
)


def refusal(section: type[Section], **keywords: Any) -> str:
    with pytest.raises(ConfigError) as error:
        section(**keywords)
    return str(error.value)


def test_methods_are_upper_case_and_unique() -> None:
    endpoint = EndpointProbeConfig(method="post", methods=["GET", "post", "get"])
    assert endpoint.method == "POST"
    assert endpoint.methods == ("GET", "POST")


@pytest.mark.parametrize("method", ["", "GE T", "GET\n", "GÉT", "GET/"])
def test_a_method_is_an_http_token(method: str) -> None:
    assert refusal(EndpointProbeConfig, method=method) == (
        f"EndpointProbeConfig: method: found {method!r}; "
        "not an HTTP method; write for example GET or POST"
    )


@pytest.mark.parametrize(
    ("methods", "word"), [([], "empty list"), (["options"], "never limited"), ("GET", "a list")]
)
def test_methods_that_make_no_sense_are_refused(methods: object, word: str) -> None:
    assert word in refusal(EndpointProbeConfig, methods=methods)


@pytest.mark.parametrize("capacity", [0, -1, 1.5, True, "many", float("inf"), float("nan")])
def test_a_capacity_is_a_positive_whole_number(capacity: object) -> None:
    message = refusal(EndpointProbeConfig, capacity=capacity)
    assert "; allowed: a whole number from 1 to 1,000,000,000, or nothing" in message


@pytest.mark.parametrize("timeout", [-1, True, float("inf"), float("nan"), "soon", [1]])
def test_a_queue_timeout_is_a_finite_number(timeout: object) -> None:
    message = refusal(EndpointProbeConfig, queue_timeout=timeout)
    assert message.endswith("; allowed: a number of at least 0, or nothing")


def test_numbers_may_be_text_as_they_are_in_the_environment() -> None:
    assert EndpointProbeConfig(capacity="8", queue_timeout="1.5").capacity == 8


def test_a_body_may_be_anything() -> None:
    assert EndpointProbeConfig(body={"inputs": [...]}).body == {"inputs": [...]}


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"a b": "x"}, "headers.a b: not a header's name (RFC 9110 5.1)"),
        ({"A": "canary\r\nB: 1"}, "headers.A: a header's value is one line"),
        ({"A": "canäry"}, "headers.A: a header's value is ASCII text"),
        ({"A": 31337}, "headers.A: found a whole number; allowed: text"),
    ],
)
def test_headers_are_checked_without_being_shown(headers: dict[str, Any], problem: str) -> None:
    assert refusal(EndpointProbeConfig, headers=headers) == f"EndpointProbeConfig: {problem}"


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379",
        "redis://localhost",
        "rediss://user:p%40ss@[::1]:6380/3?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=1",
        "unix://user:pw@/run/redis.sock",
        "redis+sentinel://a:26379,b:26379/main/0",
        "redis+sentinel://:pw@a/main",
    ],
)
def test_an_address_is_accepted(url: str) -> None:
    assert StorageConfig(type=StorageType.REDIS, url=url).url == SecretStr(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "canary",
        "http://canary@h",
        "redis:/canary",
        "redis://:canary/1@h",
        "redis://:canary#1@h",
        "redis://:12?canary@h",
        "redis://h:canary",
        "redis://h/canary",
        "redis://[canary",
        "unix://canary.sock",
        "redis+sentinel://canary",
        "redis+sentinel://:ca@nary@h/main",
    ],
)
def test_a_bad_address_is_refused_and_not_shown(url: str) -> None:
    message = refusal(StorageConfig, type="redis", url=url)
    assert message.startswith("StorageConfig: url: ")
    assert "canary" not in message


def test_redis_needs_an_address() -> None:
    assert refusal(StorageConfig, type="redis").startswith(
        "StorageConfig: url: type redis needs an address"
    )


def test_an_address_that_would_not_be_used_is_an_error() -> None:
    assert "StorageConfig: type: " in refusal(StorageConfig, url="redis://h")
    assert StorageConfig(type="memory", url="redis://h").type == StorageType.MEMORY


@pytest.mark.parametrize(
    ("credentials", "key"),
    [
        ({"username": "admin"}, "password"),
        ({"password": "canary"}, "username"),
        ({"username": "admin", "password": ""}, "password"),
        ({"username": "", "password": "canary"}, "username"),
        ({"username": "a:b", "password": "canary"}, "username"),
    ],
)
def test_credentials_are_complete_or_absent(credentials: dict[str, str], key: str) -> None:
    message = refusal(UIConfig, **credentials)
    assert message.startswith(f"UIConfig: {key}: ")
    assert "canary" not in message


@pytest.mark.parametrize("path", ["ui", "/u?i", "/u#i", "/u i", "/{ui}", "/u%20i", "/", "//", ""])
def test_a_bad_path_of_the_dashboard_is_refused(path: str) -> None:
    assert refusal(UIConfig, path=path).startswith("UIConfig: path: ")


def test_a_trailing_slash_of_the_dashboard_is_dropped() -> None:
    assert UIConfig(path="/dashboard/").path == "/dashboard"


def test_all_errors_of_a_section_are_listed_one_per_line() -> None:
    message = refusal(ProbeConfig, max_seconds=0, max_requests=True, max_concurency=3)
    assert message.splitlines() == [
        "ProbeConfig: max_seconds: found 0; allowed: a number above 0",
        "ProbeConfig: max_requests: found true; allowed: a whole number from 1 to 1,000,000,000",
        "ProbeConfig: max_concurency: unknown key; did you mean max_concurrency? "
        "known keys: max_seconds, max_requests, max_concurrency",
    ]


def test_no_traceback_leads_from_the_error_to_the_input() -> None:
    with pytest.raises(ConfigError) as error:
        UIConfig(password=["canary"])
    assert error.value.__cause__ is None
    assert error.value.__context__ is None


def test_a_section_does_not_change_once_made() -> None:
    with pytest.raises(ValueError, match="frozen"):
        UIConfig().path = "/x"  # type: ignore[misc]  # what the test is about


def test_secrets_and_body_are_shown_nowhere() -> None:
    endpoint = EndpointProbeConfig(headers={"A": "canary"}, body={"b": "canary"})
    for text in (repr(endpoint), str(endpoint), endpoint.model_dump_json(), str(endpoint.headers)):
        assert "canary" not in text


def test_a_secret_remembers_its_reference_through_copies_and_other_sections() -> None:
    headers = EndpointProbeConfig(headers={"A": FromEnvironment("s", "${S}")}).headers
    again = EndpointProbeConfig(headers=headers)
    for each in (again, copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        secret = each.headers["A"]
        assert isinstance(secret, SecretReference)
        assert (secret.get_secret_value(), secret.reference) == ("s", "${S}")


def test_secrets_are_equal_wherever_they_came_from() -> None:
    referenced = SecretReference("s", "${S}")
    assert referenced == SecretStr("s")
    assert SecretStr("s") == referenced
    assert hash(referenced) == hash(SecretStr("s"))
    assert referenced != SecretStr("t")
    assert referenced != "s"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/a", "/a"),
        ("/a/{id}", "/a/{}"),
        ("/a/{id:str}/b", "/a/{}/b"),
        ("/a/{id:int}", "/a/{:int}"),
    ],
)
def test_templates_that_match_the_same_have_the_same_key(path: str, key: str) -> None:
    assert template_key(path) == key


def test_a_probe_goes_to_a_real_path_which_may_have_a_query() -> None:
    settings = EndpointProbeConfig(probe_path="/items/1?full=1&q=a b")
    assert settings.probe_path == "/items/1?full=1&q=a b"


@pytest.mark.parametrize("target", ["items/1", "/items/{id}", "/items/1?a#b", "/a b", "/a?b\n"])
def test_a_probe_does_not_go_to_a_template_or_a_broken_path(target: str) -> None:
    with pytest.raises(ConfigError, match="probe_path"):
        EndpointProbeConfig(probe_path=target)
