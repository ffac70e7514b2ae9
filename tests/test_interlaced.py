"""Interlaced video: found out by looking, restored field by field, and still the user's file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_parts import LOSSLESS, SETTINGS, frames_of, in_parts, mixing
from test_videos import MiddleFrame
from video_samples import decoded, planes_in, wild_noise, write_video

from models.catalogue import FITVNET, FITVNET_SPATIAL
from service.demo import moving_clip, read_photo
from service.errors import BadInput
from service.job import Options, Part
from service.media.planes import frame_of, layout_of, rgb_of
from service.media.scan import compare
from service.pipeline.denoiser import Denoiser, Tally
from service.pipeline.fields import nearest, split, woven
from service.pipeline.sampling import Sampler
from service.pipeline.shelf import Shelf
from service.pipeline.videos import denoise_video, still_of
from service.sandbox.videos import read_field_order
from service.settings import Settings

BT709, LIMITED = 1, 1
FLAGS = {"top": "tff=1", "bottom": "bff=1"}


@pytest.fixture(scope="module")
def moments():
    """Twice as many as there are frames in a video of fields: 24, of 256x192."""
    return [np.ascontiguousarray(frame[:192, :256]) for frame in moving_clip(read_photo())[:24]]


def film(moments):
    return moments[::2]


def fields(moments, order):
    """Each two moments in one frame."""
    woven_ = []
    for earlier, later in zip(moments[::2], moments[1::2], strict=True):
        upper, lower = (earlier, later) if order == "top" else (later, earlier)
        frame = upper.copy()
        frame[1::2] = lower[1::2]
        woven_.append(frame)
    return woven_


def noisy(frames, level=25):
    random = np.random.default_rng(1)
    with_noise = (one + level * random.standard_normal(one.shape) for one in frames)
    return [np.clip(np.rint(one), 0, 255).astype(np.uint8) for one in with_noise]


def write(path: Path, frames, told=None, *, encoder="libx264", **how) -> Path:
    """Lossless 4:2:0; the chroma of what is told to be interlaced is that of each field."""
    height, width = frames[0].shape[:2]
    layout = layout_of("yuv420p")
    options = {"qp": "0", "preset": "ultrafast", **({"x264-params": FLAGS[told]} if told else {})}

    def picture(pixel_format, size, number):
        return frame_of(frames[number], layout, BT709, LIMITED, by_field=told is not None)

    return write_video(
        path,
        encoder=encoder,
        size=(width, height),
        count=len(frames),
        frame=picture,
        options=options if encoder == "libx264" else None,
        tags={"colorspace": BT709, "color_range": LIMITED},
        **how,
    )


def tall(frames):
    """As many lines as television has."""
    return [np.ascontiguousarray(np.tile(one, (3, 1, 1))[:480, :128]) for one in frames]


# --- is it interlaced?


@pytest.mark.parametrize("order", ["top", "bottom"])
@pytest.mark.parametrize("level", [0, 25, 50])
def test_the_first_field_is_found_through_noise(order, level, moments, tmp_path):
    source = write(tmp_path / "in.mkv", noisy(fields(moments, order), level), order)
    assert read_field_order(source, SETTINGS, "auto") == order


@pytest.mark.parametrize("level", [0, 25, 50])
def test_film_that_is_told_to_be_interlaced_is_known_for_film(level, moments, tmp_path):
    source = write(tmp_path / "in.mkv", noisy(film(moments), level), "top")
    assert read_field_order(source, SETTINGS, "auto") is None


def test_what_is_seen_counts_before_the_order_that_is_told(moments, tmp_path):
    source = write(tmp_path / "in.mkv", fields(moments, "bottom"), "top")
    assert read_field_order(source, SETTINGS, "auto") == "bottom"


@pytest.mark.parametrize("told", ["top", "bottom"])
def test_where_nothing_moves_the_file_is_believed(told, moments, tmp_path):
    source = write(tmp_path / "in.mkv", noisy(moments[:1] * 8), told)
    assert read_field_order(source, SETTINGS, "auto") == told


@pytest.mark.parametrize("order", ["top", "bottom"])
def test_a_capture_of_tape_that_tells_nothing_is_looked_at(order, moments, tmp_path):
    source = write(tmp_path / "in.mkv", noisy(tall(fields(moments, order))))
    assert read_field_order(source, SETTINGS, "auto") == order
    other_lines = write(tmp_path / "other.mkv", noisy(fields(moments, order)))
    assert read_field_order(other_lines, SETTINGS, "auto") is None
    assert read_field_order(other_lines, SETTINGS, "interlaced") == order


@pytest.mark.parametrize("told", [None, "top"])
def test_film_is_film_whatever_happens_in_it(told, moments, tmp_path):
    """Cuts, a picture that stands still, a flash."""
    shots = tall([*film(moments)[:4], *film(moments)[10:12] * 2, *film(moments)[5:9]])
    shots[6] = np.full_like(shots[6], 250)
    source = write(tmp_path / "in.mkv", noisy(shots), told)
    assert read_field_order(source, SETTINGS, "auto") is None


def test_the_user_knows_better(moments, tmp_path):
    source = write(tmp_path / "in.mkv", noisy(film(moments)), "bottom")
    assert read_field_order(source, SETTINGS, "interlaced") in {"top", "bottom"}
    source = write(tmp_path / "in.mkv", noisy(fields(moments, "top")), "top")
    assert read_field_order(source, SETTINGS, "progressive") is None


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_frames_to_compare_are_no_trouble(count, moments, tmp_path):
    source = write(tmp_path / "in.mkv", fields(moments, "top")[:count], "top")
    assert read_field_order(source, SETTINGS, "auto") == "top"
    source = write(tmp_path / "in.mkv", tall(fields(moments, "top"))[:count])
    assert read_field_order(source, SETTINGS, "auto") is None


@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (3, 1), (4, 4)])
def test_frames_of_hardly_any_lines_tell_nothing(shape):
    frames = [np.full(shape, value, np.uint8) for value in (0, 200, 0, 200)]
    assert not any(one.tells for one in compare(frames))


def test_a_file_that_is_no_video_is_refused_as_by_any_reader(tmp_path):
    (tmp_path / "in.mkv").write_bytes(b"\x1aE\xdf\xa3" + bytes(500))
    with pytest.raises(BadInput):
        read_field_order(tmp_path / "in.mkv", SETTINGS, "auto")


# --- fields, apart and together


@given(st.integers(1, 9), st.integers(1, 4), st.sampled_from(["top", "bottom"]))
def test_fields_become_the_frame_that_they_were(height, width, order):
    planes = np.random.default_rng(height).random((3, height, width), np.float32)
    earlier, later = split(planes, order)
    assert earlier.shape == later.shape == (3, (height + 1) // 2, width)
    np.testing.assert_array_equal(woven(earlier, later, height, order), planes)
    assert np.array_equal((earlier if order == "top" else later)[:, 0], planes[:, 0])


@given(st.integers(0, 3), st.integers(1, 5), st.booleans(), st.booleans())
def test_of_neighbours_as_many_fields_are_seen_as_frames_would_be(reach, frames, before, after):
    given_ = [np.array(n) for n in range(2 * (before * reach + frames + after * reach))]
    seen = [int(one) for one in nearest(given_, reach, goes_on_before=before, goes_on_after=after)]
    first = 2 * reach * before
    assert seen == list(range(first - reach * before, first + 2 * frames + reach * after))


@pytest.mark.parametrize("name", ["yuv420p", "yuv420p10le", "yuv422p", "yuv410p"])
def test_each_field_has_the_colours_that_it_has_alone(name):
    layout = layout_of(name)
    frame = wild_noise(name, (32, 32))
    pixels = rgb_of(frame, layout, BT709, LIMITED, by_field=True)
    for line in (0, 1):
        alone = wild_noise(name, (32, 16))
        for field_plane, plane in zip(planes_of(alone), planes_of(frame), strict=True):
            field_plane[...] = plane[line::2]
        np.testing.assert_array_equal(pixels[line::2], rgb_of(alone, layout, BT709, LIMITED))
    assert (name == "yuv422p") == np.array_equal(pixels, rgb_of(frame, layout, BT709, LIMITED))


def planes_of(frame):
    """The frame's own memory."""
    kind = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
    for plane in frame.planes:
        lines = np.frombuffer(plane, kind).reshape(plane.height, -1)
        yield lines[:, : plane.width]


