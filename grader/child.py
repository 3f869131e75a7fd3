"""The first lines of a confined child; run by its path, so that of the checkout only ``grader.*`` is importable there.

The submission may replace everything in this process, also what is here: nothing that the parent relies on happens after
:func:`main` has called the target.
"""

import importlib
import importlib.abc
import json
import os
import sys
import traceback
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

PACKAGE = "homework"


class OnlyTheSubmission(importlib.abc.MetaPathFinder):
    """Finds ``homework`` in the submission or nowhere, whatever is installed."""

    def __init__(self, submission: str) -> None:
        self.submission = submission

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        if name != PACKAGE:
            return None
        spec = PathFinder.find_spec(name, [self.submission])
        if spec is None or spec.origin is None:  # None of a folder without __init__.py
            raise ModuleNotFoundError(f"The submission has no {PACKAGE}/__init__.py.", name=name)
        return spec


def protect(task: dict) -> list[str]:
    """Confines this process. Returns what does."""
    names = "namespaces", "processes", "seccomp", "confine"
    namespaces, processes, seccomp, confine = (importlib.import_module(f"grader.{name}") for name in names)
    scratch, limits, guards = Path(task["scratch"]), task["limits"], [task["confinement"]]
    pipe = task["read"], task["write"]
    if guards == ["namespaces"] and not namespaces.isolate(scratch, limits["disk"], task["parent"], pipe):
        guards = ["none"]
    if guards == ["none"]:
        processes.end_with(task["parent"], pipe)
        limits["processes"], guards = 0, []  # NPROC would count those of this user anywhere
    namespaces.drop_capabilities()
    if seccomp.install(metadata=not guards):
        guards.append("seccomp")
    return guards + confine.confine(scratch, task["readable"], **limits)


def disconnect(pipe: tuple[int, ...]) -> None:
    """Only the first process answers, not a copy of it that returns from the submission too."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in pipe:
        os.dup2(null, fd)
    os.close(null)


def main(task: dict) -> None:
    """Confines this process and calls the target with the pipe to the parent, which gets a line of JSON first."""
    package = types.ModuleType("grader")  # without the folder above it, which holds another homework
    package.__path__ = [str(Path(__file__).parent)]
    sys.modules["grader"] = package
    sys.path[:] = [task["submission"], *task["path"]]
    pipe = task["read"], task["write"]
    read, write = os.fdopen(pipe[0], "rb"), os.fdopen(pipe[1], "wb")
    guards = protect(task)
    os.register_at_fork(after_in_child=lambda: disconnect(pipe))
    write.write(json.dumps(guards).encode() + b"\n")
    write.flush()
    sys.meta_path.insert(0, OnlyTheSubmission(task["submission"]))
    module, name = task["target"].split(":")
    getattr(importlib.import_module(module), name)(read, write)
    write.flush()


if __name__ == "__main__":
    code = 0
    try:
        main(json.loads(sys.argv[1]))
    except BaseException as error:  # noqa: B036  the end of this process, without atexit handlers
        code = 1
        traceback.print_exception(error)
    os._exit(code)
