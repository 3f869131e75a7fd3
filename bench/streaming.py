"""How much memory streams of images take, by their number: ``python -m bench.streaming``."""

import io
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from homework.core import checkpoint, cli
from homework.core.devices import generator
from homework.core.registry import model_class
from homework.datasets.shard_dataset import ShardDataset
from homework.datasets.sharding import write_shard
from homework.tokenize import tokenize

SIDE, IN_SHARD, BATCH = 8, 10_000, 64  # pixels of an image, images in a shard, images at a time


def nothing(folder: Path) -> None:
    """What the others import."""


def train(folder: Path) -> None:
    """One epoch, as the training loop reads it."""
    shards = [folder / f"train-{i:06}.tar" for i in range(len(list(folder.glob("train-*"))))]
    data = ShardDataset("train", "::".join(map(str, [*shards, folder / "valid-000000.tar"])))
    order = data.order(len(data), partial(generator, 0, 0))
    for start in range(0, len(data), BATCH):
        data.batch(order[start : start + BATCH])


def tokens(folder: Path) -> None:
    """A file of tokens for each shard, by a very small tokenizer."""
    shards = [str(path) for path in sorted(folder.glob("train-*"))]
    tokenize(str(folder / "t.pth"), str(folder / "out"), *shards, shards=True, batch_size=BATCH, device="cpu")


def measured(part: str, folder: Path) -> tuple[float, float]:
    """The seconds that a part takes in this process, and the largest resident set of the process, in MB."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    {"nothing": nothing, "train": train, "tokenize": tokens}[part](folder)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def streaming(*n: int) -> None:
    """Prints the largest memory, and the images per second, of a process that reads N images as a training does, and of one
    that tokenizes them; and, for comparison, the memory of one that only imports the same.

    Examples:
        python -m bench.streaming 10000 100000 1000000

    Args:
        n: numbers of images, 10000 and 100000 by default: noise of 8x8 pixels, in shards of 10000.
    """
    numbers = [int(images) for images in n or (10_000, 100_000)]
    cli.at_least(1, n=min(numbers))
    print(f"{'images':>10}  {'part':<10}{'MB':>8}{'images/s':>10}")
    for images in numbers:
        with tempfile.TemporaryDirectory() as name:
            make_shards(Path(name), images)
            for part in "nothing", "train", "tokenize":
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # a new process for each
                    seconds, peak = pool.submit(measured, part, Path(name)).result()
                rate = "" if part == "nothing" else f"{images / seconds:,.0f}"
                print(f"{images:>10,}  {part:<10}{peak:>8,.0f}{rate:>10}", flush=True)


def make_shards(folder: Path, n: int) -> None:
    """Shards of ``n`` images for training, one for validation, and a tokenizer."""
    draw, pictures = np.random.default_rng(0), []
    for i in range(256):  # each is there many times
        path, file = folder / f"{i}.png", io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, format="PNG")
        path.write_bytes(file.getvalue())
        pictures.append((str(path), len(file.getvalue())))
    for split, count in ("train", n), ("valid", 1):
        for start in range(0, count, IN_SHARD):
            some = ((pictures[i % 256], i) for i in range(start, min(count, start + IN_SHARD)))
            members = [(path, f"{i:09}.png", size) for (path, size), i in some]
            write_shard(folder / f"{split}-{start // IN_SHARD:06}.tar", members)
    torch.manual_seed(0)
    options = {"patch_size": SIDE, "latent_dim": 8, "encoder_blocks": 1, "decoder_blocks": 1, "detail": 2}
    checkpoint.save(model_class("BSQPatchAutoEncoder")(**options), folder / "t.pth")


if __name__ == "__main__":
    cli.main("python -m bench.streaming", streaming)
