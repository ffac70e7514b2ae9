"""How a job is shown: its document with the headers a poller needs, and its result as bytes."""

import asyncio
import base64
import hashlib
import math
from collections.abc import AsyncIterator, Mapping
from typing import BinaryIO

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api.headers import attachment
from service.asking import outcome_of
from service.blobs import BlobStore
from service.errors import JobNotReady, ResultGone
from service.job import FrameTableBlob, JobState, Metrics, NoiseEstimate, Outcome, Preview, Record, Result, document_of

_CHUNK_BYTES = 256 * 1024
_LONGEST_PAUSE_S = 30  # between two polls of a long video
_PAUSE_S = {"image": 1, "video": 5}  # while nothing is known of the end yet


def body_of(record: Record) -> bytes:
    return document_of(record).model_dump_json().encode()


def etag_of(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def retry_after_s(record: Record) -> int:
    """When to ask again: about when it should be done, but often enough to show progress."""
    eta_s = record.progress.eta_seconds
    if eta_s is None or not math.isfinite(eta_s):
        return _PAUSE_S[record.job.kind]
    return min(max(math.ceil(eta_s), 1), _LONGEST_PAUSE_S)


def document_response(record: Record, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = body_of(record)
    told = {"ETag": etag_of(body), "Cache-Control": "no-cache"}
    if not record.state.is_final:
        told["Retry-After"] = str(retry_after_s(record))
    return Response(body, status, {**told, **(headers or {})}, media_type="application/json")


def accepted_response(record: Record, headers: Mapping[str, str] | None = None) -> Response:
    """202, and where to look for what comes of it; `Retry-After` even where a replayed job is done by now."""
    told = {"Location": f"/jobs/{record.job.id}", "Retry-After": str(retry_after_s(record))}
    return document_response(record, 202, {**told, **(headers or {})})


def preview_of(record: Record) -> Preview:
    """How the result will look.

    Raises:
        JobNotReady: nobody knows yet.
        ResultGone: nobody will, or it is deleted.
    """
    if record.state is JobState.EXPIRED:
        raise ResultGone(f"job {record.job.id} is expired; its preview is gone")
    if record.preview:
        return record.preview
    if record.job.kind == "image":
        raise ResultGone(f"job {record.job.id} is an image; only videos have a preview")
    if record.state.is_final:
        raise ResultGone(f"job {record.job.id} is {record.state}, and no preview was made")
    raise JobNotReady(f"job {record.job.id} is {record.state}, and its first frame is not restored yet")


def frame_table_of(record: Record) -> FrameTableBlob:
    """What was measured of a video's frames.

    Raises:
        JobNotReady: nothing yet.
        ResultGone: there is none, or no longer.
    """
    table = outcome_of(record).per_frame
    if table is None:
        raise ResultGone(f"job {record.job.id} has no figures of single frames; only videos have")
    return table


def result_headers(result: Result) -> dict[str, str]:
    """What holds for a result whoever asks for it: it never changes, and a browser shall not guess its type."""
    digest = base64.b64encode(bytes.fromhex(result.sha256)).decode()
    return {
        "Content-Type": result.content_type,
        "Content-Disposition": attachment(result.file_name),
        "Accept-Ranges": "bytes",
        "ETag": f'"{result.sha256}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
    }


async def result_response(
    store: BlobStore,
    result: Result,
    headers: Mapping[str, str] | None = None,
    *,
    stretch: tuple[int, int] | None = None,
    bodiless: bool = False,
) -> Response:
    """Send a result, or with `stretch` the bytes from first to last, both counted; `bodiless` answers HEAD.

    Raises:
        ResultGone: its bytes are no longer stored.
    """
    first, last = stretch or (0, result.bytes - 1)
    length = last - first + 1
    told = {**result_headers(result), **(headers or {})}
    if stretch:
        told["Content-Range"] = f"bytes {first}-{last}/{result.bytes}"
    status = 206 if stretch else 200
    if bodiless:
        return Response(None, status, {**told, "Content-Length": str(length)})
    file = await asyncio.to_thread(store.open, result.blob)
    return BlobResponse(file, first=first, length=length, status=status, headers=told)


async def redirect_response(
    store: BlobStore, result: Result, *, ttl_s: float, bodiless: bool = False
) -> Response | None:
    """Send the caller to where the bytes are, for so long; None where the store lets nobody in.

    Raises:
        ResultGone: its bytes are no longer stored.
    """
    url = await asyncio.to_thread(
        store.link,
        result.blob,
        method="HEAD" if bodiless else "GET",
        ttl_s=ttl_s,
        content_type=result.content_type,
        disposition=attachment(result.file_name),
    )
    if url is None:
        return None
    # Not to be kept: the address runs out, and until then whoever has it may read.
    return Response(None, 307, {"Location": url, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})


def measured_headers(job_id: str, model: str, outcome: Outcome) -> dict[str, str]:
    """The job document's figures, for a caller who took the image instead."""
    metrics = outcome.metrics
    figures = {
        "Quietframe-Sigma-Estimate": metrics.sigma_estimate,
        "Quietframe-PSNR": metrics.psnr_db,
        "Quietframe-SSIM": metrics.ssim,
        "Quietframe-Input-PSNR": metrics.input_psnr_db,
        "Quietframe-PSNR-Estimate": metrics.psnr_estimate_db,
        "Quietframe-PSNR-Estimate-Error": metrics.psnr_estimate_error_db,
        "Quietframe-Input-Noise-Estimate": _mean_of(metrics.input_noise_estimate),
        "Quietframe-Output-Noise-Estimate": _mean_of(metrics.output_noise_estimate),
    }
    return {
        "Quietframe-Job": job_id,
        "Quietframe-Model": model,
        "Quietframe-Backend": outcome.backend,
        "Quietframe-Precision": outcome.precision,
        **{name: f"{value:.4f}" for name, value in figures.items() if value is not None},
        "Server-Timing": _server_timing(metrics),
    }


def _mean_of(noise: NoiseEstimate | None) -> float | None:
    """Of all colours: what a denoiser that must be told is told."""
    return math.sqrt(sum(sigma**2 for sigma in noise.sigma) / len(noise.sigma)) if noise and noise.sigma else None


def _server_timing(metrics: Metrics) -> str:
    """Milliseconds for a browser's network panel (W3C Server Timing)."""
    return ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in metrics.seconds.model_dump().items())


class BlobResponse(StreamingResponse):
    """Sends a stretch of an open file and closes it, however the sending ends."""

    def __init__(self, file: BinaryIO, *, first: int, length: int, status: int, headers: Mapping[str, str]) -> None:
        self._file = file
        super().__init__(self._chunks(first, length), status, {**headers, "Content-Length": str(length)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()

    async def _chunks(self, first: int, length: int) -> AsyncIterator[bytes]:
        await asyncio.to_thread(self._file.seek, first)
        while length > 0:
            chunk = await asyncio.to_thread(self._file.read, min(_CHUNK_BYTES, length))
            if not chunk:
                return  # the server notices that fewer bytes came than were announced, and drops the connection
            length -= len(chunk)
            yield chunk
