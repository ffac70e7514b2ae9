"""A video cut into parts, each decoded alone and encoded alone, is the video again when the parts are joined."""

import errno
import os
import resource
from array import array
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_samples import UNEVEN, make_video, moments, packets_of, timestamps

from service.errors import BadInput, FrameTooLarge, Indivisible
from service.job import Part
from service.media.entry import find_entry
from service.media.segments import Joined, SegmentWriter, join
from service.media.timeline import Timeline, divide, read_timeline
from service.media.video import Frame, VideoReader, VideoWriter
from service.settings import Settings

LIMITS = Settings()
REACH = 2
COUNT = 42
EVEN = moments(COUNT)
SHAKY_MS = [33 * n + (7 * n) % 20 for n in range(COUNT)]
TICKS = Fraction(1, 25)
OPEN = {"preset": "medium", "bf": "3", "g": "10"}


def x265(options: str) -> dict[str, str]:
    return {"x265-params": f"keyint=10:bframes=4:log-level=none:{options}"}


KINDS = {
    "mp4, h264 with B-frames": {"options": OPEN},
    "mp4, h264 in open groups": {"options": {**OPEN, "x264-params": "open-gop=1:scenecut=0"}},
    "ts, h264 in open groups": {"muxer": "mpegts", "options": {**OPEN, "x264-params": "open-gop=1:scenecut=0"}},
    "mkv, h264 refreshed line by line": {"muxer": "matroska", "options": {**OPEN, "x264-params": "intra-refresh=1"}},
    "mp4, h264 interlaced": {"options": {**OPEN, "x264-params": "tff=1"}},
    "mp4, hevc in open groups": {"encoder": "libx265", "options": x265("open-gop=1")},
    "mp4, hevc with leading pictures": {"encoder": "libx265", "options": x265("open-gop=0:radl=2")},
    "ts, hevc in open groups": {"muxer": "mpegts", "encoder": "libx265", "options": x265("open-gop=1")},
    "mkv, vp9 with hidden frames": {
        "muxer": "matroska", "encoder": "libvpx-vp9", "options": {"g": "10", "cpu-used": "5", "auto-alt-ref": "1"},
    },
    "webm, vp8 with hidden packets": {
        "muxer": "webm", "encoder": "libvpx", "options": {"g": "20", "lag-in-frames": "16", "auto-alt-ref": "1"},
    },
    "mov, prores": {"muxer": "mov", "encoder": "prores_ks", "pixel_format": "yuv422p10le"},
    "mov, hevc of 12 bits": {"muxer": "mov", "encoder": "libx265", "pixel_format": "yuv444p12le", "options": x265("")},
    "mkv, hevc of 10 bits, variable rate": {
        "muxer": "matroska", "encoder": "libx265", "pixel_format": "yuv420p10le", "pts": SHAKY_MS,
        "time_base": Fraction(1, 1000), "options": x265("open-gop=1"),
    },
    "mkv, luma alone": {"muxer": "matroska", "encoder": "ffv1", "pixel_format": "gray10le"},
    "mov, mjpeg": {"muxer": "mov", "encoder": "mjpeg", "pixel_format": "yuvj420p"},
    "mkv, ffv1": {"muxer": "matroska", "encoder": "ffv1"},
    "mkv, variable rate": {"muxer": "matroska", "pts": SHAKY_MS, "time_base": Fraction(1, 1000), "options": OPEN},
    "mp4, first frame late": {"pts": [5005 + pts for pts in EVEN], "options": OPEN},
    "ts, first frame late": {"muxer": "mpegts", "pts": [5005 + pts for pts in EVEN], "options": OPEN},
    "mp4, mpeg4": {"encoder": "mpeg4", "pts": range(COUNT), "time_base": TICKS, "options": {"g": "10", "bf": "2"}},
    "vob, mpeg2": {
        "muxer": "vob", "encoder": "mpeg2video", "pts": range(COUNT), "time_base": TICKS,
        "options": {"g": "10", "bf": "2"},
    },
    "mxf, mpeg2": {
        "muxer": "mxf", "encoder": "mpeg2video", "pts": range(COUNT), "time_base": TICKS,
        "options": {"g": "10", "bf": "2"},
    },
    "ivf, vp9": {
        "muxer": "ivf", "encoder": "libvpx-vp9", "pts": range(COUNT), "time_base": TICKS, "options": {"g": "10"},
    },
    "flv, h264": {"muxer": "flv", "pts": range(COUNT), "time_base": TICKS, "options": OPEN},
    "asf, wmv2": {"muxer": "asf", "encoder": "wmv2", "pts": range(COUNT), "time_base": TICKS, "options": {"g": "10"}},
    "y4m": {"muxer": "yuv4mpegpipe", "encoder": "wrapped_avframe", "pts": range(COUNT), "time_base": TICKS},
}  # fmt: skip


