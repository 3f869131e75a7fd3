"""Searches for the tokens of an image that cost the least: bits under the prior, and error once they are decoded."""

import collections
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from homework.codec import dial, tiles
from homework.core import checks, devices
from homework.datasets.image_files import batches_of
from homework.datasets.images import as_float
from homework.priors.base import Prior, evaluating
from homework.tokenizers.base import Tokenizer

TRIALS = (0, 4, 8, 16, 24, 32, 48, 80, 160, 10**6)  # passes by effort; the last one ends before
ROUND = 8  # of them between two scores
NEAR, FAR = 1, 2  # positions within which the cost of a change is looked for: at first, and once that has misled
CANDIDATES = 16  # tokens tried at a position before it is left as it is
CAUTION = 12.0  # how much worse than it is, on average, a step in the codes is taken to be; see Objective.scores
SWEEPS = 100  # over all blocks at effort 9, at most: each sees J with roundings of its own
MOST_TOKENS = 2**16  # of which all are scored
PIXELS_AT_ONCE = 60_000  # of a large image
SCORED_AT_ONCE = 30_000  # of them: slopes take the memory of all layers


def search(tokenizer: Tokenizer, prior: Prior, x: Tensor, lmbda: float, effort: int, tokens: Tensor | None = None) -> Tensor:
    """The grid of an image, improved: tokens that minimize J = MSE + lmbda * bits per pixel, as far as ``effort`` goes.

    ::

        grid -> scores of all tokens at all positions, by the slopes of error and bits -> the most promising, apart
             ^                                                                                     |
             +-- those that lower J around them <-- one pass of decoder and prior with all changed <-+

    A greedy form of what trellis quantization and iterative inference (Yang, Bamler and Mandt, arXiv 2006.04240) do: the
    decoder and the files stay as they are. J never rises. Its bits are under the power of the prior's probabilities that
    :func:`homework.codec.dial.sharpness_at` says, about the one that the coder will choose. The result depends on nothing
    but the arguments, and on the machine's floats. With more than MOST_TOKENS codes there is no search.

    Args:
        tokenizer, prior: with the same codes; on one device.
        x: (H,W,3) float in [-0.5,0.5], or uint8; on any device.
        lmbda: mean squared error that a bit per pixel is worth, above 0.
        effort: 0 for none, ..., 8; 9 to continue until none of the CANDIDATES that promise most at a position helps.
        tokens: (h,w) int64 to start from; by default those of the encoder.

    Returns:
        (h,w) int64 in [0,K).

    Raises:
        ValueError: for another effort, or an lmbda that is not above 0.
    """
    return collections.deque(search_rounds(tokenizer, prior, x, lmbda, effort, tokens), 1).pop()


@torch.inference_mode(False)
@torch.no_grad()
def search_rounds(tokenizer: Tokenizer, prior: Prior, x: Tensor, lmbda: float, effort: int,
                  tokens: Tensor | None = None) -> Iterator[Tensor]:  # fmt: skip
    """As :func:`search`, but to watch or to stop: the grid (h,w) at the start and after every round of a block."""
    checks.integer(0, 9, effort=effort)
    checks.positive(lmbda=lmbda)
    with evaluating(tokenizer), evaluating(prior):
        device = tokenizer.device
        grid = tokenizer.encode_at(_to_float(x, tokenizer), lmbda) if tokens is None else tokens.to(device, copy=True)
        yield grid.clone()
        if effort and tokenizer.n_tokens <= MOST_TOKENS:
            h, w = grid.shape
            tile = tiles.fitting(prior.grid_size, (h, w))
            n = h * w if tokenizer.decoder_halo is None else PIXELS_AT_ONCE // math.prod(tokenizer.patch_shape)
            blocks = [block for block, _, _ in tiles.blocks((h, w), n, 0, tile)]
            for _ in range(SWEEPS if effort == 9 else 1):
                improved = False
                for block in blocks:
                    if len(blocks) > 1:
                        devices.release_memory()  # the encoder's, and that of blocks of other sizes
                    objective = Objective(tokenizer, prior, x, grid, block, tile, lmbda)
                    start = grid[block].clone()
                    for found in improve(objective, start, TRIALS[effort]):
                        grid[block] = found
                        yield grid.clone()
                    improved |= not torch.equal(grid[block], start)
                if not improved:
                    break


