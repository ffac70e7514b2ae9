"""How are blobs kept in a bucket of S3 and kin?

A bucket has no locks, and conditional requests are not to be had everywhere (there is none at all that would tell a
fresh write of the same bytes from an old one). So no object is ever written twice, and each says one thing for good:

    {name}/data-{time}-{id}       the bytes
    {name}/put-{time}-{id}        somebody put these bytes at that time (milliseconds since 1970, hexadecimal)
    {name}/doomed-{id}-{id}       somebody is about to delete the data object of the first id

A writer first says that it puts, then looks: data that is not doomed will stay, and nothing needs to be sent. A deleter
dooms the data it saw, then looks again: where somebody has put meanwhile, it lets go. Both tell before they look, so at
least one of them sees the other, and a deleter, however late its request comes, deletes only what nobody counts on. All
this leans on is that a listing shows what was written before it, which S3, Google's and Azure's stores and MinIO grant,
and that the clocks of the machines agree to well within the ages that deleters give.
"""

import hashlib
import io
import itertools
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

import obstore
from obstore.exceptions import BaseError

from service.blobs.copies import LocalCopies
from service.blobs.store import Blob, Method, gone, valid_name
from service.errors import NotReady

if TYPE_CHECKING:
    from obstore import ObjectMeta  # exists for type checkers only
    from obstore.store import ObjectStore
    from typing_extensions import Buffer  # in collections.abc from Python 3.12 on

    from service.blobs.links import BucketLinks

log = logging.getLogger(__name__)

_KEY = re.compile(r"[0-9a-f]{64}/(data|put|doomed)-([0-9a-f]{1,16})-([0-9a-f]{16})")
_CHUNK_BYTES = 1 << 20
# An upload holds as many parts as go at once in memory: 4 of 8 MiB. S3 takes 10 000 parts, so very large files get
# larger ones.
_PART_BYTES = 8 << 20
_PARTS_AT_ONCE = 4
_MOST_PARTS = 9_000
# What one request for a stretch of a blob brings to a reader: little at first, for a header, and more when the reading
# goes on. A reader keeps that much in memory, and the API has as many as it has downloads.
_FIRST_READ_BYTES = 256 << 10
_LONGEST_READ_BYTES = 1 << 20
_DOWNLOAD_BYTES = 8 << 20  # to a file; few go on at once
_LISTED_AT_ONCE = 1000
_PUNCTUAL_S = 1.0  # an upload that took no longer needs not be said again to have been put
_PUT_TRIES = 3
_MANY_PUTS = 8


@dataclass(slots=True)
class _Held:
    """What the bucket holds of one blob."""

    data: dict[str, int] = field(default_factory=dict)  # key: bytes. More than one where several put at once
    doomed: dict[str, list[str]] = field(default_factory=dict)  # id of a data object: the marks on it
    puts: dict[str, int] = field(default_factory=dict)  # key: when, in milliseconds
    last_put_ms: int = 0

    @property
    def is_safe(self) -> bool:
        """Whether there are bytes that no deleter is after."""
        return not all(map(self.is_doomed, self.data))

    def is_doomed(self, data: str) -> bool:
        return _id_of(data) in self.doomed


