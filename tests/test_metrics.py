"""What is told to Prometheus: by its conventions, as the docs say, and as rules, alerts and dashboard ask for it."""

import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import yaml
from api_support import noisy_png
from ports import free_port
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from promql import spoken_of
from watched_service import Watched, eventually

from models.catalogue import CATALOGUE
from service.broker.keys import COUNTERS
from service.broker.queue import LaneDepth
from service.job import Lane
from service.metrics import ApiMetrics, QueueFigures
from service.pipeline.denoiser import Denoiser
from service.pipeline.shelf import Shelf
from service.rpc.generated.quietframe.v1 import denoiser_pb2 as pb
from service.rpc.generated.quietframe.v1.denoiser_pb2_grpc import DenoiserStub
from service.settings import Settings
from service.supervise import CannotStart, check_ports_of, worker_programs
from service.telemetry.endpoint import Answers, Endpoint
from service.telemetry.figures import ENGINE_OUTCOMES, OUTCOMES, Work, WorkerFigures
from service.worker import Stop, Worker
from trtbuild.engine import EngineFailed, OutOfDeviceMemory, PrecisionLost

ROOT = Path(__file__).parent.parent
MONITORING = ROOT / "k8s" / "monitoring"
PLAIN = "text/plain; version=0.0.4"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"

UNITS = {"seconds", "bytes", "pixels", "frames", "tiles", "db"}
# Counts of things, and yes-or-no: the thing is the name, and there is no unit.
COUNTS = {
    *("denoise_broker_up", "denoise_worker_ready", "denoise_workers_ready", "denoise_models_loaded"),
    *("denoise_jobs_queued", "denoise_jobs_queued_limit", "denoise_jobs_in_flight", "denoise_lane_slots"),
    *("denoise_engines", "denoise_out_of_memory", "denoise_jobs"),
    *("denoise_live_streams", "denoise_live_streams_limit"),
}
# Each has few values. Never a job, a path, a size, a caller.
LABELS = {
    *("lane", "kind", "outcome", "route", "method", "status", "code"),
    *("model", "backend", "precision", "stage", "slot", "step"),
}
OF_PROMETHEUS = {"up"}
LABELS_OF_PROMETHEUS = {"job", "instance", "le"}


def told_by_the_api() -> ApiMetrics:
    metrics = ApiMetrics()
    metrics.request_took(0.1, route="/jobs/{job_id}", method="GET", status=200)
    metrics.call_took(0.1, method="quietframe.v1.Denoiser/GetJob", code="OK")
    return metrics


FIGURES = QueueFigures(
    up=True,
    lanes={lane: LaneDepth(queued=0, in_flight=0, oldest_age_s=0) for lane in Lane},
    about=COUNTERS,
    slots={Lane.VIDEO: 1},
    backlog_s={Lane.VIDEO: 1.5},
    most_queued=10,
)


def told_by_a_worker() -> WorkerFigures:
    figures = WorkerFigures()
    figures.begin({0: [Lane.VIDEO]})
    with figures.lease(0, Lane.VIDEO, 0.1) as held:
        held.outcome = "succeeded"
    work = Work(lane=Lane.VIDEO, model="nlm", backend="classical", precision="uint8")
    figures.restored(work, frames=3, pixels=300, seconds={"decode": 0.1, "infer": 1.0, "encode": 0.2})
    figures.measured("nlm", 31.5)
    figures.ran("nlm", "classical", "uint8", 2, 0.5)
    figures.loaded({"nlm": ("classical", "uint8")})
    figures.engine("classical", "uint8", "opened")
    figures.built(3.0)
    return figures


def families(text: str) -> dict:
    return {family.name: family for family in openmetrics.text_string_to_metric_families(text)}


def exported() -> dict:
    api = told_by_the_api().exposition(FIGURES, OPENMETRICS)[0].decode()
    return families(api) | families(told_by_a_worker().exposition(OPENMETRICS)[0].decode())