# --- restored


def test_fields_restored_apart_are_better_by_decibels(moments, tmp_path):
    source = write(tmp_path / "in.mkv", noisy(fields(moments, "top")), "top")
    clean = write(tmp_path / "clean.mkv", fields(moments, "top"), "top")
    denoiser = Shelf(Settings()).denoiser("fitvnet-spatial.camera")

    def restored(scan):
        options = LOSSLESS.model_copy(update={"scan": scan})
        return denoise_video(denoiser, source, tmp_path / "out.mkv", options, SETTINGS, reference=clean).metrics

    together, apart = restored("progressive"), restored("auto")
    assert apart.psnr_db > together.psnr_db + 1
    assert apart.input_psnr_db == pytest.approx(together.input_psnr_db, abs=1e-6)


@pytest.mark.parametrize("order", ["top", "bottom"])
def test_every_field_comes_out_where_it_went_in(order, moments, tmp_path):
    source = write(tmp_path / "in.mkv", fields(moments, order), order)
    notes = []
    for strength in (0.0, 1.0):
        options = Options(format="mkv", codec="h264", crf=0, strength=strength)
        made, tally = restored_with(mixing(FITVNET_SPATIAL), source, tmp_path / "out.mkv", options)
        notes.append(tally.notes)
        assert made.frames == 12
        pairs = list(zip(decoded(source), decoded(tmp_path / "out.mkv"), strict=True))
        assert all(after.interlaced_frame for _, after in pairs)
        for before, after in pairs:
            apart = [np.abs(a - b) for a, b in zip(planes_in(before), planes_in(after), strict=True)]
            # What RGB does not hold is given back but to what is restored in full.
            assert max(one.max() if strength == 0 else one.mean() for one in apart) < 0.5
    assert all(one[0].startswith(f"the video is interlaced, {order} field first") for one in notes)


