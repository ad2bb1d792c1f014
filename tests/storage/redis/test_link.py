"""One connection, with a server in the test's hand, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, cast

import hiredis
import pytest
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from fastapi_balancer.errors import StorageError
from fastapi_balancer.storage.redis.link import SECOND_LOOK, Command, Done, Link
from fastapi_balancer.testing import run_virtual


class Server:
    """What the link needs of redis-py's connection; replies are put in by the test."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self.replies: asyncio.Queue[object] = asyncio.Queue()
        self.accepts = asyncio.Event()
        self.accepts.set()
        self.disconnected = 0

    async def connect(self) -> None:
        await self.accepts.wait()

    async def disconnect(self, nowait: bool = False) -> None:
        self.disconnected += 1

    def pack_commands(self, commands: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return commands

    async def send_packed_command(
        self, packed: list[tuple[Any, ...]], check_health: bool = True
    ) -> None:
        self.sent += packed

    async def read_response(self, **options: object) -> object:
        reply = await self.replies.get()
        if isinstance(reply, Exception):
            raise reply
        return reply


class Case:
    """A link to a server, with what was pushed, and what it is to collect when it is woken."""

    def __init__(self) -> None:
        self.server = Server()
        self.pushed: list[list[object]] = []
        self.work: list[tuple[Command, Done]] = []
        self.link = Link(
            cast(AbstractConnection, self.server),
            timeout=0.25,
            pushed=self.pushed.append,
            collect=self._collect,
        )

    async def answer(self, *replies: object) -> None:
        """Reply once all that there is to send has been sent."""
        await asyncio.sleep(0.001)
        for reply in replies:
            self.server.replies.put_nowait(reply)

    def _collect(self) -> Iterable[tuple[Command, Done]]:
        work, self.work = self.work, []
        return work


def test_replies_go_to_those_who_asked_in_order() -> None:
    async def main() -> None:
        case = Case()
        await case.link.open()
        first, second = case.link.ask("A"), case.link.ask("B", 1)
        await case.answer(1, b"two")
        assert (await first, await second) == (1, b"two")
        assert case.server.sent == [("A",), ("B", 1)]
        case.link.drop("done")

    run_virtual(main())


def test_pushes_are_no_replies() -> None:
    async def main() -> None:
        case = Case()
        await case.link.open()
        asked = case.link.ask("A")
        await case.answer(hiredis.PushNotification([b"message", b"c", b"x"]), 1)
        assert await asked == 1
        assert case.pushed == [[b"message", b"c", b"x"]]
        case.link.drop("done")

    run_virtual(main())


def test_an_error_reply_is_for_who_asked_and_not_for_the_link() -> None:
    async def main() -> None:
        case = Case()
        await case.link.open()
        asked = case.link.ask("A")
        await case.answer(ResponseError("wrong"))
        with pytest.raises(StorageError, match="wrong"):
            await asked
        assert not case.link.lost.done()
        case.link.drop("done")

    run_virtual(main())


def test_work_is_collected_when_the_link_is_woken() -> None:
    async def main() -> None:
        case = Case()
        await case.link.open()
        replies: list[object] = []
        case.work = [(("A",), replies.append), (("B",), replies.append)]
        case.link.wake()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert case.server.sent == [("A",), ("B",)]
        case.link.drop("cut")
        assert [str(reply) for reply in replies] == ["cut", "cut"]

    run_virtual(main())


@pytest.mark.parametrize("reply", [RedisConnectionError("gone"), OSError("gone")])
def test_a_connection_that_breaks_is_lost_with_its_reason(reply: Exception) -> None:
    async def main() -> None:
        case = Case()
        await case.link.open()
        asked = case.link.ask("A")
        case.server.replies.put_nowait(reply)
        assert "gone" in await case.link.lost
        with pytest.raises(StorageError, match="gone"):
            await asked
        with pytest.raises(StorageError, match="gone"):
            await case.link.ask("B")
        await case.link.closed()
        assert (case.server.disconnected, case.link.timed_out) == (1, False)

    run_virtual(main())


def test_a_reply_that_nobody_asked_for_ends_the_link() -> None:
    async def main() -> None:
        case = Case()
        await case.link.open()
        case.server.replies.put_nowait(1)
        assert "more than it was asked" in await case.link.lost

    run_virtual(main())


def test_a_reply_that_does_not_come_in_time_ends_the_link() -> None:
    async def main() -> None:
        case = Case()
        await case.link.open()
        since = asyncio.get_running_loop().time()
        asked = case.link.ask("A")
        await case.link.lost
        assert asyncio.get_running_loop().time() - since == pytest.approx(0.25 + SECOND_LOOK)
        assert case.link.timed_out
        assert isinstance(asked.exception(), StorageError)

    run_virtual(main())


def test_each_reply_has_its_own_time() -> None:
    async def main() -> None:
        case = Case()
        await case.link.open()
        for _ in range(5):
            asked = case.link.ask("A")
            await asyncio.sleep(0.2)
            case.server.replies.put_nowait(1)
            assert await asked == 1
        assert case.link.round_trip == pytest.approx(0.2)
        case.link.drop("done")

    run_virtual(main())


def test_a_silent_server_is_asked_for_a_sign_of_life_once() -> None:
    async def main() -> None:
        case = Case()
        await case.link.open()
        await asyncio.sleep(0.1)
        for _ in range(3):
            case.link.prove_alive(0.05)
            await asyncio.sleep(0.01)
        assert case.server.sent == [("PING",)]
        case.link.drop("done")

    run_virtual(main())


def test_a_link_that_is_dropped_while_it_connects_never_opens() -> None:
    async def main() -> None:
        case = Case()
        case.server.accepts.clear()
        opening = asyncio.ensure_future(case.link.open())
        await asyncio.sleep(0.1)
        case.link.drop("given up")
        case.server.accepts.set()
        with pytest.raises(StorageError, match="given up"):
            await opening
        async with asyncio.timeout(1):
            await case.link.closed()
        assert case.server.disconnected == 2  # what was there, and what came after

    run_virtual(main())
