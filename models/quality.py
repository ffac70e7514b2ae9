"""How close is a restored picture to the clean one: PSNR, SSIM and Average Deviation, data range 1.0.

Pictures are [H, W] or [H, W, C]; float on the scale [0, 1], or unsigned integers over their full range.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32] | NDArray[np.uint8] | NDArray[np.uint16]
_Plane = NDArray[np.float32]

STRIP_VALUES = (
    1 << 17
)  # pictures are read a strip of rows at a time: one that stays in the cache, however large they are
# Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment", 2004, section III.C.
SSIM_WINDOW_PX = 11
SSIM_WINDOW_SIGMA_PX = 1.5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2
AD_PATCH_PX = 32  # Wang, Zhou, Cheng 2020, "First image then video", section 4.2


def psnr_db(restored: Pixels, clean: Pixels) -> float:
    """Peak signal-to-noise ratio over all values together; infinite if the two are the same.

    Nothing is clipped here: clip what a viewer would see clipped.

    Raises:
        ValueError: the two differ in shape.
    """
    _compare_shapes(restored, clean)
    power = 0.0
    for first, last in _strips(clean, halo_px=0):
        error = (_as_floats(restored[first:last]) - _as_floats(clean[first:last])).ravel()
        power += float(np.dot(error, error))
    return math.inf if power == 0 else float(10 * math.log10(clean.size / power))


def ssim(restored: Pixels, clean: Pixels) -> float:
    """Structural similarity, the mean over all windows that lie inside the picture, then over channels.

    The window is a Gaussian of 11x11 pixels and sigma 1.5; in a picture with a smaller side, of the largest odd number
    of pixels that fits.

    Raises:
        ValueError: the two differ in shape.
    """
    _compare_shapes(restored, clean)
    if clean.ndim == 2:
        return _ssim_of_channel(restored, clean)
    channels: int = clean.shape[2]
    return math.fsum(_ssim_of_channel(restored[..., c], clean[..., c]) for c in range(channels)) / channels


def average_deviation(restored: Pixels, clean: Pixels) -> float:
    """Average Deviation (AD) of what is left at boundaries: equation (12) of Wang, Zhou, Cheng 2020.

    The difference picture is cut into patches of 32x32 pixels that do not overlap; of each the standard deviation is
    taken, and AD is the mean of those above the mean of all. A blurred boundary leaves structure in the difference, and
    its patches stand out; noise that is left evenly raises all alike.

    Left open there, and chosen here: patches begin at the top left, and what is left over at the right and at the
    bottom is not looked at (a side of less than 32 pixels is one patch long); the deviation is of a patch's values of
    all channels together, about their common mean, over their number; where all patches are alike, none lies above the
    mean, and AD is that mean.

    Raises:
        ValueError: the two differ in shape.
    """
    _compare_shapes(restored, clean)
    height, width = (min(AD_PATCH_PX, side) for side in clean.shape[:2])
    deviations: list[float] = []
    for top in range(0, clean.shape[0] - height + 1, height):
        rows = slice(top, top + height)
        difference = _as_floats(restored[rows]) - _as_floats(clean[rows])
        deviations += [
            float(np.std(difference[:, left : left + width], dtype=np.float64))
            for left in range(0, clean.shape[1] - width + 1, width)
        ]
    mean = math.fsum(deviations) / len(deviations)
    above = [deviation for deviation in deviations if deviation > mean]
    return math.fsum(above) / len(above) if above else mean


def _ssim_of_channel(restored: Pixels, clean: Pixels) -> float:
    side = min(SSIM_WINDOW_PX, *clean.shape)
    taps = _gaussian(side - 1 + side % 2)
    total, count = 0.0, 0
    for first, last in _strips(clean, halo_px=len(taps) - 1):
        one, other = _as_floats(restored[first:last]), _as_floats(clean[first:last])
        mean_one, mean_other = _filtered(one, taps), _filtered(other, taps)
        means, powers = mean_one * mean_other, mean_one * mean_one + mean_other * mean_other
        covariance = _filtered(one * other, taps) - means
        variances = _filtered(one * one + other * other, taps) - powers
        similarity = (2 * means + SSIM_C1) * (2 * covariance + SSIM_C2)
        similarity /= (powers + SSIM_C1) * (variances + SSIM_C2)
        total += float(similarity.sum(dtype=np.float64))
        count += similarity.size
    return total / count


def _gaussian(taps: int) -> list[float]:
    weights = [math.exp(-0.5 * ((tap - taps // 2) / SSIM_WINDOW_SIGMA_PX) ** 2) for tap in range(taps)]
    return [weight / sum(weights) for weight in weights]


def _filtered(plane: _Plane, taps: list[float]) -> _Plane:
    """Where the whole window fits: smaller by one window less one pixel each way."""
    middle = len(taps) // 2
    height, width = plane.shape[0] - 2 * middle, plane.shape[1] - 2 * middle
    down = plane[middle : middle + height] * np.float32(taps[middle])
    for tap in range(middle):  # the window is symmetric: two rows share a weight
        mirrored = len(taps) - 1 - tap
        down += (plane[tap : tap + height] + plane[mirrored : mirrored + height]) * np.float32(taps[tap])
    across = down[:, middle : middle + width] * np.float32(taps[middle])
    for tap in range(middle):
        mirrored = len(taps) - 1 - tap
        across += (down[:, tap : tap + width] + down[:, mirrored : mirrored + width]) * np.float32(taps[tap])
    return across


def _strips(picture: Pixels, halo_px: int) -> Iterator[tuple[int, int]]:
    """First and last row of strips that together give every row once, when each loses `halo_px` rows."""
    height = picture.shape[0] - halo_px
    step = max(8, STRIP_VALUES // max(1, picture[0].size))
    for first in range(0, height, step):
        yield first, min(first + step, height) + halo_px


def _as_floats(values: Pixels) -> _Plane:
    floats: _Plane = values.astype(np.float32)
    if values.dtype.kind == "u":
        floats /= np.float32(2 ** (8 * values.dtype.itemsize) - 1)
    return floats


def _compare_shapes(restored: Pixels, clean: Pixels) -> None:
    if restored.shape != clean.shape:
        raise ValueError(f"restored is {restored.shape}, clean is {clean.shape}; they must be of one shape")
