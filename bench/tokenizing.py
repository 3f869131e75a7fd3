"""Files to tokens in batches, with the next one being decoded meanwhile, beside one image after the other."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.common import Line, compare, load
from homework.datasets.image_files import image_paths, read_image
from homework.datasets.images import to_float
from homework.tokenize import tokenize
from homework.tokenizers.encoding import encode_files

N = 192
BATCH = inspect.signature(tokenize).parameters["batch_size"].default


@torch.inference_mode()
def one_by_one(model: torch.nn.Module, paths: list[str]) -> dict:
    return {path: model.encode_index(to_float(torch.from_numpy(read_image(path).copy()))) for path in paths}


def measure(data: Path) -> Iterator[Line]:
    model, paths = load("BSQPatchAutoEncoder"), image_paths("train", data)[:N]
    fast, plain = compare(lambda: encode_files(model, paths, BATCH), lambda: one_by_one(model, paths), repeats=3)
    what, ways = f"tokenizing {len(paths)} files, batch {BATCH}", "homework.tokenize | one by one"
    yield Line(what, len(paths) / fast, len(paths) / plain, ways)
