"""Each Lua step alone, on a real server."""

from __future__ import annotations

import pytest

from fastapi_balancer.storage.redis.scripts import SHA, SOURCES, record_key, slots_keys
from tests.storage.redis.conftest import MakeStore
from tests.storage.workers import Store


@pytest.fixture
def two(store: Store) -> Store:
    """Workers a and b are attached, and four slots are free."""
    store.attach("a")
    store.attach("b")
    return store


# ------------------------------------------------------------------ sync


def test_a_new_ticket_gets_a_free_slot_at_once(two: Store) -> None:
    assert two.sync("a", new=[1]) == [0, 1, 0, 0, 0, b"1"]
    assert (two.owned("a"), two.used()) == (1, 1)


def test_what_is_too_much_waits_in_line(two: Store) -> None:
    assert two.sync("a", new=[1, 2, 3, 4, 5, 6]) == [0, 6, 5, 1, 0, b"1", b"2", b"3", b"4"]
    assert two.line() == ["a:5", "a:6"]
    assert two.used() == 4


def test_a_returned_slot_goes_to_the_head_of_the_line(two: Store) -> None:
    two.sync("a", new=[1, 2, 3, 4, 5])
    listening = two.listen("a")
    two.sync("b", new=[1])
    assert two.sync("a", returned=1) == [6, 0, 6, 1, 0, b"5"]
    assert listening.take_pushes() == []  # its own grant came with the reply
    assert two.owners() == {"a": 4, "b": 0}


def test_a_slot_for_another_worker_is_pushed_to_it_and_counted_as_its_own(two: Store) -> None:
    listening = two.listen("b")
    two.sync("a", new=[1, 2, 3, 4])
    two.sync("b", new=[7, 8])
    two.sync("a", returned=1)
    channel, everybody = (name.encode() for name in two.channels("b", 1))
    assert listening.take_pushes() == [(everybody, b"R"), (channel, b"1 6 7")]
    assert two.owners() == {"a": 3, "b": 1}


def test_several_slots_for_one_worker_come_in_one_push(two: Store) -> None:
    listening = two.listen("b")
    two.sync("a", new=[1, 2, 3, 4])
    two.sync("b", new=[7, 8, 9])
    two.sync("a", returned=2)
    assert listening.take_pushes()[1][1] == b"1 7 7 8"
    two.sync("a", returned=1)
    assert listening.take_pushes()[0][1] == b"0 0 9"


def test_nobody_overtakes_the_line(two: Store) -> None:
    two.listen("b")
    two.sync("a", new=[1, 2, 3, 4])
    two.sync("b", new=[1])
    assert two.sync("a", returned=1, new=[5]) == [5, 1, 6, 1, 0]
    assert (two.line(), two.owners()) == (["a:5"], {"a": 3, "b": 1})


def test_a_slot_for_a_worker_that_nobody_hears_goes_to_the_next_in_line(two: Store) -> None:
    two.sync("a", new=[1, 2, 3, 4])
    two.sync("b", new=[1])
    two.sync("a", new=[5])
    assert two.sync("a", returned=1)[5:] == [b"5"]
    assert two.owners() == {"a": 4, "b": 0}


def test_the_recall_is_said_once_when_the_line_becomes_non_empty(two: Store) -> None:
    listening = two.listen("b")
    two.sync("a", new=[1, 2, 3, 4])
    assert listening.take_pushes() == []
    two.sync("a", new=[5])
    two.sync("a", new=[6])
    assert [text for _, text in listening.take_pushes()] == [b"R"]


def test_the_recall_is_said_again_after_the_line_was_empty(two: Store) -> None:
    two.sync("a", new=[1, 2, 3, 4, 5])
    two.sync("a", returned=1)
    listening = two.listen("b")
    two.sync("a", new=[6])
    assert [text for _, text in listening.take_pushes()] == [b"R"]


def test_a_cancelled_ticket_leaves_the_line(two: Store) -> None:
    two.sync("a", new=[1, 2, 3, 4, 5, 6])
    assert two.sync("a", gone=[5])[2:4] == [6, 1]
    assert two.line() == ["a:6"]


def test_a_ticket_that_is_cancelled_after_its_slot_changes_nothing(two: Store) -> None:
    two.sync("a", new=[1])
    two.sync("a", gone=[1])
    assert (two.owned("a"), two.used()) == (1, 1)


