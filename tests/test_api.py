"""Does the REST API keep its contract: over real HTTP, a real queue and real files?"""

import hashlib
import io
import json
import re
import socket
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from api_support import PATIENCE_S, PlayedWorker, inverted, noisy_png, served, short_video
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from pydantic import TypeAdapter
from redis import Redis

from models.catalogue import CATALOGUE
from service.api.headers import Preference, Unsatisfiable, attachment, matches, preference_of, range_of, wants_json
from service.blobs import open_store
from service.broker import keys
from service.broker.lease import LeaseClient
from service.broker.queue import QueueClient
from service.errors import problem
from service.intake import safe_stem
from service.job import JobDocument, Lane, Preview, ProblemDocument, Record
from service.settings import Settings

ROOT = Path(__file__).parent.parent
NOISY = noisy_png()
NO_JOB = "0" * 32


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Settings:
    data_dir = tmp_path_factory.mktemp("api")
    return Settings(data_dir=data_dir, redis_url=redis_url, port=0, max_upload_bytes=64 * 1024, drain_s=5)


@pytest.fixture(scope="module")
def running(settings: Settings) -> Iterator[httpx.Client]:
    with served(settings) as (client, _):
        yield client


@pytest.fixture
def nothing_yet(settings: Settings, fresh_redis_url: str) -> None:
    """No job and no blob of the test before."""
    for blob in (settings.data_dir / "blobs").glob("??/*"):
        blob.unlink()


@pytest.fixture
def api(running: httpx.Client, nothing_yet: None) -> httpx.Client:
    return running


@pytest.fixture
def worker(settings: Settings, nothing_yet: None) -> Iterator[PlayedWorker]:
    with PlayedWorker(settings) as played:
        yield played


def image(content: bytes = NOISY, name: str = "noisy.png", **more: Any) -> dict[str, Any]:
    return {"file": (name, content), **more}


def submit(api: httpx.Client, content: bytes = NOISY, **fields: Any) -> dict[str, Any]:
    answer = api.post("/jobs/image", files=image(content), data=fields)
    assert answer.status_code == 202, answer.text
    document: dict[str, Any] = answer.json()
    return document


def followed(api: httpx.Client, job_id: str, **headers: str) -> list[dict[str, str]]:
    """All events of a job, until the server closes the stream."""
    with api.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join(answer.iter_text())
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


def finished(api: httpx.Client, **fields: Any) -> dict[str, Any]:
    """A job that is over; to be used with a worker."""
    job_id = submit(api, **fields)["id"]
    followed(api, job_id)
    document: dict[str, Any] = api.get(f"/jobs/{job_id}").json()
    return document


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    ProblemDocument.model_validate(document)
    assert document["status"] == status
    assert document["code"] == code
    assert document["type"] == f"urn:quietframe:problem:{code}"
    assert document["instance"]
    assert isinstance(document["retryable"], bool)
    assert "Traceback" not in answer.text
    assert "/tmp" not in answer.text
    if status == 503:
        assert int(answer.headers["retry-after"]) > 0
    return document


# --- one image, waited for


def test_an_image_comes_back_restored_with_its_figures_in_headers(api: httpx.Client, worker: PlayedWorker) -> None:
    answer = api.post("/denoise/image", files=image(), data={"sigma": "25"})
    assert answer.status_code == 200, answer.text
    assert answer.content == inverted(NOISY)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-length"] == str(len(NOISY))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["quietframe-job"])
    assert answer.headers["quietframe-model"] == "fitvnet-spatial.camera"
    assert answer.headers["quietframe-backend"] == "openvino"
    assert answer.headers["quietframe-precision"] == "fp32"
    assert float(answer.headers["quietframe-sigma-estimate"]) == 24.5
    assert float(answer.headers["quietframe-input-noise-estimate"]) == 25.0
    assert float(answer.headers["quietframe-psnr-estimate"]) == 31.2
    assert float(answer.headers["quietframe-psnr-estimate-error"]) == 0.6
    assert answer.headers["server-timing"] == "decode;dur=1.0, queue;dur=2.0, infer;dur=250.0, encode;dur=3.0"
    assert "quietframe-psnr" not in answer.headers


def test_with_a_reference_the_headers_carry_psnr_and_ssim(api: httpx.Client, worker: PlayedWorker) -> None:
    answer = api.post("/denoise/image", files=image(reference=("clean.png", noisy_png(seed=1))))
    assert answer.status_code == 200, answer.text
    assert float(answer.headers["quietframe-psnr"]) == 31.5
    assert float(answer.headers["quietframe-ssim"]) == 0.9
    assert float(answer.headers["quietframe-input-psnr"]) == 20.25


def test_a_reference_of_another_size_is_refused_with_both_sizes(api: httpx.Client) -> None:
    answer = api.post("/denoise/image", files=image(reference=("clean.png", noisy_png(width=16))))
    detail = assert_problem(answer, 422, "bad_input")["detail"]
    assert "16x24" in detail
    assert "32x24" in detail


def test_a_reference_that_is_no_image_is_told_apart_from_the_file(api: httpx.Client) -> None:
    answer = api.post("/denoise/image", files=image(reference=("clean.png", b"text")))
    assert "reference" in assert_problem(answer, 415, "unknown_format")["detail"]


def test_who_accepts_json_gets_the_job_document(api: httpx.Client, worker: PlayedWorker) -> None:
    answer = api.post("/denoise/image", files=image(), headers={"Accept": "application/json"})
    document = JobDocument.model_validate(answer.json())
    assert document.state == "succeeded"
    assert document.result is not None
    assert api.get(document.result.url).content == inverted(NOISY)


