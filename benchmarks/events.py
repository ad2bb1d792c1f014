"""What the handlers wrote down, and what follows from it: pure functions of the events."""

from __future__ import annotations

import struct
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

EVENT = struct.Struct("<cqqq")  # as apps/service.py writes it


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """A request came into the handler, or left it. Times are monotonic nanoseconds."""

    at: int
    entered: bool
    worker: int
    request: int
    sent: int


def read(folder: Path) -> list[Event]:
    """Read the events of all workers, in the order in which they happened."""
    events = []
    for file in folder.glob("*.events"):
        data = file.read_bytes()
        whole = data[: len(data) - len(data) % EVENT.size]
        for kind, at, request, sent in EVENT.iter_unpack(whole):
            events.append(Event(at, kind == b"+", int(file.stem), request, sent))
    return sorted(events)


def without(events: Iterable[Event], worker: int) -> list[Event]:
    """Drop the events of one worker: one that was killed never says that its requests ended."""
    return [event for event in events if event.worker != worker]


def most_inside(events: Iterable[Event]) -> int:
    """Count the most requests inside the handler at once."""
    inside = most = 0
    for event in events:
        inside += 1 if event.entered else -1
        most = max(most, inside)
    return most


def starts_over(events: Iterable[Event], capacity: int) -> float:
    """Return the share of starts that found all slots taken."""
    inside = starts = over = 0
    for event in events:
        inside += 1 if event.entered else -1
        if event.entered:
            starts += 1
            over += inside > capacity
    return over / starts if starts else 0.0


def handovers(events: Iterable[Event], capacity: int) -> list[tuple[int, float]]:
    """Return when, and how many seconds after a slot's end on one worker, another one used it.

    The slot that is free for longest goes to the next start. To be read where somebody waits all
    the time: otherwise it is the time until somebody came.
    """
    free: deque[Event] = deque()
    inside = 0
    gaps: list[tuple[int, float]] = []
    for event in events:
        inside += 1 if event.entered else -1
        if not event.entered and inside < capacity:
            free.append(event)
        elif event.entered and free:
            freed = free.popleft()
            if freed.worker != event.worker:
                gaps.append((event.at, (event.at - freed.at) / 1e9))
    return gaps


def overtaken(events: Iterable[Event], by: int) -> float:
    """Return the share of requests that more than `by` requests sent later overtook."""
    starts = sorted((event.sent, event.at) for event in events if event.entered)
    later: list[int] = []
    count = 0
    for _, at in reversed(starts):
        count += bisect_left(later, at) > by
        insort(later, at)
    return count / len(starts) if starts else 0.0


def quantile(values: Sequence[float], q: float) -> float | None:
    """Return the value below which the share `q` of the values lies; None of no values."""
    if not values:
        return None
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]