def samples_of(families_: dict) -> dict[str, set[str]]:
    """Name of each series -> names of its labels."""
    found: dict[str, set[str]] = {}
    for family in families_.values():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def value(text: str, name: str, **labels: str) -> float:
    return next(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


# --- names


def test_every_metric_is_named_by_the_conventions_and_says_what_it_is():
    ours = {name: family for name, family in exported().items() if not name.startswith("process_")}
    assert len(ours) > 30
    for name, family in ours.items():
        assert re.fullmatch(r"denoise_[a-z0-9_]+", name), name
        assert family.documentation.endswith("."), f"{name}: {family.documentation!r}"
        last = name.rpartition("_")[2]
        is_of_broker = family.documentation.startswith("Told by the broker: ") and family.type == "counter"
        assert last in UNITS or name in COUNTS or is_of_broker, f"{name} ends in no unit"
        assert "total" not in name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} <= LABELS, f"{sample.name} has {sample.labels}"
            if family.type == "counter":
                assert sample.name == f"{name}_total"


def test_durations_are_histograms_whose_buckets_reach_from_milliseconds_to_minutes():
    for name, family in exported().items():
        if name.endswith("_duration_seconds") or (
            name.endswith("_wait_seconds") and not name.startswith("denoise_job_")
        ):
            bounds = {float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels}
            assert family.type == "histogram", name
            assert min(bounds) <= 0.001, name
            assert max(bounds - {float("inf")}) >= 10, name


def test_how_full_the_queue_is_only_the_api_tells():
    of_worker = families(told_by_a_worker().exposition(OPENMETRICS)[0].decode())
    of_api = families(told_by_the_api().exposition(FIGURES, OPENMETRICS)[0].decode())
    assert {name for name in set(of_worker) & set(of_api) if name.startswith("denoise_")} == set()


def test_what_has_not_happened_yet_is_told_as_zero():
    text = told_by_the_api().exposition(FIGURES, PLAIN)[0].decode()
    assert value(text, "denoise_jobs_dead_lettered_total", lane="video") == 0
    assert value(text, "denoise_jobs_total", kind="video", outcome="failed") == 0
    worker = told_by_a_worker().exposition(PLAIN)[0].decode()
    for outcome in set(OUTCOMES) - {"succeeded"}:
        assert value(worker, "denoise_lease_duration_seconds_count", lane="video", outcome=outcome) == 0
    for outcome in set(ENGINE_OUTCOMES) - {"opened"}:
        assert value(worker, "denoise_engines_total", backend="classical", outcome=outcome) == 0
    assert value(worker, "denoise_out_of_memory_total", backend="classical", step="batch") == 0


# --- what asks for them


