"""Colours come back as they were: at strength 0 a lossless result has the source's own numbers."""

import numpy as np
import pytest
from av.codec.codec import Codec
from av.video.reformatter import VideoReformatter
from media_samples import photo
from test_videos import MiddleFrame
from video_samples import decoded, filled, planes_in, soft_noise, tones, wild_noise, write_video

from models.catalogue import FITVNET
from service.job import Options
from service.media.colour import Coding, coding_of, from_rgb, to_rgb
from service.media.head import depth_of
from service.media.planes import MATRICES, add_beyond, beyond_of, codes_in, frame_of, layout_of, rgb_of
from service.media.video import VideoReader, VideoWriter
from service.pipeline.denoiser import Denoiser
from service.pipeline.videos import denoise_video
from service.settings import Settings

LIMITS = Settings()
LIMITED, FULL = 1, 2
YCGCO = 8
LAYOUTS = [
    *(f"yuv{shared}p{end}" for shared in ("420", "422", "444") for end in ("", "10le", "12le", "16le")),
    *("yuv440p", "yuv411p", "yuv410p", "yuv420p9le", "yuv444p14le", "gray", "gray10le", "gray12le", "gray16le"),
]


def copied(source, target, form="mkv", codec="ffv1", crf=None):
    with VideoReader(source, LIMITS) as reader:
        with VideoWriter(target, reader, format=form, codec=codec, crf=crf) as writer:
            for frame in reader:
                writer.write(frame)
        return writer


def most_apart(one, other):
    return [
        int(np.abs(a - b).max())
        for before, after in zip(one, other, strict=True)
        for a, b in zip(planes_in(before), planes_in(after), strict=True)
    ]


@pytest.mark.parametrize("size", [(64, 48), (37, 35), (5, 1), (1, 3), (2, 2)])
def test_planes_become_rgb_and_the_same_planes_again_by_every_matrix_and_range(size):
    for name in LAYOUTS:
        layout = layout_of(name)
        assert layout is not None
        assert layout.name == name
        frame = soft_noise(name, size)
        for matrix in MATRICES:
            for told_range in (LIMITED, FULL):
                pixels = rgb_of(frame, layout, matrix, told_range)
                assert pixels.dtype == (np.uint8 if layout.bits == 8 else np.uint16)
                # Numbers of YCgCo stand for a step of RGB each, so that rounding both ways may be felt.
                most = 1 if matrix == YCGCO else 0
                assert max(most_apart([frame], [frame_of(pixels, layout, matrix, told_range)])) <= most, name


@pytest.mark.parametrize("size", [(64, 48), (37, 35), (1, 1)])
def test_what_rgb_does_not_hold_is_told_beside_it_and_given_back(size):
    for name in LAYOUTS:
        layout = layout_of(name)
        assert layout is not None
        frame = wild_noise(name, size)
        for matrix in MATRICES:
            for told_range in (LIMITED, FULL):
                pixels = rgb_of(frame, layout, matrix, told_range)
                beyond = beyond_of(frame, pixels, layout, matrix, told_range)
                assert len(beyond) == codes_in(layout, *size)
                made = frame_of(pixels, layout, matrix, told_range)
                add_beyond(made, beyond, layout)
                assert max(most_apart([frame], [made])) == 0, name
                add_beyond(made, np.full_like(beyond, 1 << 30), layout)
                assert all(np.all(plane == (1 << layout.bits) - 1) for plane in planes_in(made))


@pytest.mark.parametrize("told_range", [LIMITED, FULL])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p10le", "yuv444p12le", "gray"])
def test_at_strength_0_not_even_superwhites_are_lost(pixel_format, told_range, tmp_path):
    """Nor footroom, nor colours that no RGB has; at half the strength, half of what is beyond comes out."""
    tags = {"colorspace": 1, "color_range": told_range}
    source = write_video(
        tmp_path / "in.mkv", pixel_format=pixel_format, size=(37, 35), count=9, tags=tags, frame=wild_noise
    )
    passing = Denoiser(FITVNET, [MiddleFrame(stage) for stage in FITVNET.stages], tile_px=512)
    copies = {}
    for strength in (0.0, 0.5, 1.0):
        copies[strength] = tmp_path / f"{strength}.mkv"
        options = Options(strength=strength, format="mkv", codec="ffv1")
        assert not denoise_video(passing, source, copies[strength], options, LIMITS).lost
    for whole, none, half, all_of_it in zip(decoded(source), *map(decoded, copies.values()), strict=True):
        for before, copy, between, after in zip(*map(planes_in, (whole, none, half, all_of_it)), strict=True):
            assert np.array_equal(before, copy)
            assert np.abs(between - (before + after) / 2).max() <= 0.5
        # Grey of full range has nothing beyond.
        same = np.array_equal(planes_in(whole)[0], planes_in(all_of_it)[0])
        assert same == (pixel_format == "gray" and told_range == FULL)