class BucketStore:
    """A `BlobStore` in a bucket, through obstore; `copies` holds what is needed as a file.

    Bytes that several put at the very same moment may lie there more than once, until they are deleted. Whatever the
    bucket fails to do is NotReady: it will be asked again.
    """

    def __init__(
        self,
        bucket: "ObjectStore",
        copies: LocalCopies,
        *,
        links: "Callable[[], BucketLinks] | None" = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            links: what signs addresses, called when the first is wanted; None where nothing does.
        """
        self._bucket = bucket
        self._copies = copies
        self._links = links
        self._clock = clock

    def put(self, source: BinaryIO) -> Blob:
        # The name is known when the last byte was read, and an upload needs it before the first.
        with self._copies.part() as part:
            digest = hashlib.sha256()
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                part.write(chunk)
            part.flush()
            return self._publish(Path(part.name), digest.hexdigest(), part.tell())

    def put_file(self, path: Path) -> Blob:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        blob = self._publish(path, digest, size)
        path.unlink()
        return blob

    def open(self, name: str) -> BinaryIO:
        key, size = self._find(name)
        return io.BufferedReader(_Stretches(partial(self._stretch, name), key, size), _LONGEST_READ_BYTES)

    @contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        key, size = self._find(name)
        with self._copies.hold(name, size, partial(self._download, name, key, size)) as path:
            yield path

    def delete(self, name: str, *, unused_for_s: float = 0.0) -> bool:
        seen = self._look(name)
        if unused_for_s > 0:
            if self._age_s(seen) < unused_for_s:
                return False
            marks = [self._doom(name, key) for key in seen.data]
            if self._age_s(self._look(name)) < unused_for_s:
                self._remove(marks)
                return False
        else:
            marks = []
        self._remove(list(seen.data))
        # Only now: who sees no mark any more must not see what was doomed either.
        self._remove([*marks, *itertools.chain.from_iterable(seen.doomed.values()), *seen.puts])
        return bool(seen.data)

    def names_older_than(self, seconds: float) -> Iterator[str]:
        for name, objects in itertools.groupby(self._list(None), lambda found: found["path"].partition("/")[0]):
            if self._age_s(_held(objects)) >= seconds:
                yield name

    def clean_unfinished(self, seconds: float) -> int:
        """Clean this disk. What killed uploads left in the bucket only a lifecycle rule of the bucket can delete."""
        return self._copies.clean_unfinished(seconds)

    def link(self, name: str, *, method: Method, ttl_s: float, content_type: str, disposition: str) -> str | None:
        key, _ = self._find(name)
        if self._links is None:
            return None
        return self._links().sign(
            key, method=method, ttl_s=int(ttl_s), content_type=content_type, disposition=disposition
        )

    def _publish(self, path: Path, name: str, size: int) -> Blob:
        for _ in range(_PUT_TRIES):
            said_at = self._clock()
            said_ms = int(said_at * 1000)
            put_id = f"{said_ms:x}-{secrets.token_hex(8)}"
            self._note(f"{name}/put-{put_id}")
            held = self._look(name)
            if held.is_safe:
                if len(held.puts) > _MANY_PUTS:
                    self._remove([key for key, put_ms in held.puts.items() if put_ms < said_ms])
                break
            self._upload(path, f"{name}/data-{put_id}", size)
            # A deleter who came before the note grew old has let go; after a long upload, say it again and look.
            if self._clock() - said_at <= _PUNCTUAL_S:
                break
        else:
            raise NotReady(f"blob {name} was deleted as often as it was put")
        self._copies.keep(path, name)
        return Blob(name=name, bytes=size, sha256=name)

    def _upload(self, path: Path, key: str, size: int) -> None:
        part_bytes = max(_PART_BYTES, -(-size // _MOST_PARTS))
        with _asked("take a blob"):
            obstore.put(self._bucket, key, path, chunk_size=part_bytes, max_concurrency=_PARTS_AT_ONCE)

    def _download(self, name: str, key: str, size: int, sink: IO[bytes]) -> None:
        digest = hashlib.sha256()
        done = 0
        while done < size:
            key, stretch = self._stretch(name, key, done, min(done + _DOWNLOAD_BYTES, size))
            digest.update(stretch)
            done += sink.write(stretch)
        if digest.hexdigest() != name:
            log.error("blob %s is damaged in the bucket", name)
            raise OSError(f"blob {name} came damaged from the bucket")

    def _stretch(self, name: str, key: str, first: int, end: int) -> "tuple[str, Buffer]":
        """The bytes from `first` to before `end`, and the key they came from: another than before, if that is gone.

        Raises:
            ResultGone: the blob is.
        """
        with _asked("give a blob"):
            with suppress(FileNotFoundError):
                return key, obstore.get_range(self._bucket, key, start=first, end=end)
            key, _ = self._find(name)
            return key, obstore.get_range(self._bucket, key, start=first, end=end)

    def _find(self, name: str) -> tuple[str, int]:
        """A data object of the blob, and its size.

        Raises:
            ResultGone: there is none.
        """
        held = self._look(name)
        # A doomed one only where there is no other: it may go any moment.
        best = min(held.data, key=lambda key: (held.is_doomed(key), key), default=None)
        if best is None:
            raise gone(name)
        return best, held.data[best]

    def _age_s(self, held: _Held) -> float:
        return self._clock() - held.last_put_ms / 1000

    def _look(self, name: str) -> _Held:
        return _held(self._list(valid_name(name)))

    def _list(self, prefix: str | None) -> "Iterator[ObjectMeta]":
        """The objects of ours; a bucket may hold other people's too."""
        with _asked("list what it holds"):
            for found in obstore.list(self._bucket, prefix, chunk_size=_LISTED_AT_ONCE):
                yield from (one for one in found if _KEY.fullmatch(one["path"]))

    def _doom(self, name: str, data: str) -> str:
        mark = f"{name}/doomed-{_id_of(data)}-{secrets.token_hex(8)}"
        self._note(mark)
        return mark

    def _note(self, key: str) -> None:
        with _asked("take a note"):
            obstore.put(self._bucket, key, b"")

    def _remove(self, keys: Sequence[str]) -> None:
        if keys:
            # Gone already is as good: some stores tell, some do not.
            with _asked("delete a blob"), suppress(FileNotFoundError):
                obstore.delete(self._bucket, keys)


class _Stretches(io.RawIOBase):
    """A blob in a bucket as a file: seekable, one request for each stretch, which grows while the reading goes on."""

    def __init__(self, stretch: "Callable[[str, int, int], tuple[str, Buffer]]", key: str, size: int) -> None:
        self._stretch = stretch
        self._key = key
        self._size = size
        self._at = 0
        self._expected_at = 0  # where a reader who reads on will read
        self._ahead = _FIRST_READ_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError(f"position is {at}; a file begins at 0")
        self._at = at
        return at

    def readall(self) -> bytes:
        # The inherited one asks for 8 KiB at a time, and here each time is a request.
        return b"".join(iter(partial(self.read, _LONGEST_READ_BYTES), b""))

    def readinto(self, target: "Buffer", /) -> int:
        view = memoryview(target).cast("B")
        if self._at != self._expected_at:
            self._ahead = _FIRST_READ_BYTES
        length = min(len(view), self._ahead, self._size - self._at)
        if length <= 0:
            return 0
        self._key, stretch = self._stretch(self._key, self._at, self._at + length)
        view[:length] = memoryview(stretch)
        self._at += length
        self._expected_at = self._at
        self._ahead = min(2 * self._ahead, _LONGEST_READ_BYTES)
        return length


def _id_of(data: str) -> str:
    return data.rpartition("-")[2]


def _held(objects: "Iterable[ObjectMeta]") -> _Held:
    held = _Held()
    for found in objects:
        key = found["path"]
        parts = _KEY.fullmatch(key)
        assert parts, "only our own are listed"
        what, first, _ = parts.groups()
        if what == "doomed":
            held.doomed.setdefault(first, []).append(key)
            continue
        if what == "data":
            held.data[key] = found["size"]
        else:
            held.puts[key] = int(first, 16)
        held.last_put_ms = max(held.last_put_ms, int(first, 16))
    return held


@contextmanager
def _asked(what: str) -> Iterator[None]:
    """Whatever obstore raises means that the bucket cannot be used now.

    Its words may hold addresses, and a store's answers name the keys they were signed with: neither callers nor the
    log get to see them.
    """
    try:
        yield
    except (BaseError, OSError, ValueError) as err:
        log.warning("the blob store could not %s: %s", what, _reason(err))
        raise NotReady(f"the blob store cannot {what} now; the service's log has the reason") from None


def _reason(err: Exception) -> str:
    """What an operator needs, picked from words that were not made to be shown."""
    words = str(err)
    status = re.search(r"status code: (\d{3})", words)
    code = re.search(r"<Code>(\w{1,60})</Code>", words)
    kind = re.search(r"kind: (Connect|Timeout|Decode|Interrupted|Request)\b", words)
    told = [type(err).__name__, *(f"{found[1]}" for found in (kind, status, code) if found)]
    return ", ".join(told)
