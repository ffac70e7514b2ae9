"""What operators ask: which jobs were given up and why, and to try one again."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from service.api import documents, openapi
from service.api.routes.jobs import JobId
from service.api.services import UseServices

router = APIRouter(prefix="/admin", tags=["admin"])


class DeadJob(BaseModel):
    """A job that was given up."""

    job: str = Field(description="Its id.")
    lane: str = Field(description="Where it waited.")
    reason: str = Field(description="Its last error, in words for operators.")
    worker: str = Field(description="Who had it last.")
    attempts: int = Field(description="Times it was tried.")
    at: datetime = Field(description="When it was given up.")


class DeadJobs(BaseModel):
    dead_letters: list[DeadJob] = Field(description="Newest first.")


@router.get(
    "/dead-letters",
    summary="List jobs that were given up",
    description="Everybody's, with the reason as the worker told it.",
    response_model=DeadJobs,
    responses=openapi.problems(422, 503),
)
async def dead_letters(
    services: UseServices, limit: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 100
) -> DeadJobs:
    letters = await services.queue.dead_letters(limit)
    return DeadJobs(
        dead_letters=[
            DeadJob(
                job=letter.job_id,
                lane=letter.lane,
                reason=letter.reason,
                worker=letter.worker,
                attempts=letter.attempts,
                at=datetime.fromtimestamp(letter.at, UTC),
            )
            for letter in letters
        ]
    )


@router.post(
    "/jobs/{job_id}/replay",
    status_code=202,
    summary="Queue a failed job again",
    description="As if it had never been tried; of a video in parts, those that are done stay done.",
    response_class=Response,
    responses={202: openapi.ACCEPTED, **openapi.problems(404, 410, 422, 503)},
)
async def replay(job_id: JobId, services: UseServices) -> Response:
    return documents.accepted_response(await services.queue.replay(job_id))
