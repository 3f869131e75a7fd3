"""Shows on one page what the models do: ``python -m homework.demo`` writes demo/index.html. See ``--help``."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from homework.codec.compressor import Compressor
from homework.core import checkpoint, cli, devices
from homework.datasets.image_files import image_paths
from homework.datasets.images import ImageDataset, to_float, to_uint8
from homework.evaluation.codecs import CODECS, Codec
from homework.evaluation.generated import decode, save_images
from homework.evaluation.metrics import bits_at, errors, psnr
from homework.evaluation.report import cards, figure, heat, page, save_picture, table
from homework.priors.pairs import load_pair

BATCH = 16  # images that go through a model at once; with many more, a processor's caches overflow


def demo(
    out: str = "demo",
    images: str = "data/sample",
    n_generate: int = 8,
    seed: int = 0,
    limit: int = 32,
    image_size: str | None = None,
    autoencoder: str | None = None,
    tokenizer: str | None = None,
    autoregressive: str | None = None,
    device: str = "auto",
) -> None:
    """Reconstructs images, tokenizes, compresses and decompresses them, generates new ones, and writes a page about it.

    Args:
        out: the folder for index.html and its pictures; made if it is not there.
        images: the images to show: a file or a folder.
        n_generate: how many images to generate.
        seed: of the draws; the same seed gives the same images.
        limit: the largest number of images to show, the first ones by name.
        image_size: HEIGHTxWIDTH in pixels, to which images are scaled and cropped; as they are by default.
        autoencoder: checkpoint of an auto-encoder; the one in the package by default.
        tokenizer: checkpoint of a tokenizer; the one in the package by default.
        autoregressive: checkpoint of a prior over that tokenizer's grids; the one in the package by default.
        device: auto, cpu, cuda or mps.
    """
    cli.at_least(1, n_generate=n_generate, limit=limit)
    cli.check_seed(seed)
    shipped = ("PatchAutoEncoder", "BSQPatchAutoEncoder", "AutoregressiveModel")
    autoencoder, tokenizer, autoregressive = (
        str(path or default) for path, default in zip((autoencoder, tokenizer, autoregressive), shipped, strict=True)
    )
    folder, device, seconds = Path(str(out)), devices.pick_device(device), {}
    with torch.inference_mode():
        with timed(seconds, "load models and images"):
            coder, prior = load_pair(tokenizer, autoregressive, device)
            ae = checkpoint.load(autoencoder).to(device)
            if ae.data != "images":
                raise ValueError(f"{autoencoder} holds a {type(ae).__name__}, but an auto-encoder is needed here.")
            data = ImageDataset(image_paths(str(images))[:limit], cli.parse_image_size(image_size))
            x = data.batch(np.arange(len(data)), device)  # (B,H,W,3)
        H, W = data.size
        with timed(seconds, "auto-encoder, there and back"):
            plain = batched(lambda part: ae(part)[0], x)
        with timed(seconds, "images to tokens"):
            grids = batched(coder.encode_index, x)  # (B,h,w)
        with timed(seconds, "tokens to images"):
            coded = batched(coder.decode_index, grids)[:, :H, :W]
        with timed(seconds, "bits under the prior"):
            bits = batched(lambda part: bits_at(prior, part), grids)
        compressor = Compressor(coder, prior, device)
        with timed(seconds, "tokens to files"):
            files = compressor.compress_tokens(grids, (H, W))
        with timed(seconds, "files to tokens"):
            again = compressor.decompress_tokens(files)
        if not np.array_equal(again, grids.cpu()):
            raise ValueError("The files did not decode to the tokens that were coded; please report it.")
        with timed(seconds, f"{n_generate} generated images"):
            draws, (h, w) = torch.Generator().manual_seed(seed), grids.shape[1:]
            sizes = map(len, torch.arange(n_generate).split(BATCH))
            new = torch.cat([prior.generate(B, h, w, device, generator=draws).to(device) for B in sizes])
            generated = decode(coder, new)[:, :H, :W]
        mse_coded = errors(to_float(to_uint8(coded)), x)
        with timed(seconds, "JPEG and WebP of the same error"):
            rivals = {c.name: as_good(c, x, mse_coded) for c in CODECS if c.name in ("JPEG", "WebP")}
        facts = {
            "files": data.names,
            "bytes": [len(file) for file in files],
            "rivals": rivals,
            "exact": compressor.entropy_model.exact,
            "size": (H, W),
            "latent": tuple(ae.encode(x[:1]).shape[1:]),
            "grid": (h, w),
            "K": coder.n_tokens,
            "mse_plain": errors(plain, x),
            "mse_coded": mse_coded,
            "distinct": [len(grid.unique()) for grid in grids],
            "counts": torch.bincount(grids.flatten().cpu(), minlength=coder.n_tokens),
            "bits": bits.sum(dim=(1, 2)).tolist(),
            "bits_generated": batched(lambda part: bits_at(prior, part), new).sum(dim=(1, 2)).tolist(),
            "seed": seed,
            "seconds": seconds,
        }
    columns = {
        "original": to_uint8(x),
        "plain": to_uint8(plain),
        "coded": to_uint8(coded),
        "tokens": code_colours(grids, coder.n_tokens),
        "bits": heat(bits / math.log2(coder.n_tokens)),
    }
    for name, column in columns.items():
        for i, image in enumerate(column.cpu().numpy()):
            save_picture(image, folder / f"{name}_{i}.png")
    for i, file in enumerate(files):
        with files.replacing(folder / f"compressed_{i}.hwi") as path:
            path.write_bytes(file)
    save_images(generated, folder, 0)
    with files.replacing(folder / "index.html") as path:  # last, so that all it refers to is there
        path.write_text(page("Images, tokens and back", body(facts)), "utf-8")
    print(f"{folder / 'index.html'}: {len(x)} images and {n_generate} generated ones; open it in a browser.")


@contextlib.contextmanager
def timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    """Notes in ``seconds[what]`` how long the block took, and prints it."""
    start = time.perf_counter()
    yield
    seconds[what] = time.perf_counter() - start
    print(f"{what}: {seconds[what]:.1f} s", flush=True)


def batched(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``f`` on x (B,...), some of the batch at a time."""
    return torch.cat([f(part) for part in x.split(BATCH)])


