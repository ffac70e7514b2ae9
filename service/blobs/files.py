"""How are blobs kept in a directory?

`ab/abcdef…` holds a blob, `unfinished/` what is being written; `lock` keeps deleters from writers of the same bytes.
"""

import errno
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from service.blobs.store import NAME_PATTERN, Blob, Method, gone, valid_name

_CHUNK_BYTES = 1 << 20


class FileStore:
    """A `BlobStore` in a directory of a local or a shared file system."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._unfinished = self._root / "unfinished"
        self._unfinished.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_file = self._root / "lock"
        self._lock_file.touch(mode=0o600)

    def put(self, source: BinaryIO) -> Blob:
        descriptor, path = tempfile.mkstemp(dir=self._unfinished, suffix=".part")
        part = Path(path)
        try:
            with os.fdopen(descriptor, "wb") as sink:
                digest = hashlib.sha256()
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    sink.write(chunk)
                sink.flush()
                os.fsync(sink.fileno())
                size = sink.tell()
            return self._publish(part, digest.hexdigest(), size)
        finally:
            part.unlink(missing_ok=True)

    def put_file(self, path: Path) -> Blob:
        part = self._unfinished / f"{os.getpid()}-{time.monotonic_ns()}-{os.urandom(4).hex()}.part"
        try:
            path.rename(part)
        except OSError as err:
            if err.errno != errno.EXDEV:
                raise
            # Another file system: there is no move, only a copy.
            with path.open("rb") as source:
                blob = self.put(source)
            path.unlink()
            return blob
        try:
            part.chmod(0o600)
            with part.open("rb+") as moved:
                digest = hashlib.file_digest(moved, "sha256").hexdigest()
                size = moved.tell()
                os.fsync(moved.fileno())
            return self._publish(part, digest, size)
        finally:
            part.unlink(missing_ok=True)

    def open(self, name: str) -> BinaryIO:
        try:
            return self._path(name).open("rb")
        except FileNotFoundError:
            raise gone(name) from None

    @contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        path = self._path(name)
        if not path.is_file():
            raise gone(name)
        yield path

    def delete(self, name: str, *, unused_for_s: float = 0.0) -> bool:
        path = self._path(name)
        with self._locked(fcntl.LOCK_EX), suppress(FileNotFoundError):
            if unused_for_s <= 0 or _age_s(path) >= unused_for_s:
                path.unlink()
                return True
        return False

    def names_older_than(self, seconds: float) -> Iterator[str]:
        for shelf in self._root.glob("[0-9a-f][0-9a-f]"):
            for path in shelf.iterdir():
                with suppress(FileNotFoundError):
                    if NAME_PATTERN.fullmatch(path.name) and _age_s(path) >= seconds:
                        yield path.name

    def clean_unfinished(self, seconds: float) -> int:
        cleaned = 0
        for part in self._unfinished.iterdir():
            with suppress(FileNotFoundError):
                if _age_s(part) >= seconds:
                    part.unlink()
                    cleaned += 1
        return cleaned

    def link(self, name: str, *, method: Method, ttl_s: float, content_type: str, disposition: str) -> str | None:  # noqa: ARG002
        if not self._path(name).is_file():
            raise gone(name)
        return None

    def _publish(self, part: Path, digest: str, size: int) -> Blob:
        path = self._path(digest)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        # Shared among writers, whose renames are atomic; a deleter must see either no file or a fresh one.
        with self._locked(fcntl.LOCK_SH):
            try:
                os.utime(path)
            except FileNotFoundError:
                # A moved file brings its old age along.
                os.utime(part)
                part.rename(path)
                _sync_directory(path.parent)
        return Blob(name=digest, bytes=size, sha256=digest)

    def _path(self, name: str) -> Path:
        return self._root / valid_name(name)[:2] / name

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        with self._lock_file.open("rb") as lock:
            fcntl.flock(lock, kind)
            yield  # closing the file unlocks it


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _sync_directory(path: Path) -> None:
    """Put a rename on the disk, not only the bytes renamed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
