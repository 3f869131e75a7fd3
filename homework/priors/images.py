"""Images from priors: token grids, sampled or completed, and decoded."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homework.core import devices
from homework.core.model import ordinary_tensors
from homework.datasets.images import to_uint8
from homework.datasets.mnist import binary
from homework.priors.base import Prior
from homework.tokenizers.base import Tokenizer

FRAME = (100, 150)  # pixels, height and width, of images whose prior is for no size of its own
Detail = Callable[[Tensor, torch.Generator], Tensor]  # grids (B,h,w) -> what is drawn for them to be added to their pixels
UNKNOWN = 128  # the shade of what a completion has to fill in


def trained_size(tokenizer: Tokenizer, prior: Prior) -> tuple[int, int]:
    """(H,W) in pixels of the images whose grids the prior was built for; FRAME if it takes any."""
    if prior.grid_size is None:
        return FRAME
    (h, w), (P, Q) = prior.grid_size, tokenizer.patch_shape
    return h * P, w * Q


@ordinary_tensors
def decode(tokenizer: Tokenizer, grids: Tensor, more: Tensor | None = None) -> Tensor:
    """(B,h,w) int64 grids -> (B,H,W,3) uint8 images on the CPU; ``more``, (B,H,W,3) float, is added before."""
    x = tokenizer.decode_index(grids)
    return to_uint8(x if more is None else x + more.to(x)).cpu()


@ordinary_tensors
def most_typical(prior: Prior, grids: Tensor) -> Tensor:
    """(B,M,h,w) int64, M candidates for each of B images -> (B,h,w): those whose bits are nearest to the mean of the data
    that the prior was validated on; if its checkpoint does not say, to the mean of all of ``grids``. Not the most probable
    ones: these are unlike the data, and of frames almost black."""
    bits = torch.stack([prior.bits(some).sum(dim=(1, 2)) for some in grids])  # (B,M)
    nats = prior.meta.get("valid", {}).get("loss")  # per token
    mean = bits.mean() if nats is None else nats / math.log(2) * grids[0, 0].numel()
    best = (bits - mean).abs().argmin(dim=1)  # (B)
    return grids[torch.arange(len(grids), device=best.device), best]


def generate_images(tokenizer: Tokenizer, prior: Prior, n_images: int, size: tuple[int, int], batch_size: int = 16,
                    kept: Tensor | None = None, candidates: int = 1, seed: int = 0, share: tuple[int, int] = (0, 1),
                    detail: Detail | None = None, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Samples images of ``size`` (H,W) pixels, a batch at a time: (B,h,w) int64, and (B,H,W,3) uint8 on the CPU. All have
    the first token rows ``kept`` (r,w) int64, and each is the :func:`most_typical` of its ``candidates``; ``detail`` is
    added to their pixels. For the options see :meth:`homework.priors.base.Prior.generate`.

    The draws of a batch depend on ``seed`` and its number alone, so that it may be sampled anywhere: of a ``share`` (k, n)
    only the batches k, k+n, k+2n, ... are.
    """
    h, w = (-(-side // patch) for side, patch in zip(size, tokenizer.patch_shape, strict=True))
    k, step = share
    for number in range(k, -(-n_images // batch_size), step):
        B = min(batch_size, n_images - number * batch_size)
        options["generator"] = devices.generator(seed, number) if number else torch.Generator().manual_seed(seed)
        prefix = None if kept is None else kept.expand(B * candidates, -1, -1)  # (r,w) -> (B*M,r,w)
        grids = prior.generate(B * candidates, h, w, tokenizer.device, prefix=prefix, **options)
        if candidates > 1:
            grids = most_typical(prior, grids.unflatten(0, (B, candidates)))  # (B*M,h,w) -> (B,h,w)
        more = None if detail is None else detail(grids, options["generator"])
        yield grids, decode(tokenizer, grids, more)[:, : size[0], : size[1]]


def to_shades(grey: np.ndarray, K: int, binarize: float | str) -> Tensor:
    """(H,W) uint8 -> (H,W) int64: the nearest of K shades; for K = 2, whether a pixel is ink, see
    :func:`homework.datasets.mnist.binary`."""
    grid = binary(grey, binarize) if K == 2 else (grey.astype(np.int64) * (K - 1) + 127) // 255
    return torch.from_numpy(grid.astype(np.int64))


def from_shades(grid: Tensor, K: int) -> np.ndarray:
    """(...,H,W) int64 in [0,K), from black to white, or -1 for unknown -> (...,H,W) uint8."""
    return torch.where(grid < 0, UNKNOWN, grid * 255 // (K - 1)).to(torch.uint8).cpu().numpy()


def complete_rows(prior: Prior, given: Tensor, rows: int, n: int, **options: Any) -> list[Tensor]:
    """Samples ``n`` endings of the first ``rows`` of each grid (G,H,W) int64. For each (2+n,H,W) int64 on the CPU: itself,
    what was kept of it, with -1 for the rest, and the endings. Options as in :func:`generate_images`."""
    prefix = given[:, :rows].repeat_interleave(n, dim=0).to(prior.device)  # (G,r,W) -> (G*n,r,W)
    new = prior.generate(len(prefix), *given.shape[1:], prior.device, prefix=prefix, **options).cpu()
    kept = given.clone()
    kept[:, rows:] = -1
    return [torch.cat((a[None], b[None], c)) for a, b, c in zip(given, kept, new.split(n), strict=True)]
