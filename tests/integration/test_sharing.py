"""Services on one Redis: of one name they share everything, of two names nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.integration.fleet import CAPACITY, Figure, Fleet, ask, run, slots_in, statuses, store
from tests.integration.journal import now
from tests.integration.proxy import FaultProxy
from tests.servers import StoreServer


@pytest.fixture
def server() -> Iterator[StoreServer]:
    with store() as server:
        yield server


def test_services_of_two_names_do_not_touch_each_other(server: StoreServer) -> None:
    async def main() -> None:
        async with one.lines(12) as here, two.lines(12) as there:
            answers = await ask(here, "/work?ms=400") + await ask(there, "/work?ms=400")
            await asyncio.sleep(0.2)
            assert slots_in(server, "one")["used"] == slots_in(server, "two")["used"] == CAPACITY
            assert await statuses(answers) == [200] * 24
        assert one.journal.most_inside() == two.journal.most_inside() == CAPACITY

    with (
        Fleet(server.url, name="one", workers=2) as one,
        Fleet(server.url, name="two", workers=2) as two,
    ):
        run(main)


def test_one_app_on_two_ports_shares_its_limit_and_its_line(server: StoreServer) -> None:
    async def main() -> None:
        async with one.crowd() as here, two.crowd() as there:
            await asyncio.sleep(1.5)
        assert here.statuses() == there.statuses() == {200}
        assert one.journal.most_inside() == CAPACITY
        assert one.journal.overtaken() <= CAPACITY

    with (
        Fleet(server.url, workers=2) as one,
        Fleet(server.url, workers=2, journal=one.journal) as two,
    ):
        run(main)


def test_workers_cut_off_from_the_store_go_on_with_their_share(
    server: StoreServer, record_property: Figure
) -> None:
    async def main() -> None:
        async with near.crowd() as here, far.crowd() as there:
            await asyncio.sleep(1)
            proxy.refuse()
            proxy.cut()
            cut = now()
            await asyncio.sleep(3)
            await asyncio.to_thread(proxy.heal)
            healed = now()
            await asyncio.sleep(2)
        record_property("most inside", near.journal.most_inside())
        assert here.statuses() == there.statuses() == {200}
        # The others have the whole capacity, these a quarter of it each, for they cannot know.
        assert near.journal.most_inside() <= CAPACITY + 2 * CAPACITY // 4
        assert near.journal.most_inside(until=cut) == CAPACITY
        assert near.journal.most_inside(healed + 1) == CAPACITY
        assert near.journal.full_after(cut + 1.5, CAPACITY, *near.worker_pids()) < 0.5

    with (
        FaultProxy(server) as proxy,
        Fleet(server.url, workers=2) as near,
        Fleet(proxy.url, workers=2, journal=near.journal) as far,
    ):
        run(main)
