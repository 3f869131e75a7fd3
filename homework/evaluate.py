"""Measures our compression against JPEG, WebP, AVIF and JPEG XL: ``python -m homework.evaluate``. See ``--help``."""

import math
import os
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from homework.codec.compressor import Compressor
from homework.core import checkpoint, cli, devices
from homework.core.words import counted
from homework.datasets.image_files import image_paths
from homework.evaluation import codecs, curves, measure, pages, report
from homework.priors.pairs import load_pair


def evaluate(tokenizer: str, autoregressive: str, images: str = "data/valid", limit: int | None = None,
             image_size: str | None = None, out: str = "report", n_pictures: int = 4, batch_size: int = 64,
             device: str = "auto") -> None:  # fmt: skip
    """Compresses images with our models and with the common codecs, and writes a page, a plot and tables about it.

    Args:
        tokenizer: checkpoint or name of a tokenizer; or several, with commas between them.
        autoregressive: checkpoint or name of a prior over its grids; or one for each tokenizer. Several pairs are several
            operating points, which Bjontegaard's measure needs; pictures are of the first pair.
        images: a folder of images, an image, or a dataset.json.
        limit: use only so many images, spread evenly over all of them; all by default. Most of the time goes into AVIF at
            its slowest, 4 to 5 seconds of one core for an image of 150x100.
        image_size: HEIGHTxWIDTH in pixels, to which images are scaled and cropped for all codecs; as they are by default.
        out: the folder to write to; made if it is not there.
        n_pictures: how many images to show.
        batch_size: images that go through our models at once.
        device: of our models: auto, cpu, cuda or mps.
    """
    cli.at_least(1, n_pictures=n_pictures, batch_size=batch_size, limit=1 if limit is None else limit)
    pages.require("jinja2", "matplotlib", "scipy")
    folder, pairs = Path(str(out)), list_pairs(tokenizer, autoregressive)
    paths, size = spread(image_paths(str(images)), limit), cli.parse_image_size(image_size)
    device = devices.pick_device(device)
    compressors = [Compressor(*load_pair(*pair, device), device, batch_size) for pair in pairs]
    rivals, left_out = codecs.available()
    folder.mkdir(parents=True, exist_ok=True)  # before the work, so that a folder that cannot be made is reported at once

    settings = [" + ".join(Path(path).stem for path in pair) if len(pairs) > 1 else "" for pair in pairs]
    ours = [measure.measure_ours(compressor, paths, size) for compressor in compressors]
    points = {"ours": [curves.Point("ours", s, rows) for s, rows in zip(settings, ours, strict=True)]}
    points |= measure.measure_codecs(rivals, paths, size)
    shown = tqdm(spread(paths, n_pictures), "pictures", unit="img")
    model, threads = compressors[0].entropy_model, torch.get_num_threads()
    original = float(np.mean([os.path.getsize(path) for path in paths]))
    results = {
        "pictures": [measure.show(compressors[0], rivals, path, size, i, folder) for i, path in enumerate(shown)],
        "original": original,
        "model_bytes": sum(path.stat().st_size for path in map(Path, pairs[0]) if path.is_file()),
        "left_out": left_out,
        "descriptions": {codec.name: codec.description for codec in rivals},
        "bits_per_token": math.log2(model.n_tokens),
        "exact": model.exact,
        "where": f"{device.type}, {counted(threads, 'thread')}, batches of {batch_size}",
    }
    report.write_report(folder, points, paths, results)
    print(*curves.verdict(points, original), sep="\n")
    print(f"{folder / 'index.html'}: {counted(len(paths), 'image')}; open it in a browser.")


def list_pairs(tokenizer: str | tuple, autoregressive: str | tuple) -> list[tuple[str, str]]:
    """The (tokenizer, prior) files that two comma-separated lists name. ValueError if they do not pair up."""
    lists = [value if isinstance(value, tuple | list) else str(value).split(",") for value in (tokenizer, autoregressive)]
    first, second = ([str(checkpoint.locate(str(path))) for path in paths] for paths in lists)
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ValueError(f"There are {len(first)} tokenizers but {len(second)} priors; name one prior for each tokenizer.")
    n = max(len(first), len(second))
    return list(dict.fromkeys(zip(first * (n // len(first)), second * (n // len(second)), strict=True)))


def spread(things: list, n: int | None) -> list:
    """``n`` of the things (all if None, or if there are fewer), evenly spaced."""
    n = len(things) if n is None else min(n, len(things))
    return [things[i * len(things) // n] for i in range(n)]


if __name__ == "__main__":
    cli.main("python -m homework.evaluate", evaluate)
