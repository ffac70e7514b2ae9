"""Is the TensorRT that we are written against the one there is? Names and parameters alone: nothing is built or run.

`pytest -m trtapi` fetches NVIDIA's Python bindings of both majors, some 1.3 MB each, and loads them over libraries in
which nothing is: that is enough for them to say what they offer. Last run and passed on 2026-11-21, with 10.16.1.11 and
11.4.0.106, Python 3.11, x86-64.
"""

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tensorrt_contract import STUB, mismatches, names_in_module, names_in_source, names_in_stub

HERE = Path(__file__).parent
FAKE = HERE / "fake_tensorrt" / "tensorrt" / "__init__.py"
SNAPSHOT = json.loads((HERE / "tensorrt_names.json").read_text())
VERSIONS = list(SNAPSHOT)
# What the bindings want of the libraries under them.
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def test_both_majors_are_looked_at():
    assert [version.split(".")[0] for version in VERSIONS] == ["10", "11"]


@pytest.mark.parametrize("version", VERSIONS)
def test_our_stub_says_nothing_that_tensorrt_does_not_have(version):
    assert mismatches(names_in_stub(), SNAPSHOT[version]) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_what_was_noted_of_tensorrt_is_what_the_stub_names(version):
    """Else it was not noted anew when the stub grew."""
    assert set(SNAPSHOT[version]) == set(names_in_stub())


def test_our_code_uses_nothing_of_tensorrt_that_the_stub_does_not_name():
    """mypy holds the rest of it; names that are looked up by strings would pass it by."""
    known = names_in_stub()
    for path in sorted((HERE.parent / "trtbuild").glob("tensorrt_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trt":
                assert node.attr in known, f"{path.name} uses trt.{node.attr}"


def test_the_fake_has_all_that_the_stub_names():
    kept = sys.modules.pop("tensorrt", None)
    sys.path.insert(0, str(FAKE.parent.parent))
    try:
        fake = importlib.import_module("tensorrt")
        found = names_in_module(fake, names_in_stub())
    finally:
        sys.path.remove(str(FAKE.parent.parent))
        sys.modules.pop("tensorrt", None)
        if kept is not None:
            sys.modules["tensorrt"] = kept
    # Attributes that a plain class gets when it is made are not there before.
    made = {"ITensor.name", "IBuilderConfig.builder_optimization_level", "IBuilderConfig.progress_monitor"}
    made |= {"Runtime.engine_host_code_allowed"}
    assert mismatches({name: asked for name, asked in names_in_stub().items() if name not in made}, found) == []
    assert made <= names_in_source(FAKE)


def test_the_fake_has_nothing_that_the_stub_does_not_name():
    own = {name for name in names_in_source(FAKE) if not name.endswith("__init__")}
    assert own - set(names_in_stub()) == set()


def test_a_call_that_would_fail_is_found():
    """The check itself, on what has happened: names that went, parameters of other names, attributes that froze."""
    stub = {"C.gone": [[]], "C.call": [["one", "two="]], "C.flag": "writable", "C.size": "readable", "C.short": [["a"]]}
    found = {"C.call": [["one"], ["first", "two="]], "C.flag": "readable", "C.size": [[]], "C.short": [["a", "b"]]}
    assert mismatches(stub, found) == [
        "C.gone is not there",
        "C.call takes [['one'], ['first', 'two=']], not ['one', 'two=']",
        "C.flag cannot be set",
        "C.size is [[]], not readable",
        "C.short takes [['a', 'b']], not ['a']",
    ]
    assert mismatches(stub | {"C.gone": "value"}, {**found, "C.gone": "value"})[0].startswith("C.call")
    good = {"C.call": [["one", "two=", "three="]], "C.flag": "writable", "C.size": "readable", "C.short": [["a", "b="]]}
    assert mismatches({name: stub[name] for name in good}, good) == []


@pytest.fixture(scope="module", params=VERSIONS)
def bindings(request, tmp_path_factory) -> Path:
    """A folder with the bindings of one version, and the libraries that they load."""
    if "trtapi" not in request.config.getoption("markexpr"):
        pytest.skip("fetches NVIDIA's bindings; ask for it with: pytest -m trtapi")
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("bindings")
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
    fetched = subprocess.run([*fetch, f"tensorrt-cu13-bindings=={request.param}"], capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"the bindings cannot be had: {fetched.stderr.strip().splitlines()[-1]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    source = folder / "nothing.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for library in LIBRARIES:
        name = f"lib{library}.so.{request.param.split('.')[0]}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, source]
        subprocess.run(command, check=True)
    return folder


def said_by(folder: Path) -> dict:
    places = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
    command = [sys.executable, HERE / "tensorrt_contract.py", "tensorrt_bindings"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **places})
    return json.loads(ran.stdout)


@pytest.mark.trtapi
def test_the_real_bindings_have_what_the_stub_names_and_what_was_noted(bindings):
    said = said_by(bindings)
    assert mismatches(names_in_stub(STUB), said["names"]) == []
    assert said["names"] == SNAPSHOT[said["version"]]


@pytest.mark.trtapi
def test_loggers_and_monitors_of_ours_are_taken_by_the_real_bindings(bindings):
    """As far as empty libraries go: a builder of theirs comes back with nothing, which has to become our error."""
    code = f"""
import sys, threading
import tensorrt_bindings
sys.modules["tensorrt"] = tensorrt_bindings
sys.path.insert(0, {str(HERE.parent)!r})
from trtbuild.engine import EngineFailed
from trtbuild.tensorrt_api import Log
from trtbuild.tensorrt_child import _Monitor, build
trt = tensorrt_bindings
log = Log()
log.log(trt.ILogger.Severity.ERROR, "a line")
monitor = _Monitor(lambda share, phase: None, threading.Event())
monitor.phase_start("a", None, 2)
print([line.text for line in log.since()], monitor.step_complete("a", 0), trt.Dims((1, 2))[1], len(trt.Dims((1, 2))))
print(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED), trt.DataType.FLOAT == trt.float32)
try:
    build(b"", [], workspace_bytes=1, optimization_level=3, timings=b"", keep_timings=print, tell=print, stop=monitor)
except EngineFailed as err:
    print(err)
"""
    places = {"LD_LIBRARY_PATH": str(bindings), "PYTHONPATH": str(bindings)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **places})
    assert ran.returncode == 0, ran.stderr
    first, second, third = ran.stdout.splitlines()
    assert first == "['a line'] True 2 2"
    major = said_by(bindings)["version"].split(".")[0]
    assert second == {"10": "2 True", "11": "1 True"}[major]
    assert third == "TensorRT makes no builder: TensorRT gives no reason"
