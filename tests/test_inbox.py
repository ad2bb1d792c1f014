"""What is read ahead of the app reaches it whole, once, and in order."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable

import pytest
from starlette.types import Message

from fastapi_balancer.inbox import READ_AHEAD, Inbox
from tests.exchange import settle
from tests.virtual import virtual

GONE: Message = {"type": "http.disconnect"}


class Client:
    """The other end of an inbox: `receive` waits for what the test puts there."""

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self.queue: asyncio.Queue[Message] = asyncio.Queue()
        self.reading = 0
        for message in messages:
            self.queue.put_nowait(message)

    async def receive(self) -> Message:
        self.reading += 1
        assert self.reading == 1, "two readers race for one message"
        try:
            return await self.queue.get()
        finally:
            self.reading -= 1


def piece(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def bodies(inbox: Inbox, count: int) -> list[bytes]:
    return [(await inbox())["body"] for _ in range(count)]


@virtual
async def test_a_small_body_is_read_whole_and_handed_on_in_order() -> None:
    client = Client([piece(b"a"), piece(b"b"), piece(b"c", more=False), GONE])
    inbox = Inbox(client.receive)
    assert await inbox.read_body()
    assert client.queue.qsize() == 1
    assert await bodies(inbox, 3) == [b"a", b"b", b"c"]
    assert await inbox() == GONE


@virtual
async def test_no_more_than_the_bound_is_read_of_a_large_body() -> None:
    client = Client([piece(b"x" * 16_384) for _ in range(10)])
    inbox = Inbox(client.receive)
    assert await inbox.read_body()
    assert client.queue.qsize() == 10 - READ_AHEAD // 16_384
    inbox.watch(pytest.fail)
    await settle()
    assert client.queue.qsize() == 10 - READ_AHEAD // 16_384
    assert len(b"".join(await bodies(inbox, 10))) == 163_840


@virtual
async def test_a_client_that_goes_in_the_middle_of_its_body_is_noticed() -> None:
    assert not await Inbox(Client([piece(b"a"), GONE]).receive).read_body()


@virtual
async def test_a_client_that_goes_while_watched_is_told_of_at_once() -> None:
    client, told = Client([piece(b"", more=False)]), asyncio.Event()
    Inbox(client.receive).watch(told.set)
    await settle()
    assert not told.is_set()
    client.queue.put_nowait(GONE)
    await settle()
    assert told.is_set()


@virtual
async def test_a_whole_body_is_watched_however_large_its_last_piece_was() -> None:
    client, told = Client([piece(b"x" * 2 * READ_AHEAD, more=False)]), asyncio.Event()
    inbox = Inbox(client.receive)
    assert await inbox.read_body()
    inbox.watch(told.set)
    client.queue.put_nowait(GONE)
    await settle()
    assert told.is_set()


@virtual
async def test_a_websocket_is_watched_past_its_handshake() -> None:
    client, told = Client([{"type": "websocket.connect"}]), asyncio.Event()
    inbox = Inbox(client.receive)
    inbox.watch(told.set)
    await settle()
    client.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
    await settle()
    assert told.is_set()
    assert await inbox() == {"type": "websocket.connect"}


@virtual
async def test_after_the_hand_over_no_message_is_read_ahead_of_the_app() -> None:
    client = Client()
    inbox = Inbox(client.receive)
    inbox.watch(pytest.fail)
    await settle()
    inbox.hand_over()
    for body in (b"a", b"b", b"c"):
        client.queue.put_nowait(piece(body))
    await settle()
    assert client.queue.qsize() == 2  # the one that was being waited for is in the inbox
    assert await bodies(inbox, 3) == [b"a", b"b", b"c"]


@virtual
async def test_a_receive_that_the_app_cancels_loses_no_message() -> None:
    client = Client()
    inbox = Inbox(client.receive)
    inbox.watch(pytest.fail)
    await settle()
    inbox.hand_over()
    for _ in range(3):
        listening = asyncio.ensure_future(inbox())
        await settle()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    for body in (b"a", b"b"):
        client.queue.put_nowait(piece(body))
    assert await bodies(inbox, 2) == [b"a", b"b"]


@virtual
async def test_two_readers_in_the_app_share_the_messages() -> None:
    """StreamingResponse(request.stream()) reads, and listens for the disconnect besides."""
    queue: asyncio.Queue[Message] = asyncio.Queue()
    inbox = Inbox(queue.get)
    inbox.watch(pytest.fail)
    await settle()
    inbox.hand_over()
    readers = [asyncio.ensure_future(inbox()) for _ in range(2)]
    await settle()
    for body in (b"a", b"b"):
        queue.put_nowait(piece(body))
    assert [message["body"] for message in await asyncio.gather(*readers)] == [b"a", b"b"]


@virtual
async def test_what_the_server_raises_while_watched_reaches_the_app() -> None:
    async def broken() -> Message:
        calls.append(1)
        assert len(calls) == 1, "the app's first receive is the one that was being waited for"
        await asyncio.sleep(1)
        raise OSError("the socket is gone")

    calls: list[int] = []
    inbox = Inbox(broken)
    inbox.watch(pytest.fail)
    await settle()
    inbox.hand_over()
    with pytest.raises(OSError, match="the socket is gone"):
        await inbox()


@virtual
async def test_closing_leaves_no_reader_behind() -> None:
    client = Client()
    inbox = Inbox(client.receive)
    inbox.watch(pytest.fail)
    await settle()
    assert client.reading == 1
    inbox.close()
    inbox.close()
    await settle()
    assert client.reading == 0


@virtual
async def test_closing_after_a_failure_that_nobody_saw_is_silent() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def broken() -> Message:
        raise OSError("the socket is gone")

    inbox = Inbox(broken)
    inbox.watch(pytest.fail)
    await settle()
    inbox.close()
    del inbox
    await settle()
    gc.collect()
    assert complaints == []
