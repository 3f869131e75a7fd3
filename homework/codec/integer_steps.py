"""The steps of :mod:`homework.codec.integer_layers` on a CPU in float32: the same integers, in less than half of the time.

A step of one image is so little work that most of its time goes into calling functions. So here torch makes the products
alone, with as many threads as it may use, into memory that stays; numpy, whose calls cost a third of torch's, does the rest
in arrays that share this memory. All that is divided by a power of two may be multiplied by its reciprocal, at any time.
"""

import numpy as np
import torch
from torch import Tensor, nn

from homework.codec.integer_layers import HIDDEN_LIMIT, NORMED_LIMIT, U_LIMIT

ROWS = 128  # of logits that become weights at once: with many more, memory costs more than it saves


def softmax(logits: np.ndarray, eighths: np.ndarray, table: np.ndarray, free: int) -> None:
    """Turns (R,K) float32 logits, Q.5, in place into the weights of :class:`homework.codec.entropy.ExactPrior`, which sum to
    ``free``. ``eighths`` (R,1) float32: by how many eighths logits are multiplied. ``table`` (n) float64: powers of two by
    how far a logit is then below the largest, Q.8, times ``free``; the last is 0."""
    for start in range(0, len(logits), ROWS):
        x = logits[start : start + ROWS]
        below = x.max(axis=1, keepdims=True) - x
        below *= eighths[start : start + ROWS]
        p = table.take(below.astype(np.intp), mode="clip")
        p /= p.sum(axis=1, keepdims=True) / free
        x[:] = np.floor(p, p)
        x[:, 0] += free - x.sum(axis=1)  # what the floors left over, less than K


class LinearStep:
    """:class:`ExactLinear` of B rows: the result is in ``out`` (B,out) and, the same memory, ``array``."""

    def __init__(self, linear: nn.Module, B: int):
        self.weight, self.bias = linear.scaled, linear.scaled_bias  # (in,out), (out)
        self.out = torch.empty(B, len(self.bias), dtype=torch.float32, device="cpu")
        self.array = self.out.numpy()

    def __call__(self, x: Tensor) -> np.ndarray:
        torch.addmm(self.bias, x, self.weight, out=self.out)
        return np.floor(self.array, self.array)


class NormStep:
    """:class:`ExactNorm` of (B,D) rows: (B,D), the same memory each time."""

    def __init__(self, norm: nn.Module, B: int):
        self.D, self.one = norm.D.numpy(), norm.one.double().numpy()
        self.out = torch.empty(B, int(norm.D), dtype=torch.float32, device="cpu")
        self.array = self.out.numpy()

    def __call__(self, x: np.ndarray) -> Tensor:
        wide = x.astype(np.float64)
        wide *= wide
        mean = np.floor(np.add.reduce(wide, 1, keepdims=True) / self.D)
        root = np.floor(np.sqrt(mean + 1.5)) / self.one
        np.floor(np.divide(x, root.astype(np.float32), self.array), self.array)
        return self.out.clamp_(-NORMED_LIMIT, NORMED_LIMIT)


