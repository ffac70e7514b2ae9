"""What must a place for blobs be able to do?"""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from service.errors import ResultGone

NAME_PATTERN = re.compile(r"[0-9a-f]{64}")

Method = Literal["GET", "HEAD"]


@dataclass(frozen=True, slots=True)
class Blob:
    """Stored bytes. Two uploads of the same bytes are one blob."""

    name: str
    bytes: int
    sha256: str  # hexadecimal


class BlobStore(Protocol):
    """Keeps blobs until they are deleted. Safe for many threads and processes at once.

    Every method that takes a name raises ResultGone where no such blob is, and for a name that no blob can have: a name
    that came from outside reaches nothing but blobs. A store that does not answer is
    NotReady, whatever was asked of it.
    """

    def put(self, source: BinaryIO) -> Blob:
        """Store what is left to read of `source`, in a stream; on return it is on the disk.

        Bytes that are there already are not stored twice, but count as fresh again (see `names_older_than`).
        """

    def put_file(self, path: Path) -> Blob:
        """Store a file by moving it: on return `path` is no more."""

    def open(self, name: str) -> BinaryIO:
        """Open for reading; the caller closes it."""

    def fetch(self, name: str) -> AbstractContextManager[Path]:
        """A local file with the blob's bytes, to be read only, and only inside the `with`."""

    def delete(self, name: str, *, unused_for_s: float = 0.0) -> bool:
        """Delete, unless somebody put the same bytes in the last `unused_for_s` seconds; False if nothing was deleted.

        The age is for deleters who have counted references: between their count and the deletion somebody may have put
        the same bytes again, and be about to refer to them. A blob that is not there is no error.
        """

    def names_older_than(self, seconds: float) -> Iterator[str]:
        """Blobs that nobody has put for so long."""

    def clean_unfinished(self, seconds: float) -> int:
        """Delete what writers left behind that have not written for so long; how many were deleted."""

    def link(self, name: str, *, method: Method, ttl_s: float, content_type: str, disposition: str) -> str | None:
        """An address from which anybody may read the blob for so long; None where the store gives out none.

        Args:
            method: what it will be asked with; a HEAD for a GET's address is refused.
            content_type, disposition: headers that the answer shall have.
        """


def valid_name(name: str) -> str:
    """The name itself, if a blob can have it.

    Raises:
        ResultGone: it is not 64 lower-case hexadecimal digits.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise ResultGone("no blob has such a name; blobs are named by 64 hexadecimal digits")
    return name


def gone(name: str) -> ResultGone:
    return ResultGone(f"blob {name} is not, or no longer, in the store")
