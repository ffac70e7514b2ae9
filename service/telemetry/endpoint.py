"""Where a worker is asked how it does: its figures for Prometheus, and whether it lives and takes work, for probes."""

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)

_PLAIN = "text/plain; charset=utf-8"
_PATIENCE_S = 10.0  # whoever connects and says nothing is not waited for


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What is answered. The callables are called from threads of the endpoint's own."""

    figures: Callable[[str | None], tuple[bytes, str]]  # told the Accept header; text and its media type
    alive: Callable[[], str | None]  # what is wrong; None where nothing is
    ready: Callable[[], str | None]


class Endpoint:
    """`/metrics`, `/livez` and `/readyz` over HTTP, for as long as it is entered."""

    def __init__(self, host: str, port: int, answers: Answers) -> None:
        """
        Raises:
            OSError: it cannot listen there.
        """
        server = _server_for(host)
        self._server = server((host, port), _handler(answers))
        self._thread = Thread(target=self._server.serve_forever, name="figures", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _server_for(host: str) -> type[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

    return Server


def _handler(answers: Answers) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE_S
        server_version = "Quietframe"
        sys_version = ""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._send(200, *answers.figures(self.headers.get("Accept")))
            elif path in ("/livez", "/readyz"):
                wrong = answers.alive() if path == "/livez" else answers.ready()
                self._send(503 if wrong else 200, f"{wrong or 'yes'}\n".encode(), _PLAIN)
            else:
                self._send(404, b"there are /metrics, /livez and /readyz\n", _PLAIN)

        def _send(self, status: int, body: bytes, media_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class has it
            log.debug("%s " + format, self.address_string(), *args)

    return Handler
