from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Coroutine
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from starlette.types import ASGIApp

from fastapi_balancer.errors import StorageError
from fastapi_balancer.models import EndpointProbeConfig, ProbeConfig
from fastapi_balancer.prober import Prober, ProbeResult
from fastapi_balancer.prober.prober import LOCK, LOCK_TTL
from fastapi_balancer.testing import run_virtual
from tests.prober.apps import Recorder, Watched, blocking, constant, pool
from tests.prober.stores import FakeStorage, Shared
from tests.prober.test_result import RESULT

SETTINGS = EndpointProbeConfig()
KEY = "probe:/x"


def prober_for(app: ASGIApp, storage: FakeStorage, **options: Any) -> Prober:
    budget = ProbeConfig(max_seconds=options.pop("max_seconds", 60))
    return Prober(
        app, storage, probe=budget, error_threshold=0.05, latency_threshold_ms=150, **options
    )


def capacity_of(
    prober: Prober, *, force: bool = False, start_id: str = "s1"
) -> Coroutine[Any, Any, ProbeResult | None]:
    return prober.capacity_of("/x", SETTINGS, force=force, start_id=start_id)


def workers(shared: Shared, count: int, slots: int = 3) -> list[tuple[Prober, Watched]]:
    """Workers of one service, each with its own app."""
    apps = [Watched(pool(slots, 0.1)) for _ in range(count)]
    return [
        (prober_for(app, FakeStorage(shared, f"w{n}")), app) for n, app in enumerate(apps, start=1)
    ]


def stored(start_id: str, capacity: int = 12) -> Shared:
    result = replace(RESULT, start_id=start_id, capacity=capacity)
    return Shared({KEY: result.to_json()})


def test_a_probe_gives_the_app_its_lifespan_state_and_root_path() -> None:
    app = Recorder()
    prober = prober_for(app, FakeStorage(), state={"model": 1}, root_path="/api")
    run_virtual(prober.probe("/x", SETTINGS))
    assert app.scopes[0]["state"] == {"model": 1, "balancer_probe": True}
    assert app.scopes[0]["path"] == "/api/x"


def test_a_new_result_is_saved_and_the_lock_given_back() -> None:
    storage = FakeStorage()
    result = run_virtual(capacity_of(prober_for(pool(3, 0.1), storage)))
    assert result is not None
    assert (result.capacity, result.worker, result.start_id) == (3, "w1", "s1")
    assert ProbeResult.from_json(storage.shared.records[KEY]) == result
    assert storage.shared.locks == {}


def test_a_stored_result_is_used_again_without_a_request() -> None:
    app = Watched(constant(0.1))
    result = run_virtual(capacity_of(prober_for(app, FakeStorage(stored("earlier")))))
    assert result is not None
    assert (result.capacity, result.start_id) == (12, "earlier")
    assert app.entries == []


def test_a_result_for_other_thresholds_is_used_with_a_hint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        run_virtual(capacity_of(prober_for(constant(0.1), FakeStorage(stored("earlier")))))
    assert "for other thresholds; `force_reprobe: true` measures anew" in caplog.text


def test_force_measures_once_per_start_however_many_workers_there_are() -> None:
    shared = stored("earlier")
    everyone = workers(shared, 3)

    async def main() -> list[ProbeResult | None]:
        started = [capacity_of(prober, force=True) for prober, _ in everyone]
        return list(await asyncio.gather(*started))

    results = run_virtual(main())
    assert [result and result.capacity for result in results] == [3, 3, 3]
    assert sum(bool(app.entries) for _, app in everyone) == 1


def test_a_respawned_worker_does_not_measure_again_although_forced() -> None:
    ((prober, app),) = workers(stored("s1"), 1)
    result = run_virtual(capacity_of(prober, force=True, start_id="s1"))
    assert result is not None
    assert result.capacity == 12
    assert app.entries == []


def test_the_other_workers_wait_for_the_result_of_the_first() -> None:
    everyone = workers(Shared(), 4)

    async def main() -> list[ProbeResult | None]:
        return list(await asyncio.gather(*[capacity_of(prober) for prober, _ in everyone]))

    results = run_virtual(main())
    assert results[0] is not None
    assert results == [results[0]] * 4
    assert [bool(app.entries) for _, app in everyone] == [True, False, False, False]


