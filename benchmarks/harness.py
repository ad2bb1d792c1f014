"""What every benchmark needs: servers, Redis, load, and figures with a verdict."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
from peers import NEW, OLD, ROOT, Peer

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
NEVER = float("inf")


class Unmeasurable(Exception):
    """A benchmark cannot run here; the message says what is missing."""


def need(*programs: str) -> str:
    """Return the path of the first of these programs that is installed."""
    for program in programs:
        if path := shutil.which(program):
            return path
    raise Unmeasurable(f"needs {' or '.join(programs)} (Debian: apt install {programs[0]})")


def allow_many_files() -> int:
    """Raise the limit of open files as far as this user may, for the processes started from now."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def wait_for(ready: Callable[[], bool], seconds: float, every: float = 0.02) -> bool:
    """Wait until something is so. False: it is not so in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ready():
            return True
        time.sleep(every)
    return ready()


class Redis:
    """A server of our own on a unix socket, which keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.command = [
            need("redis-server", "valkey-server"), "--port", "0", "--unixsocket", str(self.socket),
            "--save", "", "--appendonly", "no", "--dir", str(folder),
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start with no data."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        if not wait_for(lambda: self.ask(b"PING") == b"+PONG", 5):
            raise Unmeasurable("the Redis server does not start")

    def ask(self, command: bytes) -> bytes:
        """Send one command and return the first line of the answer; empty when it is away."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            try:
                connection.connect(str(self.socket))
                connection.sendall(command + b"\r\n")
                return connection.recv(4096).strip()
            except OSError:
                return b""

    def freeze(self) -> None:
        """Let it answer nobody, with its connections open."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it without a chance to say goodbye."""
        self.process.kill()
        self.process.wait()


class Server:
    """Real uvicorn (uvloop, httptools) with one variant of apps/service.py."""

    def __init__(self, peer: Peer, folder: Path, workers: int = 1, **settings: Any) -> None:
        self.workers = workers
        self.port = free_port()
        self.events = Path(tempfile.mkdtemp(prefix="server-", dir=folder))
        self.log = self.events / "log"
        variant = json.dumps({"events": str(self.events), **settings})
        command = [
            peer.python, "-m", "uvicorn", "service:app", "--app-dir", str(HERE / "apps"),
            "--port", str(self.port), "--workers", str(workers), "--loop", "uvloop",
            "--http", "httptools", "--no-access-log", "--backlog", "4096",
            "--timeout-keep-alive", "600", "--timeout-graceful-shutdown", "1",
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = psutil.Popen(
                command, env={**peer.environment(), "BENCH_SERVICE": variant},
                stdout=log, stderr=log, cwd=self.events,  # `-m` would import from the checkout
            )  # fmt: skip
        if not wait_for(self.started, 40):
            self.stop()
            raise Unmeasurable(f"{peer.name} does not start:\n{self.log.read_text()[-2000:]}")

    def started(self) -> bool:
        """Whether every worker serves."""
        if self.log.read_bytes().count(b"startup complete") < self.workers:
            return False
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    def processes(self) -> list[psutil.Process]:
        """The process that was started and all below it."""
        return [self.process, *self.process.children(recursive=True)]

    def cpu(self) -> float:
        """CPU seconds spent so far: user and system, all processes and threads."""
        times = [process.cpu_times() for process in self.processes()]
        return sum(each.user + each.system for each in times)

    def memory(self) -> int:
        """Resident bytes of all processes."""
        return sum(process.memory_info().rss for process in self.processes())

    def stats(self, endpoint: str = "/work") -> dict[str, Any]:
        """What /balancer/stats says of one endpoint."""
        with urlopen(f"http://127.0.0.1:{self.port}/balancer/stats", timeout=5) as answer:
            stats: dict[str, Any] = json.load(answer)["endpoints"][endpoint]
        return stats

    def stop(self) -> None:
        """End it and everything below it."""
        processes = self.processes() if self.process.is_running() else []
        if processes:
            self.process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=6)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=2)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def bench() -> Iterator[tuple[Path, Callable[..., Server], Callable[[], Redis]]]:
    """Give a folder, and makers of servers and Redis; all that they made is ended with it."""
    started: list[Server | Redis] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)

        def server(peer: Peer, **settings: Any) -> Server:
            started.append(Server(peer, folder, **settings))
            return started[-1]  # type: ignore[return-value]  # what was just appended

        def redis() -> Redis:
            place = Path(tempfile.mkdtemp(prefix="redis-", dir=folder))
            started.append(Redis(place))
            return started[-1]  # type: ignore[return-value]  # what was just appended

        try:
            yield folder, server, redis
        finally:
            for each in reversed(started):
                each.stop()