class Objective:
    """J of a block of an image's grid, by position, while the grid around it stays as it is.

    ``block`` is rows and columns of the ``grid``, in complete tiles of at most ``tile`` tokens; the others are as in
    :func:`search`. Maps of J are of the block and as much around it as its tokens change, ``decoder_halo`` positions.
    """

    def __init__(self, tokenizer: Tokenizer, prior: Prior, x: Tensor, grid: Tensor, block: tiles.Slices,
                 tile: tuple[int, int], lmbda: float):  # fmt: skip
        self.tokenizer, self.prior, self.tile = tokenizer, prior, tile
        self.patch, self.per_value, self.per_bit = tokenizer.patch_shape, 1 / x.numel(), 3 * lmbda / x.numel()
        changed = tiles.grown(block, tokenizer.decoder_halo, grid.shape)  # the patches that its tokens change
        seen = tiles.grown(changed, tokenizer.decoder_halo, grid.shape)  # the tokens that these patches depend on
        self.inside, self.within = tiles.relative(block, seen), tiles.relative(block, changed)
        self.outer, self.halo = tiles.relative(seen, changed), tokenizer.decoder_halo
        self.index, self.x = grid[seen].clone(), _to_float(x[tiles.scaled(changed, *self.patch)], tokenizer)
        self.pixels = tiles.scaled(tiles.relative(changed, seen), *self.patch)  # the map's, of what is decoded
        self.size = tuple(side.stop - side.start for side in changed)
        self.sharpness = dial.sharpness_at(lmbda)  # about the one that the coder will choose
        self.table = self._table()
        self.steepness = CAUTION * self._curvature()

    def cost(self, tokens: Tensor) -> Tensor:
        """The block's tokens (a,b) -> J by position, a map."""
        with torch.inference_mode():
            J = self._error(self.tokenizer.decode_index(self._seen(tokens))[self.pixels], self.x)
            for parts, some in self._tiles(tokens):
                for part, bits in zip(parts, self.prior.bits(some, self.sharpness), strict=True):
                    J[part] += self.per_bit * bits
        return J

    def scores(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The block's tokens (a,b) -> (J by position, and about how much it changes (a,b,K) with token k at a position).

        The change of the error is taken as the slope by the code vector v, times the step, and a multiple of the step's
        square, g (v' - v) + c |v' - v|^2; c is what steps have on average, times CAUTION: of all that is promised, the most
        is chosen, which is where the scores are most wrong, and they are less so for short steps. Of a tokenizer that does
        not decode code vectors the bits alone are scored."""
        index = self._seen(tokens)
        if self.table is None:
            J = self._error(self.tokenizer.decode_index(index)[self.pixels], self.x)
            change = torch.zeros((), device=index.device)
        else:
            code = self.tokenizer.code_vectors(index).float()
            J, slope = self._slope(code)
            v, g, c = code[self.inside], slope[self.inside], self.steepness  # (a,b,d) each
            change = (g - 2 * c * v) @ self.table.T + c * self.table.square().sum(dim=-1)  # (a,b,K)
            change += (c * v.square() - g * v).sum(dim=-1, keepdim=True)
        change = change.expand(*tokens.shape, self.tokenizer.n_tokens).contiguous()
        for parts, some in self._tiles(tokens):
            for part, bits, more in zip(parts, *self.prior.replacement_bits(some, self.sharpness), strict=True):
                J[part] += self.per_bit * bits
                change[tiles.relative(part, self.within)] += self.per_bit * more
        return J, change

    def _seen(self, tokens: Tensor) -> Tensor:
        """The block's tokens with those around it."""
        index = self.index.clone()
        index[self.inside] = tokens
        return index

    def _slope(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Code vectors of what the map depends on (h',w',d) -> (the error by position, a map; its sum's slope, (h',w',d)).
        Some positions of the map at a time, each time decoded from as much as they depend on."""
        error, slope = code.new_empty(self.size), torch.zeros_like(code)
        n = error.numel() if self.halo is None else SCORED_AT_ONCE // math.prod(self.patch)
        for part, _, _ in tiles.blocks(self.size, n, 0):
            where = tiles.relative(part, self.outer)
            seen = tiles.grown(where, self.halo, code.shape[:2])
            some = code[seen].clone().requires_grad_()
            with torch.enable_grad():
                x_hat = self.tokenizer.decode(some)  # type: ignore[operator]
                own = self._error(x_hat[tiles.scaled(tiles.relative(where, seen), *self.patch)],
                                  self.x[tiles.scaled(part, *self.patch)])  # fmt: skip
                slope[seen] += torch.autograd.grad(own.sum(), some)[0]
            error[part] = own.detach()
        return error, slope

    def _error(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Complete patches (h*P,w*Q,3), and the image there, which may end before -> (h,w): each position's share in the
        mean squared error."""
        (H, W), (P, Q) = x.shape[:2], self.patch
        error = (x_hat[:H, :W] - x).square().sum(dim=-1) * self.per_value
        error = F.pad(error, (0, x_hat.shape[1] - W, 0, x_hat.shape[0] - H))
        return error.unflatten(0, (-1, P)).unflatten(2, (-1, Q)).sum(dim=(1, 3))  # (h*P,w*Q) -> (h,P,w,Q) -> (h,w)

    def _tiles(self, tokens: Tensor) -> Iterator[tuple[list[tiles.Slices], Tensor]]:
        """The prior's tiles of the block, some of one size at a time: where each is in the map, and their tokens (T,a,b)."""
        top, left = (side.start for side in self.within)
        for (a, b), corners in tiles.tiles((tokens.shape[0], tokens.shape[1]), self.tile):
            for some in batches_of(corners, max(1, SCORED_AT_ONCE // math.prod((a, b, *self.patch)))):
                parts = [(slice(top + i, top + i + a), slice(left + j, left + j + b)) for i, j in some]
                yield parts, torch.stack([tokens[i : i + a, j : j + b] for i, j in some])

    def _table(self) -> Tensor | None:
        """(K,d): the code vectors; None if the tokenizer does not decode those, but tokens."""
        decodes_vectors = type(self.tokenizer).decode_index is Tokenizer.decode_index
        return self.tokenizer.code_table().float() if decodes_vectors else None

    def _curvature(self) -> float:
        """How much squared error a step in the code vectors makes by itself, for a step of length 1, on average: measured by
        random tokens, far from each other."""
        if self.table is None:
            return 0.0
        index, generator = self.index.clone(), torch.Generator().manual_seed(0)
        every = index[::5, ::5]
        every.copy_(torch.randint(len(self.table), every.shape, generator=generator, device="cpu"))
        moved = (self.tokenizer.decode_index(index) - self.tokenizer.decode_index(self.index)).square().sum()
        step = (self.tokenizer.code_vectors(index) - self.tokenizer.code_vectors(self.index)).square().sum()
        return self.per_value * float(moved / step.clamp_min(1e-12))


def _to_float(x: Tensor, tokenizer: Tokenizer) -> Tensor:
    """A copy, since there is no gradient through tensors that were made in inference mode."""
    return as_float(x.to(tokenizer.device, copy=True))


def improve(objective: Objective, tokens: Tensor, trials: int) -> Iterator[Tensor]:
    """Tokens (a,b) of ever lower J, see :func:`search`: the best after each round that finds better ones, in so many trials,
    or fewer if nothing is left to try."""
    J, scores = objective.scores(tokens)
    tried, reach = torch.zeros_like(scores, dtype=torch.bool), NEAR

    def judged(new: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        return (objective.cost(new), scores) if last else objective.scores(new)  # scores take three times as long

    for done in range(0, trials, ROUND):
        n, last = min(ROUND, trials - done), done + ROUND >= trials
        new, moved, gain = tokens.clone(), J.clone(), torch.zeros_like(scores[..., 0])
        for _ in range(n):
            open_ = ~tried & (tried.sum(dim=-1, keepdim=True) < CANDIDATES)
            open_.scatter_(-1, new[..., None], False)
            promise, candidate = scores.masked_fill(~open_, torch.inf).min(dim=-1)  # (a,b)
            chosen = spread_out(-promise, 2 * reach + 1)
            if not chosen.any():
                break
            tried[chosen, candidate[chosen]] = True
            trial = objective.cost(torch.where(chosen, candidate, new))
            change = around(trial - moved, reach)[objective.within]
            taken = chosen & (change < 0)
            new, gain = torch.where(taken, candidate, new), torch.where(taken, gain - change, gain)
            moved = torch.where(near(in_map(taken, objective.within, moved.shape), reach), trial, moved)
        if torch.equal(new, tokens):
            if not chosen.any():
                break
            continue
        before, (found, better) = total(J), judged(new, last)
        if total(found) >= before:
            reach, new = FAR, fewer_changes(objective, tokens, new, gain, before)
            if torch.equal(new, tokens):
                continue
            found, better = judged(new, last)
        if total(found) < before:
            tried &= ~near(new != tokens, FAR)[..., None]  # what did not help there may do so now
            tokens, J, scores = new, found, better
            yield tokens


def fewer_changes(objective: Objective, tokens: Tensor, new: Tensor, gain: Tensor, J: float) -> Tensor:
    """The ``new`` tokens (a,b) where the ``gain`` is largest, the half of the changes, a quarter and so on, until their cost
    is below ``J``; the old ``tokens`` if it never is."""
    order, n = gain.flatten().argsort(descending=True, stable=True), int((new != tokens).sum())
    while n := n // 2:
        some = tokens.flatten().scatter(0, order[:n], new.flatten()[order[:n]]).view_as(tokens)
        if total(objective.cost(some)) < J:
            return some
    return tokens


def total(J: Tensor) -> float:
    """The sum of a map of J."""
    return float(J.cpu().double().sum())  # MPS has no float64


def spread_out(promise: Tensor, apart: int, rounds: int = 4) -> Tensor:
    """(a,b) -> (a,b) bool: positions at least ``apart`` rows or columns from each other, the most promising first; none
    whose promise is not finite."""
    r, chosen = apart - 1, torch.zeros_like(promise, dtype=torch.bool)
    rank = promise.flatten().argsort(stable=True).argsort().view(promise.shape).float()  # unique, where promises are equal
    rank = rank.masked_fill(~promise.isfinite(), -torch.inf)
    for _ in range(rounds):  # those that are the best within reach, then the best of what is left; some may stay out
        best = F.max_pool2d(rank[None], 2 * r + 1, 1, r)[0]
        chosen |= (rank == best) & rank.isfinite()
        rank = rank.masked_fill(near(chosen, r), -torch.inf)
    return chosen


def near(chosen: Tensor, r: int) -> Tensor:
    """(a,b) bool -> (a,b) bool: positions within r rows and columns of those chosen."""
    return F.max_pool2d(chosen[None].float(), 2 * r + 1, 1, r)[0] > 0


def around(change: Tensor, r: int) -> Tensor:
    """(a,b) -> (a,b): sums over each position and those within r rows and columns of it."""
    side = 2 * r + 1
    return side**2 * F.avg_pool2d(change[None], side, 1, r)[0]


def in_map(chosen: Tensor, block: tiles.Slices, size: torch.Size) -> Tensor:
    """Positions chosen in a ``block``, in a map of the ``size``: bool."""
    found = torch.zeros(size, dtype=torch.bool, device=chosen.device)
    found[block] = chosen
    return found
