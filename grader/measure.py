"""Measures a submission, in the grader's own process: every figure is computed here, from what the submission's functions
returned. Images are float32 (B,H,W,3) in [-0.5,0.5], tokens int64 (B,h,w).

What a process of the submission has seen must not help it later. So what one process has encoded, another decodes, which
starts afterwards and sees codes, tokens or files alone. All tokens come from one pass over the images.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from grader import parts
from grader.remote import Failed, Remote

BATCH = 32
LOGITS = 2**25  # values in a batch at most: 128 MiB
CODE_LEVELS = 4096  # to which the numbers of an auto-encoder's code are rounded: 12 bits, so that none holds several
SAMPLES = 8
FILES = 16


@dataclass
class Data:
    """What a submission is measured on.

    Attributes:
        frames: uint8 (n,H,W,3).
        sizes: int64 (n,), bytes of their JPEG files.
        known: the images that a submission may have stored besides, as batches of :func:`blocks`.
    """

    frames: np.ndarray
    sizes: np.ndarray
    known: Callable[[], Iterable[np.ndarray]] = tuple

    def images(self, rows: slice | np.ndarray) -> np.ndarray:
        """float32 (B,H,W,3) in [-0.5,0.5]."""
        return self.frames[rows].astype(np.float32) / 255 - 0.5


@dataclass
class Measures:
    """The measures of one submission; those of a part are a method, which raises Failed or Ended if the submission fails.

    Attributes:
        data: the frames.
        start: starts another process of the submission.
        progress: called with (done, total).
        random: nobody can know what it draws.
        grids: the frames' tokens, (n,h,w), after :meth:`tokenizer` has encoded them.
        decoded: (FILES,H,W,3), what the tokenizer makes of the grids of the frames ``chosen``.
        errors: (n,), the squared errors of all frames' reconstructions.
        blur: how far the blocks of frames are from those of their reconstructions, mean squared difference.
    """

    data: Data
    start: Callable[[], AbstractContextManager[Remote]]
    progress: Callable[[int, int], None] = lambda done, total: None
    random: np.random.Generator = field(default_factory=np.random.default_rng)
    grids: np.ndarray | None = None
    decoded: np.ndarray | None = None
    errors: np.ndarray | None = None
    blur: float = 0.0

    def batches(self, n: int, size: int = BATCH) -> Iterator[slice]:
        for start in range(0, n, size):
            yield slice(start, min(start + size, n))
            self.progress(min(start + size, n), n)

    def autoencoder(self) -> dict:
        """MSE of decode(encode(x)) over all pixels, and how many numbers are kept of an image."""
        n = len(self.data.frames)
        with self.start() as remote:
            codes = together("encode", [remote.encode(self.data.images(rows)) for rows in self.batches(n)])
        codes, order, error = rounded(codes), self.random.permutation(n), 0.0
        with self.start() as remote:
            for rows in map(order.__getitem__, self.batches(n)):
                error += squared_error(remote.decode(codes[rows]), self.data.images(rows)).sum()
        return {
            "mse": error / self.data.frames.size,
            "channels": codes.shape[-1],
            "numbers_per_image": codes[0].size,
            "values_per_image": self.data.frames[0].size,
        }

    def tokenizer(self) -> dict:
        """MSE of decode_index(encode_index(x)) over all pixels, and how much the tokens could hold."""
        n = len(self.data.frames)
        with self.start() as remote:
            grids = together("encode_index", [remote.encode_index(self.data.images(rows)) for rows in self.batches(n)])
        self.grids = grids
        order, chosen = self.random.permutation(n), self.chosen()
        errors, blur, in_batches = np.empty(n), 0.0, np.empty((len(chosen), *self.data.frames.shape[1:]), np.float32)
        with self.start() as remote:
            for rows in map(order.__getitem__, self.batches(n)):
                x, x_hat = self.data.images(rows), remote.decode_index(grids[rows])
                errors[rows] = squared_error(x_hat, x)
                blur += squared_error(blocks(x_hat), blocks(x)).sum()
                _, of_chosen, of_batch = np.intersect1d(chosen, rows, return_indices=True)
                in_batches[of_chosen] = x_hat[of_batch]
            self.decoded = np.concatenate([remote.decode_index(grids[[i]]) for i in chosen])
        if np.abs(self.decoded - in_batches).max() > 1e-3:
            raise Failed("what decode_index makes of an image's tokens depends on the other images of a batch")
        self.errors, self.blur = errors, blur / (n * blocks(x).size / len(x))
        return {
            "mse": errors.sum() / self.data.frames.size,
            "tokens": grids[0].size,
            "largest_index": int(grids.max()),
            "codes_used": len(np.unique(grids)),
        }

    def chosen(self) -> np.ndarray:
        """Frames from all over the data, sorted indices."""
        return np.unique(np.linspace(0, len(self.data.frames) - 1, FILES).round().astype(int))

    def tokens(self) -> np.ndarray:
        """The frames' grids. Failed if there are none, or they hold more than is allowed."""
        if self.grids is None:
            raise Failed("there are no tokens: encode_index failed")
        if reason := parts.too_much(self.grids[0].size, int(self.grids.max())):
            raise Failed(reason)
        return self.grids

    def prior(self) -> dict:
        """What :meth:`predictions` finds for the frames' tokens: each position's prediction is looked at."""
        grids = self.tokens()
        return self.predictions(grids, max(100, len(grids), grids[0].size))

    def predictions(self, grids: np.ndarray, perturbations: int) -> dict:
        """Mean bits of grids (n,h,w) under the prior's logits, and whether these depend on earlier tokens alone.

        One process gets the grids. Another one gets each with everything from a random position on replaced by other
        tokens, in another order: its logits at that position must be the first process's. Nobody knows the positions, so
        that a prior that sees the future where bits are measured cannot conceal it where causality is. What the true tokens
        at these positions cost under the second process's logits, which cannot know them, corrects the mean: it is an
        unbiased estimate for a prior that does see the future, too. A grid that is needed several times comes in separate
        batches and with ever more true tokens, so that none has been seen when it is to be predicted.
        """
        n, N = len(grids), grids[0].size
        cuts = np.concatenate([self.random.permutation(N) for _ in range(math.ceil(perturbations / N))])[:perturbations]
        for i in range(n):
            cuts[i::n].sort()
        which = np.arange(perturbations) % n  # the grid of each cut
        K, nats, here, last, tolerance = self.logits(grids, which, cuts)
        found, end = self.scrambled_logits(grids, which, cuts, K)
        move = np.abs(found - here).max(1)  # (M,K) -> (M,)
        leaks = cuts[move > tolerance]
        extra = costs(found, grids.reshape(n, N)[which, cuts]) - nats[which, cuts]
        bits = (nats.sum(1).mean() + max(0.0, N * extra.mean())) / math.log(2)
        row, column = divmod(int(leaks.min(initial=N)), grids.shape[2])
        first_leak = f"the logits at row {row}, column {column} depend on its own token or a later one"
        return {
            "bits": float(bits),
            "bits_per_token": float(bits) / N,
            "n_tokens": K,
            "perturbations": perturbations,
            "leaks": len(leaks),
            "moved": int((np.abs(end - last[which]).max(1) > tolerance)[cuts < N - 1].sum()),
            "first_leak": first_leak if len(leaks) else "",
            "largest_move": float(move.max()),
            "tolerance": tolerance,
        }

    def logits(self, grids: np.ndarray, which: np.ndarray, cuts: np.ndarray) -> tuple:
        """K, nats of all tokens (n,N), logits at the cuts (M,K) and at the last position (n,K), and how much logits may
        move by rounding alone."""
        n, N = len(grids), grids[0].size
        with self.start() as remote:
            K = remote.forward(grids[:1], range(2, parts.MAX_CODES + 1)).shape[-1]
            if grids.max() >= K:
                raise Failed(f"token {grids.max()} has no logit: K is {K}")
            nats, here, last = np.empty((n, N)), np.empty((len(cuts), K), np.float32), np.empty((n, K), np.float32)
            for rows in self.batches(n, batch_size(N, K)):
                logits = remote.forward(grids[rows], K).reshape(-1, N, K)  # (B,h,w,K) -> (B,N,K)
                nats[rows] = costs(logits, grids[rows].reshape(-1, N))
                of_these = (which >= rows.start) & (which < rows.stop)
                here[of_these] = logits[which[of_these] - rows.start, cuts[of_these]]
                last[rows] = logits[:, -1]
            again = remote.forward(grids[rows], K).reshape(-1, N, K)
        tolerance = 1e-4 * min(max(float(np.abs(logits).max()), 1.0), 100.0)  # a mask's -1e9 must not widen it
        if np.abs(again - logits).max() > tolerance:
            raise Failed("the logits of the same tokens differ from call to call")
        return K, nats, here, last, tolerance

    def scrambled_logits(self, grids: np.ndarray, which: np.ndarray, cuts: np.ndarray, K: int) -> tuple:
        """As the logits at the cuts and the last position (M,K), of grids whose tokens are others from the cut on."""
        M, n, N = len(cuts), len(grids), grids[0].size
        rounds = [start + self.random.permutation(min(n, M - start)) for start in range(0, M, n)]  # a grid once in each
        size, done = batch_size(N, K), 0
        here, last = np.empty((2, M, K), np.float32)
        with self.start() as remote:
            for rows in (order[i : i + size] for order in rounds for i in range(0, len(order), size)):
                true = grids[which[rows]].reshape(-1, N)
                shift = self.random.integers(1, K, true.shape)  # never 0: a changed token is another one
                tokens = np.where(np.arange(N) < cuts[rows, None], true, (true + shift) % K)
                logits = remote.forward(tokens.reshape(-1, *grids.shape[1:]), K).reshape(-1, N, K)
                here[rows], last[rows] = logits[np.arange(len(rows)), cuts[rows]], logits[:, -1]
                done += len(rows)
                self.progress(done, M)
        return here, last

    def generation(self) -> dict:
        """8 sampled frames: how many differ from each other, and from the images that the submission may have stored, by
        more than a reconstruction differs from its image; and their nats per token."""
        frames = self.tokens()
        _, h, w = frames.shape
        with self.start() as remote:
            grids = remote.generate(SAMPLES, h, w)
        samples = blocks(self.decode_among_frames(grids))
        found = self.predictions(grids, 128)
        if found["leaks"]:
            raise Failed(f"of the samples' tokens, {found['first_leak']}")
        least = max(3 * self.blur, 1e-6)  # no less than rounding
        apart = [min(nearest(samples[:i], x), nearest(samples[i + 1 :], x)) for i, x in enumerate(samples)]
        away = np.full(SAMPLES, np.inf)
        for batch in chain([blocks(self.data.images(slice(None)))], self.data.known()):
            away = np.minimum(away, [nearest(batch, x) for x in samples])
        return {
            "frames": SAMPLES,
            "different": int((np.array(apart) > least).sum()),
            "new": int((away > least).sum()),
            "nats": found["bits_per_token"] * math.log(2),
            "n_codes": min(found["n_tokens"], len(np.unique(frames))),
            "nearest": float(away.min()),
            "least": least,
        }

    def decode_among_frames(self, grids: np.ndarray) -> np.ndarray:
        """Images of grids (b,h,w), decoded in one batch with frames' grids, so that nothing shows which are which."""
        if self.grids is None or self.errors is None:
            raise Failed("there are no images to compare with: decode_index failed")
        b, n = len(grids), len(self.grids)
        rows = self.random.choice(n, min(n, BATCH - b), replace=False)
        order = self.random.permutation(b + len(rows))
        x_hat = np.empty((b + len(rows), *self.data.frames.shape[1:]), np.float32)
        with self.start() as remote:
            x_hat[order] = remote.decode_index(np.concatenate([grids, self.grids[rows]])[order])
        again = squared_error(x_hat[b:], self.data.images(rows))
        if np.abs(again - self.errors[rows]).max() > 1e-4 * x_hat[0].size:
            raise Failed("what decode_index makes of an image's tokens is not always the same")
        return x_hat[:b]

    def compression(self) -> dict:
        """Compresses frames from all over the data in one process, and decompresses them in another, in another order."""
        self.tokens()
        if self.decoded is None:
            raise Failed("there are no images to compare with: decode_index failed")
        images, sizes = self.data.images(self.chosen()), self.data.sizes[self.chosen()]
        n = len(images)
        with self.start() as remote:
            files = [remote.compress(images[rows.start]) for rows in self.batches(n, 1)]
        order, error, difference = self.random.permutation(n), 0.0, 0.0
        with self.start() as remote:
            for rows in self.batches(n, 1):
                i = order[rows.start]
                x_hat = remote.decompress(files[i])
                difference = max(difference, float(np.abs(x_hat - self.decoded[i]).max()))
                error += squared_error(x_hat[None], images[[i]]).sum()
        size = sum(map(len, files))
        return {
            "ratio": int(sizes.sum()) / size,
            "mse": error / images.size,
            "difference": min(difference, 1e30),
            "bytes_per_image": size / n,
            "images": n,
        }


