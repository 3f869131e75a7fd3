"""Transformer layers: causal attention within a window, with a cache to go position by position, attention to another
sequence, and MLPs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework.nn.blocks import ACTIVATIONS


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al., arXiv 1706.03762, section 3.2) to the last ``window`` positions, the
    own one included, with a learned bias for each distance (Raffel et al., arXiv 1910.10683, section 2.1), and a cache."""

    mask_value = -torch.inf  # the bias of a position that must not be seen

    def __init__(self, D: int, n_heads: int, window: int):
        super().__init__()
        self.n_heads, self.window = n_heads, window
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.bias = nn.Parameter(torch.zeros(n_heads, window))

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor] | None = None, start: int = 0) -> Tensor:
        """(B,n,D) -> (B,n,D). With a ``cache`` of (B,heads,N,d) keys and values, x is at positions start, start+1, ...; then
        either start is 0 or n is 1."""
        B, n, D = x.shape
        qkv = self.project(x).unflatten(-1, (3, self.n_heads, -1))  # (B,n,3D) -> (B,n,3,heads,d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B,heads,n,d)
        if cache is not None:
            cache[0][:, :, start : start + n] = k
            cache[1][:, :, start : start + n] = v
        if start:
            first = max(0, start + 1 - self.window)
            k, v = (kept[:, :, first : start + 1] for kept in cache)
            y = self.attend(q, k, v, self.last_biases(start + 1 - first)[:, None])  # (heads,1,m): the own one is the last
        else:
            y = self.attend_all(q, k, v)
        return self.out(y.transpose(1, 2).reshape(B, n, D))  # (B,heads,n,d) -> (B,n,D)

    def project(self, x: Tensor) -> Tensor:
        """(B,n,D) -> queries, keys and values (B,n,3D)."""
        return self.qkv(x)

    def last_biases(self, m: int) -> Tensor:
        """(heads,m): the biases of the last m positions, the own one last."""
        return self.bias[:, :m].flip(-1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Queries (...,n,d), keys and values (...,m,d), and what to add to the scores -> the values' means (...,n,d)."""
        # scaled_dot_product_attention is no faster on a CPU, as the bias needs a gradient, and differs in the last bits
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)  # (...,n,m)
        return scores.to(bias.dtype).add_(bias).softmax(dim=-1) @ v

    def attend_all(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys and values of all positions (B,heads,n,d) -> each one's mean of the values it sees. They are cut
        into b blocks of c = min(window, n), the last one zero-padded; each block sees itself and the one before."""
        n = q.shape[2]
        c = min(self.window, n)
        padded = ((F.pad(t, (0, 0, 0, -n % c)) if n % c else t) for t in (q, k, v))
        q, k, v = (t.unflatten(2, (-1, c)) for t in padded)  # (B,heads,b*c,d) -> (B,heads,b,c,d)
        if n > c:
            k, v = (torch.cat([F.pad(t[:, :, :-1], (0, 0, 0, 0, 1, 0)), t], dim=3) for t in (k, v))  # (B,heads,b,2c,d)
        return self.attend(q, k, v, self.biases(n)).flatten(2, 3)[:, :, :n]  # (B,heads,b,c,d) -> (B,heads,n,d)

    def biases(self, n: int) -> Tensor:
        """(heads,b,c,2c), for a single block (heads,1,c,c): the biases of n positions in the blocks of :meth:`attend_all`,
        ``mask_value`` where one does not see the other."""
        c = min(self.window, n)
        own, block = torch.arange(c, device=self.bias.device), torch.arange(-(-n // c), device=self.bias.device)
        others = torch.arange(-c if n > c else 0, c, device=self.bias.device)
        distance = own[:, None] - others  # (c,2c)
        seen = (distance >= 0) & (distance < self.window)
        exists = others >= -c * block[:, None]  # (b,2c): nothing is before the first block
        biases = self.last_biases(self.window)[:, self.window - 1 - distance.where(seen, 0)]  # (heads,c,2c)
        return biases[:, None].masked_fill(~(seen & exists[:, None]), self.mask_value)


class CrossAttention(nn.Module):
    """Multi-head attention to all positions of a sequence (Vaswani et al., arXiv 1706.03762, section 3.2): a decoder's to
    the encoder's output, or an encoder's to its own."""

    def __init__(self, D: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.q, self.kv, self.out = nn.Linear(D, D), nn.Linear(D, 2 * D), nn.Linear(D, D)

    def read(self, memory: Tensor) -> Tensor:
        """The sequence (B,m,D) to attend to -> its keys and values (2,B,heads,m,d)."""
        return self.kv(memory).unflatten(-1, (2, self.n_heads, -1)).permute(2, 0, 3, 1, 4)  # (B,m,2D) -> (2,B,heads,m,d)

    def forward(self, x: Tensor, keys_values: Tensor | None = None) -> Tensor:
        """(B,n,D), and what :meth:`read` gave, by default of x itself -> (B,n,D)."""
        B, n, D = x.shape
        q = self.q(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B,n,D) -> (B,heads,n,d)
        y = F.scaled_dot_product_attention(q, *(self.read(x) if keys_values is None else keys_values))
        return self.out(y.transpose(1, 2).reshape(B, n, D))  # (B,heads,n,d) -> (B,n,D)


class Layer(nn.Module):
    """A pre-norm layer: an :class:`Attention`, or a :class:`CrossAttention` to the sequence itself, which sees all of it;
    then an MLP at each position. Norms divide by the root mean square (Zhang and Sennrich, arXiv 1910.07467).

    Args:
        hidden, activation: width of the MLP, and a name in ACTIVATIONS.
        n_layers: how many layers follow each other, for the starting weights: the sum of all their branches keeps its size
            in the residual stream (GPT-2).
        affine, cross: whether norms have weights of their own; another attention, of a subclass.
    """

    def __init__(self, D: int, attention: nn.Module, hidden: int, activation: str, n_layers: int, dropout: float,
                 affine: bool = True, cross: nn.Module | None = None):  # fmt: skip
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(D, 1e-6, affine), attention
        self.norm2, self.up, self.down = nn.RMSNorm(D, 1e-6, affine), nn.Linear(D, hidden), nn.Linear(hidden, D)
        self.activation, self.dropout = ACTIVATIONS[activation](), nn.Dropout(dropout)
        self.cross_norm, self.cross_attention = nn.RMSNorm(D, eps=1e-6) if cross else None, cross
        writing = [attention.out, self.down, *([cross.out] if cross else [])]  # to the residual stream
        linear = [*attention.children(), self.up, *(cross.children() if cross else [])]
        for module in [m for m in linear if m not in writing] + writing:
            branches = n_layers * len(writing) if module in writing else 4
            nn.init.normal_(module.weight, std=(module.in_features * branches) ** -0.5)
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, *cache) -> Tensor:
        """(B,n,D), and what else the attention takes -> (B,n,D)."""
        x = x + self.dropout(self.attention(self.norm1(x), *cache))
        return x + self.mlp(self.norm2(x))

    def mlp(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(self.activation(self.up(x))))


class DecoderLayer(Layer):
    """A layer of a decoder: causal attention within a window, attention to an encoder's output, then an MLP.

    The norms before the causal attention and the MLP have no weights of their own: their scales and shifts are a linear
    function of each position's condition (adaLN, Peebles and Xie, arXiv 2212.09748, section 3.2), at first 1 and 0. The
    caller computes them, by ``modulation``, since they do not depend on what the layer reads. The norm before the attention
    to the encoder's output has weights, as that brings in the condition by itself. ``cross_heads`` is the number of heads of
    that attention, 0 for a layer without.
    """

    def __init__(self, D: int, n_heads: int, window: int, cross_heads: int, hidden: int, activation: str, n_layers: int,
                 dropout: float):  # fmt: skip
        cross = CrossAttention(D, cross_heads) if cross_heads else None
        super().__init__(D, Attention(D, n_heads, window), hidden, activation, n_layers, dropout, False, cross)
        self.modulation = nn.Linear(D, 4 * D)  # to a shift and a scale of the norm before attention, then of the last one
        nn.init.zeros_(self.modulation.weight)
        with torch.no_grad():
            self.modulation.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat_interleave(D))

    def read(self, memory: Tensor) -> Tensor | None:
        """:meth:`CrossAttention.read` of the encoder's output (B,m,D); None for a layer without that attention."""
        return self.cross_attention.read(memory) if self.cross_attention else None

    def forward(self, x: Tensor, modulation: Tensor, keys_values: Tensor | None = None,
                cache: tuple[Tensor, Tensor] | None = None, start: int = 0) -> Tensor:  # fmt: skip
        """(B,n,D), ``modulation`` of each position's condition (B,n,4D), and what :meth:`read` gave -> (B,n,D). ``cache``
        and ``start`` as of :class:`Attention`."""
        shift, scale, last_shift, last_scale = modulation.chunk(4, dim=-1)
        x = x + self.dropout(self.attention(torch.addcmul(shift, self.norm1(x), scale), cache, start))
        if self.cross_attention:
            x = x + self.dropout(self.cross_attention(self.cross_norm(x), keys_values))
        return x + self.mlp(torch.addcmul(last_shift, self.norm2(x), last_scale))
