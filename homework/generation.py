"""Samples new images, or the rest of an image: ``python -m homework.generation``. See ``--help``."""

import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from homework.codec.dial import QUALITY
from homework.codec.loading import detail_at
from homework.core import checks, cli, devices, files
from homework.core.model import ordinary_tensors
from homework.core.processes import check_alone, own_share
from homework.datasets.image_files import batches_of, read_image
from homework.datasets.images import to_uint8
from homework.evaluation.pictures import float_image, in_rows, on_sheet, remove_stale, save_picture
from homework.priors import sampling
from homework.priors.cascade import Cascade
from homework.priors.images import generate_images, trained_size
from homework.priors.pairs import SHIPPED, load_cascade, load_pair
from homework.tokenizers.base import Tokenizer
from homework.training import distributed

ON_SHEET = 100  # images on sheet.png, at most


def generate(tokenizer: str, prior: str, n_images: int, output_path: str, *, seed: int = 0, temperature: float = 1.0,
             top_k: int | None = None, top_p: float | None = None, batch_size: int = 16, complete: str | None = None,
             rows: int = 10, image_size: str | None = None, device: str = "auto", num_beam: int = 1, beam_width: int = 1,
             beams: int = 1, candidates: int = 1, quality: float = QUALITY, overwrite: bool = False) -> None:  # fmt: skip
    """Samples images: generation_0.png, generation_1.png, ... in a folder, and the first 100 on sheet.png.

    Under torchrun, batches are shared out among the processes. (For a cascade of transformers, see
    ``python -m homework.generation cascade --help``.)

    Examples:
        python -m homework.generation BSQPatchAutoEncoder AutoregressiveModel 8 generated --temperature 0.9
        python -m homework.generation BSQPatchAutoEncoder AutoregressiveModel 4 rest --complete data/sample/temple.jpg

    Args:
        tokenizer: checkpoint or name of a tokenizer.
        prior: checkpoint or name of a prior over its grids; or "uniform", to draw every token independently, all
            codes alike, whatever temperature, top_k and top_p are.
        n_images: how many to sample.
        output_path: the folder; made if it is not there. Files of the same names are replaced.
        seed: of the draws; the same seed, batch size and options give the same images.
        temperature: divides the logits: below 1 is safer, above 1 wilder, 0 always takes the most probable token.
        top_k: keep only the so many most probable tokens at each position; all by default.
        top_p: keep only the most probable tokens that make up this probability, in (0, 1]; all by default.
        batch_size: images sampled at the same time.
        complete: an image whose first token rows are kept, to sample the rest.
        rows: how many token rows of it to keep.
        image_size: HEIGHTxWIDTH of the images in pixels, by default those that the prior was trained for; --complete
            resizes and crops its image to it.
        device: auto, cpu, cuda or mps.
        num_beam: draw so many continuations of each image, keep the most probable one, and continue from there.
        beam_width: how many tokens a continuation has.
        beams: search for a probable image instead of drawing one, keeping so many partial ones at each position: all images
            are then the same. Not with temperature, top_k, top_p and num_beam.
        candidates: draw so many for each image, and keep the one whose bits are nearest to the mean of the data.
        quality: from 1 to 100: above 62 a second grid is drawn too, of the tokenizer's enhancement layer, as files of that
            quality have one.
        overwrite: remove what else an earlier run wrote into the folder; other files stay.
    """
    checks.integer(1, N_IMAGES=n_images)
    cli.at_least(1, batch_size=batch_size, candidates=candidates)
    cli.check_seed(seed)
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, num_beam=num_beam, beam_width=beam_width, beams=beams)
    sampling.check(**options)
    device = distributed.own_device(devices.pick_device(device))
    coder, prior = load_pair(tokenizer, prior, device)
    size = cli.parse_image_size(image_size) or trained_size(coder, prior)
    detail = detail_at(coder, quality)
    kept = None if complete is None else token_rows(coder, complete, size, rows)
    folder = Path(output_path)
    folder.mkdir(parents=True, exist_ok=True)
    share = distributed.rank(), distributed.world_size()
    shown: dict[int, Tensor] = {}
    with distributed.group(distributed.LONG):
        with tqdm(total=n_images, desc="generating", unit="img", disable=distributed.rank() > 0) as bar:
            args = coder, prior, n_images, size, batch_size, kept, candidates, seed, share, detail
            own = own_share(batches_of(range(n_images), batch_size))
            for numbers, (_, images) in zip(own, generate_images(*args, **options), strict=True):
                for i, image in zip(numbers, images, strict=True):
                    save_picture(image, folder / f"generation_{i}.png")
                    shown |= {i: image} if i < ON_SHEET else {}
                bar.update(len(numbers))
        parts = distributed.gather(shown)
    if parts is None:  # not the first process
        return
    shown = dict(sorted(item for part in parts for item in part.items()))
    save_picture(on_sheet(in_rows(list(shown.values()))), folder / "sheet.png")
    remove_stale(folder, r"generation_\d+\.png", {f"generation_{i}.png" for i in range(n_images)}, overwrite)
    print(f"{folder / 'sheet.png'}: {checks.count(n_images, 'image')} of {size[1]}x{size[0]} pixels (width x height), "
          "each also in a file of its own")  # fmt: skip


