"""A cascade scale by scale: what each codebook keeps of images, and what each stage's tokens cost: ``python -m
bench.cascade``. Prints tables in Markdown; the command that made the documents'."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from homework.codec.cascade_compressor import CascadeCompressor
from homework.core import cli
from homework.datasets.images import ImageDataset, to_uint8
from homework.evaluation.metrics import errors, psnr
from homework.evaluation.pictures import on_sheet, save_picture
from homework.priors.base import Prior
from homework.priors.cascade import Cascade
from homework.priors.pairs import SHIPPED, load_cascade, load_pair, read_cascade
from homework.tokenizers.base import Tokenizer, usage
from homework.tokenizers.som import SOM
from homework.tokenizers.subsampled import SubsampledTokenizer

BATCH, SAMPLES = 16, 6
HERE = Path(__file__).parent / "figures"


def table(
    stages: list[dict] | None = None,
    other: str | None = None,
    plain: str | None = None,
    data: str = "data/valid",
    image_size: str | None = None,
    limit: int | None = None,
    coded: int = 64,
    figures: bool = False,
) -> None:
    """Prints the mean squared error, the codes used and the bits an image at every scale; and of all together the bits, and
    the error of the finest picture, of each cascade and of a plain prior.

    Args:
        stages: best given as --config FILE, see ``python -m homework.generation cascade --help``; by default the pretrained
            cascade.
        other: the JSON file of another cascade to compare with, as one of the other kind, residual or independent.
        plain: a prior over the finest grids alone, to compare with; or TOKENIZER,PRIOR, over the grids of another codebook.
        data: a folder of images.
        image_size: HEIGHTxWIDTH, to which they are scaled; by default the size that the cascade knows.
        limit: how many of them to use at most, the first ones by name; all by default.
        coded: how many of these to code to bytes, and back again.
        figures: also draws bench/figures/cascade.png and codebook.png.
    """
    cli.at_least(1, coded=coded)
    if limit is not None:
        cli.at_least(1, limit=limit)
    stages = read_cascade(SHIPPED) if stages is None else stages
    cascade = Cascade(stages)
    images = ImageDataset(str(data), cli.parse_image_size(image_size) or cascade.image_size)
    n = min(len(images), limit or len(images))
    names = str(plain).split(",") if plain else []
    pair = load_pair(*[str(stages[-1]["hr_codebook_path"]), *names][-2:], cascade.device) if names else None
    if figures:
        draw(cascade, images, pair)
    rows = [by_scale(cascade, images, n, min(coded, n))]
    if other:
        rows.append(by_scale(load_cascade(other), images, n, min(coded, n)))
    if pair:
        rows.append(("plain prior", *plain_figures(*pair, images, n)))
    print("\n| | bits an image | MSE | PSNR, dB |\n" + 4 * "|---" + "|")
    for kind, total, error in rows:
        print(f"| {kind} | {total:,.0f} | {error:.5f} | {psnr(error):.2f} |")


def by_scale(cascade: Cascade, images: ImageDataset, n: int, coded: int) -> tuple[str, float, float]:
    """Prints the figures of each scale, over the first n images. Returns the kind of the cascade, the bits of all its grids
    together, and the mean squared error of the finest picture."""
    grids, mse = encode_all(cascade, images, n)
    batches = [[grid[i : i + BATCH] for grid in grids] for i in range(0, n, BATCH)]
    bits = sum(len(batch[0]) * torch.tensor(cascade.bits(batch)) for batch in batches) / n
    n_bytes = sum(coded_bytes(cascade, [grid[i : min(i + BATCH, coded)] for grid in grids]) for i in range(0, coded, BATCH))
    subsampled = isinstance(cascade.codebooks[-2], SubsampledTokenizer)
    kind = "residual" if cascade.stages[-1].context_dim else "subsampled" if subsampled else "independent"
    head = "| grid | codes | MSE | PSNR, dB | used | bits by frequency | bits, given the grids before |"
    print(f"\n{kind} cascade:\n\n{head}\n" + 7 * "|---" + "|")
    for k, (book, (h, w)) in enumerate(zip(cascade.codebooks, cascade.sizes, strict=True)):
        use = usage(grids[k], book.n_tokens)
        rate = f"{h * w * float(use['entropy']):,.0f} of {h * w * math.log2(book.n_tokens):,.0f}"
        cells = f"{h}x{w}", book.n_tokens, f"{mse[k]:.5f}", f"{psnr(mse[k]):.2f}", f"{float(use['usage']):.1%}"
        print("|", " | ".join(map(str, (*cells, rate, f"{bits[k]:,.1f}"))), "|")
    mean = f"{8 * n_bytes / coded:,.0f}"
    print(f"\nAll together {bits.sum():,.0f} bits an image. {coded} images took {mean} bits each, and came back.")
    return f"{kind} cascade", float(bits.sum()), mse[-1]


@torch.no_grad()
def plain_figures(tokenizer: Tokenizer, prior: Prior, images: ImageDataset, n: int) -> tuple[float, float]:
    """Bits and mean squared error of the first n images by a tokenizer and a prior over its grids."""
    bits = error = 0.0
    for indices in torch.arange(n).split(BATCH):
        x = images.batch(indices)
        grid = tokenizer.encode_index(x)
        bits += float(prior.bits(grid).sum())
        error += sum(errors(tokenizer.decode_index(grid)[:, : x.shape[1], : x.shape[2]], x))
    return bits / n, error / n


def encode_all(cascade: Cascade, images: ImageDataset, n: int) -> tuple[list[Tensor], list[float]]:
    """The first n images' grids (n,h,w) of every codebook, and the mean squared error of what each keeps of them."""
    grids, error = [], [0.0] * len(cascade.codebooks)
    for indices in tqdm(torch.arange(n).split(BATCH), desc="measuring", leave=False):
        x = images.batch(indices)
        grids.append(cascade.encode(x))
        for k, x_hat in enumerate(cascade.decode(grids[-1])):
            error[k] += sum(errors(x_hat[:, : x.shape[1], : x.shape[2]], x))
    return [torch.cat(parts) for parts in zip(*grids, strict=True)], [e / n for e in error]


