"""What adapting to noisy footage gains, on footage whose clean frames are known to this script alone.

A clean clip is made dark and noisy as a camera does that counts photons: less light falls in, so many photons make what
would be a white pixel, the electronics blur the count, and the frames are clipped and rounded to 8 bits. FITVNet is
adapted to the noisy frames as `quietframe train fitvnet --unsupervised` does, and PSNR against the clean ones is
measured before and after. The camera is one by lamp light unless told: its white balance amplifies red twice and blue
six times as much as green.

    python benchmarks/adapting.py --clean CLIP [--others CLIP] [--minutes 10] [--light 0.6] [--photons 50 100 16.7]

A CLIP is a video or a folder of frames. Clips named with `--others` get the same noise and are measured, but nothing is
learned from them.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.quality import psnr_db
from service.adaptation import Wish, adapt_to_footage, read_footage
from service.pipeline.denoiser import to_planes
from service.pipeline.shelf import Shelf
from service.settings import Settings

Frame = NDArray[np.float32] | NDArray[np.uint8]  # [H, W, 3]

NAME = "night"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clean", type=Path, action="append", required=True, help="a video or a folder of frames")
    parser.add_argument("--others", type=Path, action="append", default=[], help="clips to measure and not to learn")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--frames", type=int, default=40, help="of each clip, to learn from")
    parser.add_argument("--measured", type=int, default=12, help="of each clip, to measure on")
    parser.add_argument("--light", type=float, default=0.6, help="share of it that falls in")
    parser.add_argument("--photons", type=float, nargs=3, default=(50, 100, 16.7), help="of red, green and blue")
    parser.add_argument("--electronics", type=float, default=1.2, help="deviation of their noise, in photons")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        settings = Settings(data_dir=work / "data", threads=arguments.threads)
        pairs = {
            path: _recorded(_first_frames(path, arguments.frames, settings), arguments, seed)
            for seed, path in enumerate([*arguments.clean, *arguments.others])
        }
        footage = work / "footage"
        for path in arguments.clean:
            _write(footage / path.stem, pairs[path][1])
        wish = Wish(recipe="fitvnet", data=[footage], name=NAME, minutes=arguments.minutes, threads=arguments.threads)
        adapt_to_footage(wish, settings, lambda line: print(line, flush=True))

        shelf = Shelf(settings)
        print("| clip | noisy | fitvnet | adapted |\n| --- | --- | --- | --- |")
        for path, (clean, noisy) in pairs.items():
            clean, noisy = clean[: arguments.measured], noisy[: arguments.measured]
            figures = [_psnr_db(noisy, clean)]
            for model in ("fitvnet", NAME):
                frames = shelf.denoiser(model).restore_frames([to_planes(frame) for frame in noisy])
                restored = [frame.clip(0, 1).transpose(1, 2, 0) for frame in frames]
                figures.append(_psnr_db(restored, clean))
            seen = "" if path in arguments.clean else " (not seen)"
            print(f"| {path.stem}{seen} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |", flush=True)


def _first_frames(path: Path, count: int, settings: Settings) -> NDArray[np.uint8]:
    return read_footage([path], settings)[0][:count]


def _recorded(frames: NDArray[np.uint8], camera: argparse.Namespace, seed: int) -> tuple[list[Frame], list[Frame]]:
    """Clean and noisy frames as that camera gives them."""
    rng = np.random.default_rng(seed)
    photons = np.array(camera.photons, np.float32)
    clean: list[Frame] = [frame.astype(np.float32) / 255 * np.float32(camera.light) for frame in frames]
    noisy: list[Frame] = []
    for frame in clean:
        counted = (rng.poisson(frame * photons) + rng.normal(0, camera.electronics, frame.shape)) / photons
        noisy.append((counted.clip(0, 1) * 255).round().astype(np.uint8))
    return clean, noisy


def _write(folder: Path, frames: Sequence[Frame]) -> None:
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{number:04d}.png"), frame[..., ::-1])


def _psnr_db(frames: Sequence[Frame], clean: Sequence[Frame]) -> float:
    return float(np.mean([psnr_db(one, other) for one, other in zip(frames, clean, strict=True)]))


if __name__ == "__main__":
    main()
