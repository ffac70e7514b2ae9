"""Does every door ask who calls, let in whom it should, and show each caller their own jobs alone?"""

import contextlib
import json
import logging
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
import trustme
from api_support import PATIENCE_S, PlayedWorker, inverted, noisy_png, served, short_video
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis import Redis

from service.access.gate import Gate
from service.access.keys import ApiKey, KeyRing, Scope, add_key, new_key, remove_key
from service.access.quotas import Quotas
from service.api.access import Access as HttpAccess
from service.api.app import create_app
from service.api.rights import OPEN, right_for
from service.api.server import make_server
from service.blobs import open_store
from service.broker.janitor import Janitor
from service.broker.lease import LeaseClient
from service.client import AsyncClient, Client, ServerProblem
from service.errors import NoKey, NotReady, RateExceeded, problem
from service.job import Lane
from service.rpc import denoiser, inference
from service.rpc.access import Access
from service.rpc.access import right_for as right_for_call
from service.rpc.generated import grpc_predict_v2_pb2 as oip
from service.rpc.generated import grpc_predict_v2_pb2_grpc
from service.rpc.generated.quietframe.v1 import denoiser_pb2 as pb
from service.rpc.generated.quietframe.v1.denoiser_pb2_grpc import DenoiserStub
from service.rpc.server import CannotListen
from service.serve import _direct
from service.settings import Settings

ROOT = Path(__file__).parent.parent
NOISY = noisy_png()
NOBODYS = "0" * 32


@dataclass(frozen=True)
class Holder:
    key: ApiKey
    token: str

    @property
    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),)


def holder(path: Path, name: str, *scopes: Scope, **said: Any) -> Holder:
    key, token = new_key(name, scopes, **said)
    add_key(path, key)
    return Holder(key, token)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    path = tmp_path_factory.mktemp("access") / "keys.json"
    return SimpleNamespace(
        path=path,
        alice=holder(path, "alice", Scope.SUBMIT, Scope.READ),
        bob=holder(path, "bob", Scope.SUBMIT, Scope.READ),
        camera=holder(path, "camera", Scope.SUBMIT),
        viewer=holder(path, "viewer", Scope.READ),
        root=holder(path, "root", Scope.ADMIN),
    )


@pytest.fixture(scope="module")
def settings(people: SimpleNamespace, redis_url: str) -> Settings:
    return Settings(data_dir=people.path.parent, keys_file=people.path, redis_url=redis_url, port=0, drain_s=5)


@pytest.fixture(scope="module")
def running(settings: Settings) -> Iterator[tuple[httpx.Client, grpc.Channel]]:
    with (
        served(settings) as (client, _),
        grpc.insecure_channel(f"127.0.0.1:{client.get('/').json()['grpc_port']}") as channel,
    ):
        yield client, channel


@pytest.fixture
def rest(running: tuple[httpx.Client, grpc.Channel], fresh_redis_url: str) -> httpx.Client:
    return running[0]


@pytest.fixture
def channel(running: tuple[httpx.Client, grpc.Channel], fresh_redis_url: str) -> grpc.Channel:
    return running[1]


@pytest.fixture
def worker(settings: Settings, fresh_redis_url: str) -> Iterator[PlayedWorker]:
    with PlayedWorker(settings) as played:
        yield played


