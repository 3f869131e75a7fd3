"""The prior that has learned nothing, to compare the others with."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from homework.priors import sampling
from homework.priors.base import Prior
from homework.priors.steps import Steps


class UniformSteps(Steps):
    """Logits of 0 at every position."""

    def __init__(self, model: "Uniform", B: int, h: int, w: int, device: str | torch.device = "cpu"):
        super().__init__(model, h, w)
        self.K, self.device = model.n_tokens, device

    def advance(self, tokens: Tensor) -> Tensor:
        return torch.zeros(len(tokens), self.K, device=self.device)

    def select(self, rows: Tensor) -> None:
        pass  # there is nothing to select


class Uniform(Prior):
    """Each token is any of the K = n_tokens codes with the same probability, whatever the others are."""

    steps_class = UniformSteps

    architecture = "uniform 1"

    def __init__(self, n_tokens: int):
        super().__init__()
        self.n_tokens = n_tokens

    def forward(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros(*tokens.shape, self.n_tokens, device=tokens.device), {}

    def generate(self, B: int, h: int, w: int, device: str | torch.device = "cpu", generator: torch.Generator | None = None,
                 prefix: Tensor | None = None, **sampling_options: Any) -> Tensor:  # fmt: skip
        """(B,h,w) int64 grids; the other options of :func:`homework.priors.sampling.generate` make no difference here."""
        sampling.check(**sampling_options)
        prefix = sampling.check_prefix(prefix, self.steps(B, h, w), B, h, w)
        grids = torch.randint(self.n_tokens, (B, h, w), generator=generator).to(device)
        grids[:, : prefix.shape[1]] = prefix
        return grids

    def generate_rows(self, B: int, h: int, w: int, device: str | torch.device = "cpu", **options: Any) -> Iterator[Tensor]:
        grids = self.generate(B, h, w, device, **options)
        yield from (grids[:, :r] for r in range(1, h + 1))
