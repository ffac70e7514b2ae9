"""How strong is the noise of a picture whose clean original nobody has, and how does it grow with brightness?

Blocks of 8x8 pixels that are flat tell it. Whether a block is flat is judged by the low frequencies of its cosine
transform, and the noise is read off the high ones (Ponomarenko, Lukin, Zriakhov, Kaarna, Astola 2007, "An automatic
approach to lossy compression of AVIRIS images"): of white noise the two are independent, so that choosing bends
nothing. It is done for each colour and range of brightness by itself; what clipping took away is put back (the two
moments of a clipped normal distribution, as Foi 2009, "Clipped noisy images", has them); a line through the variances
is the Poissonian-Gaussian model (Foi et al. 2008). Choice of blocks, weights and line are ours.

How good it is: docs/noise.md. The noise is taken to be independent from pixel to pixel. Demosaicing, denoising in the
camera and compression take the high frequencies away: of their noise too little is found.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Planes = NDArray[np.float32] | NDArray[np.uint8] | NDArray[np.uint16]  # [C, H, W]
_Values = NDArray[np.floating[Any]]

MOST_BLOCKS = 8192  # of a picture, spread over it; twice as many would bring 5.2 % down to 4.8 % at level 5
QUICK_BLOCKS = 4096  # where it is done for every frame
_SIDE = 8
_LOW_BELOW = 9  # a frequency (row, column) with row + column below it tells texture, the others noise
_BINS = 8  # of brightness, with equally many blocks
_LEAST_BLOCKS = 64  # in a bin
_FLATTEST = 0.01  # of a bin's blocks, looked at first
_MOST_FLAT = 0.3  # of a bin's blocks, however flat the picture
_AS_FLAT_AS_NOISE = 1.1  # low frequencies of a block that hold at most so much more than noise alone would
_CLIPPED = (0.05, 0.25)  # of a bin's pixels at most, if three bins are left at that
_OVER_THE_LINE = 0.15  # a variance above the line by this share is half texture, for all we know
_SURE = 3.0  # standard errors from which on a slope is believed
_LEAST_ERROR = 0.02  # of a bin's variance, whatever its blocks say


@dataclass(frozen=True, slots=True)
class NoiseLevel:
    """Standard deviations of the noise on the scale [0, 1], a number for each colour.

    The variance runs straight from `black` squared at brightness 0 to `white` squared at brightness 1.
    """

    sigma: tuple[float, ...]  # root mean square over the picture
    black: tuple[float, ...]
    white: tuple[float, ...]

    @property
    def mean(self) -> float:
        """All colours taken together."""
        return math.sqrt(math.fsum(sigma**2 for sigma in self.sigma) / len(self.sigma))

    def variance_at(self, brightness: NDArray[np.float32]) -> NDArray[np.float32]:
        """[C, ...] brightness to variance; beyond black and white it is theirs."""
        shape = (-1, *(1,) * (brightness.ndim - 1))
        black, white = (np.square(np.array(ends, np.float32)).reshape(shape) for ends in (self.black, self.white))
        variance: NDArray[np.float32] = black + (white - black) * brightness.clip(0, 1)
        return variance


def estimate_sigma(planes: Planes) -> float:
    """Standard deviation of the noise on the scale [0, 1], all colours together; from few blocks, for every frame."""
    return measure_noise(planes, most_blocks=QUICK_BLOCKS).mean


def measure_noise(planes: Planes, *, most_blocks: int = MOST_BLOCKS) -> NoiseLevel:
    """The noise of a picture, as it was before it was clipped.

    Memory depends on the number of blocks alone.

    Args:
        planes: [C, H, W]; float on the scale [0, 1], or unsigned integers over their full range.
        most_blocks: to look at.

    Returns:
        0 for a picture of less than 8x8 pixels, and where nothing but constant blocks is found.
    """
    if min(planes.shape[1:]) < _SIDE:
        nothing = (0.0,) * len(planes)
        return NoiseLevel(nothing, nothing, nothing)
    blocks = _Blocks.of(planes, most_blocks)
    fits = [_fit(bins) for bins in (blocks.bins(channel) for channel in range(len(planes)))]
    sigma, black, white = zip(*fits, strict=True)
    return NoiseLevel(sigma, black, white)


@dataclass(frozen=True, slots=True)
class _Bin:
    """Blocks of one colour that are about equally bright."""

    brightness: float  # of those that are flat, before clipping
    variance: float  # of their noise, before clipping
    weight: float
    clipped: float  # share of their pixels that lie at an end of the scale
    mean: float  # brightness of all
    blocks: int


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Blocks at the same places in every colour."""

    pixels: NDArray[np.float32]  # [C, N, 64]
    high: NDArray[np.float32]  # [C, N, high frequencies]
    texture: NDArray[np.float32]  # [N] sum of squares of all colours' low frequencies
    alive: NDArray[np.bool_]  # [C, N] not constant

    @classmethod
    def of(cls, planes: Planes, most: int) -> "_Blocks":
        _, height, width = planes.shape
        rows, columns = height - _SIDE + 1, width - _SIDE + 1
        step = max(1, math.isqrt(rows * columns // most))
        while -(-rows // step) * -(-columns // step) > most:
            step += 1
        views = np.lib.stride_tricks.sliding_window_view(planes, (_SIDE, _SIDE), (1, 2))[:, ::step, ::step]
        pixels = views.reshape(len(planes), -1, _SIDE * _SIDE).astype(np.float32)
        if planes.dtype.kind == "u":
            pixels /= np.float32(2 ** (8 * planes.dtype.itemsize) - 1)
        low = np.square(pixels @ _LOW.T).sum(2)
        # Of a constant block the transform gives rounding errors.
        return cls(pixels, pixels @ _HIGH.T, low.sum(0), np.ptp(pixels, axis=2) > 0)

    def bins(self, channel: int) -> list[_Bin]:
        means = self.pixels[channel].mean(1)
        alive = np.flatnonzero(self.alive[channel])
        alive = alive[np.argsort(means[alive], kind="stable")]
        count = min(_BINS, max(1, len(alive) // _LEAST_BLOCKS))
        return [self._bin(channel, inside, means[inside]) for inside in np.array_split(alive, count) if len(inside)]

    def _bin(self, channel: int, inside: NDArray[np.int_], means: NDArray[np.float32]) -> _Bin:
        flattest = np.argsort(self.texture[inside])
        texture = self.texture[inside][flattest]
        first = min(len(inside), max(16, round(_FLATTEST * len(inside))))
        # What noise alone, as strong as it is in the flattest, leaves in the low frequencies.
        of_noise = len(_LOW) * float(self._variances(inside[flattest[:first]]).sum())
        as_flat = int(np.searchsorted(texture, _AS_FLAT_AS_NOISE * of_noise))
        flat = flattest[: max(first, min(as_flat, int(_MOST_FLAT * len(inside))))]
        variances = self._variances(inside[flat])
        over = float(texture[: len(flat)].mean()) / max(len(_LOW) * float(variances.sum()), 1e-12)
        pixels = self.pixels[channel][inside[flat]]
        clipped = float(((pixels <= 0) | (pixels >= 1)).mean())
        brightness, variance = float(means[flat].mean()), float(variances[channel])
        if clipped and pixels.min() >= 0 and pixels.max() <= 1:
            brightness, variance = _before_clipping(brightness, variance)
        else:
            clipped = 0.0  # the scale goes on beyond its ends: nothing was
        # Flat blocks only by name, those of a texture, count little; so do clipped ones.
        weight = len(flat) * ((1 - clipped) / max(over, 1.0)) ** 4
        return _Bin(brightness, variance, max(weight, 1e-6), clipped, float(means.mean()), len(inside))

    def _variances(self, chosen: NDArray[np.int_]) -> NDArray[np.float32]:
        """[C]: the median over frequencies, for a pattern may sit in one of them."""
        # Wilson, Hilferty 1931: by so much the median of a chi-squared variable lies below its mean.
        below = (1 - 2 / (9 * len(chosen))) ** 3
        powers = np.square(self.high[:, chosen]).mean(1)
        return np.asarray(np.median(powers, axis=1) / below, np.float32)


def _fit(bins: Sequence[_Bin]) -> tuple[float, float, float]:
    """Standard deviation over the picture, at black, and at white."""
    kept: list[_Bin] = []
    for most in _CLIPPED:
        if len(kept) < 3:
            kept = [one for one in bins if one.clipped <= most]
    if not kept:
        kept = sorted(bins, key=lambda one: one.clipped)[:1]
    if not kept:
        return 0.0, 0.0, 0.0
    slope, start = _line(
        np.array([one.brightness for one in kept]),
        np.array([one.variance for one in kept]),
        np.array([one.weight for one in kept]),
    )
    blocks = np.array([one.blocks for one in bins])
    overall = float(np.average([slope * min(max(one.mean, 0), 1) + start for one in bins], weights=blocks))
    sigma, black, white = (math.sqrt(max(variance, 0.0)) for variance in (overall, start, start + slope))
    return sigma, black, white


def _line(levels: _Values, variances: _Values, weights: _Values) -> tuple[float, float]:
    """Slope and start of the variance over brightness, nowhere below zero from 0 to 1.

    Weighted least squares, where a variance is as uncertain as it is large; texture only adds, so that what lies above
    the line counts less. A slope that may be chance is none.
    """
    floor = 0.25 * float(np.median(variances)) + 1e-12
    fitted = np.maximum(variances, floor)
    slope = start = mean = spread = 0.0
    by = weights
    for turn in range(6):
        by = weights / fitted**2
        if turn > 1:
            by = by / (1 + (np.maximum(variances / fitted - 1, 0) / _OVER_THE_LINE) ** 2)
        centre, mean = float(np.average(levels, weights=by)), float(np.average(variances, weights=by))
        spread = float(np.average((levels - centre) ** 2, weights=by))
        slope = float(np.average((levels - centre) * variances, weights=by)) / spread if spread > 4e-4 else 0.0
        start = mean - slope * centre
        if start < 0:
            slope, start = float(np.average(levels * variances, weights=by) / np.average(levels**2, weights=by)), 0.0
        elif start + slope < 0:
            slope, start = 0.0, mean
        fitted = np.maximum(slope * levels + start, floor)
    count = len(levels)
    if count < 3:
        return 0.0, mean
    missed = float(np.average((variances - slope * levels - start) ** 2, weights=by)) * count / (count - 2)
    error = math.sqrt((missed + (_LEAST_ERROR * mean) ** 2) / max(spread, 1e-12) / count)
    return (slope, start) if abs(slope) > _SURE * error else (0.0, mean)


def _before_clipping(mean: float, variance: float) -> tuple[float, float]:
    """Mean and variance of the normal distribution that, clipped to [0, 1], has these."""
    level, sigma = mean, math.sqrt(variance)
    for _ in range(30):
        if sigma == 0:
            break
        seen_mean, seen_variance = clipped_moments(level, sigma)
        level = min(max(level + mean - seen_mean, -0.3), 1.3)
        sigma = min(sigma * math.sqrt(min(max(variance / max(seen_variance, 1e-12), 0.5), 2.0)), 0.6)
        if abs(mean - seen_mean) < 1e-5 and abs(variance - seen_variance) < 1e-7:
            break
    return level, sigma**2


def clipped_moments(level: float, sigma: float) -> tuple[float, float]:
    """Mean and variance of normal values that are clipped to [0, 1]."""
    low, high = -level / sigma, (1 - level) / sigma
    below, under = (0.5 * (1 + math.erf(end / math.sqrt(2))) for end in (low, high))
    at_low, at_high = (math.exp(-end * end / 2) / math.sqrt(2 * math.pi) for end in (low, high))
    inside = under - below
    mean = level * inside + sigma * (at_low - at_high) + 1 - under
    square = (level**2 + sigma**2) * inside + sigma * (2 * level * (at_low - at_high))
    square += sigma**2 * (low * at_low - high * at_high) + 1 - under
    return mean, square - mean**2


def _cosines() -> NDArray[np.float64]:
    """[64, 64]: row by row the two-dimensional cosine transform of a block, of unit norm."""
    frequency, place = np.mgrid[:_SIDE, :_SIDE]
    once = np.cos(np.pi * (2 * place + 1) * frequency / (2 * _SIDE)) * math.sqrt(2 / _SIDE)
    once[0] /= math.sqrt(2)
    return np.kron(once, once)


_ORDER = np.add.outer(np.arange(_SIDE), np.arange(_SIDE)).ravel()  # row + column of each frequency
_LOW = _cosines()[(_ORDER > 0) & (_ORDER < _LOW_BELOW)].astype(np.float32)
_HIGH = _cosines()[_ORDER >= _LOW_BELOW].astype(np.float32)
