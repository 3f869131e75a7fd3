"""Where models compute: the device that a user names, and how its memory is kept."""

import contextlib
import ctypes
import time
from collections.abc import Iterator

import numpy as np
import torch


def keep_memory() -> None:
    """Asks glibc to keep freed memory: giving it back each step and faulting it in again costs up to a quarter of the
    time of a training on the CPU (less where the blocks are small; see bench/). Elsewhere, nothing happens."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, at its largest
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def release_memory() -> None:
    """Asks glibc to give back what it has kept all the same: between two pieces of work that need other sizes of it."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def pick_device(name: str = "auto") -> torch.device:
    """The torch device called ``name``; "auto" takes CUDA, then MPS, then the CPU. ValueError if it cannot be used. For the
    CPU, the whole process keeps freed memory from then on, see :func:`keep_memory`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # which the device "meta" cannot give back
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"The device {name!r} cannot be used here; use --device auto, cpu, cuda or mps.") from error
    if name == "cpu":
        keep_memory()
    return torch.device(name)


def bfloat16_speedup() -> float:
    """How many times as fast as in float32 the CPU multiplies matrices in bfloat16, measured in some milliseconds: 2 to 4
    with instructions for it, far below 1 without, which no name of a CPU says."""

    def seconds(dtype: torch.dtype) -> float:
        a, times = torch.ones(512, 512, dtype=dtype), []
        for _ in range(4):  # the first prepares
            start = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.float32) / seconds(torch.bfloat16)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an ``error`` says that the memory of the CPU or of another device does not suffice."""
    words = str(error).lower()  # torch raises a plain RuntimeError for the CPU's and for MPS's
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in words or "out of memory" in words


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds torch's global generators of the CPU and of ``device``'s kind; those of other kinds stay as they are, even if
    they are not started yet, for which torch.manual_seed would remember the seed."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def keeping_generators(device: torch.device = torch.device("cpu")) -> Iterator[None]:
    """Leaves those generators as they were. With parentheses it also decorates a function."""
    with torch.random.fork_rng(range(torch.cuda.device_count()) if device.type == "cuda" else (), device_type="cuda"):
        state = torch.mps.get_rng_state() if device.type == "mps" else None
        try:
            yield
        finally:
            if state is not None:
                torch.mps.set_rng_state(state)


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator whose seed is a hash of ``numbers``, so that a draw depends on its position alone, not on the past."""
    entropy = (len(numbers), *numbers)  # with their number, since numpy takes (1, 2) and (1, 2, 0) for the same
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1)
