"""What was measured of the denoisers, and what papers and peers publish: `figures.csv` and `published.csv`.

`models/shipped/figures.csv` is the one place where measured figures live: `quietframe eval --write` puts them there, a
line a figure, and cards, `GET /models` and the tables of docs/models.md are made from it. Needs nothing but the
standard library.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from models.weights import WEIGHTS_DIR

FIGURES_FILE = WEIGHTS_DIR / "figures.csv"
PUBLISHED_FILE = WEIGHTS_DIR / "published.csv"
GAUSSIAN = "gaussian-"  # what white Gaussian noise is called, its level on the 8-bit scale behind it: `gaussian-25`
REAL = "real"  # what the noise of photographs is called


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One denoiser on one test set with one noise. PSNR in decibels, each a mean over pictures (frames, then clips)."""

    denoiser: str
    weights: str  # their `fingerprint`: figures of other weights say nothing of these
    data: str  # the test set
    noise: str  # a name that `models.noise` knows, or `real`
    pictures: int  # or sequences
    frames: int  # of a sequence, at most; 1 of pictures
    backend: str  # and its precision
    noisy_db: float
    restored_db: float
    ssim: float
    ad: float | None  # Average Deviation
    restored_8bit_db: float | None  # of noisy input that was clipped and rounded; real pairs are so as they stand
    ms_per_megapixel: float | None  # median over pictures; on one thread its time on the CPU, else by the clock
    threads: int | None
    machine: str

    @property
    def key(self) -> tuple[str, str, str, int, int, str]:
        """A newer figure with the same key takes an older one's place."""
        return self.denoiser, self.data, self.noise, self.pictures, self.frames, self.backend

    @property
    def gain_db(self) -> float:
        return self.restored_db - self.noisy_db


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What a paper or a peer says of a method, as the source prints it; one line for all noise levels of a table."""

    method: str
    parameters_m: float | None  # millions
    data: str
    pictures: int | None
    noise: str  # `gaussian`, `real`, or another of ours
    levels: tuple[str, ...]  # on the 8-bit scale; empty where the noise has none
    psnr_db: tuple[float | None, ...]  # as many as levels, or one
    ssim: tuple[float | None, ...]
    note: str
    source: str

    def at(self, noise: str) -> tuple[float | None, float | None]:
        """PSNR and SSIM with a noise as `Figure` names it; None where the source has none."""
        kind, _, level = noise.rpartition("-") if noise.startswith(GAUSSIAN) else (noise, "", "")
        if kind != self.noise or (self.levels and level not in self.levels):
            return None, None
        index = self.levels.index(level) if self.levels else 0
        ssim = self.ssim[index] if self.ssim else None
        return self.psnr_db[index], ssim


def read_figures(path: Path = FIGURES_FILE) -> tuple[Figure, ...]:
    return tuple(Figure(**_parsed(Figure, row)) for row in _rows(path))


def read_published(path: Path = PUBLISHED_FILE) -> tuple[Published, ...]:
    return tuple(_published_of(row) for row in _rows(path))


def write_figures(figures: Iterable[Figure], path: Path = FIGURES_FILE) -> None:
    """Sorted, so that what changed is what differs."""
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(one.name for one in fields(Figure))
        for figure in sorted(figures, key=_order):
            writer.writerow(_text(name, value) for name, value in asdict(figure).items())
    unfinished.replace(path)


def add_figures(new: Sequence[Figure], path: Path = FIGURES_FILE) -> None:
    """Put figures in, in place of older ones of the same key; those of other weights of the same denoisers go."""
    current = {figure.denoiser: figure.weights for figure in new}
    kept = {
        figure.key: figure
        for figure in (read_figures(path) if path.is_file() else ())
        if figure.weights == current.get(figure.denoiser, figure.weights)
    }
    write_figures({**kept, **{figure.key: figure for figure in new}}.values(), path)


def fingerprint(hashes: Iterable[str]) -> str:
    """Of the weights files that a denoiser is made of, by their SHA-256; empty of one that has none."""
    return "+".join(sha256[:16] for sha256 in hashes)


def fullest(figures: Iterable[Figure]) -> dict[tuple[str, str, str], Figure]:
    """By denoiser, test set and noise, the figure over the most pictures and frames; of several backends, the first."""
    best: dict[tuple[str, str, str], Figure] = {}
    for figure in sorted(figures, key=_order):
        before = best.setdefault((figure.denoiser, figure.data, figure.noise), figure)
        if (figure.pictures, figure.frames) > (before.pictures, before.frames):
            best[figure.denoiser, figure.data, figure.noise] = figure
    return best


_DECIMALS = {"noisy_db": 2, "restored_db": 2, "ssim": 4, "ad": 4, "restored_8bit_db": 2, "ms_per_megapixel": 1}


def _order(figure: Figure) -> tuple[Any, ...]:
    kind, _, level = figure.noise.partition("-")
    number = float(level) if level.replace(".", "", 1).isdigit() else 0.0
    return figure.denoiser, figure.data, kind, number, figure.noise, figure.pictures, figure.frames, figure.backend


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.{_DECIMALS[name]}f}" if name in _DECIMALS else str(value)


def _parsed(of: type[Figure], row: dict[str, str]) -> dict[str, Any]:
    """Numbers as numbers; an empty cell is None where the field may be."""
    parsed: dict[str, Any] = {}
    for field in fields(of):
        kinds = get_args(field.type) or (field.type,)
        text = row[field.name]
        parsed[field.name] = None if not text and type(None) in kinds else kinds[0](text)
    return parsed


def _published_of(row: dict[str, str]) -> Published:
    return Published(
        method=row["method"],
        parameters_m=float(row["parameters_m"]) if row["parameters_m"] else None,
        data=row["data"],
        pictures=int(row["pictures"]) if row["pictures"] else None,
        noise=row["noise"],
        levels=tuple(row["levels"].split("/")) if row["levels"] else (),
        psnr_db=_each(row["psnr_db"]),
        ssim=_each(row["ssim"]),
        note=row["note"],
        source=row["source"],
    )


def _each(text: str) -> tuple[float | None, ...]:
    """`33.5//27.4` has nothing in its middle."""
    return tuple(float(one) if one else None for one in text.split("/")) if text else ()