def test_a_full_line_takes_no_more(two: Store) -> None:
    assert two.sync("a", new=[1, 2, 3, 4, 5, 6, 7], queue_size=2)[:2] == [0, 6]
    assert two.line() == ["a:5", "a:6"]
    assert two.sync("b", new=[1], queue_size=2)[:2] == [6, 0]


def test_without_a_line_a_queue_size_of_nothing_still_grants(two: Store) -> None:
    assert two.sync("a", new=[1, 2, 3, 4, 5], queue_size=0)[1] == 4
    assert two.line() == []


def test_the_line_of_all_workers_counts_for_the_queue_size(two: Store) -> None:
    two.sync("a", new=[1, 2, 3, 4, 5])
    two.sync("b", new=[1])
    assert two.sync("a", new=[6], queue_size=2)[1] == 0


@pytest.mark.parametrize("session", [0, 2, 11])
def test_another_session_than_the_newest_is_told_to_attach(two: Store, session: int) -> None:
    before = two.state()
    assert two.sync("a", session, new=[1], returned=1) == [-1]
    assert two.state() == before


def test_a_worker_that_is_not_attached_is_told_to_attach(store: Store) -> None:
    assert store.sync("a", new=[1]) == [-1]


def test_as_many_tickets_as_a_call_takes_are_granted_and_replied(make_store: MakeStore) -> None:
    store = make_store(capacity=5000)
    store.attach("a")
    reply = store.sync("a", new=range(1500))
    assert (reply[:5], len(reply[5:])) == ([0, 1500, 0, 0, 0], 1500)


def test_slots_for_more_tickets_than_lua_can_return_are_all_granted(make_store: MakeStore) -> None:
    store = make_store(capacity=1)
    store.attach("a")
    for first in range(0, 9000, 1500):
        store.sync("a", new=range(first, first + 1500))
    store.wire.call("HSET", store.keys[0], "cap", 9000)
    granted = []
    while len(store.line()):
        granted += store.sync("a")[5:]
    assert (len(granted), store.owned("a")) == (8999, 9000)


# ------------------------------------------------------------------ attach


def test_the_first_worker_sets_the_capacity_and_begins_to_learn(make_store: MakeStore) -> None:
    store = make_store()
    capacity, left, head, length = store.attach("a", capacity=3, keep="set", learning=1000)
    assert (capacity, head, length) == (3, 0, 0)
    assert 900 < left <= 1000


def test_a_configured_capacity_goes_over_the_stored_one(store: Store) -> None:
    assert store.attach("a", capacity=7, keep="set")[0] == 7


def test_a_known_capacity_does_not_go_over_the_stored_one(store: Store) -> None:
    assert store.attach("a", capacity=7, keep="keep")[0] == 4


def test_a_limit_that_was_lifted_is_not_brought_back_by_who_missed_it(store: Store) -> None:
    store.attach("a")
    store.run("capacity", "", 1000)
    assert store.attach("a", 2, capacity=4, keep="keep")[0] == -1
    assert store.capacity() is None


def test_attaching_twice_changes_nothing(two: Store) -> None:
    two.sync("a", new=[1, 2, 3, 4, 5])
    two.listen("a", 2)
    first = two.attach("a", 2, own=4, highest=5, tickets=[(5, 5)])
    before = two.state(), two.line()
    assert two.attach("a", 2, own=4, highest=5, tickets=[(5, 5)]) == first
    assert (two.state(), two.line()) == before


def test_what_is_declared_replaces_what_was_believed(two: Store) -> None:
    two.sync("a", new=[1, 2, 3])
    two.attach("a", 2, own=1)
    assert (two.owned("a"), two.used()) == (1, 1)
    two.attach("a", 3, own=4)
    assert (two.owned("a"), two.used()) == (4, 4)


def test_slots_that_a_worker_no_longer_owns_go_to_the_line(two: Store) -> None:
    listening = two.listen("b")
    two.sync("a", new=[1, 2, 3, 4])
    two.sync("b", new=[9])
    two.attach("a", 2, own=3)
    assert b"0 0 9" in [text for _, text in listening.take_pushes()]
    assert two.owners() == {"a": 3, "b": 1}


def test_tickets_keep_their_place_over_a_new_session(two: Store) -> None:
    two.sync("a", new=[1, 2, 3, 4, 5])
    two.sync("b", new=[1])
    two.sync("a", new=[6])
    two.attach("a", 2, own=4, highest=7, tickets=[(5, 5), (7, 6)])
    assert two.line() == ["a:5", "b:1", "a:6"]