@ordinary_tensors
def token_rows(coder: Tokenizer, path: str, size: tuple[int, int], rows: int) -> Tensor:
    """(rows,w) int64: the first token rows of an image, scaled and cropped to (H,W). ValueError if it has fewer."""
    grid = coder.encode_index(float_image(read_image(path, size)).to(coder.device))
    if type(rows) is not int or not 0 <= rows <= len(grid):
        raise ValueError(f"--rows is {rows!r}, but must be from 0 to {len(grid)}, the token rows of a {size[0]}x{size[1]} "
                         "image.")  # fmt: skip
    return grid[:rows]


def cascade(stages: list[dict] | None = None, *, num_images: int = 5, out_dir: str = "generated", seed: int = 69,
            condition: int | str | None = None, batch_size: int = 16, scale: int = 1,
            device: str = "auto", overwrite: bool = False) -> None:  # fmt: skip
    """Samples images from coarse to fine: i_condition.png, i_stage0.png, i_stage1.png and so on, and all on sheet.png.

    Examples:
        python -m homework.generation cascade
        python -m homework.generation cascade --config cascade.json --condition 7 --num_images 3 --out_dir sevens

    Args:
        stages: best given by --config FILE, {"stages": a list from coarse to fine}; each has model_path, lr_codebook_path
            and hr_codebook_path, and may have temperature, top_k, top_p, num_beam, beam_width and beams. By default those of
            the pretrained cascade.
        num_images: how many to sample.
        out_dir: the folder; made if it is not there. Files of the same names are replaced.
        seed: of the draws; the same seed, batch size and options give the same images.
        condition: the code that all start from: an integer, or an image that has it; by default each draws its own.
        batch_size: images sampled at the same time.
        scale: how many times larger the sheet shows each pixel.
        device: auto, cpu, cuda or mps.
        overwrite: remove what else an earlier run wrote into the folder; other files stay.
    """
    cli.at_least(1, num_images=num_images, batch_size=batch_size, scale=scale)
    cli.check_seed(seed)
    check_alone("A cascade's sampling")
    folder = Path(out_dir)
    files.check_writable(folder / "sheet.png")
    device_, generator = devices.pick_device(device), torch.Generator().manual_seed(seed)
    model = load_cascade(SHIPPED, device_) if stages is None else Cascade(stages, device_)
    conditions, rows = starting_codes(model, condition, num_images, generator), []
    with tqdm(total=num_images, desc="generating", unit="img") as bar:
        for some in conditions.split(batch_size):
            pictures = model.decode(model.generate(some, generator))
            rows += zip(*(to_uint8(x).cpu().numpy() for x in pictures), strict=True)
            bar.update(len(some))
    names = ["condition", *(f"stage{k}" for k in range(len(model.stages)))]
    written = {f"{i}_{name}.png": picture for i, row in enumerate(rows) for name, picture in zip(names, row, strict=True)}
    for name, picture in written.items():
        save_picture(picture, folder / name)
    save_picture(on_sheet(rows, scale), folder / "sheet.png")
    remove_stale(folder, r"\d+_(condition|stage\d+)\.png", written, overwrite)
    n = checks.count(num_images, "image")
    print(f"{folder / 'sheet.png'}: {n}, a row each: the condition, and what each stage made of it")


def starting_codes(model: Cascade, condition: int | str | None, n: int, generator: torch.Generator) -> Tensor:
    """(n,h,w) int64: ``n`` times the code ``condition``, or that of the image it names; random codes by default."""
    K, size = model.codebooks[0].n_tokens, model.sizes[0]
    if condition is None:
        return torch.randint(K, (n, *size), generator=generator)
    if type(condition) is int:
        if not 0 <= condition < K:
            raise ValueError(f"--condition is {condition}, but the codebook has the codes 0 to {K - 1}.")
        return torch.full((n, *size), condition)
    if not Path(condition).is_file():
        raise ValueError(f"--condition is {condition}, but must be an integer, the code to start from, or an image.")
    return model.encode(float_image(read_image(condition, model.image_size))[None])[0].cpu().expand(n, -1, -1)


if __name__ == "__main__":
    cli.main("python -m homework.generation", {"cascade": cascade} if sys.argv[1:2] == ["cascade"] else generate)
