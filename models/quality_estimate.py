"""How close is a restored picture to the clean one that nobody has?

The network is run on a few places of the noisy picture with a small random change added and taken away; how much of
the change comes out again tells what share of the noise is left in the result (Ramani, Blu, Unser 2008, "Monte-Carlo
SURE"). Two estimates come of that:

* of a denoiser that is as good as can be, the squared error is that share of the noise's variance (Miyasawa 1961;
  called Tweedie's formula). It needs no trust in the noise level, but full trust in the denoiser.
* SURE: what was taken out, less what of it was noise. It needs no trust in the denoiser, but an exact noise level,
  which nobody has: at level 50 one percent of it is 2 dB. Ours takes the level from the flattest blocks, where hardly
  anything but noise can have been taken out.

They are weighed by what each is uncertain by. Measured with known noise: docs/noise.md. The weights and the 15 % by
which networks fall short of the best possible were chosen on crops of 20 pictures with three networks, the 5 % of those
that see several frames on 12 clips with one. The noise is taken to be independent from pixel to pixel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from models.noise_level import NoiseLevel, clipped_moments

Planes = NDArray[np.float32]  # [C, H, W] on the scale [0, 1]

STEP = 0.2  # of the noise's standard deviation: small to the network, large to half precision
_BLOCK_PX = 16
_FLATTEST = 0.15  # of all blocks
_UNCLIPPED = 1.5  # standard deviations from either end of the scale, where clipping hardly matters
_LEVELS = 65  # at which the moments of clipped noise are worked out
_STRATA = 8
_SHORT_OF_BEST = 1.15  # squared error of a network over that of the best one there could be
_SHORT_OF_BEST_BY_WINDOWS = 1.05  # of one that sees several frames
_TRUST_IN_NETWORK = 0.2  # of its squared error: how far that share may be off
_TRUST_IN_LEVEL = 0.02  # of the noise's variance: how far SURE may be off
_TRUST_IN_NOISE = 0.05  # of it: how far itself may be off
_TOO_LOW = 0.005  # of it: what flat blocks lack of the error in them
_LEAST = 1e-6  # a squared error; 60 dB


@dataclass(slots=True)
class Evidence:
    """Sums over the values that were looked at, to be added up over places and frames."""

    values: float = 0.0
    variance: float = 0.0  # of the noise, as clipping left it
    passed: float = 0.0  # variance times the share of a change that comes out again
    short: float = 0.0  # that, times the network's error over the best one's
    shifted: float = 0.0  # squared: by how much the mean brightness is off, where clipping shifted it
    removed: float = 0.0  # squared: what was taken out, where hardly anything is clipped
    expected: float = 0.0  # the same, were it all noise
    unclipped: float = 0.0  # values that these two are over
    flat_removed: float = 0.0  # these of the flattest blocks
    flat_expected: float = 0.0
    flat_variance: float = 0.0

    def add(self, other: "Evidence") -> None:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def error(self, strength: float = 1.0) -> tuple[float, float] | None:
        """Mean squared error of the result and its standard error; None where nothing was looked at.

        Args:
            strength: share of what the network took out that was taken out.
        """
        if not self.values or not self.variance:
            return None
        variance, passed, shifted = (sum_ / self.values for sum_ in (self.variance, self.passed, self.shifted))
        # The noise's variance where it shows itself, over what it was taken for.
        over = 1.0
        if self.flat_expected > 0 and self.flat_variance > 0:
            # Told only by a denoiser that takes nearly all of it out there.
            trust = min(self.flat_expected / self.flat_variance, 1.0) ** 4
            over += trust * (min(max(self.flat_removed / self.flat_expected, 0.7), 1.4) - 1)
        lost = (self.removed - over * self.expected) / self.unclipped if self.unclipped else 0.0
        best = max(over * passed, 0.0) + shifted
        short = self.short / self.passed if self.passed else 1.0
        by_network, by_level = short * best, best + lost + _TOO_LOW * variance
        unsure_network, unsure_level = (_TRUST_IN_NETWORK * by_network) ** 2, (_TRUST_IN_LEVEL * variance) ** 2
        share = unsure_network / (unsure_network + unsure_level)
        whole = max(by_network + share * (by_level - by_network), _LEAST)
        # noisy - clean and restored - clean have `passed` in common.
        kept = 1 - strength
        error = kept**2 * variance + strength**2 * whole + 2 * kept * strength * passed
        unsure = math.hypot(strength**2 * math.sqrt(share * unsure_level), kept**2 * _TRUST_IN_NOISE * variance)
        return max(error, _LEAST), unsure

    def psnr_db(self, strength: float = 1.0) -> tuple[float, float] | None:
        """Estimated PSNR and its standard error, both in dB; None where nothing was looked at."""
        found = self.error(strength)
        if found is None:
            return None
        error, unsure = found
        return -10 * math.log10(error), 10 / math.log(10) * unsure / error


@dataclass(frozen=True, slots=True)
class Probe:
    """A place of a noisy picture, and what the network made of it with a change added and with it taken away."""

    noisy: Planes
    change: Planes  # 1 or -1, times the step
    added: Planes
    taken: Planes


def change_for(noisy: Planes, noise: NoiseLevel, seed: int) -> Planes:
    """What is to be added and taken away."""
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), noisy.shape)
    return np.asarray(signs * np.float32(STEP * noise.mean), np.float32)


def textures(noisy: Planes) -> NDArray[np.float32]:
    """Variance within each block, the colours added up: what the places of a picture are told apart by."""
    return np.asarray((_means(noisy**2) - _means(noisy) ** 2).sum(0).ravel())


def evidence_of(
    probes: Sequence[Probe], noise: NoiseLevel, everywhere: NDArray[np.float32] | None = None, *, frames: int = 1
) -> Evidence:
    """What the probes of one picture tell.

    Args:
        probes: of any size.
        noise: of the picture, as it was before it was clipped.
        everywhere: `textures` of the whole picture; blocks then count as often as their like is met in it.
        frames: that the network sees at once.
    """
    if not probes or noise.mean == 0:
        return Evidence()
    moments = _Moments.of(noise)
    maps = [_maps(probe, moments) for probe in probes]
    joined = {name: np.concatenate([one[name] for one in maps]) for name in maps[0]}
    texture = joined.pop("texture")
    weights = _weights(texture, everywhere) if everywhere is not None else np.ones_like(texture)
    sums = {
        name: float((weights * values).sum(dtype=np.float64)) for name, values in joined.items() if name != "flatness"
    }
    # Where clipping took the noise away it is flat too.
    flatness = np.where(joined["unclipped"] > 0.9, joined["flatness"], np.inf)
    flat = np.argsort(flatness)[: round(_FLATTEST * np.isfinite(flatness).sum())]
    return Evidence(
        values=float(weights.sum(dtype=np.float64)),
        **sums,
        short=sums["passed"] * (_SHORT_OF_BEST if frames == 1 else _SHORT_OF_BEST_BY_WINDOWS),
        flat_removed=float(joined["removed"][flat].sum(dtype=np.float64)),
        flat_expected=float(joined["expected"][flat].sum(dtype=np.float64)),
        flat_variance=float((joined["unclipped"] * joined["variance"])[flat].sum(dtype=np.float64)),
    )


def _maps(probe: Probe, moments: "_Moments") -> dict[str, NDArray[np.float32]]:
    """Means over each block, all colours together."""
    added, taken = probe.added.clip(0, 1), probe.taken.clip(0, 1)
    restored = (added + taken) / 2
    share = (added - taken) / (2 * probe.change)
    variance, margin = moments.variance(restored), _UNCLIPPED * moments.sigma(restored)
    unclipped = ((restored > margin) & (restored < 1 - margin)).astype(np.float32)
    shift = _means(restored) - moments.level(_means(probe.noisy))
    maps = {
        "variance": variance,
        "passed": variance * share,
        "removed": unclipped * (probe.noisy - restored) ** 2,
        "expected": unclipped * variance * (1 - share),
        "unclipped": unclipped,
    }
    blocks = {name: _means(values).mean(0).ravel() for name, values in maps.items()}
    # What is left of the noise in the mean of a block is no shift.
    noise_in_mean = blocks["variance"] / _BLOCK_PX**2
    blocks["shifted"] = (shift**2).mean(0).ravel() - noise_in_mean
    return blocks | {"texture": textures(probe.noisy), "flatness": textures(restored)}


@dataclass(frozen=True, slots=True)
class _Moments:
    """Of noise that was clipped to [0, 1], for each colour at some levels of brightness."""

    levels: NDArray[np.float64]
    means: NDArray[np.float64]  # [C, levels]
    variances: NDArray[np.float64]
    sigmas: NDArray[np.float64]  # before clipping

    @classmethod
    def of(cls, noise: NoiseLevel) -> "_Moments":
        levels = np.linspace(0, 1, _LEVELS)
        brightness = np.broadcast_to(levels.astype(np.float32), (len(noise.sigma), _LEVELS))
        sigmas = np.sqrt(np.maximum(noise.variance_at(brightness), 1e-10)).astype(np.float64)
        both = np.array([[clipped_moments(x, s) for x, s in zip(levels, one, strict=True)] for one in sigmas])
        return cls(levels, both[..., 0], both[..., 1], sigmas)

    def variance(self, level: Planes) -> Planes:
        return self._at(level, [self.levels] * len(level), self.variances)

    def sigma(self, level: Planes) -> Planes:
        return self._at(level, [self.levels] * len(level), self.sigmas)

    def level(self, mean: Planes) -> Planes:
        """Of which clipping makes this mean."""
        return self._at(mean, self.means, [self.levels] * len(mean))

    def _at(
        self,
        planes: Planes,
        known: Sequence[NDArray[np.float64]] | NDArray[np.float64],
        wanted: Sequence[NDArray[np.float64]] | NDArray[np.float64],
    ) -> Planes:
        found = [np.interp(plane, x, y) for plane, x, y in zip(planes, known, wanted, strict=True)]
        return np.stack(found).astype(np.float32)


def _weights(texture: NDArray[np.float32], everywhere: NDArray[np.float32]) -> NDArray[np.float32]:
    """How often a block's like is met in the picture, over how often it is met in the probes."""
    edges = np.quantile(everywhere, np.linspace(0, 1, _STRATA + 1)[1:-1])
    here, there = np.searchsorted(edges, texture), np.searchsorted(edges, everywhere)
    met, wanted = (np.bincount(places, minlength=_STRATA) for places in (here, there))
    weights = wanted / len(everywhere) * len(texture) / np.maximum(met, 1)
    return np.asarray(weights[here], np.float32)


def _means(planes: Planes) -> Planes:
    """[C, H, W] to means of 16x16 pixels, what is left over left out; of a smaller picture, the mean of it all."""
    channels, height, width = planes.shape
    down, across = min(_BLOCK_PX, height), min(_BLOCK_PX, width)
    cut = planes[:, : height // down * down, : width // across * across]
    blocks = cut.reshape(channels, height // down, down, width // across, across)
    return np.asarray(blocks.mean((2, 4)), np.float32)
