"""Does gRPC keep its contract: over a real port, a real queue and real files, beside REST in one process?"""

import base64
import contextlib
import filecmp
import hashlib
import json
import socket
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from api_support import PATIENCE_S, PlayedWorker, inverted, noisy_png, served, short_video
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from ports import free_port

from service.api.server import make_server
from service.errors import PROBLEMS
from service.job import (
    InputFacts,
    JobDocument,
    Metrics,
    NoiseEstimate,
    Options,
    ProblemDocument,
    Progress,
    StageSeconds,
)
from service.rpc import protos, readiness, server
from service.rpc.generated.quietframe.v1 import denoiser_pb2 as pb
from service.rpc.generated.quietframe.v1.denoiser_pb2_grpc import DenoiserStub
from service.rpc.problems import _STATUSES
from service.rpc.server import CannotListen
from service.settings import Settings

NOISY = noisy_png()
MAX_MESSAGE = 512 * 1024
DENOISER = "quietframe.v1.Denoiser"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Settings:
    data_dir = tmp_path_factory.mktemp("rpc")
    return Settings(
        data_dir=data_dir,
        redis_url=redis_url,
        port=0,
        max_upload_bytes=MAX_MESSAGE,
        max_message_bytes=MAX_MESSAGE,
        drain_s=5,
    )


@pytest.fixture(scope="module")
def running(settings: Settings) -> Iterator[tuple[httpx.Client, grpc.Channel]]:
    with served(settings) as (client, _), channel_to(client) as channel:
        yield client, channel


@contextlib.contextmanager
def channel_to(client: httpx.Client) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{client.get('/').json()['grpc_port']}") as channel:
        yield channel


@pytest.fixture
def rest(running: tuple[httpx.Client, grpc.Channel], fresh_redis_url: str) -> httpx.Client:
    return running[0]


@pytest.fixture
def denoiser(running: tuple[httpx.Client, grpc.Channel], fresh_redis_url: str) -> DenoiserStub:
    return DenoiserStub(running[1])


@pytest.fixture
def worker(settings: Settings, fresh_redis_url: str) -> Iterator[PlayedWorker]:
    with PlayedWorker(settings) as played:
        yield played


def parts_of(video: bytes, reference: bytes = b"", **fields: object) -> Iterator[pb.SubmitVideoRequest]:
    yield pb.SubmitVideoRequest(video=pb.VideoJob(**fields))
    for at in range(0, len(video), 500):
        yield pb.SubmitVideoRequest(chunk=video[at : at + 500])
    for at in range(0, len(reference), 500):
        yield pb.SubmitVideoRequest(reference_chunk=reference[at : at + 500])


def code_of(error: grpc.RpcError) -> str:
    return dict(error.trailing_metadata())["quietframe-code"]


def details_of(error: grpc.RpcError) -> Status:
    return Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])


def test_an_image_goes_in_and_comes_back_restored_with_its_job(denoiser, worker):
    options = pb.Options(sigma=25, strength=0.5, ensemble=2)
    request = pb.DenoiseImageRequest(image=NOISY, reference=noisy_png(seed=8), options=options, name="holiday.png")
    answer = denoiser.DenoiseImage(request, timeout=PATIENCE_S)
    assert answer.image == inverted(NOISY)
    assert answer.content_type == "image/png"
    assert answer.job.state == pb.JOB_STATE_SUCCEEDED
    assert answer.job.kind == pb.JOB_KIND_IMAGE
    assert answer.job.model == "fitvnet-spatial.camera"
    assert answer.job.options.strength == 0.5
    assert answer.job.options.ensemble == 2
    assert answer.job.metrics.psnr_db == 31.5
    assert answer.job.metrics.seconds.infer == 0.25
    assert answer.job.finished_at.seconds >= answer.job.created_at.seconds > 0
    assert not answer.job.HasField("error")


def test_rest_and_grpc_see_the_same_job(denoiser, rest, worker):
    job_id = denoiser.DenoiseImage(pb.DenoiseImageRequest(image=NOISY), timeout=PATIENCE_S).job.id
    told, document = denoiser.GetJob(pb.GetJobRequest(id=job_id)).job, rest.get(f"/jobs/{job_id}").json()
    assert told.result.sha256 == document["result"]["sha256"] == hashlib.sha256(inverted(NOISY)).hexdigest()
    assert told.metrics.sigma_estimate == document["metrics"]["sigma_estimate"]
    assert told.input.width == document["input"]["width"]
    assert not told.metrics.HasField("psnr_db")  # no reference was given, and nothing is not 0


