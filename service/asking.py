"""A job asked for, and waited for while the caller stays: what every door that answers at once does."""

import asyncio
import logging
from contextlib import suppress

from models.errors import QuietframeError
from service.errors import JobCancelled, JobFailed, JobNotReady, NotReady, ResultGone
from service.intake import Asked
from service.job import JobState, Outcome, Record
from service.services import Services

log = logging.getLogger(__name__)


async def hand_in(services: Services, asked: Asked, *, idempotency_key: str | None = None) -> str:
    """Make a job of it, and close its files.

    A caller who leaves in the middle wants it no more: a job that comes of it is cancelled, unless it has a key by
    which the caller may come back for it.

    Returns:
        The job's id.

    Raises:
        As `Intake.accept`.
    """
    # Apart from the caller: one who leaves while the job is being queued must not leave it there unseen.
    taking_in = asyncio.ensure_future(services.intake.accept(asked, idempotency_key=idempotency_key))
    taking_in.add_done_callback(lambda _: _close(asked))
    try:
        job_id, _ = await asyncio.shield(taking_in)
    except asyncio.CancelledError:
        services.in_background(_call_off_later(services, taking_in, wanted=idempotency_key is not None))
        raise
    return job_id


async def answer_of(services: Services, asked: Asked, *, patience_s: float | None = None) -> tuple[Record, Outcome]:
    """Have it denoised and wait for the end; a caller who leaves, which cancels this, cancels the job.

    Args:
        asked: its files are closed.
        patience_s: how long the caller waits; never longer than the settings allow.

    Returns:
        The job's record, and what came of it.

    Raises:
        As `Intake.accept`, and
        JobFailed: with the problem that a worker found.
        JobCancelled: somebody else called it off.
        NotReady: it was not done in time, and is cancelled.
    """
    longest_s = services.settings.sync_timeout_s
    patience_s = longest_s if patience_s is None else min(patience_s, longest_s)
    job_id = await hand_in(services, asked)
    try:
        record = await services.queue.wait(job_id, patience_s)
    except asyncio.CancelledError:
        services.in_background(_call_off(services, job_id))
        raise
    if not record.state.is_final:
        record = await services.queue.cancel(job_id)
        if record.state in (JobState.CANCELLING, JobState.CANCELLED):  # it may have ended in this very moment
            raise NotReady(f"job {job_id} was not done within {patience_s:g} s and is cancelled")
    if record.state is JobState.FAILED and record.error:
        raise JobFailed(record.error)
    if record.state is JobState.CANCELLED:
        raise JobCancelled(f"job {job_id} was cancelled while it was waited for")
    return record, outcome_of(record)


def outcome_of(record: Record) -> Outcome:
    """What came of a job.

    Raises:
        JobNotReady: nothing yet.
        ResultGone: there is none any more, or never will be.
    """
    if record.state is JobState.SUCCEEDED and record.outcome:
        return record.outcome
    if not record.state.is_final:
        raise JobNotReady(f"job {record.job.id} is {record.state}")
    if record.state is JobState.FAILED:
        raise ResultGone(f"job {record.job.id} failed, so it has no result; the job itself says why")
    raise ResultGone(f"job {record.job.id} is {record.state}; its result is gone")


async def _call_off_later(services: Services, taking_in: "asyncio.Future[tuple[str, bool]]", *, wanted: bool) -> None:
    with suppress(QuietframeError):  # it was refused: so much the better
        job_id, _ = await taking_in
        if not wanted:
            await _call_off(services, job_id)


async def _call_off(services: Services, job_id: str) -> None:
    try:
        await services.queue.cancel(job_id)
    except QuietframeError as err:
        log.warning("job %s goes on though its caller has left: %s", job_id, err)


def _close(asked: Asked) -> None:
    for file in (asked.content, asked.reference):
        with suppress(OSError):  # all that counts was read
            if file is not None:
                file.close()
