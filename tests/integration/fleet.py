"""A service of several workers on a real store: a hand on each worker, an eye on each slot."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeVar

from fastapi_balancer.storage.redis.scripts import slots_keys
from tests import reaper
from tests.integration.clients import Address, Connection, Record, Response, fetch
from tests.integration.journal import Journal, now
from tests.integration.service import Service
from tests.servers import StoreServer, binaries

T = TypeVar("T")

Figure = Callable[[str, object], None]  # pytest's record_property: see --junit-xml

CAPACITY = 8
MARGIN = 0.3  # seconds that a busy machine may add
WATCHED = {"/work": {"capacity": CAPACITY}}
APP = "tests.integration.apps.faults:app"


def store(**options: Any) -> StoreServer:
    """A server of the first kind there is; which kind does not matter to these tests."""
    return StoreServer(next(one.path for one in binaries() if one.path is not None), **options)


class Fleet(Service):
    """Workers of `apps.faults`, all on one store. `settings` are the keywords of its balancer."""

    def __init__(
        self,
        url: str | None,
        *,
        name: str = "fleet",
        workers: int = 4,
        lease: float = 10.0,
        endpoints: Mapping[str, Mapping[str, Any]] = WATCHED,
        storage: Mapping[str, Any] | None = None,
        journal: Journal | None = None,
        arguments: tuple[str, ...] = (),
        **settings: Any,
    ) -> None:
        self.folder = reaper.folder()
        self.journal = journal or Journal(self.folder / "journal")
        self.name = name
        where = storage or {"type": "redis", "url": url}
        keywords = {"name": name, "storage": {**where, "lease": lease}, "endpoints": endpoints}
        super().__init__(
            APP,
            workers=workers,
            arguments=arguments,
            env={
                "FAULTS_SETTINGS": json.dumps({**keywords, **settings}),
                "FAULTS_JOURNAL": str(self.journal.path),
                "TMPDIR": str(self.folder),  # where an embedded store is
            },
        )

    def close(self) -> None:
        super().close()
        reaper.remove(self.folder)

    # ------------------------------------------------------------------ workers

    def kill(self, *pids: int) -> float:
        """Kill workers as the kernel would (SIGKILL). Returns when."""
        for pid in pids:
            self.kill_worker(pid)
            self.journal.deaths[pid] = now()
        return now()

    def stop(self, pid: int) -> None:
        """Freeze one worker (SIGSTOP)."""
        self.kill_worker(pid, signal.SIGSTOP)

    def go_on(self, pid: int) -> None:
        """Let a frozen worker go on (SIGCONT)."""
        os.kill(pid, signal.SIGCONT)

    def ended(self, within: float = 15.0) -> int:
        """Wait for the end of a service that was told to end; returns its exit status."""
        process = self._running()
        return process.wait(within)

    # ------------------------------------------------------------------ requests

    @asynccontextmanager
    async def lines(self, count: int, *pids: int) -> AsyncIterator[list[Connection]]:
        """So many connections to these workers, none of which may be stopped, or to any."""
        async with AsyncExitStack() as stack:
            with self._accepting(pids):
                found = [
                    await stack.enter_async_context(Connection(self.address)) for _ in range(count)
                ]
                for connection in found:
                    await connection.ask("/pid")
                served_by = {json.loads((await one.answer()).body)["pid"] for one in found}
            assert not pids or served_by <= set(pids)
            yield found

    @contextmanager
    def _accepting(self, pids: tuple[int, ...]) -> Iterator[None]:
        """Stop the other workers for some milliseconds, for all of them accept on one socket."""
        others = [pid for pid in self.worker_pids() if pids and pid not in pids]
        try:
            for pid in others:
                self.stop(pid)
            yield
        finally:
            for pid in others:
                self.go_on(pid)

    @asynccontextmanager
    async def crowd(self, each: int = 10, ms: float = 50) -> AsyncIterator[Crowd]:
        """So many clients of each worker, who ask `/work` until the block is left."""
        crowd = Crowd(self.address, f"/work?ms={ms}")
        lines: list[Connection] = []
        async with AsyncExitStack() as stack:
            for pid in self.worker_pids():
                lines += await stack.enter_async_context(self.lines(each, pid))
            crowd.start(lines)
            try:
                yield crowd
            finally:
                await crowd.stop()

    async def stats(self) -> dict[str, Any]:
        """`/balancer/stats` of whichever worker answers."""
        answer = await fetch(self.address, "/balancer/stats")
        assert answer.status == 200
        return dict(json.loads(answer.body))

    # ------------------------------------------------------------------ slots

    async def inside(self, count: int, within: float = 5.0) -> None:
        """Wait until so many handlers are inside."""
        await until(lambda: self.journal.inside() == count, within, self.journal.inside)

    async def at_once(self, requests: int = CAPACITY + 2) -> int:
        """How many of some requests that come together are run together: no slot is lost."""
        begin = now()
        asked = [fetch(self.address, "/work?ms=100") for _ in range(requests)]
        answers = await asyncio.gather(*asked)
        assert {answer.status for answer in answers} == {200}
        return self.journal.most_inside(begin)


class Crowd:
    """Clients that ask again as soon as they have their answer."""

    def __init__(self, address: Address, path: str) -> None:
        self.records: list[Record] = []
        self._address = address
        self._path = path
        self._going = True
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, lines: list[Connection]) -> None:
        """Let a client begin on each connection."""
        self._tasks += [asyncio.create_task(self._client(line)) for line in lines]

    async def stop(self) -> None:
        """Wait until each client has had its last answer."""
        self._going = False
        await asyncio.gather(*self._tasks)

    def statuses(self) -> set[int]:
        """The statuses that were answered; 0 stands for connections that broke."""
        return {record.status for record in self.records}

    def longest(self, since: float = 0.0, until: float = float("inf")) -> float:
        """The longest time to an answer, of the answers that came between two times."""
        return max(r.end - r.start for r in self.records if since <= r.end <= until)

    async def _client(self, line: Connection) -> None:
        while self._going and await self._request(line):
            pass
        while self._going:  # the worker has gone: another takes the client in
            async with Connection(self._address) as other:
                while self._going and await self._request(other):
                    pass

    async def _request(self, line: Connection) -> bool:
        begin, status = now(), 0
        with contextlib.suppress(ConnectionError):
            await line.ask(self._path)
            status = (await line.answer(20)).status
        self.records.append(Record(begin, now(), status))
        return status != 0


def answered(connection: Connection, within: float = 20.0) -> asyncio.Task[Response | None]:
    """The answer that a connection will get; None when it breaks instead."""

    async def read() -> Response | None:
        try:
            return await connection.answer(within)
        except ConnectionError:
            return None

    return asyncio.create_task(read())


async def ask(
    lines: list[Connection], path: str, name: str = ""
) -> list[asyncio.Task[Response | None]]:
    """Ask on each connection, and return the answers to come. Requests are `name` and a number."""
    for number, line in enumerate(lines):
        await line.ask(path, headers={"x-request": f"{name}{number}"} if name else {})
    return [answered(line) for line in lines]


async def statuses(answers: list[asyncio.Task[Response | None]]) -> list[int]:
    """The status of each answer, 0 for a connection that broke."""
    return [0 if one is None else one.status for one in await asyncio.gather(*answers)]


async def until(true: Callable[[], bool], within: float, state: Callable[[], object]) -> None:
    """Wait until it is so. Raises `TimeoutError` with the state that was found instead."""
    end = now() + within
    while not true():
        if now() > end:
            raise TimeoutError(f"not so within {within} s: {state()}")
        await asyncio.sleep(0.01)


def slots_in(server: StoreServer, fleet: str = "fleet", endpoint: str = "/work") -> dict[str, int]:
    """The slots that the store counts: `used`, and what each worker owns."""
    state = server.cli("HGETALL", slots_keys(fleet, "global", endpoint)[0])
    return {key: int(value) for key, value in state.items() if key == "used" or key[:2] == "o:"}


async def idle(server: StoreServer, *endpoints: str, within: float = 3.0) -> None:
    """Wait until the store says that nobody owns a slot, with nobody asking for one."""

    def owned() -> list[dict[str, int]]:
        return [slots_in(server, endpoint=endpoint) for endpoint in endpoints or ("/work",)]

    def is_idle() -> bool:
        return not any(count for counts in owned() for count in counts.values())

    await until(is_idle, within, owned)


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run the async part of a test."""

    async def bounded() -> T:
        async with asyncio.timeout(60):
            return await main()

    return asyncio.run(bounded())


async def no_slot_is_lost(fleet: Fleet, server: StoreServer, *paths: str) -> None:
    """All slots can be used at once, and are back in the store when nobody asks."""
    assert await fleet.at_once() == CAPACITY
    await idle(server, *paths)