def test_the_message_of_a_job_has_every_field_of_its_document():
    pairs = [
        (pb.Job, JobDocument, set()),
        (pb.Progress, Progress, set()),
        (pb.Input, InputFacts, set()),
        (pb.Options, Options, set()),
        (pb.Metrics, Metrics, set()),
        (pb.NoiseEstimate, NoiseEstimate, set()),
        (pb.StageSeconds, StageSeconds, set()),
        (pb.Problem, ProblemDocument, {"errors"}),  # of forms, which only REST has
    ]
    for message, document, apart in pairs:
        assert {field.name for field in message.DESCRIPTOR.fields} == set(document.model_fields) - apart


def test_every_problem_but_our_own_fault_has_a_status():
    assert {code for _, code, _, _ in PROBLEMS.values()} - set(_STATUSES) == {"failed"}


@pytest.mark.parametrize(
    ("request_", "status", "code", "words"),
    [
        (pb.DenoiseImageRequest(image=b"some text"), grpc.StatusCode.INVALID_ARGUMENT, "unknown_format", "PNG"),
        (pb.DenoiseImageRequest(), grpc.StatusCode.INVALID_ARGUMENT, "bad_input", "empty"),
        (
            pb.DenoiseImageRequest(image=NOISY, options=pb.Options(sigma=float("nan"))),
            grpc.StatusCode.INVALID_ARGUMENT,
            "bad_input",
            "sigma is nan",
        ),
        (
            pb.DenoiseImageRequest(image=NOISY, options=pb.Options(format="x" * 100_000)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "bad_input",
            "format is",
        ),
        (pb.DenoiseImageRequest(image=NOISY, model="magic"), grpc.StatusCode.NOT_FOUND, "unknown_model", "magic"),
    ],
)
def test_what_is_refused_is_told_with_the_same_code_as_over_rest(denoiser, request_, status, code, words):
    with pytest.raises(grpc.RpcError) as refused:
        denoiser.DenoiseImage(request_, timeout=PATIENCE_S)
    assert refused.value.code() is status
    assert code_of(refused.value) == code
    assert words in refused.value.details()
    reason = ErrorInfo()
    assert details_of(refused.value).details[0].Unpack(reason)
    assert (reason.reason, reason.domain) == (code, "quietframe")


def test_a_failed_job_is_its_caller_s_answer(denoiser, settings, fresh_redis_url):
    problem = {"code": "bad_input", "title": "", "status": 422, "detail": "the image ends early", "type": "urn:x"}
    with PlayedWorker(settings, problem=problem), pytest.raises(grpc.RpcError) as failed:
        denoiser.DenoiseImage(pb.DenoiseImageRequest(image=NOISY), timeout=PATIENCE_S)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.value.details() == "the image ends early"


def test_a_message_that_is_too_large_is_refused_before_it_is_read(denoiser):
    with pytest.raises(grpc.RpcError) as refused:
        denoiser.DenoiseImage(pb.DenoiseImageRequest(image=bytes(MAX_MESSAGE)), timeout=PATIENCE_S)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_caller_who_leaves_cancels_the_job(denoiser, rest, worker):
    worker.go.clear()
    call = denoiser.DenoiseImage.future(pb.DenoiseImageRequest(image=NOISY))
    assert worker.took.wait(PATIENCE_S)
    call.cancel()
    until(lambda: states_of(rest) == ["cancelling"])
    worker.go.set()
    until(lambda: states_of(rest) == ["cancelled"])


def test_a_deadline_cancels_the_job_too(denoiser, rest, worker):
    worker.go.clear()
    call = denoiser.DenoiseImage.future(pb.DenoiseImageRequest(image=NOISY), timeout=1.0)
    assert worker.took.wait(PATIENCE_S)
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: states_of(rest) in (["cancelling"], ["cancelled"]))


def test_a_caller_of_the_inference_protocol_who_leaves_cancels_the_job_too(rest, worker):
    worker.go.clear()
    with pytest.raises(httpx.ReadTimeout):
        rest.post("/v2/models/auto/infer", content=NOISY, headers={"Inference-Header-Content-Length": "0"}, timeout=1)
    until(lambda: states_of(rest) in (["cancelling"], ["cancelled"]))


