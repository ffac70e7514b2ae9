"""What `fleet.py` is fed with: what a worker of one core takes for images, parts and joins, and what they ask of Redis.

The service runs whole, with a queue server beside it. Its workers' work is told in processor seconds, which neighbours
on a busy machine do not lengthen; wall times stand beside them. Redis tells commands and the seconds of its one thread.
"""

import asyncio
import contextlib
import io
import json
import os
import platform
import random
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import httpx
from redis import Redis
from support import job_of_no_pixels, outcome_of_no_pixels
from workers import finish, submit

from service.broker import keys
from service.broker.embedded import EmbeddedServer
from service.broker.lease import Lease, LeaseClient
from service.broker.queue import QueueClient
from service.demo import moving_clip, png_bytes, read_photo, running_service, with_noise, write_clip
from service.job import (
    Lane,
    Part,
    PartOutcome,
    Progress,
    StageSeconds,
)
from service.settings import Settings

_TICKS = os.sysconf("SC_CLK_TCK")
SIZES = {(512, 512): 4, (1280, 720): 2}  # and how many of each
PART_SIZES = (8, 16)  # frames


@dataclass(frozen=True, slots=True)
class Seen:
    """Counters at a moment: processor seconds of the workers, and what the queue's server has done."""

    at: float
    workers_s: float
    redis_s: float
    commands: int

    def since(self, earlier: "Seen") -> "Seen":
        return Seen(*(now - before for now, before in zip(_values(self), _values(earlier), strict=True)))


def _values(seen: Seen) -> tuple[Any, ...]:
    return tuple(asdict(seen).values())


class Bench:
    """A service at work, and what can be read off it."""

    def __init__(self, base_url: str, redis_url: str, workers: int) -> None:
        self.client = httpx.Client(base_url=base_url, timeout=600, trust_env=False)
        self.redis: Any = Redis.from_url(redis_url, decode_responses=True)
        while len(self.client.get("/readyz").json().get("workers", [])) < workers:
            time.sleep(0.05)
        self.workers = [int(card["pid"]) for card in self.client.get("/readyz").json()["workers"]]

    def seen(self) -> Seen:
        told = self.redis.info("cpu") | self.redis.info("stats")
        redis_s = told["used_cpu_sys_main_thread"] + told["used_cpu_user_main_thread"]
        workers_s = sum(_cpu_s(pid) for pid in self.workers)
        return Seen(time.perf_counter(), workers_s, redis_s, int(told["total_commands_processed"]))

    def record(self, job: str) -> dict[str, str]:
        """As Redis has it: `job` is the address that the API gave."""
        return dict(self.redis.hgetall(keys.job(job.rpartition("/")[2])))


@contextlib.contextmanager
def bench(workers: int, **settings: object) -> Iterator[Bench]:
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(Path(folder)) as server,
        running_service(workers=workers, redis_url=server.url, threads=1, **settings) as base_url,
    ):
        at_work = Bench(base_url, server.url, workers)
        try:
            yield at_work
        finally:
            at_work.client.close()
            at_work.redis.close()


