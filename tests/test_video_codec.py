import asyncio
import os
import socketserver
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import UNEVEN, make_video, moments, packets_of, photo, planes_of, timestamps

from service.errors import BadInput, FrameTooLarge, UnknownFormat
from service.media import opening
from service.media.formats import validate_output
from service.media.probe import probe_video, probe_video_here
from service.media.video import Frame, VideoReader, VideoWriter
from service.settings import Settings

LIMITS = Settings()
LOSSLESS = {"crf": "0", "preset": "ultrafast"}


def probed(path: Path, limits: Settings = LIMITS):
    return asyncio.run(probe_video(path, limits))


def frames_of(path: Path) -> list[Frame]:
    with VideoReader(path, LIMITS) as reader:
        return list(reader)


def copied(source: Path, target: Path, form: str = "same", codec: str | None = None, crf: int | None = None):
    """Decode and encode, nothing between; what the writer tells afterwards."""
    with VideoReader(source, LIMITS) as reader:
        with VideoWriter(target, reader, format=form, codec=codec, crf=crf) as writer:
            for frame in reader:
                writer.write(frame)
        return writer


def first_frame(path: Path) -> av.VideoFrame:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_video(tmp_path / "source.mp4", options=LOSSLESS, audio="aac")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def test_a_video_is_probed_in_a_child_and_here_alike(source):
    facts = probed(source)
    assert facts == probe_video_here(source, LIMITS)
    assert (facts.content_type, facts.width, facts.height, facts.frames) == ("video/mp4", 80, 64, 12)
    assert (facts.frame_rate, facts.has_audio) == ("30000/1001", True)
    assert facts.bytes == source.stat().st_size


@pytest.mark.parametrize(
    ("muxer", "encoder", "content_type"),
    [
        ("mov", "libx264", "video/quicktime"),
        ("3gp", "mpeg4", "video/3gpp"),
        ("matroska", "libx264", "video/x-matroska"),
        ("webm", "libvpx-vp9", "video/webm"),
        ("avi", "mpeg4", "video/x-msvideo"),
        ("mpegts", "libx264", "video/mp2t"),
        ("vob", "mpeg2video", "video/mpeg"),
        ("flv", "flv", "video/x-flv"),
        ("asf", "mpeg4", "video/x-ms-asf"),
        ("yuv4mpegpipe", "wrapped_avframe", "video/x-yuv4mpeg"),
        ("mxf", "mpeg2video", "video/mxf"),
        ("ivf", "libvpx-vp9", "video/x-ivf"),
        ("mpeg2video", "mpeg2video", "video/mpv"),
        ("mpeg1video", "mpeg1video", "video/mpv"),
        ("h264", "libx264", "video/h264"),
        ("hevc", "libx265", "video/h265"),
    ],
)
def test_every_container_is_read_whatever_its_name(muxer, encoder, content_type, tmp_path):
    clock = Fraction(1, 25)
    path = make_video(tmp_path / "a.txt", muxer=muxer, encoder=encoder, pts=range(8), time_base=clock)
    assert probe_video_here(path, LIMITS).content_type == content_type
    assert len(frames_of(path)) == 8


