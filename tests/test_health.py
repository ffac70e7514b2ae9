"""An orchestrator's health check gets the truth, in one line."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from service.__main__ import main
from service.health import Unwell, check
from service.settings import Settings

ROOT = Path(__file__).parent.parent


@contextmanager
def answering(port: int = 0, **statuses: int) -> Iterator[int]:
    """A server on loopback that gives each path its status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"no worker is ready"
            self.send_response(statuses.get(self.path.strip("/"), 404))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", port), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_an_api_that_lives_but_is_not_ready_is_both():
    with answering(livez=200, readyz=503) as port:
        settings = Settings(host="0.0.0.0", port=port)  # nobody can be asked at that address; loopback is
        check("api", settings, ready=False)
        with pytest.raises(Unwell, match="503 no worker is ready"):
            check("api", settings, ready=True)


def test_workers_are_well_when_all_of_them_are():
    with answering(livez=200, readyz=200) as port, socket.socket() as silent:
        check("worker", Settings(worker_metrics_port=port), ready=True)
        if port + 1 > 65_000:
            pytest.skip("no port left behind that one")
        try:
            silent.bind(("127.0.0.1", port + 1))  # bound, not listening: nobody answers there
        except OSError:
            pytest.skip("somebody listens on the next port")
        with pytest.raises(Unwell, match=f":{port + 1}/livez"):
            check("worker", Settings(worker_metrics_port=port, workers=2), ready=False)


def test_workers_without_a_port_cannot_be_asked():
    with pytest.raises(Unwell, match="QUIETFRAME_WORKER_METRICS_PORT"):
        check("worker", Settings(), ready=False)


def test_the_command_ends_with_one_for_what_is_not_well(monkeypatch, capsys):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        monkeypatch.setenv("QUIETFRAME_PORT", str(silent.getsockname()[1]))
        with pytest.raises(SystemExit) as ended:
            main(["health", "api"])
    assert ended.value.code == 1
    assert "livez" in capsys.readouterr().err


_FIRST_PROCESS = """
import ctypes, os, subprocess, time
from pathlib import Path
from service.supervise import Pool, Program

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come here, as to the first of a container
pool = Pool([Program(name="own", command=["sleep", "600"], environment={})])
pool.start()
subprocess.run(["sh", "-c", "sleep 0 & exec true"])  # leaves a child to whoever is first
children = Path(f"/proc/self/task/{os.getpid()}/children")
deadline = time.monotonic() + 60
while len(children.read_text().split()) != 1:
    assert time.monotonic() < deadline, "the orphan is still there"
    pool.bury_orphans()
pool.stop(0)
print("alone")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="orphans come to the first process of a Linux container")
def test_what_dead_workers_leave_behind_is_let_go_of_and_the_workers_themselves_are_not():
    done = subprocess.run([sys.executable, "-c", _FIRST_PROCESS], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout.strip() == "alone", done.stderr
