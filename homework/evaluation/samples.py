"""Sets of images, from files or sampled from models, compared with reference images in the features of extractors."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from homework.codec.dial import QUALITY
from homework.codec.loading import detail_at
from homework.core import checks
from homework.core.arguments import read_json
from homework.core.model import ordinary_tensors
from homework.datasets.image_files import batches_of, check_size, decoded, image_paths, read_image
from homework.datasets.images import to_uint8
from homework.evaluation import distances
from homework.evaluation.extractors import Extractor
from homework.priors.cascade import Cascade
from homework.priors.images import generate_images, trained_size
from homework.priors.pairs import is_cascade, is_shipped, load_cascade, load_pair

SHEET = "sheet.png"  # what homework.generation writes beside the samples, to look at
LEGEND = """Distances are 0 for sets that are alike; ± is a standard error, if all images are independent. The features of
autoencoder and random are standardized by the reference images; only in those of inception are these FID and KID.
Nearest training image: the median distance from it, and in brackets that of reference images. Near one: the share of
samples nearer to one than the nearest 5 % of reference images, so 5 % if alike, and more if it was learned by heart."""
Features = dict[str, Tensor]  # by the name of an extractor, (n,D) float32 on the CPU
N_SAMPLES = 1280  # drawn by default: as many as there are validation frames
OPTIONS: dict[str, Any] = {"temperature": 1.0, "top_k": None, "top_p": None, "quality": QUALITY}  # of sampling, by default
COLUMNS = ("Frechet distance", "kernel distance", "precision", "recall", "nearest training image", "near one")


def sample_paths(folder: str) -> list[str]:
    """The images of a folder, as :func:`homework.datasets.image_files.image_paths` finds them, but for the sheet of all."""
    paths = image_paths(folder)
    return [path for path in paths if Path(path).name != SHEET] or list(paths)


def file_batches(paths: list[str], like: str, size: tuple[int, int] | None, batch_size: int) -> Iterator[Tensor]:
    """(B,H,W,3) uint8 of image files, scaled and cropped to ``size``; without one, ValueError for the first that has not
    the size of the image ``like``. ValueError for damaged ones."""
    wanted = size or read_image(like).shape[:2]
    for names, images in decoded(batches_of(paths, batch_size), size):
        for name, image in zip(names, images, strict=True):
            if isinstance(image, str):
                raise ValueError(image)
            check_size(name, image, like, wanted)
        yield torch.from_numpy(np.stack(images))


def is_cascade_file(source: str) -> bool:
    """Whether it is the JSON file of a cascade, and not one that lists images."""
    return is_shipped(source) or (is_cascade(source) and Path(source).is_file() and "stages" in read_json(source))


def is_pair(source: str) -> bool:
    """Whether it is "TOKENIZER,PRIOR"."""
    return source.count(",") == 1 and not Path(source).exists()


def sample(source: str, n: int, size: tuple[int, int] | None, batch_size: int, seed: int, device: torch.device,
           quality: float = QUALITY, **options: Any) -> tuple[tuple[int, int], Iterator[Tensor]]:  # fmt: skip
    """The size (H,W) of images that the models of a pair or of a cascade make, by default that which they were trained for,
    and ``n`` of them, (B,H,W,3) uint8 on the CPU: those of homework.generation with the same seed and batch size. ValueError
    or OSError if the models cannot be loaded, or do not go together."""
    if is_cascade_file(source):
        cascade = load_cascade(source, device)
        if size not in (None, cascade.image_size):
            raise ValueError(f"--image_size is {size[0]}x{size[1]}, but {source} makes images of {cascade.image_size[0]}x"
                             f"{cascade.image_size[1]}; leave it out.")  # fmt: skip
        return cascade.image_size, sample_cascade(cascade, n, batch_size, torch.Generator().manual_seed(seed))
    first, second = source.split(",")
    tokenizer, prior = load_pair(first, second, device)
    size = size or trained_size(tokenizer, prior)
    detail = detail_at(tokenizer, quality)
    drawn = generate_images(tokenizer, prior, n, size, batch_size, seed=seed, detail=detail, **options)
    return size, (images for _, images in drawn)


def sample_cascade(cascade: Cascade, n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    codes = torch.randint(cascade.codebooks[0].n_tokens, (n, *cascade.sizes[0]), generator=generator)
    for some in codes.split(batch_size):
        yield to_uint8(cascade.decode(cascade.generate(some, generator))[-1]).cpu()


@ordinary_tensors
def extract(batches: Iterable[Tensor], n: int, extractors: dict[str, Extractor], device: torch.device,
            what: str) -> Features:  # fmt: skip
    """The features of ``n`` images, which come as (B,H,W,3) uint8 ``batches``; ``what`` they are is shown meanwhile."""
    parts: dict[str, list[Tensor]] = {name: [] for name in extractors}
    with tqdm(total=n, desc=what, unit="img") as bar:
        for images in batches:
            for name, extractor in extractors.items():
                parts[name].append(extractor(images.to(device)).float().cpu())
            bar.update(len(images))
    return {name: torch.cat(some) for name, some in parts.items()}


def check_number(n: int, what: str) -> None:
    """ValueError if there are too few of ``what`` for neighbourhoods."""
    if n <= distances.K_NEAREST:
        raise ValueError(f"There are {checks.count(n, 'image')} in {what}, but at least {distances.K_NEAREST + 1} are "
                         "needed, and a few hundred for figures that mean something.")  # fmt: skip


class Comparison:
    """Compares sets of images with ``reference`` images and, if there are any, with training images, in the features of
    ``extractors``, which :func:`extract` has found."""

    def __init__(self, extractors: dict[str, Extractor], reference: Features, train: Features | None = None):
        self.extractors, self.reference = extractors, reference
        self.mean = {name: x.mean(dim=0) for name, x in reference.items()}
        self.std = {name: deviations(x) for name, x in reference.items()}
        self.known = {name: self.standardized(name, x) for name, x in (train or {}).items()}
        known = self.known.items()
        self.unseen = {name: distances.nearest(self.standardized(name, reference[name]), x) for name, x in known}

    def standardized(self, name: str, x: Tensor) -> Tensor:
        """(n,D) features of an extractor, in the units in which distances are taken."""
        return (x - self.mean[name]) / self.std[name] if self.extractors[name].standardized else x

    def figures(self, samples: Features) -> dict[str, dict[str, Any]]:
        """By the name of an extractor, see :mod:`homework.evaluation.distances`."""
        found: dict[str, dict[str, Any]] = {}
        for name, extractor in self.extractors.items():
            x, y = self.standardized(name, samples[name]), self.standardized(name, self.reference[name])
            distance, error = distances.kernel_distance(x, y)
            precision, recall = distances.precision_recall(x, y)
            found[name] = {"features": extractor.about, "dimensions": x.shape[1], "standardized": extractor.standardized,
                           "frechet_distance": distances.frechet_distance(x, y), "kernel_distance": distance,
                           "kernel_distance_standard_error": error, "precision": precision, "recall": recall}  # fmt: skip
            if name in self.known:
                near = distances.memorized(distances.nearest(x, self.known[name]), self.unseen[name])
                found[name]["nearest_training_image"] = near
        return found


def deviations(x: Tensor) -> Tensor:
    """(n,D) -> (D): standard deviations, but no feature counts for more than a hundred times the mean one, as one that is
    the same in all reference images would."""
    std = x.std(dim=0)
    return std.clamp_min(max(1e-6, 0.01 * std.mean().item()))


def row(figures: dict[str, Any]) -> list[str]:
    """The cells of COLUMNS for the figures of one extractor; the last two only with training images."""
    cells = [f"{figures['frechet_distance']:.2f}",
             f"{figures['kernel_distance']:.4f} ± {figures['kernel_distance_standard_error']:.4f}",
             f"{figures['precision']:.3f}", f"{figures['recall']:.3f}"]  # fmt: skip
    if near := figures.get("nearest_training_image"):
        cells += [f"{near['median']:.2f} ({near['reference_median']:.2f})", f"{near['share_near']:.1%}"]
    return cells


def table(first: str, rows: dict[str, list[str]]) -> str:
    """A table in Markdown of rows of cells by their names, which are in the column ``first``."""
    n = len(next(iter(rows.values())))
    lines = [[first, *COLUMNS[:n]], ["---"] * (n + 1), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
