"""No secret of the configuration shows: a canary in every field, looked for in all output."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from fastapi_balancer import Balancer, BalancerConfig
from fastapi_balancer.environment import FromEnvironment
from tests.conftest import MakeServer
from tests.exchange import Lifespan

CANARY = "c4n4ry"


def secretive(**keywords: Any) -> BalancerConfig:
    """A configuration with a canary in each field that may hold a secret."""
    settings: dict[str, Any] = {
        "ui": {"username": "admin", "password": f"{CANARY}-ui"},
        "probe": {"max_seconds": 1},
        "endpoints": {
            "/echo": {
                "method": "POST",
                "headers": {"Authorization": f"Bearer {CANARY}-header"},
                "body": {"keys": [FromEnvironment(f"{CANARY}-body", "${KEY}")]},
            }
        },
    }
    return BalancerConfig(**settings, **keywords)


def echoing_app() -> FastAPI:
    """An app that answers the probe with what it was sent, as careless error handlers do."""
    app = FastAPI()

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        told = request.headers["authorization"] + (await request.body()).decode()
        return Response(told, status_code=422)

    return app


async def output_of_a_run(config: BalancerConfig) -> str:
    """What a service with this configuration answers, from its start to its stop."""
    app = echoing_app()
    Balancer(config).wrap(app)
    answers = []
    async with Lifespan(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for path in ("/balancer/stats", "/balancer/readyz", "/balancer/nothing"):
                answers.append(await client.get(path, auth=("admin", f"{CANARY}-ui")))
                answers.append(await client.get(path, auth=("admin", "wrong")))
    return "\n".join(answer.text for answer in answers)


def test_a_run_shows_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shown = asyncio.run(output_of_a_run(secretive()))
    assert "422" in caplog.text  # the probe was refused, with the header in the answer
    assert '"/echo"' in shown
    assert CANARY not in shown
    assert CANARY not in caplog.text


def test_a_refused_password_of_the_store_is_not_shown(
    make_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = make_server(password="another")
    url = server.url.replace("unix://", f"unix://:{CANARY}-url@").replace(":another@", "")
    config = secretive(storage={"type": "redis", "url": url})
    with pytest.raises(Exception, match="credentials") as raised:
        asyncio.run(output_of_a_run(config))
    assert CANARY not in repr(raised.value)
    assert CANARY not in caplog.text


def test_the_address_of_a_store_that_is_away_is_not_shown(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"unix://:{CANARY}-url@{tmp_path}/nobody.sock"
    shown = asyncio.run(output_of_a_run(secretive(storage={"type": "redis", "url": url})))
    assert '"degraded":true' in shown
    assert CANARY not in shown
    assert CANARY not in caplog.text


def test_neither_the_repr_nor_the_written_file_shows_a_secret() -> None:
    config = secretive(storage={"type": "redis", "url": f"redis://:{CANARY}-url@localhost"})
    written = config.to_yaml()
    assert CANARY not in repr(config) + str(config)
    assert CANARY not in written
