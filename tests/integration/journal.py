"""What the handlers of a service did, over all of its workers, read from their common journal."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """One line; `at` is of `time.monotonic`, one clock for all processes of the host."""

    at: float
    kind: str  # arrive, enter, exit, answer-<status>, end
    request: str
    pid: int


class Journal:
    """The journal of one service: read it while the service runs, or afterwards."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.deaths: dict[int, float] = {}  # worker -> when it was killed
        path.touch()

    def clear(self) -> None:
        """Forget everything so far, while no request is running."""
        os.truncate(self.path, 0)
        self.deaths.clear()

    def events(self, since: float = 0.0) -> list[Event]:
        """All events since a time, in their order."""
        lines = self.path.read_text().splitlines()
        return sorted(event for event in map(_event, lines) if event.at >= since)

    def of(self, request: str) -> list[str]:
        """What became of one request, in order."""
        return [event.kind for event in self.events() if event.request == request]

    def inside(self) -> int:
        """How many handlers are inside now."""
        return next(reversed([level for _, level in self.levels()]), 0)

    def most_inside(self, since: float = 0.0, until: float = float("inf")) -> int:
        """The most handlers inside at once; those of a killed worker count up to its kill."""
        return max((level for at, level in self.levels() if since <= at <= until), default=0)

    def full_after(self, since: float, level: int, *pids: int) -> float:
        """Seconds from a time until so many are inside. Raises `ValueError` if that never was."""
        for at, inside in self.levels(*pids):
            if at >= since and inside >= level:
                return at - since
        raise ValueError(f"never {level} inside")

    def levels(self, *pids: int) -> Iterator[tuple[float, int]]:
        """After each entry, exit or kill: how many are inside, in these workers or in all."""
        inside: dict[int, set[str]] = defaultdict(set)
        deaths = [Event(at, "death", "", pid) for pid, at in self.deaths.items()]
        for event in sorted([*self.events(), *deaths]):
            if pids and event.pid not in pids:
                continue
            if event.kind == "enter":
                inside[event.pid].add(event.request)
            elif event.kind == "exit":
                inside[event.pid].discard(event.request)
            elif event.kind == "death":
                inside[event.pid].clear()
            else:
                continue
            yield event.at, sum(map(len, inside.values()))

    def overtaken(
        self, since: float = 0.0, until: float = float("inf"), pid: int | None = None
    ) -> int:
        """How many others, at worst, entered before a request that had come 25 ms before them.

        Of the requests that arrived between two times, at one worker or at any. A worker takes
        some milliseconds to tell the store of a request; there order is decided.
        """
        arrived: dict[str, float] = {}
        entered: list[float] = []
        for event in self.events():
            if event.kind == "arrive" and since <= event.at <= until:
                arrived[event.request] = event.at
            elif event.kind == "enter" and event.request in arrived and pid in {None, event.pid}:
                entered.append(arrived[event.request])
        return max(_overtakers(entered), default=0)


def now() -> float:
    """The present, on the journal's clock."""
    return time.monotonic()


def _event(line: str) -> Event:
    at, kind, request, pid = line.split(" ")
    return Event(int(at) / 1e9, kind, request, int(pid))


def _overtakers(arrivals: list[float]) -> Iterator[int]:
    """For each request in the order of entry: how many younger ones have entered before it."""
    for place, at in enumerate(arrivals):
        yield sum(other > at + 0.025 for other in arrivals[max(0, place - 300) : place])
