"""The systems that are measured side by side, each with a Python environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLD = "fastapi-balancer 0.2.1"
NEW = "this checkout"
OLD_PACKAGES = ("fastapi-balancer==0.2.1", "uvicorn[standard]")
VERSIONS = """
import json
from importlib.metadata import version
import fastapi_balancer
names = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "redis", "hiredis")
print(json.dumps({name: version(name) for name in names}))
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

    def versions(self) -> dict[str, str]:
        """Versions of what it runs on. Raises `CalledProcessError` when it cannot be imported."""
        command = [self.python, "-P", "-c", VERSIONS]
        output = subprocess.check_output(command, env=self.environment(), text=True)
        versions: dict[str, str] = json.loads(output)
        return versions


def checkout(python: str | None = None) -> Peer:
    """Return this checkout, or whatever version another environment's `python` has installed."""
    if python:
        return Peer(NEW, python)
    return Peer(NEW, sys.executable, {"PYTHONPATH": str(ROOT)})


def released(versions: dict[str, str]) -> Peer:
    """Return the release before this project, on the same versions of what both run on.

    Its environment is made when there is none yet, or one with other versions.
    """
    home = ROOT / ".venvs" / "old"
    python = home / "bin" / "python"
    packages = [*OLD_PACKAGES, *(f"{name}=={version}" for name, version in versions.items())]
    ready = home / "ready"  # written last: an interrupted installation starts anew
    if not ready.exists() or ready.read_text() != "\n".join(packages):
        print(f"Installing {OLD} into {home.relative_to(ROOT)} (once) ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, *packages], check=True)
        ready.write_text("\n".join(packages))
    return Peer(OLD, str(python))
