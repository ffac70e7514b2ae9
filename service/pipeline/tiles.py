"""Cuts a frame into tiles and says which part of each is kept.

A tile starts at a multiple of the network's stride, so that strided layers see the same phase as in the whole frame.
Every tile of a large frame has one size, so that an engine meets one shape. Neighbours overlap by twice the halo; the
cut runs through the middle of the overlap, where both have their full context.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tile:
    """What a tile reads of the padded frame, and what of it is kept. Half-open pixel ranges."""

    top: int
    left: int
    height: int
    width: int
    keep_rows: tuple[int, int]  # of the frame
    keep_columns: tuple[int, int]

    @property
    def kept(self) -> tuple[slice, slice]:
        """The kept part, in the frame."""
        return slice(*self.keep_rows), slice(*self.keep_columns)

    @property
    def kept_inside(self) -> tuple[slice, slice]:
        """The kept part, in the tile."""
        rows = slice(self.keep_rows[0] - self.top, self.keep_rows[1] - self.top)
        columns = slice(self.keep_columns[0] - self.left, self.keep_columns[1] - self.left)
        return rows, columns


def plan_tiles(height: int, width: int, *, tile_px: int, halo_px: int, multiple: int) -> list[Tile]:
    """Cover a frame with tiles.

    Args:
        height: of the frame in pixels.
        width: of the frame in pixels.
        tile_px: longest side of a tile; a frame that fits is one tile.
        halo_px: context that a kept pixel has on every side, unless the frame ends there.
        multiple: sides and origins of tiles are multiples of it.

    Raises:
        ValueError: the tile is too small for its halo.
    """
    rows = _cuts(height, tile_px, halo_px, multiple)
    columns = _cuts(width, tile_px, halo_px, multiple)
    return [
        Tile(top, left, tall, wide, keep_rows, keep_columns)
        for top, tall, keep_rows in rows
        for left, wide, keep_columns in columns
    ]


def read_padded(pixels: NDArray[Any], tile: Tile) -> NDArray[Any]:
    """Cut a tile out of [H, W, C]; beyond the frame's right and lower edge it is mirrored."""
    cut = pixels[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
    below, beside = tile.height - cut.shape[0], tile.width - cut.shape[1]
    if below or beside:
        cut = np.pad(cut, ((0, below), (0, beside), (0, 0)), mode="reflect")
    return cut


def _cuts(length: int, tile_px: int, halo_px: int, multiple: int) -> list[tuple[int, int, tuple[int, int]]]:
    """Along one side: (origin, length, kept range) of each tile."""
    padded = up_to(length, multiple)
    tile = tile_px // multiple * multiple
    if padded <= tile:
        return [(0, padded, (0, length))]
    halo = up_to(halo_px, multiple)
    if tile <= 2 * halo:
        raise ValueError(f"a tile of {tile_px} pixels leaves nothing between halos of {halo_px}")
    count = -(-(padded - 2 * halo) // (tile - 2 * halo))
    # Spread evenly: the last tile would otherwise repeat most of its neighbour.
    last = (padded - tile) // multiple
    origins = [round(index * last / (count - 1)) * multiple for index in range(count)]
    seams = [(before + tile + after) // 2 for before, after in pairwise(origins)]
    edges = [0, *seams, length]
    return [(origin, tile, kept) for origin, kept in zip(origins, pairwise(edges), strict=True)]


def up_to(length: int, multiple: int) -> int:
    """The smallest multiple that is no less."""
    return -(-length // multiple) * multiple
