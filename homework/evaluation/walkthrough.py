"""What the page of :mod:`homework.demo` shows: images through an auto-encoder, a tokenizer, a prior and the codec."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homework.codec.compressor import Compressor
from homework.codec.loading import compressor_of
from homework.codec.parallel import in_parallel
from homework.core import checks
from homework.core.model import ordinary_tensors
from homework.datasets.images import to_float, to_uint8
from homework.evaluation import codecs
from homework.evaluation.metrics import errors
from homework.evaluation.pictures import heat
from homework.priors.base import Prior
from homework.priors.cascade import Cascade
from homework.priors.images import generate_images
from homework.tokenizers.base import AutoEncoder, Tokenizer, usage_of

BATCH = 16  # images that go through a model at once; with many more, a processor's caches overflow
RIVALS = tuple(codec for codec in codecs.CODECS if codec.name in ("JPEG", "WebP"))
QUALITIES = (10, 30, 50, 70, 90)
REFINED = 4  # images that are shown from coarse to fine
TURNED = (128, 192)  # pixels of an image at which the dial is shown, at most: each quality takes a search


class Stopwatch(dict):
    """Seconds that each step took, by its name. A call returns what ``function`` does, and prints how long it took."""

    def __call__(self, step: str, function: Callable, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments)
        self[step] = time.perf_counter() - start
        print(f"{step}: {self[step]:.1f} s", flush=True)
        return result


@ordinary_tensors
def walk_through(ae: AutoEncoder, coder: Tokenizer, prior: Prior, x: Tensor, n_generate: int, seed: int,
                 timed: Stopwatch) -> tuple[dict[str, Any], dict[str, Tensor], list[bytes]]:  # fmt: skip
    """Takes images (B,H,W,3), float in [-0.5,0.5], through every step. Returns what templates/demo.html needs, except for
    the original files and the seconds; pictures, uint8 (n,H,W,3) or (n,h,w,3), by name; and the images' compressed files."""
    H, W = x.shape[1:3]
    plain = timed("auto-encoder, there and back", batched, lambda part: ae(part)[0], x)
    grids = timed("images to tokens", batched, coder.encode_index, x)  # (B,h,w)
    coded = timed("tokens to images", batched, coder.decode_index, grids)[:, :H, :W]
    bits = timed("bits under the prior", batched, prior.bits, grids)
    compressor = Compressor(coder, prior)
    files = timed("tokens to files", compressor.compress_tokens, grids, (H, W))
    again = timed("files to tokens", compressor.decompress_tokens, files)
    if not np.array_equal(again, grids.cpu()):
        raise ValueError("The files did not decode to the tokens that were coded; please report it.")
    parts = generate_images(coder, prior, n_generate, (H, W), BATCH, seed=seed)
    new, drawn = map(torch.cat, zip(*timed(checks.count(n_generate, "generated image"), list, parts), strict=True))
    mse_coded = errors(to_float(to_uint8(coded)), x)
    columns = {
        "mse_plain": errors(plain, x),
        "mse_coded": mse_coded,
        "distinct": [len(grid.unique()) for grid in grids],
        "bits": bits.sum(dim=(1, 2)).tolist(),
        "bytes": list(map(len, files)),
        **timed("JPEG and WebP of the same error", as_good, x, mse_coded),
    }
    typical = sorted(range(len(x)), key=mse_coded.__getitem__)[len(x) // 2]
    turned, beside = turn_dial(compressor_of(coder, prior), middle(x[typical], *TURNED), timed)
    results = {
        "images": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        "exact": compressor.entropy_model.exact,
        "size": (H, W),
        "latent": tuple(ae.encode(x[:1]).shape[1:]),
        "grid": tuple(grids.shape[1:]),
        "bits_generated": batched(prior.bits, new).sum(dim=(1, 2)).tolist(),
        "seed": seed,
        "dial": turned | {"image": typical},
        **code_usage(grids, coder.n_tokens),
    }
    pictures = {name: to_uint8(images) for name, images in (("original", x), ("plain", plain), ("coded", coded))}
    pictures |= {"tokens": code_colours(grids, coder.n_tokens), "bits": heat(bits / math.log2(coder.n_tokens))}
    return results, pictures | {"generation": drawn} | beside, files


@ordinary_tensors
def refine(cascade: Cascade, seed: int, timed: Stopwatch, n: int = REFINED) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Samples ``n`` images from coarse to fine. Returns {"scales": (h,w) of each grid, "size_of_scales": (H,W) of the
    pictures, "refined": n}; and pictures, uint8 (n,H,W,3), "scale_K" of grid K."""
    draws = torch.Generator().manual_seed(seed)
    condition = torch.randint(cascade.codebooks[0].n_tokens, (n, *cascade.sizes[0]), generator=draws)
    parts = timed("images from coarse to fine", lambda: cascade.decode(cascade.generate(condition, draws)))
    shown = {"scales": cascade.sizes, "size_of_scales": cascade.image_size, "refined": n}
    return shown, {f"scale_{k}": to_uint8(part) for k, part in enumerate(parts)}


def turn_dial(compressor: Compressor, x: Tensor, timed: Stopwatch, qualities: Sequence[int] = QUALITIES,
              names: tuple[str, ...] = ("AVIF", "WebP")) -> tuple[dict[str, Any], dict[str, Tensor]]:  # fmt: skip
    """An image (H,W,3), float in [-0.5,0.5], at each of the qualities, beside files of other codecs within as many bytes.
    Returns {"size": (H,W), "left_out": why codecs are not there, "rows": for each quality {"quality", "files": [{"name",
    "bytes", "mse", "above": whether the codec's smallest has more bytes than ours}]}}; and pictures, uint8 (n,H,W,3), by
    name."""
    found, left_out = codecs.available()
    rivals = sorted((codec for codec in found if codec.name in names), key=lambda codec: names.index(codec.name))

    def searched() -> list[bytes]:
        with closing(in_parallel(lambda q: compressor.at(q).compress(x), qualities, compressor.workers)) as files:
            return list(files)

    image = to_uint8(x).cpu().numpy()
    ours = timed(f"search for tokens at {len(qualities)} qualities, effort {compressor.effort}", searched)
    sizes = list(map(len, ours))
    others = timed(" and ".join(names) + " within as many bytes", lambda: [codec.within(image, sizes) for codec in rivals])
    made = {"ours": [to_uint8(compressor.decompress(data)).cpu() for data in ours]}
    lengths = {"ours": sizes}
    for codec, coded in zip(rivals, others, strict=True):
        made[codec.name] = [torch.from_numpy(codec.decode(file)) for _, file in coded]
        lengths[codec.name] = [len(file) for _, file in coded]
    rows = [
        {"quality": q, "files": [
            {"name": name, "bytes": lengths[name][i], "mse": errors(to_float(made[name][i])[None], x.cpu()[None])[0],
             "above": lengths[name][i] > sizes[i]} for name in made]}
        for i, q in enumerate(qualities)
    ]  # fmt: skip
    pictures = {f"dial_{name.lower()}": torch.stack(several) for name, several in made.items()}
    pictures["dial_original"] = torch.from_numpy(image)[None]
    shown = {"size": image.shape[:2], "rows": rows, "left_out": [why for why in left_out if why.startswith(names)]}
    return shown, pictures


def middle(x: Tensor, height: int, width: int) -> Tensor:
    """(H,W,...) -> its middle, of at most ``height`` x ``width``."""
    top, left = max(0, x.shape[0] - height) // 2, max(0, x.shape[1] - width) // 2
    return x[top : top + height, left : left + width]


def file_columns(results: dict[str, Any], paths: list[str]) -> dict[str, Any]:
    """What templates/demo.html needs of the original files: "kind", the word for them, "images", now with "name" and
    "original" (bytes), and "mean" of all images' numbers."""
    kind = "JPEG" if all(Path(path).suffix.lower() in (".jpg", ".jpeg") for path in paths) else "file"
    own = [{"name": path.stem.replace("_", " "), "original": path.stat().st_size} for path in map(Path, paths)]
    images = [file | image for file, image in zip(own, results["images"], strict=True)]
    mean = {key: sum(image[key] for image in images) / len(images) for key in images[0] if key != "name"}
    return {"kind": kind, "images": images, "mean": {"name": "mean", **mean}}


def batched(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``f`` on x (B,...), some of the batch at a time."""
    return torch.cat([f(part) for part in x.split(BATCH)])


def as_good(x: Tensor, mse: list[float]) -> dict[str, list[int]]:
    """By codec, the bytes of each of (B,H,W,3) images at the lowest quality whose mean squared error is at most ``mse``."""
    images = list(zip(to_uint8(x).cpu().numpy(), mse, strict=True))
    return {codec.name: [len(codec.as_good(image, e)[1]) for image, e in images] for codec in RIVALS}


def code_usage(grids: Tensor, n_tokens: int) -> dict[str, Any]:
    """Of integers in [0,K) of any shape: "n_tokens" K, "bits_per_token" log2 K, how many codes are "used", "entropy" in bits
    and "perplexity" of their frequencies, and the "log_frequencies" of all codes, from 1 down to 0."""
    counts = torch.bincount(grids.flatten().cpu(), minlength=n_tokens).double()
    measures, logs = usage_of(counts, n_tokens), counts.sort(descending=True).values.log1p()
    return {"n_tokens": n_tokens, "bits_per_token": math.log2(n_tokens), "used": int(counts.count_nonzero()),
            "entropy": measures["entropy"].item(), "perplexity": measures["perplexity"].item(),
            "log_frequencies": (logs / logs[0]).tolist()}  # fmt: skip


def code_colours(grids: Tensor, n_tokens: int) -> Tensor:
    """(...,h,w) codes -> (...,h,w,3) uint8: a code's bits dealt out to red, green and blue, so that each has its own."""
    n_bits = max(1, (n_tokens - 1).bit_length())
    colours = torch.zeros(*grids.shape, 3, dtype=torch.int64, device=grids.device)
    for i in range(n_bits):
        colours[..., i % 3] = 2 * colours[..., i % 3] + grids // 2**i % 2
    top = torch.tensor([max(1, 2 ** len(range(c, n_bits, 3)) - 1) for c in range(3)], device=grids.device)
    return (32 + colours * 223 // top).to(torch.uint8)  # not down to black, which is hard to see on a dark page
