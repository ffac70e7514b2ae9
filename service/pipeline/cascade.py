"""Runs the stages of a denoiser over a stream of frames, each stage once a frame.

FITVNet's graph (Figure 3) runs its spatial module five times and its first block three times for one restored frame;
neighbouring windows share all but one of those runs. Here they are shared, and the frames come out the same.

Where windows are to be aligned, the neighbours are laid over the frame in the middle before a stage reads them. Where
that has moved is found once, for the first such stage; those behind it go by the same motion.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np

from models.catalogue import StageSpec
from models.motion import flow_between, laid_over
from trtbuild.engine import Array

Item = TypeVar("Item")
RunStage = Callable[[StageSpec, Array], Array]  # [T*C, H, W] to [planes_out, H, W]


class Result(NamedTuple):
    """What a stage made of a frame, and where the frame's pixels lie in the frames beside it, once that is known."""

    planes: Array  # [C, H, W]
    motion: tuple[Array, ...] | None = None  # [H, W, 2] each, to the frame before and to the one after


Align = Callable[[Sequence[Result]], tuple[list[Array], tuple[Array, ...]]]


def restore_stream(
    stages: Sequence[StageSpec],
    run: RunStage,
    frames: Iterable[Array],
    *,
    align: Align | None = None,
    goes_on_before: bool = False,
    goes_on_after: bool = False,
) -> Iterator[Array]:
    """Yield the last stage's result for every frame, in order, as soon as the frames after it are there.

    Beyond its ends a clip goes on mirrored, its end frames not repeated: frame -1 is frame 1. Where the frames are a
    part of a clip that goes on, its neighbours are among them, as far as the windows reach, and have no result.

    Args:
        stages: a cascade; stages with a window of one come first.
        run: computes a stage on one window.
        frames: [C, H, W] each, oldest first.
        align: lays the outer two of each window, which has three, over the middle one, as `align` does; None leaves
            them where they are. The first three planes of what is in a window are a cleaned frame.
        goes_on_before: the first frames are neighbours only.
        goes_on_after: the last frames are.
    """
    ahead = [stage for stage in stages if stage.frames == 1]
    windowed = list(stages[len(ahead) :])
    cleaned: Iterator[Array] = iter(frames)
    for stage in ahead:
        cleaned = _each(stage, run, cleaned)
    reach = sum(stage.frames // 2 for stage in windowed)
    cleaned = mirrored(cleaned, 0 if goes_on_before else reach, 0 if goes_on_after else reach)
    results: Iterator[Result] = map(Result, cleaned)
    for stage in windowed:
        results = _each_window(stage, run, results, align)
    return (result.planes for result in results)


def mirrored(items: Iterable[Array], before: int, after: int) -> Iterator[Array]:
    """The items, with so many more before and after: the ones next to the end, mirrored. Holds two such stretches."""
    source = iter(items)
    head = list(islice(source, max(before, after) + 1))
    if not head:
        return
    for index in range(-before, 0):
        yield head[_mirror(index, len(head))]
    tail = deque(head, maxlen=after + 1)
    yield from head
    for item in source:
        tail.append(item)
        yield item
    for index in range(len(tail), len(tail) + after):
        yield tail[_mirror(index, len(tail))]


def windows(items: Iterable[Item], length: int) -> Iterator[tuple[Item, ...]]:
    """Every run of `length` items."""
    run: deque[Item] = deque(maxlen=length)
    for item in items:
        run.append(item)
        if len(run) == length:
            yield tuple(run)


def align(window: Sequence[Result]) -> tuple[list[Array], tuple[Array, ...]]:
    """Lay the outer two of three over the middle one; and by which motion that was done."""
    before, middle, after = window
    motion = middle.motion or tuple(flow_between(middle.planes, other.planes) for other in (before, after))
    to_before, to_after = motion
    return [laid_over(before.planes, to_before), middle.planes, laid_over(after.planes, to_after)], motion


def _each(stage: StageSpec, run: RunStage, inputs: Iterable[Array]) -> Iterator[Array]:
    for planes in inputs:
        yield run(stage, planes)


def _each_window(stage: StageSpec, run: RunStage, inputs: Iterable[Result], align: Align | None) -> Iterator[Result]:
    for window in windows(inputs, stage.frames):
        if align:
            planes, motion = align(window)
            yield Result(run(stage, np.concatenate(planes)), motion)
        else:
            yield Result(run(stage, np.concatenate([one.planes for one in window])))


def _mirror(index: int, length: int) -> int:
    """Which of `length` items stands at `index` when they are mirrored on and on."""
    if length == 1:
        return 0
    index %= 2 * (length - 1)
    return min(index, 2 * (length - 1) - index)
