"""A process that plays many clients against /work: a plan (JSON) on stdin, answers on stdout."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

from wire import Connection

LEFT, BROKEN = -1, 0  # statuses that no server sends: the client hung up; the connection broke
PAUSE = 0.02  # after a refusal: nobody asks again in the same millisecond
PATIENCE = 5.0  # how long the last answers are waited for


class Client:
    """One client: it asks, waits for the answer, and asks again, at once or `every` so often."""

    def __init__(self, number: int, plan: dict[str, Any]) -> None:
        self.number = number
        self.plan = plan
        self.random = random.Random(number)
        self.connection: Connection | None = None
        self.asked = 0
        self.began = 0.0
        self.answers: list[tuple[int, int, int, int, str]] = []

    async def run(self, begin: float) -> None:
        """Go through the phases of the plan."""
        clients = self.plan["clients"]
        await asyncio.sleep(self.plan["ramp"] * self.number / clients)
        self.began = time.monotonic()
        end = begin
        for phase in self.plan["phases"]:
            end += phase["seconds"]
            while (left := end - time.monotonic()) > 0:
                await self.step(phase, left)
        if self.connection:
            self.connection.close()

    async def step(self, phase: dict[str, Any], left: float) -> None:
        """Ask once, or sit out an idle gap that all clients share."""
        if every := phase.get("gap_every"):
            into = (phase["seconds"] - left) % every
            if into > every - phase["gap"]:
                await asyncio.sleep(min(every - into, left))
                return
        status = await self.ask(phase)
        pause = 0.0 if 200 <= status < 300 else PAUSE
        if every := phase.get("every"):
            pause = every - (time.monotonic() - self.began) % every
        await asyncio.sleep(pause)

    async def ask(self, phase: dict[str, Any]) -> int:
        """Send one request and write down what came of it."""
        self.asked += 1
        request, sent = self.number * 1_000_000 + self.asked, time.monotonic_ns()
        fail = self.random.random() < phase.get("fail", 0)
        leaves = self.random.random() < phase.get("leave", 0)
        patience = self.random.uniform(0.05, 0.5) if leaves else None
        try:
            self.connection = self.connection or await Connection.open(self.plan["port"])
            sent = time.monotonic_ns()
            target = f"/work?request={request}&sent={sent}&ms={phase.get('ms', 50)}&fail={fail:d}"
            async with asyncio.timeout(patience):
                status, _ = await self.connection.get(target)
        except TimeoutError:
            status = self.hang_up(LEFT)
        except (OSError, EOFError):
            status = self.hang_up(BROKEN)
        self.answers.append((request, sent, time.monotonic_ns(), status, phase["name"]))
        return status

    def hang_up(self, status: int) -> int:
        """Close the connection; the next request opens another."""
        if self.connection:
            self.connection.close()
        self.connection = None
        return status


async def play(plan: dict[str, Any]) -> list[tuple[int, int, int, int, str]]:
    """Play the plan and return every answer: request, sent, done, status, phase."""
    clients = [Client(number, plan) for number in range(plan["clients"])]
    begin = time.monotonic()
    tasks = [asyncio.create_task(client.run(begin)) for client in clients]
    length = sum(phase["seconds"] for phase in plan["phases"])
    _, late = await asyncio.wait(tasks, timeout=length + PATIENCE)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return [answer for client in clients for answer in client.answers]


if __name__ == "__main__":
    json.dump(asyncio.run(play(json.load(sys.stdin))), sys.stdout)