def as_good(codec: Codec, x: Tensor, mse: list[float]) -> list[int]:
    """The bytes of each of (B,H,W,3) images at the codec's lowest quality with no larger mean squared error than ``mse``."""
    return [len(codec.as_good(image, e)[1]) for image, e in zip(to_uint8(x).cpu().numpy(), mse, strict=True)]


def usage(counts: Tensor) -> tuple[int, float, float]:
    """How often each code occurs (K) -> (how many occur at all, entropy in bits, perplexity 2^entropy)."""
    p = counts[counts > 0].double() / counts.sum()
    entropy = -(p * p.log2()).sum().item()
    return len(p), entropy, 2**entropy


def code_colours(grids: Tensor, n_tokens: int) -> Tensor:
    """(...,h,w) codes -> (...,h,w,3) uint8: a code's bits dealt out to red, green and blue, so that each has its own."""
    n_bits = max(1, (n_tokens - 1).bit_length())
    colours = torch.zeros(*grids.shape, 3, dtype=torch.int64, device=grids.device)
    for i in range(n_bits):
        colours[..., i % 3] = 2 * colours[..., i % 3] + grids // 2**i % 2
    top = torch.tensor([max(1, 2 ** len(range(c, n_bits, 3)) - 1) for c in range(3)], device=grids.device)
    return (32 + colours * 223 // top).to(torch.uint8)  # not down to black, which is hard to see on a dark page


# --- the page ------------------------------------------------------------------------------------------------------------


def body(facts: dict) -> str:
    """The page's contents, in HTML; the pictures lie beside it."""
    n, (H, W), (h, w), K = len(facts["files"]), facts["size"], facts["grid"], facts["K"]
    sizes = [Path(file).stat().st_size for file in facts["files"]]
    kind = "JPEG" if all(Path(file).suffix.lower() in (".jpg", ".jpeg") for file in facts["files"]) else "file"
    names = [escape(Path(file).stem.replace("_", " ")) for file in facts["files"]]
    mse_plain, mse_coded, bits = (sum(facts[k]) / n for k in ("mse_plain", "mse_coded", "bits"))
    used, entropy, perplexity = usage(facts["counts"])
    raw, total = h * w * math.log2(K), sum(facts["seconds"].values())
    numbers = cards(
        (f"{psnr(mse_plain):.1f} dB", "auto-encoder's PSNR"),
        (f"{psnr(mse_coded):.1f} dB", "tokenizer's PSNR"),
        (f"{bits:,.0f} bits", f"an image under the prior, {raw:,.0f} without"),
        (f"{sum(facts['bytes']) / n:,.0f} bytes", f"an image as a file, {sum(sizes) / n:,.0f} as {kind}"),
        (f"{used:,} codes", f"in use, of {K:,}"),
        (f"{total:.1f} s", "of computing, all steps together"),
    )
    rows = "\n".join(
        f'<article class="card"><h3>{names[i]}</h3><div class="row">'
        + figure(f"original_{i}", f"{names[i]}, original", "Original", f"{sizes[i]:,} bytes as {kind}", W, H)
        + figure(f"plain_{i}", f"{names[i]}, from the auto-encoder", "Auto-encoder", quality(facts["mse_plain"][i]), W, H)
        + figure(f"coded_{i}", f"{names[i]}, from tokens", "Tokenizer", quality(facts["mse_coded"][i]), W, H)
        + figure(f"tokens_{i}", f"{names[i]}, tokens", "Tokens", f"{h}×{w}, {facts['distinct'][i]} different", w, h, "codes")
        + figure(f"bits_{i}", f"{names[i]}, bits", "Surprise", f"{facts['bits'][i]:,.0f} bits", w, h, "codes")
        + "</div></article>"
        for i in range(n)
    )
    full, ours = ([*lengths, sum(lengths)] for lengths in (sizes, facts["bytes"]))
    columns = {
        "image": [*names, "mean"],
        "original": with_mean(sizes),
        "bits under the prior": with_mean(facts["bits"]),
        "our file": with_mean(facts["bytes"]),
        **{f"{name} as good": with_mean(lengths) for name, lengths in facts["rivals"].items()},
        "smaller than the original": [f"{a / b:.1f}×" for a, b in zip(full, ours, strict=True)],
    }
    sizes_table = table(list(columns), list(zip(*columns.values(), strict=True)), total=True)
    generated = "".join(
        figure(f"generation_{i}", f"generated image {i}", f"generation_{i}.png", f"{b:,.0f} bits", W, H)
        for i, b in enumerate(facts["bits_generated"])
    )
    times = table(
        ["step", "seconds"],
        [[what, f"{s:.2f}"] for what, s in [*facts["seconds"].items(), ("together", total)]],
        total=True,
    )
    per_code = cards(
        (f"{used:,}", f"different codes in {n} images, of {K:,}"),
        (f"{entropy:.2f} bits", f"entropy of a code, {math.log2(K):.4g} at most"),
        (f"{perplexity:,.0f}", "perplexity"),
    )
    return f"""<h1>Images, tokens and back</h1>
<p>Three models at work on {n} images of {W}×{H} pixels. An <b>auto-encoder</b> squeezes an image into a few numbers and
paints it again. A <b>tokenizer</b> does the same with whole numbers alone, its tokens. A <b>prior</b> has learned which
tokens tend to follow which, so it can say how likely an image is, and make up new ones.</p>
{numbers}
<h2>Reconstructions</h2>
<p>Each row begins with an original. The auto-encoder keeps {"×".join(map(str, facts["latent"]))} numbers of it; the
tokenizer keeps {h}×{w} tokens, each one of {K:,} codes. The closer to the original the better: <b>MSE</b> is the mean
squared error of pixels that run from 0 to 1, and <b>PSNR</b> is the same on a scale of decibels, where 3 dB more means half
the error. In the picture of the <b>tokens</b>, every code has a colour of its own. The picture of <b>surprise</b> shows what
each token costs under the prior: dark where it was expected, bright where it took {math.log2(K):.4g} bits or more.</p>
{rows}
<h2>Code usage</h2>
<p>A tokenizer that uses few of its codes wastes the others. <b>Entropy</b> is the bits that a token would cost if only the
codes' frequencies were known; <b>perplexity</b> is how many equally frequent codes would have that entropy. The curve shows
how often each code occurs, the most frequent first, on a logarithmic scale.</p>
{per_code}
<div class="card">{curve(sorted(facts["counts"].tolist(), reverse=True))}</div>
<h2>Files</h2>
<p>The less the tokens of an image surprise the prior, the fewer bits a range coder needs to store them: as many as
−log<sub>2</sub> of their probability. Without the prior, every image would take {raw:,.0f} bits ({raw / 8:,.0f} bytes).
The files compressed_0.hwi and so on lie beside this page, and were decompressed to the same tokens
{"by arithmetic in whole numbers, as they would be on any machine" if facts["exact"] else "on this machine"}. The original
{kind} keeps more of the image; the JPEG and the WebP as good are the smallest whose squared error is no larger than ours
(all sizes in bytes but the second).</p>
{sizes_table}
<h2>Generated images</h2>
<p>These are new: the prior drew their tokens one by one, left to right and top to bottom, each token at random with
the probability that the prior gives it, and the tokenizer painted them (seed {facts["seed"]}).</p>
<div class="grid">{generated}</div>
<h2>Times</h2>
<p>Seconds that each step took, for all {n} images, on the computer that made this page.</p>
{times}"""


def with_mean(numbers: list[float]) -> list[str]:
    return [f"{x:,.0f}" for x in (*numbers, sum(numbers) / len(numbers))]


def quality(mse: float) -> str:
    return f"{psnr(mse):.1f} dB<br>MSE {mse:.4f}"


def curve(values: list[int]) -> str:
    """A filled curve of falling counts, its height their logarithm; the first fills it."""
    heights = [math.log1p(v) / math.log1p(values[0]) for v in values]
    points = "".join(f"V{100 - 100 * y:.1f}H{x}" for x, y in enumerate(heights, 1))
    return (
        f'<svg viewBox="0 0 {len(values)} 100" preserveAspectRatio="none" role="img" aria-label="frequency of each code">'
        f'<path d="M0 100{points}V100Z"/></svg>'
    )


if __name__ == "__main__":
    cli.main("python -m homework.demo", demo)
