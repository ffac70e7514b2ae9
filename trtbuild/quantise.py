"""Makes an 8-bit integer graph of a float32 one, calibrated on pictures that the caller has, for OpenVINO on a CPU.

Post-training quantisation by NNCF: it runs the graph over tiles, notes how large the values get in every layer, and
chooses scales. The picture itself does not pass through 8 bits: the layers on its way stay as they were, as in
`openvino_engine`, and so do coordinates. What comes out runs on this kind of CPU best, holds no picture, and is to be
kept by who calibrated it: we ship none, for the pictures that we train on are not ours to hand on.
"""

import io
import logging
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov

from models.catalogue import DenoiserSpec, StageSpec
from models.errors import NeedsExtra
from trtbuild.engine import Array, Engine, EngineFailed
from trtbuild.guard import Tile, frames_for, tile_through
from trtbuild.openvino_engine import QUANTISED, coordinates, the_core, way_of_picture

TILES = 24  # that scales are made of
TILE_PX = 128
FEWEST_PICTURES = 4
# Of the noise in calibration, from a clean picture to the strongest that networks are trained on.
LEVELS = tuple(level / 255 for level in (0, 5, 15, 25, 35, 50))
SEED = 2026
_NOT_COMPUTING = ("Parameter", "Constant", "Result")
_NO_TIME = (1980, 1, 1, 0, 0, 0)


class TooFewPictures(EngineFailed):
    """Scales that are made of so little would not hold for the next picture."""


def calibration_tiles(
    spec: DenoiserSpec,
    stage: StageSpec,
    pictures: Sequence[Array],
    earlier: Sequence[Engine] = (),
    *,
    count: int = TILES,
    side_px: int = TILE_PX,
) -> list[Tile]:
    """What the stage may be given in earnest, cut from pictures, with noise of all levels.

    Args:
        spec: the denoiser.
        stage: one of its stages.
        pictures: [3, H, W], clean, in [0, 1].
        earlier: engines of the stages before it, in float32.
        count: of tiles.
        side_px: of a tile, about.

    Raises:
        TooFewPictures: there are fewer than `FEWEST_PICTURES` that are as large as a tile.
    """
    side = -(-side_px // spec.multiple) * spec.multiple
    large = [picture for picture in pictures if min(picture.shape[1:]) >= side]
    if len(large) < FEWEST_PICTURES:
        raise TooFewPictures(
            f"there are {len(large)} pictures of at least {side}x{side} to calibrate on; {FEWEST_PICTURES} are needed"
        )
    rng = np.random.default_rng(SEED)
    tiles = []
    for index in range(count):
        picture = large[index % len(large)]
        row, column = (int(rng.integers(length - side + 1)) for length in picture.shape[1:])
        clean = picture[:, row : row + side, column : column + side]
        level = LEVELS[index % len(LEVELS)]
        # A still: what moves has no other range of values.
        frames = clean + level * rng.standard_normal((frames_for(spec, stage), *clean.shape), np.float32)
        frames = np.clip(np.rint(255 * frames), 0, 255).astype(np.float32) / np.float32(255)
        tiles.append(tile_through(spec, stage, frames, level, earlier))
    return tiles


def quantise(graph: bytes, tiles: Sequence[Tile]) -> bytes:
    """Make the graph compute in 8-bit integers where that is harmless; takes some ten seconds.

    Args:
        graph: ONNX in float32, as it ships.
        tiles: that scales are made of.

    Returns:
        For `openvino_engine.open_graph` in int8: OpenVINO's own format, both files in one archive.

    Raises:
        NeedsExtra: NNCF is not installed.
    """
    kind_of_logger = logging.getLoggerClass()
    try:
        import nncf
    except ModuleNotFoundError as err:
        raise NeedsExtra(f"{err.name} is not installed; it comes with: pip install 'quietframe[int8]'") from err
    finally:
        logging.setLoggerClass(kind_of_logger)  # nncf puts its own in, for every library there is
    # Not nncf.set_log_level: that sets the level of every handler too, whoever it is shared with.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = the_core().read_model(graph)
    inputs = {port.get_any_name() for port in model.inputs}
    given = [{name: value for name, value in (("noisy", t.noisy), ("sigma", t.sigma)) if name in inputs} for t in tiles]
    exact = way_of_picture(model) | coordinates(model)
    kept = [
        layer.get_friendly_name()
        for layer in model.get_ordered_ops()
        if layer.get_friendly_name() in exact and layer.get_type_name() not in _NOT_COMPUTING
    ]
    quantised = nncf.quantize(
        model,
        nncf.Dataset(given),
        preset=nncf.QuantizationPreset.MIXED,  # activations on both sides of zero have a zero point
        subset_size=len(given),
        ignored_scope=nncf.IgnoredScope(names=kept),
    )
    return _archive(quantised)


def _archive(model: ov.Model) -> bytes:
    whole = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(whole, "w") as archive:
        paths = [Path(folder) / name for name in QUANTISED]
        ov.serialize(model, *paths)
        for path in paths:
            archive.writestr(zipfile.ZipInfo(path.name, _NO_TIME), path.read_bytes())
    return whole.getvalue()
