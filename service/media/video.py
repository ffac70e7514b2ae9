"""Frames out of a video, and a video out of frames, with everything beside the pixels carried over."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from service.errors import BadInput, Indivisible
from service.job import InputFacts, Part
from service.media.colour import coding_of, to_rgb_and_beyond
from service.media.encoder import Encoder
from service.media.entry import find_entry
from service.media.finishing import Finishing
from service.media.head import VideoHead, depth_of
from service.media.held import Source
from service.media.opening import AVI, BARE, OpenVideo
from service.media.outfile import OutFile
from service.media.planes import Codes, Pixels
from service.settings import Settings

_USUAL_RATE = Fraction(25)  # where a file says nothing, as the library takes it


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame and its moment."""

    pixels: Pixels  # [H, W, 3], RGB: uint8, or uint16 over its whole range where the video has more than 8 bits
    pts: int | None  # in units of `time_base`; None where the container tells no time
    time_base: Fraction
    duration: int = 0  # in the same units; 0 where it is not told
    beyond: Codes | None = None  # of the file, what `pixels` do not hold, where it was asked for


class PictureFile(Protocol):
    """A file in the making that takes the picture packet by packet, as `OutFile` is one."""

    encoder: Encoder
    content_type: str
    suffix: str

    @property
    def lost(self) -> list[str]: ...
    def mux(self, packets: "Iterable[Packet[Any]]") -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class Original(Protocol):
    """A video that another is to be made like."""

    head: VideoHead
    facts: InputFacts
    time_base: Fraction

    def out_file(
        self,
        path: Path,
        *,
        format: str,  # noqa: A002 - the name it has in the public contract
        codec: str | None,
        crf: int | None,
        extradata: bytes | None = None,
    ) -> PictureFile:
        """A file that gets all that this one has beside its picture.

        Args:
            extradata: Parameter sets of packets that come from elsewhere; else the file's own encoder makes them.
        """


class VideoReader:
    """Reads a video's frames once, in presentation order. Holds the decoder's frames and one more."""

    def __init__(
        self,
        path: Source,
        settings: Settings,
        part: Part | None = None,
        *,
        with_beyond: bool = False,
        of_fields: bool = False,
        threads: int = 0,
    ) -> None:
        """Open, and decode the first frame.

        Args:
            of_fields: It is interlaced, whatever it says: each field has chroma of its own.
            with_beyond: Give with each frame what its RGB does not hold.
            threads: Of the decoder; 0 takes what the machine has.
            part: Read these frames only, lead and trail included; what is told of the video stays that of the whole.

        Raises:
            UnknownFormat: The bytes are in no video format that is read here.
            FrameTooLarge: More pixels a frame, or frames, than the settings allow.
            BadInput: It is damaged, has no video track, or not one frame can be decoded.
        """
        self.path = path
        self.part = part
        self._with_beyond = with_beyond
        self._file: BinaryIO = path.open("rb")
        try:
            self.opened = OpenVideo(self._file, settings, threads=threads)
        except BaseException:
            self._file.close()
            raise
        self.head = replace(self.opened.head, by_field=True) if of_fields else self.opened.head
        self.facts: InputFacts = self.opened.facts
        self.time_base: Fraction = self.opened.time_base
        self.rate: Fraction | None = self.opened.rate
        self.depth = depth_of(self.opened.first.format)
        self._coding = coding_of(self.head)
        self._reformatter = VideoReformatter()

    def out_file(
        self,
        path: Path,
        *,
        format: str,  # noqa: A002 - the name it has in the public contract
        codec: str | None,
        crf: int | None,
        extradata: bytes | None = None,
    ) -> OutFile:
        return OutFile(path, self.path, self.opened, format=format, codec=codec, crf=crf, extradata=extradata)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.opened.close()
        self._file.close()

    def __iter__(self) -> Iterator[Frame]:
        """All frames, or those of the part: the same, bit for bit, as where the whole is read.

        Raises:
            BadInput: A frame cannot be decoded, or changes size; its index is in the message.
            FrameTooLarge: There are more than the settings allow.
            Indivisible: The part does not come out as planned.
        """
        frames = self.opened.frames() if self.part is None else self._frames_of(self.part)
        for count, frame in enumerate(frames):
            # What is written takes it as codes of the first frame's kind; a later one may be of another.
            with_beyond = self._with_beyond and frame.format.name == self.head.pixel_format
            pixels, beyond = to_rgb_and_beyond(
                frame, self._coding, self.depth, self._reformatter, with_beyond=with_beyond
            )
            yield Frame(
                pixels,
                self._moment(frame, count),
                frame.time_base or self.time_base,
                frame.duration or 0,
                beyond,
            )

    def _moment(self, frame: VideoFrame, count: int) -> int | None:
        """When a frame is shown, as far as the container says; `count` frames are before it."""
        content_type = self.facts.content_type
        if content_type in BARE:
            return round(count / (self.rate or _USUAL_RATE) / self.time_base)
        if content_type != AVI:
            return frame.pts if frame.pts is not None else frame.dts
        # AVI stores no presentation times; what stands in their place is made up, and wrong beside B-frames. Times of
        # decoding are even, but as much too late as the decoder holds frames back.
        if frame.dts is None:
            return None
        first, stream = self.opened.first.dts, self.opened.stream
        step = 1 / (self.rate or _USUAL_RATE) / self.time_base
        late = (first or 0) - (stream.start_time or 0)
        return frame.dts - max(0, min(late, round(stream.codec_context.reorder_depth * step)))

    def _frames_of(self, part: Part) -> Iterator[VideoFrame]:
        planned = part.lead + part.frames + part.trail
        count, last = 0, part.begin - 1
        for frame in self._frames_around(part.begin):
            pts = frame.pts
            if pts is None:
                raise Indivisible(f"part {part.index} has a frame without a time")
            if pts < part.begin:
                continue
            if count == 0 and pts != part.begin:
                raise Indivisible(f"part {part.index} begins at {pts}; planned was {part.begin}")
            if pts <= last:
                raise Indivisible(f"part {part.index} has a frame at {pts} after one at {last}")
            if frame.is_corrupt:
                # It may be the file's damage; only a decoder that comes all the way from the first frame can tell.
                raise Indivisible(f"part {part.index} has a damaged frame at {pts}")
            count, last = count + 1, pts
            if count == planned and pts != part.end:
                raise Indivisible(f"part {part.index} ends at {pts}; planned was {part.end}")
            yield frame
            if count == planned:
                return
        raise Indivisible(f"part {part.index} has {count} frames; planned were {planned}")

    def _frames_around(self, begin: int) -> Iterator[VideoFrame]:
        """Frames from somewhere before a moment on, right from that moment on."""
        first = self.opened.first.pts
        if first is not None and begin <= first:
            yield from self.opened.frames()
            return
        entry = find_entry(self.path, begin)
        try:
            yield from self.opened.frames_from(entry.key, entry.seek)
        except BadInput as err:
            if entry.is_closed:
                raise
            # What is missing may be pictures from before the entry, not from the file.
            raise Indivisible(f"decoding cannot begin in the middle: {err}") from None


