"""One endpoint's slots as one worker holds them: the worker's side of the protocol, without I/O.

A worker *owns* slots and *uses* some of them (`active <= owned`). What it owns and does not use it
keeps for a short while and admits from it without asking; the sum of what the workers own never
exceeds the capacity, and the store counts just that. Every decision is taken in one synchronous
method; what the store must be told is collected and sent by the link in one call (`batch`).
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Sequence
from time import monotonic
from typing import Protocol

from fastapi_balancer.errors import Reason, Rejected
from fastapi_balancer.models import OnStorageError
from fastapi_balancer.storage.base import Ticket

LINGER = 0.2  # seconds for which idle slots are kept
LAZY = 0.001  # seconds that news may wait which nobody waits for
LEARNING = 1000  # milliseconds for which a store that lost its data waits for all workers
CALLS_IN_FLIGHT = 4
TICKETS_PER_CALL = 1500  # unpack() in Lua takes some 8000 values


class Link(Protocol):
    """What the slots ask of the connection."""

    def wake(self, slots: SharedSlots) -> None:
        """Call `batch` soon, and send it."""

    def redeclare(self, slots: SharedSlots) -> None:
        """Call `declaration`, send it, and call `attached` with the reply."""

    def reset(self, reason: str) -> None:
        """Drop the connection; attach on a new one."""


class SharedSlots:
    """See `fastapi_balancer.storage.base.Slots` for what callers may rely on."""

    def __init__(
        self,
        link: Link,
        *,
        capacity: int | None = None,
        queue_size: int = 10_000,
        on_storage_error: OnStorageError = OnStorageError.LOCAL,
        lease: float = 10.0,
    ) -> None:
        self.configured = capacity  # from the configuration: it goes over what is stored
        self.capacity = capacity
        self.queue_size = queue_size
        self.on_storage_error = on_storage_error
        self.lease = lease
        self.active = 0
        self.owned = 0
        self.peers: tuple[str, ...] = ()  # workers that hold a lease, as the last beat told
        self.learning = (
            False  # the store grants nothing before all workers have declared themselves
        )
        self.oversold = 0  # slots taken back by the store while their requests still ran

        self._link = link
        self._loop = asyncio.get_running_loop()
        self._lock = (
            threading.Lock()
        )  # the lease's thread gives idle slots back when the loop hangs
        self._number = 0
        self._tickets: dict[int, Ticket] = {}  # in order of arrival
        self._unsent: dict[int, Ticket] = {}
        self._cancelled: list[int] = []
        self._returned = 0
        self._poked = False
        self._in_flight = 0

        self._attached = False
        self._seen_store = False
        self._away: OnStorageError | None = None
        self._was_away = False
        self._suspended = False
        self._lease_until = 0.0
        self._contended = False  # somebody waits, here or on another worker
        self._head = 0  # seq of the first in line, as last told
        self._highest = 0
        self._peak = 0
        self._declared = 0  # slots owned when it was last declared
        self._slowest = 0.0  # about the longest that a slot was held of late
        self._share = 0
        self._grow_at = 0.0  # when others have come down to their shares, while the store is away
        self._closed = False
        self._linger_timer: asyncio.TimerHandle | None = None
        self._lazy_timer: asyncio.TimerHandle | None = None
        self._learn_timer: asyncio.TimerHandle | None = None
        self._grow_timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ what the limiter calls

    @property
    def queued(self) -> int:
        return len(self._tickets)

    def take(self) -> bool:
        if self._tickets:
            return False
        with self._lock:
            if self.owned > self.active:
                if self._suspended or monotonic() >= self._lease_until:
                    return False
            elif self._unlimited:
                self.owned += 1
            else:
                return False
            self.active += 1
        if self.active > self._peak:
            self._peak = self.active
        return True

    def join(self) -> Ticket:
        if self._away is OnStorageError.CLOSED:
            raise Rejected("storage_unavailable", retry_after=1.0)
        if self._is_full:
            raise Rejected("queue_full", retry_after=1.0)
        self._number += 1
        ticket = Ticket(self._number, self._loop.create_future())
        self._tickets[ticket.number] = self._unsent[ticket.number] = ticket
        if self._away is not None or self._unlimited:
            self._use_idle()
        else:
            self._link.wake(self)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        if self._tickets.pop(ticket.number, None) is not None:
            self._unsay(ticket)

    def release(self, held: float = 0.0) -> None:
        self._slowest += (held - self._slowest) * (1.0 if held > self._slowest else 0.01)
        self._free()

    # ------------------------------------------------------------------ decisions

    @property
    def _unlimited(self) -> bool:
        return self.capacity is None or self._away is OnStorageError.OPEN

    @property
    def _is_full(self) -> bool:
        """Whether more wait here than may, even if they get every slot that they may still get.

        How many wait in the whole scope only the store knows.
        """
        most = self.owned if self._away is not None else self.capacity or 0
        return len(self._tickets) >= self.queue_size + max(0, most - self.active)

    @property
    def _is_line_short(self) -> bool:
        """Whether the line has no room for all who would wait a moment for idle slots of others."""
        return self.queue_size < (self.capacity or 0)

    def _free(self) -> None:
        """A slot that was in use is free: hand it on, give it back, or keep it for a while."""
        if self._away is not None or self._unlimited:
            self._free_without_store()
        elif self._hand_over():
            pass
        elif (self._contended or self._is_line_short) and self._attached:
            with self._lock:
                self.active -= 1
                self.owned -= 1
                self._returned += 1
            self._link.wake(self)
        else:
            self.active -= 1
            self._keep_for_a_while()

    def _free_without_store(self) -> None:
        with self._lock:
            self.active -= 1
            if self._unlimited or self.owned > self._share:
                self.owned = max(self.owned - 1, self.active)
        self._use_idle()

    def _use_idle(self) -> None:
        """Give what is free to those who wait here, while the store has no say."""
        if self._unlimited:
            for ticket in self._tickets.values():
                if not ticket.granted.done():
                    self.owned += 1
                    self.active += 1
                    ticket.granted.set_result(None)
            self._tickets.clear()
            self._unsent.clear()
            return
        while self._tickets and self.owned > self.active:
            self.active += 1
            if not self._hand_over():
                self.active -= 1
                return

    def _hand_over(self) -> bool:
        """Give a slot that counts as in use to this worker's first ticket, if that is fair."""
        if not self._tickets or self._suspended or monotonic() >= self._lease_until:
            return False
        ticket = next((t for t in self._tickets.values() if not t.granted.done()), None)
        if ticket is None:
            return False
        if self._contended and self._attached and not 0 < ticket.seq <= self._head:
            return False  # somebody else came first
        del self._tickets[ticket.number]
        self._unsay(ticket)
        ticket.granted.set_result(None)
        return True

    def _unsay(self, ticket: Ticket) -> None:
        """The store need not keep this ticket in line any more."""
        if self._unsent.pop(ticket.number, None) is not None or not self._attached:
            return
        self._cancelled.append(ticket.number)
        if self._lazy_timer is None:
            self._lazy_timer = self._loop.call_later(LAZY, self._lazy)

    def _lazy(self) -> None:
        self._lazy_timer = None
        self._link.wake(self)

    def _keep_for_a_while(self) -> None:
        if self._linger_timer is None and not self._closed:
            self._linger_timer = self._loop.call_later(LINGER, self._give_back_idle)

    def _give_back_idle(self) -> None:
        """Give back what was not needed of late; look again while something is owned."""
        self._linger_timer = None
        if self._away is None and self._attached and not self._unlimited:
            self._give_back(self.owned - max(self._peak, self.active))
        self._peak = self.active
        if self.owned > self.active:
            self._keep_for_a_while()

    def _give_back(self, idle: int) -> None:
        with self._lock:
            idle = min(idle, self.owned - self.active)
            if idle <= 0 or self._suspended:
                return
            self.owned -= idle
            self._returned += idle
        self._link.wake(self)

    def _recall(self) -> None:
        """Others wait: what is not in use goes back at once."""
        self._contended = True
        self._give_back(self.owned - self.active)

    def _granted(self, numbers: Sequence[bytes | int]) -> None:
        if monotonic() >= self._lease_until and self._attached:
            # Paused for longer than the lease: these slots may have been given to others since.
            self._link.reset("slots came after the lease had lapsed")
            return
        spare = 0
        with self._lock:
            if self._suspended:
                return  # the lease's thread has declared our state without them
            for number in numbers:
                ticket = self._tickets.pop(int(number), None)
                self.owned += 1
                self.active += 1
                if ticket is None or ticket.granted.done():
                    spare += 1
                else:
                    ticket.granted.set_result(None)
        self._peak = max(self._peak, self.active)
        for _ in range(spare):  # its request has gone meanwhile
            self._free()

    # ------------------------------------------------------------------ what the link calls

    def batch(self) -> tuple[list[int], list[int | str]] | None:
        """What the store must be told now: the new tickets, and the arguments of `sync`."""
        if not self._attached or self._unlimited or self._in_flight >= CALLS_IN_FLIGHT:
            return None
        if not (self._unsent or self._cancelled or self._returned or self._poked):
            return None
        new = list(self._unsent)[:TICKETS_PER_CALL]
        for number in new:
            del self._unsent[number]
        gone, self._cancelled = (
            self._cancelled[:TICKETS_PER_CALL],
            self._cancelled[TICKETS_PER_CALL:],
        )
        with self._lock:
            returned, self._returned = self._returned, 0
        self._poked = False
        self._in_flight += 1
        return new, [returned, self.queue_size, len(new), len(gone), *new, *gone]

    def synced(self, new: Sequence[int], reply: object) -> None:
        """The reply to a `sync` that carried the tickets `new`."""
        self._in_flight -= 1
        if self._unlimited:
            return  # the store counts no slots without a limit
        if not isinstance(reply, list) or reply[0] == -1:
            self._link.reset(f"sync was answered {reply!r}")
            return
        base, accepted, self._head, wanted, learning, *granted = reply
        for place, number in enumerate(new, 1):
            ticket = self._tickets.get(number)
            if ticket is None:
                continue
            if place <= accepted:
                ticket.seq = base + place
            else:
                self._refuse(ticket, "queue_full")
        self._highest = max(self._highest, base + accepted)
        self._contended = wanted > 0
        if self._contended:
            self._recall()
        self._learn(learning)
        self._granted(granted)
        if self._unsent or self._cancelled or self._returned:
            self._link.wake(self)

    def pushed(self, message: bytes) -> None:
        """Slots granted in a step of another worker: `more-wait head ticket...`."""
        more, head, *numbers = message.split(b" ")
        self._contended = more == b"1"
        self._head = int(float(head))
        self._granted(numbers)

    def told(self, message: bytes) -> None:
        """What was said to all workers: `R` (every free slot is wanted), `C capacity`, or
        `P worker` (it is new)."""
        if message == b"R":
            self._recall()
            return
        if message.startswith(b"P "):
            self._meet(message[2:].decode())
            return
        self._head = 0  # it may be less now: ask before anything is handed over
        capacity = int(message[2:]) if message[2:] else None
        if capacity is not None and self.capacity is None:  # so nobody has counted what runs
            if self._in_flight:
                self._link.reset("limited again before an answer of the former limit came")
            else:
                self._link.redeclare(self)
            return
        self.capacity = capacity
        if capacity is None:
            self._use_idle()

    def _meet(self, worker: str) -> None:
        if self.peers and worker not in self.peers:
            self.peers = (*self.peers, worker)

    def declaration(self, run_id: str, now: float) -> list[int | str]:
        """This worker's absolute state: the arguments of `attach` after worker and session."""
        with self._lock:
            if self._away is not None or self._suspended or now >= self._lease_until:
                if self._away is None and not self._suspended and self._seen_store:
                    self.oversold += self.active  # the lease had lapsed while these were running
                self.owned = self.active
                self._lease_until = 0.0
            self._suspended = False
            self._away = None
            self._returned = 0
            self._declared = self.owned
        self._in_flight = 0
        self._cancelled.clear()
        self._unsent = {n: t for n, t in self._tickets.items() if not t.seq}
        placed = [t for t in self._tickets.values() if t.seq and not t.granted.done()]
        return self._state(self._declared, run_id, placed)

    def _state(self, owned: int, run_id: str, placed: Sequence[Ticket]) -> list[int | str]:
        known = "" if self.capacity is None else self.capacity
        state: list[int | str] = [owned, self._highest, round(self.lease * 1000), known]
        state += ["keep" if self._seen_store or self.configured is None else "set", run_id]
        peers = self.peers  # the lease's thread may replace them
        state += [LEARNING, int(self._was_away), int(bool(peers)), len(peers), *peers]
        state.append(len(placed))
        for ticket in placed:
            state += [ticket.seq, ticket.number]
        return state

    def attached(self, reply: object, lease_until: float) -> None:
        """The store has taken over what was declared. Raises ValueError for any other reply."""
        if not isinstance(reply, list) or len(reply) != 4:
            raise ValueError(f"attach was answered {reply!r}")
        if self._away is not None:
            raise ValueError("the store was given up before it answered")
        capacity, learning, self._head, wanted = reply
        was_unlimited = self._unlimited
        self.capacity = None if capacity < 0 else capacity
        self._lease_until = lease_until
        self._attached = self._seen_store = True
        self._was_away = False
        self._contended = wanted > 0
        if self._unlimited:
            self._use_idle()
            return
        if was_unlimited and self.owned != self._declared:
            self._link.reset("slots came and went without a limit while they were declared")
            return
        self._learn(learning)
        if self._contended:
            self._recall()
        self._link.wake(self)

    def lost(self) -> None:
        """The connection is gone. What is owned may be used until the lease ends."""
        self._attached = False
        self._in_flight = 0

    def go_away(self, workers: int) -> None:
        """The store is away for now: go on as `on_storage_error` says. Repeating it is harmless."""
        if self._away is not None:
            return
        if not self._was_away:
            self._grow_at = self._loop.time() + min(self._slowest, self.lease)
        self._attached = False
        self._was_away = True
        self._away = self.on_storage_error
        if self._away is OnStorageError.CLOSED:
            self._suspended = False
            self._lease_until = 0.0  # what is idle is not used either
            for ticket in list(self._tickets.values()):
                self._refuse(ticket, "storage_unavailable")
            return
        self._go_local(workers)

    def limit(self, capacity: int | None, workers: int) -> None:
        """Enforce a capacity while the store is away; what the store says goes over it later."""
        self.capacity = capacity
        if self._away is OnStorageError.LOCAL:
            self._go_local(workers)

    def _go_local(self, workers: int) -> None:
        """Go on with what is owned, then with an even share, once others have come down to theirs.

        The owned slots of all workers are no more than the capacity, so nothing is exceeded at
        first. A worker above its share shrinks as its requests end; one below it grows after the
        longest time that requests have taken of late.
        """
        with self._lock:
            self._suspended = False
            if monotonic() >= self._lease_until:
                self.owned = self.active
            self._lease_until = math.inf
            self._share = max(1, self.capacity // max(1, workers)) if self.capacity else 0
            if self.owned > self._share:
                self.owned = max(self._share, self.active)
        if self._grow_timer is not None:
            self._grow_timer.cancel()
        wait = max(0.0, self._grow_at - self._loop.time())  # attempts to attach do not put it off
        self._grow_timer = self._loop.call_later(wait, self._grow)
        self._use_idle()

    def _grow(self) -> None:
        self._grow_timer = None
        if self._away is OnStorageError.LOCAL and self.capacity is not None:
            self.owned = max(self.owned, self._share)
            self._use_idle()

    def close(self) -> None:
        """Stop every timer; nothing is granted any more."""
        self._closed = True
        self._attached = False
        for timer in (self._linger_timer, self._lazy_timer, self._learn_timer, self._grow_timer):
            if timer is not None:
                timer.cancel()

    def _refuse(self, ticket: Ticket, reason: Reason) -> None:
        self._tickets.pop(ticket.number, None)
        self._unsent.pop(ticket.number, None)
        if not ticket.granted.done():
            ticket.granted.set_exception(Rejected(reason, retry_after=1.0))

    def _learn(self, milliseconds: int) -> None:
        """Ask again when learning is over: the store acts only when it is called."""
        self.learning = milliseconds > 0
        if self.learning and self._learn_timer is None:
            delay = milliseconds / 1000 + 0.005
            self._learn_timer = self._loop.call_later(delay, self._poke)

    def _poke(self) -> None:
        self._learn_timer = None
        self._poked = True
        self._link.wake(self)

    # ------------------------------------------------------------------ what the thread calls

    @property
    def suspended(self) -> bool:
        return self._suspended

    @property
    def is_attached(self) -> bool:
        return self._attached

    @property
    def is_away(self) -> bool:
        """Whether these slots go on without the store."""
        return self._away is not None

    @property
    def withholds(self) -> bool:
        """Whether others wait for this worker, should its event loop hang: it has idle slots, or
        may be granted some."""
        if self._suspended or not self._attached or self.capacity is None:
            return False
        coming = self._tickets or self._cancelled or self._in_flight
        return bool(coming) or self.owned > self.active

    def suspend(self, run_id: str) -> list[int | str]:
        """Give up what is idle and the places in line: the event loop hangs.

        Returns what to declare, as `declaration` does. The tickets are declared again by the loop.
        """
        with self._lock:
            self._suspended = True
            self.owned = self.active
            self._returned = 0
            return self._state(self.owned, run_id, ())

    def renewed(self, lease_until: float) -> None:
        """A beat has reached the store."""
        with self._lock:
            if self._away is None and self._attached:
                self._lease_until = lease_until

    def meet_all(self, workers: tuple[str, ...]) -> None:
        """These hold a lease. A store that lost its data does not know of all yet: forget nobody.

        Who is forgotten would not have to declare what it runs before others are granted slots.
        """
        if self.learning:
            workers = tuple(dict.fromkeys((*self.peers, *workers)))
        self.peers = workers

    def expire(self) -> None:
        """The store knows this session no more: admit nothing before attaching anew."""
        with self._lock:
            if self._away is None:
                self._lease_until = 0.0
