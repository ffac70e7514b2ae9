"""Denoises files and folders by a running service, as `service.files` does on this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.errors import QuietframeError
from service.client import Client
from service.errors import BadInput
from service.folders import TABLES, Bar, FileDone, Task, each, write_whole
from service.job import JobDocument, JobState, Progress


def denoise_files_at(
    server: str,
    source: Path,
    target: Path,
    *,
    reference: Path | None,
    codec: str | None,
    bar: Bar,
    per_frame: Path | None = None,
    **fields: Any,
) -> Iterator[FileDone]:
    """Send one file, or every image and video under a folder, and write what comes back.

    Args:
        server: its base URL.
        per_frame: where figures of each frame of a video go; its suffix says how they are written.
        fields: as the API has them. What is None is left to the service.

    Yields:
        One result a file. A folder's unreadable file is a result with an error, and the others go on.

    Raises:
        BadInput, ServerProblem, ServerAway: the one file cannot be denoised.
    """
    if per_frame is not None:
        if per_frame.suffix.lower() not in TABLES:
            raise BadInput(f"figures of frames go to {per_frame}; its suffix must be one of {', '.join(TABLES)}")
        if source.is_dir():
            raise BadInput(f"figures of frames are written of one video, and {source} is a folder")

    def do(task: Task) -> FileDone:
        bar.start(task.source.name)
        try:
            job = _one(client, task, {**fields, "format": task.format}, codec, bar)
            if per_frame is not None:
                write_whole(per_frame, client.frames(job.id, TABLES[per_frame.suffix.lower()]))
        finally:
            bar.finish()
        backend = f"{job.backend} {job.precision}"
        return FileDone(
            str(task.source), str(task.target), job.model, backend, job.metrics, tuple(job.input.lost), tuple(job.notes)
        )

    with Client(server) as client:
        yield from each(source, target, reference, codec, do)


def _one(client: Client, task: Task, fields: dict[str, Any], codec: str | None, bar: Bar) -> JobDocument:
    task.target.parent.mkdir(parents=True, exist_ok=True)
    if task.kind == "image":
        if fields.pop("scan", "auto") != "auto":
            raise BadInput(f"scan is for videos, and {task.source} is an image")
        if codec is not None or fields.pop("crf", None) is not None:
            raise BadInput(f"codec and crf are for videos, and {task.source} is an image")
        restored = client.denoise_image(task.source, reference=task.reference, **fields)
        write_whole(task.target, restored.content)
        return restored.job
    if fields.pop("quality", None) is not None:
        raise BadInput(f"quality is for images, and {task.source} is a video; it has crf")

    def move(progress: Progress) -> None:
        bar.move(progress.done, progress.total)

    job = client.submit_video(task.source, reference=task.reference, codec=codec, **fields)
    try:
        job = client.wait(job.id, on_progress=move)
    except KeyboardInterrupt:
        client.cancel(job.id)
        raise
    if job.state is not JobState.SUCCEEDED:
        raise QuietframeError(job.error.detail if job.error else f"job {job.id} is {job.state}")
    client.download(job, task.target)
    return job
