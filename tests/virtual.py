"""Makes a test out of a coroutine function: it runs in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

from fastapi_balancer.testing import run_virtual

P = ParamSpec("P")


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on an event loop whose time jumps."""

    @wraps(test)
    def run(*args: P.args, **keywords: P.kwargs) -> None:
        run_virtual(test(*args, **keywords))

    return run
