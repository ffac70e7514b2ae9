"""What the OpenAPI page says beyond the code: shared answers, headers, and examples made by the code itself."""

import json
from typing import Any

from service.api.rights import right_for
from service.errors import PROBLEMS, problem
from service.frames import COLUMNS, FrameFigures, FrameTable, in_form
from service.job import (
    InputFacts,
    Job,
    JobState,
    Lane,
    Metrics,
    NoiseEstimate,
    Options,
    Outcome,
    Progress,
    Record,
    Result,
    StageSeconds,
    document_of,
)

JOB_ID = "019a3f5c1b7e4d2a9c8b7f6e5d4c3b2a"
_BORN = 1_760_000_000.0

SUMMARY = "Takes the noise out of images and video."
DESCRIPTION = """
Send an image and get it back restored, or hand in a job and come back for it.

```
curl -F file=@noisy.png -o restored.png http://localhost:8000/denoise/image
curl -F file=@noisy.mp4 http://localhost:8000/jobs/video
```

Noise levels (`sigma`) are on the 8-bit scale, as papers print them: 25 means 25/255.
Every error is a problem document (RFC 9457, `application/problem+json`) with a stable `code` to branch on, and
`retryable` says whether the same request may succeed later.
"""

TAGS = [
    {"name": "denoise", "description": "One image, and wait for it."},
    {"name": "jobs", "description": "Hand in work, follow it, fetch what came of it."},
    {"name": "models", "description": "Which denoisers there are, how good each is, and what runs it now."},
    {"name": "webhooks", "description": "What is called when a job is over, where its submission asked for it."},
    {"name": "service", "description": "For probes and scrapers."},
]


def _record(**changes: Any) -> Record:
    job = Job(
        id=JOB_ID,
        kind="image",
        lane=Lane.IMAGE_INTERACTIVE,
        model="fitvnet-spatial.camera",
        options=Options(sigma=25.0),
        input_blob="unseen",
        input=InputFacts(content_type="image/png", bytes=186_211, width=481, height=321),
        name="noisy",
        created_at=_BORN,
    )
    return Record(job=job, **{"state": JobState.QUEUED, "progress": Progress(unit="tiles"), **changes})


def _shown(record: Record) -> dict[str, Any]:
    return document_of(record).model_dump(mode="json")


QUEUED = _shown(_record())
CANCELLING = _shown(_record(state=JobState.CANCELLING, attempts=1, started_at=_BORN + 0.1))
CANCELLED = _shown(_record(state=JobState.CANCELLED, finished_at=_BORN + 2))
FAILED = _shown(
    _record(
        state=JobState.FAILED,
        attempts=1,
        started_at=_BORN + 0.1,
        finished_at=_BORN + 2,
        error=problem(422, "bad_input", "The input cannot be denoised", "the image ends before its last row"),
    )
)
SUCCEEDED = _shown(
    _record(
        state=JobState.SUCCEEDED,
        attempts=1,
        started_at=_BORN + 0.012,
        finished_at=_BORN + 0.391,
        expires_at=_BORN + 86_400,
        progress=Progress(done=1, total=1, unit="tiles"),
        outcome=Outcome(
            result=Result(
                blob="unseen", content_type="image/png", bytes=148_902, sha256="9f" * 32, file_name="noisy-denoised.png"
            ),
            metrics=Metrics(
                psnr_db=31.24,
                ssim=0.883,
                input_psnr_db=20.17,
                sigma_estimate=24.6,
                input_noise_estimate=NoiseEstimate(
                    sigma=[24.8, 25.1, 25.3], black=[24.8, 25.1, 25.3], white=[24.8, 25.1, 25.3]
                ),
                output_noise_estimate=NoiseEstimate(
                    sigma=[0.7, 0.6, 0.8], black=[0.7, 0.6, 0.8], white=[0.7, 0.6, 0.8]
                ),
                psnr_estimate_db=31.02,
                psnr_estimate_error_db=0.6,
                seconds=StageSeconds(decode=0.004, queue=0.012, infer=0.347, encode=0.028),
            ),
            backend="openvino",
            precision="fp32",
        ),
    )
)


