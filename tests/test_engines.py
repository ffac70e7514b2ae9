"""Does every backend run every stage as the float32 reference does?"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
from seeded_networks import DENOISERS, STAGES, write_graphs, write_weights

from models.catalogue import CATALOGUE, DNCNN, FITVNET, DenoiserSpec
from models.errors import UnknownDenoiser
from models.quality import psnr_db
from models.weights import stage_modules
from trtbuild import onnxruntime_engine, openvino_engine
from trtbuild.engine import BackendUnavailable, Engine, EngineFailed, Precision
from trtbuild.open import backends, open_engine

HAS_BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
RUNS: list[tuple[str, Precision]] = [
    ("torch", "fp32"),
    ("openvino", "fp32"),
    ("onnxruntime", "fp32"),
    ("onnxruntime", "fp16"),
]
RUNS += [("openvino", "bf16")] if HAS_BF16 else []
SIZES = [(2, 64, 96), (1, 80, 48), (3, 16, 16)]  # batch, height, width; more where a denoiser needs more
TOLD = np.full(3, 25 / 255, np.float32)


@dataclass(frozen=True)
class Home:
    graphs_dir: Path
    weights_dir: Path


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    folder = tmp_path_factory.mktemp("denoisers")
    return Home(write_graphs(folder / "graphs"), write_weights(folder / "weights"))


@pytest.fixture(scope="module")
def opened(home) -> Callable[[str, str, Precision | None], Engine]:
    @cache
    def opened(stage_name: str, backend: str, precision: Precision | None = None) -> Engine:
        spec, stage = STAGES[stage_name]
        return open_engine(
            spec,
            stage,
            backend=backend,
            precision=precision,
            threads=1,
            graphs_dir=home.graphs_dir,
            weights_dir=home.weights_dir,
        )

    return opened


@pytest.fixture(scope="module")
def expected(home) -> Callable[[str, tuple[int, int, int]], np.ndarray]:
    """What the network itself gives, in float32."""

    @cache
    def network(name: str) -> dict[str, torch.nn.Module]:
        return stage_modules(DENOISERS[name], home.weights_dir)

    @cache
    def expected(stage_name: str, size: tuple[int, int, int]) -> np.ndarray:
        stage = network(STAGES[stage_name][0].name)[stage_name]
        with torch.no_grad():
            restored = stage(torch.from_numpy(windows(stage_name, *size)), torch.from_numpy(TOLD[: size[0]])).numpy()
        restored.setflags(write=False)
        return restored

    return expected


@pytest.fixture(params=RUNS, ids=lambda run: " ".join(run))
def run(request) -> tuple[str, Precision]:
    return request.param


def sizes_for(spec: DenoiserSpec) -> list[tuple[int, int, int]]:
    def whole(side: int) -> int:
        return -(-side // spec.multiple) * spec.multiple

    return [(batch, whole(height), whole(width)) for batch, height, width in SIZES]


def windows(stage_name: str, batch: int, height: int, width: int) -> np.ndarray:
    """A picture with noise of level 25; where the stage takes it, a noise map that says so, or the picture cleaner."""
    stage = STAGES[stage_name][1]
    rng = np.random.default_rng([batch, height, width])
    down, across = np.mgrid[0:height, 0:width].astype(np.float32) / 20
    clean = 0.5 + 0.4 * np.sin(down[None] + across[None] * np.arange(1, 4)[:, None, None])
    planes = np.broadcast_to(clean, (batch, stage.frames, 3, height, width)).astype(np.float32)
    planes = planes + np.float32(25 / 255) * rng.standard_normal(planes.shape, np.float32)
    if stage.planes_in == 4:
        planes = np.concatenate([planes, np.full_like(planes[:, :, :1], 25 / 255)], 2)
    elif stage.planes_in == 6:
        planes = np.concatenate([(clean + (planes - clean) / 2).astype(np.float32), planes], 2)
    return np.ascontiguousarray(planes.reshape(batch, -1, height, width))


@pytest.mark.parametrize("stage_name", STAGES)
def test_an_engine_restores_as_the_network_does(stage_name, run, opened, expected):
    spec, stage = STAGES[stage_name]
    engine = opened(stage_name, *run)
    assert (engine.backend, engine.precision) == run
    for size in sizes_for(spec):
        noisy, exact = windows(stage_name, *size), expected(stage_name, size)
        middle = noisy[:, stage.frames // 2 * stage.planes_in :][:, :3]
        assert np.std(exact[:, :3] - middle) > 0.02  # it does something
        restored = engine.denoise(noisy, TOLD[: size[0]])
        assert restored.shape == (size[0], stage.planes_out, *size[1:])
        assert restored.dtype == np.float32
        if engine.precision == "fp32":
            # Sums in another order: 1e-6 is met, more would be another network.
            assert np.abs(restored - exact).max() < 1e-4
        else:
            # Two or three digits of a correction as large as the noise: 59 to 117 dB are met. At 55 dB the rounding
            # would cost a picture that is restored to 35 dB 0.04 dB.
            assert psnr_db(restored, exact) > 55


def test_threads_are_not_pinned_to_cores_that_another_worker_pins_its_own_to(opened):
    engine = opened("fitvnet-spatial", "openvino")
    assert engine._request.get_compiled_model().get_property("ENABLE_CPU_PINNING") is False


@pytest.mark.skipif(not HAS_BF16, reason="needs a CPU with bfloat16")
@pytest.mark.parametrize("stage_name", ["fitvnet-spatial", "rednet", "dsc"])
def test_the_picture_itself_is_not_rounded_to_bfloat16(stage_name, opened):
    """These carry it through their last convolutions. All in bfloat16 that is 49 to 54 dB here, and banding."""
    noisy = windows(stage_name, 1, 96, 96)
    exact = opened(stage_name, "openvino", "fp32").denoise(noisy, TOLD[:1])
    rounded = opened(stage_name, "openvino", "bf16").denoise(noisy, TOLD[:1])
    assert psnr_db(rounded, exact) > 65


def test_a_batch_is_restored_like_its_members_one_by_one(run, opened):
    for stage_name in ("fitvnet-spatial", "fitvnet-first"):
        engine = opened(stage_name, *run)
        noisy = windows(stage_name, 3, 48, 64)
        together = engine.denoise(noisy, TOLD)
        for index in range(3):
            alone = engine.denoise(noisy[index : index + 1], TOLD[:1])
            assert np.abs(together[index] - alone[0]).max() < 1e-5  # sums in another order, at most


def test_the_input_is_left_as_it_was_and_the_output_is_the_callers(run, opened):
    engine = opened("fitvnet-first", *run)
    noisy = windows("fitvnet-first", 1, 32, 48)
    before = noisy.copy()
    noisy.setflags(write=False)
    first = engine.denoise(noisy, TOLD[:1])
    kept = first.copy()
    second = engine.denoise(windows("fitvnet-first", 2, 32, 48)[1:], TOLD[:1])
    assert np.array_equal(noisy, before)
    assert np.array_equal(first, kept)
    assert not np.shares_memory(first, second)
    assert not np.shares_memory(first, noisy)
    assert first.flags.c_contiguous
    first += 1  # writable


def test_the_same_windows_give_the_same_result(run, opened):
    engine = opened("fitvnet-spatial", *run)
    noisy = windows("fitvnet-spatial", 1, 64, 64)
    first = engine.denoise(noisy, TOLD[:1])
    engine.denoise(windows("fitvnet-spatial", 2, 32, 80), TOLD[:2])  # another shape between
    assert np.array_equal(engine.denoise(noisy, TOLD[:1]), first)


def test_a_denoiser_that_must_be_told_the_level_is_told_it(tmp_path):
    planes = ["batch", 3, "height", "width"]
    scaled = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        told (float[{", ".join(map(str, planes))}] noisy, float[batch] sigma)
          => (float[{", ".join(map(str, planes))}] restored)
        <int64[3] axes = {{1, 2, 3}}> {{ level = Unsqueeze(sigma, axes)
          restored = Mul(noisy, level) }}"""
    )
    (tmp_path / "dncnn.onnx").write_bytes(scaled.SerializeToString())
    told = replace(DNCNN, sigma=(0.0, 1.0))
    engine = open_engine(told, told.stages[0], backend="openvino", precision="fp32", threads=1, graphs_dir=tmp_path)
    noisy = windows("dncnn", 2, 16, 16)
    restored = engine.denoise(noisy, np.array([0.5, 0.25], np.float32))
    assert np.allclose(restored, noisy * np.array([0.5, 0.25], np.float32)[:, None, None, None])