def restored_with(denoiser, source, target, options):
    tally = Tally()
    return denoise_video(denoiser, source, target, options, SETTINGS, tally=tally), tally


@pytest.mark.parametrize("order", ["top", "bottom"])
@pytest.mark.parametrize("spec", [FITVNET, FITVNET_SPATIAL], ids=lambda spec: spec.name)
def test_parts_of_an_interlaced_video_are_the_whole_one(spec, order, moments, tmp_path):
    long = [*moments, *moments[::-1]]
    source = write(tmp_path / "in.mkv", noisy(fields(long, order)), order)
    denoiser = mixing(spec)
    joined, parts = in_parts(denoiser, source, tmp_path, LOSSLESS)
    assert len(parts) >= 3
    assert {part.fields for part in parts} == {order}
    denoise_video(denoiser, source, tmp_path / "whole.mkv", LOSSLESS, SETTINGS)
    for ours, undivided in zip(frames_of(joined), frames_of(tmp_path / "whole.mkv"), strict=True):
        np.testing.assert_array_equal(ours, undivided)
    together = LOSSLESS.model_copy(update={"scan": "progressive"})
    denoise_video(denoiser, source, tmp_path / "together.mkv", together, SETTINGS)
    pairs = zip(frames_of(joined), frames_of(tmp_path / "together.mkv"), strict=True)
    assert any(np.array_equal(*pair) for pair in pairs) == (
        spec is FITVNET_SPATIAL
    )  # whose window is one frame, or one field


def test_the_still_of_an_interlaced_video_is_its_first_frame(moments, tmp_path):
    source = write(tmp_path / "in.mkv", fields(moments, "bottom"), "bottom")
    shown = []
    denoise_video(mixing(FITVNET), source, tmp_path / "out.mkv", LOSSLESS, SETTINGS, on_still=shown.append)
    assert shown == [still_of(mixing(FITVNET), source, LOSSLESS, SETTINGS, "bottom")]
    assert shown != [still_of(mixing(FITVNET), source, LOSSLESS, SETTINGS)]


