"""Files to tokens to small files and back, beside decoding with one pass over the whole grid for each token."""

import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from bench.common import Line, checkpoint_path, load
from homework.codec.compressor import Compressor
from homework.codec.entropy import as_learned
from homework.compress import compress, decompress
from homework.datasets.image_files import image_paths
from homework.datasets.images import ImageDataset

N = 512
PASSES = 4  # of the baseline, which takes one for each of 600 tokens
BATCHES = (1, 4, 16, 64)
STEPS = 120  # of the incremental form that are timed at each size


def seconds(f, *arguments, **options) -> float:
    start = time.perf_counter()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        f(*arguments, **options)
    return time.perf_counter() - start


def step_milliseconds(coder, B: int, h: int, w: int) -> float:
    """Mean time of a step in the last part of a grid, where the window is full."""
    steps, N = coder.steps(B, h, w, as_learned(B)), h * w
    tokens = np.random.default_rng(0).integers(coder.n_tokens, size=(B, N))
    steps(tokens[:, : max(0, N - STEPS - 1)])
    start = time.perf_counter()
    for n in range(max(0, N - STEPS - 1), N - 1):
        steps(tokens[:, n : n + 1])
    return (time.perf_counter() - start) / (N - 1 - max(0, N - STEPS - 1)) * 1000


def where_time_goes(f, what: str, rows: int = 8) -> list[str]:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        total = seconds(f)
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)
    outside = total - sum(e.self_cpu_time_total for e in events) / 1e6
    shares = ", ".join(f"{e.key.removeprefix('aten::')} {e.self_cpu_time_total / 1e6 / total:.0%}" for e in events[:rows])
    return [f"time of {what} by operation: {shares}, numpy and Python {outside / total:.0%}"]


@torch.inference_mode()
def measure(data: Path) -> Iterator[Line]:
    models = load("BSQPatchAutoEncoder"), load("AutoregressiveModel")
    compressor = Compressor(*models)
    coder, (h, w) = compressor.entropy_model, (compressor.entropy_model.height, compressor.entropy_model.width)
    folder, archive, out = data / "some", data / "some.hwa", data / "again"
    folder.mkdir()
    for path in map(Path, image_paths("train", data)[:N]):
        (folder / path.name).hardlink_to(path)
    paths = [str(checkpoint_path(type(model).__name__)) for model in models]
    seconds(compress, *paths, str(folder), str(archive), quiet=True, effort=0)  # warm up
    there = statistics.median(seconds(compress, *paths, str(folder), str(archive), quiet=True, effort=0) for _ in range(3))
    back = seconds(decompress, *paths, str(archive), str(out))
    x = ImageDataset(str(folder)).batch(torch.arange(1))
    file = compressor.compress(x[0])
    alone = statistics.median(seconds(compressor.decompress, file) for _ in range(3))
    grids = torch.randint(coder.n_tokens, (16, h, w), generator=torch.Generator().manual_seed(0))
    passes = []
    for B in (16, 1):
        ts = [seconds(lambda B=B: models[1](grids[:B])) for _ in range(PASSES + 1)][1:]
        passes.append(h * w * statistics.median(ts) / B)
    notes = where_time_goes(lambda: coder.weights(grids.numpy(), as_learned(16)), "the parallel pass")
    ways = "homework.compress --quiet | a pass per token"
    yield Line(f"compressing {N} files, batch 64", N / there, 1 / passes[0], ways, notes)
    notes = [
        f"a step with {B} images of {h}x{w} tokens takes {ms:.2f} ms, {1000 * ms / B:.0f} us a token"
        for B, ms in ((B, step_milliseconds(coder, B, h, w)) for B in BATCHES)
    ]
    notes += [
        f"a step with 16 images of {rows}x{w} tokens takes {step_milliseconds(coder, 16, rows, w):.2f} ms"
        for rows in (h // 4, h // 2, h)
    ]
    notes += where_time_goes(lambda: step_milliseconds(coder, 64, h, w), "steps with 64 images")
    yield Line(f"decompressing {N} files, batch 128", N / back, 1 / passes[0], "homework.compress | a pass per token", notes)
    notes = [f"{alone:.2f} s; naively {passes[1]:.0f} s ({PASSES} passes timed, and multiplied to {h * w})"]
    what, ways = "decompressing 1 file, models loaded", "homework.compress | a pass per token"
    yield Line(what, 1 / alone, 1 / passes[1], ways, notes)
