"""The shared slots under every order of requests, messages, losses and deaths: real scripts on a
real server, the worker's real side, and a machine that decides what happens next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fastapi_balancer.errors import Rejected
from fastapi_balancer.storage.base import Ticket
from fastapi_balancer.storage.memory import MemorySlots
from fastapi_balancer.storage.redis import slots as slots_module
from tests.servers import StoreServer
from tests.storage.redis.conftest import MakeStore
from tests.storage.workers import LEASE, Clock, Store, Worker

LONG = os.environ.get("BALANCER_HYPOTHESIS") == "long"
PROFILE = settings(
    max_examples=1000 if LONG else 100,
    stateful_step_count=80 if LONG else 40,
    deadline=None,
    database=None,
    derandomize=not LONG,
    suppress_health_check=list(HealthCheck),
)

WORKERS = 3
ANY_WORKER = st.integers(0, WORKERS - 1)


class Clocks:
    """The monotonic clock: that of the worker whose turn it is."""

    def __init__(self) -> None:
        self.current = Clock()

    def __call__(self) -> float:
        return self.current.now


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr(slots_module, "monotonic", clocks)
    return clocks


class SlotsMachine(RuleBasedStateMachine):
    """Workers that take, wait and give back, while everything that can go wrong does.

    A worker's *claim* is what it may be using or the store believes it owns. The claims exceed the
    capacity only by what a named fault allows (`allowance`): requests that run on while the store
    has forgotten them, a capacity that was lowered, a share of the capacity in local mode.
    """

    path: Path
    clocks: Clocks

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(self.path)
        self.capacity = 0
        self.allowance = 0
        self.workers: list[Worker] = []
        self.dead: list[str] = []
        self.born = 0

    @initialize(capacity=st.integers(1, 4))
    def start(self, capacity: int) -> None:
        self.capacity = capacity
        self.workers = [self._new_worker(capacity) for _ in range(WORKERS)]
        self._all_attach()

    def _new_worker(self, capacity: int | None) -> Worker:
        self.born += 1
        return Worker(self.store, f"w{self.born}", capacity=capacity)

    def _turn(self, index: int) -> Worker:
        worker = self.workers[index]
        self.clocks.current = worker.clock
        return worker

    # ---------------------------------------------------------------- requests

    @rule(index=ANY_WORKER)
    def request(self, index: int) -> None:
        worker = self._turn(index)
        if not worker.hung and worker.slots._seen_store:  # a service starts when it has attached
            self.allowance += worker.slots.capacity is None  # the data is gone, the limit with it
            worker.request()

    @rule(index=ANY_WORKER)
    def request_and_send(self, index: int) -> None:
        self.request(index)
        self._turn(index).send()

    @rule(index=ANY_WORKER)
    def finish(self, index: int) -> None:
        worker = self._turn(index)
        if worker.running and not worker.hung:
            worker.finish()

    @rule(index=ANY_WORKER, which=st.integers(0, 9))
    def give_up(self, index: int, which: int) -> None:
        worker = self._turn(index)
        if worker.waiting and not worker.hung:
            worker.give_up(worker.waiting[which % len(worker.waiting)])

    @rule(index=ANY_WORKER, which=st.integers(0, 9))
    def cancel(self, index: int, which: int) -> None:
        worker = self._turn(index)
        if worker.waiting and not worker.hung:
            worker.cancel(worker.waiting[which % len(worker.waiting)])

    @rule(index=ANY_WORKER)
    def leave_at_last(self, index: int) -> None:
        worker = self._turn(index)
        if not worker.hung:
            worker.leave_at_last()

    # ---------------------------------------------------------------- messages

    @rule(index=ANY_WORKER)
    def send(self, index: int) -> None:
        self._turn(index).send()

    @rule(index=ANY_WORKER)
    def execute(self, index: int) -> None:
        self._turn(index).execute()

    @rule(index=ANY_WORKER)
    def deliver(self, index: int) -> None:
        worker = self._turn(index)
        worker.hear()
        worker.deliver()

    @rule(index=ANY_WORKER)
    def settle_one(self, index: int) -> None:
        self._turn(index).settle()

    @rule()
    def settle_all(self) -> None:
        self._settle()

    @rule(index=ANY_WORKER, seconds=st.sampled_from([0.001, 0.25, 1.1]))
    def pass_time(self, index: int, seconds: float) -> None:
        worker = self._turn(index)
        if not worker.hung:
            worker.clock.advance(seconds)

    # ---------------------------------------------------------------- faults

    @rule(index=ANY_WORKER)
    def cut(self, index: int) -> None:
        """What was sent has not arrived, what was said is lost."""
        worker = self._turn(index)
        if not worker.hung:
            worker.cut()

    @rule(index=ANY_WORKER)
    def cut_after_execution(self, index: int) -> None:
        worker = self._turn(index)
        if not worker.hung:
            while worker.execute():
                pass
            worker.cut()

    @rule(index=ANY_WORKER)
    def begin_attach(self, index: int) -> None:
        worker = self._turn(index)
        if not worker.hung and not worker.slots.is_attached:
            worker.begin_attach()

    @rule(index=ANY_WORKER)
    def attach(self, index: int) -> None:
        worker = self._turn(index)
        if not worker.hung:
            worker.attach()

    @rule(index=ANY_WORKER)
    def beat(self, index: int) -> None:
        self._turn(index).beat()

    @rule(index=ANY_WORKER)
    def hang(self, index: int) -> None:
        self._turn(index).hang()

    @rule(index=ANY_WORKER)
    def wake_up(self, index: int) -> None:
        self._turn(index).wake_up()

    @rule(index=ANY_WORKER)
    def stop_beyond_the_lease(self, index: int) -> None:
        """SIGSTOP: the lease lapses in the store and on the worker's clock."""
        worker = self._turn(index)
        worker.clock.stall(LEASE)
        self.store.age(worker.name, round(LEASE * 1000) + 1)
        self.allowance += worker.running

    @rule(index=ANY_WORKER)
    def kill(self, index: int) -> None:
        worker = self._turn(index)
        worker.cut()
        self.dead.append(worker.name)
        self.workers[index] = self._new_worker(None)

    @precondition(lambda self: self.dead)
    @rule()
    def reap(self) -> None:
        self.store.run("reap", self.dead.pop())

    @precondition(lambda self: self.dead)
    @rule()
    def a_dead_workers_lease_lapses(self) -> None:
        self.store.age(self.dead.pop(), round(LEASE * 1000) + 1)

    @rule(capacity=st.integers(1, 4))
    def set_capacity(self, capacity: int) -> None:
        self.store.run("capacity", capacity, 60_000)
        self.allowance += max(0, self.capacity - capacity)
        self.capacity = capacity

    @rule()
    def lose_the_data(self) -> None:
        """But for the moment in which a worker has yet to hear of a new capacity (see below)."""
        if any(worker.slots.capacity not in (None, self.capacity) for worker in self.workers):
            return
        self.store.wipe()
        self.dead.clear()

    @rule()
    def end_learning(self) -> None:
        """Who has not declared until now is not waited for any longer."""
        if self.store.learning():
            undeclared = (worker for worker in self.workers if not self._is_known(worker))
            self.allowance += sum(self._usable(worker) for worker in undeclared)
            self.store.end_learning()

    @rule()
    def the_store_goes_away(self) -> None:
        for worker in self.workers:
            self.clocks.current = worker.clock
            if not worker.hung:
                worker.cut()
                worker.slots.go_away(WORKERS)
                claim = max(self._usable(worker), self.store.owned(worker.name))
                self.allowance += max(0, worker.slots._share - claim)

    @rule()
    def recover(self) -> None:
        """Every fault is over, and what ran too much has ended: nothing is allowed any more."""
        self._all_attach()
        for index, worker in enumerate(self.workers):
            while self._excess() > 0 and self._turn(index).running:
                worker.finish()
                self._settle()
        assert self._excess() <= 0 or self.dead
        self.allowance = max(0, self._excess())

    # ---------------------------------------------------------------- what holds

    def _usable(self, worker: Worker) -> int:
        slots = worker.slots
        if slots.suspended or worker.clock.now >= slots._lease_until:
            return slots.active
        return slots.owned

    def _is_known(self, worker: Worker) -> bool:
        return self.store.session(worker.name) == worker.session

    @invariant()
    def nothing_is_admitted_beyond_the_capacity(self) -> None:
        assert self._excess() <= self.allowance, (self.store.state(), self.capacity)

    def _excess(self) -> int:
        owners = self.store.owners()
        claims = {w.name: max(self._usable(w), owners.get(w.name, 0)) for w in self.workers}
        return sum({**owners, **claims}.values()) - self.capacity

    @invariant()
    def used_is_the_sum_of_what_workers_own(self) -> None:
        assert self.store.used() == sum(self.store.owners().values())

    @invariant()
    def no_worker_uses_more_than_it_owns(self) -> None:
        for worker in self.workers:
            assert 0 <= worker.slots.active <= worker.slots.owned
            assert worker.running >= 0

    @invariant()
    def store_and_worker_agree_on_what_is_owned_but_for_what_is_on_its_way(self) -> None:
        for worker in self.workers:
            limited = worker.slots.is_attached and worker.slots.capacity is not None
            if limited and not worker.hung and self._agrees(worker):
                coming, going = self._on_its_way(worker)
                owned = worker.slots.owned + worker.slots._returned + coming + going
                assert self.store.owned(worker.name) == owned, worker.name

    def _agrees(self, worker: Worker) -> bool:
        return self._is_known(worker) and worker.session == worker.link_session

    def _on_its_way(self, worker: Worker) -> tuple[int, int]:
        worker.hear()
        coming = going = 0
        for kind, _, message in worker.inbox:
            if kind == "granted":
                coming += len(message.split()) - 2
            elif kind == "sync":
                coming += len(message) - 5
        for kind, _, arguments in worker.outbox:
            going += int(arguments[2]) if kind == "sync" else 0
        return coming, going

    # ---------------------------------------------------------------- the end

    def _settle(self) -> None:
        while sum(self._turn(index).settle() for index in range(len(self.workers))):
            pass

    def _all_attach(self) -> None:
        for _ in range(4):  # a beat may find the data gone, and one who attaches tells the others
            for index, worker in enumerate(self.workers):
                self._turn(index).wake_up()
                worker.leave_at_last()
                worker.beat()
                if not worker.slots.is_attached:
                    worker.attach()
            self._settle()
            if self.store.capacity() is None:  # all who knew it are gone: it is measured again
                self.store.run("capacity", self.capacity, 60_000)
        self.store.end_learning()
        for index in range(len(self.workers)):
            self._turn(index).beat()
        self._settle()

    def _pass_time(self, seconds: float) -> None:
        for index in range(len(self.workers)):
            self._turn(index).clock.advance(seconds)
        self._settle()

    def teardown(self) -> None:
        """Faults end: everybody who waits gets a slot, and every slot comes back."""
        try:
            for name in self.dead:
                self.store.run("reap", name)
            self._serve_all()
            for _ in range(4):
                self._pass_time(0.3)
            assert self.store.owners() == {worker.name: 0 for worker in self.workers}
            assert (self.store.used(), self.store.line()) == (0, [])
        finally:
            for worker in self.workers:
                worker.cut()
            self.store.close()

    def _serve_all(self) -> None:
        for _ in range(200):
            self._all_attach()
            if not any(worker.waiting or worker.running for worker in self.workers):
                return
            for index, worker in enumerate(self.workers):
                while self._turn(index).running:
                    worker.finish()
        raise AssertionError("somebody waits for ever")