def test_respond_async_is_answered_at_once(api: httpx.Client) -> None:
    answer = api.post("/denoise/image", files=image(), headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.headers["location"] == f"/jobs/{answer.json()['id']}"
    assert answer.json()["state"] == "queued"


def test_a_bounded_wait_ends_in_202_and_the_job_goes_on(api: httpx.Client, worker: PlayedWorker) -> None:
    worker.go.clear()
    answer = api.post("/denoise/image", files=image(), headers={"Prefer": "wait=1"})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "wait=1"
    worker.go.set()
    assert json.loads(followed(api, answer.json()["id"])[-1]["data"])["state"] == "succeeded"


def test_an_image_that_takes_too_long_is_cancelled_and_said_so(settings: Settings, nothing_yet: None) -> None:
    with served(settings.model_copy(update={"sync_timeout_s": 0.1})) as (api, _):
        answer = api.post("/denoise/image", files=image())
        document = assert_problem(answer, 503, "not_ready")
        assert document["retryable"]
        assert "0.1 s" in document["detail"]
        assert [job["state"] for job in api.get("/jobs").json()["jobs"]] == ["cancelled"]


def test_an_image_that_failed_just_before_it_was_given_up_answers_with_its_problem(
    settings: Settings, nothing_yet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = problem(422, "bad_input", "The input cannot be denoised", "the PNG ends after 3 of 24 rows")
    cancel = QueueClient.cancel
    with PlayedWorker(settings, problem=stored) as worker:

        async def cancel_too_late(self: QueueClient, job_id: str) -> Record:
            worker.go.set()
            await self.wait(job_id, PATIENCE_S)
            return await cancel(self, job_id)

        monkeypatch.setattr(QueueClient, "cancel", cancel_too_late)
        worker.go.clear()
        with served(settings.model_copy(update={"sync_timeout_s": 0.1})) as (api, _):
            answer = api.post("/denoise/image", files=image())
    assert assert_problem(answer, 422, "bad_input")["detail"] == stored["detail"]


def test_a_failed_image_answers_with_the_problem_its_worker_stored(settings: Settings, api: httpx.Client) -> None:
    stored = problem(422, "bad_input", "The input cannot be denoised", "the PNG ends after 3 of 24 rows")
    with PlayedWorker(settings, problem=stored):
        answer = api.post("/denoise/image", files=image())
    document = assert_problem(answer, 422, "bad_input")
    assert document["detail"] == stored["detail"]
    job = api.get(document["instance"]).json()
    assert job["state"] == "failed"
    assert job["error"]["code"] == "bad_input"
    assert_problem(api.get(f"{document['instance']}/result"), 410, "result_gone")


def test_who_hangs_up_cancels_the_job(api: httpx.Client, worker: PlayedWorker) -> None:
    worker.go.clear()
    request = api.build_request("POST", "/denoise/image", files=image())
    lines = [f"{name}: {value}" for name, value in request.headers.items()]
    head = "\r\n".join(["POST /denoise/image HTTP/1.1", *lines, "", ""]).encode()
    with socket.create_connection((api.base_url.host, api.base_url.port or 80)) as line:
        line.sendall(head + request.read())
        assert worker.took.wait(PATIENCE_S)
    job_id = api.get("/jobs").json()["jobs"][0]["id"]
    states = []
    with api.stream("GET", f"/jobs/{job_id}/events") as answer:
        for text in answer.iter_lines():
            if text.startswith("data: ") and (state := json.loads(text[6:]).get("state")):
                states.append(state)
                if state == "cancelling":
                    worker.go.set()
    assert states == ["queued", "running", "cancelling", "cancelled"]


# --- jobs


def test_a_job_is_handed_in_looked_at_and_fetched(api: httpx.Client, worker: PlayedWorker) -> None:
    answer = api.post("/jobs/image", files=image(), data={"model": "dncnn", "strength": "0.5", "format": "png"})
    assert answer.status_code == 202, answer.text
    assert int(answer.headers["retry-after"]) > 0
    where = answer.headers["location"]
    followed(api, answer.json()["id"])
    document = JobDocument.model_validate(api.get(where).json())
    assert document.state == "succeeded"
    assert document.model == "dncnn"
    assert document.options.strength == 0.5
    assert (document.input.width, document.input.height) == (32, 24)
    assert document.input.content_type == "image/png"
    assert document.result
    assert api.get(document.result.url).content == inverted(NOISY)


def test_a_video_is_handed_in_with_what_its_header_says(api: httpx.Client) -> None:
    upload = {"file": ("clip.mp4", short_video()), "reference": ("clean.mp4", short_video())}
    answer = api.post("/jobs/video", files=upload, data={"format": "mkv", "codec": "ffv1", "sigma": "25"})
    assert answer.status_code == 202, answer.text
    document = JobDocument.model_validate(answer.json())
    assert (document.kind, document.model) == ("video", "fitvnet.camera")
    assert document.input.content_type == "video/mp4"
    assert (document.input.width, document.input.height, document.input.frames) == (32, 24, 3)
    assert (document.input.frame_rate, document.input.has_audio) == ("25/1", False)
    assert int(answer.headers["retry-after"]) > 1


def test_a_video_is_stored_whole_after_its_first_frame_was_looked_at(settings: Settings, api: httpx.Client) -> None:
    content = short_video() + struct.pack(">I4s", 40_000, b"free") + bytes(39_992)  # more than a file object buffers
    assert api.post("/jobs/video", files={"file": ("clip.mp4", content)}).status_code == 202
    (blob,) = (settings.data_dir / "blobs").glob("??/*")
    assert blob.read_bytes() == content


@pytest.mark.parametrize(
    "fields",
    [
        {"format": "webm", "codec": "h264"},
        {"codec": "ffv1"},  # `same` is mp4 here, which holds no ffv1
        {"codec": "vp9", "crf": "64"},
        {"codec": "mpeg2"},
    ],
)
def test_a_video_that_could_not_be_written_is_refused_before_it_is_denoised(
    api: httpx.Client, fields: dict[str, str]
) -> None:
    answer = api.post("/jobs/video", files={"file": ("clip.mp4", short_video())}, data=fields)
    assert_problem(answer, 422, "bad_input")


def test_a_poll_says_when_to_come_back_and_304_while_nothing_changed(api: httpx.Client) -> None:
    first = api.get(f"/jobs/{submit(api)['id']}")
    assert int(first.headers["retry-after"]) > 0
    again = api.get(first.request.url.path, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert not again.content
    assert again.headers["etag"] == first.headers["etag"]
    api.delete(first.request.url.path)
    changed = api.get(first.request.url.path, headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200
    assert "retry-after" not in changed.headers


def test_the_same_key_and_request_give_the_same_job(api: httpx.Client) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first = api.post("/jobs/image", files=image(), data={"sigma": "25"}, headers=key)
    # The name is no part of what is asked.
    again = api.post("/jobs/image", files=image(name="other.png"), data={"sigma": "25"}, headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json()["id"] == first.json()["id"]
    assert len(api.get("/jobs").json()["jobs"]) == 1


@pytest.mark.parametrize("other", [{"data": {"sigma": "15"}}, {"files": {"file": ("noisy.png", noisy_png(seed=2))}}])
def test_the_same_key_for_another_request_is_refused(api: httpx.Client, other: dict[str, Any]) -> None:
    request: dict[str, Any] = {"files": image(), "data": {"sigma": "25"}, "headers": {"Idempotency-Key": "a-key"}}
    assert api.post("/jobs/image", **request).status_code == 202
    assert_problem(api.post("/jobs/image", **{**request, **other}), 422, "idempotency_conflict")


def test_a_key_that_cannot_be_one_is_refused(api: httpx.Client) -> None:
    answer = api.post("/jobs/image", files=image(), headers={"Idempotency-Key": "k" * 256})
    assert_problem(answer, 422, "bad_input")


def test_pages_of_jobs_hold_each_job_once_newest_first(api: httpx.Client) -> None:
    ids = [submit(api)["id"] for _ in range(5)]
    seen, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = api.get("/jobs", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor, pages = page["next_cursor"], pages + 1
    assert seen == ids[::-1]
    assert pages == 3


def test_jobs_can_be_listed_by_state(api: httpx.Client) -> None:
    waiting, cancelled = submit(api)["id"], submit(api)["id"]
    api.delete(f"/jobs/{cancelled}")
    assert [job["id"] for job in api.get("/jobs?state=queued").json()["jobs"]] == [waiting]
    assert [job["id"] for job in api.get("/jobs?state=cancelled").json()["jobs"]] == [cancelled]


@pytest.mark.parametrize(
    ("query", "field"), [("limit=0", "limit"), ("limit=201", "limit"), ("limit=x", "limit"), ("state=lost", "state")]
)
def test_a_wrong_query_is_refused_naming_the_field(api: httpx.Client, query: str, field: str) -> None:
    document = assert_problem(api.get(f"/jobs?{query}"), 422, "invalid_request")
    assert [(error["in"], error["field"]) for error in document["errors"]] == [("query", field)]


def test_a_cursor_that_no_list_gave_is_refused(api: httpx.Client) -> None:
    assert_problem(api.get("/jobs?cursor=../../etc"), 422, "bad_input")


def test_a_waiting_job_is_cancelled_at_once_then_removed_then_unknown(api: httpx.Client) -> None:
    where = f"/jobs/{submit(api)['id']}"
    first = api.delete(where)
    assert (first.status_code, first.json()["state"]) == (200, "cancelled")
    assert_problem(api.get(f"{where}/result"), 410, "result_gone")
    second = api.delete(where)
    assert (second.status_code, second.content) == (204, b"")
    assert_problem(api.delete(where), 404, "job_not_found")


def test_a_running_job_is_told_to_stop(api: httpx.Client, worker: PlayedWorker) -> None:
    worker.go.clear()
    job_id = submit(api)["id"]
    assert worker.took.wait(PATIENCE_S)
    for _ in range(2):  # repeating it is safe
        answer = api.delete(f"/jobs/{job_id}")
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")
    worker.go.set()
    assert json.loads(followed(api, job_id)[-1]["data"])["state"] == "cancelled"


def test_a_finished_job_is_removed_with_its_result(api: httpx.Client, worker: PlayedWorker) -> None:
    job = finished(api)
    assert api.delete(f"/jobs/{job['id']}").status_code == 204
    assert_problem(api.get(f"/jobs/{job['id']}"), 404, "job_not_found")
    assert_problem(api.get(job["result"]["url"]), 404, "job_not_found")


# --- events


def test_events_tell_the_whole_story_and_close(api: httpx.Client, worker: PlayedWorker) -> None:
    events = followed(api, submit(api)["id"])
    states = [json.loads(event["data"])["state"] for event in events if event["event"] == "state"]
    assert states == ["queued", "running", "succeeded"]
    progress = [json.loads(event["data"]) for event in events if event["event"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == 1


def test_after_a_lost_connection_events_go_on_where_they_stopped(api: httpx.Client, worker: PlayedWorker) -> None:
    job_id = submit(api)["id"]
    events = followed(api, job_id)
    assert followed(api, job_id, **{"Last-Event-ID": events[0]["id"]}) == events[1:]


def test_who_has_seen_the_last_event_is_told_not_to_come_back(api: httpx.Client, worker: PlayedWorker) -> None:
    """A browser's EventSource takes the closed stream for a lost connection, and only 204 keeps it from returning."""
    job_id = submit(api)["id"]
    last = followed(api, job_id)[-1]["id"]
    answer = api.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": last})
    assert (answer.status_code, answer.content) == (204, b"")


def test_a_stopping_server_ends_its_event_streams(settings: Settings) -> None:
    with served(settings) as (api, server):
        job_id = submit(api)["id"]
        with api.stream("GET", f"/jobs/{job_id}/events") as answer:
            lines = answer.iter_lines()
            assert any(line == "event: state" for line in lines)
            server.should_exit = True
            for _ in lines:
                pass  # ends by itself, long before the job does


def test_events_of_an_unknown_job_are_a_problem_not_a_stream(api: httpx.Client) -> None:
    assert_problem(api.get(f"/jobs/{NO_JOB}/events"), 404, "job_not_found")


# --- results


@pytest.fixture
def result_url(api: httpx.Client, worker: PlayedWorker) -> str:
    url: str = finished(api)["result"]["url"]
    return url


def test_a_result_names_its_bytes_and_its_file(api: httpx.Client, result_url: str) -> None:
    answer = api.get(result_url)
    assert answer.headers["content-disposition"] == 'attachment; filename="noisy-denoised.png"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    head = api.head(result_url)
    assert head.status_code == 200
    assert not head.content
    assert {**head.headers, "date": ""} == {**answer.headers, "date": ""}


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("bytes=0-9", slice(0, 10)),
        ("bytes=10-", slice(10, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=5-999999", slice(5, None)),
        ("bytes=-999999", slice(0, None)),
    ],
)
def test_a_range_of_a_result_can_be_fetched(api: httpx.Client, result_url: str, asked: str, got: slice) -> None:
    answer = api.get(result_url, headers={"Range": asked})
    expected = inverted(NOISY)[got]
    assert answer.status_code == 206
    assert answer.content == expected
    first = got.indices(len(NOISY))[0]
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(expected) - 1}/{len(NOISY)}"


@pytest.mark.parametrize("asked", ["bytes=999999-", "bytes=-0"])
def test_a_range_behind_the_end_is_refused_with_the_true_size(api: httpx.Client, result_url: str, asked: str) -> None:
    answer = api.get(result_url, headers={"Range": asked})
    assert_problem(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(NOISY)}"


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "bytes=9-2", "bytes=-", "lines=1-2", "bytes=a-b"])
def test_what_is_not_one_range_gives_all_of_it(api: httpx.Client, result_url: str, asked: str) -> None:
    answer = api.get(result_url, headers={"Range": asked})
    assert (answer.status_code, len(answer.content)) == (200, len(NOISY))


def test_if_range_applies_the_range_only_to_the_same_bytes(api: httpx.Client, result_url: str) -> None:
    etag = api.head(result_url).headers["etag"]
    same = api.get(result_url, headers={"Range": "bytes=0-0", "If-Range": etag})
    other = api.get(result_url, headers={"Range": "bytes=0-0", "If-Range": '"another"'})
    assert (same.status_code, other.status_code) == (206, 200)
    assert api.get(result_url, headers={"If-None-Match": etag}).status_code == 304


def test_a_result_that_is_not_there_yet_says_when_to_come_back(api: httpx.Client) -> None:
    answer = api.get(f"/jobs/{submit(api)['id']}/result")
    assert assert_problem(answer, 409, "job_not_ready")["retryable"]


def test_a_preview_can_be_seen_while_the_video_is_worked_on(settings: Settings, api: httpx.Client) -> None:
    answer = api.post("/jobs/video", files={"file": ("noisy.mp4", short_video())})
    job = answer.json()
    assert job["preview"] is None
    url = f"/jobs/{job['id']}/preview"
    assert_problem(api.get(url), 409, "job_not_ready")
    still = b"\xff\xd8 as a worker makes it"
    blob = open_store(settings).put(io.BytesIO(still))
    assert settings.redis_url
    with LeaseClient(settings.redis_url, settings, "painter") as leases:
        lease = leases.lease([Lane.VIDEO], PATIENCE_S)
        assert lease
        leases.preview(lease, Preview(blob=blob.name, content_type="image/jpeg", bytes=blob.bytes, sha256=blob.sha256))
        shown = api.get(f"/jobs/{job['id']}").json()
        assert shown["state"] == "running"
        assert shown["preview"] == {
            "url": url,
            "content_type": "image/jpeg",
            "bytes": len(still),
            "sha256": hashlib.sha256(still).hexdigest(),
        }
        seen = api.get(url)
        assert (seen.status_code, seen.content, seen.headers["content-type"]) == (200, still, "image/jpeg")
        assert api.head(url).headers["content-length"] == str(len(still))
        assert api.get(url, headers={"If-None-Match": seen.headers["etag"]}).status_code == 304
        leases.bury(lease, problem(422, "bad_input", "The input cannot be denoised", "frame 2 cannot be decoded"))
    told = followed(api, job["id"])
    assert [event["event"] for event in told] == ["state", "state", "preview", "state"]
    assert api.get(url).status_code == 200  # of what failed later too, as long as a result would be kept
    assert_problem(api.get(f"/jobs/{NO_JOB}/preview"), 404, "job_not_found")
    assert_problem(api.get(f"/jobs/{submit(api)['id']}/preview"), 410, "result_gone")


def test_a_result_whose_bytes_are_gone_is_gone(settings: Settings, api: httpx.Client, result_url: str) -> None:
    for blob in (settings.data_dir / "blobs").glob("??/*"):
        blob.unlink()
    assert_problem(api.get(result_url), 410, "result_gone")


# --- what is refused


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"sigma": "-3"}, ("sigma is -3", "0 to 55")),
        ({"sigma": "900"}, ("sigma is 900", "0 to 55")),
        ({"strength": "1.5"}, ("strength is 1.5", "0 to 1")),
        ({"ensemble": "3"}, ("ensemble is 3", "1, 2, 4")),
        ({"ensemble": "-4"}, ("ensemble is -4", "1, 2, 4")),
        ({"format": "gif"}, ("format is 'gif'", "png")),
        ({"format": "jpeg", "quality": "101"}, ("quality is 101", "1 to 100")),
    ],
)
@pytest.mark.parametrize("where", ["/denoise/image", "/jobs/image"])
def test_a_value_out_of_bounds_is_refused_with_its_bound(
    api: httpx.Client, where: str, fields: dict[str, str], told: tuple[str, ...]
) -> None:
    detail = assert_problem(api.post(where, files=image(), data=fields), 422, "bad_input")["detail"]
    assert all(part in detail for part in told), detail


def test_how_a_video_is_scanned_is_asked_for_in_the_form(api: httpx.Client) -> None:
    files = {"file": ("clip.mp4", short_video())}
    document = assert_problem(api.post("/jobs/video", files=files, data={"scan": "double"}), 422, "bad_input")
    assert document["detail"] == "scan is 'double'; allowed are auto, progressive, interlaced"
    for said, kept in (({"scan": "interlaced"}, "interlaced"), ({"scan": ""}, "auto"), ({}, "auto")):
        assert api.post("/jobs/video", files=files, data=said).json()["options"]["scan"] == kept


@pytest.mark.parametrize("model", ["nobody", "fitvnet"])
def test_a_model_that_does_no_images_is_refused(api: httpx.Client, model: str) -> None:
    document = assert_problem(api.post("/jobs/image", files=image(), data={"model": model}), 422, "unknown_model")
    assert repr(model) in document["detail"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"sigma": "loud"}, "sigma"),
        ({"sigma": "nan"}, "sigma"),
        ({"sgima": "25"}, "sgima"),
        ({"crf": "18"}, "crf"),
        ({"scan": "auto"}, "scan"),
    ],
)
def test_a_field_that_makes_no_sense_is_named(api: httpx.Client, fields: dict[str, str], field: str) -> None:
    document = assert_problem(api.post("/jobs/image", files=image(), data=fields), 422, "invalid_request")
    assert [(error["in"], error["field"]) for error in document["errors"]] == [("form", field)]


