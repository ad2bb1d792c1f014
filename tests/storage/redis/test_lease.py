"""The thread's steps, called one by one, on a real server and with a clock that stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic

import pytest
import redis

from fastapi_balancer.storage.redis import slots as slots_module
from fastapi_balancer.storage.redis.lease import HANG, LeaseKeeper
from fastapi_balancer.storage.redis.slots import SharedSlots
from tests.storage.redis.conftest import MakeStore
from tests.storage.workers import Worker

Keys = tuple[str, str, str]


class Host:
    """One worker with two endpoints, as the thread sees it."""

    def __init__(self, one: Worker, two: Worker) -> None:
        self.worker = one.name
        self.session = one.session
        self.tick = monotonic()
        self.suspicions: list[str] = []
        self._workers = (one, two)

    def shared(self) -> Iterable[tuple[Keys, SharedSlots]]:
        return [(worker.store.keys, worker.slots) for worker in self._workers]

    def next_session(self) -> int:
        self.session += 1
        return self.session

    @property
    def is_abandoned(self) -> bool:
        return False

    def suspect(self, reason: str) -> None:
        self.suspicions.append(reason)


class Case:
    """Four slots on each of two endpoints; the worker w owns what a test lets it take."""

    def __init__(self, make_store: MakeStore) -> None:
        self.one, self.two = make_store(capacity=4), make_store(capacity=4)
        self.workers = [Worker(store, "h-1-1-w") for store in (self.one, self.two)]
        self.client = redis.Redis(unix_socket_path=str(self.one.path))
        run_id = self.client.info("server")["run_id"]
        for worker in self.workers:
            self.one.wire.call("HSET", worker.store.keys[0], "srv", run_id)
            worker.store.run_id = run_id
            worker.attach()
        self.host = Host(*self.workers)
        self.keeper = LeaseKeeper(self.host, lambda: self.client, lease=10.0)

    def take(self, index: int, count: int) -> Worker:
        worker = self.workers[index]
        for _ in range(count):
            worker.request()
        worker.settle()
        return worker

    def hang(self) -> None:
        self.host.tick = monotonic() - 2 * HANG
        self.keeper._round()


@pytest.fixture
def case(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(slots_module, "monotonic", lambda: 1000.0)
    return Case(make_store)


def test_a_beat_renews_the_lease_of_each_endpoint_and_tells_the_peers(case: Case) -> None:
    case.one.attach("h-2-2-x")
    for store in (case.one, case.two):
        store.age("h-1-1-w", 5000)
    case.keeper._round()
    assert [worker.slots.peers for worker in case.workers][1] == ("h-1-1-w",)
    assert set(case.workers[0].slots.peers) == {"h-1-1-w", "h-2-2-x"}
    now = float(case.one.wire.call("TIME")[0])
    for store in (case.one, case.two):
        assert float(store.wire.call("ZSCORE", store.keys[2], "h-1-1-w")) > 1000 * (now + 8)


def test_a_worker_that_the_store_forgot_admits_nothing_until_it_attaches(case: Case) -> None:
    worker = case.take(0, 1)
    worker.finish()
    case.one.wipe()
    case.keeper._round()
    assert case.host.suspicions == ["the store does not know this worker any more"]
    assert not worker.slots.take()


def test_a_hung_loop_gives_back_what_is_idle_and_keeps_what_runs(case: Case) -> None:
    worker = case.take(0, 3)
    worker.finish()
    case.hang()
    assert (case.one.owned(worker.name), worker.slots.owned) == (2, 2)


def test_a_hung_loop_that_waits_is_taken_out_of_the_line(case: Case) -> None:
    case.one.attach("h-2-2-x", own=4)
    case.take(0, 1)
    assert case.one.line() == ["h-1-1-w:1"]
    case.hang()
    assert case.one.line() == []


def test_a_hung_loop_without_idle_slots_is_left_alone(case: Case) -> None:
    case.take(0, 1)
    session = case.host.session
    case.hang()
    assert case.host.session == session


def test_all_endpoints_of_a_hung_loop_keep_their_lease(case: Case) -> None:
    case.take(0, 1).finish()
    case.take(1, 2)
    case.hang()
    assert case.one.session("h-1-1-w") == case.two.session("h-1-1-w") == case.host.session
    case.keeper._beaten.clear()
    case.keeper._round()
    assert case.host.suspicions == []
    assert case.two.owned("h-1-1-w") == 2


def test_a_hung_loop_is_declared_again_when_the_store_did_not_hear_it(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.take(0, 1).finish()
    case.keeper._round()
    with monkeypatch.context() as patch:
        patch.setattr(case.keeper, "_evaluate", failing(redis.ConnectionError("cut")))
        with pytest.raises(redis.ConnectionError):
            case.hang()
    assert case.one.owned("h-1-1-w") == 1
    case.hang()
    assert case.one.owned("h-1-1-w") == 0


def test_a_hung_loop_on_an_empty_store_waits_for_its_peers(case: Case) -> None:
    case.one.attach("h-2-2-x", own=3)
    case.keeper._round()
    case.take(0, 1).finish()
    case.one.wipe()
    case.hang()
    assert case.one.undeclared() == {"h-2-2-x"}
    assert case.one.capacity() == 4


def test_a_reaped_sibling_gives_everything_back(case: Case) -> None:
    case.one.attach("h-2-2-x", own=3)
    case.keeper._round()
    case.keeper._reap("h-2-2-x")
    assert case.one.owners() == {"h-1-1-w": 0}


def failing(error: Exception) -> Callable[..., object]:
    def fail(*_: object) -> object:
        raise error

    return fail
