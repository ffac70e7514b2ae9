"""Denoises files and folders on this machine, without a server, through the pipeline that the worker uses."""

from collections.abc import Iterator
from pathlib import Path

from service.errors import BadInput
from service.folders import TABLES, Bar, FileDone, Task, each, write_whole
from service.frames import in_form
from service.intake import check_options
from service.job import Options, Progress
from service.pipeline.denoiser import Tally
from service.pipeline.images import denoise_image
from service.pipeline.progress import OnProgress
from service.pipeline.shelf import Shelf
from service.pipeline.videos import denoise_video
from service.settings import Settings

__all__ = ["FileDone", "denoise_files"]


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
    ensemble: int = 1,
    scan: str = "auto",
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
        ensemble=ensemble,
        scan=scan,
        estimate=estimate,
        side_by_side=side_by_side,
    )
    if per_frame is not None:
        if per_frame.suffix.lower() not in TABLES:
            raise BadInput(f"figures of frames go to {per_frame}; its suffix must be one of {', '.join(TABLES)}")
        if source.is_dir():
            raise BadInput(f"figures of frames are written of one video, and {source} is a folder")
    shelf = Shelf(settings)

    def do(task: Task) -> FileDone:
        return _one(task, options, model, shelf, settings, bar, per_frame)

    return each(source, target, reference, codec, do)


def _one(
    task: Task, options: Options, model: str, shelf: Shelf, settings: Settings, bar: Bar, per_frame: Path | None
) -> FileDone:
    source, target, reference = task.source, task.target, task.reference
    if task.kind == "image" and per_frame is not None:
        raise BadInput(f"figures of frames are written of a video, and {source} is an image")
    spec = shelf.library.find(model, task.kind)
    options = options.model_copy(update={"format": task.format})
    check_options(task.kind, spec, options, task.content_type)
    target.parent.mkdir(parents=True, exist_ok=True)
    denoiser = shelf.denoiser(spec.name).of(options.ensemble)
    bar.start(source.name)
    try:
        on_progress, tally = _moving(bar), Tally()
        if task.kind == "image":
            image = denoise_image(
                denoiser, source, options, settings, reference=reference, on_progress=on_progress, tally=tally
            )
            write_whole(target, image.data)
            metrics, lost = image.metrics, image.lost
        else:
            video = denoise_video(
                denoiser, source, target, options, settings, reference=reference, on_progress=on_progress, tally=tally
            )
            metrics, lost = video.metrics, video.lost
            if per_frame is not None:
                per_frame.parent.mkdir(parents=True, exist_ok=True)
                write_whole(per_frame, in_form(video.per_frame, TABLES[per_frame.suffix.lower()]))
    finally:
        bar.finish()
    backend = f"{denoiser.backend} {denoiser.precision}"
    return FileDone(str(source), str(target), spec.name, backend, metrics, tuple(lost), tuple(tally.notes))


def _moving(bar: Bar) -> OnProgress:
    def move(progress: Progress) -> None:
        bar.move(progress.done, progress.total)

    return move
