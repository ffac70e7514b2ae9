"""Draws what a training run's log says: how the loss fell, and how the PSNR rose."""

import csv
from pathlib import Path

from models.plot import Curve, Panel, svg_of

_PSNR = "psnr_"


def draw_log(log: Path) -> Path:
    """Write the plot of a run's `.csv` beside it, as `.svg`."""
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    minutes = [float(row["minutes"]) for row in rows]
    watched = [name for name in (rows[0] if rows else {}) if name and name.startswith(_PSNR)]

    def curve(column: str, label: str) -> Curve:
        # What was not looked at in a step is not in its row.
        return Curve(label, minutes, [float(row[column]) if row.get(column) else None for row in rows])

    panels = [Panel("loss", "minutes", [curve("loss", "loss")])]
    if watched:
        curves = [curve(name, name.removeprefix(_PSNR)) for name in watched]
        panels.append(Panel("PSNR of pictures kept aside, dB", "minutes", curves))
    plot = log.with_suffix(".svg")
    plot.write_text(svg_of(panels))
    return plot
