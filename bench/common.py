"""Shared by the measurements: a clock, the images and models to measure with, and a line of the table."""

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from homework.core import checkpoint
from homework.core.registry import model_class
from homework.datasets.image_files import image_paths

SOURCES = ("data/train", "data/valid", "data/sample")


@dataclass
class Line:
    """One comparison: rates in images per second, and notes to print below it."""

    what: str
    fast: float
    plain: float
    ways: str
    notes: list[str] = field(default_factory=list)


def compare(fast: Callable[[], object], plain: Callable[[], object], repeats: int = 5) -> tuple[float, float]:
    """Median seconds of both, run in turn, so that a slower machine slows both; the first run does not count."""
    times: tuple[list[float], list[float]] = [], []
    for _ in range(repeats + 1):
        for f, ts in zip((fast, plain), times, strict=True):
            start = time.perf_counter()
            f()
            ts.append(time.perf_counter() - start)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def checkpoint_path(name: str) -> Path:
    """The path of the shipped model ``name``, which may not exist."""
    return checkpoint.PRETRAINED / f"{name}.pth"


def load(name: str) -> nn.Module:
    """The shipped model, or an untrained one with its class's defaults, in eval mode."""
    return checkpoint.load(checkpoint_path(name)) if checkpoint_path(name).is_file() else model_class(name)().eval()


def describe(name: str) -> str:
    """One line on the model that :func:`load` returns."""
    model, kind = load(name), "shipped" if checkpoint_path(name).is_file() else "untrained, of default size"
    return f"{name}: {kind}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"


def copy_images(folder: Path, n: int) -> Path:
    """Copies ``n`` images of the first of SOURCES that exists into ``folder``, which must not exist; returns that source.

    They are taken evenly from all of them, and several times if there are fewer. FileNotFoundError without any source.
    """
    source = next((Path(s) for s in SOURCES if Path(s).is_dir()), None)
    if source is None:
        raise FileNotFoundError(f"There are no images in {', '.join(SOURCES)}; run this in the folder that holds data/.")
    paths = image_paths(source)
    folder.mkdir(parents=True)
    for i in range(n):
        path = Path(paths[i * len(paths) // n if len(paths) >= n else i % len(paths)])
        shutil.copy(path, folder / f"{i:05}{path.suffix}")
    return source
