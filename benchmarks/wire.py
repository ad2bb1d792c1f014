"""One keep-alive HTTP/1.1 connection over asyncio: the least that a load generator needs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection to a server on this host; one request at a time."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect. Raises `OSError`."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, target: str) -> None:
        """Send a GET request."""
        self.writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    async def receive(self) -> tuple[int, bytes]:
        """Read one answer. Raises `OSError` or `EOFError` when the server hangs up."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        _, found, length = head.partition(b"content-length:")
        size = int(length.partition(b"\r\n")[0]) if found else 0
        return int(head[9:12]), await self.reader.readexactly(size)

    async def get(self, target: str) -> tuple[int, bytes]:
        """Send a GET request and return its status and body."""
        self.send(target)
        return await self.receive()

    def close(self) -> None:
        """Hang up, whatever is still to come."""
        self.writer.close()
