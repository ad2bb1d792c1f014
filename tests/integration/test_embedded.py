"""The embedded store's server under real worker processes that are killed in every way."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from fastapi_balancer.errors import StorageError
from fastapi_balancer.storage import embedded
from fastapi_balancer.storage.embedded import EmbeddedServer

# One worker: a method per line on stdin, its result and how long it took on stdout.
WORKER = """
import asyncio, logging, os, sys, time
from pathlib import Path
from fastapi_balancer.storage import embedded

embedded.KERNEL_CAN_TIE &= sys.argv[3] == "1"
logging.basicConfig(level="INFO", filename=sys.argv[2], format="%(message)s")
server = embedded.EmbeddedServer("test", Path(sys.argv[1]))

def fork():
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    return child

async def churn():
    for _ in range(10):
        await server.start()
        await server.close()

methods = {"start": lambda: asyncio.run(server.start()), "ensure": server.ensure,
           "close": lambda: asyncio.run(server.close()), "fork": fork,
           "churn": lambda: asyncio.run(churn())}
print("up", flush=True)
for line in sys.stdin:
    since = time.monotonic()
    result = methods[line.strip()]()
    print(result, time.monotonic() - since, flush=True)
"""


class Worker:
    def __init__(self, directory: Path, log: Path, kernel_can_tie: bool) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(directory), str(log), str(int(kernel_can_tie))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def send(self, method: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(method + "\n")

    def reply(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, method: str) -> tuple[str, float]:
        self.send(method)
        result, seconds = self.reply().split()
        return result, float(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Service:
    """The workers of one service, and what can be seen of their server from outside."""

    def __init__(self, directory: Path, log: Path) -> None:
        self.directory = directory
        self.log = log
        self.workers: list[Worker] = []

    def add(self, count: int, kernel_can_tie: bool = True) -> list[Worker]:
        added = [Worker(self.directory, self.log, kernel_can_tie) for _ in range(count)]
        self.workers += added
        assert [worker.reply() for worker in added] == ["up"] * count
        return added

    def started(self, count: int, kernel_can_tie: bool = True) -> list[Worker]:
        added = self.add(count, kernel_can_tie)
        assert [worker.ask("start")[0] for worker in added] == ["None"] * count
        return added

    def ask_all(self, method: str) -> list[str]:
        for worker in self.workers:
            worker.send(method)
        return [worker.reply().split()[0] for worker in self.workers]

    def kill_all(self) -> None:
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.communicate()

    def servers(self) -> list[int]:
        return [
            process.pid
            for process in psutil.process_iter(["name", "cwd", "status"])
            if process.info["name"] == "valkey-server"
            and (process.info["cwd"] or "").startswith(str(self.directory))
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ]

    def launches(self) -> int:
        return self.log.read_text().count(f" on {self.directory}/valkey.sock")

    def ping(self) -> bool:
        path = str(self.directory / "valkey.sock")
        with redis.Redis(unix_socket_path=path, socket_timeout=0.25) as client:
            return bool(client.ping())


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="fb-", dir="/tmp") as name:  # short, for the socket
        service = Service(Path(name), tmp_path / "workers.log")
        yield service
        service.kill_all()
        assert took(lambda: not service.servers()) < 10


@contextmanager
def here(directory: Path) -> Iterator[EmbeddedServer]:
    """A worker that is the test's own process."""
    server = EmbeddedServer("test", directory)
    try:
        asyncio.run(server.start())
        yield server
    finally:
        asyncio.run(server.close())


def took(is_so: Callable[[], bool], limit: float = 10) -> float:
    """Seconds until it is so; `limit` when it is not by then."""
    since = time.monotonic()
    while not is_so() and time.monotonic() - since < limit:
        time.sleep(0.005)
    return time.monotonic() - since


def test_eight_workers_that_start_at_once_share_one_server(service: Service) -> None:
    service.add(8)
    assert service.ask_all("start") == ["None"] * 8
    assert service.ping()
    assert len(service.servers()) == service.launches() == 1


def test_the_server_outlives_the_worker_that_started_it(service: Service) -> None:
    starter, other = service.started(2)
    [server] = service.servers()
    starter.kill()
    assert service.ping()
    assert other.ask("ensure")[0] == "True"
    assert service.servers() == [server]


def test_a_killed_server_is_restarted_once_by_all(service: Service) -> None:
    service.started(4)
    [server] = service.servers()
    os.kill(server, signal.SIGKILL)
    assert service.ask_all("ensure") == ["True"] * 4
    assert service.ping()
    assert service.launches() == 2
    assert len(service.servers()) == 1
    assert service.servers() != [server]


def test_a_killed_server_answers_again_within_a_second(service: Service) -> None:
    starter, other = service.started(2)
    starter.kill()
    os.kill(service.servers()[0], signal.SIGKILL)
    result, seconds = other.ask("ensure")
    assert result == "True"
    assert seconds < 1
    assert service.ping()


def test_a_start_that_failed_is_taken_up_by_ensure(service: Service) -> None:
    server = EmbeddedServer("test", service.directory)
    service.directory.chmod(0o755)
    with pytest.raises(StorageError, match="open to others"):
        asyncio.run(server.start())
    service.directory.chmod(0o700)
    assert server.ensure()
    assert service.ping()
    asyncio.run(server.close())


