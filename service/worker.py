"""Takes jobs off the broker, denoises them, and hands in what came of it.

A worker process has a few slots, each a thread with a lease of its own: while one job holds the engine, the others
decode and encode. Images have slots to themselves, so a long video never stands in their way.
"""

import errno
import io
import logging
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypedDict

from service.blobs import Blob, BlobStore, open_store
from service.broker.card import ModelReady, WorkerCard
from service.broker.janitor import Janitor
from service.broker.lease import Lease, LeaseClient
from service.errors import BadInput, Indivisible, JobCancelled, LeaseLost, NotReady, ResultGone, problem_of
from service.isolation import Isolation, Occupied
from service.job import FrameTableBlob, Job, Lane, Metrics, Outcome, Part, PartOutcome, Preview, Progress, Result
from service.live.host import LiveHost
from service.media.still import CONTENT_TYPE as STILL_TYPE
from service.pipeline.denoiser import Denoiser, Tally
from service.pipeline.images import DenoisedImage, denoise_image
from service.pipeline.progress import OnProgress
from service.pipeline.shelf import Shelf
from service.pipeline.turns import Urgency
from service.pipeline.videos import (
    DenoisedVideo,
    denoise_part,
    denoise_video,
    join_parts,
    notes_of,
    plan_parts,
    still_of,
)
from service.sandbox.decoder import warm_up
from service.settings import Settings
from service.telemetry import logs, tracing
from service.telemetry.endpoint import Answers, Endpoint
from service.telemetry.figures import Held, Work, WorkerFigures
from service.webhooks.delivery import Courier
from trtbuild.engine import EngineFailed

log = logging.getLogger(__name__)

# Two slots for images: one decodes and encodes while the other has the engine; more would only queue for it.
SLOTS: tuple[tuple[Lane, ...], ...] = (
    (Lane.IMAGE_INTERACTIVE, Lane.IMAGE_BATCH),
    (Lane.IMAGE_INTERACTIVE, Lane.IMAGE_BATCH),
    (Lane.VIDEO_JOIN, Lane.VIDEO, Lane.VIDEO_PART),
)
TAKE_TURNS = {Lane.VIDEO, Lane.VIDEO_PART}  # neither new videos nor those begun may keep the others waiting
WAIT_S = 2.0  # a blocking read lasts no longer, so that a stop is seen
REPORT_EVERY_S = 0.1
RECONNECT_S = 1.0
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PAUSE_S = 2.0  # while what the job needs is away
MOST_PAUSES = 100  # then its attempts count: what never comes back must end too
_STOPS = "this worker stops"
STUCK_S = 120.0  # a slot that has no job looks for one more often than that, whatever the broker does
_OWN_SPOOL = f"video-{socket.gethostname()}."  # then the process, so that a killed worker's files are known as such
URGENCY = {Lane.IMAGE_INTERACTIVE: Urgency.INTERACTIVE, Lane.IMAGE_BATCH: Urgency.BATCH}


def slots_for(wanted: Collection[Lane]) -> list[list[Lane]]:
    """The lanes that each slot looks at; slots that would look at none are left out."""
    slots = [[lane for lane in lanes if lane in wanted] for lanes in SLOTS]
    return [lanes for lanes in slots if lanes]


class Ran(TypedDict):
    """How a job was run, as its document tells."""

    backend: str
    precision: str
    notes: list[str]


class _HandBack(Exception):
    """Somebody else should do the job, or this worker later; the words say why."""


@dataclass
class Stop:
    """Whether to stop, and until when the work in hand may go on."""

    asked: Event = field(default_factory=Event)
    deadline: float = float("inf")

    def ask(self, drain_s: float) -> None:
        self.deadline = min(self.deadline, time.monotonic() + drain_s)
        self.asked.set()


