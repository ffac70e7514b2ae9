"""A caller's end of `DenoiseStream`, with and without asyncio: sends no further ahead than is of use."""

import asyncio
import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import grpc

from service.rpc.generated.quietframe.v1 import denoiser_pb2 as pb
from service.rpc.generated.quietframe.v1.denoiser_pb2_grpc import DenoiserStub

PixelFormat = Literal["rgb8", "rgb16"]
Frame = bytes | bytearray | memoryview  # or whatever else shows its memory, such as a NumPy array without gaps
Translate = Callable[[grpc.RpcError], Exception]

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(frozen=True, slots=True)
class RestoredFrame:
    """The next frame of a stream, restored."""

    pixels: bytes  # as they were sent: [height, width, 3] RGB
    number: int  # from 0
    latency_s: float  # since the frame was taken from its source


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is called, where, and by whom."""

    address: str
    is_secure: bool
    setup: pb.StreamSetup
    metadata: tuple[tuple[str, str], ...] = ()
    in_flight: int | None = None  # frames without an answer, at most; None takes what the service says
    timeout_s: float | None = None  # of the whole stream


class LiveStream:
    """An open stream: iterate over it for the restored frames, in the order of those sent.

    It is closed at the end of a `with`. `start` tells who restores, and how many frames behind.
    """

    def __init__(self, call: Call, frames: Iterable[Frame], translate: Translate) -> None:
        """Open it, and wait for its place.

        Args:
            call: where to.
            frames: read in a thread of their own, each when there is room for it. What reading raises is raised to who
                iterates.
            translate: what errors of the call are to callers of ours.
        """
        self._asked, self._frames, self._translate = call, frames, translate
        self._taken_at: deque[float] = deque()  # when each unanswered frame was taken
        self._failure: BaseException | None = None  # of the source of frames
        self.start = pb.StreamStart()
        self._begun = threading.Event()
        self._free = threading.Semaphore(0)
        self._closed = False
        self._channel = (
            grpc.secure_channel(call.address, grpc.ssl_channel_credentials(), options=_OPTIONS)
            if call.is_secure
            else grpc.insecure_channel(call.address, options=_OPTIONS)
        )
        self._call: Any = None
        try:
            stub = DenoiserStub(self._channel)  # type: ignore[no-untyped-call]
            self._call = stub.DenoiseStream(self._requests(), timeout=call.timeout_s, metadata=call.metadata)
            first = self._next()
            self.start = first.start if first is not None else self.start
        except BaseException:
            self.close()
            raise
        # With fewer than the window reaches nothing would ever come.
        wanted = call.in_flight or self.start.frames_in_flight
        self._free.release(max(wanted, self.start.latency_frames + 1))
        self._begun.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[RestoredFrame]:
        number = 0
        try:
            while (message := self._next()) is not None:
                yield RestoredFrame(message.frame, number, time.perf_counter() - self._taken_at.popleft())
                number += 1
                self._free.release()
        finally:
            self.close()

    def close(self) -> None:
        """End it, whatever was not answered yet; also where it has ended."""
        self._closed = True
        self._begun.set()
        self._free.release()  # for the thread that waits to send
        if self._call is not None:
            self._call.cancel()
        self._channel.close()

    def _next(self) -> pb.DenoiseStreamResponse | None:
        """The next answer; None at the end."""
        try:
            message: pb.DenoiseStreamResponse | None = next(self._call, None)
        except grpc.RpcError as err:
            if self._failure:
                raise self._failure from None
            raise self._translate(err) from None
        return message

    def _requests(self) -> Iterator[pb.DenoiseStreamRequest]:
        """Runs in a thread of gRPC's."""
        yield pb.DenoiseStreamRequest(setup=self._asked.setup)
        self._begun.wait()
        try:
            frames = iter(self._frames)
            while True:
                self._free.acquire()
                if self._closed or (frame := next(frames, None)) is None:
                    return
                self._taken_at.append(time.perf_counter())
                yield pb.DenoiseStreamRequest(frame=bytes(frame))
        except Exception as err:
            self._failure = err
            self._call.cancel()


class AsyncLiveStream:
    """The same for an event loop: `async with`, which opens it, and `async for`.

    It is the other one, in a thread: gRPC's own calls for event loops lose the status of a call that the service ends
    while a frame is being sent.
    """

    def __init__(
        self, call: Callable[[], Awaitable[Call]], frames: AsyncIterable[Frame] | Iterable[Frame], translate: Translate
    ) -> None:
        """
        Args:
            call: awaited when it is opened.
            frames: those of a plain iterable are read in a thread.
            translate: as for `LiveStream`.
        """
        self._ask, self._source, self._translate = call, frames, translate
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="live-stream")
        self._live: LiveStream | None = None
        self._upcoming: concurrent.futures.Future[Frame | None] | None = None  # of a source in the event loop

    @property
    def start(self) -> pb.StreamStart:
        assert self._live is not None, "async with comes first"
        return self._live.start

    async def __aenter__(self) -> Self:
        call = await self._ask()
        self._loop = asyncio.get_running_loop()
        frames = self._from_loop(self._source) if isinstance(self._source, AsyncIterable) else self._source
        opening = self._thread.submit(LiveStream, call, frames, self._translate)
        try:
            self._live = await asyncio.wrap_future(opening)
        except BaseException:
            opening.add_done_callback(_close_late)
            self._thread.shutdown(wait=False)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aiter__(self) -> AsyncIterator[RestoredFrame]:
        assert self._live is not None, "async with comes first"
        answers = iter(self._live)
        while (restored := await self._loop.run_in_executor(self._thread, next, answers, None)) is not None:
            yield restored

    def close(self) -> None:
        """As `LiveStream.close`."""
        if self._live is not None:
            self._live.close()
        if self._upcoming is not None:
            self._upcoming.cancel()
        self._thread.shutdown(wait=False)

    def _from_loop(self, frames: AsyncIterable[Frame]) -> Iterator[Frame]:
        """Runs in a thread; the frames are made where the caller is."""
        source = aiter(frames)

        async def upcoming() -> Frame | None:
            return await anext(source, None)

        while True:
            self._upcoming = asyncio.run_coroutine_threadsafe(upcoming(), self._loop)
            if (frame := self._upcoming.result()) is None:
                return
            yield frame


def _close_late(opening: "concurrent.futures.Future[LiveStream]") -> None:
    """Whoever waited for it to open has gone."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