def frames_of(path: Path, part: Part | None = None) -> list[Frame]:
    with VideoReader(path, LIMITS, part) as reader:
        return list(reader)


def parts_of(path: Path, frames_per_part: int = 10) -> list[Part]:
    return divide(read_timeline(path, LIMITS), frames_per_part, REACH)


def same(one: list[Frame], other: list[Frame]) -> bool:
    return [(f.pts, f.duration, f.time_base) for f in one] == [(f.pts, f.duration, f.time_base) for f in other] and all(
        np.array_equal(a.pixels, b.pixels) for a, b in zip(one, other, strict=True)
    )


def assert_read_alike(path: Path, parts: list[Part], whole: list[Frame]) -> None:
    done = 0
    for part in parts:
        assert same(frames_of(path, part), whole[done - part.lead : done + part.frames + part.trail])
        done += part.frames
    assert done == len(whole)


def written_whole(source: Path, target: Path, form: str = "same", codec: str | None = None) -> VideoWriter:
    with VideoReader(source, LIMITS) as reader:
        with VideoWriter(target, reader, format=form, codec=codec) as writer:
            for frame in reader:
                writer.write(frame)
        return writer


def write_all(reader: VideoReader, writer: SegmentWriter) -> None:
    with writer:
        for frame in reader:
            writer.write(frame)


def segments_of(source: Path, form: str = "same", codec: str | None = None, frames_per_part: int = 10) -> list[Path]:
    """Each part read and encoded by itself."""
    paths = []
    for part in parts_of(source, frames_per_part):
        paths.append(source.with_name(f"segment-{part.index}"))
        with (
            VideoReader(source, LIMITS, part) as reader,
            SegmentWriter(paths[-1], reader, format=form, codec=codec) as writer,
        ):
            for index, frame in enumerate(reader):
                if part.lead <= index < part.lead + part.frames:
                    writer.write(frame)
    assert len(paths) > 2
    return paths


def joined(source: Path, target: Path, form: str = "same", codec: str | None = None) -> Joined:
    segments = segments_of(source, form, codec)
    with VideoReader(source, LIMITS) as reader:
        return join(segments, target, reader, format=form, codec=codec)


def decode_times(path: Path) -> list[tuple[int | None, int]]:
    """Decoding and presentation time of each packet, in the order of the file."""
    with av.open(str(path)) as container:
        return [(packet.dts, packet.pts) for packet in container.demux(video=0) if packet.pts is not None]


def quality_db(frames: list[Frame], coded: list[Frame]) -> np.ndarray:
    errors = [np.mean((a.pixels.astype(float) - b.pixels) ** 2) for a, b in zip(frames, coded, strict=True)]
    return 10 * np.log10(255**2 / np.array(errors))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_video(tmp_path / "source.mp4", pts=EVEN, options=OPEN, audio="aac")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_parts_read_alone_are_the_video_read_as_one(kind, tmp_path):
    path = make_video(tmp_path / "in", **{"pts": EVEN, **kind})
    whole = frames_of(path)
    parts = parts_of(path)
    assert len(parts) == 4
    assert_read_alike(path, parts, whole)


def test_a_fragmented_mp4_whose_index_is_scattered_is_read_in_parts_too(tmp_path, source):
    path = tmp_path / "fragmented.mp4"
    with av.open(str(source)) as whole, av.open(
        str(path), "w", format="mp4", container_options={"movflags": "frag_keyframe+empty_moov"}
    ) as out:  # fmt: skip
        copy = out.add_stream_from_template(whole.streams.video[0], opaque=True)
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    assert_read_alike(path, parts_of(path), frames_of(path))


def test_a_part_knows_the_whole_videos_facts(source):
    part = parts_of(source)[2]
    with VideoReader(source, LIMITS) as whole, VideoReader(source, LIMITS, part) as reader:
        list(reader)
        assert reader.facts == whole.facts
        assert (reader.rate, reader.time_base, reader.depth) == (whole.rate, whole.time_base, whole.depth)
        assert reader.opened.first.pts == whole.opened.first.pts == EVEN[0]