def submit(rest: httpx.Client, who: Holder, **headers: str) -> str:
    answer = rest.post("/jobs/image", files={"file": NOISY}, headers=who.header | headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def routes_of(settings: Settings) -> Iterator[tuple[str, str]]:
    app = create_app(settings)
    stack = list(app.routes)
    while stack:
        route = stack.pop()
        inner = getattr(route, "original_router", None)
        if inner is not None:
            stack.extend(inner.routes)
        elif path := getattr(route, "path", None):
            for method in sorted(getattr(route, "methods", None) or ()):
                yield method, path


def test_without_a_key_every_call_but_the_open_ones_is_refused_by_every_route(rest, settings):
    asked = 0
    for method, template in routes_of(settings):
        path = template.format(job_id=NOBODYS, name="auto", version="1")
        answer = rest.request(method, path)
        if template in OPEN:
            assert answer.status_code in (200, 405, 503), path
            continue
        asked += 1
        assert answer.status_code == 401, f"{method} {path} was answered {answer.status_code}"
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        if method != "HEAD":
            assert answer.headers.get("Quietframe-Code", "") or answer.json()["code"] == "unauthenticated"
    assert asked > 20
    assert rest.get("/nothing/here").status_code == 401


def test_what_stands_open_is_what_probes_and_readers_of_the_page_ask(settings):
    known = {path for _, path in routes_of(settings)}
    assert known >= OPEN, "a door that is open leads somewhere"
    assert right_for("GET", "/metrics") is right_for("POST", "/admin/jobs/x/replay") is Scope.ADMIN
    assert right_for("GET", "/docs/swagger-ui.css") is None
    assert right_for("PATCH", "/whatever/comes") is Scope.SUBMIT


def all_calls() -> list[str]:
    services = {denoiser.NAME: pb, inference.NAME: oip}
    return [
        f"{name}/{method.name}"
        for name, messages in services.items()
        for method in messages.DESCRIPTOR.services_by_name[name.rpartition(".")[2]].methods
    ]


def test_without_a_key_every_call_over_grpc_is_refused_but_the_open_ones(channel):
    refused = 0
    for name in all_calls():
        # On the wire all kinds are one: a stream of one message each way.
        call = channel.stream_stream(f"/{name}")(iter([b""]), timeout=PATIENCE_S)
        with contextlib.suppress(grpc.RpcError):
            list(call)
        if right_for_call(name) is None:
            assert call.code() is not grpc.StatusCode.UNAUTHENTICATED, name
            continue
        refused += 1
        assert call.code() is grpc.StatusCode.UNAUTHENTICATED, name
        assert dict(call.trailing_metadata())["quietframe-code"] == "unauthenticated"
    assert refused == len(all_calls()) - 3
    probe = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    assert probe.status == health_pb2.HealthCheckResponse.SERVING


def test_wrong_keys_are_refused_alike_and_never_repeated(rest, people):
    token = people.alice.token
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    for sent in (wrong, "qf_" + "0" * 12 + token[15:], token[:20], "x" * 300, "Basic " + token):
        answer = rest.get("/jobs", headers={"Authorization": sent if " " in sent else f"Bearer {sent}"})
        assert answer.status_code == 401
        assert sent not in answer.text
    for odd in (b"Bearer \xff\xfe", b"\xc3\xa9" * 90, b"Bearer"):
        assert rest.get("/jobs", headers={b"Authorization": odd}).status_code == 401
    assert rest.get("/jobs", headers=people.alice.header).status_code == 200


@pytest.mark.anyio
async def test_a_web_socket_is_no_way_around():
    told = []

    async def inner(*_: Any) -> None:
        told.append("reached")

    async def send(message: Any) -> None:
        told.append(message["type"])

    await HttpAccess(inner)({"type": "websocket", "path": "/jobs"}, None, send)  # type: ignore[arg-type]
    assert told == ["websocket.close"]


def test_somebody_elses_job_is_a_job_that_never_was_at_every_door(rest, channel, people, worker):
    video = rest.post("/jobs/video", files={"file": short_video()}, headers=people.alice.header).json()["id"]
    image = submit(rest, people.alice)
    for job_id in (video, image):
        with rest.stream("GET", f"/jobs/{job_id}/events", headers=people.alice.header) as events:
            assert "succeeded" in events.read().decode()
        for method, path in [
            ("GET", ""),
            ("GET", "/result"),
            ("HEAD", "/result"),
            ("GET", "/events"),
            ("GET", "/preview"),
            ("GET", "/frames"),
            ("DELETE", ""),
        ]:
            told = rest.request(method, f"/jobs/{job_id}{path}", headers=people.bob.header)
            unknown = rest.request(method, f"/jobs/{NOBODYS}{path}", headers=people.bob.header)
            assert told.status_code == unknown.status_code == 404, path
            assert told.text == unknown.text.replace(NOBODYS, job_id)
        stub = DenoiserStub(channel)
        calls: list[Callable[..., Any]] = [
            lambda **how: stub.GetJob(pb.GetJobRequest(id=job_id), **how),  # noqa: B023
            lambda **how: stub.CancelJob(pb.CancelJobRequest(id=job_id), **how),  # noqa: B023
            lambda **how: list(stub.WatchJob(pb.WatchJobRequest(id=job_id), **how)),  # noqa: B023
            lambda **how: list(stub.GetResult(pb.GetResultRequest(id=job_id), **how)),  # noqa: B023
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as refused:
                call(metadata=people.bob.metadata, timeout=PATIENCE_S)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
            call(metadata=people.alice.metadata, timeout=PATIENCE_S)
            call(metadata=people.root.metadata, timeout=PATIENCE_S)
        assert rest.get(f"/jobs/{job_id}/result", headers=people.root.header).status_code == 200
    got = rest.get(f"/jobs/{image}/result", headers=people.alice.header)
    assert got.content == inverted(NOISY)
    assert rest.delete(f"/jobs/{image}", headers=people.alice.header).status_code == 204
    assert rest.get(f"/jobs/{image}", headers=people.root.header).status_code == 404


def test_a_list_shows_ones_own_jobs_in_every_state_and_admins_see_all(rest, people, worker, settings):
    worker.go.clear()
    mine = [submit(rest, people.alice) for _ in range(3)]
    theirs = submit(rest, people.bob)

    def ids(who: Holder, **params: Any) -> list[str]:
        return [one["id"] for one in rest.get("/jobs", params=params, headers=who.header).json()["jobs"]]

    assert worker.took.wait(PATIENCE_S)
    assert ids(people.alice) == mine[::-1]
    assert ids(people.bob) == [theirs]
    assert ids(people.viewer) == []
    assert ids(people.root) == [theirs, *mine[::-1]]
    page = rest.get("/jobs", params={"limit": 2}, headers=people.alice.header).json()
    assert [one["id"] for one in page["jobs"]] == mine[:0:-1]
    assert ids(people.alice, cursor=page["next_cursor"]) == mine[:1]
    rest.delete(f"/jobs/{theirs}", headers=people.bob.header)
    assert ids(people.bob, state="cancelled") == [theirs]
    assert ids(people.alice, state="cancelled") == []
    worker.go.set()
    for job_id in mine:
        with rest.stream("GET", f"/jobs/{job_id}/events", headers=people.alice.header) as events:
            events.read()
    assert ids(people.alice, state="succeeded") == mine[::-1]
    assert ids(people.alice, state="queued") == []
    assert ids(people.bob, state="succeeded") == []
    assert rest.delete(f"/jobs/{mine[0]}", headers=people.alice.header).status_code == 204
    assert ids(people.alice) == mine[:0:-1]
    for job_id in (*mine[1:], theirs):
        assert rest.delete(f"/jobs/{job_id}", headers=people.root.header).status_code == 204
    with Redis.from_url(str(settings.redis_url), decode_responses=True) as link:
        assert [name for name in link.scan_iter("quietframe:*") if "@" in name or "owners" in name] == []


def test_of_a_job_whose_time_is_over_no_list_keeps_its_id(rest, people, settings, tmp_path):
    job_id = submit(rest, people.alice)
    brief = settings.model_copy(update={"result_ttl_s": 0.001, "record_ttl_s": 0.001})
    leases = LeaseClient(str(settings.redis_url), brief, "brief")
    lease = leases.lease(list(Lane), wait_s=PATIENCE_S)
    assert lease is not None
    leases.bury(lease, problem(422, "bad_input", "It cannot be", "it ends before its last row"))
    leases.close()
    janitor = Janitor(str(settings.redis_url), brief, open_store(settings))
    deadline = time.monotonic() + PATIENCE_S
    with Redis.from_url(str(settings.redis_url), decode_responses=True) as link:
        while link.zcard(f"quietframe:jobs@{people.alice.key.id}") and time.monotonic() < deadline:
            link.delete("quietframe:janitor")  # whose turn it is matters to nobody here
            janitor.sweep()
        assert link.hget("quietframe:owners", job_id) is None
        assert not link.exists("quietframe:jobs", f"quietframe:jobs:failed@{people.alice.key.id}")


def test_an_idempotency_key_belongs_to_its_holder(rest, people):
    first = submit(rest, people.alice, **{"Idempotency-Key": "one"})
    assert submit(rest, people.alice, **{"Idempotency-Key": "one"}) == first
    assert submit(rest, people.bob, **{"Idempotency-Key": "one"}) != first


def test_a_key_that_replaces_another_goes_on_with_its_jobs(rest, people):
    job_id = submit(rest, people.alice, **{"Idempotency-Key": "two"})
    second = holder(people.path, "alice", Scope.SUBMIT, Scope.READ, replaces=people.alice.key)
    assert rest.get(f"/jobs/{job_id}", headers=second.header).status_code == 200
    assert submit(rest, second, **{"Idempotency-Key": "two"}) == job_id


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/denoise/image", "submit"),
        ("POST", "/jobs/video", "submit"),
        ("DELETE", f"/jobs/{NOBODYS}", "submit"),
        ("GET", "/jobs", "read"),
        ("GET", "/models", "read"),
        ("GET", "/metrics", "admin"),
        ("GET", "/admin/dead-letters", "admin"),
    ],
)
def test_a_key_does_what_its_scopes_say_and_is_told_what_it_lacks(rest, people, method, path, scope):
    lacking = {"submit": people.viewer, "read": people.camera, "admin": people.alice}[scope]
    answer = rest.request(method, path, headers=lacking.header)
    assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
    assert f'scope="{scope}"' in answer.headers["WWW-Authenticate"]
    assert rest.request(method, path, headers=people.root.header).status_code not in (401, 403)


