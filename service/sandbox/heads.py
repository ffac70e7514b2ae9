"""A video's head as it crosses from the decoder to the worker."""

from collections.abc import Container
from dataclasses import asdict
from fractions import Fraction
from typing import Any

from service.errors import BadInput
from service.job import InputFacts
from service.media.hdr import Light, Mastering
from service.media.head import BOTTOM_FIRST, TOP_FIRST, VideoHead

_FIELD_ORDERS = (TOP_FIRST, BOTTOM_FIRST)
_POINTS = ("red", "green", "blue", "white")
_LIGHT = ("content", "frame_average")
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
            is_interlaced=bool(said["is_interlaced"]),
            field_order=None if said["field_order"] is None else _one_of(said["field_order"], _FIELD_ORDERS),
            by_field=bool(said["by_field"]),
            mastering=_mastering(said["mastering"]),
            light=None if said["light"] is None else Light(**{name: _step(said["light"][name]) for name in _LIGHT}),
            **{name: int(said[name]) for name in _NUMBERS},
        )
        if not head.format.components or head.time_base <= 0 or len(head.display_matrix or range(9)) != 9:
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, IndexError) as err:
        raise BadInput("the decoder gave no video") from err
    return head


def _fraction(said: Any) -> Fraction | None:
    return None if said is None else Fraction(str(said))


def _mastering(said: Any) -> Mastering | None:
    if said is None:
        return None
    points = {name: (_step(said[name][0]), _step(said[name][1])) for name in _POINTS}
    return Mastering(**points, darkest=_step(said["darkest"]), brightest=_step(said["brightest"]))


def _step(said: Any) -> int:
    """A number as encoders take it."""
    return _one_of(said, range(2**31))


def _one_of(said: Any, allowed: Container[int]) -> int:
    if int(said) not in allowed:
        raise ValueError
    return int(said)
