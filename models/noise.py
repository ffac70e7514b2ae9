"""Which noise is added to clean pictures to measure a denoiser by.

A noise is called with clean planes and a seed and gives the noisy planes, the same for the same seed and shape, neither
clipped nor rounded; `recorded` makes of them what a file holds. `models/training/noise.py` has their like for training.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.figures import GAUSSIAN

Planes = NDArray[np.float32]  # [..., height, width] on the scale [0, 1]


class Noise(Protocol):
    def __call__(self, clean: Planes, seed: int) -> Planes:
        """Clean planes to noisy ones, in memory of their own."""


def add_gaussian(clean: Planes, sigma: float, seed: int, *, clipped: bool = False) -> Planes:
    """Additive white Gaussian noise, the same for the same seed and shape.

    Args:
        clean: any shape, on the scale [0, 1].
        sigma: standard deviation on that scale.
        seed: of the noise.
        clipped: clip to [0, 1] and round to 8 bits, which is what an upload is; published tables do neither.
    """
    noisy = np.random.default_rng(seed).standard_normal(clean.shape, np.float32)
    noisy *= sigma
    noisy += clean
    return recorded(noisy) if clipped else noisy


def recorded(noisy: Planes) -> Planes:
    """Clipped to [0, 1] and rounded to 8 bits, as in a file."""
    steps: Planes = np.rint(255 * noisy.clip(0, 1)) / np.float32(255)
    return steps


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Additive white Gaussian noise: clean + N(0, sigma^2)."""

    sigma: float

    def __call__(self, clean: Planes, seed: int) -> Planes:
        return add_gaussian(clean, self.sigma, seed)


@dataclass(frozen=True, slots=True)
class Mixed:
    """Gaussian noise, and over it salt and pepper: a share of the values is 0 or 1 instead, half of them each.

    Vimeo-Mixed of Wang, Zhou, Cheng 2020, section 4.1: sigma 25.5 and 10 %. Whether a whole pixel is struck or each of
    its colours by itself is not said: here each by itself.
    """

    sigma: float
    struck: float  # share of the values

    def __call__(self, clean: Planes, seed: int) -> Planes:
        noisy = add_gaussian(clean, self.sigma, seed)
        lot = np.random.default_rng([seed, 1]).random(clean.shape, np.float32)
        noisy[lot < self.struck] = 1
        noisy[lot < self.struck / 2] = 0
        return noisy


@dataclass(frozen=True, slots=True)
class SignalDependent:
    """In linear light q + N(0, shot * q + read^2), and back to sRGB.

    Xu, Li, Sun 2019, section 4, their sigma_s and sigma_r; equation (8) is the curve of sRGB. Light that the noise
    makes negative stays on the straight foot of the curve.
    """

    shot: float
    read: float

    def __call__(self, clean: Planes, seed: int) -> Planes:
        light = _to_light(clean)
        drawn = np.random.default_rng(seed).standard_normal(clean.shape, np.float32)
        return _to_srgb(light + drawn * np.sqrt(np.float32(self.shot) * light + np.float32(self.read**2)))


@dataclass(frozen=True, slots=True)
class PoissonGaussian:
    """Poisson(photons * clean) / photons + N(0, sigma^2).

    The abstract of Chen, Song, Yang 2016 names this noise and no figures. Ours, in `NOISES`: 50 photons at white and a
    readout of level 10, which together are about level 28 at half brightness.
    """

    photons: float
    sigma: float

    def __call__(self, clean: Planes, seed: int) -> Planes:
        counted = np.random.default_rng([seed, 1]).poisson(self.photons * clean.clip(0, 1)) / self.photons
        return add_gaussian(counted.astype(np.float32), self.sigma, seed)


@dataclass(frozen=True, slots=True)
class PartialPatch:
    """Another noise inside one square patch; the rest of the picture stays clean.

    Zhao 2016, section 4.3, looks at pictures that are noisy in certain patches, and does not say how large these are.
    Ours has that share of the picture's shorter side and lies at random, over all planes alike.
    """

    within: Noise
    side: float

    def __call__(self, clean: Planes, seed: int) -> Planes:
        height, width = clean.shape[-2:]
        side = max(1, round(self.side * min(height, width)))
        rng = np.random.default_rng([seed, 2])
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        noisy = clean.copy()
        patch = (..., slice(top, top + side), slice(left, left + side))
        noisy[patch] = self.within(np.ascontiguousarray(clean[patch]), seed)
        return noisy


