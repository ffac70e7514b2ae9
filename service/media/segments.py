"""How are parts of a video encoded apart and joined to one file, without encoding again?

A segment is a file of packets: the picture of one part, encoded by an encoder of its own that was set up for the final
container. Joining writes the final file's header anew and copies the packets; what differs from a file written in one
run is only where groups of pictures begin.

Common containers bend what must come back unbent. NUT, tried with PyAV 18.1, doubled time bases, made up durations and
lost marks; Matroska rounds to milliseconds; MP4 tells negative times by edit lists and rewrites parameter sets. So a
segment is the plain packets: a line of JSON, then records of one packet each.
"""

import contextlib
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.packet import Packet

from service.errors import BadInput, Indivisible
from service.media.encoder import Encoder, VideoEncoder, open_encoder
from service.media.finishing import Finishing
from service.media.formats import video_output
from service.media.video import Frame, Original

_MAGIC = b"quietframe segment 1\n"
_RECORD = struct.Struct(">qIB")  # presentation time, bytes that follow, flags
_KEY, _END = 1, 2  # flags; the end's record tells the number of packets as its time
_MAX_HEAD_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class _Head:
    """What must be equal in all segments of a file."""

    codec: str
    pixel_format: str
    width: int
    height: int
    time_base: str
    extradata: str  # hexadecimal


@dataclass(frozen=True, slots=True)
class _Record:
    pts: int
    is_key: bool
    data: bytes  # empty where only times were asked for


@dataclass(frozen=True, slots=True)
class Joined:
    """What the joined file is."""

    content_type: str
    suffix: str  # with the dot
    lost: list[str]  # what of the source it cannot hold


class SegmentWriter(Finishing):
    """Writes a part's frames as a segment, as `VideoWriter` would write them to the final file.

    The segment appears at its path when it is finished: before that, and after any failure, there is none.
    """

    def __init__(
        self,
        path: Path,
        like: Original,
        *,
        format: str,  # noqa: A002 - the name it has in the public contract
        codec: str | None = None,
        crf: int | None = None,
        by: VideoEncoder = "software",
    ) -> None:
        """Open the encoder.

        Args:
            path: Where the finished segment goes.
            like: The noisy video, whole or in part: gives size, colour and times.
            format: Of the final file, as for `VideoWriter`; codec and crf likewise.
            by: As for `open_encoder`.

        Raises:
            BadInput: Container and codec do not go together, or the codec cannot hold frames of this size.
        """
        container, named = video_output(like.facts, format, codec, crf)
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._count = 0
        self._done = False
        self._file: BinaryIO | None = None
        self._out, self._encoder = open_encoder(like.head, container=container, codec=named, crf=crf, by=by)
        try:
            self.encoder_name = self._encoder.name
            self._time_base = like.time_base
            self._file = self._part.open("wb")
            head = json.dumps(asdict(_head_of(self._encoder, self._time_base)))
            self._file.write(_MAGIC + head.encode() + b"\n")
        except BaseException:
            self.abort()
            raise

    @property
    def lost(self) -> list[str]:
        """What of the picture the final file cannot hold."""
        return list(self._encoder.lost)

    def write(self, frame: Frame) -> None:
        """Encode the next frame in presentation order; its time is kept exactly.

        Raises:
            BadInput: The encoder refuses it.
        """
        self._put(self._encoder.encode(frame.pixels, frame.pts, frame.time_base, frame.duration, frame.beyond))

    def close(self) -> None:
        """Finish the segment and put it in its place. A second call does nothing."""
        if self._done:
            return
        try:
            self._put(self._encoder.finish())
            assert self._file is not None
            self._file.write(_RECORD.pack(self._count, 0, _END))
            self._file.close()
            self._part.replace(self._path)
        except BaseException:
            self.abort()
            raise
        self._done = True
        self._close_out()

    def abort(self) -> None:
        """Leave no segment. After `close` it does nothing."""
        if self._done:
            return
        self._done = True
        self._close_out()
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written when the disk is full
                self._file.close()
        self._part.unlink(missing_ok=True)

    def _put(self, packets: "list[Packet[Any]]") -> None:
        assert self._file is not None
        for packet in packets:
            if packet.pts is None or packet.time_base != self._time_base:
                raise BadInput(f"{self._encoder.codec} gives packets without a time")
            data = bytes(packet)
            self._file.write(_RECORD.pack(packet.pts, len(data), _KEY if packet.is_keyframe else 0))
            self._file.write(data)
            self._count += 1

    def _close_out(self) -> None:
        with contextlib.suppress(av.FFmpegError, ValueError):
            self._out.close()


