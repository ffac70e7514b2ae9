"""The keys file: which API keys there are, of whom, and what they allow. It holds hashes only.

A key is `qf_{id}_{secret}`: twelve hexadecimal digits that may be told and logged, and 256 bits of chance that may not.
The prefix lets scanners find one that got into a repository.

Kept is the SHA-256 of the key. A slow hash (argon2, bcrypt) makes guessing *passwords* dear, which people choose out of
few; nobody guesses 256 random bits, at whatever price a guess. It would only make each request as dear, and be a way
to keep the service busy with wrong keys.
"""

import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import QuietframeError
from service.errors import BadInput, NoKey

log = logging.getLogger(__name__)

KEY_ID_PATTERN = r"^[0-9a-f]{12}$"
MOST_A_MINUTE = 10**15 - 1  # the largest integer of a structured field (RFC 9651, 3.3.1), which tells of it
_VERSION = 1
_UNKNOWN = "this API key is not known, or no longer"
_NOBODYS = "0" * 64  # held against what an unknown id shows: it takes as long as a known one


class BadKeysFile(QuietframeError):
    """The keys file cannot be read, or is none."""


class Scope(StrEnum):
    """What a key allows."""

    SUBMIT = "submit"  # hand work in, call it off, remove it
    READ = "read"  # look at own jobs and fetch what came of them; look at models
    ADMIN = "admin"  # all of that, of everybody's jobs; metrics; what only operators need


_Quota = Annotated[int, Field(ge=0, le=MOST_A_MINUTE)]


class ApiKey(BaseModel):
    """All that is known of a key: not the key itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=KEY_ID_PATTERN)
    name: str = Field(pattern=r"^[\x20-\x7e]{1,80}$")  # for people; shown in lists, never used to decide anything
    holder: str = Field(pattern=KEY_ID_PATTERN)  # whose jobs it sees: its own id, or that of the key it came to replace
    scopes: frozenset[Scope] = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    created_at: datetime
    expires_at: datetime | None = None
    requests_per_minute: _Quota | None = None  # None: as the settings have it; 0: no bound
    pixels_per_minute: _Quota | None = None

    @property
    def is_over(self) -> bool:
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=_VERSION, le=_VERSION)
    keys: list[ApiKey]


def new_key(
    name: str,
    scopes: Sequence[Scope],
    *,
    replaces: ApiKey | None = None,
    expires_at: datetime | None = None,
    requests_per_minute: int | None = None,
    pixels_per_minute: int | None = None,
) -> tuple[ApiKey, str]:
    """Make a key.

    Args:
        replaces: the key whose jobs it shall see too.

    Returns:
        What is kept of it, and the key: told this once, and nowhere kept.

    Raises:
        BadInput: name or scopes will not do.
    """
    key_id = secrets.token_hex(6)
    token = f"qf_{key_id}_{secrets.token_urlsafe(32)}"
    try:
        key = ApiKey(
            id=key_id,
            name=name,
            holder=replaces.holder if replaces else key_id,
            scopes=frozenset(scopes),
            sha256=_hash_of(token),
            created_at=datetime.now(UTC).replace(microsecond=0),
            expires_at=expires_at,
            requests_per_minute=requests_per_minute,
            pixels_per_minute=pixels_per_minute,
        )
    except ValidationError as err:
        raise BadInput(f"no key is made: {_findings(err)}") from None
    return key, token


def read_keys(path: Path) -> list[ApiKey]:
    """
    Raises:
        BadKeysFile: there is no such file, or it is not as it must be. The message shows nothing of what it holds.
    """
    try:
        file = _File.model_validate_json(path.read_bytes())
    except OSError as err:
        raise BadKeysFile(f"keys file {path} cannot be read: {err.strerror or err}") from err
    except ValidationError as err:
        raise BadKeysFile(f"keys file {path} is not as it must be: {_findings(err)}") from None
    if len({key.id for key in file.keys}) < len(file.keys):
        raise BadKeysFile(f"keys file {path} has an id twice")
    return file.keys


def add_key(path: Path, key: ApiKey) -> None:
    """Put a key in; the file, if there is none, is made for this user alone.

    Raises:
        BadKeysFile: what is there is no keys file.
    """
    with _locked(path):
        _write(path, [*(read_keys(path) if path.exists() else []), key])


def remove_key(path: Path, key_id: str) -> ApiKey:
    """
    Raises:
        BadInput: there is no such key.
        BadKeysFile
    """
    with _locked(path):
        known = read_keys(path)
        gone = next((key for key in known if key.id == key_id), None)
        if gone is None:
            raise BadInput(f"there is no key {key_id[:40]!r} in {path}")
        _write(path, [key for key in known if key.id != key_id])
    return gone


class KeyRing:
    """The keys as the file has them now: it is looked at with every call, and read again when it has changed.

    A file that is gone holds no keys: nobody is let in. One that cannot be read, such as one that is being edited,
    changes nothing until it can; the log says so.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            BadKeysFile: at the start there is nothing to fall back on.
        """
        self._path = path
        self._seen = _mark_of(path)
        self._keys = {key.id: key for key in read_keys(path)}
        self._warn_of_writers()

    def find(self, key_id: str, token: str) -> ApiKey:
        """
        Raises:
            NoKey: there is no such key, or no longer. Which of them it is, is not told.
        """
        self._refresh()
        key = self._keys.get(key_id)
        fits = hmac.compare_digest(_hash_of(token), key.sha256 if key else _NOBODYS)
        if key is None or not fits or key.is_over:
            raise NoKey(_UNKNOWN)
        return key

    def check(self, key_id: str) -> None:
        """For calls that last: has their key been revoked meanwhile?

        Raises:
            NoKey
        """
        self._refresh()
        key = self._keys.get(key_id)
        if key is None or key.is_over:
            raise NoKey(_UNKNOWN)

    def _refresh(self) -> None:
        seen = _mark_of(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        if seen is None:
            log.error("keys file %s is gone: no key is good until it is back", self._path)
            self._keys = {}
            return
        try:
            self._keys = {key.id: key for key in read_keys(self._path)}
        except BadKeysFile as err:
            log.error("%s; the keys known before stay in force", err)
            return
        log.info("keys file %s was read again: %d keys", self._path, len(self._keys))
        self._warn_of_writers()

    def _warn_of_writers(self) -> None:
        with suppress(OSError):
            if self._path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                log.warning("keys file %s can be written by others than its owner, who could add keys", self._path)


def _mark_of(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError:  # a disk that does not answer says nothing about the file
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_size)


def _hash_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _findings(err: ValidationError) -> str:
    """Where and why; pydantic's own text would show the values."""
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in err.errors()[:3])


def _write(path: Path, keys: Sequence[ApiKey]) -> None:
    """All of it or nothing, readable by this user alone from its first byte on."""
    document = {"version": _VERSION, "keys": [_shown(key) for key in keys]}
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _shown(key: ApiKey) -> dict[str, object]:
    """Scopes in order, so that two files can be compared."""
    return key.model_dump(mode="json", exclude_none=True) | {"scopes": sorted(key.scopes)}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time. Beside the file, for that one is replaced and its lock with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path.with_name(path.name + ".lock"), os.O_WRONLY | os.O_CREAT, 0o600), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