@dataclass(frozen=True, slots=True)
class Subsampled:
    """Gaussian noise in a file of 4:2:0, as nearly every video and most JPEGs are: what noise is to a real upload.

    Four pixels share each of the two differences of colour (at full range), a mean of theirs that is repeated; all is
    clipped and rounded to 8 bits. Nothing else is lost, the file is not compressed.
    """

    sigma: float
    is_hd: bool = False  # of BT.709 instead of BT.601

    def __call__(self, clean: Planes, seed: int) -> Planes:
        height, width = clean.shape[1:]
        noisy = add_gaussian(clean, self.sigma, seed, clipped=True)
        whole = np.pad(noisy, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
        to_ycc = BT709 if self.is_hd else BT601
        luma, *colours = np.tensordot(to_ycc, whole, 1)
        shared = [one.reshape(one.shape[0] // 2, 2, -1, 2).mean((1, 3)).repeat(2, 0).repeat(2, 1) for one in colours]
        stored = np.rint(255 * np.stack([luma, *shared])) / 255
        read = np.tensordot(np.linalg.inv(to_ycc), stored, 1)[:, :height, :width]
        return recorded(read.astype(np.float32))


def _to_ycc(red: float, blue: float) -> NDArray[np.float64]:
    """Luma of so much red and blue, and the differences of blue and red from it, both at most 1/2 from zero."""
    luma = np.array([red, 1 - red - blue, blue])
    return np.stack([luma, ([0, 0, 1] - luma) / (2 - 2 * blue), ([1, 0, 0] - luma) / (2 - 2 * red)])


BT601, BT709 = _to_ycc(0.299, 0.114), _to_ycc(0.2126, 0.0722)
_MIXED = Mixed(sigma=25.5 / 255, struck=0.1)
NOISES: dict[str, Noise] = {
    "mixed": _MIXED,
    "signal-low": SignalDependent(shot=2.5e-3, read=1e-2),  # Table 2 of Xu, Li, Sun 2019
    "signal-high": SignalDependent(shot=6.4e-3, read=2e-2),
    "poisson-gaussian": PoissonGaussian(photons=50, sigma=10 / 255),
    "partial-patch": PartialPatch(within=_MIXED, side=0.5),
    "subsampled-10": Subsampled(10 / 255),
    "subsampled-25": Subsampled(25 / 255),
    "subsampled-hd-25": Subsampled(25 / 255, is_hd=True),
}


def noise_named(name: str) -> Noise:
    """
    Raises:
        ValueError: no noise goes by this name; the message says which do.
    """
    if name in NOISES:
        return NOISES[name]
    level = gaussian_level(name)
    if level is None:
        raise ValueError(f"there is no noise {name!r}; known are {GAUSSIAN}25 and other levels, {', '.join(NOISES)}")
    return Gaussian(level / 255)


def gaussian_level(name: str) -> float | None:
    """The level on the 8-bit scale that the name of a Gaussian noise tells; None of any other."""
    try:
        level = float(name.removeprefix(GAUSSIAN)) if name.startswith(GAUSSIAN) else -1.0
    except ValueError:
        return None
    return level if 0 <= level < float("inf") else None


def _to_light(srgb: Planes) -> Planes:
    """The inverse of equation (8)."""
    curved = ((np.maximum(srgb, 0) + np.float32(0.055)) / np.float32(1.055)) ** np.float32(2.4)
    light: Planes = np.where(srgb > 12.92 * 0.0031308, curved, srgb / np.float32(12.92))
    return light


def _to_srgb(light: Planes) -> Planes:
    """Equation (8)."""
    curved = np.float32(1.055) * np.maximum(light, 0) ** np.float32(1 / 2.4) - np.float32(0.055)
    srgb: Planes = np.where(light > 0.0031308, curved, np.float32(12.92) * light)
    return srgb
