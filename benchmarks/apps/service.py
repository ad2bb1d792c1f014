"""The measured service; the environment variable BENCH_SERVICE says which variant of it."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI

settings: dict[str, Any] = json.loads(os.environ["BENCH_SERVICE"])
app = FastAPI()
EVENT = struct.Struct("<cqqq")  # b"+" in, b"-" out; now, request, sent (nanoseconds, monotonic)
events = os.open(
    Path(settings["events"]) / f"{os.getpid()}.events", os.O_WRONLY | os.O_CREAT | os.O_APPEND
)


def note(kind: bytes, request: int, sent: int) -> None:
    """Write down that a request is inside, or has left: a kill -9 must not lose it."""
    os.write(events, EVENT.pack(kind, time.monotonic_ns(), request, sent))


@app.get("/hello")
async def hello() -> dict[str, str]:
    return {"hello": "world"}


@app.get("/pid")
async def pid() -> int:
    return os.getpid()


@app.get("/work")
async def work(request: int, sent: int, ms: float = 50, fail: bool = False) -> int:
    note(b"+", request, sent)
    try:
        await asyncio.sleep(ms / 1000)
        if fail:
            raise RuntimeError("asked to fail")
    finally:
        note(b"-", request, sent)
    return request


@app.get("/gate")
async def gate(file: str) -> None:
    """Hold a slot until the file exists."""
    while not Path(file).exists():  # noqa: ASYNC110, ASYNC240  another process makes it
        await asyncio.sleep(0.05)


if settings.get("health", True):

    @app.get("/health")
    async def health() -> str:
        return "ok"


if settings["storage"] != "bare":
    from fastapi_balancer import Balancer, BalancerConfig, StorageConfig, StorageType
    from fastapi_balancer.models import EndpointProbeConfig

    endpoint: dict[str, Any] = {"capacity": settings["capacity"], **settings.get("endpoint", {})}
    Balancer(
        config=BalancerConfig(
            storage=StorageConfig(type=StorageType(settings["storage"]), url=settings.get("redis")),
            queue_timeout=settings.get("queue_timeout", 30.0),
            endpoints={path: EndpointProbeConfig(**endpoint) for path in settings["watched"]},
        )
    ).wrap(app)
