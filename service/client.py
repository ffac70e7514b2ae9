"""A client of a running service, for Python programs and for the command line: typed, with and without asyncio.

    with Client("http://localhost:8000") as quietframe:
        restored = quietframe.denoise_image(Path("noisy.png"), sigma=25)
        Path("restored.png").write_bytes(restored.content)
        job = quietframe.submit_video(Path("noisy.mp4"))
        job = quietframe.wait(job.id, on_progress=print)
        quietframe.download(job, Path("restored.mp4"))
        with quietframe.stream(frames, width=1280, height=720) as live:
            for restored in live:
                show(restored.pixels)

Needs httpx and pydantic, for streams grpcio, and nothing else of the service. A line that breaks while a job is
followed or fetched is taken up where it broke; a video is handed in under a key of its own, so that one sent twice is
one job.
"""

import asyncio
import hashlib
import json
import os
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import httpx

from models.errors import QuietframeError
from service.errors import problem_named
from service.job import JobDocument, JobState, Progress

if TYPE_CHECKING:  # loaded when the first stream is opened: jobs and images need no gRPC
    from service.rpc.calling import AsyncLiveStream, Call, Frame, LiveStream, PixelFormat

File = Path | bytes | BinaryIO
OnProgress = Callable[[Progress], object]

API_KEY = "QUIETFRAME_API_KEY"
_TRIES = 5  # of a line that breaks without anything new having come
_PAUSE_S = 0.5
_CONNECT_S = 10.0
_SILENCE_S = 60.0  # a followed job says something every 15 s, if only that it is still there
_CHUNK_BYTES = 1 << 18


class ServerProblem(QuietframeError):
    """What the service answered in place of what was asked for: its problem document."""

    def __init__(self, status: int, document: dict[str, Any], retry_after_s: float | None = None) -> None:
        super().__init__(str(document.get("detail") or document.get("title") or f"the server answered {status}"))
        self.status = status
        self.document = document
        self.retry_after_s = retry_after_s

    @property
    def code(self) -> str:
        """Stable short name, to branch on."""
        return str(self.document.get("code", ""))

    @property
    def retryable(self) -> bool:
        return bool(self.document.get("retryable", self.status >= 500 or self.status == httpx.codes.TOO_MANY_REQUESTS))


class ServerAway(QuietframeError):
    """The service cannot be reached, or the line to it broke too often."""


class Damaged(QuietframeError):
    """What was fetched is not what the service has."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job."""

    id: str
    kind: str  # state, progress or preview
    data: dict[str, Any]

    @property
    def is_final(self) -> bool:
        return self.kind == "state" and JobState(self.data["state"]).is_final


@dataclass(frozen=True, slots=True)
class Restored:
    """An image, and all that is known of how it came to be."""

    content: bytes
    content_type: str
    job: JobDocument


