"""Is a frame one moment, or are every other line's pixels another one?

Files tell it, and often wrongly: film in files of television is told to be interlaced, and captures of tape tell
nothing. So frames are looked at. In a film the odd lines of a frame go with its own even lines better than with those
of the frame before or after. In interlaced video they lie halfway between two frames' even lines, and go with both
alike: with their own frame's and the next one's where the even lines come first. Noise is the same in all three
comparisons, and where nothing moves so is the rest; both cancel in their differences.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import dropwhile, islice
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from models.errors import QuietframeError
from service.job import FieldOrder
from service.media.head import TOP_FIRST, VideoHead
from service.media.held import Source
from service.media.opening import OpenVideo
from service.settings import Settings

# Lines of the pictures of television. What tells nothing and has others is not looked at.
_USUAL_HEIGHTS = frozenset({480, 486, 512, 576, 608, 1080, 1088})
_PLACES = (0.0, 0.5)
_PLACES_TOLD = (0.0, 0.25, 0.5, 0.75)  # shares of the length
_FRAMES = 6  # that follow each other, at each place
_UNSOUND = 2  # frames at first that may refer to what was not decoded
# Measured over 16 sequences of DAVIS, at levels of noise from 0 to 50: 0.45 and more as they are, but for some
# single frames; -0.6 to 0.4 woven of two, and up to 0.9 where the motion is jerky.
_HALFWAY = 0.35
_LEAST = 3  # comparisons that must tell something, before a file that tells nothing is taken for interlaced
_MOST_OF = 0.75
_SOME_OF = 0.25  # three of two is a fifth or two of film on television: as little as one in four is enough


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of a frame's odd lines with even ones: mean squares of what they are apart, less those of the frame itself."""

    before: float
    after: float
    doubt: float  # what noise alone makes of it

    @property
    def tells(self) -> bool:
        return max(self.before, self.after) > self.doubt

    def is_halfway(self, usual: float) -> bool:
        """Whether two frames' even lines are as near; at a cut, what is usual says how far the other would be."""
        near, far = sorted((self.before, self.after))
        return near < _HALFWAY * min(far, usual)


def find_field_order(source: Source, settings: Settings, *, sure: bool = False, threads: int = 0) -> FieldOrder | None:
    """Which of its two fields a video's frames begin with; None where a frame is one moment.

    Some frames at a few places are decoded.

    Args:
        sure: It is interlaced; what is asked is which field is first.
        threads: Of the decoder; 0 takes what the machine has.

    Raises:
        BadInput: as for `OpenVideo`.
    """
    with source.open("rb") as file, OpenVideo(file, settings, threads=threads) as video:
        head = video.head
        if not sure and not head.is_interlaced and head.height not in _USUAL_HEIGHTS:
            return None
        places = _PLACES_TOLD if sure or head.is_interlaced else _PLACES
        taken: set[int | None] = set()
        seen = [one for place in places for one in compare(_luma_at(video, place, taken))]
        return _decide(seen, head, sure=sure)


def compare(frames: Iterable[NDArray[Any]]) -> Iterator[Comparison]:
    """Every frame but the first and the last with both of its neighbours; [H, W] each, one component."""
    fields = [_fields_of(lines) for lines in frames if len(lines) > 2]
    for (_, before), (odd, own), (_, after) in zip(fields, fields[1:], fields[2:], strict=False):
        apart = [float(np.mean(np.square(odd - even))) for even in (before, own, after)]
        doubt = 8 * max(apart) * float(np.sqrt(2 / odd.size)) + 0.25
        yield Comparison(apart[0] - apart[1], apart[2] - apart[1], doubt)


def _fields_of(lines: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The odd lines that lie between even ones, and what these would have there."""
    whole = lines[: (len(lines) - 1) // 2 * 2 + 1].astype(np.float32)
    return whole[1::2], (whole[:-2:2] + whole[2::2]) * np.float32(0.5)


def _decide(seen: Sequence[Comparison], head: VideoHead, *, sure: bool) -> FieldOrder | None:
    telling = [one for one in seen if one.tells]
    far = sorted(max(one.before, one.after) for one in telling)
    usual = far[len(far) // 4] if far else 0.0  # there are more ways to be far by more
    halfway = [one for one in telling if one.is_halfway(usual)]
    top_first = sum(one.after < one.before for one in halfway)
    told: FieldOrder = "top" if head.field_order in (None, TOP_FIRST) else "bottom"
    measured: FieldOrder = "top" if 2 * top_first >= len(halfway) else "bottom"
    if sure or head.is_interlaced:
        if telling and len(halfway) < _SOME_OF * len(telling) and not sure:
            return None
        return measured if halfway else told
    alike = top_first in (0, len(halfway))
    if len(telling) >= _LEAST and len(halfway) >= _MOST_OF * len(telling) and alike:
        return measured
    return None


def _luma_at(video: OpenVideo, place: float, taken: set[int | None]) -> list[NDArray[Any]]:
    """Of some frames from a share of the length on, as far as they can be had.

    Args:
        taken: Times of frames that were looked at elsewhere, for few key frames make places fall together. Is added to.
    """
    luma: list[NDArray[Any]] = []
    frames = (
        islice(video.frames_near(place), _UNSOUND, _UNSOUND + _FRAMES) if place else islice(video.frames(), _FRAMES)
    )
    with suppress(QuietframeError, av.FFmpegError, ValueError):  # what is wrong is said where the whole is read
        for frame in islice(dropwhile(lambda frame: frame.pts in taken, frames), _FRAMES):
            taken.add(frame.pts)
            luma.append(frame.reformat(format="gray").to_ndarray())
    return luma
