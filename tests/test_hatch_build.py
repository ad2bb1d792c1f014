"""The page is packed from a checkout with npm, and without npm from an sdist."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
STATIC = "fastapi_balancer/admin/static"
PAGE = f"{STATIC}/index.html"

GOOD_NPM = f"""#!/bin/sh
echo "$@" >> ../npm.log
if [ "$1" = run ]; then mkdir -p ../{STATIC} && cp page.html ../{PAGE}; fi
"""
LAZY_NPM = "#!/bin/sh\nexit 0\n"
FAILING_NPM = "#!/bin/sh\nexit 7\n"


class Checkout:
    """A small checkout, packed by the project's own pyproject.toml and hook."""

    def __init__(self, root: Path, tools: Path) -> None:
        self.root = root
        self.tools = tools
        (root / STATIC).parent.mkdir(parents=True)
        (root / "fastapi_balancer" / "__init__.py").touch()
        (root / "README.md").touch()
        for name in ("pyproject.toml", "hatch_build.py", "LICENSE", ".gitignore"):
            shutil.copy(REPOSITORY / name, root / name)

    def add_dashboard(self) -> None:
        (self.root / "dashboard" / "node_modules").mkdir(parents=True)
        (self.root / "dashboard" / "node_modules" / "big.js").touch()
        (self.root / "dashboard" / "page.html").write_text("new page")

    def add_built_page(self, page: str) -> None:
        (self.root / STATIC).mkdir()
        (self.root / PAGE).write_text(page)
        (self.root / STATIC / "app-1a2b.js").touch()

    def add_npm(self, script: str) -> None:
        npm = self.tools / "npm"
        npm.write_text(script)
        npm.chmod(0o755)

    def pack(self, what: str, root: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run one of the build steps of PEP 517 and 660: `sdist`, `wheel` or `editable`."""
        command = f"from hatchling.build import build_{what}; build_{what}('dist')"
        return subprocess.run(
            [sys.executable, "-c", command],
            cwd=root or self.root,
            env={"PATH": str(self.tools)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def npm_calls(self) -> list[str]:
        log = self.root / "npm.log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout with no npm on PATH: only the two commands that the fake one calls."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("cp", "mkdir"):
        (tools / name).symlink_to(shutil.which(name) or name)
    return Checkout(tmp_path / "checkout", tools)


def wheel_content(root: Path) -> dict[str, str]:
    (wheel,) = (root / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name).decode() for name in packed.namelist()}


def unpack_sdist(root: Path, into: Path) -> Path:
    (sdist,) = (root / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        # Asked for since 3.12, and not yet known to the first releases of 3.11.
        packed.extraction_filter = lambda member, path: member
        packed.extractall(into)
    (folder,) = into.iterdir()
    return folder


def test_a_wheel_from_a_checkout_holds_the_page_that_npm_made(checkout: Checkout) -> None:
    checkout.add_dashboard()
    checkout.add_npm(GOOD_NPM)

    result = checkout.pack("wheel")

    assert result.returncode == 0, result.stderr
    assert checkout.npm_calls() == ["ci", "run build"]
    assert wheel_content(checkout.root)[PAGE] == "new page"


def test_an_earlier_page_is_built_anew_and_its_assets_are_left_out(checkout: Checkout) -> None:
    checkout.add_dashboard()
    checkout.add_built_page("old page")
    checkout.add_npm(GOOD_NPM)

    checkout.pack("wheel")

    content = wheel_content(checkout.root)
    assert content[PAGE] == "new page"
    assert f"{STATIC}/app-1a2b.js" not in content


def test_an_sdist_holds_page_and_source_and_makes_a_wheel_without_npm(
    checkout: Checkout, tmp_path: Path
) -> None:
    checkout.add_dashboard()
    checkout.add_npm(GOOD_NPM)
    assert checkout.pack("sdist").returncode == 0
    sdist = unpack_sdist(checkout.root, tmp_path / "unpacked")
    assert (sdist / "dashboard" / "page.html").is_file()
    assert not (sdist / "dashboard" / "node_modules").exists()

    (checkout.tools / "npm").unlink()
    result = checkout.pack("wheel", sdist)

    assert result.returncode == 0, result.stderr
    assert wheel_content(sdist)[PAGE] == "new page"


def test_an_editable_install_calls_no_npm(checkout: Checkout) -> None:
    checkout.add_dashboard()
    checkout.add_npm(GOOD_NPM)
    with (checkout.root / "pyproject.toml").open("a") as settings:
        # The kind of editable install for which hatchling needs no further package.
        settings.write('[tool.hatch.build]\ndev-mode-dirs = ["."]\n')

    result = checkout.pack("editable")

    assert result.returncode == 0, result.stderr
    assert checkout.npm_calls() == []


@pytest.mark.parametrize("what", ["sdist", "wheel"])
def test_without_npm_the_build_says_what_is_missing(checkout: Checkout, what: str) -> None:
    checkout.add_dashboard()

    result = checkout.pack(what)

    assert result.returncode == 1
    assert "needs npm (Node.js) on PATH" in result.stderr


def test_an_npm_that_leaves_no_page_fails_the_build_even_with_an_earlier_page(
    checkout: Checkout,
) -> None:
    checkout.add_dashboard()
    checkout.add_built_page("old page")
    checkout.add_npm(LAZY_NPM)

    result = checkout.pack("wheel")

    assert result.returncode == 1
    assert f"left no {checkout.root / PAGE}" in result.stderr


def test_an_npm_that_fails_stops_the_build_with_its_status(checkout: Checkout) -> None:
    checkout.add_dashboard()
    checkout.add_npm(FAILING_NPM)

    result = checkout.pack("wheel")

    assert result.returncode == 1
    assert "`npm ci`" in result.stderr
    assert "failed with status 7" in result.stderr


def test_without_a_dashboard_folder_the_package_is_packed_as_it_is(checkout: Checkout) -> None:
    result = checkout.pack("wheel")

    assert result.returncode == 0, result.stderr
    assert PAGE not in wheel_content(checkout.root)