class Client:
    """To be used in one thread at a time; closed by `close`, or at the end of a `with`."""

    def __init__(
        self, base_url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, timeout_s: float = 330.0
    ) -> None:
        """
        Args:
            api_key: where the service asks for one; left out, that of the environment (`QUIETFRAME_API_KEY`).
            timeout_s: how long an image may take; a little more than the service's own `QUIETFRAME_SYNC_TIMEOUT_S`.
        """
        timeout = httpx.Timeout(timeout_s, connect=_CONNECT_S)
        self._http = httpx.Client(
            base_url=base_url, timeout=timeout, follow_redirects=True, headers=_key_header(api_key)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def denoise_image(self, file: File, *, reference: File | None = None, **fields: Any) -> Restored:
        """Send an image and wait for it.

        Args:
            reference: the clean original; PSNR and SSIM are measured against it.
            fields: as POST /denoise/image has them: model, sigma, strength, ensemble, format, quality, estimate,
                side_by_side.

        Raises:
            ServerProblem, ServerAway
        """
        answer = self._post("/denoise/image", file, reference, fields)
        return Restored(answer.content, answer.headers["Content-Type"], self.job(answer.headers["Quietframe-Job"]))

    def submit_image(self, file: File, *, reference: File | None = None, **fields: Any) -> JobDocument:
        """Hand an image in; raises as `denoise_image`."""
        return _job_of(self._post("/jobs/image", file, reference, fields))

    def submit_video(self, file: File, *, reference: File | None = None, **fields: Any) -> JobDocument:
        """Hand a video in; fields as POST /jobs/video has them. Raises as `denoise_image`."""
        return _job_of(self._post("/jobs/video", file, reference, fields))

    def job(self, job_id: str) -> JobDocument:
        return _job_of(self._ask("GET", f"/jobs/{job_id}"))

    def jobs(self, *, state: JobState | None = None, limit: int = 50) -> list[JobDocument]:
        """Newest first."""
        answer = self._ask("GET", "/jobs", params=_listing(state, limit))
        return [JobDocument.model_validate(one) for one in answer.json()["jobs"]]

    def cancel(self, job_id: str) -> None:
        """Say that it is not wanted; one that is over is removed with its result."""
        self._ask("DELETE", f"/jobs/{job_id}")

    def events(self, job_id: str, *, after: str | None = None) -> Iterator[Event]:
        """Follow a job from its beginning, or from behind an event, until it is over."""
        tries = 0
        while tries < _TRIES:
            try:
                with self._http.stream("GET", f"/jobs/{job_id}/events", **_following(after)) as answer:
                    if answer.status_code == httpx.codes.NO_CONTENT:
                        return
                    if answer.is_error:
                        answer.read()
                    _check(answer)
                    reader = _EventReader()
                    for line in answer.iter_lines():
                        if event := reader.feed(line):
                            after, tries = event.id, 0
                            yield event
                            if event.is_final:
                                return
            except httpx.TransportError:
                pass
            tries += 1
            time.sleep(_PAUSE_S * tries)
        raise ServerAway(f"job {job_id} could not be followed to its end")

    def wait(self, job_id: str, *, on_progress: OnProgress | None = None) -> JobDocument:
        """Until it is over; how it ended is in the document."""
        for event in self.events(job_id):
            if on_progress and event.kind == "progress":
                on_progress(Progress.model_validate(event.data))
        return self.job(job_id)

    def download(self, job: JobDocument, target: Path) -> None:
        """Fetch what came of a job, all of it or nothing, and hold it against its hash.

        Raises:
            Damaged
            ServerProblem, ServerAway
        """
        fetch = _Fetch(job, target)
        with fetch:
            while fetch.goes_on():
                try:
                    with self._http.stream("GET", fetch.path, headers=fetch.headers()) as answer:
                        if answer.is_error:
                            answer.read()
                        fetch.begin(_check(answer))
                        for chunk in answer.iter_bytes(_CHUNK_BYTES):
                            fetch.take(chunk)
                except httpx.TransportError:
                    time.sleep(_PAUSE_S)
            fetch.finish()

    def frames(self, job_id: str, form: str = "csv") -> bytes:
        """What was measured of each frame of a video: csv, json or svg."""
        return self._ask("GET", f"/jobs/{job_id}/frames", params={"format": form}).content

    def stream(
        self,
        frames: "Iterable[Frame]",
        *,
        width: int,
        height: int,
        pixel_format: "PixelFormat" = "rgb8",
        in_flight: int | None = None,
        timeout_s: float | None = None,
        address: str | None = None,
        **fields: Any,
    ) -> "LiveStream":
        """Have live frames restored as they come, over gRPC; the stream is open when this returns.

        Args:
            frames: all pixels of each, [height, width, 3] RGB, a byte a value, or two with the lower one first. They
                are taken one by one in a thread, each when there is room for it: who is too fast is held back.
            width: of all of them.
            height: likewise.
            pixel_format: likewise.
            in_flight: frames that may be without an answer, at most; left out, as many as keep the service busy. Fewer
                come back sooner, and fewer a second.
            timeout_s: how long the stream may last.
            address: `host:port` of the service's gRPC; left out, it is asked for.
            fields: model, sigma, strength.

        Raises, as does iterating:
            ServerProblem, ServerAway
        """
        from service.rpc.calling import LiveStream

        if address is None:
            address = _rpc_address(self._http.base_url, self._ask("GET", "/"))
        call = _call(self._http, address, width, height, pixel_format, in_flight, timeout_s, fields)
        return LiveStream(call, frames, _rpc_problem)

    def _post(self, path: str, file: File, reference: File | None, fields: dict[str, Any]) -> httpx.Response:
        with ExitStack() as opened:
            return self._ask("POST", path, **_upload(path, file, reference, fields, opened))

    def _ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        try:
            return _check(self._http.request(method, path, **how))
        except httpx.TransportError as err:
            raise _away(self._http.base_url, err) from err


class AsyncClient:
    """The same for an event loop."""

    def __init__(
        self, base_url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, timeout_s: float = 330.0
    ) -> None:
        """As `Client`."""
        timeout = httpx.Timeout(timeout_s, connect=_CONNECT_S)
        self._http = httpx.AsyncClient(
            base_url=base_url, timeout=timeout, follow_redirects=True, headers=_key_header(api_key)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def denoise_image(self, file: File, *, reference: File | None = None, **fields: Any) -> Restored:
        """As `Client.denoise_image`; cancelled, it cancels the job."""
        answer = await self._post("/denoise/image", file, reference, fields)
        job = await self.job(answer.headers["Quietframe-Job"])
        return Restored(answer.content, answer.headers["Content-Type"], job)

    async def submit_image(self, file: File, *, reference: File | None = None, **fields: Any) -> JobDocument:
        return _job_of(await self._post("/jobs/image", file, reference, fields))

    async def submit_video(self, file: File, *, reference: File | None = None, **fields: Any) -> JobDocument:
        return _job_of(await self._post("/jobs/video", file, reference, fields))

    async def job(self, job_id: str) -> JobDocument:
        return _job_of(await self._ask("GET", f"/jobs/{job_id}"))

    async def jobs(self, *, state: JobState | None = None, limit: int = 50) -> list[JobDocument]:
        answer = await self._ask("GET", "/jobs", params=_listing(state, limit))
        return [JobDocument.model_validate(one) for one in answer.json()["jobs"]]

    async def cancel(self, job_id: str) -> None:
        await self._ask("DELETE", f"/jobs/{job_id}")

    async def events(self, job_id: str, *, after: str | None = None) -> AsyncIterator[Event]:
        """As `Client.events`."""
        tries = 0
        while tries < _TRIES:
            try:
                async with self._http.stream("GET", f"/jobs/{job_id}/events", **_following(after)) as answer:
                    if answer.status_code == httpx.codes.NO_CONTENT:
                        return
                    if answer.is_error:
                        await answer.aread()
                    _check(answer)
                    reader = _EventReader()
                    async for line in answer.aiter_lines():
                        if event := reader.feed(line):
                            after, tries = event.id, 0
                            yield event
                            if event.is_final:
                                return
            except httpx.TransportError:
                pass
            tries += 1
            await asyncio.sleep(_PAUSE_S * tries)
        raise ServerAway(f"job {job_id} could not be followed to its end")

    async def wait(self, job_id: str, *, on_progress: OnProgress | None = None) -> JobDocument:
        async for event in self.events(job_id):
            if on_progress and event.kind == "progress":
                on_progress(Progress.model_validate(event.data))
        return await self.job(job_id)

    async def download(self, job: JobDocument, target: Path) -> None:
        """As `Client.download`."""
        fetch = _Fetch(job, target)
        with fetch:
            while fetch.goes_on():
                try:
                    async with self._http.stream("GET", fetch.path, headers=fetch.headers()) as answer:
                        if answer.is_error:
                            await answer.aread()
                        fetch.begin(_check(answer))
                        async for chunk in answer.aiter_bytes(_CHUNK_BYTES):
                            await asyncio.to_thread(fetch.take, chunk)
                except httpx.TransportError:
                    await asyncio.sleep(_PAUSE_S)
            fetch.finish()

    async def frames(self, job_id: str, form: str = "csv") -> bytes:
        return (await self._ask("GET", f"/jobs/{job_id}/frames", params={"format": form})).content

    def stream(
        self,
        frames: "AsyncIterable[Frame] | Iterable[Frame]",
        *,
        width: int,
        height: int,
        pixel_format: "PixelFormat" = "rgb8",
        in_flight: int | None = None,
        timeout_s: float | None = None,
        address: str | None = None,
        **fields: Any,
    ) -> "AsyncLiveStream":
        """As `Client.stream`; opened by `async with`."""
        from service.rpc.calling import AsyncLiveStream

        async def call() -> "Call":
            place = address or _rpc_address(self._http.base_url, await self._ask("GET", "/"))
            return _call(self._http, place, width, height, pixel_format, in_flight, timeout_s, fields)

        return AsyncLiveStream(call, frames, _rpc_problem)

    async def _post(self, path: str, file: File, reference: File | None, fields: dict[str, Any]) -> httpx.Response:
        with ExitStack() as opened:
            return await self._ask("POST", path, **_upload(path, file, reference, fields, opened))

    async def _ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        try:
            return _check(await self._http.request(method, path, **how))
        except httpx.TransportError as err:
            raise _away(self._http.base_url, err) from err


def _rpc_address(base_url: httpx.URL, about: httpx.Response) -> str:
    host = f"[{base_url.host}]" if ":" in base_url.host else base_url.host
    return f"{host}:{about.json()['grpc_port']}"


def _call(
    http: httpx.Client | httpx.AsyncClient,
    address: str,
    width: int,
    height: int,
    pixel_format: "PixelFormat",
    in_flight: int | None,
    timeout_s: float | None,
    fields: dict[str, Any],
) -> "Call":
    from service.rpc.calling import Call
    from service.rpc.generated.quietframe.v1 import denoiser_pb2 as pb

    said = {name: value for name, value in fields.items() if value is not None}
    shape = pb.StreamSetup(width=width, height=height, pixel_format=f"PIXEL_FORMAT_{pixel_format.upper()}", **said)
    key = http.headers.get("Authorization")
    return Call(
        address=address,
        is_secure=http.base_url.scheme == "https",
        setup=shape,
        metadata=(("authorization", key),) if key else (),
        in_flight=in_flight,
        timeout_s=timeout_s,
    )


def _rpc_problem(err: Any) -> ServerProblem | ServerAway:
    """What a `grpc.RpcError` tells, as over HTTP."""
    detail, status = str(err.details()), err.code().name
    if code := dict(err.trailing_metadata() or ()).get("quietframe-code"):
        document = problem_named(str(code), detail)
        return ServerProblem(int(str(document["status"])), document)
    if status == "UNAVAILABLE":
        return ServerAway(f"the service cannot be reached by gRPC, or is gone: {detail}")
    return ServerProblem(500, {"detail": detail, "code": status.lower()})


@dataclass(slots=True)
class _EventReader:
    """Puts the lines of an event stream together (WHATWG, "Server-sent events")."""

    _fields: dict[str, str] = field(default_factory=dict)

    def feed(self, line: str) -> Event | None:
        """The event that ends with this line, if one does."""
        if line:
            name, _, value = line.partition(":")
            if name:  # a comment has none
                self._fields[name] = value.removeprefix(" ")
            return None
        told, self._fields = self._fields, {}
        if "data" not in told:
            return None
        return Event(told.get("id", ""), told.get("event", ""), json.loads(told["data"]))


class _Fetch:
    """A result on its way to its file: what is there, what is still to come, and whether it is what it should be."""

    def __init__(self, job: JobDocument, target: Path) -> None:
        if job.result is None:
            raise Damaged(f"job {job.id} is {job.state} and has no result")
        self.path = job.result.url
        self._result = job.result
        self._target = target
        self._unfinished = target.with_name(target.name + ".part")
        self._at = 0
        self._tries = 0

    def __enter__(self) -> Self:
        self._file = self._unfinished.open("wb")
        self._hash = hashlib.sha256()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._unfinished.unlink(missing_ok=True)

    def goes_on(self) -> bool:
        if self._at < self._result.bytes and self._tries == _TRIES:
            raise ServerAway(f"{self.path} broke off {_TRIES} times at byte {self._at} of {self._result.bytes}")
        self._tries += 1
        return self._at < self._result.bytes

    def headers(self) -> dict[str, str]:
        return {"Accept-Encoding": "identity"} | ({"Range": f"bytes={self._at}-"} if self._at else {})

    def begin(self, answer: httpx.Response) -> None:
        """A server that gives no part of it gives it all: then from the beginning."""
        if self._at and answer.status_code != httpx.codes.PARTIAL_CONTENT:
            self._at = 0
            self._file.seek(0)
            self._file.truncate()
            self._hash = hashlib.sha256()

    def take(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._hash.update(chunk)
        self._at += len(chunk)
        self._tries = 0

    def finish(self) -> None:
        if self._hash.hexdigest() != self._result.sha256:
            raise Damaged(f"{self.path} came with another hash than its job has; it is not kept")
        self._file.close()
        self._unfinished.replace(self._target)


def _key_header(api_key: str | None) -> dict[str, str]:
    """Sent to the service alone: httpx drops it where a redirect leads to another host, such as a bucket's."""
    key = (api_key if api_key is not None else os.environ.get(API_KEY, "")).strip()
    return {"Authorization": f"Bearer {key}"} if key else {}


def _upload(path: str, file: File, reference: File | None, fields: dict[str, Any], opened: ExitStack) -> dict[str, Any]:
    files = {"file": _part(file, opened)} | ({"reference": _part(reference, opened)} if reference is not None else {})
    key = fields.pop("idempotency_key", None)
    if key is None and path.startswith("/jobs/"):
        key = str(uuid.uuid4())
    told = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in fields.items()}
    data = {name: value for name, value in told.items() if fields[name] is not None}
    return {"files": files, "data": data, "headers": {"Idempotency-Key": key} if key else {}}


def _part(file: File, opened: ExitStack) -> tuple[str, bytes | BinaryIO]:
    if isinstance(file, Path):
        return file.name, opened.enter_context(file.open("rb"))
    return ("file", file)


def _following(after: str | None) -> dict[str, Any]:
    headers = {"Last-Event-ID": after} if after else {}
    return {"headers": headers, "timeout": httpx.Timeout(_SILENCE_S, connect=_CONNECT_S)}


def _listing(state: JobState | None, limit: int) -> dict[str, Any]:
    return {"limit": limit} | ({"state": str(state)} if state else {})


def _check(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        document = answer.json()
    except ValueError:
        document = {}
    after = answer.headers.get("Retry-After", "")
    raise ServerProblem(
        answer.status_code, document if isinstance(document, dict) else {}, float(after) if after.isdigit() else None
    )


def _job_of(answer: httpx.Response) -> JobDocument:
    return JobDocument.model_validate_json(answer.content)


def _away(base_url: httpx.URL, err: Exception) -> ServerAway:
    return ServerAway(f"{base_url} cannot be reached: {err or type(err).__name__}")
