"""The faults that other tests rely on are the ones that happen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.integration.proxy import FaultProxy, Frames, is_push
from tests.servers import StoreServer, wait_until


@pytest.fixture(params=[False, True], ids=["unix", "tcp"])
def proxy(request: pytest.FixtureRequest, redis_server: StoreServer) -> Iterator[FaultProxy]:
    redis_server.cli("DEL", "p:a", "p:b")
    with FaultProxy(redis_server, tcp=request.param) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(
        proxy.url,
        protocol=3,
        socket_timeout=0.4,
        single_connection_client=True,
        retry=Retry(NoBackoff(), 0),
    ) as client:
        yield client


def connect(proxy: FaultProxy) -> Any:
    """A bare connection, to send several requests before the first reply is read."""
    return redis.ConnectionPool.from_url(proxy.url, protocol=3).get_connection()


def test_requests_and_replies_pass_and_are_counted(proxy: FaultProxy, client: redis.Redis) -> None:
    big = b"x" * 300_000
    assert client.set("p:a", big) is True
    assert client.get("p:a") == big
    assert client.get("p:b") is None
    assert (proxy.requests["SET"], proxy.requests["GET"], proxy.accepted) == (1, 2, 1)


def test_a_cut_ends_connections_and_new_ones_are_accepted(
    proxy: FaultProxy, client: redis.Redis
) -> None:
    client.ping()
    proxy.cut()
    with pytest.raises(redis.ConnectionError):
        client.ping()

    assert client.ping() is True
    assert proxy.accepted == 2


def test_a_connection_is_cut_after_so_many_bytes_of_the_request(
    proxy: FaultProxy, client: redis.Redis
) -> None:
    client.ping()
    proxy.cut_after(len(b"*2\r\n$4\r\nINCR\r\n$3\r\np:"), "request")
    with pytest.raises(redis.ConnectionError):
        client.incr("p:a")

    assert client.get("p:a") is None


def test_a_connection_is_cut_in_the_middle_of_a_reply(
    proxy: FaultProxy, client: redis.Redis
) -> None:
    client.set("p:a", "0123456789")
    proxy.cut_after(len(b"$10\r\n01234"), "reply")
    with pytest.raises(redis.ConnectionError):
        client.get("p:a")

    assert client.get("p:a") == b"0123456789"


def test_a_delay_comes_in_each_direction_and_leaves_the_flow_as_wide(
    proxy: FaultProxy,
) -> None:
    connection = connect(proxy)
    proxy.slow_down(0.1)
    before = time.monotonic()
    for _ in range(50):
        connection.send_command("PING")
    assert [connection.read_response() for _ in range(50)] == [b"PONG"] * 50
    assert 0.2 <= time.monotonic() - before < 2  # one by one: 10 s
    connection.disconnect()


def test_what_is_frozen_arrives_after_the_heal(
    proxy: FaultProxy, client: redis.Redis, redis_server: StoreServer
) -> None:
    client.ping()
    proxy.freeze("request")
    with pytest.raises(redis.TimeoutError):
        client.incr("p:a")  # gives the connection up, but the request is on its way
    assert redis_server.cli("GET", "p:a") is None

    proxy.heal()

    wait_until(lambda: redis_server.cli("GET", "p:a") == "1", 5, redis_server.log)


def test_a_black_hole_answers_nothing_and_the_heal_cuts_what_lost_bytes(
    proxy: FaultProxy, client: redis.Redis, redis_server: StoreServer
) -> None:
    client.ping()
    proxy.black_hole("reply")
    with pytest.raises(redis.TimeoutError):
        client.incr("p:a")
    assert redis_server.cli("GET", "p:a") == "1"
    proxy.black_hole("request")
    with pytest.raises(redis.TimeoutError):
        client.incr("p:a")

    proxy.heal()

    assert client.incr("p:a") == 2


def test_of_a_dropped_reply_the_request_was_carried_out_once(
    proxy: FaultProxy, client: redis.Redis
) -> None:
    client.ping()
    loss = proxy.drop_reply(b"p:b")
    assert client.incr("p:a") == 1
    with pytest.raises(redis.ConnectionError):
        client.incr("p:b")

    loss.wait()

    assert client.get("p:b") == b"1"


def test_replies_before_the_dropped_one_are_delivered(proxy: FaultProxy) -> None:
    connection = connect(proxy)
    proxy.drop_reply(lambda request: b"SET" in request)
    commands = [("INCR", "p:a"), ("SUBSCRIBE", "p:c"), ("SET", "p:b", "1"), ("INCR", "p:a")]
    connection.send_packed_command(connection.pack_commands(commands))

    assert connection.read_response() == 1
    assert connection.read_response(push_request=True) == [b"subscribe", b"p:c", 1]
    with pytest.raises(redis.ConnectionError):
        connection.read_response()
    connection.disconnect()


def test_a_dropped_request_never_reaches_the_server(proxy: FaultProxy, client: redis.Redis) -> None:
    client.ping()
    loss = proxy.drop_request(b"p:a")
    with pytest.raises(redis.ConnectionError):
        client.incr("p:a")

    loss.wait()

    assert client.get("p:a") is None


def test_new_connections_are_refused_until_the_heal(proxy: FaultProxy, client: redis.Redis) -> None:
    client.ping()
    proxy.refuse()
    assert client.ping() is True
    proxy.cut()
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            client.ping()

    proxy.heal()

    assert client.ping() is True


def test_pushes_pass_between_requests(fault_proxy: FaultProxy, redis_server: StoreServer) -> None:
    with redis.Redis.from_url(fault_proxy.url, protocol=3) as client, client.pubsub() as channel:
        channel.subscribe("p:c")
        assert channel.get_message(timeout=2) is not None
        redis_server.cli("PUBLISH", "p:c", "hello")
        message = channel.get_message(timeout=2)
    assert message is not None
    assert message["data"] == b"hello"


def test_a_server_that_is_away_ends_the_connection(own_server: StoreServer) -> None:
    with FaultProxy(own_server) as proxy:
        own_server.kill()
        client = redis.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0))
        with client, pytest.raises(redis.ConnectionError):
            client.ping()
        own_server.start()
        with redis.Redis.from_url(proxy.url) as client:
            assert client.ping() is True


@pytest.mark.parametrize(
    "frame",
    [
        b"+OK\r\n",
        b":12\r\n",
        b"_\r\n",
        b"$3\r\nabc\r\n",
        b"$0\r\n\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
        b"%1\r\n+a\r\n,1.5\r\n",
        b"~1\r\n#t\r\n",
        b">2\r\n+message\r\n+x\r\n",
        b"|1\r\n+ttl\r\n:3\r\n*1\r\n:1\r\n",
        b"=7\r\ntxt:abc\r\n",
    ],
)
def test_a_frame_is_complete_with_its_last_byte_and_not_before(frame: bytes) -> None:
    frames = Frames()
    early = [whole for byte in frame[:-1] for whole in frames.feed(bytes([byte]))]
    assert early == []
    assert list(frames.feed(frame[-1:] + frame)) == [frame, frame]


def test_what_is_not_resp_is_an_error() -> None:
    with pytest.raises(ValueError, match="not RESP"):
        list(Frames().feed(b"GET / HTTP/1.1\r\n"))


@pytest.mark.parametrize(
    ("frame", "pushed"),
    [
        (b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n", True),
        (b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n", True),
        (b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n", True),
        (b"*1\r\n$1\r\na\r\n", False),
        (b"+OK\r\n", False),
    ],
)
def test_pushes_are_told_from_replies(frame: bytes, pushed: bool) -> None:
    assert is_push(frame) is pushed