def test_a_field_left_empty_in_a_browser_is_as_if_it_were_not_there(api: httpx.Client) -> None:
    form = form_of(
        (b'name="file"; filename="noisy.png"', NOISY),
        (b'name="reference"; filename=""', b""),
        (b'name="sigma"', b""),
        (b'name="quality"', b""),
    )
    answer = api.post("/jobs/image", **form)
    assert answer.status_code == 202, answer.text
    assert answer.json()["options"]["sigma"] is None


@pytest.mark.parametrize("path", ["/jobs/image", "/jobs/video"])
def test_what_is_to_be_shown_of_a_result_is_asked_for_in_the_form(api: httpx.Client, path: str) -> None:
    files = image() if path == "/jobs/image" else {"file": ("clip.mp4", short_video())}
    asked = api.post(path, files=files, data={"sigma": "auto", "estimate": "true", "side_by_side": "on"})
    assert asked.status_code == 202, asked.text
    options = asked.json()["options"]
    assert (options["sigma"], options["estimate"], options["side_by_side"]) == (None, True, True)
    not_ticked = api.post(path, files=files, data={"estimate": "", "side_by_side": "false", "ensemble": ""})
    options = not_ticked.json()["options"]
    assert (options["estimate"], options["side_by_side"], options["ensemble"]) == (False, False, 1)
    assert api.post(path, files=files, data={"ensemble": "4"}).json()["options"]["ensemble"] == 4


