"""How the benchmarks tell times, and the jobs that they put where no work is to be done."""

import secrets
import statistics
import time
from collections.abc import Sequence

from service.job import InputFacts, Job, Lane, Metrics, Options, Outcome, Result, new_job_id


def percentile(times_s: Sequence[float], percent: int) -> float:
    """In milliseconds."""
    ordered = sorted(times_s)
    return 1000 * ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def job_of_no_pixels(lane: Lane = Lane.IMAGE_BATCH) -> Job:
    """A job as the broker sees it, whose blob is not there."""
    facts = InputFacts(content_type="image/png", bytes=1, width=512, height=512)
    return Job(
        id=new_job_id(),
        kind="video" if lane.value.startswith("video") else "image",
        lane=lane,
        model="dncnn",
        options=Options(),
        input_blob=secrets.token_hex(32),
        input=facts,
        name="picture",
        created_at=time.time(),
    )


def outcome_of_no_pixels() -> Outcome:
    blob = secrets.token_hex(32)
    result = Result(blob=blob, content_type="image/png", bytes=1, sha256=blob, file_name="picture.png")
    return Outcome(result=result, metrics=Metrics(), backend="none", precision="none")
