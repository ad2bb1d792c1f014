"""What waiting costs: memory per queued request, refusal when the queue is full, the drain."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import events
from harness import HERE, Figures, Server, allow_many_files, bench, wait_for
from peers import NEW, Peer
from wire import Connection

CAPACITY = 8
SIZES = (100, 1_000, 10_000)
PROCESSES = 4
REFUSALS = 50  # on each of 8 connections
SETTLING = 1.0


class Gate:
    """A file: the handlers behind it return once it exists."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "gate"
        self.target = f"/gate?file={self.file}"

    def open(self) -> None:
        """Let everybody through."""
        self.file.touch()

    def close(self) -> None:
        """Hold everybody who comes from now on."""
        self.file.unlink()


class Crowds:
    """Client processes that hold connections, all commanded at once."""

    def __init__(self, server: Server) -> None:
        command = [sys.executable, str(HERE / "crowd.py"), str(server.port)]
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(PROCESSES)
        ]

    def all(self, command: str) -> list[Any]:
        """Give every process a command and return their answers."""
        for process in self.processes:
            assert process.stdin
            process.stdin.write(command + "\n")
            process.stdin.flush()
        return [json.loads(process.stdout.readline()) for process in self.processes]  # type: ignore[union-attr]  # piped

    def end(self) -> None:
        """Hang up everywhere."""
        for process in self.processes:
            process.kill()
            process.wait()


def run(peers: list[Peer], figures: Figures, quick: bool) -> None:
    """Measure every size of queue with every storage and peer in turn."""
    if allow_many_files() < SIZES[-1] + 1000:
        print("fewer open files are allowed than the longest queue needs: ulimit -Hn")
    for _ in range(1 if quick else 3):
        for storage in ("memory", "redis"):
            for size in SIZES[:2] if quick else SIZES:
                for peer in peers:
                    note_queue(peer, figures, storage, size)


def note_queue(peer: Peer, figures: Figures, storage: str, size: int) -> None:
    """Let so many requests wait, refuse some, open the gate, and note what all that took."""
    with bench() as (folder, start, redis):
        extra: dict[str, Any] = {"redis": redis().url} if storage == "redis" else {}
        if peer.name == NEW:  # the release before it has no bound
            extra["endpoint"] = {"queue_size": size}
        server = start(
            peer, workers=1, storage=storage, capacity=CAPACITY, queue_timeout=300.0,
            watched=["/gate"], **extra,
        )  # fmt: skip
        crowds = Crowds(server)
        try:
            measured = asyncio.run(fill_and_drain(server, crowds, Gate(folder), size, peer))
        finally:
            crowds.end()
    for what, value, must, unit in measured:
        figures.note(peer.name, f"{storage}, {size} waiting: {what}", value, must, unit)


async def fill_and_drain(
    server: Server, crowds: Crowds, gate: Gate, size: int, peer: Peer
) -> list[tuple[str, float | None, tuple[str, float] | None, str]]:
    """Return the figures of one filling and draining: what, value, must, unit."""
    await warm_up(server, gate)
    empty = server.memory()
    crowds.all(f"open {size // PROCESSES}")
    idle = settled_memory(server)
    inside = [await Connection.open(server.port) for _ in range(CAPACITY)]
    for connection in inside:
        connection.send(gate.target)
    await asyncio.sleep(0.3)
    crowds.all(f"send {gate.target}")
    waiting = settled_memory(server)
    waiting_cpu = cpu_share(server)
    refusal = await refusal_p99(server, gate.target) if peer.name == NEW else None
    cpu, opened = server.cpu(), time.monotonic()
    gate.open()
    replies = await asyncio.to_thread(crowds.all, "collect")
    drained = max(reply["last"] for reply in replies) - opened
    answered = sum(reply["statuses"].get("200", 0) for reply in replies)
    return [
        ("memory each, with its connection", (waiting - empty) / size / 1024, None, "KiB"),
        (
            "memory each, above an idle connection",
            (waiting - idle) / size / 1024,
            ("<=", 16),
            "KiB",
        ),
        ("answered in the end", 100 * answered / size, (">=", 100), "%"),
        ("refusal when full, p99", refusal, ("<=", 5), "ms"),
        ("CPU while they wait", 100 * waiting_cpu, ("<=", 10), "%"),
        ("time to drain", drained, None, "s"),
        ("CPU to drain, each", 1e6 * (server.cpu() - cpu) / size, None, "µs"),
    ]


async def warm_up(server: Server, gate: Gate) -> None:
    """Ask a few hundred times, so that what every server allocates once is not counted."""
    gate.open()
    connection = await Connection.open(server.port)
    for _ in range(300):
        await connection.get(gate.target)
    connection.close()
    gate.close()


def settled_memory(server: Server) -> int:
    """Return the resident memory once it has stopped growing."""
    last = 0

    def steady() -> bool:
        nonlocal last
        before, last = last, server.memory()
        return last - before < 32 * 1024

    time.sleep(SETTLING)
    wait_for(steady, seconds=20, every=0.5)
    return last


def cpu_share(server: Server, seconds: float = 2.0) -> float:
    """Return the share of one CPU that the server takes now."""
    before = server.cpu()
    time.sleep(seconds)
    return (server.cpu() - before) / seconds


async def refusal_p99(server: Server, target: str) -> float | None:
    """Ask a full queue and return the 99th percentile of the refusals, in milliseconds."""
    line = [await Connection.open(server.port) for _ in range(8)]
    batches = await asyncio.gather(*(refused(connection, target) for connection in line))
    p99 = events.quantile([seconds for batch in batches for seconds in batch], 0.99)
    return None if p99 is None else 1000 * p99


async def refused(connection: Connection, target: str) -> list[float]:
    """Ask again and again; return how long each refusal took. Stops when one is let in."""
    times: list[float] = []
    for _ in range(REFUSALS):
        begin = time.monotonic()
        try:
            async with asyncio.timeout(2):
                status, _ = await connection.get(target)
        except TimeoutError:
            break
        if status == 503:
            times.append(time.monotonic() - begin)
    connection.close()
    return times
