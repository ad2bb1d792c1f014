"""The systems that are measured side by side, each with a Python environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLD = "fastapi-balancer 0.2.1"
NEW = "this checkout"
OLD_PACKAGES = ("fastapi-balancer==0.2.1", "uvicorn[standard]", "hiredis")
VERSIONS = """
import json
from importlib.metadata import PackageNotFoundError, version
from fastapi_balancer import Balancer  # also tells at once when it cannot be imported
def of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
names = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "redis", "hiredis")
print(json.dumps({name: of(name) for name in names}))
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """One system under measurement: its name in tables, and how to run Python with it."""

    name: str
    python: str
    env: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """The environment variables of its processes."""
        return {**os.environ, **self.env}

    def versions(self) -> str:
        """Versions of what it runs on, as JSON: a ratio between two frameworks means nothing."""
        command = [self.python, "-P", "-c", VERSIONS]
        return subprocess.check_output(command, env=self.environment(), text=True).strip()


def checkout(python: str | None = None) -> Peer:
    """Return this checkout, or whatever version another environment's `python` has installed."""
    if python:
        return Peer(NEW, python)
    return Peer(NEW, sys.executable, {"PYTHONPATH": str(ROOT)})


def released() -> Peer:
    """Return the release before this project, and make its environment when there is none yet."""
    home = ROOT / ".venvs" / "old"
    python = home / "bin" / "python"
    ready = home / "ready"  # written last: an interrupted installation starts anew
    if not ready.exists():
        print(f"Installing {' '.join(OLD_PACKAGES)} into {home.relative_to(ROOT)} (once) ...")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", *OLD_PACKAGES]
        subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
        ready.touch()
    return Peer(OLD, str(python))
