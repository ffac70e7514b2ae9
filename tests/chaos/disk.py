"""Disks that can be full: a small file system where one may be mounted, else a limit on the files of each process."""

import os
import resource
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

_LIMIT_BYTES = 512  # smaller than any picture or video, larger than a process id


class Disk(Protocol):
    """What the data directory lies on."""

    name: str

    def fill(self, processes: Iterable[int]) -> None:
        """Leave no room; called again and again while it is to be full, for the service frees some now and then."""

    def free(self, processes: Iterable[int]) -> None: ...
    def close(self) -> None: ...


class SmallDisk:
    """A file system of its own, in memory."""

    def __init__(self, root: Path, size_bytes: int) -> None:
        """
        Raises:
            OSError: this process may not mount.
        """
        self.name = f"tmpfs of {size_bytes >> 20} MiB"
        self._root = root
        self._ballast = root / "ballast"
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "quietframe-chaos", str(root)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            raise PermissionError("nothing can be mounted here")

    def fill(self, processes: Iterable[int]) -> None:
        facts = os.statvfs(self._root)
        room = facts.f_bavail * facts.f_frsize
        if room:
            with self._ballast.open("ab") as file, suppress(OSError):  # somebody was faster
                os.posix_fallocate(file.fileno(), file.tell(), room)

    def free(self, processes: Iterable[int]) -> None:
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        # Lazily: a process that was killed may not have let go yet.
        subprocess.run(["umount", "--lazy", str(self._root)], check=True)


class FileLimit:
    """No process may write further than a few bytes into any file (EFBIG); needs no rights."""

    name = "RLIMIT_FSIZE, as nothing can be mounted here"

    def fill(self, processes: Iterable[int]) -> None:
        self._set(processes, _LIMIT_BYTES)

    def free(self, processes: Iterable[int]) -> None:
        self._set(processes, None)

    def close(self) -> None:
        pass

    def _set(self, processes: Iterable[int], soft: int | None) -> None:
        for pid in processes:
            with suppress(ProcessLookupError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if soft is None else soft, hard))


def small_disk(root: Path, size_bytes: int) -> Disk:
    try:
        return SmallDisk(root, size_bytes)
    except OSError:
        return FileLimit()
