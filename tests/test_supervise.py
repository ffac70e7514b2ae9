"""Does the pool outlive its workers, whatever befalls them?"""

import contextlib
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from redis import Redis

from service.blobs import FileStore
from service.broker import keys
from service.broker.queue import QueueClient
from service.demo import moving_clip, png_bytes, read_photo, write_clip
from service.job import InputFacts, Job, JobState, Lane, Options, new_job_id
from service.processes import resident_bytes, usable_cores
from service.settings import Settings
from service.supervise import Pool, Program, worker_programs
from service.worker import SLOTS, slots_for
from trtbuild.gpus import gpus_in, nvidia_gpus

ROOT = Path(__file__).parent.parent
PATIENCE_S = 120.0  # a bound on waiting, never a claim about speed
# A worker and its decoders hold 350 MB, and 440 MB at small images (our measurement); the large one takes 1 GB.
TIGHT_BYTES = 650_000_000
LARGE_PX = (6000, 5000)
VIDEO_BYTES = 800_000_000  # with a video in its hands, and still too few for the large image
LONG_FRAMES = 24  # the large image has killed its worker before so many are done
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells what a process holds")


class Crew:
    """A running `quietframe worker`."""

    def __init__(self, process: subprocess.Popen[bytes], log_file: Path) -> None:
        self.process, self._log_file = process, log_file

    @property
    def log(self) -> str:
        return self._log_file.read_text()

    @property
    def pids(self) -> list[int]:
        return children_of(self.process.pid)


@contextmanager
def crew(redis_url: str, data_dir: Path, workers: int, **settings: object) -> Iterator[Crew]:
    data_dir.mkdir(exist_ok=True)
    log_file = data_dir / "crew.log"
    command = [sys.executable, "-m", "service", "worker", "--workers", str(workers), "--data-dir", str(data_dir)]
    said = {f"QUIETFRAME_{name.upper()}": str(value) for name, value in settings.items()}
    with log_file.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | said | {"QUIETFRAME_REDIS_URL": redis_url}, stderr=output
        )
    try:
        yield Crew(process, log_file)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE_S)


@pytest.fixture
async def queue(fresh_redis_url):
    async with QueueClient(fresh_redis_url, Settings()) as client:
        yield client


