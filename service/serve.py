"""Runs the whole service on one machine: the embedded queue, the API and the workers, each a process.

The listening socket belongs to this process and outlives a crash of the API: clients wait, they are not refused. A
child that dies is started again, slower each time it dies young.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Event

from models.errors import QuietframeError
from service.broker.embedded import EmbeddedServer
from service.errors import NotReady
from service.processes import dies_with_parent
from service.settings import Settings

log = logging.getLogger(__name__)

READY_WITHIN_S = 120.0
YOUNG_S = 10.0  # a child that dies younger than this has something wrong with it
LONGEST_PAUSE_S = 30.0
LOOK_EVERY_S = 0.2
QUEUE_PAUSE_S = 2.0
KILL_AFTER_S = 10.0  # beyond the time to drain
LISTEN_FD = "QUIETFRAME_LISTEN_FD"  # how the API process is told of the inherited socket


class CannotStart(QuietframeError):
    """The service cannot run here; the message says why."""


@dataclass
class _Child:
    """A process that is kept running."""

    name: str
    command: Sequence[str]
    environment: dict[str, str]
    inherited: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    died_at: float | None = None
    pause_s: float = 0.0

    def start(self) -> None:
        self.started_at, self.died_at = time.monotonic(), None
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            pass_fds=self.inherited,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent, which stops its children in order
            preexec_fn=dies_with_parent(),
        )

    def keep(self) -> None:
        """Start again what has died, after a pause that doubles while it dies young."""
        if self.process is None or self.process.poll() is None:
            return
        now = time.monotonic()
        if self.died_at is None:
            self.died_at = now
            young = now - self.started_at < YOUNG_S
            self.pause_s = min(LONGEST_PAUSE_S, max(0.5, self.pause_s * 2)) if young else 0.0
            log.warning("%s died (%s); starting it again in %.1f s", self.name, self.process.returncode, self.pause_s)
        if now - self.died_at >= self.pause_s:
            self.start()

    def ask_to_stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()

    def wait(self, deadline: float) -> None:
        """Wait for its end; kill it at the deadline."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("%s did not stop in time; killing it", self.name)
            self.process.kill()
            self.process.wait()


def serve(settings: Settings, *, on_ready: Callable[[str], None], stop: Event) -> None:
    """Run until `stop` is set (SIGINT and SIGTERM set it too).

    Args:
        settings: of the whole service.
        on_ready: told the base URL once a request would be answered.
        stop: ends it.

    Raises:
        CannotStart: the port is taken, the data directory is in use or not writable, or nothing got ready in time.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as cleanup:
        listener = cleanup.enter_context(_listen(settings))
        host, port = listener.getsockname()[:2]
        base_url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        try:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise CannotStart(f"data directory {settings.data_dir} cannot be made: {err.strerror}") from err
        url, queue = settings.redis_url, None
        if url is None:
            queue = EmbeddedServer(settings.data_dir)
            queue.start()
            cleanup.callback(queue.stop)
            url = queue.url
        environment = _environment(settings, url)
        command = [sys.executable, "-m", "service"]
        descriptor = listener.fileno()
        api = _Child("api", [*command, "api"], environment | {LISTEN_FD: str(descriptor)}, inherited=(descriptor,))
        workers = [_Child(f"worker {number}", [*command, "worker"], environment) for number in range(settings.workers)]
        # The queue is stopped after this, whatever happens.
        cleanup.callback(_stop_all, api, workers, listener, settings.drain_s)
        for child in (*workers, api):
            child.start()
        _wait_until_ready(base_url, [api, *workers], stop)
        if not stop.is_set():
            on_ready(base_url)
        while not stop.wait(LOOK_EVERY_S):
            if queue and queue.pid is None:
                log.warning("the queue's server died; starting it again")
                try:
                    queue.start()
                except NotReady as err:
                    log.error("it does not come up: %s", err)
                    stop.wait(QUEUE_PAUSE_S)
            for child in (api, *workers):
                child.keep()
        log.info("stopping")


def _stop_all(api: _Child, workers: Sequence[_Child], listener: socket.socket, drain_s: float) -> None:
    """First no new request comes in, then all workers finish or hand back what they have, all within one time."""
    deadline = time.monotonic() + drain_s + KILL_AFTER_S
    listener.close()  # a client that comes now is refused at once, and does not wait for nobody
    api.ask_to_stop()
    for worker in workers:  # at once: one that went on would take what the first hands back
        worker.ask_to_stop()
    for child in (api, *workers):
        child.wait(deadline)


def _listen(settings: Settings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as err:
        raise CannotStart(f"cannot listen on {settings.host}:{settings.port}: {err.strerror or err}") from err
    return listener


def _environment(settings: Settings, redis_url: str) -> dict[str, str]:
    """Every setting as its variable, so that children see what the command line said."""
    said = {
        f"QUIETFRAME_{name.upper()}": str(value)
        for name, value in settings.model_dump(mode="json").items()
        if value is not None
    }
    said["QUIETFRAME_DATA_DIR"] = str(settings.data_dir.resolve())
    return os.environ | said | {"QUIETFRAME_REDIS_URL": redis_url}


def _wait_until_ready(base_url: str, children: Sequence[_Child], stop: Event) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    why = "no answer"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of our own socket
    while not stop.wait(0.05):
        try:
            with direct.open(f"{base_url}/readyz", timeout=5):
                return
        except urllib.error.HTTPError as err:
            why = err.read().decode(errors="replace")
        except OSError as err:
            why = str(err)
        for child in children:
            if child.process and child.process.poll() is not None:
                raise CannotStart(f"{child.name} ended with status {child.process.returncode} while starting")
        if time.monotonic() > deadline:
            raise CannotStart(f"not ready after {READY_WITHIN_S:.0f} s: {why}")
