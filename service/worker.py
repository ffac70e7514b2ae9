"""Takes jobs off the broker, denoises them, and hands in what came of it.

A worker process has a few slots, each a thread with a lease of its own: while one job holds the engine, the others
decode and encode. Images have slots to themselves, so a long video never stands in their way.
"""

import io
import logging
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from service.blobs import BlobStore, FileStore
from service.broker.card import ModelReady, WorkerCard
from service.broker.janitor import Janitor
from service.broker.lease import Lease, LeaseClient
from service.errors import BadInput, JobCancelled, LeaseLost, NotReady, problem_of
from service.job import Lane, Outcome, Progress, Result
from service.pipeline.images import DenoisedImage, denoise_image
from service.pipeline.progress import OnProgress
from service.pipeline.shelf import Shelf
from service.pipeline.turns import Urgency
from service.pipeline.videos import DenoisedVideo, denoise_video
from service.settings import Settings

log = logging.getLogger(__name__)

# Two slots for images: one decodes and encodes while the other has the engine; more would only queue for it.
SLOTS: tuple[tuple[Lane, ...], ...] = (
    (Lane.IMAGE_INTERACTIVE, Lane.IMAGE_BATCH),
    (Lane.IMAGE_INTERACTIVE, Lane.IMAGE_BATCH),
    (Lane.VIDEO,),
)
WAIT_S = 2.0  # a blocking read lasts no longer, so that a stop is seen
REPORT_EVERY_S = 0.1
RECONNECT_S = 1.0
_OWN_SPOOL = f"video-{socket.gethostname()}."  # then the process, so that a killed worker's files are known as such
URGENCY = {Lane.IMAGE_INTERACTIVE: Urgency.INTERACTIVE, Lane.IMAGE_BATCH: Urgency.BATCH, Lane.VIDEO: Urgency.VIDEO}


class _HandBack(Exception):
    """The worker stops before the job is done: somebody else should do it."""


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
        self._blobs: BlobStore = FileStore(settings.data_dir / "blobs")
        self._spool = settings.data_dir / "spool"
        self._spool.mkdir(parents=True, exist_ok=True)
        _clear_after_the_dead(self._spool)
        self._shelf = Shelf(settings)
        self._failed = False

    def run(self, stop: Stop) -> bool:
        """Work until asked to stop and the work in hand is done or handed back; False if something broke instead.

        Raises:
            BackendUnavailable: a denoiser cannot run here.
        """
        started = time.time()
        ready = self._shelf.warm_up()
        card = WorkerCard(
            id=self._id,
            pid=os.getpid(),
            host=socket.gethostname(),
            started_at=started,
            models={name: ModelReady(backend=one.backend, precision=one.precision) for name, one in ready.items()},
            ready=True,
        )
        log.info("worker %s is ready: %s", self._id, ", ".join(f"{n} on {d.backend}" for n, d in ready.items()))
        janitor = Janitor(self._url, self._settings, self._blobs)
        threads = [Thread(target=janitor.run_forever, args=(stop.asked,), name="janitor")]
        threads += [
            Thread(target=self._slot, args=(number, lanes, card if number == 0 else None, stop), name=f"slot-{number}")
            for number, lanes in enumerate(SLOTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        janitor.close()
        return not self._failed

    def _slot(self, number: int, lanes: Sequence[Lane], card: WorkerCard | None, stop: Stop) -> None:
        """Take jobs one after the other until asked to stop. The slot that has the card shows it."""
        try:
            with LeaseClient(self._url, self._settings, f"{self._id}-{number}") as client:
                while not stop.asked.is_set():
                    try:
                        if card:
                            client.announce(card)
                            card = None  # from here on the heartbeat shows it
                        lease = client.lease(lanes, WAIT_S)
                    except NotReady as err:
                        log.warning("the broker is away: %s", err)
                        stop.asked.wait(RECONNECT_S)
                        continue
                    if lease:
                        self._settle(client, lease, stop)
        except Exception:
            # A worker that lives on with a slot less looks healthy and is not: end it all, and be started again.
            log.exception("slot %d died", number)
            self._failed = True
            stop.ask(self._settings.drain_s)

    def _settle(self, client: LeaseClient, lease: Lease, stop: Stop) -> None:
        """Every lease ends in exactly one way."""
        job = lease.job
        try:
            try:
                outcome = self._denoise(lease, _watched(client, lease, stop))
            except JobCancelled:
                client.cancelled(lease)
            except _HandBack:
                log.info("job %s: handed back, this worker stops", job.id)
                client.release(lease)
            except BadInput as err:
                # Trying again would fail again: straight to the dead letters.
                client.bury(lease, problem_of(err))
            except LeaseLost:
                raise
            except Exception as err:
                log.exception("job %s: attempt %d failed", job.id, lease.attempt)
                client.retry(lease, err)
            else:
                client.ack(lease, outcome)
        except LeaseLost:
            log.warning("job %s: attempt %d was given to another worker", job.id, lease.attempt)
        except NotReady as err:
            # The lease runs out and the job is done again: at least once is what is promised.
            log.warning("job %s: its end could not be told, the broker is away: %s", job.id, err)

    def _denoise(self, lease: Lease, on_progress: OnProgress) -> Outcome:
        job = lease.job
        denoiser = self._shelf.denoiser(job.model)
        with ExitStack() as fetched:
            source = fetched.enter_context(self._blobs.fetch(job.input_blob))
            reference = fetched.enter_context(self._blobs.fetch(job.reference_blob)) if job.reference_blob else None
            made: DenoisedImage | DenoisedVideo
            if job.kind == "image":
                made = denoise_image(
                    denoiser,
                    source,
                    job.options,
                    self._settings,
                    reference=reference,
                    urgency=URGENCY[job.lane],
                    on_progress=on_progress,
                )
                blob = self._blobs.put(io.BytesIO(made.data))
            else:
                with tempfile.TemporaryDirectory(prefix=f"{_OWN_SPOOL}{os.getpid()}-", dir=self._spool) as folder:
                    target = Path(folder) / "result"
                    made = denoise_video(
                        denoiser,
                        source,
                        target,
                        job.options,
                        self._settings,
                        reference=reference,
                        on_progress=on_progress,
                    )
                    blob = self._blobs.put_file(target)
        seconds = made.metrics.seconds.model_copy(update={"queue": lease.waited_s})
        return Outcome(
            result=Result(
                blob=blob.name,
                content_type=made.content_type,
                bytes=blob.bytes,
                sha256=blob.sha256,
                file_name=f"{job.name}-denoised{made.suffix}",
            ),
            metrics=made.metrics.model_copy(update={"seconds": seconds}),
            backend=denoiser.backend,
            precision=denoiser.precision,
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
            raise _HandBack  # it would not be done in time: the sooner another has it the better
        if now - told >= REPORT_EVERY_S or not unfinished:
            told = now
            client.report(lease, progress)

    return on_progress
