"""Does a denoiser move to its plan while it works, and away from one that strays? Over a fake TensorRT, on the CPU.

The whole way is ours: graph, gate, float16, a build in a process of its own, store, runner, guard, shelf. TensorRT and
the GPU are stand-ins (see fake_tensorrt and host_device): nothing here was tried on real ones.
"""

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from host_device import HostDevice

from models.catalogue import CATALOGUE, DESCRIBED, DNCNN
from models.quality import psnr_db
from service.building import build_engines, kept
from service.pipeline.denoiser import Tally
from service.pipeline.shelf import Shelf
from service.settings import Settings
from trtbuild import guard
from trtbuild.build import Made, Workshop
from trtbuild.engine import EngineFailed, PrecisionLost
from trtbuild.tensorrt_plan import GpuFacts
from trtbuild.ways import Way

FAKE = Path(__file__).parent / "fake_tensorrt"
FACTS = GpuFacts(name="a GPU that is none", compute_capability="9.0", cuda="13.0", driver="580")
OURS = ("trtbuild.tensorrt_engine", "trtbuild.tensorrt_child", "trtbuild.tensorrt_api")
SMALL = replace(DNCNN, name="small", stages=(replace(DNCNN.stages[0], name="small", halo_px=2),), weights=("small",))
PICTURE = np.random.default_rng(0).integers(0, 256, (96, 80, 3), np.uint8)


