"""Workers without an event loop, on a real server: every message moves when the test says so."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hiredis

from fastapi_balancer.storage.base import Ticket
from fastapi_balancer.storage.redis.scripts import SHA, SOURCES, slots_keys
from fastapi_balancer.storage.redis.slots import SharedSlots

Word = str | int | float | bytes
LEASE = 10.0
GRACE = 1000


class Wire:
    """One RESP3 connection that blocks; pushes are kept in the order in which they came."""

    def __init__(self, path: Path) -> None:
        self.pushes: list[list[Any]] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(5)
        self._socket.connect(str(path))
        self._reader = hiredis.Reader()
        self.call("HELLO", 3)

    def call(self, *command: Word) -> Any:
        """The reply to one command; an error reply is returned like any other."""
        self._send(*command)
        while True:
            reply = self._reader.gets()
            if isinstance(reply, hiredis.PushNotification):
                self.pushes.append(list(reply))
            elif reply is not False:
                return reply
            else:
                self._reader.feed(self._socket.recv(65536))

    def subscribe(self, *channels: str) -> None:
        self._send("SUBSCRIBE", *channels)
        self.call("PING")
        self.pushes.clear()

    def take_pushes(self) -> list[tuple[bytes, bytes]]:
        """Channel and text of what has been pushed up to now."""
        self.call("PING")
        pushes, self.pushes = self.pushes, []
        return [(push[1], push[2]) for push in pushes if push[0] == b"message"]

    def close(self) -> None:
        self._socket.close()

    def _send(self, *command: Word) -> None:
        packed = hiredis.pack_command(command)  # type: ignore[arg-type] # its stub wants one word
        self._socket.sendall(packed)


class Store:
    """One endpoint's slots in a real server: its steps, one by one, and what they leave."""

    def __init__(self, path: Path, *, capacity: int | None = None) -> None:
        self.path = path
        self.keys = slots_keys(f"t{secrets.token_hex(6)}", "global", "/a")
        self.prefix = self.keys[0][:-1]
        self.wire = Wire(path)
        self.run_id = "run-1"
        self._open: list[Wire] = [self.wire]
        for text in SOURCES.values():
            self.wire.call("SCRIPT", "LOAD", text)
        if capacity is not None:
            self.attach("-first", capacity=capacity, keep="set")
            self.end_learning()
            self.run("detach", "-first", 1)
            self.wire.call("HSET", self.keys[0], "seq", 0)  # small numbers are easier to read

    def connect(self) -> Wire:
        self._open.append(Wire(self.path))
        return self._open[-1]

    def listen(self, worker: str, session: int = 1) -> Wire:
        """A connection that hears what a worker of this session would."""
        wire = self.connect()
        wire.subscribe(*self.channels(worker, session))
        return wire

    def channels(self, worker: str, session: int) -> tuple[str, str]:
        return f"{self.prefix}w:{worker}.{session}", f"{self.prefix}all"

    def run(self, script: str, *arguments: Word) -> Any:
        return self.run_on(self.wire, script, *arguments)

    def run_on(self, wire: Wire, script: str, *arguments: Word) -> Any:
        return wire.call("EVALSHA", SHA[script], len(self.keys), *self.keys, *arguments)

    def attach(
        self,
        worker: str,
        session: int = 1,
        *,
        own: int = 0,
        highest: int = 0,
        lease: int = round(LEASE * 1000),
        capacity: int | str = "",
        keep: str = "keep",
        run_id: str = "",
        learning: int = 60_000,
        was_away: bool = False,
        peers: Sequence[str] | None = None,
        tickets: Sequence[tuple[int, int]] = (),
    ) -> Any:
        """`tickets` are (seq, number); `peers` None: this worker knows of none."""
        state: list[Word] = [own, highest, lease, capacity, keep, run_id or self.run_id, learning]
        state += [int(was_away), int(peers is not None), len(peers or ()), *(peers or ())]
        state += [len(tickets), *itertools.chain.from_iterable(tickets)]
        return self.run("attach", worker, session, *state)

    def sync(
        self,
        worker: str,
        session: int = 1,
        *,
        returned: int = 0,
        new: Sequence[int] = (),
        gone: Sequence[int] = (),
        queue_size: int = 10_000,
    ) -> Any:
        return self.run(
            "sync", worker, session, returned, queue_size, len(new), len(gone), *new, *gone
        )

    def beat(
        self, worker: str, session: int = 1, *, lease: int = 10_000, grace: int = GRACE
    ) -> list[Any]:
        """A beat that sweeps each time."""
        return list(self.run("beat", worker, session, lease, grace, 0))

    def state(self) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.wire.call("HGETALL", self.keys[0]).items()}

    def used(self) -> int:
        return int(self.wire.call("HGET", self.keys[0], "used") or 0)

    def owned(self, worker: str) -> int:
        return int(self.wire.call("HGET", self.keys[0], f"o:{worker}") or 0)

    def owners(self) -> dict[str, int]:
        return {name[2:]: int(n) for name, n in self.state().items() if name.startswith("o:")}

    def session(self, worker: str) -> int | None:
        session = self.wire.call("HGET", self.keys[0], f"s:{worker}")
        return None if session is None else int(session)

    def capacity(self) -> int | None:
        capacity = self.wire.call("HGET", self.keys[0], "cap")
        return int(capacity) if capacity else None

    def learning(self) -> bool:
        return bool(self.wire.call("HEXISTS", self.keys[0], "learn"))

    def undeclared(self) -> set[str]:
        """The workers that learning waits for."""
        return {name[2:] for name in self.state() if name.startswith("k:")}

    def line(self) -> list[str]:
        return [member.decode() for member in self.wire.call("ZRANGE", self.keys[1], 0, -1)]

    def leases(self) -> set[str]:
        return {worker.decode() for worker in self.wire.call("ZRANGE", self.keys[2], 0, -1)}

    def age(self, worker: str, milliseconds: int) -> None:
        """Let this worker's last beat be so much longer ago."""
        self.wire.call("ZINCRBY", self.keys[2], -milliseconds, worker)

    def end_learning(self) -> None:
        """Let the time of learning be over."""
        if self.learning():
            self.wire.call("HSET", self.keys[0], "learn", 1)

    def wipe(self) -> None:
        """Lose the data of this endpoint."""
        self.wire.call("DEL", *self.keys)

    def close(self) -> None:
        self.wipe()
        for wire in self._open:
            wire.close()


