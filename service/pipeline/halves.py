"""Shows a noisy and a restored picture side by side, as one picture of their own size."""

from collections.abc import Callable

import numpy as np

from service.pipeline.denoiser import Pixels, white_of

_LINE_SHARE = 400  # of the width: the line between the halves is so much thinner
_LEAST_PX = 16  # a narrower picture has no line

AsSeen = Callable[[Pixels], Pixels]


def side_by_side(noisy: Pixels, restored: Pixels, as_seen: AsSeen) -> Pixels:
    """The left half of the one, the right half of the other, and a white line between them.

    Args:
        noisy: [H, W, 3].
        restored: of the same shape.
        as_seen: gives a view of a picture as it is turned and mirrored for those who look at it.
    """
    both = restored.copy()
    shown, before = as_seen(both), as_seen(noisy)
    width = shown.shape[1]
    middle = width // 2
    shown[:, :middle] = before[:, :middle]
    if width >= _LEAST_PX:
        half = max(1, width // _LINE_SHARE // 2)
        shown[:, middle - half : middle + half] = white_of(both.dtype)
    return both


def turned_by(degrees: int) -> AsSeen:
    """As players turn the frames of a video: counter-clockwise; a multiple of 90 is followed."""
    return lambda pixels: np.rot90(pixels, degrees // 90) if degrees % 90 == 0 else pixels
