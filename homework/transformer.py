"""Transformer layers: causal attention within a window, a perceptron, and the cache with which both go place by place."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al., arXiv 1706.03762, section 3.2) to the last ``window`` places, the
    own one included, with a learned bias for each distance (Raffel et al., arXiv 1910.10683, section 2.1), and a cache."""

    unseen = -torch.inf  # the bias of a place that must not be seen

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
        """(heads,b,c,2c): the biases of n places in blocks, :attr:`unseen` where a place does not see the other."""
        distance, seen = block_distances(n, self.window, self.bias.device)
        biases = self.last_biases(self.window)[:, self.window - 1 - distance]  # (heads,c,2c)
        return biases[:, None].masked_fill(~seen, self.unseen)

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
        for module in (self.attention.qkv, self.attention.out, self.up, self.down):
            nn.init.normal_(module.weight, std=D**-0.5 * 0.5)
            nn.init.zeros_(module.bias)
        for module in (self.attention.out, self.down):  # the sum of 2n residual branches keeps its size (GPT-2)
            nn.init.normal_(module.weight, std=module.in_features**-0.5 / math.sqrt(2 * n_layers))

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor] | None = None, start: int = 0) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), cache, start))
        return x + self.dropout(self.down(F.relu(self.up(self.norm2(x))).square()))
