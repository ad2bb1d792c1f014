"""Four workers measure an endpoint at their start: one of them, once, for all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from tests.integration.fleet import Figure, Fleet, run, store, until
from tests.integration.journal import now
from tests.servers import StoreServer

LIMITS = {"max_seconds": 4, "max_concurrency": 4}


@pytest.fixture
def server() -> Iterator[StoreServer]:
    with store() as server:
        yield server


def probed(server: StoreServer, *, force: bool = False) -> Fleet:
    return Fleet(server.url, endpoints={"/work": {}}, probe=LIMITS, force_reprobe=force)


def probers(fleet: Fleet) -> set[int]:
    """The workers whose handler was called by a probe."""
    return {e.pid for e in fleet.journal.events() if e.kind == "enter" and e.request == "probe"}


def capacity(fleet: Fleet) -> int:
    found = run(fleet.stats)["endpoints"]["/work"]["capacity"]
    assert isinstance(found, int)
    return found


def test_each_start_probes_with_one_worker_if_it_must(server: StoreServer) -> None:
    with probed(server) as fleet:
        assert len(probers(fleet)) == 1
        found = capacity(fleet)
    with probed(server) as fleet:
        assert probers(fleet) == set()
        assert capacity(fleet) == found
    with probed(server, force=True) as fleet:
        assert len(probers(fleet)) == 1


def test_all_workers_enforce_what_one_has_found(server: StoreServer) -> None:
    async def main() -> None:
        fleet.journal.clear()
        async with fleet.crowd(8, ms=30) as crowd:
            await asyncio.sleep(0.7)
        assert crowd.statuses() == {200}
        assert fleet.journal.most_inside() == found

    with probed(server) as fleet:
        found = capacity(fleet)
        assert found == LIMITS["max_concurrency"]
        run(main)


def test_another_worker_takes_over_from_a_killed_prober(
    server: StoreServer, record_property: Figure
) -> None:
    fleet = probed(server)
    killed: list[int] = []

    def kill_the_prober() -> None:
        run(lambda: until(lambda: bool(probers(fleet)), 20, fleet.journal.events))
        [victim] = probers(fleet)
        killed.append(victim)
        fleet.kill(victim)

    killing = threading.Thread(target=kill_the_prober)
    killing.start()
    begin = now()
    with fleet:
        killing.join()
        record_property("started after", now() - begin)
        assert len(probers(fleet) - set(killed)) == 1
        assert capacity(fleet) == LIMITS["max_concurrency"]