class Load:
    """Clients in a process of their own, as load.py plays them."""

    def __init__(self, server: Server, clients: int, ramp: float, phases: list[Any]) -> None:
        self.seconds = sum(phase["seconds"] for phase in phases)
        plan = {"port": server.port, "clients": clients, "ramp": ramp, "phases": phases}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "load.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdin
        self.process.stdin.write(json.dumps(plan).encode())
        self.process.stdin.close()
        self.process.stdin = None

    def answers(self) -> list[Answer]:
        """Wait for the end of the plan and return every answer."""
        try:
            out, _ = self.process.communicate(timeout=self.seconds + 30)
        finally:
            self.process.kill()
        return [Answer(*answer) for answer in json.loads(out)]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request. Times are monotonic nanoseconds, as in the handler's events."""

    request: int
    sent: int
    done: int
    status: int  # load.LEFT and load.BROKEN are no answers of the server
    phase: str

    @property
    def seconds(self) -> float:
        return (self.done - self.sent) / 1e9


@dataclass(slots=True)
class Figure:
    """One line of a table: a measure, what it must be, and its value in each round."""

    what: str
    must: tuple[str, float] | None = None  # ("<=", 8) or (">=", 0.95); None: for information
    unit: str = ""
    worst: bool = False  # judged by its worst round, not by the median: safety has no average
    values: dict[str, list[float | None]] = field(default_factory=dict)

    def add(self, peer: str, value: float | None) -> None:
        """Note the value of one round; None: does not apply."""
        self.values.setdefault(peer, []).append(value)

    def of(self, peer: str) -> float | None:
        """The value that is judged."""
        rounds = [value for value in self.values.get(peer, []) if value is not None]
        if not rounds:
            return None
        if not self.worst:
            return statistics.median(rounds)
        return min(rounds) if self.must and self.must[0] == ">=" else max(rounds)

    def met(self) -> bool | None:
        """Whether this checkout does what it must; None: nothing is asked, or not measured."""
        value = self.of(NEW)
        if self.must is None or value is None:
            return None
        return value >= self.must[1] if self.must[0] == ">=" else value <= self.must[1]

    def text(self, peer: str) -> str:
        """The value with its spread over the rounds."""
        value = self.of(peer)
        rounds = [each for each in self.values.get(peer, []) if each is not None]
        if value is None:
            return "–"
        spread = f" ({number(min(rounds))}–{number(max(rounds))})" if len(set(rounds)) > 1 else ""
        unit = f" {self.unit}" if self.unit and value != NEVER else ""
        return f"{number(value)}{unit}{spread}"


class Figures:
    """The figures of one benchmark, in the order in which they were first noted."""

    def __init__(self) -> None:
        self.all: dict[str, Figure] = {}

    def note(
        self, peer: str, what: str, value: float | None, must: tuple[str, float] | None = None,
        unit: str = "", worst: bool = False,
    ) -> None:  # fmt: skip
        """Note the value of one round."""
        figure = self.all.setdefault(what, Figure(what, must, unit, worst))
        figure.add(peer, value)

    def table(self) -> str:
        """Draw the table: measure, must, this checkout, the release before it, verdict."""
        head = ("measure", "must", NEW, OLD, "")
        verdict = {True: "met", False: "NOT met", None: ""}
        rows = [
            (each.what, " ".join(map(shown, each.must or ())), each.text(NEW), each.text(OLD),
             verdict[each.met()])
            for each in self.all.values()
        ]  # fmt: skip
        return aligned([head, *rows])

    def save(self, name: str, peers: Iterable[Peer], seconds: float) -> None:
        """Write everything that was measured to results/<name>.json."""
        RESULTS.mkdir(exist_ok=True)
        content = {
            "benchmark": name,
            "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(seconds, 1),
            "commit": commit(),
            "machine": f"{os.cpu_count()} CPUs, {platform.platform()}",
            "peers": {peer.name: peer.versions() for peer in peers},
            "figures": [
                {"what": each.what, "must": each.must, "unit": each.unit, "met": each.met(),
                 "values": each.values}
                for each in self.all.values()
            ],
        }  # fmt: skip
        text = json.dumps(content, indent=1).replace("Infinity", '"never"')
        (RESULTS / f"{name}.json").write_text(text + "\n")


def number(value: float) -> str:
    """Write a number with three significant digits."""
    if value == NEVER:
        return "never"
    if value == int(value):
        return str(int(value))
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def shown(part: str | float) -> str:
    """Write one half of a must."""
    return part if isinstance(part, str) else number(part)


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Put rows under each other, the first one underlined."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def commit() -> str:
    """Name the commit that is measured."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
