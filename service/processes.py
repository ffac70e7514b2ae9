"""How a child process is tied to its parent: where the kernel can, it ends when the parent is killed."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


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