def test_a_camera_that_may_only_submit_gets_its_picture_and_sees_nothing_else(rest, channel, people, worker):
    answer = rest.post("/denoise/image", files={"file": NOISY}, headers=people.camera.header)
    assert answer.content == inverted(NOISY)
    assert rest.get(f"/jobs/{answer.headers['Quietframe-Job']}", headers=people.camera.header).status_code == 403
    request = pb.DenoiseImageRequest(image=NOISY)
    stub = DenoiserStub(channel)
    assert stub.DenoiseImage(request, metadata=people.camera.metadata, timeout=PATIENCE_S).image == inverted(NOISY)
    with pytest.raises(grpc.RpcError) as refused:
        stub.DenoiseImage(request, metadata=people.viewer.metadata, timeout=PATIENCE_S)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert dict(refused.value.trailing_metadata())["quietframe-code"] == "scope_missing"


def test_the_inference_protocol_keeps_its_own_shape_of_errors(rest, channel, people, worker):
    body = {"content": NOISY, "headers": {"Inference-Header-Content-Length": "0"}}
    nobody = rest.post("/v2/models/auto/infer", **body)
    assert (nobody.status_code, nobody.headers["Quietframe-Code"]) == (401, "unauthenticated")
    assert list(nobody.json()) == ["error"]
    body["headers"] |= people.viewer.header
    viewer = rest.post("/v2/models/auto/infer", **body)
    assert (viewer.status_code, viewer.headers["Quietframe-Code"]) == (403, "scope_missing")
    body["headers"] |= people.camera.header
    assert rest.post("/v2/models/auto/infer", **body).status_code == 200
    assert rest.post("/v2/repository/index", headers=people.viewer.header).status_code == 200
    stub = grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(channel)
    assert stub.ServerLive(oip.ServerLiveRequest(), timeout=PATIENCE_S).live
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(oip.ModelInferRequest(model_name="auto"), timeout=PATIENCE_S)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    told = stub.ModelMetadata(
        oip.ModelMetadataRequest(name="auto"), metadata=people.viewer.metadata, timeout=PATIENCE_S
    )
    assert told.name == "auto"


