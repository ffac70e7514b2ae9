"""Is an engine refused that strays from the float32 reference, and one that does not let through?"""

from dataclasses import replace

import numpy as np
import pytest
from seeded_networks import write_graphs, write_weights

from models.catalogue import CATALOGUE, DESCRIBED, DNCNN, FITVNET, FITVNET_SPATIAL, DenoiserSpec
from models.quality import psnr_db
from trtbuild.engine import Array, Engine, PrecisionLost
from trtbuild.guard import FLOORS_DB, Guard, sample_tiles
from trtbuild.open import open_engine

STAGE = FITVNET_SPATIAL.stages[0]
SMALL = {"height": 64, "width": 64}


class Spoilt:
    """An engine whose results are tampered with."""

    backend = "spoilt"
    batch = contexts = 1

    def __init__(self, engine, spoil, precision="fp16"):
        self._engine, self._spoil, self.precision = engine, spoil, precision
        self.given: list[tuple[Array, Array]] = []

    def denoise(self, noisy: Array, sigma: Array) -> Array:
        self.given.append((noisy, sigma))
        return self._spoil(self._engine.denoise(noisy, sigma))


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard(threads=1)


@pytest.fixture(scope="module")
def exact() -> Engine:
    return open_engine(FITVNET_SPATIAL, STAGE, backend="openvino", precision="fp32", threads=1)


def astray(by_db: float):
    """Adds an error of so many decibels, the same everywhere."""
    return lambda restored: restored + np.float32(10 ** (-by_db / 20))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_an_engine_serves_down_to_its_floor_and_no_further(precision, guard, exact):
    floor = FLOORS_DB[precision]
    found = guard.insist(Spoilt(exact, astray(floor + 0.1), precision), FITVNET_SPATIAL, STAGE, **SMALL)
    assert found.holds
    assert found.psnr_db == pytest.approx(floor + 0.1, abs=0.01)
    assert found.worst == pytest.approx(10 ** (-found.psnr_db / 20), rel=0.01)
    with pytest.raises(PrecisionLost, match=rf"spoilt in {precision} is {floor - 0.1:.1f} dB.*at least {floor:g} dB"):
        guard.insist(Spoilt(exact, astray(floor - 0.1), precision), FITVNET_SPATIAL, STAGE, **SMALL)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_enough_to_refuse(value, guard, exact):
    def spoil(restored):
        restored[0, 3, 40, 2] = value
        return restored

    with pytest.raises(PrecisionLost, match="not finite"):
        guard.insist(Spoilt(exact, spoil), FITVNET_SPATIAL, STAGE, **SMALL)


def test_an_engine_that_fails_at_one_noise_level_alone_is_refused(guard, exact):
    tampered = Spoilt(exact, lambda restored: restored if len(tampered.given) < 3 else astray(30)(restored))
    found = guard.verdict(tampered, FITVNET_SPATIAL, STAGE, **SMALL)
    assert len(tampered.given) == 3
    assert not found.holds
    assert found.psnr_db == pytest.approx(30, abs=0.01)


def test_an_engine_of_another_network_is_refused(guard, exact):
    with pytest.raises(PrecisionLost, match=r"\[1, 3, 64, 64\], where .* \[1, 4, 64, 64\]"):
        guard.insist(Spoilt(exact, lambda restored: restored[:, :3]), FITVNET_SPATIAL, STAGE, **SMALL)
    other = open_engine(DNCNN, DNCNN.stages[0], backend="openvino", precision="fp32", threads=1)
    padded = Spoilt(other, lambda restored: np.concatenate([restored, restored[:, :1]], 1))
    assert not guard.verdict(padded, FITVNET_SPATIAL, STAGE, **SMALL).holds


def test_an_engine_that_was_built_for_one_size_is_tried_at_that_size(guard, exact):
    watched = Spoilt(exact, lambda restored: restored)
    guard.insist(watched, FITVNET_SPATIAL, STAGE, height=48, width=80)
    guard.insist(watched, FITVNET_SPATIAL, STAGE, height=608, width=16)  # the picture has 512 rows
    assert [noisy.shape for noisy, _ in watched.given] == [(1, 3, 48, 80)] * 3 + [(1, 3, 608, 16)] * 3