def test_of_a_batch_with_one_bad_picture_the_others_are_not_done_in_vain(rest):
    """No worker is up: whoever is not cancelled would wait."""
    files = [base64.b64encode(file).decode() for file in (NOISY, b"no picture", NOISY)]
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [3], "data": files}]}
    answer = rest.post("/v2/models/auto/infer", json=body)
    assert answer.status_code == 415
    assert "PNG" in answer.json()["error"]
    until(lambda: set(states_of(rest)) <= {"cancelled"})


def states_of(rest: httpx.Client) -> list[str]:
    return [job["state"] for job in rest.get("/jobs").json()["jobs"]]


def until(holds, within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_video_goes_in_by_pieces_is_followed_and_fetched(denoiser, worker):
    video, clean = short_video(), short_video(frames=4)
    options = pb.Options(format="mkv", codec="ffv1", scan="interlaced")
    submitted = denoiser.SubmitVideo(parts_of(video, clean, options=options, name="walk.mp4")).job
    assert submitted.kind == pb.JOB_KIND_VIDEO
    assert submitted.input.frames == 3
    assert submitted.options.scan == "interlaced"
    events = list(denoiser.WatchJob(pb.WatchJobRequest(id=submitted.id), timeout=PATIENCE_S))
    assert [event.state for event in events if event.WhichOneof("event") == "state"][-1] == pb.JOB_STATE_SUCCEEDED
    assert any(event.progress.done == 1 for event in events)
    assert events[-1].job.metrics.psnr_db == 31.5  # it had a reference
    assert not any(event.HasField("job") for event in events[:-1])
    again = list(denoiser.WatchJob(pb.WatchJobRequest(id=submitted.id, after_event_id=events[-2].event_id)))
    assert again == events[-1:]

    pieces = list(denoiser.GetResult(pb.GetResultRequest(id=submitted.id)))
    assert b"".join(piece.chunk for piece in pieces) == inverted(video)
    assert pieces[0].info.sha256 == hashlib.sha256(inverted(video)).hexdigest()
    rest_of_it = list(denoiser.GetResult(pb.GetResultRequest(id=submitted.id, offset=500)))
    assert b"".join(piece.chunk for piece in rest_of_it) == inverted(video)[500:]
    assert rest_of_it[0].offset == 500
    assert rest_of_it[0].info == pieces[0].info


def test_a_large_result_comes_in_many_pieces(denoiser, worker):
    large = noisy_png(400, 300)  # noise does not compress
    job_id = denoiser.DenoiseImage(pb.DenoiseImageRequest(image=large), timeout=PATIENCE_S).job.id
    pieces = list(denoiser.GetResult(pb.GetResultRequest(id=job_id)))
    assert [piece.offset for piece in pieces] == [0, 256 * 1024]
    assert b"".join(piece.chunk for piece in pieces) == inverted(large)
    with pytest.raises(grpc.RpcError) as beyond:
        list(denoiser.GetResult(pb.GetResultRequest(id=job_id, offset=1 << 40)))
    assert beyond.value.code() is grpc.StatusCode.OUT_OF_RANGE


def test_the_same_key_gives_the_same_job(denoiser):
    video = short_video()
    first = denoiser.SubmitVideo(parts_of(video, idempotency_key="k1")).job
    assert denoiser.SubmitVideo(parts_of(video, idempotency_key="k1")).job.id == first.id
    with pytest.raises(grpc.RpcError) as other:
        denoiser.SubmitVideo(parts_of(video, idempotency_key="k1", model="dncnn"))
    assert other.value.code() is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "the first message must hold video"),
        ([pb.SubmitVideoRequest(chunk=b"abc")], "the first message must hold video"),
        ([pb.SubmitVideoRequest(video=pb.VideoJob())] * 2, "the first message alone"),
        ([*parts_of(b"a", b"b"), pb.SubmitVideoRequest(chunk=b"c")], "the video goes first"),
        ([*parts_of(b"")], "empty"),
        ([*parts_of(bytes(100_000)), *[pb.SubmitVideoRequest(chunk=bytes(100_000))] * 5], "at most 524288"),
    ],
)
def test_pieces_in_the_wrong_order_or_too_many_are_refused(denoiser, parts, words):
    with pytest.raises(grpc.RpcError) as refused:
        denoiser.SubmitVideo(iter(parts))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in refused.value.details()


