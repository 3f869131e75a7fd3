"""Measures our compression against JPEG, WebP, AVIF and JPEG XL: ``python -m homework.evaluate``. See ``--help``."""

import math
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from homework.codec import dial
from homework.codec.loading import load_compressor
from homework.core import checkpoint, checks, cli, devices
from homework.datasets.image_files import image_paths, spread
from homework.datasets.shards import file_size
from homework.evaluation import codecs, curves, measure, pages, report
from homework.priors.pairs import model_files


def evaluate(tokenizer: str, autoregressive: str, images: str = "data/valid", *, limit: int | None = None,
             effort: int | None = None, quality: str = str(dial.QUALITY), image_size: str | None = None,
             out: str = "report", n_pictures: int = 4, batch_size: int = 64, device: str = "auto") -> None:  # fmt: skip
    """Compresses images with our models and with the common codecs, and writes a page, a plot and tables about it.

    Examples:
        python -m homework.evaluate BSQPatchAutoEncoder AutoregressiveModel --quality 20,35,50,65,80 --limit 64
        python -m homework.evaluate one.pth,two.pth prior_of_one.pth,prior_of_two.pth --limit 64

    Args:
        tokenizer: checkpoint or name of a tokenizer; or several, with commas between them.
        autoregressive: checkpoint or name of a prior over its grids, or the JSON file of a cascade whose finest codebook it
            is; or one for each tokenizer. Several pairs are several operating points, which Bjontegaard's measure needs;
            pictures are of the first pair.
        images: a folder of images, an image, a dataset.json, or WebDataset shards.
        limit: use only so many images, spread evenly over all of them; all by default. Most of the time goes into AVIF at
            its slowest, 4 to 5 seconds of one core for an image of 150x100.
        effort: of our search for tokens, from 0 to 9; 5 by default, and none for a cascade.
        quality: of our files, from 1 to 100; several, with commas between them, are several operating points.
        image_size: HEIGHTxWIDTH in pixels, to which images are scaled and cropped for all codecs; as they are by default.
        out: the folder to write to; made if it is not there.
        n_pictures: how many images to show.
        batch_size: images that go through our models at once.
        device: of our models: auto, cpu, cuda or mps.
    """
    cli.at_least(1, n_pictures=n_pictures, batch_size=batch_size, limit=1 if limit is None else limit)
    pages.require("jinja2", "matplotlib", "scipy")
    folder, pairs = Path(out), list_pairs(tokenizer, autoregressive)
    paths, size = spread(image_paths(images), limit), cli.parse_image_size(image_size)
    device = devices.pick_device(device)
    qualities = dial.parse_qualities(quality)
    of_pairs = [load_compressor(*pair, device, batch_size, effort) for pair in pairs]
    compressors = [compressor.at(q) for compressor in of_pairs for q in qualities]
    rivals, left_out = codecs.available()
    folder.mkdir(parents=True, exist_ok=True)  # before the work, so that a folder that cannot be made is reported at once

    names = [" + ".join(Path(path).stem for path in pair) * (len(pairs) > 1) for pair in pairs]
    settings = [f"{name} {f'quality {q:g}' * (len(qualities) > 1)}".strip() for name in names for q in qualities]
    ours = [measure.measure_ours(compressor, paths, size) for compressor in compressors]
    points = {"ours": [curves.Point("ours", s, rows) for s, rows in zip(settings, ours, strict=True)]}
    points |= measure.measure_codecs(rivals, paths, size)
    shown = tqdm(spread(paths, n_pictures), "pictures", unit="img")
    first, threads = compressors[0], torch.get_num_threads()
    original = float(np.mean([file_size(path) for path in paths]))
    results = {
        "pictures": [measure.show(first, rivals, path, size, i, folder) for i, path in enumerate(shown)],
        "original": original,
        "model_bytes": sum(path.stat().st_size for path in model_files(*pairs[0]) if path.is_file()),
        "left_out": left_out,
        "descriptions": {codec.name: codec.description for codec in rivals},
        "bits_per_token": math.log2(first.tokenizer.n_tokens),
        "exact": first.models.exact,
        "where": f"{device.type}, {checks.count(threads, 'thread')}, batches of {batch_size}, effort {first.effort}",
    }
    report.write_report(folder, points, paths, results)
    print(*curves.verdict(points, original), sep="\n")
    print(f"{folder / 'index.html'}: {checks.count(len(paths), 'image')}; open it in a browser.")


def list_pairs(tokenizer: str, autoregressive: str) -> list[tuple[str, str]]:
    """The (tokenizer, prior) files that two comma-separated lists name. ValueError if they do not pair up."""
    first, second = ([str(checkpoint.locate(path)) for path in paths.split(",")] for paths in (tokenizer, autoregressive))
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ValueError(f"There are {checks.count(len(first), 'tokenizer')} but {checks.count(len(second), 'prior')}; "
                         "name one prior for each tokenizer.")  # fmt: skip
    n = max(len(first), len(second))
    return list(dict.fromkeys(zip(first * (n // len(first)), second * (n // len(second)), strict=True)))


if __name__ == "__main__":
    cli.main("python -m homework.evaluate", evaluate)
