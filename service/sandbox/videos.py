"""A stranger's video, taken apart elsewhere: its frames, its times, and the tracks that go into another file."""

import contextlib
from array import array
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast, get_args

import av
import numpy as np
from av.packet import Packet

from service.errors import BadInput
from service.job import FieldOrder, Part
from service.media.colour import codes_beyond
from service.media.encoder import open_encoder
from service.media.finishing import Finishing
from service.media.formats import VIDEOS, video_output
from service.media.head import depth_of
from service.media.probe import HEEDED
from service.media.sniff import check_pixels
from service.media.timeline import Timeline
from service.media.video import Frame
from service.sandbox import heads
from service.sandbox.decoder import Decoder, Shared
from service.settings import Settings

_SLOTS = 3  # frames that may be ready: one that is copied out, one that waits, one that is being decoded
# What a frame may take on average; a slower video would hold the slot for days. The first one may take more.
_FRAME_S = 5.0


class VideoReader:
    """`service.media.video.VideoReader` in a process of its own, whose death is a `BadInput` like the others."""

    def __init__(
        self,
        path: Path,
        settings: Settings,
        part: Part | None = None,
        *,
        with_beyond: bool = False,
        of_fields: bool = False,
    ) -> None:
        """Open, and decode the first frame. As there, and:

        Raises:
            DecoderLost: the decoder was ended from outside.
        """
        self.path = path
        self.part = part
        self._settings = settings
        with path.open("rb") as file:
            told = {
                "settings": _told(settings),
                "part": part.model_dump() if part else None,
                "with_beyond": with_beyond,
                "of_fields": of_fields,
            }
            self._decoder = Decoder("frames", [file.fileno()], told, settings)
        try:
            self.head = heads.as_heard(self._decoder.receive().said)
            check_pixels("video frame", self.head.width, self.head.height, settings.max_frame_pixels)
        except BaseException:
            self._decoder.close()
            raise
        self.facts = self.head.facts
        self.time_base = self.head.time_base
        self.rate = self.head.rate
        self.depth = depth_of(self.head.format)
        self._codes_beyond = codes_beyond(self.head) if with_beyond else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._decoder.close()

    def __iter__(self) -> Iterator[Frame]:
        """All frames, or those of the part, once; errors as in the other reader."""
        shape = (self.head.height, self.head.width, 3)
        dtype = np.dtype(np.uint16 if self.depth > 8 else np.uint8)
        # Beside the pixels lies what they do not hold, which is of four bytes: no slot may begin between these.
        pixels_bytes = -(-int(np.prod(shape)) * dtype.itemsize // 4) * 4
        size = pixels_bytes + self._codes_beyond * 4
        memory = Shared(_SLOTS * size)
        try:
            self._decoder.send({"slots": _SLOTS, "bytes": size, "pixels_bytes": pixels_bytes})
            self._decoder.give(memory.descriptor)
        finally:
            memory.close_descriptor()
        slots = [memory.array(shape, dtype, slot * size) for slot in range(_SLOTS)]
        beyond = [
            memory.array((self._codes_beyond,), np.dtype(np.int32), slot * size + pixels_bytes)
            for slot in range(_SLOTS)
            if self._codes_beyond
        ]
        count = 0
        while True:
            said = self._decoder.receive().said
            if said.get("end"):
                return
            count += 1
            if count > self._settings.max_video_frames:
                raise BadInput("the decoder gives more frames than it may")
            self._decoder.made_progress(_FRAME_S)
            try:
                slot, pts, duration = int(said["slot"]), said["pts"], int(said["duration"])
                frame = Frame(
                    slots[slot].copy(),
                    None if pts is None else int(pts),
                    Fraction(said["time_base"]),
                    duration,
                    beyond[slot].copy() if beyond and said["beyond"] else None,
                )
            except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as err:
                raise BadInput("the decoder gave no frame") from err
            self._decoder.tell({"free": slot})
            yield frame

    def out_file(
        self,
        path: Path,
        *,
        format: str,  # noqa: A002 - the name it has in the public contract
        codec: str | None,
        crf: int | None,
        extradata: bytes | None = None,
    ) -> "OutFile":
        return OutFile(path, self, self._settings, format=format, codec=codec, crf=crf, extradata=extradata)


class OutFile(Finishing):
    """`service.media.outfile.OutFile`, with all that reads the source in a process of its own.

    The worker encodes, for the pixels are its own; the other process writes the file, for the other tracks are not.
    """

    def __init__(
        self,
        path: Path,
        like: VideoReader,
        settings: Settings,
        *,
        format: str,  # noqa: A002 - the name it has in the public contract
        codec: str | None,
        crf: int | None,
        extradata: bytes | None = None,
    ) -> None:
        """As there."""
        container, named = video_output(like.facts, format, codec, crf)
        self.content_type = VIDEOS[container].content_type
        self.suffix = VIDEOS[container].suffix
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._lost_there: list[str] = []
        self._done = False
        self._writer: Decoder | None = None
        by = settings.video_encoder
        self._out, self.encoder = open_encoder(
            like.head, container=container, codec=named, crf=crf, by=by, extradata=extradata
        )
        try:
            told = {"settings": _told(settings), "format": format, "codec": codec, "crf": crf}
            told["extradata"] = self.encoder.extradata.hex()
            with like.path.open("rb") as source, self._part.open("wb+") as target:
                files = [source.fileno(), target.fileno()]
                self._writer = Decoder("mux", files, told, settings, writes=True)
            self._writer.receive()  # the header is written
        except BaseException:
            self.abort()
            raise

    @property
    def lost(self) -> list[str]:
        """What of the source the file cannot hold; complete when it is closed."""
        return list(dict.fromkeys([*self.encoder.lost, *self._lost_there]))

    def mux(self, packets: "Iterable[Packet[Any]]") -> None:
        """Put in the picture's next packets, in decoding order."""
        ready = list(packets)
        if not ready or self._writer is None:
            return
        about = [
            {
                "pts": packet.pts,
                "dts": packet.dts,
                "duration": packet.duration,
                "time_base": str(packet.time_base),
                "key": packet.is_keyframe,
            }
            for packet in ready
        ]
        self._writer.send({"packets": about}, *(bytes(packet) for packet in ready))
        self._writer.made_progress(_FRAME_S)

    def close(self) -> None:
        """Finish the file and put it in its place. A second call does nothing."""
        if self._done:
            return
        try:
            assert self._writer is not None
            self._writer.send({"close": True})
            self._lost_there = [str(words) for words in self._writer.receive().said["lost"]]
            self._part.replace(self._path)
        except BaseException:
            self.abort()
            raise
        self._done = True
        self._end()

    def abort(self) -> None:
        """Leave no file. After `close` it does nothing."""
        if self._done:
            return
        self._done = True
        self._end()
        self._part.unlink(missing_ok=True)

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
        with contextlib.suppress(av.FFmpegError, ValueError):
            self._out.close()


def read_timeline(path: Path, settings: Settings) -> Timeline:
    """`service.media.timeline.read_timeline`, likewise."""
    with (
        path.open("rb") as file,
        Decoder("timeline", [file.fileno()], {"settings": _told(settings)}, settings) as decoder,
    ):
        message = decoder.receive()
    try:
        pts, keys = array("q"), array("q")
        for values, block in zip((pts, keys), message.blocks, strict=True):
            values.frombytes(block)
        timeline = Timeline(pts, keys, Fraction(message.said["time_base"]))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as err:
        raise BadInput("the decoder gave no times") from err
    if not pts or len(pts) > settings.max_video_frames or not all(0 <= key < len(pts) for key in keys):
        raise BadInput("the decoder gave no times")
    return timeline


def read_field_order(path: Path, settings: Settings, scan: str) -> FieldOrder | None:
    """`service.media.scan.find_field_order`, likewise, as far as `scan`, of `Options`, leaves it open.

    Raises:
        BadInput: it cannot be read.
    """
    if scan == "progressive":
        return None
    told = {"settings": _told(settings), "sure": scan == "interlaced"}
    with path.open("rb") as file, Decoder("scan", [file.fileno()], told, settings) as decoder:
        order = decoder.receive().said.get("order")
    if order is not None and order not in get_args(FieldOrder):
        raise BadInput("the decoder gave no field order")
    return cast("FieldOrder | None", order)


def _told(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in HEEDED}
