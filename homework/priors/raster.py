"""What transformers over grids share: what a position starts from, and the cache with which they step in raster order."""

import torch
import torch.nn.functional as F
from torch import Tensor

from homework.priors.base import Prior
from homework.priors.steps import Steps

# Already known neighbours whose embeddings a position starts from, as (rows up, columns left), nearest first. The first is
# the token before it in raster order: to the left, or at the start of a row the last one of the row above.
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (1, 2), (1, -2))


class FromNeighbours:
    """A mixin for models that start each position from the tokens of its known neighbours. The model has ``n_tokens`` (K),
    ``neighbours`` (m of NEIGHBOURS) and ``embedding``, whose weight is the table."""

    def table(self) -> Tensor:
        """(m * (K+1), D): what each token adds as each neighbour; row i * (K+1) + t is token t at neighbour i, t = K is
        "outside the grid"."""
        return self.embedding.weight

    def _pad(self, grid: Tensor) -> Tensor:
        """Adds two rows above and two columns at either side that hold K, "outside": (B,h,w) -> (B,(h+2)*(w+4))."""
        return F.pad(grid, (2, 2, 2, 0), value=self.n_tokens).flatten(1)  # (B,h+2,w+4) -> (B,(h+2)*(w+4))

    def _lookup(self, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Indices into a flattened padded grid: of each position (N,), and of its neighbours (N,m); int64."""
        n = torch.arange(h * w, device=device)
        own = (n // w + 2) * (w + 4) + n % w + 2
        around = torch.stack([own - up * (w + 4) - left for up, left in self.neighbours], dim=1)
        around[1:, 0] = own[:-1]  # nothing earlier may stay unseen: at the start of a row too, the token before it
        return own, around

    def _embed(self, table: Tensor, padded: Tensor, lookup: Tensor) -> Tensor:
        """Rows of ``table`` for the (B, padded grid) tokens at ``lookup`` (n,m), summed over the m neighbours -> (B,n,D)."""
        first_rows = torch.arange(lookup.shape[1], device=padded.device) * (self.n_tokens + 1)
        rows = (padded[:, lookup] + first_rows).flatten(0, 1)  # (B,n,m) -> (B*n,m)
        return F.embedding_bag(rows, table, mode="sum").view(len(padded), len(lookup), table.shape[1])  # (B*n,D) -> (B,n,D)


class RasterSteps(Steps):
    """A transformer fed token by token: keys and values of all positions so far are kept, so that a step costs the same at
    every position.

    The model has :class:`FromNeighbours`, ``layers`` of width D with a causal ``attention``, ``norm`` and ``head``; before
    the grid's first position the layers see ``prefix`` others. A subclass has ``compute(start, stop)``, which returns the
    last layer's output (B,n,D) at positions start to stop - 1; all positions before them have been computed.
    """

    def __init__(self, model, B: int, h: int, w: int, device: str | torch.device, D: int, prefix: int = 0):
        super().__init__(model, h, w)
        self.model, self.n, self.done = model, 0, 0  # n tokens are known, done positions computed
        self.prefix, self.table = prefix, model.table()
        self.own, self.lookup = model._lookup(h, w, torch.device(device))
        self.padded = model._pad(torch.full((B, h, w), model.n_tokens, device=device))
        shapes = [(2, B, n, prefix + h * w, D // n) for n in (layer.attention.n_heads for layer in model.layers)]
        self.cache = [torch.empty(shape, device=device, dtype=model.head.weight.dtype).unbind() for shape in shapes]

    def advance(self, tokens: Tensor) -> Tensor:
        stop = self.n + tokens.shape[1]
        self.padded[:, self.own[self.n : stop]] = tokens.to(self.padded.device)
        x = self.compute(self.done, stop + 1)  # all positions up to here the first time, later the one new position
        self.n, self.done = stop, stop + 1
        return self.model.head(self.model.norm(x[:, -1]))

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        rows = rows.to(self.padded.device)
        self.padded = self.padded[rows]
        stop = self.prefix + self.done if self.done else 0
        for i, layer in enumerate(self.model.layers):
            first = max(0, stop + 1 - layer.attention.window)  # no later position sees further back
            copies = tuple(kept.new_empty(len(rows), *kept.shape[1:]) for kept in self.cache[i])
            for copy, kept in zip(copies, self.cache[i], strict=True):
                copy[:, :, first:stop] = kept[rows, :, first:stop]
            self.cache[i] = copies


class TransformerSteps(RasterSteps):
    """The incremental form of a :class:`homework.autoregressive.AutoregressiveModel`."""

    def __init__(self, model: Prior, B: int, h: int, w: int, device: str | torch.device = "cpu"):
        self.positions = model.positions(h, w).flatten(0, 1)  # (h,w,D) -> (N,D)
        super().__init__(model, B, h, w, device, model.config["d_latent"])

    def compute(self, start: int, stop: int) -> Tensor:
        x = self.model._embed(self.table, self.padded, self.lookup[start:stop]) + self.positions[start:stop]
        for layer, cache in zip(self.model.layers, self.cache, strict=True):
            x = layer(x, cache, start)
        return x
