"""Which NVIDIA GPUs may this process use? Asked without CUDA, which would take hundreds of megabytes to answer."""

import os
import re
import shutil
import subprocess
from pathlib import Path

_PROC = Path("/proc")
_NVIDIA_SMI_S = 20.0  # it wakes the driver first
_GPU = re.compile(r"^GPU \d+:.*\(UUID: (?P<id>[\w-]+)\)")
_SLICE = re.compile(r"^\s+MIG .*\(UUID: (?P<id>[\w/-]+)\)")
_GPU_FACT = re.compile(r"^GPU UUID:\s*(?P<id>GPU-[0-9a-fA-F-]+)\s*$", re.MULTILINE)


def nvidia_gpus() -> list[str]:
    """Names, for CUDA_VISIBLE_DEVICES, of the NVIDIA GPUs that this process may use; of a divided one, of its slices.

    Asks no CUDA library: that would take hundreds of megabytes, and a GPU that is asked about before a fork is lost to
    the child.
    """
    if (allowed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [name.strip() for name in allowed.split(",")]
        # CUDA itself stops reading at the first name that is none.
        end = next((place for place, name in enumerate(names) if name in ("", "-1", "NoDevFiles")), len(names))
        return names[:end]
    listed = _listed_by_nvidia_smi()
    if listed is not None:
        return listed
    facts = sorted((_PROC / "driver" / "nvidia" / "gpus").glob("*/information"))
    return [found["id"] for path in facts if (found := _GPU_FACT.search(path.read_text(errors="replace")))]


def _listed_by_nvidia_smi() -> list[str] | None:
    """None where there is no such program, or it does not work."""
    if (program := shutil.which("nvidia-smi")) is None:
        return None
    try:
        ran = subprocess.run([program, "-L"], capture_output=True, text=True, check=True, timeout=_NVIDIA_SMI_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return gpus_in(ran.stdout)


def gpus_in(listing: str) -> list[str]:
    """The names in what `nvidia-smi -L` prints: a line for each GPU, and under it one, indented, for each slice."""
    gpus: list[str] = []
    whole = False  # the last name is that of a GPU, and no slice of it was met yet
    for line in listing.splitlines():
        if gpu := _GPU.match(line):
            gpus.append(gpu["id"])
            whole = True
        elif part := _SLICE.match(line):
            if whole:
                gpus.pop()
                whole = False
            gpus.append(part["id"])
    return gpus