def test_a_revoked_key_stops_at_once_and_ends_what_it_follows(rest, channel, people, worker):
    worker.go.clear()
    leaver = holder(people.path, "leaver", Scope.SUBMIT, Scope.READ)
    job_id = submit(rest, leaver)
    assert worker.took.wait(PATIENCE_S)
    watched = DenoiserStub(channel).WatchJob(
        pb.WatchJobRequest(id=job_id), metadata=leaver.metadata, timeout=PATIENCE_S
    )
    assert next(watched).WhichOneof("event") == "state"
    with rest.stream("GET", f"/jobs/{job_id}/events", headers=leaver.header, timeout=PATIENCE_S) as events:
        lines = events.iter_lines()
        assert next(lines)
        remove_key(people.path, leaver.key.id)
        assert rest.get(f"/jobs/{job_id}", headers=leaver.header).status_code == 401
        assert "succeeded" not in "".join(lines)
    with pytest.raises(grpc.RpcError) as ended:
        list(watched)
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
    worker.go.set()


def test_a_large_upload_without_a_key_is_refused_before_it_is_sent(rest):
    with socket.create_connection((rest.base_url.host, rest.base_url.port), timeout=PATIENCE_S) as line:
        line.sendall(
            b"POST /jobs/video HTTP/1.1\r\nHost: here\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 1000000000\r\n\r\n"
        )
        answer = line.makefile("rb").read()  # to the end: the line is closed
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"unauthenticated" in answer