@pytest.mark.parametrize(
    ("data", "error", "told"),
    [
        (b"", BadInput, "empty"),
        (b"only text", UnknownFormat, "accepted are MP4"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", UnknownFormat, "starts with 23 45 58 54"),
        (b"ffconcat version 1.0\nfile '/etc/hostname'\n", UnknownFormat, "accepted are MP4"),
        (b"\0\0\0\x20ftypisom" + bytes(500), BadInput, "damaged"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\x82\x84webm" + bytes(500), BadInput, "damaged"),
    ],
)
def test_what_is_no_video_costs_one_clear_refusal(data, error, told, tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(data)
    for probe in (probed, lambda path: probe_video_here(path, LIMITS)):
        with pytest.raises(error, match=told):
            probe(path)


class Listener(socketserver.BaseRequestHandler):
    """Counts who calls."""

    calls = 0

    def handle(self) -> None:
        type(self).calls += 1


@pytest.mark.parametrize("nested", ["file", "http"])
def test_a_playlist_opens_nothing_even_if_it_is_taken_for_a_video(nested, tmp_path, monkeypatch):
    """The first two walls are taken down here: the type is wrong, and the demuxer is the one for playlists."""
    clip = make_video(tmp_path / "nested.ts", muxer="mpegts", pts=range(8), time_base=Fraction(1, 25))
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        where = clip.as_uri() if nested == "file" else f"http://127.0.0.1:{server.server_address[1]}/nested.ts"
        playlist = tmp_path / "playlist.m3u8"
        playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{where}\n#EXT-X-ENDLIST\n")
        monkeypatch.setattr(opening, "content_type_of", lambda head: "video/mp4")
        monkeypatch.setitem(opening.DEMUXERS, "video/mp4", "hls")
        with pytest.raises(BadInput):
            probe_video_here(playlist, LIMITS)
        server.shutdown()
    assert Listener.calls == 0


def test_sound_without_a_picture_is_refused(tmp_path):
    path = make_video(tmp_path / "sound.mp4", video=False, audio="aac")
    with pytest.raises(BadInput, match="no video track; its tracks: audio"):
        probed(path)


@pytest.mark.parametrize("muxer", ["mp4", "matroska", "avi"])
def test_a_video_of_no_frames_is_refused(muxer, tmp_path):
    path = make_video(tmp_path / "none", muxer=muxer, encoder="mpeg4", pts=(), time_base=Fraction(1, 25))
    with pytest.raises(BadInput, match=r"not one frame can be decoded|End of file|no video track"):
        probe_video_here(path, LIMITS)


def test_a_frame_too_large_is_refused_with_the_value_and_the_bound(source):
    with pytest.raises(FrameTooLarge, match="80x64; at most 3000 pixels"):
        probed(source, Settings(max_frame_pixels=3000))


def test_too_many_frames_are_refused_by_header_and_by_count(source, tmp_path):
    with pytest.raises(FrameTooLarge, match="12 frames; at most 11"):
        probed(source, Settings(max_video_frames=11))
    silent = make_video(tmp_path / "uncounted.mkv", muxer="matroska")
    with VideoReader(silent, Settings(max_video_frames=5)) as reader, pytest.raises(FrameTooLarge, match="at most 5"):
        list(reader)


def test_a_probe_whose_caller_goes_away_leaves_no_child(source):
    async def give_up() -> None:
        probe = asyncio.create_task(probe_video(source, LIMITS))
        while children() <= before:
            await asyncio.sleep(0)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe

    def children() -> set[str]:
        return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc here")
    before = children()
    asyncio.run(give_up())
    assert children() <= before


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98])
@pytest.mark.parametrize("muxer", ["mp4", "matroska", "mpegts", "avi"])
def test_a_video_cut_short_gives_its_good_frames_or_bad_input(muxer, share, tmp_path):
    encoder = "mpeg4" if muxer == "avi" else "libx264"
    whole = make_video(
        tmp_path / "whole", muxer=muxer, encoder=encoder, pts=range(12), time_base=Fraction(1, 25)
    ).read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(whole[: int(len(whole) * share)])
    count = 0
    try:
        with VideoReader(cut, LIMITS) as reader:
            for frame in reader:
                assert frame.pixels.shape == (64, 80, 3)
                count += 1
    except BadInput as err:
        told = str(err)
        assert count == 0 or told.startswith(f"frame {count} cannot be decoded"), told


def test_damage_in_the_middle_names_the_frame_and_leaves_no_file(tmp_path, target):
    path = make_video(tmp_path / "hurt.mp4", encoder="mpeg4", options={"g": "1"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][7]
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"frame \d+ cannot be decoded"):
        copied(path, target)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("muxer", ["mp4", "mov", "matroska"])
@pytest.mark.parametrize(("pts", "rate"), [(moments(12), "even"), (UNEVEN, "uneven")])
def test_every_frame_keeps_its_moment(muxer, pts, rate, tmp_path, target):
    path = make_video(tmp_path / "in", muxer=muxer, pts=pts)
    writer = copied(path, target)
    assert timestamps(target) == timestamps(path)
    assert len(frames_of(target)) == len(pts)
    if muxer != "matroska":
        assert timestamps(target) == [Fraction(moment, 30000) for moment in pts]
    assert writer.lost == []


def test_a_video_that_begins_late_begins_late_again(tmp_path, target):
    path = make_video(tmp_path / "late.mp4", pts=[5005 + n * 1001 for n in range(6)])
    copied(path, target)
    assert timestamps(target) == timestamps(path)
    assert timestamps(target)[0] == Fraction(5005, 30000)


def test_b_frames_come_out_in_the_order_they_are_shown(tmp_path, target):
    path = make_video(tmp_path / "b.mp4", options={"preset": "medium", "bf": "3"}, pts=moments(20))
    shown = [frame.pts for frame in frames_of(path)]
    assert shown == sorted(shown)
    copied(path, target)
    assert timestamps(target) == timestamps(path)


def test_times_too_fine_for_matroska_are_rounded_and_named(source, target):
    writer = copied(source, target, "mkv")
    assert "timestamps finer than a millisecond" in writer.lost
    assert len(timestamps(target)) == 12


def test_avi_which_stores_no_moments_gets_even_ones(tmp_path, target):
    path = make_video(
        tmp_path / "b.avi", muxer="avi", encoder="mpeg4", options={"bf": "2"}, pts=range(12), time_base=Fraction(1, 25)
    )
    writer = copied(path, target)
    assert writer.suffix == ".mp4"
    steps = {late - early for early, late in zip(timestamps(target), timestamps(target)[1:], strict=False)}
    assert steps == {Fraction(1, 25)}


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize(
    ("muxer", "encoder", "options"),
    [
        ("avi", "mpeg4", {"bf": "2"}),
        ("avi", "mpeg4", {}),
        ("h264", "libx264", {"preset": "medium", "bf": "3"}),
        ("hevc", "libx265", {"x265-params": "log-level=none:bframes=4"}),
        ("mpeg2video", "mpeg2video", {"bf": "2"}),
    ],
)
def test_what_stores_no_moments_begins_at_zero_and_goes_on_evenly(muxer, encoder, options, count, tmp_path, target):
    path = make_video(
        tmp_path / "in", muxer=muxer, encoder=encoder, options=options, pts=range(count), time_base=Fraction(1, 25)
    )
    shown = [planes[0] for planes in planes_of(path)]
    copied(path, target, "mkv", "ffv1")
    rate = probe_video_here(path, LIMITS).frame_rate
    times = timestamps(target)
    assert times == [Fraction(round(number / Fraction(rate) * 1000), 1000) for number in range(count)]
    assert len(times) == count
    assert all(np.array_equal(a, b[0]) for a, b in zip(shown, planes_of(target), strict=True))


def test_dv_of_a_tape_is_read_as_interlaced(tmp_path, target):
    path = make_video(
        tmp_path / "in.dv", muxer="dv", encoder="dvvideo", size=(720, 576), pts=range(2), time_base=Fraction(1, 25)
    )
    writer = copied(path, target)
    assert (probe_video_here(path, LIMITS).content_type, writer.lost) == ("video/dv", [])
    assert first_frame(target).interlaced_frame


@pytest.mark.parametrize(("muxer", "codec"), [("mp4", "aac"), ("matroska", "aac"), ("webm", "libopus")])
def test_sound_is_copied_byte_for_byte_and_in_time(muxer, codec, tmp_path, target):
    encoder = "libvpx-vp9" if muxer == "webm" else "libx264"
    path = make_video(tmp_path / "in", muxer=muxer, encoder=encoder, audio=codec)
    copied(path, target)
    assert packets_of(target, "audio") == packets_of(path, "audio")
    assert len(packets_of(target, "audio")[0]) >= 20


def test_sound_that_the_container_cannot_hold_is_named_as_lost(source, target):
    writer = copied(source, target, "webm")
    assert "audio track 1 (aac)" in writer.lost
    assert packets_of(target, "audio") == []
    assert len(timestamps(target)) == 12


def test_pictures_and_sound_are_interleaved(tmp_path, target):
    path = make_video(tmp_path / "in.mkv", muxer="matroska", audio="aac", pts=moments(30))
    copied(path, target)
    with av.open(str(target)) as container:
        kinds = [packet.stream.type for packet in container.demux() if packet.size]
    assert kinds != sorted(kinds)
    assert kinds != sorted(kinds, reverse=True)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "gray", "yuv420p10le", "yuv444p10le"])
