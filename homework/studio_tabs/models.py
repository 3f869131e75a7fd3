"""What all tabs of the page share: a tokenizer, a prior, samples, trainings. Only a new training writes into it, so that any
number of people may use it at once."""

import dataclasses
import functools
import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from homework.codec.compressor import Compressor
from homework.codec.loading import compressor_of
from homework.core.files import printable
from homework.datasets.image_files import read_image
from homework.evaluation.pictures import save_picture
from homework.priors.base import Prior
from homework.priors.images import trained_size
from homework.priors.pairs import load_pair
from homework.studio_tabs.runs import Runs
from homework.tokenizers.base import Tokenizer

PAIRS = (("BSQPatchAutoEncoder", "AutoregressiveModel"), ("BSQPatchAutoEncoder", "GatedPixelCNN"),
         ("VQPatchAutoEncoder", "VQAutoregressiveModel"), ("VQPatchAutoEncoder", "VQGatedPixelCNN"))  # fmt: skip
MOST_PIXELS = 2**16  # of an image on the page, which has to answer at once; the commands take any


class Source(NamedTuple):
    """An image to work on: its path, what a command line is to call it, and its pixels (H,W,3) uint8."""

    file: str
    name: str
    pixels: np.ndarray
    original: tuple[int, int]  # (H,W) of the file; other than that of ``pixels`` if it was scaled down


@dataclass(frozen=True)
class Models:
    """``names`` are those of the tokenizer and the prior on a command line; ``folder`` is for files to download."""

    names: tuple[str, str]
    tokenizer: Tokenizer
    prior: Prior
    samples: tuple[str, ...]  # paths
    folder: Path
    runs: Runs

    @functools.cached_property
    def compressor(self) -> Compressor:
        """Made when it is first asked for, so that the page is there before it. ValueError as of its class."""
        return compressor_of(self.tokenizer, self.prior)

    @property
    def size(self) -> tuple[int, int]:
        """(H,W) in pixels of the images that the prior was trained on."""
        return trained_size(self.tokenizer, self.prior)


def load(names: tuple[str, str], tokenizer: Tokenizer, prior: Prior, samples: list[str], folder: Path) -> Models:
    """ValueError if the two do not go together."""
    return Models(names, tokenizer, prior, tuple(samples), folder, Runs(folder / "runs"))


@functools.lru_cache(maxsize=len(PAIRS))
def with_pair(models: Models, names: tuple[str, str]) -> Models:
    """The same with another tokenizer and prior, loaded when they are first asked for. ValueError or FileNotFoundError if
    they cannot be."""
    if names == models.names:
        return models
    tokenizer, prior = load_pair(*names, models.tokenizer.device)
    return dataclasses.replace(models, names=names, tokenizer=tokenizer, prior=prior)


def read_source(path: str) -> Source:
    """An image file of any format that can be read, scaled down to at most MOST_PIXELS. ValueError, or OSError, which names
    the file without its folder, if there is none."""
    name = path if not Path(path).is_absolute() else Path(path).name  # an upload's folder means nothing to its owner
    try:
        pixels = read_image(path)
    except ValueError as error:
        raise ValueError(str(error).replace(path, printable(name))) from error
    (H, W), scale = pixels.shape[:2], (MOST_PIXELS / (pixels.shape[0] * pixels.shape[1])) ** 0.5
    if scale < 1:
        small = max(1, int(W * scale)), max(1, int(H * scale))
        pixels = np.asarray(Image.fromarray(pixels).resize(small, Image.Resampling.LANCZOS))
    return Source(path, name, pixels, (H, W))


def fitted(source: Source, size: tuple[int, int]) -> torch.Tensor:
    """The image scaled and cropped to (H,W), as the commands do it: (H,W,3) uint8."""
    return torch.from_numpy(read_image(source.file, size))


def picture_file(models: Models, picture: np.ndarray, name: str = "picture") -> str:
    """The path of a PNG file of a picture, uint8, which stays as it is once it is there: a browser may be reading it."""
    content = hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).hexdigest()
    path = models.folder / content[:24] / f"{name}.png"
    if not path.is_file():
        save_picture(picture, path)
    return str(path)


def command_line(module: str, *words: object, **options: object) -> str:
    """``python -m homework.MODULE WORDS --OPTIONS``, without the options that are None."""
    given = [[f"--{name}", str(value)] for name, value in options.items() if value is not None]
    return shlex.join(["python", "-m", f"homework.{module}", *map(str, words), *sum(given, [])])
