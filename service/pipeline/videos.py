"""One video file in, one out: decoding, the network and encoding work at the same time, a few frames apart."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.catalogue import CATALOGUE
from models.quality import psnr_db, ssim
from service.errors import BadInput, Indivisible
from service.frames import FrameFigures, FrameTable, joined
from service.job import FieldOrder, InputFacts, Metrics, Options, Part, PartOutcome, Sampled, StageSeconds
from service.media.encoder import ON_GPU
from service.media.hdr_curve import PQ, PqCurve
from service.media.segments import SegmentWriter, join
from service.media.still import jpeg_of
from service.media.timeline import divide
from service.media.video import Frame, VideoWriter
from service.pipeline import fields
from service.pipeline.denoiser import Denoiser, Pixels, Tally, blend, to_pixels, to_planes
from service.pipeline.halves import side_by_side, turned_by
from service.pipeline.progress import OnProgress, Pace, ignore_progress
from service.pipeline.relay import read_ahead, write_behind
from service.pipeline.sampling import Sampler, told
from service.pipeline.turns import Urgency
from service.sandbox.videos import VideoReader, read_field_order, read_timeline
from service.settings import Settings
from trtbuild.engine import Array

OnStill = Callable[[bytes], None]

DEPTH = 4  # frames that may wait between two stages: enough to hide a key frame's encoding, little memory at 4K
# A part of full HD is then 61 frames: long enough that its neighbours' frames, read twice, cost little, and short
# enough that little is lost with a worker.
_PART_PIXELS = 128_000_000
_PART_FRAMES = (24, 240)
_MOST_PARTS = 4000
# Colour is where a pixel's planes differ by more than a lossy codec leaves in a grey film, on the [0, 1] scale.
_GREY_WITHIN = 3.5 / 255
_LOOK_AT_EACH = 4  # pixels, each way
_IS_GREY = "the video is grey"  # how that note begins


@dataclass(frozen=True, slots=True)
class DenoisedVideo:
    """What the written file is, and what was measured on the way."""

    content_type: str
    suffix: str  # with the dot
    metrics: Metrics
    frames: int
    lost: list[str]  # tracks that the container cannot hold
    per_frame: bytes  # a `FrameTable` as CSV


@dataclass(frozen=True, slots=True)
class DenoisedPart:
    """What was learnt of a part on the way; its frames are in the file that was written."""

    frames: int
    tally: Tally
    seconds: StageSeconds
    lost: list[str]
    sampled: Sampled
    per_frame: bytes


class _Sink(Protocol):
    encoder_name: str

    def write(self, frame: Frame) -> None: ...


@dataclass(slots=True)
class _Source:
    """A decoded frame, as it was and as the network sees it, with its clean counterpart."""

    frame: Frame
    planes: Array  # [3, H, W]
    clean: Pixels | None


@dataclass(slots=True)
class _Mean:
    """Of what is finite: one black frame that equals its reference must not make a whole clip's PSNR infinite."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self.total += value
            self.count += 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass(slots=True)
class _Quality:
    """What is measured of frames, and times."""

    sampler: Sampler
    order: FieldOrder | None  # of an interlaced video, whose fields are restored apart
    curve: PqCurve | None  # along which the network sees the video
    psnr: _Mean = field(default_factory=_Mean)
    input_psnr: _Mean = field(default_factory=_Mean)
    ssim: _Mean = field(default_factory=_Mean)
    frames: FrameTable = field(default_factory=FrameTable)
    decode_s: float = 0.0
    encode_s: float = 0.0
    has_colour: bool = False  # in one frame at least

    def seen(self, pixels: Pixels) -> Pixels:
        """As the network sees them, and as they are measured."""
        return self.curve.seen(pixels) if self.curve else pixels

    def noise_in(self, place: int, restored: Pixels) -> tuple[float | None, float | None]:
        """Levels of noise before and after, on the 8-bit scale, where they were measured in that frame."""
        if self.order is None:
            return self.sampler.finish(place, restored)
        planes: NDArray[Any] = restored.transpose(2, 0, 1)
        found = [
            self.sampler.finish(2 * place + later, field.transpose(1, 2, 0))
            for later, field in enumerate(fields.split(planes, self.order))
        ]
        return next((one for one in found if one[0] is not None), (None, None))

    def look_at(self, pixels: Pixels) -> None:
        if not self.has_colour:
            some = pixels[::_LOOK_AT_EACH, ::_LOOK_AT_EACH].astype(np.int32)
            apart = (some.max(axis=2) - some.min(axis=2)).max()
            self.has_colour = bool(apart > _GREY_WITHIN * (255 if pixels.dtype == np.uint8 else 65535))