def test_auto_takes_the_first_backend_that_is_there(opened):
    usable = [name for name, why_not in backends().items() if why_not is None]
    assert usable == ["openvino", "onnxruntime", "torch"]
    engine = opened("fitvnet-second", "auto")
    assert engine.backend == "openvino"
    assert engine.precision == ("bf16" if HAS_BF16 else "fp32")


def test_a_backend_that_is_not_there_says_what_would_help():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['onnxruntime', 'openvino', 'torch']))\n"
        "from models.catalogue import DNCNN; from trtbuild.engine import BackendUnavailable\n"
        "from trtbuild.open import backends, open_engine\n"
        "print(backends())\n"
        "for name in ('auto', 'torch'):\n"
        "    try: open_engine(DNCNN, DNCNN.stages[0], backend=name)\n"
        "    except BackendUnavailable as err: print(err)\n"
    )
    root = Path(__file__).parent.parent
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    listed, auto, torch_alone = said.splitlines()
    assert "'openvino': 'openvino is not installed; it comes with: pip install openvino'" in listed
    assert "onnxruntime is not installed; it comes with: pip install 'quietframe[onnxruntime]'" in auto
    assert torch_alone == "torch: torch is not installed; it comes with: pip install 'quietframe[torch]'"


def said_with_broken(*packages: str, folder: Path) -> str:
    """What `auto` comes to where packages are installed but their shared libraries cannot be loaded."""
    for package in packages:
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text("raise OSError('libbroken.so: cannot open shared object file')")
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "from models.catalogue import FITVNET_SPATIAL as spec; from trtbuild.engine import BackendUnavailable\n"
        "from trtbuild.open import open_engine\n"
        "try: print(open_engine(spec, spec.stages[0], threads=1).backend)\n"
        "except BackendUnavailable as err: print(err)\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    return done.stdout.strip()


