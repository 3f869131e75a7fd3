"""Files to tokens in batches, with the next one being decoded meanwhile, beside one image after the other."""

from collections.abc import Iterator
from pathlib import Path

import torch

from bench.common import Line, compare, load
from homework.data import to_float
from homework.images import image_paths, read_image
from homework.tokenize import encode_files

N, BATCH = 192, 64


@torch.inference_mode()
def one_by_one(model: torch.nn.Module, paths: list[str]) -> dict:
    return {path: model.encode_index(to_float(torch.from_numpy(read_image(path).copy()))) for path in paths}


def measure(data: Path) -> Iterator[Line]:
    model, paths = load("BSQPatchAutoEncoder"), image_paths("train", data)[:N]
    fast, plain = compare(lambda: encode_files(model, paths, BATCH), lambda: one_by_one(model, paths), repeats=3)
    yield Line(f"tokenizing {len(paths)} files", len(paths) / fast, len(paths) / plain, "homework.tokenize | one by one")