def join(
    segments: Sequence[Path],
    target: Path,
    like: Original,
    *,
    format: str,  # noqa: A002 - the name it has in the public contract
    codec: str | None = None,
    crf: int | None = None,
    heed: Callable[[], None] | None = None,
) -> Joined:
    """Write the final file from segments, with everything else that the source has beside its picture.

    Where this raises, `target` does not exist.

    Args:
        segments: In order; all made with this format, codec and crf.
        like: The noisy video.
        heed: Called before each segment; what it raises stops the joining.

    Raises:
        BadInput: The final file cannot be written from this input.
        Indivisible: The segments do not fit each other or the final file, or one is damaged.
    """
    if not segments:
        raise BadInput("no frame was written")
    first = _read_head(segments[0])
    if first.codec != video_output(like.facts, format, codec, crf)[1]:
        raise Indivisible("segment 0 was encoded with another codec")
    extradata = bytes.fromhex(first.extradata)
    file = like.out_file(target, format=format, codec=codec, crf=crf, extradata=extradata)
    try:
        delay = _check(segments, _head_of(file.encoder, like.time_base), file.encoder.reorder_frames)
        times = _decode_times(segments, delay)
        for path in segments:
            if heed is not None:
                heed()
            for record in _records(path):
                # A packet of its own size has the padding behind it that parsers may read; one around bytes has not.
                packet: Packet[Any] = Packet(len(record.data))
                packet.update(record.data)
                packet.stream, packet.time_base = file.encoder.stream, like.time_base
                packet.pts, packet.dts, packet.is_keyframe = record.pts, next(times), record.is_key
                file.mux([packet])
        file.close()
    except BaseException:
        file.abort()
        raise
    return Joined(file.content_type, file.suffix, file.lost)


def _head_of(encoder: Encoder, time_base: Fraction) -> _Head:
    context = encoder.stream.codec_context
    return _Head(
        codec=encoder.codec,
        pixel_format=encoder.pixel_format,
        width=context.width,
        height=context.height,
        time_base=str(time_base),
        extradata=encoder.extradata.hex(),
    )


def _check(segments: Sequence[Path], head: _Head, delay: int) -> int:
    """Pass through the segments' times, and refuse what would not play as one file.

    Args:
        delay: By how many frames decoding is ahead of showing, as far as the encoder says.

    Returns:
        The same, as it is found in the packets, or what the encoder says where that is more.
    """
    count, last = 0, None
    for place, path in enumerate(segments):
        told = _read_head(path)
        if told != head:
            names = [name for name, value in asdict(told).items() if value != asdict(head)[name]]
            raise Indivisible(f"segment {place} was encoded with another {', '.join(names)}")
        records = list(_records(path, times_only=True))
        if not records or not records[0].is_key:
            raise Indivisible(f"segment {place} does not begin with a key frame")
        shown = sorted(record.pts for record in records)
        if records[0].pts != shown[0] or (last is not None and shown[0] <= last):
            raise Indivisible(f"segment {place} begins at {shown[0]}, before another frame")
        rank = {pts: index for index, pts in enumerate(shown)}
        delay = max(delay, *(index - rank[record.pts] for index, record in enumerate(records)))
        count, last = count + len(records), shown[-1]
    if not count:
        raise BadInput("no frame was written")
    return min(delay, count - 1)


def _decode_times(segments: Sequence[Path], delay: int) -> Iterator[int]:
    """When each packet is decoded: when the frame is shown that is `delay` frames earlier.

    No frame can be shown before that, and these times increase because presentation times do. The first `delay` frames
    have none before them; they are as far apart as they will be shown, and before the first.
    """
    first = list(islice(_shown(segments), delay + 1))
    yield from (pts - (first[-1] - first[0]) for pts in first[:-1])
    yield from _shown(segments)


def _shown(segments: Sequence[Path]) -> Iterator[int]:
    """When each frame is shown, in that order."""
    for path in segments:
        yield from sorted(record.pts for record in _records(path, times_only=True))


def _read_head(path: Path) -> _Head:
    with path.open("rb") as file:
        return _head_in(file)


def _head_in(file: BinaryIO) -> _Head:
    try:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("no segment")
        head = _Head(**json.loads(file.readline(_MAX_HEAD_BYTES)))
        bytes.fromhex(head.extradata)
        return head
    except (ValueError, TypeError):
        raise Indivisible("a segment is damaged") from None


def _records(path: Path, *, times_only: bool = False) -> Iterator[_Record]:
    """A segment's packets in decoding order."""
    with path.open("rb") as file:
        size_bytes = file.seek(0, 2)
        file.seek(0)
        _head_in(file)
        count = 0
        while len(head := file.read(_RECORD.size)) == _RECORD.size:
            pts, size, flags = _RECORD.unpack(head)
            if flags & _END:
                if pts == count:
                    return
                break
            if file.tell() + size > size_bytes:
                break
            data = b"" if times_only else file.read(size)
            if times_only:
                file.seek(size, 1)
            count += 1
            yield _Record(pts, bool(flags & _KEY), data)
        raise Indivisible("a segment is damaged")
