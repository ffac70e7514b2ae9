"""Makes the generated code anew from the protos: `make protos`. Needs grpcio-tools."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROTOS = Path(__file__).parent / "proto"
GENERATED = "service/rpc/generated"


def generate(root: Path = ROOT) -> None:
    """Write `service/rpc/generated` below a folder.

    Raises:
        subprocess.CalledProcessError: protoc refused a proto, and has said why.
    """
    # Modules are named, and import each other, by the path of their proto: each is taken for lying where its module
    # goes, since nothing of ours is called `quietframe` in Python.
    names = [f"{GENERATED}/{path.relative_to(PROTOS).as_posix()}" for path in sorted(PROTOS.rglob("*.proto"))]
    wanted = [f"--{kind}_out={root}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{GENERATED}={PROTOS}", *wanted, *names]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    generate()
