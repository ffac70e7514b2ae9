"""Work handed in to be fetched later: submit, follow, fetch, cancel."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field
from starlette.responses import Response

from models.catalogue import Kind
from service import frames
from service.api import documents, headers, openapi, problems
from service.api.forms import ImageJobForm, JobFields, VideoForm, read_form, request_body
from service.api.services import Services, UseServices
from service.asking import outcome_of
from service.errors import JobNotFound, NoKey, NotReady
from service.intake import Asked
from service.job import JOB_ID_PATTERN, JobDocument, JobState, Record, Result, document_of

router = APIRouter(tags=["jobs"])

_Item = TypeVar("_Item")
# The janitor's grace, for the same reason: an upload comes before its job, and may have to queue for its probe.
_FRESH_S = 15 * 60.0


def _job_id(
    job_id: Annotated[
        str, Path(description="The job's id.", examples=[openapi.JOB_ID], json_schema_extra={"pattern": JOB_ID_PATTERN})
    ],
) -> str:
    """A name that no job can have names no job: 404, and nothing behind this ever sees it."""
    if not re.fullmatch(JOB_ID_PATTERN, job_id):
        raise JobNotFound("there is no job of this id; ids are 32 hexadecimal digits")
    return job_id


JobId = Annotated[str, Depends(_job_id)]

IdempotencyKey = Annotated[
    str | None,
    Header(
        description="A name of your own for this request, best a UUID. Sent again with the same input and fields it "
        "gives the same job; with others it is refused.",
        examples=["7b1e6f0a-4a53-4a0e-9a55-0a3f4b1c2d3e"],
    ),
]


class JobPage(BaseModel):
    """One page of jobs, newest first."""

    jobs: list[JobDocument] = Field(description="The jobs of this page.")
    next_cursor: str | None = Field(None, description="Where the next page begins; null on the last one.")


@router.post(
    "/jobs/image",
    status_code=202,
    summary="Hand in an image",
    description="Answers as soon as the image is stored.\n\n"
    "```\ncurl -F file=@noisy.png -H 'Idempotency-Key: 7b1e6f0a' http://localhost:8000/jobs/image\n```",
    response_class=Response,
    openapi_extra=request_body(ImageJobForm, "image"),
    responses={202: openapi.ACCEPTED, **openapi.problems(400, 413, 415, 422, 503)},
)
async def submit_image(request: Request, services: UseServices, idempotency_key: IdempotencyKey = None) -> Response:
    return await _submit(request, services, "image", ImageJobForm, idempotency_key)


@router.post(
    "/jobs/video",
    status_code=202,
    summary="Hand in a video",
    description="Answers as soon as the video is stored. A model for images does a video too, frame by frame.\n\n"
    "```\ncurl -F file=@noisy.mp4 -F sigma=25 http://localhost:8000/jobs/video\n```",
    response_class=Response,
    openapi_extra=request_body(VideoForm, "video"),
    responses={202: openapi.ACCEPTED, **openapi.problems(400, 413, 415, 422, 503)},
)
async def submit_video(request: Request, services: UseServices, idempotency_key: IdempotencyKey = None) -> Response:
    return await _submit(request, services, "video", VideoForm, idempotency_key)


async def _submit(
    request: Request, services: Services, kind: Kind, fields_of: type[JobFields], idempotency_key: str | None
) -> Response:
    async with read_form(request, services.spool) as form:
        fields = form.read_as(fields_of)
        upload = form.upload()
        asked = Asked(
            kind=kind,
            content=upload.content,
            name=upload.name,
            options=fields.options(),
            model=fields.model,
            webhook_url=fields.webhook_url,
            reference=form.files["reference"].content if "reference" in form.files else None,
        )
        job_id, _ = await services.intake.accept(asked, idempotency_key=idempotency_key)
    return documents.accepted_response(await services.queue.get(job_id))


@router.get(
    "/jobs",
    summary="List jobs",
    description="Newest first.\n\n```\ncurl 'http://localhost:8000/jobs?state=running&limit=20'\n```",
    response_model=JobPage,
    responses={
        200: {"content": {"application/json": {"example": {"jobs": [openapi.SUCCEEDED], "next_cursor": None}}}},
        **openapi.problems(422, 503),
    },
)
async def list_jobs(
    services: UseServices,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="How many at most.")] = 50,
    cursor: Annotated[
        str | None, Query(max_length=200, description="`next_cursor` of the page before; left out, the first page.")
    ] = None,
) -> JobPage:
    records, next_cursor = await services.queue.list(state, limit, cursor)
    return JobPage(jobs=[document_of(record) for record in records], next_cursor=next_cursor)


@router.get(
    "/jobs/{job_id}",
    summary="Look at a job",
    description="Always 200 while the job is known, whatever became of it; with `If-None-Match`, 304 while nothing "
    "changed.\n\n```\ncurl http://localhost:8000/jobs/$ID\n```",
    response_model=JobDocument,
    responses={
        200: openapi.document_answer(
            "The job as it stands.",
            openapi.SUCCEEDED,
            ETag=openapi.header("Of the document."),
            Retry_After=openapi.header("Seconds until it is worth asking again; absent once it is final.", "integer"),
        ),
        304: {"description": "Nothing changed."},
        **openapi.problems(404, 503),
    },
)
async def get_job(
    job_id: JobId,
    services: UseServices,
    if_none_match: Annotated[str | None, Header(description="`ETag` of the document that is known already.")] = None,
) -> Response:
    response = documents.document_response(await services.queue.get(job_id))
    if headers.matches(if_none_match, response.headers["etag"]):
        kept = {name: value for name, value in response.headers.items() if name in ("etag", "retry-after")}
        return Response(status_code=304, headers=kept)
    return response


LastEventId = Annotated[str | None, Header(description="The last event that was seen.")]


async def _watched(job_id: JobId, services: UseServices, last_event_id: LastEventId = None) -> Record:
    """A job that is known and has events left: asked before the stream begins, since then no status can be sent."""
    record = await services.queue.get(job_id)
    if record.state.is_final and await anext(services.queue.events(job_id, last_event_id), None) is None:
        raise problems.NothingMore
    return record


@router.get(
    "/jobs/{job_id}/events",
    summary="Follow a job",
    description="Server-Sent Events: state and progress until the job is final, then the stream closes. After a lost "
    "connection `Last-Event-ID` goes on where it stopped; 204 says that there is no more to come. A comment every 15 "
    "seconds keeps the line open.\n\n"
    "```\ncurl -N http://localhost:8000/jobs/$ID/events\n```",
    response_class=EventSourceResponse,
    responses={204: {"description": "It is over, and its last event was seen."}, **openapi.problems(404, 503)},
)
async def follow_job(
    record: Annotated[Record, Depends(_watched)],
    services: UseServices,
    last_event_id: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    feed = services.queue.events(record.job.id, last_event_id)
    # Away, removed or its key revoked in between: the stream ends, and who comes back with Last-Event-ID is told.
    with suppress(NotReady, JobNotFound, NoKey):
        async for event_id, event in _until(services.draining, feed):
            yield ServerSentEvent(id=event_id, event=event.pop("event"), data=event)


async def _until(stop: asyncio.Event, feed: AsyncIterator[_Item]) -> AsyncIterator[_Item]:
    """Pass a feed on until the process is about to stop: an open stream would hold that up."""
    stopping = asyncio.ensure_future(stop.wait())
    upcoming: asyncio.Future[_Item] | None = None
    try:
        while True:
            upcoming = asyncio.ensure_future(anext(feed))
            await asyncio.wait({upcoming, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not upcoming.done():
                return
            try:
                item = upcoming.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        stopping.cancel()
        if upcoming is not None:
            upcoming.cancel()


@router.head("/jobs/{job_id}/result", include_in_schema=False)
@router.get(
    "/jobs/{job_id}/result",
    summary="Fetch the result",
    description="The restored image or video. One range of bytes can be asked for.\n\n"
    "```\ncurl -OJ http://localhost:8000/jobs/$ID/result\ncurl -C - -o restored.mp4 "
    "http://localhost:8000/jobs/$ID/result\n```",
    response_class=Response,
    responses={
        200: {
            "description": "All of it.",
            "content": openapi.RESULT_BYTES,
            "headers": {
                "ETag": openapi.header("SHA-256 of the bytes, hexadecimal."),
                "Repr-Digest": openapi.header("The same as RFC 9530 writes it."),
                "Content-Disposition": openapi.header("A file name made from the upload's."),
                "Content-Length": openapi.header("Bytes that follow.", "integer"),
                "Accept-Ranges": openapi.header("Always `bytes`."),
            },
        },
        206: {
            "description": "The range that was asked for.",
            "content": openapi.RESULT_BYTES,
            "headers": {"Content-Range": openapi.header("Which bytes of how many.")},
        },
        304: {"description": "It is what `If-None-Match` names."},
        307: openapi.MOVED,
        **openapi.problems(404, 409, 410, 416, 422, 503),
    },
)
async def get_result(
    request: Request,
    job_id: JobId,
    services: UseServices,
    range_: Annotated[
        str | None, Header(alias="Range", description="`bytes=first-last`; several ranges at once give all of it.")
    ] = None,
    if_range: Annotated[str | None, Header(description="`ETag`: without a match the range is not applied.")] = None,
    if_none_match: Annotated[str | None, Header(description="`ETag` of what is there already.")] = None,
    redirect: Annotated[
        bool,
        Query(description="Whether a 307 will do where results lie in a bucket; `false` has the bytes sent from here."),
    ] = True,
) -> Response:
    record = await services.queue.get(job_id)
    result = outcome_of(record).result
    told = documents.result_headers(result)
    if headers.matches(if_none_match, told["ETag"]):
        return Response(status_code=304, headers={"ETag": told["ETag"]})
    bodiless = request.method == "HEAD"
    if redirect and services.settings.result_redirect:
        # Ranges are the store's to give: whoever asked for one asks for it there again.
        ttl_s = services.settings.redirect_ttl_s
        moved = await documents.redirect_response(services.store, result, ttl_s=ttl_s, bodiless=bodiless)
        if moved:
            return moved
    stretch = None
    if if_range is None or if_range == told["ETag"]:
        try:
            stretch = headers.range_of(range_, result.bytes)
        except headers.Unsatisfiable:
            raise problems.Refused(
                416,
                f"the result has {result.bytes} bytes; the range {range_} holds none of them",
                headers={"Content-Range": f"bytes */{result.bytes}"},
            ) from None
    return await documents.result_response(services.store, result, stretch=stretch, bodiless=bodiless)


@router.head("/jobs/{job_id}/preview", include_in_schema=False)
@router.get(
    "/jobs/{job_id}/preview",
    summary="See a video's first frame restored",
    description="A JPEG, there within seconds of a worker's taking the video; the event `preview` tells when.\n\n"
    "```\ncurl -o preview.jpg http://localhost:8000/jobs/$ID/preview\n```",
    response_class=Response,
    responses={
        200: {"description": "The still.", "content": {"image/jpeg": {"schema": {"type": "string"}}}},
        304: {"description": "It is what `If-None-Match` names."},
        **openapi.problems(404, 409, 410, 503),
    },
)
async def get_preview(
    request: Request,
    job_id: JobId,
    services: UseServices,
    if_none_match: Annotated[str | None, Header(description="`ETag` of what is there already.")] = None,
) -> Response:
    preview = documents.preview_of(await services.queue.get(job_id))
    still = Result(**preview.model_dump(), file_name=f"{job_id}-preview.jpg")
    told = documents.result_headers(still)
    if headers.matches(if_none_match, told["ETag"]):
        return Response(status_code=304, headers={"ETag": told["ETag"]})
    return await documents.result_response(
        services.store, still, {"Accept-Ranges": "none"}, bodiless=request.method == "HEAD"
    )


@router.get(
    "/jobs/{job_id}/frames",
    summary="Fetch the figures of each frame",
    description="What was measured of each frame of a video: the noise that was taken out of it; in one frame of 24 "
    "the noise measured before and after; and against a reference PSNR and SSIM. As JSON, as CSV, or as a plot.\n\n"
    "```\ncurl -o frames.csv 'http://localhost:8000/jobs/$ID/frames?format=csv'\n"
    "curl -o frames.svg 'http://localhost:8000/jobs/$ID/frames?format=svg'\n```",
    response_class=Response,
    responses={
        200: {"description": "A row a frame.", "content": openapi.FRAME_TABLE},
        304: {"description": "It is what `If-None-Match` names."},
        **openapi.problems(404, 409, 410, 422, 503),
    },
)
async def get_frames(
    job_id: JobId,
    services: UseServices,
    form: Annotated[frames.Form, Query(alias="format", description="How to write them.")] = "json",
    if_none_match: Annotated[str | None, Header(description="`ETag` of what is there already.")] = None,
) -> Response:
    record = await services.queue.get(job_id)
    table = documents.frame_table_of(record)
    etag = f'"{table.sha256}-{form}"'
    if headers.matches(if_none_match, etag):
        return Response(status_code=304, headers={"ETag": etag})

    def written() -> bytes:
        with services.store.open(table.blob) as file:
            return frames.in_form(file.read(), form)

    told = {
        "ETag": etag,
        "Content-Disposition": headers.attachment(f"{record.job.name}-frames.{form}"),
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
    }
    return Response(await asyncio.to_thread(written), headers=told, media_type=frames.CONTENT_TYPES[form])


@router.delete(
    "/jobs/{job_id}",
    summary="Cancel or remove a job",
    description="A job that waits is cancelled at once; one that runs is told to stop, which it does between two tiles "
    "or chunks; one that is over is removed with its result.\n\n"
    "```\ncurl -X DELETE http://localhost:8000/jobs/$ID\n```",
    response_class=Response,
    responses={
        200: openapi.document_answer("It waited, and is cancelled.", openapi.CANCELLED),
        202: openapi.document_answer("It runs, and will stop soon.", openapi.CANCELLING),
        204: {"description": "It was over, and is removed."},
        **openapi.problems(404, 503),
    },
)
async def delete_job(job_id: JobId, services: UseServices) -> Response:
    record = await services.queue.get(job_id)
    if not record.state.is_final:
        record = await services.queue.cancel(job_id)
        if record.state is JobState.CANCELLED:
            return documents.document_response(record)
        if not record.state.is_final:
            return documents.document_response(record, 202)
    # Over before, or in this very moment.
    for blob in await services.queue.remove(job_id):
        # Bytes put just now may be of another upload, whose job is not in yet; the janitor comes for them later.
        await asyncio.to_thread(services.store.delete, blob, unused_for_s=_FRESH_S)
    return Response(status_code=204)
