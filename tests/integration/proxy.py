"""A proxy between a worker and its store that loses, delays and cuts what the test tells it to.

It runs in a thread with a loop of its own, so that it serves a test's own event loop as well as
worker processes. It follows RESP, request by request and reply by reply; TLS it cannot read.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

from tests import reaper
from tests.servers import StoreServer, free_port

T = TypeVar("T")
Direction = Literal["request", "reply"]
Match = bytes | Callable[[bytes], bool]  # part of a request as it is sent, or a test of it

BOTH: tuple[Direction, ...] = ("request", "reply")
SUBSCRIBING = {un + p + b"SUBSCRIBE" for un in (b"", b"UN") for p in (b"", b"P", b"S")}
PUBLISHED = tuple(
    b"$%d\r\n%b\r\n" % (len(kind), kind)
    for kind in (b"message", b"pmessage", b"smessage", *(name.lower() for name in SUBSCRIBING))
)


class FaultProxy:
    """Passes everything between its clients and one server on, until told otherwise.

    Use it in a `with` block. Every method may be called from any thread and has taken effect when
    it returns. Listens on a unix socket, or with `tcp=True` on a port of 127.0.0.1.
    """

    def __init__(self, server: StoreServer, *, tcp: bool = False) -> None:
        self.requests: Counter[str] = Counter()  # what was asked of the server, by command
        self.accepted = 0  # connections so far
        self.links: set[_Link] = set()  # connections now
        self.delay: dict[Direction, float] = dict.fromkeys(BOTH, 0.0)
        self.swallowing: set[Direction] = set()
        self.flowing = {direction: asyncio.Event() for direction in BOTH}
        self.losses: dict[Direction, Loss | None] = dict.fromkeys(BOTH)
        self.errors: list[ValueError] = []
        self._bytes_left: dict[Direction, int | None] = dict.fromkeys(BOTH)
        self._server = server
        self._folder = reaper.folder()
        self._port = free_port() if tcp else None
        self._listener: asyncio.Server | None = None
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        """The address for clients: the server's own, with this proxy's place in it."""
        return self._server.url_at(self._socket if self._port is None else self._port)

    def cut(self) -> None:
        """Cut all connections now. New ones are accepted."""
        self._run(self._cut)

    def cut_after(self, size: int, direction: Direction) -> None:
        """Cut the connection that is to pass on the byte after the next `size` bytes."""
        self._run(lambda: self._bytes_left.update({direction: size}))

    def slow_down(self, seconds: float, *directions: Direction) -> None:
        """Delay what goes in these directions (default: both), without narrowing the flow."""
        self._run(lambda: self.delay.update(dict.fromkeys(directions or BOTH, seconds)))

    def freeze(self, *directions: Direction) -> None:
        """Hold back what goes in these directions (default: both) until `heal`."""
        for direction in directions or BOTH:
            self._run(self.flowing[direction].clear)

    def black_hole(self, *directions: Direction) -> None:
        """Swallow what goes in these directions (default: both).

        Connections stay open until `heal`, which cuts those that have lost something.
        """
        self._run(lambda: self.swallowing.update(directions or BOTH))

    def drop_request(self, match: Match) -> Loss:
        """Cut the connection that sends the next matching request, before the server gets it."""
        loss = Loss(match)
        self._run(lambda: self.losses.update({"request": loss}))
        return loss

    def drop_reply(self, match: Match) -> Loss:
        """Let the server carry out the next matching request, and cut when its whole reply is here:
        replies before it are delivered, nothing of this one is."""
        loss = Loss(match)
        self._run(lambda: self.losses.update({"reply": loss}))
        return loss

    def refuse(self) -> None:
        """Refuse new connections; those there are go on."""
        self._run(self._stop_listening)

    def heal(self) -> None:
        """Undo everything: what was held back is delivered, what lost bytes is cut."""
        asyncio.run_coroutine_threadsafe(self._heal(), self._loop).result(timeout=5)

    def close(self) -> None:
        """Cut everything and stop listening. Idempotent."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(timeout=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()
        reaper.remove(self._folder)

    def __enter__(self) -> Self:
        self._thread.start()
        self.heal()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if kind is None and self.errors:
            raise self.errors[0]

    def take(self, direction: Direction, size: int) -> int:
        """How many of `size` bytes may be passed on. For links, on the proxy's loop."""
        left = self._bytes_left[direction]
        if left is None:
            return size
        self._bytes_left[direction] = None if size > left else left - size
        return min(size, left)

    @property
    def _socket(self) -> Path:
        return self._folder / "p"

    def _run(self, step: Callable[[], T]) -> T:
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(step())
            except BaseException as error:  # noqa: BLE001 - raised again where it was called from
                result.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return result.result(timeout=5)

    def _cut(self) -> None:
        for link in tuple(self.links):
            link.cut()

    async def _heal(self) -> None:
        self.delay.update(dict.fromkeys(BOTH, 0.0))
        self._bytes_left.update(dict.fromkeys(BOTH))
        self.swallowing.clear()
        self.losses.update(dict.fromkeys(BOTH))
        for event in self.flowing.values():
            event.set()
        for link in tuple(self.links):
            if link.torn:
                link.cut()
        if self._listener is None:
            await self._listen()

    async def _listen(self) -> None:
        if self._port is not None:
            self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        else:
            self._listener = await asyncio.start_unix_server(self._accept, self._socket)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            upstream = await asyncio.open_unix_connection(self._server.socket)
        except OSError:
            writer.transport.abort()
            return
        if self._closing:
            writer.transport.abort()
            upstream[1].transport.abort()
            return
        link = _Link(self, (reader, writer), upstream)
        self.links.add(link)
        try:
            await link.run()
        finally:
            self.links.discard(link)

    async def _shut_down(self) -> None:
        self._closing = True
        self._stop_listening()
        self._cut()
        if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(tasks, timeout=2)


