"""Samples new images, or the rest of an image: ``python -m homework.generation``. See ``--help``."""

import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from homework.core import checks, cli, devices
from homework.datasets.image_files import read_image
from homework.datasets.images import to_float, to_uint8
from homework.evaluation.generated import decode, save_images
from homework.evaluation.report import on_sheet, save_picture
from homework.priors import sampling
from homework.priors.pairs import load_pair

FRAME = (100, 150)  # pixels, height and width, of images whose prior is for no size of its own


def generate(
    tokenizer: str,
    prior: str,
    n_images: int,
    output_path: str,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    batch_size: int = 16,
    complete: str | None = None,
    rows: int = 10,
    image_size: str | None = None,
    device: str = "auto",
    num_beam: int = 1,
    beam_width: int = 1,
    beams: int = 1,
) -> None:
    """Samples images and writes them as generation_0.png, generation_1.png, ... into a folder.

    (For a cascade of transformers, see ``python -m homework.generation cascade --help``.)

    Args:
        tokenizer: checkpoint of a tokenizer.
        prior: checkpoint of a prior over that tokenizer's grids; or "uniform", to draw every token independently, all
            codes alike, to which temperature, top_k and top_p make no difference.
        n_images: how many to sample.
        output_path: the folder; made if it is not there.
        seed: of the draws; the same seed, batch size and options give the same images.
        temperature: divides the logits: below 1 is safer, above 1 wilder, 0 always takes the likeliest token.
        top_k: keep only so many likeliest tokens at each place; all by default.
        top_p: keep only the likeliest tokens that make up this probability, in (0, 1]; all by default.
        batch_size: images sampled at the same time.
        complete: an image whose first token rows are kept, to sample the rest.
        rows: how many token rows of it to keep.
        image_size: HEIGHTxWIDTH of the images in pixels, by default those that the prior was trained for, in whole patches;
            --complete resizes and crops its image to it.
        device: auto, cpu, cuda or mps.
        num_beam: draw so many continuations of each image, keep the most probable one, and go on from there.
        beam_width: how many tokens such a continuation has.
        beams: search for a probable image instead of drawing one: keep so many partial ones at each place. Without drawing,
            all images of one prior are the same but for --complete; not with temperature, top_k, top_p and num_beam.
    """
    tokenizer, prior, output_path = map(str, (tokenizer, prior, output_path))  # Fire takes 7 for a number
    complete = None if complete is None else str(complete)
    checks.integer(1, N_IMAGES=n_images)
    cli.at_least(1, batch_size=batch_size)
    cli.check_seed(seed)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    options |= {"num_beam": num_beam, "beam_width": beam_width, "beams": beams}
    sampling.check(**options)
    device = devices.pick_device(device)
    coder, prior = load_pair(tokenizer, prior, device)
    sides, grid = coder.patch_shape, prior.grid_size
    whole = (grid[0] * sides[0], grid[1] * sides[1]) if grid else FRAME
    H, W = cli.parse_image_size(image_size) or whole
    h, w = (-(-side // patch) for side, patch in zip((H, W), sides, strict=True))
    kept = None
    if complete is not None:
        if isinstance(rows, bool) or not isinstance(rows, int) or not 0 <= rows <= h:
            raise ValueError(f"--rows is {rows!r}, but must be from 0 to {h}, the token rows of a {H}x{W} image.")
        x = to_float(torch.from_numpy(np.array(read_image(complete, (H, W)))).to(device))
        with torch.inference_mode():
            kept = coder.encode_index(x)[:rows]
    Path(output_path).mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    with tqdm(total=n_images, unit="img") as bar:
        for first in range(0, n_images, batch_size):
            n = min(batch_size, n_images - first)
            prefix = None if kept is None else kept.expand(n, -1, -1)
            grids = prior.generate(n, h, w, device, generator=generator, prefix=prefix, **options)
            save_images(decode(coder, grids)[:, :H, :W], Path(output_path), first)
            bar.update(n)
    names = "generation_0.png" + f" to generation_{n_images - 1}.png" * (n_images > 1)
    print(f"{output_path}: {names}, of {W}x{H} pixels (width x height)")


def cascade(
    stages: list[dict],
    num_images: int = 5,
    out_dir: str = "generated",
    seed: int = 69,
    condition: int | str | None = None,
    batch_size: int = 16,
    scale: int = 1,
    device: str = "auto",
) -> None:
    """Samples images from coarse to fine: i_condition.png, i_stage0.png, i_stage1.png and so on, and all on sheet.png.

    Args:
        stages: best given in a file by --config, as an object with the one entry "stages", a list from coarse to fine. Each
            has model_path, lr_codebook_path and hr_codebook_path, and may have temperature, top_k, top_p, num_beam,
            beam_width and beams.
        num_images: how many to sample.
        out_dir: the folder; made if it is not there.
        seed: of the draws; the same seed, batch size and options give the same images.
        condition: the code of the whole image that all start from: a number, or an image that it is taken from; by default
            each image draws its own.
        batch_size: images sampled at the same time.
        scale: how many times larger the sheet shows each pixel.
        device: auto, cpu, cuda or mps.
    """
    from homework.priors.cascade import Cascade  # here, because others who import this file do without its models

    cli.at_least(1, num_images=num_images, batch_size=batch_size, scale=scale)
    cli.check_seed(seed)
    device = devices.pick_device(device)
    whole, folder = Cascade(stages, device), Path(str(out_dir))
    K, size = whole.codebooks[0].n_tokens, whole.sizes[0]
    generator = torch.Generator().manual_seed(seed)
    if condition is None:
        given = torch.randint(K, (num_images, *size), generator=generator)
    elif type(condition) is int:
        if not 0 <= condition < K:
            raise ValueError(f"--condition is {condition}, but the codebook has the codes 0 to {K - 1}.")
        given = torch.full((num_images, *size), condition)
    elif not Path(str(condition)).is_file():
        raise ValueError(f"--condition is {condition}, but must be a whole number, the code to start from, or an image.")
    else:
        H, W = whole.codebooks[0].decode_index(torch.zeros(size, dtype=torch.int64, device=device)).shape[:2]
        x = to_float(torch.from_numpy(np.array(read_image(str(condition), (H, W)))))
        given = whole.encode(x[None])[0].cpu().expand(num_images, -1, -1)
    rows = []
    with tqdm(total=num_images, unit="img") as bar:
        for some in given.split(batch_size):
            grids = whole.generate(some, generator)
            rows += zip(*(to_uint8(x).cpu().numpy() for x in whole.decode(grids)), strict=True)
            bar.update(len(some))
    for i, row in enumerate(rows):
        for k, picture in enumerate(row):
            save_picture(picture, folder / f"{i}_{f'stage{k - 1}' if k else 'condition'}.png")
    save_picture(on_sheet(rows, scale), folder / "sheet.png")
    print(f"{folder / 'sheet.png'}: {num_images} images, a row each: the condition, and what each stage made of it")


if __name__ == "__main__":
    if sys.argv[1:2] == ["cascade"]:
        cli.main("python -m homework.generation", {"cascade": cascade})
    else:
        cli.main("python -m homework.generation", generate)