def write_graph(folder: Path) -> None:
    """A blur, in two convolutions: small, for it is the CPU that stands in for the GPU."""
    taps = ", ".join("0.1" if column // 9 == row else "0.0" for row in range(3) for column in range(27))
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        stage (float[batch, 3, height, width] noisy) => (float[batch, 3, height, width] restored)
        <float[3,3,3,3] taps = {{{taps}}}>
        {{ once = Conv<pads = [1, 1, 1, 1]>(noisy, taps)
           restored = Conv<pads = [1, 1, 1, 1]>(once, taps) }}"""
    )
    onnx.checker.check_model(model, full_check=True)
    (folder / "small.onnx").write_bytes(model.SerializeToString(deterministic=True))


@pytest.fixture
def machine(monkeypatch, tmp_path) -> Iterator[Callable[..., Settings]]:
    """A machine that would have a GPU and TensorRT, but not torch for it: what serves at first is the CPU."""
    kept_modules = {name: sys.modules.pop(name) for name in ("tensorrt", *OURS) if name in sys.modules}
    monkeypatch.syspath_prepend(str(FAKE))
    fake = importlib.import_module("tensorrt")
    engine = importlib.import_module("trtbuild.tensorrt_engine")
    monkeypatch.setattr(engine, "CudaDevice", lambda: HostDevice(fake._recording))
    monkeypatch.setattr("trtbuild.cuda_device.gpu_facts", lambda: FACTS)
    monkeypatch.setattr("trtbuild.tensorrt_probe.why_not", lambda: None)
    for user in ("service.pipeline.shelf", "service.building"):
        monkeypatch.setattr(f"{user}.nvidia_gpus", lambda: ["GPU-0"])
    monkeypatch.setenv("FAKE_TENSORRT_FAULTS", "{}")
    write_graph(tmp_path)
    for known in (DESCRIBED, CATALOGUE):
        monkeypatch.setitem(known, "small", replace(SMALL, home=tmp_path))

    def settings(**changed: object) -> Settings:
        asked = {"data_dir": tmp_path, "threads": 1, "backend": "tensorrt", "tile_px": 256, "gpu_batch": 2, **changed}
        return Settings(**asked)

    try:
        yield settings
    finally:
        for name in ("tensorrt", *OURS):
            sys.modules.pop(name, None)
        sys.modules.update(kept_modules)


def improve_until(shelf: Shelf, done: Callable[[], bool]) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=shelf.improve, args=(stop,))
    thread.start()
    try:
        deadline = time.monotonic() + 120  # far more than it takes, on a machine that is busy
        while not done():
            assert time.monotonic() < deadline
            stop.wait(0.05)
    finally:
        stop.set()
        thread.join(30)


def test_work_begins_on_another_backend_and_goes_over_to_the_plan_once_it_is_built(machine):
    shelf = Shelf(machine(), makes_store=True)
    at_first = shelf.denoiser("small")
    assert at_first.backend != "tensorrt"
    before = at_first.restore_picture(PICTURE)
    improve_until(shelf, lambda: shelf.loaded()["small"].backend == "tensorrt")
    tally = Tally()
    after = shelf.denoiser("small").restore_picture(PICTURE, tally=tally)
    assert (tally.backend, tally.precision) == ("tensorrt", "fp16")
    assert psnr_db(after, before) > 45  # float16 against bfloat16 or float32
    assert np.array_equal(at_first.restore_picture(PICTURE), before)  # who has it in hand may still use it


def test_the_next_process_begins_with_the_plan(machine):
    settings = machine()
    steps = list(build_engines(["small"], settings, backend="tensorrt", precision="fp16", on_step=lambda *_: None))
    assert [(step.state, step.error) for step in steps] == [("built", None)]
    assert steps[0].psnr_db is not None
    assert steps[0].psnr_db > 50
    assert {one.name.split()[0] for one in kept(settings)} >= {"plan"}
    shelf = Shelf(settings)
    assert shelf.denoiser("small").backend == "tensorrt"
    again = list(build_engines(["small"], settings, backend="tensorrt", precision="fp16", on_step=lambda *_: None))
    assert [step.state for step in again] == ["stored"]


def test_a_plan_that_was_tampered_with_is_not_loaded(machine):
    settings = machine(build_engines=False)
    list(build_engines(["small"], settings, backend="tensorrt", precision="fp16", on_step=lambda *_: None))
    for path in settings.own_engines_dir.glob("*.entry"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert Shelf(settings).denoiser("small").backend != "tensorrt"
    assert list((settings.own_engines_dir / "set-aside").iterdir())


def test_a_plan_that_was_refused_is_not_built_at_every_start(machine, monkeypatch):
    settings = machine(precision="fp16")
    monkeypatch.setitem(guard.FLOORS_DB, "fp16", 300.0)
    (step,) = build_engines(["small"], settings, backend="tensorrt", precision="fp16", on_step=lambda *_: None)
    assert step.state == "failed"
    assert step.error is not None
    assert "300 dB are asked" in step.error
    shelf = Shelf(settings)
    assert shelf.denoiser("small").backend != "tensorrt"
    with pytest.raises(PrecisionLost, match="tries again"):
        shelf.workshop.build(DESCRIBED["small"], DESCRIBED["small"].stages[0], Way("tensorrt", "fp16"))


def test_a_build_that_fails_leaves_the_work_where_it_is(machine, monkeypatch):
    refusals: list[str] = []
    build = Workshop.build

    def listening(workshop: Workshop, *asked: object, **more: object) -> Made:
        try:
            return build(workshop, *asked, **more)
        except EngineFailed as err:
            refusals.append(str(err))
            raise

    monkeypatch.setattr(Workshop, "build", listening)
    monkeypatch.setenv("FAKE_TENSORRT_FAULTS", '{"OnnxParser.parse": "In node 3: unsupported"}')
    shelf = Shelf(machine(), makes_store=True)
    shelf.denoiser("small")
    improve_until(shelf, lambda: len(refusals) == 2)  # in each precision
    assert all("In node 3: unsupported" in refusal for refusal in refusals)
    assert shelf.denoiser("small").backend != "tensorrt"


def test_large_pictures_go_to_the_plan_in_batches_of_whole_tiles_and_come_back_as_from_the_cpu(machine):
    settings = machine()
    list(build_engines(["small"], settings, backend="tensorrt", precision="fp32", on_step=lambda *_: None))
    picture = np.random.default_rng(1).integers(0, 256, (400, 300, 3), np.uint8)
    on_plan = Shelf(machine(precision="fp32")).denoiser("small")
    on_cpu = Shelf(Settings(data_dir=settings.data_dir, threads=1, precision="fp32")).denoiser("small")
    assert (on_plan.backend, on_cpu.backend) == ("tensorrt", "openvino")
    difference = on_plan.restore_picture(picture).astype(int) - on_cpu.restore_picture(picture)
    assert np.abs(difference).max() <= 1  # a rounding apart
