"""An app that counts inside its handlers how many requests of each endpoint run at once.

The environment says how it is limited: `CAPACITY` (0: to be measured), `QUEUE_TIMEOUT`, and `STORE`
(memory if unset). `outer` has it mounted at `/sub`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import BackgroundTasks, FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse

from fastapi_balancer import Balancer

PATHS = (
    "/slow",
    "/timed",
    "/thread",
    "/stream",
    "/later",
    "/echo",
    "/broken",
    "/talk",
    "/items/{n:int}",
)

running: Counter[str] = Counter()
most: Counter[str] = Counter()
begun: Counter[str] = Counter()


@contextmanager
def counted(path: str) -> Iterator[None]:
    running[path] += 1
    begun[path] += 1
    most[path] = max(most[path], running[path])
    try:
        yield
    finally:
        running[path] -= 1


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
    yield {"model": "loaded"}
    await asyncio.sleep(0.2)
    print("the app has shut down")  # noqa: T201 - read from the service's output


app = FastAPI(title="limited", lifespan=lifespan)


@app.get("/slow")
async def slow(request: Request, seconds: float = 0.1) -> str:
    with counted("/slow"):
        await asyncio.sleep(seconds)
        return str(request.state.model)


@app.get("/timed")
async def timed(seconds: float = 0.05) -> tuple[float, float]:
    """When it began and ended, on the clock of all processes of this host."""
    begin = time.monotonic()
    await asyncio.sleep(seconds)
    return begin, time.monotonic()


@app.get("/items/{n}")
async def items(n: int) -> int:
    with counted("/items/{n:int}"):
        await asyncio.sleep(0.1)
        return n


@app.get("/thread")
def thread(seconds: float = 0.1) -> str:
    with counted("/thread"):
        time.sleep(seconds)
        return "done"


@app.get("/stream")
async def stream(chunks: int = 5) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        with counted("/stream"):
            for _ in range(chunks):
                await asyncio.sleep(0.05)
                yield b"chunk"

    return StreamingResponse(body())


@app.get("/later")
async def later(tasks: BackgroundTasks) -> str:
    async def work() -> None:
        with counted("/later"):
            await asyncio.sleep(0.2)

    tasks.add_task(work)
    return "later"


@app.post("/echo")
async def echo(request: Request) -> Response:
    with counted("/echo"):
        return Response(await request.body())


@app.get("/broken")
async def broken() -> None:
    with counted("/broken"):
        await asyncio.sleep(0.05)
        raise RuntimeError("broken on purpose")


@app.websocket("/talk")
async def talk(websocket: WebSocket) -> None:
    with counted("/talk"):
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text.upper())


@app.get("/counts")
async def counts() -> dict[str, dict[str, int]]:
    return {"running": running, "most": most, "begun": begun}


def _settings() -> dict[str, Any]:
    url = os.environ.get("STORE")
    capacity = int(os.environ.get("CAPACITY", "2")) or None
    return {
        "storage": {"type": "redis", "url": url} if url else {},
        "name": os.environ.get("NAME", "limited"),
        "queue_timeout": float(os.environ.get("QUEUE_TIMEOUT", "10")),
        "endpoints": {path: {"capacity": capacity} for path in PATHS},
    }


Balancer(**_settings()).wrap(app)
outer = FastAPI()
outer.mount("/sub", app)