def test_noise_is_measured_in_fields(moments, tmp_path):
    """Of frames with combs more was told than there is."""
    clean = [np.clip(one, 70, 185) for one in fields(moments, "top")]
    source = write(tmp_path / "in.mkv", noisy(clean, 10), "top")
    with_plain_444 = denoise_video(mixing(FITVNET), source, tmp_path / "out.mkv", LOSSLESS, SETTINGS)
    told = with_plain_444.metrics.input_noise_estimate
    assert told is not None
    luma = float(np.dot([0.2126, 0.7152, 0.0722], np.square(told.sigma)) ** 0.5)
    assert 4 < luma < 11  # 4:2:0 leaves luma's noise, and a quarter of the colours'


def test_an_odd_number_of_lines_is_no_trouble(moments, tmp_path):
    frames = [one[:63, :80] for one in fields(moments, "top")]
    source = write_video(
        tmp_path / "in.mkv",
        size=(80, 63),
        count=12,
        pixel_format="yuv444p",
        frame=lambda form, size, number: frame_of(frames[number], layout_of(form), BT709, LIMITED),
    )
    options = LOSSLESS.model_copy(update={"scan": "interlaced", "strength": 1.0})
    made, tally = restored_with(mixing(FITVNET_SPATIAL), source, tmp_path / "out.mkv", options)
    assert made.frames == 12
    assert "interlaced" in tally.notes[0]
    for before, after in zip(frames_of(source), frames_of(tmp_path / "out.mkv"), strict=True):
        np.testing.assert_allclose(before, after, atol=1)


def test_a_clip_of_television_is_restored_by_name_as_any(moments, tmp_path):
    """MPEG-2, as discs have it, without a word from the user."""
    frames = noisy(fields(moments, "top"))
    source = write(tmp_path / "in.mpg", frames, "top", encoder="mpeg2video", muxer="mpeg", interlaced=True)
    made, tally = restored_with(Shelf(Settings()).denoiser("nlm"), source, tmp_path / "out.mp4", Options(format="mp4"))
    assert made.frames == 12
    assert made.lost == []
    assert "top field first" in tally.notes[0]
    assert decoded(tmp_path / "out.mp4")[0].interlaced_frame


class Recording(MiddleFrame):
    """Hands on what it is given, and keeps it."""

    def __init__(self, stage):
        super().__init__(stage)
        self.seen = []

    def denoise(self, noisy, sigma):
        self.seen.append(noisy.copy())
        return super().denoise(noisy, sigma)


def test_the_network_sees_each_field_in_its_own_colours_though_the_file_tells_nothing(moments, tmp_path):
    """Interlaced 4:2:0 that was encoded anew without a flag still has its chroma field by field."""
    layout = layout_of("yuv420p")
    frames = fields(moments, "top")[:2]
    source = write_video(
        tmp_path / "in.mkv",
        size=(256, 192),
        count=2,
        frame=lambda form, size, number: frame_of(frames[number], layout, BT709, LIMITED, by_field=True),
        tags={"colorspace": BT709, "color_range": LIMITED},
    )
    engine = Recording(FITVNET_SPATIAL.stages[0])
    options = LOSSLESS.model_copy(update={"scan": "interlaced"})
    denoise_video(Denoiser(FITVNET_SPATIAL, [engine], tile_px=512), source, tmp_path / "out.mkv", options, SETTINGS)
    expected = rgb_of(decoded(source)[0], layout, BT709, LIMITED, by_field=True)
    for line, seen in enumerate(engine.seen[:2]):
        np.testing.assert_allclose(seen[0, :, :96, :256].transpose(1, 2, 0) * 255, expected[line::2], atol=1e-3)


def test_a_part_counts_its_own_fields_not_its_neighbours():
    part = Part(index=1, frames=30, lead=2, trail=2, begin=0, end=1, fields="top")
    sampler = Sampler(mixing(FITVNET_SPATIAL), Options(), None, part, of_fields=True)
    field = np.random.default_rng(2).normal(0.5, 0.05, (3, 64, 64)).astype(np.float32)
    for index in range(68):
        sampler.watch(index, field)
    told_of = [place for place in range(60) if sampler.finish(place, np.zeros((64, 64, 3), np.uint8))[0] is not None]
    assert told_of == [0, 24, 33, 48]  # every 24th, and the one whose result is looked at
