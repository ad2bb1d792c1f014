"""A service that takes three requests at once, for a real server."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel

SLOTS = 3

app = FastAPI()
running = 0


class Question(BaseModel):
    inputs: list[str]


@app.post("/score")
async def score(question: Question) -> Response:
    global running
    if running >= SLOTS:
        raise HTTPException(503, "busy")
    running += 1
    try:
        await asyncio.sleep(0.02)
    finally:
        running -= 1
    return Response(question.inputs[0])
