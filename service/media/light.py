"""What do the numbers of a picture mean, and how are they shown to networks that know photographs alone?

Networks have learnt from pictures as screens take them: from 0 to 1, along the sRGB curve. A floating-point picture
holds light itself, on a scale of its own, and so do some of whole numbers. They are seen through the curve, restored,
and taken back; a value that the network left as it was is the stored one again, bit for bit.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]

_LOOKED_AT = 1 << 20  # values of a picture
_LOW, _HIGH = 0.1, 99.9  # per cent of the values that may lie beyond black and white
_MOSTLY = 95.0  # per cent below 1: what is above it is the sun, a lamp, a glint
_FAINT = 1 / 32  # a picture that is nowhere brighter has a scale of its own
_LINEAR_GAMMA = (0.95, 1.05)
_ICC_CURVES = (b"rTRC", b"gTRC", b"bTRC", b"kTRC")
_MOST_ICC_TAGS = 256
_ROWS = 64  # taken at a time: what is computed on the way takes as much memory as they do, several times


@dataclass(frozen=True, slots=True)
class Scale:
    """How stored values become what a network sees, and back."""

    is_linear: bool  # the values are light, to which eyes and networks are used along the sRGB curve
    black: float = 0.0
    white: float = 1.0
    most: float = 1.0  # what whole numbers are divided by first

    def seen(self, stored: Values) -> NDArray[np.float32]:
        """[0, 1], float32; what is not finite is black."""
        made = np.empty(stored.shape, np.float32)
        for rows in _bands(len(stored)):
            made[rows] = self._seen(stored[rows])
        return made

    def _seen(self, stored: Values) -> NDArray[np.float32]:
        seen = stored.astype(np.float32)
        if stored.dtype.kind != "u":
            np.nan_to_num(seen, copy=False, nan=self.black, posinf=self.white, neginf=self.black)
        seen -= np.float32(self.black * self.most)
        seen /= np.float32((self.white - self.black) * self.most)
        np.clip(seen, 0, 1, out=seen)
        return encoded(seen) if self.is_linear else seen

    def stored(self, restored: NDArray[np.float32], seen: NDArray[np.float32], was: Values) -> Values:
        """What is written of a restored picture.

        Args:
            restored: on the scale [0, 1].
            seen: what it was restored from, by `seen`.
            was: as it was stored.

        Returns:
            Of the type of `was`. Where nothing was changed, and where `was` lies above white or is no number, it is
            `was` itself.
        """
        made = np.empty_like(was)
        for rows in _bands(len(was)):
            made[rows] = self._stored(restored[rows], seen[rows], was[rows])
        return made

    def _stored(self, restored: NDArray[np.float32], seen: NDArray[np.float32], was: Values) -> Values:
        light = decoded(restored) if self.is_linear else restored.copy()
        light *= np.float32((self.white - self.black) * self.most)
        light += np.float32(self.black * self.most)
        if was.dtype.kind == "u":
            np.rint(light, out=light)
        made: Values = np.clip(light, 0, self.most).astype(was.dtype) if was.dtype.kind == "u" else light
        kept = restored == seen
        if was.dtype.kind == "f":
            kept |= ~np.isfinite(was) | (was > self.white)
        np.copyto(made, was, where=kept)
        return made

    def goes_beyond(self, stored: Values) -> bool:
        """Whether a picture has values that `seen` cuts off."""
        if stored.dtype.kind == "u":
            return False
        return any(
            not np.all((stored[rows] >= self.black) & (stored[rows] <= self.white)) for rows in _bands(len(stored))
        )


def scale_of(pixels: Values, *, is_linear: bool) -> Scale | None:
    """The scale of a picture; None where whole numbers are what networks know.

    A floating-point picture whose values are mostly below 1 is white at 1, and what is brighter is left as it is.
    Otherwise nearly all values lie between black and white, as in counts of photons or of a camera's own numbers.
    """
    if pixels.dtype.kind == "u":
        return Scale(is_linear=True, most=float(np.iinfo(pixels.dtype).max)) if is_linear else None
    flat = pixels.reshape(-1)
    some = flat[:: max(1, flat.size // _LOOKED_AT)]
    some = some[np.isfinite(some)]
    if not some.size:
        return Scale(is_linear)
    low, mostly, high = (float(value) for value in np.percentile(some, (_LOW, _MOSTLY, _HIGH)))
    black = min(0.0, low)
    white = 1.0 if mostly <= 1 and high > _FAINT else high
    if not white - black > 1e-30 or not white - black < 1e30:  # one value everywhere, or beyond what float32 can scale
        return Scale(is_linear)
    return Scale(is_linear, black, white)


def _bands(rows: int) -> Iterator[slice]:
    return (slice(first, first + _ROWS) for first in range(0, rows, _ROWS))


def encoded(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Light to the sRGB curve (IEC 61966-2-1), both on [0, 1]."""
    curved = np.power(np.maximum(light, np.float32(0.0031308)), np.float32(1 / 2.4))
    curved *= np.float32(1.055)
    curved -= np.float32(0.055)
    np.multiply(light, np.float32(12.92), out=curved, where=light <= np.float32(0.0031308))
    return curved


def decoded(curved: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sRGB curve to light."""
    light = (np.maximum(curved, np.float32(0.04045)) + np.float32(0.055)) / np.float32(1.055)
    np.power(light, np.float32(2.4), out=light)
    np.multiply(curved, np.float32(1 / 12.92), out=light, where=curved <= np.float32(0.04045))
    return light


def profile_curve_is_linear(icc: bytes) -> bool | None:
    """Whether a profile says that values are light; None where its curves do not tell (ICC.1:2022, 10.6 and 10.18)."""
    (count,) = struct.unpack(">I", icc[128:132]) if len(icc) >= 132 else (0,)
    told = []
    for number in range(min(count, _MOST_ICC_TAGS)):
        entry = icc[132 + 12 * number : 144 + 12 * number]
        if len(entry) < 12:
            break
        name, at, size = struct.unpack(">4sII", entry)
        if name in _ICC_CURVES:
            told.append(_is_straight(icc[at : at + size]))
    return all(told) if told else None


def gamma_is_linear(gamma: float) -> bool:
    return _LINEAR_GAMMA[0] <= gamma <= _LINEAR_GAMMA[1]


def _is_straight(curve: bytes) -> bool:
    if len(curve) < 12:
        return False
    kind, number = curve[:4], int.from_bytes(curve[8:12], "big")
    if kind == b"curv":
        if number == 0:
            return True
        if number == 1:
            return gamma_is_linear(int.from_bytes(curve[12:14], "big") / 256)
        points = np.frombuffer(curve[12 : 12 + 2 * min(number, len(curve))], ">u2").astype(np.float64)
        if len(points) < 2:
            return False
        return bool(np.abs(points / 65535 - np.linspace(0, 1, len(points))).max() < 0.01)
    if kind == b"para" and len(curve) >= 16:
        return number >> 16 == 0 and gamma_is_linear(int.from_bytes(curve[12:16], "big", signed=True) / 65536)
    return False
