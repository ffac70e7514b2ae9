"""What each denoiser gains and costs, beside what a user would reach for: OpenCV's NLM and BM3D.

Gaussian noise, clipped and rounded to 8 bits as an upload is. NLM is shown at three strengths, BM3D is told the true
level; our networks are blind. What `auto` takes is shown as a self-ensemble too. Times are medians of interleaved
rounds. BM3D is run where the package `bm3d` is installed; its licence forbids commercial use, so nothing here depends
on it.

    python benchmarks/denoisers.py [--data FOLDER] [--sigma 25] [--rounds 3]
"""

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from support import median

from models.catalogue import CATALOGUE, find
from models.quality import psnr_db
from models.samples import PORTRAIT
from service.demo import Image
from service.job import ENSEMBLES
from service.pipeline.shelf import Shelf
from service.settings import Settings

NLM_STRENGTHS = (0.6, 0.8, 1.0)  # of sigma


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of clean pictures; without it, the sample portrait")
    parser.add_argument("--sigma", type=float, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    paths = [PORTRAIT]
    if arguments.data:
        paths = [path for path in sorted(arguments.data.iterdir()) if path.suffix.lower() in {".png", ".jpg", ".jpeg"}]
    clean = [np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.uint8) for path in paths]
    noisy = [_with_noise(picture, arguments.sigma, seed) for seed, picture in enumerate(clean)]
    megapixels = sum(picture.shape[0] * picture.shape[1] for picture in clean) / 1e6
    before = float(np.mean([psnr_db(n, c) for n, c in zip(noisy, clean, strict=True)]))

    shelf = Shelf(Settings())
    methods: dict[str, Callable[[Image], Image]] = {}
    for spec in CATALOGUE.values():
        if spec.kind == "image":
            methods[spec.name] = _network(shelf, spec.name)
    auto = find("auto", "image").name
    for ensemble in ENSEMBLES[1:]:
        methods[f"{auto} x{ensemble}"] = _network(shelf, auto, ensemble)
    for share in NLM_STRENGTHS:
        methods[f"OpenCV NLM, h {share:g} sigma"] = _nlm(share * arguments.sigma)
    if find_spec("bm3d") is not None:
        methods["BM3D, told sigma"] = _bm3d(arguments.sigma)

    else:
        print("BM3D: not run; it needs: pip install bm3d (its licence forbids commercial use)")

    times: dict[str, list[float]] = {name: [] for name in methods}
    after: dict[str, float] = {}
    for round_ in range(arguments.rounds):
        for name, method in methods.items():
            if round_ and name.startswith("BM3D"):
                continue  # a minute a megapixel: once is enough
            started = time.perf_counter()
            restored = [method(picture) for picture in noisy]
            times[name].append(time.perf_counter() - started)
            after[name] = float(np.mean([psnr_db(r, c) for r, c in zip(restored, clean, strict=True)]))

    base = median(times["fitvnet-spatial"])
    print(f"{len(clean)} pictures, {megapixels:.2f} megapixels, sigma {arguments.sigma:g}, noisy {before:.2f} dB")
    print(f"{'':>24}  PSNR dB    gain  ms/megapixel  time of fitvnet-spatial")
    for name in sorted(after, key=lambda one: -after[one]):
        took = median(times[name])
        gain = after[name] - before
        print(f"{name:>24}  {after[name]:7.2f}  {gain:6.2f}  {1000 * took / megapixels:12.0f}  {took / base:11.2f}x")


def _with_noise(clean: Image, sigma: float, seed: int) -> Image:
    noise = np.random.default_rng(seed).standard_normal(clean.shape)
    return np.clip(np.rint(clean + sigma * noise), 0, 255).astype(np.uint8)


def _network(shelf: Shelf, name: str, ensemble: int = 1) -> Callable[[Image], Image]:
    denoiser = shelf.denoiser(name).of(ensemble)
    denoiser.restore_picture(np.zeros((64, 64, 3), np.uint8))
    return lambda noisy: denoiser.restore_picture(noisy)


def _nlm(strength: float) -> Callable[[Image], Image]:
    def denoise(noisy: Image) -> Image:
        return np.asarray(cv2.fastNlMeansDenoisingColored(noisy, None, strength, strength, 7, 21), np.uint8)

    return denoise


def _bm3d(sigma: float) -> Callable[[Image], Image]:
    from bm3d import bm3d_rgb

    def denoise(noisy: Image) -> Image:
        restored: NDArray[np.float64] = bm3d_rgb(noisy / 255.0, sigma / 255)
        return np.clip(np.rint(restored * 255), 0, 255).astype(np.uint8)

    return denoise


if __name__ == "__main__":
    main()
