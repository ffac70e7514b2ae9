"""The whole service as a user meets it: one command, real HTTP, real pixels, and a clean end."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import av
import cv2
import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ports import free_port

from service.demo import moving_clip, png_bytes, read_photo, with_noise, write_clip
from service.media.video import VideoReader
from service.settings import Settings

ROOT = Path(__file__).parent.parent
CLIP_FRAMES = 24


class Served:
    """A running `quietframe serve`."""

    def __init__(self, process, curl_line):
        self.process, self.curl_line = process, curl_line.strip()
        self.base_url = next(word for word in curl_line.split() if "://" in word).removesuffix("/denoise/image")

    def client(self):
        return httpx.Client(base_url=self.base_url, timeout=120)


@contextmanager
def serving(data_dir, *, command=(sys.executable, "-m", "service"), cwd=ROOT, **environment):
    said = {f"QUIETFRAME_{name.upper()}": str(value) for name, value in environment.items()}
    command = [*command, "serve", "--port", "0", "--data-dir", str(data_dir)]
    process = subprocess.Popen(
        command, cwd=cwd, env=os.environ | {"COLUMNS": "200"} | said, stdout=subprocess.PIPE, text=True
    )
    try:
        curl_line = next((line for line in process.stdout if "curl" in line), None)
        assert curl_line, f"the service ended with status {process.wait()}"
        yield Served(process, curl_line)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        process.stdout.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("data")) as served:
        yield served


@pytest.fixture(scope="module")
def photo():
    return read_photo()


@pytest.fixture(scope="module")
def clips(photo):
    """A clean and a noisy clip with sound, as bytes."""
    clean, noisy = io.BytesIO(), io.BytesIO()
    frames = moving_clip(photo)[:CLIP_FRAMES]
    write_clip(clean, frames)
    write_clip(noisy, [with_noise(frame, seed) for seed, frame in enumerate(frames)])
    return clean.getvalue(), noisy.getvalue()


def wait_for(client, url):
    """Follow a job's events to its end; gives its last document."""
    with client.stream("GET", f"{url}/events") as events:
        for _ in events.iter_lines():
            pass
    return client.get(url).json()


def test_a_photo_goes_in_noisy_and_comes_out_clean(service, photo):
    files = {"file": ("noisy.png", png_bytes(with_noise(photo, 7))), "reference": ("clean.png", png_bytes(photo))}
    with service.client() as client:
        answer = client.post("/denoise/image", files=files)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["Quietframe-Model"] == "fitvnet-spatial.camera"
    assert float(answer.headers["Quietframe-PSNR"]) > float(answer.headers["Quietframe-Input-PSNR"]) + 8
    assert cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR).shape == photo.shape


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_line_that_serve_prints_works_when_pasted(service, tmp_path):
    subprocess.run(service.curl_line, shell=True, check=True, cwd=tmp_path)
    assert cv2.imread(str(tmp_path / "denoised.jpg")).shape == (512, 512, 3)


def test_a_clip_keeps_its_sound_and_its_times(service, clips, tmp_path):
    clean, noisy = clips
    with service.client() as client:
        files = {"file": ("noisy.mp4", noisy), "reference": ("clean.mp4", clean)}
        answer = client.post("/jobs/video", files=files)
        assert answer.status_code == 202
        job = wait_for(client, answer.headers["Location"])
        assert job["state"] == "succeeded", job["error"]
        assert job["progress"]["done"] == CLIP_FRAMES
        assert job["metrics"]["psnr_db"] > job["metrics"]["input_psnr_db"] + 7
        result = client.get(job["result"]["url"])
    assert result.headers["Content-Type"] == "video/mp4"
    assert "noisy-denoised.mp4" in result.headers["Content-Disposition"]
    (tmp_path / "noisy.mp4").write_bytes(noisy)
    (tmp_path / "denoised.mp4").write_bytes(result.content)
    assert times_of(tmp_path / "denoised.mp4") == times_of(tmp_path / "noisy.mp4")
    assert sound_of(tmp_path / "denoised.mp4") == sound_of(tmp_path / "noisy.mp4")


