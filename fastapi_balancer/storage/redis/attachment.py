"""Keeps a worker attached to the store: one connection, and life without it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic

from redis.exceptions import AuthenticationError, RedisError

from fastapi_balancer.errors import StorageError
from fastapi_balancer.models import OnStorageError
from fastapi_balancer.processes import siblings, worker_id
from fastapi_balancer.storage.redis.address import Address
from fastapi_balancer.storage.redis.lease import LeaseKeeper
from fastapi_balancer.storage.redis.link import SECOND_LOOK, Command, Done, Link
from fastapi_balancer.storage.redis.scripts import SHA, SOURCES
from fastapi_balancer.storage.redis.slots import LEARNING, SharedSlots

logger = logging.getLogger(__name__)

TICK = 0.033  # seconds between two signs of life of the event loop
SILENCE = 0.02  # seconds without a word from the store, while requests wait for its word
RETRY = (0.02, 0.1)  # seconds before the first and before any later attempt to connect again
OLDEST = (6, 2)  # the oldest version of the server that works

Keys = tuple[str, str, str]


class Attachment:
    """One worker's connection to the store, on which all its shared slots are attached.

    It is made anew whenever it is lost. Without it for `timeout` seconds, the store counts as away,
    and the slots go on as they are configured to. `revive` is called, in a thread, when the server
    cannot be reached.
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout: float,
        lease: float,
        on_storage_error: OnStorageError,
        revive: Callable[[], object] | None = None,
    ) -> None:
        self.worker = worker_id()
        self.session = int(time.time() * 1000)  # larger than any of a worker with this id before
        self.run_id = ""
        self.tick = 0.0
        self.away_since: float | None = None
        self.away_count = 0
        self._why = f"no answer within {timeout:g} s"  # the store is not attached

        self._loop = asyncio.get_running_loop()
        self._address = address
        self._timeout = timeout
        self._on_storage_error = on_storage_error
        self._lease = lease
        self._shared: dict[SharedSlots, Keys] = {}
        self._channels: dict[bytes, Callable[[bytes], None]] = {}
        self._dirty: dict[SharedSlots, None] = {}
        self._session_lock = threading.Lock()
        self._link: Link | None = None
        self._link_session = 0
        self._attached = asyncio.Event()
        self._ready = asyncio.Event()  # attached, or known to be away
        self._fatal: StorageError | None = None
        self._away_timer: asyncio.TimerHandle | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._siblings: int | None = None  # counted once while the store is away
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._keeper = LeaseKeeper(
            self, lambda: address.client(2 * timeout), lease=lease, revive=revive
        )

    def add(self, slots: SharedSlots, keys: Keys) -> None:
        """Have slots attached, too. To be called before `open`."""
        self._shared[slots] = keys

    def keys(self, slots: SharedSlots) -> Keys:
        """The keys of slots that were added."""
        return self._shared[slots]

    async def open(self) -> None:
        """Attach, or find the store away. Raises `StorageError` for what waiting cannot mend."""
        self._tick()
        self._arm_away()
        self._task = self._loop.create_task(self._keep_attached())
        await self._ready.wait()
        if self._fatal is not None:
            await self.close()
            raise self._fatal
        self._keeper.start()
        await self._learned()

    async def _learned(self) -> None:
        """Wait until an empty store has heard of every worker: then no request has to."""
        end = self._loop.time() + LEARNING / 1000 + 0.1
        while any(slots.learning for slots in self._shared) and self._loop.time() < end:  # noqa: ASYNC110 - three kinds of events end it, and it is not urgent
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Give everything back and disconnect. Idempotent."""
        if self._closing:
            return
        self._closing = True
        for timer in (self._away_timer, self._ticker):
            if timer is not None:
                timer.cancel()
        for slots in self._shared:
            slots.close()
        if self._link is not None and not self._link.lost.done():
            await self._detach(self._link)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._keeper.stop, 1.0)

    async def _detach(self, link: Link) -> None:
        calls = [
            link.ask("EVALSHA", SHA["detach"], 3, *keys, self.worker, self.session)
            for keys in self._shared.values()
        ]
        done, late = await asyncio.wait(calls, timeout=self._timeout) if calls else (set(), set())
        for call in late:
            call.cancel()
        for call in done:
            if call.exception() is not None:
                logger.debug("detach: %s", call.exception())
        link.drop("closed")
        await link.closed()

    async def ask(self, *command: str | int | bytes) -> object:
        """Send one command. While a connection is made, wait for it as long as for a reply."""
        if self.away_since is None and not self._attached.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self._attached.wait()
        if self._link is None or not self._attached.is_set():
            raise StorageError("the store is away")
        return await self._link.ask(*command)

    async def run(
        self, script: str, keys: tuple[str, ...], *arguments: str | int | bytes
    ) -> object:
        """Run one of the steps. Raises `StorageError`."""
        return await self.ask("EVALSHA", SHA[script], len(keys), *keys, *arguments)

    @property
    def round_trip(self) -> float | None:
        """Seconds that the last reply took."""
        return self._link.round_trip if self._link is not None else None

    def workers(self) -> int:
        """How many workers share the store, as it said last; 1 if it never did."""
        return max([1, *(len(slots.peers) for slots in self._shared)])

    def sharers(self, slots: SharedSlots) -> int:
        """How many workers share a capacity while the store is away."""
        if len(slots.peers) > 1:
            return len(slots.peers)
        if self._siblings is None:  # the store may never have said who is there
            self._siblings = siblings()
        return self._siblings

    # ------------------------------------------------------------------ what the slots ask

    def wake(self, slots: SharedSlots) -> None:
        self._dirty[slots] = None
        if self._link is not None:
            self._link.wake()

    def reset(self, reason: str) -> None:
        if self._link is not None:
            logger.debug("attaching anew: %s", reason)
            self._link.drop(reason)

    def redeclare(self, slots: SharedSlots) -> None:
        link, sent = self._link, monotonic()
        if link is None:
            return  # it will be declared with the next connection

        def declared(reply: asyncio.Future[object]) -> None:
            try:
                slots.attached(reply.result(), sent + 0.9 * self._lease)
            except (StorageError, ValueError) as exc:
                link.drop(str(exc))

        self._declare(link, slots).add_done_callback(declared)

    def _collect(self) -> Iterable[tuple[Command, Done]]:
        dirty, self._dirty = self._dirty, {}
        for slots in dirty:
            batch = slots.batch()
            if batch is not None:
                new, arguments = batch
                keys = self._shared[slots]
                # Not self.session: what the lease's thread declared makes this batch void.
                session = self._link_session
                command = ("EVALSHA", SHA["sync"], 3, *keys, self.worker, session, *arguments)
                yield command, partial(self._synced, self._link, slots, new)

    def _synced(self, link: Link | None, slots: SharedSlots, new: list[int], reply: object) -> None:
        if link is not None and link is self._link and not link.lost.done():
            slots.synced(new, reply)

    def _pushed(self, message: list[object]) -> None:
        kind, channel, text = message[0], message[1], message[2]
        if kind == b"message" and isinstance(channel, bytes) and isinstance(text, bytes):
            self._channels[channel](text)

    def _told(self, slots: SharedSlots, message: bytes) -> None:
        """What one worker had said to all: `A worker` when it found the data gone."""
        if not message.startswith(b"A "):
            slots.told(message)
        elif message[2:].decode() != self.worker:
            self.reset("another worker found the store's data gone")

    # ------------------------------------------------------------------ what the thread asks

    def shared(self) -> Iterable[tuple[Keys, SharedSlots]]:
        return [(keys, slots) for slots, keys in self._shared.items()]

    def next_session(self) -> int:
        with self._session_lock:
            self.session += 1
            return self.session

    def suspect(self, reason: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed in this moment
            self._loop.call_soon_threadsafe(self.reset, reason)

    @property
    def is_abandoned(self) -> bool:
        """Whether the event loop was closed without `close`, as happens in tests of apps."""
        return self._loop.is_closed()

    # ------------------------------------------------------------------ the connection

    async def _keep_attached(self) -> None:
        pause = RETRY[0]
        while not self._closing:
            link: Link | None = None
            try:
                async with asyncio.timeout(self._address.connect_timeout):
                    link = await self._attach()
            except (RedisError, OSError, TimeoutError, StorageError, ValueError) as exc:
                self._failed(exc)
            except Exception as exc:
                logger.exception("the store, or what stands before it, answers unexpectedly")
                self._failed(exc)
            else:
                pause = RETRY[0]
                self._came_back()
                reason = await asyncio.shield(link.lost)  # `drop` must find it as it is
                self._attached.clear()
                self._why = reason
                logger.debug("connection lost: %s", reason)
                for slots in self._shared:
                    slots.lost()
                if link.timed_out:
                    self._go_away()
                else:
                    self._arm_away()
            finally:
                if self._link is not None:
                    self._link.drop("given up")
                    await self._link.closed()
                    self._link = None
            await asyncio.sleep(pause)
            pause = RETRY[1]

    async def _attach(self) -> Link:
        connection = await self._address.connection()
        link = self._link = Link(
            connection, timeout=self._timeout, pushed=self._pushed, collect=self._collect
        )
        await link.open()
        self.run_id = await self._inspect(link)
        await asyncio.gather(*(link.ask("SCRIPT", "LOAD", text) for text in SOURCES.values()))
        session = self._link_session = self.next_session()
        self._subscribe(link, session)
        sent = monotonic()
        replies = await asyncio.gather(*(self._declare(link, slots) for slots in self._shared))
        if session != self.session:
            raise StorageError("the lease's thread has declared another session meanwhile")
        for slots, reply in zip(self._shared, replies, strict=True):
            slots.attached(reply, sent + 0.9 * self._lease)
        return link

    def _declare(self, link: Link, slots: SharedSlots) -> asyncio.Future[object]:
        state = slots.declaration(self.run_id, monotonic())
        command = ("EVALSHA", SHA["attach"], 3, *self._shared[slots])
        return link.ask(*command, self.worker, self._link_session, *state)

    async def _inspect(self, link: Link) -> str:
        """The server's run id. Raises `StorageError` for a replica or a server that is too old."""
        text = await link.ask("INFO", "server")
        role = await link.ask("INFO", "replication")
        if not isinstance(text, bytes) or not isinstance(role, bytes):
            raise StorageError("INFO was not answered with text")
        info = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
        version = tuple(int(part) for part in info["redis_version"].split(".")[:2])
        if version < OLDEST:
            self._fatal = StorageError(
                f"the server is version {info['redis_version']}; at least 6.2 is needed"
            )
            raise self._fatal
        if b"role:master" not in role:
            raise StorageError("the server is a replica, not the primary")
        return info["run_id"]

    def _subscribe(self, link: Link, session: int) -> None:
        self._channels = {}
        for slots, keys in self._shared.items():
            prefix = keys[0][:-1]
            self._channels[f"{prefix}w:{self.worker}.{session}".encode()] = slots.pushed
            self._channels[f"{prefix}all".encode()] = partial(self._told, slots)
        if self._channels:
            link.send("SUBSCRIBE", *self._channels)

    def _failed(self, exc: Exception) -> None:
        if not self._ready.is_set() and _refuses_credentials(exc):
            self._fatal = StorageError("the store refuses the credentials of storage.url")
        if self._fatal is not None:
            self._ready.set()
        self._why = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
        logger.debug("cannot attach: %s", self._why)
        if self.away_since is not None:
            self._go_local()

    def _arm_away(self) -> None:
        if self._away_timer is None and self.away_since is None:
            due = self._loop.time() + self._timeout
            self._away_timer = self._loop.call_at(due, self._is_missing, due)

    def _is_missing(self, due: float) -> None:
        """The time for the store to come back is over; once more, if it was this loop that hung."""
        if self._loop.time() - due > SECOND_LOOK:
            self._away_timer = self._loop.call_later(self._timeout, self._go_away)
        else:
            self._go_away()

    def _go_away(self) -> None:
        self._disarm_away()
        if self.away_since is None and not self._closing:
            self.away_since = monotonic()
            self.away_count += 1
            logger.warning(
                "the store is away (%s); on_storage_error: %s, until it is back",
                self._why,
                self._on_storage_error,
            )
        self._go_local()
        self._ready.set()

    def _go_local(self) -> None:
        for slots in self._shared:
            if not slots.is_away:
                slots.go_away(self.sharers(slots))

    def _came_back(self) -> None:
        self._attached.set()
        self._disarm_away()
        if self.away_since is not None:
            logger.warning("the store is back after %.1f s", monotonic() - self.away_since)
            self.away_since = None
            self._siblings = None
        self._ready.set()

    def _disarm_away(self) -> None:
        if self._away_timer is not None:
            self._away_timer.cancel()
            self._away_timer = None

    def _tick(self) -> None:
        self.tick = monotonic()
        self._ticker = self._loop.call_later(TICK, self._tick)
        if self._attached.is_set() and any(slots.suspended for slots in self._shared):
            self.reset("the event loop hung")
        elif self._link is not None and any(slots.queued for slots in self._shared):
            self._link.prove_alive(SILENCE)


def _refuses_credentials(exc: BaseException | None) -> bool:
    """Whether the server said so: redis-py wraps what it said into a ConnectionError."""
    while exc is not None and not isinstance(exc, AuthenticationError):
        exc = exc.__cause__
    return exc is not None
