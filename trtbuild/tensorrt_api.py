"""TensorRT says False or None when something fails, and the reason to a logger: the two are brought together here.

Imports `tensorrt`: ask `tensorrt_probe.why_not` first.
"""

import logging
from collections import deque
from itertools import count
from threading import Lock, get_ident
from typing import NamedTuple, TypeVar

import tensorrt as trt

from models.errors import QuietframeError
from trtbuild.engine import EngineFailed, OutOfDeviceMemory

log = logging.getLogger(__name__)

Given = TypeVar("Given")

_KEPT_LINES = 200
_TOLD_LINES = 8  # of them in an error's message
_SERIOUS = ("INTERNAL_ERROR", "ERROR")
_LEVELS = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING}
# In TensorRT's own lines, of GPU memory. A builder's warning that a kernel was passed over for it is none of them.
_NO_MEMORY = ("out of memory", "outofmemory", "not enough free memory", "could not be allocated")


class Line(NamedTuple):
    number: int
    thread: int
    severity: str
    text: str

    @property
    def is_serious(self) -> bool:
        return self.severity in _SERIOUS


class Log(trt.ILogger):
    """Keeps TensorRT's last warnings and errors. Builders, runtimes and engines need it for as long as they live."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._lines: deque[Line] = deque(maxlen=_KEPT_LINES)
        self._numbers = count()
        self._lock = Lock()

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        # Called from any thread, from code that knows no exceptions.
        level = _LEVELS.get(severity.name)
        if level is None:
            return
        with self._lock:
            self._lines.append(Line(next(self._numbers), get_ident(), severity.name, msg))
        log.log(level, "TensorRT: %s", msg)

    def mark(self) -> int:
        """A place in the log, for `since`."""
        with self._lock:
            return next(self._numbers)

    def since(self, mark: int = 0) -> list[Line]:
        """What was said after a mark: by this thread, or else, for TensorRT has threads of its own, by any."""
        with self._lock:
            lines = [line for line in self._lines if line.number >= mark]
        return [line for line in lines if line.thread == get_ident()] or lines

    def failed(self, what: str, mark: int = 0) -> QuietframeError:
        """The error that says what failed, and TensorRT's reason."""
        return failure(what, self.since(mark))

    def insist(self, given: Given | None, what: str, mark: int = 0) -> Given:
        """What TensorRT has given, if it is neither None nor False.

        Raises:
            EngineFailed, OutOfDeviceMemory: it is; the message says what failed, and TensorRT's reason.
        """
        if given is None or given is False:
            raise self.failed(what, mark)
        return given


def failure(what: str, lines: list[Line]) -> QuietframeError:
    """The error for what TensorRT has said."""
    serious = [line for line in lines if line.is_serious]
    told = [line.text for line in serious or lines][-_TOLD_LINES:]
    message = f"{what}: {' | '.join(told) if told else 'TensorRT gives no reason'}"
    lowered = " ".join(line.text for line in serious).lower()
    no_memory = any(words in lowered for words in _NO_MEMORY)
    return OutOfDeviceMemory(message) if no_memory else EngineFailed(message)


def shape_of(dims: trt.Dims) -> tuple[int, ...]:
    return tuple(dims[axis] for axis in range(len(dims)))