@pytest.fixture(scope="module")
def small_png():
    return png_bytes(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def large_png():
    """Well within the bound on pixels, and far beyond a tight one on memory."""
    return png_bytes(np.full((*LARGE_PX, 3), 128, np.uint8))


@pytest.fixture(scope="module")
def clip():
    file = io.BytesIO()
    write_clip(file, moving_clip(read_photo())[:8])
    return file.getvalue()


async def put_image(queue: QueueClient, data_dir: Path, png: bytes, lane: Lane = Lane.IMAGE_BATCH) -> str:
    return await put(queue, data_dir, png, lane, "image/png")


async def put_clip(queue: QueueClient, data_dir: Path, clip: bytes) -> str:
    return await put(queue, data_dir, clip, Lane.VIDEO, "video/mp4")


async def put(queue: QueueClient, data_dir: Path, content: bytes, lane: Lane, content_type: str) -> str:
    blob = FileStore(data_dir / "blobs").put(io.BytesIO(content))
    kind = "video" if lane is Lane.VIDEO else "image"
    job = Job(
        id=new_job_id(),
        kind=kind,
        lane=lane,
        model="fitvnet" if kind == "video" else "fitvnet-spatial",
        options=Options(),
        input_blob=blob.name,
        input=InputFacts(content_type=content_type, bytes=len(content), width=1, height=1),
        name="in",
        created_at=time.time(),
    )
    await queue.put(job)
    return job.id


def jobs_command(*words: str, redis_url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", "jobs", *words, "--redis-url", redis_url]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether it runs; one that only waits for its parent to take note does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@NEEDS_PROC
@pytest.mark.anyio
async def test_a_job_too_large_for_any_worker_is_given_up_and_all_others_are_done(
    fresh_redis_url, queue, data_dir, small_png, large_png
):
    with crew(
        fresh_redis_url, data_dir, 2, worker_memory_bytes=TIGHT_BYTES, lease_ttl_s=1.5, max_attempts=3
    ) as running:
        poison = await put_image(queue, data_dir, large_png)
        others = [await put_image(queue, data_dir, small_png) for _ in range(8)]
        ended = await queue.wait(poison, PATIENCE_S)
        others += [await put_image(queue, data_dir, small_png, Lane.IMAGE_INTERACTIVE)]
        assert [(await queue.wait(job, PATIENCE_S)).state for job in others] == [JobState.SUCCEEDED] * len(others)
        until(lambda: len(running.pids) == 2)
        log = running.log
    assert ended.state is JobState.FAILED
    assert ended.attempts == 3
    assert ended.error is not None
    assert "tried 3 times" in ended.error["detail"]
    (letter,) = await queue.dead_letters(10)
    assert (letter.job_id, letter.attempts) == (poison, 3)
    assert "worker was lost" in letter.reason
    killed = re.findall(r"worker \d \(process (\d+)\) holds (\d+) bytes of memory; at most (\d+) are allowed", log)
    assert len({pid for pid, _, _ in killed}) == 3
    assert all(int(held) > int(bound) == TIGHT_BYTES for _, held, bound in killed)


@NEEDS_PROC
@pytest.mark.anyio
async def test_a_job_that_kills_every_worker_takes_no_neighbour_with_it(fresh_redis_url, queue, data_dir, large_png):
    with crew(fresh_redis_url, data_dir, 1, worker_memory_bytes=VIDEO_BYTES, lease_ttl_s=1, max_attempts=2) as running:
        film = io.BytesIO()
        write_clip(film, moving_clip(read_photo())[:LONG_FRAMES])
        beside = await put_clip(queue, data_dir, film.getvalue())
        poison = await put_image(queue, data_dir, large_png)
        assert (await queue.wait(poison, PATIENCE_S)).state is JobState.FAILED
        ended = await queue.wait(beside, PATIENCE_S)
        log = running.log
    assert ended.state is JobState.SUCCEEDED, ended.error
    assert ended.attempts <= 2  # beside the other once, unless it was done before
    assert "holds" in log


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.anyio
async def test_a_job_whose_workers_all_die_can_be_listed_and_replayed(fresh_redis_url, queue, data_dir, clip):
    with crew(fresh_redis_url, data_dir, 1, lease_ttl_s=1, max_attempts=2) as running:
        job_id = await put_clip(queue, data_dir, clip)
        with Redis.from_url(fresh_redis_url, decode_responses=True) as link:
            for attempt in ("1", "2"):
                until(lambda attempt=attempt: link.hget(keys.job(job_id), "attempts") == attempt)
                (pid,) = running.pids
                os.kill(pid, signal.SIGKILL)
        assert (await queue.wait(job_id, PATIENCE_S)).state is JobState.FAILED
        failed = json.loads(jobs_command("list", "--state", "failed", "--json", redis_url=fresh_redis_url).stdout)
        assert [job["id"] for job in failed] == [job_id]
        assert [letter.job_id for letter in await queue.dead_letters(10)] == [job_id]
        assert jobs_command("replay", job_id, redis_url=fresh_redis_url).stdout.startswith(f"{job_id} is ")
        assert await queue.dead_letters(10) == []
        replayed = await queue.wait(job_id, PATIENCE_S)
        assert replayed.state is JobState.SUCCEEDED
        assert replayed.attempts == 1
        assert "starting it again" in running.log


@contextmanager
def api_over(redis_url: str, data_dir: Path) -> Iterator[httpx.Client]:
    """The API as a process of its own."""
    data_dir.mkdir(exist_ok=True)
    said = {"QUIETFRAME_REDIS_URL": redis_url, "QUIETFRAME_DATA_DIR": str(data_dir), "QUIETFRAME_PORT": "0"}
    code = "from service.settings import Settings; from service.api.server import make_server\n" + (
        "make_server(Settings(), on_up=lambda url: print(url, flush=True)).run()"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | said, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        with httpx.Client(base_url=process.stdout.readline().strip(), timeout=PATIENCE_S) as client:
            yield client
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        process.stdout.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ready_means_that_a_worker_is_warm_and_no_longer_when_all_have_died(fresh_redis_url, data_dir):
    with api_over(fresh_redis_url, data_dir) as client:
        early = client.get("/readyz")
        assert early.status_code == 503
        assert "no worker is ready" in early.json()["detail"]
        with crew(fresh_redis_url, data_dir, 2, lease_ttl_s=1) as running:
            until(lambda: client.get("/readyz").status_code == 200)
            until(lambda: len(client.get("/readyz").json()["workers"]) == 2)
            cards = client.get("/readyz").json()["workers"]
            assert {card["pid"] for card in cards} == set(running.pids)
            assert all(card["models"] for card in cards)  # loaded, and run once, before they were told of
            for pid in [running.process.pid, *running.pids]:
                os.kill(pid, signal.SIGKILL)
            until(lambda: client.get("/readyz").status_code == 503)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_workers_end_when_their_supervisor_is_killed(fresh_redis_url, data_dir):
    with crew(fresh_redis_url, data_dir, 2, drain_s=0) as running:
        until(lambda: running.log.count("is ready") == 2)
        pids = running.pids
        running.process.kill()
        until(lambda: not any(map(is_alive, pids)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.anyio
async def test_a_second_ctrl_c_changes_nothing_about_a_clean_end(fresh_redis_url, queue, data_dir):
    file = io.BytesIO()
    write_clip(file, moving_clip(read_photo()))  # long enough to be still at work when it is told to end
    with crew(fresh_redis_url, data_dir, 2, drain_s=0) as running:
        job_id = await put_clip(queue, data_dir, file.getvalue())
        async for _, event in queue.events(job_id, None):
            if event.get("state") == "running":
                break
        pids = running.pids
        running.process.send_signal(signal.SIGINT)
        until(lambda: "stopping" in running.log)
        running.process.send_signal(signal.SIGINT)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(PATIENCE_S) == 0
        assert not any(map(is_alive, pids))
        assert "Traceback" not in running.log
        record = await queue.get(job_id)
        assert (record.state, record.attempts) == (JobState.QUEUED, 0)  # handed back, which is no attempt


@pytest.mark.parametrize("command", [["worker", "--workers", "2"], ["serve", "--port", "0"]], ids=["worker", "serve"])
def test_a_worker_that_can_never_start_ends_the_command_with_the_reason(fresh_redis_url, data_dir, tmp_path, command):
    broken = tmp_path / "broken" / "openvino"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libtbb.so.12 is missing')")
    said = {
        "PYTHONPATH": str(broken.parent),
        "QUIETFRAME_BACKEND": "openvino",
        "QUIETFRAME_REDIS_URL": fresh_redis_url,
        "QUIETFRAME_DATA_DIR": str(data_dir),
    }
    words = [sys.executable, "-m", "service", *command]
    ran = subprocess.run(
        words, cwd=ROOT, env=os.environ | said, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ran.returncode == 1
    assert "quietframe: openvino is installed but does not load: libtbb.so.12 is missing" in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("quietframe: worker ")
    assert "starting it again" not in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.anyio
async def test_workers_told_their_lanes_leave_the_others_alone(fresh_redis_url, queue, data_dir, small_png, clip):
    with crew(fresh_redis_url, data_dir, 1, lanes="image.interactive, image.batch"):
        video = await put_clip(queue, data_dir, clip)
        images = [
            await put_image(queue, data_dir, small_png, lane) for lane in (Lane.IMAGE_BATCH, Lane.IMAGE_INTERACTIVE)
        ]
        assert [(await queue.wait(job, PATIENCE_S)).state for job in images] == [JobState.SUCCEEDED] * 2
        (card,) = await queue.workers()
        assert {lane for lane, slots in card.slots.items() if slots} == {Lane.IMAGE_INTERACTIVE, Lane.IMAGE_BATCH}
    assert (await queue.get(video)).state is JobState.QUEUED


def test_slots_without_lanes_are_not_started():
    assert slots_for(set(Lane)) == [list(lanes) for lanes in SLOTS]
    assert slots_for({Lane.IMAGE_BATCH}) == [[Lane.IMAGE_BATCH]] * sum(Lane.IMAGE_BATCH in lanes for lanes in SLOTS)


@pytest.mark.parametrize(
    ("said", "lanes"),
    [
        (None, set(Lane)),
        ("", set(Lane)),
        (" image.batch ,image.interactive", {"image.batch", "image.interactive"}),
        (" video ,image.batch", {"video", "video.part", "video.join", "image.batch"}),
        ("video.part", {"video.part"}),
    ],
)
def test_lanes_are_read_from_their_variable(monkeypatch, said, lanes):
    if said is not None:
        monkeypatch.setenv("QUIETFRAME_LANES", said)
    assert Settings().worker_lanes == lanes


def test_an_unknown_lane_is_told_the_known_ones():
    environment = os.environ | {"QUIETFRAME_LANES": "image.batch,image.fast", "QUIETFRAME_REDIS_URL": "redis://h"}
    command = [sys.executable, "-m", "service", "worker"]
    environment |= {"COLUMNS": "300"}
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ran.returncode == 2
    assert "no lane 'image.fast'; known are image.interactive, image.batch" in ran.stderr
    assert "Traceback" not in ran.stderr


@contextmanager
def pool_of(*codes: str, memory_bytes: int = 0) -> Iterator[Pool]:
    """Children that run a few lines of Python."""
    pool = Pool(
        [
            Program(
                name=f"child {number}",
                command=[sys.executable, "-c", code],
                environment=dict(os.environ),
                memory_bytes=memory_bytes,
            )
            for number, code in enumerate(codes)
        ]
    )
    try:
        yield pool
    finally:
        pool.stop(0)


def test_a_child_that_dies_young_is_started_again_slower_each_time(caplog):
    with pool_of("raise SystemExit(3)") as pool:
        pool.start()

        def has_died_thrice() -> bool:
            pool.look()
            return len(caplog.messages) == 3

        until(has_died_thrice)
    assert caplog.messages == [f"child 0 died (3); starting it again in {pause} s" for pause in ("0.5", "1.0", "2.0")]


def test_a_child_that_does_not_stop_in_time_is_killed_and_the_others_end_by_themselves(caplog, tmp_path):
    marks = [tmp_path / "deaf", tmp_path / "polite"]
    deaf, polite = (
        f"import pathlib, signal; {deafness}; pathlib.Path({str(mark)!r}).touch(); signal.pause(); signal.pause()"
        for deafness, mark in zip(("signal.signal(signal.SIGTERM, lambda *_: None)", "pass"), marks, strict=True)
    )
    with pool_of(deaf, polite) as pool:
        pool.start()
        until(lambda: all(mark.exists() for mark in marks))
        pool.stop(2.0)  # the polite one dies at once, as far as a busy machine lets it
        pool.stop(0)  # nothing is left to stop
    assert caplog.messages == ["child 0 did not stop in time; killing it"]


@NEEDS_PROC
def test_memory_is_counted_over_a_child_and_its_own_children(caplog):
    caplog.set_level(logging.ERROR)
    holds = "import time; held = bytearray(90_000_000); time.sleep(600)"
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {holds!r}])"
    with pool_of(starts, memory_bytes=80_000_000) as pool:
        pool.start()
        (parent,) = (pid for pid in children_of(os.getpid()) if "subprocess.run" in command_line(pid))
        until(lambda: children_of(parent))
        (child,) = children_of(parent)

        def is_killed() -> bool:
            pool.look()
            return bool(caplog.messages)

        until(is_killed)
        until(lambda: not is_alive(child))
    assert re.search(r"child 0 \(process \d+\) holds \d+ bytes of memory; at most 80000000", caplog.messages[0])
    assert resident_bytes(child) == 0


def command_line(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


LISTING = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
  MIG 3g.20gb     Device  1: (UUID: MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-7158f5b8-a7ac-5fb9-3ea1-2a3a5d2fd4ee)
"""


def test_a_divided_gpu_counts_by_its_slices():
    assert gpus_in(LISTING) == [
        "MIG-c7384736-a75d-5afc-978f-d2f1294409fd",
        "MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d",
        "GPU-7158f5b8-a7ac-5fb9-3ea1-2a3a5d2fd4ee",
    ]
    assert gpus_in("No devices found.\n") == []


@pytest.mark.parametrize(
    ("said", "names"),
    [("", []), ("-1", []), ("2,0", ["2", "0"]), ("GPU-5d5b, MIG-c738", ["GPU-5d5b", "MIG-c738"]), ("0,-1,1", ["0"])],
)
def test_what_cuda_is_allowed_to_see_comes_before_what_there_is(monkeypatch, said, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert nvidia_gpus() == names


def test_zero_workers_means_one_for_each_gpu_and_each_sees_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    programs = worker_programs(Settings(workers=0), "redis://h")
    assert [program.environment["CUDA_VISIBLE_DEVICES"] for program in programs] == ["GPU-a", "GPU-b", "GPU-c"]


def test_zero_workers_means_one_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert len(worker_programs(Settings(workers=0), "redis://h")) == 1


def test_workers_of_one_machine_share_its_cores():
    def threads(**settings: int) -> set[str]:
        return {one.environment["QUIETFRAME_THREADS"] for one in worker_programs(Settings(**settings), "redis://h")}

    assert threads(workers=1) == {"0"}  # all that there are
    assert threads(workers=2) == {str(max(1, usable_cores() // 2))}
    assert threads(workers=64) == {"1"}
    assert threads(workers=3, threads=5) == {"5"}


def test_children_hear_all_that_the_settings_say_and_no_listing_tells_the_password():
    settings = Settings(workers=2, tile_px=256, lanes="video", redis_url="redis://:hush@h")
    (program, _) = worker_programs(settings, "redis://:hush@h")
    heard = {name.removeprefix("QUIETFRAME_"): value for name, value in program.environment.items()}
    assert (heard["TILE_PX"], heard["LANES"], heard["REDIS_URL"]) == ("256", "video", "redis://:hush@h")
    assert "hush" not in f"{settings!r} {settings} {program!r}"
