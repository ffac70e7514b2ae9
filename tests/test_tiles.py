"""A frame is cut into tiles and put together again without a seam, a gap or a pixel too many."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.pipeline.tiles import plan_tiles, read_padded

SIZES = st.integers(1, 3000)
MULTIPLES = st.sampled_from([1, 4, 16])


@given(SIZES, SIZES, st.sampled_from([128, 256, 512, 700]), st.integers(0, 40), MULTIPLES)
def test_every_pixel_is_kept_once_with_its_whole_halo(height, width, tile_px, halo_px, multiple):
    kept = np.zeros((height, width), np.uint8)
    for tile in plan_tiles(height, width, tile_px=tile_px, halo_px=halo_px, multiple=multiple):
        kept[tile.kept] += 1
        assert tile.top % multiple == tile.left % multiple == tile.height % multiple == tile.width % multiple == 0
        assert max(tile.height, tile.width) <= tile_px
        for start, length, keep, side in (
            (tile.top, tile.height, tile.keep_rows, height),
            (tile.left, tile.width, tile.keep_columns, width),
        ):
            assert start == 0 or keep[0] - start >= halo_px
            assert keep[1] == side or start + length - keep[1] >= halo_px
    assert (kept == 1).all()


@given(st.integers(600, 3000), st.integers(600, 3000))
def test_all_tiles_of_a_large_frame_have_one_size(height, width):
    tiles = plan_tiles(height, width, tile_px=512, halo_px=32, multiple=16)
    assert {(tile.height, tile.width) for tile in tiles} == {(512, 512)}


def test_a_tile_that_is_all_halo_is_refused():
    with pytest.raises(ValueError, match="a tile of 128 pixels leaves nothing between halos of 64"):
        plan_tiles(1000, 1000, tile_px=128, halo_px=64, multiple=16)


def test_beyond_the_edge_the_frame_is_mirrored():
    pixels = np.arange(9, dtype=np.uint8).reshape(1, 9, 1)
    (tile,) = plan_tiles(1, 9, tile_px=64, halo_px=0, multiple=4)
    padded = read_padded(pixels, tile)
    assert padded.shape == (4, 12, 1)
    assert padded[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 7, 6, 5]
    assert (padded == padded[0]).all()
