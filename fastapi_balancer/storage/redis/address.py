"""Where the server is: a URL turned into connections, for the event loop and for a thread."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import redis
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from fastapi_balancer.errors import ConfigError

OURS = {"protocol", "socket_timeout", "socket_connect_timeout", "retry", "max_connections"}
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")


class Address:
    """A server, or the sentinels that know which one is the primary.

    `redis://`, `rediss://` and `unix://` are redis-py's, with its query options;
    `redis+sentinel://[user:password@]host:port,host:port/service[/db]` asks the sentinels before
    each connection. Raises `ConfigError` for anything else; its message holds no credentials.
    """

    def __init__(self, url: str, *, connect_timeout: float) -> None:
        self.connect_timeout = connect_timeout
        scheme = urlsplit(url).scheme
        if scheme not in SCHEMES:
            raise ConfigError(f"storage.url: the scheme {scheme!r} is none of {SCHEMES}")
        self._sentinels: list[tuple[str, int]] = []
        if scheme.endswith("+sentinel"):
            url = self._read_sentinels(url)
        try:
            self._options: dict[str, Any] = dict(parse_url(url))
        except ValueError as exc:
            raise ConfigError(f"storage.url: {exc}") from exc
        self._class: type[AbstractConnection] = self._options.pop("connection_class", Connection)
        self._sync_url = url
        self._check_options()

    def _check_options(self) -> None:
        """Raise `ConfigError` for query options that are ours to set, or that nobody knows."""
        if taken := OURS & self._options.keys():
            raise ConfigError(
                f"storage.url: leave out {', '.join(sorted(taken))}; storage.timeout bounds calls"
            )
        try:
            self._class(**self._options)
        except TypeError as exc:
            raise ConfigError(f"storage.url: {exc}") from exc

    def _read_sentinels(self, url: str) -> str:
        """Keep the sentinels' addresses; return the URL of the server they know of."""
        parts = urlsplit(url)
        credentials, _, hosts = parts.netloc.rpartition("@")
        self._service, _, db = parts.path.strip("/").partition("/")
        if not self._service or not hosts:
            raise ConfigError(
                "storage.url: write redis+sentinel://host:port,host:port/service-name[/db]"
            )
        for host in hosts.split(","):
            name, _, port = host.rpartition(":")
            if not port.isdigit():
                name, port = host, "26379"
            self._sentinels.append((name.strip("[]"), int(port)))
        scheme = parts.scheme.removesuffix("+sentinel")
        query = f"?{parts.query}" if parts.query else ""
        return f"{scheme}://{credentials}{'@' if credentials else ''}primary/{db or 0}{query}"

    async def connection(self) -> AbstractConnection:
        """A new connection of the event loop, not connected yet. RESP3, no retries."""
        options = dict(self._options)
        if self._sentinels:
            sentinel = AsyncSentinel(  # type: ignore[no-untyped-call] # redis-py
                self._sentinels,
                sentinel_kwargs=self._for_sentinels(AsyncRetry(NoBackoff(), 0)),
            )
            try:
                options["host"], options["port"] = await sentinel.discover_master(self._service)
            finally:
                for client in sentinel.sentinels:
                    await client.aclose()
        return self._class(
            **options,
            protocol=3,
            socket_timeout=None,  # the link bounds every reply itself
            socket_connect_timeout=self.connect_timeout,
            retry=AsyncRetry(NoBackoff(), 0),
            driver_info=None,
        )

    def client(self, timeout: float) -> redis.Redis:
        """A blocking client with one connection, for a thread. No retries."""
        options: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": self.connect_timeout,
            "retry": Retry(NoBackoff(), 0),
            "max_connections": 1,
            "driver_info": None,
        }
        pool = redis.ConnectionPool.from_url(self._sync_url, **options)
        if self._sentinels:
            sentinel = Sentinel(  # type: ignore[no-untyped-call] # redis-py
                self._sentinels, sentinel_kwargs=self._for_sentinels(Retry(NoBackoff(), 0))
            )
            try:
                found = sentinel.discover_master(self._service)  # type: ignore[no-untyped-call]
                pool.connection_kwargs.update(host=found[0], port=found[1])
            finally:
                for each in sentinel.sentinels:
                    each.close()
        return redis.Redis(connection_pool=pool)

    def _for_sentinels(self, retry: object) -> dict[str, Any]:
        """Options of the connections to sentinels: one that is dead leaves time for the next."""
        timeout = self.connect_timeout / (len(self._sentinels) + 1)
        return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": retry}
