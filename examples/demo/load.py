"""Impatient clients, who come at a fixed rate whatever becomes of those before them."""

from __future__ import annotations

import asyncio
import json
import sys

PATIENCE = 2.0  # seconds after which a client hangs up
GAVE_UP = 0  # in place of a status


async def ask(port: int, path: str) -> tuple[int, float]:
    """Ask once, on a connection of its own; return the status and the seconds it took."""
    loop = asyncio.get_running_loop()
    begin, status, writer = loop.time(), GAVE_UP, None
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n".encode())
            status = int((await reader.readline()).split()[1])
            await reader.read()
    except (OSError, TimeoutError, IndexError):  # IndexError: hung up without an answer
        status = GAVE_UP
    finally:
        if writer is not None:
            writer.close()
    return status, loop.time() - begin


async def offer(port: int, path: str, rate: float, seconds: float) -> list[tuple[int, float]]:
    """Send so many requests per second for so long, and wait for what comes of them."""
    loop = asyncio.get_running_loop()
    begin, clients = loop.time(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(begin + number / rate - loop.time())
        clients.append(asyncio.create_task(ask(port, path)))
    return await asyncio.gather(*clients)


if __name__ == "__main__":
    port, path, rate, seconds = sys.argv[1:]
    json.dump(asyncio.run(offer(int(port), path, float(rate), float(seconds))), sys.stdout)