class VideoWriter(Finishing):
    """Writes frames as a video like the one they came from, with its other tracks.

    The file appears at its path when it is finished: before that, and after any failure, there is none.
    Audio and subtitles are copied as they are, interleaved by time. What the container cannot hold is named in `lost`.
    """

    def __init__(
        self,
        path: Path,
        like: Original,
        *,
        format: str,  # noqa: A002 - the name it has in the public contract
        codec: str | None = None,
        crf: int | None = None,
    ) -> None:
        """Open the file and the encoder.

        Args:
            path: Where the finished file goes, whatever its suffix.
            like: The noisy video: gives size, colour, rotation, metadata and the tracks to copy.
            format: `same` keeps mp4, mkv, mov and webm; of others it makes mp4 where that holds the codec, else mkv.
            codec: None takes the source's own where the container holds it, else its first; see `codec_for`.
            crf: None takes the codec's default, 18 for h264.

        Raises:
            BadInput: Container and codec do not go together, or the codec cannot hold frames of this size.
        """
        self._file = like.out_file(path, format=format, codec=codec, crf=crf)
        self._done = False
        self.codec = self._file.encoder.codec
        self.encoder_name = self._file.encoder.name
        self.content_type = self._file.content_type
        self.suffix = self._file.suffix

    @property
    def lost(self) -> list[str]:
        return self._file.lost

    def write(self, frame: Frame) -> None:
        """Encode the next frame in presentation order; its time is kept exactly.

        Raises:
            BadInput: The encoder refuses it.
        """
        encode = self._file.encoder.encode
        self._file.mux(encode(frame.pixels, frame.pts, frame.time_base, frame.duration, frame.beyond))

    def close(self) -> None:
        """Finish the file and put it in its place. A second call does nothing."""
        if self._done:
            return
        try:
            self._file.mux(self._file.encoder.finish())
        except BaseException:
            self.abort()
            raise
        self._done = True
        self._file.close()

    def abort(self) -> None:
        """Leave no file. After `close` it does nothing."""
        self._done = True
        self._file.abort()
