"""BenchBalancer against a real server on a real socket."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fastapi_balancer.bench import BenchBalancer
from fastapi_balancer.config import BalancerConfig
from fastapi_balancer.errors import ProbeError
from fastapi_balancer.models import EndpointProbeConfig
from tests import reaper
from tests.servers import free_port, wait_until


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, log = free_port(), tmp_path_factory.mktemp("bench") / "uvicorn.log"
    service = "tests.integration.bench_app:app"
    command = [sys.executable, "-m", "uvicorn", service, "--port", str(port), "--no-access-log"]
    with log.open("wb") as output:
        process = reaper.start(command, stdout=output, stderr=output)
    try:
        wait_until(lambda: "running on" in log.read_text(), 20, log.read_text)
        yield f"http://127.0.0.1:{port}"
    finally:
        reaper.end(process)


def test_run_finds_the_capacity_of_a_live_service(base_url: str, tmp_path: Path) -> None:
    settings = EndpointProbeConfig(method="POST", body={"inputs": ["hello"]}, queue_timeout=9)
    bench = BenchBalancer(base_url, {"/score": settings})
    written = asyncio.run(bench.run(tmp_path / "balancer.yml"))
    endpoint = BalancerConfig.from_yaml(written).endpoints["/score"]
    assert endpoint.capacity == 3
    assert (endpoint.method, endpoint.queue_timeout) == ("POST", 9)
    assert endpoint.body == {"inputs": ["hello"]}


def test_a_wrong_body_is_told_with_the_words_of_the_service(base_url: str, tmp_path: Path) -> None:
    settings = EndpointProbeConfig(method="POST", body={"input": "hello"})
    bench = BenchBalancer(base_url, {"/score": settings})
    with pytest.raises(ProbeError, match=r'POST /score answered 422 .*"Field required"'):
        asyncio.run(bench.run(tmp_path / "balancer.yml"))


def test_the_probe_leaves_nothing_running_in_the_service(base_url: str) -> None:
    with httpx.Client(base_url=base_url) as client:
        assert client.post("/score", json={"inputs": ["still here"]}).text == "still here"