def test_keys_stand_in_no_log_no_figure_and_no_answer(rest, channel, people, worker, caplog):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpcore").setLevel(logging.INFO)  # the test's own client tells what it sends
    told = ""
    for path in ("/jobs", "/models", f"/jobs/{NOBODYS}", "/metrics", "/openapi.json", "/v2/models/none"):
        for who in (people.alice, people.root, people.camera):
            answer = rest.get(path, headers=who.header)
            told += answer.text + str(answer.headers)
    job_id = submit(rest, people.alice)
    told += rest.get(f"/jobs/{job_id}", headers=people.alice.header).text
    with contextlib.suppress(grpc.RpcError):
        DenoiserStub(channel).GetJob(pb.GetJobRequest(id=NOBODYS), metadata=people.alice.metadata)
    told += rest.get("/metrics", headers=people.root.header).text + caplog.text
    for who in (people.alice, people.root, people.camera):
        assert who.token[16:] not in told
        assert who.key.sha256 not in told


def test_our_client_shows_its_key_from_the_environment_or_from_the_program(rest, people, worker, monkeypatch, tmp_path):
    url = str(rest.base_url)
    with Client(url) as client, pytest.raises(ServerProblem) as refused:
        client.jobs()
    assert (refused.value.status, refused.value.code) == (401, "unauthenticated")
    with Client(url, api_key=people.alice.token) as client:
        job = client.submit_image(NOISY)
        assert client.wait(job.id).state == "succeeded"
        client.download(client.job(job.id), tmp_path / "restored.png")
    monkeypatch.setenv("QUIETFRAME_API_KEY", people.alice.token)
    with Client(url) as client:
        assert [one.id for one in client.jobs()] == [job.id]
    (tmp_path / "noisy.png").write_bytes(NOISY)
    command = [sys.executable, "-m", "service", "denoise", str(tmp_path / "noisy.png"), str(tmp_path / "out.png")]
    done = subprocess.run(
        [*command, "--server", url], capture_output=True, text=True, timeout=PATIENCE_S * 3, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").read_bytes() == inverted(NOISY)


@pytest.mark.anyio
async def test_our_client_for_an_event_loop_shows_its_key_too(rest, people):
    async with AsyncClient(str(rest.base_url), api_key=people.viewer.token) as client:
        assert await client.jobs() == []


def test_a_key_is_not_carried_on_to_where_a_redirect_leads():
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, "Authorization" in request.headers))
        if request.url.host == "service":
            return httpx.Response(307, headers={"Location": "https://bucket/result"})
        return httpx.Response(200, json={"jobs": []})

    with Client("http://service", api_key="qf_0") as client:
        client._http._transport = client._http._mounts = None
        client._http = httpx.Client(
            base_url="http://service",
            headers=client._http.headers,
            follow_redirects=True,
            transport=httpx.MockTransport(answer),
        )
        assert client.jobs() == []
    assert seen == [("service", True), ("bucket", False)]


