"""How strong is the noise of footage whose clean frames nobody has, and how does it grow with brightness?

Variance = shot * x + read, as Foi et al. 2008, "Practical Poissonian-Gaussian noise modeling and fitting for
single-image raw-data", has it, for each colour by itself. The fit takes the noise of a pixel to be independent of that
of its neighbours. Demosaicing, denoising inside the camera and compression tie neighbours together; `blotch` tells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]

MOST_FRAMES = 24  # more would not change the second digit
_AROUND = 5  # cells a side
_BINS = 32
_LEAST_CELLS = 200  # of 2x2 pixels in a bin; with fewer its variance is told to no better than a tenth
_FLAT_SHARE = 0.5  # of the cells of a bin, those with the least detail
_CLIPPED = (0.02, 0.2, 1.0)  # of a bin's cells, at most: clipping takes away noise
_LEAST_SPAN = 0.2  # of brightness, for a line to be fitted
_MEDIAN_OF_ABSOLUTE_NORMAL = 0.6745
_CUT = 3.5  # standard deviations; beyond them is more picture than noise
_POWER_WITHIN_CUT = 0.99389  # of a normal distribution's values inside the cut, over its variance


@dataclass(frozen=True, slots=True)
class NoiseFit:
    """Noise of footage on the scale [0, 1], a number for each of red, green and blue."""

    shot: tuple[float, float, float]  # variance for a unit of brightness
    read: tuple[float, float, float]  # variance in the dark
    # Standard deviation of the noise at twice the scale over that at the finest: 1 where pixels are independent.
    blotch: float

    def sigma_at(self, brightness: float) -> float:
        """Standard deviation at that brightness, the colours taken together."""
        variances = [shot * brightness + read for shot, read in zip(self.shot, self.read, strict=True)]
        return math.sqrt(sum(variances) / len(variances))


def fit_noise(clips: Sequence[NDArray[np.uint8]]) -> NoiseFit:
    """Fit the noise of footage to its flat places.

    Each cell of 2x2 pixels gives four numbers (Haar): its diagonal difference, which tells the noise; its brightness;
    and its two other differences, whose size tells how much detail is there. Of white noise the four are independent,
    so neither sorting cells by brightness nor keeping the flat half of them bends what the first tells.

    Args:
        clips: [T, H, W, 3] each.

    Raises:
        ValueError: frames are too small, or nowhere flat enough, to tell.
    """
    frames = [frame for clip in clips for frame in clip]
    frames = frames[:: -(-len(frames) // MOST_FRAMES)]
    fits, ratios = [], []
    for channel in range(3):
        cells = _Cells.of([frame[..., channel].astype(np.float32) / 255 for frame in frames])
        shot, read = _line(*cells.variances())
        fits.append((shot, read))
        ratios.append(cells.deviation_at_twice_the_scale(shot, read))
    red, green, blue = fits
    return NoiseFit((red[0], green[0], blue[0]), (red[1], green[1], blue[1]), float(np.median(ratios)))


@dataclass(frozen=True, slots=True)
class _Haar:
    """Maps [H/2, W/2] of a plane's cells; of unit norm, so that noise has its own standard deviation in each."""

    total: Values  # twice the brightness
    diagonal: Values
    detail: Values  # mean square of the other differences, over 5x5 cells around

    @classmethod
    def of(cls, plane: Values) -> "_Haar":
        height, width = (side // 2 * 2 for side in plane.shape)
        if min(height, width) < 2 * _AROUND:
            raise ValueError(f"frames are {plane.shape[1]}x{plane.shape[0]} here: too small to tell their noise")
        first, second = plane[:height:2, :width:2], plane[:height:2, 1:width:2]
        third, fourth = plane[1:height:2, :width:2], plane[1:height:2, 1:width:2]
        across, down = (first - second + third - fourth) / 2, (first + second - third - fourth) / 2
        return cls(
            total=(first + second + third + fourth) / 2,
            diagonal=(first - second - third + fourth) / 2,
            detail=_mean_around(across**2 + down**2),
        )


@dataclass(frozen=True, slots=True)
class _Cells:
    """The cells of planes of one colour; those at twice the scale have the brightness of the first of their four."""

    planes: list[_Haar]
    brightness: list[Values]  # mean over 5x5 cells around
    clipped: list[NDArray[np.bool_]]  # where one of the four pixels is

    @classmethod
    def of(cls, planes: Sequence[Values]) -> "_Cells":
        haar = [_Haar.of(plane) for plane in planes]
        brightness = [_mean_around(one.total / 2) for one in haar]
        clipped = []
        for plane, one in zip(planes, haar, strict=True):
            height, width = one.total.shape
            ends = (plane <= 0) | (plane >= 1)
            cells = ends[: 2 * height, : 2 * width].reshape(height, 2, width, 2)
            clipped.append(np.asarray(cells.any((1, 3))))
        return cls(haar, brightness, clipped)

    def variances(self) -> tuple[Values, Values, Values]:
        """Brightness, variance and number of cells of every bin that tells.

        Raises:
            ValueError: no bin does.
        """
        found = [
            (float(brightness.mean()), _deviation(diagonal) ** 2, len(diagonal))
            for brightness, diagonal in self._bins(self.planes, 1)
        ]
        if not found:
            raise ValueError("the footage has too few pixels to tell its noise")
        levels, variances, counts = np.array(found, np.float32).T
        return levels, variances, counts

    def deviation_at_twice_the_scale(self, shot: float, read: float) -> float:
        """Standard deviation of the noise in cells of 2x2 cells, over what the fit expects it to be."""
        over = [
            diagonal / np.sqrt(np.maximum(shot * brightness + read, 1e-8))
            for brightness, diagonal in self._bins([_Haar.of(plane.total) for plane in self.planes], 2)
        ]
        return _deviation(np.concatenate(over)) if over else 1.0

    def _bins(self, planes: Sequence[_Haar], step: int) -> list[tuple[Values, Values]]:
        """Brightness and diagonals of the flat cells of every bin that has enough of them, where clipping has left
        alone what tells the line; if it has nowhere, of more bins."""

        def joined(maps: Sequence[NDArray[Any]]) -> NDArray[Any]:
            inside = [
                map_[::step, ::step][: plane.total.shape[0], : plane.total.shape[1]]
                for map_, plane in zip(maps, planes, strict=True)
            ]
            return np.concatenate(inside, axis=None)

        brightness, clipped = joined(self.brightness), joined(self.clipped)
        diagonal = np.concatenate([plane.diagonal for plane in planes], axis=None)
        detail = np.concatenate([plane.detail for plane in planes], axis=None)
        place = np.clip((brightness * _BINS).astype(int), 0, _BINS - 1)
        bins = []
        for first, last in _joined_bins(np.bincount(place, minlength=_BINS), round(2 * _LEAST_CELLS / step)):
            inside = (place >= first) & (place < last)
            flat = inside & (detail <= np.quantile(detail[inside], _FLAT_SHARE))
            bins.append((float(clipped[inside].mean()), brightness[flat], diagonal[flat]))
        kept: list[tuple[Values, Values]] = []
        for bound in _CLIPPED:
            kept = [(levels, values) for share, levels, values in bins if share <= bound]
            centres = [float(levels.mean()) for levels, _ in kept]
            if kept and max(centres) - min(centres) >= _LEAST_SPAN:
                break
        return kept


def _joined_bins(counts: NDArray[np.int_], least: int) -> list[tuple[int, int]]:
    """Neighbouring bins, first and behind the last, joined until they hold enough; what is left over is left out."""
    joined, first = [], 0
    for last in range(1, len(counts) + 1):
        if counts[first:last].sum() >= least:
            joined.append((first, last))
            first = last
    return joined


def _mean_around(values: Values) -> Values:
    """Mean over 5x5, the border repeated."""
    for axis in (0, 1):
        reach = _AROUND // 2
        padded = np.pad(values, [(reach, reach) if side == axis else (0, 0) for side in (0, 1)], mode="edge")
        values = np.lib.stride_tricks.sliding_window_view(padded, _AROUND, axis).mean(-1)
    return values


def _deviation(values: Values) -> float:
    """Standard deviation of normal values with some others among them."""
    deviation = float(np.median(np.abs(values))) / _MEDIAN_OF_ABSOLUTE_NORMAL
    for _ in range(3):
        inside = values[np.abs(values) <= _CUT * deviation]
        if not inside.size or deviation == 0:
            break
        deviation = float(np.sqrt(np.mean(np.square(inside, dtype=np.float64)) / _POWER_WITHIN_CUT))
    return deviation


def _line(levels: Values, found: Values, counts: Values) -> tuple[float, float]:
    """Weighted least squares of variance = shot * level + read, neither below zero.

    A variance told by n cells is uncertain by itself times the root of 2 / n.
    """
    shot, read = 0.0, float(np.average(found, weights=counts))
    for _ in range(4):
        weights = counts / np.maximum(shot * levels + read, 1e-8) ** 2
        centre, mean = np.average(levels, weights=weights), np.average(found, weights=weights)
        spread = float(np.average((levels - centre) ** 2, weights=weights))
        slope = float(np.average((levels - centre) * found, weights=weights)) / spread if spread > 1e-6 else 0.0
        if slope <= 0:
            shot, read = 0.0, float(mean)
        elif mean - slope * centre < 0:
            through_zero = np.average(levels * found, weights=weights) / np.average(levels**2, weights=weights)
            shot, read = float(through_zero), 0.0
        else:
            shot, read = slope, float(mean - slope * centre)
    return shot, read
