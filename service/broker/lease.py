"""How does a worker take a job, keep it while it works, and end it in exactly one way?"""

import contextlib
import json
import logging
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

from pydantic import ValidationError
from redis.exceptions import ResponseError

from service.broker import keys
from service.broker.card import WorkerCard
from service.broker.link import BLOCK_S, Argument, open_link, reachable
from service.broker.lua import script
from service.errors import JobCancelled, LeaseLost, NotReady, problem, problem_of
from service.job import Job, JobState, Lane, Outcome, Part, PartOutcome, Preview, Progress
from service.settings import Settings
from service.telemetry import logs

log = logging.getLogger(__name__)

_EVENT_GAP_MS = 100  # progress is published ten times a second at most; nobody's eye follows more
_SETTLE_PAUSE_S = 0.2


@dataclass(eq=False, slots=True)
class Lease:
    """A worker's timed claim on a job: in force until it is settled, or its worker has been silent for `ttl_s`."""

    job: Job
    attempt: int  # counted from 1, by the broker
    fence: int  # of all leases ever given on the job; the highest is in force
    lane: Lane
    entry_id: str
    ttl_s: float
    waited_s: float  # from entering the lane to this lease
    part: Part | None = None  # of the job's video, where the lease is not on all of it
    parts: int = 0  # of the job's video, all done: what is left is to join them
    whole: bool = False  # the job's video was divided once, and cannot be
    lost: threading.Event = field(default_factory=threading.Event)  # another worker has the job, or is about to
    cancelled: threading.Event = field(default_factory=threading.Event)  # the job's owner no longer wants it
    renewed_at: float = field(default_factory=time.monotonic)

    @property
    def id(self) -> str:
        """What the broker calls that which is leased: a job, or a part of one."""
        return f"{self.job.id}.{self.part.index}" if self.part else self.job.id


class _Delivery(NamedTuple):
    """An entry of a lane that the server gave to this worker."""

    entry_id: str
    job_id: str
    token: str  # names the one claim that it leads to, so that a claim sent twice counts once


