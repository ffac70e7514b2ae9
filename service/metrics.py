"""What the API process tells Prometheus, and how the queue's figures get there.

Only the API exports queue figures: the same gauge from every worker would be summed by whoever scales on it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from service.telemetry import tracing

# Or each figure had a series more, of when it was first told, and nobody asks for that.
disable_created_metrics()  # type: ignore[no-untyped-call]

_OPENMETRICS = "application/openmetrics-text; version=1.0.0"

# From a status poll to a long synchronous image or an upload over a slow line.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

_OUTCOMES = {"succeeded", "failed", "cancelled"}  # `expired` comes after the end: each such job succeeded before


class LaneFigures(Protocol):
    """How one lane stands."""

    @property
    def queued(self) -> int: ...

    @property
    def in_flight(self) -> int: ...

    @property
    def oldest_age_s(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFigures:
    """What the broker said last; `up` is whether it answered at all."""

    up: bool = False
    lanes: Mapping[str, LaneFigures] = field(default_factory=dict)
    counters: Mapping[tuple[str, str], float] = field(default_factory=dict)  # (name, lane) -> since the broker's birth
    about: Mapping[str, str] = field(default_factory=dict)  # what each counter's name means
    workers_ready: int = 0
    slots: Mapping[str, int] = field(default_factory=dict)  # lane -> jobs of it that the workers do at once
    backlog_s: Mapping[str, float] = field(default_factory=dict)  # lane -> work accepted; those measured only
    most_queued: int = 0  # in a lane


class ApiMetrics:
    """One registry an app, so that two apps in one process do not count for each other."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._queue = _QueueCollector()
        self._registry.register(self._queue)
        ProcessCollector(registry=self._registry)
        self._requests = Histogram(
            "denoise_http_request_duration_seconds",
            "From the request's first byte to the answer's last.",
            ("route", "method", "status"),
            buckets=_SECONDS,
            registry=self._registry,
        )

        self._calls = Histogram(
            "denoise_grpc_request_duration_seconds",
            "From the call's arrival to its end; streams count as long as they are open.",
            ("method", "code"),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def call_took(self, seconds: float, *, method: str, code: str) -> None:
        """Count a gRPC call; `method` is one of ours (`quietframe.v1.Denoiser/GetJob`)."""
        self._calls.labels(method, code).observe(seconds, tracing.exemplar())

    def request_took(self, seconds: float, *, route: str, method: str, status: int) -> None:
        """Count a request; `route` is the template (`/jobs/{job_id}`), never the path, which has no end of values."""
        self._requests.labels(route, method, str(status)).observe(seconds, tracing.exemplar())

    def exposition(self, figures: QueueFigures, accept: str | None = None) -> tuple[bytes, str]:
        """The text of now and its media type: OpenMetrics, unless a scraper asks for Prometheus' older text."""
        self._queue.figures = figures
        encode, media_type = choose_encoder(accept if accept and "text/plain" in accept else _OPENMETRICS)
        return encode(self._registry), media_type


class _QueueCollector(Collector):
    """Hands on figures fetched before: a collector is called outside the event loop's reach and cannot ask Redis."""

    def __init__(self) -> None:
        self.figures = QueueFigures()

    def collect(self) -> Iterator[Metric]:
        figures = self.figures
        yield GaugeMetricFamily("denoise_broker_up", "Whether the broker answered.", value=float(figures.up))
        if not figures.up:
            return  # no figure is better than a stale one: zero would scale the workers down
        queued = GaugeMetricFamily("denoise_jobs_queued", "Jobs that wait for a worker.", labels=["lane"])
        in_flight = GaugeMetricFamily("denoise_jobs_in_flight", "Jobs that a worker has.", labels=["lane"])
        oldest = GaugeMetricFamily(
            "denoise_oldest_job_age_seconds", "How long the oldest waiting job waits.", labels=["lane"]
        )
        for lane, depth in figures.lanes.items():
            queued.add_metric([lane], depth.queued)
            in_flight.add_metric([lane], depth.in_flight)
            oldest.add_metric([lane], depth.oldest_age_s)
        slots = GaugeMetricFamily(
            "denoise_lane_slots", "Jobs of the lane that the live workers do at once.", labels=["lane"]
        )
        backlog = GaugeMetricFamily(
            "denoise_lane_backlog_seconds",
            "How long the live workers need for all that the lane has accepted; absent until a speed was measured.",
            labels=["lane"],
        )
        for lane in figures.lanes:
            slots.add_metric([lane], figures.slots.get(lane, 0))
        for lane, seconds in figures.backlog_s.items():
            backlog.add_metric([lane], seconds)
        yield from (queued, in_flight, oldest, slots, backlog)
        yield GaugeMetricFamily(
            "denoise_jobs_queued_limit", "Jobs that may wait in a lane; more are refused.", value=figures.most_queued
        )
        yield from _counters(figures)
        ready = GaugeMetricFamily("denoise_workers_ready", "Workers that take jobs.", value=figures.workers_ready)
        yield ready


def _counters(figures: QueueFigures) -> Iterator[Metric]:
    """The broker's own sums: how jobs ended by kind and outcome, and everything else by lane.

    What has not happened yet is told as zero: of a series that begins at one, no rate and no increase is seen.
    """
    kinds = {lane.partition(".")[0] for lane in figures.lanes}
    ended = {(kind, outcome): 0.0 for kind in sorted(kinds) for outcome in sorted(_OUTCOMES)}
    sums: dict[str, dict[str, float]] = {
        name: dict.fromkeys(figures.lanes, 0.0) for name in figures.about if name not in _OUTCOMES
    }
    for (name, lane), value in sorted(figures.counters.items()):
        if name in _OUTCOMES:
            kind = lane.partition(".")[0]
            ended[kind, name] = ended.get((kind, name), 0.0) + value
        else:
            sums.setdefault(name, {})[lane] = value
    jobs = CounterMetricFamily("denoise_jobs", "Jobs that came to an end.", labels=["kind", "outcome"])
    for labels, value in ended.items():
        jobs.add_metric(labels, value)
    yield jobs
    for name, by_lane in sums.items():
        family = f"denoise_job_{name}" if name.endswith("_seconds") else f"denoise_jobs_{name}"
        about = f"Told by the broker: {figures.about.get(name, name)}."
        told = CounterMetricFamily(family, about, labels=["lane"])
        for lane, value in by_lane.items():
            told.add_metric([lane], value)
        yield told