def test_limits_of_a_key_hold_over_grpc_with_a_time_to_come_again(rest, channel, people):
    slow = holder(people.path, "slow", Scope.READ, requests_per_minute=1)
    stub = DenoiserStub(channel)
    with pytest.raises(grpc.RpcError) as missing:
        stub.GetJob(pb.GetJobRequest(id=NOBODYS), metadata=slow.metadata, timeout=PATIENCE_S)
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as refused:
        stub.GetJob(pb.GetJobRequest(id=NOBODYS), metadata=slow.metadata, timeout=PATIENCE_S)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = dict(refused.value.trailing_metadata())
    assert trailing["quietframe-code"] == "rate_limited"
    retry = RetryInfo()
    assert any(one.Unpack(retry) for one in Status.FromString(trailing["grpc-status-details-bin"]).details)
    assert 1 <= retry.retry_delay.seconds <= 60
    # One quota, whichever the door.
    assert rest.get("/jobs", headers=slow.header).status_code == 429


def test_pages_of_other_origins_are_not_let_in_unless_they_are_named(rest, settings, people):
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization"
    quiet = rest.get("/livez", headers={"Origin": "https://page.example"})
    assert not [name for name in quiet.headers if name.startswith("access-control")]
    assert rest.options("/jobs/image", headers=asked).status_code == 401
    with served(settings.model_copy(update={"cors_origins": "https://page.example"})) as (client, _):
        before = client.options("/jobs/image", headers=asked)
        assert before.status_code == 200
        assert before.headers["Access-Control-Allow-Origin"] == "https://page.example"
        refused = client.get("/jobs", headers={"Origin": "https://page.example"})
        assert refused.status_code == 401
        assert refused.headers["Access-Control-Allow-Origin"] == "https://page.example"
        allowed = client.get("/jobs", headers={"Origin": "https://page.example"} | people.alice.header)
        assert "RateLimit" in allowed.headers["Access-Control-Expose-Headers"]
        other = client.get("/jobs", headers={"Origin": "https://other.example"} | people.alice.header)
        assert "Access-Control-Allow-Origin" not in other.headers


def test_figures_and_operators_calls_are_on_a_port_of_their_own_where_one_is_set(settings, people, fresh_redis_url):
    own = settings.model_copy(update={"admin_port": 0})
    leases = LeaseClient(fresh_redis_url, own, "breaker")
    with served(own) as (client, server):
        services = server._services
        assert services is not None
        with httpx.Client(base_url=f"http://127.0.0.1:{services.admin_port}", timeout=PATIENCE_S) as admin:
            assert client.get("/metrics", headers=people.root.header).status_code == 404
            assert "denoise_broker_up 1.0" in admin.get("/metrics").text
            assert admin.get("/livez").json() == {"status": "alive"}
            assert admin.get("/jobs").status_code == 401
            assert admin.get("/jobs", headers=people.root.header).status_code == 404
            assert admin.get("/admin/dead-letters").status_code == 401
            assert admin.get("/admin/dead-letters", headers=people.alice.header).status_code == 403
            job_id = submit(client, people.alice)
            lease = leases.lease(list(Lane), wait_s=PATIENCE_S)
            assert lease is not None
            leases.bury(lease, problem(422, "bad_input", "It cannot be", "it ends before its last row"))
            (letter,) = admin.get("/admin/dead-letters", headers=people.root.header).json()["dead_letters"]
            assert (letter["job"], letter["attempts"]) == (job_id, 1)
            again = admin.post(f"/admin/jobs/{job_id}/replay", headers=people.root.header)
            assert (again.status_code, again.json()["state"]) == (202, "queued")
    leases.close()


