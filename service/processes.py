"""What does the system tell about processes, and how is a child tied to its parent?"""

import ctypes
import functools
import math
import os
import platform
import signal
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


@functools.cache
def processor() -> tuple[str, frozenset[str]]:
    """Its name and what it can do, as Linux tells both (`avx2`); elsewhere a name at most."""
    facts = _PROC / "cpuinfo"
    lines = facts.read_text().splitlines() if facts.is_file() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    return name, frozenset(told.get("flags", "").split())
