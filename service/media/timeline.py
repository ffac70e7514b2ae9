"""When is each frame of a video shown, and where can the video be cut into parts that are worked on apart?"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import av
from av.packet import Packet
from av.video.stream import VideoStream

from service.errors import Indivisible
from service.job import Part
from service.media.held import Source
from service.media.opening import AVI, BARE, check_count, check_length, open_container, video_track
from service.media.sniff import check_pixels
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Timeline:
    """The presentation times of a video's frames."""

    pts: "array[int]"  # one a frame, increasing, in units of `time_base`
    keys: "array[int]"  # which of them are key frames: places in `pts`, increasing
    time_base: Fraction

    def __len__(self) -> int:
        return len(self.pts)


def read_timeline(source: Source, settings: Settings) -> Timeline:
    """Pass through a video's packets without decoding.

    That nothing speaks against dividing here is no proof: a reader checks each part once more.

    Raises:
        UnknownFormat: The bytes are in no video format that is read here.
        FrameTooLarge: More pixels a frame, or frames, than the settings allow.
        BadInput: The container is damaged, or has no video track.
        Indivisible: The video can be denoised only as one; the message says why.
    """
    with source.open("rb") as file:
        container, content_type = open_container(file, settings.max_streams)
        try:
            stream = video_track(container)
            context = stream.codec_context
            check_pixels("video frame", context.width, context.height, settings.max_frame_pixels)
            check_count(stream.frames, settings.max_video_frames)
            if content_type == AVI:
                raise Indivisible("AVI stores no presentation times")
            if content_type in BARE:
                raise Indivisible(f"{content_type} stores no times")
            timeline = _timeline_of(container.demux(stream), stream, settings.max_video_frames)
            seconds = float((timeline.pts[-1] - timeline.pts[0]) * timeline.time_base)
            check_length(seconds, len(timeline), settings)
            return timeline
        except av.FFmpegError as err:
            raise Indivisible(f"the container is damaged: {err.strerror}") from None
        finally:
            container.close()


def divide(timeline: Timeline, frames_per_part: int, reach: int) -> list[Part]:
    """Cut a video into parts that together give every frame once, in order.

    A cut moves by up to a quarter of a part where a key frame is near, so that few frames are decoded in vain.

    Args:
        frames_per_part: About so many does each part give; the last may give half of it more or less.
        reach: Frames on either side that the network looks at: as many more are decoded, where the video has them.

    Returns:
        One part where the video has less than one and a half of them.
    """
    if frames_per_part < 1 or reach < 0:
        raise ValueError(f"{frames_per_part} frames a part and a reach of {reach} make no parts")
    least = max(2 * reach + 2, frames_per_part // 2)
    usual = max(frames_per_part, least)
    count = len(timeline)
    cuts = [0]
    while (left := count - cuts[-1]) >= 2 * least and 2 * left >= 3 * usual:
        cuts.append(_cut(timeline, cuts[-1], left, least=least, usual=usual, reach=reach))
    cuts.append(count)
    parts = []
    for index, (start, stop) in enumerate(pairwise(cuts)):
        lead, trail = (reach if start else 0), (reach if stop < count else 0)
        begin, end = timeline.pts[start - lead], timeline.pts[stop + trail - 1]
        parts.append(Part(index=index, frames=stop - start, lead=lead, trail=trail, begin=begin, end=end))
    return parts


def _cut(timeline: Timeline, start: int, left: int, *, least: int, usual: int, reach: int) -> int:
    """The first frame of the next part."""
    wanted = start + min(usual, left - least)
    earliest = max(start + least, wanted - usual // 4)
    latest = min(start + left - least, wanted + usual // 4)
    keys = timeline.keys
    near = keys[bisect_left(keys, earliest - reach) : bisect_left(keys, latest - reach + 1)]
    return min((key + reach for key in near), key=lambda cut: abs(cut - wanted), default=wanted)


def _timeline_of(packets: "Iterable[Packet[VideoStream]]", stream: VideoStream, most: int) -> Timeline:
    codec = stream.codec_context.codec.canonical_name
    times, keys = array("q"), array("q")
    for packet in packets:
        if packet.size == 0 and packet.pts is None:
            continue  # the empty packet at the end
        if packet.pts is None:
            raise Indivisible(f"frame {len(times)} has no presentation time")
        if packet.is_corrupt:
            raise Indivisible(f"frame {len(times)} is damaged")
        if packet.is_discard:
            raise Indivisible("an edit list hides frames")
        if packet.size == 0:
            raise Indivisible(f"frame {len(times)} is empty")
        if codec == "vp8" and not bytes(packet)[0] & 0x10:
            continue  # it is only referred to, and never shown (RFC 6386, 9.1)
        if not times and not packet.is_keyframe:
            raise Indivisible("the first frame is no key frame")
        times.append(packet.pts)
        if packet.is_keyframe:
            keys.append(packet.pts)
        check_count(len(times), most)
    if not times:
        raise Indivisible("the video track is empty")
    pts = array("q", sorted(times))
    if any(early == late for early, late in pairwise(pts)):
        raise Indivisible("two frames have the same presentation time")
    if pts[0] != times[0]:
        raise Indivisible("the first frame stored is not the first shown")
    places = array("q", sorted(bisect_left(pts, key) for key in keys))
    assert stream.time_base is not None
    return Timeline(pts, places, stream.time_base)