def test_slots_are_neither_lost_nor_given_twice(redis_server: StoreServer, clocks: Clocks) -> None:
    machine = type("Slots", (SlotsMachine,), {"path": redis_server.socket, "clocks": clocks})
    run_state_machine_as_test(machine, settings=PROFILE)


# ------------------------------------------------------------------ the same as in memory

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["request", "request", "finish", "give_up"]),
        ANY_WORKER,
        st.integers(0, 9),
    ),
    max_size=200 if LONG else 60,
)


class Twin:
    """The same requests to one `MemorySlots` and to workers whose messages are never late."""

    def __init__(self, store: Store, clocks: Clocks, capacity: int, queue_size: int) -> None:
        self.clocks = clocks
        self.alone = Worker(store, "alone")  # for its loop
        self.memory = MemorySlots(capacity=capacity, queue_size=queue_size)
        self.workers = [
            Worker(store, name, capacity=capacity, queue_size=queue_size) for name in "abc"
        ]
        self.requests: list[tuple[Worker, Ticket | None, Ticket | None]] = []
        for worker in self.workers:
            self._turn(worker).attach()
        store.end_learning()
        self.settle()

    def _turn(self, worker: Worker) -> Worker:
        self.clocks.current = worker.clock
        return worker

    def settle(self) -> None:
        while sum(self._turn(worker).settle() for worker in self.workers):
            pass

    def request(self, index: int, _: int) -> None:
        worker = self._turn(self.workers[index])
        try:
            shared = worker.request()
        except Rejected:
            shared = REFUSED
        with self.alone.clock.running():
            try:
                local = None if self.memory.take() else self.memory.join()
            except Rejected:
                local = REFUSED
        self.requests.append((worker, shared, local))

    def finish(self, _: int, which: int) -> None:
        running = [r for r in self.requests if state(r[1]) == state(r[2]) == "running"]
        if running:
            request = running[which % len(running)]
            self.requests.remove(request)
            self._turn(request[0]).finish()
            self.memory.release()

    def give_up(self, _: int, which: int) -> None:
        waiting = [r for r in self.requests if state(r[1]) == state(r[2]) == "waiting"]
        if waiting:
            worker, shared, local = waiting[which % len(waiting)]
            self.requests.remove((worker, shared, local))
            assert shared is not None
            assert local is not None
            self._turn(worker).give_up(shared)
            self.memory.leave(local)

    def close(self) -> None:
        for worker in self.workers:
            worker.cut()