def test_the_figures_of_each_frame_come_as_json_csv_and_a_plot(api: httpx.Client, worker: PlayedWorker) -> None:
    job_id = api.post("/jobs/video", files={"file": ("my clip.mp4", short_video())}).json()["id"]
    followed(api, job_id)
    document = api.get(f"/jobs/{job_id}").json()
    assert document["per_frame"]["url"] == f"/jobs/{job_id}/frames?format=csv"
    table = api.get(document["per_frame"]["url"])
    assert table.headers["content-type"].startswith("text/csv")
    assert table.headers["content-disposition"] == 'attachment; filename="my-clip-frames.csv"'
    assert len(table.content) == document["per_frame"]["bytes"]
    head, first, second = table.text.splitlines()
    assert head.startswith("frame,sigma_estimate,input_noise_estimate")
    assert (first, second) == ("0,24.5,25,0.5,31.5,0.9,20.25", "1,24.25,,,,,")
    rows = api.get(f"/jobs/{job_id}/frames").json()["frames"]
    assert [row["frame"] for row in rows] == [0, 1]
    assert rows[0]["psnr_db"] == 31.5
    assert rows[1]["psnr_db"] is None
    plot = api.get(f"/jobs/{job_id}/frames", params={"format": "svg"})
    assert plot.headers["content-type"] == "image/svg+xml"
    assert "PSNR, dB" in plot.text
    again = api.get(f"/jobs/{job_id}/frames", headers={"If-None-Match": table.headers["etag"].replace("csv", "json")})
    assert again.status_code == 304
    assert_problem(api.get(f"/jobs/{job_id}/frames", params={"format": "xls"}), 422, "invalid_request")


