"""Do builder, cache and runner keep TensorRT's rules? Held against a fake one: what they do on a GPU is not shown here.

The fake runs plans through ONNX Runtime on the CPU; see fake_tensorrt and host_device for what that leaves open.
"""

import ctypes
import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from host_device import HostDevice, HostStream

from models.catalogue import DNCNN, FITVNET, DenoiserSpec, StageSpec
from models.weights import GRAPHS_DIR
from service.pipeline.denoiser import to_pixels, to_planes
from trtbuild.engine import BackendUnavailable, EngineFailed, OutOfDeviceMemory, PrecisionLost, ShapeOutsideProfile
from trtbuild.store import Store, Tampered
from trtbuild.tensorrt_build import Plan, build_plan
from trtbuild.tensorrt_plan import BuildOptions, GpuFacts, plan_key, profiles_for, timing_key

ROOT = Path(__file__).parent.parent
FAKE = Path(__file__).parent / "fake_tensorrt"
STAGE = DNCNN.stages[0]
TOLD = replace(DNCNN, sigma=(0.0, 1.0))  # the same, but told a noise level
A_GPU = GpuFacts(name="a GPU that is none", compute_capability="9.0", cuda="13.0", driver="580")
OPTIONS = BuildOptions(tile_px=64, batch=3, workspace_bytes=1 << 28, contexts=2)
FP32 = {"precision": "fp32"}
LEVELS = np.array([0.5, 0.25, 0.125], np.float32)


