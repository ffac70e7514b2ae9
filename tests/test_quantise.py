"""Does a network in 8-bit integers restore nearly what it does in float32, and leave the picture itself alone?"""

import logging
import sys

import cv2
import numpy as np
import pytest

from models.catalogue import FITVNET, FITVNET_SPATIAL, REDNET
from models.errors import NeedsExtra
from models.samples import PORTRAIT
from trtbuild.engine import EngineFailed
from trtbuild.guard import FLOORS_DB, Guard
from trtbuild.open import open_engine
from trtbuild.openvino_engine import open_graph
from trtbuild.quantise import TILE_PX, TILES, TooFewPictures, calibration_tiles, quantise

STAGE = REDNET.stages[0]


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Quarters of the sample portrait: enough to make scales of, if not to make good ones."""
    photo = np.asarray(cv2.imread(str(PORTRAIT), cv2.IMREAD_COLOR_RGB), np.float32).transpose(2, 0, 1) / 255
    return [photo[:, y : y + 256, x : x + 256] for y in (0, 256) for x in (0, 256)]


@pytest.fixture(scope="module")
def small_tiles(pictures):
    """One of each level: quantising is slow."""
    return calibration_tiles(REDNET, STAGE, pictures, count=6, side_px=48)


@pytest.fixture(scope="module")
def quantised(small_tiles) -> bytes:
    return quantise((REDNET.home / "rednet.onnx").read_bytes(), small_tiles)


def test_a_quantised_network_is_within_the_floor_of_its_precision(quantised):
    engine = open_graph(quantised, REDNET, STAGE, precision="int8", threads=1)
    assert (engine.backend, engine.precision) == ("openvino", "int8")
    found = Guard(threads=1).insist(engine, REDNET, STAGE, height=64, width=96)
    assert FLOORS_DB["int8"] < found.psnr_db < 90  # more would be no integers
    layers = engine._request.get_compiled_model().get_runtime_model().get_ordered_ops()
    types = [layer.get_rt_info()["runtimePrecision"].astype(str) for layer in layers]
    assert sum(kind in ("i8", "u8") for kind in types) >= 4  # most of the ten convolutions


def test_a_flat_picture_between_two_of_256_shades_keeps_its_own(quantised):
    """The picture does not pass through 8 bits: what is almost flat is not cut into steps."""
    engine = open_graph(quantised, REDNET, STAGE, precision="int8", threads=1)
    exact = open_engine(REDNET, STAGE, backend="openvino", precision="fp32", threads=1)
    slope = np.broadcast_to(np.linspace(0.5, 0.51, 256, dtype=np.float32), (1, 3, 32, 256)).copy()
    restored = engine.denoise(slope, np.zeros(1, np.float32))
    assert np.abs(restored - exact.denoise(slope, np.zeros(1, np.float32))).max() < 4 / 255
    assert len(np.unique(np.round(restored[0, 1, 16] * 65535))) > 100


def test_quantising_twice_gives_the_same_results_from_half_the_bytes(quantised, small_tiles):
    graph = (REDNET.home / "rednet.onnx").read_bytes()
    again = quantise(graph, small_tiles)
    assert len(again) < 0.6 * len(graph)
    first, second = (
        open_graph(made, REDNET, STAGE, precision="int8", threads=1).denoise(
            small_tiles[3].noisy, np.zeros(1, np.float32)
        )
        for made in (quantised, again)
    )
    assert np.array_equal(first, second)


def test_quantising_leaves_the_logs_of_others_alone(small_tiles, caplog):
    shared = logging.NullHandler(logging.INFO)  # as pytest's, which it puts into loggers that do not propagate
    logging.getLogger("nncf").addHandler(shared)
    try:
        assert quantise((REDNET.home / "rednet.onnx").read_bytes(), small_tiles[:2])
    finally:
        logging.getLogger("nncf").removeHandler(shared)
    assert shared.level == logging.INFO
    logging.getLogger("service.test").warning("is heard")
    logging.getLogger("nncf").warning("is not")
    assert caplog.messages == ["is heard"]
    assert type(logging.getLogger("somebody.new")) is logging.Logger


def test_calibration_tiles_are_cut_from_the_pictures_with_noise_of_every_level(pictures):
    tiles = calibration_tiles(FITVNET_SPATIAL, FITVNET_SPATIAL.stages[0], pictures)
    assert len(tiles) == TILES
    assert {tile.noisy.shape for tile in tiles} == {(1, 3, TILE_PX, TILE_PX)}
    assert sorted({round(255 * float(tile.sigma[0])) for tile in tiles}) == [0, 5, 15, 25, 35, 50]
    for tile in tiles:
        assert tile.noisy.dtype == np.float32
        assert 0 <= tile.noisy.min() < tile.noisy.max() <= 1
        if tile.sigma[0] == 0:
            assert any(_is_part_of(tile.noisy[0], picture) for picture in pictures)


def _is_part_of(tile: np.ndarray, picture: np.ndarray) -> bool:
    found = cv2.matchTemplate(picture.transpose(1, 2, 0), tile.transpose(1, 2, 0), cv2.TM_SQDIFF)
    return bool(found.min() < 0.1)


def test_a_later_stage_is_calibrated_on_what_the_one_before_gives(pictures):
    spatial, first, _second = FITVNET.stages
    earlier = [open_engine(FITVNET, spatial, backend="openvino", precision="fp32", threads=1)]
    tiles = calibration_tiles(FITVNET, first, pictures, earlier, count=2, side_px=32)
    assert [tile.noisy.shape for tile in tiles] == [(1, 12, 32, 32)] * 2
    assert np.ptp(tiles[0].noisy[:, 3]) > 0  # the noise map that comes with a frame


def test_too_few_pictures_are_refused(pictures):
    small = [picture[:, :100] for picture in pictures]
    with pytest.raises(TooFewPictures, match=r"there are 3 pictures of at least 128x128 .*; 4 are needed"):
        calibration_tiles(REDNET, STAGE, [*pictures[:3], *small])


def test_what_is_no_quantised_graph_is_refused(quantised):
    for broken in (b"", quantised[: len(quantised) // 2], (REDNET.home / "rednet.onnx").read_bytes()):
        with pytest.raises(EngineFailed, match="does not take the graph of rednet"):
            open_graph(broken, REDNET, STAGE, precision="int8", threads=1)


def test_without_nncf_the_message_says_how_to_get_it(small_tiles, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(NeedsExtra, match=r"nncf is not installed; .* 'quietframe\[int8\]'"):
        quantise(b"", small_tiles)