def test_an_image_has_no_figures_of_frames(api: httpx.Client, worker: PlayedWorker) -> None:
    job_id = api.post("/jobs/image", files=image()).json()["id"]
    followed(api, job_id)
    assert_problem(api.get(f"/jobs/{job_id}/frames"), 410, "result_gone")
    assert api.get(f"/jobs/{job_id}").json()["per_frame"] is None


def form_of(*parts: tuple[bytes, bytes]) -> dict[str, Any]:
    """A request written by hand: the parameters of each part's disposition, and its content."""
    body = b"".join(b"--x\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % part for part in parts)
    return {"content": body + b"--x--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (b"name=\"file\"; filename*=UTF-8''na%C3%AFve%20sky.png", "na-ve-sky"),
        (b"name=\"file\"; filename*=iso-8859-1'en'na%EFve.png", "na-ve"),
        (b"name=file; FileName*=UTF-8''plain.png; x=y", "plain"),
        (b'name="file"; filename="this.png"; filename*=UTF-8\'\'other.png', "this"),
        (b'name="file"; filename*=nonsense', "nonsense"),
    ],
)
def test_a_file_may_be_named_in_the_extended_notation(
    api: httpx.Client, worker: PlayedWorker, disposition: bytes, name: str
) -> None:
    answer = api.post("/jobs/image", **form_of((disposition, NOISY)))
    assert answer.status_code == 202, answer.text
    followed(api, answer.json()["id"])
    result = api.head(f"/jobs/{answer.json()['id']}/result")
    assert result.headers["content-disposition"] == f'attachment; filename="{name}-denoised.png"'