_TABLE = FrameTable()
_TABLE.add(FrameFigures(0, 24.61, 25.1, 0.7, psnr_db=31.24, ssim=0.883, input_psnr_db=20.17))
_TABLE.add(FrameFigures(1, 24.58, psnr_db=31.3, ssim=0.884, input_psnr_db=20.18))


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers to give when things go wrong, each with an example of its document."""
    return {status: _problem_answer(status) for status in statuses}


_DETAILS = {
    400: "the request body is not a well-formed multipart form",
    401: "an API key is needed: send it as Authorization: Bearer qf_...",
    403: "this API key has not the scope submit, which this call needs",
    404: f"there is no job {JOB_ID}, or no longer",
    409: f"job {JOB_ID} is running",
    410: f"job {JOB_ID} is expired; its result is gone",
    413: "the request body has 3221225472 bytes or more; at most 2147483648 are accepted",
    415: "file is video/mp4, and here images are taken. Send videos to POST /jobs/video",
    416: "the result has 148902 bytes; the range bytes=200000- begins behind them",
    422: "sigma is 900; model fitvnet-spatial.camera takes 0 to 55 (noise level on the 8-bit scale)",
    429: "600 requests a minute are allowed; this request will fit in 2 s",
    503: "no worker is ready",
}
_PLAIN = {
    400: ("malformed_request", "The request cannot be read"),
    416: ("range_not_satisfiable", "The range lies outside the result"),
}
_TOLD = {404: "job_not_found", 409: "job_not_ready", 422: "bad_input", 503: "not_ready"}  # of several codes, the likely


def _problem_answer(status: int) -> dict[str, Any]:
    of_status = [entry for entry in PROBLEMS.values() if entry[0] == status]
    likely = next((entry for entry in of_status if entry[1] == _TOLD.get(status)), of_status[0] if of_status else None)
    code, title, retryable = likely[1:] if likely else (*_PLAIN[status], False)
    example = {**problem(status, code, title, _DETAILS[status], retryable=retryable), "instance": "/jobs"}
    answer: dict[str, Any] = {
        "description": ". ".join(dict.fromkeys(entry[2] for entry in of_status)) or title,
        "content": {
            "application/problem+json": {
                "schema": {"$ref": "#/components/schemas/ProblemDocument"},
                "example": example,
            }
        },
    }
    if status in (429, 503):
        answer["headers"] = {"Retry-After": header("Seconds until another try is worth it.", "integer")}
    return answer


def tell_of_access(page: dict[str, Any], *, keys: bool) -> None:
    """Which calls need a key, and what is answered without one.

    Args:
        keys: whether this service asks for keys; a page that says so of one that does not would be wrong.
    """
    refusals = {str(status): answer for status, answer in problems(401, 403, 429).items()}
    refusals["401"]["headers"] = {"WWW-Authenticate": header("Always `Bearer`.")}
    refusals["429"]["headers"] |= {
        "RateLimit": header("How the caller stands: draft-ietf-httpapi-ratelimit-headers."),
        "RateLimit-Policy": header("The quotas, of requests and of pixels."),
    }
    page["components"]["securitySchemes"] = {"apiKey": _SCHEME}
    for path, item in page["paths"].items():
        for method, call in item.items():
            right = right_for(method.upper(), path)
            if right is not None:
                call["security"] = [{"apiKey": []}] if keys else [{}, {"apiKey": []}]
                call["responses"] |= refusals
                call["description"] = f"{call.get('description', '')}\n\nNeeds a key with the scope `{right}`.".strip()


_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "qf_{id}_{secret}",
    "description": "An API key, where the operator asks for them (`quietframe keys new`). It sees its own jobs only.",
}


def header(description: str, kind: str = "string") -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}


def document_answer(description: str, example: dict[str, Any], **headers: dict[str, Any]) -> dict[str, Any]:
    """An answer whose body is a job document."""
    answer: dict[str, Any] = {
        "description": description,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/JobDocument"}, "example": example},
        },
    }
    if headers:
        answer["headers"] = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer


ACCEPTED = document_answer(
    "Accepted; the document is the job as it stands.",
    QUEUED,
    Location=header("Where the job is."),
    Retry_After=header("Seconds until it is worth asking.", "integer"),
    ETag=header("Of the document."),
)
MOVED = {
    "description": "It is in a bucket, where the operator has set so: with the same name and type, ranges too, and an "
    "`ETag` of the bucket's own. The address holds for a while only; ask here again for another.",
    "headers": {"Location": header("A signed address in the bucket.")},
}
IMAGE_BYTES: dict[str, Any] = {
    media_type: {"schema": {"type": "string", "format": "binary"}}
    for media_type in ("image/png", "image/jpeg", "image/webp", "image/tiff", "image/avif", "image/x-exr")
}
FRAME_TABLE: dict[str, Any] = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["frames"],
            "properties": {
                "frames": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": list(COLUMNS),
                        "properties": {
                            name: {"type": "integer" if name == "frame" else ["number", "null"]} for name in COLUMNS
                        },
                    },
                }
            },
        },
        "example": json.loads(in_form(_TABLE.as_csv(), "json")),
    },
    "text/csv": {"schema": {"type": "string"}, "example": _TABLE.as_csv().decode()},
    "image/svg+xml": {"schema": {"type": "string"}},
}
RESULT_BYTES: dict[str, Any] = {
    media_type: {"schema": {"type": "string", "format": "binary"}}
    for media_type in (*IMAGE_BYTES, "video/mp4", "video/x-matroska", "video/quicktime", "video/webm")
}