def graph(name: str = "level", nodes: int = 3) -> bytes:
    """Restores by a blur of what is told; small, so that a test is quick."""
    steps = "\n".join(f"t{i} = Mul(t{i - 1}, half)" for i in range(1, nodes + 1))
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        {name} (float[batch, 3, height, width] noisy, float[batch] sigma)
          => (float[batch, 3, height, width] restored)
        <float[3,3,1,1] mix = {{0.5,0.25,0.25, 0.25,0.5,0.25, 0.25,0.25,0.5}}, int64[3] axes = {{1, 2, 3}},
         float half = {{0.5}}>
        {{ level = Unsqueeze(sigma, axes)
           t0 = Conv(noisy, mix)
           {steps}
           weighed = Mul(t{nodes}, level)
           restored = Sub(noisy, weighed) }}"""
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def expected(noisy: np.ndarray, sigma: np.ndarray, model: bytes | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model or graph(), options, providers=["CPUExecutionProvider"])
    given = {"noisy": noisy, "sigma": sigma}
    return session.run(None, {value.name: given[value.name] for value in session.get_inputs()})[0]


def windows(batch: int, height: int, width: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng([seed, batch, height, width]).random((batch, 3, height, width), np.float32)


@pytest.fixture(scope="module")
def modules() -> Iterator[SimpleNamespace]:
    """Our modules over the fake, whether or not the real one is here too."""
    ours = {"engine": "trtbuild.tensorrt_engine", "child": "trtbuild.tensorrt_child", "api": "trtbuild.tensorrt_api"}
    names = ["tensorrt", *ours.values()]
    kept = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(FAKE))
    try:
        trt = importlib.import_module("tensorrt")
        assert trt._MAGIC.startswith(b"a plan for tests")
        yield SimpleNamespace(trt=trt, **{short: importlib.import_module(name) for short, name in ours.items()})
    finally:
        sys.path.remove(str(FAKE))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


@pytest.fixture
def faults(modules, monkeypatch) -> Callable[[str, str], None]:
    """Let the fake fail, here and in the processes that build."""

    def fail(call: str, why: str) -> None:
        monkeypatch.setitem(modules.trt._faults, call, why)
        monkeypatch.setenv("FAKE_TENSORRT_FAULTS", json.dumps({call: why}))

    return fail


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "engines")


@pytest.fixture
def build(modules, store) -> Callable[..., Plan]:
    def build(model: bytes | None = None, spec: DenoiserSpec = TOLD, stage: StageSpec = STAGE, **changed) -> Plan:
        asked = {"options": OPTIONS, "store": store, "gpu": A_GPU, "tensorrt": modules.trt.__version__, **FP32}
        return build_plan(model or graph(), spec, stage, **{**asked, **changed})

    return build


@pytest.fixture
def made(modules) -> Callable[..., bytes]:
    """A plan built in this process: quicker than in one of its own."""
    plans: dict[tuple, bytes] = {}

    def made(
        model: bytes | None = None,
        spec: DenoiserSpec = TOLD,
        stage: StageSpec = STAGE,
        options: BuildOptions = OPTIONS,
    ) -> bytes:
        key = model or graph(), stage, options
        if key not in plans:
            shapes = [profile.shapes_of(stage) for profile in profiles_for(spec, options.tile_px, options.batch)]
            plans[key] = built_here(modules, key[0], shapes)
        return plans[key]

    return made


def built_here(modules, model: bytes, shapes: list, **changed) -> bytes:
    import threading

    asked = {
        "workspace_bytes": 1 << 28,
        "optimization_level": 3,
        "timings": b"",
        "keep_timings": lambda timings: None,
        "tell": lambda share, phase: None,
        "stop": threading.Event(),
    }
    return modules.child.build(model, shapes, **{**asked, **changed})


@pytest.fixture
def device(modules) -> HostDevice:
    return HostDevice(modules.trt._recording)


@pytest.fixture
def opened(modules, made, device) -> Callable:
    def opened(
        plan: bytes | None = None, spec: DenoiserSpec = TOLD, stage: StageSpec = STAGE, contexts: int = 1, **changed
    ):
        asked = {"contexts": contexts, "device": device, **FP32}
        return modules.engine.open_plan(spec, stage, plan or made(), **{**asked, **changed})

    return opened


# --- what a plan is built for ---


def test_a_plan_takes_full_tiles_and_whatever_fits_into_one():
    full, smaller = profiles_for(FITVNET, tile_px=500, batch=4)
    assert str(full) == "1 to 4 windows of 496 x 496"
    assert full.is_fixed
    assert str(smaller) == "1 to 4 windows of 16 to 496 x 16 to 496"
    assert not smaller.is_fixed
    shapes = smaller.shapes_of(FITVNET.stages[1])
    assert shapes["noisy"] == ((1, 12, 16, 16), (4, 12, 496, 496), (4, 12, 496, 496))
    assert shapes["sigma"] == ((1,), (4,), (4,))


def test_a_tile_of_the_smallest_size_needs_one_profile():
    assert [str(profile) for profile in profiles_for(DNCNN, 16, 1)] == ["1 windows of 16 x 16"]
    with pytest.raises(BackendUnavailable, match="dncnn in tiles of 15 pixels in batches of 1; at least 16 and 1"):
        profiles_for(DNCNN, 15, 1)


def test_a_key_changes_with_all_that_a_plan_depends_on():
    def key(model=b"graph", gpu=A_GPU, options=OPTIONS, precision="fp32", tensorrt="11.4.0", tile_px=64, batch=3):
        profiles = profiles_for(DNCNN, tile_px, batch)
        given = {"precision": precision, "profiles": profiles, "options": options, "gpu": gpu, "tensorrt": tensorrt}
        return plan_key(model, STAGE, **given)

    others = [
        key(model=b"another"),
        key(precision="fp16"),
        key(tensorrt="11.4.1"),
        key(tile_px=128),
        key(batch=2),
        key(options=replace(OPTIONS, workspace_bytes=1)),
        key(options=replace(OPTIONS, optimization_level=5)),
        *(key(gpu=replace(A_GPU, **{field: "other"})) for field in ("name", "compute_capability", "cuda", "driver")),
    ]
    assert len({key(), *others}) == 1 + len(others)
    assert key() == key()
    assert key(options=replace(OPTIONS, contexts=7)) == key()  # of running, not of building
    assert key().name == "plan dncnn tensorrt fp32 a GPU that is none"


# --- building, in a process of its own ---


def test_a_plan_is_built_once_and_then_comes_out_of_the_store(build, store, faults):
    first = build()
    assert not first.was_stored
    assert first.facts["profiles"] == ["1 to 3 windows of 64 x 64", "1 to 3 windows of 16 to 64 x 16 to 64"]
    faults("OnnxParser.parse", "nobody is to build again")

    def never(share: float, phase: str) -> None:
        raise AssertionError(phase)  # nor has anybody to wait

    with store.lock(first.key):
        again = build(on_progress=never)
    assert again.was_stored
    assert (again.content, again.facts, again.key) == (first.content, first.facts, first.key)
    with pytest.raises(EngineFailed):
        build(options=replace(OPTIONS, batch=2))  # another plan


def test_a_plan_is_strongly_typed_exact_and_within_its_workspace(build):
    header = json.loads(build(options=replace(OPTIONS, optimization_level=5)).content.splitlines()[1])
    assert header["strongly_typed"] is True
    assert header["tf32"] is False
    assert header["workspace_bytes"] == 1 << 28
    assert header["optimization_level"] == 5
    full, smaller = header["profiles"]
    assert full["noisy"] == [[1, 3, 64, 64], [3, 3, 64, 64], [3, 3, 64, 64]]
    assert smaller["noisy"] == [[1, 3, 16, 16], [3, 3, 64, 64], [3, 3, 64, 64]]
    assert full["sigma"] == [[1], [3], [3]]


def test_a_build_of_the_older_major_asks_for_strong_types_by_its_own_number(build, modules, monkeypatch):
    monkeypatch.setenv("FAKE_TENSORRT_VERSION", "10.16.1")
    header = json.loads(build().content.splitlines()[1])
    assert header["version"] == "10.16.1"
    assert header["strongly_typed"] is True


def test_a_build_tells_how_far_it_is(build, faults):
    faults("_step_s", "0.05")
    told = []
    build(graph(nodes=8), on_progress=lambda share, phase: told.append((share, phase)))
    shares = [share for share, _phase in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert any(0 < share < 1 for share in shares)
    assert "timing kernels" in {phase for _share, phase in told}


def test_a_build_that_is_given_up_ends_and_keeps_what_it_timed(build, store, faults):
    class Cancelled(Exception):
        pass

    def cancel_midway(share: float, phase: str) -> None:
        if share > 0:
            raise Cancelled

    faults("_step_s", "0.2")
    with pytest.raises(Cancelled):
        build(graph(nodes=100), on_progress=cancel_midway)
    (timings,) = store.entries()
    assert timings.key == timing_key(A_GPU, "11.4.0")
    assert timings.size_bytes > 100
    with store.lock(timings.key, wait_s=0):
        pass  # nothing is left locked


def test_timings_of_kernels_are_used_by_the_next_build(build, store):
    build()
    (before,) = [entry for entry in store.entries() if entry.key.fields["kind"] == "timing cache"]
    first = store.read(before.key)[0]
    build(graph(nodes=9))
    second = store.read(before.key)[0]
    timed = json.loads(first)[1]
    assert timed
    assert timed.items() < json.loads(second)[1].items()


def test_timings_of_another_tensorrt_are_not_used(build, modules):
    kept = []
    strange = json.dumps(["made elsewhere", {"kernel": 1}]).encode()
    shapes = [profile.shapes_of(STAGE) for profile in profiles_for(TOLD, 64, 3)]
    for timings in (strange, b"rubbish"):
        built_here(modules, graph(), shapes, timings=timings, keep_timings=kept.append)
    assert all(b"made elsewhere" not in timings and json.loads(timings)[1] for timings in kept)


def test_timings_that_were_tampered_with_are_not_used(build, store):
    build()
    key = timing_key(A_GPU, "11.4.0")
    path = store.folder / f"{key.digest}.entry"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    build(options=replace(OPTIONS, batch=2))
    assert store.read(key)


def test_a_plan_that_was_tampered_with_is_built_anew(build, store, caplog):
    first = build()
    path = store.folder / f"{first.key.digest}.entry"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    second = build()
    assert not second.was_stored
    assert second.content == first.content
    assert "it was set aside" in caplog.text
    assert list((store.folder / "set-aside").iterdir())


def test_a_plan_that_fails_its_check_is_not_stored(build, store):
    class Strays(Exception):
        pass

    def refuse(plan: bytes) -> dict:
        raise Strays

    with pytest.raises(Strays):
        build(check=refuse)
    assert [entry.key.fields["kind"] for entry in store.entries()] == ["timing cache"]
    plan = build(check=lambda plan: {"psnr_db": 71.5})
    assert plan.facts["psnr_db"] == 71.5
    assert build().facts["psnr_db"] == 71.5


def process_that_builds(store: Store, tell: str, after: str = "") -> subprocess.Popen:
    """Another worker; it prints, line by line, what it is made to tell."""
    folder = store.folder.parent
    (folder / "graph.onnx").write_bytes(graph())
    code = f"""
