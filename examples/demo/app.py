"""A service like many: four endpoints, each with another reason why it cannot take everything."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from fastapi_balancer import Balancer

app = FastAPI(title="Demo")


@app.get("/query")
async def query() -> str:
    """Ask the database that all workers share (see database.py)."""
    reader, writer = await asyncio.open_unix_connection(os.environ["DEMO_DATABASE"])
    writer.write(b"query\n")
    answer = await reader.readline()
    writer.close()
    return answer.decode().strip()


@app.get("/report")
def report() -> str:
    """Block a thread; a worker has 40 of them."""
    time.sleep(0.1)
    return "done"


@app.get("/stream")
async def stream() -> StreamingResponse:
    """Answer piece by piece; the slot is held until the last one."""

    async def pieces() -> AsyncIterator[str]:
        for number in range(10):
            yield f"piece {number}\n"
            await asyncio.sleep(0.1)

    return StreamingResponse(pieces(), media_type="text/plain")


@app.get("/hash")
async def hash_() -> str:
    """Keep the CPU busy."""
    return hashlib.pbkdf2_hmac("sha256", b"demo", b"salt", 20_000).hex()


@app.get("/health")
async def health() -> str:
    """Say which run of the demo this is."""
    return os.environ.get("DEMO_RUN", "")


if os.environ.get("DEMO_BALANCER", "on") == "on":  # off: to see what happens without it
    Balancer(config=Path(__file__).with_name("balancer.yml")).wrap(app)
