"""Show in a minute what the balancer does: overload a service without it and with it."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.request import urlopen

from database import PLACES, QUERY

HERE = Path(__file__).resolve().parent
WORKERS = 4
RATE = 2.5 * PLACES / QUERY  # requests per second: two and a half times what the database can do
OVERLOAD = 8.0  # seconds
IN_TIME = 1.0  # an answer that takes longer is of no use to anybody
START = 90.0  # seconds that a start may take, the measuring included


class Failed(Exception):
    """The demo cannot go on; the message says why."""


class Service:
    """The app under uvicorn with several workers, and the database that they share."""

    def __init__(self, port: int, *, balancer: bool) -> None:
        self.port = port
        self.balancer = balancer
        self.folder = tempfile.TemporaryDirectory(prefix="demo-")
        self.database = str(Path(self.folder.name) / "database")
        self.processes: list[subprocess.Popen[str]] = []
        self.ending = False

    def __enter__(self) -> Service:
        try:
            self._run([str(HERE / "database.py"), self.database])
            self._run(
                ["-m", "uvicorn", "app:app", "--app-dir", str(HERE), "--port", str(self.port),
                 "--workers", str(WORKERS), "--log-config", str(HERE / "logging.json"),
                 "--no-access-log", "--timeout-graceful-shutdown", "1"]
            )  # fmt: skip
            threading.Thread(target=self._show, daemon=True).start()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    def most_queries(self) -> int:
        """Ask the database how many queries it had at once at the most, since last asked."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.database)
            connection.sendall(b"most\n")
            return int(connection.makefile().readline())

    def check(self) -> None:
        """Raise `Failed` when a process has ended by itself."""
        for process in self.processes:
            if process.poll() is not None:
                raise Failed(f"The service has ended with status {process.returncode}.")

    def stop(self) -> None:
        """End everything that was started, the workers first. A second Ctrl-C does not stop it."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.ending = True  # what still runs is cut off, which uvicorn would tell at length
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(timeout=8)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # a group of its own, see `_run`
                process.wait()
        self.folder.cleanup()
        signal.signal(signal.SIGINT, before)

    def _run(self, arguments: list[str]) -> None:
        """Start a Python process, away from the terminal's Ctrl-C: `stop` ends it."""
        switch = "on" if self.balancer else "off"
        environment = os.environ | {
            "DEMO_DATABASE": self.database, "DEMO_BALANCER": switch, "DEMO_RUN": str(os.getpid()),
        }  # fmt: skip
        self.processes.append(
            subprocess.Popen(
                [sys.executable, *arguments], env=environment, start_new_session=True, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip

    def _show(self) -> None:
        """Show what the service logs, each line once: all workers say much the same."""
        said: set[str] = set()
        output = self.processes[-1].stdout
        assert output is not None
        for line in output:
            short = shorten(line)
            repeated = short in said or " by worker " in short  # what another worker has measured
            if not repeated and not self.ending:
                said.add(short)
                print(f"  {short}", flush=True)

    def _wait_until_ready(self) -> None:
        """Wait for the first answer. Raises `Failed`."""
        end = time.monotonic() + START
        while time.monotonic() < end:
            self.check()
            try:
                with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2) as answer:
                    if json.load(answer) == str(os.getpid()):
                        time.sleep(1)  # the other workers begin at the same time
                        return
                    raise Failed(f"Another service answers on port {self.port}.")
            except OSError:
                time.sleep(0.2)
        raise Failed(f"The service did not answer within {START:.0f} s.")


def shorten(line: str) -> str:
    """Cut a log line of the probe to the width of a terminal: without why a level passed."""
    return re.sub(r": (pass|fail) \(.*", r": \1", line.rstrip())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one overload: of each request, its status (0: gave up) and seconds."""

    answers: list[tuple[int, float]]
    most: int  # queries in the database at once

    def share(self, *statuses: int) -> float:
        """The share of these statuses, in percent."""
        return 100 * sum(status in statuses for status, _ in self.answers) / len(self.answers)

    @property
    def goodput(self) -> float:
        """Answers in time, per second."""
        in_time = sum(status == 200 and took <= IN_TIME for status, took in self.answers)
        return in_time / OVERLOAD

    def took(self, quantile: float, *statuses: int) -> str:
        """How long such answers took."""
        times = sorted(took for status, took in self.answers if status in statuses)
        if not times:
            return "–"
        return f"{1000 * times[min(len(times) - 1, int(quantile * len(times)))]:.0f} ms"


def overload(service: Service) -> Outcome:
    """Send more than the service can take, from a process of its own."""
    service.most_queries()
    command = [sys.executable, str(HERE / "load.py"), str(service.port), "/query"]
    command += [str(RATE), str(OVERLOAD)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            out, _ = process.communicate(timeout=OVERLOAD + 20)
        finally:
            process.kill()
    service.check()
    return Outcome(json.loads(out), service.most_queries())


def table(without: Outcome, balanced: Outcome) -> str:
    """Put both side by side."""
    rows = [("", "without", "with the balancer")]

    def row(what: str, one: str, other: str) -> None:
        rows.append((what, one, other))

    pair = (without, balanced)
    row("requests offered", *(f"{len(each.answers) / OVERLOAD:.0f}/s" for each in pair))
    row(f"answered within {IN_TIME:g} s", *(f"{each.goodput:.0f}/s" for each in pair))
    row("an answer takes, p50", *(each.took(0.5, 200) for each in pair))
    row("an answer takes, p99", *(each.took(0.99, 200) for each in pair))
    row("refused, with Retry-After", *(f"{each.share(503, 504):.0f} %" for each in pair))
    row("a refusal takes, p50", *(each.took(0.5, 503, 504) for each in pair))
    row("gave up without an answer", *(f"{each.share(0):.0f} %" for each in pair))
    row(f"most queries at once (room: {PLACES})", *(f"{each.most}" for each in pair))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"  {what:<{widths[0]}}   {one:>{widths[1]}}   {other:>{widths[2]}}"
        for what, one, other in rows
    ]
    return "\n".join([lines[0], "  " + "─" * (len(lines[0]) - 2), *lines[1:]])


def gain(without: Outcome, balanced: Outcome) -> str:
    """Say it in one sentence."""
    if without.goodput < 1:
        return f"In time: none without the balancer, {balanced.goodput:.0f} per second with it."
    times = balanced.goodput / without.goodput
    return f"With the balancer the same service gave {times:.1f} times as many answers in time."


def free_port(wanted: int = 0) -> int:
    """Return the wanted port, or any that is free. Raises `Failed`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            reason = error.strerror.lower()
            raise Failed(f"Port {wanted}: {reason}. Choose another with --port.") from None
        port: int = probe.getsockname()[1]
        return port


def demo(port: int, seconds: float | None) -> None:
    """Start, measure, overload twice, show, and go on serving."""
    begin, url = time.monotonic(), f"http://127.0.0.1:{port}"
    print(f"Starting a service with {WORKERS} workers; the balancer measures it first ...\n")
    with Service(port, balancer=True) as balanced:
        print(f"\n  service     {url}/query   (also /hash, /report, /stream)")
        print(f"  numbers     {url}/balancer/stats\n")
        kind = f"{RATE:.0f} requests per second for {OVERLOAD:.0f} s to /query"
        print(f"Overload: {kind}; its database can do {PLACES / QUERY:.0f}.")
        print("  the same service without the balancer ...", flush=True)
        with Service(free_port(), balancer=False) as bare:
            before = overload(bare)
        print("  and with it ...\n", flush=True)
        after = overload(balanced)
        print(f"{table(before, after)}\n\n{gain(before, after)}\n")
        serve_on(balanced, None if seconds is None else begin + seconds)


def serve_on(service: Service, end: float | None) -> None:
    """Keep serving until the end, or until Ctrl-C."""
    if end is None:
        print("Still serving. Ctrl-C ends it.", flush=True)
    elif end > time.monotonic():
        print(f"Serving for {end - time.monotonic():.0f} s more. Ctrl-C ends it.", flush=True)
    while end is None or time.monotonic() < end:
        service.check()
        time.sleep(0.2)


def main() -> int:
    """Read the command line and run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, help="end so long after the start, but not before the comparison"
    )
    parser.add_argument("--port", type=int, default=0, help="default: any that is free")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        demo(free_port(arguments.port), arguments.seconds)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nEnded.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
