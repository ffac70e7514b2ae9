"""Which frames of somebody's footage are taken into memory to adapt a network to?

Runs of neighbouring frames, spread evenly where all would be too many.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from models.training.material import IMAGE_SUFFIXES

MOST_BYTES = 1 << 30
RUN_FRAMES = 24  # of neighbouring frames; each begins and ends with some that have no neighbour on one side
_NUMBER = re.compile(r"(\d+)")


def frame_folders(folder: Path) -> list[Path]:
    """The folder and those below it, as far as they hold pictures."""
    return sorted({path.parent for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES})


def read_frames(folder: Path, most_bytes: int = MOST_BYTES) -> list[np.ndarray]:
    """Runs of the pictures of a folder, by name and number: [T, H, W, 3] uint8 each.

    Raises:
        ValueError: they are of several sizes.
        OSError: one cannot be read.
    """
    paths = sorted((path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES), key=_natural)
    first = _read(paths[0])
    runs = spread_runs(len(paths), max(1, most_bytes // first.nbytes))
    return [np.stack([_read(paths[index], like=first) for index in run]) for run in runs]


def spread_runs(frames: int, most: int) -> list[range]:
    """Which frames to take of so many, at most so many in all: runs spread from the first frame to the last."""
    if frames <= most:
        return [range(frames)]
    length = min(RUN_FRAMES, most)
    count = most // length
    if count == 1:
        return [range(length)]
    return [range(first, first + length) for first in np.linspace(0, frames - length, count).astype(int).tolist()]


def check_clips(clips: Sequence[np.ndarray], frames: int, smallest_px: int) -> list[np.ndarray]:
    """The clips that are long enough.

    Raises:
        ValueError: none is, or frames are too small.
    """
    for clip in clips:
        height, width = clip.shape[1:3]
        if min(height, width) < smallest_px:
            raise ValueError(f"frames are {width}x{height}; at least {smallest_px}x{smallest_px} are needed")
    long = [clip for clip in clips if len(clip) >= frames]
    if not long:
        longest = max((len(clip) for clip in clips), default=0)
        raise ValueError(f"the longest clip has {longest} frames; at least {frames} that follow one another are needed")
    return long


def _read(path: Path, like: np.ndarray | None = None) -> np.ndarray:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    if like is not None and pixels.shape != like.shape:
        raise ValueError(
            f"{path} is {pixels.shape[1]}x{pixels.shape[0]} and the first frame {like.shape[1]}x{like.shape[0]}; "
            "the frames of a folder must be of one size"
        )
    return pixels


def _natural(path: Path) -> list[tuple[int, str]]:
    """So that frame 10 comes after frame 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _NUMBER.split(path.name)]