def refused() -> Ticket:
    ticket = Ticket(0, Clock().create_future())
    ticket.granted.set_exception(Rejected("queue_full", 1.0))
    ticket.granted.exception()
    return ticket


REFUSED = refused()


def state(ticket: Ticket | None) -> str:
    if ticket is None:
        return "running"
    if not ticket.granted.done():
        return "waiting"
    return "running" if ticket.granted.exception() is None else "refused"


def test_workers_whose_messages_are_prompt_serve_in_the_same_order_as_one_process(
    redis_server: StoreServer, clocks: Clocks
) -> None:
    @PROFILE
    @given(capacity=st.integers(1, 4), queue_size=st.integers(0, 4), steps=STEPS)
    def run(capacity: int, queue_size: int, steps: list[tuple[str, int, int]]) -> None:
        store = Store(redis_server.socket)
        twin = Twin(store, clocks, capacity, queue_size)
        for name, worker, which in steps:
            getattr(twin, name)(worker, which)
            twin.settle()
            shared = [state(request[1]) for request in twin.requests]
            assert shared == [state(request[2]) for request in twin.requests]
        twin.close()
        store.close()

    run()


# ------------------------------------------------------------------ moments that need a name


@pytest.fixture
def pair(make_store: MakeStore, clocks: Clocks) -> tuple[Worker, Worker]:
    """Two workers with one clock, attached to a store with four slots."""
    store = make_store(capacity=4)
    workers = Worker(store, "a"), Worker(store, "b")
    for worker in workers:
        worker.clock = clocks.current
        worker.slots._loop = clocks.current  # type: ignore[assignment]
        worker.attach()
    return workers


