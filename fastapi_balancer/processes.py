"""Which process this is, on which host, and which others belong to the same service."""

from __future__ import annotations

import os
import re
import secrets
import socket
from pathlib import Path

PROC = Path("/proc")


def host_id() -> str:
    """The id of this host and its process ids: equal for all who can watch each other."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()[:8]
        return f"{boot}.{(PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:  # not Linux
        return re.sub(r"[^\w.]", "_", socket.gethostname())


def started_at(pid: int) -> str | None:
    """When a process started, in clock ticks since boot: with its pid it is never reused.

    None: there is no such process, or no /proc.
    """
    stat = _stat(pid)
    return stat[19] if stat else None


def worker_id() -> str:
    """A new id for this process as a worker: `host-pid-start-random`, without `:` or spaces."""
    pid = os.getpid()
    return f"{host_id()}-{pid}-{started_at(pid) or 0}-{secrets.token_hex(3)}"


def siblings() -> int:
    """How many processes look like workers of one supervisor with this one, itself included.

    They have the same parent and, but for numbers, the same command line: those of uvicorn,
    hypercorn, granian and gunicorn do. 1 where there is no /proc.
    """
    mine = _family(os.getpid())
    if mine is None:
        return 1
    pids = (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
    return sum(_family(pid) == mine for pid in pids)


def _family(pid: int) -> tuple[str, str] | None:
    """The parent of a process, and its command line without numbers."""
    stat = _stat(pid)
    try:
        command = (PROC / str(pid) / "cmdline").read_text(errors="replace")
    except OSError:
        return None
    return (stat[1], re.sub(r"\d+", "", command)) if stat else None


def _stat(pid: int) -> list[str] | None:
    """The fields of proc_pid_stat(5) from the third on: the name before them may hold anything."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