def test_tickets_that_are_not_declared_again_leave_the_line(two: Store) -> None:
    two.sync("a", new=[1, 2, 3, 4, 5])
    two.sync("b", new=[1])
    two.attach("a", 2, own=4)
    assert two.line() == ["b:1"]


def test_a_name_that_begins_like_another_keeps_its_tickets(two: Store) -> None:
    two.attach("a2")
    two.sync("b", new=[1, 2, 3, 4])
    two.sync("a2", new=[1])
    two.attach("a", 2)
    assert two.line() == ["a2:1"]


def test_a_session_that_is_older_is_refused(two: Store) -> None:
    two.attach("a", 5, own=1)
    assert two.attach("a", 4, own=3) == [-2]
    assert (two.owned("a"), two.session("a")) == (1, 5)


def test_own_tickets_that_get_a_slot_are_pushed_before_the_reply(two: Store) -> None:
    listening = two.listen("a", 2)
    two.attach("a", 2, own=3, highest=9, tickets=[(9, 4)])
    assert (two.channels("a", 2)[0].encode(), b"0 0 4") in listening.take_pushes()
    assert two.owned("a") == 4


def test_a_line_is_recalled_for_whoever_attaches_with_tickets(two: Store) -> None:
    listening = two.listen("b")
    two.sync("b", new=[1, 2, 3, 4])
    two.attach("a", 2, highest=9, tickets=[(9, 4)])
    assert [text for _, text in listening.take_pushes()] == [b"R"]


def test_thousands_of_tickets_are_declared_again(two: Store) -> None:
    two.sync("b", new=[1, 2, 3, 4])
    tickets = [(seq, seq) for seq in range(10, 6010)]
    for session in (2, 3):
        two.attach("a", session, highest=6010, tickets=tickets)
    assert len(two.line()) == 6000


def test_new_tickets_come_after_the_highest_that_any_worker_saw(two: Store) -> None:
    two.attach("a", 2, highest=500)
    assert two.sync("b", new=[1])[0] == 500


# ------------------------------------------------------------------ learning, after data was lost


@pytest.fixture
def lost(two: Store) -> Store:
    """The data is gone; a, which owned 2 slots and knows of b, has attached anew."""
    two.wipe()
    two.attach("a", 2, own=2, highest=40, capacity=4, peers=["a", "b"])
    return two


def test_another_server_forgets_what_the_old_one_believed(two: Store) -> None:
    two.sync("a", new=[1, 2, 3, 4, 5])
    two.attach("b", 2, own=1, run_id="run-2")
    assert two.owners() == {"b": 1}
    assert (two.used(), two.capacity(), two.line()) == (1, 4, [])


def test_the_capacity_comes_back_with_the_first_worker(lost: Store) -> None:
    assert lost.capacity() == 4


def test_the_capacity_comes_back_even_if_the_first_worker_does_not_know_it(two: Store) -> None:
    two.wipe()
    listening = two.listen("c")
    assert two.attach("c")[0] == -1
    assert two.attach("b", 2, capacity=4)[0] == 4
    assert b"C 4" in [text for _, text in listening.take_pushes()]


def test_a_lifted_limit_stays_lifted_on_another_server(two: Store) -> None:
    two.run("capacity", "", 1000)
    assert two.attach("b", 2, capacity=4, run_id="run-2")[0] == -1


def test_the_data_is_said_to_be_gone_to_all_workers(two: Store) -> None:
    listening = two.listen("b")
    two.wipe()
    two.attach("a", 2)
    assert b"A a" in [text for _, text in listening.take_pushes()]


def test_while_learning_nothing_is_granted_that_nobody_declared(lost: Store) -> None:
    reply = lost.sync("a", 2, new=[1])
    assert (reply[2:4], reply[5:]) == ([reply[0] + 1, 1], [])
    assert reply[4] > 0


def test_while_learning_declared_slots_circulate(lost: Store) -> None:
    lost.sync("a", 2, new=[1])
    assert lost.sync("a", 2, returned=1)[5:] == [b"1"]


def test_learning_ends_when_all_known_workers_have_declared(lost: Store) -> None:
    assert lost.learning()
    assert lost.attach("b", 2, own=1)[1] == 0
    assert not lost.learning()
    assert lost.sync("b", 2, new=[1])[5:] == [b"1"]