def test_an_upload_that_breaks_off_leaves_no_job_and_no_file(denoiser, rest, settings):
    arrived, leave = threading.Event(), threading.Event()

    def half() -> Iterator[pb.SubmitVideoRequest]:
        yield pb.SubmitVideoRequest(video=pb.VideoJob())
        yield pb.SubmitVideoRequest(chunk=bytes(1000))
        arrived.set()
        leave.wait(PATIENCE_S)

    call = denoiser.SubmitVideo.future(half())
    assert arrived.wait(PATIENCE_S)
    call.cancel()
    leave.set()
    assert states_of(rest) == []
    assert list((settings.data_dir / "spool").iterdir()) == []


def test_a_job_that_waits_is_cancelled_at_once(denoiser):
    job = denoiser.SubmitVideo(parts_of(short_video())).job
    assert job.state == pb.JOB_STATE_QUEUED
    assert denoiser.CancelJob(pb.CancelJobRequest(id=job.id)).job.state == pb.JOB_STATE_CANCELLED
    with pytest.raises(grpc.RpcError) as gone:
        list(denoiser.GetResult(pb.GetResultRequest(id=job.id)))
    assert (gone.value.code(), code_of(gone.value)) == (grpc.StatusCode.NOT_FOUND, "result_gone")


@pytest.mark.parametrize("job_id", ["", "0" * 32, "../../etc/passwd"])
def test_a_job_that_is_not_there_is_not_found(denoiser, job_id):
    for call, request in (
        (denoiser.GetJob, pb.GetJobRequest(id=job_id)),
        (denoiser.CancelJob, pb.CancelJobRequest(id=job_id)),
        (lambda one: list(denoiser.WatchJob(one)), pb.WatchJobRequest(id=job_id)),
        (lambda one: list(denoiser.GetResult(one)), pb.GetResultRequest(id=job_id)),
    ):
        with pytest.raises(grpc.RpcError) as missing:
            call(request)
        assert (missing.value.code(), code_of(missing.value)) == (grpc.StatusCode.NOT_FOUND, "job_not_found")


def test_a_full_queue_says_when_to_come_again(settings, fresh_redis_url, tmp_path):
    narrow = settings.model_copy(update={"max_queued_jobs": 1, "data_dir": tmp_path})
    with served(narrow) as (client, _), channel_to(client) as channel:
        denoiser = DenoiserStub(channel)
        denoiser.SubmitVideo(parts_of(short_video()))
        with pytest.raises(grpc.RpcError) as full:
            denoiser.SubmitVideo(parts_of(short_video(frames=4)))
    assert (full.value.code(), code_of(full.value)) == (grpc.StatusCode.UNAVAILABLE, "queue_full")
    later = RetryInfo()
    assert details_of(full.value).details[1].Unpack(later)
    assert later.retry_delay.seconds > 0


def test_without_a_broker_calls_are_answered_and_the_process_lives(settings, tmp_path):
    lost = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}", "data_dir": tmp_path})
    with served(lost) as (client, _), channel_to(client) as channel:
        with pytest.raises(grpc.RpcError) as away:
            DenoiserStub(channel).GetJob(pb.GetJobRequest(id="0" * 32), timeout=PATIENCE_S)
        assert (away.value.code(), code_of(away.value)) == (grpc.StatusCode.UNAVAILABLE, "not_ready")
        assert (health_of(channel, ""), health_of(channel, DENOISER)) == ("SERVING", "NOT_SERVING")
        answer = client.get("/v2/health/ready")
        assert (answer.status_code, list(answer.json())) == (503, ["error"])
        assert client.get("/v2/health/live").json() == {"live": True}


def test_more_calls_than_may_be_at_once_are_told_so(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_CALLS_AT_ONCE", 2)
    own = settings.model_copy(update={"data_dir": tmp_path})
    with served(own) as (client, _), channel_to(client) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        open_calls = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        assert [next(call).status for call in open_calls] == [health_pb2.HealthCheckResponse.SERVING] * 2
        with pytest.raises(grpc.RpcError) as full:
            health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        for call in open_calls:
            call.cancel()
    assert full.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_calls_are_counted_by_method_and_status(denoiser, rest):
    with pytest.raises(grpc.RpcError):
        denoiser.GetJob(pb.GetJobRequest(id="none"))
    figures = rest.get("/metrics").text
    labels = 'code="NOT_FOUND",method="quietframe.v1.Denoiser/GetJob"'
    assert f"denoise_grpc_request_duration_seconds_count{{{labels}}}" in figures


def health_of(channel: grpc.Channel, name: str) -> str:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE_S)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def test_health_follows_readiness_but_not_every_hiccup(running, settings, fresh_redis_url, monkeypatch):
    _, channel = running
    assert health_of(channel, "") == "SERVING"  # the process lives
    monkeypatch.setattr(readiness, "_PATIENCE_S", 0.0)
    until(lambda: health_of(channel, DENOISER) == "NOT_SERVING")  # no worker yet
    with PlayedWorker(settings):
        until(lambda: health_of(channel, DENOISER) == "SERVING")
        monkeypatch.setattr(readiness, "_PATIENCE_S", 3600.0)
    time.sleep(2.5 * readiness._LOOK_EVERY_S)  # the worker is gone, and looked for in vain
    assert health_of(channel, DENOISER) == "SERVING"
    monkeypatch.setattr(readiness, "_PATIENCE_S", 0.0)
    until(lambda: health_of(channel, DENOISER) == "NOT_SERVING")