def times_of(path):
    with VideoReader(path, Settings()) as reader:
        return [frame.pts * frame.time_base for frame in reader]


def sound_of(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def test_a_video_that_is_told_to_stop_stops(service, clips):
    with service.client() as client:
        answer = client.post("/jobs/video", files={"file": ("noisy.mp4", clips[1])})
        url = answer.headers["Location"]
        with client.stream("GET", f"{url}/events") as events:
            lines = events.iter_lines()
            next(line for line in lines if '"running"' in line)
            assert client.delete(url).status_code == 202
            assert any('"cancelled"' in line for line in lines)
        assert client.get(url).json()["state"] == "cancelled"
        assert client.get(f"{url}/result").status_code == 410


@pytest.mark.parametrize(
    ("content", "fields", "status", "words"),
    [
        (b"", {}, 422, "empty"),
        (b"just text", {}, 415, "accepted are"),
        (png_bytes(np.zeros((40, 40, 3), np.uint8))[:20], {}, 422, "cut short"),
        (None, {"model": "magic"}, 422, "magic"),
        (None, {"sigma": "-3"}, 422, "sigma is -3; "),
        (None, {"sigma": "900"}, 422, "0 to 55"),
        (None, {"strength": "2"}, 422, "strength is 2"),
    ],
)
def test_bad_input_is_told_what_is_wrong_and_the_service_goes_on(service, photo, content, fields, status, words):
    content = png_bytes(photo) if content is None else content
    with service.client() as client:
        answer = client.post("/denoise/image", files={"file": ("in.png", content)}, data=fields)
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert words in answer.json()["detail"]
        assert client.get("/readyz").status_code == 200


def test_a_truncated_photo_fails_as_its_own_problem(service, photo):
    with service.client() as client:
        answer = client.post("/denoise/image", files={"file": ("in.png", png_bytes(photo)[:100_000])})
    assert answer.status_code == 422
    assert answer.json()["code"] == "bad_input"


def test_jobs_queued_when_the_service_is_killed_are_done_after_it_starts_again(tmp_path, photo):
    upload = {"file": ("noisy.png", png_bytes(with_noise(photo, 8)))}
    with serving(tmp_path, lease_ttl_s=2) as served, served.client() as client:
        urls = [client.post("/jobs/image", files=upload).headers["Location"] for _ in range(12)]
        served.process.kill()
        served.process.wait()
    with serving(tmp_path, lease_ttl_s=2) as served, served.client() as client:
        assert [wait_for(client, url)["state"] for url in urls] == ["succeeded"] * 12


def test_stopping_ends_with_status_zero_and_hands_the_video_in_hand_back(tmp_path, clips):
    with serving(tmp_path, drain_s=0) as served, served.client() as client:
        url = client.post("/jobs/video", files={"file": ("noisy.mp4", clips[1])}).headers["Location"]
        with client.stream("GET", f"{url}/events") as events:
            next(line for line in events.iter_lines() if '"running"' in line)
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(60) == 0
    with serving(tmp_path) as served, served.client() as client:
        job = wait_for(client, url)
        assert job["state"] == "succeeded"
        assert job["attempts"] == 1  # being handed back is no attempt


def test_a_worker_that_dies_is_started_again_and_its_job_is_done(tmp_path, clips):
    with serving(tmp_path, lease_ttl_s=2) as served, served.client() as client:
        url = client.post("/jobs/video", files={"file": ("noisy.mp4", clips[1])}).headers["Location"]
        with client.stream("GET", f"{url}/events") as events:
            next(line for line in events.iter_lines() if '"running"' in line)
        os.kill(worker_pid(client), signal.SIGKILL)
        job = wait_for(client, url)
    assert job["state"] == "succeeded"
    assert job["attempts"] == 2


def test_a_video_in_parts_survives_a_killed_worker_and_equals_the_undivided_one(tmp_path, clips):
    (tmp_path / "noisy.mp4").write_bytes(clips[1])
    lossless = {"format": "mkv", "codec": "ffv1", "model": "dncnn"}
    environment = {"part_frames": 8, "workers": 2, "threads": 1, "lease_ttl_s": 2}
    with serving(tmp_path / "data", **environment) as served, served.client() as client:
        until(lambda: len(client.get("/readyz").json().get("workers", [])) == 2)
        location = client.post("/jobs/video", files={"file": clips[1]}, data=lossless).headers["Location"]
        with client.stream("GET", f"{location}/events") as events:
            lines = events.iter_lines()
            assert any("event: preview" in line for line in lines)
            assert any("event: progress" in line for line in lines)
        assert client.get(f"{location}/preview").content.startswith(b"\xff\xd8")
        os.kill(worker_pid(client), signal.SIGKILL)
        job = wait_for(client, location)
        assert job["state"] == "succeeded", job["error"]
        assert job["progress"]["done"] == CLIP_FRAMES
        assert client.get("/jobs").json()["jobs"] == [job]  # the parts are nobody's business
        (tmp_path / "joined.mkv").write_bytes(client.get(job["result"]["url"]).content)
        rows = client.get(f"{location}/frames").json()["frames"]
        assert [row["frame"] for row in rows] == list(range(CLIP_FRAMES))
        assert all(15 < row["sigma_estimate"] < 30 for row in rows)
        assert 15 < job["metrics"]["input_noise_estimate"]["sigma"][0] < 30
    command = [
        sys.executable,
        "-m",
        "service",
        "denoise",
        "noisy.mp4",
        "whole.mkv",
        "--codec",
        "ffv1",
        "--model",
        "dncnn",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "QUIETFRAME_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    joined, whole = frames_of(tmp_path / "joined.mkv"), frames_of(tmp_path / "whole.mkv")
    assert len(joined) == len(whole) == CLIP_FRAMES
    for ours, undivided in zip(joined, whole, strict=True):
        np.testing.assert_array_equal(ours, undivided)
    assert sound_of(tmp_path / "joined.mkv") == sound_of(tmp_path / "whole.mkv")


def test_a_failed_video_that_is_replayed_goes_on_where_it_was(tmp_path, clips):
    environment = {"part_frames": 8, "threads": 1, "lease_ttl_s": 1, "max_attempts": 1}
    with serving(tmp_path / "data", **environment) as served, served.client() as client:
        fields = {"format": "mkv", "codec": "ffv1", "model": "dncnn"}
        location = client.post("/jobs/video", files={"file": clips[1]}, data=fields).headers["Location"]
        until(lambda: client.get(location).json()["progress"]["done"] > 8)  # the first part is done, another is begun
        os.kill(worker_pid(client), signal.SIGKILL)
        failed = wait_for(client, location)
        assert failed["state"] == "failed"
        command = [
            sys.executable,
            "-m",
            "service",
            "jobs",
            "replay",
            failed["id"],
            "--data-dir",
            str(tmp_path / "data"),
        ]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert told.startswith(f"{failed['id']} is ")
        assert client.get(location).json()["progress"]["done"] >= 8
        job = wait_for(client, location)
        assert job["state"] == "succeeded", job["error"]
        assert job["progress"]["done"] == CLIP_FRAMES
        (tmp_path / "joined.mkv").write_bytes(client.get(job["result"]["url"]).content)
        counted = client.get("/metrics").text
    assert len(frames_of(tmp_path / "joined.mkv")) == CLIP_FRAMES
    (queued,) = re.findall(r'denoise_jobs_accepted_total{lane="video.part"} (\d+)', counted)
    assert 3 < int(queued) < 6, "three parts, and those of them again that were not done"


def frames_of(path):
    with VideoReader(path, Settings()) as reader:
        return [frame.pixels for frame in reader]


def test_a_queue_server_that_dies_is_started_again_and_nothing_is_lost(tmp_path, photo):
    upload = {"file": ("noisy.png", png_bytes(with_noise(photo, 8)))}
    with serving(tmp_path, lease_ttl_s=2) as served, served.client() as client:
        urls = [client.post("/jobs/image", files=upload).headers["Location"] for _ in range(6)]
        (killed,) = queue_pids(served)
        os.kill(killed, signal.SIGKILL)
        until(lambda: queue_pids(served) not in ([killed], []))
        until(lambda: client.get("/readyz").status_code == 200)
        states = [wait_for(client, url)["state"] for url in urls]
    assert states == ["succeeded"] * 6


def queue_pids(served):
    parent = served.process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    found = []
    for pid in children:
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended in this moment, before or after the opening
            if Path(f"/proc/{pid}/comm").read_text().startswith(("valkey", "redis")):
                found.append(int(pid))
    return found


def until(holds, within_s=60.0):
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def worker_pid(client):
    ready = client.get("/readyz").json()
    return ready["workers"][0]["pid"]


def test_grpc_is_back_on_its_port_when_the_api_has_died(tmp_path):
    port = free_port()
    address = f"127.0.0.1:{port}"
    with serving(tmp_path, grpc_port=port) as served, served.client() as client, grpc.insecure_channel(address) as line:
        assert is_alive(line)  # and the line is open when the API dies
        parent = served.process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        (api,) = [pid for pid in children if Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"\0api\0")]
        os.kill(int(api), signal.SIGKILL)
        assert client.get("/").json()["grpc_port"] == port  # HTTP's socket outlived it: we waited
        assert is_alive(line)


def is_alive(channel):
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60, wait_for_ready=True)
    return answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_second_service_on_the_same_data_is_refused(tmp_path):
    with serving(tmp_path):
        command = [sys.executable, "-m", "service", "serve", "--port", "0", "--data-dir", str(tmp_path)]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert second.stderr.startswith("quietframe: ")
    assert "Traceback" not in second.stderr