def test_learning_waits_for_a_worker_that_only_a_later_one_knows_of(two: Store) -> None:
    two.wipe()
    two.attach("a", 2, own=2, capacity=4, peers=["a", "b"])
    assert two.attach("b", 2, own=1, peers=["a", "b", "c"])[1] > 0
    assert two.undeclared() == {"c"}


def test_learning_ends_with_its_time(lost: Store) -> None:
    lost.sync("a", 2, new=[1, 2])
    lost.end_learning()
    assert lost.sync("a", 2)[4:] == [0, b"1", b"2"]
    assert not lost.learning()


def test_learning_ends_by_a_beat_when_nobody_syncs(lost: Store) -> None:
    listening = lost.listen("a", 2)
    lost.sync("a", 2, new=[1])
    lost.end_learning()
    lost.beat("a", 2)
    assert listening.take_pushes()[-1][1] == b"0 0 1"


def test_a_worker_that_knows_nobody_waits_for_the_whole_time(two: Store) -> None:
    two.wipe()
    assert two.attach("c", peers=None, capacity=4)[1] > 0
    two.attach("b", 2, peers=None)
    assert two.learning()


def test_a_newcomer_does_not_end_what_others_must_declare(lost: Store) -> None:
    assert lost.attach("c")[1] > 0
    assert lost.undeclared() == {"b"}


def test_tickets_of_before_come_before_new_ones(lost: Store) -> None:
    lost.sync("a", 2, new=[1])
    lost.attach("b", 2, own=2, highest=39, tickets=[(39, 9)])
    assert lost.line() == ["b:9", "a:1"]


def test_tickets_of_before_come_before_those_of_a_newcomer(two: Store) -> None:
    two.wipe()
    two.attach("c", capacity=4)
    two.sync("c", new=[1])
    two.attach("b", 2, own=4, highest=39, tickets=[(39, 9)])
    assert two.line() == ["b:9", "c:1"]


def test_what_is_declared_twice_circulates_once(lost: Store) -> None:
    lost.attach("a", 3, own=2)
    assert lost.state()["known"] == "2"


def test_a_worker_back_from_local_mode_waits_for_the_others(two: Store) -> None:
    two.sync("b", new=[1])
    assert two.attach("a", 2, own=2, was_away=True)[1] > 0
    assert two.undeclared() == {"b"}
    assert two.sync("b")[4] == 0  # it was never away, and says so with any step


def test_nobody_is_swept_while_learning(two: Store) -> None:
    """After a pause of the server all leases look old, and the first to be back must wait."""
    two.sync("b", new=[1, 2, 3, 4])
    two.age("b", 60_000)
    two.attach("a", 2, was_away=True)
    two.beat("a", 2)
    assert two.owned("b") == 4
    assert two.learning()


# ------------------------------------------------------------------ beat, reap, detach


def test_a_beat_tells_who_holds_a_lease(two: Store) -> None:
    taken, *workers = two.beat("a")
    assert (taken, set(workers)) == (0, {b"a", b"b"})


def test_a_beat_of_an_old_session_is_refused(two: Store) -> None:
    two.attach("a", 2)
    assert two.beat("a", 1) == [-1]


def test_a_beat_after_the_data_was_lost_is_refused(two: Store) -> None:
    two.wipe()
    assert two.beat("a") == [-1]


def test_a_lapsed_lease_gives_back_slots_and_tickets(two: Store) -> None:
    two.listen("b")  # its connection is still open: it is stopped, not dead
    two.sync("b", new=[1, 2, 3, 4, 5])
    two.age("b", 10_001)
    assert two.beat("a") == [4, b"a"]
    assert (two.owners(), two.used(), two.line()) == ({"a": 0}, 0, [])


@pytest.mark.parametrize(("silent_ms", "connected", "taken"), [
    (500, False, 0),  # a moment between two connections
    (1100, False, 2),
    (1100, True, 0),  # its thread is busy, but it lives
])  # fmt: skip
def test_neither_beat_nor_connection_for_a_grace_is_death(
    two: Store, silent_ms: int, connected: bool, taken: int
) -> None:
    if connected:
        two.listen("b")
    two.sync("b", new=[1, 2])
    two.age("b", silent_ms)
    assert two.beat("a")[0] == taken
    assert two.owned("b") == 2 - taken


