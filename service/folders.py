"""Which files are denoised, and where do their results go? The same for this machine and for a server's."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from models.catalogue import Kind
from models.errors import QuietframeError
from service.errors import BadInput, UnknownFormat
from service.frames import Form
from service.job import Metrics
from service.media.formats import BECOMES, IMAGES, VIDEOS, container_for
from service.media.sniff import HEAD_BYTES, content_type_of

FORMATS = {  # of the target's suffix
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".avif": "avif",
    ".exr": "exr",
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mkv": "mkv",
    ".mov": "mov",
    ".webm": "webm",
}
TABLES: dict[str, Form] = {".csv": "csv", ".json": "json", ".svg": "svg"}  # of that of a table of frames


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
    notes: tuple[str, ...] = ()  # what else should be known
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
        parts += self.notes
        return ", ".join(parts)

    def as_dict(self) -> dict[str, object]:
        # Through JSON, which has no word for the infinite PSNR of equal pictures: it becomes null.
        metrics = json.loads(self.metrics.model_dump_json()) if self.metrics else None
        return asdict(self) | {"metrics": metrics}


@dataclass(frozen=True, slots=True)
class Task:
    """One file, what it is, and what its result shall be."""

    source: Path
    target: Path
    reference: Path | None
    content_type: str
    format: str

    @property
    def kind(self) -> Kind:
        return "image" if self.content_type.startswith("image/") else "video"


def each(
    source: Path, target: Path, reference: Path | None, codec: str | None, do: Callable[[Task], FileDone]
) -> Iterator[FileDone]:
    """Do one file, or every image and video under a folder into the same places under another.

    Yields:
        One result a file. A folder's unreadable file is a result with an error, and the others go on.

    Raises:
        BadInput: there is nothing to do, or a result would replace its original.
        And what `do` raises over the one file.
    """
    if not source.exists():
        raise BadInput(f"{source} does not exist")
    if reference is not None and not reference.exists():
        raise BadInput(f"reference {reference} does not exist")
    if not source.is_dir():
        if target.is_dir():
            target = target / source.name
        if target.resolve() == source.resolve():
            raise BadInput(f"{target} is the input itself; the result would replace it")
        yield do(_task(source, target, reference, codec))
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
            yield do(_task(path, target / relative, clean if clean and clean.exists() else None, codec))
        except (QuietframeError, OSError) as problem:
            yield FileDone(str(path), None, error=str(problem))


def write_whole(target: Path, data: bytes) -> None:
    """All of it, or nothing."""
    unfinished = target.with_name(target.name + ".part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _task(source: Path, target: Path, reference: Path | None, codec: str | None) -> Task:
    with source.open("rb") as file:
        content_type = content_type_of(file.read(HEAD_BYTES))
    if content_type is None:
        raise UnknownFormat(f"{source} is in no image or video format that is read here")
    suffix = target.suffix.lower()
    if suffix != source.suffix.lower() and suffix not in FORMATS:
        raise BadInput(
            f"the result's suffix is {target.suffix!r}; written are {', '.join(FORMATS)}, or the input's own"
        )
    form = "same" if suffix == source.suffix.lower() else FORMATS[suffix]
    task = Task(source, target, reference, content_type, form)
    if form == "same" and content_type in BECOMES:
        return Task(source, target.with_suffix(IMAGES[BECOMES[content_type]].suffix), reference, content_type, form)
    if task.kind == "video" and form == "same":
        container = container_for(form, content_type, codec)
        if FORMATS.get(suffix) != container:  # AVI, say, is read and not written
            return Task(source, target.with_suffix(VIDEOS[container].suffix), reference, content_type, form)
    return task
