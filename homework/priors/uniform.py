"""The prior that has learned nothing, to compare the others with."""

from typing import Any

import torch
from torch import Tensor

from homework.priors.base import Prior


class Uniform(Prior):
    """Each token is any of the K codes with the same probability, whatever the others are.

    Args:
        n_tokens: K.
    """

    def __init__(self, n_tokens: int):
        super().__init__()
        self.n_tokens = n_tokens

    def forward(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,h,w) int64 -> (logits (B,h,w,K), all 0, {})."""
        return torch.zeros(*tokens.shape, self.n_tokens, device=tokens.device), {}

    def generate(
        self,
        B: int,
        h: int,
        w: int,
        device: str | torch.device = "cpu",
        generator: torch.Generator | None = None,
        prefix: Tensor | None = None,
        **sampling_options: Any,
    ) -> Tensor:
        """(B,h,w) int64 grids; see :func:`homework.priors.sampling.generate`, whose other options make no difference
        here."""
        grids = torch.randint(self.n_tokens, (B, h, w), generator=generator).to(device)
        if prefix is not None:
            grids[:, : prefix.shape[1]] = prefix
        return grids
