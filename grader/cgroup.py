"""A control group of the Linux kernel: what all processes of a submission may use together, and their end together.

It lies below the grader's own group, only where that is the grader's to divide: in version 2, where it is delegated, as by
``systemd-run --user --scope -p Delegate=yes``; in version 1, where nobody has put the grader into a group.
"""

import contextlib
import functools
import itertools
import os
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

ROOT, OWN, PREFIX = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), "grader-"
FILES = {"memory": ("memory.max", "memory.limit_in_bytes"), "pids": ("pids.max",)}  # what a group bounds -> its file
number = itertools.count()


@contextlib.contextmanager
def group(**most: int) -> Iterator[dict[str, Path]]:
    """A group for at most so many bytes of ``memory`` and so many ``pids``, processes and threads.

    Returns the folder that bounds each of them; nothing where there is no group to make it in. What is in it at the exit
    ends, and what killed graders have left ends now.
    """
    parents = _parents()
    for above in {*parents.values()}:
        for left in above.glob(f"{PREFIX}*-*"):
            if not Path("/proc", left.name.split("-")[1]).exists():
                _remove(left)
    name = f"{PREFIX}{os.getpid()}-{next(number)}"
    made = {}
    try:
        for kind, above in parents.items():
            with contextlib.suppress(OSError):
                (above / name).mkdir(exist_ok=True)
                _write(above / name / "memory.swap.max", 0)
                if any(_write(above / name / file, most[kind]) for file in FILES[kind]):
                    made[kind] = above / name
        yield made
    finally:
        for above in {*parents.values()}:
            _remove(above / name)


def within(folders: list[Path], program: list[str]) -> list[str]:
    """``program`` and its arguments, so that it joins the group before it starts."""
    join = "".join(f"echo 0 > {shlex.quote(str(folder))}/cgroup.procs && " for folder in folders)
    return ["/bin/sh", "-c", f'{join}exec "$0" "$@"', *program] if join else program


@functools.cache
def _parents() -> dict[str, Path]:
    found: dict[str, Path] = {}
    with contextlib.suppress(OSError):
        for line in OWN.read_text().splitlines():
            _, kinds, own = line.split(":", 2)
            if not kinds and _delegated(ROOT / own.lstrip("/")):
                return dict.fromkeys(FILES, ROOT / own.lstrip("/"))
            found |= {kind: ROOT / kind for kind in kinds.split(",") if own == "/" and os.access(ROOT / kind, os.W_OK)}
    return {kind: found[kind] for kind in FILES if kind in found}


def _delegated(own: Path) -> bool:
    """Whether groups below this one of version 2 can bound all ``FILES``."""
    passed_on = own / "cgroup.subtree_control", " ".join(f"+{kind}" for kind in FILES)
    if not _write(*passed_on):  # not as long as there are processes in it: the grader moves below it if it is the only one
        if not (own / "cgroup.procs").exists() or (own / "cgroup.procs").read_text().split() != [str(os.getpid())]:
            return False
        (own / "grader").mkdir(exist_ok=True)
        return _write(own / "grader/cgroup.procs", 0) and _write(*passed_on)
    return True


def _remove(folder: Path) -> None:
    """Ends all processes in the group, of which none can start another one meanwhile, and removes it."""
    _write(folder / "pids.max", 0)
    end = time.monotonic() + 2
    while folder.exists() and time.monotonic() < end:
        with contextlib.suppress(OSError):  # the dead may be in it for a moment
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            folder.rmdir()
        time.sleep(0.002)


def _write(file: Path, value: object) -> bool:
    """Whether the kernel takes the value."""
    with contextlib.suppress(OSError):
        control = os.open(file, os.O_WRONLY)
        try:
            return os.write(control, str(value).encode()) > 0
        finally:
            os.close(control)
    return False
