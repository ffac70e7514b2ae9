"""A video's head as it crosses from the decoder to the worker."""

from dataclasses import asdict
from fractions import Fraction
from typing import Any

from service.errors import BadInput
from service.job import InputFacts
from service.media.head import VideoHead

_NUMBERS = ("width", "height", "colorspace", "color_range", "color_primaries", "color_trc", "rotation", "disposition")


def as_said(head: VideoHead) -> dict[str, Any]:
    said = {**asdict(head), "facts": head.facts.model_dump()}
    for name in ("time_base", "rate", "aspect"):
        said[name] = None if said[name] is None else str(said[name])
    return said


def as_heard(said: dict[str, Any]) -> VideoHead:
    """
    Raises:
        BadInput: it is no head; a decoder that says so was taken over by its input.
    """
    try:
        matrix = said["display_matrix"]
        head = VideoHead(
            facts=InputFacts.model_validate(said["facts"]),
            pixel_format=str(said["pixel_format"]),
            time_base=Fraction(str(said["time_base"])),
            rate=_fraction(said["rate"]),
            aspect=_fraction(said["aspect"]),
            display_matrix=None if matrix is None else tuple(int(number) for number in matrix),
            tags={str(name): str(value) for name, value in said["tags"].items()},
            beside=tuple(str(words) for words in said["beside"]),
            **{name: int(said[name]) for name in _NUMBERS},
        )
        if not head.format.components or head.time_base <= 0 or len(head.display_matrix or range(9)) != 9:
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as err:
        raise BadInput("the decoder gave no video") from err
    return head


def _fraction(said: Any) -> Fraction | None:
    return None if said is None else Fraction(str(said))
