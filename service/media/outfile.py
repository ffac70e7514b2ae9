"""How does a finished video come to be: picture, other tracks and header together, whole or not at all?"""

import contextlib
from collections.abc import Iterable
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any

import av
from av.container import OutputContainer
from av.packet import Packet

from service.media.encoder import MILLISECOND_MUXERS, MUXERS, Encoder, failure
from service.media.finishing import Finishing
from service.media.formats import VIDEOS, video_output
from service.media.held import HeldFile, Source
from service.media.opening import OpenVideo
from service.media.tracks import Tracks, foreign_tags

_WRITE_BYTES = 256 * 1024  # each write crosses from C to Python: few and large


class OutFile(Finishing):
    """A video file in the making: its header says all that the source's says, and takes the picture packet by packet.

    The file appears at its path when it is finished: before that, and after any failure, there is none.
    Audio and subtitles are copied as they are, interleaved by time.
    """

    def __init__(
        self,
        path: Path | HeldFile,
        source: Source,
        like: OpenVideo,
        *,
        format: str,  # noqa: A002 - the name it has in the public contract
        codec: str | None,
        crf: int | None,
        extradata: bytes | None = None,
    ) -> None:
        """Open the file and the encoder, and write the header.

        Args:
            path: Where the finished file goes, whatever its suffix; one that is held open is written as it stands.
            source: Of the other tracks.
            like: The same file, opened.
            extradata: Parameter sets of the encoder that makes the packets, where that is not this file's own.

        Raises:
            BadInput: Container and codec do not go together, or the codec cannot hold frames of this size.
        """
        container, named = video_output(like.facts, format, codec, crf)
        self.content_type = VIDEOS[container].content_type
        self.suffix = VIDEOS[container].suffix
        self._path = path
        self._part = path.with_name(path.name + ".part") if isinstance(path, Path) else None
        self._in_milliseconds = container in MILLISECOND_MUXERS
        self._lost_times: list[str] = []
        self._done = False
        self._tracks = Tracks(source, like.stream.index, MUXERS[container])
        try:
            self._out = self._open(container, like)
            self.encoder = Encoder(self._out, like.head, container=container, codec=named, crf=crf)
            self._tracks.add_to(self._out)
            self._lost_beside = list(like.head.beside)
            if self._in_milliseconds and self._tracks.begin_s < 0:
                # Audio may begin before the picture, to warm up its decoder; Matroska then moves all by as much.
                late_ms = round(-self._tracks.begin_s * 1000)
                self._lost_times.append(f"zero of time (all is {late_ms} ms later)")
            self.encoder.open(extradata)
        except BaseException:
            self.abort()
            raise

    @property
    def lost(self) -> list[str]:
        """What of the source the file cannot hold; complete when it is closed."""
        return self.encoder.lost + self._tracks.lost + self._lost_beside + self._lost_times

    def mux(self, packets: "Iterable[Packet[Any]]") -> None:
        """Put in the picture's next packets, in decoding order, after what the other tracks have before them."""
        try:
            for packet in packets:
                if self._in_milliseconds and packet.pts is not None:
                    self._check_fineness(packet.pts * packet.time_base)
                if packet.dts is not None:
                    self._tracks.copy_until(packet.dts * packet.time_base, self._out)
                self._out.mux(packet)
        except av.FFmpegError as err:
            raise failure(f"the {self.suffix} file does not take a packet", err) from None

    def close(self) -> None:
        """Finish the file and put it in its place. A second call does nothing."""
        if self._done:
            return
        try:
            try:
                self._tracks.copy_until(None, self._out)
                self._out.close()
            except av.FFmpegError as err:
                raise failure(f"the {self.suffix} file cannot be finished", err) from None
            if self._part is not None and isinstance(self._path, Path):
                self._part.replace(self._path)
        except BaseException:
            self.abort()
            raise
        self._done = True
        self._tracks.close()

    def abort(self) -> None:
        """Leave no file. After `close` it does nothing."""
        if self._done:
            return
        self._done = True
        self._tracks.close()
        out: OutputContainer | None = getattr(self, "_out", None)
        if out is not None:
            with contextlib.suppress(av.FFmpegError, ValueError):
                out.close()
        if self._part is not None:
            self._part.unlink(missing_ok=True)

    def _open(self, container: str, like: OpenVideo) -> OutputContainer:
        source = like.container
        options: dict[str, str] = {}
        if container in ("mp4", "mov"):
            # The index goes to the front, for players that stream. Apple's own tags need their own table.
            apple = any(key.startswith("com.") for key in source.metadata)
            options["movflags"] = "+faststart+use_metadata_tags" if apple else "+faststart"
            options["movie_timescale"] = str(_common_clock([stream.time_base for stream in source.streams]))
        out = self._open_target(MUXERS[container], options)
        out.metadata.update(foreign_tags(source.metadata))
        chapters = source.chapters()
        if chapters:
            out.set_chapters(chapters)
        return out

    def _open_target(self, muxer: str, options: dict[str, str]) -> OutputContainer:
        if isinstance(self._path, Path):
            return av.open(str(self._part), "w", format=muxer, container_options=options)
        held = self._path
        # An index that goes to the front is moved there by reading the file again.
        return av.open(
            held.open("r+b"),
            "w",
            format=muxer,
            container_options=options,
            buffer_size=_WRITE_BYTES,
            io_open=lambda url, flags, options: held.open("rb"),  # noqa: ARG005 - PyAV calls it so
        )

    def _check_fineness(self, moment: Fraction) -> None:
        what = "timestamps finer than a millisecond"
        if (moment * 1000).denominator != 1 and what not in self._lost_times:
            self._lost_times.append(what)


def _common_clock(time_bases: list[Fraction | None]) -> int:
    """Ticks a second in which every track's start can be told exactly, as far as 31 bits allow.

    MP4 tells late starts in the movie's own clock; its default, a millisecond, would shift tracks against each other.
    """
    clock = 1000
    for time_base in time_bases:
        finer = lcm(clock, time_base.denominator) if time_base else clock
        clock = finer if finer < 2**31 else clock
    return clock
