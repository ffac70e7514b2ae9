"""One trace leads from a request through the queue to its result, whatever processes it passes through."""

import io
import secrets
import subprocess
import sys
import threading

import av
import grpc
import numpy as np
import pytest
from api_support import noisy_png
from watched_service import ROOT, Span, Watched

from service.rpc.generated.quietframe.v1 import denoiser_pb2 as pb
from service.rpc.generated.quietframe.v1.denoiser_pb2_grpc import DenoiserStub
from service.telemetry import tracing
from service.telemetry.tracing import Trace, is_wanted

API, WORKER = "quietframe-api", "quietframe-worker"
SERVER, PRODUCER, CONSUMER = 2, 4, 5  # span kinds as OTLP numbers them


def caller() -> Trace:
    """Somebody else's span, which a request comes from."""
    return Trace(secrets.token_hex(16), secrets.token_hex(8), sampled=True)


def clip(frames: int = 20) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for shade in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), 8 * shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def named(spans: list[Span], name: str) -> Span:
    return next(span for span in spans if span.name == name)


def has(*names: str):
    return lambda spans: set(names) <= {span.name for span in spans}


def test_an_image_is_one_trace_through_api_and_worker(watched: Watched) -> None:
    above = caller()
    with watched.client() as client:
        answer = client.post(
            "/denoise/image",
            files={"file": ("noisy.png", noisy_png())},
            data={"model": "nlm"},
            headers={"traceparent": str(above)},
        )
    assert answer.status_code == 200
    root = "POST /denoise/image"
    on_the_way = {"put", "wait in queue", "process", "decode", "restore", "run batch", "encode", "hand in"}
    spans = watched.collector.spans_of(above.trace_id, has(root, *on_the_way))
    assert {span.name for span in spans} == {root, *on_the_way}
    assert {span.name for span in spans if span.process == API} == {root, "put"}
    assert {span.name for span in spans if span.process == WORKER} == on_the_way - {"put"}
    request, work = named(spans, root), named(spans, "process")
    assert (request.parent_id, request.kind) == (above.span_id, SERVER)
    assert request.attributes["http.response.status_code"] == 200
    assert (work.parent_id, work.kind) == (request.span_id, CONSUMER)
    assert named(spans, "put").kind == PRODUCER
    assert work.attributes["quietframe.job"] == answer.headers["Quietframe-Job"]
    assert work.attributes["quietframe.outcome"] == "succeeded"
    assert {named(spans, name).parent_id for name in ("decode", "run batch", "encode", "hand in")} == {work.span_id}
    assert named(spans, "run batch").attributes["quietframe.tiles"] == 1


def test_an_image_over_grpc_is_one_trace_too(watched: Watched) -> None:
    above = caller()
    with grpc.insecure_channel(watched.grpc_address) as channel:
        request = pb.DenoiseImageRequest(image=noisy_png(seed=3), model="nlm")
        answer = DenoiserStub(channel).DenoiseImage(request, metadata=(("traceparent", str(above)),), timeout=60)
    root = "quietframe.v1.Denoiser/DenoiseImage"
    spans = watched.collector.spans_of(above.trace_id, has(root, "process", "hand in"))
    call, work = named(spans, root), named(spans, "process")
    assert (call.process, call.parent_id, call.kind) == (API, above.span_id, SERVER)
    assert (work.process, work.parent_id) == (WORKER, call.span_id)
    assert work.attributes["quietframe.job"] == answer.job.id


def test_all_pictures_of_an_inference_are_in_its_trace(watched: Watched) -> None:
    above = caller()
    pixels = np.random.default_rng(2).integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    with watched.client() as client:
        url = "/v2/models/nlm/infer"
        answer = client.post(url, json={"inputs": [tensor]}, headers={"traceparent": str(above)})
    assert answer.status_code == 200, answer.text
    spans = watched.collector.spans_of(above.trace_id, lambda spans: len(processed(spans)) == 2)
    jobs = {span.attributes["quietframe.job"] for span in processed(spans)}
    assert jobs == set(answer.json()["parameters"]["jobs"].split(","))


