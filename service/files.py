"""Denoises files and folders on this machine, without a server, through the pipeline that the worker uses."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from models.errors import QuietframeError
from service.errors import BadInput, UnknownFormat
from service.frames import Form, in_form
from service.intake import check_options
from service.job import Metrics, Options, Progress
from service.media.formats import VIDEOS, container_for
from service.media.sniff import HEAD_BYTES, content_type_of
from service.pipeline.images import denoise_image
from service.pipeline.progress import OnProgress
from service.pipeline.shelf import Shelf
from service.pipeline.videos import denoise_video
from service.settings import Settings

FORMATS = {  # of the target's suffix
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mkv": "mkv",
    ".mov": "mov",
    ".webm": "webm",
}
TABLES: dict[str, Form] = {".csv": "csv", ".json": "json", ".svg": "svg"}


class Bar(Protocol):
    """Shows how far a file is."""

    def start(self, name: str) -> None: ...
    def move(self, done: int, total: int | None) -> None: ...
    def finish(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FileDone:
    """What came of one file."""

    source: str
    target: str | None
    model: str | None = None
    backend: str | None = None
    metrics: Metrics | None = None
    lost: tuple[str, ...] = ()  # what the target's format cannot hold
    error: str | None = None

    def line(self) -> str:
        if self.metrics is None:
            return f"{self.source}: {self.error}"
        parts = [f"{self.source} -> {self.target}: {self.model} on {self.backend}"]
        if self.metrics.sigma_estimate is not None:
            parts.append(f"sigma about {self.metrics.sigma_estimate:.1f}")
        before, after = self.metrics.input_noise_estimate, self.metrics.output_noise_estimate
        if before is not None and after is not None:
            parts.append(f"noise measured {max(before.sigma):.1f} -> {max(after.sigma):.1f}")
        if self.metrics.psnr_estimate_db is not None:
            error = self.metrics.psnr_estimate_error_db or 0.0
            parts.append(f"PSNR estimate {self.metrics.psnr_estimate_db:.1f} dB, give or take {error:.1f}")
        if self.metrics.psnr_db is not None and self.metrics.input_psnr_db is not None:
            parts.append(f"PSNR {self.metrics.input_psnr_db:.2f} -> {self.metrics.psnr_db:.2f} dB")
        if self.metrics.ssim is not None:
            parts.append(f"SSIM {self.metrics.ssim:.4f}")
        if self.lost:
            parts.append(f"not kept: {', '.join(self.lost)}")
        return ", ".join(parts)

    def as_dict(self) -> dict[str, object]:
        # Through JSON, which has no word for the infinite PSNR of equal pictures: it becomes null.
        metrics = json.loads(self.metrics.model_dump_json()) if self.metrics else None
        return asdict(self) | {"metrics": metrics}


def denoise_files(
    source: Path,
    target: Path,
    *,
    settings: Settings,
    model: str,
    sigma: float | None,
    strength: float,
    reference: Path | None,
    quality: int | None,
    codec: str | None,
    crf: int | None,
    bar: Bar,
    estimate: bool = False,
    side_by_side: bool = False,
    per_frame: Path | None = None,
) -> Iterator[FileDone]:
    """Denoise one file, or every image and video under a folder into the same places under another.

    Figures of each frame of a video go to `per_frame`; its suffix says how they are written.

    Yields:
        One result a file. A folder's unreadable file is a result with an error, and the others go on.

    Raises:
        BadInput: the one file cannot be denoised, or an option is out of its range.
        UnknownDenoiser: no such model.
    """
    options = Options(
        sigma=sigma,
        strength=strength,
        quality=quality,
        codec=codec,
        crf=crf,
        estimate=estimate,
        side_by_side=side_by_side,
    )
    if per_frame is not None:
        if per_frame.suffix.lower() not in TABLES:
            raise BadInput(f"figures of frames go to {per_frame}; its suffix must be one of {', '.join(TABLES)}")
        if source.is_dir():
            raise BadInput(f"figures of frames are written of one video, and {source} is a folder")
    shelf = Shelf(settings)
    if not source.exists():
        raise BadInput(f"{source} does not exist")
    if reference is not None and not reference.exists():
        raise BadInput(f"reference {reference} does not exist")
    if not source.is_dir():
        if target.is_dir():
            target = target / source.name
        if target.resolve() == source.resolve():
            raise BadInput(f"{target} is the input itself; the result would replace it")
        yield _one(source, target, reference, options, model, shelf, settings, bar, per_frame)
        return
    if reference is not None and not reference.is_dir():
        raise BadInput(f"the input is a folder, so the reference must be one; {reference} is none")
    if target.resolve() == source.resolve():
        raise BadInput(f"{target} is the input itself; results would replace their originals")
    results = target.resolve()
    inside = sorted(path for path in source.rglob("*") if path.is_file() and results not in path.resolve().parents)
    for path in inside:
        relative = path.relative_to(source)
        clean = reference / relative if reference else None
        try:
            yield _one(
                path,
                target / relative,
                clean if clean and clean.exists() else None,
                options,
                model,
                shelf,
                settings,
                bar,
            )
        except (QuietframeError, OSError) as problem:
            yield FileDone(str(path), None, error=str(problem))


def _one(
    source: Path,
    target: Path,
    reference: Path | None,
    options: Options,
    model: str,
    shelf: Shelf,
    settings: Settings,
    bar: Bar,
    per_frame: Path | None = None,
) -> FileDone:
    with source.open("rb") as file:
        content_type = content_type_of(file.read(HEAD_BYTES))
    if content_type is None:
        raise UnknownFormat(f"{source} is in no image or video format that is read here")
    kind = "image" if content_type.startswith("image/") else "video"
    if kind == "image" and per_frame is not None:
        raise BadInput(f"figures of frames are written of a video, and {source} is an image")
    spec = shelf.library.find(model, "image" if kind == "image" else "video")
    suffix = target.suffix.lower()
    if suffix != source.suffix.lower() and suffix not in FORMATS:
        raise BadInput(
            f"the result's suffix is {target.suffix!r}; written are {', '.join(FORMATS)}, or the input's own"
        )
    form = "same" if suffix == source.suffix.lower() else FORMATS[suffix]
    options = options.model_copy(update={"format": form})
    check_options("image" if kind == "image" else "video", spec, options, content_type)
    if kind == "video" and form == "same":
        container = container_for(form, content_type, options.codec)
        if FORMATS.get(suffix) != container:  # AVI, say, is read and not written
            target = target.with_suffix(VIDEOS[container].suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    denoiser = shelf.denoiser(spec.name)
    bar.start(source.name)
    try:
        on_progress = _moving(bar)
        if kind == "image":
            image = denoise_image(denoiser, source, options, settings, reference=reference, on_progress=on_progress)
            _write(target, image.data)
            metrics, lost = image.metrics, image.lost
        else:
            video = denoise_video(
                denoiser, source, target, options, settings, reference=reference, on_progress=on_progress
            )
            metrics, lost = video.metrics, video.lost
            if per_frame is not None:
                per_frame.parent.mkdir(parents=True, exist_ok=True)
                _write(per_frame, in_form(video.per_frame, TABLES[per_frame.suffix.lower()]))
    finally:
        bar.finish()
    backend = f"{denoiser.backend} {denoiser.precision}"
    return FileDone(str(source), str(target), spec.name, backend, metrics, tuple(lost))


def _write(target: Path, data: bytes) -> None:
    """All of it, or nothing."""
    unfinished = target.with_name(target.name + ".part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _moving(bar: Bar) -> OnProgress:
    def move(progress: Progress) -> None:
        bar.move(progress.done, progress.total)

    return move
