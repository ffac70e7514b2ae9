"""Does TensorRT itself build our graphs, and give what the networks give? `pytest -m tensorrt`, on a host that has it.

Never run so far: no machine that this was written on had TensorRT and a GPU. Whoever runs it first writes here and in
docs/tensorrt.md: the date, the versions of TensorRT, CUDA and driver, the GPU, and what was found.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from seeded_networks import STAGES, network_of

from models.catalogue import DNCNN
from models.quality import psnr_db
from models.weights import cut_into_stages
from trtbuild.engine import EngineFailed, ShapeOutsideProfile
from trtbuild.export import export_stage
from trtbuild.store import Store, Tampered
from trtbuild.tensorrt_plan import BuildOptions
from trtbuild.tensorrt_probe import why_not

pytestmark = [pytest.mark.tensorrt, pytest.mark.skipif(why_not() is not None, reason=f"no TensorRT: {why_not()}")]

ROOT = Path(__file__).parent.parent
OPTIONS = BuildOptions(tile_px=256, batch=2, workspace_bytes=1 << 30, contexts=2)
FLOORS_DB = {"fp32": 60.0, "fp16": 50.0}
STAGE = DNCNN.stages[0]


@dataclass(frozen=True)
class Shop:
    store: Store

    def plan(self, stage_name: str, precision: str, options: BuildOptions = OPTIONS):
        import tensorrt

        from trtbuild.cuda_device import gpu_facts
        from trtbuild.tensorrt_build import build_plan

        spec, stage = STAGES[stage_name]
        return build_plan(
            graph_of(stage_name, precision),
            spec,
            stage,
            precision=precision,
            options=options,
            store=self.store,
            gpu=gpu_facts(),
            tensorrt=tensorrt.__version__,
        )

    def engine(self, stage_name: str, precision: str):
        from trtbuild.tensorrt_engine import open_plan

        spec, stage = STAGES[stage_name]
        plan = self.plan(stage_name, precision)
        return open_plan(spec, stage, plan.content, precision=precision, contexts=OPTIONS.contexts)


@cache
def graph_of(stage_name: str, precision: str) -> bytes:
    spec, stage = STAGES[stage_name]
    return export_stage(spec, stage, cut_into_stages(spec, network_of(spec.name))[stage_name], precision)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Shop:
    return Shop(Store(tmp_path_factory.mktemp("shop") / "engines"))


@pytest.fixture(scope="module")
def engine_of(shop) -> Callable:
    return cache(shop.engine)


def windows(stage_name: str, batch: int, height: int, width: int) -> np.ndarray:
    stage = STAGES[stage_name][1]
    planes = stage.frames * stage.planes_in
    down, across = np.mgrid[0:height, 0:width].astype(np.float32) / 20
    clean = 0.5 + 0.4 * np.sin(down[None] + across[None] * np.arange(1, planes + 1)[:, None, None])
    rng = np.random.default_rng([batch, height, width])
    noise = np.float32(25 / 255) * rng.standard_normal((batch, planes, height, width), np.float32)
    return np.ascontiguousarray(clean[None] + noise, np.float32)


def told(batch: int) -> np.ndarray:
    return np.full(batch, 25 / 255, np.float32)


def restored_by_torch(stage_name: str, noisy: np.ndarray) -> np.ndarray:
    import torch

    spec, _stage = STAGES[stage_name]
    network = cut_into_stages(spec, network_of(spec.name))[stage_name].eval()
    with torch.no_grad():
        return network(torch.from_numpy(noisy), torch.from_numpy(told(len(noisy)))).numpy()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("stage_name", STAGES)
def test_a_plan_restores_as_the_network_does_at_every_kind_of_shape(stage_name, precision, engine_of):
    engine = engine_of(stage_name, precision)
    full, smaller = engine.profiles[0], engine.profiles[-1]
    # A full batch of full tiles, out of a graph; the smallest; and both in one.
    sizes = [
        (2, full.height.best, full.width.best),
        (1, smaller.height.smallest, smaller.width.smallest),
        (1, smaller.height.smallest, smaller.width.largest),
    ]
    for batch, height, width in sizes:
        noisy = windows(stage_name, batch, height, width)
        restored = engine.denoise(noisy, told(batch))
        assert np.isfinite(restored).all()
        assert psnr_db(restored, restored_by_torch(stage_name, noisy)) > FLOORS_DB[precision]


def test_a_graph_gives_what_a_run_without_gives(shop, engine_of, monkeypatch):
    from trtbuild.cuda_device import CudaStream

    def refuse(stream, run):
        raise RuntimeError("no graphs in this test")

    with_graphs = engine_of("dncnn", "fp16")
    monkeypatch.setattr(CudaStream, "capture", refuse)
    without = shop.engine("dncnn", "fp16")
    for batch in (1, 2):
        noisy = windows("dncnn", batch, 256, 256)
        difference = with_graphs.denoise(noisy, told(batch)) - without.denoise(noisy, told(batch))
        assert np.abs(difference).max() < 1e-3  # the same kernels, in another order at most


def test_shapes_between_do_not_change_what_a_graph_does(engine_of):
    engine = engine_of("dncnn", "fp16")
    noisy = windows("dncnn", 2, 256, 256)
    first = engine.denoise(noisy, told(2))
    for shape in [(1, 64, 96), (2, 256, 128), (1, 256, 256)]:
        engine.denoise(windows("dncnn", *shape), told(shape[0]))
    assert np.array_equal(engine.denoise(noisy, told(2)), first)


def test_threads_at_once_get_what_they_get_alone(engine_of):
    engine = engine_of("dncnn", "fp16")
    pictures = [windows("dncnn", 1, 256, 192 + 16 * number) for number in range(4)]
    alone = [engine.denoise(noisy, told(1)) for noisy in pictures]
    wrong = []

    def work(number: int) -> None:
        again = [engine.denoise(pictures[number], told(1)) for _ in range(20)]
        wrong.extend(number for restored in again if not np.allclose(restored, alone[number], atol=1e-3))

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_give_what_planes_give(engine_of, dtype):
    from service.pipeline.denoiser import to_pixels, to_planes

    engine = engine_of("dncnn", "fp32")
    pixels = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (2, 256, 256, 3), dtype, endpoint=True)
    planes = engine.denoise(np.stack([to_planes(picture) for picture in pixels]), told(2))
    expected = np.stack([to_pixels(one, pixels.dtype, np.float32(np.iinfo(dtype).max)) for one in planes])
    assert np.array_equal(engine.denoise_pixels(pixels, told(2)), expected)


def test_another_process_takes_the_plan_out_of_the_store(shop):
    shop.plan("dncnn", "fp16")
    code = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
from test_tensorrt_gpu import *
shop = Shop(Store(Path({str(shop.store.folder)!r})))
restored = shop.engine("dncnn", "fp16").denoise(windows("dncnn", 1, 64, 64), told(1))
print(shop.plan("dncnn", "fp16").was_stored, restored.shape)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip().splitlines()[-1] == "True (1, 3, 64, 64)"


def test_other_options_are_another_plan(shop):
    first = shop.plan("dncnn", "fp16")
    other = shop.plan("dncnn", "fp16", replace(OPTIONS, optimization_level=2))
    assert not other.was_stored
    assert first.key != other.key


def test_a_plan_that_was_tampered_with_never_reaches_tensorrt(tmp_path):
    shop = Shop(Store(tmp_path / "engines"))
    plan = shop.plan("dncnn", "fp16")
    path = shop.store.folder / f"{plan.key.digest}.entry"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(Tampered):
        shop.store.read(plan.key)


def test_a_shape_and_a_plan_that_are_not_for_it_are_refused(engine_of):
    from trtbuild.tensorrt_engine import open_plan

    with pytest.raises(ShapeOutsideProfile):
        engine_of("dncnn", "fp16").denoise(windows("dncnn", 3, 256, 256), told(3))
    with pytest.raises(EngineFailed):
        open_plan(DNCNN, STAGE, b"no plan", precision="fp16")


def test_a_build_that_is_given_up_ends(shop):
    import tensorrt

    from trtbuild.cuda_device import gpu_facts
    from trtbuild.tensorrt_build import build_plan

    class Cancelled(Exception):
        pass

    def cancel(share: float, phase: str) -> None:
        if share > 0:
            raise Cancelled

    spec, stage = STAGES["rednet"]
    given = {"precision": "fp16", "store": shop.store, "gpu": gpu_facts(), "tensorrt": tensorrt.__version__}
    with pytest.raises(Cancelled):
        build_plan(
            graph_of("rednet", "fp16"), spec, stage, options=replace(OPTIONS, tile_px=192), on_progress=cancel, **given
        )