def test_another_worker_takes_over_when_the_first_dies() -> None:
    async def main() -> tuple[ProbeResult | None, float]:
        shared = Shared()
        ((prober, _),) = workers(shared, 1)
        await FakeStorage(shared, "dead").lock(LOCK, LOCK_TTL)
        result = await capacity_of(prober)
        return result, asyncio.get_running_loop().time()

    result, now = run_virtual(main())
    assert result is not None
    assert result.worker == "w1"
    assert LOCK_TTL < now < LOCK_TTL + 30


def test_a_result_that_is_saved_just_before_the_lock_is_ours_is_believed() -> None:
    class LateStorage(FakeStorage):
        async def lock(self, name: str, ttl: float) -> int | None:
            self.shared.records[KEY] = RESULT.to_json()
            return await super().lock(name, ttl)

    app = Watched(constant(0.1))
    storage = LateStorage()
    assert run_virtual(capacity_of(prober_for(app, storage))) == RESULT
    assert app.entries == []
    assert storage.shared.locks == {}


def test_the_lock_is_renewed_while_the_probe_runs() -> None:
    storage = FakeStorage()
    prober = prober_for(constant(0.14), storage)
    run_virtual(capacity_of(prober))
    assert storage.renewals[:3] == [5, 10, 15]


def test_the_lock_is_renewed_in_time_although_the_handler_blocks_the_loop() -> None:
    storage = FakeStorage()
    prober = Prober(
        blocking(0.5), storage, probe=ProbeConfig(), error_threshold=0, latency_threshold_ms=9000
    )
    result = run_virtual(capacity_of(prober))
    assert result is not None
    assert result.capacity is not None
    assert result.capacity > 4
    gaps = [later - earlier for earlier, later in pairwise([0.0, *storage.renewals])]
    assert max(gaps) < LOCK_TTL / 2


def test_a_lost_lock_aborts_the_probe_and_the_new_holder_is_believed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared = Shared()
    app = Watched(constant(0.14))
    seen: list[int] = []

    async def main() -> ProbeResult | None:
        ours = asyncio.create_task(capacity_of(prober_for(app, FakeStorage(shared))))
        await asyncio.sleep(4)
        shared.locks[LOCK] = (99, 20.0)  # as after a pause longer than the lock lives
        await asyncio.sleep(2)
        seen.extend([app.now, len(app.entries)])
        shared.records[KEY] = replace(RESULT, capacity=7).to_json()
        return await ours

    result = run_virtual(main())
    assert result is not None
    assert result.capacity == 7
    assert seen == [0, len(app.entries)]
    assert "the lock was lost" in caplog.text
    assert shared.locks == {LOCK: (99, 20.0)}


