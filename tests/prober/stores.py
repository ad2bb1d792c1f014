"""A store for the tests of the prober: records and locks of many workers, on the loop's clock."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from fastapi_balancer.errors import StorageError


@dataclass
class Shared:
    """What all workers see."""

    records: dict[str, bytes] = field(default_factory=dict)
    locks: dict[str, tuple[int, float]] = field(default_factory=dict)  # name: fence, expiry
    fences: int = 0
    is_away: bool = False


class FakeStorage:
    """One worker's view of the store."""

    def __init__(self, shared: Shared | None = None, worker: str = "w1") -> None:
        self.shared = shared or Shared()
        self.worker = worker
        self.renewals: list[float] = []

    async def load(self, key: str) -> bytes | None:
        self._reach()
        return self.shared.records.get(key)

    async def lock(self, name: str, ttl: float) -> int | None:
        self._reach()
        if self._fence(name) is not None:
            return None
        self.shared.fences += 1
        self.shared.locks[name] = (self.shared.fences, self._now() + ttl)
        return self.shared.fences

    async def renew(self, name: str, fence: int, ttl: float) -> bool:
        self._reach()
        self.renewals.append(self._now())
        if self._fence(name) != fence:
            return False
        self.shared.locks[name] = (fence, self._now() + ttl)
        return True

    async def unlock(self, name: str, fence: int) -> None:
        self._reach()
        if self._fence(name) == fence:
            del self.shared.locks[name]

    async def save_fenced(self, key: str, value: bytes, name: str, fence: int) -> bool:
        self._reach()
        if self._fence(name) != fence:
            return False
        self.shared.records[key] = value
        return True

    def _fence(self, name: str) -> int | None:
        fence, expiry = self.shared.locks.get(name, (None, 0.0))
        return fence if expiry > self._now() else None

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _reach(self) -> None:
        if self.shared.is_away:
            raise StorageError("the store is away")
