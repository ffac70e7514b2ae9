"""How is a denoiser adapted to noisy footage of which nobody has clean frames?

Wang, Zhou, Cheng 2020, equation (8), teach a network from two noisy frames of one scene whose noise is independent.
Footage has one. Recorruption (Pang et al. 2021, "Recorrupted-to-Recorrupted", CVPR) makes two of it: with noise z drawn
anew, of the variance that the footage's own has, y + a * z is what goes in and y - z / a what should come out. Whatever
goes in, the mean of what should come out is then the clean frame: in expectation the squared error against such a
target is that against the clean frame, and the target's variance on top.

That holds for Gaussian noise. Light that is counted is skewed, and a network finds out: with Gaussian z it learned to
leave noise in that the target shares, and lost 2 dB where the error against targets told of a gain (our measurement,
2026-11-21, five photons a pixel at most). Monroy, Bacca, Tachella 2024, arXiv:2412.04648, divide the photons that were
counted; that needs their number, which electronics blur. Here z is counted too, which does the same without: a pixel of
P photons, each worth s, meets Q drawn with a mean of a^2 times its own. P + Q goes in, each of them one of P with
chance 1 / (1 + a^2), so that s * (P - Q / a^2) is zero in the mean, whatever the sum. Hence a * z is s * Q less its
mean, and Gaussian for the part of the noise that does not grow with light.

It rests on three things. The noise of a pixel is independent of its neighbours': compression, demosaicing and
denoising in the camera end that, and what they have left is then learned as if it were picture. Its variance is known:
`noise_fit.py` reads it off the footage. And its mean is zero: where the range cuts the noise of the darkest and
lightest places it is not. There the network is held to what it made of them before: where nothing is said of them it
drifts, in five minutes by 1.5 dB on two clips whose lighter part was cut (2026-11-21).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.catalogue import DESCRIBED
from models.training.footage import check_clips
from models.training.material import Material
from models.training.noise_fit import NoiseFit, fit_noise
from models.training.recipe import Phase, Recipe, middle_of
from models.training.trainer import Report, Run
from models.weights import WEIGHTS_DIR

STRENGTH = 0.5  # a: with less the targets drown in noise, with more what goes in is unlike the footage
ESTIMATE = "estimate"  # how the held-out figure is called: nobody has clean frames to measure against
HELD_OUT_SHARE = 0.1  # of each clip, its end
LEAST_TO_DIVIDE = 3  # times as long as what is held out must a clip be; of shorter ones all is learned
WATCHED_CROPS = 6
WATCHED_SIZE_PX = 96
_SMOOTHED_PX = 5
_LEAST_SHOT = 1e-5  # with less a white pixel has 100 000 photons, and their noise is below 1 % of the range
_ROOM = 1.0  # standard deviations from an end of the range; nearer to it clipping shifts the mean by 8 % of one or more


@dataclass(frozen=True, slots=True)
class Recorruption:
    """Makes a pair of noisy frames of one."""

    noise: NoiseFit
    strength: float = STRENGTH

    def pair(self, observed: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """[N, T, 3, H, W] to the frames that go in, and their targets; the same for the same seed.

        A target is not a number where the mean of the noise is not zero, because the range cuts it.
        """
        generator = torch.Generator(observed.device).manual_seed(seed)
        shot, read = self._parts(observed)
        worth = shot.clamp(min=_LEAST_SHOT)  # of a photon
        mean = self.strength**2 * _around(observed) / worth
        drawn = worth * (torch.poisson(mean, generator=generator) - mean) / self.strength
        drawn += read.sqrt() * torch.randn(observed.shape, generator=generator, device=observed.device)
        target = (observed - drawn / self.strength).masked_fill(self.noise_of(observed)[1], math.nan)
        return observed + self.strength * drawn, target

    def noise_of(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """The variance of the footage's own noise, and where the range has cut it: both [N, T, 3, H, W].

        In the dark only the part that does not grow with light is cut: photons are not counted below zero.
        """
        shot, read = self._parts(observed)
        brightness = _around(observed)
        variance: Tensor = shot * brightness + read
        is_cut = (brightness < _ROOM * read.sqrt()) | (brightness + _ROOM * variance.sqrt() > 1)
        return variance, is_cut

    def _parts(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Both variances so that they meet [N, T, 3, H, W]."""
        shot, read = (observed.new_tensor(values)[:, None, None] for values in (self.noise.shot, self.noise.read))
        return shot, read

    def cut_share(self, clips: Sequence[np.ndarray]) -> float:
        """Of all values, those in places where the range cuts the noise."""
        middle = [torch.from_numpy(clip[len(clip) // 2]).movedim(-1, 0)[None, None].float() / 255 for clip in clips]
        return sum(float(self.noise_of(frame)[1].float().mean()) for frame in middle) / len(middle)


def _around(observed: Tensor) -> Tensor:
    """Brightness around each pixel; that of the pixel alone would follow its noise."""
    reach = _SMOOTHED_PX // 2
    planes = F.pad(observed.flatten(0, 1), (reach, reach, reach, reach), "reflect")
    return F.avg_pool2d(planes, _SMOOTHED_PX, 1).view_as(observed).clamp(0, 1)


class FootageSource:
    """Noisy footage: what a run learns from and is watched by when there are no clean frames."""

    watched = (ESTIMATE,)

    def __init__(self, recipe: Recipe, clips: Sequence[np.ndarray], noise: NoiseFit, device: str) -> None:
        self._recipe, self._device = recipe, device
        self._multiple = DESCRIBED[recipe.network].multiple
        self.noise = noise
        self._recorruption = Recorruption(noise)
        learned, held_out = _divided(clips, recipe.frames)
        self._learned, self._held_out = _material(learned), _material(held_out)
        self.hold_to: Callable[[Tensor, Tensor], Tensor] | None = None  # restores as before the first step

    def draw(self, rng: np.random.Generator, phase: Phase) -> tuple[Tensor, Tensor, Tensor]:
        """Recorrupted crops, the standard deviation of their noise, and their targets."""
        observed = self._crops(self._learned, rng, phase.batch, phase.size_px).to(self._device)
        noisy, sigma, target = self._recorrupted(observed, int(rng.integers(2**62)))
        is_unknown = target.isnan()
        if self.hold_to is not None and bool(is_unknown.any()):
            before = self.hold_to(observed, sigma)  # of the middle frames; at the ends of a clip nothing is known
            middle, is_unknown = (middle_of(frames, before.shape[1]) for frames in (target, is_unknown))
            middle[is_unknown] = before[is_unknown]
        return noisy, sigma, target

    def watch(self, restore: Callable[[Tensor, Tensor], Tensor]) -> dict[str, float]:
        """PSNR against the clean frames, as far as it can be told without them: the squared error against the targets,
        less the targets' own variance. The fit of the noise bends it; what it gains or loses is told better."""
        rng = np.random.default_rng(self._recipe.seed)
        observed = self._crops(self._held_out, rng, WATCHED_CROPS, WATCHED_SIZE_PX)
        noisy, sigma, target = self._recorrupted(observed, self._recipe.seed)
        restored = restore(noisy, sigma)
        observed, target = (middle_of(frames, restored.shape[1]) for frames in (observed, target))
        known = target.isfinite()
        of_targets = (target - observed).square() + self._recorruption.noise_of(observed)[0]
        error = float(((restored - target).square() - of_targets)[known].mean())
        return {ESTIMATE: -10 * math.log10(error) if error > 0 else math.nan}

    def _recorrupted(self, observed: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        noisy, target = self._recorruption.pair(observed, seed)
        power = self._recorruption.noise_of(observed)[0].mean((1, 2, 3, 4))
        return noisy, (power * (1 + self._recorruption.strength**2)).sqrt(), target

    def _crops(self, material: Material, rng: np.random.Generator, count: int, size_px: int) -> Tensor:
        sides = [side for clip in material.clips for side in clip.shape[1:3]]
        size_px = min(size_px, *sides) // self._multiple * self._multiple
        if self._recipe.frames == 1:
            return material.crops(rng, count, size_px)
        return material.clip_crops(rng, count, self._recipe.frames, size_px, footage_share=1.0)


@dataclass(frozen=True, slots=True)
class Adapted:
    """What came of it. Decibels are the estimated PSNR of frames held out, not a number where the estimate fails."""

    noise: NoiseFit
    before_db: float
    after_db: float
    minutes: float
    steps: int


def adapt(
    recipe: Recipe,
    clips: Sequence[np.ndarray],
    out: Path,
    *,
    minutes: float,
    noise: NoiseFit | None = None,
    resume: bool = False,
    start_from: Path | None = None,
    device: str = "cpu",
    threads: int = 1,
    sources: Sequence[Path] = (),
    weights_dir: Path = WEIGHTS_DIR,
    on_start: Callable[[float], None] = lambda _: None,
    on_report: Callable[[Report], None] = lambda _: None,
) -> Adapted:
    """Adapt finished weights to noisy footage, and write them to `out`, all parts of the network in one file.

    Args:
        recipe: one that others name as their `unsupervised`.
        clips: [T, H, W, 3] uint8 each, noisy; neighbours in time follow one another.
        out: a .safetensors file; beside it go `.checkpoint.safetensors` and `.csv`.
        minutes: of training in all, earlier parts of a resumed run included.
        noise: of the clips; found by `fit_noise` unless told.
        resume: go on from the checkpoint beside `out`.
        start_from: weights of the whole network to begin with, such as an earlier adaptation's; else those of the
            denoiser whose network it is.
        device: a torch device.
        threads: of the CPU.
        sources: where the clips come from, for the record.
        weights_dir: where the denoiser's weights lie.
        on_start: told the estimated PSNR of frames held out, before the first step.
        on_report: told of progress.

    Raises:
        ValueError: the clips are too short or too small, or the weights are of another network.
        FileNotFoundError: there are no weights to begin with, or no checkpoint to resume from.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    clips = check_clips(clips, recipe.frames, DESCRIBED[recipe.network].multiple)
    source = FootageSource(recipe, clips, noise or fit_noise(clips), device)
    run = Run(recipe, source, out, minutes, device, weights_dir)
    if start_from:
        run.start_from(start_from)
    else:
        run.start_from_denoiser(DESCRIBED[recipe.network], weights_dir)
    source.hold_to = run.as_it_is()
    before = run.watch()[ESTIMATE]
    on_start(before)
    if resume:
        run.resume()
    last: Report | None = None
    for last in run.steps():
        on_report(last)
    run.finish(sources)
    assert last is not None, "a run ends with a report"
    assert last.psnr_db is not None, "and that is one of what it is watched by"
    return Adapted(source.noise, before, last.psnr_db[ESTIMATE], last.minutes, last.step)


def _divided(clips: Sequence[np.ndarray], frames: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What is learned from, and what is kept out of it: the end of every clip that is long enough for both."""
    learned, held_out = [], []
    for clip in clips:
        kept = max(frames, round(len(clip) * HELD_OUT_SHARE))
        if len(clip) >= LEAST_TO_DIVIDE * kept:
            held_out.append(clip[-kept:])
            clip = clip[:-kept]
        learned.append(clip)
    return learned, held_out or learned


def _material(clips: Sequence[np.ndarray]) -> Material:
    """The clips, and for networks of one frame each frame of them."""
    return Material(tuple(frame for clip in clips for frame in clip), tuple(clips), ())