def test_the_pixel_format_is_kept_and_planes_come_back(pixel_format, tmp_path, target):
    path = make_video(
        tmp_path / "in.mkv", muxer="matroska", encoder="ffv1", pixel_format=pixel_format, pts=range(0, 400, 40),
        time_base=Fraction(1, 1000),
    )  # fmt: skip
    writer = copied(path, target, codec="ffv1")
    assert first_frame(target).format.name == pixel_format
    assert writer.lost == []
    for before, after in zip(planes_of(path), planes_of(target), strict=True):
        luma, *chroma = [np.abs(a.astype(int) - b).max() for a, b in zip(before, after, strict=True)]
        most = 1 if before[0].dtype == np.uint8 else 4
        assert luma <= most
        # Chroma of half size passes through two filters; of full size only through rounding.
        assert max(chroma, default=0) <= (most if "444" in pixel_format else 3 * most)


@pytest.mark.parametrize("full", [1, 2])
@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
def test_colour_tags_are_kept_and_applied(matrix, full, tmp_path, target):
    tags = {"colorspace": matrix, "color_range": full, "color_primaries": matrix, "color_trc": 1}
    path = make_video(tmp_path / "in.mp4", pixel_format="yuv444p", options=LOSSLESS, tags=tags)
    pixels = frames_of(path)[0].pixels
    assert np.abs(pixels.astype(int) - photo(64, 80, seed=0)).mean() < 1  # the matrix that made them also reads them
    copied(path, target, crf=0)
    frame = first_frame(target)
    assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (matrix, matrix, 1)
    assert frame.color_range == full
    for before, after in zip(planes_of(path), planes_of(target), strict=True):
        assert max(np.abs(a.astype(int) - b).max() for a, b in zip(before, after, strict=True)) <= 1


