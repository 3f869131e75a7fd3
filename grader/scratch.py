"""A scratch folder that goes with the grader: at its end, or else when the next one starts."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX, LOCK = "grader-", "lock"


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder, which is locked as long as it is in use and removed in the end. Removes those of killed graders."""
    sweep()
    hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))  # until it is locked
    with open(hidden / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path = hidden.rename(hidden.with_name(hidden.name[1:]))
        try:
            yield path
        finally:
            remove(path)


def sweep() -> None:
    """Removes this user's folders that no grader holds locked any more."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid != os.getuid():
                continue
            lock = os.open(path / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(path)
            finally:
                os.close(lock)


def remove(folder: Path) -> None:
    """Removes a folder, also one that is too deep for Python, or whose modes forbid it."""
    with contextlib.suppress(OSError, RecursionError):
        shutil.rmtree(folder)
        return
    for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
        with contextlib.suppress(OSError):
            subprocess.run([*command, "--", folder], stdin=subprocess.DEVNULL, capture_output=True)
