"""One image file in, one out: decode, restore, measure, encode."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.noise_level import QUICK_BLOCKS, measure_noise
from models.quality import psnr_db, ssim
from service.errors import BadInput
from service.job import Metrics, Options, StageSeconds
from service.media.image import Picture, upright, write_image
from service.media.light import Scale, scale_of
from service.media.tiff import orientation_of
from service.pipeline.denoiser import Denoiser, Pixels, Tally
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
    """Denoise an image file.

    Metrics are of the restored pixels, before a lossy codec and before halves are put side by side. What is learnt on
    the way is added to `tally`.

    Raises:
        BadInput: the file or its reference cannot be read, or they differ in size.
    """
    started = time.monotonic()
    picture = read_image(source, settings)
    scale = scale_of(picture.pixels, is_linear=picture.is_linear)
    noisy = scale.seen(picture.pixels) if scale else picture.pixels
    clean = _seen_as(read_image(reference, settings), picture, scale) if reference else None
    if clean is not None and clean.shape != noisy.shape:
        raise BadInput(f"reference is {_size(clean)}, the input {_size(noisy)}; they must be equal")
    decoded = time.monotonic()
    tracing.told("decode", decoded - started)

    tally = tally if tally is not None else Tally()
    pace = Pace("tiles", None, on_progress)
    sigma = None if options.sigma is None else options.sigma / 255
    if picture.is_grey:
        denoiser = denoiser.for_grey(tally)

    if scale:
        tally.notes.append(_said_of(scale))
    restored = denoiser.restore_picture(
        noisy,
        strength=options.strength,
        sigma=sigma,
        urgency=urgency,
        tally=tally,
        on_tile=pace.step,
    )
    if picture.is_grey:
        restored = _grey(restored)
    planes = 1 if picture.is_grey else 3  # a grey picture's are equal
    noise = measure_noise(noisy.transpose(2, 0, 1)[:planes])
    left = measure_noise(restored.transpose(2, 0, 1)[:planes], most_blocks=QUICK_BLOCKS)
    estimated: dict[str, float] = {}
    if options.estimate:
        evidence = probe_picture(denoiser, noisy, noise, sigma=sigma, is_grey=picture.is_grey, urgency=urgency)
        estimated = psnr_told(evidence, options.strength)
    worked = time.monotonic()
    tracing.told("restore", worked - decoded, model=denoiser.spec.name)
    shown = _halves(picture, noisy, restored) if options.side_by_side else restored
    stored: NDArray[Any] = shown
    if scale:
        stored = scale.stored(np.asarray(shown, np.float32), np.asarray(noisy, np.float32), picture.pixels)
    made = write_image(stored, picture, format=options.format, quality=options.quality)
    encoded = time.monotonic()
    tracing.told("encode", encoded - worked)
    return DenoisedImage(
        data=made.data,
        content_type=made.content_type,
        suffix=made.suffix,
        lost=list(made.lost),
        metrics=Metrics(
            psnr_db=None if clean is None else psnr_db(restored, clean),
            ssim=None if clean is None else ssim(restored, clean),
            input_psnr_db=None if clean is None else psnr_db(noisy, clean),
            sigma_estimate=tally.sigma_estimate,
            input_noise_estimate=noise_told(noise),
            output_noise_estimate=noise_told(left),
            **estimated,
            seconds=StageSeconds(decode=decoded - started, infer=worked - decoded, encode=encoded - worked),
        ),
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


def _seen_as(clean: Picture, noisy: Picture, scale: Scale | None) -> Pixels:
    """A reference as the network would see it; one of floating point is on the noisy picture's scale."""
    if scale is None or clean.pixels.dtype.kind == "u" or noisy.pixels.dtype.kind == "u":
        scale = scale_of(clean.pixels, is_linear=clean.is_linear)
    return scale.seen(clean.pixels) if scale else clean.pixels


def _said_of(scale: Scale) -> str:
    what = "the picture's numbers are light" if scale.is_linear else "the picture's numbers have a scale of their own"
    if (scale.black, scale.white) != (0, 1):
        what += f", black at {scale.black:.4g} and white at {scale.white:.4g}"
    seen = "the sRGB curve" if scale.is_linear else "the scale from 0 to 1"
    return f"{what}: restored on {seen}, on which sigma and metrics are told"


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
