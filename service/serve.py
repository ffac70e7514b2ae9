"""Runs the whole service on one machine: the embedded queue, the API and the workers, each a process.

The listening socket belongs to this process and outlives a crash of the API: clients wait, they are not refused. A
child that dies is started again, slower each time it dies young.
"""

import json
import logging
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Event

from service.broker.embedded import EmbeddedServer
from service.errors import NotReady
from service.settings import Settings
from service.supervise import (
    KILL_AFTER_S,
    LOOK_EVERY_S,
    SERVICE,
    CannotStart,
    Pool,
    Program,
    check_ports_of,
    environment_of,
    stop_on_signals,
    stopped_within,
    worker_programs,
)

log = logging.getLogger(__name__)

READY_WITHIN_S = 120.0
QUEUE_PAUSE_S = 2.0
LISTEN_FD = "QUIETFRAME_LISTEN_FD"  # how the API process is told of the inherited socket


def serve(settings: Settings, *, on_ready: Callable[[str, str], None], stop: Event) -> None:
    """Run until `stop` is set (SIGINT and SIGTERM set it too).

    Args:
        settings: of the whole service.
        on_ready: told the base URL, and where gRPC listens, once a request would be answered.
        stop: ends it.

    Raises:
        CannotStart: the port is taken, the data directory is in use or not writable, or nothing got ready in time.
    """
    stop_on_signals(stop)
    with ExitStack() as cleanup:
        listener = cleanup.enter_context(_listen(settings.host, settings.port))
        if settings.grpc_port:
            # The API process listens there itself, for the library takes no socket; said by that process, a port that
            # is taken would be lost among its log lines.
            _listen(settings.host, settings.grpc_port).close()
        if settings.admin_port:
            _listen(settings.host, settings.admin_port).close()
        host, port = listener.getsockname()[:2]
        base_url = f"{'https' if settings.tls_cert_file else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
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
        descriptor = listener.fileno()
        api = Program(
            name="api",
            command=[*SERVICE, "api"],
            # It lingers for nobody: this process takes no more callers, and the workers stop along with it.
            environment=environment_of(settings, url) | {LISTEN_FD: str(descriptor), "QUIETFRAME_LINGER_S": "0"},
            inherited=(descriptor,),
        )
        # In this order they are stopped: first no new request comes in, then the workers finish or hand back.
        workers = worker_programs(settings, url)
        check_ports_of(workers, settings)
        pool = Pool([api, *workers])
        cleanup.callback(pool.stop, settings.drain_s + KILL_AFTER_S)  # whatever happens, before the queue is stopped
        cleanup.callback(listener.close)  # a client that comes now is refused at once, and does not wait for nobody
        pool.start()
        asking = _direct(settings.tls_cert_file)
        _wait_until_ready(base_url, asking, pool, stop)
        if not stop.is_set():
            on_ready(base_url, f"{f'[{host}]' if ':' in host else host}:{_grpc_port(base_url, asking)}")
        while not stopped_within(LOOK_EVERY_S, stop):
            if queue and queue.pid is None:
                log.warning("the queue's server died; starting it again")
                try:
                    queue.start()
                except NotReady as err:
                    log.error("it does not come up: %s", err)
                    stopped_within(QUEUE_PAUSE_S, stop)
            pool.look()
        log.info("stopping")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as err:
        raise CannotStart(f"cannot listen on {host}:{port}: {err.strerror or err}") from err
    return listener


def _wait_until_ready(base_url: str, asking: urllib.request.OpenerDirector, pool: Pool, stop: Event) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    why = "no answer"
    while not stopped_within(0.05, stop):
        try:
            with asking.open(f"{base_url}/readyz", timeout=5):
                return
        except urllib.error.HTTPError as err:
            why = err.read().decode(errors="replace")
        except OSError as err:
            why = str(err)
        if failed := pool.failed_to_start():
            raise CannotStart(failed)
        pool.look()  # one that was killed is started again: a job from before may have been too much for it
        if time.monotonic() > deadline:
            raise CannotStart(f"not ready after {READY_WITHIN_S:.0f} s: {why}")


def _grpc_port(base_url: str, asking: urllib.request.OpenerDirector) -> int:
    """Which one the API process took, where it could choose."""
    with asking.open(base_url, timeout=5) as answer:
        return int(json.load(answer)["grpc_port"])


def _direct(certificate: Path | None) -> urllib.request.OpenerDirector:
    """A proxy knows nothing of our own socket. Of TLS it must be our own certificate, for whatever name it was made."""
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if certificate is not None:
        try:
            context = ssl.create_default_context(cafile=certificate)
        except OSError as err:  # ssl.SSLError is one
            raise CannotStart(f"no TLS with {certificate}: {err.strerror or err}") from err
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        handlers.append(urllib.request.HTTPSHandler(context=context))
    return urllib.request.build_opener(*handlers)
