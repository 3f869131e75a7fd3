"""The second grid of a file: what the tokens leave of an image, quantized and coded (an enhancement layer)."""

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from constriction import stream
from torch import Tensor
from tqdm import tqdm

from homework.codec import dial
from homework.codec.range_coder import TOTAL, Categorical, RangeDecoder, RangeEncoder
from homework.core import checks
from homework.core.fingerprint import is_of
from homework.core.model import Model
from homework.nn.blocks import unpatch
from homework.nn.pca import components, patches
from homework.tokenizers.base import Tokenizer

FINEST, STEPS = 0.105, 8  # the step of quality 100, and how many steps there are; 2^(1/4) between one and the next
LEVELS = 24  # of expected magnitudes, each with frequencies of its own
MAGNITUDES = 32  # 0 to 31: larger ones are cut off
FEATURES = 12  # that predict a magnitude
UNIT = 2**10  # of an expected magnitude, as an integer
WEIGHT = 2**10  # of a weight of the predictor, as an integer
COSETS = ((0, 0), (1, 1), (0, 1), (1, 0))  # first row and column of every second ones, in the order in which they are coded
SLICES = [(slice(top, None, 2), slice(left, None, 2)) for top, left in COSETS]
EVEN = stream.model.Uniform(2)  # the model of a sign
SMOOTHING = 20  # patches whose mean magnitudes count with those of a token's own


