"""Transformer layers: causal attention within a window, attention to another sequence, perceptrons, and the cache with which
they go place by place."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework.nn.activations import ACTIVATIONS


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al., arXiv 1706.03762, section 3.2) to the last ``window`` places, the
    own one included, with a learned bias for each distance (Raffel et al., arXiv 1910.10683, section 2.1), and a cache."""

    mask_value = -torch.inf  # the bias of a place that must not be seen

    def __init__(self, D: int, n_heads: int, window: int):
        super().__init__()
        self.n_heads, self.window = n_heads, window
        self.qkv = nn.Linear(D, 3 * D)
        self.out = nn.Linear(D, D)
        self.bias = nn.Parameter(torch.zeros(n_heads, window))

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor] | None = None, start: int = 0) -> Tensor:
        """(B,n,D) -> (B,n,D). With a ``cache`` of (B,heads,N,d) keys and values, x stands at places start, start+1, ...;
        then either start is 0 or n is 1."""
        B, n, D = x.shape
        q, k, v = self.project(x).view(B, n, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)  # (B,n,3D) -> 3 x (B,heads,n,d)
        if cache is not None:
            cache[0][:, :, start : start + n] = k
            cache[1][:, :, start : start + n] = v
        if start:
            first = max(0, start + 1 - self.window)
            k, v = (kept[:, :, first : start + 1] for kept in cache)
            y = self.attend(q, k, v, self.last_biases(start + 1 - first)[:, None])  # (heads,1,m): the own place is the last
        else:
            y = self.attend_all(q, k, v)
        return self.out(y.transpose(1, 2).reshape(B, n, D))  # (B,heads,n,d) -> (B,n,D)

    def attend_all(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys and values of all places (B,heads,n,d) -> each place's mean of the values it sees, likewise."""
        n = q.shape[2]
        q, k, v = (in_blocks(t, self.window) for t in (q, k, v))  # (B,heads,n,d) -> (B,heads,b,c,d)
        k, v = (with_previous(t) for t in (k, v))  # (B,heads,b,2c,d)
        return self.attend(q, k, v, self.biases(n)).flatten(2, 3)[:, :, :n]  # (B,heads,b,c,d) -> (B,heads,n,d)

    def biases(self, n: int) -> Tensor:
        """(heads,b,c,2c): the biases of n places in blocks, :attr:`mask_value` where a place does not see the other."""
        distance, seen = block_distances(n, self.window, self.bias.device)
        biases = self.last_biases(self.window)[:, self.window - 1 - distance]  # (heads,c,2c)
        return biases[:, None].masked_fill(~seen, self.mask_value)

    def project(self, x: Tensor) -> Tensor:
        """(B,n,D) -> queries, keys and values (B,n,3D)."""
        return self.qkv(x)

    def last_biases(self, m: int) -> Tensor:
        """(heads,m): the biases of the last m places, the own one last."""
        return self.bias[:, :m].flip(-1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Queries (...,n,d), keys and values (...,m,d), and what to add to the scores -> the values' means (...,n,d)."""
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2) + bias).softmax(dim=-1) @ v


def in_blocks(x: Tensor, window: int) -> Tensor:
    """Cuts (B,heads,n,d) into blocks of c = min(window, n) places, the last one filled up with zeros: (B,heads,b,c,d)."""
    B, heads, n, d = x.shape
    c = min(window, n)
    return (F.pad(x, (0, 0, 0, -n % c)) if n % c else x).view(B, heads, -1, c, d)  # (B,heads,b*c,d) -> (B,heads,b,c,d)


def with_previous(x: Tensor) -> Tensor:
    """Every block behind the one before it, which holds all else that a window of c places reaches; a single block stays
    alone: (B,heads,b,c,d) -> (B,heads,b,2c,d)."""
    return x if x.shape[2] == 1 else torch.cat([F.pad(x[:, :, :-1], (0, 0, 0, 0, 1, 0)), x], dim=3)


