"""Measures our compression against JPEG, WebP, AVIF and JPEG XL, or generated samples against real images: ``python -m
homework.evaluate``. See ``--help``."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from homework.codec import dial
from homework.codec.compressor import Compressor
from homework.codec.loading import load_compressor
from homework.core import checkpoint, checks, cli, devices, files
from homework.core.processes import check_alone, own_share
from homework.datasets.image_files import image_paths, spread
from homework.datasets.shards import file_size
from homework.evaluation import codecs, curves, measure, pages, report
from homework.evaluation import samples as sets
from homework.evaluation.extractors import load_extractors
from homework.priors import sampling
from homework.priors.pairs import model_files
from homework.training import distributed


def evaluate(tokenizer: str, autoregressive: str, images: str = "data/valid", *, limit: int | None = None,
             effort: int | None = None, quality: str = str(dial.QUALITY), image_size: str | None = None,
             psnr: float | None = None, between: str | None = None, out: str = "report", n_pictures: int = 4,
             batch_size: int = 64, resume: bool = False, device: str = "auto") -> None:  # fmt: skip
    """Compresses images with our models and with the common codecs, and writes a page, a plot and tables about it.

    Under torchrun, images are shared out among the processes. (For generated samples, see
    ``python -m homework.evaluate samples --help``.)

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
            its slowest, two to five seconds of a core for an image of 150x100.
        effort: of our search for tokens, from 0 to 9; 5 by default, and none for a cascade.
        quality: of our files, from 1 to 100; several, with commas between them, are several operating points.
        image_size: HEIGHTxWIDTH in pixels, to which images are scaled and cropped for all codecs; as they are by default.
        psnr: print a comparison at this PSNR in dB, too, between the points.
        between: LOW,HIGH in dB: print Bjontegaard's measure over no more than that; over all that both reach by default.
        out: the folder to write to; made if it is not there.
        n_pictures: how many images to show.
        batch_size: images that go through our models at once.
        resume: take from OUT what an earlier evaluation measured, complete or not, of the same models, images and settings.
        device: of our models: auto, cpu, cuda or mps.
    """
    cli.at_least(1, n_pictures=n_pictures, batch_size=batch_size, limit=1 if limit is None else limit)
    pages.require("jinja2", "matplotlib", "scipy")
    folder, pairs = Path(out), list_pairs(str(tokenizer), str(autoregressive))
    paths, size = spread(image_paths(images), limit), cli.parse_image_size(image_size)
    device = distributed.own_device(devices.pick_device(device))
    if psnr is not None:
        checks.positive(**{"--psnr": psnr})
    qualities, within = dial.parse_qualities(quality), parse_range(between)
    of_pairs = [load_compressor(*pair, device, batch_size, effort) for pair in pairs]
    compressors = [compressor.at(q) for compressor in of_pairs for q in qualities]
    rivals, left_out = codecs.available()
    folder.mkdir(parents=True, exist_ok=True)  # before the work, so that a folder that cannot be made is reported at once

    names = [" + ".join(Path(path).stem for path in pair) * (len(pairs) > 1) for pair in pairs]
    settings = [f"{name} {f'quality {q:g}' * (len(qualities) > 1)}".strip() for name in names for q in qualities]
    measured = measure_together(folder, resume, compressors, rivals, paths, size)
    if measured is None:  # not the first process
        return
    ours = [measure.measure_ours(compressor, paths, size, measured) for compressor in compressors]
    points = {"ours": [curves.Point("ours", s, rows) for s, rows in zip(settings, ours, strict=True)]}
    points |= measure.measure_codecs(rivals, paths, size, measured)
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
    print(*curves.verdict(points, original), *curves.between_points(points, psnr, within), sep="\n")
    print(f"{folder / 'index.html'}: {checks.count(len(paths), 'image')}; open it in a browser.")


def parse_range(text: str | None) -> tuple[float, float]:
    """The numbers of LOW,HIGH; all there are for None. ValueError for another text."""
    if text is None:
        return curves.ANY
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not low < high:
        raise ValueError(f"--between is {text!r}, but must be two numbers in dB, the lower one first, such as 24.5,29.")
    return low, high


def measure_together(folder: Path, resume: bool, compressors: list[Compressor], rivals: list[codecs.Codec], paths: list[str],
                     size: tuple[int, int] | None) -> measure.Measured | None:  # fmt: skip
    """Of several processes each measures its share of the images, and the first one, which gets what all have measured,
    continues; None on the others. One process by itself continues at once."""
    measured = measure.Measured(folder, resume, distributed.rank())
    if distributed.world_size() > 1:
        with distributed.group(distributed.LONG):
            if own := own_share(paths):
                for compressor in compressors:
                    measure.measure_ours(compressor, own, size, measured)
                measure.measure_codecs(rivals, own, size, measured)
            every = distributed.gather(measured.rows)
        if every is None:
            return None
        for rows in every:
            measured.keep_all(rows)
    if resume or distributed.world_size() > 1:  # what the others hold is kept
        for path in measured.others():
            path.unlink()
    return measured


def list_pairs(tokenizer: str, autoregressive: str) -> list[tuple[str, str]]:
    """The (tokenizer, prior) files that two comma-separated lists name. ValueError if they do not pair up."""
    first, second = ([str(checkpoint.locate(path)) for path in paths.split(",")] for paths in (tokenizer, autoregressive))
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ValueError(f"There are {checks.count(len(first), 'tokenizer')} but {checks.count(len(second), 'prior')}; "
                         "name one prior for each tokenizer.")  # fmt: skip
    n = max(len(first), len(second))
    return list(dict.fromkeys(zip(first * (n // len(first)), second * (n // len(second)), strict=True)))


def samples(source: str, reference: str = "data/valid", *, n: int | None = None, limit: int | None = None,
            train: str | None = None, features: str | None = None, temperature: float = 1.0, top_k: int | None = None,
            top_p: float | None = None, quality: float = dial.QUALITY, seed: int = 0, image_size: str | None = None,
            batch_size: int = 64, out: str = "samples.json", device: str = "auto") -> None:  # fmt: skip
    """Says how far images, sampled from models or in a folder, are from reference images: Frechet and kernel distance,
    precision and recall, and whether training images were learned by heart.

    Examples:
        python -m homework.evaluate samples BSQPatchAutoEncoder,AutoregressiveModel data/valid --n 640 --top_p 0.95
        python -m homework.evaluate samples generated data/valid --train data/train --out generated.json

    Args:
        source: a folder of images, whose sheet.png is left out; or TOKENIZER,PRIOR, checkpoints or names with a comma
            between them, to sample from; or the JSON file of a cascade.
        reference: images to compare with, a folder or a dataset.json.
        n: how many images to sample, 1280 by default; or to use of a folder, evenly spread, all by default.
        limit: use only so many reference images, evenly spread; all by default.
        train: the images that the models were trained on, to see whether samples are nearer to them than reference images.
        features: autoencoder, random or inception, or several with commas between them; by default all that can be had.
        temperature: divides the logits: below 1 is safer, above 1 wilder, 0 always takes the most probable token.
        top_k: keep only the so many most probable tokens at each position; all by default.
        top_p: keep only the most probable tokens that make up this probability, in (0, 1]; all by default.
        quality: from 1 to 100: above 62 a second grid is drawn too, as by homework.generation.
        seed: of the draws; the same seed, batch size and options give the same images as homework.generation.
        image_size: HEIGHTxWIDTH in pixels, to which images are scaled and cropped; by default as they are, or that of the
            models.
        batch_size: images at once.
        out: the JSON file to write, with all figures.
        device: auto, cpu, cuda or mps.
    """
    cli.at_least(1, batch_size=batch_size, n=1 if n is None else n, limit=1 if limit is None else limit)
    cli.check_seed(seed)
    check_alone("The measuring of samples")
    source, reference, train = (path if path is None else str(path) for path in (source, reference, train))
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    sampling.check(**options)
    dial.lmbda_at(quality)  # ValueError if it is none
    options["quality"] = quality
    if Path(out).suffix != ".json":
        raise ValueError(f"--out is {out!r}, but must be a .json file.")
    files.check_writable(Path(out))
    place, size = devices.pick_device(device), cli.parse_image_size(image_size)
    extractors = load_extractors(features, place)
    paths = {"reference": spread(image_paths(reference), limit)} | ({"train": image_paths(train)} if train else {})
    given = [name for name, value in options.items() if value != sets.OPTIONS[name]]
    if given and not sets.is_pair(source):
        raise ValueError(f"--{given[0]} is for TOKENIZER,PRIOR; leave it out with {source}.")
    like = ""  # the image whose size all others must have
    if sets.is_pair(source) or sets.is_cascade_file(source):
        n = n or sets.N_SAMPLES
        size, batches = sets.sample(source, n, size, batch_size, seed, place, **options)
    else:
        own = spread(sets.sample_paths(source), n)
        n, like = len(own), own[0]
        batches = sets.file_batches(own, like, size, batch_size)
    for count, what in (n, source), (len(paths["reference"]), reference):
        sets.check_number(count, what)
    found = {}
    for what, names in paths.items():  # before the samples, which may take long, so that their mistakes are found at once
        read = sets.file_batches(names, like, size, batch_size)
        found[what] = sets.extract(read, len(names), extractors, place, what)
    found["samples"] = sets.extract(batches, n, extractors, place, "samples")
    figures = sets.Comparison(extractors, found["reference"], found.get("train")).figures(found["samples"])
    counts = {"samples": n, **{what: len(names) for what, names in paths.items()}}
    settings = {"source": source, "reference": reference, "train": train, "images": counts, "image_size": image_size,
                "seed": seed, "batch_size": batch_size, "sampling": options}  # fmt: skip
    with files.replacing(out) as temporary:
        temporary.write_text(json.dumps(settings | {"features": figures}, indent=1), "utf-8")
    print(sets.table("features", {name: sets.row(figures[name]) for name in figures}), sets.LEGEND, sep="\n\n")
    print(f"{out}: {checks.count(n, 'sample')} of {source}, {checks.count(counts['reference'], 'reference image')}")


if __name__ == "__main__":
    cli.main("python -m homework.evaluate", {"samples": samples} if sys.argv[1:2] == ["samples"] else evaluate)