import os, sys
from dataclasses import replace
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(FAKE)!r}]
from models.catalogue import DNCNN
from trtbuild.store import Store
from trtbuild.tensorrt_build import build_plan
from trtbuild.tensorrt_plan import BuildOptions, GpuFacts
def tell(share, phase):
    {tell}
plan = build_plan(Path({str(folder / "graph.onnx")!r}).read_bytes(), replace(DNCNN, sigma=(0.0, 1.0)), DNCNN.stages[0],
    precision="fp32", options={OPTIONS!r}, store=Store(Path({str(store.folder)!r})), gpu={A_GPU!r}, tensorrt="11.4.0",
    on_progress=tell)
{after}
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_two_processes_that_want_one_plan_build_it_once(store, modules, faults):
    faults("_step_s", "0.1")
    profiles = profiles_for(TOLD, OPTIONS.tile_px, OPTIONS.batch)
    asked = {"profiles": profiles, "options": OPTIONS, "gpu": A_GPU, "tensorrt": "11.4.0", **FP32}
    key = plan_key(graph(), STAGE, **asked)
    with store.lock(key):  # until both are there
        others = [process_that_builds(store, "print(phase, flush=True)", "print(plan.was_stored)") for _ in range(2)]
        for other in others:
            assert other.stdout.readline() == "another process builds it\n"
    told = [other.communicate(timeout=100)[0].splitlines() for other in others]
    assert sorted(lines[-1] for lines in told) == ["False", "True"]
    assert sorted("timing kernels" in lines for lines in told) == [False, True]
    assert store.read(key)


