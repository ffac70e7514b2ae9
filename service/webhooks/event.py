"""What is told of a job that is over?"""

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, Field

from service.job import JobDocument, JobState, Record, document_of

EventType = Literal["job.succeeded", "job.failed", "job.cancelled"]
_TYPES: dict[JobState, EventType] = {
    JobState.SUCCEEDED: "job.succeeded",
    JobState.FAILED: "job.failed",
    JobState.CANCELLED: "job.cancelled",
}


class JobEvent(BaseModel):
    """The body of a webhook."""

    type: EventType = Field(description="How the job ended.")
    timestamp: datetime = Field(description="When it ended.")
    data: JobDocument = Field(description="The job as it stood then, as `GET /jobs/{id}` showed it.")


def event_of(record: Record) -> JobEvent:
    """The news of a final record; the same each time it is asked for."""
    ended_at = datetime.fromtimestamp(record.finished_at or 0.0, UTC)
    return JobEvent(type=_TYPES[record.state], timestamp=ended_at, data=document_of(record))
