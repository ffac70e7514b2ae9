"""Keeps what was built on this machine, and gives it back only if it is what was put in.

An engine's plan is code: whoever loads one runs it. So there is one folder, of this user alone; nothing gets into it
but by `Store.write`; and before a byte comes out, its manifest's HMAC is checked under a secret that never leaves the
folder, and the payload's SHA-256 against the manifest.

    secret          32 random bytes, the HMAC's key
    {digest}.entry  a line of JSON, the manifest: key, facts, size and SHA-256 of the payload, HMAC over all of these;
                    then the payload. One file, so that a writer replaces both or neither
    {digest}.lock   held by the process that builds
    set-aside/      entries that were not what was put in, for whoever wants to know why
    *.part          being written
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from models.errors import QuietframeError

JSON = bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"] | None

SCHEMA = 1  # of the manifest; entries of another are as good as none
_SECRET_BYTES = 32
_MANIFEST_BYTES = 1 << 20  # far above any
_POLL_S = 0.1
_UNFINISHED_S = 24 * 3600.0  # nobody writes for a day: what is older was left by a process that was killed
_ENTRY_NAME = re.compile(r"[0-9a-f]{64}\.entry")
_NAMING = ("kind", "stage", "backend", "precision", "device")  # the fields that a reader would name an entry by


class UnsafeStore(QuietframeError):
    """Others than this user can read or write the folder, so what lies in it cannot be trusted."""


class Tampered(QuietframeError):
    """An entry is not what was put in. It has been set aside: asked again, the store has none."""


class LockBusy(QuietframeError):
    """Another process holds the lock."""


@dataclass(frozen=True, slots=True, eq=False)
class Key:
    """All that a built thing depends on. Two keys are one if their fields are."""

    fields: Mapping[str, JSON]

    @property
    def digest(self) -> str:
        """SHA-256 of the fields as canonical JSON, hexadecimal."""
        return hashlib.sha256(_canonical(self.fields)).hexdigest()

    @property
    def name(self) -> str:
        """For people; not unique."""
        return " ".join(str(self.fields[field]) for field in _NAMING if field in self.fields) or self.digest[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An entry, as its manifest tells."""

    key: Key
    path: Path
    size_bytes: int  # of the payload
    made_at: float  # seconds since 1970
    facts: Mapping[str, JSON]  # what the builder had to say


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What `Store.verify` found of one entry."""

    name: str
    digest: str
    stored: Stored | None  # None if not even the manifest can be trusted
    problem: str | None  # None if it is what was put in


class Store:
    """A folder of built things. Any number of threads and processes of one user may use it at once."""

    def __init__(self, folder: Path) -> None:
        """Open the folder; it and its secret are made if they are not there.

        Raises:
            UnsafeStore: it belongs to another user, or others may read or write it.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        self.folder = folder.resolve()
        _refuse_if_shared(self.folder)
        self._secret = self._own_secret()

    def read(self, key: Key) -> tuple[bytes, Mapping[str, JSON]] | None:
        """The payload and facts that were written under this key, or None.

        Raises:
            Tampered: what lies there is not what was written; it has been set aside.
        """
        path = self._entry_path(key.digest)
        try:
            with _opened(path) as file:
                stored, sha256 = self._understood(file.readline(_MANIFEST_BYTES), key.digest)
                payload = _payload(file, stored, sha256)
        except FileNotFoundError:
            return None
        except _OtherSchema:
            return None
        except _Wrong as wrong:
            self._set_aside(path)
            raise Tampered(f"{key.name}: {wrong}; it was set aside in {self.folder / 'set-aside'}") from wrong
        return payload, stored.facts

    def write(self, key: Key, payload: bytes, facts: Mapping[str, JSON] | None = None) -> Stored:
        """Put in a payload, in place of the one that was there; a reader sees either, whole. An empty one is fine."""
        body: dict[str, JSON] = {
            "schema": SCHEMA,
            "name": key.name,
            "key": key.fields,
            "size_bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
            "made_at": time.time(),
            "facts": facts or {},
        }
        manifest = _canonical({**body, "hmac": self._hmac(body)}) + b"\n"
        part = self._part(manifest, payload)
        try:
            part.rename(self._entry_path(key.digest))
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(self.folder)
        return self._understood(manifest, key.digest)[0]

    def remove(self, key: Key) -> None:
        """Take out an entry, if it is there."""
        self._entry_path(key.digest).unlink(missing_ok=True)

    @contextmanager
    def lock(
        self, key: Key, *, wait_s: float | None = None, while_waiting: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Be the only one, of all threads and processes, that holds this key's lock.

        The lock ends with the process, however it ends.

        Args:
            key: its entry need not exist.
            wait_s: for the one who holds it; None for as long as it takes.
            while_waiting: called again and again; what it raises ends the wait.

        Raises:
            LockBusy: it was not to be had in time.
        """
        gives_up_at = None if wait_s is None else time.monotonic() + wait_s
        while (descriptor := self._try_lock(key.digest)) is None:
            if gives_up_at is not None and time.monotonic() >= gives_up_at:
                raise LockBusy(f"{key.name}: another process has held its lock for more than {wait_s:g} s")
            if while_waiting:
                while_waiting()
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            os.close(descriptor)

    def entries(self) -> list[Stored]:
        """Every entry whose manifest is ours, by name; payloads are not read."""
        return sorted((check.stored for check in self._checks(payloads=False) if check.stored), key=_by_name)

    def verify(self) -> list[Checked]:
        """Every entry, by name, with what is wrong with it; all is read, nothing is moved."""
        return sorted(self._checks(payloads=True), key=lambda check: (check.name, check.digest))

    def prune(self, unwanted: Callable[[Stored], bool]) -> list[Stored]:
        """Remove entries, and whatever lies about: of another schema, tampered with, set aside, left unfinished.

        Entries that somebody is about to build stay.

        Returns:
            the entries that were unwanted, and are gone.
        """
        gone = []
        for check in self._checks(payloads=False):
            if check.stored is None or unwanted(check.stored):
                descriptor = self._try_lock(check.digest)
                if descriptor is None:
                    continue
                try:
                    self._entry_path(check.digest).unlink(missing_ok=True)
                    # Whoever waits for it finds that it is another file by now, and takes that one.
                    self._lock_path(check.digest).unlink()
                finally:
                    os.close(descriptor)
                if check.stored:
                    gone.append(check.stored)
        self._sweep()
        return sorted(gone, key=_by_name)

    def _sweep(self) -> None:
        for path in self.folder.glob("set-aside/*"):
            path.unlink(missing_ok=True)
        long_ago = time.time() - _UNFINISHED_S
        for path in self.folder.glob("*.part"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < long_ago:
                    path.unlink()

    def _checks(self, *, payloads: bool) -> Iterator[Checked]:
        for path in sorted(self.folder.iterdir()):
            if not _ENTRY_NAME.fullmatch(path.name):
                continue
            stored, problem, digest = None, None, path.stem
            try:
                with _opened(path) as file:
                    stored, sha256 = self._understood(file.readline(_MANIFEST_BYTES), digest)
                    if payloads:
                        _payload(file, stored, sha256)
            except FileNotFoundError:
                continue  # it was taken out in this moment
            except _Wrong as wrong:
                problem = str(wrong)
            yield Checked(
                name=stored.key.name if stored else digest[:12], digest=digest, stored=stored, problem=problem
            )

    def _understood(self, manifest: bytes, digest: str) -> tuple[Stored, str]:
        """What a manifest tells, and its payload's SHA-256; nothing of it is believed before its HMAC is right."""
        try:
            body: dict[str, Any] = json.loads(manifest)
            if body.get("schema") != SCHEMA:
                raise _OtherSchema(f"it is of schema {body.get('schema')!r}, not {SCHEMA}")
            given = str(body.pop("hmac"))
            expected = self._hmac(body)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as err:
            raise _Wrong("its manifest cannot be read") from err
        if not hmac.compare_digest(given.encode(), expected.encode()):
            raise _Wrong("its manifest was not written with this store's secret")
        key = Key(body["key"])
        if key.digest != digest:
            raise _Wrong(f"its manifest is that of {key.name}, {key.digest[:12]}")
        sha256: str = body["sha256"]
        stored = Stored(
            key=key,
            path=self._entry_path(digest),
            size_bytes=body["size_bytes"],
            made_at=body["made_at"],
            facts=body["facts"],
        )
        return stored, sha256

    def _hmac(self, body: Mapping[str, JSON]) -> str:
        return hmac.new(self._secret, _canonical(body), hashlib.sha256).hexdigest()

    def _own_secret(self) -> bytes:
        path = self.folder / "secret"
        try:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)  # of two processes that come at once one makes it, and both go by it
                if not path.exists():
                    self._part(secrets.token_bytes(_SECRET_BYTES)).rename(path)
                    os.fsync(folder)
            finally:
                os.close(folder)
            with _opened(path) as file:
                kept = file.read(_SECRET_BYTES + 1)
        except _Wrong as err:
            raise UnsafeStore(f"{path}: {err}") from err
        if len(kept) != _SECRET_BYTES:
            raise UnsafeStore(f"{path} is not a secret of {_SECRET_BYTES} bytes; remove it, and all is built anew")
        return kept

    def _set_aside(self, path: Path) -> None:
        aside = self.folder / "set-aside"
        with suppress(FileExistsError):
            aside.mkdir(mode=0o700)
        # Somebody else may have done it, or have written a good one in this moment, which is then built once more.
        with suppress(FileNotFoundError):
            path.rename(aside / f"{time.time_ns()}-{path.name}")

    def _part(self, *content: bytes) -> Path:
        """A new file with this content, safely on the disk, for nobody else to read."""
        part = self.folder / f"{secrets.token_hex(16)}.part"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return part

    def _try_lock(self, digest: str) -> int | None:
        path = self._lock_path(digest)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # `prune` takes lock files away: one that lies there no longer locks nothing.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _entry_path(self, digest: str) -> Path:
        return self.folder / f"{digest}.entry"

    def _lock_path(self, digest: str) -> Path:
        return self.folder / f"{digest}.lock"