def test_a_beat_derives_used_anew(two: Store) -> None:
    two.sync("a", new=[1, 2])
    two.wire.call("HSET", two.keys[0], "used", 77)
    two.beat("a")
    assert two.used() == 2


def test_slots_of_the_dead_go_to_who_waits(two: Store) -> None:
    listening = two.listen("a")
    two.sync("b", new=[1, 2, 3, 4])
    two.sync("a", new=[1])
    two.age("b", 20_000)
    two.beat("a")
    assert listening.take_pushes()[-1][1] == b"0 0 1"
    assert two.used() == 1


def test_tickets_of_the_dead_leave_a_line_in_which_nothing_moves(two: Store) -> None:
    two.sync("a", new=[1, 2, 3, 4])
    two.sync("b", new=[1])
    two.run("reap", "b")
    assert two.line() == []


@pytest.mark.parametrize("step", ["reap", "detach"])
def test_what_a_worker_held_and_waited_for_goes_at_once(two: Store, step: str) -> None:
    listening = two.listen("a")
    two.sync("b", new=[1, 2, 3, 4, 5])
    two.sync("a", new=[1])
    assert two.run(step, "b", *([1] if step == "detach" else [])) == 4
    assert listening.take_pushes()[-1][1] == b"0 0 1"
    assert (two.owners(), two.line(), two.leases()) == ({"a": 1}, [], {"a"})


def test_only_the_first_to_reap_takes_something_back(two: Store) -> None:
    two.sync("b", new=[1])
    assert [two.run("reap", "b"), two.run("reap", "b")] == [1, -1]
    assert two.used() == 0


def test_a_detach_of_an_old_session_does_nothing(two: Store) -> None:
    two.attach("b", 2, own=1)
    assert two.run("detach", "b", 1) == 0
    assert two.owned("b") == 1


def test_a_worker_that_was_taken_for_dead_comes_back_with_what_it_runs(two: Store) -> None:
    two.sync("b", new=[1, 2])
    two.run("reap", "b")
    assert two.sync("b") == [-1]
    two.attach("b", 2, own=2)
    assert (two.owned("b"), two.used()) == (2, 2)


def test_the_keys_of_a_service_that_is_gone_expire(two: Store) -> None:
    two.sync("a", new=[1, 2, 3, 4, 5])
    two.beat("a")
    assert all(600_000 < two.wire.call("TTL", key) <= 604_800 for key in two.keys)


# ------------------------------------------------------------------ capacity


def test_more_capacity_is_granted_at_once(two: Store) -> None:
    listening = two.listen("a")
    two.sync("a", new=[1, 2, 3, 4, 5, 6])
    two.run("capacity", 5, 1000)
    assert [text for _, text in listening.take_pushes()][1:] == [b"C 5", b"1 6 5"]
    assert (two.capacity(), two.used()) == (5, 5)


def test_less_capacity_takes_nothing_and_grants_nothing_until_it_fits(two: Store) -> None:
    two.sync("a", new=[1, 2, 3, 4, 5])
    assert two.run("capacity", 2, 1000) == 4
    assert two.sync("a", returned=2)[5:] == []
    assert two.sync("a", returned=1)[5:] == [b"5"]


def test_less_capacity_calls_back_what_is_idle(two: Store) -> None:
    two.sync("a", new=[1, 2, 3, 4])
    listening = two.listen("b")
    two.run("capacity", 2, 1000)
    assert [text for _, text in listening.take_pushes()] == [b"C 2", b"R"]


def test_free_slots_are_wanted_back_until_the_capacity_fits(two: Store) -> None:
    two.sync("a", new=[1, 2, 3, 4])
    two.run("capacity", 2, 1000)
    assert [bool(two.sync("a", returned=1)[3]) for _ in range(3)] == [True, False, False]


def test_a_limit_that_begins_waits_for_what_runs_without_one(make_store: MakeStore) -> None:
    store = make_store()
    store.attach("a")
    store.attach("b")
    store.end_learning()
    store.beat("a")
    store.run("capacity", 3, 60_000)
    assert store.undeclared() == {"a", "b"}
    store.attach("a", 2, own=9)
    assert store.attach("b", 2, own=1)[1] == 0
    assert (store.used(), store.sync("b", 2, new=[1])[5:]) == (10, [])


