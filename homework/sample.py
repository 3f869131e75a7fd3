"""Samples images from a prior over pixels, or completes given ones: ``python -m homework.sample``. See ``--help``."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from homework.core import checkpoint, checks, cli, devices, files
from homework.datasets.image_files import read_image
from homework.datasets.mnist import read_split
from homework.evaluation.pictures import in_rows, on_sheet, remove_stale, save_picture
from homework.priors import sampling
from homework.priors.images import complete_rows, from_shades, to_shades
from homework.priors.pairs import check_prior


def sample(prior: str, n_images: int, output_path: str, *, complete: str | None = None, rows: int = 14,
           image_size: str = "28x28", binarize: float | str | None = None, temperature: float = 1.0,
           top_k: int | None = None, top_p: float | None = None, seed: int = 0, scale: int = 2, data: str = "data",
           device: str = "auto", overwrite: bool = False) -> None:  # fmt: skip
    """Samples images from a prior over pixels: the PNG files sample_0.png, sample_1.png, ..., and all on sheet.png.

    With --complete, N_IMAGES endings of each given image; a row of the sheet then has it, what was kept of it, and these.

    Examples:
        python -m homework.sample PixelCNN 16 digits
        python -m homework.sample PixelCNN 4 completed --complete 0,1,7 --rows 14

    Args:
        prior: checkpoint of a prior over pixels, such as PixelCNN.
        n_images: how many to sample.
        output_path: the folder; made if it is not there. Files of the same names are replaced.
        complete: images whose first rows are kept: files, or the numbers of digits in MNIST's test set, with commas.
        rows: how many rows of pixels to keep.
        image_size: HEIGHTxWIDTH in pixels; --complete resizes and crops its images to it.
        binarize: how bright ink is in --complete, at least 0 and below 1; by default as the prior was trained.
        temperature: divides the logits: below 1 is safer, above 1 wilder, 0 always takes the most probable token.
        top_k: keep only the so many most probable tokens at each position; all by default.
        top_p: keep only the most probable tokens that make up this probability, in (0, 1]; all by default.
        seed: of the draws; the same seed and options give the same images.
        scale: how many times larger the sheet shows each pixel.
        data: the folder that holds mnist/, for numbers in --complete.
        device: auto, cpu, cuda or mps.
        overwrite: remove what else an earlier run wrote into the folder; other files stay.
    """
    checks.integer(1, N_IMAGES=n_images)
    cli.at_least(1, scale=scale)
    cli.at_least(0, rows=rows)
    cli.check_seed(seed)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    sampling.check(**options)
    device = devices.pick_device(device)
    model = check_prior(prior, checkpoint.load(prior)).to(device)
    if not 2 <= model.n_tokens <= 256 or "tokenizer" in model.meta or model.stored_codes() is not None:
        raise ValueError(f"The {model.n_tokens} tokens of {prior} are not shades of grey; for a prior over a tokenizer's "
                         f"grids there is python -m homework.generation.")  # fmt: skip
    binarize = model.meta.get("binarize", 0) if binarize is None else binarize
    H, W = cli.parse_image_size(image_size)
    folder, options["generator"] = Path(output_path), torch.Generator().manual_seed(seed)
    files.check_writable(folder / "sheet.png")
    if complete is None:
        new = model.generate(n_images, H, W, device, **options)
        sheet = in_rows(new)
    else:
        if rows > H:
            raise ValueError(f"--rows is {rows}, but must be from 0 to {H}, the rows of a {H}x{W} image.")
        names = [name.strip() for name in complete.split(",")]
        if not any(names):
            raise ValueError("--complete names no image; give it a file, or the number of a digit.")
        given = [to_shades(read_grey(name, (H, W), data), model.n_tokens, binarize) for name in names]
        sheet = complete_rows(model, torch.stack(given), rows, n_images, **options)
        new = torch.cat([row[2:] for row in sheet])
    written = {f"sample_{i}.png": picture for i, picture in enumerate(from_shades(new, model.n_tokens))}
    for name, picture in written.items():
        save_picture(picture, folder / name)
    save_picture(on_sheet([from_shades(row, model.n_tokens) for row in sheet], scale), folder / "sheet.png")
    remove_stale(folder, r"sample_\d+\.png", written, overwrite)
    print(f"{folder / 'sheet.png'}: {checks.count(len(new), 'image')}, each also in a file of its own")


def read_grey(name: str, size: tuple[int, int], data: str) -> np.ndarray:
    """(H,W) uint8: the image ``name``, a file or the number of a digit in MNIST's test set."""
    if not name.isdecimal():
        return read_image(name, size).mean(axis=2).round().astype(np.uint8)
    digits = read_split("test", data)
    if int(name) >= len(digits):
        raise ValueError(f"--complete is {name}, but MNIST's test digits have the numbers 0 to {len(digits) - 1}.")
    return np.asarray(Image.fromarray(digits[int(name)]).resize(size[::-1]))


if __name__ == "__main__":
    cli.main("python -m homework.sample", sample)
