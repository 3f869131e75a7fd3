"""A prior fed token by token, in raster order."""

import torch
from torch import Tensor, nn

from homework.core.model import ordinary_tensors


class Steps:
    """A prior fed token by token, in raster order. It computes without gradients and returns ordinary tensors."""

    @ordinary_tensors
    def __call__(self, tokens: Tensor) -> Tensor:
        """Takes the (B,n) int64 tokens of the next n positions, returns the (B,K) logits of the position after them.
        The first call takes any n >= 0; the later ones n = 1."""
        return self.advance(tokens)

    def advance(self, tokens: Tensor) -> Tensor:
        """What a subclass defines for a call, which runs it in inference mode."""
        raise NotImplementedError

    def select(self, rows: Tensor) -> None:
        """Continues with the grids ``rows`` (M,) int64 of the present batch, in this order; a grid may be selected several
        times, or not at all. ValueError from steps that cannot."""
        raise ValueError("These steps cannot continue one grid in several ways; leave num_beam and beams out.")


class NaiveSteps(Steps):
    """The reference against which faster steps are tested: a pass over the whole grid for each token."""

    def __init__(self, model: nn.Module, B: int, h: int, w: int, device: str | torch.device = "cpu"):
        self.model, self.n = model, 0
        self.grid = torch.zeros(B, h, w, dtype=torch.int64, device=device)

    def advance(self, tokens: Tensor) -> Tensor:
        stop = self.n + tokens.shape[1]
        self.grid.flatten(1)[:, self.n : stop] = tokens.to(self.grid.device)  # (B,h,w) -> (B,N), a view
        self.n = stop
        return self.model(self.grid)[0].flatten(1, 2)[:, stop]  # (B,h,w,K) -> (B,N,K) -> (B,K)

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        self.grid = self.grid[rows.to(self.grid.device)]