def test_a_small_video_that_says_nothing_is_read_as_bt_601(tmp_path):
    path = make_video(tmp_path / "in.mp4", pixel_format="yuv444p", options=LOSSLESS)
    assert np.abs(frames_of(path)[0].pixels.astype(int) - photo(64, 80, seed=0)).mean() < 1


def test_a_tall_video_that_says_nothing_is_read_as_bt_709(tmp_path):
    path = make_video(tmp_path / "in.mp4", size=(64, 720), pts=[0], pixel_format="yuv444p", options=LOSSLESS)
    said = make_video(
        tmp_path / "said.mp4", size=(64, 720), pts=[0], pixel_format="yuv444p", options=LOSSLESS, tags={"colorspace": 1}
    )
    right = np.abs(frames_of(said)[0].pixels.astype(int) - photo(720, 64, seed=0)).mean()
    wrong = np.abs(frames_of(path)[0].pixels.astype(int) - photo(720, 64, seed=0)).mean()
    assert right < 1 < wrong  # the silent one was made with BT.601


@pytest.mark.parametrize(("codec", "encoder"), [("h264", "libx264"), ("hevc", "libx265"), ("av1", "libsvtav1")])
def test_ten_bits_are_kept(codec, encoder, tmp_path, target):
    path = make_video(tmp_path / "in.mp4", encoder="libx264", pixel_format="yuv420p10le")
    frames = frames_of(path)
    assert frames[0].pixels.dtype == np.uint16
    assert np.abs(frames[0].pixels / 65535 - photo(64, 80, bits=16, seed=0) / 65535).mean() < 0.02
    copied(path, target, codec=codec)
    assert first_frame(target).format.name == "yuv420p10le"