def block_distances(n: int, window: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How far each of a block's c places is from the 2c that stand with it (0 where it does not see them), int64 (c,2c),
    and for every block which of these it sees, bool (b,c,2c)."""
    c = min(window, n)
    b = -(-n // c)
    own = torch.arange(c, device=device)
    others = own if b == 1 else torch.arange(-c, c, device=device)
    distance = own[:, None] - others
    seen = (distance >= 0) & (distance < window)
    exists = others >= -c * torch.arange(b, device=device)[:, None]  # (b,2c): nothing is before the first block
    return distance.where(seen, 0), seen & exists[:, None]


class Layer(nn.Module):
    """A pre-norm transformer layer: attention across places, then a perceptron at each. Norms divide by the root mean square
    (Zhang and Sennrich, arXiv 1910.07467), and the perceptron's activation is a squared ReLU (So et al., arXiv 2109.08668):
    both are cheap in whole numbers, see :mod:`homework.exact`."""

    def __init__(self, D: int, n_heads: int, n_layers: int, window: int, dropout: float):
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(D, eps=1e-6), Attention(D, n_heads, window)
        self.norm2, self.up, self.down = nn.RMSNorm(D, eps=1e-6), nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        self.dropout = nn.Dropout(dropout)
        initialise([self.attention.qkv, self.up], [self.attention.out, self.down], n_layers)

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor] | None = None, start: int = 0) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), cache, start))
        return x + self.dropout(self.down(F.relu(self.up(self.norm2(x))).square()))


# --- layers of encoders and decoders --------------------------------------------------------------------------------------


def initialise(reading: list[nn.Linear], writing: list[nn.Linear], n_layers: int) -> None:
    """Starting weights of a layer's parts that read the residual stream, and of those that write to it: there the sum of
    all branches of ``n_layers`` layers keeps its size (GPT-2)."""
    for module in (*reading, *writing):
        branches = n_layers * len(writing) if module in writing else 4
        nn.init.normal_(module.weight, std=(module.in_features * branches) ** -0.5)
        nn.init.zeros_(module.bias)


class CrossAttention(nn.Module):
    """Multi-head attention to all places of a sequence (Vaswani et al., arXiv 1706.03762, section 3.2), which may be another
    one: a decoder's to what the encoder has read, or an encoder's to its own."""

    def __init__(self, D: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.q, self.kv, self.out = nn.Linear(D, D), nn.Linear(D, 2 * D), nn.Linear(D, D)

    def read(self, memory: Tensor) -> Tensor:
        """The sequence (B,m,D) to attend to -> its keys and values (2,B,heads,m,d)."""
        B, m, _ = memory.shape
        return self.kv(memory).view(B, m, 2, self.n_heads, -1).permute(2, 0, 3, 1, 4)  # (B,m,2D) -> (2,B,heads,m,d)

    def forward(self, x: Tensor, keys_values: Tensor) -> Tensor:
        """(B,n,D), and what :meth:`read` gave -> (B,n,D)."""
        B, n, D = x.shape
        q = self.q(x).view(B, n, self.n_heads, -1).transpose(1, 2)  # (B,n,D) -> (B,heads,n,d)
        y = F.scaled_dot_product_attention(q, *keys_values)
        return self.out(y.transpose(1, 2).reshape(B, n, D))  # (B,heads,n,d) -> (B,n,D)


class EncoderLayer(nn.Module):
    """A pre-norm layer in which every place sees every other: attention, then a perceptron at each place.

    Args:
        D: width, n_heads: of the attention, hidden: width of the perceptron, activation: a name in ACTIVATIONS.
        n_layers: how many such layers follow each other, for the starting weights.
        dropout: probability.
    """

    def __init__(self, D: int, n_heads: int, hidden: int, activation: str, n_layers: int, dropout: float):
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(D, eps=1e-6), CrossAttention(D, n_heads)
        self.norm2, self.up, self.down = nn.RMSNorm(D, eps=1e-6), nn.Linear(D, hidden), nn.Linear(hidden, D)
        self.activation, self.dropout = ACTIVATIONS[activation](), nn.Dropout(dropout)
        initialise([self.attention.q, self.attention.kv, self.up], [self.attention.out, self.down], n_layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B,n,D) -> (B,n,D)."""
        y = self.norm1(x)
        x = x + self.dropout(self.attention(y, self.attention.read(y)))
        return x + self.dropout(self.down(self.activation(self.up(self.norm2(x)))))


class DecoderLayer(nn.Module):
    """A pre-norm layer: causal attention within a window, attention to an encoder's output, then a perceptron.

    The norms before the causal attention and the perceptron have no weights of their own: what they are scaled and shifted
    by is a linear function of a condition, which differs from place to place (adaLN, Peebles and Xie, arXiv 2212.09748,
    section 3.2) and at first makes no difference. It is computed outside, by :attr:`modulation`, since it does not depend on
    what the layer reads. The norm before the attention to the encoder's output is a usual one, as that brings in the
    condition by itself.

    Args:
        D: width, n_heads, window: of :class:`Attention`.
        cross_heads: heads of the attention to the encoder's output, 0 for a layer without.
        hidden, activation, n_layers, dropout: as of :class:`EncoderLayer`.
    """

    def __init__(self, D: int, n_heads: int, window: int, cross_heads: int, hidden: int, activation: str, n_layers: int,
                 dropout: float):  # fmt: skip
        super().__init__()
        self.norm = nn.RMSNorm(D, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(D, n_heads, window)
        self.up, self.down = nn.Linear(D, hidden), nn.Linear(hidden, D)
        self.activation, self.dropout = ACTIVATIONS[activation](), nn.Dropout(dropout)
        reading, writing = [self.attention.qkv, self.up], [self.attention.out, self.down]
        self.cross_attention = None
        if cross_heads:
            self.cross_norm, self.cross_attention = nn.RMSNorm(D, eps=1e-6), CrossAttention(D, cross_heads)
            reading += [self.cross_attention.q, self.cross_attention.kv]
            writing += [self.cross_attention.out]
        initialise(reading, writing, n_layers)
        self.modulation = nn.Linear(D, 4 * D)  # to a shift and a scale of the norm before attention, then of the last one
        nn.init.zeros_(self.modulation.weight)
        with torch.no_grad():
            self.modulation.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat_interleave(D))

    def forward(self, x: Tensor, modulation: Tensor, keys_values: Tensor | None = None,
                cache: tuple[Tensor, Tensor] | None = None, start: int = 0) -> Tensor:  # fmt: skip
        """(B,n,D), what :attr:`modulation` made of the condition of each place (B,n,4D), and what the attention to the
        encoder's output has read -> (B,n,D). With a ``cache``, x stands at places start, start+1, ..., see
        :class:`Attention`."""
        shift, scale, last_shift, last_scale = modulation.chunk(4, dim=-1)
        x = x + self.dropout(self.attention(torch.addcmul(shift, self.norm(x), scale), cache, start))
        if self.cross_attention:
            x = x + self.dropout(self.cross_attention(self.cross_norm(x), keys_values))
        y = torch.addcmul(last_shift, self.norm(x), last_scale)
        return x + self.dropout(self.down(self.activation(self.up(y))))
