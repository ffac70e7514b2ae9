"""Runs the stages of a denoiser over a stream of frames, each stage once a frame.

FITVNet's graph (Figure 3) runs its spatial module five times and its first block three times for one restored frame;
neighbouring windows share all but one of those runs. Here they are shared, and the frames come out the same.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from models.catalogue import StageSpec
from trtbuild.engine import Array

RunStage = Callable[[StageSpec, Array], Array]  # [T*C, H, W] to [planes_out, H, W]


def restore_stream(
    stages: Sequence[StageSpec],
    run: RunStage,
    frames: Iterable[Array],
    *,
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
        goes_on_before: the first frames are neighbours only.
        goes_on_after: the last frames are.
    """
    results: Iterator[Array] = iter(frames)
    ahead = [stage for stage in stages if stage.frames == 1]
    windowed = list(stages[len(ahead) :])
    for stage in ahead:
        results = _each(stage, run, results)
    reach = sum(stage.frames // 2 for stage in windowed)
    results = mirrored(results, 0 if goes_on_before else reach, 0 if goes_on_after else reach)
    for stage in windowed:
        results = _each(stage, run, windows(results, stage.frames))
    return results


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


def windows(items: Iterable[Array], length: int) -> Iterator[Array]:
    """Every run of `length` items, stacked along the planes: [length * C, H, W]."""
    run: deque[Array] = deque(maxlen=length)
    for item in items:
        run.append(item)
        if len(run) == length:
            yield np.concatenate(run)


def _each(stage: StageSpec, run: RunStage, inputs: Iterable[Array]) -> Iterator[Array]:
    for planes in inputs:
        yield run(stage, planes)


def _mirror(index: int, length: int) -> int:
    """Which of `length` items stands at `index` when they are mirrored on and on."""
    if length == 1:
        return 0
    index %= 2 * (length - 1)
    return min(index, 2 * (length - 1) - index)