# --- formulas --------------------------------------------------------------------------------------------------------


def together(call: str, batches: list[np.ndarray]) -> np.ndarray:
    if len({batch.shape[1:] for batch in batches}) > 1:
        raise Failed(f"{call} must return grids of one size for images of one size")
    return np.concatenate(batches)


def rounded(codes: np.ndarray) -> np.ndarray:
    """(n,h,w,channels) with each channel's numbers on ``CODE_LEVELS`` levels from its smallest to its largest one."""
    low, high = codes.min((0, 1, 2)), codes.max((0, 1, 2))
    step = np.where(high > low, (high - low) / (CODE_LEVELS - 1), 1)
    return low + np.rint((codes - low) / step) * step


def squared_error(x_hat: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(n,H,W,C) -> float64 (n,), the sum over each image."""
    return np.square(x_hat - x, dtype=np.float64).sum((1, 2, 3))


def costs(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Negative log-likelihoods (...), in nats, of tokens (...) under logits (...,K); at most 1e9."""
    below = logits - logits.max(-1, keepdims=True)
    total = np.exp(below).sum(-1, dtype=np.float64)
    return np.minimum(np.log(total) - np.take_along_axis(below, tokens[..., None], -1)[..., 0], 1e9)


def batch_size(N: int, K: int) -> int:
    """Grids in a batch: as many as have logits of about 128 MiB, at least one."""
    return max(1, min(BATCH, LOGITS // (N * K)))


def blocks(images: np.ndarray) -> np.ndarray:
    """Means of blocks of 5x5 pixels, (n,H,W,3) -> float32 (n,H//5,W//5,3)."""
    n, H, W, _ = images.shape
    h, w = H // 5, W // 5
    return images[:, : 5 * h, : 5 * w].reshape(n, h, 5, w, 5, 3).mean((2, 4), dtype=np.float32)


def nearest(images: np.ndarray, x: np.ndarray) -> float:
    """Mean squared difference of the one of ``images`` that is nearest to x, or to its mirror image; infinite of none."""
    return min(float(np.square(images - y).mean((1, 2, 3)).min(initial=math.inf)) for y in (x, x[:, ::-1]))