def test_a_stopping_server_says_so_first_ends_its_streams_and_finishes_its_calls(settings, worker, tmp_path):
    own = settings.model_copy(update={"data_dir": settings.data_dir, "drain_s": PATIENCE_S})
    worker.go.clear()
    with served(own) as (client, serving), channel_to(client) as channel:
        denoiser = DenoiserStub(channel)
        until(lambda: health_of(channel, DENOISER) == "SERVING")
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=DENOISER))
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        image = denoiser.DenoiseImage.future(pb.DenoiseImageRequest(image=NOISY))
        assert worker.took.wait(PATIENCE_S)
        (job,) = client.get("/jobs").json()["jobs"]
        events = denoiser.WatchJob(pb.WatchJobRequest(id=job["id"]))
        assert next(events).state == pb.JOB_STATE_QUEUED
        serving.should_exit = True
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as ended:
            list(events)
        assert (ended.value.code(), code_of(ended.value)) == (grpc.StatusCode.UNAVAILABLE, "not_ready")
        worker.go.set()
        assert image.result(PATIENCE_S).image == inverted(NOISY)
        watched.cancel()


def test_whoever_asks_is_shown_the_services_and_their_messages(running):
    _, channel = running
    shown = ProtoReflectionDescriptorDatabase(channel)
    assert {DENOISER, "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(shown.get_services())
    service = DescriptorPool(shown).FindServiceByName(DENOISER)
    assert "DenoiseImage" in service.methods_by_name
    assert service.methods_by_name["SubmitVideo"].input_type.full_name == "quietframe.v1.SubmitVideoRequest"


def test_a_program_that_knows_no_proto_of_ours_lists_the_services_and_calls_one(rest, worker):
    """`buf curl`, of the wheel `buf-bin`: it has all that it knows from reflection, as grpcurl has."""
    address = f"http://127.0.0.1:{rest.get('/').json()['grpc_port']}"

    def curl(url, *more):
        command = [Path(sysconfig.get_path("scripts")) / "buf", "curl", "--http2-prior-knowledge", "--protocol", "grpc"]
        ran = subprocess.run([*command, *more, url], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert {DENOISER, "inference.GRPCInferenceService"} <= set(curl(address, "--list-services").split())
    assert f"{DENOISER}/DenoiseStream" in curl(address, "--list-methods").split()
    asked = json.dumps({"image": base64.b64encode(NOISY).decode()})
    answer = json.loads(curl(f"{address}/{DENOISER}/DenoiseImage", "--data", asked))
    assert base64.b64decode(answer["image"]) == inverted(NOISY)
    assert answer["job"]["state"] == "JOB_STATE_SUCCEEDED"


def test_a_taken_port_is_one_clear_message(settings):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=f"cannot listen on 127.0.0.1:{port} for gRPC: Address already in use"):
            make_server(settings.model_copy(update={"grpc_port": port})).run()


def test_the_generated_code_is_what_the_protos_give(tmp_path):
    protos.generate(tmp_path)
    fresh = sorted(path for path in tmp_path.rglob("*.py*") if "_pb2" in path.name)
    kept = sorted((protos.ROOT / protos.GENERATED).rglob("*_pb2*.py*"))
    assert [path.relative_to(tmp_path) for path in fresh] == [
        path.relative_to(protos.ROOT) for path in kept if "__pycache__" not in path.parts
    ]
    for path in fresh:
        ours = protos.ROOT / path.relative_to(tmp_path)
        assert filecmp.cmp(path, ours, shallow=False), f"run: make protos ({Path(ours).name})"
