"""What models of grids in raster order share: what a place starts from, and how they go from place to place."""

import torch
import torch.nn.functional as F
from torch import Tensor

from homework.priors.base import Steps

# Already known neighbours whose embeddings a place starts from, as (rows up, columns left), nearest first. The first is
# the token before it in raster order: to the left, or at the start of a row the last one of the row above.
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (1, 2), (1, -2))


class FromNeighbours:
    """A part of a model (a mixin) that starts each place from the tokens of its known neighbours.

    The model has ``n_tokens`` (K), ``neighbours`` (m of NEIGHBOURS) and ``embedding``, whose weight is the table.
    """

    def table(self) -> Tensor:
        """(m * (K+1), D): what each token adds as each neighbour; row i * (K+1) + t is token t at neighbour i, t = K is
        "outside the grid"."""
        return self.embedding.weight

    def _pad(self, grid: Tensor) -> Tensor:
        """(B,h,w) -> (B,h+2,w+4): two rows above and two columns at either side that hold K, "outside"."""
        return F.pad(grid, (2, 2, 2, 0), value=self.n_tokens)

    def _lookup(self, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where things stand in a flattened padded grid: each place (N,), and its neighbours (N, neighbours); int64."""
        n = torch.arange(h * w, device=device)
        own = (n // w + 2) * (w + 4) + n % w + 2
        around = torch.stack([own - up * (w + 4) - left for up, left in self.neighbours], dim=1)
        around[1:, 0] = own[:-1]  # at the start of a row too, nothing earlier must stay unseen: the end of the row above
        return own, around

    def _embed(self, table: Tensor, padded: Tensor, lookup: Tensor, positions: Tensor | float) -> Tensor:
        """Rows of ``table`` for the (B, padded grid) tokens at ``lookup`` (n,m), summed over the m neighbours -> (B,n,D)."""
        first_rows = torch.arange(lookup.shape[1], device=padded.device) * (self.n_tokens + 1)
        rows = (padded[:, lookup] + first_rows).flatten(0, 1)  # (B,n,m) -> (B*n,m)
        summed = F.embedding_bag(rows, table, mode="sum")  # (B*n,D)
        return summed.view(len(padded), len(lookup), -1) + positions  # (B*n,D) -> (B,n,D)


def check_tokens(tokens: Tensor, K: int, what: str) -> None:
    """ValueError unless all tokens of ``what``, a grid or the first part of one, are in [0,K)."""
    if tokens.numel() and not (0 <= tokens.min() and tokens.max() < K):
        worst = int(tokens.max() if tokens.min() >= 0 else tokens.min())
        raise ValueError(f"The {what} holds token {worst}, but this model knows those from 0 to {K - 1}; use the tokenizer "
                         "that it was trained with.")  # fmt: skip


class RasterSteps(Steps):
    """A model fed place by place: keys and values of all places so far are kept, so that a step costs the same at every
    place, not a pass over all of them. The model must be in eval mode.

    A subclass has ``compute(start, stop)``, which returns the (B,n,D) behind the last layer for places start to stop - 1;
    all places before them have been computed.

    Args:
        model: has :class:`FromNeighbours`, a ``table()`` of embeddings, ``layers`` with a causal ``attention``, ``norm`` and
            ``head``.
        B, h, w: batch and grid size, device: where the model is.
        D: width of the layers.
        prefix: how many places come before the grid's first one.
    """

    given = "grid to go on from"  # what messages call the tokens of the first call

    def __init__(self, model, B: int, h: int, w: int, device: str | torch.device, D: int, prefix: int = 0):
        self.model, self.n, self.done = model, 0, 0  # n tokens are known, done places computed
        self.prefix, self.table = prefix, model.table()
        self.own, self.lookup = model._lookup(h, w, torch.device(device))
        # (B,h+2,w+4) -> (B,(h+2)*(w+4))
        self.padded = model._pad(torch.full((B, h, w), model.n_tokens, device=device)).flatten(1)
        all_heads = [layer.attention.n_heads for layer in model.layers]
        empty = [torch.empty(2, B, heads, prefix + h * w, D // heads, device=device, dtype=model.head.weight.dtype)
                 for heads in all_heads]  # fmt: skip
        self.cache = [(k, v) for k, v in empty]

    def advance(self, tokens: Tensor) -> Tensor:
        """Takes the (B,n) int64 tokens of the next n places, returns the (B,K) logits of the place behind them.

        The first call takes any n >= 0; the later ones n = 1. ValueError if a token of the first call is not in [0,K).
        """
        if not self.done:  # what a user gives; later tokens come from sampling
            check_tokens(tokens, self.model.n_tokens, self.given)
        stop = self.n + tokens.shape[1]
        self.padded[:, self.own[self.n : stop]] = tokens.to(self.padded.device)
        x = self.compute(self.done, stop + 1)  # all places up to here the first time, later the one new place
        self.n, self.done = stop, stop + 1
        return self.model.head(self.model.norm(x[:, -1]))

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        rows = rows.to(self.padded.device)
        self.padded = self.padded[rows]
        stop = self.prefix + self.done if self.done else 0
        for i, layer in enumerate(self.model.layers):
            first = max(0, stop + 1 - layer.attention.window)  # no later place sees further back
            copies = tuple(kept.new_empty(len(rows), *kept.shape[1:]) for kept in self.cache[i])
            for copy, kept in zip(copies, self.cache[i], strict=True):
                copy[:, :, first:stop] = kept[rows, :, first:stop]
            self.cache[i] = copies
