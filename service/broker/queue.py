"""What can the API and the command line ask of the queue?"""

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from service.broker import keys
from service.broker.card import WorkerCard
from service.broker.link import BLOCK_S, Argument, AsyncLink, answering, open_async_link, reachable
from service.broker.lua import script
from service.errors import BadInput, IdempotencyConflict, JobNotFound, JobNotReady, QueueFull, ResultGone
from service.job import JOB_ID_PATTERN, Job, JobState, Lane, Progress, Record
from service.settings import Settings
from service.telemetry import tracing

log = logging.getLogger(__name__)

Event = dict[str, Any]

_JOB_ID = re.compile(JOB_ID_PATTERN)
_EVENT_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_EVENTS_AT_ONCE = 64
_COMMANDS_AT_ONCE = 32  # each takes a connection for a fraction of a millisecond; more would only wait in the server
_COUNT_S = 1.0  # for counting what a caller spends
_WAITERS_MAX = 4096  # each holds a connection while it waits; a server takes 10000 by default


@dataclass(frozen=True, slots=True)
class LaneDepth:
    """How full a lane is; jobs cancelled while they waited do not count."""

    queued: int
    in_flight: int  # delivered to a worker and not settled
    oldest_age_s: float  # of those that wait; 0 when none does


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that was given up, and why, in the words of its last error: for operators, not for clients."""

    job_id: str
    lane: Lane
    reason: str
    worker: str
    attempts: int
    at: float  # seconds since 1970


# `QueueClient.list` hides the built-in name in the annotations of its class.
Records = list[Record]
Names = list[str]
Cards = list[WorkerCard]
Letters = list[DeadLetter]
Entries = list[tuple[str, dict[str, str]]]


class QueueClient:
    """The queue as seen from an event loop. To be used in the loop that called `connect`, or that entered it.

    Every method raises NotReady when the server cannot be reached.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        self._url = url
        self._settings = settings
        self._link: AsyncLink | None = None
        self._blocking_link: AsyncLink | None = None
        self._turns = asyncio.Semaphore(_COMMANDS_AT_ONCE)  # beyond its connections the client would refuse, not wait

    async def connect(self) -> None:
        """Open the connections; they are made at the first use, so this succeeds while the server is away."""
        if self._link is None:
            self._link = open_async_link(self._url, _COMMANDS_AT_ONCE)
            # Apart: a read that waits holds its connection, and one cut off in the middle spoils it.
            self._blocking_link = open_async_link(self._url, _WAITERS_MAX)

    async def aclose(self) -> None:
        for link in (self._link, self._blocking_link):
            if link is not None:
                await link.aclose()
        self._link = self._blocking_link = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def ping(self) -> None:
        await self._ask("PING")

    async def put(self, job: Job, *, idempotency: tuple[str, str] | None = None) -> tuple[str, bool]:
        """Take a job in.

        Args:
            job: its blobs are stored already.
            idempotency: the client's key, and a fingerprint of all that it asked for with it.

        Returns:
            The id of the job that serves this request, and whether it is this job: False means that the same request
            came before.

        Raises:
            IdempotencyConflict: the key came before, with another fingerprint.
            QueueFull: as many jobs as may be are waiting in the lane.
        """
        began, here = time.monotonic(), tracing.here()
        if here:  # whoever takes it goes on in the trace that it came with
            job = job.model_copy(update={"trace": str(here)})
        key, fingerprint = idempotency or ("", "")
        verdict, answer = await self._run(
            "put",
            job.id,
            job.lane,
            job.model_dump_json(),
            self._settings.max_queued_jobs,
            keys.idempotency(key, job.owner) if idempotency else "",
            fingerprint,
            keys.IDEMPOTENCY_TTL_S,
            job.compat,
            job.pixels,
            job.owner or "",
            *dict.fromkeys(job.blobs),
        )
        tracing.told("put", time.monotonic() - began, "producer", job=job.id, lane=job.lane)
        if verdict == "conflict":
            raise IdempotencyConflict("this idempotency key came with another request before; take a new key")
        if verdict == "full":
            raise await self._full(answer, job.lane)
        return answer, answer == job.id

    async def seconds_to_clear(self, lane: Lane) -> float | None:
        """How long the live workers need for all that the lane has accepted: its pixels over theirs a second.

        Returns:
            None while no speed was measured, or no worker takes from the lane.
        """
        pixels, speed = await self._run("load", lane)
        lanes = (lane, Lane.VIDEO_PART) if lane is Lane.VIDEO else (lane,)  # a slot takes both, or parts alone
        slots = sum(max(card.slots.get(one, 0) for one in lanes) for card in await self.workers() if card.ready)
        done_a_second = float(speed or 0) * slots
        return pixels / done_a_second if done_a_second else None

    async def get(self, job_id: str) -> Record:
        """All that is known of a job.

        Raises:
            JobNotFound
        """
        if not _JOB_ID.fullmatch(job_id):
            raise unknown_job(job_id)
        fields = await self._ask("HGETALL", keys.job(job_id))
        record = record_of(fields)
        if record is None:
            raise unknown_job(job_id)
        return record

    async def list(
        self, state: JobState | None, limit: int, cursor: str | None, *, owner: str | None = None
    ) -> tuple[Records, str | None]:
        """Jobs, newest first; of one state, or of any; of one owner, or of all.

        Args:
            cursor: what the page before gave; None for the first page.

        Returns:
            At most `limit` records, and the cursor of the next page: None when this is the last.

        Raises:
            BadInput: the cursor is none of ours.
        """
        if cursor is not None and not _JOB_ID.fullmatch(cursor):
            raise BadInput(f"cursor is {cursor[:64]!r}; it must be one that a list of jobs gave")
        # All scores are 0 and ids sort by birth, so the order of the members is the order of birth.
        start = f"({cursor}" if cursor else "+"
        ids = await self._ask("ZREVRANGEBYLEX", keys.jobs(state, owner), start, "-", "LIMIT", 0, limit + 1)
        async with answering(), self._turns:
            pipeline = self._connected().pipeline(transaction=False)
            for job_id in ids[:limit]:
                pipeline.execute_command("HGETALL", keys.job(job_id))
            pages = await pipeline.execute()
        # A record may have expired a moment before the index, and a job may have moved on from `state`.
        records = [record for fields in pages if (record := _legible(fields))]
        return records, ids[limit - 1] if len(ids) > limit else None

    async def cancel(self, job_id: str) -> Record:
        """Say that a job is not wanted: one that waits is over at once, one that runs is told, a final one stays.

        A job that finishes before its worker heard of it succeeds all the same.

        Raises:
            JobNotFound
        """
        if not _JOB_ID.fullmatch(job_id) or not await self._run("cancel", job_id, self._result_ttl_ms):
            raise unknown_job(job_id)
        return await self.get(job_id)

    async def remove(self, job_id: str) -> Names:
        """Forget a final job.

        Returns:
            The blobs that no other job uses: the caller's to delete.

        Raises:
            JobNotFound
            JobNotReady: the job is not final.
        """
        verdict, *answer = await self._run("remove", job_id)
        if verdict == "missing":
            raise unknown_job(job_id)
        if verdict == "active":
            raise JobNotReady(f"job {job_id} is {answer[0]}; cancel it first")
        return [str(name) for name in answer]

    async def replay(self, job_id: str) -> Record:
        """Queue a failed job again, as if it had never been tried. Of a video in parts, those that are done stay done.

        Raises:
            JobNotFound
            BadInput: the job did not fail.
            ResultGone: it failed so long ago that its input is deleted.
            QueueFull
        """
        verdict, *answer = await self._run("replay", job_id, self._settings.max_queued_jobs)
        if verdict == "missing":
            raise unknown_job(job_id)
        if verdict == "refused":
            raise BadInput(f"job {job_id} is {answer[0]}; only failed jobs are replayed")
        if verdict == "gone":
            raise ResultGone(f"job {job_id} failed, and its input is deleted by now; send it anew")
        if verdict == "full":
            raise await self._full(answer[0], (await self.get(job_id)).job.lane)
        return await self.get(job_id)

    async def dead_letters(self, limit: int) -> Letters:
        """Jobs that were given up and can be replayed, newest first."""
        entries = await self._ask("XREVRANGE", keys.DEAD, "+", "-", "COUNT", limit)
        return [
            DeadLetter(
                job_id=letter["job"],
                lane=Lane(letter["lane"]),
                reason=letter["reason"],
                worker=letter["worker"],
                attempts=int(letter["attempts"]),
                at=int(entry_id.partition("-")[0]) / 1000,
            )
            for entry_id, letter in entries
        ]

    async def wait(self, job_id: str, timeout_s: float) -> Record:
        """The job's record once it is final, or as it stands when the time is up.

        Raises:
            JobNotFound
        """
        async for _ in self._follow(job_id, "0-0", time.monotonic() + timeout_s):
            pass
        return await self.get(job_id)

    async def events(self, job_id: str, last_event_id: str | None) -> AsyncIterator[tuple[str, Event]]:
        """Follow a job from its beginning, or from behind an event seen before, until it is final.

        Yields:
            The event's id, and either {"event": "state", "state": ..., "attempts": ...}, {"event": "progress"} with
            the fields of `Progress`, or {"event": "preview", "url": ...}. Of many events only the latest few hundred
            are kept; the final one always is.

        Raises:
            JobNotFound
        """
        known = last_event_id is not None and _EVENT_ID.fullmatch(last_event_id)
        async for event in self._follow(job_id, last_event_id if known and last_event_id else "0-0", None):
            yield event

    async def spend(
        self, costs: Sequence[tuple[str, str, int, int]], *, window_s: float
    ) -> tuple[bool, Sequence[float]]:
        """Take from a caller's quotas, from all or from none.

        It is asked with nearly every call, so the server has less time to answer than it has otherwise: the caller
        waits for nothing but this, and has another way.

        Args:
            costs: policy, payer, quota, amount; an amount below 0 gives back, one of 0 only asks.
            window_s: in which a quota is filled.

        Returns:
            Whether it was there to take, and for each quota in how many seconds it will be full.
        """
        flat = [value for policy, payer, quota, amount in costs for value in (policy, payer, quota, amount)]
        with reachable():
            async with asyncio.timeout(_COUNT_S), self._turns:
                fits, *debts = await script("spend").run_async(self._connected(), int(window_s * 1000), *flat)
        return bool(fits), [float(debt) / 1000 for debt in debts]

    async def depths(self) -> dict[Lane, LaneDepth]:
        lanes = list(Lane)
        rows = await self._run("depths", *lanes)
        return {
            lane: LaneDepth(queued=queued, in_flight=in_flight, oldest_age_s=age_ms / 1000)
            for lane, (queued, in_flight, age_ms) in zip(lanes, rows, strict=True)
        }

    async def counters(self) -> dict[str, float]:
        """`{name}:{lane}` -> sum since the beginning; `keys.COUNTERS` says what each name counts. Absent means 0."""
        return {name: float(value) for name, value in (await self._ask("HGETALL", keys.COUNTER_HASH)).items()}

    async def workers(self) -> Cards:
        """The workers alive."""
        ids = await self._ask("ZRANGE", keys.WORKERS, 0, -1)
        if not ids:
            return []
        cards = await self._ask("MGET", *(keys.worker(worker_id) for worker_id in ids))
        return [WorkerCard.model_validate_json(card) for card in cards if card]

    async def _follow(self, job_id: str, after: str, until: float | None) -> AsyncIterator[tuple[str, Event]]:
        # The record is read before the events: a final event that comes in between is found by the read that follows.
        record = await self.get(job_id)
        while True:
            left = BLOCK_S if until is None else min(BLOCK_S, until - time.monotonic())
            block = 0 if record.state.is_final else left
            entries = await self._read_events(job_id, after, block)
            for entry_id, fields in entries:
                after = entry_id
                event = {"event": fields["event"], **json.loads(fields["data"])}
                yield entry_id, event
                if fields["event"] == "state" and JobState(event["state"]).is_final:
                    return
            if not entries and (record.state.is_final or (until is not None and time.monotonic() >= until)):
                return
            if not entries:
                record = await self.get(job_id)  # it may have been removed

    async def _read_events(self, job_id: str, after: str, block_s: float) -> Entries:
        block = ("BLOCK", max(1, int(block_s * 1000))) if block_s > 0 else ()
        command = ("XREAD", "COUNT", _EVENTS_AT_ONCE, *block, "STREAMS", keys.events(job_id), after)
        async with answering(blocked_s=block_s):
            streams = await self._connected(blocking=True).execute_command(*command)
        return streams[0][1] if streams else []

    async def _ask(self, *command: Argument) -> Any:
        async with answering(), self._turns:
            return await self._connected().execute_command(*command)

    async def _run(self, name: str, *arguments: Argument) -> Any:
        async with answering(), self._turns:
            return await script(name).run_async(self._connected(), *arguments)

    def _connected(self, *, blocking: bool = False) -> AsyncLink:
        link = self._blocking_link if blocking else self._link
        assert link is not None, "connect() comes first"
        return link

    async def _full(self, waiting: str, lane: Lane) -> QueueFull:
        return QueueFull(
            f"{waiting} jobs wait or run in lane {lane}; at most {self._settings.max_queued_jobs} are accepted",
            retry_after_s=await self.seconds_to_clear(lane),
        )

    @property
    def _result_ttl_ms(self) -> int:
        return int(self._settings.result_ttl_s * 1000)


def record_of(fields: dict[str, str]) -> Record | None:
    if not fields:
        return None
    return Record(
        job=Job.model_validate_json(fields["job"]),
        state=JobState(fields["state"]),
        attempts=max(int(fields["attempts"]), int(fields.get("worst", 0))),
        started_at=_number(fields.get("started_at")),
        finished_at=_number(fields.get("finished_at")),
        expires_at=_number(fields.get("expires_at")),
        progress=Progress.model_validate_json(fields.get("progress", "{}")),
        outcome=json.loads(fields.get("outcome", "null")),
        preview=json.loads(fields.get("preview", "null")),
        error=json.loads(fields.get("error", "null")),
    )


def _legible(fields: dict[str, str]) -> Record | None:
    """One record that another version wrote must not hide the rest of the page."""
    try:
        return record_of(fields)
    except (KeyError, ValueError) as err:
        log.warning("a job is left out of the list, its record cannot be read: %s", err)
        return None


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def unknown_job(job_id: str) -> JobNotFound:
    return JobNotFound(f"no job {job_id[:64]!r} is known")
