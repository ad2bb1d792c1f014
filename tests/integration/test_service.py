"""Services and clients as the other tests use them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.integration.clients import TEXT, Connection, Load, WebSocket, fetch
from tests.integration.service import Service
from tests.servers import is_running, wait_until

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

HERE = "tests.integration.test_service:app"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Tells which worker answers, and what it was asked."""
    await KINDS[scope["type"]](scope, receive, send)


async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    if os.environ.get("APP_FAILS"):
        await send({"type": "lifespan.startup.failed", "message": "no model here"})
        return
    await asyncio.sleep(0.2)  # so that a worker is seen to be ready too early
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def http(scope: Scope, receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    told = {"pid": os.getpid(), "root_path": scope["root_path"], "body": body.decode()}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})


async def websocket(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    if scope["path"].endswith("/closed"):
        await send({"type": "websocket.close", "code": 1013})
        return
    await send({"type": "websocket.accept"})
    message = await receive()
    await send({"type": "websocket.send", "text": message["text"].upper() * 50})
    await receive()


KINDS = {"lifespan": lifespan, "http": http, "websocket": websocket}


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "granian"])
def test_all_workers_are_ready_known_and_gone_afterwards(server: str) -> None:
    with Service(HERE, server=server, loop="asyncio", workers=2, root_path="/api") as service:
        pids = service.worker_pids()
        assert len(pids) == 2
        answer = asyncio.run(fetch(service.address, "/x", "POST", body=b"hello"))
        told = json.loads(answer.body)
        assert told["pid"] in pids
        assert (told["root_path"], told["body"]) == ("/api", "hello")
    wait_until(lambda: not any(map(is_running, pids)), 5, lambda: "")


def test_a_single_worker_is_the_server_itself() -> None:
    with Service(HERE, http="h11", loop="asyncio") as service:
        (pid,) = service.worker_pids()
        answer = asyncio.run(fetch(service.address, "/"))
        assert json.loads(answer.body)["pid"] == pid
        assert service.terminate() in {0, -signal.SIGTERM}


def test_a_killed_worker_is_replaced_by_uvicorn() -> None:
    with Service(HERE, workers=2) as service:
        victim, other = service.worker_pids()
        service.kill_worker(victim)
        service.wait_for_starts(3)
        assert victim not in service.worker_pids()
        assert other in service.worker_pids()
        with pytest.raises(ValueError, match="no worker"):
            service.kill_worker(os.getpid())


def test_a_service_that_cannot_start_says_what_it_wrote() -> None:
    with (
        pytest.raises(RuntimeError, match="no model here"),
        Service(HERE, env={"APP_FAILS": "1"}),
    ):
        pass


def test_a_failing_test_shows_what_the_service_wrote() -> None:
    with pytest.raises(AssertionError) as failure, Service(HERE):
        raise AssertionError
    assert "Application startup complete" in failure.value.__notes__[0]


def test_clients_talk_http_in_every_manner() -> None:
    async def main() -> None:
        async with Service(HERE) as service, Connection(service.address) as connection:
            await connection.upload("/", [b"a", b"b", b"c"], pause=0.02)
            assert json.loads((await connection.answer()).body)["body"] == "abc"

            await connection.ask("/", "POST", body=b"one")
            await connection.ask("/", "POST", body=b"two")
            answers = [await connection.answer() for _ in range(2)]
            assert [json.loads(answer.body)["body"] for answer in answers] == ["one", "two"]

            await connection.ask("/", "HEAD")
            assert (await connection.answer(method="HEAD")).status == 200
            connection.half_close()
            assert await connection.read() == b""

    asyncio.run(main())


def test_an_abort_resets_the_connection() -> None:
    async def main() -> None:
        reset = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                reset.set_result(await reader.read())
            except ConnectionResetError as error:
                reset.set_exception(error)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, Connection(server.sockets[0].getsockname()) as connection:
            connection.abort()
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reset, 5)

    asyncio.run(main())


def test_a_websocket_is_accepted_spoken_to_and_closed() -> None:
    async def main() -> None:
        async with Service(HERE) as service:
            async with WebSocket(service.address, "/") as socket:
                assert socket.refusal is None
                await socket.send(b"hello")
                assert await socket.receive() == (TEXT, b"HELLO" * 50)
                assert await socket.close(1001) == 1001
            async with WebSocket(service.address, "/closed") as socket:
                assert socket.refusal is not None
                assert socket.refusal.status == 403

    asyncio.run(main())


def test_a_load_is_bounded_by_its_count_and_records_every_request() -> None:
    with Service(HERE, workers=2) as service:
        load = Load(service.address, "/", clients=8, count=200)
        records = asyncio.run(load.run())
    assert load.statuses() == {200: 200}
    assert all(record.start < record.end for record in records)


def test_a_load_is_bounded_by_its_time_and_records_broken_connections() -> None:
    with Service(HERE) as service:
        service.terminate()
        load = Load(service.address, "/", clients=2, seconds=0.2)
        asyncio.run(load.run())
    assert set(load.statuses()) == {0}
    assert 2 <= len(load.records) <= 42
