"""What codes grids under a prior: integer frequencies, exact where the prior allows it."""

import hashlib
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from homework.autoregressive import AutoregressiveModel
from homework.codec.integer_layers import LOGIT, exp2_table, export, floor_divide_, look_up
from homework.codec.integer_steps import ExactSteps, softmax
from homework.codec.precision import full_precision
from homework.codec.range_coder import TOTAL, Step, intervals, intervals_by_steps
from homework.codec.tiles import largest
from homework.core.fingerprint import digest, fingerprint, legacy_digest, legacy_fingerprint, legacy_options
from homework.priors.base import Prior
from homework.priors.cascade import Cascade

Array = TypeVar("Array", np.ndarray, Tensor)

MOST_TOKENS = TOTAL // 2  # of which each has a frequency of at least 1
EIGHTHS = np.arange(5, 21)  # powers of a prior's probabilities, in eighths, of which an image has one
AS_LEARNED = 3  # the index of the power 1
MOST_BITS = math.log2(TOTAL)  # of a token: its frequency is at least 1
SOME = 150  # positions of a grid, about, that are asked which power is the best: all 600 take longer, for 0.1 % fewer bits
WEIGHTS_AT_ONCE = 2**21  # numbers that a prior returns from a parallel pass; with many more, memory costs more than it saves


def entropy_model(prior: Prior | Cascade) -> "ExactPrior | FloatPrior | CascadePrior":
    """What codes grids under ``prior``: on integers where it is a transformer that can be exported to them, else in floats.

    All have ``n_tokens`` (K), ``exact``, ``height`` and ``width`` (of the largest grid), ``fingerprints`` (32 bytes by
    way to make them, 1 or 2) and, for arrays of tokens, ``steps``, which give weights for the range coder
    (:mod:`homework.codec.range_coder`), and ``intervals``, what it codes complete grids by. Both take ``powers``, an index
    into EIGHTHS for each grid: the sharpness, a power that its probabilities are raised to. ``sharpest`` finds the best.
    ValueError for more than MOST_TOKENS codes.
    """
    if type(prior) is AutoregressiveModel:  # a subclass may compute something else
        try:
            return ExactPrior(prior)
        except OverflowError:  # its shape or weights leave integers too few bits
            pass
    model = CascadePrior(prior) if isinstance(prior, Cascade) else FloatPrior(prior)
    if np.max(model.n_tokens) > MOST_TOKENS:
        raise ValueError(f"{np.max(model.n_tokens)} codes are too many to be compressed, for each takes a share of 2^24 "
                         f"frequencies; at most {MOST_TOKENS} are possible.")  # fmt: skip
    return model