class Worker:
    """One process's share of the work."""

    def __init__(self, settings: Settings, broker_url: str) -> None:
        self._settings, self._url = settings, broker_url
        self._id = f"{socket.gethostname()}-{os.getpid()}-{random.randrange(16**4):04x}"  # noqa: S311 - a name
        self._blobs: BlobStore = open_store(settings)
        self._spool = settings.data_dir / "spool"
        self._spool.mkdir(parents=True, exist_ok=True)
        _clear_after_the_dead(self._spool)
        self._figures = WorkerFigures()
        self._shelf = Shelf(settings, makes_store=True, figures=self._figures)
        self._isolation = Isolation()
        self._looked: dict[int, float] = {}  # slots without a job: when each last looked for one
        self._live: LiveHost | None = None
        self._failed = False

    @contextmanager
    def endpoint(self, stop: Stop) -> Iterator[None]:
        """Answer scrapers and probes meanwhile, where a port is set; the work goes on without it where it is taken."""
        port = self._settings.worker_metrics_port
        if port is None:
            yield
            return
        answers = Answers(
            figures=partial(self._exposition, stop),
            alive=partial(self._what_is_wrong, stop),
            ready=partial(self._what_is_awaited, stop),
        )
        try:
            opened = Endpoint(self._settings.host, port, answers)
        except OSError as err:
            log.error("this worker's figures are not to be had: port %d: %s", port, err.strerror or err)
            yield
            return
        with opened:
            yield

    def _exposition(self, stop: Stop, accept: str | None) -> tuple[bytes, str]:
        self._figures.is_ready(self._what_is_awaited(stop) is None)
        return self._figures.exposition(accept)

    def _what_is_wrong(self, stop: Stop) -> str | None:
        """For the probe that has a worker killed: never about the broker."""
        if self._failed:
            return "something broke, and the worker is about to end"
        if stop.asked.is_set():
            return None
        longest = max((time.monotonic() - looked for looked in list(self._looked.values())), default=0.0)
        return f"a slot without a job has not looked for one for {longest:.0f} s" if longest > STUCK_S else None

    def _what_is_awaited(self, stop: Stop) -> str | None:
        if stop.asked.is_set():
            return "stopping"
        return None if self._looked or self._figures.is_busy else "models are being loaded"

    def run(self, stop: Stop) -> bool:
        """Work until asked to stop and the work in hand is done or handed back; False if something broke instead.

        Raises:
            BackendUnavailable: a denoiser cannot run here.
            CannotHost: live streams cannot come in where they are to.
        """
        started = time.time()
        slots = slots_for(self._settings.worker_lanes)
        warm_up(self._settings)
        ready = self._shelf.warm_up(self._settings.warm_models)
        if self._settings.live_streams:
            self._live = LiveHost(self._settings, self._shelf, lambda: self._give_up(stop), self._figures)
        card = WorkerCard(
            id=self._id,
            pid=os.getpid(),
            host=socket.gethostname(),
            started_at=started,
            slots={lane: sum(lane in lanes for lanes in slots) for lane in Lane},
            ready=True,
        )
        self._figures.begin({number: list(lanes) for number, lanes in enumerate(slots)})
        log.info("worker %s is ready: %s", self._id, ", ".join(f"{n} on {d.backend}" for n, d in ready.items()))
        janitor = Janitor(self._url, self._settings, self._blobs)
        threads = [Thread(target=janitor.run_forever, args=(stop.asked,), name="janitor")]
        threads += [Thread(target=self._shelf.improve, args=(stop.asked,), name="engines")]
        courier = Courier(self._url, self._settings)
        threads += [Thread(target=courier.run_forever, args=(stop.asked,), name="webhooks")]
        threads += [Thread(target=_end_streams, args=(host, stop), name="live-end") for host in [self._live] if host]
        threads += [
            Thread(target=self._slot, args=(number, lanes, card if number == 0 else None, stop), name=f"slot-{number}")
            for number, lanes in enumerate(slots)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(WAIT_S)  # a signal in the moment before a wait without end would not be heard
        janitor.close()
        return not self._failed

    def _slot(self, number: int, lanes: Sequence[Lane], card: WorkerCard | None, stop: Stop) -> None:
        """Take jobs one after the other until asked to stop. The slot that has the card shows it."""
        try:
            shown: WorkerCard | None = None
            with LeaseClient(self._url, self._settings, f"{self._id}-{number}") as client:
                while not stop.asked.is_set():
                    self._looked[number] = time.monotonic()
                    if not self._isolation.is_open(WAIT_S):
                        continue
                    try:
                        # From then on the heartbeat shows it, until a model is loaded or a live stream comes or goes.
                        if card and (now := self._as_it_stands(card)) != shown:
                            client.announce(now)
                            shown = now
                        lease = client.lease(lanes, WAIT_S)
                    except NotReady as err:
                        log.warning("the broker is away: %s", err)
                        stop.asked.wait(RECONNECT_S)
                        continue
                    if lease:
                        del self._looked[number]
                        with self._accounted(number, lease) as held:
                            held.outcome = self._settle(client, lease, stop)
                        lanes = _turned(lanes, lease.lane)
        except Exception:
            # A worker that lives on with a slot less looks healthy and is not: end it all, and be started again.
            log.exception("slot %d died", number)
            self._give_up(stop)

    def _give_up(self, stop: Stop) -> None:
        """End, and be started again."""
        self._failed = True
        stop.ask(self._settings.drain_s)

    def _as_it_stands(self, card: WorkerCard) -> WorkerCard:
        loaded = self._shelf.loaded()
        models = {name: ModelReady(backend=one.backend, precision=one.precision) for name, one in loaded.items()}
        return card.model_copy(update={"models": models, "live": self._live.place if self._live else None})

    @contextmanager
    def _accounted(self, slot: int, lease: Lease) -> Iterator[Held]:
        """Around the work on a lease: what is told meanwhile, in figures, spans and lines, is told of its job."""
        job = lease.job
        about: dict[str, Any] = {"job": job.id, "attempt": lease.attempt, "fence": lease.fence}
        if lease.part:
            about["part"] = lease.part.index
        tracing.told("wait in queue", lease.waited_s, under=job.trace, **about)
        with (
            tracing.span("process", "consumer", under=job.trace, **about) as span,
            logs.about(**about),
            self._figures.lease(slot, lease.lane, lease.waited_s) as held,
        ):
            span.tell(lane=lease.lane, model=job.model)
            yield held
            span.tell(outcome=held.outcome)
            if held.outcome == "failed":
                span.fail("the attempt failed; the worker's log says why")
            log.debug("job %s: attempt %d: %s", lease.id, lease.attempt, held.outcome)

    def _settle(self, client: LeaseClient, lease: Lease, stop: Stop) -> str:
        """Every lease ends in exactly one way, and that is told."""
        outcome = "failed"
        try:
            try:
                with self._isolation.entered(alone=self._is_last(lease), heed=partial(_heed_at_once, lease, stop)):
                    end = self._work(client, lease, stop)
            except JobCancelled:
                client.cancelled(lease)
                outcome = "cancelled"
            except (_HandBack, Occupied) as err:
                log.info("job %s: handed back: %s", lease.id, err)
                client.release(lease)
                outcome = "handed_back"
            except Indivisible as err:  # only parts and joins raise it
                log.warning("job %s: to be done as one: %s", lease.job.id, err)
                client.undivide(lease)
                outcome = "undivided"
            except BadInput as err:
                # Trying again would fail again: straight to the dead letters.
                client.bury(lease, problem_of(err))
                outcome = "refused"
            except LeaseLost:
                raise
            except EngineFailed as err:
                # What has failed on a GPU once fails until the process is another: end, and be started again.
                log.exception("job %s: attempt %d: an engine failed", lease.id, lease.attempt)
                client.retry(lease, err)
                self._give_up(stop)
            except Exception as err:
                if _is_no_fault_of_the_job(err) and lease.fence - lease.attempt < MOST_PAUSES:
                    log.warning("job %s: handed back: %s", lease.id, err)
                    stop.asked.wait(PAUSE_S)  # with the lease in hand, or others would try in vain at once
                    client.release(lease)
                    outcome = "handed_back"
                else:
                    log.exception("job %s: attempt %d failed", lease.id, lease.attempt)
                    client.retry(lease, err)
            else:
                with tracing.span("hand in"):
                    end()
                outcome = "divided" if end is _nothing_more else "succeeded"
        except LeaseLost:
            log.warning("job %s: attempt %d was given to another worker", lease.id, lease.attempt)
            outcome = "lost"
        except NotReady as err:
            # The lease runs out and the job is done again: at least once is what is promised.
            log.warning("job %s: its end could not be told, the broker is away: %s", lease.id, err)
            outcome = "lost"
        return outcome

    def _is_last(self, lease: Lease) -> bool:
        """Whether it has no attempt left after this, though it had others."""
        return 1 < self._settings.max_attempts <= lease.attempt

    def _work(self, client: LeaseClient, lease: Lease, stop: Stop) -> Callable[[], None]:
        """Do what the lease is for; what is returned hands it in."""
        job, on_progress = lease.job, _watched(client, lease, stop)
        denoiser = self._shelf.denoiser(job.model).of(job.options.ensemble)
        with ExitStack() as kept:
            source = kept.enter_context(self._blobs.fetch(job.input_blob))
            if job.kind == "image":
                outcome = self._image(denoiser, lease, source, on_progress)
                return lambda: client.ack(lease, outcome)
            folder = tempfile.TemporaryDirectory(prefix=f"{_OWN_SPOOL}{os.getpid()}-", dir=self._spool)
            target = Path(kept.enter_context(folder)) / "result"
            if lease.part:
                done = self._part(denoiser, lease, lease.part, source, target, on_progress)
                return lambda: client.part_done(lease, done)
            if lease.parts:
                outcome = self._joined(client.parts_of(lease), lease, source, target, partial(_heed, lease, stop))
                return lambda: client.ack(lease, outcome)
            parts = self._plan(denoiser, lease, source)
            if len(parts) > 1:
                self._show(client, lease, still_of(denoiser, source, job.options, self._settings, parts[0].fields))
                client.divide(lease, parts)
                return _nothing_more
            outcome = self._video(denoiser, lease, source, target, on_progress, partial(self._show, client, lease))
            return lambda: client.ack(lease, outcome)

    def _image(self, denoiser: Denoiser, lease: Lease, source: Path, on_progress: OnProgress) -> Outcome:
        job, tally = lease.job, Tally()
        with self._reference(job) as reference:
            made = denoise_image(
                denoiser,
                source,
                job.options,
                self._settings,
                reference=reference,
                urgency=URGENCY[job.lane],
                on_progress=on_progress,
                tally=tally,
            )
        self._count(lease, _ran(denoiser, tally), 1, made.metrics)
        return _outcome(lease, made, self._blobs.put(io.BytesIO(made.data)), _ran(denoiser, tally))

    def _video(
        self,
        denoiser: Denoiser,
        lease: Lease,
        source: Path,
        target: Path,
        on_progress: OnProgress,
        on_still: Callable[[bytes], None],
    ) -> Outcome:
        job, tally = lease.job, Tally()
        with self._reference(job) as reference:
            made = denoise_video(
                denoiser,
                source,
                target,
                job.options,
                self._settings,
                reference=reference,
                on_progress=on_progress,
                on_still=on_still,
                tally=tally,
            )
        self._count(lease, _ran(denoiser, tally), made.frames, made.metrics)
        return self._with_frames(
            _outcome(lease, made, self._blobs.put_file(target), _ran(denoiser, tally)), made.per_frame
        )

    def _plan(self, denoiser: Denoiser, lease: Lease, source: Path) -> list[Part]:
        """The parts to do a video in; none where it is done as one."""
        if lease.whole or lease.job.reference_blob:  # a reference is paired frame by frame, from the first on
            return []
        try:
            return plan_parts(denoiser, source, lease.job.input, self._settings, lease.job.options.scan)
        except Indivisible as err:
            log.info("job %s: done as one: %s", lease.job.id, err)
            return []

    def _part(
        self, denoiser: Denoiser, lease: Lease, part: Part, source: Path, target: Path, on_progress: OnProgress
    ) -> PartOutcome:
        made = denoise_part(denoiser, source, target, part, lease.job.options, self._settings, on_progress=on_progress)
        self._count(lease, _ran(denoiser, made.tally), made.frames, Metrics(seconds=made.seconds))
        return PartOutcome(
            blob=self._blobs.put_file(target).name,
            frames=made.frames,
            removed_power=made.tally.removed_power,
            values=made.tally.values,
            seconds=made.seconds.model_copy(update={"queue": lease.waited_s}),
            **_ran(denoiser, made.tally),
            lost=made.lost,
            sampled=made.sampled,
            frame_table=self._blobs.put(io.BytesIO(made.per_frame)).name,
        )

    def _joined(
        self, parts: Sequence[PartOutcome], lease: Lease, source: Path, target: Path, heed: Callable[[], None]
    ) -> Outcome:
        with ExitStack() as fetched:
            files, tables = [], []
            for part in parts:
                heed()
                try:
                    files.append(fetched.enter_context(self._blobs.fetch(part.blob)))
                    if part.frame_table:
                        tables.append(fetched.enter_context(self._blobs.fetch(part.frame_table)).read_bytes())
                except ResultGone as err:
                    raise Indivisible(f"a part is lost: {err}") from err
            options = lease.job.options
            made = join_parts(parts, files, source, target, options, self._settings, tables=tables, heed=heed)
        # Workers may differ; what did a part is told, each once.
        backend, precision = (
            "+".join(sorted(set(names))) for names in zip(*{(p.backend, p.precision) for p in parts}, strict=True)
        )
        ran: Ran = {"backend": backend, "precision": precision, "notes": notes_of(parts)}
        return self._with_frames(_outcome(lease, made, self._blobs.put_file(target), ran), made.per_frame)

    def _count(self, lease: Lease, ran: Ran, frames: int, measured: Metrics) -> None:
        """Something is restored, whatever comes of the lease."""
        job, spent = lease.job, measured.seconds
        self._figures.restored(
            Work(lane=lease.lane, model=job.model, backend=ran["backend"], precision=ran["precision"]),
            frames=frames,
            pixels=job.input.width * job.input.height * frames,
            seconds={"decode": spent.decode, "infer": spent.infer, "encode": spent.encode},
        )
        if measured.psnr_db is not None:
            self._figures.measured(job.model, measured.psnr_db)

    def _with_frames(self, outcome: Outcome, table: bytes) -> Outcome:
        blob = self._blobs.put(io.BytesIO(table))
        kept = FrameTableBlob(blob=blob.name, bytes=blob.bytes, sha256=blob.sha256)
        return outcome.model_copy(update={"per_frame": kept})

    @contextmanager
    def _reference(self, job: Job) -> Iterator[Path | None]:
        if job.reference_blob is None:
            yield None
            return
        with self._blobs.fetch(job.reference_blob) as path:
            yield path

    def _show(self, client: LeaseClient, lease: Lease, still: bytes) -> None:
        blob = self._blobs.put(io.BytesIO(still))
        client.preview(
            lease,
            Preview(blob=blob.name, content_type=STILL_TYPE, bytes=blob.bytes, sha256=blob.sha256),
        )


def _end_streams(host: LiveHost, stop: Stop) -> None:
    """When the worker stops, with as much time for their last frames as jobs have."""
    stop.asked.wait()
    host.stop(max(0.0, stop.deadline - time.monotonic()))


def _is_no_fault_of_the_job(err: Exception) -> bool:
    """A full disk or a store that is away must not use up the attempts."""
    return isinstance(err, NotReady) or (isinstance(err, OSError) and err.errno in NO_ROOM)


def _turned(lanes: Sequence[Lane], taken: Lane) -> list[Lane]:
    """The lanes in the order to look at them next: of those that take turns, the one just taken from comes last."""
    if taken not in TAKE_TURNS:
        return list(lanes)
    first = [lane for lane in lanes if lane not in TAKE_TURNS]
    return [*first, *(lane for lane in lanes if lane in TAKE_TURNS and lane is not taken), taken]


def _heed(lease: Lease, stop: Stop) -> None:
    """End work that has no progress to tell of, when the lease, the owner's wish or the worker ends."""
    if lease.lost.is_set():
        raise LeaseLost(f"job {lease.id}")
    if lease.cancelled.is_set():
        raise JobCancelled(f"job {lease.id}")
    if stop.asked.is_set() and time.monotonic() > stop.deadline:
        raise _HandBack(_STOPS)


def _heed_at_once(lease: Lease, stop: Stop) -> None:
    """End the wait for work to begin."""
    if stop.asked.is_set():
        raise _HandBack(_STOPS)
    _heed(lease, stop)


def _nothing_more() -> None:
    """The lease is ended already."""


def _ran(denoiser: Denoiser, tally: Tally) -> Ran:
    """What had a share in it, which may be more than it began with."""
    return {
        "backend": tally.backend or denoiser.backend,
        "precision": tally.precision or denoiser.precision,
        "notes": [*tally.notes, *tally.relief.notes],
    }


def _outcome(lease: Lease, made: DenoisedImage | DenoisedVideo, blob: Blob, ran: Ran) -> Outcome:
    seconds = made.metrics.seconds.model_copy(update={"queue": lease.waited_s})
    return Outcome(
        result=Result(
            blob=blob.name,
            content_type=made.content_type,
            bytes=blob.bytes,
            sha256=blob.sha256,
            file_name=f"{lease.job.name}-denoised{made.suffix}",
        ),
        metrics=made.metrics.model_copy(update={"seconds": seconds}),
        **ran,
        lost=made.lost,
    )


def _clear_after_the_dead(spool: Path) -> None:
    """Delete the unfinished videos of workers of this host that were killed."""
    for folder in spool.glob(f"{_OWN_SPOOL}*"):
        owner = int(folder.name.removeprefix(_OWN_SPOOL).partition("-")[0])
        try:
            os.kill(owner, 0)  # asks whether it lives, and does nothing to it
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:
            continue  # it lives, under another user


def _watched(client: LeaseClient, lease: Lease, stop: Stop) -> OnProgress:
    """Tells the broker of progress, and ends the work when the lease, the owner's wish or the worker ends."""
    told = 0.0

    def on_progress(progress: Progress) -> None:
        nonlocal told
        if lease.lost.is_set():
            raise LeaseLost(f"job {lease.job.id}")
        if lease.cancelled.is_set():
            raise JobCancelled(f"job {lease.job.id}")
        now = time.monotonic()
        unfinished = progress.done != progress.total
        if stop.asked.is_set() and unfinished and now + (progress.eta_seconds or 0) > stop.deadline:
            raise _HandBack(_STOPS)  # it would not be done in time: the sooner another has it the better
        if now - told >= REPORT_EVERY_S or not unfinished:
            told = now
            client.report(lease, progress)

    return on_progress
