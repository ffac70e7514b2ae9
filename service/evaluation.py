"""How good the denoisers are, and how fast: PSNR and SSIM on test sets, milliseconds per megapixel.

Protocol: additive white Gaussian noise of a fixed seed on [0, 1] floats, neither clipped nor rounded; the result is
clipped to [0, 1]; PSNR over all channels, data range 1; the mean over pictures (over frames, then sequences). Beside it
stands the figure for noisy input that was clipped and rounded to 8 bits, which is what an upload is. Real pairs are
taken as stored.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from rich.table import Table

from models.cards import record_quality
from models.catalogue import CATALOGUE, find
from models.noise import add_gaussian
from models.quality import psnr_db, ssim
from service.errors import BadInput
from service.media.video import VideoReader
from service.pipeline.denoiser import Denoiser, to_planes
from service.pipeline.shelf import Shelf
from service.settings import Settings
from trtbuild.engine import Array
from trtbuild.open import backends

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi"})
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
REAL_NOISY, REAL_CLEAN = "_real", "_mean"  # how pairs of one noisy shot and the mean of many are named
LEAST_SEQUENCE = 5
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One denoiser on one test set at one noise level."""

    model: str
    data: str
    sigma: float | None  # 8-bit scale; None for real noise
    pictures: int  # or sequences
    noisy_db: float
    restored_db: float
    ssim: float
    restored_8bit_db: float | None  # of noisy input that was clipped and rounded
    backend: str

    def line(self) -> str:
        noise = "real noise" if self.sigma is None else f"sigma {self.sigma:g}"
        rounded = "" if self.restored_8bit_db is None else f" (8-bit input {self.restored_8bit_db:.2f})"
        return (
            f"{self.model} on {self.data}, {noise}: {self.noisy_db:.2f} -> {self.restored_db:.2f} dB{rounded}, "
            f"SSIM {self.ssim:.4f}, {self.pictures} pictures, {self.backend}"
        )

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Example:
    """A clean sequence, of one frame for a picture; and its noisy counterpart where that is real."""

    clean: list[Array]  # [3, H, W] each
    noisy: list[Array] | None = None


def evaluate(
    names: Sequence[str],
    folders: Sequence[Path],
    levels: Sequence[float],
    settings: Settings,
    *,
    every: int = 1,
    most_frames: int = 20,
) -> Iterator[Row]:
    """Measure denoisers on test sets.

    Args:
        names: of the catalogue.
        folders: each a test set: clean pictures, `*_real` and `*_mean` pairs, folders of numbered frames, or videos.
        levels: noise levels on the 8-bit scale; real pairs have their own.
        settings: say the backend.
        every: take every n-th picture only.
        most_frames: of a sequence.

    Raises:
        BadInput: a folder holds none of these.
        UnknownDenoiser: no such model.
    """
    shelf = Shelf(settings)
    specs = [find(name) for name in names]
    for folder in folders:
        examples = list(_examples(folder, every, most_frames, settings))
        real = examples[0].noisy is not None
        for spec in specs:
            denoiser = shelf.denoiser(spec.name)
            if spec.kind == "video" and len(examples[0].clean) == 1:
                continue  # one picture has no neighbours
            for level in [None] if real else levels:
                yield _measure(denoiser, folder.name if folder.name != "test" else folder.parent.name, examples, level)


def table_of(rows: Sequence[Row]) -> Table:
    table = Table("model", "data", "sigma", "n", "noisy dB", "restored dB", "8-bit input dB", "SSIM")
    for row in rows:
        sigma = "real" if row.sigma is None else f"{row.sigma:g}"
        rounded = "" if row.restored_8bit_db is None else f"{row.restored_8bit_db:.2f}"
        figures = (f"{row.noisy_db:.2f}", f"{row.restored_db:.2f}", rounded, f"{row.ssim:.4f}")
        table.add_row(row.model, row.data, sigma, str(row.pictures), *figures)
    return table


def write_into_cards(rows: Sequence[Row]) -> None:
    """Put the figures where `GET /models` and the docs take them from."""
    for row in rows:
        level = "real" if row.sigma is None else f"{row.sigma:g}"
        figures = {
            "pictures": row.pictures,
            "noisy": round(row.noisy_db, 2),
            "restored": round(row.restored_db, 2),
            "ssim": round(row.ssim, 4),
        }
        if row.restored_8bit_db is not None:
            figures["restored_8bit"] = round(row.restored_8bit_db, 2)
        record_quality(row.model, row.data, level, figures)


