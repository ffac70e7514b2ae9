"""Interlaced video: each frame is two fields, of other moments. They are restored apart, in the order of time.

To a network a frame of both is full of combs wherever something moves, and it was taught none. The fields of all
frames, one after the other, are to it a video of half the height and twice the rate. The lines of neighbours are not
in the same place, but aligning lays them over each other to a fraction of a line, as it does all that moves.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from service.job import FieldOrder
from trtbuild.engine import Array

_Number = TypeVar("_Number", bound=np.generic)


def split(planes: NDArray[_Number], order: FieldOrder) -> tuple[NDArray[_Number], NDArray[_Number]]:
    """A frame's fields, the earlier one first.

    Args:
        planes: [C, H, W]; where H is odd, the lower field gets its last line twice.
        order: Which field is the earlier one.

    Returns:
        [C, (H + 1) // 2, W] each, contiguous.
    """
    upper, lower = np.ascontiguousarray(planes[:, ::2]), np.ascontiguousarray(planes[:, 1::2])
    if lower.shape != upper.shape:
        last = lower[:, -1:] if lower.shape[1] else upper
        lower = np.concatenate([lower, last], 1)
    return (upper, lower) if order == "top" else (lower, upper)


def woven(earlier: Array, later: Array, height: int, order: FieldOrder) -> Array:
    """The inverse of `split`: [C, H, W]."""
    upper, lower = (earlier, later) if order == "top" else (later, earlier)
    frame = np.empty((upper.shape[0], height, upper.shape[2]), upper.dtype)
    frame[:, ::2] = upper
    frame[:, 1::2] = lower[:, : height // 2]
    return frame


def nearest(fields: Iterable[Array], reach: int, *, goes_on_before: bool, goes_on_after: bool) -> Iterator[Array]:
    """Of a part's fields those that the network looks at.

    The part has `reach` frames beside it, which are twice as many fields.
    """
    kept = islice(fields, reach, None) if goes_on_before else iter(fields)
    if not goes_on_after:
        return kept
    return _all_but(kept, reach)


def _all_but(items: Iterator[Array], count: int) -> Iterator[Array]:
    """Without the last ones."""
    held: deque[Array] = deque()
    for item in items:
        held.append(item)
        if len(held) > count:
            yield held.popleft()