@pytest.mark.parametrize(("number", "named"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGKILL, "SIGKILL, perhaps")])
def test_a_crash_of_the_builder_is_one_clear_error(build, faults, store, number, named):
    faults("_crash", str(int(number)))
    with pytest.raises(EngineFailed, match=f"dncnn in fp32: the process that built it died of {named}.*a wild pointer"):
        build()
    assert store.entries() == []


def test_a_builder_that_cannot_even_start_says_why(build, monkeypatch):
    monkeypatch.setenv("FAKE_TENSORRT_FAULTS", "no JSON")
    with pytest.raises(EngineFailed, match=r"ended with status 1; it said: (.|\n)*JSONDecodeError"):
        build()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_builder_ends_when_its_parent_is_killed(store, modules, faults):
    faults("_step_s", "60")
    children = 'open(f"/proc/self/task/{os.getpid()}/children").read().split()'
    parent = process_that_builds(store, f'phase == "timing kernels" and print({children}[0], flush=True)')
    child = Path("/proc") / parent.stdout.readline().strip() / "cmdline"
    assert b"tensorrt_child" in child.read_bytes()
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    with suppress(FileNotFoundError, ProcessLookupError):
        while b"tensorrt_child" in child.read_bytes():
            assert time.monotonic() < deadline, "the builder outlives its parent"
            time.sleep(0.05)
    with store.lock(timing_key(A_GPU, "11.4.0"), wait_s=5):
        pass  # nor does it hold the GPU's lock


BUILD_FAULTS = [
    "Builder.__init__",
    "Builder.create_network",
    "Builder.create_builder_config",
    "Builder.create_optimization_profile",
    "Builder.build_serialized_network",
    "IBuilderConfig.add_optimization_profile",
    "IBuilderConfig.create_timing_cache",
    "OnnxParser.parse",
]


@pytest.mark.parametrize("call", BUILD_FAULTS)
def test_whatever_the_builder_refuses_is_an_error_with_its_own_words(modules, faults, call):
    faults(call, "Error Code 4: because of the weather")
    shapes = [profile.shapes_of(STAGE) for profile in profiles_for(TOLD, 64, 3)]
    with pytest.raises(EngineFailed, match="because of the weather"):
        built_here(modules, graph(), shapes)


def test_a_refusal_without_a_word_is_an_error_all_the_same(modules, faults):
    faults("Builder.build_serialized_network", "")
    shapes = [profile.shapes_of(STAGE) for profile in profiles_for(TOLD, 64, 3)]
    with pytest.raises(EngineFailed, match="builds no plan: TensorRT gives no reason"):
        built_here(modules, graph(), shapes)


def test_a_graph_that_cannot_be_read_names_the_node(build, faults):
    faults("OnnxParser.parse", "In node 1: unsupported")
    with pytest.raises(EngineFailed, match=r"GridSample 'node_1': this operator is not supported.*In node 1"):
        build()


def test_a_gpu_without_room_to_build_is_told_apart(build, faults):
    faults("Builder.build_serialized_network", "[defaultAllocator] Error Code 1: Cuda Runtime (out of memory)")
    with pytest.raises(OutOfDeviceMemory, match="dncnn in fp32: TensorRT builds no plan"):
        build()


def test_a_graph_with_inputs_that_we_do_not_make_is_refused(modules):
    shapes = profiles_for(TOLD, 64, 3)[0].shapes_of(STAGE)
    with pytest.raises(EngineFailed, match="the graph has an input sigma; there are shapes for noisy"):
        built_here(modules, graph(), [{"noisy": shapes["noisy"]}])
    half = onnx.load_from_string(graph())
    half.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    with pytest.raises(EngineFailed, match=r"noisy of the graph is DataType\.HALF"):
        built_here(modules, half.SerializeToString(), [shapes])
    fixed = onnx.load_from_string(graph())
    fixed.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 32
    with pytest.raises(EngineFailed, match="axis 2 of noisy is always 32"):
        built_here(modules, fixed.SerializeToString(), [shapes])


