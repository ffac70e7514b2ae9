"""How are pictures and video in PQ shown to networks that know photographs alone?

PQ (SMPTE ST 2084) spends half of its codes below 100 nits and is steep at black: what a sensor adds to light is in its
dark codes many times what it is in the bright ones. Photographs have neither look. So a network sees such frames along
the curve of HLG (ITU-R BT.2100, table 5), whose lower part is near that of photographs and which has room for
highlights, with white at 1000 nits; its result is taken back to PQ.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

PQ = 16  # as H.273 numbers transfer curves
_WHITE = 1000.0  # nits
_STEPS = 65535  # of a table: at black, where PQ is steepest, two of them are a step of 16 bits
_PEAK = 10_000.0
_ROWS = 64  # of a picture, taken at a time
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
_A, _B, _C = 0.17883277, 0.28466892, 0.55991073


class PqCurve:
    """Between the numbers of a video in PQ and those that a network sees."""

    def seen(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """uint8 or uint16 over its whole range to float32 in [0, 1], of the same shape; above white all is white."""
        seen: NDArray[np.float32] = _seen_table(int(np.iinfo(pixels.dtype).max))[pixels]
        return seen

    def stored(
        self, restored: NDArray[np.float32], seen: NDArray[np.float32], noisy: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """What a network made, in PQ.

        Args:
            restored: as the network gave it; what is beyond [0, 1] is cut off.
            seen: what it was made of.
            noisy: that in PQ, on [0, 1]. What is above white was not seen, and stays as it is.
        """
        steps = np.rint(np.clip(restored, 0, 1) * np.float32(_STEPS)).astype(np.uint16)
        made: NDArray[np.float32] = _stored_table()[steps]
        np.copyto(made, noisy, where=seen >= 1)
        return made


@dataclass(frozen=True, slots=True)
class PqScale:
    """`light.Scale` for pictures in PQ, of whole numbers over all of their range."""

    def seen(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        return PqCurve().seen(stored)

    def stored(self, restored: NDArray[np.float32], seen: NDArray[np.float32], was: NDArray[Any]) -> NDArray[Any]:
        """As there: where nothing was changed, and where `was` lies above white, it is `was` itself."""
        most = np.float32(np.iinfo(was.dtype).max)
        made = np.empty_like(was)
        for first in range(0, len(was), _ROWS):
            rows = slice(first, first + _ROWS)
            codes = PqCurve().stored(restored[rows], seen[rows], was[rows].astype(np.float32) / most)
            made[rows] = np.rint(codes * most).astype(was.dtype)
        np.copyto(made, was, where=restored == seen)
        return made


def light_of(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """PQ on [0, 1] to nits (ST 2084, equation 4.1)."""
    power = np.maximum(codes, 0) ** (1 / _M2)
    return np.asarray(_PEAK * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1))


def codes_of(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse (equation 5.2)."""
    light = (np.maximum(nits, 0) / _PEAK) ** _M1
    return np.asarray(((_C1 + _C2 * light) / (1 + _C3 * light)) ** _M2)


@lru_cache(maxsize=2)
def _seen_table(most: int) -> NDArray[np.float32]:
    light = light_of(np.arange(most + 1) / most) / _WHITE
    bright = _A * np.log(np.maximum(12 * light - _B, 1 / 12)) + _C
    return np.where(light <= 1 / 12, np.sqrt(3 * light), bright).clip(0, 1).astype(np.float32)


@lru_cache(maxsize=1)
def _stored_table() -> NDArray[np.float32]:
    curved = np.arange(_STEPS + 1) / _STEPS
    light = np.where(curved <= 0.5, curved**2 / 3, (np.exp((curved - _C) / _A) + _B) / 12)
    return codes_of(light * _WHITE).astype(np.float32)
