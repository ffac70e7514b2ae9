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


def restore_stream(stages: Sequence[StageSpec], run: RunStage, frames: Iterable[Array]) -> Iterator[Array]:
    """Yield the last stage's result for every frame, in order, as soon as the frames after it are there.

    Beyond its ends a clip goes on mirrored, its end frames not repeated: frame -1 is frame 1.

    Args:
        stages: a cascade; stages with a window of one come first.
        run: computes a stage on one window.
        frames: [C, H, W] each, oldest first.
    """
    results: Iterator[Array] = iter(frames)
    ahead = [stage for stage in stages if stage.frames == 1]
    windowed = list(stages[len(ahead) :])
    for stage in ahead:
        results = _each(stage, run, results)
    results = mirrored(results, sum(stage.frames // 2 for stage in windowed))
    for stage in windowed:
        results = _each(stage, run, windows(results, stage.frames))
    return results


def mirrored(items: Iterable[Array], reach: int) -> Iterator[Array]:
    """The items, with `reach` more at both ends: the ones next to the end, mirrored. Holds 2 * reach + 1 at most."""
    if reach == 0:
        yield from items
        return
    source = iter(items)
    head = list(islice(source, reach + 1))
    if not head:
        return
    for index in range(-reach, 0):
        yield head[_mirror(index, len(head))]
    tail = deque(head, maxlen=reach + 1)
    yield from head
    for item in source:
        tail.append(item)
        yield item
    for index in range(len(tail), len(tail) + reach):
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
