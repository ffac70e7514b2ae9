"""What `kubectl apply -k` would set up is well-formed and hardened, and its processes end in the order it counts on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import httpx
import kubernetes_validate
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from images.dockerfile import ROOT, stages
from ports import free_port

from service.broker import keys
from service.demo import moving_clip, png_bytes, read_photo, write_clip
from service.job import Lane
from service.processes import dies_with_parent
from service.settings import Settings
from service.supervise import KILL_AFTER_S
from trtbuild.store import Store, UnsafeStore

K8S = ROOT / "k8s"
OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes, that the manifests are held against
CRDS = {"ScaledObject", "ServiceMonitor", "PodMonitor"}  # of KEDA and the Prometheus operator: no schema is at hand
NEEDS_KUBECTL = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders the overlays")
PATIENCE_S = 120.0  # a bound on waiting, never a claim about speed

Document = dict[str, Any]


def in_files() -> list[Document]:
    """What stands in the base's and the overlays' own files, unrendered."""
    paths = [*sorted((K8S / "base").glob("*.yaml")), K8S / "overlays" / "gpu" / "engines.yaml"]
    found = [document for path in paths for document in yaml.safe_load_all(path.read_text())]
    return [document for document in found if document["kind"] != "Kustomization"]


@cache
def rendered(overlay: str) -> tuple[Document, ...]:
    text = subprocess.run(
        ["kubectl", "kustomize", str(K8S / "overlays" / overlay)], capture_output=True, text=True, check=True
    ).stdout
    return tuple(yaml.safe_load_all(text))


def one(documents: Any, kind: str, name: str) -> Document:
    [found] = [each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods_of(documents: Any) -> dict[str, Document]:
    """Each pod's spec, by the name of what makes it."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in documents
        if "template" in each.get("spec", {})
    }


def environment_of(pod: Document) -> dict[str, str]:
    return {each["name"]: each["value"] for each in pod["containers"][0].get("env", [])}


def check(documents: Any) -> None:
    for document in documents:
        if document["kind"] in CRDS:
            continue
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(document, version, strict=True)


