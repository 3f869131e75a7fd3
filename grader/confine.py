"""What a child process that runs a submission may not do.

Three layers, of different strength:

- **Landlock and a network namespace**: the Linux kernel's own, where it has and allows them. They hold for C code too
  and for every forked process: no writing outside the scratch folder, no program started, no signal to a
  process outside, no network (of the namespace's own, not even loopback is up).
- **An audit hook**, everywhere: the same for whatever Python itself opens, removes, starts or connects. It is a guard
  against accidents and plain mischief, not a jail: C code (``torch.save``, ctypes) does not pass it. On other systems
  than Linux it is all there is.
- **Limits** on memory, on the size of files and on forks, so that a mistake does not take the machine down.

Nothing here hides what the user who runs the grader may *read*, and a submission runs in the same interpreter as the
code that measures it: one written to deceive could fake its own figures. Grade such a one by reading it.
"""

import contextlib
import ctypes
import mmap
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MAX_FORKS = 32
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# audit event -> the positions of (path, dir_fd) among its arguments
PATHS: dict[str, list[tuple[int, int | None]]] = {
    "os.chflags": [(0, None)],
    "os.chmod": [(0, 2)],
    "os.chown": [(0, 3)],
    "os.link": [(0, 2), (1, 3)],
    "os.mkdir": [(0, 2)],
    "os.remove": [(0, 1)],
    "os.removexattr": [(0, None)],
    "os.rename": [(0, 2), (1, 3)],
    "os.rmdir": [(0, 1)],
    "os.setxattr": [(0, None)],
    "os.symlink": [(1, 2)],
    "os.truncate": [(0, None)],
    "os.utime": [(0, 3)],
}
DENIED = {
    "os.exec": "other programs",
    "os.forkpty": "other programs",
    "os.posix_spawn": "other programs",
    "os.spawn": "other programs",
    "os.startfile": "other programs",
    "os.system": "other programs",
    "subprocess.Popen": "other programs",
    "socket.bind": "the network",
    "socket.connect": "the network",
    "socket.getaddrinfo": "the network",
    "socket.gethostbyaddr": "the network",
    "socket.gethostbyname": "the network",
    "socket.getnameinfo": "the network",
    "socket.sendmsg": "the network",
    "socket.sendto": "the network",
}


def confine(folder: Path) -> list[str]:
    """Confines this process, for good, to writing in ``folder``. Call it before the first thread starts.

    Returns what holds: "audit hook", and "Landlock", "network namespace" where the system has them.
    """
    _limit()
    guards = ["audit hook"]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        new_user, new_net = 0x10000000, 0x40000000
        if libc.unshare(new_net) == 0 or libc.unshare(new_user | new_net) == 0:
            guards.append("network namespace")
        if _landlock(libc, folder):
            guards.append("Landlock")
    sys.addaudithook(_hook(os.path.realpath(folder)))
    return guards


def _limit() -> None:
    if resource is None:
        return
    # RLIMIT_AS would count what torch only reserves
    for name, most in (("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", 2**30), ("RLIMIT_DATA", 16 * 2**30)):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most))


def _landlock(libc: ctypes.CDLL, folder: Path) -> bool:
    """Restricts this process by Landlock (Linux 5.13 and later, https://docs.kernel.org/userspace-api/landlock.html).

    A right that is handled, and granted nowhere, is denied everywhere. Returns whether the kernel agreed.
    """

    def call(number: int, *arguments: int | bytes | None) -> int:
        return libc.syscall(number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))

    create_ruleset, add_rule, restrict_self = 444, 445, 446
    abi = call(create_ruleset, None, 0, 1)
    if abi < 1:
        return False
    execute, write, remove_and_make, refer, truncate = 1 << 0, 1 << 1, 0b111111111 << 4, 1 << 13, 1 << 14
    files = execute | write | remove_and_make | (refer if abi >= 2 else 0) | (truncate if abi >= 3 else 0)
    tcp, signals_and_sockets = 0b11, 0b11
    fields = [files, *([tcp] if abi >= 4 else []), *([signals_and_sockets] if abi >= 6 else [])]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = call(create_ruleset, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    try:
        for path, rights in ((folder, files & ~execute), (os.devnull, files & (write | truncate))):
            fd = os.open(path, os.O_PATH)
            beneath = call(add_rule, ruleset, 1, struct.pack("=Qi", rights, fd), 0)
            os.close(fd)
            if beneath != 0:
                return False
        no_new_privileges = 38
        libc.prctl(no_new_privileges, *(ctypes.c_long(a) for a in (1, 0, 0, 0)))
        return call(restrict_self, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _hook(folder: str) -> Callable[[str, tuple], None]:
    forks = mmap.mmap(-1, 1)  # shared with every fork, which it counts together

    def check(path: str | bytes | int, dir_fd: int | None) -> None:
        if isinstance(path, int):  # a file that is open already
            return
        path = os.fsdecode(path)
        if dir_fd is not None and dir_fd >= 0:
            with contextlib.suppress(OSError):
                path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
        real = os.path.realpath(path)
        if real not in (folder, os.devnull) and not real.startswith(folder + os.sep):
            raise PermissionError(1, "The grader allows no writing outside its scratch folder", path)

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            if arguments[2] & WRITING:
                check(arguments[0], None)
        elif event in PATHS:
            for path, dir_fd in PATHS[event]:
                check(arguments[path], None if dir_fd is None else arguments[dir_fd])
        elif event in DENIED:
            raise PermissionError(1, f"The grader does not allow {DENIED[event]} ({event})")
        elif event in ("os.kill", "os.killpg") and arguments[0] not in (0, os.getpid()):
            raise PermissionError(1, "The grader allows no signals to other processes")
        elif event == "os.fork":
            if forks[0] >= MAX_FORKS:
                raise PermissionError(1, f"The grader allows no more than {MAX_FORKS} forks")
            forks[0] += 1

    return hook
