"""Measures our implementations against baselines, in one run: ``python -m bench [PART ...]``. See ``--help``."""

import contextlib
import io
import os
import platform
import tempfile
from pathlib import Path

import torch

from bench import compressing, feeding, sampling, searching, tokenizing, training
from bench.common import copy_images, describe
from homework.core import cli, devices

PARTS = {
    "feeding": feeding,
    "training": training,
    "tokenizing": tokenizing,
    "sampling": sampling,
    "compressing": compressing,
    "searching": searching,
}
N_IMAGES = 512


def bench(*parts: str) -> None:
    """Prints a table of images per second, ours and of a baseline for the same task; on the CPU, about five minutes.

    Args:
        parts: feeding, training, tokenizing, sampling, compressing or searching; all by default.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"There is no part {part!r}; the parts are {', '.join(PARTS)}.")
    devices.pick_device("cpu")  # also sets how freed memory is kept, as in every command
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for model in ("BSQPatchAutoEncoder", "AutoregressiveModel"):
        print(describe(model))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        source = copy_images(data / "train", N_IMAGES)
        copy_images(data / "valid", training.BATCH)
        print(f"images: {N_IMAGES} from {source}\n")
        print(f"{'images/s':<48}{'ours':>10}{'baseline':>10}{'ratio':>8}   ours | baseline", flush=True)
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars would run into the table
            for part in parts or PARTS:
                for line in PARTS[part].measure(data):
                    rates = f"{rate(line.fast):>10}{rate(line.plain):>10}{line.fast / line.plain:>8.3g}"
                    print(f"{line.what:<48}{rates}   {line.ways}")
                    print("".join(f"  {note}\n" for note in line.notes), end="", flush=True)


def rate(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


if __name__ == "__main__":
    cli.main("python -m bench", bench)
