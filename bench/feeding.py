"""Images from the memory-mapped cache, beside decoding every file for every batch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.common import Line, compare
from homework.datasets.image_files import read_image
from homework.datasets.images import ImageDataset, to_float

BATCH = 64


def decoded(names: list[str], indices: np.ndarray | Tensor) -> Tensor:
    """The baseline: what ``ImageDataset.batch`` returns, (B,H,W,3) float32, read with Pillow file by file."""
    return to_float(torch.from_numpy(np.stack([read_image(names[i]) for i in indices])))


def measure(data: Path) -> Iterator[Line]:
    dataset = ImageDataset("train", root=data)
    indices = np.random.default_rng(0).integers(len(dataset), size=BATCH)
    fast, plain = compare(lambda: dataset.batch(indices), lambda: decoded(dataset.names, indices), repeats=15)
    yield Line(f"feeding, batch {BATCH}", BATCH / fast, BATCH / plain, "memory-mapped cache | decoding files with Pillow")
