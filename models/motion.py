"""Where the pixels of a frame lie in the frames beside it, and those frames laid over it along that motion.

The flow is DIS's (Kroeger et al. 2016, arXiv:1603.03590), as OpenCV computes it: on the CPU, and the same whatever the
number of threads. It wants frames that have been cleaned already; noise moves too.
"""

import functools

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Of a side; smaller frames are continued by their edges. Of small and narrow ones OpenCV makes fewer scales than it
# then reads: 5.0.0 ended the process, or gave what is no number, on frames of less than 32 pixels (its issue 14554).
SMALLEST_PX = 96
_LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601


def flow_between(frame: Array, neighbour: Array) -> Array:
    """Find how far each pixel has gone.

    Args:
        frame: [C, H, W], RGB in [0, 1] in the first three planes, cleaned.
        neighbour: likewise.

    Returns:
        [H, W, 2] in pixels: to the right, and down, where what is in `frame` is found in `neighbour`.
    """
    height, width = frame.shape[1:]
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    found = search.calc(_grey(frame), _grey(neighbour), None)  # type: ignore[call-overload] # no flow to begin with
    return np.asarray(found[:height, :width], np.float32)


def laid_over(neighbour: Array, flow: Array) -> Array:
    """Read a frame where the flow says, bilinearly; beyond its edge the edge goes on.

    Args:
        neighbour: [C, H, W].
        flow: [H, W, 2], as `flow_between` gives it.

    Returns:
        [C, H, W].
    """
    across, down = _pixels(*flow.shape[:2])
    planes = np.ascontiguousarray(neighbour.transpose(1, 2, 0))
    read = cv2.remap(
        planes, flow[..., 0] + across, flow[..., 1] + down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.ascontiguousarray(np.asarray(read, np.float32).reshape(planes.shape).transpose(2, 0, 1))


def _grey(frame: Array) -> NDArray[np.uint8]:
    """Its luma, of at least `SMALLEST_PX` a side."""
    luma = sum(weight * plane for weight, plane in zip(_LUMA, frame, strict=False))
    pixels = np.rint(np.clip(luma, 0, 1) * 255).astype(np.uint8)
    below, beside = (max(0, SMALLEST_PX - side) for side in pixels.shape)
    return np.asarray(cv2.copyMakeBorder(pixels, 0, below, 0, beside, cv2.BORDER_REPLICATE))


@functools.lru_cache(maxsize=2)  # a film has one size; another may run beside it
def _pixels(height: int, width: int) -> tuple[Array, Array]:
    """Their coordinates: [1, W] and [H, 1]."""
    return np.arange(width, dtype=np.float32)[None], np.arange(height, dtype=np.float32)[:, None]