def test_all_parts_of_a_video_and_their_joining_are_in_its_trace(watched: Watched) -> None:
    above = caller()
    with watched.client() as client:
        answer = client.post(
            "/jobs/video",
            files={"file": ("noisy.mp4", clip())},
            data={"model": "nlm"},
            headers={"traceparent": str(above)},
        )
    spans = watched.collector.spans_of(above.trace_id, lambda spans: len(processed(spans)) == 5)
    request = named(spans, "POST /jobs/video")
    leases = processed(spans)
    assert {span.attributes["quietframe.job"] for span in leases} == {answer.json()["id"]}
    assert {span.parent_id for span in leases} == {request.span_id}
    lanes = sorted(span.attributes["quietframe.lane"] for span in leases)
    assert lanes == ["video", "video.join", "video.part", "video.part", "video.part"]
    parts = {span.attributes["quietframe.part"] for span in leases if "quietframe.part" in span.attributes}
    assert parts == {0, 1, 2}


def test_a_live_stream_is_in_the_trace_of_its_call(watched: Watched) -> None:
    above = caller()

    def requests():
        yield pb.DenoiseStreamRequest(setup=pb.StreamSetup(model="nlm", width=32, height=24))
        for shade in range(3):
            yield pb.DenoiseStreamRequest(frame=bytes([shade]) * (32 * 24 * 3))

    with grpc.insecure_channel(watched.grpc_address) as channel:
        stub = DenoiserStub(channel)
        answers = list(stub.DenoiseStream(requests(), metadata=(("traceparent", str(above)),), timeout=60))
    assert len(answers) == 4
    root = "quietframe.v1.Denoiser/DenoiseStream"
    spans = watched.collector.spans_of(above.trace_id, has(root, "live stream", "run batch"))
    call, work = named(spans, root), named(spans, "live stream")
    assert (call.process, call.parent_id) == (API, above.span_id)
    assert (work.process, work.parent_id) == (WORKER, call.span_id)
    assert {span.parent_id for span in spans if span.name == "run batch"} == {work.span_id}
    told = 'denoise_restored_frames_total{backend="classical",lane="live"'
    assert any(told in text for text in watched.worker_metrics())


def processed(spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.name == "process"]


def test_a_request_from_nowhere_begins_a_trace_and_a_refusal_is_no_failure_of_the_service(watched: Watched) -> None:
    with watched.client() as client:
        broken = noisy_png()[:60]
        answer = client.post("/denoise/image", files={"file": ("noisy.png", broken)}, data={"model": "nlm"})
    assert answer.status_code == 422
    job_id = answer.headers["Quietframe-Job"]
    line = watched.line(lambda line: line.get("job") == job_id and line["logger"] == "service.worker")
    spans = watched.collector.spans_of(line["trace_id"], has("POST /denoise/image", "process"))
    assert named(spans, "POST /denoise/image").parent_id == ""
    assert named(spans, "process").attributes["quietframe.outcome"] == "refused"
    assert not any(span.failed for span in spans)


def test_who_asks_for_no_trace_gets_none_but_its_name_goes_on(watched: Watched) -> None:
    silent, told = Trace(secrets.token_hex(16), secrets.token_hex(8)), caller()
    with watched.client() as client:
        for trace in (silent, told):
            answer = client.post(
                "/jobs/image",
                files={"file": ("noisy.png", noisy_png(seed=5))},
                data={"model": "nlm"},
                headers={"traceparent": str(trace)},
            )
            assert answer.status_code == 202
            with client.stream("GET", f"/jobs/{answer.json()['id']}/events") as events:
                events.read()
            watched.line(done_in(trace))
    assert watched.collector.spans_of(told.trace_id, has("process"))
    assert watched.collector.spans_of(silent.trace_id, lambda spans: True) == []


def done_in(trace: Trace):
    return lambda line: line["logger"] == "service.worker" and line.get("trace_id") == trace.trace_id


