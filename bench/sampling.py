"""Sampling by the incremental forms, and by the naive sampler, which computes the whole grid again for each token."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench.common import Line, load
from homework.priors.base import Prior
from homework.priors.sampling import sample

PASSES = 12  # of the naive sampler, whose 600 would take minutes
# what is sampled, how many at once, and the size of a grid
CASES = (("AutoregressiveModel", 16, (20, 30)), ("AutoregressiveModel", 1, (20, 30)), ("PixelCNN", 16, (28, 28)),
         ("PixelCNN", 1, (28, 28)), ("GatedPixelCNN", 16, (20, 30)))  # fmt: skip


def naive(prior: Prior, grid: Tensor, n: int) -> None:
    """Fills in the most probable token at position ``n`` of (B,h,w) grids by one pass over all of them."""
    logits, _ = prior(grid)
    grid.flatten(1)[:, n] = sample(logits.flatten(1, 2)[:, n], temperature=0)  # (B,h,w,K) -> (B,N,K)


def greedy(prior: Prior, B: int, h: int, w: int, n: int) -> Tensor:
    """The first ``n`` most probable tokens (B,n), by the incremental form."""
    steps, new, tokens = prior.steps(B, h, w), torch.zeros(B, 0, dtype=torch.int64), []
    for _ in range(n):
        new = sample(steps(new), temperature=0)[:, None]
        tokens.append(new)
    return torch.cat(tokens, dim=1)


@torch.inference_mode()
def measure(data: Path) -> Iterator[Line]:
    for name, B, (h, w) in CASES:
        prior = load(name)
        grid = torch.zeros(B, h, w, dtype=torch.int64)
        prior(grid), greedy(prior, B, h, w, PASSES)  # warm up
        passes, runs = [], []
        for n in range(PASSES):
            start = time.perf_counter()
            naive(prior, grid, n)
            passes.append(time.perf_counter() - start)
        for seed in range(3):
            start = time.perf_counter()
            prior.generate(B, h, w, generator=torch.Generator().manual_seed(seed))
            runs.append(time.perf_counter() - start)
        equal = (greedy(prior, B, h, w, PASSES) == grid.flatten(1)[:, :PASSES]).sum().item()
        fast, plain = statistics.median(runs), h * w * statistics.median(passes)
        notes = [
            f"{fast:.1f} s, and naively about {plain:.0f} s: {PASSES} of its passes were timed, and multiplied to {h * w}",
            f"greedy tokens at the first {PASSES} positions: {equal} of {B * PASSES} are those of the naive sampler",
        ]
        yield Line(f"sampling {name}, {B} at once", B / fast, B / plain, "incremental | whole grid for each token", notes)
