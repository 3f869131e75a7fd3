"""A prior fed token by token, in raster order."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from homework.core.model import Model, ordinary_tensors


def check_tokens(tokens: Tensor, K: int | None, what: str) -> Tensor:
    """The tokens of ``what``, a grid or the first part of one, as int64. ValueError unless they are integers in [0,K); of
    no upper limit if K is None."""
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(f"The {what} is {tokens.dtype}, but tokens are integers; convert it by .long().")
    tokens = tokens.long()
    if tokens.numel() and not (0 <= tokens.min() and (K is None or tokens.max() < K)):
        worst = int(tokens.max() if tokens.min() >= 0 else tokens.min())
        known = "of at least 0" if K is None else f"from 0 to {K - 1}"
        raise ValueError(f"The {what} holds token {worst}, but this model knows those {known}; use the tokenizer that it "
                         "was trained with.")  # fmt: skip
    return tokens


class Steps:
    """A prior fed token by token, in raster order. It computes without gradients and returns ordinary tensors. A subclass
    whose constructor calls this one has its tokens checked: what is given first, and how many there are."""

    n_tokens: int | None = None  # K
    left: float = math.inf  # how many more tokens it takes; after the last of a grid there is nothing to predict
    given: ClassVar[str] = "grid to continue"  # what messages call the tokens of the first call
    started = False  # whether there was a first call

    def __init__(self, model: Model, h: int, w: int):
        self.n_tokens, self.left, self.started = model.n_tokens, h * w - 1, False

    @ordinary_tensors
    def __call__(self, tokens: Tensor) -> Tensor:
        """Takes the (B,n) tokens of the next n positions, integers in [0,K), and returns the (B,K) logits of the position
        after them. The first call takes any n >= 0; the later ones n = 1. ValueError for other tokens, or too many."""
        if not self.started or tokens.dtype != torch.int64:  # later tokens come from sampling
            tokens, self.started = check_tokens(tokens, self.n_tokens, self.given), True
        if tokens.shape[1] > self.left:
            raise ValueError(f"The {self.given} is full: steps predict the token after those given, so they take "
                             f"{self.left} more, not {tokens.shape[1]}.")  # fmt: skip
        self.left -= tokens.shape[1]
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

    def __init__(self, model: Model, B: int, h: int, w: int, device: str | torch.device = "cpu"):
        super().__init__(model, h, w)
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