def test_tiles_are_a_photograph_with_noise_as_it_comes_in_files(guard, exact):
    watched = Spoilt(exact, lambda restored: restored)
    guard.insist(watched, FITVNET_SPATIAL, STAGE, **SMALL)
    for (noisy, sigma), level in zip(watched.given, (5, 20, 50), strict=True):
        assert noisy.dtype == sigma.dtype == np.float32
        assert 0 <= noisy.min() < noisy.max() <= 1
        assert np.abs(noisy * 255 - np.rint(noisy * 255)).max() < 1e-4  # steps of 8 bits
        assert sigma[0] == pytest.approx(level / 255)
        removed = (noisy - exact.denoise(noisy, sigma)[:, :3]).std() * 255
        # Less than was added where noise is clipped; and there is something that is no noise.
        assert 0.5 * level < removed < 1.1 * level


def told(low: float, high: float) -> DenoiserSpec:
    return replace(FITVNET_SPATIAL, sigma=(low, high))


def test_a_level_that_is_told_is_one_that_the_denoiser_may_be_told():
    bounded = told(10 / 255, 30 / 255)
    levels = [float(tile.sigma[0]) for tile in sample_tiles(bounded, bounded.stages[0], [], 16, 16)]
    assert levels == pytest.approx([10 / 255, 20 / 255, 30 / 255])


def test_a_later_stage_is_tried_on_what_the_stages_before_it_give():
    spatial, first, second = FITVNET.stages
    earlier = [
        open_engine(FITVNET, stage, backend="openvino", precision="fp32", threads=1) for stage in (spatial, first)
    ]
    frames = sample_tiles(FITVNET, spatial, [], 32, 32)
    assert [tile.noisy.shape for tile in frames] == [(1, 3, 32, 32)] * 3
    triplets = sample_tiles(FITVNET, first, earlier[:1], 32, 32)
    assert [tile.noisy.shape for tile in triplets] == [(1, 12, 32, 32)] * 3
    for frame, triplet in zip(frames, triplets, strict=True):
        restored = earlier[0].denoise(frame.noisy, frame.sigma)
        assert np.allclose(triplet.noisy[:, :4], restored, atol=1e-5)  # the same first frame
        assert psnr_db(triplet.noisy[:, 4:7], triplet.noisy[:, :3]) < 40  # the picture moves
    assert [tile.noisy.shape for tile in sample_tiles(FITVNET, second, earlier, 32, 32)] == [(1, 12, 32, 32)] * 3


def test_the_reference_is_run_once_for_each_tile_size(exact, monkeypatch):
    opened = []

    def watched(*arguments, **options):
        opened.append(options["precision"])
        return open_engine(*arguments, **options)

    monkeypatch.setattr("trtbuild.guard.open_engine", watched)
    guard = Guard(threads=1)
    for _ in range(2):
        guard.insist(exact, FITVNET_SPATIAL, STAGE, height=16, width=16)
    assert opened == ["fp32"]
    guard.insist(exact, FITVNET_SPATIAL, STAGE, height=16, width=32)
    assert opened == ["fp32", "fp32"]


@pytest.mark.parametrize("name", [name for name, spec in CATALOGUE.items() if spec.weights])
def test_the_graph_in_openvino_is_as_good_a_reference_as_the_network_in_torch(name):
    """A worker has no need of torch then."""
    spec, stage = DESCRIBED[name], DESCRIBED[name].stages[-1]
    engine = open_engine(spec, stage, backend="openvino", precision="fp32", threads=1)
    found = Guard("torch", threads=1).insist(engine, spec, stage, **SMALL)
    assert found.reference == "torch fp32"
    assert found.psnr_db > 100  # sums in another order, at most


def test_a_denoiser_is_held_to_the_weights_in_its_own_home(tmp_path, guard):
    """One that was adapted has others than those that ship."""
    write_graphs(tmp_path, ["dncnn"])
    write_weights(tmp_path, ["dncnn"])
    own = replace(DNCNN, home=tmp_path)
    shipped = open_engine(DNCNN, DNCNN.stages[0], backend="openvino", precision="fp32", threads=1)
    adapted = open_engine(
        own, own.stages[0], backend="openvino", precision="fp32", threads=1, graphs_dir=tmp_path, weights_dir=tmp_path
    )
    for watching in (guard, Guard("torch", threads=1)):
        assert watching.insist(adapted, own, own.stages[0], height=32, width=32).holds
        with pytest.raises(PrecisionLost):
            watching.insist(shipped, own, own.stages[0], height=32, width=32)