class LayerStep:
    """:class:`ExactLayer` at position after position of B grids of N positions.

    Of the last c = min(window, N) positions it keeps keys and values, those of position n in slot n % c. Slots that are
    still empty take part too, with zeros and a bias that makes their weights 0.
    """

    def __init__(self, layer: nn.Module, norm: NormStep, B: int, N: int):
        attention, self.norm = layer.attention, norm
        parts = attention.qkv, attention.out, layer.up, layer.down
        self.qkv, self.out, self.up, self.down = (LinearStep(part, B) for part in parts)
        self.limit, self.part, self.half = attention.limit, (1 / layer.divisor).numpy(), np.array(0.5, np.float32)
        heads, self.c, step = attention.n_heads, min(attention.window, N), attention.step
        self.table, self.per_step = attention.table.numpy(), (1 / step).numpy()
        bias = attention.last_biases(self.c) / step
        masked = torch.full_like(bias, attention.mask_value / float(step))
        self.bias = torch.cat([bias, bias, masked], dim=1).numpy()  # (heads,3c)
        d = norm.out.shape[1] // heads
        self.k, self.v = torch.zeros(2, B * heads, self.c, d, dtype=torch.float32, device="cpu")
        self.q, self.scores, self.y = (self.k.new_empty(B * heads, 1, n) for n in (d, self.c, d))
        self.new = self.qkv.array.reshape(B, 3, heads, d).swapaxes(0, 1)  # (B,3D) -> (B,3,heads,d) -> (3,B,heads,d)
        arrays = (t.numpy() for t in (self.q, self.k, self.v, self.scores, self.y))
        self.arrays = [a.reshape(B, heads, *a.shape[1:]) for a in arrays]  # (B*heads,...) -> (B,heads,...)

    def __call__(self, x: np.ndarray, n: int) -> None:
        """Adds to ``x`` (B,D), at position n, what the layer does."""
        self.qkv(self.norm(x))
        x += self.out(self.attend(n))
        u = self.up(self.norm(x))
        self.up.out.clamp_(0, U_LIMIT)
        u *= u
        u *= self.part
        u += self.half
        np.floor(u, u)
        x += self.down(self.up.out.clamp_max_(HIDDEN_LIMIT))

    def attend(self, n: int) -> Tensor:
        """The means (B,D) of the values that position n sees; its projections are in ``qkv``."""
        self.qkv.out.clamp_(-self.limit, self.limit)
        q, k, v, scores, y = self.arrays
        np.multiply(self.new[0], self.per_step, q[:, :, 0])  # so scores count in entries of the table
        k[:, :, n % self.c], v[:, :, n % self.c] = self.new[1:]
        torch.bmm(self.q, self.k.transpose(1, 2), out=self.scores)
        # the biases end with distance 0: to be that of the own slot, they go round; at first, masked ones follow it
        start = self.c - 1 - n % self.c + (self.c if n < self.c else 0)
        scores += self.bias[:, None, start : start + self.c]  # (heads,1,c)
        np.subtract(np.maximum.reduce(scores, 3, keepdims=True), scores, scores)
        self.table.take(scores.astype(np.intp), mode="clip", out=scores)
        torch.bmm(self.scores, self.v, out=self.y)
        y /= np.add.reduce(scores, 3, keepdims=True)
        np.floor(y, y)
        return self.y.view(len(self.qkv.out), -1)  # (B*heads,1,d) -> (B,D)


class ExactSteps:
    """Steps over B grids of h x w, as of :class:`homework.priors.steps.Steps`, of a model that :func:`export` made
    in float32 on the CPU; many tokens at first are taken one by one too."""

    def __init__(self, model: nn.Module, B: int, h: int, w: int):
        self.n, self.done = 0, 0  # n tokens are known, done positions computed
        own, around = model._lookup(h, w, torch.device("cpu"))
        self.own, self.around = own.tolist(), around.numpy()  # (N), (N,m)
        self.padded = model._pad(torch.full((B, h, w), model.n_tokens, device="cpu")).numpy()  # (B,(h+2)*(w+4))
        self.table, self.first_rows = model.table().numpy(), np.arange(around.shape[1]) * (model.n_tokens + 1)
        positions = model.positions(h, w).flatten(0, 1)  # (h,w,D) -> (N,D), or (N,1)
        self.positions = (torch.zeros(h * w, 1, device="cpu") + positions).numpy()
        self.norm, self.head = NormStep(model.norm, B), LinearStep(model.head, B)
        self.layers = [LayerStep(layer, self.norm, B, h * w) for layer in model.layers]

    def __call__(self, tokens: Tensor) -> Tensor:
        """The (B,n) int64 tokens of the next n positions, n >= 0 -> the (B,K) logits of the position after them, Q.5."""
        for n, column in enumerate(tokens.numpy().T, self.n):
            self.padded[:, self.own[n]] = column
        self.n += tokens.shape[1]
        for n in range(self.done, self.n + 1):
            rows = self.padded.take(self.around[n], 1) + self.first_rows  # (B,m)
            x = np.add.reduce(self.table.take(rows, 0), 1) + self.positions[n]  # (B,m,D) -> (B,D)
            for layer in self.layers:
                layer(x, n)
        self.done = self.n + 1
        return torch.from_numpy(self.head(self.norm(x)).copy())
