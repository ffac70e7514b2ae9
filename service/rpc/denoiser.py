"""`quietframe.v1.Denoiser`: the same jobs as over REST, asked for and followed in messages."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any, BinaryIO

from service.asking import answer_of, hand_in, outcome_of
from service.errors import BadInput, NotReady
from service.intake import Asked
from service.job import JobState, Progress
from service.rpc.generated.quietframe.v1 import denoiser_pb2 as pb
from service.rpc.generated.quietframe.v1 import denoiser_pb2_grpc as wire
from service.rpc.messages import job_of, options_of, state_of
from service.rpc.problems import refuse_with
from service.rpc.stream import denoise_stream
from service.rpc.uploads import VideoUpload
from service.services import Services

NAME = "quietframe.v1.Denoiser"
_CHUNK_BYTES = 256 * 1024


class DenoiserService(wire.DenoiserServicer):
    def __init__(self, services: Services) -> None:
        self._services = services

    async def DenoiseImage(self, request: pb.DenoiseImageRequest, context: Any) -> pb.DenoiseImageResponse:
        asked = Asked(
            kind="image",
            content=io.BytesIO(request.image),
            name=request.name,
            options=options_of(request.options),
            model=request.model or "auto",
            reference=io.BytesIO(request.reference) if request.reference else None,
            waited_for=True,
        )
        record, outcome = await answer_of(self._services, asked, patience_s=context.time_remaining())
        image = await asyncio.to_thread(self._read, outcome.result.blob)
        return pb.DenoiseImageResponse(image=image, content_type=outcome.result.content_type, job=job_of(record))

    def DenoiseStream(
        self, request_iterator: AsyncIterator[pb.DenoiseStreamRequest], context: Any
    ) -> AsyncIterator[pb.DenoiseStreamResponse]:
        return denoise_stream(self._services, request_iterator)

    async def SubmitVideo(
        self, request_iterator: AsyncIterator[pb.SubmitVideoRequest], context: Any
    ) -> pb.SubmitVideoResponse:
        services = self._services
        upload = VideoUpload(services.spool, max_bytes=services.settings.max_upload_bytes)
        await upload.read(request_iterator)
        assert upload.content is not None
        video = upload.video
        asked = Asked(
            kind="video",
            content=upload.content,
            name=video.name,
            options=options_of(video.options),
            model=video.model or "auto",
            reference=upload.reference,
            webhook_url=video.webhook_url or None,
        )
        job_id = await hand_in(services, asked, idempotency_key=video.idempotency_key or None)
        return pb.SubmitVideoResponse(job=job_of(await services.queue.get(job_id)))

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=job_of(await self._services.queue.get(request.id)))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:
        return pb.CancelJobResponse(job=job_of(await self._services.queue.cancel(request.id)))

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:
        queue, draining = self._services.queue, self._services.draining
        feed = queue.events(request.id, request.after_event_id or None)
        stopping = asyncio.ensure_future(draining.wait())
        upcoming: asyncio.Future[Any] | None = None
        try:
            while True:
                upcoming = asyncio.ensure_future(anext(feed, None))
                await asyncio.wait({upcoming, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not upcoming.done():  # an open stream would hold the end of the process up
                    raise NotReady("the process is stopping; ask again behind the last event")
                if (item := upcoming.result()) is None:
                    return
                message = _event_of(*item)
                if message.WhichOneof("event") == "state":
                    record = await queue.get(request.id)
                    if record.state.is_final and message.state == state_of(record.state):
                        message.job.CopyFrom(job_of(record))
                yield message
        finally:
            stopping.cancel()
            if upcoming is not None:
                upcoming.cancel()

    async def GetResult(self, request: pb.GetResultRequest, context: Any) -> AsyncIterator[pb.GetResultResponse]:
        result = outcome_of(await self._services.queue.get(request.id)).result
        if request.offset < 0:
            raise BadInput(f"offset is {request.offset}; it counts bytes from 0")
        if request.offset > result.bytes:
            detail = f"offset is {request.offset}; the result has {result.bytes} bytes"
            await refuse_with(context, {"code": "range_not_satisfiable", "detail": detail})
        info = pb.ResultInfo(
            content_type=result.content_type, bytes=result.bytes, sha256=result.sha256, file_name=result.file_name
        )
        file = await asyncio.to_thread(self._services.store.open, result.blob)
        try:
            await asyncio.to_thread(file.seek, request.offset)
            at = request.offset
            chunk = await asyncio.to_thread(file.read, _CHUNK_BYTES)
            yield pb.GetResultResponse(info=info, offset=at, chunk=chunk)
            while chunk:
                at += len(chunk)
                chunk = await asyncio.to_thread(file.read, _CHUNK_BYTES)
                if chunk:
                    yield pb.GetResultResponse(offset=at, chunk=chunk)
        finally:
            file.close()

    def _read(self, blob: str) -> bytes:
        file: BinaryIO
        with self._services.store.open(blob) as file:
            return file.read()


def _event_of(event_id: str, event: dict[str, Any]) -> pb.WatchJobResponse:
    kind = event["event"]
    if kind == "state":
        return pb.WatchJobResponse(event_id=event_id, state=state_of(JobState(event["state"])))
    if kind == "preview":
        return pb.WatchJobResponse(event_id=event_id, preview_url=event["url"])
    told = Progress.model_validate(event).model_dump(exclude_none=True)
    return pb.WatchJobResponse(event_id=event_id, progress=pb.Progress(**told))
