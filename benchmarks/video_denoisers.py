"""What each denoiser of video gains and costs, and what those of images do frame by frame.

Gaussian noise, clipped and rounded to 8 bits. PSNR is over all frames of the clips, those at their ends included.
Times are medians of interleaved rounds; each denoiser is warm. OpenCV's NLM of frame sequences is what a user would
reach for.

    python benchmarks/video_denoisers.py [--data FOLDER...] [--frames 8] [--sigma 25] [--rounds 3] [--only NAME,NAME]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from support import median

from models.catalogue import CATALOGUE, find
from models.quality import psnr_db
from service.adaptation import read_footage
from service.demo import Image, moving_clip, read_photo
from service.pipeline.denoiser import Denoiser, to_planes
from service.pipeline.shelf import Shelf
from service.settings import Settings

FRAME_BY_FRAME = ("fitvnet-spatial.camera", "unet.fast")  # of those for images
NLM_WINDOW = 3  # frames: with five it takes twice as long


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", help="folders of clean frames; without, the demo's clip")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--sigma", type=float, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="denoisers, a comma between; without, all of video and some of images")
    arguments = parser.parse_args()

    settings = Settings()
    clips: list[list[Image]] = [moving_clip(read_photo())]
    if arguments.data:
        clips = [list(clip) for clip in read_footage(arguments.data, settings)]
    clips = [clip[: arguments.frames] for clip in clips]
    noisy = [_with_noise(clip, arguments.sigma, seed) for seed, clip in enumerate(clips)]
    megapixels = sum(frame.shape[0] * frame.shape[1] for clip in clips for frame in clip) / 1e6

    names = [spec.name for spec in CATALOGUE.values() if spec.kind == "video"] + list(FRAME_BY_FRAME)
    if arguments.only:
        names = [find(name).name for name in arguments.only.split(",")]
    shelf = Shelf(settings)
    methods = {name: _network(shelf.denoiser(name)) for name in names}
    methods["OpenCV NLM of 3 frames"] = _nlm(0.8 * arguments.sigma)

    times: dict[str, list[float]] = {name: [] for name in methods}
    after: dict[str, float] = {}
    for round_ in range(arguments.rounds):
        for name, method in methods.items():
            if round_ == 0:
                method(noisy[0])  # engines are compiled for a size when they first see it
            started = time.perf_counter()
            restored = [method(clip) for clip in noisy]
            times[name].append(time.perf_counter() - started)
            after[name] = _psnr_db(restored, clips)

    before = _psnr_db(noisy, clips)
    auto = find("auto", "video").name
    base = median(times[auto]) if auto in times else None
    print(f"{len(clips)} clips, {megapixels:.2f} megapixels, sigma {arguments.sigma:g}, noisy {before:.2f} dB")
    print(f"{'':>24}  PSNR dB    gain  ms/megapixel  time of {auto}")
    for name in sorted(after, key=lambda one: -after[one]):
        took = median(times[name])
        ratio = f"{took / base:11.2f}x" if base else ""
        print(f"{name:>24}  {after[name]:7.2f}  {after[name] - before:6.2f}  {1000 * took / megapixels:12.0f}  {ratio}")


def _with_noise(clip: list[Image], sigma: float, seed: int) -> list[Image]:
    random = np.random.default_rng(seed)
    made = (clean + sigma * random.standard_normal(clean.shape) for clean in clip)
    return [np.clip(np.rint(frame), 0, 255).astype(np.uint8) for frame in made]


def _psnr_db(made: list[list[Image]], clean: list[list[Image]]) -> float:
    """The mean over frames, then clips."""
    clips = zip(made, clean, strict=True)
    return float(np.mean([np.mean([psnr_db(*pair) for pair in zip(*both, strict=True)]) for both in clips]))


def _network(denoiser: Denoiser) -> Callable[[list[Image]], list[Image]]:
    def denoise(clip: list[Image]) -> list[Image]:
        restored = denoiser.restore_frames(to_planes(frame) for frame in clip)
        return [np.rint(255 * frame.clip(0, 1)).astype(np.uint8).transpose(1, 2, 0) for frame in restored]

    return denoise


def _nlm(strength: float) -> Callable[[list[Image]], list[Image]]:
    reach = NLM_WINDOW // 2

    def denoise(clip: list[Image]) -> list[Image]:
        # It wants whole windows: at its ends a clip goes on mirrored.
        longer = [clip[1], *clip, clip[-2]]
        middles = range(reach, reach + len(clip))
        restore = cv2.fastNlMeansDenoisingColoredMulti
        return [np.asarray(restore(longer, middle, NLM_WINDOW, None, strength, strength)) for middle in middles]

    return denoise


if __name__ == "__main__":
    main()