def take(worker: Worker, count: int) -> None:
    for _ in range(count):
        worker.request()
    worker.settle()


def test_slots_taken_without_a_limit_while_they_were_declared_are_declared_again(
    pair: tuple[Worker, Worker],
) -> None:
    worker, _ = pair
    worker.store.run("capacity", "", 1000)
    worker.settle()
    worker.attach()
    take(worker, 2)
    worker.store.run("capacity", 4, 60_000)
    worker.hear()
    worker.deliver()
    worker.request()
    worker.settle()
    assert len(worker.resets) == 1
    worker.attach()
    assert (worker.store.owned("a"), worker.slots.owned) == (3, 3)


def test_a_new_worker_is_known_before_the_next_beat(pair: tuple[Worker, Worker]) -> None:
    worker, _ = pair
    worker.beat()
    assert set(worker.slots.peers) == {"a", "b"}
    Worker(worker.store, "c").attach()
    worker.settle()
    assert set(worker.slots.peers) == {"a", "b", "c"}


def test_a_grant_that_comes_after_the_lease_is_not_used(
    pair: tuple[Worker, Worker], clocks: Clocks
) -> None:
    worker, other = pair
    take(other, 4)
    ticket = worker.request()
    worker.settle()
    other.finish()
    other.settle()
    clocks.current.stall(LEASE)
    worker.settle()
    assert ticket is not None
    assert not ticket.granted.done()
    assert worker.resets == ["slots came after the lease had lapsed"]


