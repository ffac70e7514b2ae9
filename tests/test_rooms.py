"""The house keeps its shape: imports run downhill, and the API process stays light."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("models", "trtbuild", "service")
MAY_IMPORT = {"models": {"models"}, "trtbuild": {"trtbuild", "models"}, "service": set(ROOMS)}

# Inside the service, from the top floor to the ground; a module may import its own floor's package and those below.
FLOORS = [
    {"__main__", "demo"},
    {"serve"},
    {"supervise"},
    {"api", "worker", "files", "remote", "building", "evaluation", "adaptation", "health"},
    {"live"},
    {"client"},
    {"rpc"},
    {"oip"},
    {"asking"},
    {"services"},
    {"intake", "pipeline", "folders"},
    {"webhooks", "sandbox", "access"},
    {"broker", "media", "blobs"},
    {"metrics", "settings", "frames", "processes", "confinement", "isolation"},
    {"telemetry"},
    {"job"},
    {"errors"},
]
HEAVY = {"torch", "cv2", "av", "PIL", "onnx", "openvino", "tensorrt", "trtbuild"}


def imports_of(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def floor_of(module: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if module in floor)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room):
    for path in files_of(room):
        ours = {name.split(".")[0] for name in imports_of(path)} & set(ROOMS)
        assert ours <= MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {ours - MAY_IMPORT[room]}"


def test_every_package_is_installed_and_not_only_those_that_a_checkout_lends():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for room in ROOMS for path in files_of(room)}
    assert found <= set(told)


def test_inside_the_service_imports_run_downhill():
    for path in files_of("service"):
        relative = path.relative_to(ROOT / "service")
        here = relative.parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] != "service" or len(parts) == 1:
                continue
            assert parts[1] == here or floor_of(parts[1]) > floor_of(here), f"service/{relative} imports {name}"


def test_the_catalogue_needs_no_torch_and_no_numpy():
    assert imports_of(ROOT / "models" / "catalogue.py").isdisjoint({"torch", "numpy"})


def test_the_api_process_loads_neither_networks_nor_decoders():
    code = "import sys, service.api.server; print(' '.join({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(loaded.stdout.split()).isdisjoint(HEAVY)


def test_recipes_need_only_torch_numpy_pillow_and_safetensors():
    """So that they run on a bare GPU box."""
    allowed = {"torch", "numpy", "PIL", "safetensors", "models"}
    for path in [*(ROOT / "models" / "training").glob("*.py"), *(ROOT / "models" / "networks").glob("*.py")]:
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert roots - set(sys.stdlib_module_names) <= allowed, path.name
