"""Where bubblewrap is missing: the same namespaces of the Linux kernel, for this process instead of for a program.

Everything is read-only but a scratch folder in memory, processes outside have no number here, there is no network, and
whatever this process starts ends with it. What may be read is up to Landlock.
"""

import contextlib
import ctypes
import os
import sys
from pathlib import Path

from grader.processes import die_with

NEW_MOUNTS, NEW_HOST, NEW_IPC, NEW_USERS, NEW_PIDS, NEW_NET = 1 << 17, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30
NO_SUID, NO_DEV, NO_EXEC, RECURSIVE, PRIVATE = 2, 4, 8, 1 << 14, 1 << 18


class Attributes(ctypes.Structure):  # of mount_setattr(2)
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "users")]


def isolate(scratch: Path, disk: int, parent: int, pipe: tuple[int, ...]) -> bool:
    """Moves this process into namespaces of its own, as a child of the caller, which waits and ends as it does.

    Args:
        scratch: the folder that becomes one in memory of ``disk`` bytes.
        parent: process with which all ends.
        pipe: file descriptors that only the child keeps.
    Returns:
        False, and nothing has changed, if the system does not allow it.
    """
    if sys.platform != "linux":
        return False
    probe = os.fork()
    if probe == 0:
        done = False
        with contextlib.suppress(OSError):
            done = _enter(scratch, disk)
        os._exit(not done)
    if os.waitpid(probe, 0)[1] != 0 or not _enter(scratch, disk):
        return False
    die_with(parent)
    _leave_to_a_child(pipe)  # this process itself stays outside of the new numbers
    die_with(0)
    ctypes.CDLL(None).mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(NO_SUID | NO_DEV | NO_EXEC), None)
    _leave_to_a_child(pipe)  # number 1 ignores signals, and its end is the end of all
    os.chdir(scratch)
    return True


def _enter(scratch: Path, disk: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(NEW_USERS | NEW_MOUNTS | NEW_PIDS | NEW_NET | NEW_IPC | NEW_HOST) != 0:
        return False
    for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path(f"/proc/self/{file}").write_text(text)
    read_only, everything_below, mount_setattr = Attributes(set=1), 0x8000, 442
    flags = ctypes.c_ulong(NO_SUID | NO_DEV | NO_EXEC)
    return (
        libc.mount(None, b"/", None, ctypes.c_ulong(RECURSIVE | PRIVATE), None) == 0
        and libc.syscall(mount_setattr, -1, b"/", everything_below, ctypes.byref(read_only), ctypes.sizeof(read_only)) == 0
        and libc.mount(b"tmpfs", os.fsencode(scratch), b"tmpfs", flags, f"size={disk},mode=700".encode()) == 0
    )


def _leave_to_a_child(pipe: tuple[int, ...]) -> None:
    """Returns in a child of this process, while this one waits for its end and ends likewise."""
    child = os.fork()
    if child == 0:
        return
    for fd in pipe:
        os.close(fd)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def drop_capabilities() -> None:
    """Takes from this process what root may do more than others."""
    if sys.platform != "linux":
        return
    version_3, this_process = 0x20080522, 0
    ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(version_3, this_process), (ctypes.c_uint32 * 6)())
