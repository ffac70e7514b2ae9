"""Does a denoiser run by the best way that is ready, and by a better one as soon as that has been built?"""

import shutil
import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from models.catalogue import CATALOGUE
from service.pipeline.shelf import Shelf
from service.settings import Settings
from trtbuild.build import Made, NotBuilt, Workshop
from trtbuild.engine import BackendUnavailable, EngineFailed, OutOfDeviceMemory, PrecisionLost
from trtbuild.store import Store
from trtbuild.ways import Way, ways

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@dataclass
class NamedEngine:
    """Gives back what it gets; says what it was asked to be."""

    backend: str
    precision: str
    batch: int = 1
    contexts: int = 1

    def denoise(self, noisy, sigma):
        return np.concatenate([noisy[:, :3], noisy[:, :1]], 1)


@dataclass
class ScriptedWorkshop:
    """A workshop in which each way is ready, waits to be built, or fails as the test says."""

    fails: dict[str, Exception] = field(default_factory=dict)
    built: set[Way] = field(default_factory=set)
    may_build: threading.Event = field(default_factory=threading.Event)
    opened: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)

    def open(self, spec, stage, way):
        if way.is_built and way not in self.built:
            raise NotBuilt(f"{way} is not built")
        if str(way) in self.fails:
            raise self.fails[str(way)]
        self.opened.append(f"{stage.name} {way}")
        return Made(engine=NamedEngine(way.backend, way.precision or "bf16"), was_stored=True, facts={})

    def build(self, spec, stage, way, *, on_progress):
        while not self.may_build.wait(0.01):
            on_progress(0.5, "building")
        self.tried.append(str(way))
        if str(way) in self.fails:
            raise self.fails[str(way)]
        self.built.add(way)
        return self.open(spec, stage, way)


@pytest.fixture
def on_gpu(monkeypatch):
    """As if there were a GPU: which ways there are depends on that alone."""
    monkeypatch.setattr("service.pipeline.shelf.nvidia_gpus", lambda: ["GPU-0"])


def shelf_with(workshop: ScriptedWorkshop, tmp_path, **settings) -> Shelf:
    shelf = Shelf(Settings(data_dir=tmp_path, **settings))
    shelf.workshop = workshop
    return shelf


def improving(shelf: Shelf, stop: threading.Event) -> threading.Thread:
    thread = threading.Thread(target=shelf.improve, args=(stop,))
    thread.start()
    return thread


def wait_for(shelf: Shelf, name: str, backend: str) -> None:
    deadline = threading.Event()
    for _ in range(1000):
        if shelf.loaded()[name].backend == backend:
            return
        deadline.wait(0.01)
    raise AssertionError(f"{name} is on {shelf.loaded()[name].backend}, not on {backend}")


def test_a_job_in_hand_ends_with_the_engine_it_began_with_and_the_next_has_the_one_that_was_built(on_gpu, tmp_path):
    workshop, stop = ScriptedWorkshop(), threading.Event()
    shelf = shelf_with(workshop, tmp_path)
    in_hand = shelf.denoiser("fitvnet-spatial")
    assert (in_hand.backend, in_hand.precision) == ("torch", "fp16")  # nobody waits for a build
    thread = improving(shelf, stop)
    workshop.may_build.set()
    wait_for(shelf, "fitvnet-spatial", "tensorrt")
    assert np.array_equal(in_hand.restore_picture(PICTURE), PICTURE)
    assert in_hand.backend == "torch"
    assert shelf.denoiser("fitvnet-spatial").precision == "fp16"
    stop.set()
    thread.join(10)


def test_a_plan_that_strays_is_refused_and_the_next_precision_is_built(on_gpu, tmp_path):
    workshop, stop = ScriptedWorkshop({"tensorrt fp16": PrecisionLost("41 dB")}), threading.Event()
    workshop.may_build.set()
    shelf = shelf_with(workshop, tmp_path)
    shelf.denoiser("dncnn")
    thread = improving(shelf, stop)
    wait_for(shelf, "dncnn", "tensorrt")
    assert shelf.denoiser("dncnn").precision == "fp32"
    stop.set()
    thread.join(10)


def test_where_no_build_succeeds_what_serves_goes_on_serving(on_gpu, tmp_path):
    fails = {name: EngineFailed("no kernel for this") for name in ("tensorrt fp16", "tensorrt fp32")}
    workshop, stop = ScriptedWorkshop(fails), threading.Event()
    workshop.may_build.set()
    shelf = shelf_with(workshop, tmp_path)
    shelf.denoiser("dncnn")
    thread = improving(shelf, stop)
    deadline = time.monotonic() + 60
    while len(workshop.tried) < 2:
        assert time.monotonic() < deadline
        stop.wait(0.01)
    stop.set()
    thread.join(10)
    assert workshop.tried == ["tensorrt fp16", "tensorrt fp32"]
    assert shelf.denoiser("dncnn").backend == "torch"


def test_a_worker_that_stops_gives_up_its_build(on_gpu, tmp_path):
    workshop, stop = ScriptedWorkshop(), threading.Event()
    shelf = shelf_with(workshop, tmp_path)
    shelf.denoiser("dncnn")
    thread = improving(shelf, stop)
    stop.set()  # the build never ends by itself
    thread.join(10)
    assert not thread.is_alive()
    assert shelf.denoiser("dncnn").backend == "torch"


