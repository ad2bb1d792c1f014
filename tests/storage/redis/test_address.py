"""URLs of the store, and what they become for redis-py."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection

from fastapi_balancer.errors import ConfigError
from fastapi_balancer.storage.redis.address import Address


def address(url: str) -> Address:
    return Address(url, connect_timeout=1.0)


def options(url: str) -> dict[str, Any]:
    """What the thread's client would connect with; nothing is connected."""
    return dict(address(url).client(0.5).connection_pool.connection_kwargs)


def test_host_port_database_and_credentials_are_read() -> None:
    found = options("redis://me:p%40ss@store.example:7000/3")
    assert (found["host"], found["port"], found["db"]) == ("store.example", 7000, 3)
    assert (found["username"], found["password"]) == ("me", "p@ss")


@pytest.mark.parametrize(("url", "kind"), [
    ("rediss://store.example", SSLConnection),
    ("unix:///run/redis.sock?db=2", UnixDomainSocketConnection),
])  # fmt: skip
def test_the_scheme_chooses_the_connection(url: str, kind: type[object]) -> None:
    connection = asyncio.run(address(url).connection())
    assert isinstance(connection, kind)


def test_the_connection_speaks_resp3_and_never_retries() -> None:
    connection = asyncio.run(address("redis://localhost").connection())
    assert connection.protocol == 3
    assert connection.retry._retries == 0
    assert connection.socket_connect_timeout == 1.0


def test_the_threads_client_never_retries_and_never_hangs() -> None:
    found = options("redis://localhost")
    assert (found["socket_timeout"], found["socket_connect_timeout"]) == (0.5, 1.0)
    assert found["retry"]._retries == 0


@pytest.mark.parametrize(("hosts", "sentinels"), [
    ("one:1,two:2", [("one", 1), ("two", 2)]),
    ("one,two:2", [("one", 26379), ("two", 2)]),
    ("user:p@one:1", [("one", 1)]),
    ("[::1]:5", [("::1", 5)]),
])  # fmt: skip
def test_sentinels_are_read(hosts: str, sentinels: list[tuple[str, int]]) -> None:
    assert address(f"redis+sentinel://{hosts}/main/1")._sentinels == sentinels


@pytest.mark.parametrize("url", [
    "http://localhost",
    "localhost:6379",
    "redis+sentinel://one:1",
    "redis://localhost:port",
])  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"storage\.url"):
        address(url)


def test_a_refusal_shows_no_credentials() -> None:
    with pytest.raises(ConfigError) as refused:
        address("redis+sentinel://user:hunter2@one:1")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "query", ["socket_timeout=60", "protocol=2", "max_connections=9", "typo=1"]
)
def test_an_option_that_is_ours_or_nobodys_is_refused(query: str) -> None:
    with pytest.raises(ConfigError, match=query.partition("=")[0]):
        Address(f"redis://localhost?{query}", connect_timeout=1)