@pytest.mark.parametrize("files", [{"reference": ("clean.png", NOISY)}, {"file": (None, "text")}])
def test_a_missing_file_is_named(api: httpx.Client, files: dict[str, Any]) -> None:
    document = assert_problem(api.post("/denoise/image", files=files), 422, "invalid_request")
    assert document["errors"][0]["field"] == "file"


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 422, "bad_input"),
        (b"just some text, renamed", 415, "unknown_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unknown_format"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", 415, "unknown_format"),
        (NOISY[:20], 422, "bad_input"),
    ],
)
@pytest.mark.parametrize("where", ["/denoise/image", "/jobs/image"])
def test_a_file_that_is_no_image_is_refused_and_not_kept(
    settings: Settings, api: httpx.Client, where: str, content: bytes, status: int, code: str
) -> None:
    assert_problem(api.post(where, files=image(content)), status, code)
    assert not list((settings.data_dir / "blobs").glob("??/*"))
    assert not list((settings.data_dir / "spool").iterdir())


def test_a_video_at_the_image_door_is_shown_the_right_one(api: httpx.Client) -> None:
    mp4 = b"\0\0\0\x18ftypisom\0\0\2\0isomiso2"
    detail = assert_problem(api.post("/denoise/image", files=image(mp4)), 415, "unknown_format")["detail"]
    assert "POST /jobs/video" in detail
    detail = assert_problem(api.post("/jobs/video", files=image()), 415, "unknown_format")["detail"]
    assert "POST /jobs/image" in detail


def test_a_video_that_cannot_be_opened_is_refused_and_not_kept(settings: Settings, api: httpx.Client) -> None:
    mp4 = b"\0\0\0\x18ftypisom\0\0\2\0isomiso2"
    assert_problem(api.post("/jobs/video", files=image(mp4, "broken.mp4")), 422, "bad_input")
    assert not list((settings.data_dir / "blobs").glob("??/*"))
    assert not list((settings.data_dir / "spool").iterdir())


def test_an_image_with_too_many_pixels_is_refused(settings: Settings) -> None:
    with served(settings.model_copy(update={"max_image_pixels": 100})) as (api, _):
        detail = assert_problem(api.post("/denoise/image", files=image()), 413, "too_large")["detail"]
    assert "32x24" in detail
    assert "100" in detail


def test_a_body_that_announces_too_much_is_refused(settings: Settings, api: httpx.Client) -> None:
    answer = api.post("/denoise/image", files=image(bytes(settings.max_upload_bytes)))
    assert str(settings.max_upload_bytes) in assert_problem(answer, 413, "too_large")["detail"]


def test_a_body_that_announces_nothing_is_counted_while_it_comes(settings: Settings, api: httpx.Client) -> None:
    request = api.build_request("POST", "/denoise/image", files=image(bytes(settings.max_upload_bytes)))
    body = request.read()
    answer = api.post(
        "/denoise/image",
        content=(body[at : at + 4096] for at in range(0, len(body), 4096)),
        headers={"Content-Type": request.headers["content-type"]},
    )
    assert "content-length" not in answer.request.headers
    assert_problem(answer, 413, "too_large")


@pytest.mark.parametrize(
    ("media_type", "body", "status", "code"),
    [
        ("application/json", b"{}", 415, "unsupported_media_type"),
        ("multipart/form-data", b"", 415, "unsupported_media_type"),
        ("multipart/form-data; boundary=x", b"", 400, "malformed_request"),
        ("multipart/form-data; boundary=x", b"no boundary at all", 400, "malformed_request"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhalf',
            400,
            "malformed_request",
        ),
        ("multipart/form-data; boundary=x", b"--x\r\nA: b\r\n\r\nc\r\n--x--\r\n", 400, "malformed_request"),
        ("multipart/form-data; boundary=x", b"--x\r\nA: " + b"b" * 9000, 400, "malformed_request"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 99, 400, "malformed_request"),
        ("multipart/form-data; boundary=" + "x" * 5000, b"", 400, "malformed_request"),
    ],
)
def test_a_body_that_is_no_form_is_refused(
    api: httpx.Client, media_type: str, body: bytes, status: int, code: str
) -> None:
    answer = api.post("/jobs/image", content=body, headers={"Content-Type": media_type})
    assert_problem(answer, status, code)


@pytest.mark.parametrize(
    "parts",
    [
        [("file", ("a.png", NOISY)), ("file", ("b.png", NOISY))],
        [("file", ("a.png", NOISY)), ("other", ("b.png", NOISY))],
        [("file", ("a.png", NOISY)), ("model", (None, "m" * 5000))],
        [("file", ("a.png", NOISY)), *((f"field{n}", (None, "x")) for n in range(50))],
    ],
)
def test_parts_that_nobody_asked_for_are_refused(api: httpx.Client, parts: list[Any]) -> None:
    assert_problem(api.post("/jobs/image", files=parts), 422, "invalid_request")


