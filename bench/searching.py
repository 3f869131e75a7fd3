"""The search for tokens, beside the plain way: every bit of every token flipped, in turns, with no scores of what helps."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.common import Line, load
from homework.codec import dial
from homework.codec.search import NEAR, Objective, around, search
from homework.datasets.image_files import image_paths
from homework.datasets.images import ImageDataset

N = 4
LMBDA = dial.lmbda_at(dial.QUALITY)
APART = 2 * NEAR + 1  # so that no two changes are charged for the same


def sweep(objective: Objective, tokens: Tensor, n_bits: int) -> Tensor:
    """One sweep over all positions, some APART at once, and all bits of their tokens; what lowers J around it stays."""
    J = objective.cost(tokens)
    for i, j in np.ndindex(APART, APART):
        for bit in range(n_bits):
            new = tokens.clone()
            some = new[i::APART, j::APART]
            some += 2**bit * (1 - 2 * (some // 2**bit % 2))
            worse = around(objective.cost(new) - J, NEAR) >= 0
            new[worse] = tokens[worse]
            moved = objective.cost(new)
            if moved.sum() < J.sum():
                tokens, J = new, moved
    return tokens


@contextlib.contextmanager
def counted(method: str) -> Iterator[Counter[str]]:
    """Counts the calls of an Objective's method, each of which is a pass through decoder and prior."""
    calls, original = Counter[str](), getattr(Objective, method)

    def call(*args: Any) -> Any:  # a mock would keep all arguments
        calls[method] += 1
        return original(*args)

    with mock.patch.object(Objective, method, call):
        yield calls


def peak() -> float:
    """GFLOP/s of a matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 2.048**3 / min(times)


@torch.no_grad()
def measure(data: Path) -> Iterator[Line]:
    tokenizer, prior = load("BSQPatchAutoEncoder"), load("AutoregressiveModel")
    images = ImageDataset(image_paths("train", data)[:N]).batch(torch.arange(N))
    first = [tokenizer.encode_index(x) for x in images]
    h, w = first[0].shape
    objectives = [
        Objective(tokenizer, prior, x, grid, (slice(0, h), slice(0, w)), (h, w), LMBDA)
        for x, grid in zip(images, first, strict=True)
    ]

    def mean_cost(grids: list[Tensor]) -> float:
        return sum(float(o.cost(grid).sum()) for o, grid in zip(objectives, grids, strict=True)) / N

    start = time.perf_counter()
    found = [search(tokenizer, prior, x, LMBDA, dial.EFFORT) for x in images]
    ours = (time.perf_counter() - start) / N
    start = time.perf_counter()
    swept = [sweep(o, grid, int(math.log2(tokenizer.n_tokens))) for o, grid in zip(objectives, first, strict=True)]
    plain = (time.perf_counter() - start) / N
    counting = profile(activities=[ProfilerActivity.CPU], with_flops=True)
    with counted("cost") as trials, counted("scores") as scores, counting as profiler:
        for x in images:
            search(tokenizer, prior, x, LMBDA, dial.EFFORT)
    passes = trials.total() / N, scores.total() / N
    gflop = sum(event.flops for event in profiler.key_averages()) / 1e9 / N  # of matrix products and convolutions
    before, after, after_sweep = map(mean_cost, (first, found, swept))
    notes = [
        f"{passes[0]:.0f} passes of decoder and prior an image, and {passes[1]:.0f} with slopes; "
        f"{sum(passes) / ours:.0f} a second",
        f"{gflop:.0f} GFLOP an image at {gflop / ours:.0f} GFLOP/s, of {peak():.0f} in a matrix product",
        f"J falls by {1 - after / before:.1%}, that is {(1 - after / before) / gflop:.2%} for a GFLOP; the sweep's by "
        f"{1 - after_sweep / before:.1%}",
    ]
    yield Line(f"searching {N} images, effort {dial.EFFORT}", 1 / ours, 1 / plain, "by scores | all bits in turn", notes)