def test_auto_passes_over_a_backend_that_is_installed_but_broken(tmp_path):
    assert said_with_broken("openvino", folder=tmp_path) == "onnxruntime"
    assert said_with_broken("onnxruntime", folder=tmp_path) == "torch"


def test_where_every_backend_is_broken_auto_tells_the_reason_of_each(tmp_path):
    said = said_with_broken("openvino", "onnxruntime", "torch", folder=tmp_path)
    for name in ("openvino", "onnxruntime", "torch"):
        assert f"{name} is installed but does not load: libbroken.so" in said


def test_what_cannot_be_opened_is_refused_with_the_reason(tmp_path):
    stage = DNCNN.stages[0]
    with pytest.raises(BackendUnavailable, match="'onnx'; there are openvino: usable"):
        open_engine(DNCNN, stage, backend="onnx")
    with pytest.raises(BackendUnavailable, match=r"no graph dncnn\.onnx"):
        open_engine(DNCNN, stage, backend="openvino", graphs_dir=tmp_path)
    with pytest.raises(UnknownDenoiser, match=r"no weights dncnn\.safetensors"):
        open_engine(DNCNN, stage, backend="torch", weights_dir=tmp_path)


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("openvino", "fp16"), ("openvino", "int8"), ("onnxruntime", "bf16"), ("onnxruntime", "int8"), ("torch", "int8")],
)
def test_a_precision_that_a_backend_cannot_have_of_itself_is_refused(backend, precision, opened):
    with pytest.raises(BackendUnavailable, match=precision):
        opened("dncnn", backend, precision)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can")
def test_torch_on_the_cpu_has_no_half_precision(opened):
    with pytest.raises(BackendUnavailable, match="on cpu runs in fp32; not in fp16"):
        opened("dncnn", "torch", "fp16")