@pytest.mark.parametrize(("told_range", "black", "white"), [(LIMITED, 16, 235), (FULL, 0, 255)])
@pytest.mark.parametrize("name", ["yuv420p", "yuv444p10le", "yuv422p12le", "gray", "gray12le"])
def test_black_is_black_and_white_is_white(name, told_range, black, white):
    layout = layout_of(name)
    assert layout is not None
    step = 1 << layout.bits - 8
    for code, value in ((black * step, 0.0), (white * step if told_range == LIMITED else 256 * step - 1, 1.0)):
        frame = filled(name, (8, 8), lambda plane, shape, code=code: np.full(shape, 128 * step if plane else code))
        pixels = rgb_of(frame, layout, 1, told_range)
        assert np.all(pixels == value * np.iinfo(pixels.dtype).max)


@pytest.mark.parametrize(
    ("matrix", "luma_of_red"), [(1, 0.2126), (4, 0.30), (5, 0.299), (6, 0.299), (7, 0.212), (9, 0.2627), (YCGCO, 0.25)]
)
def test_red_has_the_luma_that_the_standard_says(matrix, luma_of_red):
    layout = layout_of("yuv444p16le")
    assert layout is not None
    red = np.zeros((4, 4, 3), np.uint16)
    red[..., 0] = 65535
    luma, *chroma = planes_in(frame_of(red, layout, matrix, FULL))
    assert np.all(np.abs(luma - luma_of_red * 65535) <= 1)
    if matrix != YCGCO:
        assert np.all(chroma[1] == 65535)  # as far from grey as it goes


def test_the_library_reads_what_is_written_here_as_the_same_colours():
    """Its own converter is another's work: that both agree says that the matrices are the standard's."""
    pixels = photo(48, 64)
    for matrix, numbered in ((1, 1), (5, 5), (9, 9)):
        layout = layout_of("yuv444p")
        assert layout is not None
        frame = frame_of(pixels, layout, matrix, LIMITED)
        frame.colorspace, frame.color_range = numbered, LIMITED
        theirs = VideoReformatter().reformat(frame, format="rgb24").to_ndarray()
        assert np.abs(theirs.astype(int) - pixels).max() <= 3


@pytest.mark.parametrize("told_range", [0, LIMITED, FULL])
@pytest.mark.parametrize("matrix", [1, 5, 9])
@pytest.mark.parametrize(
    "pixel_format",
    ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le", "yuv444p12le"],
)
def test_a_lossless_copy_has_the_sources_own_numbers(pixel_format, matrix, told_range, tmp_path):
    tags = {"colorspace": matrix, "color_range": told_range, "color_primaries": matrix, "color_trc": 1}
    source = write_video(tmp_path / "in.mkv", pixel_format=pixel_format, tags=tags, count=2, size=(50, 37))
    writer = copied(source, tmp_path / "out.mkv")
    assert writer.lost == []
    before, after = decoded(source), decoded(tmp_path / "out.mkv")
    assert after[0].format.name == pixel_format
    assert (after[0].colorspace, after[0].color_range) == (before[0].colorspace, before[0].color_range)
    assert max(most_apart(before, after)) == 0


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le", "yuv422p10le"])
def test_a_crf_of_0_is_lossless_in_h264(pixel_format, tmp_path):
    source = write_video(tmp_path / "in.mkv", pixel_format=pixel_format, tags={"colorspace": 1, "color_range": FULL})
    assert copied(source, tmp_path / "out.mp4", "mp4", "h264", 0).lost == []
    assert max(most_apart(decoded(source), decoded(tmp_path / "out.mp4"))) == 0


