"""How much is the camera noise that networks are taught on like the noise of cameras?

Of pairs of photographs, taken noisy and averaged of many, and of photographs with `Camera` noise: the deviation, and
how values of the noise are correlated over 1, 2, 3 and 5 pixels, for brightness (the mean of red, green and blue) and
for what each colour has besides. What changes over more than some 20 pixels is taken away first: that is light.

    python benchmarks/camera_noise.py PHOTOGRAPHS --pairs FOLDER     (names of pairs end in _real and _mean)
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from models.training.material import CLEAN_MARK, NOISY_MARK
from models.training.noise import Camera

LAGS_PX = 1, 2, 3, 5
LIGHT_PX = 6  # deviation of the Gaussian window
SIDE_PX = 192
DRAWS = 4  # of noise, a photograph
SUFFIXES = {".png", ".jpg", ".jpeg"}

Noise = NDArray[np.float32]  # [H, W, 3] on the 8-bit scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every n-th picture")
    arguments = parser.parse_args()
    print(f"{'':28}pictures  sigma  colour/brightness  red~green   brightness over 1 2 3 5    colour over 1 2 3 5")
    if arguments.pairs:
        _show(f"pairs of {arguments.pairs.name}", [figures(one) for one in _of_pairs(arguments.pairs, arguments.every)])
    made = [figures(one) for one in _of_model(arguments.photographs, arguments.every)]
    for low, high in ((1, 3), (3, 6), (6, 10), (10, 20)):
        _show(f"model, sigma {low} to {high}", [one for one in made if low <= one[0] < high])


def figures(noise: Noise) -> list[float]:
    """Sigma, colour over brightness, red with green, and both correlations at each lag."""
    noise = noise - cv2.GaussianBlur(noise, (0, 0), LIGHT_PX)
    brightness = noise.mean(2, keepdims=True)
    colour = noise - brightness
    red_green = float(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1])
    over = [_correlation(part, lag) for part in (brightness, colour) for lag in LAGS_PX]
    return [float(noise.std()), float(colour.std() / brightness.std()), red_green, *over]


def _correlation(part: Noise, lag: int) -> float:
    across, down = (part[:, lag:] * part[:, :-lag]).mean(), (part[lag:] * part[:-lag]).mean()
    return float((across + down) / 2 / np.square(part).mean())


def _of_pairs(folder: Path, every: int) -> Iterator[Noise]:
    for path in sorted(path for path in folder.iterdir() if NOISY_MARK in path.stem)[::every]:
        yield _read(path) - _read(path.with_name(path.name.replace(NOISY_MARK, CLEAN_MARK)))


def _of_model(folder: Path, every: int) -> Iterator[Noise]:
    for seed, path in enumerate(sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)[::every]):
        picture = _read(path)
        top, left = ((side - SIDE_PX) // 2 for side in picture.shape[:2])
        clean = torch.from_numpy(picture[top : top + SIDE_PX, left : left + SIDE_PX].transpose(2, 0, 1) / 255)
        many = clean[None, None].repeat(DRAWS, 1, 1, 1, 1)
        for one in (Camera()(many, seed)[0] - many)[:, 0]:
            yield 255 * one.numpy().transpose(1, 2, 0)


def _read(path: Path) -> Noise:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.float32)


def _show(what: str, rows: Sequence[Sequence[float]]) -> None:
    if rows:
        sigma, share, red_green, *over = np.mean(rows, axis=0)
        brightness, colour = (" ".join(f"{one:5.2f}" for one in part) for part in (over[:4], over[4:]))
        print(f"{what:28}{len(rows):8} {sigma:6.1f} {share:18.2f} {red_green:10.2f}   {brightness:>23}   {colour:>23}")


if __name__ == "__main__":
    main()