@pytest.mark.parametrize("backend", [openvino_engine, onnxruntime_engine], ids=["openvino", "onnxruntime"])
def test_a_graph_at_hand_runs_like_the_one_in_the_folder(backend, opened, home):
    spec, stage = STAGES["fitvnet-first"]
    graph = (home.graphs_dir / "fitvnet-first.onnx").read_bytes()
    engine = backend.open_graph(graph, spec, stage, precision="fp32", threads=1)
    noisy = windows("fitvnet-first", 1, 32, 48)
    from_folder = opened("fitvnet-first", engine.backend, "fp32").denoise(noisy, TOLD[:1])
    assert np.array_equal(engine.denoise(noisy, TOLD[:1]), from_folder)
    with pytest.raises(EngineFailed, match=f"{engine.backend} does not take the graph of fitvnet-first"):
        backend.open_graph(graph[:1000], spec, stage, precision="fp32", threads=1)


def test_what_onnx_runtime_fails_of_is_told_in_its_words(opened):
    engine = opened("fitvnet-first", "onnxruntime", "fp32")
    with pytest.raises(EngineFailed, match="noisy"):
        engine.denoise(np.zeros((1, 5, 16, 16), np.float32), TOLD[:1])


def test_looking_for_backends_loads_none():
    code = (
        "import sys, trtbuild.open; trtbuild.open.backends()\n"
        "print({'torch', 'openvino', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    root = Path(__file__).parent.parent
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    assert said == "set()\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("stage_name", STAGES)
def test_half_precision_on_a_gpu_restores_as_the_network_does(stage_name, opened, home):
    spec, _stage = STAGES[stage_name]
    engine = opened(stage_name, "torch")
    assert engine.precision == "fp16"
    network = stage_modules(spec, home.weights_dir)[stage_name]
    noisy = windows(stage_name, 2, 64, 96)
    with torch.no_grad():
        expected = network(torch.from_numpy(noisy), torch.from_numpy(TOLD[: len(noisy)])).numpy()
    assert psnr_db(engine.denoise(noisy, TOLD[:2]), expected) > 60


def test_the_shipped_video_cascade_runs_from_its_graphs():
    assert importlib.util.find_spec("openvino")
    noisy = windows("fitvnet-spatial", 5, 48, 64)
    frames = noisy
    for stage in FITVNET.stages:
        engine = open_engine(FITVNET, stage, threads=1)
        count = len(frames) - stage.frames + 1
        batch = np.stack([frames[t : t + stage.frames].reshape(-1, 48, 64) for t in range(count)])
        frames = engine.denoise(np.ascontiguousarray(batch), np.zeros(count, np.float32))
    assert frames.shape == (1, 3, 48, 64)
    clean = windows("fitvnet-spatial", 5, 48, 64).mean(0)
    assert CATALOGUE["fitvnet"].frames == 5
    # Five noise draws over one picture: their mean is 7 dB better than one of them, and the cascade is to be no worse.
    assert psnr_db(frames[0], clean) > psnr_db(noisy[2], clean)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's word on a signal's stack")
def test_a_signal_finds_the_main_threads_own_stack_whatever_engines_come_and_go():
    """OpenVINO's plugin leaves a thread that it was loaded on with a stack for signals that is gone."""
    code = """
import ctypes, gc, os, signal, threading
from models.catalogue import DNCNN
from trtbuild.open import open_engine

def opened():
    return open_engine(DNCNN, DNCNN.stages[0], backend="openvino", threads=1)

engines = [opened()]
thread = threading.Thread(target=lambda: (engines.pop(), gc.collect(), engines.append(opened())))
thread.start(); thread.join()

class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

stack = Stack()
assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
print(stack.flags == 2)  # SS_DISABLE: there is none but its own
caught = []
signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
os.kill(os.getpid(), signal.SIGTERM)
print(caught)
"""
    root = Path(__file__).parent.parent
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert ran.stdout.split("\n")[:2] == ["True", "[1]"]


def test_nobody_is_told_that_engines_are_used(tmp_path):
    """OpenVINO's import writes an identity into the home folder and sends it off, unless its reporter is not there."""
    told = "import trtbuild.openvino_engine, trtbuild.quantise, nncf, sys; print(sys.modules['openvino_telemetry'])"
    run = subprocess.run(
        [sys.executable, "-c", told],
        env={**os.environ, "HOME": str(tmp_path), "CI": ""},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert run.stdout.strip() == "None"
    assert not list(tmp_path.rglob("*openvino*"))
    assert not list(tmp_path.rglob("*intel*"))
