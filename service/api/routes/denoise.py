"""One image in, the restored image out, while the caller waits."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from service.api import documents, headers, openapi, problems
from service.api.forms import ImageForm, read_form, request_body
from service.api.line import left
from service.api.services import Services, UseServices
from service.errors import JobCancelled, NotReady, ResultGone
from service.intake import Asked
from service.job import JobState, Record

router = APIRouter(tags=["denoise"])

_EXAMPLES = """
Send an image, get it back with the noise taken out.

```
curl -F file=@noisy.png -o restored.png http://localhost:8000/denoise/image
curl -F file=@noisy.png -F reference=@clean.png -F sigma=25 -D - -o restored.png http://localhost:8000/denoise/image
curl -F file=@noisy.png -H 'Accept: application/json' http://localhost:8000/denoise/image
curl -F file=@noisy.png -H 'Prefer: respond-async' http://localhost:8000/denoise/image
```

The image is a job like any other, so it can be looked at and fetched again under `Quietframe-Job`. Whoever hangs up
cancels it. `Prefer: wait=N` bounds the waiting: what is not done after N seconds is answered 202, and goes on.
"""


@router.post(
    "/denoise/image",
    summary="Denoise an image now",
    description=_EXAMPLES,
    response_class=Response,
    openapi_extra=request_body(ImageForm, "image"),
    responses={
        200: {
            "description": "The restored image; the job document where `Accept` asks for JSON.",
            "content": {
                **openapi.IMAGE_BYTES,
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/JobDocument"},
                    "example": openapi.SUCCEEDED,
                },
            },
            "headers": {
                "Quietframe-Job": openapi.header("The job's id."),
                "Quietframe-Model": openapi.header("The denoiser, `auto` resolved."),
                "Quietframe-Backend": openapi.header("What ran it."),
                "Quietframe-Precision": openapi.header("What its inner layers computed in."),
                "Quietframe-Sigma-Estimate": openapi.header("Estimated noise level, 8-bit scale.", "number"),
                "Quietframe-PSNR": openapi.header("Result against the reference, dB.", "number"),
                "Quietframe-SSIM": openapi.header("Result against the reference.", "number"),
                "Quietframe-Input-PSNR": openapi.header("Input against the reference, dB.", "number"),
                "Quietframe-PSNR-Estimate": openapi.header(
                    "What the PSNR would be, estimated without a reference, dB; where `estimate` was asked for.",
                    "number",
                ),
                "Quietframe-PSNR-Estimate-Error": openapi.header("Standard error of that estimate, dB.", "number"),
                "Quietframe-Input-Noise-Estimate": openapi.header(
                    "Noise level measured in the input, 8-bit scale.", "number"
                ),
                "Quietframe-Output-Noise-Estimate": openapi.header(
                    "Noise level measured in the result, 8-bit scale.", "number"
                ),
                "Server-Timing": openapi.header("Milliseconds of decode, queue, infer and encode."),
            },
        },
        202: {**openapi.ACCEPTED, "description": "As `Prefer` asked: the job as it stands, to be followed by polling."},
        **openapi.problems(400, 409, 413, 415, 422, 503),
    },
)
async def denoise_image(
    request: Request,
    services: UseServices,
    accept: Annotated[
        str | None, Header(description="`application/json` for the job document in place of the image.")
    ] = None,
    prefer: Annotated[
        list[str] | None, Header(description="`respond-async` to be answered at once, `wait=N` to wait N seconds.")
    ] = None,
) -> Response:
    preference = headers.preference_of(prefer or [])
    at_once = preference.respond_async and not preference.wait_s
    async with read_form(request, services.spool) as form:
        fields = form.read_as(ImageForm)
        upload = form.upload()
        asked = Asked(
            kind="image",
            content=upload.content,
            name=upload.name,
            options=fields.options(),
            model=fields.model,
            reference=form.files["reference"].content if "reference" in form.files else None,
            waited_for=not at_once,
        )
        job_id, _ = await services.intake.accept(asked)
    if at_once:
        record = await services.queue.get(job_id)
        return documents.accepted_response(record, {"Preference-Applied": "respond-async"})

    patience_s = services.settings.sync_timeout_s
    bounded = preference.wait_s is not None and preference.wait_s < patience_s
    if bounded:
        patience_s = float(preference.wait_s or 0)
    record = await _wait_on_the_line(request, services, job_id, patience_s)
    if not record.state.is_final:
        if bounded:
            return documents.accepted_response(record, {"Preference-Applied": f"wait={preference.wait_s}"})
        record = await services.queue.cancel(job_id)
        if record.state in (JobState.CANCELLING, JobState.CANCELLED):  # it may have ended in this very moment
            raise NotReady(
                f"job {job_id} was not done within {patience_s:g} s and is cancelled; "
                "with the header Prefer: respond-async it can be handed in and fetched later"
            )
    return await _answer(services, record, as_document=headers.wants_json(accept))


async def _wait_on_the_line(request: Request, services: Services, job_id: str, patience_s: float) -> Record:
    """Wait for the job or for the caller to leave, whichever comes first.

    Raises:
        ClientDisconnect: the caller left; the job is cancelled.
    """
    waiting = asyncio.ensure_future(services.queue.wait(job_id, patience_s))
    leaving = asyncio.ensure_future(left(request))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        await services.queue.cancel(job_id)
        raise ClientDisconnect
    finally:
        waiting.cancel()
        leaving.cancel()


async def _answer(services: Services, record: Record, *, as_document: bool) -> Response:
    job = record.job
    if record.state is JobState.SUCCEEDED and record.outcome:
        told = documents.measured_headers(job.id, job.model, record.outcome)
        if as_document:
            return documents.document_response(record, headers=told)
        return await documents.result_response(services.store, record.outcome.result, told)
    if record.state is JobState.FAILED and record.error:
        return problems.respond(record.error, f"/jobs/{job.id}", {"Quietframe-Job": job.id})
    if record.state is JobState.EXPIRED:
        raise ResultGone(f"job {job.id} expired before its result was fetched")
    raise JobCancelled(f"job {job.id} was cancelled while it was waited for")
