"""A decoder as the worker has it: a process that works on one file, and whose death is that file's fault, or not."""

import atexit
import logging
import math
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from models.errors import QuietframeError
from service import confinement
from service.errors import BadInput, FrameTooLarge, Indivisible, UnknownFormat
from service.sandbox import nursery, wire
from service.settings import Settings

log = logging.getLogger(__name__)

_ROOT = str(Path(__file__).resolve().parents[2])
# Isolated mode (-I) keeps the current directory and PYTHON* variables from choosing what runs.
_NURSERY = (
    "import sys, socket; sys.path.insert(0, sys.argv[1]); from service.sandbox.nursery import main; "
    "main(socket.socket(fileno=int(sys.argv[2])))"
)
_DEATH_IS_TOLD_S = 10.0  # how long a dead child's status may take to be told
_STARTS_WITHIN_S = 120.0  # the nursery loads its libraries, perhaps from a cold disk
# Signals that somebody else sent: the kernel out of memory, an operator. The others are the child's own doing.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SHORT = ("hello", "image", "timeline", "scan")  # tasks that do not go on for as long as a video is
_ERRORS: dict[str, type[QuietframeError]] = {
    cls.__name__: cls for cls in (BadInput, FrameTooLarge, UnknownFormat, Indivisible)
}


class DecoderLost(QuietframeError):
    """The decoder is gone, and the input is not to blame; another try may go better."""


class Decoder:
    """A child at work. Leaving its `with` ends it, whatever it does."""

    def __init__(
        self, task: str, files: Sequence[int], told: dict[str, Any], settings: Settings, *, writes: bool = False
    ) -> None:
        """
        Args:
            task: one of `tasks.TASKS`.
            files: descriptors that the child gets; they stay the caller's to close.
            told: what it is to know, as JSON can say it.
            writes: whether one of the files is to be written.
        """
        self._patience_s = self._left_s = settings.decode_timeout_s
        self._memory_bytes = settings.decode_memory_bytes
        self._number, self._channel, self._status = _nursery.start(files)
        bounds: dict[str, int | None] = {"data_bytes": self._memory_bytes, "written_bytes": None if writes else 0}
        if task in _SHORT:
            bounds["cpu_s"] = math.ceil(2 * self._patience_s)
        self.send({"task": task, "told": told, "bounds": bounds})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill it, if it still lives. A second call does nothing."""
        if self._status < 0:
            return
        self._channel.close()
        _nursery.kill(self._number)
        os.close(self._status)
        self._status = -1

    def send(self, said: dict[str, Any], *blocks: "bytes | bytearray | memoryview") -> None:
        """
        Raises:
            BadInput, DecoderLost: as `receive`.
        """
        try:
            self._channel.settimeout(self._patience_s)
            wire.send(self._channel, said, *blocks)
        except TimeoutError:
            raise self._too_slow() from None
        except OSError:
            self._explain()

    def tell(self, said: dict[str, Any]) -> None:
        """`send` what need not arrive: should it be dead, its last words come first."""
        with suppress(OSError):
            self._channel.settimeout(self._patience_s)
            wire.send(self._channel, said)

    def give(self, descriptor: int) -> None:
        try:
            self._channel.settimeout(self._patience_s)
            wire.send_descriptors(self._channel, [descriptor])
        except OSError:
            self._explain()

    def receive(self) -> wire.Message:
        """Wait for the next thing it says.

        Raises:
            BadInput: it says so of its file, or takes too long over it, or died of it.
            Indivisible: likewise.
            DecoderLost: it was ended from outside.
        """
        started = time.monotonic()
        try:
            message = wire.receive(self._channel, max(0.001, self._left_s))
        except TimeoutError:
            raise self._too_slow() from None
        except wire.Garbled as err:
            self._explain(str(err))
        except OSError:
            self._explain()
        self._left_s -= time.monotonic() - started
        if message is None:
            self._explain()
        if "error" in message.said:
            _raise(message.said)
        return message

    def made_progress(self, worth_s: float) -> None:
        """Something came of it: so much more patience it has earned."""
        self._left_s = min(self._patience_s, self._left_s + worth_s)

    def _too_slow(self) -> BadInput:
        return BadInput(f"it takes more than the allowed {self._patience_s:g} s to decode")

    def _explain(self, otherwise: str = "") -> NoReturn:
        """Say why nothing more comes: the child's last words, or how it died."""
        with suppress(OSError, wire.Garbled):
            while (last := wire.receive(self._channel, 1.0)) is not None:
                if "error" in last.said:
                    _raise(last.said)
        self._channel.close()
        ready, _, _ = select.select([self._status], [], [], _DEATH_IS_TOLD_S)
        told = os.read(self._status, nursery.STATUS.size) if ready else b""
        if len(told) < nursery.STATUS.size:
            if ready:
                _nursery.forget()
            raise DecoderLost("the decoder is gone, and nobody knows how")
        (status,) = nursery.STATUS.unpack(told)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number in _FROM_OUTSIDE:
                raise DecoderLost(f"the decoder was ended from outside (signal {number})")
            name = signal.Signals(number).name if number in signal.valid_signals() else str(number)
            raise BadInput(f"the decoder died of it ({name})")
        raise BadInput(f"the decoder failed on it (status {os.WEXITSTATUS(status)}{otherwise and ', ' + otherwise})")


