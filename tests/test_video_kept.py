"""What a video has beside its pixels is in the result too, or the result says what it could not keep."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type
from av.stream import Disposition
from media_samples import encoded, make_video, packets_of, photo
from video_samples import decoded, write_video

from service.media.hdr import light_in, mastering_in
from service.media.video import VideoReader, VideoWriter
from service.sandbox.videos import VideoReader as ConfinedReader
from service.settings import Settings

LIMITS = Settings()
BT2020 = {"colorspace": 9, "color_primaries": 9, "color_trc": 16, "color_range": 1}
HDR10 = (
    "hdr10=1:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400:"
    "log-level=none"
)


def copied(source: Path, target: Path, form: str = "mkv", codec: str | None = None, reads=VideoReader) -> VideoWriter:
    with reads(source, LIMITS) as reader:
        with VideoWriter(target, reader, format=form, codec=codec) as writer:
            for frame in reader:
                writer.write(frame)
        return writer


def told_of_light(path: Path):
    sides = {side.type: bytes(side) for side in decoded(path)[0].side_data}
    return mastering_in(sides[Type.MASTERING_DISPLAY_METADATA]), light_in(sides[Type.CONTENT_LIGHT_LEVEL])


@pytest.fixture
def hdr(tmp_path):
    return make_video(
        tmp_path / "hdr.mp4",
        encoder="libx265",
        pixel_format="yuv420p10le",
        tags=BT2020,
        options={"x265-params": HDR10},
        pts=range(0, 5005, 1001),
    )


@pytest.mark.parametrize("reads", [VideoReader, ConfinedReader])
@pytest.mark.parametrize(("form", "codec"), [("mp4", "hevc"), ("mkv", "h264"), ("mov", "h264"), ("mp4", "av1")])
def test_what_displays_are_told_of_hdr_is_kept(form, codec, reads, hdr, tmp_path):
    writer = copied(hdr, tmp_path / "out", form, codec, reads)
    assert not [words for words in writer.lost if "HDR" in words]
    mastering, light = told_of_light(tmp_path / "out")
    before, light_before = told_of_light(hdr)
    assert light == light_before
    assert (light.content, light.frame_average) == (1000, 400)
    assert (before.green, before.white) == ((13250, 34500), (15635, 16450))
    assert (before.darkest, before.brightest) == (50, 10_000_000)
    for name in ("red", "green", "blue", "white"):
        # AV1 has 16 bits behind the point, a step of which is less than one of these.
        assert np.abs(np.subtract(getattr(mastering, name), getattr(before, name))).max() <= 1
    assert abs(mastering.brightest - before.brightest) <= 40
    assert abs(mastering.darkest - before.darkest) <= 1
    frame = decoded(tmp_path / "out")[0]
    assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (9, 9, 16)
    assert frame.format.name == "yuv420p10le"


@pytest.mark.parametrize("codec", ["vp9", "ffv1"])
def test_a_codec_that_cannot_tell_displays_of_hdr_says_so(codec, hdr, tmp_path):
    writer = copied(hdr, tmp_path / "out", "mkv", codec)
    assert {"HDR mastering display", "HDR content light level"} <= set(writer.lost)


@pytest.mark.parametrize("reads", [VideoReader, ConfinedReader])
@pytest.mark.parametrize("first", ["tff", "bff"])
@pytest.mark.parametrize(("form", "codec"), [("mp4", "h264"), ("mkv", "h264"), ("mkv", "ffv1")])
def test_an_interlaced_video_is_one_again_with_the_same_field_first(form, codec, first, reads, tmp_path):
    source = make_video(tmp_path / "in.mp4", options={"x264-params": f"{first}=1"}, pts=range(0, 4004, 1001))
    writer = copied(source, tmp_path / "out", form, codec, reads)
    assert "interlacing flags" not in writer.lost
    with av.open(str(tmp_path / "out")) as container:
        frame = next(container.decode(video=0))
        assert container.streams.video[0].codec_context.field_order == (2 if first == "tff" else 3)
        assert frame.interlaced_frame or codec == "ffv1"  # which leaves it to the container
    copied(tmp_path / "out", tmp_path / "again", "mp4", "h264", reads)
    assert decoded(tmp_path / "again")[0].interlaced_frame


@pytest.mark.parametrize(("codec", "height"), [("hevc", 64), ("av1", 64), ("vp9", 64), ("h264", 66)])
def test_interlacing_that_cannot_be_told_is_named_as_lost(codec, height, tmp_path):
    source = write_video(
        tmp_path / "in.mkv", encoder="mpeg2video", size=(80, height), interlaced=True, tags={"field_order": 2}
    )
    assert decoded(source)[0].interlaced_frame
    assert "interlacing flags" in copied(source, tmp_path / "out", "mp4", codec).lost
    assert len(decoded(tmp_path / "out")) == 3


def test_a_video_of_whole_frames_does_not_become_interlaced(tmp_path):
    source = write_video(tmp_path / "in.mkv", encoder="mpeg2video", size=(80, 64))
    assert copied(source, tmp_path / "out", "mp4", "h264").lost == []
    assert not decoded(tmp_path / "out")[0].interlaced_frame


def test_frames_with_data_of_a_kind_that_the_library_has_no_name_for_are_read(tmp_path):
    """Seen with the Exif of pictures in a MOV; the whole video failed."""
    source = make_video(
        tmp_path / "in.mov", muxer="mov", encoder="tiff", pixel_format="rgb24", rotation=90, pts=range(0, 3003, 1001)
    )
    with pytest.raises(ValueError, match="is not a valid Type"):
        list(decoded(source)[0].side_data)
    copied(source, tmp_path / "out", "mp4")
    assert decoded(tmp_path / "out")[0].rotation == decoded(source)[0].rotation == 90


def with_cover(source: Path, target: Path, muxer: str) -> Path:
    """The same tracks, a second sound, a cover and two chapters."""
    picture = encoded(".jpg", photo())
    with av.open(str(source)) as given, av.open(str(target), "w", format=muxer) as out:
        copies = {stream.index: out.add_stream_from_template(stream, opaque=True) for stream in given.streams}
        second = out.add_stream_from_template(given.streams.audio[0], opaque=True)
        second.metadata["language"] = "fin"
        out.set_chapters([
            {"id": 1, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "Fog"}},
            {"id": 2, "start": 200, "end": 400, "time_base": Fraction(1, 1000), "metadata": {"title": "Sun"}},
        ])  # fmt: skip
        if muxer == "matroska":
            out.add_attachment("cover.jpg", "image/jpeg", picture)
            out.start_encoding()
        else:
            with av.open(io.BytesIO(picture), format="jpeg_pipe") as still:
                cover = out.add_stream_from_template(still.streams.video[0], opaque=True)
                cover.disposition = Disposition.attached_pic
                out.start_encoding()
                packet = next(still.demux())
                packet.stream, packet.pts, packet.dts = cover, 0, 0
                out.mux(packet)
        for packet in given.demux():
            if packet.dts is not None:
                stream = packet.stream
                packet.stream = copies[stream.index]
                out.mux(packet)
                if stream.type == "audio":
                    packet.stream = second
                    out.mux(packet)
    return target


def time_code_of(path: Path) -> str | None:
    with av.open(str(path)) as container:
        tags = container.streams.video[0].metadata
        return next((value for name, value in tags.items() if name.lower() == "timecode"), None)


def cover_of(path: Path) -> bytes | None:
    with av.open(str(path)) as container:
        for stream in container.streams.video:
            if stream.disposition & Disposition.attached_pic:
                return bytes(next(container.demux(stream)))
    return None


@pytest.mark.parametrize("reads", [VideoReader, ConfinedReader])
@pytest.mark.parametrize("muxer", ["mp4", "matroska"])
def test_cover_chapters_and_every_sound_are_kept(muxer, reads, tmp_path):
    plain = make_video(tmp_path / "plain.mp4", audio="aac", pts=range(0, 10010, 1001))
    source = with_cover(plain, tmp_path / "in", muxer)
    for form in ("mp4", "mkv"):
        writer = copied(source, tmp_path / "out", form, reads=reads)
        assert not [words for words in writer.lost if "track" in words or "cover" in words]
        assert cover_of(tmp_path / "out") == cover_of(source) is not None
        with av.open(str(tmp_path / "out")) as container:
            assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["Fog", "Sun"]
            assert [stream.language for stream in container.streams.audio][1] == "fin"
        assert packets_of(tmp_path / "out", "audio")[0] == packets_of(tmp_path / "out", "audio")[1] != []


@pytest.mark.parametrize("form", ["mp4", "mov", "mkv"])
def test_a_time_code_is_kept_though_its_track_is_written_anew(form, tmp_path):
    source = write_video(
        tmp_path / "in.mov", muxer="mov", encoder="mpeg4",
        beside=lambda out: out.streams[0].metadata.update(timecode="01:02:03:04"),
    )  # fmt: skip
    assert copied(source, tmp_path / "out", form).lost == []
    assert time_code_of(tmp_path / "out") == time_code_of(source) == "01:02:03:04"


def test_a_cover_that_the_container_cannot_hold_is_named(tmp_path):
    plain = make_video(tmp_path / "plain.mp4", audio="aac", pts=range(0, 10010, 1001))
    source = with_cover(plain, tmp_path / "in", "mp4")
    assert "cover picture" in copied(source, tmp_path / "out", "mov").lost
    assert cover_of(tmp_path / "out") is None


@pytest.mark.parametrize("reads", [VideoReader, ConfinedReader])
@pytest.mark.parametrize(("muxer", "encoder"), [("mp4", "libx264"), ("matroska", "ffv1"), ("avi", "mpeg4")])
def test_a_clip_of_one_frame_is_one_again(muxer, encoder, reads, tmp_path):
    source = write_video(tmp_path / "in", muxer=muxer, encoder=encoder, count=1, size=(64, 64))
    copied(source, tmp_path / "out", "mp4", reads=reads)
    assert len(decoded(tmp_path / "out")) == 1


def test_a_file_without_a_length_in_its_header_is_read_to_its_end(tmp_path):
    """As a browser's recorder writes it: the muxer could not go back to tell."""
    data = bytearray()

    class Pipe:
        def write(self, more):
            data.extend(more)
            return len(more)

    with av.open(Pipe(), "w", format="matroska", container_options={"live": "1"}) as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            picture = av.VideoFrame(64, 48, "yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    source = tmp_path / "in.mkv"
    source.write_bytes(data)
    with av.open(str(source)) as container:
        assert container.duration is None
    assert copied(source, tmp_path / "out").lost == []
    assert len(decoded(tmp_path / "out")) == 10


def test_frames_that_an_edit_list_hides_stay_hidden(tmp_path):
    """The list begins the film at its sixth frame, in the middle of a group of pictures."""
    source = make_video(tmp_path / "in.mp4", pts=[-5005 + 1001 * n for n in range(12)], options={"bf": "0"})
    shown = [frame.pts for frame in decoded(source)]
    assert len(shown) == 7
    copied(source, tmp_path / "out", "mp4")
    assert [frame.pts for frame in decoded(tmp_path / "out")] == shown