def time_models(settings: Settings, megapixels: float) -> list[dict[str, object]]:
    """Median time of each model on each backend that is there, over a square picture of that size."""
    side = max(64, round((megapixels * 1e6) ** 0.5 / 16) * 16)
    frame = np.random.default_rng(0).random((3, side, side), np.float32)
    timed: list[dict[str, object]] = []
    for backend in (name for name, why_not in backends().items() if why_not is None):
        shelf = Shelf(settings.model_copy(update={"backend": backend}))
        for spec in CATALOGUE.values():
            denoiser = shelf.denoiser(spec.name)
            seconds = _seconds_per_frame(denoiser, frame)
            timed.append(
                {
                    "model": spec.name,
                    "backend": backend,
                    "precision": denoiser.precision,
                    "ms_per_megapixel": 1000 * seconds / (side * side / 1e6),
                    "gmac_per_second": spec.macs_per_pixel * side * side / seconds / 1e9,
                }
            )
    return timed


def _seconds_per_frame(denoiser: Denoiser, frame: Array) -> float:
    list(denoiser.restore_frames([frame] * denoiser.spec.frames))  # warm
    times = []
    count = 1 if denoiser.spec.kind == "image" else 6
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in denoiser.restore_frames([frame] * count):
            pass
        times.append((time.perf_counter() - started) / count)
    return statistics.median(times)


def _measure(denoiser: Denoiser, data: str, examples: Sequence[_Example], level: float | None) -> Row:
    before, after, alike, after_8bit = [], [], [], []
    for index, example in enumerate(examples):
        for clipped in (False, True):
            noisy = example.noisy or [
                add_gaussian(clean, (level or 0) / 255, seed=100_003 * index + 101 * t, clipped=clipped)
                for t, clean in enumerate(example.clean)
            ]
            restored = [np.clip(frame, 0, 1) for frame in denoiser.restore_frames(noisy)]
            psnrs = [psnr_db(*_pixels(r, c)) for r, c in zip(restored, example.clean, strict=True)]
            if clipped:
                after_8bit.append(statistics.fmean(psnrs))
                continue
            after.append(statistics.fmean(psnrs))
            alike.append(statistics.fmean(ssim(*_pixels(r, c)) for r, c in zip(restored, example.clean, strict=True)))
            before.append(
                statistics.fmean(
                    psnr_db(*_pixels(np.clip(n, 0, 1), c)) for n, c in zip(noisy, example.clean, strict=True)
                )
            )
            if level is None:
                break
    return Row(
        model=denoiser.spec.name,
        data=data,
        sigma=level,
        pictures=len(examples),
        noisy_db=statistics.fmean(before),
        restored_db=statistics.fmean(after),
        ssim=statistics.fmean(alike),
        restored_8bit_db=statistics.fmean(after_8bit) if after_8bit else None,
        backend=f"{denoiser.backend} {denoiser.precision}",
    )


def _pixels(one: Array, other: Array) -> tuple[Array, Array]:
    """[3, H, W] to [H, W, 3], as the quality metrics take them."""
    return one.transpose(1, 2, 0), other.transpose(1, 2, 0)


def _examples(folder: Path, every: int, most_frames: int, settings: Settings) -> Iterator[_Example]:
    videos = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in VIDEO_SUFFIXES]
    pictures = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in SUFFIXES]
    noisy = [path for path in pictures if path.stem.endswith(REAL_NOISY)]
    if noisy:
        for path in noisy[::every]:
            clean = path.with_name(path.stem.removesuffix(REAL_NOISY) + REAL_CLEAN + path.suffix)
            yield _Example([_read(clean)], [_read(path)])
    elif videos:
        for path in videos[::every]:
            with VideoReader(path, settings) as reader:
                yield _Example([to_planes(frame.pixels) for frame in islice(reader, most_frames)])
    elif pictures:
        for path in pictures[::every]:
            yield _Example([_read(path)])
    else:
        sequences = [home for home in sorted(folder.glob("*")) if home.is_dir() and _is_sequence(home)]
        if not sequences:
            raise BadInput(
                f"{folder} holds no pictures, no {REAL_NOISY}/{REAL_CLEAN} pairs, no folders of frames and no videos"
            )
        for home in sequences[::every]:
            frames = [path for path in sorted(home.glob("*")) if path.suffix.lower() in SUFFIXES]
            yield _Example([_read(path) for path in frames[:most_frames]])


def _is_sequence(home: Path) -> bool:
    stems = [path.stem for path in home.glob("*") if path.suffix.lower() in SUFFIXES]
    return len(stems) >= LEAST_SEQUENCE and all(stem.isdigit() for stem in stems)


def _read(path: Path) -> Array:
    decoded = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if decoded is None:
        raise BadInput(f"{path} cannot be decoded")
    return to_planes(np.asarray(decoded, np.uint8))
