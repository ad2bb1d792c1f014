"""Builds the dashboard into the package before a wheel or an sdist is packed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DashboardBuildHook(BuildHookInterface[Any]):
    """Turns `dashboard/` into `fastapi_balancer/admin/static`, where the package serves it from."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page, unless this is an editable install or the page came with an sdist.

        Raises `RuntimeError` when the page cannot be built.
        """
        root = Path(self.root)
        source, output = root / "dashboard", root / "fastapi_balancer" / "admin" / "static"
        if version == "editable" or not source.is_dir() or _came_with_sdist(root, output):
            return
        # Names of assets carry a hash: those of an earlier build would be packed beside the new.
        shutil.rmtree(output, ignore_errors=True)
        _npm(source, "ci")
        _npm(source, "run", "build")
        if not (output / "index.html").is_file():
            raise RuntimeError(f"`npm run build` in {source} left no {output / 'index.html'}")


def _came_with_sdist(root: Path, output: Path) -> bool:
    # Only an sdist has PKG-INFO. A page that lies in a checkout may be older than its source.
    return (root / "PKG-INFO").is_file() and (output / "index.html").is_file()


def _npm(folder: Path, *command: str) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            "packing fastapi-balancer from a checkout builds its dashboard, which needs npm "
            "(Node.js) on PATH; an editable install (`pip install -e .`) does without"
        )
    status = subprocess.run([npm, *command], cwd=folder, check=False).returncode
    if status != 0:
        raise RuntimeError(f"`npm {' '.join(command)}` in {folder} failed with status {status}")
