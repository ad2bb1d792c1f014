"""A database with so many places: more queries than that at once are slower for everybody.

It stands for what a real service shares between its workers: a GPU, a connection pool, a disk. It
is a process of its own on a unix socket, so that all workers meet in it. Each connection is one
query; one that asks `most` is told how many ran at once at the most, since that was last asked.
"""

from __future__ import annotations

import asyncio
import sys

PLACES = 12
QUERY = 0.1  # seconds that a query takes while there is room
CROWDING = 0.1  # each query above the places costs all of them so much more (caches, locks) ...
CROWDING_MOST = 2.0  # ... up to this factor
TICK = 0.002


class Database:
    """The queries that run now, and how much of each is left."""

    def __init__(self) -> None:
        self.left: dict[asyncio.Future[None], float] = {}
        self.most = 0

    def speed(self) -> float:
        """How fast each query runs: the places are shared, and crowding costs extra."""
        above = max(0, len(self.left) - PLACES)
        crowding = min(CROWDING_MOST, 1 + CROWDING * above)
        return PLACES / (PLACES + above) / crowding

    async def work(self) -> None:
        """Go on with all queries, for ever."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(TICK)
            now = loop.time()
            done = (now - last) * self.speed()
            last = now
            for query in list(self.left):
                self.left[query] -= done
                if self.left[query] <= 0:
                    del self.left[query]
                    query.set_result(None)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Run one query."""
        if await reader.readline() == b"most\n":
            writer.write(b"%d\n" % self.most)
            self.most = len(self.left)
        else:
            query = asyncio.get_running_loop().create_future()
            self.left[query] = QUERY
            self.most = max(self.most, len(self.left))
            await query
            writer.write(b"done\n")
        writer.close()


async def main(path: str) -> None:
    """Serve on a unix socket until killed."""
    database = Database()
    await asyncio.start_unix_server(database.serve, path, backlog=4096)
    await database.work()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
