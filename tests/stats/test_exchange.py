from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from fastapi_balancer.errors import StorageError
from fastapi_balancer.stats.collector import Collector, EndpointGauges, WorkerGauges
from fastapi_balancer.stats.exchange import Snapshots, decode, encode
from fastapi_balancer.testing import run_virtual


class Store:
    """A store that two or more workers share; it can be away, or slow."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.owned: dict[str, dict[str, int]] = {}
        self.is_away = False
        self.delay = 0.0
        self.published = 0
        self.read = 0

    async def publish(self, worker: str, value: bytes) -> None:
        await self._answer()
        self.published += 1
        self.kept[worker] = value

    async def reports(self) -> dict[str, bytes]:
        self.read += 1
        await self._answer()
        return dict(self.kept)

    async def _answer(self) -> None:
        await asyncio.sleep(self.delay)
        if self.is_away:
            raise StorageError("away")


class OneWorkersStore:
    """The store as one worker sees it."""

    def __init__(self, store: Store, worker: str) -> None:
        self._store, self._worker = store, worker

    async def publish(self, value: bytes) -> None:
        await self._store.publish(self._worker, value)

    async def reports(self) -> dict[str, bytes]:
        return await self._store.reports()

    async def owned(self) -> dict[str, dict[str, int]]:
        return self._store.owned


class Worker:
    """A worker with one endpoint, whose wall clock is the loop's time plus what it is off by."""

    def __init__(self, store: Store, name: str, off_by: float = 0.0) -> None:
        self.active = 0
        self.collector = Collector(name)
        self.off_by = off_by
        self.snapshots = Snapshots(
            OneWorkersStore(store, name), self.collector, self._gauges, clock=self._wall
        )

    def _gauges(self) -> WorkerGauges:
        return WorkerGauges({"/a": EndpointGauges(capacity=8, active=self.active)})

    def _wall(self) -> float:
        return 1000.0 + asyncio.get_running_loop().time() + self.off_by

    async def endpoint(self) -> Any:
        return (await self.snapshots.current())["endpoints"]["/a"]

    async def workers(self) -> Any:
        return (await self.snapshots.current())["workers"]


def test_each_worker_shows_what_all_of_them_do() -> None:
    async def main() -> None:
        store = Store()
        first, second = Worker(store, "w1"), Worker(store, "w2")
        second.active = 3
        second.snapshots.start()
        await asyncio.sleep(0.1)
        first.active = 2
        assert (await first.endpoint())["active_requests"] == 5
        await second.snapshots.stop()

    run_virtual(main())


def test_a_report_is_published_at_once_and_then_every_second() -> None:
    async def main() -> int:
        store = Store()
        worker = Worker(store, "w1")
        worker.snapshots.start()
        await asyncio.sleep(9.5)
        await worker.snapshots.stop()
        return store.published

    assert run_virtual(main()) == 10 + 1  # and the last one says that it is gone


def test_ones_own_part_is_live_even_within_the_same_reading() -> None:
    async def main() -> None:
        store = Store()
        worker = Worker(store, "w1")
        worker.snapshots.start()
        for active in (1, 2, 3):
            worker.active = active
            assert (await worker.endpoint())["active_requests"] == active
        assert store.read == 1
        await worker.snapshots.stop()

    run_virtual(main())


def test_many_who_ask_at_once_share_one_reading() -> None:
    async def main() -> None:
        store = Store()
        store.delay = 0.1
        worker = Worker(store, "w1")
        await asyncio.gather(*(worker.endpoint() for _ in range(100)))
        assert store.read == 1
        await asyncio.sleep(0.5)
        await worker.endpoint()
        assert store.read == 2

    run_virtual(main())


def test_one_who_goes_away_while_asking_takes_nothing_from_the_others() -> None:
    async def main() -> None:
        store = Store()
        store.kept["w2"] = b"{}"
        store.delay = 0.1
        worker = Worker(store, "w1")
        impatient, patient = (asyncio.create_task(worker.workers()) for _ in range(2))
        await asyncio.sleep(0.05)
        impatient.cancel()
        assert list(await patient) == ["w1"]
        assert store.read == 1

    run_virtual(main())


