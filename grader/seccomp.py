"""A filter of system calls for what namespaces and Landlock leave open.

What outlives its process is denied, so that nothing of it reaches a later one: shared memory of System V, keys, and what the
kernel keeps of a file that is only read, as are write hints and flags. So are files in memory, which nobody counts, sockets,
of which one of another service may lie anywhere, and memory, limits and processor time of other processes. Without
namespaces, modes, owners, times and attributes of any file would remain changeable: such calls do nothing and claim success,
so that a copy within the scratch folder, which sets them, does not fail.
"""

import ctypes
import errno
import platform
import struct
import sys

# machine -> its number in <linux/audit.h>, calls that change files' metadata, calls that are denied, prlimit64, fcntl, ioctl
CALLS = {
    "x86_64": (0xC000003E,
               (90, 91, 92, 93, 94, 132, 188, 189, 190, 197, 198, 199, 235, 260, 261, 268, 280, 452, 463, 466, 469),
               (29, 41, 64, 68, 101, 141, 142, 144, 203, 240, 248, 249, 250, 251, 256, 279, 298, 310, 311, 314, 319, 321,
                323, 425, 447), 302, 72, 16),
    "aarch64": (0xC00000B7, (5, 6, 7, 14, 15, 16, 52, 53, 54, 55, 88, 452, 463, 466, 469),
                (30, 117, 118, 119, 122, 140, 180, 186, 190, 194, 198, 217, 218, 219, 238, 239, 241, 270, 271, 274, 279, 280,
                 282, 425, 447), 261, 25, 29),
}  # fmt: skip
HINTS = 1036, 1038  # F_SET_RW_HINT, F_SET_FILE_RW_HINT
FILE_FLAGS = ord("f"), ord("X"), ord("v"), 0x94  # the second byte of requests of file systems
# of classic BPF, https://docs.kernel.org/networking/filter.html
LOAD, SHIFT, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x74, 0x54, 0x15, 0x35, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, SECOND_ARGUMENT = 0, 4, 16, 24  # where they are in struct seccomp_data
OTHER_ABI = 1 << 30  # numbers of x32


def install(metadata: bool) -> bool:
    """Filters the calls of this process and its descendants, for good; with ``metadata`` also those that do nothing then.
    Returns whether the system agreed."""
    if sys.platform != "linux" or platform.machine() not in CALLS:
        return False
    architecture, changing, denied, prlimit, fcntl, ioctl = CALLS[platform.machine()]
    deny = (RETURN, 0, 0, ERROR | errno.EPERM)
    rows = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, architecture), deny,
            (LOAD, 0, 0, NUMBER), (AT_LEAST, 0, 1, OTHER_ABI), deny]  # fmt: skip
    for number in changing if metadata else ():
        rows += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ERROR)]
    for number in denied:
        rows += [(EQUAL, 0, 1, number), deny]
    for number, shift, mask, values in (fcntl, 0, 0xFFFFFFFF, HINTS), (ioctl, 8, 0xFF, FILE_FLAGS):
        rows += [(EQUAL, 0, 4 + 2 * len(values), number), (LOAD, 0, 0, SECOND_ARGUMENT), (SHIFT, 0, 0, shift),
                 (AND, 0, 0, mask)]  # fmt: skip
        for value in values:
            rows += [(EQUAL, 0, 1, value), deny]
        rows.append((LOAD, 0, 0, NUMBER))
    rows += [(EQUAL, 0, 3, prlimit), (LOAD, 0, 0, FIRST_ARGUMENT), (EQUAL, 1, 0, 0), deny]  # of itself: 0
    rows.append((RETURN, 0, 0, ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *row) for row in rows))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(rows), ctypes.addressof(code)))
    no_new_privileges, set_filter, by_program = 38, 22, 2
    libc = ctypes.CDLL(None)
    libc.prctl(no_new_privileges, *(ctypes.c_ulong(a) for a in (1, 0, 0, 0)))
    return libc.prctl(set_filter, ctypes.c_ulong(by_program), program, ctypes.c_ulong(0), ctypes.c_ulong(0)) == 0
