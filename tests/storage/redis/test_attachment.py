from __future__ import annotations

import asyncio

from fastapi_balancer.models import OnStorageError
from fastapi_balancer.storage.redis.address import Address
from fastapi_balancer.storage.redis.attachment import Attachment
from fastapi_balancer.testing import run_virtual


def test_a_loop_that_hung_gives_the_store_its_time_once_more() -> None:
    async def main() -> list[bool]:
        attachment = Attachment(
            Address("unix:///nobody.sock", connect_timeout=1),
            timeout=0.25,
            lease=10,
            on_storage_error=OnStorageError.LOCAL,
        )
        seen = []
        attachment._is_missing(asyncio.get_running_loop().time() - 1)  # a second too late
        for _ in range(2):
            seen.append(attachment.away_since is None)
            await asyncio.sleep(0.2)
        seen.append(attachment.away_since is None)
        return seen

    assert run_virtual(main()) == [True, True, False]