def test_while_the_store_is_away_the_others_grow_stale_and_come_back() -> None:
    async def main() -> None:
        store = Store()
        first, second = Worker(store, "w1"), Worker(store, "w2")
        second.active = 3
        for worker in (first, second):
            worker.snapshots.start()
        await asyncio.sleep(2.1)
        assert (await first.endpoint())["active_requests"] == 3
        store.is_away = True
        await asyncio.sleep(2)
        assert (await first.endpoint())["active_requests"] == 3
        await asyncio.sleep(4)
        assert (await first.endpoint())["active_requests"] == 0
        assert (await first.workers())["w2"]["stale"] is True
        store.is_away = False
        await asyncio.sleep(2)
        assert (await first.endpoint())["active_requests"] == 3
        for worker in (first, second):
            await worker.snapshots.stop()

    run_virtual(main())


def test_a_frozen_store_holds_nobody_up_longer_than_the_timeout() -> None:
    async def main() -> None:
        store = Store()
        store.delay = 3600
        worker = Worker(store, "w1")
        loop = asyncio.get_running_loop()
        for _ in range(3):
            began = loop.time()
            assert list(await worker.workers()) == ["w1"]
            assert loop.time() - began == pytest.approx(0.25)
        assert store.read == 1

    run_virtual(main())


def test_a_worker_that_stops_says_so_at_once() -> None:
    async def main() -> None:
        store = Store()
        first, second = Worker(store, "w1"), Worker(store, "w2")
        second.snapshots.start()
        await asyncio.sleep(0.1)
        assert set(await first.workers()) == {"w1", "w2"}
        await second.snapshots.stop()
        await second.snapshots.stop()
        await asyncio.sleep(0.5)
        assert set(await first.workers()) == {"w1"}

    run_virtual(main())


@pytest.mark.parametrize("off_by", [-3600.0, 3600.0])
def test_hosts_whose_clocks_differ_still_see_each_other(off_by: float) -> None:
    async def main() -> None:
        store = Store()
        first, second = Worker(store, "w1"), Worker(store, "w2", off_by)
        second.snapshots.start()
        await asyncio.sleep(0.1)
        await first.workers()
        await asyncio.sleep(1)
        assert (await first.workers())["w2"]["stale"] is False
        await second.snapshots.stop()

    run_virtual(main())


def test_a_worker_of_another_clock_that_dies_grows_stale_too() -> None:
    async def main() -> None:
        store = Store()
        first, second = Worker(store, "w1"), Worker(store, "w2", off_by=3600)
        second.snapshots.start()
        await asyncio.sleep(0.1)
        assert (await first.workers())["w2"]["stale"] is False
        store.is_away = True  # for the second: it publishes no more
        await asyncio.sleep(5.5)
        store.is_away = False
        assert (await first.workers())["w2"]["stale"] is True
        await second.snapshots.stop()

    run_virtual(main())


@pytest.mark.parametrize("raw", [b"\xff", b"", b"[1]", b"{}", b'{"version":0}', b'{"version":1}'])
def test_a_report_that_is_not_understood_is_left_out(raw: bytes) -> None:
    async def main() -> Any:
        store = Store()
        store.kept["w2"] = raw
        return await Worker(store, "w1").workers()

    assert decode(raw) is None
    assert list(run_virtual(main())) == ["w1"]


@pytest.mark.parametrize("missing", ["active", "queue_wait"])
def test_a_report_with_a_gap_is_left_out(missing: str) -> None:
    gauges = WorkerGauges({"/a": EndpointGauges()})
    report: Any = Collector("w2").report(gauges, now=1.0, time=2.0)
    assert decode(encode(report)) == report
    del report["endpoints"]["/a"][missing]
    assert decode(encode(report)) is None


def test_a_bug_in_the_gauges_is_logged_and_stopping_still_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def gauges() -> WorkerGauges:
        if not caplog.records:
            raise RuntimeError("no such slots")
        return WorkerGauges({})

    async def main() -> Store:
        store = Store()
        snapshots = Snapshots(OneWorkersStore(store, "w1"), Collector("w1"), gauges)
        snapshots.start()
        await asyncio.sleep(0.1)
        await snapshots.stop()
        return store

    with caplog.at_level(logging.ERROR):
        store = run_virtual(main())
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert json.loads(store.kept["w1"])["state"] == "stopped"


def test_reports_of_different_moments_show_no_more_than_is_owned() -> None:
    async def scenario() -> None:
        store = Store()
        store.owned = {"/a": {"w1": 5, "w2": 3}}
        first, second = Worker(store, "w1"), Worker(store, "w2")
        first.active, second.active = 5, 5
        second.snapshots.start()
        await asyncio.sleep(0.1)
        endpoint = await first.endpoint()
        assert endpoint["active_requests"] == 8
        assert endpoint["workers"]["w2"]["active_requests"] == 3
        await second.snapshots.stop()

    run_virtual(scenario())
