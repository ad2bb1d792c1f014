"""What the package needs of a store: slots with one queue, and a few small records."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from fastapi_balancer.models import Scope


class Ticket:
    """One place in an endpoint's queue.

    `granted` is done once the ticket has a slot. Whoever joined must then either call
    `Slots.release` (the slot was used) or, while `granted` is not done, `Slots.leave`.
    """

    __slots__ = ("granted", "number", "seq")

    def __init__(self, number: int, granted: asyncio.Future[None]) -> None:
        self.number = number
        self.granted = granted
        self.seq = 0  # the place in the line of the store; 0: not told yet


class Slots(Protocol):
    """The slots of one endpoint, as one worker sees them.

    Every method decides synchronously and never blocks; the I/O that follows is done in the
    background. To be called from the event loop's thread only.
    """

    capacity: int | None  # how many requests may run at once in the scope; None: not limited
    active: int  # requests of this worker that hold a slot now
    oversold: int  # slots that the store took back while their requests still ran, in all

    @property
    def owned(self) -> int:
        """Slots that this worker has the right to use now; never fewer than `active`."""

    @property
    def queued(self) -> int:
        """Tickets of this worker that wait now."""

    def take(self) -> bool:
        """Take a slot if one is free for this worker and nobody waits. Never waits."""

    def join(self) -> Ticket:
        """Join the queue. `Ticket.granted` ends with a slot, or fails with `Rejected`."""

    def leave(self, ticket: Ticket) -> None:
        """Give up a place in the queue. Idempotent; nothing happens once it has its slot."""

    def release(self, held: float = 0.0) -> None:
        """Give one slot back, which was held for `held` seconds.

        To be called exactly once for each slot taken or granted.
        """


@dataclass(frozen=True, slots=True)
class SlotsConfig:
    """What a store must know of an endpoint to make its slots."""

    capacity: int | None = None  # as configured; None: to be measured, or not limited
    queue_size: int = 10_000
    scope: Scope = Scope.GLOBAL


@dataclass(frozen=True, slots=True)
class StorageStatus:
    """How the store is, as this worker sees it."""

    kind: str
    degraded: bool  # the store is away and `on_storage_error` decides
    degraded_seconds: float  # for how long already; 0.0 when not degraded
    degraded_count: int  # how often since the start
    round_trip_ms: float | None  # of the last call; None: no call yet, or no network
    workers: int  # workers that share the store now, this one included


class Storage(Protocol):
    """A store of slots and of a few small records. Made before the event loop, opened within it."""

    @property
    def worker(self) -> str:
        """This worker's id: host, pid, start time of the process, and a random part."""

    async def open(self) -> None:
        """Connect, from within the event loop.

        A store that is away is not an error here: `status` says so, and it is retried.
        Raises `StorageError` only for what waiting cannot mend (bad credentials, a server too old).
        """

    async def close(self) -> None:
        """Give everything back and disconnect. Bounded by about a second; idempotent."""

    def slots(self, endpoint: str) -> Slots:
        """The slots of an endpoint that was configured. The same object each time."""

    async def set_capacity(self, endpoint: str, capacity: int | None) -> None:
        """Set the capacity of an endpoint for all workers of its scope. None lifts the limit.

        Raises `StorageError` when the store is away: then it holds in this worker only, until the
        store says otherwise.
        """

    def status(self) -> StorageStatus:
        """How the store is now. No I/O."""

    async def load(self, key: str) -> bytes | None:
        """Read a small record, None when there is none. Raises `StorageError`."""

    async def save(self, key: str, value: bytes) -> None:
        """Write a small record. Raises `StorageError`."""

    async def publish(self, value: bytes) -> None:
        """Put this worker's report beside the others' (see `reports`). Raises `StorageError`."""

    async def reports(self) -> dict[str, bytes]:
        """The newest report of each worker, by worker id; reports are not removed when a worker
        dies, so the reader judges their age. Raises `StorageError`."""

    async def owned(self) -> dict[str, dict[str, int]]:
        """The slots that each worker owns at one moment: endpoint -> worker id -> slots.

        Without endpoints whose slots are not shared. Raises `StorageError`.
        """

    async def lock(self, name: str, ttl: float) -> int | None:
        """Take a lock for `ttl` seconds. Returns its fencing number (ever growing), None if taken.

        Raises `StorageError`.
        """

    async def renew(self, name: str, fence: int, ttl: float) -> bool:
        """Prolong a lock. False: it was lost, the holder must stop. Raises `StorageError`."""

    async def unlock(self, name: str, fence: int) -> None:
        """Give a lock back; does nothing when it was lost already. Raises `StorageError`."""

    async def save_fenced(self, key: str, value: bytes, name: str, fence: int) -> bool:
        """Write a record if the lock `name` is still held with `fence`, in one step.

        Raises `StorageError`."""