def test_a_share_of_nested_phases_never_falls(modules):
    shares = modules.child.Shares()
    told = [
        shares.started("all", None, 2),
        shares.started("first half", "all", 4),
        shares.stepped("first half", 0),
        shares.stepped("first half", 1),
        shares.finished("first half"),
        shares.stepped("all", 0),
        shares.started("second half", "all", 0),
        shares.finished("second half"),
        shares.stepped("all", 1),
        shares.finished("all"),
        shares.started("an epilogue", None, 10),
        shares.stepped("nobody knows it", 3),
    ]
    assert told == [0, 0, 0.125, 0.25, 0.25, 0.5, 0.5, 0.5, 1, 1, 1, 1]


# --- running ---


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 64, 64), (2, 64, 64), (1, 16, 16), (3, 16, 64), (2, 48, 17)])
def test_every_shape_of_the_profiles_is_run_as_the_graph_says(opened, shape):
    engine = opened()
    noisy, sigma = windows(*shape), LEVELS[: shape[0]]
    restored = engine.denoise(noisy, sigma)
    assert np.array_equal(restored, expected(noisy, sigma))
    assert restored.dtype == np.float32
    assert restored.flags.c_contiguous
    assert np.array_equal(engine.denoise(noisy, sigma), restored)


def test_an_engine_says_what_it_is(opened):
    engine = opened(contexts=2)
    assert (engine.backend, engine.precision, engine.batch, engine.contexts) == ("tensorrt", "fp32", 3, 2)
    assert engine.takes_pixels


def test_the_input_is_left_as_it_was_and_the_output_is_the_callers(opened):
    engine = opened()
    noisy = windows(1, 32, 48)
    before = noisy.copy()
    noisy.setflags(write=False)
    first = engine.denoise(noisy, LEVELS[:1])
    kept = first.copy()
    engine.denoise(windows(2, 32, 48, seed=2), LEVELS[:2])
    assert np.array_equal(noisy, before)
    assert np.array_equal(first, kept)
    first += 1  # writable


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (
            (4, 64, 64),
            "4 windows of 64 x 64; the plan was built for 1 to 3 windows of 64 x 64, or 1 to 3 windows of 16",
        ),
        ((1, 65, 64), "1 windows of 65 x 64"),
        ((1, 64, 80), "1 windows of 64 x 80"),
    ],
)
def test_a_shape_that_the_plan_was_not_built_for_is_refused(opened, shape, told):
    engine = opened()
    with pytest.raises(ShapeOutsideProfile, match=f"dncnn: {told}"):
        engine.denoise(windows(*shape), np.zeros(shape[0], np.float32))
    assert engine.denoise(windows(1, 64, 64), LEVELS[:1]).shape == (1, 3, 64, 64)


def test_sides_that_the_network_cannot_take_are_refused(opened, made):
    striding = replace(STAGE, multiple=8)
    spec = replace(TOLD, stages=(striding,))
    engine = opened(made(spec=spec, stage=striding), spec=spec, stage=striding)
    with pytest.raises(ShapeOutsideProfile, match="both sides have to be multiples of 8"):
        engine.denoise(windows(1, 60, 64), LEVELS[:1])


def test_full_tiles_are_replayed_from_graphs_and_other_shapes_are_not(opened, device):
    engine = opened()
    (stream,) = device.streams
    before = stream.replays  # of warming up
    for batch in (1, 3):
        noisy = windows(batch, 64, 64)
        assert np.array_equal(engine.denoise(noisy, LEVELS[:batch]), expected(noisy, LEVELS[:batch]))
    assert stream.replays == before + 2
    for shape in [(2, 64, 64), (1, 32, 32), (1, 48, 64)]:  # other shapes between must not change what a graph does
        noisy = windows(*shape)
        assert np.array_equal(engine.denoise(noisy, LEVELS[: shape[0]]), expected(noisy, LEVELS[: shape[0]]))
    assert stream.replays == before + 2
    noisy = windows(3, 64, 64, seed=7)
    assert np.array_equal(engine.denoise(noisy, LEVELS), expected(noisy, LEVELS))
    assert stream.replays == before + 3


def test_a_context_that_has_a_graph_is_used_for_nothing_else(opened, modules, monkeypatch):
    """Whether its graph would bear that is nowhere written."""
    execute, noted, used = modules.trt.IExecutionContext.execute_async_v3, [], []

    def watched(context, stream_handle: int) -> bool:
        (noted if stream_handle in modules.trt._recording else used).append(context)
        return execute(context, stream_handle)

    monkeypatch.setattr(modules.trt.IExecutionContext, "execute_async_v3", watched)
    engine = opened()
    assert len({id(context) for context in noted}) == 2  # a single window, and a full batch
    used.clear()
    for shape in [(2, 64, 64), (1, 32, 32), (1, 64, 64), (3, 64, 64), (3, 16, 64)]:
        engine.denoise(windows(*shape), LEVELS[: shape[0]])
    assert used
    assert not {id(context) for context in used} & {id(context) for context in noted}


