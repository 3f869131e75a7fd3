"""What a process that runs a submission may not do, by what the process does to itself.

Three layers, of different strength:

- **Landlock**: the Linux kernel's own, where it has it. It holds for C code too and for every forked process: no reading
  but of the interpreter, the packages, the submission and the scratch folder; no writing outside the scratch folder, no
  device made, no program started; of newer kernels also no TCP and no signal to a process outside.
- **An audit hook**, everywhere: no writing outside, no program started and no network for whatever Python itself opens,
  removes, starts or connects. It is a guard against accidents and plain mischief, not a jail: C code (``torch.save``,
  ctypes) does not pass it. On other systems than Linux it is all there is.
- **Limits** on memory, CPU time, the size of files and on forks, so that a mistake does not take the machine down.

Around them stand bubblewrap (:mod:`grader.bubblewrap`) or the same namespaces without it (:mod:`grader.namespaces`).
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

MAX_FORKS, MAX_OPEN = 32, 1024
SYSTEM_FILES = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/dev/zero", "/dev/random", "/dev/urandom")
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


def confine(folder: Path, readable: list[str], memory: int, processes: int, disk: int, cpu_seconds: float) -> list[str]:
    """Confines this process, for good, to writing in ``folder``. Call it before the first thread starts.

    Args:
        folder: scratch folder, that exists.
        readable: files and folders that may be read, too.
        memory: bytes of data, of each process.
        processes: and threads of this user, where it is one of the namespace alone.
        disk: bytes of a file.
        cpu_seconds: of each process.
    Returns:
        What holds: "Landlock" where the system has it, and "audit hook".
    """
    _limit(RLIMIT_CORE=0, RLIMIT_FSIZE=disk, RLIMIT_DATA=memory, RLIMIT_CPU=int(cpu_seconds) + 2, RLIMIT_NOFILE=MAX_OPEN)
    guards = []
    if sys.platform == "linux":
        if processes:
            _limit(RLIMIT_NPROC=processes)
        if _landlock(ctypes.CDLL(None, use_errno=True), folder, readable):
            guards.append("Landlock")
    sys.addaudithook(_hook(os.path.realpath(folder)))
    return [*guards, "audit hook"]


def _limit(**most: int) -> None:
    """Lowers limits of resources. RLIMIT_AS is not among them: it would count what torch only reserves."""
    if resource is None:
        return
    for name, value in most.items():
        with contextlib.suppress(AttributeError, OSError, ValueError):
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))


def _landlock(libc: ctypes.CDLL, folder: Path, readable: list[str]) -> bool:
    """Restricts this process by Landlock (Linux 5.13 and later, https://docs.kernel.org/userspace-api/landlock.html).

    A right that is handled, and granted nowhere, is denied everywhere. Returns whether the kernel agreed.
    """

    def call(number: int, *arguments: int | bytes | None) -> int:
        return libc.syscall(number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))

    create_ruleset, add_rule, restrict_self = 444, 445, 446
    abi = call(create_ruleset, None, 0, 1)
    if abi < 1:
        return False
    execute, write, read, list_folder = 1 << 0, 1 << 1, 1 << 2, 1 << 3
    remove_and_make, make_devices = 0b111111111 << 4, 0b100001 << 6
    since = {1 << 13: 2, 1 << 14: 3, 1 << 15: 5}  # right -> the first version that has it
    refer, truncate, control_device = (right if abi >= version else 0 for right, version in since.items())
    everything = execute | write | read | list_folder | remove_and_make | refer | truncate | control_device
    tcp, signals_and_sockets = 0b11, 0b11
    fields = [everything, *([tcp] if abi >= 4 else []), *([signals_and_sockets] if abi >= 6 else [])]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = call(create_ruleset, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    granted = dict.fromkeys([*readable, *SYSTEM_FILES], read | list_folder)
    granted |= {os.devnull: read | write | truncate, str(folder): everything & ~(execute | make_devices | control_device)}
    try:
        for path, rights in granted.items():
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(path, os.O_PATH)
                if not os.path.isdir(path):
                    rights &= ~list_folder
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
