"""A process that holds many connections: commands on stdin, one line of JSON for each on stdout.

`open <n>` connects; `send <target>` asks on every connection; `collect` waits for all answers.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

from wire import Connection

BATCH = 100  # connections made at once: within any server's backlog
PATIENCE = 90.0


class Crowd:
    """The connections, and what is still to come on them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.line: list[Connection] = []
        self.pending: list[asyncio.Task[tuple[int, float]]] = []

    async def open(self, count: str) -> int:
        """Connect so many more."""
        for done in range(0, int(count), BATCH):
            size = min(BATCH, int(count) - done)
            self.line += await asyncio.gather(*(Connection.open(self.port) for _ in range(size)))
        return len(self.line)

    async def send(self, target: str) -> int:
        """Ask on every connection, and go on reading in the background."""
        for number, connection in enumerate(self.line):
            connection.send(target)
            self.pending.append(asyncio.create_task(self.receive(connection)))
            if number % BATCH == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*(connection.writer.drain() for connection in self.line))
        return len(self.pending)

    async def receive(self, connection: Connection) -> tuple[int, float]:
        """Return the status and when it came."""
        try:
            status, _ = await connection.receive()
        except (OSError, EOFError):
            status = 0
        return status, time.monotonic()

    async def collect(self) -> dict[str, Any]:
        """Wait for the answers; return how many of each status, and when the last one came."""
        done, late = await asyncio.wait(self.pending, timeout=PATIENCE)
        for task in late:
            task.cancel()
        results = [task.result() for task in done]
        statuses = Counter(status for status, _ in results)
        return {"statuses": statuses, "late": len(late), "last": max(at for _, at in results)}


async def obey(crowd: Crowd) -> None:
    """Carry out commands until stdin ends."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        name, *arguments = line.split()
        print(json.dumps(await getattr(crowd, name)(*arguments)), flush=True)


if __name__ == "__main__":
    asyncio.run(obey(Crowd(int(sys.argv[1]))))
