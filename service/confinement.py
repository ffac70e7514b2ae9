"""What can a process give up for good before it touches a stranger's bytes?

Layers, each of which holds where another cannot be had: limits on resources, no new privileges, no capabilities, no
files (Landlock), no system calls but those that decoding takes (seccomp). Where the system has none of a kind, the
others still hold; what was put on is told.

The filter lets a process work on memory and on descriptors that it has, with threads of its own. It may open no file,
make no socket, start no process, signal no other one and map no code; whatever is not listed is refused with EPERM, for
libraries ask for much that they can do without.
"""

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Callable
from contextlib import suppress

SECCOMP = "seccomp"

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_SET_NAME = 22, 38, 15
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION = 0x20080522
# Landlock's system calls have the same numbers everywhere. What each version of it can forbid: files, network, scope.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_ASK_VERSION = 1
_LANDLOCK_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_LANDLOCK_NETWORK = {4: 0b11}  # bind and connect
_LANDLOCK_SCOPE = {6: 0b11}  # abstract sockets and signals

# Numbers of system calls: x86_64, aarch64. None where there is none.
_ALLOWED: dict[str, tuple[int, int | None]] = {
    # bytes of open files; `pread64` is how the input is read, messages go by the others
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66),
    "pread64": (17, 67), "pwrite64": (18, 68), "lseek": (8, 62), "fstat": (5, 80), "close": (3, 57),
    "dup": (32, 23), "fcntl": (72, 25), "sendmsg": (46, 211), "recvmsg": (47, 212),
    "sendto": (44, 206), "recvfrom": (45, 207), "poll": (7, None), "ppoll": (271, 73),
    # memory
    "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214),
    # threads
    "futex": (202, 98), "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293),
    "exit": (60, 93), "exit_group": (231, 94), "sched_yield": (24, 124), "set_tid_address": (218, 96),
    "sched_getaffinity": (204, 123), "membarrier": (324, 283), "getcpu": (309, 168),
    # signals, to itself
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    # what harms nobody to know
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "uname": (63, 160),
    "sysinfo": (99, 179), "getrusage": (98, 165), "getrandom": (318, 278), "gettimeofday": (96, 169),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
}  # fmt: skip
# Allowed with some arguments only; and one that is to look as if the kernel were older, for the C library then takes
# `clone`, whose flags a filter can see.
_MMAP, _MPROTECT, _CLONE, _CLONE3 = (9, 222), (10, 226), (56, 220), (435, 435)
_TGKILL, _PRCTL, _PRLIMIT, _FSTATAT = (234, 131), (157, 167), (302, 261), (262, 79)
_CLONE_THREAD, _PROT_EXEC, _AT_EMPTY_PATH = 0x10000, 4, 0x1000
_EPERM, _ENOSYS = 1, 38
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, and the kernel's name for it

# Classic BPF: load a word, jump if equal, jump if any bit is set, return.
_LOAD, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_AT_NUMBER, _AT_ARCH, _AT_ARGUMENTS = 0, 4, 16


def limit(
    *, data_bytes: int | None = None, cpu_s: int | None = None, written_bytes: int | None = 0, open_files: int = 32
) -> None:
    """Bound what this process may take; None leaves a bound as it is.

    Not every system lets itself be limited in everything (macOS: memory); the parent's clock is left then.
    """
    import resource  # Unix only

    bounds: list[tuple[int, int | None]] = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_FSIZE, written_bytes),
        (resource.RLIMIT_DATA, data_bytes),
        # Addresses are more than memory: libraries, stacks and arenas that are never touched, shared frames.
        (resource.RLIMIT_AS, None if data_bytes is None else 2 * data_bytes + 4 * 1024**3),
    ]
    for what, most in bounds:
        if most is not None:
            with suppress(OSError, ValueError):
                resource.setrlimit(what, (most, most))
    if cpu_s is not None:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))  # the first is a signal that tells its reason


def prepare() -> None:
    """Load what `limit` and `confine` need, for processes that are forked later."""
    import resource  # noqa: F401

    platform.machine()
    ctypes.CDLL(None, use_errno=True)


def allow_no_children() -> None:
    """For where no filter forbids them. Threads count as children here, and all that the user runs; root is exempt."""
    import resource

    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def confine() -> list[str]:
    """Give up all that can be given up, for this process of one thread. There is no way back.

    Returns:
        The layers that hold now.
    """
    if sys.platform != "linux":
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    layers: list[tuple[str, Callable[[ctypes.CDLL], bool]]] = [
        ("no new privileges", _no_new_privileges),
        ("no capabilities", _no_capabilities),
        ("landlock", _no_files),
        (SECCOMP, _only_decoding),
    ]
    return [name for name, put_on in layers if put_on(libc)]


