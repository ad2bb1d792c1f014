"""The worker's sign of life: a thread that renews leases, and sees siblings die and the loop hang.

The user's handler may block the event loop for seconds; nothing here needs the loop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Protocol

import redis
from redis.exceptions import NoScriptError, RedisError

from fastapi_balancer.processes import host_id, started_at
from fastapi_balancer.storage.redis.scripts import SHA, SOURCES
from fastapi_balancer.storage.redis.slots import SharedSlots

logger = logging.getLogger(__name__)

BEAT = 0.5  # seconds between two beats of an endpoint that is in use
GRACE = 1000  # milliseconds without beat and subscription after which a worker counts as gone
SWEEP = 250  # milliseconds between two looks for workers that are gone
HANG = 0.1  # seconds without a tick after which the event loop counts as hung
WATCH = 0.05  # seconds between two looks at the tick, while there is something to give back


class Host(Protocol):
    """What the thread needs of the storage. Plain reads, and calls that are safe from a thread."""

    worker: str
    session: int
    tick: float  # monotonic time of the event loop's last sign of life

    @property
    def is_abandoned(self) -> bool: ...

    def shared(self) -> Iterable[tuple[tuple[str, str, str], SharedSlots]]: ...
    def next_session(self) -> int: ...
    def suspect(self, reason: str) -> None: ...


class LeaseKeeper:
    """One thread with one connection of its own."""

    def __init__(
        self,
        host: Host,
        connect: Callable[[], redis.Redis],
        *,
        lease: float,
        revive: Callable[[], object] | None = None,
    ) -> None:
        self._host = host
        self._connect = connect
        self._lease = lease
        self._revive = revive  # restarts an embedded server
        self._client: redis.Redis | None = None
        self._run_id = ""  # of the server that the client is connected to
        self._undeclared = False  # a hung loop's slots were suspended, and the store was not told
        self._beaten: dict[str, float] = {}  # key -> when the last beat was sent
        self._siblings: dict[str, int] = {}  # worker -> pidfd
        self._stop = threading.Event()
        self._wake_read = self._wake_write = -1
        self._thread = threading.Thread(target=self._run, name="balancer-lease", daemon=True)

    def start(self) -> None:
        self._wake_read, self._wake_write = os.pipe()
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread; waits for it at most `timeout` seconds. Nothing happens without one."""
        if self._thread.ident is None:
            return
        self._stop.set()
        with contextlib.suppress(OSError):  # it has ended by itself
            os.write(self._wake_write, b"x")
        self._thread.join(timeout)

    def _run(self) -> None:
        failed = False
        while not self._stop.is_set() and not self._host.is_abandoned:
            try:
                self._round()
                failed = False
            except (RedisError, OSError) as exc:
                self._disconnect()
                if not failed:
                    logger.debug("no beat: %s", exc)
                    self._host.suspect(f"no beat: {type(exc).__name__}")
                    failed = True
                if self._revive is not None:
                    self._try_to_revive(self._revive)
            except Exception:
                logger.exception("a round of the lease's thread failed")
                self._disconnect()
                failed = True
            self._wait(0.1 if failed else self._pause())
        self._disconnect()
        for pidfd in self._siblings.values():
            os.close(pidfd)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _try_to_revive(self, revive: Callable[[], object]) -> None:
        try:
            revive()
        except Exception:
            logger.debug("the server was not revived", exc_info=True)

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _pause(self) -> float:
        in_use = any(slots.owned for _, slots in self._host.shared())
        return WATCH if in_use else BEAT / 2

    def _round(self) -> None:
        if self._client is None:
            self._client = self._connect()
            self._run_id = self._client.info("server")["run_id"]
            for text in SOURCES.values():
                self._client.script_load(text)
        self._help_hung_loop()
        self._beat()
        if self._revive is not None and not all(s.is_attached for _, s in self._host.shared()):
            self._client.ping()  # there is nothing to beat, but somebody must see the server's end

    # ------------------------------------------------------------------ beats

    def _beat(self) -> None:
        session, now = self._host.session, monotonic()
        due = [
            (keys, slots) for keys, slots in self._host.shared() if self._is_due(keys, slots, now)
        ]
        if not due:
            return
        arguments = (self._host.worker, session, round(self._lease * 1000), GRACE, SWEEP)
        replies = self._evaluate("beat", [(keys, arguments) for keys, _ in due])
        for (keys, slots), reply in zip(due, replies, strict=True):
            self._beaten[keys[0]] = now
            if reply[0] == -1:
                if session == self._host.session:
                    slots.expire()
                    self._host.suspect("the store does not know this worker any more")
                continue
            if session == self._host.session:
                slots.renewed(now + 0.9 * self._lease)
            slots.meet_all(tuple(worker.decode() for worker in reply[1:]))
        self._watch_siblings({peer for _, slots in self._host.shared() for peer in slots.peers})

    def _is_due(self, keys: tuple[str, str, str], slots: SharedSlots, now: float) -> bool:
        if not slots.is_attached:
            return False
        busy = slots.owned or slots.queued or slots.learning
        return now - self._beaten.get(keys[0], 0.0) >= (BEAT if busy else self._lease * 0.3)

    def _evaluate(
        self, script: str, calls: Sequence[tuple[tuple[str, ...], tuple[Any, ...]]]
    ) -> list[Any]:
        assert self._client is not None  # set by _round
        pipeline = self._client.pipeline(transaction=False)
        for keys, arguments in calls:
            pipeline.evalsha(SHA[script], len(keys), *keys, *arguments)
        try:
            return pipeline.execute()
        except NoScriptError:
            self._client.script_load(SOURCES[script])
            raise

    # ------------------------------------------------------------------ siblings

    def _watch_siblings(self, workers: set[str]) -> None:
        """Hold a pidfd of each other worker on this host: the kernel says when it is gone."""
        if not hasattr(os, "pidfd_open"):
            return
        here = host_id()
        for worker in workers - self._siblings.keys() - {self._host.worker}:
            host, pid, start, _ = worker.rsplit("-", 3)
            if host != here:
                continue
            try:
                pidfd = os.pidfd_open(int(pid))
            except ProcessLookupError:
                self._reap(worker)
                continue
            except OSError as exc:  # an old kernel, or a sandbox: the grace or the lease does it
                logger.debug("worker %s cannot be watched: %s", worker, exc)
                continue
            if started_at(int(pid)) == start:
                self._siblings[worker] = pidfd
            else:  # the pid belongs to another process by now
                os.close(pidfd)
                self._reap(worker)
        for worker in self._siblings.keys() - workers:
            os.close(self._siblings.pop(worker))

    def _wait(self, seconds: float) -> None:
        """Sleep, but act at once when a sibling dies or the thread is to end."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        workers = {pidfd: worker for worker, pidfd in self._siblings.items()}
        for pidfd in workers:
            poll.register(pidfd, select.POLLIN)
        for fd, _ in poll.poll(seconds * 1000):
            if fd in workers:
                os.close(self._siblings.pop(workers[fd]))
                with contextlib.suppress(
                    RedisError, OSError
                ):  # the grace or the lease does it then
                    self._reap(workers[fd])

    def _reap(self, worker: str) -> None:
        if self._client is None:
            return
        calls = [(keys, (worker,)) for keys, _ in self._host.shared()]
        taken = [slots for slots in self._evaluate("reap", calls) if slots >= 0]
        if taken:
            logger.warning("worker %s is gone; %d slots taken back", worker, sum(taken))

    # ------------------------------------------------------------------ the loop hangs

    def _help_hung_loop(self) -> None:
        """Give back what a worker holds or waits for whose event loop cannot use it.

        All endpoints get the new session, for beats know of one only.
        """
        if monotonic() - self._host.tick < HANG:
            self._undeclared = False  # the loop goes on, and declares everything itself
            return
        shared = [(keys, slots) for keys, slots in self._host.shared() if slots.is_attached]
        if not (self._undeclared or any(slots.withholds for _, slots in shared)):
            return
        self._undeclared = True
        session = self._host.next_session()
        assert self._client is not None  # set by _round
        self._run_id = self._client.info("server")["run_id"]  # it may have been replaced
        calls = [
            (keys, (self._host.worker, session, *slots.suspend(self._run_id)))
            for keys, slots in shared
        ]
        self._evaluate("attach", calls)
        self._undeclared = False
