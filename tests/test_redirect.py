"""Do results come from the bucket itself where that is set: uploaded through the API, fetched by a signed address?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import obstore
import pytest
from api_support import PlayedWorker, inverted, noisy_png, served
from obstore.store import S3Store
from s3_server import S3Server

from service.settings import Settings

NOISY = noisy_png()


@pytest.fixture
def settings(s3: S3Server, tmp_path: Path, fresh_redis_url: str) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        redis_url=fresh_redis_url,
        port=0,
        drain_s=5,
        blob_url=s3.new_prefix(),
        blob_allow_http=True,
        blob_patience_s=0.5,
        result_redirect=True,
    )


@pytest.fixture
def bucket(settings: Settings) -> S3Store:
    assert settings.blob_url
    return S3Store.from_url(settings.blob_url, client_options={"allow_http": True})


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    with served(settings) as (client, _):
        yield client


def blobs_in(bucket: S3Store) -> set[str]:
    return {one["path"].partition("/")[0] for found in obstore.list(bucket) for one in found}


def finished(api: httpx.Client) -> dict[str, Any]:
    """A job that is over; to be used with a worker."""
    answer = api.post("/jobs/image", files={"file": ("naïve sky.png", NOISY)})
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    api.get(f"/jobs/{job_id}/events")  # ends with the job
    document: dict[str, Any] = api.get(f"/jobs/{job_id}").json()
    assert document["state"] == "succeeded", document
    return document


def test_a_result_is_fetched_from_the_bucket_by_who_has_no_credentials(
    settings: Settings, s3: S3Server, api: httpx.Client, bucket: S3Store
) -> None:
    with PlayedWorker(settings):
        job = finished(api)
    assert len(blobs_in(bucket)) == 3, "the upload, the result and the table of its frames"
    sent = api.get(job["result"]["url"])
    assert sent.status_code == 307
    assert sent.content == b""
    assert sent.headers["cache-control"] == "no-store"
    address = sent.headers["location"]
    assert address.startswith(s3.url)
    assert s3.secret not in address
    fetched = httpx.get(address)
    assert fetched.status_code == 200
    assert fetched.content == inverted(NOISY)
    assert fetched.headers["content-type"] == "image/png"
    assert fetched.headers["content-disposition"] == 'attachment; filename="na-ve-sky-denoised.png"'


def test_ranges_and_head_follow_the_redirect(settings: Settings, api: httpx.Client) -> None:
    with PlayedWorker(settings):
        url = finished(api)["result"]["url"]
    part = api.get(url, headers={"Range": "bytes=2-5"}, follow_redirects=True)
    assert (part.status_code, part.content) == (206, inverted(NOISY)[2:6])
    resumed = api.get(url, headers={"Range": "bytes=6-9", "If-Range": part.headers["etag"]}, follow_redirects=True)
    assert resumed.content in (inverted(NOISY)[6:10], inverted(NOISY))  # a store may not know If-Range: then all of it
    head = api.head(url, follow_redirects=True)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(NOISY))
    assert head.headers["content-type"] == "image/png"


def test_who_may_not_talk_to_the_bucket_has_the_bytes_sent_from_here(settings: Settings, api: httpx.Client) -> None:
    with PlayedWorker(settings):
        url = finished(api)["result"]["url"]
    whole = api.get(url, params={"redirect": "false"})
    assert (whole.status_code, whole.content) == (200, inverted(NOISY))
    part = api.get(url, params={"redirect": "false"}, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, inverted(NOISY)[2:6])
    assert api.get(url, params={"redirect": "maybe"}).json()["errors"][0]["field"] == "redirect"


def test_who_has_the_bytes_already_is_not_sent_anywhere(settings: Settings, api: httpx.Client) -> None:
    with PlayedWorker(settings):
        result = finished(api)["result"]
    kept = api.get(result["url"], headers={"If-None-Match": f'"{result["sha256"]}"'})
    assert (kept.status_code, kept.content) == (304, b"")


def test_a_result_gone_from_the_bucket_is_gone(settings: Settings, api: httpx.Client, bucket: S3Store) -> None:
    with PlayedWorker(settings):
        job = finished(api)
    obstore.delete(bucket, [one["path"] for found in obstore.list(bucket) for one in found])
    answer = api.get(job["result"]["url"])
    assert (answer.status_code, answer.json()["code"]) == (410, "result_gone")


def test_an_image_waited_for_comes_at_once_and_not_by_a_redirect(settings: Settings, api: httpx.Client) -> None:
    with PlayedWorker(settings):
        answer = api.post("/denoise/image", files={"file": ("noisy.png", NOISY)})
    assert (answer.status_code, answer.content) == (200, inverted(NOISY))


@pytest.mark.parametrize("where", ["bucket without redirects", "files"])
def test_bytes_are_sent_as_ever_where_no_redirect_is_to_be_had(settings: Settings, bucket: S3Store, where: str) -> None:
    changes = {"blob_url": None} if where == "files" else {"result_redirect": False}
    settings = settings.model_copy(update=changes)
    with served(settings) as (api, _):
        with PlayedWorker(settings):
            url = finished(api)["result"]["url"]
        whole, part, head = api.get(url), api.get(url, headers={"Range": "bytes=-3"}), api.head(url)
    assert (whole.status_code, whole.content) == (200, inverted(NOISY))
    assert (part.status_code, part.content) == (206, inverted(NOISY)[-3:])
    assert head.headers["content-length"] == str(len(NOISY))
    assert bool(blobs_in(bucket)) is (where != "files")


def test_a_bucket_that_is_away_is_503_and_the_upload_goes_through_when_it_is_back(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with S3Server(tmp_path / "frail") as frail:
        for name, value in frail.environment.items():
            monkeypatch.setenv(name, value)
        with served(settings) as (api, _):
            frail.stop()
            answer = api.post("/jobs/image", files={"file": ("noisy.png", NOISY)})
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
            assert answer.json()["retryable"]
            assert answer.headers["retry-after"]
            assert frail.secret not in answer.text
            frail.start()
            with PlayedWorker(settings):
                finished(api)
