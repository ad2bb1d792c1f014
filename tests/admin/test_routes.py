from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import Message, Scope

from fastapi_balancer.admin.auth import BasicAuth
from fastapi_balancer.admin.routes import AdminRoutes, Readiness
from fastapi_balancer.stats import Collector, EndpointGauges, Snapshots, WorkerGauges
from fastapi_balancer.testing import run_virtual

READINGS: dict[str, Any] = {"endpoints": {"/a": {"capacity": None}}, "time": "now"}
ADMIN = (b"authorization", b"Basic YWRtaW46c2VjcmV0")  # admin:secret


async def readings() -> Mapping[str, Any]:
    return READINGS


def routes(readiness: Readiness | None = None, auth: BasicAuth | None = None) -> AdminRoutes:
    return AdminRoutes(readings, lambda: readiness or Readiness(), auth)


@dataclass
class Answer:
    """What was sent, in the order of sending."""

    messages: list[Message] = field(default_factory=list)

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def content(self) -> Any:
        return json.loads(self.body)


async def never() -> Message:
    raise AssertionError("nothing is read from a client")


def ask(
    app: AdminRoutes,
    path: str,
    method: str = "GET",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> Answer:
    scope = {"type": "http", "method": method, "path": "/api" + path, "headers": list(headers)}
    answer = Answer()
    asyncio.run(app(scope, never, answer.send, path))
    return answer


def test_stats_answers_the_snapshot() -> None:
    answer = ask(routes(), "/balancer/stats")
    assert (answer.status, answer.content) == (200, READINGS)
    assert answer.headers == {
        "cache-control": "no-store",
        "content-length": str(len(answer.body)),
        "content-type": "application/json",
        "x-content-type-options": "nosniff",
    }


@pytest.mark.parametrize("path", ["/balancer/stats", "/balancer/livez", "/balancer/readyz"])
def test_head_has_the_headers_of_get_and_no_body(path: str) -> None:
    get, head = ask(routes(), path), ask(routes(), path, "HEAD")
    assert (head.status, head.headers, head.body) == (get.status, get.headers, b"")


def test_stats_asks_for_credentials_when_there_are_some() -> None:
    app = routes(auth=BasicAuth("admin", "secret"))
    answer = ask(app, "/balancer/stats")
    assert (answer.status, answer.content["title"]) == (401, "Unauthorized")
    assert answer.headers["www-authenticate"].startswith("Basic realm=")
    assert b"capacity" not in answer.body
    assert ask(app, "/balancer/stats", headers=(ADMIN,)).content == READINGS


def test_broken_credentials_are_401_and_never_500() -> None:
    app = routes(auth=BasicAuth("admin", "secret"))
    broken = (b"authorization", b"Basic \xff\xfe")
    assert ask(app, "/balancer/stats", headers=(broken,)).status == 401


def test_the_orchestrators_probes_need_no_credentials() -> None:
    app = routes(auth=BasicAuth("admin", "secret"))
    assert ask(app, "/balancer/livez").content == {"status": "alive"}
    assert ask(app, "/balancer/readyz").status == 200


@pytest.mark.parametrize(
    ("readiness", "status", "reasons", "storage"),
    [
        (Readiness(), 200, [], "ok"),
        (Readiness(draining=True), 503, ["draining"], "ok"),
        (Readiness(unhealthy=True), 503, ["unhealthy"], "ok"),
        (Readiness(storage_degraded=True), 200, [], "degraded"),
        (
            Readiness(draining=True, unhealthy=True, storage_degraded=True),
            503,
            ["draining", "unhealthy"],
            "degraded",
        ),
    ],
)
def test_readyz_tells_why_not(
    readiness: Readiness, status: int, reasons: list[str], storage: str
) -> None:
    answer = ask(routes(readiness), "/balancer/readyz")
    word = "not ready" if reasons else "ready"
    assert answer.status == status
    assert answer.content == {"status": word, "reasons": reasons, "storage": storage}


def test_a_worker_that_is_not_ready_is_alive_all_the_same() -> None:
    assert ask(routes(Readiness(draining=True, unhealthy=True)), "/balancer/livez").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_405_and_told_what_is_allowed(method: str) -> None:
    answer = ask(routes(), "/balancer/stats", method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path", ["/balancer/", "/balancer/ui", "/balancer/stats/", "/balancer//stats", "/balancer/x"]
)
def test_unknown_paths_are_404_as_problem_details(path: str) -> None:
    answer = ask(routes(), path)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.status == 404
    assert answer.content == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "There is nothing at this path.",
    }


@pytest.mark.parametrize("extensions", [{}, {"websocket.http.response": {}}])
def test_a_websocket_is_closed_before_its_handshake(extensions: dict[str, Any]) -> None:
    scope = {"type": "websocket", "path": "/balancer/stats", "extensions": extensions}
    answer = Answer()
    asyncio.run(routes()(scope, never, answer.send, "/balancer/stats"))
    assert [message["type"] for message in answer.messages] == ["websocket.close"]


class Alone:
    """The store of a worker that has no others."""

    async def publish(self, value: bytes) -> None: ...

    async def owned(self) -> dict[str, dict[str, int]]:
        return {}

    async def reports(self) -> dict[str, bytes]:
        return {}


def test_the_snapshot_of_a_real_worker_reaches_the_client() -> None:
    async def main() -> Answer:
        gauges = WorkerGauges({"/predict": EndpointGauges(capacity=50, active=12)})
        collector = Collector("w1", name="fastapi-balancer", version="0.3.0")
        collector.endpoint("/predict").served(200, 0.0, 0.02, now=0.0)
        app = AdminRoutes(Snapshots(Alone(), collector, lambda: gauges).current, Readiness)
        scope: Scope = {"type": "http", "method": "GET", "headers": []}
        answer = Answer()
        await app(scope, never, answer.send, "/balancer/stats")
        return answer

    content = run_virtual(main()).content
    part = content["endpoints"]["/predict"]
    assert (part["capacity"], part["active_requests"], part["available_slots"]) == (50, 12, 38)
    assert (part["served"], part["service_time"]["p50_ms"]) == (1, pytest.approx(20, rel=0.05))
    assert content["service"] == {"name": "fastapi-balancer", "version": "0.3.0"}