class _Wrong(Exception):
    """Why an entry cannot be given out."""


class _OtherSchema(_Wrong):
    """It was written by another version of ours."""


def _by_name(stored: Stored) -> tuple[str, str]:
    return stored.key.name, stored.key.digest


def _canonical(value: JSON) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _refuse_if_shared(folder: Path) -> None:
    facts = folder.stat()
    if not stat.S_ISDIR(facts.st_mode):
        raise UnsafeStore(f"{folder} is no folder")
    if facts.st_uid != os.geteuid():
        raise UnsafeStore(
            f"{folder} belongs to user {facts.st_uid}, and this is user {os.geteuid()}; give it a folder of its own"
        )
    if facts.st_mode & 0o077:
        raise UnsafeStore(
            f"{folder} has mode {stat.S_IMODE(facts.st_mode):04o}, so others could change the code in it;"
            f" make it our own with: chmod 700 {folder}"
        )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, if nobody else can have written it.

    Raises:
        FileNotFoundError: there is none.
        _Wrong: it is a link, or others could have written it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as err:
        raise _Wrong(f"{path.name} cannot be opened: {err.strerror}") from err
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            raise _Wrong(f"{path.name} is not a file of this user alone")
        yield file


def _payload(file: BinaryIO, stored: Stored, sha256: str) -> bytes:
    """What follows the manifest, if it is what the manifest was written for."""
    payload = file.read(stored.size_bytes + 1)
    if len(payload) != stored.size_bytes or hashlib.sha256(payload).hexdigest() != sha256:
        raise _Wrong("its payload is not the one that its manifest was written for")
    return payload


def _sync_folder(folder: Path) -> None:
    """A rename lasts only when its folder is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