def test_nothing_is_run_that_lies_where_the_user_stands(tmp_path, photo):
    """Once a file `h2.py` there ended every worker, and a folder `models` would have been taken for ours."""
    standing = tmp_path / "project"
    for name in ("h2", "queue", "models/__init__", "service/__init__", "service/__main__"):
        path = standing / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('this is not ours')")
    quietframe = Path(sys.executable).with_name("quietframe")
    with serving(tmp_path / "data", command=[quietframe], cwd=standing) as served, served.client() as client:
        answer = client.post("/denoise/image", files={"file": png_bytes(photo[:64, :64])})
        assert answer.status_code == 200, answer.text


def test_a_taken_port_is_said_plainly(service, tmp_path):
    port = service.base_url.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "service", "serve", "--port", port, "--data-dir", str(tmp_path)]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in second.stderr


def test_a_taken_grpc_port_is_said_plainly_before_anything_starts(service, tmp_path):
    with service.client() as client:
        port = client.get("/").json()["grpc_port"]
    command = [sys.executable, "-m", "service", "serve", "--port", "0", "--grpc-port", str(port)]
    second = subprocess.run([*command, "--data-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 1
    assert second.stderr == f"quietframe: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_files_and_folders_are_denoised_without_a_server(tmp_path, photo, clips):
    source = tmp_path / "in" / "deep"
    source.mkdir(parents=True)
    (source / "noisy.png").write_bytes(png_bytes(with_noise(photo[:128, :128], 9)))
    (source / "notes.txt").write_text("not a picture")
    short = io.BytesIO()
    write_clip(short, moving_clip(photo)[:4])
    (tmp_path / "in" / "clip.mp4").write_bytes(short.getvalue())
    command = [sys.executable, "-m", "service", "denoise", str(tmp_path / "in"), str(tmp_path / "out"), "--json"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    done = {Path(one["source"]).name: one for one in json.loads(ran.stdout)}
    assert ran.returncode == 1  # the text file is named, the others are done
    assert done["notes.txt"]["error"]
    assert done["noisy.png"]["model"] == "fitvnet-spatial.camera"
    assert done["clip.mp4"]["model"] == "fitvnet.camera"
    assert (tmp_path / "out" / "deep" / "noisy.png").exists()
    assert len(times_of(tmp_path / "out" / "clip.mp4")) == 4
