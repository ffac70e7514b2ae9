"""A service of real processes that is watched: it tells traces to a collector here, and its log goes to a file."""

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from ports import free_port

ROOT = Path(__file__).parent.parent
PATIENCE_S = 60.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Span:
    process: str  # service.name of who told it
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    failed: bool
    attributes: dict[str, Any]


class Collector:
    """Takes spans by OTLP over HTTP, as a real one does."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._changed = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                collector._take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def spans_of(self, trace_id: str, until: Callable[[list[Span]], bool]) -> list[Span]:
        """All spans of a trace, once they are as they should be; those there are when patience ends."""
        deadline = time.monotonic() + PATIENCE_S
        with self._changed:
            while True:
                found = [span for span in self._spans if span.trace_id == trace_id]
                left = deadline - time.monotonic()
                if until(found) or left <= 0:
                    return found
                self._changed.wait(left)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, request: ExportTraceServiceRequest) -> None:
        told = []
        for of_resource in request.resource_spans:
            process = _values(of_resource.resource.attributes)["service.name"]
            for scope in of_resource.scope_spans:
                told += [
                    Span(
                        process=process,
                        name=span.name,
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        kind=span.kind,
                        failed=span.status.code == 2,
                        attributes=_values(span.attributes),
                    )
                    for span in scope.spans
                ]
        with self._changed:
            self._spans += told
            self._changed.notify_all()


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


class Watched:
    """A running `quietframe serve` with two workers, its collector and its log."""

    def __init__(self, base_url: str, collector: Collector, log_file: Path, worker_port: int) -> None:
        self.base_url, self.collector, self.worker_port = base_url, collector, worker_port
        self._log_file = log_file

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log so far; each line of it is JSON."""
        return [
            json.loads(line) for line in self._log_file.read_text().splitlines(keepends=True) if line.endswith("\n")
        ]

    def line(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first line of this kind, once it is there."""
        return eventually(lambda: next((line for line in self.lines if wanted(line)), None))

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.base_url, timeout=PATIENCE_S)

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{httpx.get(self.base_url, timeout=PATIENCE_S).json()['grpc_port']}"

    def worker_metrics(self, accept: str = "") -> list[str]:
        """What each worker tells."""
        urls = [f"http://127.0.0.1:{self.worker_port + number}/metrics" for number in range(2)]
        return [httpx.get(url, headers={"Accept": accept}, timeout=PATIENCE_S).text for url in urls]


def eventually(look: Callable[[], _T | None]) -> _T:
    deadline = time.monotonic() + PATIENCE_S
    while (found := look()) is None:
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
    return found


def two_ports() -> int:
    """A port where nobody listens, nor on the next one."""
    while True:
        port = free_port()
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port + 1))
            return port


@contextmanager
def watched_service(data_dir: Path) -> Iterator[Watched]:
    collector = Collector()
    data_dir.mkdir(parents=True, exist_ok=True)
    worker_port = two_ports()
    said = {
        "WORKERS": 2,
        "THREADS": 1,
        "WARM": "nlm",  # loaded in no time, and quick on small pictures
        "PART_FRAMES": 8,
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "debug",
        "WORKER_METRICS_PORT": worker_port,
    }
    otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    environment = os.environ | {f"QUIETFRAME_{name}": str(value) for name, value in said.items()} | otel
    log_file = data_dir / "log"
    try:
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve", "--port", "0", "--data-dir", str(data_dir)],
                cwd=ROOT,
                env=environment | {"COLUMNS": "200"},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert process.stdout
        try:
            curl_line = next((line for line in process.stdout if "curl" in line), None)
            assert curl_line, log_file.read_text()
            base_url = next(word for word in curl_line.split() if "://" in word).removesuffix("/denoise/image")
            yield Watched(base_url, collector, log_file, worker_port)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
            process.stdout.close()
    finally:
        collector.close()
