"""The servers that other tests rely on do what those believe they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests import servers
from tests.conftest import MakeServer, missing
from tests.servers import SentinelGroup, StoreServer


def test_a_server_answers_at_its_url(redis_server: StoreServer) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.ping() is True


def test_what_is_not_saved_is_lost_by_a_kill(own_server: StoreServer) -> None:
    own_server.cli("SET", "a", "1")
    before = own_server.pid
    own_server.kill()
    with pytest.raises(redis.ConnectionError):
        own_server.cli("PING")

    own_server.start()

    assert own_server.pid != before
    assert own_server.cli("GET", "a") is None


def test_a_restart_keeps_the_data_or_loses_it_as_asked(own_server: StoreServer) -> None:
    own_server.cli("SET", "a", "1")
    own_server.restart(empty=False)
    assert own_server.cli("GET", "a") == "1"

    own_server.restart(empty=True)

    assert own_server.cli("GET", "a") is None


def test_a_paused_server_answers_only_after_it_is_resumed(own_server: StoreServer) -> None:
    own_server.pause()
    with pytest.raises(redis.TimeoutError):
        own_server.cli("PING")

    own_server.resume()

    assert own_server.cli("PING")


def test_a_password_is_asked_for_and_stands_in_the_url(make_server: MakeServer) -> None:
    server = make_server(tcp=True, password="a:b/c@d")
    once = Retry(NoBackoff(), 0)
    stranger = redis.Redis(port=server.port or 0, retry=once)
    with stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()

    with redis.Redis.from_url(server.url) as client:
        assert client.ping() is True


def test_tls_is_spoken_at_a_rediss_url(tls_server: StoreServer) -> None:
    assert tls_server.url.startswith("rediss://")
    with redis.Redis.from_url(tls_server.url) as client:
        assert client.ping() is True


def test_a_replica_takes_the_place_of_a_killed_primary(sentinel_group: SentinelGroup) -> None:
    sentinel_group.primary.cli("SET", "a", "1")
    servers.wait_until(
        lambda: sentinel_group.replica.cli("GET", "a") == "1", 5, sentinel_group.replica.log
    )
    assert sentinel_group.primary_port() == sentinel_group.primary.port

    sentinel_group.fail_over()

    assert sentinel_group.primary_port() == sentinel_group.replica.port
    assert sentinel_group.replica.cli("GET", "a") == "1"
    assert sentinel_group.replica.cli("SET", "a", "2")


def test_a_server_that_cannot_start_tells_why(store_binary: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="no-such-option"),
        StoreServer(store_binary, options=("--no-such-option", "1")),
    ):
        pass


def test_nothing_is_left_when_the_tests_are_killed(store_binary: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from tests.servers import StoreServer\n"
        "server = StoreServer(Path(sys.argv[1])); server.start()\n"
        "print(server.pid, server.folder, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, store_binary],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    ) as tests:
        assert tests.stdout is not None
        pid, folder = tests.stdout.readline().split()
        assert servers.is_running(int(pid))
        os.kill(tests.pid, signal.SIGKILL)

    servers.wait_until(lambda: not Path(folder).exists(), 10, lambda: "")
    servers.wait_until(lambda: not servers.is_running(int(pid)), 10, lambda: "")


def test_a_binary_that_does_not_run_is_reported_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BALANCER_TEST_SERVERS", str(tmp_path / "nothing"))

    *_, extra = servers.binaries.__wrapped__()

    assert extra.path is None
    assert str(tmp_path / "nothing") in extra.reason


def test_what_is_missing_skips_the_test_but_fails_it_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no redis here"):
        missing("no redis here")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no redis here"):
        missing("no redis here")


def test_waiting_in_vain_shows_the_log() -> None:
    before = time.monotonic()
    with pytest.raises(TimeoutError, match="what it wrote"):
        servers.wait_until(lambda: False, 0.0, lambda: "what it wrote")
    assert time.monotonic() - before < 1
