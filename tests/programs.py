"""Programs in processes of their own that start at once: forked off a server that has imported PyTorch and no more.

Python, PyTorch and what AdamW's constructor imports (torch._dynamo) take a new process some four seconds of a core.
"""

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import ModuleType
from unittest import mock

# OpenMP's threads else spin while they wait, which on busy cores makes two of them ten times slower than one; this is read
# when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy  # noqa: F401
import PIL.Image  # noqa: F401
import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.utils.tensorboard  # noqa: F401

ROOT, HERE = Path(__file__).parents[1], str(Path(__file__).parent)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["programs"])
SERVER = {"PYTHONPATH": os.pathsep.join([HERE, str(ROOT)]), "OMP_NUM_THREADS": "1"}  # Python 3.11 hands it no sys.path
SECONDS = 900  # that a program may take


def run(words: list[str], cwd: Path, env: dict[str, str], processes: int = 1) -> subprocess.CompletedProcess:
    """``python WORDS``, which begin with ``-m`` or a script, in ``cwd`` with this environment; with ``processes``, as
    torchrun starts it, but without its agent: the others go on when one has failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        children = []
        for i in range(processes):
            group = {"RANK": i, "LOCAL_RANK": i, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if processes > 1 else {}  # fmt: skip
            environment = env | {k: str(v) for k, v in group.items()}
            children.append(CONTEXT.Process(target=program, args=(words, str(cwd), environment, str(out), str(err))))
            with mock.patch.dict(os.environ, SERVER), mock.patch.dict(sys.modules, __main__=ModuleType("__main__")):
                children[-1].start()  # the server, too, the first time; neither imports pytest
        for child in children:
            child.join(SECONDS)
            if child.exitcode is None:
                child.kill()
                raise subprocess.TimeoutExpired(words, SECONDS)
        code = next((child.exitcode for child in children if child.exitcode), 0)
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


def program(words: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    """In the new process: what Python itself does before and after a program."""
    for number, name in (1, out), (2, err):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
    paths = [path for path in sys.path if path not in ("", HERE, str(ROOT))]
    try:
        if words[0] == "-m":
            sys.path[:], sys.argv = [cwd, str(ROOT), *paths], words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[:], sys.argv = [str(Path(words[0]).resolve().parent), str(ROOT), *paths], words
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