def test_decoding_begins_at_the_last_key_frame_that_resets_the_decoder(tmp_path):
    keys = {}
    for name, options in (("closed", OPEN), ("open", {**OPEN, "x264-params": "open-gop=1:scenecut=0"})):
        path = make_video(tmp_path / f"{name}.mkv", muxer="matroska", pts=EVEN, options=options)
        timeline = read_timeline(path, LIMITS)
        keys[name] = [timeline.pts[place] for place in timeline.keys]
        begin = keys[name][3] + 100
        entry = find_entry(path, begin)
        # An open group's key frame is no such one in H.264, so that it takes one more.
        assert entry.key == keys[name][3 if name == "closed" else 2]
        assert entry.is_closed == (name == "closed")


@given(
    count=st.integers(1, 400),
    keys=st.sets(st.integers(0, 399)),
    frames_per_part=st.integers(1, 150),
    reach=st.integers(0, 8),
)
def test_parts_cover_every_frame_once_and_none_is_tiny(count, keys, frames_per_part, reach):
    timeline = Timeline(
        array("q", [3 * n + 7 for n in range(count)]),
        array("q", sorted({0, *(key for key in keys if key < count)})),
        Fraction(1, 90),
    )
    parts = divide(timeline, frames_per_part, reach)
    assert sum(part.frames for part in parts) == count
    assert [part.index for part in parts] == list(range(len(parts)))
    least = max(2 * reach + 2, frames_per_part // 2)
    most = max(frames_per_part, least) * 3 // 2 + 1
    assert len(parts) == 1 or all(least <= part.frames for part in parts)
    assert all(part.frames <= max(most, 2 * least) for part in parts)
    assert len(parts) == 1 or count >= 1.5 * frames_per_part
    done = 0
    for part in parts:
        assert part.lead == (reach if done else 0)
        assert part.begin == timeline.pts[done - part.lead]
        done += part.frames
        assert part.trail == (reach if done < count else 0)
        assert part.end == timeline.pts[done + part.trail - 1]


def test_a_cut_moves_to_a_near_key_frame_so_that_nothing_is_decoded_in_vain():
    timeline = Timeline(array("q", range(300)), array("q", [0, 90, 120, 240]), Fraction(1, 25))
    parts = divide(timeline, 100, REACH)
    assert [part.begin for part in parts] == [0, 90, 190]
    assert [part.frames for part in parts] == [92, 100, 108]


def test_a_video_shorter_than_one_and_a_half_parts_is_one_part(source):
    assert parts_of(source, frames_per_part=29) == [
        Part(index=0, frames=COUNT, lead=0, trail=0, begin=EVEN[0], end=EVEN[-1])
    ]
    assert len(parts_of(source, frames_per_part=28)) == 2


@pytest.mark.parametrize(
    "kind",
    [
        "mp4, h264 with B-frames",
        "mkv, variable rate",
        "mp4, first frame late",
        "mkv, hevc of 10 bits, variable rate",
        "mp4, h264 interlaced",
        "mkv, luma alone",
    ],
)
def test_a_lossless_join_decodes_to_the_frames_of_one_run(kind, tmp_path, target):
    path = make_video(tmp_path / "in", **{"pts": EVEN, **KINDS[kind]}, audio="aac")
    whole = tmp_path / "whole"
    writer = written_whole(path, whole, "mkv", "ffv1")
    made = joined(path, target, "mkv", "ffv1")
    assert same(frames_of(target), frames_of(whole))
    assert packets_of(target, "audio") == packets_of(whole, "audio") != []
    assert (made.content_type, made.suffix, made.lost) == (writer.content_type, writer.suffix, writer.lost)


@pytest.mark.parametrize(
    ("form", "codec"),
    [
        ("mp4", "h264"),
        ("mov", "hevc"),
        ("mp4", "av1"),
        ("mp4", "vp9"),
        ("mkv", "h264"),
        ("mkv", "hevc"),
        ("webm", "vp9"),
    ],
)
def test_a_joined_file_plays_on_over_its_seams(form, codec, source, tmp_path, target):
    whole = tmp_path / "whole"
    written_whole(source, whole, form, codec)
    joined(source, target, form, codec)
    assert timestamps(target) == timestamps(whole)
    frames, ours, theirs = frames_of(source), frames_of(target), frames_of(whole)
    assert [frame.pts for frame in ours] == [frame.pts for frame in theirs]
    times = decode_times(target)
    told = [dts for dts, _ in times if dts is not None]
    assert len(told) >= COUNT - 4  # Matroska stores none; its reader finds them but for the first
    assert all(early < late for early, late in pairwise(told))
    assert all(dts <= pts for dts, pts in times if dts is not None)
    if form in ("mp4", "mov"):
        assert told == [dts for dts, _ in decode_times(whole)]
    # Key frames and B-frames fall elsewhere, so that single frames differ by as much as kinds of frames do in one
    # encoding (some 3 dB); around a seam that evens out.
    ours_db, theirs_db = quality_db(frames, ours), quality_db(frames, theirs)
    for part in parts_of(source)[1:]:
        seam = EVEN.index(part.begin) + part.lead
        around = slice(seam - 4, seam + 4)
        assert ours_db[around].mean() > theirs_db[around].mean() - 1.5
        assert ours_db[around].min() > theirs_db[around].min() - 3
    assert_read_alike(target, parts_of(target, frames_per_part=14), ours)


def test_every_segment_begins_with_a_key_frame(source, target):
    joined(source, target, "mp4", "hevc")
    timeline = read_timeline(target, LIMITS)
    begins = [EVEN.index(part.begin) + part.lead for part in parts_of(source)]
    assert set(begins) <= set(timeline.keys)


@pytest.mark.parametrize("late", [-0.5, 0.7])
def test_sound_that_begins_before_or_after_the_picture_stays_in_step(late, tmp_path, target):
    first = 0 if late > 0 else round(-late * 30000)
    sound = make_video(tmp_path / "sound.mp4", pts=[first + pts for pts in EVEN], options=OPEN, audio="aac")
    path = tmp_path / "in.mp4"
    with av.open(str(sound)) as given_, av.open(
        str(path), "w", format="mp4", container_options={"movie_timescale": "240000"}
    ) as out:  # fmt: skip
        copies = {stream.index: out.add_stream_from_template(stream, opaque=True) for stream in given_.streams}
        for packet in given_.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio" and late > 0:
                packet.pts, packet.dts = packet.pts + round(late * 48000), packet.dts + round(late * 48000)
            packet.stream = copies[packet.stream.index]
            out.mux(packet)
    whole = tmp_path / "whole"
    written_whole(path, whole)
    joined(path, target)
    assert packets_of(target, "audio") == packets_of(whole, "audio") == packets_of(path, "audio")
    assert timestamps(target) == timestamps(path)


def test_what_is_beside_the_picture_survives_as_in_one_run(tmp_path, target):
    path = make_video(
        tmp_path / "in.mp4",
        pts=EVEN,
        options=OPEN,
        audio="aac",
        rotation=90,
        aspect=Fraction(4, 3),
        tags={"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 2},
        metadata={"title": "Fog over the bay"},
    )
    with_chapters = tmp_path / "in.mkv"
    with av.open(str(path)) as plain, av.open(str(with_chapters), "w", format="matroska") as out:
        out.metadata["title"] = "Fog over the bay"
        copies = {stream.index: out.add_stream_from_template(stream, opaque=True) for stream in plain.streams}
        copies[0].set_display_rotation(90)
        words = out.add_mux_stream("subrip")
        words.metadata["language"] = "fin"
        out.add_attachment("font.ttf", "font/ttf", b"not a font")
        out.set_chapters([
            {"id": 1, "start": 0, "end": 700, "time_base": Fraction(1, 1000), "metadata": {"title": "Fog"}},
            {"id": 2, "start": 700, "end": 1400, "time_base": Fraction(1, 1000), "metadata": {"title": "Bay"}},
        ])  # fmt: skip
        line = av.Packet(b"Here it comes")
        line.stream, line.time_base, line.pts, line.dts, line.duration = words, Fraction(1, 1000), 300, 300, 500
        out.mux(line)
        for packet in plain.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                out.mux(packet)
    whole = tmp_path / "whole"
    for given_, form in ((path, "same"), (path, "mov"), (with_chapters, "same")):
        writer = written_whole(given_, whole, form)
        assert joined(given_, target, form).lost == writer.lost
        assert told_by(target) == told_by(whole)
        assert told_by(target)["rotation"] != 0
    assert told_by(target)["chapters"][1]["metadata"]["title"] == "Bay"
    assert [bytes_ for bytes_, _ in packets_of(target, "subtitle")[0]] == [b"Here it comes"]


def told_by(path: Path) -> dict[str, object]:
    """All that a file says beside its packets."""
    with av.open(str(path)) as container:
        picture = container.streams.video[0]
        first = next(container.decode(video=0))
        return {
            "metadata": dict(container.metadata),
            "chapters": container.chapters(),
            "tracks": [
                (stream.type, stream.time_base, stream.disposition, stream.codec_context and stream.codec_tag,
                 {key: value for key, value in stream.metadata.items() if key != "DURATION"})
                for stream in container.streams
            ],
            "attachments": [stream.data for stream in container.streams if stream.type == "attachment"],
            "rotation": first.rotation,
            "aspect": picture.sample_aspect_ratio,
            "colours": (first.colorspace, first.color_range, first.color_primaries, first.color_trc),
            "rate": picture.average_rate,
            "duration": container.duration,
        }  # fmt: skip


def cut_from_the_middle(tmp_path: Path) -> Path:
    whole = make_video(tmp_path / "whole.ts", muxer="mpegts", pts=EVEN, options=OPEN, size=(320, 240)).read_bytes()
    path = tmp_path / "in.ts"
    path.write_bytes(whole[len(whole) // 2 // 188 * 188 :])
    return path


def hidden_by_an_edit_list(tmp_path: Path) -> Path:
    return make_video(tmp_path / "in.mp4", pts=[pts - 3003 for pts in EVEN], options=OPEN)


def without_times(tmp_path: Path) -> Path:
    return make_video(tmp_path / "in.avi", muxer="avi", encoder="mpeg4", pts=range(COUNT), time_base=TICKS)


def with_a_time_twice(tmp_path: Path) -> Path:
    pts = [*range(0, 400, 40), 360, *range(400, 1600, 40)]
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w", format="matroska") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for n, moment in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(np.full((96, 64), n, np.uint8), format="yuvj420p")
            frame.pts, frame.time_base = n, Fraction(1, 1000)
            for packet in stream.encode(frame):
                packet.pts = packet.dts = moment
                out.mux(packet)
    return path


@pytest.mark.parametrize(
    ("made_by", "told"),
    [
        (cut_from_the_middle, "the first frame is no key frame"),
        (hidden_by_an_edit_list, "an edit list hides frames"),
        (without_times, "AVI stores no presentation times"),
        (with_a_time_twice, "two frames have the same presentation time"),
    ],
)
def test_what_cannot_be_divided_for_sure_is_refused_with_its_reason(made_by, told, tmp_path):
    path = made_by(tmp_path)
    assert len(frames_of(path)) > 10  # as one, it can be read
    with pytest.raises(Indivisible, match=told):
        read_timeline(path, LIMITS)


def test_a_timeline_holds_the_limits_of_every_upload(source, tmp_path):
    with pytest.raises(FrameTooLarge, match="42 frames; at most 41"):
        read_timeline(source, Settings(max_video_frames=41))
    silent = make_video(tmp_path / "uncounted.mkv", muxer="matroska", pts=EVEN)
    with pytest.raises(FrameTooLarge, match="at most 5"):
        read_timeline(silent, Settings(max_video_frames=5))
    with pytest.raises(FrameTooLarge, match="80x64; at most 3000"):
        read_timeline(source, Settings(max_frame_pixels=3000))
    playlist = tmp_path / "list.mp4"
    playlist.write_bytes(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n")
    with pytest.raises(BadInput):
        read_timeline(playlist, LIMITS)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"begin": 10 * 1001 + 1}, "part 1 begins at"),
        ({"end": 99 * 1001}, "part 1 ends at"),
        ({"frames": 200}, "part 1 has 32 frames; planned were 202"),
        ({"begin": 10**9, "end": 10**9 + 1}, "begins at|has 0 frames|not found"),
    ],
)
def test_a_part_that_does_not_come_out_as_planned_is_no_part(change, told, source):
    part = Part(index=1, frames=8, lead=2, trail=0, begin=10 * 1001, end=19 * 1001)
    assert len(frames_of(source, part)) == 10
    with pytest.raises(Indivisible, match=told):
        frames_of(source, part.model_copy(update=change))


def test_a_damaged_frame_in_a_part_is_bad_input_still(tmp_path):
    path = make_video(tmp_path / "hurt.mp4", encoder="mpeg4", options={"g": "1"}, pts=EVEN)
    parts = parts_of(path)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][25]
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"frame \d+ cannot be decoded"):
        frames_of(path)
    with pytest.raises(BadInput, match=r"frame \d, counted from 0\.\d{3} s, cannot be decoded"):
        frames_of(path, parts[2])
    assert len(frames_of(path, parts[0])) == parts[0].frames + REACH