class LeaseClient:
    """The queue as seen from a worker.

    `lease`, `retire` and `close` belong to one thread; all else may be called from any. A thread of its own keeps the
    leases in force and the worker's card alive. Every method raises NotReady when the server cannot be reached.
    """

    def __init__(self, url: str, settings: Settings, worker_id: str, *, heartbeat: bool = True) -> None:
        """
        Args:
            worker_id: unique among all workers alive.
            heartbeat: False for a worker whose leases run out by design.
        """
        self._settings = settings
        self._worker_id = worker_id
        self._ttl_ms = int(settings.lease_ttl_s * 1000)
        self._link = open_link(url)
        self._blocking_link = open_link(url)
        # Delivered to us, not claimed yet: a read over several lanes brings up to one of each.
        self._kept: dict[Lane, deque[_Delivery]] = {lane: deque() for lane in Lane}
        self._grouped: set[Lane] = set()
        self._sweep_at = time.monotonic()
        self._held: set[Lease] = set()
        self._card: WorkerCard | None = None
        self._state = threading.Lock()  # over _held and _card
        self._closing = threading.Event()
        self._heart = threading.Thread(target=self._beat_forever, name=f"heartbeat {worker_id}", daemon=True)
        if heartbeat:
            self._heart.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the heartbeat, hand back what was never claimed, and leave. Leases still held run out by themselves."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._heart.is_alive():
            self._heart.join()
        with contextlib.suppress(NotReady):  # what cannot be handed back now is swept up later
            self.retire()
        self._link.close()
        self._blocking_link.close()

    def announce(self, card: WorkerCard) -> None:
        """Tell, or tell anew, what this worker is. The heartbeat keeps the card alive."""
        with self._state:
            self._card = card
        self._show_card(card)

    def retire(self) -> None:
        """Take no more work: hand back what was delivered and not claimed, and take the card away."""
        with self._state:
            self._card = None
        self._give_back_kept()
        with reachable():
            self._link.execute_command("DEL", keys.worker(self._worker_id))
            self._link.execute_command("ZREM", keys.WORKERS, self._worker_id)
        self._run("prune", self._worker_id, 0, *Lane)

    def lease(self, lanes: Sequence[Lane], wait_s: float) -> Lease | None:
        """Take the next job, from the first of the lanes that has one; wait up to `wait_s` for it.

        A waiting worker has a new job as soon as it is put. Jobs whose worker fell silent come up here too.

        Returns:
            None when there was nothing in that time.
        """
        deadline = time.monotonic() + wait_s
        while True:
            try:
                self._ensure_groups(lanes)
                self._sweep_if_due(lanes)
                for lane in lanes:
                    if found := self._take(lane):
                        with contextlib.suppress(NotReady):  # then they are handed back with the next
                            self._give_back_kept()
                        return found
                left = min(BLOCK_S, deadline - time.monotonic())
                if left <= 0:
                    return None
                self._read(lanes, min(left, max(0.001, self._sweep_at - time.monotonic())))
            except ResponseError as err:
                if not str(err).startswith(("NOGROUP", "UNBLOCKED")):
                    raise
                self._grouped.clear()  # the server lost its data; begin anew

    def report(self, lease: Lease, progress: Progress) -> None:
        """Publish how far the job is. Cheap enough for every tile and frame, and that is how a cancel gets in.

        A server that is away is passed over: the work goes on until the lease runs out.

        Raises:
            LeaseLost: another worker has the job, or the lease ran out.
            JobCancelled: the job's owner no longer wants it; `cancelled` is the end to take.
        """
        last = int(progress.done == progress.total)
        self._tell(lease, "report", progress.model_dump_json(), last, _EVENT_GAP_MS)

    def ack(self, lease: Lease, outcome: Outcome) -> None:
        """The job is done, also where a cancel came too late.

        Raises, as do `retry`, `bury`, `cancelled` and `release`:
            LeaseLost: another worker has the job; nothing was changed.
        """
        self._finish(lease, JobState.SUCCEEDED, outcome=outcome)

    def divide(self, lease: Lease, parts: Sequence[Part]) -> None:
        """Leave a video to be done in parts: this lease ends, they are queued, and the last one done queues the video.

        Args:
            parts: all of them, in order.

        Raises, besides what `ack` raises:
            JobCancelled: the job's owner no longer wants it; the lease goes on, and `cancelled` is the end to take.
        """
        frames = sum(part.frames for part in parts)
        pixels = lease.job.pixels_in(frames)
        self._settle(lease, "divide", frames, pixels, *(part.model_dump_json() for part in parts))

    def undivide(self, lease: Lease) -> None:
        """The parts of the video do not fit: drop them, and queue it to be done as one. Raises as `ack`."""
        self._settle(lease, "undivide", self._result_ttl_ms)

    def part_done(self, lease: Lease, outcome: PartOutcome) -> None:
        """A part is done. Raises as `ack`."""
        pixels = lease.job.pixels_in(outcome.frames)
        self._settle(lease, "part_done", outcome.model_dump_json(), " ".join(outcome.blobs), pixels)

    def parts_of(self, lease: Lease) -> list[PartOutcome]:
        """What came of a video's parts, in order, where the lease is to join them.

        Raises:
            LeaseLost: they are gone, and so is the lease.
        """
        with reachable():
            pipeline = self._link.pipeline(transaction=False)
            for number in range(lease.parts):
                pipeline.execute_command("HGET", keys.job(f"{lease.job.id}.{number}"), "outcome")
            outcomes = pipeline.execute()
        if not all(outcomes):
            self._drop(lease)
            raise _lost(lease)
        return [PartOutcome.model_validate_json(outcome) for outcome in outcomes]

    def preview(self, lease: Lease, preview: Preview) -> None:
        """Show a picture of how the result will look; only the first one given counts. Raises as `report`."""
        self._tell(lease, "preview", preview.model_dump_json(), preview.blob)

    def retry(self, lease: Lease, error: Exception) -> None:
        """Something went wrong that may go right next time. After the last attempt the job is buried."""
        if lease.attempt >= self._settings.max_attempts:
            self._finish(lease, JobState.FAILED, failure=problem_of(error), reason=_words(error))
        else:
            self._requeue(lease, "retried", _words(error))

    def bury(self, lease: Lease, problem: dict[str, Any]) -> None:
        """Trying again would fail again: the job has failed, for the reason in the problem document."""
        self._finish(lease, JobState.FAILED, failure=problem, reason=f"{problem.get('code')}: {problem.get('detail')}")

    def cancelled(self, lease: Lease) -> None:
        """The job was stopped because its owner no longer wants it."""
        self._finish(lease, JobState.CANCELLED)

    def release(self, lease: Lease) -> None:
        """Hand the job back; the attempt does not count."""
        self._requeue(lease, "released", "")

    def _ensure_groups(self, lanes: Sequence[Lane]) -> None:
        if missing := set(lanes) - self._grouped:
            self._run("ensure_groups", *missing)
            self._grouped |= missing

    def _sweep_if_due(self, lanes: Sequence[Lane]) -> None:
        """Take over what silent workers held: one job, so that the others get their share."""
        if time.monotonic() < self._sweep_at:
            return
        found = False
        for lane in lanes:
            entry = () if self._kept[lane] else tuple(self._run("sweep", self._worker_id, lane, self._ttl_ms))
            # Our own lease may look silent when a heartbeat was late; being swept up has just renewed it.
            if entry and not self._holds(lane, entry[0]):
                self._keep(lane, entry[0], entry[1])
                found = True
                break
        # Where one was found there may be more. Else with jitter, or all workers that started together sweep together.
        pause = 0.0 if found else self._settings.lease_ttl_s / 2 * random.uniform(0.75, 1.25)  # noqa: S311
        self._sweep_at = time.monotonic() + pause

    def _give_back_kept(self) -> None:
        """Another worker may be idle, and would not see them while this one is at its job."""
        for lane, entries in self._kept.items():
            while entries:
                self._run("give_back", self._worker_id, lane, entries[0].entry_id, entries[0].job_id)
                entries.popleft()

    def _take(self, lane: Lane) -> Lease | None:
        """Claim the lane's next job, clearing away entries that need no work."""
        kept = self._kept[lane]
        while True:
            if not kept:
                self._read([lane], None)
            if not kept:
                return None
            claimed = self._claim(lane, kept[0])
            kept.popleft()
            if claimed:
                return claimed

    def _read(self, lanes: Sequence[Lane], wait_s: float | None) -> None:
        """Have the server deliver up to one new entry a lane; into `_kept`."""
        # BLOCK 0 would mean for ever.
        block = () if wait_s is None else ("BLOCK", max(1, int(wait_s * 1000)))
        link = self._link if wait_s is None else self._blocking_link
        streams = {keys.work(lane): lane for lane in lanes}
        command = ("XREADGROUP", "GROUP", keys.GROUP, self._worker_id, "COUNT", 1, *block, "STREAMS", *streams)
        with reachable():
            delivered = link.execute_command(*command, *[">" for _ in streams])
        for stream, entries in delivered or []:
            for entry_id, fields in entries:
                self._keep(streams[stream], entry_id, fields["job"])

    def _keep(self, lane: Lane, entry_id: str, job_id: str) -> None:
        self._kept[lane].append(_Delivery(entry_id, job_id, secrets.token_hex(8)))

    def _claim(self, lane: Lane, delivery: _Delivery) -> Lease | None:
        tries = self._settings.max_attempts
        given_up = problem(
            500, "failed", "Denoising failed", f"the job was tried {tries} times and never came to an end"
        )
        asked_at = time.monotonic()
        answer = self._run(
            "claim",
            self._worker_id,
            lane,
            delivery.entry_id,
            delivery.job_id,
            tries,
            self._result_ttl_ms,
            json.dumps(given_up),
            delivery.token,
        )
        if answer[0] != "claimed":
            return None
        _, fence, attempt, waited, text, part, parts, whole = answer
        try:
            job = Job.model_validate_json(text)
            part_asked = Part.model_validate_json(part) if part else None
        except ValidationError as err:
            log.error("job %s: not to be read here, and buried: %s", delivery.job_id, err)
            self._bury_unread(delivery, fence, err)
            return None
        lease = Lease(
            job=job,
            attempt=attempt,
            fence=fence,
            lane=lane,
            entry_id=delivery.entry_id,
            ttl_s=self._settings.lease_ttl_s,
            waited_s=float(waited),
            part=part_asked,
            parts=parts,
            whole=bool(whole),
            renewed_at=asked_at,
        )
        with self._state:
            self._held.add(lease)
        return lease

    def _bury_unread(self, delivery: _Delivery, fence: int, error: ValidationError) -> None:
        """The job failed before it was a job: put by another version, it would fail every worker of this one."""
        unread = problem(
            500, "failed", "Denoising failed", "the job was put by a version of the service that the worker cannot read"
        )
        self._run(
            "settle",
            self._worker_id,
            delivery.job_id,
            fence,
            JobState.FAILED,
            self._result_ttl_ms,
            "",
            "",
            json.dumps(unread),
            _words(error),
        )

    def _finish(
        self,
        lease: Lease,
        state: JobState,
        *,
        outcome: Outcome | None = None,
        failure: dict[str, Any] | None = None,
        reason: str = "",
    ) -> None:
        self._settle(
            lease,
            "settle",
            state,
            self._result_ttl_ms,
            outcome.model_dump_json() if outcome else "",
            " ".join(outcome.blobs) if outcome else "",
            json.dumps(failure) if failure else "",
            reason,
        )

    def _tell(self, lease: Lease, name: str, *arguments: Argument) -> None:
        """Run a script that leaves the lease in force, and heed how that stands."""
        if lease.lost.is_set():
            raise _lost(lease)
        try:
            verdict = self._run(name, self._worker_id, lease.id, lease.fence, *arguments)
        except NotReady:
            log.warning("job %s: %s not told, the queue's server is away", lease.id, name)
            return
        if verdict == "lost":
            self._drop(lease)
            raise _lost(lease)
        if verdict == "cancelling":
            raise _cancelled(lease)

    def _requeue(self, lease: Lease, verb: str, reason: str) -> None:
        self._settle(lease, "requeue", verb, self._result_ttl_ms, reason)

    def _settle(self, lease: Lease, name: str, *arguments: Argument) -> None:
        """Run a settling script, through an outage too if it is shorter than the lease: work done is worth a wait."""
        kept = False
        try:
            while True:
                try:
                    verdict = self._run(name, self._worker_id, lease.id, lease.fence, *arguments)
                    break
                except NotReady:
                    log.warning("job %s: not settled yet, the queue's server is away", lease.job.id)
                    if time.monotonic() - lease.renewed_at >= lease.ttl_s or self._closing.wait(_SETTLE_PAUSE_S):
                        raise
            if verdict == "cancelling":
                kept = True
                raise _cancelled(lease)
        finally:
            # Whatever came of it, this worker is through with the job: renewing the lease further would only hide it.
            if not kept:
                self._drop(lease, lost=False)
        if verdict == "lost":
            lease.lost.set()
            raise _lost(lease)

    def _holds(self, lane: Lane, entry_id: str) -> bool:
        with self._state:
            return any(lease.lane is lane and lease.entry_id == entry_id for lease in self._held)

    def _drop(self, lease: Lease, *, lost: bool = True) -> None:
        with self._state:
            self._held.discard(lease)
        if lost:
            lease.lost.set()

    def _beat_forever(self) -> None:
        while not self._closing.wait(self._settings.lease_ttl_s / 3):
            try:
                self._beat()
            except Exception:
                # A heart that stops lets every lease of this worker run out unseen.
                log.exception("worker %s: heartbeat failed", self._worker_id)

    def _beat(self) -> None:
        with self._state:
            held, card = list(self._held), self._card
        sent_at = time.monotonic()
        try:
            if card:
                self._show_card(card)
            claims = [argument for lease in held for argument in (lease.id, lease.fence)]
            verdicts = self._run("renew", self._worker_id, *claims) if held else []
        except NotReady:
            for lease in held:
                if time.monotonic() - lease.renewed_at >= lease.ttl_s:
                    log.warning(
                        "job %s: lease ran out, the queue's server is away", lease.job.id, extra=logs.of(lease.job)
                    )
                    self._drop(lease)  # renewed later on, a job that nobody works at any more would never end
            return
        for lease, verdict in zip(held, verdicts, strict=True):
            if verdict == "lost":
                with self._state:
                    still_held = lease in self._held  # or it was settled while the answer was on its way
                if still_held:
                    log.warning("job %s: lease lost", lease.job.id, extra=logs.of(lease.job))
                    self._drop(lease)
            else:
                lease.renewed_at = sent_at
                if verdict == "cancelling":
                    lease.cancelled.set()

    def _show_card(self, card: WorkerCard) -> None:
        with reachable():
            pipeline = self._link.pipeline(transaction=True)
            pipeline.execute_command("SET", keys.worker(self._worker_id), card.for_broker(), "PX", self._ttl_ms)
            pipeline.execute_command("ZADD", keys.WORKERS, time.time(), self._worker_id)
            pipeline.execute()

    def _run(self, name: str, *arguments: Argument) -> Any:
        with reachable():
            return script(name).run(self._link, *arguments)

    @property
    def _result_ttl_ms(self) -> int:
        return int(self._settings.result_ttl_s * 1000)


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"job {lease.job.id}: attempt {lease.attempt} no longer holds the lease")


def _cancelled(lease: Lease) -> JobCancelled:
    lease.cancelled.set()
    return JobCancelled(f"job {lease.job.id} was cancelled by its owner")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