def test_every_manifest_is_valid_for_the_oldest_and_the_newest_kubernetes_we_name():
    check(in_files())
    with pytest.raises(kubernetes_validate.ValidationError):
        check([{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": []}}])


@NEEDS_KUBECTL
@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_what_kubectl_renders_is_valid_too(overlay):
    documents = rendered(overlay)
    check(documents)
    assert {each["metadata"].get("namespace", "quietframe") for each in documents} == {"quietframe"}
    kinds = {each["kind"] for each in documents}
    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"} | CRDS <= kinds
    assert ("Job" in kinds) == (overlay == "gpu")


@NEEDS_KUBECTL
def test_keys_and_tls_can_be_added_to_an_overlay(tmp_path):
    shutil.copytree(K8S, tmp_path / "k8s")
    file = tmp_path / "k8s" / "overlays" / "cpu" / "kustomization.yaml"
    file.write_text(file.read_text() + "\ncomponents: [../keys, ../tls]\n")
    text = subprocess.run(["kubectl", "kustomize", str(file.parent)], capture_output=True, text=True, check=True).stdout
    documents = list(yaml.safe_load_all(text))
    check(documents)
    pod = pods_of(documents)["api"]
    told = environment_of(pod)
    mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    for name in ("QUIETFRAME_KEYS_FILE", "QUIETFRAME_TLS_CERT_FILE", "QUIETFRAME_TLS_KEY_FILE"):
        assert str(Path(told[name]).parent) in mounts
        assert name.removeprefix("QUIETFRAME_").lower() in Settings.model_fields
    assert pod["containers"][0]["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"


def test_every_pod_meets_the_restricted_pod_security_standard():
    for name, pod in pods_of(in_files()).items():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["readOnlyRootFilesystem"] is True, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert "memory" in container["resources"]["limits"], name
        allowed = {"emptyDir", "persistentVolumeClaim", "configMap", "secret"}
        assert all(set(volume) <= {"name"} | allowed for volume in pod.get("volumes", [])), name


def test_pods_run_what_the_images_hold_as_the_user_they_are_made_for():
    user, _, group = stages()["api"].user.partition(":")
    for name, pod in pods_of(in_files()).items():
        if name == "redis":
            continue
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["fsGroup"]) == (int(user), int(group))
        known = {f"QUIETFRAME_{field.upper()}" for field in Settings.model_fields}
        assert set(environment_of(pod)) <= known, name
        # Nothing but volumes can be written to, so all that is written to must be in one.
        mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        target = "api" if name == "api" else "worker-cpu"
        for variable in ("QUIETFRAME_DATA_DIR", "QUIETFRAME_ENGINES_DIR"):
            if folder := stages()[target].environment.get(variable):
                assert any(Path(folder).is_relative_to(mount) for mount in mounts), (name, variable)
        assert "/tmp" in mounts


def test_the_grace_of_a_pod_is_longer_than_all_that_its_process_may_take_to_end():
    pods = pods_of(in_files())
    api, worker = environment_of(pods["api"]), environment_of(pods["worker"])
    api_s = float(api["QUIETFRAME_LINGER_S"]) + float(api["QUIETFRAME_DRAIN_S"])
    assert pods["api"]["terminationGracePeriodSeconds"] >= api_s + 5
    worker_s = float(worker["QUIETFRAME_DRAIN_S"]) + KILL_AFTER_S
    assert pods["worker"]["terminationGracePeriodSeconds"] >= worker_s + 5


def test_liveness_never_asks_for_the_queue_and_readiness_bears_a_short_absence():
    for name in ("api", "worker"):
        container = pods_of(in_files())[name]["containers"][0]
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
        ready = container["readinessProbe"]
        assert ready["httpGet"]["path"] == "/readyz"
        assert ready["periodSeconds"] * ready["failureThreshold"] >= 30
        assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 120
        ports = {port["name"] for port in container["ports"]}
        assert {container[probe]["httpGet"]["port"] for probe in ("livenessProbe", "readinessProbe")} <= ports


def test_workers_are_scaled_by_the_length_of_every_lane_that_there_is():
    scaled = one(in_files(), "ScaledObject", "worker")["spec"]
    streams = {trigger["metadata"]["stream"]: trigger["metadata"] for trigger in scaled["triggers"]}
    assert set(streams) == {keys.work(lane) for lane in Lane}
    for trigger in scaled["triggers"]:
        assert trigger["type"] == "redis-streams"
        # Without a group the trigger counts what waits and what runs; with one, only the former or the latter.
        assert set(trigger["metadata"]) == {"address", "databaseIndex", "stream", "streamLength"}
        assert int(trigger["metadata"]["streamLength"]) > 0
    # Two parts for each worker are queued at a time: at two or more a video would never call for another worker.
    assert int(streams[keys.work(Lane.VIDEO_PART)]["streamLength"]) < 2
    assert scaled["minReplicaCount"] >= 1
    assert scaled["scaleTargetRef"]["name"] == one(in_files(), "Deployment", "worker")["metadata"]["name"]
    for name in ("api", "worker"):
        assert "replicas" not in one(in_files(), "Deployment", name)["spec"], "every apply would undo the scaling"


def test_monitors_find_ports_that_pods_have_and_name_their_jobs_as_the_rules_do():
    scraped = yaml.safe_load((K8S / "monitoring" / "prometheus.yml").read_text())["scrape_configs"]
    containers = {name: pod["containers"][0] for name, pod in pods_of(in_files()).items()}
    service = one(in_files(), "Service", "api")
    [endpoint] = one(in_files(), "ServiceMonitor", "api")["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    for port in service["spec"]["ports"]:
        assert port["targetPort"] in {one["name"] for one in containers["api"]["ports"]}
    jobs = [endpoint["relabelings"]]
    [endpoint] = one(in_files(), "PodMonitor", "worker")["spec"]["podMetricsEndpoints"]
    jobs.append(endpoint["relabelings"])
    assert {rule["replacement"] for [rule] in jobs} == {job["job_name"] for job in scraped} - {"prometheus"}
    assert endpoint["port"] in {port["name"] for port in containers["worker"]["ports"]}


@NEEDS_KUBECTL
def test_policies_name_ports_and_pods_that_are_there_and_leave_the_clusters_dns_reachable():
    documents = rendered("gpu")
    pods = {
        each["metadata"]["name"]: each["spec"]["template"] for each in documents if "template" in each.get("spec", {})
    }
    policies = [each["spec"] for each in documents if each["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies, "what is not allowed is refused"
    ports = {port["name"] for pod in pods.values() for port in pod["spec"]["containers"][0].get("ports", [])}
    for policy in policies:
        for rule in [*policy.get("ingress", []), *policy.get("egress", [])]:
            assert all(port["port"] in ports | {53, 443} for port in rule["ports"])
            for peer in [*rule.get("from", []), *rule.get("to", [])]:
                wanted = peer.get("podSelector", {}).get("matchLabels", {})
                if "namespaceSelector" in peer:  # not ours: our labels in there would name nobody
                    assert set(wanted) <= {"k8s-app"}
                elif wanted:
                    assert any(wanted.items() <= pod["metadata"]["labels"].items() for pod in pods.values()), wanted


def test_engines_live_in_a_folder_of_their_own_below_a_volume_that_a_group_may_write_to(tmp_path):
    volume = tmp_path / "engines"
    volume.mkdir()
    volume.chmod(0o2775)  # as `fsGroup` leaves a volume's top
    with pytest.raises(UnsafeStore):
        Store(volume)
    folder = Path(stages()["worker-cpu"].environment["QUIETFRAME_ENGINES_DIR"])
    assert folder.parent == Path("/engines")
    assert Store(volume / folder.name).folder == volume / folder.name
    for name, pod in pods_of(in_files()).items():
        # With `Always` each start would open that folder to the group again.
        assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch", name


@contextmanager
def running(part: str, redis_url: str, data_dir: Path, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    told = {f"QUIETFRAME_{name.upper()}": str(value) for name, value in settings.items()}
    environment = os.environ | told | {"QUIETFRAME_REDIS_URL": redis_url, "QUIETFRAME_DATA_DIR": str(data_dir)}
    command = [sys.executable, "-m", "service", part]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, preexec_fn=dies_with_parent())
    try:
        yield process
    finally:
        process.kill()  # its own children end with it
        process.wait()


def wait_for(what: str, client: httpx.Client, path: str, status: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if client.get(path).status_code == status:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_leaving_api_is_unready_and_still_answers_and_a_leaving_worker_hands_its_video_back(
    fresh_redis_url, tmp_path
):
    clip = tmp_path / "long.mp4"
    write_clip(clip, [frame[:96, :96] for frame in moving_clip(read_photo())] * 20)
    api_port, grpc_port, worker_port = free_port(), free_port(), free_port()
    here = {"host": "127.0.0.1", "log_level": "warning"}
    api_settings = {**here, "port": api_port, "grpc_port": grpc_port, "linger_s": 600}
    worker_settings = {**here, "worker_metrics_port": worker_port, "drain_s": 0, "part_frames": 100_000}
    with (
        running("api", fresh_redis_url, tmp_path, **api_settings) as api,
        running("worker", fresh_redis_url, tmp_path, **worker_settings) as worker,
        httpx.Client(base_url=f"http://127.0.0.1:{api_port}", timeout=PATIENCE_S) as client,
        grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel,
    ):
        wait_for("the worker gets warm", httpx.Client(base_url=f"http://127.0.0.1:{worker_port}"), "/readyz", 200)
        wait_for("the API is ready", client, "/readyz", 200)
        job_id = client.post("/jobs/video", files={"file": clip.read_bytes()}).json()["id"]
        deadline = time.monotonic() + PATIENCE_S
        while not client.get(f"/jobs/{job_id}").json()["progress"]["done"]:
            assert time.monotonic() < deadline, "the video is begun"

        api.terminate()
        wait_for("it says that it is leaving", client, "/readyz", 503)
        assert "stopping" in client.get("/readyz").json()["detail"]
        assert client.get("/livez").status_code == 200
        health = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
        assert health.Check(asked).status == health_pb2.HealthCheckResponse.NOT_SERVING
        handed_in = client.post("/jobs/image", files={"file": png_bytes(read_photo()[:32, :32])})
        assert handed_in.status_code == 202, "who has not heard of it yet is still served"
        worker.terminate()
        assert worker.wait(PATIENCE_S) == 0
        left = client.get(f"/jobs/{job_id}").json()
        assert (left["state"], left["attempts"]) == ("queued", 0), "handed back, which is no attempt"

        assert api.poll() is None
        api.send_signal(signal.SIGINT)  # a second signal from whoever does not want to wait for the rest
        api.wait(PATIENCE_S)
        with pytest.raises(httpx.ConnectError):
            client.get("/livez")
