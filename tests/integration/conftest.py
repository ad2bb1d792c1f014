"""What only tests in real time ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.proxy import FaultProxy
from tests.servers import StoreServer


@pytest.fixture
def fault_proxy(redis_server: StoreServer) -> Iterator[FaultProxy]:
    """A proxy of this test alone before the shared store: connect to its `url`, then break it."""
    with FaultProxy(redis_server) as proxy:
        yield proxy
