"""How good the denoisers are, and how fast: PSNR, SSIM, Average Deviation, milliseconds per megapixel on test sets.

Protocol: noise of a fixed seed on [0, 1] floats, neither clipped nor rounded; the result is clipped to [0, 1]; PSNR
over all channels, data range 1; the mean over pictures (over frames, then sequences). Beside it stands the figure for
noisy input that was clipped and rounded to 8 bits, which is what an upload is. Real pairs are taken as stored. A
denoiser that must be told the level is told the true one, of other noise than Gaussian its root mean square; on real
pairs, where nobody knows it, it is estimated.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from rich.table import Table

from models.cards import renew_card, training_of
from models.catalogue import CATALOGUE, DESCRIBED, DenoiserSpec
from models.errors import UnknownDenoiser
from models.figures import FIGURES_FILE, REAL, Figure, Published, add_figures, fingerprint
from models.noise import Noise, gaussian_level, noise_named, recorded
from models.own import Library
from models.quality import average_deviation, psnr_db, ssim
from service.errors import BadInput
from service.media.video import VideoReader
from service.pipeline.denoiser import Denoiser, to_planes
from service.pipeline.shelf import Shelf
from service.processes import processor, usable_cores
from service.settings import Settings
from trtbuild.engine import Array
from trtbuild.open import backends

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi"})
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif"})
REAL_NOISY, REAL_CLEAN = "_real", "_mean"  # how pairs of one noisy shot and the mean of many are named
LEAST_SEQUENCE = 5
ROUNDS = 5
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # that decide how fast a network runs


@dataclass(frozen=True, slots=True)
class _Example:
    """A clean sequence, of one frame for a picture; and its noisy counterpart where that is real."""

    clean: list[Array]  # [3, H, W] each
    noisy: list[Array] | None = None


def evaluate(
    names: Sequence[str],
    folders: Sequence[Path],
    noises: Sequence[str],
    settings: Settings,
    *,
    every: int = 1,
    most_frames: int = 20,
    ensemble: int = 1,
) -> Iterator[Figure]:
    """Measure denoisers on test sets.

    Args:
        names: of what the catalogue describes, shipped or not (the weights, or the library, must be there), or of
            what was adapted.
        folders: each a test set: clean pictures, `*_real` and `*_mean` pairs, folders of numbered frames, or videos.
        noises: names that `models.noise` knows; real pairs have their own.
        settings: say the backend.
        every: take every n-th picture only.
        most_frames: of a sequence.
        ensemble: as `Denoiser.of` has it.

    Raises:
        BadInput: a folder holds none of these, or there is no such noise.
        UnknownDenoiser: no such model, or its weights are not there.
        BackendUnavailable: this machine cannot run it.
    """
    shelf = Shelf(settings)
    specs = [_described(name, shelf.library) for name in names]
    try:
        added = {name: noise_named(name) for name in noises}
    except ValueError as err:
        raise BadInput(str(err)) from None
    for folder in folders:
        examples = list(_examples(folder, every, most_frames, settings))
        real = examples[0].noisy is not None
        data = folder.name if folder.name != "test" else folder.parent.name
        for spec in specs:
            if spec.kind == "video" and len(examples[0].clean) == 1:
                continue  # one picture has no neighbours
            denoiser = shelf.denoiser(spec.name).of(ensemble)
            for name, noise in {REAL: None}.items() if real else added.items():
                yield _measure(denoiser, data, examples, name, noise, settings.threads)


def line_of(figure: Figure) -> str:
    rounded = "" if figure.restored_8bit_db is None else f" (8-bit input {figure.restored_8bit_db:.2f})"
    return (
        f"{figure.denoiser} on {figure.data}, {figure.noise}: {figure.noisy_db:.2f} -> {figure.restored_db:.2f} dB"
        f"{rounded}, SSIM {figure.ssim:.4f}, AD {figure.ad or 0:.4f}, {figure.pictures} pictures, "
        f"{figure.ms_per_megapixel or 0:.0f} ms per megapixel (threads: {figure.threads}, {figure.backend})"
    )


def table_of(figures: Sequence[Figure], published: Sequence[Published] = ()) -> Table:
    """The figures, and below those of each test set and noise what others publish of it."""
    table = Table("model", "data", "noise", "pictures", "noisy", "restored", "8-bit input", "SSIM", "AD", "ms/MP")
    measured = {(one.data, one.noise): one.pictures for one in figures}
    for (data, noise), pictures in measured.items():
        for one in figures:
            if (one.data, one.noise) == (data, noise):
                rounded = "" if one.restored_8bit_db is None else f"{one.restored_8bit_db:.2f}"
                quality = (f"{one.noisy_db:.2f}", f"{one.restored_db:.2f}", rounded, f"{one.ssim:.4f}")
                cost = (f"{one.ad or 0:.4f}", f"{one.ms_per_megapixel or 0:.0f}")
                table.add_row(one.denoiser, data, noise, str(one.pictures), *quality, *cost)
        for other in published:
            psnr, alike = other.at(noise)
            if other.data == data and psnr is not None:
                whose = "published" if other.pictures == pictures else f"published, of {other.pictures}"
                told = ("", f"{psnr:.2f}", "", f"{alike:.4f}" if alike else "", "", "")
                table.add_row(other.method, data, noise, whose, *told, style="dim")
    return table


def record(figure: Figure, figures_file: Path = FIGURES_FILE) -> None:
    """Put a figure where cards, `GET /models` and the docs take it from."""
    if figure.denoiser not in DESCRIBED:
        raise BadInput(f"{figure.denoiser} is no denoiser that comes with Quietframe; figures of those alone are kept")
    spec = DESCRIBED[figure.denoiser]
    if spec.shipped:
        renew_card(spec)
    add_figures([figure], figures_file)


def time_models(settings: Settings, megapixels: float) -> list[dict[str, object]]:
    """Median time of each model on each backend that is there, over a square picture of that size."""
    side = max(64, round((megapixels * 1e6) ** 0.5 / 16) * 16)
    frame = np.random.default_rng(0).random((3, side, side), np.float32)
    timed: list[dict[str, object]] = []
    for backend in (name for name, why_not in backends().items() if why_not is None):
        shelf = Shelf(settings.model_copy(update={"backend": backend}))
        for spec in CATALOGUE.values():
            if not spec.weights and timed and any(one["model"] == spec.name for one in timed):
                continue  # it has a backend of its own, whichever is asked for
            denoiser = shelf.denoiser(spec.name)
            seconds = _seconds_per_frame(denoiser, frame)
            timed.append(
                {
                    "model": spec.name,
                    "backend": denoiser.backend,
                    "precision": denoiser.precision,
                    "ms_per_megapixel": 1000 * seconds / (side * side / 1e6),
                    "gmac_per_second": spec.macs_per_pixel * side * side / seconds / 1e9,
                }
            )
    return timed


def _described(name: str, library: Library) -> DenoiserSpec:
    if name not in DESCRIBED and library.own(name) is None:
        adapted = [own.name for own in library.all_own()]
        raise UnknownDenoiser(f"model is {name!r}; known are {', '.join([*DESCRIBED, *adapted])}")
    return DESCRIBED.get(name) or library.find(name)


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


def _measure(
    denoiser: Denoiser, data: str, examples: Sequence[_Example], name: str, noise: Noise | None, threads: int
) -> Figure:
    threads = threads or usable_cores()
    # A single thread's time on the CPU is what it takes, whoever else is at work on the machine.
    clock = time.process_time if threads == 1 else time.perf_counter
    before, after, alike, deviations, after_8bit, ms_per_megapixel = [], [], [], [], [], []
    for index, example in enumerate(examples):
        clean = example.clean
        noisy = example.noisy or [_noisy(noise, one, seed=100_003 * index + 101 * t) for t, one in enumerate(clean)]
        sigma = _told(name, noisy, clean)
        started = clock()
        restored = list(denoiser.restore_frames(noisy, sigma=sigma))
        ms_per_megapixel.append(1e9 * (clock() - started) / sum(one[0].size for one in clean))
        restored = [frame.clip(0, 1) for frame in restored]
        pairs = [_pixels(*pair) for pair in zip(restored, clean, strict=True)]
        before.append(statistics.fmean(psnr_db(*_pixels(n.clip(0, 1), c)) for n, c in zip(noisy, clean, strict=True)))
        after.append(statistics.fmean(psnr_db(*pair) for pair in pairs))
        alike.append(statistics.fmean(ssim(*pair) for pair in pairs))
        deviations.append(statistics.fmean(average_deviation(*pair) for pair in pairs))
        if example.noisy is None:
            restored = [
                frame.clip(0, 1) for frame in denoiser.restore_frames([recorded(one) for one in noisy], sigma=sigma)
            ]
            after_8bit.append(statistics.fmean(psnr_db(*_pixels(*pair)) for pair in zip(restored, clean, strict=True)))
    return Figure(
        denoiser=denoiser.spec.name,
        weights=fingerprint(run.sha256 for run in training_of(denoiser.spec, denoiser.spec.home)),
        data=data,
        noise=name,
        pictures=len(examples),
        frames=max(len(example.clean) for example in examples),
        backend=f"{denoiser.backend} {denoiser.precision}",
        noisy_db=statistics.fmean(before),
        restored_db=statistics.fmean(after),
        ssim=statistics.fmean(alike),
        ad=statistics.fmean(deviations),
        restored_8bit_db=statistics.fmean(after_8bit) if after_8bit else None,
        ms_per_megapixel=statistics.median(ms_per_megapixel),
        threads=threads,
        machine=_machine(denoiser),
    )


def _noisy(noise: Noise | None, clean: Array, seed: int) -> Array:
    """A grey picture has one noise in all three planes: it comes to a service with a single one."""
    assert noise is not None, "real pairs bring theirs"
    noisy = noise(clean, seed)
    is_grey = np.array_equal(clean[0], clean[1]) and np.array_equal(clean[0], clean[2])
    return np.repeat(noisy[1:2], 3, 0) if is_grey else noisy


def _told(name: str, noisy: Sequence[Array], clean: Sequence[Array]) -> float | None:
    """What a denoiser that must know the level is told; None where it is to be estimated."""
    if name == REAL:
        return None
    level = gaussian_level(name)
    if level is not None:
        return level / 255
    power = statistics.fmean(float(np.mean((n - c) ** 2)) for n, c in zip(noisy, clean, strict=True))
    return float(power**0.5)


def _machine(denoiser: Denoiser) -> str:
    """What the time was taken on."""
    if denoiser.backend == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    name, features = processor()
    return " ".join([name, *(one for one in CPU_FEATURES if one in features)])


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