class Loss:
    """One request or reply that is to be lost, once."""

    def __init__(self, match: Match) -> None:
        self._match = match
        self.happened = threading.Event()

    def matches(self, request: bytes) -> bool:
        """Whether this is the request meant."""
        if isinstance(self._match, bytes):
            return self._match in request
        return self._match(request)

    def wait(self, within: float = 5.0) -> None:
        """Wait until it is lost, in async code through `asyncio.to_thread`.

        Raises `TimeoutError`.
        """
        if not self.happened.wait(within):
            raise TimeoutError(f"no such request within {within} s")


class _Link:
    """One client's connection and its own connection to the server."""

    def __init__(
        self,
        proxy: FaultProxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.torn = False  # it swallowed something: what follows could not be understood any more
        self._proxy = proxy
        self._loop = asyncio.get_running_loop()
        self._readers = {"request": client[0], "reply": server[0]}
        self._writers = {"request": server[1], "reply": client[1]}
        self._queues: dict[Direction, asyncio.Queue[tuple[float, bytes | None]]] = {
            direction: asyncio.Queue() for direction in BOTH
        }
        self._asked = self._answered = 0  # requests, replies
        self._doomed: tuple[int, Loss] | None = None  # the number of the reply to be lost
        self._tasks = [
            asyncio.create_task(step(direction))
            for step in (self._take_in, self._pass_on)
            for direction in BOTH
        ]

    async def run(self) -> None:
        """Pass on until one side ends or the link is cut."""
        passing_on = self._tasks[2:]
        try:
            # Taking in ends with a mark in the queue, so that what came before it is passed on.
            await asyncio.wait(passing_on, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Cut both connections at once."""
        for task in self._tasks:
            task.cancel()
        for writer in self._writers.values():
            writer.transport.abort()

    async def _take_in(self, direction: Direction) -> None:
        frames = Frames()
        watch = self._on_request if direction == "request" else self._on_reply
        try:
            while data := await self._readers[direction].read(65536):
                if direction in self._proxy.swallowing:
                    self.torn = True
                elif not all(watch(frame) for frame in frames.feed(data)):
                    break
        except ConnectionError:
            pass  # ends as any other end of the stream does
        except ValueError as error:
            self._proxy.errors.append(error)
        self._enqueue(direction, None)

    def _on_request(self, frame: bytes) -> bool:
        loss = self._proxy.losses["request"]
        if loss is not None and loss.matches(frame):
            self._proxy.losses["request"] = None
            loss.happened.set()
            return False
        command = frame.split(b"\r\n", 3)[2].upper()
        self._proxy.requests[command.decode(errors="replace")] += 1
        self._asked += command not in SUBSCRIBING
        self._doom(frame)
        self._enqueue("request", frame)
        return True

    def _doom(self, frame: bytes) -> None:
        loss = self._proxy.losses["reply"]
        if loss is not None and self._doomed is None and loss.matches(frame):
            self._proxy.losses["reply"] = None
            self._doomed = self._asked, loss

    def _on_reply(self, frame: bytes) -> bool:
        if not is_push(frame):
            self._answered += 1
            if self._doomed is not None and self._doomed[0] == self._answered:
                self._doomed[1].happened.set()
                return False
        self._enqueue("reply", frame)
        return True

    def _enqueue(self, direction: Direction, frame: bytes | None) -> None:
        due = self._loop.time() + self._proxy.delay[direction]
        self._queues[direction].put_nowait((due, frame))

    async def _pass_on(self, direction: Direction) -> None:
        queue, writer = self._queues[direction], self._writers[direction]
        with contextlib.suppress(ConnectionError):
            while True:
                due, frame = await queue.get()
                await asyncio.sleep(due - self._loop.time())
                await self._proxy.flowing[direction].wait()
                if frame is None:
                    return await _flush(writer)
                allowed = self._proxy.take(direction, len(frame))
                writer.write(frame[:allowed])
                await writer.drain()
                if allowed < len(frame):
                    return await _flush(writer)


async def _flush(writer: asyncio.StreamWriter) -> None:
    # An abort throws away what is still in the transport's buffer.
    writer.transport.set_write_buffer_limits(0)
    await writer.drain()


class Frames:
    """Cuts a stream of RESP into whole requests or replies (RESP3, streamed types left out)."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take in bytes and yield what they complete. Raises `ValueError` when it is not RESP."""
        self._buffer += data
        while (end := _frame_end(self._buffer, 0)) is not None:
            frame, self._buffer = self._buffer[:end], self._buffer[end:]
            yield frame


def is_push(frame: bytes) -> bool:
    """Whether this came unasked: a push of RESP3, or a message to a subscriber in RESP2."""
    if frame[:1] == b">":
        return True
    return frame[:1] == b"*" and frame.partition(b"\r\n")[2].startswith(PUBLISHED)


def _frame_end(buffer: bytes, start: int) -> int | None:
    line_end = buffer.find(b"\r\n", start)
    if line_end < 0:
        return None
    kind, end = buffer[start], line_end + 2
    if kind in b"+-:_#,(":
        return end
    if kind in b"$!=":
        size = int(buffer[start + 1 : line_end])
        end += size + 2 if size >= 0 else 0  # -1: no string, not even an empty one
        return end if end <= len(buffer) else None
    return _values_end(buffer, end, _values(kind, buffer[start + 1 : line_end]))


def _values_end(buffer: bytes, start: int, values: int) -> int | None:
    end: int | None = start
    for _ in range(values):
        end = _frame_end(buffer, end) if end is not None else None
    return end


def _values(kind: int, count: bytes) -> int:
    if kind in b"*~>":
        return int(count)
    if kind in b"%":
        return 2 * int(count)
    if kind in b"|":  # attributes stand before the value that they describe
        return 2 * int(count) + 1
    raise ValueError(f"not RESP: {chr(kind)!r}")
