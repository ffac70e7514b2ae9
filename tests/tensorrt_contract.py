"""Is what we use of TensorRT there, under these names and with these parameters? Read from a stub, and from a module.

`python tests/tensorrt_contract.py tensorrt_bindings` prints what that module has of what our stub names. It needs
nothing but the standard library, so that a process can run it which has only the bindings.
"""

import ast
import enum
import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

STUB = Path(__file__).parent.parent / "typings" / "tensorrt" / "__init__.pyi"

# By "Class.member" or "name": the parameters of each overload, with "=" behind those that may be left out, or one of
# "value", "readable", "writable".
Names = dict[str, Any]


def names_in_stub(path: Path = STUB) -> Names:
    return _names_of(ast.parse(path.read_text()).body, "")


def names_in_source(path: Path) -> set[str]:
    """Every public name that a module's source defines, attributes that methods set included."""
    body = ast.parse(path.read_text()).body
    found = set(_names_of(body, ""))
    for node in body:
        if isinstance(node, ast.ClassDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and _is_self(inner.value):
                    found.add(f"{node.name}.{inner.attr}")
    return {name for name in found if not name.rpartition(".")[2].startswith("_") or name.endswith("__")}


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _names_of(body: list[ast.stmt], prefix: str) -> Names:
    found: Names = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[f"{prefix}{node.name}"] = "value"
            found |= _names_of(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            is_property = any(isinstance(mark, ast.Name) and mark.id == "property" for mark in node.decorator_list)
            found[f"{prefix}{node.name}"] = "readable" if is_property else [_parameters(node)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[f"{prefix}{node.target.id}"] = "writable" if prefix else "value"
        elif isinstance(node, ast.Assign):
            targets = [name for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            found |= {f"{prefix}{name.id}": "value" for name in targets}
    return found


def _parameters(node: ast.FunctionDef) -> list[str]:
    given = [argument.arg for argument in node.args.args]
    optional = len(node.args.defaults)
    named = [f"{name}=" if place >= len(given) - optional else name for place, name in enumerate(given)]
    return [name for name in named if name != "self"]


def names_in_module(module: ModuleType, wanted: Names) -> Names:
    """What a module has of what is wanted."""
    found: Names = {}
    for name in wanted:
        thing: Any = module
        try:
            for part in name.split("."):
                thing = getattr(thing, part)
        except AttributeError:
            continue
        found[name] = _told(thing, name.rpartition(".")[2])
    return found


def _told(thing: Any, name: str) -> Any:
    if isinstance(thing, property):
        return "readable" if thing.fset is None else "writable"
    if not callable(thing) or isinstance(thing, type | enum.Enum):
        return "value"
    signatures = re.findall(rf"^(?:\d+\. )?{re.escape(name)}\((.*)\) ->", thing.__doc__ or "", re.MULTILINE)
    if signatures:  # pybind11 tells them in the first lines of what it documents
        return [_of_docs(signature) for signature in signatures if not signature.startswith("*args")]
    return [_of_python(thing)]


def _of_docs(signature: str) -> list[str]:
    """The parameters in a signature as pybind11 prints it: `self: a.B, flags: typing.SupportsInt = 0`."""
    depth, parts = 0, [""]
    for letter in signature:
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    named = [part.partition(":")[0].strip() + ("=" if " = " in part else "") for part in parts]
    return [name for name in named if name not in ("", "/", "self")]


def _of_python(function: Any) -> list[str]:
    parameters = list(inspect.signature(function).parameters.values())
    return [p.name + ("=" if p.default is not p.empty else "") for p in parameters if p.name != "self"]


def mismatches(stub: Names, found: Names) -> list[str]:
    """Where a call that the stub allows would fail."""
    wrong = []
    for name, asked in stub.items():
        given = found.get(name)
        if given is None:
            wrong.append(f"{name} is not there")
        elif isinstance(asked, list) != isinstance(given, list):
            wrong.append(f"{name} is {given}, not {asked}")
        elif isinstance(asked, list):
            if not any(_accepts(overload, asked[0]) for overload in given):
                wrong.append(f"{name} takes {given}, not {asked[0]}")
        elif asked == "writable" and given == "readable":
            wrong.append(f"{name} cannot be set")
    return wrong


def _accepts(overload: list[str], asked: list[str]) -> bool:
    """Ours come first, by the same names; what we leave out may be left out."""
    for ours, theirs in zip(asked, overload, strict=False):
        if theirs not in (ours, f"{ours}="):
            return False
    return len(asked) <= len(overload) and all(rest.endswith("=") for rest in overload[len(asked) :])


def main() -> None:
    module = importlib.import_module(sys.argv[1])
    print(json.dumps({"version": module.__version__, "names": names_in_module(module, names_in_stub())}))


if __name__ == "__main__":
    main()