def _no_new_privileges(libc: ctypes.CDLL) -> bool:
    return bool(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)


def _no_capabilities(libc: ctypes.CDLL) -> bool:
    """So that root can neither raise a limit again nor look into other processes."""
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION, 0))
    return bool(libc.capset(header, ctypes.create_string_buffer(24)) == 0)


def _no_files(libc: ctypes.CDLL) -> bool:
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return False
    rules = struct.pack(
        "QQQ", *(_newest(table, version) for table in (_LANDLOCK_FILES, _LANDLOCK_NETWORK, _LANDLOCK_SCOPE))
    )
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.create_string_buffer(rules), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    try:
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _newest(table: dict[int, int], version: int) -> int:
    return table[max(known for known in table if known <= version)] if version >= min(table) else 0


def _only_decoding(libc: ctypes.CDLL) -> bool:
    machine = _MACHINES.get(platform.machine())
    if machine is None or sys.maxsize < 2**32:
        return False
    code = _filter(*machine, pid=os.getpid())
    instructions = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(instructions)))
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0) == 0)


def _filter(column: int, arch: int, *, pid: int) -> bytes:
    """The program that the kernel runs at each system call."""
    lines = [
        _line(_LOAD, _AT_ARCH),
        _line(_IF_EQUAL, arch, 1, 0),
        _line(_RETURN, _KILL),  # a 32 bit call, where the numbers mean something else
        _line(_LOAD, _AT_NUMBER),
    ]
    for numbers in _ALLOWED.values():
        if (number := numbers[column]) is not None:
            lines += [_line(_IF_EQUAL, number, 0, 1), _line(_RETURN, _ALLOW)]
    lines += _when(_MMAP[column], 2, _IF_ANY_BIT, _PROT_EXEC, then=_REFUSE | _EPERM, otherwise=_ALLOW)
    lines += _when(_MPROTECT[column], 2, _IF_ANY_BIT, _PROT_EXEC, then=_REFUSE | _EPERM, otherwise=_ALLOW)
    lines += _when(_CLONE[column], 0, _IF_ANY_BIT, _CLONE_THREAD, then=_ALLOW, otherwise=_REFUSE | _EPERM)
    lines += _when(_TGKILL[column], 0, _IF_EQUAL, pid, then=_ALLOW, otherwise=_REFUSE | _EPERM)
    lines += _when(_PRCTL[column], 0, _IF_EQUAL, _PR_SET_NAME, then=_ALLOW, otherwise=_REFUSE | _EPERM)
    # How some C libraries ask about a descriptor. A filter cannot see that the path is empty indeed.
    lines += _when(_FSTATAT[column], 3, _IF_ANY_BIT, _AT_EMPTY_PATH, then=_ALLOW, otherwise=_REFUSE | _EPERM)
    lines += _limits_may_be_read(_PRLIMIT[column])
    lines += [_line(_IF_EQUAL, _CLONE3[column], 0, 1), _line(_RETURN, _REFUSE | _ENOSYS)]
    lines += [_line(_RETURN, _REFUSE | _EPERM)]
    return b"".join(lines)


def _when(number: int, argument: int, test: int, value: int, *, then: int, otherwise: int) -> list[bytes]:
    """For one call, judge by the lower half of one argument; the others pass on."""
    return [
        _line(_IF_EQUAL, number, 0, 4),
        _line(_LOAD, _AT_ARGUMENTS + 8 * argument),  # both machines are little-endian
        _line(test, value, 0, 1),
        _line(_RETURN, then),
        _line(_RETURN, otherwise),
    ]


def _limits_may_be_read(number: int) -> list[bytes]:
    """Where a new limit is given, in either half of its address, the call is refused."""
    return [
        _line(_IF_EQUAL, number, 0, 6),
        _line(_LOAD, _AT_ARGUMENTS + 8 * 2),
        _line(_IF_EQUAL, 0, 0, 3),
        _line(_LOAD, _AT_ARGUMENTS + 8 * 2 + 4),
        _line(_IF_EQUAL, 0, 0, 1),
        _line(_RETURN, _ALLOW),
        _line(_RETURN, _REFUSE | _EPERM),
    ]


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
