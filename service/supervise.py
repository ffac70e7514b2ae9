"""How are the service's processes kept alive, and how are they ended?

A child that dies is started again, slower each time it dies young. One that takes more memory than it may is killed:
its job goes to another worker and, if it is the job that is at fault, in the end to the dead letters.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event

from models.errors import QuietframeError
from service.processes import (
    CANNOT_RUN_HERE,
    dies_with_parent,
    resident_bytes,
    tells_memory,
    usable_cores,
)
from service.settings import Settings
from trtbuild.gpus import nvidia_gpus

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.2
YOUNG_S = 10.0  # a child that dies younger than this has something wrong with it
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
UNKILLABLE_S = 5.0  # a process that waits for a dead disk or driver cannot be killed
KILL_AFTER_S = 10.0  # beyond the time to drain: handing back takes a moment too
# -P: with -m, Python would look first where the user stands, and there may be a folder `models` or a file `queue.py`.
SERVICE = (sys.executable, "-P", "-m", "service")


class CannotStart(QuietframeError):
    """The service cannot run here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a child runs."""

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(repr=False)  # it holds the queue's password
    inherited: tuple[int, ...] = ()  # file descriptors
    memory_bytes: int = 0  # that it and its own children may hold; 0 sets no bound
    port: int | None = None  # where its figures are to be had


class Pool:
    """Children that are kept running. To be used from the main thread, or they would not end with this process."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self._children = [_Child(program) for program in programs]
        if any(program.memory_bytes for program in programs) and not tells_memory():
            log.warning("this system does not tell how much memory a process holds: no bound on it is kept")

    def start(self) -> None:
        for child in self._children:
            child.start()

    def look(self) -> None:
        """See to each child once; to be called every `LOOK_EVERY_S`.

        Raises:
            CannotStart: one said at its first start that it can never run here.
        """
        for child in self._children:
            child.watch_memory()
            child.keep()

    def bury_orphans(self) -> None:
        """Let go of what dead children have left, and of what is no child of the pool's: it is the first process that
        has to ask how they ended, or each would keep its number for ever.
        """
        own = {child.pid for child in self._children}
        with suppress(ChildProcessError):  # there are none
            while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if dead.si_pid in own:
                    return  # seen to by the next look
                os.waitpid(dead.si_pid, os.WNOHANG)

    def failed_to_start(self) -> str | None:
        """Which child ended by itself, and how; one that was killed is another matter."""
        for child in self._children:
            status = child.status
            if status is not None and status >= 0:
                return f"{child.program.name} ended with status {status} while starting"
        return None

    def stop(self, within_s: float) -> None:
        """Ask all to stop at once, in the order they were given; kill what still runs when the time is up."""
        deadline = time.monotonic() + within_s
        for child in self._children:  # at once: a worker that went on would take what another hands back
            child.ask_to_stop()
        while running := [child for child in self._children if child.is_running]:
            late = time.monotonic() >= deadline
            for child in running:
                if late:
                    log.warning("%s did not stop in time; killing it", child.program.name)
                    child.kill()
                else:
                    child.watch_memory()
            time.sleep(0.02)


def run_workers(settings: Settings, redis_url: str, *, stop: Event) -> None:
    """Keep the workers of this machine running until `stop` is set (SIGINT and SIGTERM set it too).

    Raises:
        CannotStart: a worker can never run here, or a port for its figures is taken.
    """
    stop_on_signals(stop)
    programs = worker_programs(settings, redis_url)
    check_ports_of(programs, settings)
    pool = Pool(programs)
    try:
        pool.start()
        while not stopped_within(LOOK_EVERY_S, stop):
            pool.look()
            if os.getpid() == 1:  # of a container that has no init
                pool.bury_orphans()
        log.info("stopping")
    finally:
        pool.stop(settings.drain_s + KILL_AFTER_S)


def stop_on_signals(stop: Event) -> None:
    """Let SIGINT and SIGTERM set `stop`. A second one changes nothing: the children hear of it from us, not from it."""
    on_first_signal(stop.set)


def on_first_signal(act: Callable[[], None]) -> None:
    """Do it at the first SIGINT or SIGTERM, and nothing at those that follow.

    `Event.set` holds a lock that the handler of a second signal would wait for without end.
    """

    def hear(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # not SIG_IGN, which children would inherit
        act()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hear)


def stopped_within(seconds: float, stop: Event) -> bool:
    """Wait; end early when `stop` is set.

    Instead of `Event.wait`: that holds a lock for moments which `set`, called by a signal handler of the same thread,
    would wait for without end.
    """
    until = time.monotonic() + seconds
    while not stop.is_set() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))
    return stop.is_set()


