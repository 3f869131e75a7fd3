"""A cascade scale by scale: what each codebook keeps of images, and what each stage's tokens cost:
``python -m bench.cascade --config cascade.json``. Prints tables in Markdown; the command behind the README's.
"""

import math

import torch
from tqdm import tqdm

from homework import checkpoint, cli
from homework.ae import usage
from homework.coarse_to_fine import Cascade
from homework.data import ImageDataset
from homework.metrics import bits_at, errors, psnr

BATCH = 16


def table(
    stages: list[dict],
    plain: str | None = None,
    data: str = "data/valid",
    image_size: str = "80x120",
    limit: int | None = None,
    coded: int = 64,
) -> None:
    """Prints the mean squared error, the codes used and the bits an image at every scale, and the bits of all together.

    Args:
        stages: see ``python -m homework.generation cascade --help``.
        plain: a prior over the finest grids alone, to compare with.
        data: a folder of images.
        image_size: HEIGHTxWIDTH, to which they are scaled.
        limit: how many of them to use at most, the first ones by name; all by default.
        coded: how many of these to code to bytes, and back again.
    """
    cascade, images = Cascade(stages), ImageDataset(str(data), cli.parse_size(image_size))
    n = min(len(images), limit or len(images))
    prior = checkpoint.load(plain) if plain else None
    error, seen = [0.0] * len(cascade.codebooks), [[] for _ in cascade.codebooks]
    bits, plain_bits, payloads, coded = torch.zeros(len(cascade.codebooks)), 0.0, [], min(coded, n)
    for places in tqdm(torch.arange(n).split(BATCH), leave=False):
        x = images.batch(places)
        grids = cascade.encode(x)
        for k, x_hat in enumerate(cascade.decode(grids)):
            error[k] += float(sum(errors(x_hat[:, : x.shape[1], : x.shape[2]], x)))
            seen[k].append(grids[k].flatten())
        bits += len(x) * torch.tensor(cascade.bits(grids))
        if prior:
            with torch.no_grad():
                plain_bits += bits_at(prior, grids[-1]).sum().item()
        if len(payloads) < coded:
            some = [grid[: coded - len(payloads)] for grid in grids]
            new = cascade.compress(some)
            if not all(torch.equal(a, b) for a, b in zip(cascade.decompress(new), some, strict=True)):
                raise AssertionError("the grids did not come back")
            payloads += new
    print("| grid | codes | MSE | PSNR, dB | used | bits by frequency | bits, given the grid before |\n" + 7 * "|---" + "|")
    for k, (book, (h, w)) in enumerate(zip(cascade.codebooks, cascade.sizes, strict=True)):
        use = usage(torch.cat(seen[k]), book.n_tokens)
        rate = f"{h * w * float(use['entropy']):,.0f} of {h * w * math.log2(book.n_tokens):,.0f}"
        cells = f"{h}x{w}", book.n_tokens, f"{error[k] / n:.5f}", f"{psnr(error[k] / n):.2f}", f"{float(use['usage']):.1%}"
        print("|", " | ".join(map(str, (*cells, rate, f"{bits[k] / n:,.1f}"))), "|")
    alone = f"; the finest grid alone, under {plain}: {plain_bits / n:,.0f}" if prior else ""
    mean = f"{8 * sum(map(len, payloads)) / coded:,.0f}"
    print(f"\nAll together {bits.sum() / n:,.0f} bits an image{alone}. {coded} images took {mean} bits each, and came back.")


if __name__ == "__main__":
    cli.main("python -m bench.cascade", table)