class Shared:
    """Memory that a decoder fills and the worker reads, without a copy between."""

    def __init__(self, size_bytes: int) -> None:
        if hasattr(os, "memfd_create"):
            import fcntl

            self.descriptor = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.descriptor, size_bytes)
            # Were it cut short by the child, reading it here would end the worker.
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        else:
            with tempfile.TemporaryFile() as file:
                file.truncate(size_bytes)
                self.descriptor = os.dup(file.fileno())
        self._map = mmap.mmap(self.descriptor, size_bytes)

    def array(self, shape: Sequence[int], dtype: "np.dtype[Any]", offset: int = 0) -> NDArray[Any]:
        """The memory itself; it stays for as long as an array looks at it."""
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._map, dtype, count, offset).reshape(shape)

    def close_descriptor(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class _NurseryHandle:
    """The process that makes decoders; started when the first is wanted, and again should it be gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._count = 0

    def start(self, files: Sequence[int]) -> tuple[int, socket.socket, int]:
        """
        Returns:
            The child's number, our end of its channel, and a pipe that tells how it ended.

        Raises:
            DecoderLost: no child can be made now.
        """
        ours, theirs = socket.socketpair()
        told, tells = os.pipe()
        try:
            with self._lock:
                self._count += 1
                number = self._count
                self._ask(nursery.START, number, [theirs.fileno(), tells, *files])
        except OSError as err:
            ours.close()
            os.close(told)
            raise DecoderLost(f"no decoder can be started: {err.strerror or err}") from err
        finally:
            theirs.close()
            os.close(tells)
        return number, ours, told

    def kill(self, number: int) -> None:
        with self._lock, suppress(OSError):
            if self._control is not None:
                self._control.sendall(nursery.REQUEST.pack(nursery.KILL, number))

    def forget(self) -> None:
        """It is gone: the next decoder gets a new one."""
        with self._lock:
            self._end()

    def end(self) -> None:
        with self._lock:
            self._end()

    def _ask(self, what: bytes, number: int, descriptors: list[int]) -> None:
        for last_try in (False, True):
            if self._control is None or self._process is None or self._process.poll() is not None:
                self._end()
                self._begin()
            assert self._control is not None
            try:
                wire.send_descriptors(self._control, descriptors, nursery.REQUEST.pack(what, number))
                return
            except (BrokenPipeError, ConnectionResetError):
                self._end()
                if last_try:
                    raise

    def _begin(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _NURSERY, _ROOT, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # A pool of threads would not be there in the children; and macOS's libraries are told that we know.
                env={**os.environ, **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")}
                | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._control = ours
        # A job must not be blamed for the time that loading takes.
        ours.settimeout(_STARTS_WITHIN_S)
        if not ours.recv(1):
            raise OSError("the process that makes decoders does not start")
        ours.settimeout(None)

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


_nursery = _NurseryHandle()
atexit.register(_nursery.end)


def warm_up(settings: Settings) -> list[str]:
    """Have the first decoder ready, and say what holds it; worth a warning where that is little."""
    with Decoder("hello", [], {}, settings) as decoder:
        layers = [str(layer) for layer in decoder.receive().said["layers"]]
    if confinement.SECCOMP in layers:
        log.info("decoders are held by: limits, %s", ", ".join(layers))
    else:
        log.warning(
            "decoders are held by: limits%s; not by a filter of system calls", "".join(f", {x}" for x in layers)
        )
    return layers


def _raise(said: dict[str, Any]) -> NoReturn:
    kind, message = said.get("error"), str(said.get("message"))
    if kind in _ERRORS:
        raise _ERRORS[kind](message)
    if kind == "OSError":
        number = said.get("errno")
        raise OSError(number if isinstance(number, int) else 0, message)
    raise DecoderLost(f"the decoder failed: {message}")