def denoise_video(
    denoiser: Denoiser,
    source: Path,
    target: Path,
    options: Options,
    settings: Settings,
    *,
    reference: Path | None = None,
    on_progress: OnProgress = ignore_progress,
    on_still: OnStill | None = None,
    tally: Tally | None = None,
) -> DenoisedVideo:
    """Denoise a video file into `target`, with its other tracks and its timestamps.

    Memory does not grow with the length of the clip. Where this raises, `target` does not exist.

    Args:
        denoiser: of frames or of windows of them.
        source: the noisy video.
        target: the file to write; its container is said by `options.format`, not by its name.
        options: how.
        settings: limits.
        reference: a clean video of the same size and number of frames; metrics are means over frames, of the pixels
            that are encoded, before the codec.
        on_progress: told after each frame; what it raises stops the work.
        on_still: given the first restored frame, as JPEG.
        tally: what is learnt on the way is added to it.

    Raises:
        BadInput: a file cannot be decoded, or the reference differs in size or length.
    """
    tally = tally if tally is not None else Tally()
    order = read_field_order(source, settings, options.scan)
    with VideoReader(source, settings, with_beyond=_keeps_beyond(options), of_fields=order is not None) as reader:
        quality = _quality(denoiser, options, order, reader)
        pace = Pace("frames", reader.facts.frames, on_progress)
        with VideoWriter(target, reader, format=options.format, codec=options.codec, crf=options.crf) as writer:
            sources = _decode(reader, reference, settings, quality)
            _restore(
                denoiser,
                sources,
                writer,
                options,
                pace,
                tally,
                quality,
                turned=reader.head.rotation,
                on_still=on_still,
            )
            closing = time.monotonic()
            writer.close()
            quality.encode_s += time.monotonic() - closing
            return DenoisedVideo(
                content_type=writer.content_type,
                suffix=writer.suffix,
                metrics=_metrics(tally, quality, options),
                frames=pace.done,
                lost=list(writer.lost),
                per_frame=quality.frames.as_csv(),
            )


