"""A caller's end of `DenoiseStream`, with and without asyncio: sends no further ahead than is of use."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
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


class _Ends:
    """What both kinds of stream know."""

    def __init__(self, call: Call, translate: Translate) -> None:
        self._asked = call
        self._translate = translate
        self._taken_at: deque[float] = deque()  # when each unanswered frame was taken
        self._answered = 0
        self._failure: BaseException | None = None  # of the source of frames
        self.start = pb.StreamStart()

    def _room(self) -> int:
        """How many frames may be without an answer. With fewer than the window reaches nothing would ever come."""
        wanted = self._asked.in_flight or self.start.frames_in_flight
        return max(wanted, self.start.latency_frames + 1)

    def _take(self, message: pb.DenoiseStreamResponse) -> RestoredFrame:
        made = RestoredFrame(message.frame, self._answered, time.perf_counter() - self._taken_at.popleft())
        self._answered += 1
        return made


class LiveStream(_Ends):
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
        super().__init__(call, translate)
        self._frames = frames
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
            self.start = self._next().start
        except BaseException:
            self.close()
            raise
        for _ in range(self._room()):
            self._free.release()
        self._begun.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[RestoredFrame]:
        try:
            while True:
                try:
                    message = self._next()
                except StopIteration:
                    return
                yield self._take(message)
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

    def _next(self) -> pb.DenoiseStreamResponse:
        try:
            message: pb.DenoiseStreamResponse = next(self._call)
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


class AsyncLiveStream(_Ends):
    """The same for an event loop: `async with`, which opens it, and `async for`."""

    def __init__(
        self,
        call: Callable[[], Any],
        frames: AsyncIterable[Frame] | Iterable[Frame],
        translate: Translate,
    ) -> None:
        """
        Args:
            call: awaited when it is opened; gives a `Call`.
            frames: those of a plain iterable are read in threads.
            translate: as for `LiveStream`.
        """
        self._ask = call
        self._frames = frames
        self._translate = translate
        self._feeding: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        call: Call = await self._ask()
        super().__init__(call, self._translate)
        self._channel = (
            grpc.aio.secure_channel(call.address, grpc.ssl_channel_credentials(), options=_OPTIONS)
            if call.is_secure
            else grpc.aio.insecure_channel(call.address, options=_OPTIONS)
        )
        self._call: Any = DenoiserStub(self._channel).DenoiseStream(  # type: ignore[no-untyped-call]
            timeout=call.timeout_s, metadata=call.metadata
        )
        try:
            await self._send(pb.DenoiseStreamRequest(setup=call.setup))
            first = await self._next()
            self.start = first.start if first is not None else self.start
        except BaseException:
            await self.close()
            raise
        self._free = asyncio.Semaphore(self._room())
        self._feeding = asyncio.ensure_future(self._feed())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[RestoredFrame]:
        while (message := await self._next()) is not None:
            yield self._take(message)
            self._free.release()

    async def close(self) -> None:
        """As `LiveStream.close`."""
        if self._feeding is not None:
            self._feeding.cancel()
        self._call.cancel()
        await self._channel.close()

    async def _feed(self) -> None:
        async for frame in _in_turn(self._frames, self._free):
            self._taken_at.append(time.perf_counter())
            await self._send(pb.DenoiseStreamRequest(frame=bytes(frame)))
        await self._call.done_writing()

    async def _send(self, message: pb.DenoiseStreamRequest) -> None:
        try:
            await self._call.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # it has ended; who reads learns why

    async def _next(self) -> pb.DenoiseStreamResponse | None:
        """The next answer, None at the end. Raises what the source of frames raised, as soon as it did."""
        reading: asyncio.Future[Any] = asyncio.ensure_future(self._call.read())
        waited_for = [reading] if self._feeding is None else [reading, self._feeding]
        try:
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            if self._feeding is not None and self._feeding.done():
                self._feeding.result()
            message = await reading
        except grpc.RpcError as err:
            raise self._translate(err) from None
        finally:
            reading.cancel()
        if message is not grpc.aio.EOF:
            answer: pb.DenoiseStreamResponse = message
            return answer
        if await self._call.code() is grpc.StatusCode.OK:
            return None
        raise self._translate(
            grpc.aio.AioRpcError(
                await self._call.code(),
                await self._call.initial_metadata(),
                await self._call.trailing_metadata(),
                await self._call.details(),
            )
        )


async def _in_turn(frames: AsyncIterable[Frame] | Iterable[Frame], free: asyncio.Semaphore) -> AsyncIterator[Frame]:
    """Each taken from its source when there is room for it."""
    await free.acquire()
    if isinstance(frames, AsyncIterable):
        async for frame in frames:
            yield frame
            await free.acquire()
        return
    source = iter(frames)
    while (found := await asyncio.to_thread(next, source, None)) is not None:
        yield found
        await free.acquire()
