"""`DenoiseStream`: finds a worker with a place for a live stream, and carries frames there and back."""

import asyncio
import logging
import random
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc

from service.broker.card import LivePlace, WorkerCard
from service.errors import (
    BadInput,
    FrameTooLarge,
    JobFailed,
    NotReady,
    StreamBroken,
    StreamIdle,
    StreamsFull,
)
from service.intake import check_options
from service.job import Options
from service.rpc.generated.quietframe.v1 import denoiser_pb2 as pb
from service.rpc.relay import OPTIONS, RESTORE, TOKEN_KEY, Problem, unpack
from service.services import Services
from service.telemetry import tracing

log = logging.getLogger(__name__)

_CONNECT_S = 5.0
_START_S = 120.0  # a model that was not loaded yet is, first
_LOOPBACK = ("127.", "localhost", "[::1]")
_AROUND_BYTES = 64  # of a message, around its frame
_BYTES_OF = {pb.PIXEL_FORMAT_UNSPECIFIED: 3, pb.PIXEL_FORMAT_RGB8: 3, pb.PIXEL_FORMAT_RGB16: 6}  # of a pixel

Requests = AsyncIterator[pb.DenoiseStreamRequest]


async def denoise_stream(services: Services, requests: Requests) -> AsyncIterator[pb.DenoiseStreamResponse]:
    """Relay a caller's stream; whoever closes this ends it at the worker too.

    Raises:
        BadInput, UnknownDenoiser: the setup, or a frame, will never do.
        StreamsFull, NotReady: no worker takes it now.
        StreamBroken: its worker is gone.
        StreamIdle: its caller said nothing for too long.
        JobFailed: with what the worker found.
    """
    caller = _Caller(services, requests)
    first = await caller.next()
    if first is None or first.WhichOneof("part") != "setup":
        raise BadInput("the first message must hold setup, and those behind it frames")
    setup = await _checked(services, first.setup)
    line = await _line_to_a_worker(services, setup)
    feeding: asyncio.Future[None] | None = None
    try:
        yield line.start
        feeding = asyncio.ensure_future(_feed(caller, line))
        while (message := await line.next(feeding)) is not None:
            yield message
        if services.draining.is_set():
            raise NotReady("the process is stopping; every frame that it took was answered")
    finally:
        if feeding is not None:
            feeding.cancel()
        await line.close()


async def _checked(services: Services, setup: pb.StreamSetup) -> pb.StreamSetup:
    """What a worker is asked for: with `auto` resolved."""
    settings = services.settings
    spec = await asyncio.to_thread(services.intake.library.find, setup.model or "auto", "video")
    said = {name: getattr(setup, name) for name in ("sigma", "strength") if setup.HasField(name)}
    check_options("video", spec, Options(**said))
    if setup.width < 1 or setup.height < 1:
        raise BadInput(f"frames are {setup.width}x{setup.height}; width and height are at least 1")
    if setup.pixel_format not in _BYTES_OF:
        raise BadInput(f"pixel_format is {setup.pixel_format}; known are {', '.join(pb.PixelFormat.keys()[1:])}")
    pixels = setup.width * setup.height
    if pixels > settings.max_frame_pixels:
        raise FrameTooLarge(
            f"frames are {setup.width}x{setup.height}; at most {settings.max_frame_pixels} pixels are accepted"
        )
    size = pixels * _BYTES_OF[setup.pixel_format] + _AROUND_BYTES
    if size > settings.max_message_bytes:
        raise FrameTooLarge(
            f"a message with a frame of {setup.width}x{setup.height} has {size} bytes; at most "
            f"{settings.max_message_bytes} are accepted"
        )
    checked = pb.StreamSetup()
    checked.CopyFrom(setup)
    checked.model = spec.name
    return checked


class _Caller:
    """Who sends frames, and must neither keep silent for too long nor hold up the end of the process."""

    def __init__(self, services: Services, requests: Requests) -> None:
        self._requests = aiter(requests)
        self._idle_s = services.settings.live_idle_s
        self._draining = services.draining

    async def next(self) -> pb.DenoiseStreamRequest | None:
        """The next message; None when there will be none.

        Raises:
            StreamIdle
        """
        upcoming: asyncio.Future[pb.DenoiseStreamRequest | None] = asyncio.ensure_future(anext(self._requests, None))
        stopping = asyncio.ensure_future(self._draining.wait())
        try:
            both: list[asyncio.Future[Any]] = [upcoming, stopping]
            await asyncio.wait(both, timeout=self._idle_s, return_when=asyncio.FIRST_COMPLETED)
            if upcoming.done():
                return upcoming.result()
            if stopping.done():
                return None
            raise StreamIdle(f"no frame came for {self._idle_s:g} s")
        finally:
            upcoming.cancel()
            stopping.cancel()


async def _feed(caller: _Caller, line: "_Line") -> None:
    """Carry frames to the worker. The next one is not asked for before the worker's end has room: the caller waits."""
    while (message := await caller.next()) is not None:
        await line.send(message)
    await line.finish()