def test_probes_and_scrapers_leave_no_traces(watched: Watched) -> None:
    asked, after = caller(), caller()
    with watched.client() as client:
        for path in ("/livez", "/readyz", "/metrics"):
            assert client.get(path, headers={"traceparent": str(asked)}).status_code == 200
        assert client.get("/models", headers={"traceparent": str(after)}).status_code == 200
    assert watched.collector.spans_of(after.trace_id, has("GET /models"))
    assert watched.collector.spans_of(asked.trace_id, lambda spans: True) == []


def test_histograms_lead_to_a_trace_of_what_they_count(watched: Watched) -> None:
    above = caller()
    with watched.client() as client:
        files = {"file": ("noisy.png", noisy_png(seed=8))}
        client.post("/denoise/image", files=files, data={"model": "nlm"}, headers={"traceparent": str(above)})
        told = f'trace_id="{above.trace_id}"'
        assert told in client.get("/metrics").text
    assert any(told in text for text in watched.worker_metrics("application/openmetrics-text; version=1.0.0"))


# --- by itself


@pytest.mark.parametrize(
    ("header", "is_good"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", True),
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes-later", True),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", False),
        ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", False),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", False),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01", False),
        ("", False),
        (None, False),
        ("\r\n", False),
    ],
)
def test_a_traceparent_is_taken_only_as_the_standard_has_it(header: str | None, is_good: bool) -> None:
    trace = Trace.parse(header)
    assert (trace is not None) == is_good
    if header and trace:
        assert str(trace) == f"00{header[2:55]}"


def test_spans_nest_and_what_came_from_elsewhere_goes_before_what_is_at_hand() -> None:
    assert tracing.here() is None
    with tracing.span("outer", under=str(above := caller())) as outer:
        assert outer.trace == above
        assert tracing.here() == above
        with tracing.span("inner") as inner:
            assert inner.trace == above
        with tracing.span("of another", under=str(other := caller())) as span:
            assert span.trace == other
        with tracing.span("of who knows", under="nonsense") as span:
            assert span.trace == above
    assert tracing.here() is None
    with tracing.span("new") as one, tracing.span("newer") as another:
        assert one.trace == another.trace
        assert not one.trace.sampled


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, False),
        ({"OTEL_SDK_DISABLED": "True", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, False),
    ],
)
def test_traces_are_told_where_the_variables_ask_for_it(environment: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environment) == wanted


def test_nothing_that_tells_spans_is_loaded_where_nobody_asks_for_traces() -> None:
    code = (
        "import sys, service.api.server, service.worker\n"
        "from service.telemetry import tracing\n"
        "tracing.start('x')\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk.trace') or '.otlp' in name])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_asked_for_and_not_installed_is_said_and_the_service_runs(monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "service.telemetry.otel", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    tracing.start("x")
    assert "pip install 'quietframe[otel]'" in caplog.text
    with tracing.span("goes on") as span:
        assert not span.trace.sampled


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin'"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "the OTLP protocol is 'grpc'"),
    ],
)
def test_an_exporter_that_is_not_here_is_refused_by_its_name(monkeypatch, environment, said) -> None:
    from service.telemetry.otel import UnusableExporter

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnusableExporter, match=said):
        tracing.start("x")


class Stuck:
    """A teller whose collector takes nothing."""

    def __init__(self) -> None:
        self.asked, self.over = threading.Event(), threading.Event()

    def begin(self, *_):
        raise AssertionError("nothing begins here")

    def close(self) -> None:
        self.asked.set()
        self.over.wait(60)


def test_a_collector_that_takes_nothing_keeps_no_process_from_ending(monkeypatch, caplog) -> None:
    stuck = Stuck()
    monkeypatch.setattr(tracing, "_teller", stuck)
    tracing.stop(within_s=0.01)
    assert stuck.asked.wait(60)
    assert "the last spans are dropped" in caplog.text
    with tracing.span("after"):  # and nobody is told
        pass
    stuck.over.set()
    tracing.stop()
