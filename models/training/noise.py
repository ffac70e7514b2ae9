"""Which noise a training run adds to clean material: batches on the device of the run, in torch.

Every noise is called with clean frames [N, T, 3, H, W] in [0, 1] and a seed, and gives the noisy ones and [N], the
standard deviation that a denoiser is told where it must be. Levels are drawn anew for every example, frames of one
example share theirs. `models/noise.py` has their like for measuring.
"""

import io
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models.networks.light import linear_slope, to_linear, to_srgb
from models.noise import BT601, BT709

LIGHT_PX = 32  # over which light is told from noise
SRGB_GAMMA = 2.2  # the curve of sRGB without its straight foot


class Noise(Protocol):
    def __call__(self, clean: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """[N, T, 3, H, W] clean to the same, noisy, and [N] sigma; the same for the same seed."""


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Additive white Gaussian noise.

    Levels are uniform over the range and stratified over the batch: every batch has its share of weak and of strong
    noise. Drawn freely, the mean power of a small batch would jump, and batch normalisation with it.
    """

    sigma: tuple[float, float]  # the range of levels, on the scale of the frames
    # Of the examples, at random, that are then clipped and rounded as 8-bit files are. Clipping lifts shadows and dims
    # lights: a network that has never seen it takes the shift for the picture.
    recorded_share: float = 0.0

    def __call__(self, clean: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(clean.device).manual_seed(seed)
        share = stratified(len(clean), generator)
        level = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * share
        noisy = clean + per_example(level) * torch.randn(clean.shape, generator=generator, device=clean.device)
        return recorded(noisy, self.recorded_share, generator), level


@dataclass(frozen=True, slots=True)
class Mixed:
    """Gaussian noise, and over it salt and pepper: a share of the values is 0 or 1 instead, half of them each.

    Vimeo-Mixed of Wang, Zhou, Cheng 2020, section 4.1, has sigma 25.5 and 10 %; Zhao 2016, section 3.2, names the
    mixture and no figures. Each colour of a pixel is struck by itself. What a denoiser is told is the Gaussian part.
    """

    gaussian: Gaussian
    struck: tuple[float, float]  # the range of shares of the values, uniform over the examples

    def __call__(self, clean: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        noisy, level = self.gaussian(clean, seed)
        generator = torch.Generator(clean.device).manual_seed(seed + 1)
        struck = self.struck[0] + (self.struck[1] - self.struck[0]) * stratified(len(clean), generator)
        lot = torch.rand(clean.shape, generator=generator, device=clean.device)
        noisy = noisy.masked_fill(lot < per_example(struck), 1.0)
        return noisy.masked_fill(lot < per_example(struck / 2), 0.0), level


@dataclass(frozen=True, slots=True)
class PartialPatch:
    """Another noise inside one square patch of each example; the rest stays clean.

    Zhao 2016, section 4.3, looks at pictures that are noisy in certain patches, and does not say how large these are.
    """

    within: Noise
    side: tuple[float, float]  # the range of the patch's side, as a share of the frame's shorter one

    def __call__(self, clean: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        noisy, level = self.within(clean, seed)
        draw = _Draw(len(clean), torch.Generator(clean.device).manual_seed(seed + 1))
        height, width = clean.shape[-2:]
        side = (draw.uniform(*self.side) * min(height, width)).round().clamp(min=1)
        top = (draw.uniform(0.0, 1.0) * (height - side)).round()
        left = (draw.uniform(0.0, 1.0) * (width - side)).round()
        is_row, is_column = (
            (torch.arange(length, device=clean.device) >= first[:, None])
            & (torch.arange(length, device=clean.device) < (first + side)[:, None])
            for length, first in ((height, top), (width, left))
        )
        is_inside = (is_row[:, :, None] & is_column[:, None])[:, None, None]  # [N, 1, 1, H, W]
        return torch.where(is_inside, noisy, clean), level


@dataclass(frozen=True, slots=True)
class PoissonGaussian:
    """Light counted in photons, and Gaussian noise of the electronics on top.

    A pixel x becomes P / photons + N(0, sigma^2), P of a Poisson distribution with mean x * photons: its variance is
    x / photons + sigma^2. Told is the root of that variance as a mean over the example.
    """

    photons: tuple[float, float]  # that make a white pixel; log-uniform and stratified
    sigma: tuple[float, float]  # of the Gaussian part; uniform
    recorded_share: float = 0.5  # as Gaussian's

    def __call__(self, clean: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(clean.device).manual_seed(seed)
        low, high = (math.log(count) for count in self.photons)
        photons = torch.exp(low + (high - low) * stratified(len(clean), generator))
        drawn = torch.rand(len(clean), generator=generator, device=clean.device)
        level = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * drawn
        counted = torch.poisson(clean.clamp(min=0) * per_example(photons), generator) / per_example(photons)
        noisy = counted + per_example(level) * torch.randn(clean.shape, generator=generator, device=clean.device)
        told = (clean.clamp(min=0).mean((1, 2, 3, 4)) / photons + level.square()).sqrt()
        return recorded(noisy, self.recorded_share, generator), told


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """[count] numbers in [0, 1), one in each of `count` equal steps, in random order."""
    order = torch.randperm(count, generator=generator, device=generator.device)
    return (order + torch.rand(count, generator=generator, device=generator.device)) / count


def per_example(values: Tensor) -> Tensor:
    """[N] so that it meets [N, T, 3, H, W]."""
    return values.view(-1, 1, 1, 1, 1)


def recorded(noisy: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """That share of the examples, at random, clipped to [0, 1] and rounded to 8 bits."""
    is_recorded = torch.rand(len(noisy), generator=generator, device=noisy.device) < share
    rounded = (noisy.clamp(0, 1) * 255).round() / 255
    return torch.where(per_example(is_recorded), rounded, noisy)


@dataclass(frozen=True, slots=True)
class Camera:
    """What a camera's own processing makes of the noise of its sensor; always 8-bit, most often JPEG.

    In linear light, at each site of a Bayer pattern, N(0, shot * x + read), variances as Brooks et al. 2019,
    "Unprocessing images for learned raw denoising", section 3.1, found them over many cameras: shot log-uniform,
    log read normal about a line over log shot. White balance, bilinear demosaicing and colour correction are linear, so
    the noise passes them apart from the picture; each spreads it, over colours or over neighbours. Then come, as in
    many cameras, smoothing, the sRGB curve, and a JPEG file. Differences of colour are smoothed more, most often at
    half the resolution: on PolyU's training pairs their noise is correlated by 0.85, 0.68 and 0.49 over 1, 2 and 3
    pixels, that of brightness by 0.53, 0.14 and 0.04 (`benchmarks/camera_noise.py`).
    """

    # The paper has 1e-4 to 1.2e-2: daylight has less, and smoothing takes away from the most.
    shot: tuple[float, float] = (3e-5, 2.5e-2)
    smoothed_share: float = 0.85
    jpeg_share: float = 0.7
    jpeg_quality: tuple[int, int] = (80, 99)
    jpeg_subsampled_share: float = 0.5  # of those
    coarse_share: float = 0.8  # whose differences of colour are smoothed at half the resolution
    colour_share: tuple[float, float] = (0.15, 0.8)  # deviation of these noises over that of brightness

    def __call__(self, clean: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(clean.device).manual_seed(seed)
        draw = _Draw(len(clean), generator)
        low, high = (math.log(level) for level in self.shot)
        shot = torch.exp(low + (high - low) * stratified(len(clean), generator))
        read = torch.exp(2.18 * shot.log() + 1.20 + 0.26 * draw.normal())
        light = clean.clamp(0, 1) ** SRGB_GAMMA
        balance = torch.stack([draw.uniform(1.9, 2.4), torch.ones_like(shot), draw.uniform(1.5, 1.9)], 1)
        balance = balance.view(-1, 1, 3, 1, 1)
        variance = per_example(shot) * light / balance + per_example(read)
        noise = variance.sqrt() * torch.randn(clean.shape, generator=generator, device=clean.device)
        noise = _demosaiced(noise, draw.whole(4)) * balance
        noise = torch.einsum("nij,ntjhw->ntihw", _colour_correction(draw), noise)
        is_smoothed = draw.uniform(0.0, 1.0) < self.smoothed_share
        brightness = noise.mean(2, keepdim=True)
        colour = noise - brightness
        before = _deviation(brightness)
        for _ in range(2):
            brightness = _smoothed(brightness, draw.uniform(0.1, 0.33))
        # Cameras smooth the more the stronger the noise is, so that what is left of it is of any strength.
        brightness = brightness * (before / _deviation(brightness)) ** per_example(draw.uniform(0.0, 1.0))
        is_coarse = draw.uniform(0.0, 1.0) < self.coarse_share
        shares = [draw.uniform(0.1, 0.33) for _ in range(3)]
        coarse = F.avg_pool2d(colour.flatten(0, 1), 2)[:, None]
        frames = clean.shape[1]
        for share in shares:
            coarse, colour = _smoothed(coarse, share.repeat_interleave(frames)), _smoothed(colour, share)
        coarse = F.interpolate(coarse[:, 0], size=colour.shape[3:], mode="bilinear").view_as(colour)
        smooth = torch.where(per_example(is_coarse), coarse, colour)
        smooth = smooth * (_deviation(brightness) / _deviation(smooth)) * per_example(draw.uniform(*self.colour_share))
        noise = torch.where(per_example(is_smoothed), brightness + smooth, noise)
        noisy = (light + noise).clamp(0, 1) ** (1 / SRGB_GAMMA)
        # Curve and clipping give the noise a mean. What real pairs call clean is the mean of many shots, so theirs has
        # none, and a network that is taught both ways makes photographs darker.
        for _ in range(2):  # near black, what is taken away is clipped in part
            noisy = (noisy - light_of(noisy - clean)).clamp(0, 1)
        noisy = (noisy * 255).round() / 255
        is_jpeg = (draw.uniform(0.0, 1.0) < self.jpeg_share).tolist()
        quality = draw.uniform(*self.jpeg_quality).tolist()
        is_subsampled = (draw.uniform(0.0, 1.0) < self.jpeg_subsampled_share).tolist()
        for index in range(len(clean)):
            if is_jpeg[index]:
                noisy[index] = _through_jpeg(noisy[index], round(quality[index]), subsampled=is_subsampled[index])
        return noisy, (noisy - clean).square().mean((1, 2, 3, 4)).sqrt()


@dataclass(frozen=True, slots=True)
class Subsampled:
    """White noise in a file whose colours have half the picture's resolution, as in nearly every video and most JPEGs.

    In 4:2:0 four pixels share one value of each difference of colour, and their noise of it with it: a network that
    knows noise by the pixels' not agreeing takes that for the picture. Readers scale the colours up by repetition or
    bilinearly, half of the examples each. The matrix is that of ITU-R BT.601, as in JPEG and in older video, or of
    BT.709, as in HD, whose luma has a quarter more of the noise; both at full range.
    """

    gaussian: Gaussian
    jpeg_share: float = 0.4  # of the examples; the others lose nothing more
    jpeg_quality: tuple[int, int] = (60, 99)
    hd_share: float = 0.5  # of the others

    def __call__(self, clean: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        noisy, sigma = self.gaussian(clean, seed)
        generator = torch.Generator(clean.device).manual_seed(seed + 1)
        draw = _Draw(len(clean), generator)
        is_smooth, is_jpeg = draw.uniform(0.0, 1.0) < 0.5, draw.uniform(0.0, 1.0) < self.jpeg_share
        quality = draw.uniform(*self.jpeg_quality)
        is_hd = draw.uniform(0.0, 1.0) < self.hd_share
        subsampled = torch.empty_like(noisy)
        for index, example in enumerate(noisy.clamp(0, 1)):
            if is_jpeg[index]:
                subsampled[index] = _through_jpeg(example, round(float(quality[index])), subsampled=True)
            else:
                read = "bilinear" if is_smooth[index] else "nearest"
                subsampled[index] = _subsampled(example, read, BT709 if is_hd[index] else BT601)
        return subsampled, sigma


@dataclass(frozen=True, slots=True)
class Compressed:
    """Another noise in a film that H.264 has been at: 8-bit 4:2:0, moved along, blurred and in part thrown away.

    A codec takes for motion, or for nothing, what it cannot afford to keep of noise; what is left of it is smooth,
    lies in blocks, and stays where it was for frames on end. A clip is encoded as it is. A single frame is made a clip
    that stands still or pans, its edges meeting, and one of that clip's frames is taken.
    """

    within: Noise
    crf: tuple[float, float] = (10.0, 30.0)  # x264's constant rate factor; 23 is its own choice
    presets: tuple[str, ...] = ("veryfast", "medium")
    hd_share: float = 0.5  # with colours by the matrix of BT.709; the others by that of BT.601
    frames: int = 6  # of the clip that a single frame is made
    still_share: float = 0.4
    fastest_px: int = 6  # a frame, each way

    def __call__(self, clean: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        draw = _Draw(len(clean), torch.Generator(clean.device).manual_seed(seed + 1))
        crf = draw.uniform(*self.crf).tolist()
        presets = [self.presets[which] for which in draw.whole(len(self.presets))]
        is_hd = (draw.uniform(0.0, 1.0) < self.hd_share).tolist()
        if clean.shape[1] > 1:
            noisy, sigma = self.within(clean, seed)
            return torch.stack([_through_h264(*film) for film in zip(noisy, crf, presets, is_hd, strict=True)]), sigma
        is_still = draw.uniform(0.0, 1.0) < self.still_share
        down, across = ([one - self.fastest_px for one in draw.whole(2 * self.fastest_px + 1)] for _ in range(2))
        paths = [
            [(0, 0) if still else (y * t, x * t) for t in range(self.frames)]
            for still, y, x in zip(is_still.tolist(), down, across, strict=True)
        ]
        panned = [
            torch.stack([one[0].roll(step, (-2, -1)) for step in path]) for one, path in zip(clean, paths, strict=True)
        ]
        noisy, sigma = self.within(torch.stack(panned), seed)
        taken = draw.whole(self.frames)
        kept = [
            _through_h264(*film)[t].roll((-path[t][0], -path[t][1]), (-2, -1))
            for *film, path, t in zip(noisy, crf, presets, is_hd, paths, taken, strict=True)
        ]
        return torch.stack(kept)[:, None], sigma


@dataclass(frozen=True, slots=True)
class SignalDependent:
    """Noise of a sensor: in linear light and of variance `shot * q + read ** 2`, where q is what the pixel holds there.

    Source: Xu, Li, Sun 2019, "Learning deformable kernels for image and video denoising", section 4. They say that both
    numbers are drawn at random, not how; as their ranges span decades, here by their logarithms.
    """

    shot: tuple[float, float] = (1e-4, 1e-2)  # sigma_s
    read: tuple[float, float] = (1e-3, 10**-1.5)  # sigma_r
    recorded_share: float = 0.0  # as of `Gaussian`
    # A denoiser is told the deviation of every pixel of the middle frame, [N, 3, H, W], by the value that noise has
    # given it, as in the paper; else one number, of all that noise has changed. On the encoded scale, as `sigma` is.
    per_pixel: bool = False

    def __call__(self, clean: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(clean.device).manual_seed(seed)
        shot, read = (
            per_example(torch.exp(math.log(low) + math.log(high / low) * stratified(len(clean), generator)))
            for low, high in (self.shot, self.read)
        )
        linear = to_linear(clean)
        deviation = (shot * linear + read.square()).sqrt()
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        noisy = recorded(to_srgb(linear + deviation * noise), self.recorded_share, generator)
        if not self.per_pixel:
            return noisy, (noisy - clean).square().mean((1, 2, 3, 4)).sqrt()
        reference = noisy[:, noisy.shape[1] // 2]
        variance = shot[:, 0] * to_linear(reference).clamp(min=0) + read[:, 0].square()
        return noisy, variance.sqrt() / linear_slope(reference.clamp(0, 1))


LOW = SignalDependent((2.5e-3, 2.5e-3), (1e-2, 1e-2))  # Table 2
HIGH = SignalDependent((6.4e-3, 6.4e-3), (2e-2, 2e-2))


@dataclass(frozen=True, slots=True)
class Either:
    """Each example has one of several kinds of noise, in these shares."""

    kinds: tuple[tuple[Noise, float], ...]

    def __call__(self, clean: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        noisy, sigma = [], []
        first, share = 0, 0.0
        for index, (noise, of_all) in enumerate(self.kinds):
            share += of_all
            last = len(clean) if index == len(self.kinds) - 1 else round(share * len(clean))
            if last > first:
                some = noise(clean[first:last], seed + index)
                noisy.append(some[0])
                sigma.append(some[1])
            first = last
        return torch.cat(noisy), torch.cat(sigma)


class _Draw:
    """A number for every example of a batch."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._count, self._generator = count, generator

    def uniform(self, low: float, high: float) -> Tensor:
        share = torch.rand(self._count, generator=self._generator, device=self._generator.device)
        return low + (high - low) * share

    def normal(self) -> Tensor:
        return torch.randn(self._count, generator=self._generator, device=self._generator.device)

    def whole(self, below: int) -> list[int]:
        drawn = torch.randint(below, (self._count,), generator=self._generator, device=self._generator.device)
        return [int(one) for one in drawn]


def _subsampled(frames: Tensor, mode: str, matrix: NDArray[np.float64]) -> Tensor:
    """[T, 3, H, W] RGB, H and W even, to what is left of it in 8 bits of 4:2:0."""
    to_rgb = torch.linalg.inv(to_ycc := frames.new_tensor(matrix))
    stored = torch.einsum("ij,tjhw->tihw", to_ycc, frames)
    luma, colours = stored[:, :1], stored[:, 1:]
    colours = (F.avg_pool2d(colours, 2) * 255).round() / 255
    colours = F.interpolate(colours, scale_factor=2.0, mode=mode)
    both = torch.cat([(luma * 255).round() / 255, colours], 1)
    return (torch.einsum("ij,tjhw->tihw", to_rgb, both).clamp(0, 1) * 255).round() / 255


def _demosaiced(noise: Tensor, phases: list[int]) -> Tensor:
    """Noise of every site to what bilinear interpolation makes of it: of each colour only its own sites count."""
    height, width = noise.shape[-2:]
    sites = noise.new_zeros(4, 3, height, width)  # by where the pattern begins
    for phase in range(4):
        down, across = divmod(phase, 2)
        sites[phase, 0, down::2, across::2] = 1  # red
        sites[phase, 2, 1 - down :: 2, 1 - across :: 2] = 1  # blue, diagonally opposite
        sites[phase, 1] = 1 - sites[phase, 0] - sites[phase, 2]
    of_own = noise * sites[phases][:, None]
    cross = noise.new_tensor([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
    square = noise.new_tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
    taps = torch.stack([square, cross, square])[:, None]
    return F.conv2d(F.pad(of_own.flatten(0, 1), (1, 1, 1, 1), "reflect"), taps, groups=3).view_as(noise)


def _colour_correction(draw: _Draw) -> Tensor:
    """[N, 3, 3] from camera to sRGB: rows sum to one, so that grey stays grey; what is mixed in is taken off."""
    mixed = [draw.uniform(-0.4, 0.0) for _ in range(6)]
    rows = []
    for row in range(3):
        first, second = mixed[2 * row], mixed[2 * row + 1]
        entries = [first, second]
        entries.insert(row, 1 - first - second)
        rows.append(torch.stack(entries, 1))
    return torch.stack(rows, 1)


def light_of(noise: Tensor) -> Tensor:
    """Its means over some 32 pixels each way, running smoothly into each other: [N, T, 3, H, W] to the same."""
    height, width = noise.shape[3:]
    coarse = max(1, height // LIGHT_PX), max(1, width // LIGHT_PX)
    means = F.interpolate(noise.flatten(0, 1), size=coarse, mode="area")
    return F.interpolate(means, size=(height, width), mode="bilinear").view_as(noise)


def _deviation(noise: Tensor) -> Tensor:
    """Of each example, the frames of a clip together."""
    return noise.square().mean((1, 2, 3, 4), keepdim=True).sqrt().clamp(min=1e-6)


def _smoothed(noise: Tensor, share: Tensor) -> Tensor:
    """Each pixel gives that share of itself to each neighbour, across and then down."""
    part = per_example(share)
    for axis in (-1, -2):
        noise = (1 - 2 * part) * noise + part * (noise.roll(1, axis) + noise.roll(-1, axis))
    return noise


def _through_jpeg(frames: Tensor, quality: int, *, subsampled: bool = False) -> Tensor:
    """[T, 3, H, W] as a JPEG file of 4:4:4 gives them back, which better cameras write; or as one of 4:2:0 does."""
    kept = []
    for frame in (frames.movedim(1, -1).cpu() * 255).round().to(torch.uint8).numpy():
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality, subsampling=2 if subsampled else 0)
        kept.append(torch.from_numpy(np.asarray(Image.open(file)).copy()))
    return (torch.stack(kept).movedim(-1, 1) / 255).to(frames)


def _through_h264(frames: Tensor, crf: float, preset: str, is_hd: bool) -> Tensor:
    """[T, 3, H, W], H and W even, as a film of that rate factor gives them back."""
    from models.film import through_h264  # PyAV; the other recipes do without

    pixels = (frames.clamp(0, 1).movedim(1, -1).cpu() * 255).round().to(torch.uint8).numpy()
    return (torch.from_numpy(through_h264(pixels, crf, preset, is_hd=is_hd)).movedim(-1, 1) / 255).to(frames)