def measure(*, model: str, frames: int, idle_s: float, save: Callable[[dict[str, Any]], None]) -> None:
    """All of it, for `fleet.json`; saved as it grows, for a busy machine takes its time."""
    photo = read_photo()
    told: dict[str, Any] = {
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} core of {os.cpu_count()}, shared with other work",
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "model": model,
        "redis": redis_bears(500),
        "images": [],
        "parts": [],
    }
    idle = []
    with bench(2) as two:
        idle.append(_idle(two, idle_s))
    with bench(1) as one:
        idle.append(_idle(one, idle_s))
        # The API asks Redis too; what the second worker adds is a worker's.
        told["idle"] = {name: idle[0][name] - idle[1][name] for name in idle[0]}
        save(told)
        for (width, height), count in SIZES.items():
            clean = cv2.resize(photo, (width, height), interpolation=cv2.INTER_CUBIC)
            uploads = [png_bytes(with_noise(clean, seed)) for seed in range(4)]
            told["images"].append(_images(one, uploads, count, model) | {"megapixels": width * height / 1e6})
            save(told)
    shots = moving_clip(photo)
    shots = (shots * (1 + frames // len(shots)))[:frames]
    clip = io.BytesIO()
    write_clip(clip, [with_noise(shot, seed) for seed, shot in enumerate(shots)])
    height, width = shots[0].shape[:2]
    for part_frames in PART_SIZES:
        with bench(1, part_frames=part_frames) as one:
            found = _video(one, clip.getvalue(), frames, model)
        told["parts"].append(found | {"part_frames": part_frames, "megapixels_a_frame": width * height / 1e6})
        save(told)


def _idle(one: Bench, idle_s: float) -> dict[str, float]:
    """What a worker asks of Redis that has nothing to do."""
    before = one.seen()
    time.sleep(idle_s)  # the time itself is what is measured
    spent = one.seen().since(before)
    return {
        "commands_per_s": spent.commands / spent.at,
        "redis_s_per_s": spent.redis_s / spent.at,
        "worker_s_per_s": spent.workers_s / spent.at,
    }


def _images(one: Bench, uploads: list[bytes], count: int, model: str) -> dict[str, Any]:
    """One after the other, for how long each holds its slot; then all at once, for what each costs."""

    def post(number: int) -> str:
        return submit(one.client, "/jobs/image", uploads[number % len(uploads)], model)

    finish(one.client, post(0))
    alone = []
    for number in range(count):
        job = post(number)
        finish(one.client, job)
        alone.append(_held_s(one.record(job)))
    made = json.loads(one.record(job)["outcome"])
    before = one.seen()
    with ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(post, range(count)))
    for job in jobs:
        finish(one.client, job)
    spent = one.seen().since(before)
    return {
        "ran": f"{made['backend']} {made['precision']}",
        "worker_s": spent.workers_s / count,
        "alone_s": alone,
        "together_s": spent.at / count,
        "commands": spent.commands / count,
        "redis_s": spent.redis_s / count,
    }


def _video(one: Bench, clip: bytes, frames: int, model: str) -> dict[str, float]:
    def run() -> dict[str, str]:
        job = submit(one.client, "/jobs/video", clip, model)
        finish(one.client, job)
        return one.record(job)

    finish(one.client, submit(one.client, "/jobs/image", png_bytes(read_photo()[:64, :64]), model))  # it is loaded now
    counted = one.redis.hgetall(keys.COUNTER_HASH)
    before = one.seen()
    record = run()
    spent = one.seen().since(before)
    counts = one.redis.hgetall(keys.COUNTER_HASH)

    def more(name: str) -> float:
        return float(counts.get(name, 0)) - float(counted.get(name, 0))

    parts = more("succeeded:video.part")
    if not parts:
        raise RuntimeError("the video was not divided: give more frames")
    return {
        "parts": parts,
        "frames": frames,
        "worker_s": spent.workers_s,
        "part_wall_s": more("run_seconds:video.part") / parts,
        "join_wall_s": float(record["finished_at"]) - float(record["claimed_at"]),
        "wall_s": spent.at,
        "commands": spent.commands,
        "redis_s": spent.redis_s,
    }


def beside_reality(*, model: str, workers: int, load: float, count: int, seed: int) -> dict[str, Any]:
    """Images come to a real service at random; what they waited, and all that the simulation needs to do the same."""
    clean = read_photo()[:256, :256]
    uploads = [png_bytes(with_noise(clean, number)) for number in range(4)]
    rng = random.Random(seed)
    with bench(workers) as some, ThreadPoolExecutor(16) as pool:
        found = _images(some, uploads, max(8, count // 4), model)
        rate = load / found["together_s"]
        began = time.perf_counter()
        due, answers = 0.0, []
        for number in range(count):
            due += rng.expovariate(rate)
            threading.Event().wait(max(0.0, began + due - time.perf_counter()))
            answers.append(pool.submit(submit, some.client, "/jobs/image", uploads[number % len(uploads)], model))
        jobs = [answer.result() for answer in answers]
        for job in jobs:
            finish(some.client, job)
        records = [some.record(job) for job in jobs]
    return {
        "arrivals": sorted(float(record["queued_at"]) for record in records),
        "waited_s": [float(record["claimed_at"]) - float(record["queued_at"]) for record in records],
        "held_s": [_held_s(record) for record in records],
        "alone_s": found["alone_s"],
        "together_s": found["together_s"],
    }


def _held_s(record: dict[str, str]) -> float:
    return float(record["finished_at"]) - float(record["claimed_at"])


def _cpu_s(pid: int) -> float:
    """Processor seconds of a process and of all below it, those that have ended too."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        # Threads start processes of their own.
        for task in Path(f"/proc/{pid}/task").iterdir():
            below += (task / "children").read_text().split()
    except OSError:  # it ended a moment ago; its seconds are its parent's by now
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS + sum(_cpu_s(int(child)) for child in set(below))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def spread_of(alone_s: list[float]) -> list[float]:
    """Times as shares of their mean."""
    mean_s = sum(alone_s) / len(alone_s)
    return [one / mean_s for one in alone_s]


def redis_bears(count: int) -> dict[str, dict[str, float]]:
    """Seconds of Redis's one thread, and commands, for each step of jobs that need no work: by one client in turn."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    settings = Settings(max_queued_jobs=10**9)
    told: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        queue = QueueClient(server.url, settings)
        asyncio.run_coroutine_threadsafe(queue.connect(), loop).result()
        redis: Any = Redis.from_url(server.url, decode_responses=True)
        with LeaseClient(server.url, settings, "bench", heartbeat=False) as worker:

            def phase(name: str, times: int, act: Callable[[], None]) -> None:
                before, began = (redis.info("cpu"), redis.info("stats")), time.perf_counter()
                act()
                took = time.perf_counter() - began
                after = redis.info("cpu"), redis.info("stats")
                main = [
                    one["used_cpu_sys_main_thread"] + one["used_cpu_user_main_thread"] for one, _ in (before, after)
                ]
                commands = after[1]["total_commands_processed"] - before[1]["total_commands_processed"]
                told[name] = {
                    "redis_s": (main[1] - main[0]) / times,
                    "commands": (commands - 2) / times,
                    "seen_per_s": times / took,
                }

            def put(lane: Lane) -> None:
                async def all_of_them() -> None:
                    for _ in range(count):
                        await queue.put(job_of_no_pixels(lane))

                asyncio.run_coroutine_threadsafe(all_of_them(), loop).result()

            leases: list[Lease] = []

            def take(lane: Lane, times: int) -> None:
                for _ in range(times):
                    lease = worker.lease((lane,), 10)
                    assert lease is not None
                    leases.append(lease)

            phase("warm up", count, lambda: put(Lane.IMAGE_BATCH))
            phase("put", count, lambda: put(Lane.IMAGE_BATCH))
            phase("lease", count, lambda: take(Lane.IMAGE_BATCH, count))
            progress = Progress(done=1, total=2, unit="tiles")
            phase("report", count, lambda: [worker.report(lease, progress) for lease in leases] and None)
            phase("ack", count, lambda: [worker.ack(lease, outcome_of_no_pixels()) for lease in leases] and None)
            leases.clear()
            put(Lane.VIDEO)
            take(Lane.VIDEO, 1)
            video, parts = leases.pop(), [_part(at) for at in range(count)]
            phase("divide, a part", count, lambda: worker.divide(video, parts))
            made = PartOutcome(
                blob=secrets.token_hex(32),
                frames=8,
                removed_power=0.0,
                values=1,
                seconds=StageSeconds(),
                backend="none",
                precision="none",
            )

            def do_parts() -> None:
                for _ in range(count):
                    take(Lane.VIDEO_PART, 1)
                    worker.part_done(leases.pop(), made)

            phase("lease and end a part", count, do_parts)
        redis.close()
        asyncio.run_coroutine_threadsafe(queue.aclose(), loop).result()
    del told["warm up"]
    return told


def _part(index: int) -> Part:
    return Part(index=index, frames=8, lead=2, trail=2, begin=8 * index, end=8 * index + 11)
