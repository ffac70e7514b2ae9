"""What was measured of each frame of a video: a table, as CSV, JSON and a plot."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Literal

from models.plot import Curve, Panel, svg_of

Form = Literal["csv", "json", "svg"]
CONTENT_TYPES: dict[Form, str] = {"csv": "text/csv", "json": "application/json", "svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class FrameFigures:
    """Of one frame; None where it is not known, or infinite."""

    frame: int  # counted from 0
    sigma_estimate: float | None  # root mean square of what was taken for noise, 8-bit scale
    input_noise_estimate: float | None = None  # measured in the frame itself, in some of them
    output_noise_estimate: float | None = None
    psnr_db: float | None = None  # these three against the reference
    ssim: float | None = None
    input_psnr_db: float | None = None


COLUMNS = tuple(one.name for one in fields(FrameFigures))


class FrameTable:
    """A table that grows frame by frame; as text it is a few dozen bytes a frame."""

    def __init__(self) -> None:
        self._text = io.StringIO()
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._writer.writerow(COLUMNS)
        self.frames = 0

    def add(self, figures: FrameFigures) -> None:
        self._writer.writerow(["" if value is None else _short(value) for value in astuple(figures)])
        self.frames += 1

    def as_csv(self) -> bytes:
        return self._text.getvalue().encode()


def read_csv(data: bytes) -> Iterator[FrameFigures]:
    """What a `FrameTable` wrote."""
    rows = csv.reader(io.StringIO(data.decode()))
    next(rows)
    for row in rows:
        yield FrameFigures(int(row[0]), *(float(value) if value else None for value in row[1:]))


def joined(tables: Iterable[bytes]) -> bytes:
    """Of parts, one after the other; their frames are counted on."""
    whole = FrameTable()
    for table in tables:
        first = whole.frames
        for row in read_csv(table):
            whole.add(replace(row, frame=first + row.frame))
    return whole.as_csv()


def in_form(table: bytes, form: Form) -> bytes:
    """A table that is kept as CSV, as CSV, JSON or a plot."""
    if form == "csv":
        return table
    rows = list(read_csv(table))
    if form == "json":
        frames = [dict(zip(COLUMNS, astuple(row), strict=True)) for row in rows]
        return json.dumps({"frames": frames}).encode()
    return _plot(rows).encode()


def _plot(rows: Sequence[FrameFigures]) -> str:
    places = [float(row.frame) for row in rows]

    def curve(label: str, name: str) -> Curve:
        return Curve(label, places, [getattr(row, name) for row in rows])

    panels = [Panel("Noise taken out, level on the 8-bit scale", "frame", [curve("taken out", "sigma_estimate")])]
    if any(row.psnr_db is not None for row in rows):
        panels = [
            Panel("PSNR, dB", "frame", [curve("restored", "psnr_db"), curve("input", "input_psnr_db")]),
            Panel("SSIM", "frame", [curve("restored", "ssim")]),
            *panels,
        ]
    return svg_of(panels)


def _short(value: float) -> str:
    """Six digits are more than was measured; a frame's number keeps all of its own. What is infinite is left out."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.6g}" if math.isfinite(value) else ""