def test_a_freed_slot_is_handed_over_only_at_the_head_of_the_line(
    pair: tuple[Worker, Worker],
) -> None:
    worker, other = pair
    take(worker, 4)
    other.request()
    other.settle()
    worker.request()
    worker.settle()
    worker.finish()
    assert len(worker.waiting) == 1
    worker.settle()
    other.settle()
    assert (len(worker.waiting), len(other.waiting)) == (1, 0)
    worker.finish()
    assert worker.waiting == []
    assert worker.outbox == worker.inbox  # both are empty: nothing had to be asked


def test_idle_slots_are_kept_for_a_while_and_then_given_back(
    pair: tuple[Worker, Worker], clocks: Clocks
) -> None:
    worker, _ = pair
    take(worker, 3)
    for _ in range(3):
        worker.finish()
    clocks.current.advance(slots_module.LINGER * 0.9)
    assert (worker.send(), worker.slots.owned) == (False, 3)
    clocks.current.advance(slots_module.LINGER * 1.2)
    worker.settle()
    assert (worker.slots.owned, worker.store.used()) == (0, 0)


def test_a_worker_alone_grows_to_its_share_once_others_must_have_shrunk(
    pair: tuple[Worker, Worker], clocks: Clocks
) -> None:
    worker, _ = pair
    take(worker, 1)
    worker.finish(held=0.5)
    worker.cut()
    worker.slots.go_away(2)
    assert worker.slots.owned == 1
    clocks.current.advance(0.6)
    assert worker.slots.owned == 2


@pytest.mark.xfail(reason="the first worker that attaches says what the capacity is, stale or not")
def test_a_capacity_that_one_worker_missed_outlives_the_data(pair: tuple[Worker, Worker]) -> None:
    stale, knowing = pair
    stale.cut()
    knowing.store.run("capacity", 1, 60_000)
    knowing.settle()
    knowing.store.wipe()
    stale.attach()
    knowing.attach()
    assert knowing.store.capacity() == 1
