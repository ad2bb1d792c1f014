"""Clients hang up in any state of a request, handlers end in any manner: no slot is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from tests.integration.clients import Connection, fetch, request
from tests.integration.fleet import (
    CAPACITY,
    WATCHED,
    Fleet,
    ask,
    no_slot_is_lost,
    run,
    statuses,
    store,
    until,
)
from tests.integration.journal import now
from tests.servers import StoreServer

SINGLE = ("/upload", "/thread", "/raise", "/stream", "/background")
SEED = 20


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with store() as server:
        yield server


@pytest.fixture(scope="module")
def service(server: StoreServer) -> Iterator[Fleet]:
    endpoints = {**WATCHED, **{path: {"capacity": 1} for path in SINGLE}}
    with Fleet(server.url, endpoints=endpoints) as service:
        yield service


@pytest.fixture
def fleet(service: Fleet, server: StoreServer) -> Iterator[Fleet]:
    """Four workers, and after each test the proof that no slot was lost."""
    service.journal.clear()
    yield service
    run(lambda: no_slot_is_lost(service, server, "/work", *SINGLE))


def ended(fleet: Fleet) -> int:
    return sum(event.kind == "exit" for event in fleet.journal.events())


def test_a_client_that_leaves_before_its_body_never_held_a_slot(fleet: Fleet) -> None:
    async def main() -> None:
        for _ in range(8):
            async with Connection(fleet.address) as connection:
                await connection.send(request("/upload", "POST", {"content-length": "100"}), b"x")
                await asyncio.sleep(0.02)
                assert (await fetch(fleet.address, "/upload", "POST", body=b"abc")).body == b"3"
                connection.abort()
        assert sum(e.kind == "enter" for e in fleet.journal.events()) == 8

    run(main)


def test_of_40_clients_that_leave_the_queue_none_is_run(fleet: Fleet) -> None:
    async def main() -> None:
        async with fleet.lines(8) as held, fleet.lines(40) as lines, fleet.lines(4) as rest:
            running = await ask(held, "/work?ms=700")
            await fleet.inside(8)
            left = await ask(lines, "/work", "left")
            await asyncio.sleep(0.2)
            stayed = await ask(rest, "/work", "stayed")
            await asyncio.sleep(0.1)
            for line in lines:
                line.abort()
            assert await statuses(left) == [0] * 40
            assert await statuses(running + stayed) == [200] * 12
        entered = {e.request for e in fleet.journal.events() if e.kind == "enter"}
        assert [name for name in entered if name.startswith("left")] == []

    run(main)


def test_clients_that_leave_just_when_their_turn_comes_take_no_slot_with_them(
    fleet: Fleet,
) -> None:
    chance = random.Random(SEED)

    async def impatient(line: Connection) -> None:
        await line.ask("/work?ms=20")
        await asyncio.sleep(chance.uniform(0.0, 0.06))
        line.abort()

    async def main() -> None:
        async with fleet.crowd(4, ms=20) as crowd:
            for _ in range(12):
                async with fleet.lines(16) as lines:
                    await asyncio.gather(*map(impatient, lines))
        assert crowd.statuses() == {200}
        assert fleet.journal.most_inside() == CAPACITY

    run(main)


def test_a_handler_keeps_its_slot_when_its_client_leaves(fleet: Fleet) -> None:
    async def main() -> None:
        async with fleet.lines(8) as lines, fleet.lines(8) as rest:
            begin = now()
            await ask(lines, "/work?ms=600")
            await fleet.inside(8)
            for line in lines:
                line.abort()
            assert await statuses(await ask(rest, "/work", "next")) == [200] * 8
        entries = [e for e in fleet.journal.events() if e.kind == "enter" and "next" in e.request]
        assert min(e.at for e in entries) > begin + 0.6
        assert fleet.journal.most_inside() == CAPACITY

    run(main)


def test_a_client_that_leaves_a_stream_half_way_frees_the_slot(fleet: Fleet) -> None:
    async def main() -> None:
        async with fleet.lines(1) as [line]:
            begin = now()
            await line.ask("/stream?chunks=1000&ms=20")
            await line.head()
            assert await line.chunk() == b"chunk"
            line.abort()
            answer = await fetch(fleet.address, "/stream?chunks=2&ms=20")
            assert answer.body == b"chunkchunk"
            assert now() - begin < 1.0
        assert fleet.journal.most_inside() == 1

    run(main)


@pytest.mark.parametrize(
    "path", ["/stream?chunks=5&ms=40", "/background?ms=200", "/thread?ms=200", "/raise"]
)
def test_a_slot_is_held_to_the_very_end_of_the_work(fleet: Fleet, path: str) -> None:
    async def main() -> None:
        async with fleet.lines(6) as lines:
            begin = now()
            found = await statuses(await ask(lines, path))
            assert found == [500 if path == "/raise" else 200] * 6
            await until(lambda: ended(fleet) == 6, 3, fleet.journal.events)  # a task is later
            assert fleet.journal.most_inside() == 1
            assert path == "/raise" or now() - begin > 5 * 0.2

    run(main)


def test_a_thread_whose_client_has_left_holds_its_slot_until_it_is_done(fleet: Fleet) -> None:
    async def main() -> None:
        async with fleet.lines(1) as [line]:
            await line.ask("/thread?ms=500", headers={"x-request": "first"})
            await fleet.inside(1)
            line.abort()
            answer = await fetch(fleet.address, "/thread", headers={"x-request": "next"})
            assert answer.status == 200
        events = {(e.request, e.kind): e.at for e in fleet.journal.events()}
        assert events["first", "exit"] - events["first", "enter"] > 0.5
        assert 0 < events["next", "enter"] - events["first", "exit"] < 0.2

    run(main)