def test_a_port_that_is_taken_is_told_for_operators_too(settings):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        own = settings.model_copy(update={"admin_port": taken.getsockname()[1]})
        with pytest.raises(CannotListen, match="for operators"):
            make_server(own).run()


def test_without_keys_there_are_no_operators_calls_beside_the_others(tmp_path, fresh_redis_url):
    with served(Settings(data_dir=tmp_path, redis_url=fresh_redis_url, port=0, drain_s=1)) as (client, _):
        assert client.get("/admin/dead-letters").status_code == 404
        assert client.get("/metrics").status_code == 200
        assert client.get("/jobs").status_code == 200


def test_a_keys_file_in_the_data_directory_is_used_without_being_named(tmp_path, fresh_redis_url):
    mine = holder(tmp_path / "keys.json", "me", Scope.READ)
    with served(Settings(data_dir=tmp_path, redis_url=fresh_redis_url, port=0, drain_s=1)) as (client, _):
        assert client.get("/jobs").status_code == 401
        assert client.get("/jobs", headers=mine.header).status_code == 200


def test_listening_beyond_this_machine_without_keys_or_without_tls_is_warned_of(settings, tmp_path, redis_url, caplog):
    bare = Settings(data_dir=tmp_path, redis_url=redis_url, port=0, host="0.0.0.0", drain_s=1)
    with served(bare):
        pass
    assert "ANYBODY who can reach 0.0.0.0" in caplog.text
    caplog.clear()
    with served(settings.model_copy(update={"host": "0.0.0.0"})):
        pass
    assert "ANYBODY" not in caplog.text
    assert "readable" in caplog.text
    caplog.clear()
    with served(settings):
        pass
    assert "readable" not in caplog.text


def test_with_a_certificate_all_ports_speak_tls_only(settings, people, tmp_path, fresh_redis_url):
    authority = trustme.CA()
    made = authority.issue_cert("denoise.example", "127.0.0.1", "localhost")
    certificate, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    made.private_key_pem.write_to_path(key)
    for blob in made.cert_chain_pems:
        blob.write_to_path(certificate, append=True)
    secure = settings.model_copy(update={"tls_cert_file": certificate, "tls_key_file": key, "admin_port": 0})
    with running_over_tls(secure, authority) as (client, server):
        assert client.base_url.scheme == "https"
        ports = client.get("/").json()
        assert client.get("/jobs", headers=people.alice.header).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{client.base_url.port}/livez", trust_env=False)
        assert server._services is not None
        assert client.get(f"https://127.0.0.1:{server._services.admin_port}/metrics").status_code == 200
        roots = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        address = f"127.0.0.1:{ports['grpc_port']}"
        with grpc.secure_channel(address, roots) as channel, pytest.raises(grpc.RpcError) as missing:
            DenoiserStub(channel).GetJob(
                pb.GetJobRequest(id=NOBODYS), metadata=people.alice.metadata, timeout=PATIENCE_S
            )
        assert missing.value.code() is grpc.StatusCode.NOT_FOUND
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as unheard:
            DenoiserStub(channel).GetJob(pb.GetJobRequest(id=NOBODYS), timeout=PATIENCE_S)
        assert unheard.value.code() is grpc.StatusCode.UNAVAILABLE
        # How `serve` asks its own child whether it is up: by its own certificate, and by no other.
        with _direct(certificate).open(f"{client.base_url}/livez", timeout=PATIENCE_S) as answer:
            assert json.load(answer) == {"status": "alive"}
        stranger = tmp_path / "stranger.pem"
        trustme.CA().cert_pem.write_to_path(stranger)
        with pytest.raises(OSError, match="certificate verify failed"):
            _direct(stranger).open(f"{client.base_url}/livez", timeout=PATIENCE_S)


