"""What operators ask this service: statistics, liveness, readiness."""

from __future__ import annotations

from fastapi_balancer.admin.auth import BasicAuth
from fastapi_balancer.admin.routes import PREFIX, AdminRoutes, Readiness

__all__ = ["PREFIX", "AdminRoutes", "BasicAuth", "Readiness"]
