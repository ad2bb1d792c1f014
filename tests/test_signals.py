"""SIGTERM and SIGINT are seen beside whoever handles them already."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from fastapi_balancer.signals import ENDING, EndingSignals


class Log(list[str]):
    """What was called, in order; also a signal handler."""

    def handler(self, name: str) -> object:
        return lambda number, frame: self.append(f"{name} {signal.Signals(number).name}")


@pytest.fixture
def log() -> Iterator[Log]:
    """Handlers of a server, in the place of whatever is there now."""
    log = Log()
    before = {number: signal.signal(number, log.handler("server")) for number in ENDING}  # type: ignore[arg-type]
    yield log
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_is_told_and_then_handled_by_the_server(log: Log, number: signal.Signals) -> None:
    signals = EndingSignals(lambda: log.append("ending"))
    signals.install()
    signal.raise_signal(number)
    assert log == ["ending", f"server {number.name}"]
    signals.restore()


def test_the_former_handlers_are_back_after_a_restore(log: Log) -> None:
    before = [signal.getsignal(number) for number in ENDING]
    signals = EndingSignals(lambda: log.append("ending"))
    signals.install()
    signals.restore()
    signals.restore()
    assert [signal.getsignal(number) for number in ENDING] == before
    signal.raise_signal(signal.SIGTERM)
    assert log == ["server SIGTERM"]


def test_who_took_our_place_keeps_it_and_still_reaches_the_server(log: Log) -> None:
    signals = EndingSignals(lambda: log.append("ending"))
    signals.install()
    ours = signal.getsignal(signal.SIGTERM)
    assert callable(ours)

    def later(number: int, frame: FrameType | None) -> None:
        log.append("later")
        ours(number, frame)

    signal.signal(signal.SIGTERM, later)
    signals.restore()
    assert signal.getsignal(signal.SIGTERM) is later
    signal.raise_signal(signal.SIGTERM)
    assert log == ["later", "server SIGTERM"]


def test_what_the_system_does_by_default_is_left_alone(log: Log) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals = EndingSignals(lambda: log.append("ending"))
    signals.install()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signals.restore()


def test_outside_the_main_thread_nothing_is_installed(log: Log) -> None:
    before = [signal.getsignal(number) for number in ENDING]
    signals = EndingSignals(lambda: log.append("ending"))
    thread = threading.Thread(target=signals.install)
    thread.start()
    thread.join()
    assert [signal.getsignal(number) for number in ENDING] == before
    signals.restore()


def test_two_apps_in_one_process_are_both_told(log: Log) -> None:
    first = EndingSignals(lambda: log.append("first"))
    second = EndingSignals(lambda: log.append("second"))
    first.install()
    second.install()
    signal.raise_signal(signal.SIGTERM)
    assert log == ["second", "first", "server SIGTERM"]
    second.restore()
    first.restore()


def test_apps_may_stop_in_the_order_they_started(log: Log) -> None:
    first = EndingSignals(lambda: log.append("first"))
    second = EndingSignals(lambda: log.append("second"))
    first.install()
    second.install()
    first.restore()
    signal.raise_signal(signal.SIGTERM)
    assert log == ["second", "server SIGTERM"]
    second.restore()


def test_a_handler_of_the_event_loop_is_reached_too(log: Log) -> None:
    async def main() -> None:
        told = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
        signals = EndingSignals(lambda: log.append("ending"))
        signals.install()
        signal.raise_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            await told.wait()
        signals.restore()

    asyncio.run(main())
    assert log == ["ending"]
