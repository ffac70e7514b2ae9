"""One video file in, one out: decoding, the network and encoding work at the same time, a few frames apart."""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from models.quality import psnr_db, ssim
from service.errors import BadInput
from service.job import InputFacts, Metrics, Options, StageSeconds
from service.media.video import Frame, VideoReader, VideoWriter
from service.pipeline.denoiser import Denoiser, Pixels, Tally, blend, to_pixels, to_planes
from service.pipeline.progress import OnProgress, Pace, ignore_progress
from service.pipeline.relay import read_ahead, write_behind
from service.pipeline.turns import Urgency
from service.settings import Settings
from trtbuild.engine import Array

DEPTH = 4  # frames that may wait between two stages: enough to hide a key frame's encoding, little memory at 4K


@dataclass(frozen=True, slots=True)
class DenoisedVideo:
    """What the written file is, and what was measured on the way."""

    content_type: str
    suffix: str  # with the dot
    metrics: Metrics
    frames: int
    lost: list[str]  # tracks that the container cannot hold


@dataclass(slots=True)
class _Source:
    """A decoded frame, as it was and as the network takes it, with its clean counterpart."""

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
    """Means over frames, and times."""

    psnr: _Mean = field(default_factory=_Mean)
    input_psnr: _Mean = field(default_factory=_Mean)
    ssim: _Mean = field(default_factory=_Mean)
    decode_s: float = 0.0
    encode_s: float = 0.0


def denoise_video(
    denoiser: Denoiser,
    source: Path,
    target: Path,
    options: Options,
    settings: Settings,
    *,
    reference: Path | None = None,
    on_progress: OnProgress = ignore_progress,
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

    Raises:
        BadInput: a file cannot be decoded, or the reference differs in size or length.
    """
    sigma = None if options.sigma is None else options.sigma / 255
    tally, quality = Tally(), _Quality()
    waiting: deque[_Source] = deque()  # those the network still has in its windows

    def planes_of(sources: Iterable[_Source]) -> Iterator[Array]:
        for one in sources:
            waiting.append(one)
            yield one.planes

    with VideoReader(source, settings) as reader:
        pace = Pace("frames", reader.facts.frames, on_progress)
        with VideoWriter(target, reader, format=options.format, codec=options.codec, crf=options.crf) as writer:

            def finish(made: tuple[_Source, Array]) -> None:
                _finish(*made, writer, options.strength, tally, quality)

            with (
                read_ahead(_decode(reader, reference, settings, quality), DEPTH) as sources,
                write_behind(finish, DEPTH) as put,
            ):
                frames = planes_of(sources)
                for restored in denoiser.restore_frames(frames, sigma=sigma, urgency=Urgency.VIDEO, tally=tally):
                    put((waiting.popleft(), restored))
                    pace.step()
                pace.finish()
            closing = time.monotonic()
            writer.close()
            quality.encode_s += time.monotonic() - closing
            return DenoisedVideo(
                content_type=writer.content_type,
                suffix=writer.suffix,
                metrics=_metrics(tally, quality),
                frames=pace.done,
                lost=list(writer.lost),
            )


def _decode(reader: VideoReader, reference: Path | None, settings: Settings, quality: _Quality) -> Iterator[_Source]:
    """Frames with their planes and, where there is a reference, its frame at the same place."""
    if reference is None:
        for frame in _timed(reader, quality):
            yield _Source(frame, to_planes(frame.pixels), None)
        return
    with VideoReader(reference, settings) as clean_reader:
        _check_same_size(clean_reader.facts, reader.facts)
        clean_frames = iter(clean_reader)
        count = 0
        for frame in _timed(reader, quality):
            clean = next(clean_frames, None)
            if clean is None:
                raise BadInput(f"reference ends after {count} frames; the input goes on")
            count += 1
            yield _Source(frame, to_planes(frame.pixels), clean.pixels)
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
    source: _Source, restored: Array, writer: VideoWriter, strength: float, tally: Tally, quality: _Quality
) -> None:
    """Blend, measure and encode a frame. Runs behind the network, in the encoder's thread."""
    tally.add_removed(source.planes, restored)
    frame = source.frame
    scale = np.float32(np.iinfo(frame.pixels.dtype).max)
    pixels = to_pixels(blend(source.planes, restored, strength), frame.pixels.dtype, scale)
    if source.clean is not None:
        quality.psnr.add(psnr_db(pixels, source.clean))
        quality.input_psnr.add(psnr_db(frame.pixels, source.clean))
        quality.ssim.add(ssim(pixels, source.clean))
    started = time.monotonic()
    writer.write(replace(frame, pixels=pixels))
    quality.encode_s += time.monotonic() - started


def _metrics(tally: Tally, quality: _Quality) -> Metrics:
    return Metrics(
        psnr_db=quality.psnr.value,
        ssim=quality.ssim.value,
        input_psnr_db=quality.input_psnr.value,
        sigma_estimate=tally.sigma_estimate,
        seconds=StageSeconds(decode=quality.decode_s, infer=tally.infer_s, encode=quality.encode_s),
    )


def _check_same_size(clean: InputFacts, noisy: InputFacts) -> None:
    if (clean.width, clean.height) != (noisy.width, noisy.height):
        raise BadInput(
            f"reference is {clean.width}x{clean.height}, the input {noisy.width}x{noisy.height}; they must be equal"
        )
