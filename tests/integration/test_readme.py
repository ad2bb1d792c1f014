"""README's example, as a reader copies it: it is measured, and limited to what was measured."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.exchange import Lifespan

README = Path(__file__).parents[2] / "README.md"
PLACES = 2


class Model:
    """Fails when more requests are inside than it has places for."""

    def __init__(self) -> None:
        self.inside = 0

    async def score(self, text: str) -> float:
        assert text == "a sample"
        self.inside += 1
        try:
            await asyncio.sleep(0.01)
            assert self.inside <= PLACES
        finally:
            self.inside -= 1
        return 0.5


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_is_measured_and_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "balancer.yml").write_text(block("yaml"))
    names: dict[str, Any] = {"model": Model()}
    exec(block("python"), names)

    async def main() -> None:
        async with Lifespan(names["app"]):
            transport = httpx.ASGITransport(names["app"])
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                sent = [client.post("/predict", json={"text": "a sample"}) for _ in range(20)]
                answers = await asyncio.gather(*sent)
                assert [answer.json() for answer in answers] == [{"score": 0.5}] * 20
                stats = (await client.get("/balancer/stats")).json()
                assert stats["endpoints"]["/predict"]["capacity"] == PLACES

    asyncio.run(main())
