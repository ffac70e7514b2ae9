"""What does the system tell about processes, and how is a child tied to its parent?"""

import ctypes
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# How a child ends that finds out at its start that it can never run here (EX_CONFIG of sysexits.h): its parent need not
# try again.
CANNOT_RUN_HERE = 78

_PR_SET_PDEATHSIG = 1
_PROC = Path("/proc")
_NVIDIA_SMI_S = 20.0  # it wakes the driver first
_GPU = re.compile(r"^GPU \d+:.*\(UUID: (?P<id>[\w-]+)\)")
_SLICE = re.compile(r"^\s+MIG .*\(UUID: (?P<id>[\w/-]+)\)")
_GPU_FACT = re.compile(r"^GPU UUID:\s*(?P<id>GPU-[0-9a-fA-F-]+)\s*$", re.MULTILINE)


def dies_with_parent() -> Callable[[], None] | None:
    """What a new child runs, as `preexec_fn`, to be ended by SIGTERM when this process is gone.

    None where that cannot be arranged: on other systems than Linux, and off the main thread, for the kernel watches the
    thread that made the child, and another than the main one may end long before the process does.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec as little as possible may happen
    parent = os.getpid()

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # the parent was gone before the kernel knew

    return arrange


def tells_memory() -> bool:
    """Whether `resident_bytes` has an answer on this system."""
    return (_PROC / "self" / "statm").exists()


def resident_bytes(pid: int) -> int:
    """Memory that a process and all its descendants hold now; what they share counts for each. 0 of one that has ended.

    Costs a few file reads a thread: about 0.2 ms for a worker of ours (our measurement, 2 busy cores).
    """
    total, left = 0, [pid]
    while left:
        folder = _PROC / str(left.pop())
        with suppress(OSError):  # it ended in this moment
            total += int((folder / "statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for thread in os.listdir(folder / "task"):
                with suppress(OSError):
                    left += [int(child) for child in (folder / "task" / thread / "children").read_bytes().split()]
    return total


def usable_cores() -> int:
    """How many this process may keep busy: fewer than the machine has where it is pinned or in a container."""
    # Only Linux lets a process be pinned.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # there is no quota, or it is "max"
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        cores = min(cores, math.ceil(quota / period))
    return max(1, cores)


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