@contextlib.contextmanager
def running_over_tls(settings: Settings, authority: trustme.CA) -> Iterator[tuple[httpx.Client, Any]]:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with (
        served(settings) as (plain, server),
        httpx.Client(base_url=plain.base_url, verify=context, timeout=PATIENCE_S) as client,
    ):
        yield client, server


def test_half_of_tls_and_files_that_are_none_are_told_at_the_start(settings, tmp_path):
    with pytest.raises(ValueError, match="both, or neither"):
        Settings(tls_cert_file=tmp_path / "chain.pem")
    gone = settings.model_copy(update={"tls_cert_file": tmp_path / "a.pem", "tls_key_file": tmp_path / "b.pem"})
    with pytest.raises(CannotListen, match="no TLS with"):
        make_server(gone)


@pytest.mark.parametrize("origin", ["page.example", "https://page.example/path", "https://*.example", "null"])
def test_what_is_no_origin_is_refused_as_one(origin):
    with pytest.raises(ValueError, match="is no origin"):
        Settings(cors_origins=origin)


def test_the_page_says_which_calls_need_a_key_and_whether_this_service_asks_for_one(settings, tmp_path, redis_url):
    page = create_app(settings).openapi()
    assert page["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
    assert page["paths"]["/jobs/image"]["post"]["security"] == [{"apiKey": []}]
    assert {"401", "403", "429"} <= set(page["paths"]["/jobs"]["get"]["responses"])
    assert "security" not in page["paths"]["/livez"]["get"]
    open_page = create_app(Settings(data_dir=tmp_path, redis_url=redis_url)).openapi()
    assert open_page["paths"]["/jobs/image"]["post"]["security"] == [{}, {"apiKey": []}]


@pytest.mark.anyio
async def test_a_live_stream_pays_for_each_frame_and_ends_with_its_key(people, settings, monkeypatch):
    streamer = holder(people.path, "streamer", Scope.SUBMIT, pixels_per_minute=100)
    ring = KeyRing(people.path)
    door = Access(Gate(settings, ring, Quotas(Away())))
    monkeypatch.setattr("service.rpc.access._LOOK_EVERY_S", -1.0)

    async def echo(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield request

    async def found(details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(echo)

    details = SimpleNamespace(method=f"/{denoiser.NAME}/DenoiseStream", invocation_metadata=streamer.metadata)
    handler = await door.intercept_service(found, details)
    context = SimpleNamespace(peer=lambda: "ipv4:127.0.0.1:50000")

    async def frames(revoked_at: int | None) -> AsyncIterator[pb.DenoiseStreamRequest]:
        yield pb.DenoiseStreamRequest(setup=pb.StreamSetup(width=5, height=5))
        for number in range(9):
            if number == revoked_at:
                remove_key(people.path, streamer.key.id)
            yield pb.DenoiseStreamRequest(frame=b"pixels")

    async def passed(revoked_at: int | None) -> int:
        count = 0
        with contextlib.suppress(RateExceeded, NoKey):
            async for _ in handler.stream_stream(frames(revoked_at), context):
                count += 1
        return count

    assert await passed(None) == 1 + 4, "the setup, and four frames of 25 pixels"
    assert await passed(0) == 1
    refusing = await door.intercept_service(found, details)
    with pytest.raises(AbortedError, match="not known"):
        async for _ in refusing.stream_stream(None, Aborting()):
            pass


class Away:
    """A broker that does not answer, so that the quotas of this test are nobody else's."""

    async def spend(self, costs: Any, *, window_s: float) -> tuple[bool, list[float]]:
        raise NotReady("it is away")


class AbortedError(Exception):
    """How a call ends early."""


class Aborting:
    async def abort(self, status: grpc.StatusCode, detail: str, trailing: Any) -> None:
        assert status is grpc.StatusCode.UNAUTHENTICATED
        raise AbortedError(detail)
