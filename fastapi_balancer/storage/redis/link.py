"""One RESP3 connection: replies in order to whoever called, pushes to one listener."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from fastapi_balancer.errors import StorageError

logger = logging.getLogger(__name__)

Done = Callable[[object], None]
Command = tuple[str | int | bytes, ...]
SECOND_LOOK = 0.03  # seconds; a reply that came while the loop was busy is read before it is missed


class Link:
    """A connection to the store, used by one event loop.

    `collect` is called when there is something to send, and returns the commands with what is to
    be done with each reply: the reply itself, or the exception that came instead of it.
    `lost` is done once the connection is gone, with the reason as its result.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        *,
        timeout: float,
        pushed: Callable[[list[object]], None],
        collect: Callable[[], Iterable[tuple[Command, Done]]],
    ) -> None:
        self._connection = connection
        self._timeout = timeout
        self._pushed = pushed
        self._collect = collect
        self._loop = asyncio.get_running_loop()
        self._calls: deque[tuple[float, Done]] = deque()
        self._work = asyncio.Event()
        self._direct: list[tuple[Command, Done | None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._watch: asyncio.TimerHandle | None = None
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self.timed_out = False
        self.round_trip: float | None = None  # seconds, of the last reply
        self.heard = self._loop.time()  # when anything was last read

    async def open(self) -> None:
        """Connect. Raises redis' exceptions or OSError; `StorageError` when dropped meanwhile."""
        await self._connection.connect()  # type: ignore[no-untyped-call] # redis-py
        if self.lost.done():
            await self._connection.disconnect(nowait=True)
            raise StorageError(self.lost.result())
        self._tasks = [self._loop.create_task(self._read()), self._loop.create_task(self._write())]

    def wake(self) -> None:
        """Call `collect` soon."""
        self._work.set()

    def send(self, *command: str | int | bytes) -> None:
        """Send a command that has no reply of its own (SUBSCRIBE in RESP3)."""
        self._direct.append((command, None))
        self._work.set()

    def prove_alive(self, silence: float) -> None:
        """Ask for a sign of life, unless one came in the last `silence` seconds or is due."""
        if not self._calls and self._loop.time() - self.heard > silence:
            self._direct.append((("PING",), _ignore))
            self._work.set()

    def ask(self, *command: str | int | bytes) -> asyncio.Future[object]:
        """Send a command. The future fails with `StorageError` for an error or a lost link."""
        answer: asyncio.Future[object] = self._loop.create_future()

        def done(reply: object) -> None:
            if answer.done():
                return
            if isinstance(reply, Exception):
                answer.set_exception(StorageError(str(reply)))
            else:
                answer.set_result(reply)

        if self.lost.done():
            done(StorageError(self.lost.result()))
        else:
            self._direct.append((command, done))
            self._work.set()
        return answer

    def drop(self, reason: str) -> None:
        """Close the connection at once. Idempotent."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        if self._watch is not None:
            self._watch.cancel()
        for task in self._tasks:
            task.cancel()
        error = StorageError(reason)
        calls, self._calls = self._calls, deque()
        waiting = [done for _, done in calls] + [done for _, done in self._direct if done]
        self._direct.clear()
        for done in waiting:
            done(error)
        self._closing = self._loop.create_task(self._connection.disconnect(nowait=True))

    async def closed(self) -> None:
        """Wait until both tasks and the socket are gone."""
        await asyncio.gather(*self._tasks, self._closing, return_exceptions=True)

    async def _write(self) -> None:
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                direct, self._direct = self._direct, []
                batch = [*direct, *self._collect()]
                if not batch:
                    continue
                now = self._loop.time()
                self._calls.extend((now, done) for _, done in batch if done is not None)
                self._watch_replies()
                packed = self._connection.pack_commands([command for command, _ in batch])
                await self._connection.send_packed_command(packed, check_health=False)
        except (RedisError, OSError) as exc:
            self.drop(f"{type(exc).__name__}: {exc}")
        except Exception as exc:
            logger.exception("the connection to the store failed unexpectedly")
            self.drop(f"{type(exc).__name__}: {exc}")

    async def _read(self) -> None:
        read = self._connection.read_response
        try:
            while True:
                try:
                    reply: object = await read(timeout=math.inf, push_request=True)
                except ResponseError as exc:
                    reply = exc
                self.heard = self._loop.time()
                if isinstance(reply, hiredis.PushNotification):
                    self._pushed(reply)
                elif self._calls:
                    sent, done = self._calls.popleft()
                    self.round_trip = self.heard - sent
                    done(reply)
                else:
                    self.drop("the server answered more than it was asked")
        except (RedisError, OSError) as exc:
            self.drop(f"{type(exc).__name__}: {exc}")
        except Exception as exc:
            logger.exception("the connection to the store failed unexpectedly")
            self.drop(f"{type(exc).__name__}: {exc}")

    def _watch_replies(self) -> None:
        if self._watch is None and self._calls:
            due = self._calls[0][0] + self._timeout
            self._watch = self._loop.call_at(due, self._look, self._calls[0])

    def _look(self, oldest: tuple[float, Done], second: bool = False) -> None:
        self._watch = None
        if not self._calls or self._calls[0] is not oldest:
            self._watch_replies()
        elif second:
            self.timed_out = True
            self.drop(f"no reply within {self._timeout} s")
        else:
            self._watch = self._loop.call_later(SECOND_LOOK, self._look, oldest, True)


def _ignore(reply: object) -> None:
    """The reply to a PING: that it came is all there is to know."""