def plan_parts(
    denoiser: Denoiser, source: Path, facts: InputFacts, settings: Settings, scan: str = "auto"
) -> list[Part]:
    """How a video is best done in parts; one part means that it is too short for that.

    Args:
        scan: as `Options` has it.

    Raises:
        Indivisible: it must be done as one.
        BadInput: it cannot be read.
    """
    least, most = _PART_FRAMES
    by_size = min(max(_PART_PIXELS // (facts.width * facts.height), least), most)
    timeline = read_timeline(source, settings)
    # The broker makes all parts in one step, in which it does nothing else.
    frames = max(settings.part_frames or by_size, len(timeline) // _MOST_PARTS)
    parts = divide(timeline, frames, denoiser.spec.frames // 2)
    if len(parts) == 1:
        return parts
    order = read_field_order(source, settings, scan)
    return [part.model_copy(update={"fields": order}) for part in parts]


def still_of(
    denoiser: Denoiser, source: Path, options: Options, settings: Settings, order: FieldOrder | None = None
) -> bytes:
    """A video's first frame, restored, as JPEG.

    Args:
        order: of its fields, where it is interlaced.

    Raises:
        BadInput: it cannot be decoded.
    """
    with VideoReader(source, settings, of_fields=order is not None) as reader:
        quality = _quality(denoiser, options, order, reader)
        frames = list(islice(_decode(reader, None, settings, quality), denoiser.spec.frames))
        restored = _restored(
            denoiser, (one.planes for one in frames), order, sigma=_told_sigma(options), urgency=Urgency.BATCH
        )
        pixels = _pixels_of(frames[0], next(iter(restored)), options.strength, quality.curve)
        turned = reader.head.rotation
        return jpeg_of(_shown(frames[0].frame.pixels, pixels, options, turned), turned=turned)


def denoise_part(
    denoiser: Denoiser,
    source: Path,
    target: Path,
    part: Part,
    options: Options,
    settings: Settings,
    *,
    on_progress: OnProgress = ignore_progress,
) -> DenoisedPart:
    """Denoise a run of a video's frames into a file that `join_parts` can use; the frames are the whole video's own.

    Raises:
        Indivisible: the frames are not those that were planned.
        BadInput: they cannot be decoded.
    """
    tally = Tally()
    how = {"with_beyond": _keeps_beyond(options), "of_fields": part.fields is not None}
    with VideoReader(source, settings, part, **how) as reader:
        quality = _quality(denoiser, options, part.fields, reader, part)
        pace = Pace("frames", part.frames, on_progress)
        by = settings.video_encoder
        with SegmentWriter(
            target, reader, format=options.format, codec=options.codec, crf=options.crf, by=by
        ) as writer:
            _restore(
                denoiser,
                _decode(reader, None, settings, quality),
                writer,
                options,
                pace,
                tally,
                quality,
                part=part,
                turned=reader.head.rotation,
            )
            closing = time.monotonic()
            writer.close()
            quality.encode_s += time.monotonic() - closing
            if pace.done != part.frames:
                raise Indivisible(f"part {part.index} has {pace.done} frames; {part.frames} were planned")
            return DenoisedPart(
                frames=pace.done,
                tally=tally,
                seconds=_seconds(tally, quality),
                lost=list(writer.lost),
                sampled=quality.sampler.sampled(),
                per_frame=quality.frames.as_csv(),
            )


def join_parts(
    parts: Sequence[PartOutcome],
    files: Sequence[Path],
    source: Path,
    target: Path,
    options: Options,
    settings: Settings,
    *,
    tables: Sequence[bytes] = (),
    heed: Callable[[], None] | None = None,
) -> DenoisedVideo:
    """Make one video of what `denoise_part` wrote, without encoding anew, with the source's other tracks.

    Args:
        parts: what came of them, in order.
        files: what each wrote.
        source: the noisy video.
        target: the file to write.
        options: as the parts were made with.
        settings: likewise.
        tables: what was measured of each part's frames.
        heed: called before each part; what it raises stops the work, and leaves no file.

    Raises:
        Indivisible: the parts do not fit together.
        BadInput: the source's other tracks cannot be read.
    """
    started = time.monotonic()
    with VideoReader(source, settings) as reader:
        made = join(files, target, reader, format=options.format, codec=options.codec, crf=options.crf, heed=heed)
    tally = Tally(removed_power=sum(part.removed_power for part in parts), values=sum(part.values for part in parts))
    spent = [part.seconds for part in parts]
    return DenoisedVideo(
        content_type=made.content_type,
        suffix=made.suffix,
        metrics=told((part.sampled for part in parts), options.strength).model_copy(
            update={
                "sigma_estimate": tally.sigma_estimate,
                "seconds": StageSeconds(
                    decode=sum(one.decode for one in spent),
                    infer=sum(one.infer for one in spent),
                    encode=sum(one.encode for one in spent) + time.monotonic() - started,
                ),
            }
        ),
        frames=sum(part.frames for part in parts),
        per_frame=joined(tables),
        lost=list(dict.fromkeys([*made.lost, *(lost for part in parts for lost in part.lost)])),
    )


def _restore(
    denoiser: Denoiser,
    sources: Iterator[_Source],
    writer: _Sink,
    options: Options,
    pace: Pace,
    tally: Tally,
    quality: _Quality,
    *,
    part: Part | None = None,
    turned: int = 0,
    on_still: OnStill | None = None,
) -> None:
    """Decode, denoise and encode side by side; of a part, without the neighbours that only fill the windows."""
    waiting: deque[_Source] = deque()  # those the network still has in its windows
    wanted = range(part.lead, part.lead + part.frames) if part else None
    shown = on_still is None

    def planes_of(ahead: Iterable[_Source]) -> Iterator[Array]:
        for index, one in enumerate(ahead):
            if wanted is None or index in wanted:
                waiting.append(one)
                quality.look_at(one.frame.pixels)
            yield one.planes

    def finish(made: tuple[_Source, Array]) -> None:
        nonlocal shown
        pixels = _finish(*made, writer, options, turned, tally, quality)
        if not shown and on_still:
            shown = True
            on_still(jpeg_of(pixels, turned=turned))

    with read_ahead(sources, DEPTH) as ahead, write_behind(finish, DEPTH) as put:
        for restored in _restored(
            denoiser,
            planes_of(ahead),
            quality.order,
            watch=quality.sampler.watch,
            sigma=_told_sigma(options),
            urgency=Urgency.VIDEO,
            tally=tally,
            goes_on_before=bool(part and part.lead),
            goes_on_after=bool(part and part.trail),
        ):
            put((waiting.popleft(), restored))
            pace.step()
        pace.finish()
    if quality.order:
        tally.notes.append(f"the video is interlaced, {quality.order} field first: its fields were restored apart")
    if quality.curve:
        tally.notes.append("the video is in PQ: it was restored, and its noise was measured, along the curve of HLG")
    if not quality.has_colour:
        tally.notes += _notes_on_grey(denoiser)
    if writer.encoder_name in ON_GPU:
        tally.notes.append(f"the result was encoded on the GPU, by {writer.encoder_name}")


def _restored(
    denoiser: Denoiser,
    frames: Iterable[Array],
    order: FieldOrder | None,
    *,
    watch: Callable[[int, Array], None] = lambda index, planes: None,  # noqa: ARG005 - as it is called
    sigma: float | None,
    urgency: Urgency,
    tally: Tally | None = None,
    goes_on_before: bool = False,
    goes_on_after: bool = False,
) -> Iterator[Array]:
    """`Denoiser.restore_frames`, of interlaced frames field by field.

    Args:
        watch: told each frame or field that is decoded, and its number.
        goes_on_before: so many frames as the network's window reaches are there as neighbours only.
        goes_on_after: likewise.
    """

    def watched(pictures: Iterable[Array]) -> Iterator[Array]:
        for index, planes in enumerate(pictures):
            watch(index, planes)
            yield planes

    def restore(pictures: Iterable[Array]) -> Iterator[Array]:
        return denoiser.restore_frames(
            pictures,
            sigma=sigma,
            urgency=urgency,
            tally=tally,
            goes_on_before=goes_on_before,
            goes_on_after=goes_on_after,
        )

    if order is None:
        yield from restore(watched(frames))
        return
    heights: set[int] = set()

    def apart() -> Iterator[Array]:
        for planes in frames:
            heights.add(planes.shape[1])
            yield from fields.split(planes, order)

    around = {"goes_on_before": goes_on_before, "goes_on_after": goes_on_after}
    restored = restore(fields.nearest(watched(apart()), denoiser.spec.frames // 2, **around))
    for earlier in restored:
        (height,) = heights
        yield fields.woven(earlier, next(restored), height, order)


def notes_of(parts: Sequence[PartOutcome]) -> list[str]:
    """What is told of the parts, each once; that one is grey only where all are, for any film has black moments."""
    told = dict.fromkeys(note for part in parts for note in part.notes)
    return [note for note in told if not note.startswith(_IS_GREY) or all(note in part.notes for part in parts)]


def _notes_on_grey(denoiser: Denoiser) -> list[str]:
    """What whoever hands in a grey video should know."""
    spec = denoiser.spec
    if not spec.weights or "grey" in spec.taught:
        return []
    taught = (other for other in CATALOGUE.values() if other.weights and "grey" in other.taught)
    names = ", ".join(other.name for other in taught if other.kind == spec.kind)
    return [
        f"{_IS_GREY}, and {spec.name} was taught on colours: it leaves most of a grey noise; taught on that: {names}"
    ]


def _quality(
    denoiser: Denoiser, options: Options, order: FieldOrder | None, reader: VideoReader, part: Part | None = None
) -> _Quality:
    sampler = Sampler(denoiser, options, _told_sigma(options), part, of_fields=order is not None)
    return _Quality(sampler, order, PqCurve() if reader.head.color_trc == PQ else None)


def _decode(reader: VideoReader, reference: Path | None, settings: Settings, quality: _Quality) -> Iterator[_Source]:
    """Frames with their planes and, where there is a reference, its frame at the same place."""
    if reference is None:
        for frame in _timed(reader, quality):
            yield _Source(frame, to_planes(quality.seen(frame.pixels)), None)
        return
    with VideoReader(reference, settings, of_fields=quality.order is not None) as clean_reader:
        _check_same_size(clean_reader.facts, reader.facts)
        clean_frames = iter(clean_reader)
        count = 0
        for frame in _timed(reader, quality):
            clean = next(clean_frames, None)
            if clean is None:
                raise BadInput(f"reference ends after {count} frames; the input goes on")
            count += 1
            yield _Source(frame, to_planes(quality.seen(frame.pixels)), clean.pixels)
        if next(clean_frames, None) is not None:
            raise BadInput(f"reference has more than the input's {count} frames")


def _timed(reader: VideoReader, quality: _Quality) -> Iterator[Frame]:
    frames = iter(reader)
    while True:
        started = time.monotonic()
        frame = next(frames, None)
        quality.decode_s += time.monotonic() - started
        if frame is None:
            return
        yield frame


def _finish(
    source: _Source, restored: Array, writer: _Sink, options: Options, turned: int, tally: Tally, quality: _Quality
) -> Pixels:
    """Blend, measure and encode a frame. Runs behind the network, in the encoder's thread."""
    removed = Tally()
    removed.add_removed(source.planes, restored)
    tally.removed_power += removed.removed_power
    tally.values += removed.values
    frame = source.frame
    pixels = _pixels_of(source, restored, options.strength, quality.curve)
    seen = quality.seen(pixels)
    against: dict[str, float] = {}
    if source.clean is not None:
        clean = quality.seen(source.clean)
        against = {
            "psnr_db": psnr_db(seen, clean),
            "ssim": ssim(seen, clean),
            "input_psnr_db": psnr_db(quality.seen(frame.pixels), clean),
        }
        quality.psnr.add(against["psnr_db"])
        quality.input_psnr.add(against["input_psnr_db"])
        quality.ssim.add(against["ssim"])
    place = quality.frames.frames
    before, after = quality.noise_in(place, seen)
    quality.frames.add(FrameFigures(place, removed.sigma_estimate, before, after, **against))
    pixels = _shown(frame.pixels, pixels, options, turned)
    started = time.monotonic()
    beyond = None if frame.beyond is None else np.rint(frame.beyond * (1 - options.strength)).astype(np.int32)
    writer.write(replace(frame, pixels=pixels, beyond=beyond))
    quality.encode_s += time.monotonic() - started
    return pixels


def _shown(noisy: Pixels, restored: Pixels, options: Options, turned: int) -> Pixels:
    return side_by_side(noisy, restored, turned_by(turned)) if options.side_by_side else restored


def _pixels_of(source: _Source, restored: Array, strength: float, curve: PqCurve | None) -> Pixels:
    pixels, noisy = source.frame.pixels, source.planes
    if curve:
        noisy = to_planes(pixels)
        restored = curve.stored(restored, source.planes, noisy)
    return to_pixels(blend(noisy, restored, strength), pixels.dtype, np.float32(np.iinfo(pixels.dtype).max))


def _keeps_beyond(options: Options) -> bool:
    """Whether of what RGB does not hold a share is to come out again: as much as of the noise.

    All of it would be noise around black and white that nothing took out. Halves side by side would want two shares.
    """
    return options.strength < 1 and not options.side_by_side


def _told_sigma(options: Options) -> float | None:
    return None if options.sigma is None else options.sigma / 255


def _metrics(tally: Tally, quality: _Quality, options: Options) -> Metrics:
    return told([quality.sampler.sampled()], options.strength).model_copy(
        update={
            "psnr_db": quality.psnr.value,
            "ssim": quality.ssim.value,
            "input_psnr_db": quality.input_psnr.value,
            "sigma_estimate": tally.sigma_estimate,
            "seconds": _seconds(tally, quality),
        }
    )


def _seconds(tally: Tally, quality: _Quality) -> StageSeconds:
    return StageSeconds(decode=quality.decode_s, infer=tally.infer_s, encode=quality.encode_s)


def _check_same_size(clean: InputFacts, noisy: InputFacts) -> None:
    if (clean.width, clean.height) != (noisy.width, noisy.height):
        raise BadInput(
            f"reference is {clean.width}x{clean.height}, the input {noisy.width}x{noisy.height}; they must be equal"
        )
