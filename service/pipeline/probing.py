"""Runs a denoiser on a few places of a picture again, with a small change, to estimate how good its result is.

What it costs is bounded: at most nine places of 128x128 pixels of a picture, twice each, however large it is. Of frames
that are laid over each other a place is run with what surrounds it, for what moves comes from there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.noise_level import NoiseLevel
from models.quality_estimate import Evidence, Probe, change_for, evidence_of, textures
from service.job import NoiseEstimate
from service.pipeline.denoiser import Denoiser, Pixels, to_planes
from service.pipeline.turns import Urgency
from trtbuild.engine import Array

SIDE_PX = 128  # of a place; smaller ones leave networks without the surroundings that they are used to
PLACES = 9  # of a picture
# Around a place of aligned frames. At level 25 `fitvnet` was estimated 0.93 dB too low without on four DAVIS sequences,
# and 0.55 with it, by two places of three frames; with 64 pixels it was 0.02 less. docs/noise.md has more.
MARGIN_PX = 32
_MOST_SEEN = 1 << 22  # pixels of a picture that are looked at to tell what it consists of
_SEEN_ROWS = 16


@dataclass(frozen=True, slots=True)
class Place:
    """A cut of a frame, and within it what is looked at."""

    rows: slice
    columns: slice
    inside: tuple[slice, slice]  # rows and columns, counted from the cut's

    def of(self, planes: Array) -> Array:
        """[C, H, W] to its part of it, contiguous."""
        return np.ascontiguousarray(planes[:, self.rows, self.columns])


def places_in(height: int, width: int, count: int = PLACES, *, margin_px: int = 0) -> list[Place]:
    """Places spread evenly over a frame; of a frame that is no larger than they are together, all of it.

    Args:
        height: of the frame.
        width: likewise.
        count: at most.
        margin_px: of what surrounds them that is cut out with them, where the frame goes on so far.
    """
    if height * width <= count * SIDE_PX**2:
        return [_place(height, width, slice(0, height), slice(0, width), 0)]
    # As many along each side as fit without overlap, and near to the frame's own shape.
    most_down, most_across = max(1, height // SIDE_PX), max(1, width // SIDE_PX)
    down = min(most_down, count, max(1, round(math.sqrt(count * height / width))))
    across = min(most_across, max(1, count // down))
    down = min(most_down, count // across)
    return [
        _place(height, width, rows, columns, margin_px)
        for rows in _spread(height, down)
        for columns in _spread(width, across)
    ]


def margin_for(denoiser: Denoiser) -> int:
    """Pixels that its places need around them."""
    return MARGIN_PX if denoiser.spec.aligned else 0


def probe_picture(
    denoiser: Denoiser,
    pixels: Pixels,
    noise: NoiseLevel,
    *,
    sigma: float | None = None,
    is_grey: bool = False,
    urgency: Urgency = Urgency.BATCH,
) -> Evidence:
    """What a few places of a noisy picture tell about its result.

    Args:
        denoiser: of a single frame.
        pixels: [H, W, 3], noisy.
        noise: measured in them, of one plane where the picture is grey.
        sigma: as the denoiser was told it, on the scale [0, 1].
        is_grey: the three planes are equal, and the result is their mean.
        urgency: when several jobs want the engine.
    """
    probes = []
    for number, place in enumerate(places_in(*pixels.shape[:2])):
        noisy = to_planes(pixels[place.rows, place.columns])
        probes.append(_probe(denoiser, [noisy], place, noise, sigma, number, is_grey, urgency))
    bands = (to_planes(pixels[rows]) for rows in _bands(*pixels.shape[:2]))
    return evidence_of(probes, noise, np.concatenate([textures(band[:1] if is_grey else band) for band in bands]))


def probe_window(
    denoiser: Denoiser,
    windows: Sequence[tuple[Place, Sequence[Array]]],
    noise: NoiseLevel,
    everywhere: Array,
    *,
    sigma: float | None,
    seed: int,
) -> Evidence:
    """What a few places of a frame tell about its result.

    Args:
        denoiser: of windows of `spec.frames` frames.
        windows: places, and the frames around the one in question, cut to each: [3, H, W], oldest first.
        noise: measured in that frame.
        everywhere: `textures_seen` in the whole frame.
        sigma: as the denoiser was told it, on the scale [0, 1].
        seed: of the change.
    """
    probes = [
        _probe(denoiser, window, place, noise, sigma, seed + number, False, Urgency.VIDEO)
        for number, (place, window) in enumerate(windows)
    ]
    return evidence_of(probes, noise, everywhere, frames=denoiser.spec.frames)


def noise_told(noise: NoiseLevel) -> NoiseEstimate:
    """As clients see it: on the 8-bit scale."""
    sigma, black, white = ([round(255 * value, 3) for value in one] for one in (noise.sigma, noise.black, noise.white))
    return NoiseEstimate(sigma=sigma, black=black, white=white)


def psnr_told(evidence: Evidence, strength: float) -> dict[str, float]:
    """What is estimated, as fields of `Metrics`; nothing where nothing was looked at."""
    found = evidence.psnr_db(strength)
    return {"psnr_estimate_db": found[0], "psnr_estimate_error_db": found[1]} if found else {}


def _probe(
    denoiser: Denoiser,
    window: Sequence[Array],
    place: Place,
    noise: NoiseLevel,
    sigma: float | None,
    seed: int,
    is_grey: bool,
    urgency: Urgency,
) -> Probe:
    """Only the frame in the middle is changed: the noise of its neighbours is not its own."""
    middle = len(window) // 2
    noisy = window[middle][:1] if is_grey else window[middle]
    change = change_for(noisy, noise, seed)
    level = sigma
    if level is None and denoiser.spec.sigma is not None:
        low, high = denoiser.spec.sigma
        level = min(max(noise.mean, low), high)

    def restored(changed: Array) -> Array:
        frames = [*window[:middle], np.ascontiguousarray(changed), *window[middle + 1 :]]
        goes_on = len(frames) > 1
        (result,) = denoiser.restore_frames(
            frames, sigma=level, urgency=urgency, goes_on_before=goes_on, goes_on_after=goes_on
        )
        return result.mean(0, keepdims=True) if is_grey else result

    inside = (slice(None), *place.inside)
    added, taken = restored(window[middle] + change), restored(window[middle] - change)
    return Probe(noisy[inside], change[inside], added[inside], taken[inside])


def textures_seen(planes: Array) -> Array:
    """What a frame consists of, judged by bands spread over it.

    Args:
        planes: [C, H, W], noisy.
    """
    return np.concatenate([textures(planes[:, rows]) for rows in _bands(*planes.shape[1:])])


def _bands(height: int, width: int) -> list[slice]:
    """Rows of blocks spread over a picture."""
    bands = max(1, height // _SEEN_ROWS)
    step = max(1, -(-bands * _SEEN_ROWS * width // _MOST_SEEN))
    return [slice(band * _SEEN_ROWS, (band + 1) * _SEEN_ROWS) for band in range(0, bands, step)]


def _place(height: int, width: int, rows: slice, columns: slice, margin_px: int) -> Place:
    top, left = max(0, rows.start - margin_px), max(0, columns.start - margin_px)
    return Place(
        slice(top, min(height, rows.stop + margin_px)),
        slice(left, min(width, columns.stop + margin_px)),
        (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)),
    )


def _spread(length: int, count: int) -> list[slice]:
    side = min(SIDE_PX, length)
    gap = (length - count * side) / count
    starts = [round(gap / 2 + index * (side + gap)) for index in range(count)]
    return [slice(start, start + side) for start in starts]
