"""The command of bubblewrap (https://github.com/containers/bubblewrap): a program sees only what it needs, in namespaces
of its own."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


@functools.cache
def usable() -> bool:
    """Whether it is installed, and this kernel lets it do what :func:`command` asks for."""
    if shutil.which("bwrap") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        readable = ["/usr", "/lib", "/lib64", "/bin", sys.base_prefix]
        probe = command([os.path.realpath(sys.executable), "-I", "-S", "-c", ""], readable, [], Path(folder), 1 << 20)
        return subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


def command(program: list[str], readable: list[str], hidden: list[str], scratch: Path, disk: int) -> list[str]:
    """``program`` in namespaces of its own, without capabilities and network; it ends when this process does.

    Args:
        program: and its arguments.
        readable: the files and folders it sees, but cannot change.
        hidden: folders in those that it sees empty.
        scratch: the only folder in which it can write, in memory; its working directory.
        disk: bytes that fit into it.
    """
    options = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--proc", "/proc",
               "--dev", "/dev"]  # fmt: skip
    for path in sorted({*readable, *map(os.path.realpath, readable)}):  # a folder before what lies in it
        options += ["--ro-bind-try", path, path]
    for path in hidden:
        options += ["--tmpfs", path, "--remount-ro", path]
    options += ["--size", str(disk), "--tmpfs", str(scratch), "--remount-ro", "/dev", "--remount-ro", "/",
                "--chdir", str(scratch)]  # fmt: skip
    return ["bwrap", *options, "--", *program]
