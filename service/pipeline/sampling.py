"""Looks at some frames of a video to tell its noise, and how good its result is, for little of the time it takes."""

from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from models.noise_level import QUICK_BLOCKS, NoiseLevel, measure_noise
from models.quality_estimate import Evidence
from service.job import Metrics, Options, Part, Sampled
from service.pipeline.denoiser import Denoiser, Pixels
from service.pipeline.probing import (
    Place,
    margin_for,
    noise_told,
    places_in,
    probe_window,
    psnr_told,
    textures_seen,
)
from trtbuild.engine import Array

_EVERY = 24  # frames; noise is measured in one of them
_PLACES = 2  # of a frame, others in the next one
_SHARE = 0.03  # of the network's work, at most, that goes into the estimate of the PSNR
_SHARE_ASKED = 0.25  # where it was asked for
_SQUARES = 3  # of sigma, black and white


class Sampler:
    """Watches the frames of a video, or of a part of it, go by.

    `watch` is called where the network is run, `finish` where results are encoded, each for all frames in order.
    """

    def __init__(
        self, denoiser: Denoiser, options: Options, sigma: float | None, part: Part | None, *, of_fields: bool = False
    ) -> None:
        """
        Args:
            sigma: noise level on the [0, 1] scale, for denoisers that must be told.
            of_fields: what is watched are the fields of interlaced frames, two of each frame of the part.
        """
        self._denoiser, self._sigma = denoiser, sigma
        each = 2 if of_fields else 1
        self._lead = each * part.lead if part else 0
        self._frames = each * part.frames if part else None
        self._reach = denoiser.spec.frames // 2
        self._asked = options.estimate
        self._places: list[Place] = []
        self._stride = 0
        self._cuts: dict[int, list[Array]] = {}  # of the places looked at, the frames of a window so far
        self._everywhere: Array = np.zeros(0, np.float32)  # what the frame looked at consists of
        self._noise: dict[int, NoiseLevel] = {}  # of frames whose result is still to come
        self._last: NoiseLevel | None = None
        self._probed = 0
        self._count = 0
        self._before: NDArray[np.float64] = np.zeros(0)
        self._after: NDArray[np.float64] = np.zeros(0)
        self._evidence = Evidence()

    def watch(self, index: int, planes: Array) -> None:
        """A frame on its way to the network.

        Args:
            index: from the first one decoded.
            planes: [3, H, W] on the scale [0, 1].
        """
        if not self._places:
            self._plan(*planes.shape[1:])
        place = index - self._lead
        centre = self._centre_near(place)
        is_own = place >= 0 and (self._frames is None or place < self._frames)
        if is_own and (place % _EVERY == 0 or place == centre):
            self._noise[place] = self._last = measure_noise(planes)
        if centre is not None:
            self._cut(place - centre, planes)

    def _cut(self, offset: int, planes: Array) -> None:
        """Keep what is looked at of a frame, so far from the middle of its window; at the window's end, look."""
        if offset == -self._reach:
            first = _PLACES * self._probed
            numbers = dict.fromkeys((first + one) % len(self._places) for one in range(_PLACES))
            self._cuts = {number: [] for number in numbers}
        for number, cuts in self._cuts.items():
            cuts.append(self._places[number].of(planes).copy())
        if offset == 0:
            self._everywhere = textures_seen(planes)
        if offset == self._reach and self._cuts and self._last:
            windows = [(self._places[number], cuts) for number, cuts in self._cuts.items()]
            seed = _PLACES * self._probed
            self._evidence.add(
                probe_window(self._denoiser, windows, self._last, self._everywhere, sigma=self._sigma, seed=seed)
            )
            self._cuts = {}
            self._probed += 1

    def finish(self, place: int, restored: Pixels) -> tuple[float | None, float | None]:
        """The result of a frame, counted from the first that has one.

        Returns:
            Levels of the noise measured in the frame and in its result, on the 8-bit scale, where they were.
        """
        noise = self._noise.pop(place, None)
        if noise is None:
            return None, None
        left = measure_noise(restored.transpose(2, 0, 1), most_blocks=QUICK_BLOCKS)
        if not self._count:
            self._before, self._after = (np.zeros((_SQUARES, len(noise.sigma))) for _ in range(2))
        self._count += 1
        self._before += _squares(noise)
        self._after += _squares(left)
        return 255 * noise.mean, 255 * left.mean

    def sampled(self) -> Sampled:
        return Sampled(
            frames=self._count,
            before=self._before.tolist(),
            after=self._after.tolist(),
            evidence=asdict(self._evidence),
        )

    def _plan(self, height: int, width: int) -> None:
        self._places = places_in(height, width, margin_px=margin_for(self._denoiser))
        looked_at = sum(_pixels(place) for place in self._places[:_PLACES])
        share = _SHARE_ASKED if self._asked else _SHARE
        work = 2 * self._denoiser.spec.frames * looked_at / (height * width)  # in frames, at most
        self._stride = max(2 * self._reach + 1, int(np.ceil(work / share)))

    def _centre_near(self, place: int) -> int | None:
        """The frame looked at whose window this one is in, if any."""
        first = self._reach if self._asked else self._stride // 2
        centre = first + round((place - first) / self._stride) * self._stride
        wanted = centre >= first and (self._frames is None or centre < self._frames)
        return centre if wanted and abs(place - centre) <= self._reach else None


def told(samples: Iterable[Sampled], strength: float) -> Metrics:
    """What the samples of a video's parts tell together; the other metrics are left out."""
    frames, evidence = 0, Evidence()
    before: list[NDArray[np.float64]] = []
    after: list[NDArray[np.float64]] = []
    for one in samples:
        evidence.add(Evidence(**one.evidence))
        if one.frames:
            frames += one.frames
            before.append(np.array(one.before))
            after.append(np.array(one.after))
    if not frames:
        return Metrics()
    return Metrics(
        input_noise_estimate=noise_told(_level(np.sum(before, axis=0) / frames)),
        output_noise_estimate=noise_told(_level(np.sum(after, axis=0) / frames)),
        **psnr_told(evidence, strength),
    )


def _squares(noise: NoiseLevel) -> NDArray[np.float64]:
    return np.asarray(np.square([noise.sigma, noise.black, noise.white]))


def _level(squares: NDArray[np.float64]) -> NoiseLevel:
    sigma, black, white = (tuple(float(value) for value in row) for row in np.sqrt(squares))
    return NoiseLevel(sigma, black, white)


def _pixels(place: Place) -> int:
    return len(range(place.rows.start, place.rows.stop)) * len(range(place.columns.start, place.columns.stop))