class Clock:
    """A loop that has no more than timers, and the monotonic clock; both stand until moved."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.Future(loop=self)  # type: ignore[arg-type] # all that a future needs of it

    def call_later(
        self, delay: float, call: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(self.now + delay, call, args, self)  # type: ignore[arg-type]
        self._timers.append(timer)
        return timer

    def _timer_handle_cancelled(self, timer: asyncio.TimerHandle) -> None:
        if timer in self._timers:
            self._timers.remove(timer)

    def advance(self, seconds: float) -> None:
        """Let time pass, and every timer run at its time."""
        end = self.now + seconds
        while due := [timer for timer in self._timers if timer.when() <= end]:
            timer = min(due, key=lambda each: each.when())
            self._timers.remove(timer)
            self.now = max(self.now, timer.when())
            timer._run()
        self.now = end

    def stall(self, seconds: float) -> None:
        """Let time pass as for a process that is stopped: timers run when it goes on."""
        self.now += seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be the running loop, as `SharedSlots` asks for it when it is made."""
        asyncio._set_running_loop(self)  # type: ignore[arg-type]
        try:
            yield
        finally:
            asyncio._set_running_loop(None)


class Worker:
    """One worker: its `SharedSlots`, a connection, and what is on its way in both directions.

    It stands for `RedisStorage` and its thread, in the same steps. `outbox` holds what was sent and
    the store has not carried out; `inbox` what the store has said and the worker has not read.
    """

    def __init__(
        self, store: Store, name: str, *, capacity: int | None = None, **options: Any
    ) -> None:
        self.store = store
        self.name = name
        self.clock = Clock()
        self.session = 0  # the newest that was declared
        self.link_session = 0  # the one of this connection
        self.wire: Wire | None = None
        self.outbox: deque[tuple[str, list[int], list[Word]]] = deque()
        self.inbox: deque[tuple[str, list[int], Any]] = deque()
        self.waiting: list[Ticket] = []
        self.leaving: list[Ticket] = []
        self.resets: list[str] = []
        self.hung = False
        self._torn = False
        with self.clock.running():
            self.slots = SharedSlots(self, capacity=capacity, lease=LEASE, **options)

    # What the slots ask of their link

    def wake(self, slots: SharedSlots) -> None:
        """Sending is the test's to do."""

    def redeclare(self, slots: SharedSlots) -> None:
        self._declare()

    def reset(self, reason: str) -> None:
        self.resets.append(reason)
        self._torn = True

    # What users of the slots do

    @property
    def running(self) -> int:
        return self.slots.active

    def request(self) -> Ticket | None:
        """Ask for a slot: None when it was free."""
        if self.slots.take():
            return None
        with self.clock.running():
            ticket = self.slots.join()
        self.waiting.append(ticket)
        self._after()
        return ticket

    def finish(self, held: float = 0.0) -> None:
        self.slots.release(held)
        self._after()

    def give_up(self, ticket: Ticket) -> None:
        """As a time-out does."""
        self.waiting.remove(ticket)
        self.slots.leave(ticket)

    def cancel(self, ticket: Ticket) -> None:
        """The task that waits is cancelled; it leaves the line when it runs (`leave_at_last`)."""
        self.waiting.remove(ticket)
        ticket.granted.cancel()
        self.leaving.append(ticket)

    def leave_at_last(self) -> None:
        while self.leaving:
            self.slots.leave(self.leaving.pop())

    # What the link does

    def send(self) -> bool:
        """Send what there is to say; it is not carried out yet."""
        if self.wire is None or self.hung:
            return False
        batch = self.slots.batch()
        if batch is None:
            return False
        new, arguments = batch
        self.outbox.append(("sync", new, [self.name, self.link_session, *arguments]))
        return True

    def execute(self) -> bool:
        """Let the store carry out the oldest command."""
        if self.wire is None or not self.outbox:
            return False
        script, new, arguments = self.outbox.popleft()
        reply = self.store.run_on(self.wire, script, *arguments)
        self.hear()
        self.inbox.append((script, new, reply))
        return True

    def hear(self) -> None:
        """Put what has been pushed into the inbox."""
        if self.wire is None:
            return
        for channel, text in self.wire.take_pushes():
            kind = "all" if channel.endswith(b"}:all") else "granted"
            self.inbox.append((kind, [], text))

    def deliver(self) -> bool:
        """Read the oldest message."""
        if self.wire is None or not self.inbox or self.hung:
            return False
        kind, new, message = self.inbox.popleft()
        if kind == "sync":
            self.slots.synced(new, message)
        elif kind == "attach":
            self._attached(message)
        elif kind == "granted":
            self.slots.pushed(message)
        elif not message.startswith(b"A "):
            self.slots.told(message)
        elif message[2:].decode() != self.name:
            self.reset("another worker found the data gone")
        self._after()
        return True

    def _attached(self, reply: Any) -> None:
        try:
            self.slots.attached(reply, self._declared_at + 0.9 * LEASE)
        except ValueError:
            self.reset("attach was refused")

    def begin_attach(self) -> None:
        """Connect, subscribe and declare; not carried out yet."""
        self.cut()
        self.session += 1
        self.link_session = self.session
        self.wire = self.store.connect()
        self.wire.subscribe(*self.store.channels(self.name, self.session))
        self._declare()

    def _declare(self) -> None:
        self._declared_at = self.clock.now
        state = self.slots.declaration(self.store.run_id, self.clock.now)
        self.outbox.append(("attach", [], [self.name, self.link_session, *state]))

    def cut(self) -> None:
        """Lose the connection with all that is on its way."""
        if self.wire is not None:
            self.wire.close()
            self.wire = None
        self.outbox.clear()
        self.inbox.clear()
        self.slots.lost()
        self._torn = False

    def _after(self) -> None:
        """The link was dropped, or tickets have their slot by now."""
        if self._torn:
            self.cut()
        self.waiting = [ticket for ticket in self.waiting if not ticket.granted.done()]

    # What the lease's thread does

    def beat(self) -> None:
        if not self.slots.is_attached:
            return
        reply = self.store.beat(self.name, self.session)
        if reply[0] == -1:
            self.slots.expire()
            self.reset("the store does not know this worker any more")
            self._after()
            return
        self.slots.renewed(self.clock.now + 0.9 * LEASE)
        self.slots.meet_all(tuple(worker.decode() for worker in reply[1:]))

    def hang(self) -> None:
        """The loop hangs: the thread declares what runs, as often as it must."""
        self.hung = True
        if not self.slots.withholds:
            return
        self.session += 1
        state = self.slots.suspend(self.store.run_id)
        self.store.run("attach", self.name, self.session, *state)

    def wake_up(self) -> None:
        """The loop goes on, reads what has come meanwhile, and attaches anew."""
        self.hung = False
        self.hear()
        while self.deliver():
            pass
        if self.slots.suspended:
            self.begin_attach()

    # All at once

    def attach(self) -> None:
        self.begin_attach()
        self.settle()

    def settle(self) -> bool:
        """Send, carry out and read all there is, in order. Whether anything moved."""
        moved = False
        self.hear()
        while self.send() or self.execute() or self.deliver():
            moved = True
        return moved
