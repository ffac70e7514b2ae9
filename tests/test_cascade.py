"""A stream through a cascade gives the frames that whole windows would give, and runs each stage once a frame."""

from itertools import pairwise

import cv2
import numpy as np
import pytest

from models.catalogue import StageSpec
from service.pipeline import cascade
from service.pipeline.cascade import align, mirrored, restore_stream, windows

HEAD = StageSpec(name="head", frames=1, halo_px=0, parameters=0, macs_per_pixel=0)
FIRST = StageSpec(name="first", frames=3, halo_px=0, parameters=0, macs_per_pixel=0)
SECOND = StageSpec(name="second", frames=3, halo_px=0, parameters=0, macs_per_pixel=0)
WEIGHTS = {"head": [2.0], "first": [0.2, 0.5, -0.4], "second": [1.5, -0.3, 0.7]}


class Counting:
    """Weighs the frames of a window, differently in each stage, and counts its runs."""

    def __init__(self):
        self.runs = {"head": 0, "first": 0, "second": 0}

    def __call__(self, stage, planes):
        self.runs[stage.name] += 1
        frames = np.split(planes, stage.frames)
        return np.tanh(sum(weight * frame for weight, frame in zip(WEIGHTS[stage.name], frames, strict=True)))


def whole_window(frames, t):
    """Figure 3 of the paper, drawn out: five frames, mirrored at the ends of the clip."""
    run = Counting()
    padded = np.pad(np.arange(len(frames)), 2, mode="reflect" if len(frames) > 1 else "edge")
    heads = [run(HEAD, frames[i]) for i in padded[t : t + 5]]
    firsts = [run(FIRST, np.concatenate(heads[i : i + 3])) for i in range(3)]
    return run(SECOND, np.concatenate(firsts))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9])
def test_stream_and_window_give_the_same_frames(length):
    frames = [np.random.default_rng(t).standard_normal((3, 2, 2)).astype(np.float32) for t in range(length)]
    streamed = list(restore_stream((HEAD, FIRST, SECOND), Counting(), frames))
    assert len(streamed) == length
    for t, frame in enumerate(streamed):
        np.testing.assert_array_equal(frame, whole_window(frames, t))


@pytest.mark.parametrize("cut", [[0, 9], [0, 4, 9], [0, 3, 6, 9]], ids=str)
def test_the_parts_of_a_clip_give_the_frames_of_the_whole(cut):
    frames = [np.random.default_rng(t).standard_normal((3, 2, 2)).astype(np.float32) for t in range(9)]
    pieces = []
    for start, stop in pairwise(cut):
        lead, trail = (2 if start else 0), (2 if stop < 9 else 0)
        part = frames[start - lead : stop + trail]
        stages = (HEAD, FIRST, SECOND)
        pieces += restore_stream(stages, Counting(), part, goes_on_before=lead > 0, goes_on_after=trail > 0)
    assert len(pieces) == 9
    for whole, piece in zip(restore_stream((HEAD, FIRST, SECOND), Counting(), frames), pieces, strict=True):
        np.testing.assert_array_equal(piece, whole)


def test_each_stage_runs_once_a_frame():
    run = Counting()
    list(restore_stream((HEAD, FIRST, SECOND), run, [np.zeros((3, 2, 2), np.float32)] * 100))
    assert run.runs == {"head": 100, "first": 102, "second": 100}  # two more where the clip is mirrored


def test_a_frame_comes_out_as_soon_as_the_two_after_it_are_in():
    taken = 0

    def frames():
        nonlocal taken
        for _ in range(50):
            taken += 1
            yield np.zeros((3, 2, 2), np.float32)

    for index, _ in enumerate(restore_stream((HEAD, FIRST, SECOND), Counting(), frames())):
        assert taken == min(50, index + 3)


def test_an_empty_clip_stays_empty():
    assert list(restore_stream((HEAD, FIRST, SECOND), Counting(), [])) == []


def test_mirroring_goes_on_and_on_over_a_short_clip():
    items = [np.array([value]) for value in (0, 1)]
    assert [int(item[0]) for item in mirrored(items, 3, 3)] == [1, 0, 1, 0, 1, 0, 1, 0]
    assert [int(item[0]) for item in mirrored(items[:1], 2, 2)] == [0] * 5
    assert [int(item[0]) for item in mirrored(items, 0, 3)] == [0, 1, 0, 1, 0]
    assert [int(item[0]) for item in mirrored(items, 3, 0)] == [1, 0, 1, 0, 1]


def panned(length, speed=9):
    """A texture that moves left by so many pixels a frame, in three planes, and one that says which frame it is."""
    rng = np.random.default_rng(7)
    wide = cv2.resize(rng.random((24, 24 + length), np.float32), None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    for t in range(length):
        cut = wide[:, speed * t : speed * t + 160]
        yield np.stack([cut, cut, cut, np.full_like(cut, t)])


class Middle:
    """Gives the frame in the middle of a window on; remembers how far the outer ones differed from it."""

    def __init__(self):
        self.apart = []
        self.seen = []

    def __call__(self, stage, planes):
        frames = planes.reshape(stage.frames, -1, *planes.shape[1:])
        if stage.frames > 1:
            self.apart += [np.abs(frames[i] - frames[1])[:3, 48:-48, 48:-48].mean() for i in (0, 2)]
            self.seen.append([frames[i][3].mean() for i in range(3)])
        return frames[stage.frames // 2]


def test_neighbours_of_aligned_windows_are_laid_over_the_middle_frame():
    along, apart = Middle(), Middle()
    list(restore_stream((HEAD, FIRST, SECOND), along, panned(6), align=align))
    list(restore_stream((HEAD, FIRST, SECOND), apart, panned(6)))
    assert max(along.apart) < 0.02 < 0.1 < min(apart.apart)
    assert along.seen == apart.seen  # and they stand where they stood, the planes beside the colours moved along


def test_the_motion_of_a_frame_is_found_once(monkeypatch):
    found = []
    monkeypatch.setattr(
        cascade, "flow_between", lambda frame, other: found.append(1) or np.zeros((*frame.shape[1:], 2), np.float32)
    )
    list(restore_stream((HEAD, FIRST, SECOND), Counting(), frames_of_noise(10), align=align))
    assert len(found) == 2 * 12  # to both sides, also of the two frames beyond the ends


def frames_of_noise(length):
    return [np.random.default_rng(t).standard_normal((3, 20, 30)).astype(np.float32) for t in range(length)]


@pytest.mark.parametrize("cut", [[0, 4, 9], [0, 3, 6, 9]], ids=str)
def test_the_parts_of_an_aligned_clip_give_the_frames_of_the_whole(cut):
    frames, pieces = list(panned(9)), []
    for start, stop in pairwise(cut):
        lead, trail = (2 if start else 0), (2 if stop < 9 else 0)
        part = frames[start - lead : stop + trail]
        pieces += restore_stream(
            (HEAD, FIRST, SECOND), Counting(), part, align=align, goes_on_before=lead > 0, goes_on_after=trail > 0
        )
    whole = list(restore_stream((HEAD, FIRST, SECOND), Counting(), frames, align=align))
    assert len(pieces) == len(whole)
    for one, piece in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(piece, one)


def test_windows_have_the_oldest_first():
    items = range(4)
    assert list(windows(items, 3)) == [(0, 1, 2), (1, 2, 3)]
