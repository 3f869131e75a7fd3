"""A prior over token grids: a decoder-only transformer that reads the grid in raster order."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from homework.core import checkpoint, checks
from homework.nn.transformer import Attention, Layer
from homework.priors.base import Prior
from homework.priors.raster import NEIGHBOURS, FromNeighbours, TransformerSteps


def load() -> "AutoregressiveModel":
    """The trained prior, in eval mode: the latest copy of a training, or else the pretrained one."""
    return checkpoint.load_reference("AutoregressiveModel")


class AutoregressiveModel(FromNeighbours, Prior):
    """p(grid) = prod_n p(t_n | t_0 .. t_{n-1}), in raster order.

    ::

        tokens (B,h,w) --> embeddings of the known neighbours of each position, summed  (B,N,D)
                       --> + row and column embedding --> n_layers x Layer --> norm --> (B,N,D)
                       --> linear --> logits (B,h,w,K)

    What enters at position n are the tokens left of it, above it and so on, each through an embedding of its own, and
    "outside the grid" is one more token. So the input needs no shift: a position never sees its own token.

    Args:
        d_latent: D, the width; a multiple of n_heads.
        n_tokens: K, codes of the tokenizer.
        n_layers, n_heads: number of transformer layers, and of attention heads in each.
        window: how many positions attention reaches back in raster order, its own included; layers add up to more.
        height, width: the largest grid, in tokens (for the position embedding "2d" each, for "1d" their product).
        position: "2d" (row + column), "1d" (one vector for each position) or "none".
        neighbours: how many of NEIGHBOURS to embed, at least 1 (the token to the left).
        code_dim: 0 to learn an embedding; otherwise the size of the tokenizer's code vectors, which :meth:`set_codes` stores
            and training leaves alone: tokens enter as these, through a linear map per neighbour.
        dropout: probability, during training only.
        recompute: whether layers are recomputed in the backward pass, for less memory and more time.
    """

    architecture = "raster transformer 1"
    training_options = frozenset({"dropout", "recompute"})
    reads_codes = True
    codes: Tensor
    embedding: nn.Linear | nn.Embedding
    steps_class = TransformerSteps

    def __init__(self, d_latent: int = 128, n_tokens: int = 1024, n_layers: int = 2, n_heads: int = 2, window: int = 100,
                 height: int = 20, width: int = 30, position: str = "2d", neighbours: int = 8, code_dim: int = 0,
                 dropout: float = 0.0, recompute: bool = False):  # fmt: skip
        super().__init__()
        checks.integer(1, d_latent=d_latent, n_tokens=n_tokens, n_layers=n_layers, n_heads=n_heads, window=window)
        checks.integer(1, height=height, width=width)
        checks.integer(0, code_dim=code_dim)
        checks.integer(1, len(NEIGHBOURS), neighbours=neighbours)
        checks.choice(("none", "1d", "2d"), position=position)
        checks.fraction(dropout=dropout)
        checks.boolean(recompute=recompute)
        if d_latent % n_heads:
            raise ValueError(f"d_latent is {d_latent}, but must be a multiple of n_heads = {n_heads}; change either.")
        D, self.neighbours = d_latent, NEIGHBOURS[:neighbours]
        self.n_tokens, self.position, self.recompute = n_tokens, position, recompute
        if code_dim:  # a row for each token and one for "outside the grid", which the last column marks
            self.register_buffer("codes", torch.zeros(n_tokens + 1, code_dim + 1))
            self.codes[n_tokens, code_dim] = 1
            self.codes[:n_tokens, :code_dim] = torch.nan  # until set_codes, so that a forgotten call shows
            self.embedding = nn.Linear(code_dim + 1, neighbours * D, bias=False)
            nn.init.normal_(self.embedding.weight, std=(neighbours * code_dim) ** -0.5)
        else:
            self.embedding = nn.Embedding(neighbours * (n_tokens + 1), D)  # see FromNeighbours.table
            nn.init.normal_(self.embedding.weight, std=neighbours**-0.5)
        if position == "2d":
            self.row, self.column = nn.Parameter(torch.zeros(height, D)), nn.Parameter(torch.zeros(width, D))
        elif position == "1d":
            self.place = nn.Parameter(torch.zeros(height * width, D))
        # the squared ReLU (So et al., arXiv 2109.08668) is cheap in integer arithmetic, as are the norms: see homework.codec
        layers = (Layer(D, Attention(D, n_heads, window), 4 * D, "relu2", n_layers, dropout) for _ in range(n_layers))
        self.layers = nn.ModuleList(layers)
        self.norm, self.head = nn.RMSNorm(D, eps=1e-6), nn.Linear(D, n_tokens)
        nn.init.normal_(self.head.weight, std=0.5 * D**-0.5)
        nn.init.zeros_(self.head.bias)

    def modules_in_turn(self) -> Iterable[nn.Module]:
        return self.layers

    def stored_codes(self) -> Tensor | None:
        K, code_dim = self.n_tokens, self.config["code_dim"]
        return self.codes[:K, :code_dim] if code_dim else None

    def table(self) -> Tensor:
        """(m * (K+1), D), see :meth:`FromNeighbours.table`; code vectors pass through the linear maps first."""
        if not self.config["code_dim"]:
            return super().table()
        rows = self.embedding(self.codes).view(len(self.codes), len(self.neighbours), -1)  # (K+1,m*D) -> (K+1,m,D)
        return rows.transpose(0, 1).flatten(0, 1)  # (m,K+1,D) -> (m*(K+1),D)

    def forward(self, tokens: Tensor) -> tuple[Tensor, dict]:
        B, h, w = tokens.shape
        x = self._embed(self.table(), self._pad(tokens), self._lookup(h, w, tokens.device)[1])
        return self._logits(x, h, w).view(B, h, w, self.n_tokens), {}  # (B,N,K) -> (B,h,w,K)

    def _logits(self, x: Tensor, h: int, w: int) -> Tensor:
        """The summed embeddings of each position's neighbours (B,N,D) -> logits (B,N,K)."""
        x = x + self.positions(h, w).flatten(0, 1)  # (h,w,D) -> (N,D)
        for layer in self.layers:
            x = recompute(layer, x, use_reentrant=False) if self.recompute and self.training else layer(x)
        return self.head(self.norm(x))

    @torch.inference_mode(False)  # for the slope, also within it
    @torch.no_grad()
    def replacement_bits(self, tokens: Tensor, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
        """As :meth:`homework.priors.base.Prior.replacement_bits`, and how a token changes the bits of later ones, to first
        order: the gradient of these with respect to the summed embeddings, times what the token would add to those."""
        (B, h, w), tokens = tokens.shape, tokens.clone()  # for autograd saves none that inference mode has made
        table, (own, around) = self.table(), self._lookup(h, w, tokens.device)  # (m*(K+1),D), (N), (N,m)
        x = self._embed(table, self._pad(tokens), around).requires_grad_()  # (B,N,D)
        with torch.enable_grad():
            log_p = (sharpness * self._logits(x, h, w)).log_softmax(dim=-1)  # (B,N,K)
            kept = log_p.gather(-1, tokens.flatten(1)[..., None])  # (B,N,1)
            (slope,) = torch.autograd.grad(-kept.sum(), x)  # (B,N,D)
        m, D = around.shape[1], x.shape[-1]
        # position n reads its neighbour i at around[n,i]: there goes its slope, in a padded grid for each i
        spread = slope.new_zeros(B, m, (h + 2) * (w + 4), D)
        for i in range(m):
            spread[:, i].index_add_(1, around[:, i], slope)
        rows = table.view(m, -1, D)[:, : self.n_tokens]  # (m*(K+1),D) -> (m,K,D)
        later = spread[:, :, own].transpose(1, 2).flatten(2) @ rows.transpose(1, 2).flatten(0, 1)  # (B,N,m*D) @ (m*D,K)
        later -= later.gather(-1, tokens.flatten(1)[..., None])
        more = later.sub_(log_p.detach()).add_(kept.detach()).div_(math.log(2))
        return -kept.detach().view(B, h, w) / math.log(2), more.view(B, h, w, -1)  # (B,N,1) -> (B,h,w), (B,N,K) -> (B,h,w,K)
