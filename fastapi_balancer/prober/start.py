"""Which start of the service a worker belongs to."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time

from fastapi_balancer.processes import started_at

_IMPORTED_AT = time.time()


def start_id() -> str:
    """Identify one start of the service: the same for all of its workers, respawned ones included.

    Workers have a parent that stays (uvicorn, hypercorn and granian start them through
    multiprocessing, gunicorn forks them); a server without workers is its own start. The start time
    tells a process from an earlier one with its number, as happens in containers.
    """
    supervisor = _supervisor()
    pid = os.getpid() if supervisor is None else supervisor
    return f"{socket.gethostname()}:{pid}:{_started_at(pid)}"


def _supervisor() -> int | None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        return parent.pid
    if os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn"):
        return os.getppid()
    return None


def _started_at(pid: int) -> str:
    """When a process started; without /proc, what is known of this one, and nothing of another."""
    return started_at(pid) or (f"{_IMPORTED_AT:.3f}" if pid == os.getpid() else "unknown")
