"""Takes live streams in a worker: a port of its own, to which the API relays what its callers send.

Frames go past the broker: it writes down all that it is given, and copies it to its replicas. What a stream needs
beside them (an end that both sides learn of, a way to hold the sender back, deadlines) the connection has.
"""

import hmac
import logging
import secrets
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import Any

import grpc
import numpy as np

from models.errors import QuietframeError
from service.broker.card import LivePlace
from service.errors import BadInput, NotReady, StreamsFull, problem_of
from service.pipeline.live import LiveSetup, frames_in_flight, latency_frames, restore_live
from service.pipeline.shelf import Shelf
from service.rpc.generated.quietframe.v1 import denoiser_pb2 as pb
from service.rpc.relay import OPTIONS, RESTORE, TOKEN_KEY, Answer, pack
from service.settings import Settings
from service.telemetry import tracing
from service.telemetry.figures import Work, WorkerFigures
from trtbuild.engine import EngineFailed

log = logging.getLogger(__name__)

LANE = "live"  # what figures tell in the place of a lane
_TO_REFUSE = 4  # calls beyond the places that are there, so that they are told why
_WILDCARDS = {"0.0.0.0", "::", "[::]"}  # noqa: S104 - compared with, not bound to
_DTYPES: dict[int, np.dtype[np.uint8] | np.dtype[np.uint16]] = {
    pb.PIXEL_FORMAT_UNSPECIFIED: np.dtype(np.uint8),
    pb.PIXEL_FORMAT_RGB8: np.dtype(np.uint8),
    pb.PIXEL_FORMAT_RGB16: np.dtype(np.uint16),
}


class CannotHost(QuietframeError):
    """The address for live streams is not this machine's, or its port is taken."""


class LiveHost:
    """The live streams of one worker. They share its engines with its jobs, by turns."""

    def __init__(
        self,
        settings: Settings,
        shelf: Shelf,
        on_engine_failure: Callable[[], None],
        figures: WorkerFigures | None = None,
    ) -> None:
        """
        Args:
            settings: where to listen, and for how many streams.
            shelf: where denoisers come from.
            on_engine_failure: told when an engine failed in a way that it will not recover from.
            figures: told of streams and frames.

        Raises:
            CannotHost
        """
        self._settings, self._shelf, self._on_engine_failure = settings, shelf, on_engine_failure
        self._figures = figures or WorkerFigures()
        self._figures.takes_streams(settings.live_streams)
        self._token = secrets.token_urlsafe(32)
        self._lock = Lock()
        self._taken = 0
        self._stopping = Event()
        handler = grpc.stream_stream_rpc_method_handler(self._restore, pb.DenoiseStreamRequest.FromString, pack)
        service, _, method = RESTORE.strip("/").partition("/")
        at_once = settings.live_streams + _TO_REFUSE
        self._server = grpc.server(
            ThreadPoolExecutor(at_once, thread_name_prefix="live"),
            handlers=[grpc.method_handlers_generic_handler(service, {method: handler})],
            options=[*OPTIONS, ("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=at_once,
        )
        self._address = self._listen(settings.live_host, settings.live_port)
        self._server.start()

    @property
    def place(self) -> LivePlace:
        """What the API must know of it."""
        return LivePlace(
            address=self._address, token=self._token, streams=self._settings.live_streams, taken=self._taken
        )

    def stop(self, within_s: float) -> None:
        """Take no more frames, answer those that came, and end what is still open when the time is up."""
        self._stopping.set()
        self._server.stop(within_s).wait()

    def _listen(self, host: str, port: int) -> str:
        try:
            taken = self._server.add_insecure_port(_joined(host, port))
            told = socket.gethostbyname(socket.gethostname()) if host in _WILDCARDS else host
        except (RuntimeError, OSError) as err:
            raise CannotHost(f"cannot listen on {_joined(host, port)} for live streams: {err}") from None
        return _joined(told, taken)

    def _restore(self, requests: Iterator[pb.DenoiseStreamRequest], context: Any) -> Iterator[Answer]:
        shown = str(dict(context.invocation_metadata()).get(TOKEN_KEY, ""))
        if not hmac.compare_digest(shown.encode(), self._token.encode()):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "this port is for the API of this service")
        try:
            under = str(dict(context.invocation_metadata()).get("traceparent", ""))
            with tracing.span("live stream", "server", under=under):
                yield from self._stream(requests, context)
        except grpc.RpcError:
            return  # the caller is gone; the call has its status already
        except Exception as err:
            if not isinstance(err, QuietframeError) or isinstance(err, EngineFailed):
                log.exception("a live stream failed")
            if isinstance(err, EngineFailed):
                self._on_engine_failure()
            yield problem_of(err)
            ended = Event()
            if context.add_callback(ended.set):
                ended.wait()  # the API hangs up

    def _stream(self, requests: Iterator[pb.DenoiseStreamRequest], context: Any) -> Iterator[pb.DenoiseStreamResponse]:
        self._take_place(context)
        first = next(requests, None)
        if first is None:
            return
        asked = first.setup
        denoiser = self._shelf.denoiser(asked.model)
        setup = LiveSetup(
            width=asked.width,
            height=asked.height,
            dtype=_DTYPES[asked.pixel_format],
            sigma=asked.sigma / 255 if asked.HasField("sigma") else None,
            strength=asked.strength if asked.HasField("strength") else 1.0,
        )
        yield pb.DenoiseStreamResponse(
            start=pb.StreamStart(
                model=denoiser.spec.name,
                backend=denoiser.backend,
                precision=denoiser.precision,
                latency_frames=latency_frames(denoiser),
                frames_in_flight=frames_in_flight(denoiser),
            )
        )
        work = Work(lane=LANE, model=denoiser.spec.name, backend=denoiser.backend, precision=denoiser.precision)
        for restored in restore_live(denoiser, setup, self._frames(requests), is_wanted=context.is_active):
            self._figures.restored(work, frames=1, pixels=setup.width * setup.height, seconds={})
            yield pb.DenoiseStreamResponse(frame=restored)
        if self._stopping.is_set():
            raise NotReady("the worker of this stream is stopping; every frame that it took was answered")

    def _frames(self, requests: Iterator[pb.DenoiseStreamRequest]) -> Iterator[bytes]:
        for request in requests:
            if request.WhichOneof("part") != "frame":
                raise BadInput("setup goes into the first message alone; those behind it hold frames")
            yield request.frame
            if self._stopping.is_set():
                return

    def _take_place(self, context: Any) -> None:
        """Have one until the call ends, however it does."""
        with self._lock:
            if self._stopping.is_set():
                raise NotReady("this worker is stopping")
            if self._taken >= self._settings.live_streams:
                raise StreamsFull(f"this worker has {self._taken} live streams, and takes no more at once")
            self._taken += 1
        self._figures.stream_came()
        if not context.add_callback(self._leave_place):
            self._leave_place()  # it has ended already, and will not call

    def _leave_place(self) -> None:
        with self._lock:
            self._taken -= 1
        self._figures.stream_left()


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