def test_a_beat_says_nothing_of_what_ran_without_a_limit(make_store: MakeStore) -> None:
    store = make_store()
    store.attach("a")
    store.end_learning()
    store.beat("a")
    store.run("capacity", 3, 60_000)
    store.beat("a")
    assert store.undeclared() == {"a"}


def test_a_lifted_limit_is_told_to_all(two: Store) -> None:
    listening = two.listen("a")
    two.run("capacity", "", 1000)
    assert listening.take_pushes()[0][1] == b"C "
    assert two.sync("b") == [-1]


# ------------------------------------------------------------------ records


@pytest.fixture
def names(store: Store) -> tuple[str, str, str]:
    """The keys of a lock, of its fence, and of a record."""
    service = store.prefix.split("{")[1].split(":")[0]
    lock, fence, record = (record_key(service, name) for name in ("lock:x", "fence:x", "r"))
    return lock, fence, record


def run(store: Store, script: str, keys: tuple[str, ...], *arguments: str | int) -> int:
    return int(store.wire.call("EVALSHA", SHA[script], len(keys), *keys, *arguments))


def test_a_lock_is_given_once_with_ever_larger_numbers(
    store: Store, names: tuple[str, str, str]
) -> None:
    first = run(store, "lock", names[:2], 10_000)
    assert run(store, "lock", names[:2], 10_000) == 0
    assert run(store, "unlock", names[:1], first) == 1
    second = run(store, "lock", names[:2], 10_000)
    assert 0 < first < second


def test_a_number_of_before_a_loss_of_data_is_never_given_again(
    store: Store, names: tuple[str, str, str]
) -> None:
    first = run(store, "lock", names[:2], 10_000)
    store.wire.call("DEL", *names)
    second = run(store, "lock", names[:2], 10_000)
    assert first < second
    assert run(store, "save_fenced", (names[2], names[0]), first, "stale") == 0


def test_a_lock_ends_with_its_time(store: Store, names: tuple[str, str, str]) -> None:
    number = run(store, "lock", names[:2], 10_000)
    assert run(store, "renew", names[:1], number, 20_000) == 1
    assert 10_000 < store.wire.call("PTTL", names[0]) <= 20_000
    store.wire.call("PEXPIRE", names[0], 0)
    assert run(store, "renew", names[:1], number, 20_000) == 0


@pytest.mark.parametrize(("script", "more"), [("renew", (9_000,)), ("unlock", ())])
def test_a_lock_of_another_number_is_not_touched(
    store: Store, names: tuple[str, str, str], script: str, more: tuple[int, ...]
) -> None:
    run(store, "lock", names[:2], 10_000)
    assert run(store, script, names[:1], 1, *more) == 0
    assert store.wire.call("PTTL", names[0]) > 9_000


def test_a_fenced_record_is_written_by_the_holder_only(
    store: Store, names: tuple[str, str, str]
) -> None:
    lock, _, record = names
    number = run(store, "lock", names[:2], 10_000)
    assert run(store, "save_fenced", (record, lock), number, "new") == 1
    assert run(store, "save_fenced", (record, lock), 1, "old") == 0
    assert store.wire.call("GET", record) == b"new"


def test_reports_older_than_a_minute_are_forgotten(store: Store) -> None:
    keys = (store.prefix + "reports", store.prefix + "times")
    assert run(store, "publish", keys, "a", "1") == 1
    assert run(store, "publish", keys, "b", "2") == 2
    store.wire.call("ZINCRBY", keys[1], -61_000, "a")
    assert run(store, "publish", keys, "b", "3") == 1
    assert store.wire.call("HGETALL", keys[0]) == {b"b": b"3"}
    store.wire.call("DEL", *keys)


# ------------------------------------------------------------------ the texts


def test_all_keys_of_an_endpoint_share_one_hash_slot(store: Store) -> None:
    keys = slots_keys("shop", "global", "/items/{id}")
    assert keys[0] == "fb1:{shop:global:/items/{id}}:m"
    tags = {key[key.index("{") : key.index("}")] for key in keys}
    assert len(tags) == 1


@pytest.mark.parametrize("name", SOURCES)
def test_a_step_says_what_it_takes_and_returns(name: str) -> None:
    text = SOURCES[name]
    assert text.startswith("-- ")
    assert all(word in text for word in ("-- KEYS:", "-- ARGV:", "-- Returns"))