def test_segments_of_other_settings_do_not_go_together(source, target):
    segments = segments_of(source, "mp4", "h264")
    with VideoReader(source, LIMITS) as reader:
        # The quality a segment was encoded with is in its parameter sets.
        coarse = source.with_name("coarse")
        with SegmentWriter(coarse, reader, format="mp4", codec="h264", crf=40) as writer:
            for frame in reader:
                writer.write(frame)
        with pytest.raises(Indivisible, match="segment 1 was encoded with another extradata"):
            join([segments[0], coarse], target, reader, format="mp4", codec="h264")
        with pytest.raises(Indivisible, match="another codec"):
            join(segments, target, reader, format="mp4", codec="vp9")
        with pytest.raises(Indivisible, match="segment 1 begins at 0"):
            join([segments[0], segments[0]], target, reader, format="mp4", codec="h264")
    assert not target.exists()


@pytest.mark.parametrize("keep", [0, 10, 300, -1, -18])
def test_a_segment_cut_short_is_told_from_a_whole_one(keep, source, target):
    segments = segments_of(source)
    segments[1].write_bytes(segments[1].read_bytes()[:keep])
    with VideoReader(source, LIMITS) as reader, pytest.raises(Indivisible, match="damaged"):
        join(segments, target, reader, format="same")
    assert sorted(path.name for path in source.parent.iterdir()) == sorted(
        [source.name, *(path.name for path in segments)]
    )


