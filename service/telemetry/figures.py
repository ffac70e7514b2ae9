"""What a worker process tells Prometheus of its work. How full the queue is only the API tells."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from service.telemetry import tracing

# Or each figure had a series more, of when it was first told, and nobody asks for that.
disable_created_metrics()  # type: ignore[no-untyped-call]

# From a small image's encoding to an hour's part of a long video.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 3600)
_RUN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_TILES = (1, 2, 4, 8, 16, 32, 64)
_PSNR_DB = (15, 20, 22.5, 25, 27.5, 30, 32.5, 35, 37.5, 40, 45, 50)

# How a lease ends. A part of a video that is done succeeded, and so did the joining of all of them.
OUTCOMES = ("succeeded", "divided", "undivided", "refused", "failed", "cancelled", "handed_back", "lost")
ENGINE_OUTCOMES = ("opened", "built", "refused", "failed")
MEMORY_STEPS = ("batch", "tile", "cpu", "none")  # what gave way; `none`: nothing was left to


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What labels tell of a piece of work: each of them has few values."""

    lane: str
    model: str
    backend: str
    precision: str


class Held:
    """A lease in work."""

    outcome: str = "failed"  # stays, if nobody says


class WorkerFigures:
    """One registry a process. Any thread may tell; telling costs microseconds."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ("lane", "model", "backend", "precision")
        of = self._registry
        ProcessCollector(registry=of)
        self._ready = Gauge("denoise_worker_ready", "Whether the worker is warm and takes jobs.", registry=of)
        self._busy = _Busy()
        of.register(self._busy)
        self._waited = Histogram(
            "denoise_lease_wait_seconds",
            "From a job's entering its lane to this worker's taking it.",
            ("lane",),
            buckets=_SECONDS,
            registry=of,
        )
        self._held = Histogram(
            "denoise_lease_duration_seconds",
            "From taking a job, or a part of one, to its end here.",
            ("lane", "outcome"),
            buckets=_SECONDS,
            registry=of,
        )
        self._stages = Histogram(
            "denoise_stage_duration_seconds",
            "Time that a job, or a part of one, spent in a stage: decode, infer or encode. Stages of videos overlap.",
            ("stage", *labels),
            buckets=_SECONDS,
            registry=of,
        )
        self._pixels = Counter(
            "denoise_restored_pixels", "Pixels of pictures and frames that were restored.", labels, registry=of
        )
        self._frames = Counter(
            "denoise_restored_frames",
            "Frames of videos and live streams, and pictures, that were restored.",
            labels,
            registry=of,
        )
        self._psnr = Histogram(
            "denoise_result_psnr_db",
            "PSNR of results that came with a clean reference; the decibel is a ratio.",
            ("model",),
            buckets=_PSNR_DB,
            registry=of,
        )
        self._runs = Histogram(
            "denoise_engine_run_duration_seconds",
            "One run of an engine on a batch of tiles, without waiting for its turn.",
            ("model", "backend", "precision"),
            buckets=_RUN_SECONDS,
            registry=of,
        )
        self._batches = Histogram(
            "denoise_engine_batch_tiles",
            "Tiles that an engine was given at a time.",
            ("backend", "precision"),
            buckets=_TILES,
            registry=of,
        )
        self._memory = Counter(
            "denoise_out_of_memory",
            "Times that an engine's device ran out of memory, and what gave way: batch, tile, cpu, or none.",
            ("backend", "step"),
            registry=of,
        )
        self._loaded = Gauge(
            "denoise_models_loaded",
            "Models that are loaded, by what runs them.",
            ("model", "backend", "precision"),
            registry=of,
        )
        self._shown: set[tuple[str, str, str]] = set()
        self._engines = Counter(
            "denoise_engines",
            "Engines that were opened, built, refused for straying from float32, or failed.",
            ("backend", "precision", "outcome"),
            registry=of,
        )
        self._streams = Gauge("denoise_live_streams", "Live streams that the worker has.", registry=of)
        self._most_streams = Gauge(
            "denoise_live_streams_limit", "Live streams that the worker takes at once.", registry=of
        )
        self._builds = Histogram(
            "denoise_engine_build_duration_seconds",
            "Building an engine beside the work.",
            buckets=_SECONDS,
            registry=of,
        )

    def exposition(self, accept: str | None) -> tuple[bytes, str]:
        """The text of now and its media type, in the form that a scraper asks for."""
        encode, media_type = choose_encoder(accept or "")
        return encode(self._registry), media_type

    @property
    def is_busy(self) -> bool:
        """Whether any slot has a job."""
        return self._busy.is_any

    def is_ready(self, ready: bool) -> None:
        self._ready.set(ready)

    def begin(self, slots: Mapping[int, Sequence[str]]) -> None:
        """The worker takes jobs from now on.

        Args:
            slots: number -> its lanes. Counters of all of them are told from zero: a rate has to see where it began.
        """
        self._busy.begin(slots)
        for lane in {lane for lanes in slots.values() for lane in lanes}:
            self._waited.labels(lane)
            for outcome in OUTCOMES:
                self._held.labels(lane, outcome)

    @contextmanager
    def lease(self, slot: int, lane: str, waited_s: float) -> Iterator[Held]:
        """Around the work on a lease; who knows how it ended says so in what is given."""
        self._waited.labels(lane).observe(waited_s)
        held, began = Held(), time.monotonic()
        self._busy.starts(slot)
        try:
            yield held
        finally:
            self._busy.ends(slot)
            self._held.labels(lane, held.outcome).observe(time.monotonic() - began, tracing.exemplar())

    def restored(self, work: Work, *, frames: int, pixels: int, seconds: Mapping[str, float]) -> None:
        """A job, a part of one, or a live frame is restored, whatever comes of its lease.

        Args:
            work: which.
            frames: of a video; 1 of an image.
            pixels: in all.
            seconds: by stage.
        """
        labels = (work.lane, work.model, work.backend, work.precision)
        self._frames.labels(*labels).inc(frames)
        self._pixels.labels(*labels).inc(pixels)
        for stage, spent in seconds.items():
            self._stages.labels(stage, *labels).observe(spent)

    def takes_streams(self, most: int) -> None:
        self._most_streams.set(most)

    def stream_came(self) -> None:
        self._streams.inc()

    def stream_left(self) -> None:
        self._streams.dec()

    def measured(self, model: str, psnr_db: float) -> None:
        self._psnr.labels(model).observe(psnr_db)

    def ran(self, model: str, backend: str, precision: str, tiles: int, seconds: float) -> None:
        """An engine ran once."""
        self._runs.labels(model, backend, precision).observe(seconds)
        self._batches.labels(backend, precision).observe(tiles)

    def ran_out_of_memory(self, backend: str, step: str) -> None:
        self._memory.labels(backend, step).inc()

    def loaded(self, models: Mapping[str, tuple[str, str]]) -> None:
        """All models that are loaded now: name -> backend and precision."""
        now = {(name, *runs_on) for name, runs_on in models.items()}
        for gone in self._shown - now:
            self._loaded.remove(*gone)
        for labels in now:
            self._loaded.labels(*labels).set(1)
        self._shown = now

    def engine(self, backend: str, precision: str, outcome: str, *, count: int = 1) -> None:
        """What came of an engine; the other outcomes are told from zero on."""
        for other in ENGINE_OUTCOMES:
            self._engines.labels(backend, precision, other)
        for step in MEMORY_STEPS:
            self._memory.labels(backend, step)
        self._engines.labels(backend, precision, outcome).inc(count)

    def built(self, seconds: float) -> None:
        self._builds.observe(seconds)


class _Busy(Collector):
    """How long each slot has been at work, up to now: a video of an hour counts while it runs, not when it ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spent: dict[int, float] = {}
        self._since: dict[int, float] = {}

    @property
    def is_any(self) -> bool:
        with self._lock:
            return bool(self._since)

    def begin(self, slots: Iterable[int]) -> None:
        with self._lock:
            self._spent = dict.fromkeys(slots, 0.0)

    def starts(self, slot: int) -> None:
        with self._lock:
            self._since[slot] = time.monotonic()

    def ends(self, slot: int) -> None:
        with self._lock:
            self._spent[slot] = self._spent.get(slot, 0.0) + time.monotonic() - self._since.pop(slot)

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            now = time.monotonic()
            spent = {slot: done + now - self._since.get(slot, now) for slot, done in self._spent.items()}
        busy = CounterMetricFamily(
            "denoise_slot_busy_seconds",
            "Time that a slot of the worker had a job, the one in hand included.",
            labels=["slot"],
        )
        for slot, seconds in sorted(spent.items()):
            busy.add_metric([str(slot)], seconds)
        yield busy
