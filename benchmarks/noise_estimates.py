"""How near the estimates come: of the noise level, and of the PSNR that a result has.

Known noise is added to clean test pictures, clipped and rounded to 8 bits as in a file. Then the level is estimated
from the noisy picture alone, and the PSNR of what a denoiser makes of it from that and the denoiser. Errors are shown
as means, medians and 90 % quantiles.

    python benchmarks/noise_estimates.py FOLDER... [--models fitvnet-spatial,dncnn] [--sigma 5,15] [--every 4]
    python benchmarks/noise_estimates.py FOLDER... --video fitvnet        (folders of folders of frames)
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.noise_level import measure_noise
from models.quality import psnr_db
from models.quality_estimate import Evidence
from service.job import Options
from service.pipeline.denoiser import Denoiser, to_pixels, to_planes
from service.pipeline.probing import probe_picture
from service.pipeline.sampling import Sampler
from service.pipeline.shelf import Shelf
from service.settings import Settings

Picture = NDArray[np.uint8]  # [H, W, 3]
_FRAMES = 20  # of a clip
SUFFIXES = {".png", ".jpg", ".jpeg"}
SIGNAL_DEPENDENT = {"gain 0.01, read 10": (10 / 255, 0.01), "gain 0.02, read 3": (3 / 255, 0.02)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--models", default="", help="denoisers of images whose PSNR is estimated")
    parser.add_argument("--video", default="", help="a denoiser of video whose PSNR is estimated")
    parser.add_argument("--sigma", default="5,10,15,25,35,50,60")
    parser.add_argument("--every", type=int, default=1, help="take every n-th picture")
    parser.add_argument("--strength", type=float, default=1.0)
    arguments = parser.parse_args()
    levels = [float(level) for level in arguments.sigma.split(",")]

    for folder in arguments.folders:
        if arguments.video:
            _show_video(folder, arguments.video, levels)
            continue
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)[:: arguments.every]
        clean = [np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.uint8) for path in paths]
        if not arguments.models:
            _show_levels(folder.name, clean, levels)
        for name in filter(None, arguments.models.split(",")):
            _show_psnr(folder.name, clean, levels, Shelf(Settings()).denoiser(name), arguments.strength)


def _show_levels(name: str, clean: Sequence[Picture], levels: Sequence[float]) -> None:
    print(f"\n{name}, {len(clean)} pictures: relative error of sigma, each colour by itself")
    print(f"{'noise':>20}  {'mean':>7} {'mean |e|':>8} {'median':>7} {'90 %':>7} {'most':>7}   at 0.2  at 0.8  ms")
    noises = {f"sigma {level:g}": (level / 255, 0.0) for level in levels} | SIGNAL_DEPENDENT
    for noise, (read, gain) in noises.items():
        errors, dark, bright, took = [], [], [], []
        for seed, picture in enumerate(clean):
            grey = bool((picture[..., 0] == picture[..., 1]).all())
            x = to_planes(picture)[: 1 if grey else 3]
            deviation = np.sqrt(read**2 + gain * x)
            noisy = _stored(x + deviation * np.random.default_rng(seed).standard_normal(x.shape))
            started = time.process_time()
            found = measure_noise(noisy)
            took.append(time.process_time() - started)
            errors += list(np.array(found.sigma) / np.sqrt((deviation**2).mean((1, 2))) - 1)
            ends = found.variance_at(np.broadcast_to(np.array([0.2, 0.8], np.float32), (len(x), 2)))
            dark += list(np.sqrt(ends[:, 0] / (read**2 + gain * 0.2)) - 1)
            bright += list(np.sqrt(ends[:, 1] / (read**2 + gain * 0.8)) - 1)
        absolute = np.abs(errors)
        row = [np.mean(errors), absolute.mean(), np.median(absolute), np.quantile(absolute, 0.9), absolute.max()]
        shown = " ".join(f"{100 * value:6.1f}%" for value in row)
        ends_shown = "  ".join(f"{100 * np.median(np.abs(end)):5.1f}%" for end in (dark, bright))
        print(f"{noise:>20}  {shown}   {ends_shown}  {1000 * np.median(took):.0f}", flush=True)


def _show_psnr(
    name: str, clean: Sequence[Picture], levels: Sequence[float], denoiser: Denoiser, strength: float
) -> None:
    print(f"\n{name}, {len(clean)} pictures, {denoiser.spec.name}, strength {strength:g}: estimated less true PSNR, dB")
    _head()
    for level in levels:
        errors, told = [], []
        plain_s = probed_s = 0.0
        for seed, picture in enumerate(clean):
            noisy = _noisy(picture, level, seed)
            started = time.process_time()
            restored = denoiser.restore_picture(noisy, strength=strength)
            plain_s += time.process_time() - started
            started = time.process_time()
            noise = measure_noise(noisy.transpose(2, 0, 1))
            found = probe_picture(denoiser, noisy, noise).psnr_db(strength)
            probed_s += time.process_time() - started
            assert found
            errors.append(found[0] - psnr_db(restored, picture))
            told.append(found[1])
        _row(level, errors, told, probed_s / plain_s)


def _show_video(folder: Path, name: str, levels: Sequence[float]) -> None:
    """Whole clips, looked at as a video job does where an estimate is asked for."""
    denoiser = Shelf(Settings()).denoiser(name)
    clips = [sorted(path for path in clip.iterdir() if path.suffix in SUFFIXES) for clip in sorted(folder.iterdir())]
    clips = [clip[:_FRAMES] for clip in clips if len(clip) >= 3 * denoiser.spec.frames]
    print(f"\n{folder.name}, {len(clips)} clips of {_FRAMES} frames, {name}: estimated less true PSNR, dB")
    _head()
    for level in levels:
        errors, told = [], []
        for number, clip in enumerate(clips):
            clean = [np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.uint8) for path in clip]
            planes = [to_planes(_noisy(frame, level, 100 * number + index)) for index, frame in enumerate(clean)]
            sampler = Sampler(denoiser, Options(estimate=True), None, None)
            for index, frame in enumerate(planes):
                sampler.watch(index, frame)
            restored = denoiser.restore_frames(planes)
            eight_bits = (to_pixels(frame, np.dtype(np.uint8), np.float32(255)) for frame in restored)
            true = [psnr_db(frame, against) for frame, against in zip(eight_bits, clean, strict=True)]
            found = Evidence(**sampler.sampled().evidence).psnr_db()
            assert found
            errors.append(found[0] - float(np.mean(true)))
            told.append(found[1])
        _row(level, errors, told, math.nan)


def _head() -> None:
    print(
        f"{'sigma':>6}  {'mean':>6} {'mean |e|':>8} {'median':>6} {'90 %':>6} {'most':>6}  bar  inside  inside 2   time"
    )


def _row(level: float, errors: Sequence[float], told: Sequence[float], cost: float) -> None:
    absolute, bars = np.abs(errors), np.array(told)
    print(
        f"{level:6g}  {np.mean(errors):+6.2f} {absolute.mean():8.2f} {np.median(absolute):6.2f} "
        f"{np.quantile(absolute, 0.9):6.2f} {absolute.max():6.2f} {bars.mean():5.2f}   {(absolute < bars).mean():4.0%} "
        f"{(absolute < 2 * bars).mean():9.0%}  {cost:5.2f}",
        flush=True,
    )


def _noisy(picture: Picture, level: float, seed: int) -> Picture:
    return np.asarray(_stored(picture / 255 + level / 255 * np.random.default_rng(seed).standard_normal(picture.shape)))


def _stored(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


if __name__ == "__main__":
    main()