def coded_bytes(cascade: Cascade, grids: list[Tensor]) -> int:
    """The bytes of all images' payloads. AssertionError if they do not decode to the same grids."""
    coder, rows = CascadeCompressor(cascade), torch.cat([grid.flatten(1) for grid in grids], dim=1)  # (B,h,w) -> (B,N)
    payloads = coder.encode(rows[:, None].numpy())
    if not np.array_equal(coder.decode(payloads, (1, rows.shape[1]), [""] * len(rows))[:, 0], rows):
        raise AssertionError("the grids did not come back")
    return sum(map(len, payloads))


@torch.no_grad()
def draw(cascade: Cascade, images: ImageDataset, plain: tuple[Tokenizer, Prior] | None) -> None:
    """cascade.png: frames, and what each codebook keeps of them; then, a row each, samples from the condition to the finest
    grid, and after them one of the plain prior. codebook.png: the units of the finest codebook that is a SOM, if there
    is one, and its U-matrix."""
    x = images.batch(torch.linspace(0, len(images) - 1, 3).long())
    rows = list(zip(*(to_uint8(part).numpy() for part in (*cascade.decode(cascade.encode(x)), x)), strict=True))
    draws = torch.Generator().manual_seed(69)
    condition = torch.randint(cascade.codebooks[0].n_tokens, (SAMPLES, *cascade.sizes[0]), generator=draws)
    parts = cascade.decode(cascade.generate(condition, draws))
    if plain:
        tokenizer, prior = plain
        parts.append(tokenizer.decode_index(prior.generate(SAMPLES, *cascade.sizes[-1], generator=draws)))
    else:
        parts.append(torch.full_like(parts[0], 0.5))
    rows += zip(*(to_uint8(part).numpy() for part in parts), strict=True)
    save_picture(on_sheet(rows), HERE / "cascade.png")
    if (book := next((book for book in reversed(cascade.codebooks) if isinstance(book, SOM)), None)) is None:
        return
    units = book.codebook_picture()
    distances = F.interpolate(book.u_matrix_picture()[None], units.shape[1:])[0]  # (3,rows,columns) -> (3,H,W)
    pictures = [to_uint8(part.permute(1, 2, 0) - 0.5).numpy() for part in (units, distances)]
    save_picture(on_sheet([pictures]), HERE / "codebook.png")


if __name__ == "__main__":
    cli.main("python -m bench.cascade", table)
