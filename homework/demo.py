"""Shows on one page what the models do: ``python -m homework.demo`` writes demo/index.html. See ``--help``."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from homework import checkpoint, cli
from homework.data import ImageDataset, to_uint8
from homework.generation import decode, load_pair, save_images
from homework.images import image_paths

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
    """Reconstructs images, tokenizes them, counts their bits, generates new ones, and writes a page about it.

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
    for name, value, low in (("n_generate", n_generate, 1), ("seed", seed, 0), ("limit", limit, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"--{name} is {value!r}, but must be a whole number of at least {low}.")
    shipped = [checkpoint.PACKAGE / f"{m}.pth" for m in ("PatchAutoEncoder", "BSQPatchAutoEncoder", "AutoregressiveModel")]
    autoencoder, tokenizer, autoregressive = (
        str(path or default) for path, default in zip((autoencoder, tokenizer, autoregressive), shipped, strict=True)
    )
    folder, device, seconds = Path(str(out)), cli.pick_device(device), {}
    with torch.inference_mode():
        with timed(seconds, "load models and images"):
            coder, prior = load_pair(tokenizer, autoregressive, device)
            ae = checkpoint.load(autoencoder).to(device)
            if ae.data != "images":
                raise ValueError(f"{autoencoder} holds a {type(ae).__name__}, but an auto-encoder is needed here.")
            data = ImageDataset(image_paths(str(images))[:limit], cli.parse_size(image_size))
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
        with timed(seconds, f"{n_generate} generated images"):
            draws, (h, w) = torch.Generator().manual_seed(seed), grids.shape[1:]
            sizes = map(len, torch.arange(n_generate).split(BATCH))
            new = torch.cat([prior.generate(B, h, w, device, generator=draws).to(device) for B in sizes])
            generated = decode(coder, new)[:, :H, :W]
        facts = {
            "files": data.names,
            "size": (H, W),
            "latent": tuple(ae.encode(x[:1]).shape[1:]),
            "grid": (h, w),
            "K": coder.n_tokens,
            "mse_plain": errors(plain, x),
            "mse_coded": errors(coded, x),
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
            with checkpoint.replacing(folder / f"{name}_{i}.png") as path:
                Image.fromarray(image).save(path, format="PNG")
    save_images(generated, folder, 0)
    with checkpoint.replacing(folder / "index.html") as path:  # last, so that all it refers to is there
        path.write_text(page(facts), "utf-8")
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


def bits_at(prior: nn.Module, grids: Tensor) -> Tensor:
    """What every token costs: -log2 p(token | those before it), in bits; (B,h,w) int64 -> (B,h,w)."""
    logits, _ = prior(grids)
    return F.cross_entropy(logits.permute(0, 3, 1, 2).float(), grids, reduction="none") / math.log(2)


def errors(x_hat: Tensor, x: Tensor) -> list[float]:
    """Mean squared error of each image (B,H,W,3)."""
    return (x_hat - x).square().mean(dim=(1, 2, 3)).tolist()


def psnr(mse: float) -> float:
    """Mean squared error -> dB, for a peak of 1."""
    return -10 * math.log10(mse) if mse else math.inf


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


def heat(x: Tensor) -> Tensor:
    """(...) from 0 to 1 (clamped to it) -> (...,3) uint8: dark blue, red, light yellow."""
    ramp = np.array([[20, 16, 64], [190, 50, 95], [255, 240, 160]])
    x = x.float().cpu().numpy()
    return torch.from_numpy(np.stack([np.interp(x, [0, 0.5, 1], c) for c in ramp.T], axis=-1).astype(np.uint8))


# --- the page ------------------------------------------------------------------------------------------------------------

CSS = """
:root { color-scheme: light dark;
  --page: #f6f5f1; --card: #fff; --ink: #22242a; --soft: #666a73; --line: #e2dfd6; --accent: #2f6f9f; }
@media (prefers-color-scheme: dark) { :root {
  --page: #15171b; --card: #1e2126; --ink: #e8e6e1; --soft: #a0a4ad; --line: #32363d; --accent: #7db8e2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.15; margin: 0 0 .6rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .3rem; }
h3 { font-size: .95rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }
p { max-width: 46rem; margin: 0 0 1.1rem; color: var(--soft); }
p b { color: var(--ink); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; margin: 0 0 1rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.numbers .card { margin: 0; font-size: .85rem; color: var(--soft); line-height: 1.35; }
.numbers b { display: block; font-size: 1.5rem; color: var(--accent); line-height: 1.3; font-variant-numeric: tabular-nums; }
.row, .grid { display: grid; gap: .75rem; }
.row { grid-template-columns: repeat(5, 1fr); }
.grid { grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .8rem; line-height: 1.35; color: var(--soft); margin-top: .35rem; }
figcaption b { display: block; color: var(--ink); }
img { display: block; width: 100%; height: auto; border-radius: 5px; }
img.codes { image-rendering: pixelated; }
.scroll { overflow-x: auto; padding: .5rem 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .5rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; padding-left: 0; }
tr:last-child td { border-bottom: 0; font-weight: 600; }
svg { display: block; width: 100%; height: 7rem; }
svg path { fill: var(--accent); }
@media (max-width: 44rem) {
  main { padding: 1.5rem .9rem 3rem; }
  .row { grid-template-columns: 1fr 1fr; }
  .row figure:first-child { grid-column: 1 / -1; }
  .grid { grid-template-columns: 1fr 1fr; }
  .scroll { padding: .25rem .6rem; }
  th, td { padding: .35rem .3rem; }
}
"""


def page(facts: dict) -> str:
    """The HTML page; the pictures lie beside it."""
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
    sizes_table = table(
        ["image", "bits", "bytes", f"{kind} bytes", "ratio"],
        [
            [name, f"{b:,.0f}", f"{b / 8:,.0f}", f"{size:,.0f}", f"{8 * size / b:.1f}"]
            for name, b, size in zip([*names, "mean"], [*facts["bits"], bits], [*sizes, sum(sizes) / n], strict=True)
        ],
    )
    generated = "".join(
        figure(f"generation_{i}", f"generated image {i}", f"generation_{i}.png", f"{b:,.0f} bits", W, H)
        for i, b in enumerate(facts["bits_generated"])
    )
    times = table(
        ["step", "seconds"],
        [[what, f"{s:.2f}"] for what, s in [*facts["seconds"].items(), ("together", total)]],
    )
    per_code = cards(
        (f"{used:,}", f"different codes in {n} images, of {K:,}"),
        (f"{entropy:.2f} bits", f"entropy of a code, {math.log2(K):.4g} at most"),
        (f"{perplexity:,.0f}", "perplexity"),
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Images, tokens and back</title>
<style>{CSS}</style>
</head>
<body>
<main>
<h1>Images, tokens and back</h1>
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
<h2>Bits under the prior</h2>
<p>The less the tokens of an image surprise the prior, the fewer bits an arithmetic coder needs to store them: as many as
−log<sub>2</sub> of their probability. Without the prior, every image would take {raw:,.0f} bits ({raw / 8:,.0f} bytes).
The {kind} stands beside it for scale, but keeps more of the image than the tokens do.</p>
<div class="card scroll">{sizes_table}</div>
<h2>Generated images</h2>
<p>These are new: the prior drew their tokens one by one, left to right and top to bottom, each token at random with
the probability that the prior gives it, and the tokenizer painted them (seed {facts["seed"]}).</p>
<div class="grid">{generated}</div>
<h2>Times</h2>
<p>Seconds that each step took, for all {n} images, on the computer that made this page.</p>
<div class="card scroll">{times}</div>
</main>
</body>
</html>
"""


def quality(mse: float) -> str:
    return f"{psnr(mse):.1f} dB<br>MSE {mse:.4f}"


def cards(*items: tuple[str, str]) -> str:
    return '<div class="numbers">' + "".join(f'<div class="card"><b>{a}</b>{b}</div>' for a, b in items) + "</div>"


def figure(file: str, alt: str, title: str, text: str, width: int, height: int, kind: str = "pixels") -> str:
    return (
        f'<figure><img class="{kind}" src="{file}.png" alt="{alt}" width="{width}" height="{height}">'
        f"<figcaption><b>{title}</b>{text}</figcaption></figure>"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{cell}</th>" for cell in head)
    return f"<table><thead><tr>{head}</tr></thead><tbody>" + "".join(f"<tr>{x}</tr>" for x in lines) + "</tbody></table>"


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
