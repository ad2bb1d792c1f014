"""Runs an app as users do: under a real server, with several workers, on a real socket."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests import reaper
from tests.servers import free_port, wait_until

REPOSITORY = Path(__file__).parents[2]


class Service:
    """A server process with its workers, on a port of 127.0.0.1.

    Use it in a `with` or `async with` block: it is ready when that is entered and gone when it is
    left, and an exception that leaves the block is given what it wrote as a note. `http` is for
    uvicorn only.
    """

    def __init__(
        self,
        app: str,
        *,
        workers: int = 1,
        server: str = "uvicorn",
        http: str = "httptools",
        loop: str = "uvloop",
        env: Mapping[str, str] | None = None,
        root_path: str = "",
        arguments: Sequence[str] = (),
        ready_within: float = 30.0,
    ) -> None:
        self.app = app
        self.workers = workers
        self.server = server
        self.http = http
        self.loop = loop
        self.root_path = root_path
        self.arguments = arguments
        self.port = free_port()
        self._env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
        self._env.update(env or {})
        self._ready_within = ready_within
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        """Where it listens, for HTTP clients."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        """What all its processes have written so far."""
        if self._folder is None:
            return ""
        return (self._folder / "output").read_text(errors="replace")

    def start(self) -> None:
        """Start it, and wait until every worker takes requests. Raises `TimeoutError`."""
        command, _ = SERVERS[self.server]
        self._folder = reaper.folder()
        with (self._folder / "output").open("ab") as output:
            self._process = reaper.start(
                [sys.executable, "-m", *command(self), *self.arguments],
                cwd=REPOSITORY,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.wait_for_starts(self.workers, self._ready_within)
        # A single uvicorn worker listens only after it has said that it is ready.
        wait_until(self._accepts, self._ready_within, self._log)

    def starts(self) -> int:
        """How often a worker has become ready so far: more than `workers` after a replacement."""
        return self.output.count(SERVERS[self.server][1])

    def wait_for_starts(self, count: int, within: float = 30.0) -> None:
        """Wait until workers have become ready so often. Raises `TimeoutError`."""
        wait_until(
            lambda: self._running().poll() is not None or self.starts() >= count, within, self._log
        )
        if self.starts() < count:
            raise RuntimeError(
                f"{self.server} ended with {self._running().returncode}:\n{self.output}"
            )

    def worker_pids(self) -> list[int]:
        """The processes that serve requests, oldest first."""
        main = psutil.Process(self._running().pid)
        children = [child for child in main.children() if _is_worker(child, main)]
        return [child.pid for child in sorted(children, key=psutil.Process.create_time)] or [
            main.pid
        ]

    def kill_worker(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one worker; the server may start another in its place.

        Raises `ValueError` when it is none of ours.
        """
        if pid not in self.worker_pids():
            raise ValueError(f"{pid} is no worker of this service")
        os.kill(pid, number)

    def terminate(self, number: signal.Signals = signal.SIGTERM, within: float = 15.0) -> int:
        """Ask the server to end, as a process manager would, and return its exit status.

        Raises `TimeoutError` when it goes on.
        """
        process = self._running()
        process.send_signal(number)
        wait_until(lambda: process.poll() is not None, within, self._log)
        return process.returncode

    def close(self) -> None:
        """Kill what is left of it. Idempotent."""
        if self._process is not None:
            reaper.end(self._process)
            self._process = None
        if self._folder is not None:
            reaper.remove(self._folder)
            self._folder = None

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
        if error is not None:
            error.add_note(f"The service wrote:\n{self.output[-8000:]}")
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the service does not run")
        return self._process

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(self.address) == 0

    def _log(self) -> str:
        return self.output


def _is_worker(child: psutil.Process, main: psutil.Process) -> bool:
    # Others are multiprocessing's tracker, and what the app itself has started.
    try:
        command = " ".join(child.cmdline())
        return child.exe() == main.exe() and "resource_tracker" not in command
    except psutil.Error:  # ended meanwhile
        return False


def _uvicorn(service: Service) -> list[str]:
    command = ["uvicorn", service.app, "--host", "127.0.0.1", "--port", str(service.port)]
    command += ["--workers", str(service.workers), "--http", service.http, "--loop", service.loop]
    command += ["--no-access-log"]
    return [*command, "--root-path", service.root_path] if service.root_path else command


def _hypercorn(service: Service) -> list[str]:
    command = ["hypercorn", service.app, "--bind", f"127.0.0.1:{service.port}"]
    command += ["--workers", str(service.workers), "--worker-class", service.loop]
    return [*command, "--root-path", service.root_path] if service.root_path else command


def _granian(service: Service) -> list[str]:
    command = ["granian", service.app, "--interface", "asgi", "--host", "127.0.0.1"]
    command += ["--port", str(service.port), "--workers", str(service.workers)]
    command += ["--loop", service.loop]
    return [*command, "--url-path-prefix", service.root_path] if service.root_path else command


# By server: its command line, and what each of its workers writes once it takes requests.
SERVERS: dict[str, tuple[Callable[[Service], list[str]], str]] = {
    "uvicorn": (_uvicorn, "Application startup complete."),
    "hypercorn": (_hypercorn, "Running on http"),
    "granian": (_granian, "Started worker-"),
}
