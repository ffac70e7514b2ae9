"""How long do jobs wait, and what do they cost, with so many of them an hour and 1 to 10 000 workers?

A simulation of the queue's discipline by discrete events, fed with what `--measure` found the real service to take. A
worker is as `service/worker.py` has it: two slots for images and one for videos around one engine, which is given to
images first; lanes are read in their order; a video is planned, done in parts and joined. Redis answers at once here:
where it is itself the limit is reckoned from its own seconds.

    python benchmarks/fleet.py                        # tables, from fleet.json; --json FILE for all figures
    python benchmarks/fleet.py --measure              # make fleet.json anew, with the real service
    python benchmarks/fleet.py --against-service      # one load on 1 and 2 real workers, beside the same load simulated
    python benchmarks/fleet.py --redis                # what one Redis bears, for jobs of no work
"""

import argparse
import heapq
import itertools
import json
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).with_name("fleet.json")
PARTS_AHEAD = 4  # queue_parts in service/broker/scripts/common.lua: of a video at least so many wait or run
WARM_UP = 0.2  # of the jobs: the first ones find the fleet emptier than it will be


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """A stream of images, one at a time, at random."""

    rate: float  # a second
    engine_s: Callable[[random.Random], float]
    beside_s: float = 0.0  # that a slot is held besides, half before the engine and half after
    megapixels: float = 1.0
    count: int
    gaps_s: Sequence[float] = ()  # before each, where they do not come at random

    def gap_s(self, rng: random.Random, number: int) -> float:
        return self.gaps_s[number] if self.gaps_s else rng.expovariate(self.rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Videos:
    """A stream of videos, at random."""

    rate: float
    frames: int
    part_frames: int
    frame_s: float
    part_s: float = 0.0  # for each part, beside its frames
    plan_s: float = 0.0
    join_s: float = 0.0
    megapixels: float = 1.0  # a frame
    count: int

    def gap_s(self, rng: random.Random, number: int) -> float:  # noqa: ARG002 - as images have it
        return rng.expovariate(self.rate)

    @property
    def parts(self) -> list[int]:
        """Frames of each."""
        whole, rest = divmod(self.frames, self.part_frames)
        return [self.part_frames] * whole + ([rest] if rest else [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Workers die, each by itself, and their jobs lie until the lease runs out."""

    mean_s: float  # between a worker's start and its death
    restart_s: float = 10.0
    lease_s: float = 30.0
    attempts: int = 3


@dataclass(slots=True)
class Told:
    """What came of it. Times of jobs that came while the fleet was still filling are left out."""

    workers: int
    elapsed_s: float = 0.0  # from the first arrival to the last
    busy_s: float = 0.0
    megapixels: float = 0.0
    image_waits_s: list[float] = field(default_factory=list)  # in the lane, and in the slot for the engine
    image_leases_s: list[float] = field(default_factory=list)  # in the lane
    video_waits_s: list[float] = field(default_factory=list)  # until it is planned
    part_waits_s: list[float] = field(default_factory=list)
    video_took_s: list[float] = field(default_factory=list)  # from its coming to the end of its join
    done: int = 0
    given_up: int = 0
    redelivered: int = 0

    @property
    def busy(self) -> float:
        return self.busy_s / (self.workers * self.elapsed_s)

    @property
    def worker_hours(self) -> float:
        """For 1000 megapixels of pictures and frames, idle workers paid for too."""
        return self.workers * self.elapsed_s / 3600 / (self.megapixels / 1000)


@dataclass(slots=True, eq=False)
class _Step:
    """What a lease is on: an image, or a video's plan, part or join."""

    lane: str
    came: float
    engine_s: float
    video: "_Video | None" = None
    counted: bool = True
    tries: int = 0


@dataclass(slots=True, eq=False)
class _Video:
    came: float
    parts: list[int]
    counted: bool
    queued: int = 0
    done: int = 0
    over: bool = False


@dataclass(slots=True, eq=False)
class _Worker:
    """One engine. `version` is raised whenever what was expected of it no longer holds."""

    version: int = 0
    life: int = 0
    images: deque[_Step] = field(default_factory=deque)  # decoded, and waiting for the engine
    running: _Step | None = None
    began: float = 0.0
    video: _Step | None = None
    video_left_s: float = 0.0
    held: dict[_Step, None] = field(default_factory=dict)  # in the order of taking
    parts_next: bool = False  # new videos and parts take turns


class Fleet:
    """Workers, lanes and what is to come, as a heap of moments."""

    def __init__(
        self,
        workers: int,
        *,
        images: Images | None = None,
        videos: Videos | None = None,
        failures: Failures | None = None,
        image_slots: int = 2,
        video_workers: int | None = None,
        warm_up: float = WARM_UP,
        seed: int = 0,
    ) -> None:
        """
        Args:
            image_slots: of each worker.
            video_workers: so many take videos and nothing else, the others images and nothing else; None: all both.
            warm_up: share of the jobs whose times are not counted.
        """
        self._rng = random.Random(seed)
        self._images, self._videos, self._failures = images, videos, failures
        self._now, self._warm_up = 0.0, warm_up
        self._numbers = itertools.count()
        self._moments: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._lanes: dict[str, deque[_Step]] = {lane: deque() for lane in ("image", "join", "video", "part")}
        self._idle: dict[str, deque[tuple[_Worker, int]]] = {"image": deque(), "video": deque()}
        self._open = 0  # jobs that came and are not over
        self._streams = (images is not None) + (videos is not None)
        self._last_s = 0.0
        self.told = Told(workers)
        # A server wakes the client first that has waited longest.
        self._workers = [_Worker() for _ in range(workers)]
        self._slots = {
            id(worker): ["image"] * image_slots * (video_workers is None or number >= video_workers)
            + ["video"] * (video_workers is None or number < video_workers)
            for number, worker in enumerate(self._workers)
        }
        self._ahead = max(PARTS_AHEAD, 2 * workers)

    def run(self) -> Told:
        for turn in range(3):  # all first slots, then all second ones: as they come to wait
            for worker in self._workers:
                if turn < len(self._slots[id(worker)]):
                    self._idle[self._slots[id(worker)][turn]].append((worker, worker.life))
        if self._failures:
            for worker in self._workers:
                self._in(self._rng.expovariate(1 / self._failures.mean_s), self._die, worker)
        if self._images:
            self._in(self._images.gap_s(self._rng, 0), self._image_comes, 0)
        if self._videos:
            self._in(self._videos.gap_s(self._rng, 0), self._video_comes, 0)
        while self._moments and (self._streams or self._open):
            self._now, _, act, about = heapq.heappop(self._moments)
            act(*about)
        self.told.elapsed_s = self._last_s
        return self.told

    def _in(self, seconds: float, act: Callable[..., None], *about: Any) -> None:
        heapq.heappush(self._moments, (self._now + seconds, next(self._numbers), act, about))

    # --- what comes ---

    def _image_comes(self, number: int) -> None:
        images = self._images
        assert images is not None
        self._open += 1
        self._put(
            _Step("image", self._now, images.engine_s(self._rng), counted=number >= int(self._warm_up * images.count))
        )
        self._next(number + 1, images, self._image_comes)

    def _video_comes(self, number: int) -> None:
        videos = self._videos
        assert videos is not None
        self._open += 1
        video = _Video(self._now, videos.parts, number >= int(self._warm_up * videos.count))
        self._put(_Step("video", self._now, videos.plan_s, video, video.counted))
        self._next(number + 1, videos, self._video_comes)

    def _next(self, number: int, stream: Images | Videos, act: Callable[..., None]) -> None:
        self._last_s = max(self._last_s, self._now)
        if number < stream.count:
            self._in(stream.gap_s(self._rng, number), act, number)
        else:
            self._streams -= 1

    # --- lanes and slots ---

    def _put(self, step: _Step, *, first: bool = False) -> None:
        lane = self._lanes[step.lane]
        lane.appendleft(step) if first else lane.append(step)
        kind = "image" if step.lane == "image" else "video"
        while self._idle[kind] and any(self._lanes[name] for name in self._read_by(kind)):
            worker, life = self._idle[kind].popleft()
            if worker.life == life:
                self._take(worker, kind)

    @staticmethod
    def _read_by(kind: str) -> tuple[str, ...]:
        return ("image",) if kind == "image" else ("join", "video", "part")

    def _take(self, worker: _Worker, kind: str) -> None:
        """The slot's next job, or it is idle."""
        order = self._read_by(kind)
        if kind == "video" and worker.parts_next:
            order = ("join", "part", "video")
        for name in order:
            while self._lanes[name]:
                step = self._lanes[name].popleft()
                if step.video and step.video.over:
                    continue  # it was given up
                self._lease(worker, step)
                return
        self._idle[kind].append((worker, worker.life))

    def _lease(self, worker: _Worker, step: _Step) -> None:
        step.tries += 1
        worker.held[step] = None
        if step.counted and step.tries == 1:
            waits = {
                "image": self.told.image_leases_s,
                "video": self.told.video_waits_s,
                "part": self.told.part_waits_s,
            }
            waits.get(step.lane, []).append(self._now - step.came)
        if step.lane != "image":
            if step.lane != "join":
                worker.parts_next = step.lane == "video"
            worker.video, worker.video_left_s = step, step.engine_s
            self._give_engine(worker)
        elif self._images and self._images.beside_s:
            self._in(self._images.beside_s / 2, self._decoded, worker, worker.life, step)
        else:
            self._decoded(worker, worker.life, step)

    # --- the engine ---

    def _decoded(self, worker: _Worker, life: int, step: _Step) -> None:
        if worker.life == life:
            worker.images.append(step)
            if worker.running is not None and worker.running is worker.video:
                self._pause(worker)
            self._give_engine(worker)

    def _pause(self, worker: _Worker) -> None:
        """An image comes between two frames of a video; frames are short, so it is as if at once."""
        spent = self._now - worker.began
        worker.video_left_s -= spent
        self.told.busy_s += spent
        worker.running = None
        worker.version += 1

    def _give_engine(self, worker: _Worker) -> None:
        if worker.running is None and (worker.images or worker.video):
            step = worker.images.popleft() if worker.images else worker.video
            assert step is not None
            worker.running, worker.began = step, self._now
            worker.version += 1
            left = worker.video_left_s if step is worker.video else step.engine_s
            self._in(left, self._computed, worker, worker.version)

    def _computed(self, worker: _Worker, version: int) -> None:
        if worker.version != version:
            return  # it was paused, or the worker died
        step = worker.running
        assert step is not None
        self.told.busy_s += self._now - worker.began
        worker.running = None
        if step is worker.video:
            worker.video = None
            self._over(worker, worker.life, step)
        elif self._images and self._images.beside_s:
            self._in(self._images.beside_s / 2, self._over, worker, worker.life, step)
        else:
            self._over(worker, worker.life, step)
        self._give_engine(worker)

    def _over(self, worker: _Worker, life: int, step: _Step) -> None:
        if worker.life != life:
            return
        del worker.held[step]
        if step.lane == "image":
            assert self._images is not None
            self.told.megapixels += self._images.megapixels
            if step.counted:
                waited_s = self._now - step.came - step.engine_s - self._images.beside_s
                self.told.image_waits_s.append(max(0.0, round(waited_s, 6)))  # what sums leave over is no wait
            self._end_job()
        else:
            self._video_goes_on(step)
        self._take(worker, "image" if step.lane == "image" else "video")

    def _end_job(self) -> None:
        self._open -= 1
        self.told.done += 1

    def _video_goes_on(self, step: _Step) -> None:
        video, videos = step.video, self._videos
        assert video is not None
        assert videos is not None
        if video.over:
            return
        if step.lane == "join":
            video.over = True
            self.told.megapixels += videos.megapixels * videos.frames
            if video.counted:
                self.told.video_took_s.append(self._now - video.came)
            self._end_job()
            return
        video.done += step.lane == "part"
        if video.done == len(video.parts):
            self._put(_Step("join", self._now, videos.join_s, video, video.counted))
        while video.queued < len(video.parts) and video.queued - video.done < self._ahead:
            took = videos.part_s + video.parts[video.queued] * videos.frame_s
            video.queued += 1
            self._put(_Step("part", self._now, took, video, video.counted))

    # --- what breaks ---

    def _die(self, worker: _Worker) -> None:
        failures = self._failures
        assert failures is not None
        if worker.running:
            self.told.busy_s += self._now - worker.began
        for step in worker.held:
            self._in(failures.lease_s, self._again, step)
        worker.life += 1
        worker.version += 1
        worker.images.clear()
        worker.held.clear()
        worker.running = worker.video = None
        self._in(failures.restart_s, self._start, worker)

    def _start(self, worker: _Worker) -> None:
        assert self._failures is not None
        self._in(self._rng.expovariate(1 / self._failures.mean_s), self._die, worker)
        for kind in self._slots[id(worker)]:
            self._take(worker, kind)

    def _again(self, step: _Step) -> None:
        assert self._failures is not None
        if step.tries < self._failures.attempts:
            self.told.redelivered += 1
            self._put(step, first=True)
        elif step.video is None or not step.video.over:
            if step.video:
                step.video.over = True
            self._open -= 1
            self.told.given_up += 1


# --- theory ---


def erlang_c(servers: int, offered: float) -> float:
    """The share that has to wait in M/M/c, by the recursion of Erlang's B; `offered` is arrivals times service time."""
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


def mean_wait_s(servers: int, rate: float, service_s: float) -> float:
    """In the queue of M/M/c."""
    offered = rate * service_s
    return erlang_c(servers, offered) * service_s / (servers - offered)


def percentile_s(values: Sequence[float], percent: float) -> float:
    """By nearest rank; 0 where there is none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else 0.0


# --- from what was measured ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a worker of one core takes, in its processor's seconds; a size in megapixels makes it so much of them."""

    image_s: float  # for each image, whatever its size
    image_megapixel_s: float
    spread: tuple[float, ...]  # of images of one size, about 1
    part_s: float  # for each part: opening, seeking, the neighbours' frames, the encoder's start
    frame_megapixel_s: float
    join_s: float
    redis: dict[str, float]  # seconds of its thread for an image, a part, a report, an idle worker's second

    @classmethod
    def of(cls, told: dict[str, Any]) -> "Costs":
        small, large = told["images"]
        image_megapixel_s = max(0.0, large["worker_s"] - small["worker_s"]) / (
            large["megapixels"] - small["megapixels"]
        )
        mean_s = sum(small["alone_s"]) / len(small["alone_s"])
        short, long = told["parts"]
        part_s = max(0.0, (short["worker_s"] - long["worker_s"]) / (short["parts"] - long["parts"]))
        # The wall of the join holds the neighbours' share of the core; what the whole job had of it is known.
        join_s = long["join_wall_s"] * long["worker_s"] / long["wall_s"]
        frames_s = long["worker_s"] - long["parts"] * part_s - join_s  # planning too, which is little
        steps = {name: step["redis_s"] for name, step in told["redis"].items()}
        return cls(
            image_s=max(0.0, small["worker_s"] - image_megapixel_s * small["megapixels"]),
            image_megapixel_s=image_megapixel_s,
            spread=tuple(one / mean_s for one in small["alone_s"]),
            part_s=part_s,
            frame_megapixel_s=frames_s / long["frames"] / long["megapixels_a_frame"],
            join_s=join_s,
            redis={
                "image": steps["put"] + steps["lease"] + steps["report"] + steps["ack"],
                "part": steps["divide, a part"] + steps["lease and end a part"],
                "report": steps["report"],
                "worker": told["idle"]["redis_s_per_s"],
            },
        )

    def images(self, rate: float, count: int, megapixels: float, speed: float = 1.0) -> Images:
        mean_s = (self.image_s + self.image_megapixel_s * megapixels) / speed

        def engine_s(rng: random.Random) -> float:
            return mean_s * rng.choice(self.spread)

        return Images(rate=rate, engine_s=engine_s, megapixels=megapixels, count=count)

    def image_mean_s(self, megapixels: float) -> float:
        return self.image_s + self.image_megapixel_s * megapixels

    def videos(self, rate: float, count: int, *, frames: int, part_frames: int, megapixels: float) -> Videos:
        return Videos(
            rate=rate,
            frames=frames,
            part_frames=part_frames,
            frame_s=self.frame_megapixel_s * megapixels,
            part_s=self.part_s,
            join_s=self.join_s,
            megapixels=megapixels,
            count=count,
        )

    def video_mean_s(self, videos: Videos) -> float:
        return self.join_s + len(videos.parts) * self.part_s + videos.frames * videos.frame_s

    def redis_busy(
        self, *, workers: float, images_per_s: float = 0.0, parts_per_s: float = 0.0, at_work: float, unit_s: float
    ) -> float:
        """The share of Redis's one thread that a fleet keeps busy.

        Args:
            at_work: workers that have a job and tell of it.
            unit_s: how long a tile or frame takes: each is told, but no more than ten a second.
        """
        jobs = images_per_s * self.redis["image"] + parts_per_s * self.redis["part"]
        return workers * self.redis["worker"] + jobs + at_work * min(10, 1 / unit_s) * self.redis["report"]


MOST_SIMULATED = 20_000  # workers: beyond it takes minutes
FULL_HD = 1920 * 1080 / 1e6
TILES = 6  # of a full HD frame, 768 pixels a side
Row = dict[str, Any]


def image_rows(costs: Costs, fleets: Sequence[int], loads: Sequence[float], price: float, seed: int) -> Iterator[Row]:
    mean_s = costs.image_mean_s(FULL_HD)
    for workers in fleets:
        for load in loads:
            rate = load * workers / mean_s
            # Enough for the fleet to be full several times over, and no more than a minute's patience.
            count = max(20_000, 12 * workers)
            told = Fleet(workers, images=costs.images(rate, count, FULL_HD), seed=seed).run()
            busy = costs.redis_busy(
                workers=workers, images_per_s=rate, at_work=told.busy * workers, unit_s=mean_s / TILES
            )
            yield (
                {
                    "workers": workers,
                    "load": load,
                    "images_per_s": rate,
                    **_waits(told.image_waits_s),
                    "leased_p95_s": percentile_s(told.image_leases_s, 95),
                }
                | _cost(told, price)
                | {"redis_busy": busy}
            )


def part_rows(costs: Costs, fleets: Sequence[int], sizes: Sequence[int], price: float, seed: int) -> Iterator[Row]:
    """Videos of a minute, at seven tenths of what the fleet could do if parts cost nothing."""
    for workers in fleets:
        for size in sizes:
            one = costs.videos(1.0, 1, frames=1500, part_frames=size, megapixels=FULL_HD)
            rate = 0.7 * workers / (one.frames * one.frame_s)
            count = max(200, 2 * workers)
            videos = costs.videos(rate, count, frames=1500, part_frames=size, megapixels=FULL_HD)
            told = Fleet(workers, videos=videos, seed=seed).run()
            lone = Fleet(workers, videos=costs.videos(1e-9, 1, frames=1500, part_frames=size, megapixels=FULL_HD)).run()
            yield {
                "workers": workers,
                "part_frames": size,
                "alone_s": percentile_s(lone.video_took_s, 50),
                "video_p50_s": percentile_s(told.video_took_s, 50),
                "video_p95_s": percentile_s(told.video_took_s, 95),
                **_waits(told.part_waits_s),
                "busy": told.busy,
            } | _cost(told, price)


def lane_rows(costs: Costs, price: float, seed: int) -> Iterator[Row]:
    """Images beside videos, a third and half of the work: all workers for both, or some for each."""
    workers, mean_s = 100, costs.image_mean_s(FULL_HD)
    videos = costs.videos(1.0, 1, frames=1500, part_frames=61, megapixels=FULL_HD)
    for image_load, video_load, apart in ((0.33, 0.5, None), (0.33, 0.5, 58), (0.6, 0.3, None), (0.6, 0.3, 35)):
        video_rate = video_load * workers / costs.video_mean_s(videos)
        count = 400
        image_rate = image_load * workers / mean_s
        told = Fleet(
            workers,
            images=costs.images(image_rate, int(count * image_rate / video_rate), FULL_HD),
            videos=costs.videos(video_rate, count, frames=1500, part_frames=61, megapixels=FULL_HD),
            video_workers=apart,
            seed=seed,
        ).run()
        yield {
            "workers": "100 for both" if apart is None else f"{100 - apart} images, {apart} videos",
            "images": image_load,
            "videos": video_load,
            **_waits(told.image_waits_s),
            "video_p50_s": percentile_s(told.video_took_s, 50),
            "video_p95_s": percentile_s(told.video_took_s, 95),
        } | _cost(told, price)


def failure_rows(costs: Costs, price: float, seed: int) -> Iterator[Row]:
    for mean_h in (None, 24.0, 1.0, 0.25):
        failures = Failures(mean_s=mean_h * 3600) if mean_h else None
        for size in (24, 61, 240):
            one = costs.videos(1.0, 1, frames=1500, part_frames=size, megapixels=FULL_HD)
            rate = 0.6 * 100 / costs.video_mean_s(one)
            videos = costs.videos(rate, 400, frames=1500, part_frames=size, megapixels=FULL_HD)
            told = Fleet(100, videos=videos, failures=failures, seed=seed).run()
            yield {
                "workers": 100,
                "hours_between_deaths": mean_h or "never",
                "part_frames": size,
                "video_p50_s": percentile_s(told.video_took_s, 50),
                "video_p95_s": percentile_s(told.video_took_s, 95),
                "redelivered": told.redelivered,
                "given_up": told.given_up,
                "busy": told.busy,
            } | _cost(told, price)


def camera_rows(costs: Costs, price: float, seed: int) -> Iterator[Row]:
    """A thousand full HD cameras, by what is wanted of each; workers for 95 % of images begun within 5 s."""
    for what, every_s in (("an image every 60 s", 60.0), ("an image every 10 s", 10.0), ("an image every second", 1.0)):
        rate = 1000 / every_s
        workers, told = smallest(costs, rate, FULL_HD, wait_s=5.0, seed=seed)
        unit_s = costs.image_mean_s(FULL_HD) / TILES
        busy = costs.redis_busy(workers=workers, images_per_s=rate, at_work=told.busy * workers, unit_s=unit_s)
        yield (
            {"of each camera": what, "jobs_per_s": rate, "workers": workers, "busy": told.busy}
            | _waits(told.image_waits_s)
            | _cost(told, price)
            | {"price_per_hour": workers * price, "redis_busy": busy}
        )
    for what, seconds in (("10 s of video an hour", 10), ("all of its video, 25/s", 3600)):
        # In clips of ten seconds: 250 frames, five parts.
        one = costs.videos(1.0, 1, frames=250, part_frames=61, megapixels=FULL_HD)
        rate = 1000 * seconds / 10 / 3600
        workers = math.ceil(rate * costs.video_mean_s(one) / 0.8)
        parts_per_s = rate * len(one.parts)
        busy = costs.redis_busy(workers=workers, parts_per_s=parts_per_s, at_work=0.8 * workers, unit_s=one.frame_s)
        row = {"of each camera": what, "jobs_per_s": rate, "workers": workers, "busy": 0.8}
        bill = {"price_per_hour": workers * price, "redis_busy": busy}
        if workers > MOST_SIMULATED:
            yield row | dict.fromkeys([*_waits([]), "worker_hours", "price"], "not simulated") | bill
            continue
        videos = costs.videos(rate, max(400, 3 * workers), frames=250, part_frames=61, megapixels=FULL_HD)
        told = Fleet(workers, videos=videos, seed=seed).run()
        yield row | {"busy": told.busy} | _waits(told.part_waits_s) | _cost(told, price) | bill


def smallest(costs: Costs, rate: float, megapixels: float, *, wait_s: float, seed: int) -> tuple[int, Told]:
    """The fewest workers that begin 95 % of images within `wait_s`, and how they fare."""
    offered = rate * costs.image_mean_s(megapixels)
    # Low is too few, as more than 95 % busy is no plan; high is enough.
    low, high = math.ceil(offered / 0.95) - 1, max(2, math.ceil(offered * 1.5) + 2)
    count = max(5000, int(20 * offered))
    best = Fleet(high, images=costs.images(rate, count, megapixels), seed=seed).run()
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        told = Fleet(middle, images=costs.images(rate, count, megapixels), seed=seed).run()
        if percentile_s(told.image_waits_s, 95) <= wait_s:
            high, best = middle, told
        else:
            low = middle
    return high, best


def redis_rows(told: dict[str, Any]) -> Iterator[Row]:
    for name, step in told["redis"].items():
        yield {
            "step": name,
            "commands": step["commands"],
            "thread_ms": 1000 * step["redis_s"],
            "bears_per_s": 1 / step["redis_s"],
            "seen_per_s": step["seen_per_s"],
        }


def bound_rows(costs: Costs) -> Iterator[Row]:
    """Workers that keep 70 % of one Redis busy, by how fast a worker is beside the one measured."""
    for speed in (1, 10, 100):
        image_s, part_s = (
            costs.image_mean_s(FULL_HD) / speed,
            (costs.part_s + 61 * costs.frame_megapixel_s * FULL_HD) / speed,
        )
        idle = costs.redis["worker"]
        frame_s = costs.frame_megapixel_s * FULL_HD / speed
        images = 0.7 / costs.redis_busy(workers=1, images_per_s=1 / image_s, at_work=1, unit_s=image_s / TILES)
        parts = 0.7 / costs.redis_busy(workers=1, parts_per_s=1 / part_s, at_work=1, unit_s=frame_s)
        yield {
            "worker_speed": speed,
            "idle_workers": 0.7 / idle,
            "image_workers": images,
            "images_per_s": images / image_s,
            "part_workers": parts,
            "parts_per_s": parts / part_s,
        }


def _waits(waits_s: Sequence[float]) -> Row:
    return {f"wait_p{percent}_s": percentile_s(waits_s, percent) for percent in (50, 95, 99)}


def _cost(told: Told, price: float) -> Row:
    return {"worker_hours": told.worker_hours, "price": told.worker_hours * price}


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([_shown(row[head]) for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def against_service(arguments: argparse.Namespace) -> None:
    """The same load on real workers and simulated: what is compared are waits, in the same run."""
    import fleet_measure

    for workers in (1, 2):
        real = fleet_measure.beside_reality(
            model=arguments.model, workers=workers, load=0.6, count=arguments.count, seed=arguments.seed
        )
        mean_s = real["together_s"] * workers  # what a job takes of one worker while all are at work
        spread = fleet_measure.spread_of(real["alone_s"])

        def engine_s(rng: random.Random, mean_s: float = mean_s, spread: list[float] = spread) -> float:
            return mean_s * rng.choice(spread)

        waits = []
        for seed in range(20):
            came = real["arrivals"]
            gaps_s = [0.0, *(after - before for before, after in itertools.pairwise(came))]
            images = Images(rate=0.6 * workers / mean_s, engine_s=engine_s, count=len(came), gaps_s=gaps_s)
            told = Fleet(workers, images=images, seed=seed, warm_up=0.0).run()
            waits.append(told.image_waits_s)
        took = [wait + held for wait, held in zip(real["waited_s"], real["held_s"], strict=True)]
        print(
            f"{workers} real workers, {len(took)} images of {mean_s:.2f} s at 0.6 of what they can do, arriving alike:"
        )
        for percent in (50, 90):
            made = sorted(percentile_s(one, percent) for one in waits)[len(waits) // 2] + mean_s
            seen = percentile_s(took, percent)
            print(
                f"  coming to done, p{percent}: service {seen:.2f} s, simulation {made:.2f} s, ratio {seen / made:.2f}"
            )
        mean, made = sum(took) / len(took), sum(map(sum, waits)) / sum(map(len, waits)) + mean_s
        print(f"  in the mean: service {mean:.2f} s, simulation {made:.2f} s, ratio {mean / made:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="run the real service, write fleet.json")
    parser.add_argument("--against-service", action="store_true")
    parser.add_argument("--redis", action="store_true", help="measure Redis alone anew, without writing")
    parser.add_argument("--price", type=float, default=0.05, help="of a worker for an hour, in whatever money")
    parser.add_argument("--most", type=int, default=10_000, help="largest fleet")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="fitvnet-spatial")
    parser.add_argument("--count", type=int, default=40, help="images for --against-service")
    parser.add_argument("--measured", type=Path, default=MEASURED)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    if arguments.measure:
        import fleet_measure

        def save(told: dict[str, Any]) -> None:
            arguments.measured.write_text(json.dumps(told, indent=1) + "\n")

        fleet_measure.measure(model=arguments.model, frames=32, idle_s=10, save=save)
        return
    if arguments.against_service:
        against_service(arguments)
        return
    if arguments.redis:
        import fleet_measure

        print(json.dumps(fleet_measure.redis_bears(500), indent=1))
        return
    told = json.loads(arguments.measured.read_text())
    costs, price, seed = Costs.of(told), arguments.price, arguments.seed
    fleets = [workers for workers in (1, 10, 100, 1000, 10_000) if workers <= arguments.most]
    print(f"measured on {told['machine']}, model {told['model']}: {told['images'][0]['ran']}")
    print(f"a full HD image {costs.image_mean_s(FULL_HD):.2f} s, a frame {costs.frame_megapixel_s * FULL_HD:.2f} s\n")
    tables = {
        "images of full HD": image_rows(costs, fleets, (0.5, 0.8, 0.9, 0.95), price, seed),
        "videos of 1500 frames, by parts": part_rows(costs, fleets[:3], (24, 61, 240, 1500), price, seed),
        "images and videos": lane_rows(costs, price, seed),
        "workers that die": failure_rows(costs, price, seed),
        "a thousand cameras": camera_rows(costs, price, seed),
        "Redis, step by step": redis_rows(told),
        "workers for one Redis": bound_rows(costs),
    }
    made: dict[str, Any] = {"costs": asdict(costs), "price": price}
    for name, rows in tables.items():
        made[name] = list(rows)
        print(f"{name}\n\n{table(made[name])}\n", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
