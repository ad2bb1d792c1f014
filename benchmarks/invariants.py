"""What must hold for every request: capacity, order, no lost slot, nobody served who left."""

from __future__ import annotations

import asyncio
import time

import events
from events import Event
from harness import Answer, Figures, Load, Server, bench
from load import LEFT
from peers import Peer
from wire import Connection

CAPACITY = 8
CLIENTS = 200
SERVICE = 0.05
LEAVERS = 40
FAIRNESS = 8  # to be overtaken by so many is still in order: they were sent within milliseconds
STATS_AGE = 2.5  # stats may be a snapshot: they have settled after this


def run(peers: list[Peer], figures: Figures, quick: bool) -> None:
    """Measure every peer in turn, with one worker in memory and with four on Redis."""
    for _ in range(1 if quick else 3):
        for storage, workers in (("redis", 4), ("memory", 1)):
            for peer in peers:
                Trial(peer, storage, workers, 0.5 if quick else 1.0).run(figures)


class Trial:
    """One peer, one storage, one round."""

    def __init__(self, peer: Peer, storage: str, workers: int, scale: float) -> None:
        self.peer, self.storage, self.workers = peer, storage, workers
        self.title = f"{storage}, {workers} worker{'s' if workers > 1 else ''}"
        self.phases = [
            {"name": "ramp", "seconds": 2},
            {"name": "steady", "seconds": 10 * scale},
            {"name": "storm", "seconds": 6 * scale, "leave": 1 / 3},
            {"name": "timeouts", "seconds": 8 * scale, "ms": 100},
            {"name": "failures", "seconds": 4 * scale, "fail": 0.2},
            {"name": "gaps", "seconds": 6 * scale, "gap_every": 1.5, "gap": 0.7},
        ]

    def run(self, figures: Figures) -> None:
        """Run all phases and note their figures."""
        with bench() as (_, start, redis):
            settings = {"redis": redis().url} if self.storage == "redis" else {}
            server = start(
                self.peer, workers=self.workers, storage=self.storage, capacity=CAPACITY,
                queue_timeout=2.0, watched=["/work"], **settings,
            )  # fmt: skip
            answers = Load(server, CLIENTS, 2, self.phases).answers()
            time.sleep(STATS_AGE)
            load = events.read(server.events)
            held = server.stats()["active_requests"]
            served = asyncio.run(serve_leavers(server))
            usable = asyncio.run(slots_usable(server))
        self.figures = figures
        self.note_safety(load)
        self.note_order(load, answers)
        self.note("clients that left the queue, served", served, ("<=", 0), worst=True)
        self.note("slots held when nobody asks", held, ("<=", 0), worst=True)
        self.note("slots usable afterwards", usable, (">=", CAPACITY), worst=True)

    def note_safety(self, load: list[Event]) -> None:
        """Note how far the capacity was exceeded."""
        self.note("most inside at once", events.most_inside(load), ("<=", CAPACITY), worst=True)
        over = 100 * events.starts_over(load, CAPACITY)
        self.note("starts over the capacity", over, ("<=", 0), "%", worst=True)

    def note_order(self, load: list[Event], answers: list[Answer]) -> None:
        """Note throughput, order and hand-over while everybody waits all the time."""
        begin = min(answer.sent for answer in answers) + int(2e9)
        end = begin + int(self.phases[1]["seconds"] * 1e9)
        steady = [event for event in load if begin <= event.at < end]
        starts = [event for event in steady if event.entered]
        rate = len(starts) / (end - begin) * 1e9
        self.note("throughput ÷ (capacity ÷ service)", rate * SERVICE / CAPACITY, (">=", 0.96))
        late = 100 * events.overtaken(steady, FAIRNESS)
        self.note(f"overtaken by more than {FAIRNESS} later ones, steady", late, ("<=", 1), "%")
        late = 100 * events.overtaken(load, FAIRNESS)
        self.note(f"overtaken by more than {FAIRNESS} later ones, all phases", late, ("<=", 1), "%")
        gaps = [1000 * s for at, s in events.handovers(load, CAPACITY) if begin <= at < end]
        if self.workers > 1:
            name = "slot freed on one worker, used on another"
            self.note(f"{name}: p50", events.quantile(gaps, 0.5), ("<=", 3), "ms")
            self.note(f"{name}: p99", events.quantile(gaps, 0.99), ("<=", 10), "ms")
        lucky = {event.request // 1_000_000 for event in starts}
        self.note("clients never served (steady)", CLIENTS - len(lucky), ("<=", 0), worst=True)
        gone = {each.request: each.done + int(1e8) for each in answers if each.status == LEFT}
        served = sum(e.entered and e.at > gone.get(e.request, e.at) for e in load)
        name = "cancel storm: started 0.1 s after the client left"
        self.note(name, served, ("<=", 0), worst=True)

    def note(
        self, what: str, value: float | None, must: tuple[str, float], unit: str = "",
        worst: bool = False,
    ) -> None:  # fmt: skip
        """Note one figure of this trial."""
        self.figures.note(self.peer.name, f"{self.title}: {what}", value, must, unit, worst)


async def serve_leavers(server: Server) -> int:
    """Fill all slots, queue 40 clients, let them leave, free the slots: who is run all the same?"""
    count = len(events.read(server.events))
    line = [await Connection.open(server.port) for _ in range(CAPACITY + LEAVERS)]
    for number, connection in enumerate(line):
        long = 1000 if number < CAPACITY else 10
        connection.send(f"/work?request={number}&sent={time.monotonic_ns()}&ms={long}")
        if number == CAPACITY - 1:
            await asyncio.sleep(0.2)
    await asyncio.sleep(0.3)
    for connection in line[CAPACITY:]:
        connection.close()
    await asyncio.gather(*(each.receive() for each in line[:CAPACITY]), return_exceptions=True)
    await asyncio.sleep(1)
    for connection in line[:CAPACITY]:
        connection.close()
    after = events.read(server.events)[count:]
    return sum(event.entered and event.request >= CAPACITY for event in after)


async def slots_usable(server: Server) -> int:
    """Ask for as many requests at once as there are slots: so many are run at once."""
    count = len(events.read(server.events))
    line = [await Connection.open(server.port) for _ in range(CAPACITY)]
    for number, connection in enumerate(line):
        connection.send(f"/work?request={number}&sent={time.monotonic_ns()}&ms=800")
    replies = asyncio.gather(*(each.receive() for each in line), return_exceptions=True)
    async with asyncio.timeout(10):
        await replies
    for connection in line:
        connection.close()
    return events.most_inside(events.read(server.events)[count:])
