"""Where models compute: the device that a user names, and how its memory is kept."""

import contextlib
import ctypes

import torch


def keep_memory() -> None:
    """Asks glibc to keep freed memory: giving it back each step and faulting it in again costs up to a quarter of the
    time of a training on the CPU (less where the blocks are small; see bench/). Elsewhere, nothing happens."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, at its largest
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def pick_device(name: str = "auto") -> torch.device:
    """The torch device called ``name``; "auto" takes CUDA, then MPS, then the CPU. ValueError if it cannot be used. For the
    CPU, the whole process keeps freed memory from then on, see :func:`keep_memory`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"The device {name!r} cannot be used here; use --device auto, cpu, cuda or mps.") from error
    if name == "cpu":
        keep_memory()
    return torch.device(name)
