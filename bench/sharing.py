"""How much memory each of two processes of a training holds between two updates, with and without --fsdp: ``python -m
bench.sharing``, on Linux with glibc."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from homework.core import cli, devices
from homework.train import train
from homework.training.loop import Run

UPDATES = 4
MARK = "MB and seconds an update:"


def memory() -> float:
    """The resident set of this process, in MB."""
    return int(re.findall(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1e3


def process(data: str, d_latent: int, n_layers: int, fsdp: bool) -> None:
    """What one of the processes does: a few updates of a prior, and a line with its memory after the last one."""
    step = Run.step

    def measured(self: Run) -> dict[str, torch.Tensor]:
        if self.update == 0:
            print(f"{sum(p.numel() for p in self.model.parameters())} parameters", flush=True)
        start = time.perf_counter()
        result = step(self)  # its gradients are kept until the next one
        seconds = time.perf_counter() - start
        if self.update == UPDATES - 1:
            devices.release_memory()
            print(f"{MARK} {memory():.0f} {seconds:.2f}", flush=True)
        return result

    Run.step = measured  # type: ignore[method-assign]
    train("AutoregressiveModel", data=data, d_latent=d_latent, n_layers=n_layers, fsdp=fsdp, device="cpu", batch_size=1,
          epochs=UPDATES / 8, output="prior.pth")  # fmt: skip


def sharing(d_latent: int = 1024, n_layers: int = 8) -> None:
    """Prints the resident set of a process of two that train a prior, without --fsdp and with it, and what that is for each
    parameter above the memory of Python and PyTorch.

    Examples:
        python -m bench.sharing
        python -m bench.sharing --d_latent 512 --n_layers 4

    Args:
        d_latent, n_layers: the size of the prior.
    """
    cli.at_least(1, d_latent=d_latent, n_layers=n_layers)
    without = memory()
    with tempfile.TemporaryDirectory() as folder:
        for split in "train", "valid":
            torch.save(torch.randint(1024, (16, 10, 15), dtype=torch.int16), Path(folder, f"tokenized_{split}.pth"))
        for fsdp in False, True:
            command = f"from bench.sharing import process; process({folder!r}, {d_latent}, {n_layers}, {fsdp})"
            torchrun = [sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node 2 --no-python".split()]
            env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
            done = subprocess.run([*torchrun, sys.executable, "-c", command], cwd=folder, env=env, text=True, stdout=-1)
            found = [line.removeprefix(MARK).split() for line in done.stdout.splitlines() if line.startswith(MARK)]
            n = int(re.findall(r"(\d+) parameters", done.stdout)[0])
            megabytes, seconds = (sum(float(each[i]) for each in found) / len(found) for i in range(2))
            print(f"{'with' if fsdp else 'without'} --fsdp: {megabytes:.0f} MB in each process, "
                  f"{(megabytes - without) * 1e6 / n:.1f} bytes for each of {n / 1e6:.0f} million parameters, "
                  f"{seconds:.2f} s an update")  # fmt: skip


if __name__ == "__main__":
    cli.main("python -m bench.sharing", sharing)
