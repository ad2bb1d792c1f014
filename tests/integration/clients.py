"""HTTP and WebSocket clients whose every byte, pause and hang-up is in the test's hand."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

Address = tuple[str, int]

TEXT, BINARY, CLOSE = 1, 2, 8  # opcodes (RFC 6455 5.2)


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, its header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Record:
    """One request of a load; its times are of `time.monotonic`, one clock for the whole host."""

    start: float
    end: float
    status: int  # 0: the connection broke


class Connection:
    """One HTTP/1.1 connection, kept alive; to be used in an `async with` block."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(*self.address)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.transport.abort()

    async def send(self, *pieces: bytes, pause: float = 0.0) -> None:
        """Send bytes as they are, with a pause before each piece but the first."""
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(pause)
            self._writer.write(piece)
            await self._writer.drain()

    async def ask(
        self,
        path: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Send a request and do not wait for its answer: call it again to pipeline."""
        await self.send(request(path, method, headers, body))

    async def upload(self, path: str, pieces: Iterable[bytes], pause: float) -> None:
        """Send a POST whose body comes in pieces, slowly."""
        parts = list(pieces)
        length = {"content-length": str(sum(map(len, parts)))}
        await self.send(request(path, "POST", length), *parts, pause=pause)

    async def head(self, within: float = 10.0) -> Response:
        """Read up to the end of the next final answer's headers; informational ones are skipped.

        Raises `ConnectionError` when the connection ends first, `TimeoutError`.
        """
        async with asyncio.timeout(within):
            while True:
                answer = await self._head()
                if answer.status >= 200 or answer.status == 101:
                    return answer

    async def answer(self, within: float = 10.0, *, method: str = "GET") -> Response:
        """Read the next answer. Raises `ConnectionError` when it ends early, `TimeoutError`."""
        async with asyncio.timeout(within):
            head = await self.head(within)
            return Response(head.status, head.headers, await self._body(head, method))

    async def read(self, size: int = 65536, within: float = 10.0) -> bytes:
        """Read some bytes as they come; none at the end of the stream."""
        async with asyncio.timeout(within):
            return await self._reader.read(size)

    async def read_exactly(self, size: int, within: float = 10.0) -> bytes:
        """Read so many bytes. Raises `ConnectionError` when it ends early, `TimeoutError`."""
        async with asyncio.timeout(within):
            try:
                return await self._reader.readexactly(size)
            except asyncio.IncompleteReadError as error:
                raise ConnectionError("the connection ended early") from error

    async def chunk(self, within: float = 10.0) -> bytes:
        """Read the next chunk of a chunked body, empty at its end."""
        async with asyncio.timeout(within):
            size = int((await self._until(b"\r\n")).partition(b";")[0], 16)
            return (await self.read_exactly(size + 2, within))[:size]

    def half_close(self) -> None:
        """Say that nothing more will be sent (FIN), and go on reading."""
        self._writer.write_eof()

    def stop_reading(self) -> None:
        """Take nothing more from the socket, so that the server's sending backs up."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined] # a read transport too

    def abort(self) -> None:
        """Hang up at once, with a reset (RST) as from a client that crashed."""
        peer: socket.socket = self._writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def _head(self) -> Response:
        head = await self._until(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").rstrip().split("\r\n")
        fields = (line.partition(":") for line in lines)
        return Response(
            int(status_line.split()[1]),
            {name.lower(): value.strip() for name, _, value in fields},
        )

    async def _until(self, mark: bytes) -> bytes:
        try:
            return await self._reader.readuntil(mark)
        except asyncio.IncompleteReadError as error:
            raise ConnectionError(f"the connection ended after {error.partial!r}") from error

    async def _body(self, head: Response, method: str) -> bytes:
        if method == "HEAD" or head.status in {101, 204, 304}:
            return b""
        if head.headers.get("transfer-encoding", "").lower() == "chunked":
            chunks = []
            while chunk := await self.chunk():
                chunks.append(chunk)
            return b"".join(chunks)
        if "content-length" in head.headers:
            return await self.read_exactly(int(head.headers["content-length"]))
        return await self._reader.read()


def request(
    path: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> bytes:
    """A request as bytes, with its length unless the headers say something of it."""
    fields = {"host": "test", **(headers or {})}
    if body and "transfer-encoding" not in fields:
        fields.setdefault("content-length", str(len(body)))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def fetch(
    address: Address,
    path: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    within: float = 10.0,
) -> Response:
    """One request on a connection of its own."""
    async with Connection(address) as connection:
        await connection.ask(path, method, headers, body)
        return await connection.answer(within, method=method)


class WebSocket:
    """A WebSocket by hand; to be used in an `async with` block.

    `refusal` is the server's answer when it did not accept, and None when it did.
    """

    def __init__(self, address: Address, path: str) -> None:
        self.refusal: Response | None = None
        self._connection = Connection(address)
        self._path = path

    async def __aenter__(self) -> Self:
        await self._connection.__aenter__()
        key = base64.b64encode(os.urandom(16)).decode()
        headers = {"connection": "Upgrade", "upgrade": "websocket"}
        headers |= {"sec-websocket-version": "13", "sec-websocket-key": key}
        await self._connection.ask(self._path, headers=headers)
        answer = await self._connection.answer()
        self.refusal = None if answer.status == 101 else answer
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    async def send(self, payload: bytes, opcode: int = TEXT) -> None:
        """Send one message of up to 125 bytes."""
        if len(payload) > 125:
            raise ValueError("longer messages are not needed here")
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        await self._connection.send(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)

    async def receive(self, within: float = 10.0) -> tuple[int, bytes]:
        """Read one frame: its opcode and payload. Raises `ConnectionError`, `TimeoutError`."""
        first, second = await self._connection.read_exactly(2, within)
        size = second & 0x7F
        if size == 126:
            size = int.from_bytes(await self._connection.read_exactly(2, within))
        elif size == 127:
            size = int.from_bytes(await self._connection.read_exactly(8, within))
        return first & 0x0F, await self._connection.read_exactly(size, within)

    async def close(self, code: int = 1000) -> int:
        """Close in order, and return the code that the server closes with."""
        await self.send(code.to_bytes(2), CLOSE)
        while True:
            opcode, payload = await self.receive()
            if opcode == CLOSE:
                return int.from_bytes(payload[:2])

    def abort(self) -> None:
        """Hang up without a word."""
        self._connection.abort()


@dataclass(slots=True)
class Load:
    """N clients, each sending its next request when it has its answer, for a bounded time or count.

    `count` is of all clients together; whichever bound comes first ends it.
    """

    address: Address
    path: str
    clients: int
    seconds: float = 10.0
    count: int | None = None
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    within: float = 30.0  # seconds that a client waits for an answer
    records: list[Record] = field(default_factory=list)
    _begun: int = 0

    async def run(self) -> list[Record]:
        """Run it to its end; requests that were sent in time are waited for."""
        deadline = time.monotonic() + self.seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(self.clients):
                group.create_task(self._client(deadline))
        return self.records

    def statuses(self) -> dict[int, int]:
        """How many requests ended with each status."""
        found = [record.status for record in self.records]
        return {status: found.count(status) for status in sorted(set(found))}

    async def _client(self, deadline: float) -> None:
        while self._begins_another(deadline):
            start = time.monotonic()
            try:
                async with Connection(self.address) as connection:
                    while await self._request(connection) and self._begins_another(deadline):
                        pass
            except OSError:  # could not connect
                self.records.append(Record(start, time.monotonic(), 0))
                await asyncio.sleep(0.01)

    def _begins_another(self, deadline: float) -> bool:
        if time.monotonic() >= deadline or self._begun == self.count:
            return False
        self._begun += 1
        return True

    async def _request(self, connection: Connection) -> bool:
        """Make one request; whether the connection can take the next."""
        start, status, stays = time.monotonic(), 0, False
        # A connection that breaks or a server that is silent is a result like any other.
        with contextlib.suppress(OSError):
            await connection.ask(self.path, self.method, self.headers, self.body)
            answer = await connection.answer(self.within, method=self.method)
            status, stays = answer.status, answer.headers.get("connection") != "close"
        self.records.append(Record(start, time.monotonic(), status))
        return stays
