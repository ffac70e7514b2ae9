"""One image file in, one out: decode, restore, measure, encode."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.noise_level import QUICK_BLOCKS, NoiseLevel, measure_noise
from models.quality import psnr_db, ssim
from models.quality_estimate import Evidence
from service.errors import BadInput
from service.job import Metrics, Options, StageSeconds
from service.media.formats import image_format_for
from service.media.hdr_curve import PQ, PqScale
from service.media.image import Encoded, Picture, join_pages, upright, write_image
from service.media.light import Scale, scale_of
from service.media.tiff import orientation_of
from service.pipeline.denoiser import Denoiser, OnTile, Pixels, Tally
from service.pipeline.halves import side_by_side
from service.pipeline.probing import noise_told, probe_picture, psnr_told
from service.pipeline.progress import OnProgress, Pace, ignore_progress
from service.pipeline.turns import Urgency
from service.sandbox.images import read_image
from service.settings import Settings
from service.telemetry import tracing


@dataclass(frozen=True, slots=True)
class DenoisedImage:
    """The encoded result and what was measured on the way."""

    data: bytes
    content_type: str
    suffix: str  # with the dot
    metrics: Metrics
    lost: list[str]  # what the format cannot hold


@dataclass(frozen=True, slots=True)
class _Page:
    """What came of a page, or of a picture that is the only one."""

    made: Encoded
    noise: NoiseLevel
    left: NoiseLevel
    evidence: Evidence
    psnr_db: float | None
    ssim: float | None
    input_psnr_db: float | None
    seconds: StageSeconds


def denoise_image(
    denoiser: Denoiser,
    source: Path,
    options: Options,
    settings: Settings,
    *,
    reference: Path | None = None,
    urgency: Urgency = Urgency.BATCH,
    on_progress: OnProgress = ignore_progress,
    tally: Tally | None = None,
) -> DenoisedImage:
    """Denoise an image file; of a TIFF that becomes a TIFF all pages, one after the other.

    Metrics are of the restored pixels, before a lossy codec and before halves are put side by side; of several pages
    they are means. What is learnt on the way is added to `tally`.

    Raises:
        BadInput: the file or its reference cannot be read, or they differ in size.
    """
    tally = tally if tally is not None else Tally()
    pace = Pace("tiles", None, on_progress)
    done: list[_Page] = []
    pages = 1
    while len(done) < pages:
        number, before = len(done), pace.done
        started = time.monotonic()
        picture = read_image(source, settings, number)
        clean = read_image(reference, settings, number) if reference else None
        if clean is not None and clean.pages != picture.pages:
            raise BadInput(f"reference has {clean.pages} pages, the input {picture.pages}; they must be equal")
        if image_format_for(options.format, picture.content_type) == "tiff":
            pages = picture.pages
        on_tile = partial(_tell, pace, before, pages - number)
        done.append(_denoise_page(denoiser, picture, clean, options, urgency, tally, on_tile, started))
    pace.finish()
    made = done[0].made if pages == 1 else join_pages([page.made for page in done])
    evidence = Evidence()
    for page in done:
        evidence.add(page.evidence)
    return DenoisedImage(
        data=made.data,
        content_type=made.content_type,
        suffix=made.suffix,
        lost=list(made.lost),
        metrics=Metrics(
            psnr_db=_mean([page.psnr_db for page in done]),
            ssim=_mean([page.ssim for page in done]),
            input_psnr_db=_mean([page.input_psnr_db for page in done]),
            sigma_estimate=tally.sigma_estimate,
            input_noise_estimate=noise_told(_together([page.noise for page in done])),
            output_noise_estimate=noise_told(_together([page.left for page in done])),
            **psnr_told(evidence, options.strength),
            seconds=StageSeconds(
                decode=sum(page.seconds.decode for page in done),
                infer=sum(page.seconds.infer for page in done),
                encode=sum(page.seconds.encode for page in done),
            ),
        ),
    )


def _denoise_page(
    denoiser: Denoiser,
    picture: Picture,
    clean: Picture | None,
    options: Options,
    urgency: Urgency,
    tally: Tally,
    on_tile: OnTile,
    started: float,
) -> _Page:
    scale = _scale_of(picture)
    noisy = scale.seen(picture.pixels) if scale else picture.pixels
    target = _seen_as(clean, picture, scale) if clean else None
    if target is not None and target.shape != noisy.shape:
        raise BadInput(f"reference is {_size(target)}, the input {_size(noisy)}; they must be equal")
    decoded = time.monotonic()
    tracing.told("decode", decoded - started)

    sigma = None if options.sigma is None else options.sigma / 255
    planes = 1 if picture.is_grey else 3  # a grey picture's are equal
    if scale:
        _note(tally, _said_of(scale))
    if picture.is_grey:
        notes = list(tally.notes)
        denoiser = denoiser.for_grey(tally)
        tally.notes[:] = dict.fromkeys([*notes, *tally.notes])
    restored = denoiser.restore_picture(
        noisy,
        strength=options.strength,
        sigma=sigma,
        urgency=urgency,
        tally=tally,
        on_tile=on_tile,
    )
    if picture.is_grey:
        restored = _grey(restored)
    noise = measure_noise(noisy.transpose(2, 0, 1)[:planes])
    left = measure_noise(restored.transpose(2, 0, 1)[:planes], most_blocks=QUICK_BLOCKS)
    evidence = Evidence()
    if options.estimate:
        evidence = probe_picture(denoiser, noisy, noise, sigma=sigma, is_grey=picture.is_grey, urgency=urgency)
    worked = time.monotonic()
    tracing.told("restore", worked - decoded, model=denoiser.spec.name)
    shown = _halves(picture, noisy, restored) if options.side_by_side else restored
    stored: NDArray[Any] = shown
    if scale:
        stored = scale.stored(np.asarray(shown, np.float32), np.asarray(noisy, np.float32), picture.pixels)
    made = write_image(stored, picture, format=options.format, quality=options.quality)
    encoded = time.monotonic()
    tracing.told("encode", encoded - worked)
    return _Page(
        made=made,
        noise=noise,
        left=left,
        evidence=evidence,
        psnr_db=None if target is None else psnr_db(restored, target),
        ssim=None if target is None else ssim(restored, target),
        input_psnr_db=None if target is None else psnr_db(noisy, target),
        seconds=StageSeconds(decode=decoded - started, infer=worked - decoded, encode=encoded - worked),
    )


def _tell(pace: Pace, before: int, pages: int, tiles: int) -> None:
    """A tile more; the pages to come are taken to have as many as this one."""
    pace.step(before + pages * tiles)


def _note(tally: Tally, words: str) -> None:
    if words not in tally.notes:
        tally.notes.append(words)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _together(levels: list[NoiseLevel]) -> NoiseLevel:
    """Root mean squares; of pages in grey and in colour together, a grey one's number counts for each colour."""
    colours = max(len(level.sigma) for level in levels)

    def over(values: list[tuple[float, ...]]) -> tuple[float, ...]:
        rows = [value * colours if len(value) == 1 else value for value in values]
        return tuple(float(one) for one in np.sqrt(np.mean(np.square(rows), axis=0)))

    return NoiseLevel(
        over([level.sigma for level in levels]),
        over([level.black for level in levels]),
        over([level.white for level in levels]),
    )


