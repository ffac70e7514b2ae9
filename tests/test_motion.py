"""What moves between frames is found, and laid back where it was."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.motion import flow_between, laid_over
from models.quality import psnr_db
from service.demo import read_photo
from service.pipeline.denoiser import to_planes

sides = st.one_of(st.integers(1, 40), st.integers(1, 400))
INSIDE = (slice(None), slice(40, -40), slice(40, -40))  # what both frames show


@pytest.fixture(scope="module")
def photo():
    return to_planes(read_photo()[:300, :400])


def pixels(planes):
    return planes[INSIDE].transpose(1, 2, 0)


@pytest.mark.parametrize("moved", [(0, 0), (3, -2), (0, 17), (-25, 12)], ids=str)
def test_a_pan_is_found_to_a_fraction_of_a_pixel(photo, moved):
    panned = np.roll(photo, moved, axis=(1, 2))
    flow = flow_between(photo, panned)
    assert flow.shape == (*photo.shape[1:], 2)
    assert flow.dtype == np.float32
    down, across = moved
    off = np.abs(flow[40:-40, 40:-40] - np.array([across, down]))
    assert np.median(off) < 0.2
    assert np.percentile(off, 95) < 2  # where there is nothing to hold on to, it guesses


def test_what_has_moved_is_laid_back(photo):
    turn = cv2.getRotationMatrix2D((200, 150), 4, 1.03)
    turned = cv2.warpAffine(photo.transpose(1, 2, 0), turn, (400, 300), borderMode=cv2.BORDER_REFLECT)
    turned = turned.transpose(2, 0, 1)
    back = laid_over(turned, flow_between(photo, turned))
    assert psnr_db(pixels(turned), pixels(photo)) < 20
    assert psnr_db(pixels(back), pixels(photo)) > 30


def test_a_little_noise_does_not_hide_the_motion(photo):
    """Frames have been cleaned: what is left in them is weaker than this."""
    noise = np.random.default_rng(3).normal(0, 5 / 255, (2, *photo.shape)).astype(np.float32)
    flow = flow_between(photo + noise[0], np.roll(photo, (6, 11), axis=(1, 2)) + noise[1])
    assert np.median(np.abs(flow[40:-40, 40:-40] - np.array([11, 6]))) < 0.3


@settings(deadline=None)
@given(sides, sides, st.integers(0, 99))
def test_frames_of_any_size_and_content_have_a_finite_flow(height, width, seed):
    """OpenCV's own choice of scales ends the process with narrow frames."""
    frames = np.random.default_rng(seed).normal(0.5, 2, (2, 4, height, width)).astype(np.float32)  # not clipped
    flow = flow_between(*frames)
    assert flow.shape == (height, width, 2)
    assert np.isfinite(flow).all()


@pytest.mark.parametrize("size", [(1, 1), (16, 128), (128, 16), (8, 200), (24, 400), (28, 4000)], ids=str)
def test_nothing_moves_between_equal_frames(size):
    """Sizes that OpenCV crashes on, left to itself, among them."""
    frame = np.random.default_rng(1).random((3, *size), np.float32)
    assert np.abs(flow_between(frame, frame)).max() < 0.01


def test_the_flow_does_not_depend_on_the_number_of_threads(photo):
    """Or the parts of a divided video would differ with the machine."""
    before, flows = cv2.getNumThreads(), []
    try:
        for threads in (1, 2, 3):
            cv2.setNumThreads(threads)
            flows.append(flow_between(photo, np.roll(photo, 5, axis=2)))
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(flows[0], flows[1])
    np.testing.assert_array_equal(flows[0], flows[2])


@settings(deadline=None)
@given(
    arrays(np.float32, (2, 6, 7), elements=st.floats(-1, 2, width=32)),
    arrays(np.float32, (6, 7, 2), elements=st.integers(-9, 9).map(lambda eighth: eighth / 8)),
)
def test_reading_is_bilinear_and_the_edge_goes_on(frame, flow):
    read = laid_over(frame, flow)
    for y, x in np.ndindex(6, 7):
        across, down = np.clip(x + flow[y, x, 0], 0, 6), np.clip(y + flow[y, x, 1], 0, 5)
        left, top = int(across), int(down)
        right, bottom = min(left + 1, 6), min(top + 1, 5)
        upper = frame[:, top, left] * (left + 1 - across) + frame[:, top, right] * (across - left)
        lower = frame[:, bottom, left] * (left + 1 - across) + frame[:, bottom, right] * (across - left)
        np.testing.assert_allclose(read[:, y, x], upper * (top + 1 - down) + lower * (down - top), atol=1e-5)


@pytest.mark.parametrize("planes", [1, 3, 4])
def test_planes_stay_as_many(planes):
    frame = np.random.default_rng(2).random((planes, 20, 30), np.float32)
    read = laid_over(frame, np.zeros((20, 30, 2), np.float32))
    np.testing.assert_array_equal(read, frame)
    assert read.flags.c_contiguous