def worker_programs(settings: Settings, redis_url: str) -> list[Program]:
    """One for each worker process that the settings ask for, with its share of the machine."""
    gpus = nvidia_gpus() if settings.workers != 1 else []
    count = settings.workers or max(1, len(gpus))
    first_port = settings.worker_metrics_port
    environment = environment_of(settings, redis_url)
    if count > 1 and not settings.threads:
        # Each engine would take all cores; they would only wait for one another.
        environment["QUIETFRAME_THREADS"] = str(max(1, usable_cores() // count))
    return [
        Program(
            name=f"worker {number}",
            command=[*SERVICE, "worker-process"],
            environment=environment
            | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})
            | ({} if first_port is None else {"QUIETFRAME_WORKER_METRICS_PORT": str(first_port + number)}),
            memory_bytes=settings.worker_memory_bytes,
            port=None if first_port is None else first_port + number,
        )
        for number in range(count)
    ]


def check_ports_of(programs: Sequence[Program], settings: Settings) -> None:
    """Said by the children, a port that is taken would be lost among their log lines.

    Raises:
        CannotStart: one is.
    """
    for program in programs:
        if program.port is None:
            continue
        where = f"{settings.host}:{program.port}"
        try:
            family, kind, _, _, address = socket.getaddrinfo(settings.host, program.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as err:
            raise CannotStart(f"{program.name} cannot tell its figures on {where}: {err.strerror or err}") from err


def environment_of(settings: Settings, redis_url: str) -> dict[str, str]:
    """Every setting as its variable, so that children see what the command line said."""
    said = {
        f"QUIETFRAME_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.model_dump(mode="json").items()
        if value is not None
    }
    said["QUIETFRAME_DATA_DIR"] = str(settings.data_dir.resolve())
    return os.environ | said | {"QUIETFRAME_REDIS_URL": redis_url}


class _Child:
    """A process that is kept running."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._died_at: float | None = None
        self._pause_s = 0.0
        self._starts = 0

    @property
    def pid(self) -> int | None:
        """Of the process that was last started."""
        return self._process.pid if self._process else None

    @property
    def status(self) -> int | None:
        """How it ended; None while it runs, and before it does."""
        return self._process.poll() if self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self._started_at, self._died_at = time.monotonic(), None
        self._starts += 1
        self._process = subprocess.Popen(
            self.program.command,
            env=self.program.environment,
            pass_fds=self.program.inherited,
            stdin=subprocess.DEVNULL,
            # Ctrl-C is for the parent, which stops its children in order; what it kills, it kills with its children.
            start_new_session=True,
            preexec_fn=dies_with_parent(),
        )

    def keep(self) -> None:
        """Start again what has died, after a pause that doubles while it dies young."""
        if self.status is None:
            return
        if self.status == CANNOT_RUN_HERE and self._starts == 1:
            raise CannotStart(f"{self.program.name} cannot run here; it has said why")
        now = time.monotonic()
        if self._died_at is None:
            self._died_at = now
            young = now - self._started_at < YOUNG_S
            self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, self._pause_s * 2)) if young else 0.0
            log.warning("%s died (%s); starting it again in %.1f s", self.program.name, self.status, self._pause_s)
        if now - self._died_at >= self._pause_s:
            try:
                self.start()
            except (OSError, subprocess.SubprocessError) as err:
                # No memory or no process number left for now: it counts as one more death.
                log.error("%s cannot be started now: %s", self.program.name, err)

    def watch_memory(self) -> None:
        """Kill it if it holds more than it may."""
        bound = self.program.memory_bytes
        if not bound or not self.is_running or self._process is None:
            return
        held = resident_bytes(self._process.pid)
        if held > bound:
            log.error(
                "%s (process %d) holds %d bytes of memory; at most %d are allowed; killing it",
                self.program.name,
                self._process.pid,
                held,
                bound,
            )
            self.kill()

    def ask_to_stop(self) -> None:
        if self._process and self.is_running:
            self._process.terminate()

    def kill(self) -> None:
        """End it and all that it has started."""
        if self._process and self.is_running:
            with suppress(ProcessLookupError, PermissionError):  # it ended in this moment; the latter is macOS's answer
                os.killpg(self._process.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
            try:
                self._process.wait(UNKILLABLE_S)
            except subprocess.TimeoutExpired:
                log.error("%s (process %d) hangs in the kernel, and is left", self.program.name, self._process.pid)