def rules() -> list[dict]:
    files = [MONITORING / name for name in ("rules.yml", "alerts.yml")]
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def queries() -> list[tuple[str, str]]:
    """Title and expression of each query of the dashboard."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", [])]


def test_an_expression_tells_its_metrics_and_labels_apart():
    spoken = spoken_of(
        'histogram_quantile(0.95, sum by (le, lane) (rate(a_bucket{route!~"x|y", job="b"}[5m] offset 1h)))'
        " / on (lane) group_left () c:d:sum > bool 3e2 or vector(0) # of nothing"
    )
    assert spoken.metrics == {"a_bucket", "c:d:sum"}
    assert spoken.labels == {"le", "lane", "route", "job"}


@pytest.mark.parametrize("what", ["rules", "dashboard"])
def test_rules_and_dashboard_ask_for_what_is_there(what):
    there = samples_of(exported())
    records = {rule["record"] for rule in rules() if "record" in rule}
    labels = set().union(*there.values()) | LABELS_OF_PROMETHEUS
    asked = [(r.get("record") or r["alert"], r["expr"]) for r in rules()] if what == "rules" else queries()
    assert len(asked) > 30
    for name, expression in asked:
        spoken = spoken_of(expression)
        assert spoken.metrics, name
        assert spoken.metrics <= set(there) | records | OF_PROMETHEUS, f"{name}: {spoken.metrics - set(there)}"
        assert spoken.labels <= labels, f"{name}: {spoken.labels - labels}"
        plain = spoken.metrics & set(there)
        if plain == spoken.metrics:  # of recorded ones the labels are those of their rules
            known = set().union(*(there[metric] for metric in plain)) | LABELS_OF_PROMETHEUS
            assert spoken.labels <= known, f"{name}: {spoken.labels - known}"


def test_everything_that_is_told_of_the_work_is_shown_or_watched():
    asked = set().union(*(spoken_of(expression).metrics for _, expression in queries()))
    asked |= set().union(*(spoken_of(rule["expr"]).metrics for rule in rules()))
    stems = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked}
    untold = {name for name in exported() if name.startswith("denoise_")} - stems
    # Sums of the broker that a histogram of the workers' tells better, and steps on the way.
    assert untold == {
        *("denoise_jobs_claimed", "denoise_jobs_released", "denoise_job_wait_seconds", "denoise_job_run_seconds"),
        *("denoise_jobs_webhooks_retried", "denoise_jobs_expired"),
    }


def test_the_operators_object_holds_the_same_rules():
    spec = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())["spec"]
    files = [yaml.safe_load((MONITORING / name).read_text()) for name in ("rules.yml", "alerts.yml")]
    assert spec["groups"] == [group for file in files for group in file["groups"]]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders what it would apply")
def test_rules_and_dashboard_can_be_applied_to_a_cluster():
    command = ["kubectl", "kustomize", str(MONITORING)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    made = {document["kind"]: document for document in yaml.safe_load_all(text)}
    assert set(made) == {"PrometheusRule", "ConfigMap"}
    assert made["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(made["ConfigMap"]["data"]["quietframe.json"])["uid"] == "quietframe"


def test_recorded_names_say_level_metric_and_operation():
    for rule in rules():
        if "record" in rule:
            assert re.fullmatch(r"[a-z_]*:denoise_[a-z_]+:[a-z0-9_]+", rule["record"]), rule["record"]


def test_every_alert_says_how_bad_it_is_and_has_its_entry_in_the_docs_and_its_test():
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    alerts = [rule for rule in rules() if "alert" in rule]
    assert [alert["alert"] for alert in alerts] == headings
    tests = (MONITORING / "alerts_test.yml").read_text()
    for alert in alerts:
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert {"summary", "description"} <= set(alert["annotations"])
        assert alert["annotations"]["runbook_url"] == f"docs/metrics.md#{alert['alert'].lower()}"
        assert f'alertname="{alert["alert"]}"' in tests


def test_the_docs_have_every_metric_as_the_code_has_it():
    rows = re.findall(
        r"^\| `((?:denoise|process)_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$",
        (ROOT / "docs" / "metrics.md").read_text(),
        re.MULTILINE,
    )
    told = {}
    for name, family in exported().items():
        if name.startswith("process_"):
            continue
        labels = set().union(*(sample.labels for sample in family.samples)) - {"le"}
        shown = f"{name}_total" if family.type == "counter" else name
        told[shown] = (family.type, labels, family.documentation)
    assert {name: (kind, set(re.findall(r"\w+", labels)), about) for name, kind, labels, about in rows} == told


def test_what_grafana_is_given_fits_together():
    source = yaml.safe_load((MONITORING / "grafana" / "datasources" / "prometheus.yml").read_text())
    assert source["datasources"][0]["type"] == "prometheus"
    board = json.loads((MONITORING / "dashboard.json").read_text())
    assert board["templating"]["list"][0]["type"] == "datasource"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


# --- what a worker tells


def test_a_slot_is_busy_while_it_works_and_not_only_when_it_is_done():
    figures = WorkerFigures()
    figures.begin({0: [Lane.VIDEO], 1: [Lane.VIDEO]})

    def busy(slot: str) -> float:
        return value(figures.exposition(PLAIN)[0].decode(), "denoise_slot_busy_seconds_total", slot=slot)

    with figures.lease(0, Lane.VIDEO, 0.0):
        first = busy("0")
        assert eventually(lambda: busy("0") if busy("0") > first else None)
        assert figures.is_busy
    done = busy("0")
    assert busy("0") == done
    assert busy("1") == 0
    assert not figures.is_busy


def test_a_lease_that_nobody_says_the_end_of_has_failed():
    figures = WorkerFigures()
    with pytest.raises(RuntimeError), figures.lease(0, Lane.VIDEO, 0.0):
        raise RuntimeError
    text = figures.exposition(PLAIN)[0].decode()
    assert value(text, "denoise_lease_duration_seconds_count", lane="video", outcome="failed") == 1


def test_a_model_that_is_put_away_is_loaded_no_more():
    figures = WorkerFigures()
    figures.loaded({"nlm": ("classical", "uint8"), "dncnn": ("openvino", "bf16")})
    figures.loaded({"nlm": ("classical", "uint8"), "dncnn": ("tensorrt", "fp16")})
    figures.loaded({"nlm": ("classical", "uint8")})
    shown = [sample.labels["model"] for sample in samples(figures, "denoise_models_loaded")]
    assert shown == ["nlm"]


def samples(figures: WorkerFigures, family: str) -> list:
    return families(figures.exposition(OPENMETRICS)[0].decode())[family].samples


class Hungry:
    """An engine whose device has memory for one small tile."""

    backend, precision, batch, contexts = "hungry", "fp32", 4, 1

    def denoise(self, noisy, sigma):
        if len(noisy) > 1 or noisy.shape[3] > 400:
            raise OutOfDeviceMemory("full")
        return np.concatenate([noisy, noisy[:, :1]], axis=1)  # the plane of its noise level beside the picture


def test_runs_of_engines_and_what_gave_way_are_counted():
    figures = WorkerFigures()
    denoiser = Denoiser(CATALOGUE["fitvnet-spatial"], [Hungry()], tile_px=768, watch=figures)
    denoiser.restore_picture(np.zeros((300, 1200, 3), np.uint8))
    text = figures.exposition(PLAIN)[0].decode()
    assert value(text, "denoise_out_of_memory_total", backend="hungry", step="batch") > 0
    assert value(text, "denoise_out_of_memory_total", backend="hungry", step="tile") > 0
    runs = value(text, "denoise_engine_run_duration_seconds_count", model="fitvnet-spatial", backend="hungry")
    assert runs > 3
    assert value(text, "denoise_engine_batch_tiles_sum", backend="hungry") == runs


def test_memory_that_nothing_can_give_way_to_is_counted_too():
    class Starved(Hungry):
        def denoise(self, noisy, sigma):
            raise OutOfDeviceMemory("full")

    figures = WorkerFigures()
    denoiser = Denoiser(CATALOGUE["fitvnet-spatial"], [Starved()], tile_px=256, watch=figures)
    with pytest.raises(OutOfDeviceMemory):
        denoiser.restore_picture(np.zeros((64, 64, 3), np.uint8))
    text = figures.exposition(PLAIN)[0].decode()
    assert value(text, "denoise_out_of_memory_total", backend="hungry", step="none") == 1


@pytest.mark.parametrize(("err", "outcome"), [(PrecisionLost("strays"), "refused"), (EngineFailed("broken"), "failed")])
def test_an_engine_that_does_not_serve_is_counted_and_so_is_the_one_in_its_place(tmp_path, monkeypatch, err, outcome):
    figures = WorkerFigures()
    shelf = Shelf(Settings(data_dir=tmp_path, threads=1), figures=figures)
    opened = shelf.workshop.open

    def first_fails(spec, stage, way):
        monkeypatch.setattr(type(shelf.workshop), "open", lambda _, *asked: opened(*asked))
        raise err

    monkeypatch.setattr(type(shelf.workshop), "open", lambda _, *asked: first_fails(*asked))
    loaded = shelf.denoiser("nlm")
    text = figures.exposition(PLAIN)[0].decode()
    assert value(text, "denoise_engines_total", outcome=outcome) == 1
    assert value(text, "denoise_engines_total", backend=loaded.backend, outcome="opened") == 1
    assert value(text, "denoise_models_loaded", model="nlm", backend=loaded.backend) == 1


# --- where a worker tells it


@pytest.fixture
def states():
    return {"alive": None, "ready": "models are being loaded"}


@pytest.fixture
def endpoint(states):
    answers = Answers(
        figures=told_by_a_worker().exposition, alive=lambda: states["alive"], ready=lambda: states["ready"]
    )
    with Endpoint("127.0.0.1", 0, answers) as opened:
        yield f"http://127.0.0.1:{opened.port}"


def test_probes_are_told_what_is_wrong_and_what_is_awaited(endpoint, states):
    assert httpx.get(f"{endpoint}/livez").status_code == 200
    answer = httpx.get(f"{endpoint}/readyz")
    assert (answer.status_code, answer.text) == (503, "models are being loaded\n")
    states.update(alive="a slot died", ready=None)
    assert httpx.get(f"{endpoint}/livez").status_code == 503
    assert httpx.get(f"{endpoint}/readyz?verbose").status_code == 200
    assert httpx.get(f"{endpoint}/").status_code == 404
    assert httpx.post(f"{endpoint}/metrics").status_code == 501


def test_figures_come_in_the_form_that_a_scraper_asks_for(endpoint):
    assert httpx.get(f"{endpoint}/metrics").headers["Content-Type"].startswith("text/plain")
    answer = httpx.get(f"{endpoint}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_whoever_connects_and_says_nothing_keeps_nobody_waiting(endpoint):
    host, port = endpoint.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))):
        assert httpx.get(f"{endpoint}/livez", timeout=30).status_code == 200


def test_workers_of_one_machine_have_a_port_each(tmp_path):
    settings = Settings(data_dir=tmp_path, workers=3, worker_metrics_port=8010)
    programs = worker_programs(settings, "redis://h")
    assert [program.port for program in programs] == [8010, 8011, 8012]
    said = [program.environment["QUIETFRAME_WORKER_METRICS_PORT"] for program in programs]
    assert said == ["8010", "8011", "8012"]
    (alone,) = worker_programs(Settings(data_dir=tmp_path), "redis://h")
    assert alone.port is None


def test_a_port_that_is_taken_is_said_before_a_worker_starts(tmp_path):
    with socket.socket() as other:
        port = free_port()
        other.bind(("127.0.0.1", port))
        other.listen()
        settings = Settings(data_dir=tmp_path, worker_metrics_port=port)
        with pytest.raises(CannotStart, match=f"worker 0 cannot tell its figures on 127.0.0.1:{port}"):
            check_ports_of(worker_programs(settings, "redis://h"), settings)
    check_ports_of(worker_programs(settings, "redis://h"), settings)


def test_a_slot_that_looks_for_jobs_no_more_is_told_to_the_probe(tmp_path, monkeypatch):
    port = free_port()
    worker = Worker(Settings(data_dir=tmp_path, worker_metrics_port=port), "redis://nowhere")
    stop = Stop()

    def asked(path: str) -> int:
        return httpx.get(f"http://127.0.0.1:{port}/{path}", timeout=60).status_code

    with worker.endpoint(stop):
        assert (asked("livez"), asked("readyz")) == (200, 503)  # it lives, and its models are not there yet
        worker._looked[0] = time.monotonic()
        assert (asked("livez"), asked("readyz")) == (200, 200)
        assert value(httpx.get(f"http://127.0.0.1:{port}/metrics").text, "denoise_worker_ready") == 1
        monkeypatch.setattr("service.worker.STUCK_S", -1.0)
        assert asked("livez") == 503
        stop.ask(0)
        assert (asked("livez"), asked("readyz")) == (200, 503)  # a slot that has ended looks for nothing
        assert value(httpx.get(f"http://127.0.0.1:{port}/metrics").text, "denoise_worker_ready") == 0
    with pytest.raises(httpx.TransportError):
        asked("livez")


def test_a_worker_whose_port_is_taken_meanwhile_works_without(tmp_path, caplog):
    with socket.socket() as other:
        port = free_port()
        other.bind(("127.0.0.1", port))
        other.listen()
        worker = Worker(Settings(data_dir=tmp_path, worker_metrics_port=port), "redis://nowhere")
        with worker.endpoint(Stop()):
            assert f"this worker's figures are not to be had: port {port}" in caplog.text


# --- in a service of real processes


def test_what_workers_did_is_told_by_them(watched: Watched) -> None:
    lane = {"lane": "image.interactive", "model": "nlm"}

    def told() -> tuple[float, ...]:
        texts = watched.worker_metrics()
        return tuple(
            sum(total(text, name, **labels) for text in texts)
            for name, labels in (
                ("denoise_restored_pixels_total", lane),
                ("denoise_restored_frames_total", lane),
                ("denoise_stage_duration_seconds_count", {"stage": "decode", **lane}),
                ("denoise_stage_duration_seconds_count", {"stage": "encode", **lane}),
                ("denoise_engine_run_duration_seconds_count", {"model": "nlm"}),
                ("denoise_result_psnr_db_count", {"model": "nlm"}),
                ("denoise_lease_duration_seconds_count", {"outcome": "succeeded", "lane": lane["lane"]}),
                ("denoise_lease_duration_seconds_count", {"outcome": "refused", "lane": lane["lane"]}),
            )
        )

    before = told()
    picture, broken = noisy_png(40, 30, seed=31), noisy_png()[:50]
    with watched.client() as client:
        files = {"file": ("noisy.png", picture), "reference": ("clean.png", picture)}
        assert client.post("/denoise/image", files=files, data={"model": "nlm"}).status_code == 200
        answer = client.post("/denoise/image", files={"file": ("b.png", broken)}, data={"model": "nlm"})
        assert answer.status_code == 422
    with grpc.insecure_channel(watched.grpc_address) as channel:
        DenoiserStub(channel).DenoiseImage(pb.DenoiseImageRequest(image=picture, model="nlm"), timeout=60)
    wanted = (2 * 1200, 2, 2, 2, 2, 1, 2, 1)
    # An answer may be there a moment before its worker has counted it.
    eventually(lambda: True if tuple(np.subtract(told(), before)) == wanted else None)


def total(text: str, name: str, **labels: str) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_workers_answer_probes_on_their_own_ports(watched: Watched) -> None:
    for number in range(2):
        for path in ("livez", "readyz"):
            url = f"http://127.0.0.1:{watched.worker_port + number}/{path}"
            assert httpx.get(url, timeout=60).status_code == 200
    assert all(value(text, "denoise_worker_ready") == 1 for text in watched.worker_metrics())


def test_the_api_tells_how_much_work_is_accepted_and_who_takes_it(watched: Watched) -> None:
    with watched.client() as client:
        text = client.get("/metrics", headers={"Accept": PLAIN}).text
    assert value(text, "denoise_workers_ready") == 2
    assert value(text, "denoise_lane_slots", lane="image.interactive") == 4
    assert value(text, "denoise_lane_slots", lane="video") == 2
    assert value(text, "denoise_jobs_queued_limit") == 10_000