def test_a_stream_that_cannot_be_captured_runs_without_graphs(opened, device, monkeypatch, caplog):
    def refuse(stream: HostStream, run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(HostStream, "capture", refuse)
    engine = opened()
    noisy = windows(3, 64, 64)
    assert np.array_equal(engine.denoise(noisy, LEVELS), expected(noisy, LEVELS))
    assert "no CUDA graph for (3, 64, 64)" in caplog.text
    assert device.streams[0].replays == 0


def test_a_graph_that_gives_something_else_is_not_used(opened, device, monkeypatch, caplog):
    capture = HostStream.capture

    def forgetful(stream: HostStream, run: Callable[[], None]) -> Callable[[], None]:
        capture(stream, run)
        return lambda: None

    monkeypatch.setattr(HostStream, "capture", forgetful)
    engine = opened()
    noisy = windows(3, 64, 64)
    assert np.array_equal(engine.denoise(noisy, LEVELS), expected(noisy, LEVELS))
    assert "the CUDA graph for (3, 64, 64) gives something else" in caplog.text


@pytest.mark.parametrize("profile", [0, 1])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_profiles_that_do_not_give_the_same_are_refused(opened, modules, monkeypatch, profile, value):
    """Each has kernels of its own, and the guard looks at one of them."""
    execute = modules.trt.IExecutionContext.execute_async_v3

    def wrong_in_one(context, stream_handle: int) -> bool:
        ran = execute(context, stream_handle)
        if context._profile == profile:
            (ctypes.c_float * 4096).from_address(context._addresses["restored"])[:] = [value] * 4096
        return ran

    monkeypatch.setattr(modules.trt.IExecutionContext, "execute_async_v3", wrong_in_one)
    with pytest.raises(PrecisionLost, match=r"dncnn: profiles of the plan give different results for \(3, 64, 64\)"):
        opened()


def test_as_many_threads_as_there_are_contexts_run_at_once_each_in_its_own_stream(opened, device, modules, monkeypatch):
    engine = opened(contexts=2)
    assert len({stream.handle for stream in device.streams}) == 2
    together = Barrier(2, timeout=30)
    execute = modules.trt.IExecutionContext.execute_async_v3

    def meet(context, stream_handle: int) -> bool:
        together.wait()  # passes only if two are in here
        return execute(context, stream_handle)

    results = {}

    def work(number: int) -> None:
        noisy = windows(1, 32, 16 + number, seed=number)
        results[number] = np.array_equal(engine.denoise(noisy, LEVELS[:1]), expected(noisy, LEVELS[:1]))

    monkeypatch.setattr(modules.trt.IExecutionContext, "execute_async_v3", meet)
    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), True)


def test_a_stage_that_reads_a_window_and_is_blind_runs_from_its_own_inputs(opened, made, modules):
    stage = replace(STAGE, frames=3, planes_in=4, planes_out=2)
    spec = replace(DNCNN, stages=(stage,))
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        window (float[batch, 12, height, width] noisy) => (float[batch, 2, height, width] restored)
        <int64[1] from = {4}, int64[1] to = {6}, int64[1] axis = {1}> { restored = Slice(noisy, from, to, axis) }"""
    ).SerializeToString()
    engine = opened(made(model, spec=spec, stage=stage), spec=spec, stage=stage)
    noisy = np.random.default_rng(1).random((2, 12, 32, 48), np.float32)
    assert np.array_equal(engine.denoise(noisy, LEVELS[:2]), noisy[:, 4:6])
    assert not engine.takes_pixels


def test_a_stage_that_gives_more_than_a_picture_is_not_given_pixels(opened, made):
    stage = replace(STAGE, planes_out=6)
    spec = replace(DNCNN, stages=(stage,))
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        twice (float[batch, 3, height, width] noisy) => (float[batch, 6, height, width] restored)
        { restored = Concat <axis = 1> (noisy, noisy) }"""
    ).SerializeToString()
    engine = opened(made(model, spec=spec, stage=stage), spec=spec, stage=stage)
    noisy = np.random.default_rng(1).random((2, 3, 32, 48), np.float32)
    assert np.array_equal(engine.denoise(noisy, LEVELS[:2]), np.concatenate([noisy, noisy], 1))
    assert not engine.takes_pixels


