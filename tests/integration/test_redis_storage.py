"""Several workers' storages on one real server, which is cut, wiped, restarted and frozen."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from fastapi_balancer.errors import Rejected, StorageError
from fastapi_balancer.models import OnStorageError, Scope
from fastapi_balancer.storage.base import Slots, SlotsConfig, Ticket
from fastapi_balancer.storage.redis import RedisStorage
from fastapi_balancer.storage.redis import attachment as attachment_module
from fastapi_balancer.storage.redis import slots as slots_module
from tests.conftest import MakeServer
from tests.servers import SentinelGroup, StoreServer

WITHIN = 3.0  # seconds; what takes a moment may take longer on a busy machine


@pytest.fixture(autouse=True)
def short_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """All workers are here at once, and a start need not wait long for others."""
    for module in (slots_module, attachment_module):
        monkeypatch.setattr(module, "LEARNING", 300)


@asynccontextmanager
async def crew(
    url: str, count: int = 2, *, capacity: int | None = 1, **options: Any
) -> AsyncIterator[list[RedisStorage]]:
    """So many workers that share the slots of /a."""
    scope = options.pop("scope", Scope.GLOBAL)
    endpoints = {"/a": SlotsConfig(capacity, 100, scope)}
    options = {"service": secrets.token_hex(6), **options}
    storages = [RedisStorage(url, endpoints, **options) for _ in range(count)]
    async with AsyncExitStack() as stack:
        for storage in storages:
            stack.push_async_callback(storage.close)
        await asyncio.gather(*(storage.open() for storage in storages))
        yield storages


async def granted(ticket: Ticket, within: float = WITHIN) -> None:
    async with asyncio.timeout(within):
        await ticket.granted


async def hold(slots: Slots, count: int = 1) -> None:
    for _ in range(count):
        if not slots.take():
            await granted(slots.join())


async def until(true: Callable[[], bool], within: float = WITHIN) -> None:
    async with asyncio.timeout(within):
        while not true():  # noqa: ASYNC110 - nothing tells of a change
            await asyncio.sleep(0.005)


def scripts_run(server: StoreServer) -> int:
    return int(server.cli("INFO", "commandstats")["cmdstat_evalsha"]["calls"])


# ------------------------------------------------------------------ all is well


def test_a_slot_that_one_worker_frees_goes_to_the_first_in_line(redis_server: StoreServer) -> None:
    async def main() -> None:
        async with crew(redis_server.url, 3) as storages:
            a, b, c = (storage.slots("/a") for storage in storages)
            await hold(a)
            first = b.join()
            await until(lambda: first.seq > 0)
            second = c.join()
            a.release(0.1)
            await granted(first)
            assert not second.granted.done()
            b.release(0.1)
            await granted(second)
            assert [slots.active for slots in (a, b, c)] == [0, 0, 1]

    asyncio.run(main())


def test_idle_slots_are_called_back_for_another_worker(redis_server: StoreServer) -> None:
    async def main() -> None:
        async with crew(redis_server.url) as storages:
            a, b = (storage.slots("/a") for storage in storages)
            await hold(a)
            a.release(0.001)
            assert (a.owned, a.active) == (1, 0)
            ticket = b.join()
            await granted(ticket, within=slots_module.LINGER / 2)
            assert (a.owned, b.owned) == (0, 1)

    asyncio.run(main())


def test_slots_that_are_owned_are_used_without_asking(redis_server: StoreServer) -> None:
    async def main() -> None:
        async with crew(redis_server.url, 1, capacity=4) as (storage,):
            slots = storage.slots("/a")
            await hold(slots)
            slots.release(0.001)
            before = scripts_run(redis_server)
            for turn in range(1000):
                assert slots.take()
                slots.release(0.0)
                if turn % 100 == 0:
                    await asyncio.sleep(0)
            assert scripts_run(redis_server) - before <= 1  # a sign of life may come between

    asyncio.run(main())


def test_idle_slots_go_back_by_themselves(redis_server: StoreServer) -> None:
    async def main() -> None:
        async with crew(redis_server.url, 1, capacity=4) as (storage,):
            slots = storage.slots("/a")
            await hold(slots, 4)
            for _ in range(4):
                slots.release(0.0)
            await until(lambda: slots.owned == 0, within=1.5)

    asyncio.run(main())


def test_every_worker_learns_of_the_others_and_of_their_end(redis_server: StoreServer) -> None:
    async def main() -> None:
        async with crew(redis_server.url, 3) as storages:
            await until(lambda: all(s.status().workers == 3 for s in storages), within=5)
            await hold(storages[2].slots("/a"))
            ticket = storages[0].slots("/a").join()
            await storages[2].close()
            await granted(ticket)

    asyncio.run(main())


def test_a_limit_for_each_worker_is_not_shared(redis_server: StoreServer) -> None:
    async def main() -> None:
        async with crew(redis_server.url, scope=Scope.WORKER) as (one, two):
            assert one.slots("/a").take()
            assert two.slots("/a").take()
            assert not two.slots("/a").take()

    asyncio.run(main())


def test_a_capacity_that_one_worker_sets_holds_for_all(redis_server: StoreServer) -> None:
    async def main() -> None:
        async with crew(redis_server.url, capacity=None) as (one, two):
            assert all(two.slots("/a").take() for _ in range(3))
            await one.set_capacity("/a", 4)
            await until(lambda: two.slots("/a").capacity == 4 and two.slots("/a").owned == 3)
            await hold(one.slots("/a"))
            ticket = one.slots("/a").join()
            await asyncio.sleep(0.1)
            assert not ticket.granted.done()
            await one.set_capacity("/a", None)
            await granted(ticket)
            await until(two.slots("/a").take)

    asyncio.run(main())


# ------------------------------------------------------------------ lost connections, lost data


def kill_connections(server: StoreServer) -> None:
    for kind in ("pubsub", "normal"):
        server.cli("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


def flush(server: StoreServer) -> None:
    server.cli("FLUSHALL")


def lose_scripts(server: StoreServer) -> None:
    server.cli("SCRIPT", "FLUSH")


def restart(server: StoreServer) -> None:
    server.restart(empty=False)


def restart_empty(server: StoreServer) -> None:
    server.restart(empty=True)


@pytest.mark.parametrize("fault", [kill_connections, flush, lose_scripts, restart, restart_empty])
def test_the_line_and_the_limit_outlive(
    own_server: StoreServer, fault: Callable[[StoreServer], None]
) -> None:
    async def main() -> None:
        async with crew(own_server.url, 3, capacity=2, timeout=2.0) as storages:
            a, b, c = (storage.slots("/a") for storage in storages)
            await hold(a, 2)
            line = []
            for slots in (b, c, b):
                line.append((slots, slots.join()))
                await until(lambda ticket=line[-1][1]: ticket.seq > 0)  # type: ignore[misc]
            await asyncio.to_thread(fault, own_server)
            await asyncio.sleep(0.9)  # a beat finds it out at the latest
            assert not any(ticket.granted.done() for _, ticket in line)
            a.release(0.1)
            for number, (slots, ticket) in enumerate(line):
                await granted(ticket, within=5)
                assert not any(later.granted.done() for _, later in line[number + 1 :])
                assert a.active + b.active + c.active == 2
                slots.release(0.1)
            assert all(storage.status().degraded_count == 0 for storage in storages)

    asyncio.run(main())


@pytest.mark.parametrize("fault", [kill_connections, flush, lose_scripts])
def test_under_load_a_fault_admits_nobody_beyond_the_capacity(
    own_server: StoreServer, fault: Callable[[StoreServer], None]
) -> None:
    inside: list[int] = [0, 0, 0]  # now, most, served

    async def client(slots: Slots, end: float) -> None:
        while time.monotonic() < end:
            await hold(slots)
            inside[0] += 1
            inside[1] = max(inside[:2])
            await asyncio.sleep(0.005)
            inside[0] -= 1
            inside[2] += 1
            slots.release(0.005)

    async def main() -> None:
        async with crew(own_server.url, 3, capacity=4, timeout=2.0) as storages:
            end = time.monotonic() + 2.2
            clients = [client(storages[n % 3].slots("/a"), end) for n in range(12)]
            load = asyncio.gather(*clients)
            for _ in range(3):
                await asyncio.sleep(0.4)
                await asyncio.to_thread(fault, own_server)
            await load

    asyncio.run(main())
    assert inside[1] == 4
    assert inside[2] > 200


# ------------------------------------------------------------------ the store is away


def test_a_frozen_store_is_replaced_by_shares_and_comes_back(own_server: StoreServer) -> None:
    async def main() -> None:
        async with crew(own_server.url, capacity=4) as storages:
            a, b = (storage.slots("/a") for storage in storages)
            await hold(a, 4)
            waiting = b.join()
            own_server.pause()
            await until(lambda: all(s.status().degraded for s in storages), within=1.0)
            for _ in range(4):
                a.release(0.05)
            await granted(waiting, within=1.0)
            await until(lambda: b.take(), within=1.0)
            assert (a.owned, b.owned) == (2, 2)
            assert not b.take()
            own_server.resume()
            await until(lambda: not any(s.status().degraded for s in storages))
            assert b.active == 2
            await hold(a, 2)
            assert [s.status().degraded_count for s in storages] == [1, 1]

    asyncio.run(main())


def test_no_request_waits_longer_than_the_timeout_for_a_frozen_store(
    own_server: StoreServer,
) -> None:
    async def main() -> None:
        async with crew(own_server.url, capacity=4) as storages:
            own_server.pause()
            since = time.monotonic()
            await granted(storages[0].slots("/a").join(), within=1.0)
            assert 0.2 < time.monotonic() - since < 0.6  # 0.25 s, and a second look

    asyncio.run(main())


def test_a_store_that_is_away_lets_all_in_when_asked_to(own_server: StoreServer) -> None:
    async def main() -> None:
        async with crew(own_server.url, 1, on_storage_error=OnStorageError.OPEN) as (storage,):
            slots = storage.slots("/a")
            await hold(slots)
            tickets = [slots.join() for _ in range(5)]
            own_server.pause()
            for ticket in tickets:
                await granted(ticket, within=1.0)
            assert slots.take()
            own_server.resume()
            await until(lambda: not storage.status().degraded)
            assert not slots.take()
            assert slots.active == 7

    asyncio.run(main())


def test_a_store_that_is_away_lets_nobody_in_when_asked_to(own_server: StoreServer) -> None:
    async def main() -> None:
        policy = OnStorageError.CLOSED
        async with crew(own_server.url, 1, capacity=2, on_storage_error=policy) as (storage,):
            slots = storage.slots("/a")
            await hold(slots, 2)
            waiting = slots.join()
            own_server.pause()
            with pytest.raises(Rejected, match="storage_unavailable"):
                await granted(waiting, within=1.0)
            slots.release(0.1)
            assert not slots.take()
            with pytest.raises(Rejected, match="storage_unavailable"):
                slots.join()
            own_server.resume()
            await until(lambda: not storage.status().degraded)
            await hold(slots)

    asyncio.run(main())


def test_idle_slots_are_not_used_either_when_the_store_is_away_and_nobody_is_let_in(
    own_server: StoreServer,
) -> None:
    async def main() -> None:
        policy = OnStorageError.CLOSED
        async with crew(own_server.url, 1, capacity=2, on_storage_error=policy) as (storage,):
            slots = storage.slots("/a")
            await hold(slots, 2)
            slots.release(0.1)
            own_server.kill()
            await until(lambda: storage.status().degraded)
            assert not slots.take()

    asyncio.run(main())


def test_a_capacity_set_while_the_store_is_away_holds_in_this_worker(
    own_server: StoreServer,
) -> None:
    async def main() -> None:
        own_server.kill()
        async with crew(own_server.url, 1, capacity=None) as (storage,):
            assert storage.slots("/a").take()  # nobody knows of a limit
            storage.slots("/a").release()
            with pytest.raises(StorageError, match="this worker only"):
                await storage.set_capacity("/a", 2)
            await hold(storage.slots("/a"), 2)
            assert not storage.slots("/a").take()

    asyncio.run(main())


def test_a_service_starts_without_its_store_and_finds_it_later(own_server: StoreServer) -> None:
    async def main() -> None:
        own_server.kill()
        async with crew(own_server.url, 1, capacity=2) as (storage,):
            assert storage.status().degraded
            with pytest.raises(StorageError):
                await storage.load("x")
            await hold(storage.slots("/a"), 2)
            own_server.start()
            await until(lambda: not storage.status().degraded)
            assert not storage.slots("/a").take()
            await storage.save("x", b"1")

    asyncio.run(main())


# ------------------------------------------------------------------ which server


def test_a_password_opens_the_store(make_server: MakeServer) -> None:
    async def main() -> None:
        server = make_server(password="p@ss:w/rd")
        async with crew(server.url, 1) as (storage,):
            assert not storage.status().degraded
            await hold(storage.slots("/a"))

    asyncio.run(main())


def test_a_wrong_password_ends_the_start_without_showing_it(make_server: MakeServer) -> None:
    async def main() -> None:
        server = make_server(password="right")
        with pytest.raises(StorageError, match="credentials") as refused:
            async with crew(server.url.replace("right", "wrongword"), 1):
                pass
        assert "wrongword" not in str(refused.value)

    asyncio.run(main())


def test_a_server_that_is_too_old_ends_the_start(
    redis_server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment_module, "OLDEST", (99, 0))

    async def main() -> None:
        with pytest.raises(StorageError, match="the server is version"):
            async with crew(redis_server.url, 1):
                pass

    asyncio.run(main())


def test_a_replica_counts_as_away_until_it_is_the_primary(own_server: StoreServer) -> None:
    async def main() -> None:
        own_server.cli("REPLICAOF", "127.0.0.1", 1)
        async with crew(own_server.url, 1) as (storage,):
            assert storage.status().degraded
            own_server.cli("REPLICAOF", "NO", "ONE")
            await until(lambda: not storage.status().degraded)

    asyncio.run(main())


def test_a_store_over_tls(tls_server: StoreServer) -> None:
    async def main() -> None:
        async with crew(tls_server.url) as (one, two):
            await hold(one.slots("/a"))
            ticket = two.slots("/a").join()
            one.slots("/a").release()
            await granted(ticket)

    asyncio.run(main())


def test_a_store_over_tcp(make_server: MakeServer) -> None:
    async def main() -> None:
        async with crew(make_server(tcp=True).url, 1) as (storage,):
            await hold(storage.slots("/a"))
            assert 0 < (storage.status().round_trip_ms or 0) < 250

    asyncio.run(main())


def test_sentinels_lead_to_the_new_primary(sentinel_group: SentinelGroup) -> None:
    async def main() -> None:
        async with crew(sentinel_group.url, capacity=2) as storages:
            a, b = (storage.slots("/a") for storage in storages)
            await hold(a, 2)
            waiting = b.join()
            await asyncio.to_thread(sentinel_group.fail_over)
            await until(lambda: not any(s.status().degraded for s in storages), within=10)
            a.release(0.1)
            await granted(waiting, within=5)
            assert a.active + b.active == 2

    asyncio.run(main())


def test_a_store_that_answers_but_refuses_to_attach_does_not_starve_the_workers(
    own_server: StoreServer,
) -> None:
    async def main() -> None:
        async with crew(own_server.url, 1, capacity=2) as (storage,):
            slots = storage.slots("/a")
            await hold(slots)
            slots.release(0.5)  # so long may others need to come down to their shares
            own_server.cli("acl", "setuser", "default", "-evalsha")
            kill_connections(own_server)
            await until(lambda: storage.status().degraded)
            await hold(slots, 2)
            own_server.cli("acl", "setuser", "default", "+evalsha")
            await until(lambda: not storage.status().degraded)

    asyncio.run(main())


def test_a_storage_without_endpoints_leaves_nothing_running(redis_server: StoreServer) -> None:
    async def main() -> None:
        storage = RedisStorage(redis_server.url, {})
        await storage.open()
        await storage.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
