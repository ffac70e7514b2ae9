"""Where must decoding begin so that a frame in the middle comes out as if all before it had been decoded?

At a key frame from which on nothing refers to what is before it. Not every key frame is one: in an open group of
pictures, frames that are shown before the key frame and stored behind it need the group before, and H.264 lets even
later ones do so. They are no harm where they are shown before the moment that is asked for; where a codec promises no
more than that, decoding begins one key frame earlier.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from service.errors import Indivisible
from service.media.held import Source
from service.media.opening import DEMUXERS, open_container, video_track

# These keep an index and land on the key frame asked for, or before it. The others search by bytes, may begin in the
# middle of a frame and count times from there: all their packets are passed through, which costs reading, no decoding.
_SEEKING = ("mov", "matroska")


@dataclass(frozen=True, slots=True)
class Entry:
    """A key frame to begin decoding at."""

    key: int  # its presentation time
    seek: (
        int | None
    )  # the moment to seek to for landing on it or before; None where the container must be passed through
    is_closed: bool  # whether the codec promises that nothing behind it refers to what is before


def find_entry(source: Source, begin: int) -> Entry:
    """The last key frame that makes all frames right from a moment on.

    Args:
        begin: In the video track's time base.

    Raises:
        BadInput: The container is damaged.
        Indivisible: There is no such key frame, or the container cannot be read there.
    """
    with source.open("rb") as file:
        container, content_type = open_container(file)
        try:
            stream = video_track(container)
            if DEMUXERS[content_type] in _SEEKING:
                return _by_seeking(container, stream, begin)
            keys, _ = _keys_until(container.demux(stream), stream, begin)
            return _choose(keys, None, begin, is_begin=True)
        except av.FFmpegError as err:
            raise Indivisible(f"the container cannot be read in the middle: {err.strerror}") from None
        finally:
            container.close()


@dataclass(frozen=True, slots=True)
class _Key:
    pts: int
    is_closed: bool


def _by_seeking(container: InputContainer, stream: VideoStream, begin: int) -> Entry:
    target, landed = begin, None
    while True:
        container.seek(target, stream=stream)
        keys, start = _keys_until(container.demux(stream), stream, begin)
        is_begin = start is None or (landed is not None and start >= landed)  # there is nothing further back
        if is_begin or len(keys) > 1 or (keys and keys[-1].is_closed):
            return _choose(keys, target, begin, is_begin=is_begin)
        assert start is not None
        landed, target = start, start - 1


def _keys_until(
    packets: "Iterable[Packet[VideoStream]]", stream: VideoStream, begin: int
) -> tuple[list[_Key], int | None]:
    """The last two key frames that are shown no later than a moment, and the lowest time of the first packet."""
    keys: list[_Key] = []
    start = None
    for packet in packets:
        times = [time for time in (packet.pts, packet.dts) if time is not None]
        if not times:
            continue
        if start is None:
            start = min(times)
        # Decoding times only grow, so that from here on nothing is shown before `begin`.
        if (packet.dts if packet.dts is not None else times[0]) > begin:
            break
        if packet.is_keyframe and packet.pts is not None and packet.pts <= begin:
            keys = [*keys[-1:], _Key(packet.pts, _is_closed(packet, stream))]
    return keys, start


def _choose(keys: list[_Key], seek: int | None, begin: int, *, is_begin: bool) -> Entry:
    if not keys or not (is_begin or len(keys) > 1 or keys[-1].is_closed):
        raise Indivisible(f"there is no key frame to begin at before {begin}")
    if keys[-1].is_closed:
        return Entry(keys[-1].pts, seek, is_closed=True)
    return Entry(keys[0].pts, seek, is_closed=keys[0].is_closed)


def _is_closed(packet: "Packet[Any]", stream: VideoStream) -> bool:
    """Whether all that is shown from this key frame on needs nothing from before it.

    Of codecs other than these three it is known: there, either a key frame resets all, or only pictures that are shown
    before it look back.
    """
    codec = stream.codec_context.codec.canonical_name
    if codec not in ("h264", "hevc", "av1"):
        return True
    data = bytes(packet)
    if codec == "av1":
        return _shows_key_frame(data)
    kinds = _nal_heads(data, stream.codec_context.extradata or b"", codec)
    if codec == "h264":
        return any(head & 0x1F == 5 for head in kinds)  # an instantaneous decoder refresh (H.264, table 7-1)
    return any(16 <= head >> 1 & 0x3F <= 21 for head in kinds)  # any random access point (H.265, table 7-1)


def _nal_heads(data: bytes, extradata: bytes, codec: str) -> list[int]:
    """First bytes of the units in a packet, whether they tell their lengths (as in MP4) or have start codes."""
    at = 4 if codec == "h264" else 21  # of the length's size in avcC and hvcC (ISO 14496-15)
    heads = []
    if extradata[:1] == b"\x01" and len(extradata) > at:
        size, place = (extradata[at] & 3) + 1, 0
        while place + size < len(data):
            heads.append(data[place + size])
            place += size + int.from_bytes(data[place : place + size], "big")
        return heads
    place = data.find(b"\0\0\1")
    while 0 <= place < len(data) - 3:
        heads.append(data[place + 3])
        place = data.find(b"\0\0\1", place + 3)
    return heads


def _shows_key_frame(data: bytes) -> bool:
    """Whether an AV1 temporal unit begins with a key frame that is shown at once (AV1 specification, 5.3 and 5.9.2)."""
    place = 0
    while place < len(data):
        head = data[place]
        kind, has_extension, has_size = head >> 3 & 15, head >> 2 & 1, head >> 1 & 1
        place += 1 + has_extension
        size, shift = len(data) - place, 0
        if has_size:
            size = 0
            while place < len(data):
                size |= (data[place] & 127) << shift
                place, shift = place + 1, shift + 7
                if not data[place - 1] & 128:
                    break
        if kind in (3, 6):  # a frame's header, alone or with the frame
            # show_existing_frame is 0, frame_type is KEY_FRAME (0), show_frame is 1
            return place < len(data) and data[place] >> 4 == 0b0001
        place += size
    return False
