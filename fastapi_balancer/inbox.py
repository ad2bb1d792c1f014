"""Reads a request ahead of its app, up to a bound, and hands on what it has read in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from starlette.types import Message, Receive

READ_AHEAD = 64 * 1024  # bytes of body; beyond it the server's own back-pressure is worth more
GONE = ("http.disconnect", "websocket.disconnect")


class Inbox:
    """The `receive` of one request. Before the app runs, `read_body` and `watch` may read it."""

    __slots__ = ("_messages", "_reader", "_receive", "_size", "_wanted")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: deque[Message] = deque()
        self._size = 0
        self._reader: asyncio.Task[None] | None = None
        self._wanted = True

    async def __call__(self) -> Message:
        """The next message, for the app.

        The reader's unfinished `receive` is awaited, not repeated: two would race for a message.
        """
        while not self._messages:
            if self._reader is None:
                return await self._receive()
            reader = self._reader
            await asyncio.wait((reader,))
            if self._reader is reader:  # else the app receives twice at once, and we come second
                self._reader = None
                if not reader.cancelled() and not self._messages:
                    reader.result()  # what the server raised, the app gets to see
        return self._messages.popleft()

    @property
    def is_gone(self) -> bool:
        """Whether the last message that was read ahead is the client's going."""
        return bool(self._messages) and self._messages[-1]["type"] in GONE

    async def read_body(self) -> bool:
        """Read until the body or `READ_AHEAD` bytes are here. False: the client has gone."""
        while self._size < READ_AHEAD:
            message = await self._read()
            if message["type"] in GONE:
                return False
            if not message.get("more_body", False):
                return True
        return True

    def watch(self, gone: Callable[[], None]) -> None:
        """Read on in the background, and call `gone` when the client goes.

        Stops at `READ_AHEAD` bytes of an unfinished body: beyond it a client is not seen to go.
        """
        self._reader = asyncio.create_task(self._watch(gone))

    def hand_over(self) -> None:
        """The app runs now: the reader reads no further than the message it is waiting for."""
        self._wanted = False

    def close(self) -> None:
        """The app has ended: whatever is still being read, nobody wants."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()  # of one that has raised already, asyncio will not complain then

    async def _watch(self, gone: Callable[[], None]) -> None:
        while self._wanted and self._is_safe_to_read():
            await self._read()
            if self.is_gone:
                gone()
                return

    def _is_safe_to_read(self) -> bool:
        """After the last piece of a body, of whatever size, only the client's going can come."""
        return self._size < READ_AHEAD or not self._messages[-1].get("more_body", False)

    async def _read(self) -> Message:
        message = await self._receive()
        self._messages.append(message)
        self._size += len(message.get("body", b""))
        return message
