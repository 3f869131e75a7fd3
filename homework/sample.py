"""Samples pictures from a prior over pixels, or completes given ones: ``python -m homework.sample``. See ``--help``."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from homework.core import checkpoint, checks, cli, devices
from homework.datasets.image_files import read_image
from homework.datasets.mnist import binary, read_split
from homework.evaluation.report import on_sheet, save_picture
from homework.priors import sampling
from homework.priors.pairs import check_prior

UNKNOWN = 128  # the shade of what a completion has to fill in


def sample(
    prior: str,
    n_images: int,
    output_path: str,
    complete: str | int | tuple | None = None,
    rows: int = 14,
    image_size: str = "28x28",
    binarize: float | str | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    scale: int = 2,
    data: str = "data",
    device: str = "auto",
) -> None:
    """Samples pictures of a prior whose tokens are shades of grey, as PNG files sample_0.png, ..., and all on one sheet.png.

    With --complete, N_IMAGES endings of each given picture are sampled; the sheet then shows, a row each, the picture, what
    was kept of it, and the endings.

    Args:
        prior: checkpoint of a prior over pixels, such as PixelCNN.
        n_images: how many to sample.
        output_path: the folder; made if it is not there.
        complete: a picture whose first rows are kept: an image file, or the number of a digit in MNIST's test set; several
            with commas between them.
        rows: how many rows of it to keep.
        image_size: HEIGHTxWIDTH in pixels; --complete resizes and crops its pictures to it.
        binarize: how bright a pixel of --complete must be to count as ink, at least 0 and below 1; by default as the prior
            was trained.
        temperature: divides the logits: below 1 is safer, above 1 wilder, 0 always takes the likeliest token.
        top_k: keep only so many likeliest tokens at each place; all by default.
        top_p: keep only the likeliest tokens that make up this probability, in (0, 1]; all by default.
        seed: of the draws; the same seed and options give the same pictures.
        scale: how many times larger the sheet shows each pixel.
        data: the folder in which mnist/ lies, for numbers in --complete.
        device: auto, cpu, cuda or mps.
    """
    checks.integer(1, N_IMAGES=n_images)
    cli.at_least(1, scale=scale)
    cli.at_least(0, rows=rows)
    cli.check_seed(seed)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    sampling.check(**options)
    device = devices.pick_device(device)
    model = check_prior(prior, checkpoint.load(str(prior))).to(device)
    if not 2 <= model.n_tokens <= 256 or "tokenizer" in model.meta or model.stored_codes() is not None:
        raise ValueError(f"The {model.n_tokens} tokens of {prior} are no shades of grey; for a prior over a tokenizer's "
                         f"grids there is python -m homework.generation.")  # fmt: skip
    if binarize is None:
        binarize = model.meta.get("binarize", 0)
    H, W = cli.parse_image_size(image_size)
    draws, folder = torch.Generator().manual_seed(seed), Path(str(output_path))
    if complete is None:
        new = model.generate(n_images, H, W, device, generator=draws, **options)
        sheet = list(new.split(max(1, round(n_images**0.5))))
    else:
        if rows > H:
            raise ValueError(f"--rows is {rows}, but must be from 0 to {H}, the rows of a {H}x{W} picture.")
        given = complete if isinstance(complete, tuple | list) else str(complete).split(",")
        if not any(str(name) for name in given):
            raise ValueError("--complete names no picture; give it an image file, or the number of a digit.")
        whole = torch.stack([tokens(str(name), (H, W), model.n_tokens, binarize, str(data)) for name in given])
        prefix = whole[:, :rows].repeat_interleave(n_images, dim=0).to(device)  # (G,R,W) -> (G*n,R,W)
        new = model.generate(len(prefix), H, W, device, generator=draws, prefix=prefix, **options)
        kept = whole.clone()
        kept[:, rows:] = -1
        sheet = [torch.cat((a[None], b[None], c)) for a, b, c in zip(whole, kept, new.cpu().split(n_images), strict=True)]
    for i, grid in enumerate(new.cpu()):
        save_picture(shades(grid, model.n_tokens), folder / f"sample_{i}.png")
    rows = [[shades(grid, model.n_tokens) for grid in row.cpu()] for row in sheet]
    save_picture(on_sheet(rows, scale), folder / "sheet.png")
    print(f"{folder / 'sheet.png'}: {len(new)} pictures, each also in a file of its own")


def tokens(name: str, size: tuple[int, int], K: int, binarize: float | str, data: str) -> Tensor:
    """(H,W) int64 in [0,K): the picture ``name``, a file or the number of a digit in MNIST's test set."""
    if name.strip().isdecimal():
        digits = read_split("test", data)
        if int(name) >= len(digits):
            raise ValueError(f"--complete is {name}, but MNIST's test digits have the numbers 0 to {len(digits) - 1}.")
        grey = np.asarray(Image.fromarray(digits[int(name)]).resize(size[::-1]))
    else:
        grey = read_image(name.strip(), size).mean(axis=2).round().astype(np.uint8)
    if K == 2:
        grid = binary(grey, binarize)
    else:
        grid = (grey.astype(np.int64) * (K - 1) + 127) // 255  # the nearest of K shades
    return torch.from_numpy(grid.astype(np.int64))


def shades(grid: Tensor, K: int) -> np.ndarray:
    """(H,W) int64 tokens in [0,K), from black to white, or -1 for unknown ones -> (H,W) uint8."""
    return torch.where(grid < 0, UNKNOWN, grid * 255 // (K - 1)).to(torch.uint8).numpy()


if __name__ == "__main__":
    cli.main("python -m homework.sample", sample)
