"""How do the tracks beside the picture get into the new file, unchanged and in step?"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import AttachmentStream, Discard, Disposition, Stream

from service.media.held import Source
from service.media.opening import open_container

_MAX_COPIED_BYTES = 64 * 1024**2  # of attachments, such as fonts and covers
_COVERS = {"mjpeg": ("jpg", "image/jpeg"), "png": ("png", "image/png")}  # codecs that every player shows one in
# What a muxer writes about itself, or recounts; it would be wrong in another file.
_OWN_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "bps", "vendor_id"}
_OWN_TAG_STARTS = ("_statistics", "number_of_")


class Tracks:
    """The tracks beside the picture, read from the source a second time and put in by time."""

    def __init__(self, source: Source, picture: int, muxer: str) -> None:
        """Open the source again and choose.

        Args:
            picture: Index of the video track that is made anew, and so is not copied.
            muxer: Of the file the tracks go into.
        """
        self.lost: list[str] = []
        self._file: BinaryIO = source.open("rb")
        self._container: InputContainer | None = None
        self._made: dict[int, Stream] = {}
        self._source = source
        self._last_dts: dict[int, int] = {}
        self._packets: Iterator[Packet[Any]] = iter(())
        self._next: Packet[Any] | None = None
        try:
            self._container, _ = open_container(self._file)
            self._kept = [stream for stream in self._container.streams if self._keeps(stream, picture, muxer)]
            attached = [stream for stream in self._kept if _is_cover(stream) and muxer == "matroska"]
            self._attached = {stream: self._cover(stream) for stream in attached}
            copied = [
                stream
                for stream in self._kept
                if not isinstance(stream, AttachmentStream) and stream not in self._attached
            ]
            if copied:  # asked for no track, the demuxer gives all
                self._packets = self._container.demux(copied)
        except BaseException:
            self.close()
            raise

    def add_to(self, out: OutputContainer) -> None:
        for stream in self._kept:
            made: Stream
            if isinstance(stream, AttachmentStream):
                made = out.add_attachment(stream.name or "attachment", stream.mimetype or "", stream.data)
            elif stream in self._attached:
                suffix, media_type = _COVERS[_codec_of(stream)]
                name = stream.metadata.get("filename", f"cover.{suffix}")
                out.add_attachment(name, media_type, self._attached[stream])
                continue
            else:
                made = out.add_stream_from_template(stream, opaque=_is_cover(stream) or None)
                self._made[stream.index] = made
            made.metadata.update(foreign_tags(stream.metadata))
            made.disposition = stream.disposition
        self._advance()

    @property
    def begin_s(self) -> Fraction:
        """When the first packet is due; negative where a track begins before the picture's zero."""
        packet = self._next
        return packet.pts * packet.time_base if packet is not None and packet.pts is not None else Fraction(0)

    def copy_until(self, moment: Fraction | None, out: OutputContainer) -> None:
        """Mux the packets that come before a moment, in seconds; None means all that are left."""
        while self._next is not None:
            packet = self._next
            stream = packet.stream
            if moment is not None and packet.dts is not None and packet.dts * packet.time_base > moment:
                return
            packet.stream = self._made[stream.index]
            out.mux(packet)
            self._advance()

    def close(self) -> None:
        self._packets = iter(())
        self._next = None
        if self._container is not None:
            self._container.close()
            self._container = None
        self._file.close()

    def _advance(self) -> None:
        """Fetch the next packet that can be muxed."""
        while True:
            try:
                packet = next(self._packets, None)
            except av.FFmpegError:
                # The picture comes from the same bytes and has its own say about them.
                self.lost.append("the damaged rest of the other tracks")
                packet = None
            self._next = packet
            if packet is None:
                return
            if _is_cover(packet.stream) and packet.size:
                packet.pts = packet.dts = 0  # it has no time of its own
            if packet.dts is None:
                packet.dts = packet.pts
            if packet.dts is None:
                continue  # the empty packets at the end
            # Broken files repeat times, and no muxer takes that.
            index = packet.stream.index
            last = self._last_dts.get(index)
            if last is not None and packet.dts <= last:
                packet.dts = last + 1
                packet.pts = max(packet.pts or packet.dts, packet.dts)
            self._last_dts[index] = packet.dts
            return

    def _cover(self, stream: Stream) -> bytes:
        """A cover's picture, which the demuxer gives before all else."""
        with self._source.open("rb") as file:
            container, _ = open_container(file)
            try:
                packet = next(container.demux(container.streams[stream.index]), None)
                return bytes(packet) if packet is not None and packet.size <= _MAX_COPIED_BYTES else b""
            except av.FFmpegError:
                return b""
            finally:
                container.close()

    def _keeps(self, stream: Stream, picture: int, muxer: str) -> bool:
        if stream.index == picture or stream.discard == Discard.all:
            return False  # the second are chapters' names, which are told of the whole file
        if stream.type in ("audio", "subtitle") and stream.codec_context and _can_hold(muxer, stream):
            return True
        if isinstance(stream, AttachmentStream) and muxer == "matroska" and len(stream.data) <= _MAX_COPIED_BYTES:
            return True
        if _is_cover(stream):
            if muxer == "mp4" or (muxer == "matroska" and self._cover(stream)):
                return True
            self.lost.append("cover picture")
            return False
        if stream.type == "data" and "timecode" in stream.metadata and muxer != "webm":
            return False  # the picture's tags have it too, and it is written anew from there
        self.lost.append(f"{stream.type} track {stream.index} ({_codec_of(stream)})")
        return False


def _codec_of(stream: Stream) -> str:
    return stream.codec_context.codec.canonical_name if stream.codec_context else "unknown codec"


def _is_cover(stream: Stream) -> bool:
    """Whether it is one picture that stands for the whole file."""
    marks = Disposition.attached_pic | Disposition.timed_thumbnails
    return stream.disposition & marks == Disposition.attached_pic and _codec_of(stream) in _COVERS


def _can_hold(muxer: str, stream: Stream) -> bool:
    """Whether a container takes a track: found by writing a header, for the muxers' own lists promise too much."""
    try:
        with av.open(Sink(), "w", format=muxer) as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    return True


class Sink:
    """A file that keeps nothing."""

    def __init__(self) -> None:
        self._at = self._end = 0

    def write(self, data: bytes) -> int:
        self._at += len(data)
        self._end = max(self._end, self._at)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._end)[whence]
        return self._at

    def tell(self) -> int:
        return self._at


def foreign_tags(metadata: dict[str, str]) -> dict[str, str]:
    return {
        key: value
        for key, value in metadata.items()
        if key.lower() not in _OWN_TAGS and not key.lower().startswith(_OWN_TAG_STARTS)
    }