def test_no_encoder_makes_threads_more_urgent_than_its_callers(source, target):
    """Only where it may, as root, does the AV1 encoder try."""
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("no /proc here")
    with VideoReader(source, LIMITS) as reader, VideoWriter(target, reader, format="mp4", codec="av1") as writer:
        for frame in reader:
            writer.write(frame)
        assert {os.sched_getscheduler(int(task.name)) for task in tasks.iterdir()} == {os.SCHED_OTHER}


def test_ten_bits_in_a_codec_of_eight_are_named_as_lost(tmp_path, target):
    path = make_video(tmp_path / "in.mp4", pixel_format="yuv420p10le")
    assert "10 bit depth" in copied(path, target, "webm", "vp9").lost


@pytest.mark.parametrize(
    ("form", "codec", "size", "pixel_format"),
    [
        ("mp4", "h264", (33, 31), "yuv444p"),
        ("mp4", "h264", (64, 47), "yuv422p"),
        ("mkv", "hevc", (65, 67), "yuv444p"),
        ("mp4", "av1", (65, 67), "yuv420p"),
        ("same", "vp9", (33, 31), "yuv420p"),
        ("mkv", "ffv1", (33, 31), "yuv420p"),
    ],
)
def test_odd_sizes_are_kept_with_more_chroma_where_the_codec_needs_it(
    form, codec, size, pixel_format, tmp_path, target
):
    path = make_video(tmp_path / "in.webm", muxer="webm", encoder="libvpx-vp9", size=size)
    copied(path, target, form, codec)
    frame = first_frame(target)
    assert (frame.width, frame.height, frame.format.name) == (*size, pixel_format)


def test_a_video_of_one_pixel_goes_through(tmp_path, target):
    path = make_video(tmp_path / "in.mp4", size=(1, 1), pixel_format="yuv444p", pts=moments(3))
    copied(path, target)
    assert len(frames_of(target)) == 3


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_a_size_that_the_codec_cannot_hold_is_refused_clearly(codec, tmp_path, target):
    path = make_video(tmp_path / "in.mp4", size=(48, 64))
    with pytest.raises(BadInput, match=f"frames are 48x64; {codec} needs at least 64x64"):
        copied(path, target, codec=codec)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_pixel_shape_and_title_are_kept(degrees, tmp_path, target):
    path = make_video(
        tmp_path / "in.mp4", rotation=degrees, aspect=Fraction(4, 3), metadata={"title": "Fog over the bay"}
    )
    assert frames_of(path)[0].pixels.shape == (64, 80, 3)  # as stored
    copied(path, target)
    assert first_frame(target).rotation == first_frame(path).rotation != 0
    with av.open(str(target)) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
        assert container.metadata["title"] == "Fog over the bay"


@pytest.mark.parametrize(
    ("form", "codec", "content_type", "name"),
    [
        ("mp4", "av1", "video/mp4", "av1"),
        ("mov", "hevc", "video/quicktime", "hevc"),
        ("mkv", "ffv1", "video/x-matroska", "ffv1"),
        ("webm", None, "video/webm", "vp9"),
        ("webm", "av1", "video/webm", "av1"),
    ],
)
def test_containers_and_codecs_are_as_asked(form, codec, content_type, name, source, target):
    writer = copied(source, target, form, codec)
    assert (writer.content_type, writer.codec) == (content_type, name)
    facts = probe_video_here(target, LIMITS)
    assert facts.content_type == content_type
    with av.open(str(target)) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == name


