"""What is a display told of a video that is brighter than most, and how is an encoder made to tell it again?"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

_CHROMA_STEPS = 50_000  # a step is 0.00002 (SMPTE ST 2086, as HEVC and H.264 carry it)
_LIGHT_STEPS = 10_000  # a step is 0.0001 cd/m2


@dataclass(frozen=True, slots=True)
class Mastering:
    """The display that it was made on (SMPTE ST 2086), in the steps above; 0 throughout where it is not told."""

    red: tuple[int, int]
    green: tuple[int, int]
    blue: tuple[int, int]
    white: tuple[int, int]
    darkest: int
    brightest: int


@dataclass(frozen=True, slots=True)
class Light:
    """The brightest pixel, and the brightest mean of a frame, in cd/m2 (CTA-861.3)."""

    content: int
    frame_average: int


def mastering_in(data: bytes) -> Mastering | None:
    """What the library's AVMasteringDisplayMetadata says: ten fractions, and whether they mean anything."""
    if len(data) < 88:
        return None
    *numbers, has_primaries, has_luminance = struct.unpack_from("=22i", data)
    if not has_primaries and not has_luminance:
        return None
    pairs = list(zip(numbers[0::2], numbers[1::2], strict=True))
    points = [_steps(pair, _CHROMA_STEPS) if has_primaries else 0 for pair in pairs[:8]]
    lights = [_steps(pair, _LIGHT_STEPS) if has_luminance else 0 for pair in pairs[8:]]
    return Mastering(
        red=(points[0], points[1]),
        green=(points[2], points[3]),
        blue=(points[4], points[5]),
        white=(points[6], points[7]),
        darkest=lights[0],
        brightest=lights[1],
    )


def light_in(data: bytes) -> Light | None:
    """What the library's AVContentLightMetadata says."""
    if len(data) < 8:
        return None
    content, frame_average = struct.unpack_from("=2I", data)
    return Light(content, frame_average)


def encoder_options(codec: str, mastering: Mastering | None, light: Light | None) -> dict[str, str] | None:
    """Options by which an encoder tells it within the picture's own bytes; None where it has no way to."""
    told: list[str] = []
    if codec in ("h264", "hevc"):
        display, most = ("mastering-display", "cll") if codec == "h264" else ("master-display", "max-cll")
        if mastering:
            told.append(f"{display}={_points(mastering, 1)}L({mastering.brightest},{mastering.darkest})")
        if light:
            told.append(f"{most}={light.content},{light.frame_average}")
        return {"x264-params" if codec == "h264" else "x265-params": ":".join(told)}
    if codec == "av1":
        if mastering:
            lights = f"L({mastering.brightest / _LIGHT_STEPS:.4f},{mastering.darkest / _LIGHT_STEPS:.4f})"
            told.append(f"mastering-display={_points(mastering, _CHROMA_STEPS)}{lights}")
        if light:
            told.append(f"content-light={light.content},{light.frame_average}")
        return {"svtav1-params": ":".join(told)}
    return None


def _points(mastering: Mastering, scale: int) -> str:
    named = zip("GBR", (mastering.green, mastering.blue, mastering.red), strict=True)
    return "".join(f"{name}({_number(point, scale)})" for name, point in (*named, ("WP", mastering.white)))


def _number(point: Sequence[int], scale: int) -> str:
    return ",".join(str(value) if scale == 1 else f"{value / scale:.5f}" for value in point)


def _steps(pair: tuple[int, int], steps: int) -> int:
    number, parts = pair
    return max(0, min(round(Fraction(number, parts) * steps), 2**31 - 1)) if parts > 0 else 0