def _grey(restored: Pixels) -> Pixels:
    """A grey picture went in as three equal planes; what comes out is averaged back to one, in all three."""
    if restored.dtype.kind == "f":
        mean = restored.mean(2, keepdims=True, dtype=np.float64).astype(restored.dtype)  # of equal ones exactly the one
    else:
        mean = np.rint(restored.mean(2, keepdims=True, dtype=np.float32)).astype(restored.dtype)
    return np.broadcast_to(mean, restored.shape).copy()


def _halves(picture: Picture, noisy: Pixels, restored: Pixels) -> Pixels:
    orientation = orientation_of(picture.metadata.exif)
    return side_by_side(noisy, restored, lambda pixels: upright(pixels, orientation))


def _scale_of(picture: Picture) -> Scale | PqScale | None:
    if picture.pixels.dtype.kind == "u" and picture.metadata.colours and picture.metadata.colours[1] == PQ:
        return PqScale()
    return scale_of(picture.pixels, is_linear=picture.is_linear)


def _seen_as(clean: Picture, noisy: Picture, scale: Scale | PqScale | None) -> Pixels:
    """A reference as the network would see it; one of floating point is on the noisy picture's scale."""
    if scale is None or clean.pixels.dtype.kind == "u" or noisy.pixels.dtype.kind == "u":
        scale = _scale_of(clean)
    return scale.seen(clean.pixels) if scale else clean.pixels


def _said_of(scale: Scale | PqScale) -> str:
    if isinstance(scale, PqScale):
        return "the picture is in PQ: restored along the curve of HLG, on which sigma and metrics are told"
    what = "the picture's numbers are light" if scale.is_linear else "the picture's numbers have a scale of their own"
    if (scale.black, scale.white) != (0, 1):
        what += f", black at {scale.black:.4g} and white at {scale.white:.4g}"
    seen = "the sRGB curve" if scale.is_linear else "the scale from 0 to 1"
    return f"{what}: restored on {seen}, on which sigma and metrics are told"


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
