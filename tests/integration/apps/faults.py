"""A service whose handlers write down when they are entered and left, for tests that break it.

What it watches and where it writes is told by the environment: `FAULTS_SETTINGS` holds the
keywords of its `Balancer` as JSON, `FAULTS_JOURNAL` the path of the journal.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.types import Message, Receive, Scope, Send

from fastapi_balancer import Balancer

logging.basicConfig(level=os.environ.get("FAULTS_LOG", "WARNING"))

PID = os.getpid()
JOURNAL = os.open(os.environ["FAULTS_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
api = FastAPI()
numbers = itertools.count(1)


def note(kind: str, request: str) -> None:
    """Append one line, in one step of the kernel: lines of other processes never mix in."""
    os.write(JOURNAL, f"{time.monotonic_ns()} {kind} {request} {PID}\n".encode())


@contextmanager
def noted(request: Request) -> Iterator[None]:
    """Note that the handler is inside, however it ends."""
    name = request.scope.get("fault_request", "probe")
    note("enter", name)
    try:
        yield
    finally:
        note("exit", name)


@api.get("/work")
async def work(request: Request, ms: float = 50) -> dict[str, int]:
    with noted(request):
        await asyncio.sleep(ms / 1000)
    return {"pid": PID}


@api.post("/upload")
async def upload(request: Request) -> int:
    with noted(request):
        return len(await request.body())


@api.get("/thread")
def thread(request: Request, ms: float = 50) -> int:
    with noted(request):
        time.sleep(ms / 1000)
    return PID


@api.get("/raise")
async def fail(request: Request) -> None:
    with noted(request):
        raise RuntimeError("as asked")


@api.get("/stream")
async def stream(request: Request, chunks: int = 5, ms: float = 50) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        with noted(request):
            for _ in range(chunks):
                yield b"chunk"
                await asyncio.sleep(ms / 1000)

    return StreamingResponse(body())


@api.get("/background")
async def background(request: Request, ms: float = 50) -> StreamingResponse:
    async def task() -> None:
        with noted(request):
            await asyncio.sleep(ms / 1000)

    return StreamingResponse(iter([b"done"]), background=BackgroundTask(task))


@api.get("/pid")
async def pid() -> dict[str, int]:
    return {"pid": PID}


@api.get("/block")
async def block(request: Request, ms: float) -> None:
    """Hold the event loop, as no handler should."""
    with noted(request):
        time.sleep(ms / 1000)  # noqa: ASYNC251 - that is the fault


balanced = Balancer(**json.loads(os.environ["FAULTS_SETTINGS"])).wrap(api)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Note when a request arrives and how it is answered, outside of the balancer."""
    if scope["type"] != "http":
        await balanced(scope, receive, send)
        return
    headers = dict(scope["headers"])
    name = headers.get(b"x-request", f"{PID}.{next(numbers)}".encode()).decode()
    scope["fault_request"] = name

    async def note_status(message: Message) -> None:
        if message["type"] == "http.response.start":
            note(f"answer-{message['status']}", name)
        await send(message)

    note("arrive", name)
    try:
        await balanced(scope, receive, note_status)
    finally:
        note("end", name)
