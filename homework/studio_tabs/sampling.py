"""The tabs Generate and Complete: images that are sampled row by row."""

import dataclasses
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from homework.core import checks, cli
from homework.core.model import ordinary_tensors
from homework.datasets.images import to_float
from homework.evaluation.pictures import in_rows, on_sheet
from homework.priors import sampling
from homework.priors.base import Prior
from homework.priors.images import UNKNOWN, decode, most_typical
from homework.studio_tabs.models import Models, Source, command_line, fitted

MOST = 16  # images at once, as many as the command samples in a batch, so that a seed gives the same ones there
CANDIDATES = 8  # for each image, at most
ENDINGS = 4


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of :func:`homework.priors.sampling.generate`."""

    seed: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def options(self) -> dict:
        """For a command line: those that are not the defaults."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v != getattr(Settings, k)}

    def sampling(self) -> dict:
        """For :meth:`homework.priors.base.Prior.generate`."""
        options = dataclasses.asdict(self)
        return options | {"generator": torch.Generator().manual_seed(options.pop("seed"))}

    def check(self) -> None:
        """ValueError, naming the value and what is allowed, if one makes no sense."""
        cli.check_seed(self.seed)
        sampling.check(self.temperature, self.top_k, self.top_p)


@dataclasses.dataclass(frozen=True)
class Grown:
    """Images (n,H,W,3) uint8 whose first token rows are there, and the grids (n,r,w) of these."""

    pictures: np.ndarray
    grids: Tensor
    rows: int  # of the whole grid

    @property
    def complete(self) -> bool:
        return self.grids.shape[1] == self.rows


def grow(models: Models, n: int, settings: Settings, kept: Tensor | None = None, candidates: int = 1) -> Iterator[Grown]:
    """``n`` images of the prior's size after each row of tokens; the first rows are ``kept`` (r,w). With several
    ``candidates`` for each, these, and then the most typical ones. The last are those that ``homework.generation`` writes.
    ValueError for a setting that makes no sense."""
    checks.integer(1, MOST, **{"The number of images": n})
    checks.integer(1, CANDIDATES, **{"The number of candidates": candidates})
    settings.check()
    (H, W), (P, Q), device = models.size, models.tokenizer.patch_shape, models.tokenizer.device
    h, w = n_rows(models), -(-W // Q)
    prefix = None if kept is None else kept.expand(n * candidates, -1, -1)  # (r,w) -> (n*M,r,w)

    def picture(grids: Tensor) -> Grown:
        r = grids.shape[1]
        pictures = decode(models.tokenizer, F.pad(grids, (0, 0, 0, h - r)))[:, :H, :W]  # any tokens, which do not show
        pictures[:, r * P :] = UNKNOWN
        return Grown(pictures.numpy(), grids, h)

    for grids in models.prior.generate_rows(n * candidates, h, w, device, prefix=prefix, **settings.sampling()):
        yield picture(grids)
    if candidates > 1:
        yield picture(most_typical(models.prior, grids.unflatten(0, (n, candidates))))  # (n*M,h,w) -> (n,h,w)


def sheet(grown: Grown) -> np.ndarray:
    """(H',W',3) uint8: all images."""
    return on_sheet(in_rows(list(grown.pictures)))


def write_archive(grown: Grown, path: Path) -> None:
    """A ZIP file of all images as PNG files, which are named as by the command."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, picture in enumerate(grown.pictures):
            with archive.open(f"generation_{i}.png", "w") as file:
                Image.fromarray(picture).save(file, format="PNG")


def surprise(models: Models, grown: Grown) -> str:
    """What complete images cost under the prior, and how many rows others have."""
    if not grown.complete:
        return f"{grown.grids.shape[1]} of {grown.rows} rows"
    return nats(models.prior, grown.grids)


@ordinary_tensors
def nats(prior: Prior, grids: Tensor) -> str:
    """What each of (n,h,w) grids costs under a prior."""
    bits = prior.bits(grids.to(prior.device)).sum(dim=(1, 2)).tolist()
    return "; ".join(f"{i}: {math.log(2) * b:,.0f} nats, {b:,.0f} bits" for i, b in enumerate(bits))


def generate_command(models: Models, n: int, settings: Settings, candidates: int = 1) -> str:
    options = settings.options() | {"candidates": candidates if candidates > 1 else None}
    return command_line("generation", *models.names, n, "generated", **options)


@ordinary_tensors
def first_rows(models: Models, source: Source, rows: int) -> tuple[np.ndarray, Tensor]:
    """An image, scaled and cropped to the prior's size (H,W,3) uint8, and the first rows (r,w) of its tokens."""
    x = fitted(source, models.size)
    return x.numpy(), models.tokenizer.encode_index(to_float(x).to(models.tokenizer.device))[:rows]


def n_rows(models: Models) -> int:
    """Of tokens, in an image of the prior's size."""
    return -(-models.size[0] // models.tokenizer.patch_shape[0])


def complete(models: Models, source: Source, rows: int, settings: Settings) -> Iterator[tuple[np.ndarray, Grown]]:
    """Some endings of an image of which ``rows`` rows of tokens are kept, after each row: on a sheet after the image itself
    and what was kept of it; and the images. ValueError as of :func:`grow`, or for rows that it does not have."""
    checks.integer(0, n_rows(models), **{"The number of rows": rows})
    x, kept = first_rows(models, source, rows)
    cut = x.copy()
    cut[rows * models.tokenizer.patch_shape[0] :] = UNKNOWN
    for grown in grow(models, ENDINGS, settings, kept):
        yield on_sheet(in_rows([x, cut, *grown.pictures])), grown


def complete_command(models: Models, source: Source, rows: int, settings: Settings) -> str:
    options = {"complete": source.name, "rows": rows} | settings.options()
    return command_line("generation", *models.names, ENDINGS, "completed", **options)
