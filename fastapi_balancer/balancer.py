"""One line on an app, `Balancer(config=...).wrap(app)`: what the user holds, and its life."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, TypeVar

from starlette.types import ASGIApp, Scope

from fastapi_balancer.config import BalancerConfig, load_config
from fastapi_balancer.errors import ConfigError
from fastapi_balancer.middleware import BalancerMiddleware
from fastapi_balancer.parts import Parts

logger = logging.getLogger(__name__)

App = TypeVar("App", bound=ASGIApp)


class Balancer:
    """Admission control for an ASGI app: `Balancer(config="balancer.yml").wrap(app)`.

    `config` is the path of a YAML file or a `BalancerConfig`; or give the fields of a
    `BalancerConfig` as keywords. Raises `ConfigError`, which says what is wrong and where.
    """

    def __init__(self, config: str | Path | BalancerConfig | None = None, **keywords: Any) -> None:
        self.config = load_config(config, **keywords)
        self._app: ASGIApp | None = None
        self._parts: Parts | None = None
        self._starting_late: asyncio.Task[None] | None = None
        self._has_warned = False

    def wrap(self, app: App) -> App:
        """Limit the app's endpoints. Returns the app itself; it needs no change of its routes.

        Middleware that is added to the app later stands before the balancer: so add CORS later,
        and browsers can read a refusal. An app that takes no middleware is wrapped by `asgi`; use
        what is returned then. Raises `ConfigError` when this balancer has an app already.
        """
        if not hasattr(app, "add_middleware"):
            return self.asgi(app)  # type: ignore[return-value]
        self._claim(app)
        app.add_middleware(BalancerMiddleware, lifecycle=self)
        return app

    def asgi(self, app: ASGIApp) -> ASGIApp:
        """Return any ASGI app with its endpoints limited. Raises `ConfigError` as `wrap` does."""
        self._claim(app)
        return BalancerMiddleware(app, lifecycle=self)

    def _claim(self, app: ASGIApp) -> None:
        if self._app is not None:
            raise ConfigError("this Balancer has wrapped an app already; make one Balancer per app")
        self._app = app

    # ------------------------------------------------------------------ what the middleware calls

    @property
    def ready(self) -> bool:
        """Whether requests are limited already."""
        return self._parts is not None and self._parts.keeps_running

    async def start(self, middleware: BalancerMiddleware, scope: Scope) -> None:
        """Start with the lifespan: open the store, find the capacities, begin to serve."""
        if self._parts is not None and self._parts.loop is asyncio.get_running_loop():
            await self._parts.stop()
        parts = self._make_parts(middleware, scope)
        await self._started(parts, probe=self.config.probe_on_startup)
        parts.keeps_running = True

    async def start_late(self, middleware: BalancerMiddleware, scope: Scope) -> None:
        """Start with a request: the app is mounted in another, or its server has no lifespan.

        Nothing is measured then, for the request would have to wait for it. After a `stop` nothing
        is started again in the same event loop: what still comes is refused.
        """
        loop = asyncio.get_running_loop()
        if self._parts is None or self._parts.loop is not loop:
            self._warn_of_no_lifespan()
            parts = self._make_parts(middleware, scope)
            self._starting_late = loop.create_task(self._started(parts, probe=False))
        if self._starting_late is not None:
            starting = self._starting_late
            await asyncio.shield(starting)  # many wait for it: none of them may cancel it
            if self._starting_late is starting:
                self._starting_late = None

    async def stop(self) -> None:
        """Send waiting requests away, give all slots back, close the store. Idempotent."""
        if self._parts is not None:
            await self._parts.stop()

    def _make_parts(self, middleware: BalancerMiddleware, scope: Scope) -> Parts:
        if self._parts is not None:
            self._parts.let_go()
        self._starting_late = None
        self._parts = Parts(self.config, self._name(), middleware, scope)
        return self._parts

    async def _started(self, parts: Parts, *, probe: bool) -> None:
        """Start, or leave nothing behind: a half-started balancer would limit nothing."""
        try:
            await parts.start(probe=probe)
        except BaseException:
            if self._parts is parts:
                self._parts = None
            await parts.stop()
            raise

    def _warn_of_no_lifespan(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "no lifespan has reached the balancer (is the app mounted in another one?): "
                "nothing is measured; set a capacity for each endpoint, or wrap the outermost app"
            )

    def _name(self) -> str:
        return self.config.name or str(getattr(self._app, "title", "") or "default")
