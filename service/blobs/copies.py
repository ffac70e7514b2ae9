"""Which blobs of a far store are at hand on this disk, and for how long?

`{name}` is a whole blob; `unfinished/` holds what is being written, and whose turn it is to fetch; `total` is how many
bytes all copies have, so that nobody needs to list them. Threads and processes share one directory. What is in use is
locked (`flock`, so a killed process uses nothing any more); the rest goes when room is needed, the least recently used
first.
"""

import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from service.blobs.store import NAME_PATTERN, valid_name

_SPARE = 16  # whoever makes room frees this part of the bound too, and spares those after it the listing


class LocalCopies:
    """Copies of blobs in a local directory; `max_bytes` bounds those that nobody uses."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root.absolute()
        self._max_bytes = max_bytes
        self._unfinished = self._root / "unfinished"
        self._unfinished.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._total = self._root / "total"
        self._counted = False  # by us: a process that was killed may have left a wrong total

    @contextmanager
    def part(self) -> Iterator[IO[bytes]]:
        """A file to write to, with a `name`; gone afterwards, unless it was kept."""
        with tempfile.NamedTemporaryFile(dir=self._unfinished, suffix=".part", delete=False) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH)  # or it might be taken for a dead writer's, who writes no more
                yield file.file
            finally:
                Path(file.name).unlink(missing_ok=True)

    @contextmanager
    def hold(self, name: str, size: int, bring: Callable[[IO[bytes]], None]) -> Iterator[Path]:
        """The copy of a blob, which stays until the `with` ends.

        Args:
            size: bytes it has, to make room for them.
            bring: writes the blob to a file; called where there is no copy yet, by one process at a time.
        """
        held = self._take(name)
        while held is None:
            with self._turn(name):
                held = self._take(name)
                if held is None:
                    held = self._brought(name, size, bring)
        try:
            yield self._root / name
        finally:
            os.close(held)  # and so unlock
            self._make_room(0)

    def keep(self, path: Path, name: str) -> None:
        """Make a file that is on this disk already the copy, if there is room for it; its own name stays."""
        with suppress(OSError):  # it may lie on another file system: a copy is good to have, no more
            size = path.stat().st_size
            if size <= self._max_bytes:
                self._make_room(size)
                with path.open("rb") as file:
                    self._publish(file, path, name)

    def clean_unfinished(self, seconds: float) -> int:
        """Delete what killed writers left behind; how many files."""
        cleaned = 0
        for part in self._unfinished.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - part.stat().st_mtime >= seconds and _unlink_unused(part):
                    cleaned += 1
        return cleaned

    def _take(self, name: str) -> int | None:
        """Lock the copy; its descriptor, or None where there is no copy."""
        path = self._root / valid_name(name)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_at(descriptor, path):  # it may have been deleted before it was locked
                os.utime(path)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _brought(self, name: str, size: int, bring: Callable[[IO[bytes]], None]) -> int | None:
        self._make_room(size)
        with self.part() as part:
            bring(part)
            self._publish(part, Path(part.name), name)
            return self._take(name)  # while the part, which is the same file, is locked and cannot go

    def _publish(self, file: IO[bytes], path: Path, name: str) -> None:
        file.flush()
        os.fsync(file.fileno())  # or a power cut may leave a copy with holes, and nobody would look
        path.chmod(0o600)
        os.utime(path)
        # Not replaced: somebody may be reading the other one by its path.
        with suppress(FileExistsError), _locked(self._total) as total:
            os.link(path, self._root / valid_name(name))
            if (bytes_there := _read_number(total)) is not None:
                _write_number(total, bytes_there + os.fstat(file.fileno()).st_size)

    @contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        """One process at a time fetches a blob; those that wait for it find it at hand."""
        path = self._unfinished / f"{valid_name(name)}.turn"
        with _locked(path):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Delete copies that nobody uses until `size` bytes more are within the bound, or none is left."""
        with _locked(self._total) as total:
            known = _read_number(total) if self._counted else None
            if known is None or known + size > self._max_bytes:
                _write_number(total, self._evict(size))
                self._counted = True

    def _evict(self, size: int) -> int:
        """List the copies, and delete some if need be; how many bytes are left."""
        copies = []
        for path in self._root.iterdir():
            with suppress(FileNotFoundError):
                if NAME_PATTERN.fullmatch(path.name):
                    facts = path.stat()
                    copies.append((facts.st_mtime, facts.st_size, path))
        left = sum(taken for _, taken, _ in copies)
        if left + size <= self._max_bytes:
            return left
        enough = self._max_bytes - self._max_bytes // _SPARE - size
        for _, taken, path in sorted(copies):
            if left <= enough:
                break
            if _unlink_unused(path):
                left -= taken
        return left


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold the lock that a file of this path is, whoever deletes the path when done with it. Gives its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, path):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _read_number(descriptor: int) -> int | None:
    """The number that a file holds; None where it holds none."""
    text = os.pread(descriptor, 32, 0)
    return int(text) if text.isdigit() else None


def _write_number(descriptor: int, number: int) -> None:
    os.pwrite(descriptor, b"%032d" % number, 0)  # always as long, so nothing of the one before is left


def _unlink_unused(path: Path) -> bool:
    """Delete a file unless somebody has locked it; whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, path):
            path.unlink()
    except OSError as err:
        if err.errno != errno.EWOULDBLOCK:
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one that the path names."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
