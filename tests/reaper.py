"""Child processes and temporary folders that do not outlive the tests, even when those are killed.

Run as a script it is the reaper itself: told on stdin what there is, it clears up at end of file,
which comes however the test process ends. (Linux's parent-death signal would not do: it comes as
soon as the thread that started the child ends.)
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process as the leader of a group of its own. To be given back with `end`."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    _tell(f"+group {process.pid}")
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all of its group, and wait for it. Idempotent."""
    _kill_group(process.pid)
    process.wait(timeout=10)
    _tell(f"-group {process.pid}")


def folder() -> Path:
    """Make a folder whose path is short enough for unix sockets (107 bytes)."""
    path = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    _tell(f"+folder {path}")
    return path


def remove(path: Path) -> None:
    """Remove a folder that `folder` made. Idempotent."""
    shutil.rmtree(path, ignore_errors=True)
    _tell(f"-folder {path}")


@functools.cache
def _reaper() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C ends the tests, not the one who clears up after them
        text=True,
        bufsize=1,
    )
    # The regular end: `communicate` closes the pipe and waits until all is cleared up.
    atexit.register(process.communicate)
    return process


def _tell(line: str) -> None:
    pipe = _reaper().stdin
    assert pipe is not None
    pipe.write(line + "\n")


def _kill_group(leader: int) -> None:
    # Gone already, or a leader that never became one: both leave nothing to kill.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _main() -> None:
    left: set[str] = set()
    for line in sys.stdin:
        sign, entry = line[0], line[1:].rstrip("\n")
        (left.add if sign == "+" else left.discard)(entry)
    for kind, _, value in sorted((entry.partition(" ") for entry in left), reverse=True):
        if kind == "group":
            _kill_group(int(value))
        else:
            shutil.rmtree(value, ignore_errors=True)


if __name__ == "__main__":
    _main()
