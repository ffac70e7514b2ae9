"""How far a pixel sees: the largest difference that cutting a frame makes, by the distance from the cut.

Each stage runs on whole frames and on frames cut at a multiple of its stride, in float32 by torch, at noise levels 5,
25 and 50. The catalogue's `halo_px` is where the difference has become small against half an 8-bit step.

    python benchmarks/halo.py [MODEL...] [--picture FILE]
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from models.catalogue import CATALOGUE
from models.noise import add_gaussian
from models.samples import PORTRAIT
from service.pipeline.denoiser import to_planes
from service.pipeline.shelf import Shelf
from service.settings import Settings
from trtbuild.engine import Array, Engine

DISTANCES_PX = (0, 8, 16, 24, 32, 48, 64, 80, 96)
LEVELS = (5, 25, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=[name for name, spec in CATALOGUE.items() if spec.weights])
    parser.add_argument("--picture", type=Path, default=PORTRAIT, help="at least 480 pixels wide")
    arguments = parser.parse_args()
    pixels = np.asarray(cv2.imread(str(arguments.picture), cv2.IMREAD_COLOR_RGB), np.uint8)

    shelf = Shelf(Settings(backend="torch"))
    worst: dict[str, dict[int, float]] = {}
    for level in LEVELS:
        for spec in (CATALOGUE[name] for name in arguments.models):
            height, width = (side // spec.multiple * spec.multiple for side in pixels.shape[:2])
            clean = to_planes(pixels[:height, :width])
            inputs = [add_gaussian(clean, level / 255, seed=100 * level + t) for t in range(spec.frames)]
            for stage, engine in zip(spec.stages, shelf.denoiser(spec.name).engines, strict=True):
                windows = [np.concatenate(inputs[t : t + stage.frames]) for t in range(len(inputs) - stage.frames + 1)]
                figures = worst.setdefault(stage.name, dict.fromkeys(DISTANCES_PX, 0.0))
                cuts = _beside_a_cut(engine, windows[0], level / 255, spec.multiple)
                for distance, difference in cuts.items():
                    figures[distance] = max(figures[distance], difference)
                inputs = [_run(engine, window, level / 255) for window in windows]

    print("largest difference in 8-bit steps, at least so many pixels from the cut")
    print(f"{'':>16}" + "".join(f"{distance:>9}" for distance in DISTANCES_PX))
    for name, figures in worst.items():
        print(f"{name:>16}" + "".join(f"{figures[distance]:9.4f}" for distance in DISTANCES_PX))


def _beside_a_cut(engine: Engine, window: Array, sigma: float, multiple: int) -> dict[int, float]:
    cut = window.shape[2] // 2 // multiple * multiple
    whole = _run(engine, window, sigma)[:3, :, cut:]
    difference = np.abs(whole - _run(engine, window[:, :, cut:], sigma)[:3]).max((0, 1)) * 255
    return {distance: float(difference[distance:].max()) for distance in DISTANCES_PX}


def _run(engine: Engine, window: Array, sigma: float) -> Array:
    restored: Array = engine.denoise(np.ascontiguousarray(window)[None], np.array([sigma], np.float32))[0]
    return restored


if __name__ == "__main__":
    main()