def test_an_operator_can_keep_workers_from_building(on_gpu, tmp_path):
    workshop, stop = ScriptedWorkshop(), threading.Event()
    workshop.may_build.set()
    shelf = shelf_with(workshop, tmp_path, build_engines=False)
    shelf.denoiser("dncnn")
    assert shelf._wishes.empty()
    # What is there already is used all the same.
    workshop.built.add(Way("tensorrt", "fp16"))
    assert shelf.denoiser("pridnet").backend == "tensorrt"
    stop.set()


def test_an_engine_that_strays_or_fails_is_passed_over_for_the_next(tmp_path):
    fails = {"openvino": PrecisionLost("bfloat16 is 30 dB off"), "openvino fp32": EngineFailed("illegal instruction")}
    shelf = shelf_with(ScriptedWorkshop(fails), tmp_path)
    assert shelf.denoiser("dncnn").backend == "onnxruntime"


def test_where_nothing_runs_every_reason_is_told(tmp_path):
    names = [str(way) for way in ways(has_gpu=False)]
    shelf = shelf_with(ScriptedWorkshop({name: BackendUnavailable(f"{name} is broken") for name in names}), tmp_path)
    with pytest.raises(BackendUnavailable, match=r"dncnn cannot run.*openvino is broken.*torch fp32 is broken"):
        shelf.denoiser("dncnn")


def test_the_model_used_longest_ago_is_let_go_with_its_engine(tmp_path):
    workshop = ScriptedWorkshop()
    shelf = shelf_with(workshop, tmp_path, loaded_models=2)
    for name in ("dncnn", "pridnet", "dncnn", "rednet"):
        shelf.denoiser(name)
    assert list(shelf.loaded()) == ["dncnn", "rednet"]
    assert {stage.name for stage, _ in shelf._engines} == {"dncnn", "rednet"}
    shelf.denoiser("pridnet")
    assert workshop.opened == [f"{name} openvino" for name in ("dncnn", "pridnet", "rednet", "pridnet")]


def test_denoisers_that_share_a_stage_share_its_engine(tmp_path):
    workshop = ScriptedWorkshop()
    shelf = shelf_with(workshop, tmp_path)
    assert shelf.denoiser("fitvnet").engines[0] is shelf.denoiser("fitvnet-spatial").engines[0]
    assert len(workshop.opened) == len(CATALOGUE["fitvnet"].stages)


def test_a_gpu_that_is_full_leaves_the_job_to_the_cpu(on_gpu, tmp_path):
    shelf = shelf_with(ScriptedWorkshop(), tmp_path)
    denoiser = shelf.denoiser("fitvnet-spatial")

    def full(noisy, sigma):
        raise OutOfDeviceMemory("CUDA out of memory")

    denoiser.engines[0].denoise = full
    assert np.array_equal(denoiser.restore_picture(PICTURE), PICTURE)
    assert [engine.backend for engine in shelf._spares.values()] == ["openvino"]


@pytest.mark.parametrize(
    ("asked", "order"),
    [
        ({"has_gpu": False}, ["openvino", "openvino fp32", "onnxruntime fp32", "torch fp32"]),
        ({"has_gpu": False, "backend": "openvino"}, ["openvino", "openvino fp32"]),
        ({"has_gpu": False, "backend": "torch", "precision": "fp32"}, ["torch fp32"]),
        ({"has_gpu": False, "backend": "openvino", "precision": "fp16"}, ["openvino fp16"]),  # it says itself why not
        (
            {"has_gpu": False, "backend": "openvino", "precision": "int8"},
            ["openvino int8", "openvino", "openvino fp32", "onnxruntime fp32", "torch fp32"],
        ),
    ],
)
def test_what_is_tried_goes_by_the_machine_and_the_settings(asked, order):
    assert [str(way) for way in ways(**asked)] == order


def test_on_a_gpu_plans_come_first_and_the_cpu_last():
    order = [str(way) for way in ways(has_gpu=True)]
    assert order[:3] == ["tensorrt fp16", "tensorrt fp32", "torch fp16"]
    assert order.index("torch fp32") < order.index("openvino") < order.index("onnxruntime fp32")


def test_a_check_is_made_once_and_remembered_by_the_store(tmp_path):
    spec = CATALOGUE["dncnn"]
    store = Store(tmp_path / "engines")
    first = Workshop(store, threads=1).open(spec, spec.stages[0], Way("openvino", "fp32"))
    again = Workshop(store, threads=1).open(spec, spec.stages[0], Way("openvino", "fp32"))
    assert (first.was_stored, again.was_stored) == (False, True)
    assert first.facts == again.facts
    assert first.facts["psnr_db"] > 60


def test_weights_without_a_graph_can_be_run_by_torch_as_after_a_training_run(tmp_path):
    spec = replace(CATALOGUE["dncnn"], home=tmp_path)
    shutil.copy(CATALOGUE["dncnn"].home / "dncnn.safetensors", tmp_path)
    made = Workshop(threads=1).open(spec, spec.stages[0], Way("torch", "fp32"))
    assert made.engine.backend == "torch"
    assert made.facts["reference"] == "torch fp32"
    with pytest.raises(BackendUnavailable, match=r"no graph dncnn\.onnx"):
        Workshop(threads=1).open(spec, spec.stages[0], Way("openvino"))


def test_what_has_to_be_built_is_not_opened_before(tmp_path):
    spec = CATALOGUE["dncnn"]
    with pytest.raises(NotBuilt, match="quietframe build"):
        Workshop(Store(tmp_path / "engines")).open(spec, spec.stages[0], Way("openvino", "int8"))
    with pytest.raises(BackendUnavailable, match="no store"):
        Workshop().open(spec, spec.stages[0], Way("openvino", "int8"))