async def _line_to_a_worker(services: Services, setup: pb.StreamSetup) -> "_Line":
    """The first of the workers that takes the stream, those with most room first."""
    if services.draining.is_set():
        raise NotReady("the process is stopping")
    hosts = [(card, card.live) for card in await services.queue.workers() if card.ready and card.live]
    places = [place for card, place in hosts if place.streams and _can_reach(card, place)]
    if not places:
        told = " that this process could reach; see QUIETFRAME_LIVE_HOST" if hosts else ""
        raise NotReady(f"no worker takes live streams{told}")
    random.shuffle(places)
    full = 0
    for place in sorted(places, key=lambda one: one.taken - one.streams):
        line = _Line(place)
        try:
            await line.begin(setup)
        except StreamsFull:
            full += 1
        except (NotReady, StreamBroken) as err:
            log.warning("the worker at %s takes no live stream: %s", place.address, err)
        except BaseException:
            await line.close()
            raise
        else:
            return line
        await line.close()
    if not full:
        raise NotReady("no worker that takes live streams can be reached")
    raise StreamsFull(f"all {sum(place.streams for place in places)} places for live streams are taken")


def _can_reach(card: WorkerCard, place: LivePlace) -> bool:
    """A loopback address means another machine here than there."""
    return not place.address.startswith(_LOOPBACK) or card.host == socket.gethostname()


class _Line:
    """A stream's call to a worker. It has no deadline of its own: the caller's ends it from here."""

    def __init__(self, place: LivePlace) -> None:
        self._channel = grpc.aio.insecure_channel(place.address, options=OPTIONS)
        self._place = place
        self._call: Any = None
        self.start = pb.DenoiseStreamResponse()

    async def begin(self, setup: pb.StreamSetup) -> None:
        """
        Raises:
            StreamsFull, NotReady, StreamBroken: another worker may take it.
            JobFailed: none will.
        """
        await self._connect()
        restore = self._channel.stream_stream(RESTORE, pb.DenoiseStreamRequest.SerializeToString, unpack)
        here = tracing.here()
        under = (("traceparent", str(here)),) if here else ()
        self._call = restore(metadata=((TOKEN_KEY, self._place.token), *under))
        await self.send(pb.DenoiseStreamRequest(setup=setup))
        try:
            async with asyncio.timeout(_START_S):
                start = await self._read()
        except TimeoutError:
            raise NotReady(f"it did not begin within {_START_S:g} s") from None
        if start is None:
            raise StreamBroken("it ended before it began")
        self.start = start

    async def _connect(self) -> None:
        """
        Raises:
            NotReady: nobody is there.
        """
        try:
            async with asyncio.timeout(_CONNECT_S):
                while (state := self._channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:  # the library would go on trying
                        raise NotReady("nobody listens there")
                    await self._channel.wait_for_state_change(state)
        except TimeoutError:
            raise NotReady(f"it does not answer within {_CONNECT_S:g} s") from None

    async def send(self, message: pb.DenoiseStreamRequest) -> None:
        """Where the call has ended, nothing happens: who reads learns why."""
        with suppress(grpc.RpcError, asyncio.InvalidStateError):
            await self._call.write(message)

    async def finish(self) -> None:
        """No more will be sent."""
        with suppress(grpc.RpcError, asyncio.InvalidStateError):
            await self._call.done_writing()

    async def next(self, feeding: "asyncio.Future[None]") -> pb.DenoiseStreamResponse | None:
        """The next answer, None at the end; what went wrong with feeding is raised as soon as it has."""
        reading = asyncio.ensure_future(self._read())
        try:
            both: list[asyncio.Future[Any]] = [reading, feeding]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if feeding.done():
                feeding.result()
            return await reading
        finally:
            reading.cancel()

    async def close(self) -> None:
        if self._call is not None:
            self._call.cancel()
        await self._channel.close()

    async def _read(self) -> pb.DenoiseStreamResponse | None:
        try:
            message = await self._call.read()
            if message is grpc.aio.EOF and await self._call.code() is grpc.StatusCode.OK:
                return None
            status = await self._call.code() if message is grpc.aio.EOF else None
        except grpc.aio.AioRpcError as err:
            status = err.code()
        if status is not None:
            log.warning("the worker of a live stream is gone, at %s: %s", self._place.address, status.name)
            raise StreamBroken("the worker of this stream is gone; what it had not answered is lost")
        if isinstance(message, dict):
            raise _as_told(message)
        answer: pb.DenoiseStreamResponse = message
        return answer


def _as_told(problem: Problem) -> Exception:
    """What a worker says last, to its caller."""
    detail = str(problem["detail"])
    if problem["code"] == "streams_full":
        return StreamsFull(detail)
    if problem["code"] == "not_ready":
        return NotReady(detail)
    return JobFailed(problem)