def test_a_finer_crf_costs_more_bytes(source, target):
    sizes = []
    for crf in (10, 40):
        copied(source, target, crf=crf)
        sizes.append(target.stat().st_size)
    assert sizes[0] > sizes[1]


def test_a_failure_on_the_way_leaves_no_file(source, target):
    def fail_after_one() -> None:
        with VideoReader(source, LIMITS) as reader, VideoWriter(target, reader, format="same") as writer:
            writer.write(next(iter(reader)))
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail_after_one()
    assert [path.name for path in target.parent.iterdir()] == [source.name]


def test_a_writer_that_got_no_frame_leaves_no_file(source, target):
    with VideoReader(source, LIMITS) as reader, pytest.raises(BadInput, match="no frame was written"):
        VideoWriter(target, reader, format="same").close()
    assert [path.name for path in target.parent.iterdir()] == [source.name]


def test_closing_twice_is_closing_once(source, target):
    with VideoReader(source, LIMITS) as reader:
        with VideoWriter(target, reader, format="same") as writer:
            for frame in reader:
                writer.write(frame)
            writer.close()
        writer.abort()
    assert len(timestamps(target)) == 12


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("image", "gif"), "format is 'gif'; allowed are same, png, jpeg, webp, tiff, avif"),
        (("image", "png", "h264"), "codec is 'h264', but only a video has one"),
        (("image", "jpeg", None, None, 0), "quality is 0; allowed are 1 to 100"),
        (("video", "avi"), "format is 'avi'; allowed are same, mp4, mkv, mov, webm"),
        (("video", "mp4", "divx"), "codec is 'divx'; allowed are h264, hevc, av1, vp9, ffv1"),
        (("video", "webm", "h264"), "codec is 'h264'; webm holds vp9, av1"),
        (("video", "mov", "ffv1"), "codec is 'ffv1'; mov holds h264, hevc"),
        (("video", "mp4", "h264", 52), "crf is 52; h264 allows 0 to 51"),
        (("video", "mkv", "ffv1", 3), "crf is 3, but ffv1 is lossless"),
        (("video", "mp4", None, None, 90), "quality is 90, but only JPEG, WebP and AVIF have one"),
        (("video", "same", "ffv1", None, None, "video/mp4"), "codec is 'ffv1'; mp4 holds h264"),
    ],
)
def test_a_result_that_cannot_be_written_is_refused_with_what_can(asked, told):
    with pytest.raises(BadInput, match=told):
        validate_output(*asked)


@pytest.mark.parametrize(
    "asked",
    [
        ("image", "same"),
        ("image", "webp", None, None, 100),
        ("video", "same"),
        ("video", "same", "ffv1", None, None, "video/x-msvideo"),
        ("video", "webm", None, 60),
        ("video", "same", None, 60, None, "video/webm"),
    ],
)
def test_a_result_that_can_be_written_is_accepted(asked):
    validate_output(*asked)


def test_the_same_frames_give_the_same_film(tmp_path, target):
    rng = np.random.default_rng(3)
    source = tmp_path / "noisy.mkv"
    with av.open(str(source), "w") as out:
        stream = out.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for step in range(6):
            panned = photo(128, 128)[2 * step :, 3 * step :][:96, :96]
            noisy = (panned + rng.normal(0, 20, panned.shape)).clip(0, 255).astype(np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="rgb24")))
        out.mux(stream.encode())
    films = set()
    for _ in range(30):
        copied(source, target, "mp4", "h264")
        films.add(target.read_bytes())
        [rng.random(int(rng.integers(1_000, 60_000))) for _ in range(10)]  # the encoder finds other things in memory
    assert len(films) == 1
