"""Updates of ``homework.train``, next to the same updates fed naively and without keep_memory.

That setting holds for a whole process, so each way runs in one of its own: ``python -m bench.training MODEL
fast|baseline|bfloat16``.
"""

import inspect
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from bench import feeding
from bench.common import Line, checkpoint_path, load
from homework import train
from homework.core import devices, files
from homework.training import loop

BATCH, WARM_UP, UPDATES = 16, 2, 6
WAYS = {
    "BSQPatchAutoEncoder": "cache, keep_memory | decoding files, no keep_memory",
    "AutoregressiveModel": "whole batches, keep_memory | grids one by one, no keep_memory",
}


def measure(data: Path) -> Iterator[Line]:
    prior = load("AutoregressiveModel")
    n, shape = len(list((data / "train").iterdir())), (prior.config["height"], prior.config["width"])
    for split in ("train", "valid"):  # random tokens: their values do not change the time
        tokens = torch.randint(prior.n_tokens, (n, *shape), generator=torch.Generator().manual_seed(0))
        files.write({"tokens": tokens, "n_tokens": prior.n_tokens}, data / f"tokenized_{split}.pth")
    for name, ways in WAYS.items():
        fast, baseline = (child(name, way, data.parent) for way in ("fast", "baseline"))
        share, baseline_share = (100 * r["feeding"] / r["update"] for r in (fast, baseline))
        note = f"feeding is {share:.2g} % of an update (the aim: under 5 %), and {baseline_share:.2g} % in the baseline"
        yield Line(f"training {name}, batch {BATCH}", BATCH / fast["update"], BATCH / baseline["update"], ways, [note])
        half = BATCH / child(name, "bfloat16", data.parent)["update"]
        yield Line("  --precision bfloat16", half, BATCH / fast["update"], "bfloat16 | float32", [])


def child(name: str, way: str, folder: Path) -> dict[str, float]:
    """Seconds of an "update", and of the "feeding" in it; measured in a process of its own that works in ``folder``."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    env = os.environ | {"PYTHONPATH": path, "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "bench.training", name, way]
    done = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"The measurement {' '.join(command[1:])} failed.")
    return json.loads(done.stdout.splitlines()[-1])


def updates(name: str, way: str) -> dict[str, float]:
    """Measures in this process, with data/ in the current folder."""
    if way == "baseline":
        devices.keep_memory = lambda: None
    path = checkpoint_path(name)
    settings = {k: p.default for k, p in inspect.signature(train.train).parameters.items() if k not in ("resume", "config")}
    settings |= {"precision": "bfloat16" if way == "bfloat16" else "float32"}
    settings |= {"model": str(path) if path.is_file() else name, "options": {}, "batch_size": BATCH, "device": "cpu"}
    run, feeding_seconds, update_seconds = loop.Run(settings), [], []

    def grid(i: int) -> torch.Tensor:
        return torch.from_numpy(run.train_data.tokens[i].astype(np.int64))

    baseline = {
        "images": lambda indices, device: feeding.decoded(run.train_data.names, indices),
        "tokens": lambda indices, device: torch.stack([grid(i) for i in indices]),
    }
    batch = baseline[run.model.data] if way == "baseline" else run.train_data.batch

    def timed_batch(indices, device):
        start = time.perf_counter()
        result = batch(indices, device)
        feeding_seconds.append(time.perf_counter() - start)
        return result

    run.train_data.batch = timed_batch
    for _ in range(WARM_UP + UPDATES):
        start = time.perf_counter()
        run.step()
        run.update += 1
        update_seconds.append(time.perf_counter() - start)
    medians = (statistics.median(s[WARM_UP:]) for s in (update_seconds, feeding_seconds))
    return dict(zip(("update", "feeding"), medians, strict=True))


if __name__ == "__main__":
    print(json.dumps(updates(*sys.argv[1:])))
