"""A stage of a cascade: a transformer that refines coarse grids to finer ones."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from homework.core import checks
from homework.core.model import Model, ordinary_tensors
from homework.nn.blocks import ACTIVATIONS, Block, Conv
from homework.nn.transformer import CrossAttention, DecoderLayer, Layer
from homework.priors import sampling
from homework.priors.base import evaluating, grid_cross_entropy
from homework.priors.raster import NEIGHBOURS, FromNeighbours, RasterSteps
from homework.priors.steps import check_tokens

POSITIVE = ("in_dim", "hidden_dim", "num_dec_layers", "self_attn_heads", "cross_attn_heads", "sliding_window",
            "n_tokens", "height", "width", "coarse_tokens", "coarse_height", "coarse_width")  # fmt: skip


class CascadeStage(FromNeighbours, Model):
    """p(fine | coarse) = prod_n p(t_n | t_0 .. t_{n-1}, coarse), in raster order: one stage of a cascade.

    ::

        coarse (B,hc,wc) --> embedding + row + column --> num_enc_layers x Layer ---------> norm --> memory (B,M,D)
                                                                                                       |
                 +-- the vector over a position -----------------------------+-------------------------+
                 |                                                           v                         |
                 |                       row + column embedding --> + --> condition (B,N,D)            |
                 v                                                           | scales and shifts       v
        fine (B,h,w) --> embeddings of the known neighbours, summed --> + --> num_dec_layers x DecoderLayer --> norm
                                                                   condition    --> linear --> logits (B,h,w,K)

    Over position (row, column) of the fine grid is (row*hc//h, column*wc//w) of the coarse one. The decoder's layers attend
    to earlier positions in raster order and to the whole memory. With num_enc_layers = 0 the stage is a decoder alone: the
    memory is the embeddings, as a prefix that every position of the fine grid sees. So a first stage can start from a 1x1
    grid, the token of a class. A batch is the tuple (coarse (B,hc,wc), fine (B,h,w)), both int64.

    With context_dim the coarse grids are those of residual codebooks, and the stage reads what all of them together say
    (Tian et al., arXiv 2404.02905, figure 4): ``coarse`` is (B,h,w,context_dim) float, over each position of the fine grid
    the sum of their vectors, see :meth:`homework.datasets.features.FeatureModel.context`. The encoder is then a convolution
    of it and num_enc_layers convolutional blocks, which give the vector over a position; there is no memory to attend to.

    Args:
        in_dim, hidden_dim: D, the width of all layers (a multiple of both numbers of heads), and the width of the MLPs.
        num_enc_layers, num_dec_layers: layers that read the coarse grid, 0 for a decoder alone; layers over the fine grid.
        self_attn_heads, cross_attn_heads: of the attention within either grid, and from the fine grid to the coarse one.
        hidden_activation: of the MLPs, a name in :mod:`homework.nn.blocks`.
        use_sliding_window: whether attention within the fine grid reaches back only ``sliding_window`` positions, from 1
            to height * width, the own one included. Not for a decoder alone, which has to see its prefix.
        model_lr: the peak learning rate to train with.
        dropout, neighbours, recompute: as of :class:`homework.autoregressive.AutoregressiveModel`.
        n_tokens, height, width: K, codes of the fine grid (tokens are in [0, K)), and its size in tokens.
        coarse_tokens, coarse_height, coarse_width: the same of the coarse grid.
        context_dim: numbers in a residual codebook's vectors; 0 to read the tokens of the coarse grid.
    """

    architecture = "cascade stage 1"
    training_options = frozenset({"model_lr", "dropout", "recompute"})
    data = "multiscale"
    embedding: nn.Embedding
    encoder: Any  # nn.ModuleList of Layer, or convolutions
    layers: Any  # nn.ModuleList of DecoderLayer
    coarse_position: Tensor
    neighbour_lookup: Tensor

    def __init__(self, in_dim: int = 128, hidden_dim: int = 512, num_enc_layers: int = 2, num_dec_layers: int = 2,
                 self_attn_heads: int = 4, cross_attn_heads: int = 4, hidden_activation: str = "gelu",
                 use_sliding_window: bool = False, sliding_window: int = 100, model_lr: float = 1e-3, dropout: float = 0.0,
                 neighbours: int = 8, recompute: bool = False, n_tokens: int = 1024, height: int = 20, width: int = 30,
                 coarse_tokens: int = 1024, coarse_height: int = 10, coarse_width: int = 15,
                 context_dim: int = 0):  # fmt: skip
        super().__init__()
        check_config(self.config)
        D, self.n_tokens, self.learning_rate, self.recompute = in_dim, n_tokens, model_lr, recompute
        self.neighbours, self.context_dim = NEIGHBOURS[:neighbours], context_dim
        # positions before the fine grid's
        self.prefix = 0 if num_enc_layers or context_dim else coarse_height * coarse_width
        window = sliding_window if use_sliding_window else self.prefix + height * width
        mlp = hidden_dim, hidden_activation
        if context_dim:
            self.encoder = nn.Sequential(Conv(context_dim, D, 3, padding=1), *(Block(D) for _ in range(num_enc_layers)))
            coarse_height, coarse_width = height, width  # of what the encoder makes
        else:
            self.coarse_embedding = nn.Embedding(coarse_tokens, D)
            self.coarse_row = nn.Parameter(torch.zeros(coarse_height, D))
            self.coarse_column = nn.Parameter(torch.zeros(coarse_width, D))
            self.encoder = nn.ModuleList(Layer(D, CrossAttention(D, self_attn_heads), *mlp, num_enc_layers, dropout)
                                         for _ in range(num_enc_layers))  # fmt: skip
        self.memory_norm = nn.RMSNorm(D, eps=1e-6)
        self.embedding = nn.Embedding(neighbours * (n_tokens + 1), D)  # see FromNeighbours.table
        nn.init.normal_(self.embedding.weight, std=neighbours**-0.5)
        self.row, self.column = nn.Parameter(torch.zeros(height, D)), nn.Parameter(torch.zeros(width, D))
        cross_heads = cross_attn_heads if num_enc_layers and not context_dim else 0
        args = D, self_attn_heads, window, cross_heads, *mlp, num_dec_layers, dropout
        self.layers = nn.ModuleList(DecoderLayer(*args) for _ in range(num_dec_layers))
        self.norm, self.head = nn.RMSNorm(D, eps=1e-6), nn.Linear(D, n_tokens)
        nn.init.normal_(self.head.weight, std=0.5 * D**-0.5)
        nn.init.zeros_(self.head.bias)
        rows, columns = torch.arange(height) * coarse_height // height, torch.arange(width) * coarse_width // width
        nearest = (rows[:, None] * coarse_width + columns).flatten()  # (h,w) -> (N)
        # the coarse position over each of the decoder's S = prefix + N positions; one of the prefix is its own
        self.register_buffer("coarse_position", torch.cat([torch.arange(self.prefix), nearest]), persistent=False)
        self.register_buffer("neighbour_lookup", self._lookup(height, width, nearest.device)[1], persistent=False)

    @property
    def coarse_shape(self) -> tuple[int, ...]:
        """Of what it reads, without B: (hc,wc) of int64, or (h,w,context_dim) of float."""
        names = ("height", "width", "context_dim") if self.context_dim else ("coarse_height", "coarse_width")
        return tuple(self.config[name] for name in names)

    def check_sizes(self, coarse: Tensor, h: int, w: int) -> None:
        """ValueError unless ``coarse`` and the fine grid's h, w have the sizes that this stage was built for."""
        H, W = self.config["height"], self.config["width"]
        if coarse.shape[1:] != self.coarse_shape or (h, w) != (H, W):
            given, known = ("x".join(map(str, size)) for size in (coarse.shape[1:], self.coarse_shape))
            raise ValueError(f"This stage refines {known} grids to {H}x{W}, but was given {given} to refine to {h}x{w}; "
                             f"use the stages of a cascade in the order of their sizes.")  # fmt: skip

    def encode(self, coarse: Tensor) -> Tensor:
        """What is known of the coarse grids, see above -> memory (B,M,D), a vector for each position of the coarse grid, or,
        with context_dim, of the fine one."""
        if self.context_dim:
            return self.memory_norm(self.encoder(coarse).flatten(1, 2))  # (B,h,w,D) -> (B,N,D)
        x = self.coarse_embedding(coarse) + self.coarse_row[:, None] + self.coarse_column
        x = x.flatten(1, 2)  # (B,hc,wc,D) -> (B,M,D), M = hc * wc
        for layer in self.encoder:
            x = self._run(layer, x)
        return self.memory_norm(x)

    def _run(self, f: Callable[..., Tensor], *args: Any) -> Tensor:
        # f(*args), with activation checkpointing if that was asked for
        return checkpoint(f, *args, use_reentrant=False) if self.recompute and self.training else f(*args)

    # The condition of a position is memory[coarse_position] + row + column. A layer's scales and shifts are linear in it, so
    # they are computed for coarse positions, rows and columns, which are few, and summed at each position.

    def _by_position(self, row: Tensor, column: Tensor) -> Tensor:  # rows (h,C) plus columns (w,C), zeros in the prefix
        return F.pad((row[:, None] + column).flatten(0, 1), (0, 0, self.prefix, 0))  # (h,w,C) -> (N,C) -> (S,C)

    def _modulation(self, layer: DecoderLayer, memory: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's scales and shifts of its norms, as a sum: by coarse position (B,M,4D), and by position (S,4D)."""
        weight = layer.modulation.weight
        return layer.modulation(memory), self._by_position(F.linear(self.row, weight), F.linear(self.column, weight))

    def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict]:
        """(coarse, fine (B,h,w)) -> (logits (B,h,w,K), {}). ValueError for grids of other sizes."""
        coarse, fine = batch
        B, h, w = fine.shape
        self.check_sizes(coarse, h, w)
        memory = self.encode(coarse)
        condition = memory.index_select(1, self.coarse_position) + self._by_position(self.row, self.column)  # (B,S,D)
        known = self._embed(self.table(), self._pad(fine), self.neighbour_lookup)  # (B,N,D)
        x = F.pad(known, (0, 0, self.prefix, 0)) + condition  # (B,S,D)
        for layer in self.layers:
            x = self._run(self._decode, layer, x, memory)
        return self.head(self.norm(x[:, self.prefix :])).view(B, h, w, self.n_tokens), {}  # (B,N,K) -> (B,h,w,K)

    def _decode(self, layer: DecoderLayer, x: Tensor, memory: Tensor) -> Tensor:  # a layer at all positions (B,S,D)
        by_coarse, by_position = self._modulation(layer, memory)
        return layer(x, by_coarse.index_select(1, self.coarse_position) + by_position, layer.read(memory))

    @torch.inference_mode()
    def steps(self, coarse: Tensor, h: int, w: int, device: str | torch.device = "cpu") -> "CascadeSteps":
        """The same function token by token, for a model in eval mode."""
        return CascadeSteps(self, coarse, h, w, device)

    def loss(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """:func:`homework.priors.base.grid_cross_entropy` of the fine grids, given the coarse ones."""
        return grid_cross_entropy(self(batch)[0], batch[1])

    @ordinary_tensors
    def generate(self, coarse: Tensor, h: int, w: int, device: str | torch.device = "cpu",
                 **sampling_options: Any) -> Tensor:  # fmt: skip
        """Fine grids (B,h,w) int64 given what is known of coarse ones, see :meth:`homework.priors.base.Prior.generate`.
        ValueError for a grid of another size or a token out of range."""
        with evaluating(self):
            return sampling.generate(self.steps(coarse, h, w, device), len(coarse), h, w, **sampling_options).to(device)

    def images(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Fine grids (n,h,w) int64, for the training loop to decode: some of the data's, a sample for each coarse one."""
        coarse, some = (grids[:4] for grids in batch)
        draws = torch.Generator().manual_seed(0)
        return {"data": some, "samples": self.generate(coarse, *some.shape[1:], device=some.device, generator=draws)}


class CascadeSteps(RasterSteps):
    """A stage fed token by token. All that depends only on the coarse grids is computed once, in the constructor.
    ValueError for a grid of another size or a token out of range."""

    given = "fine grid"

    def __init__(self, model: CascadeStage, coarse: Tensor, h: int, w: int, device: str | torch.device = "cpu"):
        model.check_sizes(coarse, h, w)
        if not model.context_dim:
            coarse = check_tokens(coarse, model.config["coarse_tokens"], "coarse grid")
        super().__init__(model, len(coarse), h, w, device, model.config["in_dim"], model.prefix)
        self.image = torch.arange(len(coarse), device=device)  # which coarse grid each grid of the batch refines
        memory = model.encode(coarse.to(device))
        self.condition = memory, model._by_position(model.row, model.column)
        self.modulations = [model._modulation(layer, memory) for layer in model.layers]
        self.keys_values = [layer.read(memory) for layer in model.layers]

    def compute(self, start: int, stop: int) -> Tensor:
        model, first = self.model, start and self.prefix + start  # the prefix comes with the first positions
        positions = slice(first, self.prefix + stop)
        known = model._embed(self.table, self.padded, self.lookup[start:stop])
        x = F.pad(known, (0, 0, self.prefix + stop - first - known.shape[1], 0)) + self._at(positions, *self.condition)
        for i, layer in enumerate(model.layers):
            x = layer(x, self._at(positions, *self.modulations[i]), self.keys_values[i], self.cache[i], first)
        return x

    def _at(self, positions: slice, by_coarse: Tensor, by_position: Tensor) -> Tensor:
        # (images,M,C) by coarse position, plus (S,C) by position -> (B,n,C), at n positions of every grid
        return by_coarse[self.image[:, None], self.model.coarse_position[positions]] + by_position[positions]

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        super().select(rows)
        rows = rows.to(self.image.device)
        self.image = self.image[rows]
        self.keys_values = [None if kv is None else kv[:, rows] for kv in self.keys_values]


def check_config(config: dict) -> None:
    """ValueError if an argument of :class:`CascadeStage` is not allowed."""
    checks.integer(1, **{name: config[name] for name in POSITIVE})
    checks.integer(0, num_enc_layers=config["num_enc_layers"], context_dim=config["context_dim"])
    checks.integer(1, len(NEIGHBOURS), neighbours=config["neighbours"])
    checks.boolean(use_sliding_window=config["use_sliding_window"], recompute=config["recompute"])
    checks.choice(ACTIVATIONS, hidden_activation=config["hidden_activation"])
    checks.positive(model_lr=config["model_lr"])
    checks.fraction(dropout=config["dropout"])
    D, h, w, window = (config[name] for name in ("in_dim", "height", "width", "sliding_window"))
    for name in ("self_attn_heads", "cross_attn_heads"):
        if D % config[name]:
            raise ValueError(f"in_dim is {D}, but must be a multiple of {name} = {config[name]}; change either.")
    if config["use_sliding_window"]:
        if not config["num_enc_layers"] and not config["context_dim"]:
            raise ValueError("use_sliding_window is true, but with num_enc_layers = 0 every position has to see back to "
                             "the coarse grid, which comes first; leave it out, or set num_enc_layers.")  # fmt: skip
        if window > h * w:
            raise ValueError(f"sliding_window is {window}, a window longer than the grid; it must be from 1 to {h * w}, the "
                             f"{h}x{w} positions; or leave use_sliding_window out.")  # fmt: skip