class ExactPrior:
    """A transformer prior on integers, see :func:`entropy_model`. It gives the same weights to the last bit at once and step
    by step, in any batch, with any number of threads, on the CPU and on CUDA (MPS has no float64: there the CPU computes).

    ``carrier`` is the dtype that holds the integers: float32, the fastest, float64 or int64. ``prior`` stays as it is.
    OverflowError if it has no room for all of its parts below 2^24.
    """

    exact: Literal[True] = True

    def __init__(self, prior: AutoregressiveModel, carrier: torch.dtype = torch.float32):
        self.device = torch.device("cpu") if prior.device.type == "mps" else prior.device
        with torch.device("cpu"):  # whatever torch's default is
            self.model = export(prior, carrier).to(self.device)
        self.n_tokens, self.height, self.width = (prior.config[k] for k in ("n_tokens", "height", "width"))
        tensors = self.model.state_dict()
        self.fingerprints = {1: legacy_digest("exact 1", legacy_options(prior), tensors, torch.int32),
                             2: digest(prior, tensors, torch.int32, prefix="exact 1 ")}  # fmt: skip
        bits = 28 - (self.n_tokens - 1).bit_length()  # K of the table's entries, times 2^24, sum to 2^52 at most
        if bits < 6:
            raise OverflowError(f"{self.n_tokens} codes are too many for frequencies out of 2^24.")
        table = torch.tensor(exp2_table(bits, LOGIT + 3), dtype=torch.float64, device="cpu")  # 3 for eighths
        self.table = (table * (TOTAL - self.n_tokens)).to(self.device)
        # a tensor, since CUDA multiplies by the reciprocal of a number
        self.free = torch.tensor(TOTAL - self.n_tokens, dtype=torch.float64, device=self.device)
        self.in_numpy = self.device.type == "cpu" and carrier == torch.float32  # what can be: it is faster

    def weights(self, grids: np.ndarray, powers: np.ndarray) -> np.ndarray:
        """(B,h,w) int64 in [0,K), and their powers (B) -> (B,N,K) float32, in one parallel pass."""
        return self._weights(self._logits(grids), powers)

    def intervals(self, grids: np.ndarray, powers: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """(R,h,w) int64 in [0,K), and their powers (R), None for the best of each -> the intervals (2,R,N) int64 of
        :func:`homework.codec.range_coder.intervals`, and the powers (R)."""
        N, found, used = grids[0].size, [], []
        for i in range(0, len(grids), at_once := max(1, WEIGHTS_AT_ONCE // (N * self.n_tokens))):
            some = grids[i : i + at_once]
            tokens, logits = some.reshape(-1, N), self._logits(some)  # (r,h,w) -> (r,N); (r,N,K)
            used.append(self._sharpest(*asked(logits, tokens), 1) if powers is None else powers[i : i + at_once])
            weights = self._weights(logits, used[-1])
            found.append(intervals(weights.reshape(-1, self.n_tokens), tokens.reshape(-1)))  # (r,N,K) -> (r*N,K)
        return np.concatenate(found, axis=1).reshape(2, -1, N), np.concatenate(used)  # (2,R*N) -> (2,R,N)

    def sharpest(self, grids: np.ndarray, n: int) -> np.ndarray:
        """(R,h,w) int64 in [0,K) -> (R/n), the power under which n of them, one after another, take the fewest bits, about.
        What a grid's is does not depend on the others."""
        found = []
        for i in range(0, len(grids), n):
            some = [asked(self._logits(grid[None]), grid.reshape(1, -1)) for grid in grids[i : i + n]]  # (h,w) -> (1,N)
            logits, tokens = zip(*some, strict=True)
            found.append(self._sharpest(torch.cat(logits), np.concatenate(tokens), n))
        return np.concatenate(found)

    def steps(self, B: int, h: int, w: int, powers: np.ndarray) -> Step:
        """The (B,n) int64 tokens of the next n positions (any n at first, then 1) -> (B,K) float32 for the one after, under
        the ``powers`` (B)."""
        begin = partial(ExactSteps, self.model) if self.in_numpy else partial(self.model.steps, device=self.device)
        return coding_steps(partial(begin, B, h, w), partial(self._weights, powers=powers), self.device)

    def _logits(self, grids: np.ndarray) -> Tensor:
        """(R,h,w) -> (R,N,K), Q.5."""
        with full_precision(self.device):
            return self.model(torch.from_numpy(grids).to(self.device))[0].flatten(1, 2)  # (R,h,w,K) -> (R,N,K)

    def _weights(self, logits: Tensor, powers: np.ndarray) -> np.ndarray:
        """Softmax of (R,...,K) logits on integers: the table has p_k (2^24 - K), which is divided by the sum of p."""
        eighths = EIGHTHS[powers]
        if self.in_numpy:
            flat = logits.view(-1, self.n_tokens).numpy()  # (R,...,K) -> (R*N,K)
            repeated = np.repeat(eighths, len(flat) // len(eighths)).astype(np.float32)[:, None]
            softmax(flat, repeated, self.table.numpy(), TOTAL - self.n_tokens)
            return logits.numpy()
        scaled = self._powers(logits, torch.from_numpy(eighths))
        return rounded(floor_divide_(scaled, scaled.sum(dim=-1, keepdim=True).div_(self.free)))

    def _powers(self, logits: Tensor, eighths: Tensor) -> Tensor:
        """(R,...,K) logits, and eighths (R) -> p_k (2^24 - K), (R,...,K) float64: their sums are up to 2^52."""
        below = logits.amax(dim=-1, keepdim=True) - logits
        return look_up(self.table, below.mul_(eighths.to(below).view(-1, *[1] * (below.ndim - 1))))

    def _sharpest(self, logits: Tensor, tokens: np.ndarray, n: int) -> np.ndarray:
        """What :func:`asked` gives -> (R/n)."""
        index = torch.from_numpy(tokens[..., None]).to(logits.device)

        def bits(power: int) -> np.ndarray:
            p = self._powers(logits, torch.full((len(logits),), int(EIGHTHS[power]), device="cpu"))
            share = p.gather(-1, index)[..., 0] / p.sum(dim=-1)  # (R,n,1) -> (R,n), quotients of integers
            # rounded, since integers have the same sum in any order, and so in any batch and on any machine
            return -(share + 1 / TOTAL).log2().mul(2**12).round().sum(dim=-1).cpu().numpy()

        return sharpest(bits, n)


class InFloats:
    """What priors in floats share. Their weights may differ in other batches and on other machines, so encoder and decoder
    both take steps, in batches of the same size and order, on the same kind of machine."""

    exact: Literal[False] = False

    def intervals(self, grids: np.ndarray, powers: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`ExactPrior.intervals`."""
        powers = self.sharpest(grids, 1) if powers is None else powers
        (R, h, w), tokens = grids.shape, grids.reshape(len(grids), -1)  # (R,h,w) -> (R,N)
        return intervals_by_steps(self.steps(R, h, w, powers), tokens), powers

    def sharpest(self, grids: np.ndarray, n: int) -> np.ndarray:
        """As :meth:`ExactPrior.sharpest`."""
        raise NotImplementedError

    def steps(self, B: int, h: int, w: int, powers: np.ndarray) -> Step:
        """As :meth:`ExactPrior.steps`."""
        raise NotImplementedError


class FloatPrior(InFloats):
    """Any prior, see :func:`entropy_model`."""

    def __init__(self, prior: Prior):
        self.model, self.device, self.n_tokens = prior.eval(), prior.device, prior.n_tokens
        self.height, self.width = largest(prior.grid_size)
        self.fingerprints = {1: legacy_fingerprint(prior), 2: fingerprint(prior)}

    @torch.inference_mode()
    def sharpest(self, grids: np.ndarray, n: int) -> np.ndarray:
        at_once = max(1, WEIGHTS_AT_ONCE // (grids[0].size * self.n_tokens))
        parts = torch.from_numpy(grids).to(self.device).split(at_once)

        def bits(power: int) -> np.ndarray:
            found = [self.model.bits(part, EIGHTHS[power] / 8).clamp(max=MOST_BITS).sum(dim=(1, 2)) for part in parts]
            return torch.cat(found).cpu().numpy()

        with full_precision(self.device):
            return sharpest(bits, n)

    def steps(self, B: int, h: int, w: int, powers: np.ndarray) -> Step:
        weights = partial(quantize_probabilities, powers=powers)
        return coding_steps(partial(self.model.steps, B, h, w, self.device), weights, self.device)

    def probes(self, B: int) -> list[tuple[Step, int, int]]:
        """Steps over B small grids for :func:`probe`, how many of them, and K."""
        h, w = min(self.height, 4), min(self.width, 4)
        return [(self.steps(B, h, w, as_learned(B)), min(6, h * w), self.n_tokens)]


class CascadePrior(InFloats):
    """A cascade, see :func:`entropy_model`: a grid is the row (1,N) of the tokens of all codebooks, from coarse to
    fine. The first is one of its K codes, all alike; the stages predict the others. ``n_tokens`` is (N,), K by position."""

    def __init__(self, cascade: Cascade):
        self.cascade, lengths = cascade, [h * w for h, w in cascade.sizes]
        self.starts = [0, *itertools.accumulate(lengths)]  # of the grids in the row, and where it ends
        self.height, self.width = 1, self.starts[-1]
        self.n_tokens = np.repeat([book.n_tokens for book in cascade.codebooks], lengths)
        known = b"".join(map(fingerprint, (*cascade.codebooks, *cascade.stages)))
        self.fingerprints = dict.fromkeys((1, 2), hashlib.sha256(known).digest())

    def split(self, row: Array) -> list[Array]:
        """(1,N) -> the grids (h,w) of all codebooks."""
        return [grid[0] for grid in self.grids(row)]

    def grids(self, rows: Array) -> list[Array]:
        """(B,N), or its beginning -> the grids (B,h,w) of all codebooks, or of those whose grid is there."""
        sizes = zip(itertools.pairwise(self.starts), self.cascade.sizes, strict=True)
        return [rows[:, start:stop].reshape(len(rows), *size) for (start, stop), size in sizes if stop <= rows.shape[1]]

    def sharpest(self, grids: np.ndarray, n: int) -> np.ndarray:
        """The power 1: the stages have learned from such tokens as they code, for nothing searches for others."""
        return as_learned(len(grids) // n)

    def steps(self, B: int, h: int, w: int, powers: np.ndarray) -> Step:
        """As :meth:`ExactPrior.steps`, of the row: where one grid ends, the steps of the next begin."""
        known, n = np.empty((B, self.width), np.int64), 0
        current = self._grid_steps(0, known, powers)

        def step(tokens: np.ndarray) -> np.ndarray:
            nonlocal n, current
            known[:, n : n + tokens.shape[1]] = tokens
            n += tokens.shape[1]
            if n in self.starts[1:]:
                current, tokens = self._grid_steps(self.starts.index(n), known[:, :n], powers), tokens[:, :0]
            return current(tokens)

        return step

    def _grid_steps(self, k: int, coarse: np.ndarray, powers: np.ndarray) -> Step:
        """Over B grids of codebook k, given the tokens (B,n) of all before it; of the first, any B rows."""
        cascade, weights = self.cascade, partial(quantize_probabilities, powers=powers)
        if k == 0:
            uniform = weights(torch.zeros(len(coarse), cascade.codebooks[0].n_tokens))
            return lambda tokens: uniform
        grids = [grid.to(cascade.device) for grid in self.grids(torch.from_numpy(coarse))]

        def begin() -> Callable:
            return cascade.stages[k - 1].steps(cascade.known(grids), *cascade.sizes[k], cascade.device)

        return coding_steps(begin, weights, cascade.device)

    def probes(self, B: int) -> list[tuple[Step, int, int]]:
        """As :meth:`FloatPrior.probes`, of each stage."""
        K, n = [book.n_tokens for book in self.cascade.codebooks], [h * w for h, w in self.cascade.sizes]
        tokens = np.concatenate([fixed_tokens(B, *grid) for grid in zip(n, K, strict=True)], axis=1)  # (B,N)
        known = [tokens[:, :start] for start in self.starts]
        return [(self._grid_steps(k, known[k], as_learned(B)), min(6, n[k]), K[k]) for k in range(1, len(K))]


def fixed_tokens(B: int, n: int, K: int) -> np.ndarray:
    """(B,n) int64 in [0,K), always the same."""
    return (37 * np.arange(n) + 101 * np.arange(B)[:, None]) % K


def probe(model: FloatPrior | CascadePrior) -> bytes:
    """2 bytes that are likely to differ between machines whose floats do: a hash of the weights that ``model`` gives here
    after fixed tokens, by the steps that coding takes. Like these it is to be called by
    :func:`homework.codec.parallel.in_parallel`, as sums may depend on the number of threads."""
    sha = hashlib.sha256()
    for B in 1, 8:  # a single row is often multiplied by other code than several
        for step, n_steps, K in model.probes(B):
            tokens = fixed_tokens(B, n_steps, K)
            for n in range(n_steps):
                sha.update(step(tokens[:, max(0, n - 1) : n]).astype("<f4").tobytes())
    return sha.digest()[:2]


def coding_steps(begin: Callable, weights: Callable[[Tensor], np.ndarray], device: torch.device) -> Step:
    """Steps from tokens to the ``weights`` of the logits that the steps made by ``begin`` give, all in full precision."""
    with full_precision(device):  # a model may compute as soon as it begins
        steps = begin()

    def step(tokens: np.ndarray) -> np.ndarray:
        with full_precision(device):
            return weights(steps(torch.from_numpy(tokens).to(device)))

    return step


def as_learned(R: int) -> np.ndarray:
    """(R) times the power 1, int64."""
    return np.full(R, AS_LEARNED)


def asked(logits: Tensor, tokens: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Logits (R,N,K) and tokens (R,N) -> those of SOME positions, evenly spaced, in memory of their own."""
    every = max(1, tokens.shape[1] // SOME)
    return logits[:, ::every].clone(), tokens[:, ::every]


def sharpest(bits: Callable[[int], np.ndarray], n: int) -> np.ndarray:
    """The power for each n of R grids (R/n), given the ``bits`` of all (R) under any: sought from 1 on both ways, by each as
    long as its bits fall, whatever those of the others do. They are convex in the power, but where frequencies are at their
    least, 1."""

    def cost(power: int) -> np.ndarray:
        return bits(power).reshape(-1, n).sum(axis=1)  # (R) -> (R/n,n)

    costs = np.full((len(own := cost(AS_LEARNED)), len(EIGHTHS)), np.inf)
    costs[:, AS_LEARNED] = own
    for step in -1, 1:
        power, falls = AS_LEARNED, np.ones(len(own), bool)
        while falls.any() and 0 <= power + step < len(EIGHTHS):
            power += step
            found = cost(power)
            falls &= found < costs[:, power - step]
            costs[falls, power] = found[falls]
    return costs.argmin(axis=1)


def quantize_probabilities(logits: Tensor, powers: np.ndarray) -> np.ndarray:
    """(R,K) float logits, and the powers (R) that their probabilities are raised to -> weights (R,K) float32. ValueError if
    some probability is not a number."""
    sharpness = torch.from_numpy(EIGHTHS[powers] / 8).to(logits.device, torch.float32)
    p = (logits.float() * sharpness[:, None]).softmax(dim=-1).cpu().double()
    total = p.sum(dim=-1, keepdim=True)
    if not total.isfinite().all():
        raise ValueError("The prior gives probabilities that are not numbers, so nothing can be coded under it.")
    return rounded((p / total * (TOTAL - logits.shape[-1])).floor_())


def rounded(weights: Tensor) -> np.ndarray:
    """(...,K) float64 integers -> float32 ones that sum to TOTAL - K: token 0 gets what the floors left over."""
    weights = weights.float()
    weights[..., 0] += TOTAL - weights.shape[-1] - weights.sum(dim=-1)
    return weights.cpu().numpy()
