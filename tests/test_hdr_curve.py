"""HDR video in PQ is restored along a curve that networks know, and comes back as the PQ that it was."""

import numpy as np
import pytest
from test_parts import LOSSLESS, SETTINGS, frames_of, in_parts, mixing
from video_samples import decoded, planes_in, wild_noise, write_video

from models.catalogue import FITVNET, FITVNET_SPATIAL
from models.noise_level import measure_noise
from models.quality import psnr_db
from service.demo import read_photo
from service.media.hdr_curve import PQ, PqCurve, codes_of, light_of
from service.media.light import encoded
from service.media.planes import frame_of, layout_of
from service.pipeline.denoiser import Tally
from service.pipeline.shelf import Shelf
from service.pipeline.videos import denoise_video, still_of
from service.settings import Settings

BT2020, LIMITED, BT709_CURVE = 9, 1, 1
TEN_BITS = 1 / 1023


def test_the_curves_are_those_of_the_standards():
    # Table 4 of ITU-R BT.2408: nits, and PQ in per cent.
    for nits, share in ((0, 0), (26, 0.38), (100, 0.508), (203, 0.58), (1000, 0.752), (4000, 0.9026), (10_000, 1)):
        assert codes_of(np.array(float(nits))) == pytest.approx(share, abs=0.004)
    codes = np.arange(1024) / 1023
    np.testing.assert_allclose(codes_of(light_of(codes)), codes, atol=1e-6)
    seen = PqCurve().seen(np.rint(codes_of(np.array([0, 1000 / 12, 203, 1000, 4000])) * 65535).astype(np.uint16))
    # BT.2100, table 5: a twelfth of white is at a half; white, and here all above it, is at 1.
    assert seen == pytest.approx([0, 0.5, 0.697, 1, 1], abs=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_a_network_leaves_as_it_was_comes_back_in_pq(dtype):
    most = np.iinfo(dtype).max
    pixels = np.arange(most + 1, dtype=dtype)
    curve = PqCurve()
    seen, noisy = curve.seen(pixels), (pixels / most).astype(np.float32)
    assert seen.dtype == np.float32
    assert np.all(np.diff(seen) >= 0)
    stored = curve.stored(seen, seen, noisy)
    np.testing.assert_allclose(stored, noisy, atol=TEN_BITS / 8)
    beyond = seen >= 1
    np.testing.assert_array_equal(curve.stored(np.zeros_like(seen), seen, noisy)[beyond], noisy[beyond])
    assert 0 < beyond.mean() < 0.26


def hdr_clip(path, *, level=0.0, transfer=PQ, count=6):
    """The portrait, white at 203 nits, panned over; noise as a sensor adds it to light. FFV1 of 10 bits in 4:4:4."""
    random = np.random.default_rng(2)
    photo = (read_photo() / 255.0) ** 2.4 * 203
    layout = layout_of("yuv444p10le")

    def picture(pixel_format, size, number):
        light = photo[100:196, 120 + 2 * number : 248 + 2 * number]
        light = light + 203 * level * random.standard_normal(light.shape)
        return frame_of(np.rint(codes_of(light) * 65535).astype(np.uint16), layout, BT2020, LIMITED)

    tags = {"colorspace": BT2020, "color_primaries": BT2020, "color_trc": transfer, "color_range": LIMITED}
    return write_video(path, pixel_format="yuv444p10le", size=(128, 96), count=count, frame=picture, tags=tags)


def test_pq_is_restored_better_along_the_other_curve(tmp_path):
    clean = frames_of(hdr_clip(tmp_path / "clean.mkv"))
    denoiser = Shelf(Settings()).denoiser("fitvnet-spatial.camera")
    shown = {}
    for transfer in (PQ, BT709_CURVE):  # told to be something else, the same codes are seen as they are
        source = hdr_clip(tmp_path / "in.mkv", level=0.01, transfer=transfer)
        tally = Tally()
        denoise_video(denoiser, source, tmp_path / "out.mkv", LOSSLESS, SETTINGS, tally=tally)
        pairs = zip(frames_of(tmp_path / "out.mkv"), clean, strict=True)
        shown[transfer] = np.mean([psnr_db(*map(as_a_photograph, pair)) for pair in pairs])
        assert decoded(tmp_path / "out.mkv")[0].color_trc == transfer
        assert any("PQ" in note for note in tally.notes) == (transfer == PQ)
    assert shown[PQ] > shown[BT709_CURVE] + 0.5


def as_a_photograph(pixels):
    """White at 203 nits, as BT.2408 has it for what was not made in HDR."""
    return encoded((light_of(pixels / 65535) / 203).clip(0, 1).astype(np.float32))


def test_figures_are_of_what_the_network_saw(tmp_path):
    source, clean = hdr_clip(tmp_path / "in.mkv", level=0.02), hdr_clip(tmp_path / "clean.mkv")
    made = denoise_video(
        mixing(FITVNET_SPATIAL), source, tmp_path / "out.mkv", LOSSLESS, SETTINGS, reference=clean
    ).metrics
    curve = PqCurve()
    pairs = [[curve.seen(one) for one in pair] for pair in zip(frames_of(source), frames_of(clean), strict=True)]
    assert made.input_psnr_db == pytest.approx(np.mean([psnr_db(*pair) for pair in pairs]), abs=0.01)
    told = measure_noise(pairs[0][0].transpose(2, 0, 1)).sigma  # of the first frame alone, for there are few
    assert made.input_noise_estimate.sigma == pytest.approx([255 * one for one in told], abs=0.01)


def test_at_strength_0_every_code_comes_out_as_it_went_in(tmp_path):
    tags = {"colorspace": BT2020, "color_primaries": BT2020, "color_trc": PQ, "color_range": LIMITED}
    source = write_video(tmp_path / "in.mkv", pixel_format="yuv420p10le", frame=wild_noise, tags=tags)
    options = LOSSLESS.model_copy(update={"strength": 0.0})
    denoise_video(mixing(FITVNET_SPATIAL), source, tmp_path / "out.mkv", options, SETTINGS)
    for before, after in zip(decoded(source), decoded(tmp_path / "out.mkv"), strict=True):
        assert all(np.array_equal(*pair) for pair in zip(planes_in(before), planes_in(after), strict=True))


def test_what_passes_unchanged_is_a_code_off_at_most(tmp_path):
    source = hdr_clip(tmp_path / "in.mkv", level=0.02)
    denoise_video(mixing(FITVNET_SPATIAL), source, tmp_path / "out.mkv", LOSSLESS, SETTINGS)
    for before, after in zip(decoded(source), decoded(tmp_path / "out.mkv"), strict=True):
        assert max(np.abs(a - b).max() for a, b in zip(planes_in(before), planes_in(after), strict=True)) <= 1


def test_parts_and_the_still_are_those_of_the_whole(tmp_path):
    source = hdr_clip(tmp_path / "in.mkv", level=0.02, count=28)
    denoiser = mixing(FITVNET)
    joined, parts = in_parts(denoiser, source, tmp_path, LOSSLESS)
    assert len(parts) >= 3
    shown = []
    denoise_video(denoiser, source, tmp_path / "whole.mkv", LOSSLESS, SETTINGS, on_still=shown.append)
    for ours, undivided in zip(frames_of(joined), frames_of(tmp_path / "whole.mkv"), strict=True):
        np.testing.assert_array_equal(ours, undivided)
    assert shown == [still_of(denoiser, source, LOSSLESS, SETTINGS)]
