"""How is a file read that is already open, by somebody who may open none, and from several places at once?"""

import io
import os
from typing import Any, BinaryIO, Protocol, cast

_READ_BYTES = 16 * 1024**2


class Source(Protocol):
    """What can be opened for reading, any number of times: a path, or a file that is held open."""

    def open(self, mode: Any = "rb", /) -> Any:
        """A seekable binary file, with a position of its own."""


class HeldFile:
    """An open descriptor as a `Source`. It stays its owner's to close."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def open(self, mode: str = "rb", /) -> BinaryIO:
        if mode == "rb":
            return cast("BinaryIO", io.BufferedReader(_Place(self._descriptor)))
        return cast("BinaryIO", _Place(self._descriptor))


class _Place(io.RawIOBase):
    """A position in a file that others have theirs in."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._at = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._descriptor, len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Without it, a file would be read in pieces of 8 KiB."""
        size = max(0, os.fstat(self._descriptor).st_size - self._at)
        if size <= _READ_BYTES:
            return self.read(size + 1) or b""
        data = bytearray()
        while piece := self.read(_READ_BYTES):
            data += piece
        return bytes(data)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += os.pwrite(self._descriptor, view[done:], self._at + done)
        self._at += done
        return done

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._at, os.fstat(self._descriptor).st_size if whence == 2 else 0)[whence]
        if base + offset < 0:
            raise ValueError(f"there is no place {base + offset} in a file")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at
