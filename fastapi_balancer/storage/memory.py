"""Slots of one process: the readable reference that every other store must agree with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from fastapi_balancer.errors import Rejected
from fastapi_balancer.processes import worker_id
from fastapi_balancer.storage.base import Slots, SlotsConfig, StorageStatus, Ticket


class MemorySlots:
    """One endpoint's slots and its queue in one process: exact, first in, first out."""

    def __init__(self, *, capacity: int | None = None, queue_size: int = 10_000) -> None:
        self.capacity = capacity
        self.queue_size = queue_size
        self.active = 0
        self.oversold = 0
        self._queue: dict[int, Ticket] = {}
        self._number = 0

    @property
    def owned(self) -> int:
        return self.active

    @property
    def queued(self) -> int:
        return len(self._queue)

    def take(self) -> bool:
        if self.capacity is not None and (self._queue or self.active >= self.capacity):
            return False
        self.active += 1
        return True

    def join(self) -> Ticket:
        if len(self._queue) >= self.queue_size:
            raise Rejected("queue_full", retry_after=1.0)
        self._number += 1
        ticket = Ticket(self._number, asyncio.get_running_loop().create_future())
        self._queue[ticket.number] = ticket
        self._grant()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        self._queue.pop(ticket.number, None)

    def release(self, held: float = 0.0) -> None:
        self.active -= 1
        self._grant()

    def limit(self, capacity: int | None) -> None:
        """Change the capacity. Lowered: what runs goes on, and nothing starts until it fits."""
        self.capacity = capacity
        self._grant()

    def _grant(self) -> None:
        while self._queue and (self.capacity is None or self.active < self.capacity):
            ticket = self._queue.pop(next(iter(self._queue)))
            if not ticket.granted.done():  # else its request was cancelled a moment ago
                self.active += 1
                ticket.granted.set_result(None)


class MemoryStorage:
    """A store that lives and dies with its process."""

    def __init__(self, endpoints: Mapping[str, SlotsConfig]) -> None:
        self.worker = ""
        self._slots = {
            endpoint: MemorySlots(capacity=config.capacity, queue_size=config.queue_size)
            for endpoint, config in endpoints.items()
        }
        self._records: dict[str, bytes] = {}
        self._reports: dict[str, bytes] = {}
        self._locks: dict[str, tuple[int, float]] = {}
        self._fence = 0

    async def open(self) -> None:
        self.worker = worker_id()

    async def close(self) -> None:
        self._reports.clear()

    def slots(self, endpoint: str) -> Slots:
        return self._slots[endpoint]

    async def set_capacity(self, endpoint: str, capacity: int | None) -> None:
        self._slots[endpoint].limit(capacity)

    def status(self) -> StorageStatus:
        return StorageStatus("memory", False, 0.0, 0, None, 1)

    async def load(self, key: str) -> bytes | None:
        return self._records.get(key)

    async def save(self, key: str, value: bytes) -> None:
        self._records[key] = value

    async def publish(self, value: bytes) -> None:
        self._reports[self.worker] = value

    async def reports(self) -> dict[str, bytes]:
        return dict(self._reports)

    async def owned(self) -> dict[str, dict[str, int]]:
        return {}

    async def lock(self, name: str, ttl: float) -> int | None:
        held = self._locks.get(name)
        if held is not None and held[1] > time.monotonic():
            return None
        self._fence += 1
        self._locks[name] = (self._fence, time.monotonic() + ttl)
        return self._fence

    async def renew(self, name: str, fence: int, ttl: float) -> bool:
        if not self._holds(name, fence):
            return False
        self._locks[name] = (fence, time.monotonic() + ttl)
        return True

    async def unlock(self, name: str, fence: int) -> None:
        if self._holds(name, fence):
            del self._locks[name]

    async def save_fenced(self, key: str, value: bytes, name: str, fence: int) -> bool:
        if not self._holds(name, fence):
            return False
        self._records[key] = value
        return True

    def _holds(self, name: str, fence: int) -> bool:
        held = self._locks.get(name)
        return held is not None and held[0] == fence and held[1] > time.monotonic()
