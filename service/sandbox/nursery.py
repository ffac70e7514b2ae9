"""How does a worker get, within a millisecond, a fresh process that can do nothing but decode?

Loading the decoders takes longer than most images do. So a process of its own loads them once, meets no input ever, and
only forks: one child a job, one of them made in advance. A child gets descriptors, puts on its bonds, works and ends;
nothing of one job is left for the next. Should this process be gone, they end with the worker's end of the channel: the
nursery reads from it, and the kernel ends the children with the nursery.
"""

import ctypes
import gc
import logging
import os
import select
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from service import confinement
from service.errors import BadInput, Indivisible
from service.sandbox import wire

log = logging.getLogger(__name__)

REQUEST = struct.Struct(">cQ")  # what to do, and with which child
START, KILL = b"S", b"K"
STATUS = struct.Struct(">i")  # how a child ended, as `waitpid` tells it
_PR_SET_PDEATHSIG = 1
_LIKELY_VICTIM = "500"  # of -1000 to 1000: where memory runs out, let a decoder go before the worker


def main(control: socket.socket) -> None:
    """Serve until the worker is gone.

    A request comes as `REQUEST`; to start, with the child's end of its channel, a pipe's end to write its status into,
    and the files it works on.
    """
    # Ctrl-C reaches all of the terminal; the worker says what is to be done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    from service.sandbox import tasks

    tasks.load()
    confinement.prepare()
    gc.collect()
    gc.freeze()  # else the first collection in a child would write to, and so copy, all that it shares
    _Nursery(control).serve()


class _Nursery:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._running: dict[int, tuple[int, int]] = {}  # process -> the worker's number for it, status pipe
        self._spare: tuple[int, socket.socket] | None = None
        self._woken, wakes = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(wakes, False)
        self._wakes = wakes
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _heard)

    def serve(self) -> None:
        self._spare = self._bear()
        self._control.sendall(b"!")  # ready
        while True:
            if self._spare is None:
                self._spare = self._bear()
            ready, _, _ = select.select([self._control.fileno(), self._woken], [], [])
            if self._woken in ready:
                with suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._obey():
                return

    def _obey(self) -> bool:
        text, descriptors = wire.receive_descriptors(self._control, REQUEST.size)
        if len(text) < REQUEST.size:
            return False
        what, number = REQUEST.unpack(text)
        if what == KILL:
            for process, (known, _) in self._running.items():
                if known == number:
                    os.kill(process, signal.SIGKILL)  # not reaped yet, so it is still its own
            return True
        channel, status, *files = descriptors
        if self._spare is None:
            self._spare = self._bear()
        process, feed = self._spare
        self._spare = None
        self._running[process] = (number, status)
        with suppress(OSError):  # it died in this moment: its status says so
            wire.send_descriptors(feed, [channel, *files])
        feed.close()
        for descriptor in (channel, *files):
            os.close(descriptor)
        return True

    def _reap(self) -> None:
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not process:
                return
            if self._spare and process == self._spare[0]:
                self._spare[1].close()
                self._spare = None
            elif process in self._running:
                _, pipe = self._running.pop(process)
                with suppress(OSError):
                    os.write(pipe, STATUS.pack(status))
                os.close(pipe)

    def _bear(self) -> tuple[int, socket.socket]:
        feed, theirs = socket.socketpair()
        parent = os.getpid()
        process = os.fork()
        if process:
            theirs.close()
            return process, feed
        try:
            _die_with(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (self._woken, self._wakes, *(pipe for _, pipe in self._running.values())):
                os.close(descriptor)
            feed.close()
            self._control.close()
            _live(theirs)
        except BaseException:  # nothing may return into the nursery's own loop
            traceback.print_exc()
        os._exit(1)


def _heard(number: int, frame: FrameType | None) -> None:
    """The wake-up pipe is what is read."""


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _live(feed: socket.socket) -> NoReturn:
    """Wait to be needed, do one thing, end."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(_LIKELY_VICTIM)
    text, descriptors = wire.receive_descriptors(feed)
    feed.close()
    if not text:
        os._exit(0)  # the nursery ended, and nobody needed this one
    channel = socket.socket(fileno=descriptors[0])
    # What libraries print about a file is nobody's to read, and could fill a disk with logs.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    _answer(channel, descriptors[1:])
    os._exit(0)


def _answer(channel: socket.socket, files: list[int]) -> None:
    from service.sandbox import tasks

    order = wire.receive(channel)
    if order is None:
        return
    bounds = order.said["bounds"]
    confinement.limit(**bounds)
    layers = confinement.confine()
    if confinement.SECCOMP not in layers:
        confinement.allow_no_children()
    threads = 0 if confinement.SECCOMP in layers else 1
    talk = tasks.Talk(channel, files, threads=threads, layers=layers)
    try:
        tasks.TASKS[order.said["task"]](talk, order.said["told"])
    except (BadInput, Indivisible) as err:
        _say(channel, type(err).__name__, str(err))
    except MemoryError:
        _say(
            channel, "BadInput", f"it takes more than the allowed {bounds.get('data_bytes')} bytes of memory to decode"
        )
    except (BrokenPipeError, ConnectionResetError):
        pass  # the worker has no more use for it
    except OSError as err:
        _say(channel, "OSError", err.strerror or str(err), errno=err.errno)
    except Exception:
        _say(channel, "Exception", traceback.format_exc(limit=-8)[-4000:])


def _say(channel: socket.socket, error: str, message: str, **more: Any) -> None:
    with suppress(OSError):
        wire.send(channel, {"error": error, "message": message[:4000], **more})
        while wire.receive(channel) is not None:  # the worker may still be talking
            pass