def test_killing_all_workers_ends_the_server(service: Service) -> None:
    service.started(3)
    service.kill_all()
    assert took(lambda: not service.servers()) < 2


def test_a_service_starts_over_what_a_killed_one_left_behind(service: Service) -> None:
    service.started(2)
    service.kill_all()
    service.workers.clear()
    [worker] = service.started(1)
    assert service.ping()
    worker.ask("close")
    assert list(service.directory.iterdir()) == []


def test_the_last_worker_to_close_ends_the_server_and_tidies_up(service: Service) -> None:
    first, last = service.started(2)
    first.ask("close")
    assert service.ping()
    last.ask("close")
    assert took(lambda: not service.servers()) < 1
    assert list(service.directory.iterdir()) == []


def test_workers_may_come_and_go_at_the_same_time(service: Service) -> None:
    service.add(4)
    assert service.ask_all("churn") == ["None"] * 4
    assert took(lambda: not service.servers()) < 1
    assert list(service.directory.iterdir()) == []


def test_a_forked_child_does_not_keep_the_server(service: Service) -> None:
    [worker] = service.started(1)
    child = int(worker.ask("fork")[0])
    worker.process.kill()
    try:
        assert took(lambda: not service.servers()) < 2
        assert psutil.pid_exists(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_stopped_server_is_neither_doubled_nor_waited_for(service: Service) -> None:
    worker, _ = service.started(2)
    [server] = service.servers()
    os.kill(server, signal.SIGSTOP)
    result, seconds = worker.ask("ensure")
    assert result == "False"
    assert seconds < 1
    os.kill(server, signal.SIGCONT)
    assert worker.ask("ensure")[0] == "True"
    assert service.servers() == [server]


def test_a_stopped_server_ends_with_its_last_worker(service: Service) -> None:
    [worker] = service.started(1)
    os.kill(service.servers()[0], signal.SIGSTOP)
    worker.kill()
    assert took(lambda: not service.servers()) < 2


def test_the_signals_of_a_shutdown_leave_the_server_to_its_workers(service: Service) -> None:
    service.started(1)
    [server] = service.servers()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(server, number)
    time.sleep(0.3)  # the server looks for a shutdown ten times a second
    assert service.ping()
    assert os.getsid(server) == server


def test_the_server_listens_on_a_private_socket_and_nowhere_else(service: Service) -> None:
    with here(service.directory):
        mode = (service.directory / "valkey.sock").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
        assert stat.S_IMODE(service.directory.stat().st_mode) == 0o700
        [server] = map(psutil.Process, service.servers())
        assert server.net_connections(kind="inet") == []


def test_the_server_inherits_neither_listeners_nor_files(service: Service) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        (service.directory / "secret").open("w") as file,
    ):
        listener.set_inheritable(True)  # as uvicorn's are
        os.set_inheritable(file.fileno(), True)
        with here(service.directory):
            [server] = map(psutil.Process, service.servers())
            assert server.net_connections(kind="inet") == []
            assert {Path(opened.path).name for opened in server.open_files()} == {"valkey.log"}


def test_the_store_is_bounded_and_never_saved(service: Service) -> None:
    with here(service.directory) as server, redis.Redis.from_url(server.url) as client:
        settings = client.config_get("maxmemory", "maxmemory-policy", "save", "appendonly", "port")
    assert settings == {
        "maxmemory": str(256 << 20),
        "maxmemory-policy": "noeviction",
        "save": "",
        "appendonly": "no",
        "port": "0",
    }


def test_a_directory_with_spaces_and_quotes_in_its_name_is_usable(service: Service) -> None:
    odd = service.directory / 'a "b" ü%41?'
    odd.mkdir(mode=0o700)
    with here(odd) as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()
    odd.rmdir()


def test_a_server_that_cannot_start_is_an_error_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    broken = service.directory / "broken"
    broken.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    broken.chmod(0o700)
    monkeypatch.setattr(embedded, "_find_binary", lambda: broken)
    with pytest.raises(StorageError, match=r"ended at once; the last lines of its log:\n  no room"):
        asyncio.run(EmbeddedServer("test", service.directory).start())


def test_a_server_that_cannot_be_run_is_a_storage_error(
    monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    monkeypatch.setattr(embedded, "_find_binary", lambda: service.directory / "missing")
    with pytest.raises(StorageError, match=r"cannot run: .*missing"):
        asyncio.run(EmbeddedServer("test", service.directory).start())


def test_the_log_has_a_bound(service: Service) -> None:
    with here(service.directory):
        [server] = map(psutil.Process, service.servers())
        assert server.rlimit(psutil.RLIMIT_FSIZE)[0] == embedded.LOG_LIMIT


def test_a_keeper_ends_the_server_where_the_kernel_cannot(service: Service) -> None:
    starter, other = service.started(2, kernel_can_tie=False)
    starter.kill()
    assert service.ping()
    other.kill()
    assert took(lambda: not service.servers()) < 2


def test_a_server_with_a_keeper_is_restarted_too(service: Service) -> None:
    [worker] = service.started(1, kernel_can_tie=False)
    os.kill(service.servers()[0], signal.SIGKILL)
    assert took(lambda: worker.ask("ensure")[0] == "True") < 3
    assert service.ping()
    assert len(service.servers()) == 1