def test_a_result_that_comes_after_the_lock_was_lost_is_not_saved(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared = Shared()

    async def main() -> None:
        ours = asyncio.create_task(capacity_of(prober_for(pool(1, 0.1), FakeStorage(shared))))
        await asyncio.sleep(1)
        shared.locks[LOCK] = (99, 1000.0)
        await asyncio.sleep(LOCK_TTL / 3 - 1)  # the probe ends just before the lock is renewed
        assert not ours.done()  # it waits for what the new holder finds
        ours.cancel()
        await asyncio.wait([ours])

    with caplog.at_level(logging.INFO):
        run_virtual(main())
    assert "capacity 1 (boundary)" in caplog.text
    assert "lost" not in caplog.text
    assert shared.records == {}


def test_cancelling_ends_the_requests_and_gives_back_the_lock() -> None:
    shared = Shared()
    app = Watched(constant(0.14))

    async def main() -> float:
        ours = asyncio.create_task(capacity_of(prober_for(app, FakeStorage(shared))))
        await asyncio.sleep(15.05)
        assert app.now > 1
        ours.cancel()
        await asyncio.wait([ours])
        assert ours.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 15.05
    assert app.now == 0
    assert shared.locks == {}


def test_cancelling_a_worker_that_waits_leaves_the_lock_alone() -> None:
    async def main() -> Shared:
        shared = Shared()
        await FakeStorage(shared, "other").lock(LOCK, 1000)
        waiting = asyncio.create_task(capacity_of(prober_for(constant(0.1), FakeStorage(shared))))
        await asyncio.sleep(5)
        waiting.cancel()
        await asyncio.wait([waiting])
        return shared

    assert run_virtual(main()).locks == {LOCK: (1, 1000)}


def test_an_endpoint_that_refuses_leaves_the_service_with_what_it_had(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = constant(0.1, 401, b"who are you?")
    assert run_virtual(capacity_of(prober_for(app, FakeStorage()))) is None
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "GET /x answered 401" in record.getMessage()
    assert "who are you?" in record.getMessage()
    assert record.getMessage().endswith("starts with the stored or the default capacity.")


def test_a_failure_is_found_out_once_per_start(caplog: pytest.LogCaptureFixture) -> None:
    shared = Shared()
    apps = [Watched(constant(0.2)) for _ in range(3)]

    async def main(start_id: str) -> list[ProbeResult | None]:
        probers = [prober_for(app, FakeStorage(shared, f"w{n}")) for n, app in enumerate(apps)]
        started = [capacity_of(prober, start_id=start_id) for prober in probers]
        return list(await asyncio.gather(*started))

    assert run_virtual(main("s1")) == [None, None, None]
    assert [bool(app.entries) for app in apps] == [True, False, False]
    assert "(found by worker w0)" in caplog.text
    before = len(apps[0].entries)
    run_virtual(main("s2"))
    assert len(apps[0].entries) == 2 * before


def test_a_failed_probe_keeps_the_result_of_an_earlier_start() -> None:
    shared = stored("earlier")
    prober = prober_for(constant(0.2), FakeStorage(shared))
    assert run_virtual(capacity_of(prober, force=True)) is None
    kept = run_virtual(prober.stored("/x"))
    assert kept is not None
    assert kept.capacity == 12
    assert json.loads(shared.records["probe-failure:/x"])["start_id"] == "s1"


def test_a_store_that_is_away_is_no_reason_not_to_start(caplog: pytest.LogCaptureFixture) -> None:
    storage = FakeStorage(Shared(is_away=True))
    assert run_virtual(capacity_of(prober_for(constant(0.1), storage))) is None
    assert "the store is away. The service starts" in caplog.text


def test_a_store_that_goes_away_meanwhile_stops_the_probe_when_the_lock_has_expired(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared = Shared()
    app = Watched(constant(0.14))

    async def main() -> float:
        ours = asyncio.create_task(capacity_of(prober_for(app, FakeStorage(shared))))
        await asyncio.sleep(1)
        shared.is_away = True
        assert await ours is None
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == LOCK_TTL
    assert app.now == 0
    assert "the store is away" in caplog.text


def test_a_record_that_cannot_be_read_is_measured_anew(caplog: pytest.LogCaptureFixture) -> None:
    storage = FakeStorage(Shared({KEY: b"{}"}))
    result = run_virtual(capacity_of(prober_for(pool(2, 0.1), storage)))
    assert result is not None
    assert result.capacity == 2
    assert "the stored result is not readable" in caplog.text


def test_waiting_for_others_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> tuple[ProbeResult | None, float]:
        storage = FakeStorage()
        await storage.lock(LOCK, 1e6)
        result = await capacity_of(prober_for(constant(0.1), storage, max_seconds=10))
        return result, asyncio.get_running_loop().time()

    assert run_virtual(main()) == (None, 90)
    assert "other workers were measuring for too long" in caplog.text


def test_a_defect_of_ours_does_not_keep_the_service_from_starting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = FakeStorage(Shared({"probe-failure:/x": b"not json"}))
    assert run_virtual(capacity_of(prober_for(constant(0.1), storage))) is None
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.exc_info


def test_a_failure_of_long_ago_is_not_taken_for_one_of_now() -> None:
    """A reload has the same supervisor, and so the same start, but may have mended the cause."""
    failure = {"start_id": "s1", "at": time.time() - 60, "reason": "401", "worker": "w0"}
    storage = FakeStorage(Shared({"probe-failure:/x": json.dumps(failure).encode()}))
    result = run_virtual(capacity_of(prober_for(pool(3, 0.1), storage)))
    assert result is not None
    assert result.capacity == 3


def test_a_result_is_saved_as_soon_as_the_store_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    storage, saved = FakeStorage(), FakeStorage.save_fenced
    refusals = iter([True] * 5 + [False] * 5)

    async def sometimes(*given: Any) -> bool:
        if next(refusals):
            raise StorageError("away")
        return await saved(*given)

    monkeypatch.setattr(FakeStorage, "save_fenced", sometimes)
    result = run_virtual(capacity_of(prober_for(pool(3, 0.1), storage)))
    assert result is not None
    assert ProbeResult.from_json(storage.shared.records[KEY]).capacity == 3
