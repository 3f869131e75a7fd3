"""What the measurements share: a clock, the images and the models to measure with, and a line of the table."""

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
    """Median seconds of both, run in turn, so that a machine that slows down slows both; the first run does not count."""
    times = [], []
    for _ in range(repeats + 1):
        for f, ts in zip((fast, plain), times, strict=True):
            start = time.perf_counter()
            f()
            ts.append(time.perf_counter() - start)
    return tuple(statistics.median(ts[1:]) for ts in times)


def checkpoint_path(name: str) -> Path:
    """Where the shipped model ``name`` would lie."""
    return checkpoint.PRETRAINED / f"{name}.pth"


def load(name: str) -> nn.Module:
    """The shipped model, or an untrained one of its class's defaults, in eval mode."""
    path = checkpoint_path(name)
    return checkpoint.load(path) if path.is_file() else model_class(name)().eval()


def describe(name: str) -> str:
    """Which model that is, for a reader of the table."""
    model, kind = load(name), "shipped" if checkpoint_path(name).is_file() else "untrained, of default size"
    return f"{name}: {kind}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"


def copy_images(folder: Path, n: int) -> Path:
    """Copies ``n`` images of the first source there is into ``folder``, which must not exist; returns the source.

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
