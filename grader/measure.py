"""Measures a submission, in the child process. Models get images as float32 (B,H,W,3) in [-0.5,0.5]."""

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from grader.sandbox import Failed, describe

BATCH = 32
CPU = torch.device("cpu")


@dataclass
class Data:
    """Frames uint8 (N,H,W,3), bytes of their JPEG files int64 (N,), and what is called with (done, total)."""

    frames: np.ndarray
    sizes: np.ndarray
    progress: Callable[[int, int], None] = lambda done, total: None

    def batches(self, n: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """The first n frames, all by default, in order: a slice of indices, and float32 (B,H,W,3)."""
        n = len(self.frames) if n is None else min(n, len(self.frames))
        for start in range(0, n, BATCH):
            rows = slice(start, min(start + BATCH, n))
            yield rows, torch.from_numpy(self.frames[rows].astype(np.float32)) / 255 - 0.5
            self.progress(rows.stop, n)


def run(part: str, data: str, progress: Callable[[int, int], None], checkpoints: dict[str, str] | None = None) -> dict:
    """The measures of the part called ``part``; ``data`` is the folder of frames.npy and sizes.npy, ``checkpoints`` maps
    a module to the file of the package to load in place of its model. Failed if the submission fails."""
    frames, sizes = (np.load(Path(data) / f"{name}.npy", mmap_mode="r") for name in ("frames", "sizes"))
    function, modules = MEASURES[part]
    torch.manual_seed(0)
    with torch.inference_mode():
        models = [load(module, (checkpoints or {}).get(module)) for module in modules]
        return function(*models, Data(frames, sizes, progress))


def load(module: str, file: str | None = None) -> Any:
    """The model that the submission's ``homework.{module}.load()`` returns, in eval mode; with a ``file`` of its package,
    what ``homework.load(file)`` returns."""
    with blaming(f"homework.load({file!r})" if file else f"homework.{module}.load()"):
        if file:
            package = importlib.import_module("homework")
            model = package.load(Path(package.__path__[0], file))
        else:
            model = importlib.import_module(f"homework.{module}").load()
        return model.eval() if isinstance(model, torch.nn.Module) else model


@contextlib.contextmanager
def blaming(call: str) -> Iterator[None]:
    """Errors in the block are the submission's, in this call."""
    try:
        yield
    except Failed:
        raise
    except Exception as error:
        raise Failed(f"{call} failed: {describe(error)}") from error


# --- the parts -------------------------------------------------------------------------------------------------------


def autoencoder(model: Any, data: Data) -> dict:
    """MSE of decode(encode(x)) over all pixels, and how wide the code is."""
    error, channels, numbers = 0.0, 0, 0
    for _, x in data.batches():
        with blaming("encode"):
            code = model.encode(x.clone())
        expect(isinstance(code, Tensor) and code.ndim == 4 and len(code) == len(x), "encode", "(B,h,w,channels)", code)
        channels, numbers = max(channels, code.shape[-1]), max(numbers, code[0].numel())
        with blaming("decode"):
            x_hat = model.decode(code)
        error += squared_error(fit(x_hat, x, "decode"), x)
    return {"mse": error / data.frames.size, "channels": channels, "numbers_per_image": numbers}


def tokenizer(model: Any, data: Data) -> dict:
    """MSE of decode_index(encode_index(x)): all images become integers before the first comes back."""
    tokens = encode(model, data)
    error = sum(squared_error(decode(model, tokens[rows], x), x) for rows, x in data.batches())
    return {
        "mse": error / data.frames.size,
        "tokens": tokens[0].numel(),
        "codes_used": tokens.unique().numel(),
        "largest_index": int(tokens.max()),
    }


def prior(tokenizer: Any, model: Any, data: Data) -> dict:
    """Mean bits of the frames' tokens under the model's logits."""
    tokens = encode(tokenizer, data)
    bits, n_tokens = 0.0, 0
    rows = fitting(tokens)
    for start in range(0, len(tokens), rows):
        batch = tokens[start : start + rows]
        logits = predict(model, batch)
        n_tokens = logits.shape[-1]
        bits += nats(logits, batch) / math.log(2)
        data.progress(start + len(batch), len(tokens))
    return {"bits": bits / len(tokens), "bits_per_token": bits / tokens.numel(), "n_tokens": n_tokens}


def causality(tokenizer: Any, model: Any, data: Data) -> dict:
    """Changes tokens at random, at least 100 times, and counts the changes after which logits move.

    Each position n is changed at least once, so that a leak at a single position is certainly found: either token n
    only or all tokens from n on change, and the logits up to and including n must not. That takes as many forward
    passes as an image has tokens, half the time of measuring the bits.
    """
    grids = encode(tokenizer, data, n=BATCH)
    grids = grids[: fitting(grids)]
    B, h, w = grids.shape
    before = predict(model, grids)
    # in nats; logits of a mask, -1e9 or so, must not widen it
    tolerance = 1e-4 * before.abs().max().clamp(1, 100).item()
    if not moves(before, predict(model, grids)).max() <= tolerance:
        raise Failed("the logits of the same tokens differ from call to call")
    K, N = before.shape[-1], h * w
    if K < 2:
        raise Failed("the prior knows only one token")
    random = torch.Generator().manual_seed(0)
    rounds = math.ceil(100 / N)
    changed = torch.cat([torch.randperm(N, generator=random) for _ in range(rounds)])  # (M,)
    everything_after = torch.arange(len(changed)) % 2 == 1  # (M,)
    position = torch.arange(N)
    leaks, moved, largest, first_leak = 0, 0, 0.0, ""
    for start in range(0, len(changed), B):
        n = changed[start : start + B, None]  # (b,1)
        b = len(n)
        shift = torch.randint(1, K, (b, N), generator=random)  # never 0: a changed token is another one
        change = (position == n) | (position > n) & everything_after[start : start + B, None]
        tokens = (grids[:b].flatten(1) + shift * change) % K  # (b,h,w) -> (b,N)
        after = predict(model, tokens.view(b, h, w))
        move = moves(before[:b], after)  # (b,N)
        leak = (position <= n) & ~(move <= tolerance)
        leaks += int(leak.any(1).sum())
        moved += int(((position > n) & (move > tolerance)).any(1).sum())
        largest = max(largest, move[position <= n].max().item())
        if leak.any() and not first_leak:
            row, at = leak.nonzero()[0].tolist()
            source = n[row].item()
            known = "its own token" if at == source else f"the later token at ({source // w}, {source % w})"
            first_leak = f"the logits at row {at // w}, column {at % w} depend on {known} or one after it"
        data.progress(start + b, len(changed))
    return {"perturbations": len(changed), "leaks": leaks, "moved": moved, "first_leak": first_leak,
            "largest_move": largest, "tolerance": tolerance}  # fmt: skip


def generation(tokenizer: Any, model: Any, data: Data) -> dict:
    """8 sampled frames of the data's size: how many differ, and their mean negative log-likelihood in nats per token."""
    _, h, w = encode(tokenizer, data, n=1).shape
    with blaming("generate"):
        tokens = model.generate(8, h, w, CPU)
    tokens = integers(tokens, (8, h, w), "generate")
    frames = decode(tokenizer, tokens, torch.empty(8, *data.frames.shape[1:]))
    different = {frame.numpy().tobytes() for frame in to_uint8(frames)}
    mean = nats(predict(model, tokens), tokens) / tokens.numel()
    return {"frames": len(frames), "different": len(different), "nats": mean}


def compression(tokenizer: Any, model: Any, data: Data, n: int = 16, Compressor: Any = None) -> dict:
    """Compresses n frames from all over the data, and decompresses them with another Compressor."""
    if Compressor is None:
        with blaming("import homework"):
            Compressor = getattr(importlib.import_module("homework"), "Compressor", None)
    if Compressor is None:
        raise Failed("not implemented")
    chosen = np.unique(np.linspace(0, len(data.frames) - 1, n).round().astype(int))
    some = Data(data.frames[chosen], data.sizes[chosen])
    images = torch.cat([x for _, x in some.batches()])  # (n,H,W,3)
    files = []
    with blaming("compress"):
        compressor = Compressor(tokenizer, model)
        for i, x in enumerate(images):
            files.append(compressor.compress(x.clone()))
            expect(isinstance(files[-1], bytes) and len(files[-1]) > 0, "compress", "bytes, at least one", files[-1])
            data.progress(i + 1, 2 * len(images))
    error, difference = 0.0, 0.0
    compressor = Compressor(tokenizer, model)
    for i, (file, x) in enumerate(zip(files, images, strict=True)):
        with blaming("decompress"):
            x_hat = compressor.decompress(file)
        expect(isinstance(x_hat, Tensor) and x_hat.ndim == 3, "decompress", "(H,W,3)", x_hat)
        x_hat = fit(x_hat[None], x[None], "decompress")
        of_tokens = decode(tokenizer, encode(tokenizer, Data(some.frames[i : i + 1], some.sizes)), x[None])
        difference = max(difference, (x_hat - of_tokens).abs().max().item())
        error += squared_error(x_hat, x[None])
        data.progress(len(images) + i + 1, 2 * len(images))
    size = sum(map(len, files))
    return {
        "ratio": int(some.sizes.sum()) / size,
        "mse": error / some.frames.size,
        "difference": difference,
        "bytes_per_image": size / len(files),
        "images": len(files),
    }


# part -> what measures it, and the modules whose models that takes
MEASURES: dict[str, tuple[Callable[..., dict], tuple[str, ...]]] = {
    "auto-encoder": (autoencoder, ("ae",)),
    "tokenizer": (tokenizer, ("bsq",)),
    "prior": (prior, ("bsq", "autoregressive")),
    "causality": (causality, ("bsq", "autoregressive")),
    "generation": (generation, ("bsq", "autoregressive")),
    "compression": (compression, ("bsq", "autoregressive")),
}


# --- calls of the models, with what they return checked --------------------------------------------------------------


def encode(tokenizer: Any, data: Data, n: int | None = None) -> Tensor:
    """The tokens of the first n frames, all by default: int64 (n,h,w)."""
    grids = []
    for _, x in data.batches(n):
        with blaming("encode_index"):
            tokens = tokenizer.encode_index(x.clone())
        grids.append(integers(tokens, (len(x), "h", "w"), "encode_index"))
        expect(grids[-1].shape[1:] == grids[0].shape[1:], "encode_index", "grids of one size", tokens)
    return torch.cat(grids)


def decode(tokenizer: Any, tokens: Tensor, like: Tensor) -> Tensor:
    """The images of (B,h,w) tokens, of the size of ``like`` (B,H,W,3)."""
    with blaming("decode_index"):
        images = tokenizer.decode_index(tokens.clone())
    return fit(images, like, "decode_index")


def predict(model: Any, tokens: Tensor) -> Tensor:
    """(B,h,w) int64 -> finite float32 logits (B,h,w,K)."""
    with blaming("the prior's forward"):
        output = model(tokens.clone())
    expect(isinstance(output, tuple) and len(output) == 2, "the prior's forward", "(logits, dict)", output)
    logits = output[0]
    right = isinstance(logits, Tensor) and logits.ndim == 4 and logits.shape[:3] == tokens.shape
    expect(right, "the prior's forward", f"logits {(*tokens.shape, 'K')}", logits)
    if tokens.max() >= logits.shape[-1]:
        raise Failed(f"token {int(tokens.max())} has no logit: K is {logits.shape[-1]}")
    return finite(logits.float(), "the logits")


def fitting(tokens: Tensor) -> int:
    """Grids (B,h,w) in a batch: as many as have logits of about 128 MiB, at least one."""
    return max(1, min(BATCH, 2**25 // (tokens[0].numel() * (int(tokens.max()) + 1))))


def nats(logits: Tensor, tokens: Tensor) -> float:
    """Sum of the negative log-likelihoods of tokens (B,h,w) under logits (B,h,w,K)."""
    total = F.cross_entropy(logits.flatten(0, 2), tokens.flatten(), reduction="none").double().sum()  # (B*N,K), (B*N,)
    return finite(total, "the log-likelihood").item()


def moves(before: Tensor, after: Tensor) -> Tensor:
    """(B,N): the largest change of a logit at each position, of (B,h,w,K)."""
    expect(before.shape == after.shape, "the prior's forward", f"logits {tuple(before.shape)}", after)
    return (before - after).abs().amax(-1).flatten(1)  # (B,h,w) -> (B,N)


def integers(tokens: Any, shape: tuple, call: str) -> Tensor:
    """Tokens as int64, through numpy, which keeps only the integers."""
    right = isinstance(tokens, Tensor) and tokens.ndim == len(shape)
    right = right and all(n == m for n, m in zip(tokens.shape, shape, strict=True) if isinstance(m, int))
    expect(right and tokens.numel() > 0, call, str(shape), tokens)
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise Failed(f"{call} must return integers, not {tokens.dtype}")
    tokens = torch.from_numpy(tokens.cpu().numpy().astype(np.int64))
    if tokens.min() < 0:
        raise Failed(f"{call} returned the negative index {int(tokens.min())}")
    return tokens


def fit(images: Any, like: Tensor, call: str) -> Tensor:
    """Images as finite float32, cut to the size of ``like`` (B,H,W,3): decoders return complete patches."""
    (B, H, W, C) = like.shape
    if isinstance(images, Tensor) and images.ndim == 4:
        images = images[:, :H, :W]
    expect(isinstance(images, Tensor) and images.shape == like.shape, call, f"images {(B, H, W, C)}", images)
    return finite(images.float(), f"the output of {call}")


def finite(values: Tensor, where: str) -> Tensor:
    if not values.isfinite().all():
        raise Failed(f"NaN or infinity in {where}")
    return values


def expect(right: bool, call: str, wanted: str, got: Any) -> None:
    if not right:
        found = f"a tensor {tuple(got.shape)}" if isinstance(got, Tensor) else f"a {type(got).__name__}"
        raise Failed(f"{call} must return {wanted}, not {found}")


def squared_error(x_hat: Tensor, x: Tensor) -> float:
    return (x_hat - x).double().square().sum().item()


def to_uint8(images: Tensor) -> Tensor:
    return ((images.clamp(-0.5, 0.5) + 0.5) * 255).round().to(torch.uint8)