@pytest.mark.parametrize("sides", [(8, 8), (1, 40), (15, 2), (1, 1)])
def test_a_picture_smaller_than_any_plan_is_mirrored_until_it_is_not(opened, sides):
    engine = opened()
    noisy = windows(2, *sides)
    restored = engine.denoise(noisy, LEVELS[:2])
    assert restored.shape == noisy.shape
    # A pixel of this graph depends on itself alone, so what was put beside it shows nowhere.
    assert np.allclose(restored, expected(noisy, LEVELS[:2]), atol=1e-6)
    pixels = np.full((1, *sides, 3), 128, np.uint8)
    assert engine.denoise_pixels(pixels, LEVELS[:1]).shape == pixels.shape


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 24, 40)])
def test_pixels_give_what_planes_give(opened, dtype, shape):
    batch, height, width = shape
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, np.iinfo(dtype).max, (batch, height, width, 3), dtype, endpoint=True)
    engine = opened()
    noisy = np.stack([to_planes(picture) for picture in pixels])
    scale = np.float32(np.iinfo(dtype).max)
    through_planes = [to_pixels(restored, pixels.dtype, scale) for restored in engine.denoise(noisy, LEVELS[:batch])]
    before = pixels.copy()
    restored = engine.denoise_pixels(pixels, LEVELS[:batch])
    assert restored.dtype == dtype
    assert np.array_equal(restored, np.stack(through_planes))
    assert np.array_equal(pixels, before)


def test_pixels_out_of_range_are_clipped_not_wrapped(opened):
    """The network gives less than black here, and white stays white."""
    pixels = np.array([[0, 0, 255], [255, 255, 255], [9, 0, 0], [0, 0, 0]], np.uint8)
    pixels = np.broadcast_to(pixels, (1, 32, 4, 3)).repeat(4, 2)
    sigma = np.array([6.0], np.float32)
    planes = expected(np.stack([to_planes(picture) for picture in pixels]), sigma)
    assert planes.min() < -0.1
    restored = opened().denoise_pixels(np.ascontiguousarray(pixels), sigma)
    assert np.array_equal(restored[0], to_pixels(planes[0], pixels.dtype, np.float32(255)))
    assert restored[planes.transpose(0, 2, 3, 1) < 0].max() == 0


# --- what goes wrong while running ---

LOAD_FAULTS = [
    "Runtime.deserialize_cuda_engine",
    "ICudaEngine.create_execution_context",
    "IExecutionContext.set_optimization_profile_async",
    "IExecutionContext.set_input_shape",
    "IExecutionContext.infer_shapes",
    "IExecutionContext.set_tensor_address",
    "IExecutionContext.execute_async_v3",
]


@pytest.mark.parametrize("call", LOAD_FAULTS)
def test_whatever_fails_while_loading_is_an_error_with_tensorrts_words(opened, made, faults, call):
    plan = made()
    faults(call, "Error Code 4: because of the weather")
    with pytest.raises(EngineFailed, match=r"dncnn: .*because of the weather"):
        opened(plan)


@pytest.mark.parametrize("call", ["Runtime.__init__", "Runtime.deserialize_cuda_engine"])
def test_a_refusal_to_load_without_a_word_is_an_error_all_the_same(opened, made, modules, monkeypatch, call):
    plan = made()
    monkeypatch.setitem(modules.trt._faults, call, "")
    with pytest.raises(EngineFailed, match="TensorRT gives no reason"):
        opened(plan)


@pytest.mark.parametrize("call", LOAD_FAULTS[3:])
def test_an_engine_that_failed_once_works_again_when_the_trouble_is_over(opened, device, modules, monkeypatch, call):
    engine = opened()
    with monkeypatch.context() as patch:
        patch.setitem(modules.trt._faults, call, "a passing cloud")
        waits = device.streams[0].waits
        with pytest.raises(EngineFailed, match=r"dncnn.*: a passing cloud"):
            engine.denoise(windows(2, 32, 32), LEVELS[:2])
        assert device.streams[0].waits > waits  # nothing may run on in memory that the next one writes into
    noisy = windows(2, 32, 32)
    assert np.array_equal(engine.denoise(noisy, LEVELS[:2]), expected(noisy, LEVELS[:2]))


def test_only_what_this_run_said_is_told(opened, modules, monkeypatch):
    engine = opened()
    for words in ("yesterday's trouble", "today's trouble"):
        with monkeypatch.context() as patch:
            patch.setitem(modules.trt._faults, "IExecutionContext.execute_async_v3", words)
            with pytest.raises(EngineFailed) as failed:
                engine.denoise(windows(1, 32, 32), LEVELS[:1])
    assert "today's trouble" in str(failed.value)
    assert "yesterday" not in str(failed.value)


