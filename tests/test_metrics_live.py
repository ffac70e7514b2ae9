"""A real Prometheus scrapes the real service under load: all that rules, alerts and dashboard ask for is answered.

Not part of `make test`: it needs Debian's `prometheus` package. `make metrics-check` fetches it and runs this.
"""

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from api_support import noisy_png, short_video
from ports import free_port
from test_metrics import MONITORING, queries, rules
from watched_service import PATIENCE_S, Watched

from service.rpc.generated.quietframe.v1 import denoiser_pb2 as pb
from service.rpc.generated.quietframe.v1.denoiser_pb2_grpc import DenoiserStub

pytestmark = pytest.mark.prometheus

FILES = ("rules.yml", "alerts.yml", "alerts_test.yml", "prometheus.yml")
LONGEST_S = 180.0  # until every query has an answer, on a slow machine


def tool(name: str) -> str:
    """A program of Debian's package, installed or unpacked where `make metrics-check` does that."""
    unpacked = Path(__file__).parent.parent / ".venv" / "prometheus" / "usr" / "bin" / name
    found = shutil.which(name) or (str(unpacked) if unpacked.exists() else None)
    assert found, f"{name} is not installed; `make metrics-check` fetches it, or: apt-get install prometheus"
    return found


@pytest.mark.parametrize(
    "words",
    [
        ("check", "rules", "--lint=all", "--lint-fatal", "rules.yml", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_promtool_finds_nothing_wrong(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [tool("promtool"), *words], cwd=MONITORING, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def prometheus(watched: Watched, folder: Path) -> Iterator[httpx.Client]:
    """With the very files that are shipped, but for targets and for how often it looks."""
    for name in FILES:
        shutil.copy(MONITORING / name, folder / name)
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    targets = {
        "quietframe-api": [watched.base_url.removeprefix("http://")],
        "quietframe-worker": [f"127.0.0.1:{watched.worker_port + number}" for number in range(2)],
    }
    config["scrape_configs"] = [
        {"job_name": one["job_name"], "static_configs": [{"targets": targets[one["job_name"]]}]}
        for one in config["scrape_configs"]
        if one["job_name"] in targets
    ]
    assert len(config["scrape_configs"]) == len(targets)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [
            tool("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            "--enable-feature=exemplar-storage",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"GOMAXPROCS": "1"},
    )
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=PATIENCE_S) as client:
            yield client
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        log.close()


@contextmanager
def load(watched: Watched) -> Iterator[None]:
    """Everything that the service does, over and over: good and broken images, videos, REST and gRPC."""
    over = threading.Event()

    def images() -> None:
        with watched.client() as client:
            while not over.is_set():
                picture = noisy_png(64, 48)
                files = {"file": ("noisy.png", picture), "reference": ("clean.png", picture)}
                assert client.post("/denoise/image", files=files, data={"model": "nlm"}).status_code == 200

    def broken_ones() -> None:
        with watched.client() as client:
            while not over.wait(0.5):
                files = {"file": ("noisy.png", noisy_png()[:60])}
                assert client.post("/denoise/image", files=files, data={"model": "nlm"}).status_code == 422
                client.get("/nowhere")

    def videos() -> None:
        with watched.client() as client:
            while not over.wait(0.5):
                answer = client.post("/jobs/video", files={"file": ("a.mp4", short_video())}, data={"model": "nlm"})
                assert answer.status_code == 202

    def calls() -> None:
        with grpc.insecure_channel(watched.grpc_address) as channel:
            while not over.wait(0.5):
                request = pb.DenoiseImageRequest(image=noisy_png(), model="nlm")
                DenoiserStub(channel).DenoiseImage(request, timeout=PATIENCE_S)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(one) for one in (images, broken_ones, videos, calls)]
        try:
            yield
        finally:
            over.set()
    for one in running:
        one.result()


def asked(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """What an instant query gives; nothing while Prometheus is not up yet."""
    try:
        answer = client.get("/api/v1/query", params={"query": expression})
    except httpx.TransportError:
        return []
    if answer.status_code == 503:
        return []
    document = answer.json()
    assert document["status"] == "success", f"{expression}: {document}"
    result = document["data"]["result"]
    return [one for one in result if one["value"][1] != "NaN"]


def test_every_query_of_the_dashboard_and_every_rule_is_answered_with_data(watched: Watched, tmp_path: Path) -> None:
    wanted = {
        f"{title}: {expression}": expression.replace("$__rate_interval", "30s") for title, expression in queries()
    }
    wanted |= {rule["record"]: rule["record"] for rule in rules() if "record" in rule}
    with prometheus(watched, tmp_path) as client, load(watched):
        deadline = time.monotonic() + LONGEST_S
        missing = wanted
        while missing and time.monotonic() < deadline:
            time.sleep(1.0)  # as often as Prometheus looks
            missing = {name: query for name, query in missing.items() if not asked(client, query)}
        assert not missing, f"no data: {json.dumps(list(missing), indent=2)}"
        health = {
            rule["name"]: (rule["health"], rule.get("lastError", ""))
            for group in client.get("/api/v1/rules").json()["data"]["groups"]
            for rule in group["rules"]
        }
        assert len(health) == len(rules())
        assert set(health.values()) == {("ok", "")}, health
        up = asked(client, "up")
        assert len(up) == 3
        assert {one["value"][1] for one in up} == {"1"}
        # Broken uploads come without end here, and that is all that is wrong.
        firing = {one["metric"]["alertname"] for one in asked(client, 'ALERTS{alertstate="firing"}')}
        assert firing <= {"QuietframeDeadLetters"}
        exemplars = client.get(
            "/api/v1/query_exemplars",
            params={"query": "denoise_http_request_duration_seconds_bucket", "start": 0, "end": time.time() + 60},
        ).json()["data"]
        traces = {one["labels"]["trace_id"] for series in exemplars for one in series["exemplars"]}
        assert traces
        assert all(re.fullmatch(r"[0-9a-f]{32}", trace) for trace in traces)
        assert watched.collector.spans_of(sorted(traces)[0], bool)
