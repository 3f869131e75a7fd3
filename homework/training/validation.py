"""What a model measures over a whole data set."""

from collections.abc import Sequence

import torch
from torch import Tensor

from homework.core.model import Model
from homework.core.processes import own_share
from homework.datasets.base import Dataset
from homework.training import distributed


@torch.no_grad()
def measure(model: Model, data: Dataset, n: int, batch_size: int, device: torch.device) -> dict[str, float] | None:
    """The figures of ``model`` over the first ``n`` samples, by :meth:`homework.core.model.Model.figures`, the same to
    rounding for any ``batch_size`` and number of processes, each of which takes its share; None on all but the first."""
    sums: dict[str, Tensor] = {}
    found: list[tuple[Tensor, Tensor]] = [(torch.empty(0, dtype=torch.int64),) * 2]  # tokens that occur, and how often
    share = own_share(torch.arange(n))
    for start in range(0, -(-n // distributed.world_size()), batch_size):  # as often on all, which --fsdp needs
        indices = share[start : start + batch_size]
        losses = model.loss(data.batch(indices if len(indices) else torch.arange(1), device))
        for k, v in losses.items() if len(indices) else ():
            if v.is_floating_point():
                sums[k] = sums.get(k, 0) + v * len(indices)
            else:
                tokens, counts = v.flatten().unique(return_counts=True)
                found.append((tokens.cpu(), counts.cpu()))
    shares = distributed.gather(({k: float(v) for k, v in sums.items()}, counted(found)))
    if shares is None:
        return None
    every = [sums for sums, _ in shares]
    means = {k: sum(share.get(k, 0.0) for share in every) / n for k in sorted(set().union(*every))}
    return model.figures(means, counted([tokens for _, tokens in shares])[1])


def counted(found: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Several lists of tokens and their counts, each (n), as one in which no token is twice."""
    tokens, counts = (torch.cat(parts) for parts in zip(*found, strict=True))
    tokens, inverse = tokens.unique(return_inverse=True)
    return tokens, counts.new_zeros(len(tokens)).index_add_(0, inverse, counts)
