"""What clients see when a worker dies or Redis is away, and when full service is back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from urllib.error import HTTPError
from urllib.request import urlopen

import events
from harness import NEVER, Answer, Figures, Load, Redis, Server, bench, wait_for
from peers import Peer
from wire import Connection

CAPACITY = 8
WORKERS = 4
BEFORE, AFTER = 4.5, 6.0
SETTLED = 2.0  # seconds after a fault's end from which nothing may be left of it
PATIENCE = 15.0
# Three quarters of the capacity, and they keep coming whatever becomes of the earlier ones.
LIGHT = {"clients": 480, "every": 4.0}
# Five times the capacity: the queue is never empty, and whoever is served asks again.
HEAVY = {"clients": 40, "every": 0.0}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens to Redis, and for how long."""

    name: str
    begin: Callable[[Redis], object]
    seconds: float
    end: Callable[[Redis], object]


FAULTS = (
    Fault("frozen 2 s", Redis.freeze, 2.0, Redis.thaw),
    Fault("killed, back empty after 2 s", Redis.stop, 2.0, Redis.start),
    Fault("FLUSHALL", lambda redis: redis.ask(b"FLUSHALL"), 0.0, lambda redis: None),
    Fault("frozen 5 s", Redis.freeze, 5.0, Redis.thaw),
)


def run(peers: list[Peer], figures: Figures, quick: bool) -> None:
    """Measure every fault with every peer in turn."""
    for _ in range(1 if quick else 3):
        for peer in peers:
            note_kill(peer, figures)
        for fault in FAULTS[:3] if quick else FAULTS:
            for name, load in (("light load", LIGHT), ("heavy load", HEAVY)):
                for peer in peers:
                    note_fault(peer, figures, fault, name, load)
        for peer in peers:
            note_no_health(peer, figures)


def note_fault(
    peer: Peer, figures: Figures, fault: Fault, load_name: str, load: dict[str, float]
) -> None:
    """Load the service, let the fault happen, and note what the clients saw."""
    with bench() as (_, start, make_redis):
        redis = make_redis()
        server = start(
            peer, workers=WORKERS, storage="redis", redis=redis.url, capacity=CAPACITY,
            watched=["/work"],
        )  # fmt: skip
        seconds = BEFORE + fault.seconds + AFTER
        phase = {"name": "all", "seconds": seconds, "ms": 50, "every": load["every"]}
        clients = Load(server, int(load["clients"]), load["every"], [phase])
        time.sleep(BEFORE)
        begun = time.monotonic_ns()
        fault.begin(redis)
        time.sleep(fault.seconds)
        fault.end(redis)
        ended = time.monotonic_ns()
        answers = clients.answers()
        inside = events.most_inside(events.read(server.events))

    def note(what: str, value: float, must: tuple[str, float] | None, unit: str = "") -> None:
        title = f"Redis {fault.name}, {load_name}: {what}"
        figures.note(peer.name, title, value, must, unit, worst=True)

    failed = [answer for answer in answers if not 200 <= answer.status < 300]
    late = [answer for answer in failed if answer.done > ended + SETTLED * 1e9]
    note("requests failed", 100 * len(failed) / len(answers), ("<=", 0), "%")
    note(f"failed later than {SETTLED:.0f} s after it", len(late), ("<=", 0))
    # Under heavy load each worker works off a queue of its own meanwhile, some longer than others.
    note("longest wait caused", wait_caused(answers, begun), ("<=", 0.5), "s")
    note("most inside at once", inside, ("<=", CAPACITY))


def wait_caused(answers: list[Answer], begun: int) -> float:
    """Return the longest latency that reaches into the fault, less the normal p99 before it."""
    normal = events.quantile([a.seconds for a in answers if a.done < begun], 0.99) or 0.0
    return max(0.0, max(a.seconds for a in answers if a.done >= begun) - normal)


def note_kill(peer: Peer, figures: Figures) -> None:
    """Let one worker hold all slots, kill it, and note when others have them all."""
    with bench() as (_, start, redis):
        server = start(
            peer, workers=WORKERS, storage="redis", redis=redis().url, capacity=CAPACITY,
            watched=["/work"],
        )  # fmt: skip
        seconds, inside = asyncio.run(kill_holder(server))
    what = "worker with all slots killed: all slots in use again after"
    figures.note(peer.name, what, seconds, ("<=", 0.5), "s", worst=True)
    what = "worker with all slots killed: most inside at once"
    figures.note(peer.name, what, inside, ("<=", CAPACITY), worst=True)


async def kill_holder(server: Server) -> tuple[float, int]:
    """Return the seconds from the kill to full concurrency, and the most inside at once since."""
    line = await connections_by_worker(server)
    victim = next(pid for pid, each in line.items() if len(each) >= CAPACITY)
    for connection in line[victim][:CAPACITY]:
        ask(connection, ms=60_000)
    wait_for(lambda: len(events.read(server.events)) >= CAPACITY, 5)
    others = [each for pid, group in line.items() if pid != victim for each in group]
    for connection in others[: 2 * CAPACITY]:
        ask(connection, ms=1000)
    await asyncio.sleep(0.5)
    killed = time.monotonic_ns()
    os.kill(victim, signal.SIGKILL)
    return await full_again(server, victim, killed)


async def full_again(server: Server, victim: int, killed: int) -> tuple[float, int]:
    """Wait until the survivors run as many requests as there are slots."""
    while time.monotonic_ns() < killed + PATIENCE * 1e9:
        await asyncio.sleep(0.05)
        rest = events.without(events.read(server.events), victim)
        starts = [event for event in rest if event.entered and event.at >= killed]
        if len(starts) >= CAPACITY:
            await asyncio.sleep(1.5)
            after = events.without(events.read(server.events), victim)
            return (starts[CAPACITY - 1].at - killed) / 1e9, events.most_inside(after)
    return NEVER, events.most_inside(rest)


async def connections_by_worker(server: Server) -> dict[int, list[Connection]]:
    """Open connections until one worker has enough of them, sorted by who accepted them."""
    line: dict[int, list[Connection]] = defaultdict(list)
    for _ in range(20):
        batch = await asyncio.gather(*(Connection.open(server.port) for _ in range(16)))
        for connection in batch:
            _, pid = await connection.get("/pid")
            line[int(pid)].append(connection)
        most = max(map(len, line.values()))
        if most >= CAPACITY and sum(map(len, line.values())) - most >= 2 * CAPACITY:
            break
    return line


def ask(connection: Connection, ms: float) -> None:
    """Send a request that runs for so long."""
    now = time.monotonic_ns()
    connection.send(f"/work?request={now}&sent={now}&ms={ms}")


def note_no_health(peer: Peer, figures: Figures) -> None:
    """Ask a service that has no /health route, after its first health check."""
    with bench() as (_, start, redis):
        server = start(
            peer, workers=1, storage="redis", redis=redis().url, capacity=CAPACITY,
            watched=["/hello"], health=False,
        )  # fmt: skip
        time.sleep(2)
        served = sum(status(f"http://127.0.0.1:{server.port}/hello") == 200 for _ in range(20))
    what = "a service without /health: answered, of 20"
    figures.note(peer.name, what, served, (">=", 20), worst=True)


def status(url: str) -> int:
    """Ask once and return the status."""
    try:
        with urlopen(url, timeout=5) as answer:
            code: int = answer.status
            return code
    except HTTPError as error:
        return error.code
