from __future__ import annotations

import multiprocessing
import os
import socket
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from fastapi_balancer.prober import start, start_id


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: None)
    monkeypatch.delenv("SERVER_SOFTWARE", raising=False)


def test_a_server_without_workers_is_its_own_start() -> None:
    assert start_id().startswith(f"{socket.gethostname()}:{os.getpid()}:")
    assert start_id() == start_id()


def test_the_workers_of_a_supervisor_share_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = cast("BaseProcess", SimpleNamespace(pid=os.getppid()))
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    assert start_id().startswith(f"{socket.gethostname()}:{os.getppid()}:")


def test_the_workers_of_gunicorn_share_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn/23.0")
    assert start_id().startswith(f"{socket.gethostname()}:{os.getppid()}:")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_start_time_is_that_of_the_process() -> None:
    expected = Path("/proc/self/stat").read_text().rpartition(") ")[2].split(" ")[19]
    assert start_id().endswith(f":{expected}")
    assert int(expected) > 0


def test_without_proc_the_time_of_the_import_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **options: str) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert start_id() == f"{socket.gethostname()}:{os.getpid()}:{start._IMPORTED_AT:.3f}"
    monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn/23.0")
    assert start_id() == f"{socket.gethostname()}:{os.getppid()}:unknown"