def test_a_failure_on_the_way_leaves_no_segment(source, target):
    def fail_after_one() -> None:
        with VideoReader(source, LIMITS) as reader, SegmentWriter(target, reader, format="same") as writer:
            writer.write(next(iter(reader)))
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail_after_one()
    with VideoReader(source, LIMITS) as reader, pytest.raises(BadInput, match="no frame was written"):
        SegmentWriter(target, reader, format="same").close()
    assert [path.name for path in target.parent.iterdir()] == [source.name]


@contextmanager
def little_disk(size_bytes: int):
    """No file of this process grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("form", ["mp4", "mkv"])
def test_a_disk_that_is_full_is_not_the_inputs_fault(form, source, target):
    segments = segments_of(source, form)
    before = sorted(source.parent.iterdir())
    with VideoReader(source, LIMITS) as reader:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)), little_disk(3000):
            join(segments, target, reader, format=form)
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)), little_disk(300):
            write_all(reader, SegmentWriter(target, reader, format=form))
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)), little_disk(3000):
            written_whole(source, target, form)
    assert sorted(source.parent.iterdir()) == before


def test_a_join_of_fewer_frames_than_the_encoder_reorders_is_a_file(tmp_path, target):
    path = make_video(tmp_path / "in.mp4", pts=UNEVEN[:2], options=OPEN)
    segment = tmp_path / "segment"
    with VideoReader(path, LIMITS) as reader:
        write_all(reader, SegmentWriter(segment, reader, format="mp4"))
        join([segment], target, reader, format="mp4")
    assert [pts for _, pts in decode_times(target)] == UNEVEN[:2]


def test_parts_of_a_deep_interlaced_or_hdr_video_make_a_file_that_says_so(tmp_path, target):
    told = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400"
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 16, "color_range": 1}
    hdr = make_video(
        tmp_path / "hdr.mp4", encoder="libx265", pixel_format="yuv420p10le", pts=EVEN, options=x265(told), tags=tags
    )
    joined(hdr, target)
    with av.open(str(target)) as container:
        frame = next(container.decode(video=0))
        names = {side.type.name for side in frame.side_data}
        assert {"MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL"} <= names
        assert (container.streams.video[0].codec_context.name, frame.format.name) == ("hevc", "yuv420p10le")
        assert (frame.colorspace, frame.color_trc) == (9, 16)
    fields = make_video(tmp_path / "fields.mp4", pts=EVEN, options={**OPEN, "x264-params": "bff=1"})
    joined(fields, target)
    with av.open(str(target)) as container:
        assert all(frame.interlaced_frame for frame in container.decode(video=0))
        assert container.streams.video[0].codec_context.field_order == 3
    assert timestamps(target) == timestamps(fields)