@pytest.mark.parametrize("name", ["gbrp10le", "gbrp12le", "gbrp16le", "gray", "gray10le", "gray16le"])
def test_so_has_one_of_rgb_or_of_luma_alone(name, tmp_path):
    source = write_video(tmp_path / "in.mkv", pixel_format=name, count=2)
    assert copied(source, tmp_path / "out.mkv").lost == []
    assert decoded(tmp_path / "out.mkv")[0].format.name == name
    assert max(most_apart(decoded(source), decoded(tmp_path / "out.mkv"))) == 0


@pytest.mark.parametrize("told_range", [0, LIMITED, FULL])
def test_luma_alone_keeps_its_numbers_where_the_codec_wants_chroma(told_range, tmp_path):
    """Grey of limited range was once taken for full, and came out pale."""
    source = write_video(
        tmp_path / "in.mkv", pixel_format="gray", tags={"color_range": told_range}, frame=tones(20, 126, 230)
    )
    with VideoReader(source, LIMITS) as reader:
        pixels, coding = [frame.pixels for frame in reader], coding_of(reader.head)
    assert [int(one[0, 0, 0]) for one in pixels] == ([5, 128, 249] if told_range == LIMITED else [20, 126, 230])
    for one in pixels:
        frame = from_rgb(one, "yuv420p", coding, VideoReformatter())
        luma, *chroma = planes_in(frame)
        assert luma.min() == luma.max()
        assert all(np.all(plane == 128) for plane in chroma)
    copied(source, tmp_path / "out.mkv", codec="vp9")
    assert [int(np.median(planes_in(frame)[0])) for frame in decoded(tmp_path / "out.mkv")] == [20, 126, 230]
    assert decoded(tmp_path / "out.mkv")[0].color_range == (told_range or FULL)


@pytest.mark.parametrize(
    ("packed", "planar"),
    [
        ("nv12", "yuv420p"),
        ("nv24", "yuv444p"),
        ("uyvy422", "yuv422p"),
        ("yuyv422", "yuv422p"),
        ("p010le", "yuv420p10le"),
        ("y210le", "yuv422p10le"),
        ("yuv420p10be", "yuv420p10le"),
        ("yuva420p", "yuv420p"),
        ("vyu444", "yuv444p"),
    ],
)
@pytest.mark.parametrize("told_range", [LIMITED, FULL])
def test_numbers_in_another_order_are_the_same_colours(packed, planar, told_range):
    frame = soft_noise(planar, (36, 20))
    frame.colorspace, frame.color_range = 1, told_range
    other = VideoReformatter().reformat(frame, format=packed, dst_color_range=told_range, threads=1)
    other.colorspace, other.color_range = 1, told_range
    coding = Coding(1, told_range)
    here, there = (to_rgb(one, coding, depth_of(one.format), VideoReformatter()) for one in (frame, other))
    assert np.array_equal(here, there)


@pytest.mark.parametrize(("packed", "planar"), [("p010le", "yuv420p10le"), ("y210le", "yuv422p10le")])
def test_a_frame_whose_width_is_odd_to_the_processor_is_read_alike_every_time(packed, planar):
    """On two threads the library wrote past a row into the next: in one frame of a hundred, or in nearly all."""
    frame = soft_noise(planar, (36, 20))
    frame.colorspace, frame.color_range = 1, LIMITED
    other = VideoReformatter().reformat(frame, format=packed, dst_color_range=LIMITED, threads=1)
    other.colorspace, other.color_range = 1, LIMITED
    read = {to_rgb(other, Coding(1, LIMITED), 10, VideoReformatter()).tobytes() for _ in range(1000)}
    assert len(read) == 1


def test_every_pixel_format_that_lossless_video_comes_in_is_read():
    names = [one.name for one in Codec("ffv1", "w").video_formats or () if "f16" not in one.name]
    names = [name for name in names if not name.endswith("f32le")]
    assert len(names) > 40
    for name in names:
        layout = layout_of(name)
        assert (layout is None) == name.startswith(("gbr", "bgr", "rgb")), name
