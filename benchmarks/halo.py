"""How far a pixel sees: the largest difference that cutting a frame makes, by the distance from the cut.

Each stage runs on whole frames and on frames cut at a multiple of its stride, in float32 by torch, at noise levels 5,
25 and 50. The catalogue's `halo_px` is where the difference has become small against half an 8-bit step.

    python benchmarks/halo.py [--picture FILE]
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from models.catalogue import CATALOGUE
from models.noise import add_gaussian
from service.demo import PHOTO
from service.pipeline.denoiser import to_planes
from service.pipeline.shelf import Shelf
from service.settings import Settings
from trtbuild.engine import Array, Engine

DISTANCES_PX = (0, 8, 16, 24, 32, 48, 64, 80, 96)
LEVELS = (5, 25, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, default=PHOTO, help="at least 480 pixels wide")
    arguments = parser.parse_args()
    pixels = np.asarray(cv2.imread(str(arguments.picture), cv2.IMREAD_COLOR_RGB), np.uint8)
    height, width = (side // 16 * 16 for side in pixels.shape[:2])
    clean = to_planes(pixels[:height, :width])

    shelf = Shelf(Settings(backend="torch"))
    worst: dict[str, dict[int, float]] = {}
    for level in LEVELS:
        frames = [add_gaussian(clean, level / 255, seed=100 * level + t) for t in range(5)]
        for spec in CATALOGUE.values():
            inputs = frames
            for stage, engine in zip(spec.stages, shelf.denoiser(spec.name).engines, strict=True):
                windows = [np.concatenate(inputs[t : t + stage.frames]) for t in range(len(inputs) - stage.frames + 1)]
                figures = worst.setdefault(stage.name, dict.fromkeys(DISTANCES_PX, 0.0))
                for distance, difference in _beside_a_cut(engine, windows[0]).items():
                    figures[distance] = max(figures[distance], difference)
                inputs = [_run(engine, window) for window in windows]

    print("largest difference in 8-bit steps, at least so many pixels from the cut")
    print(f"{'':>16}" + "".join(f"{distance:>9}" for distance in DISTANCES_PX))
    for name, figures in worst.items():
        print(f"{name:>16}" + "".join(f"{figures[distance]:9.4f}" for distance in DISTANCES_PX))


def _beside_a_cut(engine: Engine, window: Array) -> dict[int, float]:
    cut = window.shape[2] // 2 // 16 * 16
    whole = _run(engine, window)[:3, :, cut:]
    difference = np.abs(whole - _run(engine, window[:, :, cut:])[:3]).max((0, 1)) * 255
    return {distance: float(difference[distance:].max()) for distance in DISTANCES_PX}


def _run(engine: Engine, window: Array) -> Array:
    restored: Array = engine.denoise(np.ascontiguousarray(window)[None], np.zeros(1, np.float32))[0]
    return restored


if __name__ == "__main__":
    main()