class EnhancementLayer(Model):
    """Quantizes what a tokenizer's decoder leaves of an image, and predicts how large the numbers are::

        x - decode_index(tokens) -> patches (h,w,3PP) -> n principal components -> multiples q of a step (h,w,n)
        tokens, and the q coded before -> the magnitude |q| to be expected -> frequencies -> range coder

    The components are those of residuals (residual quantization: Zeghidour et al., arXiv 2107.03312, section III-C, here
    with a scalar quantizer, since many more bits are needed than a codebook has). Components are coded one after another,
    each for all patches of some tiles, in four :data:`COSETS`. A linear predictor sees how large this component is on
    average with the patch's own token and its neighbours', and the magnitudes already coded: of the patch's earlier
    components, of the neighbours', and of this component where neighbours have it. Its output is one of LEVELS classes, each
    with a table of frequencies (context modelling as of Wu, *Lossless compression of continuous-tone images via context
    selection and quantization*, 1997). All of it is integer arithmetic, the same on every machine.

    There is one set of tables for each of STEPS steps, numbered from 1; step 0 is without enhancement. Everything comes from
    :meth:`fit`, nothing from gradients.

    Args:
        n_tokens: K of the tokenizer.
        patch_size: P, the side of its patches in pixels.
        n_components: n, at most 3PP.
    """

    data = "tokenized_images"
    fitted_by = "python -m homework.enhancement"
    basis: Tensor  # (n,3PP), orthonormal rows
    activity: Tensor  # (STEPS,K,n) int16: the mean magnitude with each token, in units of 1/UNIT
    predictor: Tensor  # (STEPS,n,4,FEATURES) int32: weights in units of 1/WEIGHT
    edges: Tensor  # (LEVELS-1) int64: between the levels, in units of 1/(UNIT*WEIGHT)
    frequencies: Tensor  # (STEPS,LEVELS,MAGNITUDES) int32, each at least 0; rows sum to TOTAL - MAGNITUDES
    points: Tensor  # (STEPS,MAGNITUDES): where a magnitude lies on average, in steps

    def __init__(self, n_tokens: int = 1024, patch_size: int = 5, n_components: int = 40):
        super().__init__()
        checks.integer(2, None, n_tokens=n_tokens)
        checks.integer(1, 127, patch_size=patch_size)
        checks.integer(1, 3 * patch_size**2, n_components=n_components)
        self.n_tokens, self.patch_size, self.n = n_tokens, patch_size, n_components
        d = 3 * patch_size**2
        self.register_buffer("basis", torch.eye(d)[:n_components])
        self.register_buffer("activity", torch.zeros(STEPS, n_tokens, n_components, dtype=torch.int16))
        self.register_buffer("predictor", torch.zeros(STEPS, n_components, len(COSETS), FEATURES, dtype=torch.int32))
        edges = UNIT * WEIGHT * torch.logspace(-3, math.log10(8), LEVELS - 1, dtype=torch.float64)
        self.register_buffer("edges", edges.round().long())
        level = torch.zeros(STEPS, LEVELS, MAGNITUDES, dtype=torch.int32)
        level[..., 0] = TOTAL - MAGNITUDES
        self.register_buffer("frequencies", level)
        self.register_buffer("points", torch.arange(MAGNITUDES).float().repeat(STEPS, 1))

    def is_for(self, tokenizer: Tokenizer) -> bool:
        """Whether it was fitted to this tokenizer, by what its checkpoint says."""
        known, P = self.meta.get("tokenizer"), self.patch_size
        fits = self.n_tokens == tokenizer.n_tokens and tokenizer.patch_shape == (P, P)
        return fits and isinstance(known, str) and is_of(known, tokenizer)

    def check(self) -> None:
        """ValueError if its numbers cannot have come from :meth:`fit`."""
        whole = self.frequencies.long().sum(dim=-1) == TOTAL - MAGNITUDES
        fine = self.basis.isfinite().all() and self.points.isfinite().all() and (self.edges.diff() > 0).all()
        if not (fine and whole.all() and (self.frequencies >= 0).all()):
            raise ValueError("The enhancement layer is damaged; make it again, by python -m homework.enhancement.")

    @cached_property
    def tables(self) -> list["Tables"]:
        """Of each step, as arrays."""
        bits = math.log2(TOTAL) - (self.frequencies + 1.0).log2() + (torch.arange(MAGNITUDES) > 0)
        arrays = self.activity, self.predictor.long(), self.frequencies.float(), bits, self.points
        edges = self.edges.numpy()
        return [Tables(size_of(s + 1), edges, *(array[s].numpy() for array in arrays)) for s in range(STEPS)]

    def coefficients(self, residual: Tensor) -> np.ndarray:
        """(B,h*P,w*P,3), an image less what its tokens decode to -> (B,h,w,n) float32."""
        return (patches(residual, self.patch_size) @ self.basis.to(residual).T).cpu().numpy()

    def residual(self, q: np.ndarray, step: int) -> Tensor:
        """(B,h,w,n) integers -> (B,h*P,w*P,3) float32 on the CPU: what is to be added to the decoded tokens."""
        t = self.tables[step - 1]
        values = np.sign(q).astype(np.float32) * t.points[np.abs(q)] * np.float32(t.size)
        return unpatch(torch.from_numpy(values) @ self.basis.cpu(), self.patch_size)

    def quantize(self, c: np.ndarray, tokens: np.ndarray, step: int, lmbda: float) -> np.ndarray:
        """Coefficients (B,h,w,n) and tokens (B,h,w) -> q (B,h,w,n) int64: the nearest multiple of the step, the next smaller
        one, or 0, whichever costs least in squared error and, at ``lmbda`` as of :mod:`homework.codec.dial`, bits."""
        t = self.tables[step - 1]
        a = np.abs(c) / t.size
        nearest = np.minimum(np.searchsorted((t.points[1:] + t.points[:-1]) / 2, a), MAGNITUDES - 1)
        bits = t.bits
        price = 3 * lmbda / t.size**2  # of a bit, in squared steps
        context = Context(t, tokens, self.n)
        for k, coset in context.order():
            where = (..., *SLICES[coset], k)
            level, own, best = context.levels(k, coset), a[where], nearest[where]
            tried = np.stack([best, np.maximum(best - 1, 0), np.zeros_like(best)])
            cost = np.square(own - t.points[tried]) + price * bits[level, tried]
            context.put(k, coset, np.take_along_axis(tried, cost.argmin(axis=0)[None], axis=0)[0])
        return context.magnitudes * np.sign(c).astype(np.int64)

    def bits(self, q: np.ndarray, tokens: np.ndarray, step: int) -> np.ndarray:
        """(B,h,w): what :meth:`encode` takes for each patch, nearly."""
        found = np.zeros(tokens.shape)
        for k, coset, level in self.walk(np.abs(q), tokens, step):
            found[(..., *SLICES[coset])] += self.tables[step - 1].bits[level, np.abs(q[(..., *SLICES[coset], k)])]
        return found

    def walk(self, magnitudes: np.ndarray, tokens: np.ndarray, step: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Component and coset, in the order in which they are coded, and the levels there (B,a,b)."""
        context = Context(self.tables[step - 1], tokens, self.n)
        for k, coset in context.order():
            yield k, coset, context.levels(k, coset)
            context.put(k, coset, magnitudes[(..., *SLICES[coset], k)])

    def encode(self, encoders: list[RangeEncoder], q: np.ndarray, tokens: np.ndarray, step: int) -> None:
        """Appends (B,T,h,w,n) with tokens (B,T,h,w), T tiles of each of B images, to an encoder for each image."""
        B, weights = len(tokens), self.tables[step - 1].weights
        q, tokens = q.reshape(-1, *q.shape[2:]), tokens.reshape(-1, *tokens.shape[2:])  # (B,T,...) -> (B*T,...)
        for k, coset, level in self.walk(np.abs(q), tokens, step):
            own = q[(..., *SLICES[coset], k)].reshape(B, -1)  # (B*T,a,b) -> (B,m)
            for encoder, values, rows in zip(encoders, own, level.reshape(B, -1), strict=True):
                encoder.encode(np.abs(values).astype(np.int32), Categorical(perfect=False), weights[rows])
                if (negative := (values[values != 0] < 0).astype(np.int32)).size:
                    encoder.encode(negative, EVEN)

    def decode(self, decoders: list[RangeDecoder], tokens: np.ndarray, step: int) -> np.ndarray:
        """The inverse of :meth:`encode`: tokens (B,T,h,w) -> (B,T,h,w,n) int64."""
        (B, T, h, w), weights = tokens.shape, self.tables[step - 1].weights

        def draw(level: np.ndarray) -> np.ndarray:
            own = np.empty((B, level.size // B), np.int64)
            for decoder, values, rows in zip(decoders, own, level.reshape(B, -1), strict=True):  # (B*T,a,b) -> (B,m)
                values[:] = decoder.decode(Categorical(perfect=False), weights[rows])
                if n := np.count_nonzero(values):
                    values[values != 0] *= 1 - 2 * decoder.decode(EVEN, n).astype(np.int64)
            return own.reshape(level.shape)

        q = self.fill(tokens.reshape(-1, h, w), step, draw)  # (B,T,h,w) -> (B*T,h,w)
        return q.reshape(B, T, h, w, self.n)

    def generate(self, tokens: np.ndarray, step: int, generator: torch.Generator) -> np.ndarray:
        """Draws a second grid for tokens (B,h,w), a tile each: (B,h,w,n) int64. ``generator`` is of the CPU."""
        weights = self.tables[step - 1].weights.astype(np.float64) + 1
        ends = weights.cumsum(axis=-1) / TOTAL  # (LEVELS,MAGNITUDES)

        def draw(level: np.ndarray) -> np.ndarray:
            u, sign = torch.rand(2, *level.shape, generator=generator, dtype=torch.float64).numpy()
            return (u[..., None] >= ends[level]).sum(axis=-1) * np.where(sign < 0.5, 1, -1)

        return self.fill(tokens, step, draw)

    def fill(self, tokens: np.ndarray, step: int, draw: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """(B,h,w,n) int64: what ``draw`` gives for the levels (B,a,b) of each component in each coset, one after another."""
        context = Context(self.tables[step - 1], tokens, self.n)
        q = np.empty_like(context.magnitudes)
        for k, coset in context.order():
            q[(..., *SLICES[coset], k)] = own = draw(context.levels(k, coset))
            context.put(k, coset, np.abs(own))
        return q

    @torch.no_grad()
    def fit(self, residuals: Tensor, tokens: np.ndarray, rounds: int = 3) -> None:
        """Sets its tensors by what tokens (B,h,w) leave of images (B,h*P,w*P,3): the components, and then for each step by
        turns what is quantized, and the tables under which that takes the fewest bits."""
        self.__dict__.pop("tables", None)
        x = (patches(some, self.patch_size).flatten(0, 2) for some in residuals.split(64))  # (b,h,w,d) -> (m,d)
        self.basis.copy_(components(x, self.n)[1].T)
        c = np.concatenate([self.coefficients(some) for some in residuals.split(64)])
        for step in tqdm(range(1, STEPS + 1), "fitting", unit="step"):
            q = np.minimum(np.abs(c) / size_of(step) + 0.35, MAGNITUDES - 1).astype(np.int64)
            for i in range(rounds):
                if i:
                    q = np.abs(self.quantize(c, tokens, step, lmbda_of(step)))
                self._fit_step(np.abs(c), q, tokens, step)

    def _fit_step(self, c: np.ndarray, q: np.ndarray, tokens: np.ndarray, step: int) -> None:
        """The tables of a step by the magnitudes (B,h,w,n) of coefficients, quantized too, with tokens (B,h,w)."""
        self.__dict__.pop("tables", None)
        s, index = step - 1, tokens.reshape(-1)
        counts = np.bincount(index, minlength=self.n_tokens)[:, None]
        sums = np.stack([np.bincount(index, q[..., k].reshape(-1), self.n_tokens) for k in range(self.n)], axis=1)  # (K,n)
        mean = (sums + SMOOTHING * q.mean(axis=(0, 1, 2))) / (counts + SMOOTHING)
        self.activity[s] = torch.from_numpy(np.minimum(np.rint(UNIT * mean), 2**15 - 1).astype(np.int16))
        context, levels, edges = Context(self.tables[s], tokens, self.n), np.zeros((LEVELS, MAGNITUDES)), self.edges.numpy()
        for k, coset in context.order():
            own = q[(..., *SLICES[coset], k)]
            features, y = context.features(k, coset).reshape(-1, FEATURES), own.reshape(-1)  # (B,a,b,F) -> (m,F)
            X = features / UNIT
            A = X / np.maximum(X[:, :1], 0.003)  # relative errors count
            w = np.linalg.solve(X.T @ A + 0.01 * np.eye(FEATURES), A.T @ np.minimum(y, 8))
            weights = np.rint(WEIGHT * w).astype(np.int64)
            self.predictor[s, k, coset] = torch.from_numpy(weights)
            np.add.at(levels, (np.searchsorted(edges, features @ weights), y), 1)
            context.put(k, coset, own)
        self.frequencies[s] = torch.from_numpy(to_frequencies(levels))
        for m in range(1, MAGNITUDES):
            if (where := q == m).sum() > SMOOTHING:
                self.points[s, m] = float(c[where].mean() / size_of(step))
        self.points[s] = self.points[s].cummax(dim=0).values
        self.__dict__.pop("tables", None)


class Tables(NamedTuple):
    """Of one step, see :class:`EnhancementLayer`."""

    size: float  # the step itself
    edges: np.ndarray
    activity: np.ndarray
    predictor: np.ndarray  # int64
    weights: np.ndarray  # (LEVELS,MAGNITUDES) float32: the frequencies, as of homework.codec.range_coder
    bits: np.ndarray  # (LEVELS,MAGNITUDES): what a magnitude costs, with its sign
    points: np.ndarray


class Context:
    """What is known while magnitudes of tiles with tokens (B,h,w) are coded in their order: it gives the levels of the next
    ones, and takes these."""

    def __init__(self, tables: Tables, tokens: np.ndarray, n: int):
        self.t, self.n = tables, n
        self.activity = tables.activity[tokens].astype(np.int64)  # (B,h,w,n)
        self.total = self.activity.sum(axis=-1) // n
        self.magnitudes = np.zeros((*tokens.shape, n), np.int64)
        self.past = np.zeros(tokens.shape, np.int64)
        self.shared: list[np.ndarray] = []

    def order(self) -> Iterator[tuple[int, int]]:
        """(component, coset) after (component, coset); skips cosets that are empty."""
        h, w = self.past.shape[1:]
        for k in range(self.n):
            own, before = self.activity[..., k], self.magnitudes[..., max(0, k - 4) : k]
            self.shared = [own, self.total, *around(own),
                           UNIT * before[..., -1] if k else np.zeros_like(own), UNIT * before.sum(axis=-1),
                           UNIT * self.past, *(UNIT * z for z in around(self.past))]  # fmt: skip
            for coset, (top, left) in enumerate(COSETS):
                if top < h and left < w:
                    yield k, coset
            self.past += self.magnitudes[..., k]

    def features(self, k: int, coset: int) -> np.ndarray:
        """(B,a,b,FEATURES) int64, in units of 1/UNIT, at the positions of a coset."""
        where = (..., *SLICES[coset])
        known = self.magnitudes[..., k]  # 0 where it is not
        every = [*self.shared, *(UNIT * z for z in around(known)), np.full_like(known, UNIT)]
        return np.stack([feature[where] for feature in every], axis=-1)

    def levels(self, k: int, coset: int) -> np.ndarray:
        """(B,a,b) int64, from 0 to LEVELS-1."""
        return np.searchsorted(self.t.edges, self.features(k, coset) @ self.t.predictor[k, coset])

    def put(self, k: int, coset: int, magnitudes: np.ndarray) -> None:
        self.magnitudes[(..., *SLICES[coset], k)] = magnitudes


def size_of(step: int) -> float:
    """The step by its number, in units of pixels from 0 to 1."""
    return FINEST * 2 ** ((STEPS - step) / 4)


def quality_of(step: int) -> int:
    """The quality at which a step is the best."""
    return 100 - 5 * (STEPS - step)


def lmbda_of(step: int) -> float:
    return dial.lmbda_at(quality_of(step))


def around(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B,h,w) -> sums over the four neighbours that share an edge, and over the four at the corners, 0 outside."""
    columns, corners = np.zeros_like(z), np.zeros_like(z)
    columns[..., 1:] += z[..., :-1]
    columns[..., :-1] += z[..., 1:]
    edges = columns.copy()
    for total, part in (edges, z), (corners, columns):
        total[:, 1:] += part[:, :-1]
        total[:, :-1] += part[:, 1:]
    return edges, corners


def to_frequencies(counts: np.ndarray) -> np.ndarray:
    """(LEVELS,MAGNITUDES) counts -> int32 that sum to TOTAL - MAGNITUDES; what was never seen has little."""
    p = counts + 0.01 * 2.0 ** -np.arange(MAGNITUDES)
    found = np.floor(p / p.sum(axis=1, keepdims=True) * (TOTAL - MAGNITUDES)).astype(np.int32)
    found[:, 0] += TOTAL - MAGNITUDES - found.sum(axis=1)
    return found
