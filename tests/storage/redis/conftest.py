"""One endpoint's slots in a real server, each test with keys of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from tests.servers import StoreServer
from tests.storage.workers import Store

MakeStore = Callable[..., Store]


@pytest.fixture
def make_store(redis_server: StoreServer) -> Iterator[MakeStore]:
    with ExitStack() as stores:
        yield lambda **options: stores.enter_context(closing(Store(redis_server.socket, **options)))


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """Four slots, all free; nobody is attached."""
    return make_store(capacity=4)