def test_a_gpu_without_room_for_the_buffers_is_told_apart(opened, modules):
    with pytest.raises(OutOfDeviceMemory, match=r"dncnn: its plan cannot be loaded: CUDA out of memory"):
        opened(device=HostDevice(modules.trt._recording, room_bytes=100_000))


def test_a_gpu_that_runs_out_of_room_while_running_is_told_apart(opened, modules, monkeypatch):
    engine = opened()
    words = "Requested amount of GPU memory (1048576 bytes) could not be allocated."
    monkeypatch.setitem(modules.trt._faults, "IExecutionContext.execute_async_v3", words)
    with pytest.raises(OutOfDeviceMemory, match="Requested amount"):
        engine.denoise(windows(1, 32, 32), LEVELS[:1])


def test_what_is_no_plan_or_another_versions_plan_is_refused(opened, made):
    with pytest.raises(EngineFailed, match="TensorRT does not load the plan: the plan has a wrong magic tag"):
        opened(b"no plan")
    older = made().replace(b'"version": "11.4.0"', b'"version": "10.0.0"')
    with pytest.raises(EngineFailed, match=r"made by version 10\.0\.0"):
        opened(older)


def test_a_plan_of_another_stage_is_refused(opened, made):
    with pytest.raises(EngineFailed, match="the plan has noisy, sigma, restored; noisy, restored were expected"):
        opened(spec=DNCNN)  # which is blind
    with pytest.raises(EngineFailed, match=r"the plan reads 3 planes; 9 were expected"):
        opened(stage=replace(STAGE, frames=3))
    with pytest.raises(EngineFailed, match=r"dncnn gives \[3, 3, 64, 64\]; \[3, 4, 64, 64\] was expected"):
        opened(stage=replace(STAGE, planes_out=4))


def test_a_tampered_plan_never_reaches_tensorrt(build, store, opened):
    plan = build()
    path = store.folder / f"{plan.key.digest}.entry"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(Tampered):
        store.read(plan.key)


# --- all of it ---


def test_a_shipped_network_goes_from_its_graph_to_a_plan_to_the_same_picture(build, opened):
    model = (GRAPHS_DIR / "dncnn.onnx").read_bytes()
    plan = build(model, spec=DNCNN)
    engine = opened(plan.content, spec=DNCNN)
    noisy = windows(2, 48, 64)
    assert np.array_equal(engine.denoise(noisy, LEVELS[:2]), expected(noisy, LEVELS[:2], model))


# --- whether there is any TensorRT ---


def said_with(folder: Path, tensorrt: str | None, torch: str | None) -> str:
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); "
    for name, text in (("tensorrt", tensorrt), ("torch", torch)):
        if text is None:
            code += f"sys.modules[{name!r}] = None; "
        else:
            (folder / f"{name}.py").write_text(text)
    code += "from trtbuild.tensorrt_probe import why_not; print(why_not())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


A_TORCH = "class cuda:\n    is_available = lambda: True\nclass version: cuda = '13.0'"
A_TENSORRT = "__version__ = '{}'\nclass Builder: pass"


@pytest.mark.parametrize(
    ("tensorrt", "torch", "told"),
    [
        (None, A_TORCH, "tensorrt is not installed; it comes with: pip install 'quietframe[tensorrt]'"),
        ("raise ImportError('libnvinfer.so.11: no such file')", A_TORCH, "does not load: libnvinfer.so.11"),
        ("raise OSError('libcuda.so.1')", A_TORCH, "tensorrt is installed but does not load: libcuda.so.1"),
        ("__version__ = '11.4.0'", A_TORCH, "lean or dispatch runtime, 11.4.0"),
        (A_TENSORRT.format("10.15.1"), A_TORCH, "tensorrt is 10.15.1; Quietframe knows versions from 10.16"),
        (A_TENSORRT.format("12.0.0"), A_TORCH, "tensorrt is 12.0.0; Quietframe knows versions from 10.16"),
        (A_TENSORRT.format("strange"), A_TORCH, "tensorrt is strange"),
        (A_TENSORRT.format("11.4.0"), None, "torch is not installed"),
        (A_TENSORRT.format("11.4.0"), A_TORCH.replace("True", "False"), "torch finds no NVIDIA GPU"),
        (A_TENSORRT.format("11.4.0.106"), A_TORCH, "None"),
        (A_TENSORRT.format("10.16.1"), A_TORCH, "None"),
    ],
)
def test_the_reason_why_there_is_no_tensorrt_is_told(tmp_path, tensorrt, torch, told):
    assert told in said_with(tmp_path, tensorrt, torch)


def test_the_fake_is_found_by_these_tests_alone():
    code = "import importlib.util as u, pytest; found = u.find_spec('tensorrt'); print(found and found.origin)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "fake" not in said
