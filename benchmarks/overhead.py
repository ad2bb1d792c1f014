"""What the balancer costs a request that need not wait, against the bare app."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import Any

from harness import Figures, Server, bench, need
from peers import NEW, Peer

CAPACITY = 1000  # above any number of connections here: nobody waits
VARIANTS: dict[str, dict[str, Any]] = {
    "unwatched": {"storage": "memory", "watched": ["/work"]},
    "memory": {"storage": "memory", "watched": ["/hello"]},
    "redis": {"storage": "redis", "watched": ["/hello"]},
}
MUSTS = {"unwatched": 0.95, "memory": 0.88, "redis": 0.80}  # at 16 connections, 1 worker
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of wrk."""

    rate: float  # requests per second
    p50_ms: float
    p99_ms: float
    cpu_us: float  # the server's CPU time for each request


def run(peers: list[Peer], figures: Figures, quick: bool) -> None:
    """Measure with one and with two workers."""
    measure(peers, figures, workers=1, rounds=3 if quick else 9, seconds=1 if quick else 2)
    if not quick:
        measure(peers, figures, workers=2, rounds=5, seconds=2)


def measure(peers: list[Peer], figures: Figures, workers: int, rounds: int, seconds: int) -> None:
    """Start all variants, then load one after the other, round after round."""
    with bench() as (_, start, redis):
        bare = start(peers[0], workers=workers, storage="bare")
        servers = {
            (peer.name, name): start(
                peer, workers=workers, capacity=CAPACITY, redis=redis().url, **variant
            )
            for peer in peers
            for name, variant in VARIANTS.items()
        }
        for server in (bare, *servers.values()):
            wrk(server, 16, 1)
        for _ in range(rounds):
            for connections in (1, 16, 64):
                base = wrk(bare, connections, seconds)
                for (peer, name), server in servers.items():
                    sample = wrk(server, connections, seconds)
                    where = f"{workers} worker, {connections} conn., {name}"
                    note(figures, peer, where, sample, base, must(workers, connections, name))
                figures.note(NEW, f"{workers} worker, {connections} conn., bare: rate", base.rate)


def must(workers: int, connections: int, name: str) -> tuple[str, float] | None:
    """What is asked of the rate: only where the machine is busy and nobody waits."""
    return (">=", MUSTS[name]) if (workers, connections) == (1, 16) else None


def note(
    figures: Figures, peer: str, where: str, sample: Sample, base: Sample,
    asked: tuple[str, float] | None,
) -> None:  # fmt: skip
    """Note one run against the bare run of the same round."""
    figures.note(peer, f"{where}: rate ÷ bare", sample.rate / base.rate, asked)
    figures.note(peer, f"{where}: CPU above bare", sample.cpu_us - base.cpu_us, unit="µs")
    figures.note(peer, f"{where}: p50 above bare", sample.p50_ms - base.p50_ms, unit="ms")
    figures.note(peer, f"{where}: p99 above bare", sample.p99_ms - base.p99_ms, unit="ms")


def wrk(server: Server, connections: int, seconds: int) -> Sample:
    """Load one server. Raises `RuntimeError` when any answer is not a success."""
    before = server.cpu()
    command = [
        need("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--latency",
        f"http://127.0.0.1:{server.port}/hello",
    ]  # fmt: skip
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise RuntimeError(f"not every answer was a success:\n{out}")
    requests = int(found(r"(\d+) requests in", out)[0])
    cpu = server.cpu() - before
    rate = float(found(r"Requests/sec:\s+([\d.]+)", out)[0])
    return Sample(rate, milliseconds("50%", out), milliseconds("99%", out), 1e6 * cpu / requests)


def milliseconds(percentile: str, out: str) -> float:
    """Read one line of wrk's latency distribution."""
    value, unit = found(rf"{percentile}\s+([\d.]+)(us|ms|s)", out)
    return float(value) * UNITS[unit]


def found(pattern: str, text: str) -> tuple[str, ...]:
    """Return the groups of the first match; raises `ValueError` when there is none."""
    if match := re.search(pattern, text):
        return match.groups()
    raise ValueError(f"no {pattern!r} in:\n{text}")
