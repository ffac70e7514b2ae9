"""Does our own client do what it says, against the service itself?"""

import asyncio
import hashlib
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from api_support import PlayedWorker, inverted, noisy_png, served, short_video

from service.client import AsyncClient, Client, Damaged, ServerAway, ServerProblem
from service.demo import png_bytes, read_photo, running_service, with_noise
from service.job import JobState
from service.media.video import VideoReader
from service.settings import Settings

ROOT = Path(__file__).parent.parent
NOISY = noisy_png()


@pytest.fixture(scope="module")
def settings(tmp_path_factory, modules_redis_url):
    return Settings(data_dir=tmp_path_factory.mktemp("client"), redis_url=modules_redis_url, port=0, drain_s=5)


@pytest.fixture(scope="module")
def url(settings):
    with served(settings) as (client, _):
        yield str(client.base_url)


@pytest.fixture
def worker(settings, fresh_redis_url):
    with PlayedWorker(settings) as played:
        yield played


def test_an_image_comes_back_with_its_job(url, worker, tmp_path):
    (tmp_path / "noisy.png").write_bytes(NOISY)
    with Client(url) as client:
        restored = client.denoise_image(tmp_path / "noisy.png", reference=noisy_png(seed=8), sigma=25, estimate=True)
    assert (restored.content, restored.content_type) == (inverted(NOISY), "image/png")
    assert restored.job.metrics.psnr_db == 31.5
    assert (restored.job.options.sigma, restored.job.options.estimate) == (25, True)


def test_a_video_is_followed_fetched_and_held_against_its_hash(url, worker, tmp_path):
    seen = []
    with Client(url) as client:
        job = client.submit_video(short_video(), codec="ffv1", format="mkv")
        job = client.wait(job.id, on_progress=seen.append)
        assert job.state is JobState.SUCCEEDED
        client.download(job, tmp_path / "made.mkv")
        assert [one.id for one in client.jobs(state=JobState.SUCCEEDED)] == [job.id]
        lying = job.model_copy(update={"result": job.result.model_copy(update={"sha256": "0" * 64})})
        with pytest.raises(Damaged):
            client.download(lying, tmp_path / "other.mkv")
    assert (tmp_path / "made.mkv").read_bytes() == inverted(short_video())
    assert seen[-1].done == 1
    assert [path.name for path in tmp_path.iterdir()] == ["made.mkv"]  # nothing unfinished, nothing damaged


def test_the_same_works_without_waiting_in_an_event_loop(url, worker, tmp_path):
    async def all_of_it():
        async with AsyncClient(url) as client:
            images = [client.denoise_image(noisy_png(seed=seed)) for seed in range(3)]
            restored = await asyncio.gather(*images)
            job = await client.submit_video(short_video())
            states = [event.data["state"] async for event in client.events(job.id) if event.kind == "state"]
            job = await client.wait(job.id)
            await client.download(job, tmp_path / "made.mp4")
            waiting = await client.submit_image(NOISY)
            await client.cancel(waiting.id)
            return restored, states

    restored, states = asyncio.run(all_of_it())
    assert [one.content for one in restored] == [inverted(noisy_png(seed=seed)) for seed in range(3)]
    assert states[-1] == "succeeded"
    assert (tmp_path / "made.mp4").read_bytes() == inverted(short_video())


def test_what_the_service_refuses_is_told_with_its_code(url, fresh_redis_url):
    with Client(url) as client:
        with pytest.raises(ServerProblem, match="sigma is 900") as refused:
            client.denoise_image(NOISY, sigma=900)
        assert (refused.value.status, refused.value.code, refused.value.retryable) == (422, "bad_input", False)
        with pytest.raises(ServerProblem) as missing:
            client.job("0" * 32)
        assert missing.value.code == "job_not_found"


def test_a_submission_sent_twice_is_one_job(url, fresh_redis_url):
    with Client(url) as client:
        first = client.submit_image(NOISY, idempotency_key="mine")
        assert client.submit_image(NOISY, idempotency_key="mine").id == first.id
        assert client.submit_image(NOISY).id != first.id


def test_a_server_that_is_not_there_is_said_so():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with (
            Client(f"http://127.0.0.1:{nobody.getsockname()[1]}") as client,
            pytest.raises(ServerAway, match="reached"),
        ):
            client.jobs()


@contextmanager
def breaking_line(url, after_bytes):
    """A line to the service that is cut after so many bytes of each answer, the first times."""
    target = httpx.URL(url)
    cuts = iter([after_bytes, after_bytes])

    class Line(socketserver.BaseRequestHandler):
        def handle(self):
            left = next(cuts, 1 << 40)
            with socket.create_connection((target.host, target.port)) as service:
                service.sendall(self.request.recv(1 << 16))
                while left > 0 and (piece := service.recv(min(left, 1 << 16))):
                    self.request.sendall(piece)
                    left -= len(piece)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Line) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_line_that_breaks_is_taken_up_where_it_broke(url, worker, tmp_path):
    large = noisy_png(300, 200)
    with Client(url) as client:
        job = client.wait(client.submit_image(large).id)
        events = [event.id for event in client.events(job.id)]
    with breaking_line(url, 60_000) as cut, Client(cut) as client:
        client.download(job, tmp_path / "made.png")
    assert hashlib.sha256((tmp_path / "made.png").read_bytes()).hexdigest() == job.result.sha256
    with breaking_line(url, 450) as cut, Client(cut) as client:
        assert [event.id for event in client.events(job.id)] == events


def command(*arguments):
    ran = subprocess.run(
        [sys.executable, "-m", "service", "denoise", *map(str, arguments), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"QUIETFRAME_THREADS": "1"},
        timeout=120,
    )
    return ran.returncode, json.loads(ran.stdout) if ran.stdout else ran.stderr


def test_the_command_gets_the_same_from_a_server_as_from_this_machine(tmp_path):
    noisy = tmp_path / "in"
    noisy.mkdir()
    (noisy / "noisy.png").write_bytes(png_bytes(with_noise(read_photo()[:96, :80], 2)))
    (noisy / "clip.mp4").write_bytes(short_video(64, 48))
    (noisy / "notes.txt").write_text("not a picture")
    with running_service() as url:
        status, by_server = command(noisy, tmp_path / "there", "--server", url)
        assert status == 1  # the text file is named, the others are done
        one = command(
            noisy / "clip.mp4", tmp_path / "one.mkv", "--server", url, "--per-frame", tmp_path / "figures.csv"
        )
        refused = command(noisy / "noisy.png", tmp_path / "x.png", "--server", url, "--sigma", "900")
    status, here = command(noisy, tmp_path / "here")
    for ours, theirs in zip(by_server, here, strict=True):
        assert (ours["model"], ours["backend"]) == (theirs["model"], theirs["backend"])
        assert (ours["metrics"] or {}).get("sigma_estimate") == (theirs["metrics"] or {}).get("sigma_estimate")
    assert (cv2.imread(tmp_path / "there/noisy.png") == cv2.imread(tmp_path / "here/noisy.png")).all()
    there, here = (list(VideoReader(tmp_path / where / "clip.mp4", Settings())) for where in ("there", "here"))
    for ours, theirs in zip(there, here, strict=True):
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    assert one[0] == 0
    assert (tmp_path / "one.mkv").stat().st_size > 0
    assert (tmp_path / "figures.csv").read_text().startswith("frame,")
    assert refused == (
        1,
        "quietframe: sigma is 900; model fitvnet-spatial.camera takes 0 to 55 (noise level on the 8-bit scale)\n",
    )
