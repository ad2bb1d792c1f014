"""The store in Redis or Valkey: slots of all endpoints, and small records, for one worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic

from fastapi_balancer.errors import StorageError
from fastapi_balancer.models import OnStorageError, Scope
from fastapi_balancer.processes import host_id
from fastapi_balancer.storage.base import Slots, SlotsConfig, StorageStatus
from fastapi_balancer.storage.memory import MemorySlots
from fastapi_balancer.storage.redis.address import Address
from fastapi_balancer.storage.redis.attachment import Attachment
from fastapi_balancer.storage.redis.scripts import record_key, slots_keys
from fastapi_balancer.storage.redis.slots import LEARNING, SharedSlots


class RedisStorage:
    """See `fastapi_balancer.storage.base.Storage`.

    `timeout` is the longest that a call may take and `lease` how long a worker without a sign of
    life keeps its slots, in seconds. Raises `ConfigError` for a `url` that is none.
    """

    def __init__(
        self,
        url: str,
        endpoints: Mapping[str, SlotsConfig],
        *,
        service: str = "default",
        timeout: float = 0.25,
        lease: float = 10.0,
        on_storage_error: OnStorageError = OnStorageError.LOCAL,
        kind: str = "redis",
        revive: Callable[[], object] | None = None,
    ) -> None:
        self._address = Address(url, connect_timeout=max(1.0, 4 * timeout))
        self._configs = dict(endpoints)
        self._service = service
        self._timeout = timeout
        self._lease = lease
        self._on_storage_error = on_storage_error
        self._kind = kind
        self._revive = revive
        self._slots: dict[str, Slots] = {}
        self._is_open = False

    @property
    def worker(self) -> str:
        return self._attachment.worker

    async def open(self) -> None:
        self._attachment = Attachment(
            self._address,
            timeout=self._timeout,
            lease=self._lease,
            on_storage_error=self._on_storage_error,
            revive=self._revive,
        )
        self._slots = {endpoint: self._make(endpoint) for endpoint in self._configs}
        self._is_open = True
        await self._attachment.open()

    def _make(self, endpoint: str) -> Slots:
        config = self._configs[endpoint]
        if config.scope is Scope.WORKER:
            return MemorySlots(capacity=config.capacity, queue_size=config.queue_size)
        scope = f"host-{host_id()}" if config.scope is Scope.HOST else "global"
        slots = SharedSlots(
            self._attachment,
            capacity=config.capacity,
            queue_size=config.queue_size,
            on_storage_error=self._on_storage_error,
            lease=self._lease,
        )
        self._attachment.add(slots, slots_keys(self._service, scope, endpoint))
        return slots

    async def close(self) -> None:
        if self._is_open:
            self._is_open = False
            await self._attachment.close()

    def slots(self, endpoint: str) -> Slots:
        return self._slots[endpoint]

    async def set_capacity(self, endpoint: str, capacity: int | None) -> None:
        slots = self._slots[endpoint]
        if isinstance(slots, MemorySlots):
            slots.limit(capacity)
            return
        assert isinstance(slots, SharedSlots)  # there is no third kind
        if self._attachment.away_since is not None:
            slots.limit(capacity, self._attachment.sharers(slots))
            raise StorageError("the store is away; the capacity holds in this worker only")
        text = "" if capacity is None else capacity
        try:
            await self._attachment.run("capacity", self._attachment.keys(slots), text, LEARNING)
        except StorageError:  # the news itself may end the connection before the reply is read
            if not await self._applied(slots, capacity):
                slots.limit(capacity, self._attachment.sharers(slots))
                raise
        else:
            await self._applied(slots, capacity)

    async def _applied(self, slots: SharedSlots, capacity: int | None) -> bool:
        """Wait, for a bounded time, until this worker enforces the capacity, too."""
        end = asyncio.get_running_loop().time() + 1.0
        while asyncio.get_running_loop().time() < end and self._attachment.away_since is None:
            if slots.capacity == capacity and not slots.learning and slots.is_attached:
                return True
            await asyncio.sleep(0.005)
        return False

    def status(self) -> StorageStatus:
        away, trip = self._attachment.away_since, self._attachment.round_trip
        return StorageStatus(
            kind=self._kind,
            degraded=away is not None,
            degraded_seconds=monotonic() - away if away is not None else 0.0,
            degraded_count=self._attachment.away_count,
            round_trip_ms=None if trip is None else trip * 1000,
            workers=self._attachment.workers(),
        )

    async def load(self, key: str) -> bytes | None:
        value = await self._attachment.ask("GET", self._key(key))
        return value if isinstance(value, bytes) else None

    async def save(self, key: str, value: bytes) -> None:
        await self._attachment.ask("SET", self._key(key), value)

    async def publish(self, value: bytes) -> None:
        await self._attachment.run(
            "publish", (self._key("reports"), self._key("times")), self.worker, value
        )

    async def reports(self) -> dict[str, bytes]:
        reply = await self._attachment.ask("HGETALL", self._key("reports"))
        if not isinstance(reply, dict):
            raise StorageError(f"HGETALL was answered {reply!r:.80}")
        return {worker.decode(): value for worker, value in reply.items()}

    async def owned(self) -> dict[str, dict[str, int]]:
        shared = {
            endpoint: self._attachment.keys(slots)
            for endpoint, slots in self._slots.items()
            if isinstance(slots, SharedSlots)
        }
        replies = await asyncio.gather(
            *(self._attachment.ask("HGETALL", keys[0]) for keys in shared.values())
        )
        return {
            endpoint: {
                field[2:].decode(): int(value)
                for field, value in reply.items()
                if field.startswith(b"o:")
            }
            for endpoint, reply in zip(shared, replies, strict=True)
            if isinstance(reply, dict)
        }

    async def lock(self, name: str, ttl: float) -> int | None:
        keys = (self._key(f"lock:{name}"), self._key(f"fence:{name}"))
        number = await self._attachment.run("lock", keys, round(ttl * 1000))
        return number if isinstance(number, int) and number else None

    async def renew(self, name: str, fence: int, ttl: float) -> bool:
        return (
            await self._attachment.run(
                "renew", (self._key(f"lock:{name}"),), fence, round(ttl * 1000)
            )
            == 1
        )

    async def unlock(self, name: str, fence: int) -> None:
        await self._attachment.run("unlock", (self._key(f"lock:{name}"),), fence)

    async def save_fenced(self, key: str, value: bytes, name: str, fence: int) -> bool:
        keys = (self._key(key), self._key(f"lock:{name}"))
        return await self._attachment.run("save_fenced", keys, fence, value) == 1

    def _key(self, name: str) -> str:
        return record_key(self._service, name)