def test_uploads_never_touch_the_temporary_directory(
    settings: Settings, api: httpx.Client, worker: PlayedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    assert api.post("/denoise/image", files=image()).status_code == 200
    assert not list((settings.data_dir / "spool").iterdir())


@pytest.mark.parametrize("job_id", ["x", NO_JOB, NO_JOB + "0", "A" * 32, "..%2F..%2Fetc", "%0a", "quietframe:jobs"])
@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("DELETE", ""), ("GET", "/result"), ("GET", "/events")])
def test_an_id_that_no_job_has_is_not_found(api: httpx.Client, job_id: str, method: str, tail: str) -> None:
    answer = api.request(method, f"/jobs/{job_id}{tail}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_routes_and_methods_that_do_not_exist_are_problems_too(api: httpx.Client) -> None:
    assert_problem(api.get("/nowhere"), 404, "not_found")
    assert_problem(api.get("/jobs/"), 404, "not_found")
    answer = api.put("/jobs")
    assert_problem(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]
    assert_problem(api.get("/denoise/image"), 405, "method_not_allowed")


def test_an_unexpected_error_tells_nothing_of_the_inside(api: httpx.Client, fresh_redis_url: str) -> None:
    job_id = submit(api)["id"]
    with Redis.from_url(fresh_redis_url) as link:
        link.hset(keys.job(job_id), "job", "/secret/path is no JSON")
    document = assert_problem(api.get(f"/jobs/{job_id}"), 500, "failed")
    assert "secret" not in json.dumps(document)


def test_an_upload_for_which_there_is_no_room_may_come_again(settings: Settings, tmp_path: Path) -> None:
    with served(settings.model_copy(update={"data_dir": tmp_path})) as (api, _):
        (tmp_path / "spool").rmdir()
        document = assert_problem(api.post("/jobs/image", files=image()), 503, "not_ready")
    assert str(tmp_path) not in json.dumps(document)


def test_no_foreign_page_may_read_answers(api: httpx.Client) -> None:
    answer = api.get("/models", headers={"Origin": "https://elsewhere.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


# --- models and probes


def test_models_tell_what_runs_them_now(api: httpx.Client) -> None:
    assert all(model["ready"] == [] for model in api.get("/models").json()["models"])


def test_a_warm_model_is_told_with_backend_and_precision(api: httpx.Client, worker: PlayedWorker) -> None:
    model = api.get("/models/fitvnet-spatial.camera").json()
    assert model["ready"] == [{"backend": "openvino", "precision": "fp32", "workers": 1}]
    assert model["auto_for"] == ["image"]
    assert model["trained_sigma"] == [0.0, 55.0]
    assert api.get("/models/dncnn").json()["ready"] == []


@pytest.mark.parametrize("name", ["nobody", "auto", "%2e%2e%2fsecret"])
def test_an_unknown_model_is_not_found(api: httpx.Client, name: str) -> None:
    assert api.get(f"/models/{name}").status_code == 404


def test_auto_is_no_model_and_is_not_told_to_be_one(api: httpx.Client) -> None:
    detail = assert_problem(api.get("/models/auto"), 404, "unknown_model")["detail"]
    assert detail == f"model is 'auto'; known are {', '.join(CATALOGUE)}"


def test_ready_needs_a_worker_and_alive_needs_nothing(settings: Settings, api: httpx.Client) -> None:
    assert api.get("/livez").json() == {"status": "alive"}
    assert "no worker" in assert_problem(api.get("/readyz"), 503, "not_ready")["detail"]
    with PlayedWorker(settings):
        answer = api.get("/readyz")
        assert answer.status_code == 200
        (card,) = answer.json()["workers"]
        assert (card["id"], list(card["models"])) == ("played", ["fitvnet-spatial.camera"])


def test_without_a_broker_work_is_refused_for_now_but_the_process_is_alive(settings: Settings, tmp_path: Path) -> None:
    away = settings.model_copy(update={"redis_url": f"unix://{tmp_path}/nobody.sock"})
    with served(away) as (api, _):
        assert api.get("/livez").status_code == 200
        assert_problem(api.get("/readyz"), 503, "not_ready")
        assert assert_problem(api.post("/jobs/image", files=image()), 503, "not_ready")["retryable"]
        assert_problem(api.get("/jobs"), 503, "not_ready")
        assert api.get("/models/dncnn").json()["ready"] is None
        assert "denoise_broker_up 0.0" in api.get("/metrics").text


def test_metrics_speak_openmetrics_with_templates_for_routes(settings: Settings, worker: PlayedWorker) -> None:
    with served(settings) as (api, _):
        finished(api)
        api.get("/nowhere")
        worker.go.clear()
        worker.took.clear()
        submit(api, noisy_png(seed=9))
        assert worker.took.wait(PATIENCE_S)
        submit(api, noisy_png(seed=10))
        answer = api.get("/metrics")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    parsed: Callable[[str], Iterator[Any]] = text_string_to_metric_families
    families = {family.name: family for family in parsed(answer.text)}
    counts = {
        (sample.labels["route"], sample.labels["method"], sample.labels["status"]): sample.value
        for sample in families["denoise_http_request_duration_seconds"].samples
        if sample.name.endswith("_count")
    }
    assert counts["/jobs/image", "POST", "202"] == 3
    assert counts["/jobs/{job_id}", "GET", "200"] == 1
    assert counts["unmatched", "GET", "404"] == 1

    def value(family: str, **labels: str) -> float:
        return float(next(sample.value for sample in families[family].samples if sample.labels == labels))

    assert value("denoise_jobs_queued", lane="image.batch") == 1
    assert value("denoise_jobs_in_flight", lane="image.batch") == 1
    assert value("denoise_oldest_job_age_seconds", lane="video") == 0
    assert value("denoise_jobs", kind="image", outcome="succeeded") == 1
    assert value("denoise_workers_ready") == 1


# --- what is promised on paper


def test_the_page_of_all_calls_asks_no_other_host_for_anything(api: httpx.Client) -> None:
    page = api.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    needed = re.findall(r"""(?:href|src)="([^"]+)"|url: '([^']+)'""", page.text)
    paths = [urljoin("/docs", one or other) for one, other in needed]
    assert {Path(path).suffix for path in paths} == {".js", ".css", ".png", ".json"}
    for path in paths:
        assert path.startswith("/"), path
        answer = api.get(path)
        assert (answer.status_code, len(answer.content) > 500) == (200, True), path
    assert api.get("/docs/nothing.js").headers["content-type"] == "application/problem+json"
    assert "http" not in page.text.replace("http-equiv", "")


def test_every_call_of_the_openapi_page_is_described(api: httpx.Client) -> None:
    page = api.get("/openapi.json").json()
    assert page["openapi"].startswith("3.")
    calls = {f"{method.upper()} {path}": call for path, item in page["paths"].items() for method, call in item.items()}
    assert {
        "POST /denoise/image",
        "POST /jobs/image",
        "POST /jobs/video",
        "GET /jobs",
        "GET /jobs/{job_id}",
        "GET /jobs/{job_id}/events",
        "GET /jobs/{job_id}/result",
        "DELETE /jobs/{job_id}",
        "GET /models",
        "GET /models/{name}",
        "GET /livez",
        "GET /readyz",
        "GET /metrics",
    } <= set(calls)
    tags = {tag["name"] for tag in page["tags"]}
    for name, call in calls.items():
        assert call["summary"], name
        assert set(call["tags"]) <= tags, name
        assert all(parameter.get("description") for parameter in call.get("parameters", [])), name
        assert all(answer["description"] for answer in call["responses"].values()), name
    for name, schema in page["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            assert described.get("description"), f"{name}.{field}"


def test_the_examples_of_the_openapi_page_are_true(api: httpx.Client) -> None:
    page = api.get("/openapi.json").json()
    kinds: dict[str, TypeAdapter[Any]] = {
        "JobDocument": TypeAdapter(JobDocument),
        "ProblemDocument": TypeAdapter(ProblemDocument),
    }
    checked = 0
    for item in page["paths"].values():
        for call in item.values():
            for status, answer in call["responses"].items():
                for content in answer.get("content", {}).values():
                    kind = kinds.get(content.get("schema", {}).get("$ref", "").rpartition("/")[2])
                    if kind and "example" in content:
                        kind.validate_python(content["example"])
                        assert content["example"].get("status", int(status)) == int(status)
                        checked += 1
    assert checked > 20


SHOWN = {"ensemble", "estimate", "side_by_side"}


def test_the_form_of_the_openapi_page_is_the_form_that_is_read(api: httpx.Client) -> None:
    page = api.get("/openapi.json").json()
    for path, fields in (
        ("/denoise/image", {"file", "reference", "model", "sigma", "strength", "format", "quality", *SHOWN}),
        (
            "/jobs/image",
            {"file", "reference", "model", "sigma", "strength", "format", "quality", "webhook_url", *SHOWN},
        ),
        (
            "/jobs/video",
            {
                "file",
                "reference",
                "model",
                "sigma",
                "strength",
                "format",
                "codec",
                "crf",
                "scan",
                "webhook_url",
                *SHOWN,
            },
        ),
    ):
        schema = page["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert set(schema["properties"]) == fields
        assert schema["required"] == ["file"]


def test_the_api_process_loads_no_decoder_and_no_network() -> None:
    heavy = ["torch", "cv2", "PIL", "av", "onnx", "openvino", "numpy", "tensorrt", "trtbuild", "service.pipeline"]
    code = f"import sys, service.api.server; print([name for name in {heavy!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert loaded.strip() == "[]"


# --- headers and names, read into values


def test_preferences_are_read_as_the_rfc_writes_them() -> None:
    assert preference_of([]) == Preference()
    assert preference_of(["respond-async, wait=10"]) == Preference(respond_async=True, wait_s=10)
    assert preference_of(["Wait = 3; x=y", "wait=9", "handling=lenient"]) == Preference(wait_s=3)
    assert preference_of(["wait=-1", "wait=soon", ",,"]) == Preference()


@pytest.mark.parametrize(
    ("accept", "json_wanted"),
    [
        (None, False),
        ("*/*", False),
        ("application/json", True),
        ("application/json, text/plain, */*", True),
        ("image/*, application/json;q=0.5", False),
        ("image/png;q=0.5, application/json", True),
        ("application/json;q=0", False),
    ],
)
def test_json_is_sent_to_whom_likes_it_best(accept: str | None, json_wanted: bool) -> None:
    assert wants_json(accept) is json_wanted


def test_a_range_of_nothing_cannot_be_satisfied() -> None:
    with pytest.raises(Unsatisfiable):
        range_of("bytes=0-", 0)
    assert range_of(None, 10) is None
    assert range_of("bytes=0-0", 1) == (0, 0)


def test_weak_tags_and_lists_of_tags_match() -> None:
    assert matches('W/"a"', '"a"')
    assert matches('"b", "a"', '"a"')
    assert matches("*", '"a"')
    assert not matches('"b"', '"a"')


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("noisy.png", "noisy"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\cat 1.png", "cat-1"),
        ('a"; rm -rf $HOME;.png', "a-rm--rf-HOME"),
        ("…", ""),
        ("..", ""),
        ("x" * 300, "x" * 80),
    ],
)
def test_a_file_name_becomes_a_harmless_stem(name: str, stem: str) -> None:
    assert safe_stem(name) == stem


def test_a_name_beyond_ascii_is_sent_in_both_forms() -> None:
    assert attachment("noisy.png") == 'attachment; filename="noisy.png"'
    assert attachment("naïve.png") == "attachment; filename=\"na-ve.png\"; filename*=UTF-8''na%C3%AFve.png"
    assert "\n" not in attachment('a"\r\nX: y.png')
