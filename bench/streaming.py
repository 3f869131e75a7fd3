"""How much memory streams of images take, by their number: ``python -m bench.streaming``."""

import contextlib
import io
import json
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
from homework.datasets.shards import FORMAT, MANIFEST, VERSION
from homework.evaluate import evaluate
from homework.features import features
from homework.tokenize import tokenize

SIDE, IN_SHARD, BATCH = 8, 10_000, 64  # pixels of an image, images in a shard, images at a time
LIMIT = 20  # images that are compared with other codecs


def nothing(folder: Path) -> None:
    """What the others import."""


def train(folder: Path) -> None:
    """One epoch, as the training loop reads it."""
    data = ShardDataset("train", folder)
    order = data.order(len(data), partial(generator, 0, 0))
    for start in range(0, len(data), BATCH):
        data.batch(order[start : start + BATCH])


def tokens(folder: Path) -> None:
    """A file of tokens for each shard, by a very small tokenizer."""
    tokenize(str(folder / "t.pth"), str(folder / "out"), str(folder / "train"), shards=True, batch_size=BATCH, device="cpu")


def maps(folder: Path) -> None:
    """A file of feature maps for each shard, by a very small auto-encoder."""
    features(str(folder / "a.pth"), str(folder / "train"), str(folder / "maps"), shards=True, batch_size=BATCH, device="cpu")


def report(folder: Path) -> None:
    """An evaluation of a few of all images."""
    evaluate(str(folder / "t.pth"), "uniform", str(folder / "train"), limit=LIMIT, out=str(folder / "report"), device="cpu")


PARTS = {"nothing": nothing, "train": train, "tokenize": tokens, "features": maps, "evaluate": report}


def measured(part: str, folder: Path) -> tuple[float, float]:
    """The seconds that a part takes in this process, and the largest resident set of the process, in MB."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        PARTS[part](folder)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def streaming(*n: int) -> None:
    """Prints the largest memory, and the images per second, of a process that reads N images as a training does, of one that
    tokenizes them, one that makes their feature maps, and one that compares 20 of them with other codecs; and, for
    comparison, the memory of one that only imports the same.

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
            for part in PARTS:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # a new process for each
                    seconds, peak = pool.submit(measured, part, Path(name)).result()
                rate = "" if part in ("nothing", "evaluate") else f"{images / seconds:,.0f}"
                print(f"{images:>10,}  {part:<10}{peak:>8,.0f}{rate:>10}", flush=True)


def make_shards(folder: Path, n: int) -> None:
    """Folders train, with shards of ``n`` images, and valid, with one image; a tokenizer, and an auto-encoder."""
    draw, pictures = np.random.default_rng(0), []
    for i in range(256):  # each is there many times
        path, file = folder / f"{i}.png", io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, format="PNG")
        path.write_bytes(file.getvalue())
        pictures.append((str(path), len(file.getvalue())))
    for split, count in ("train", n), ("valid", 1):
        shards = []
        for start in range(0, count, IN_SHARD):
            some = ((pictures[i % 256], i) for i in range(start, min(count, start + IN_SHARD)))
            members = [(path, f"{i:09}.png", size) for (path, size), i in some]
            shards.append({"name": f"{split}-{start // IN_SHARD:06}.tar", "images": len(members), "bytes": 0})
            write_shard(folder / split / shards[-1]["name"], members)
        (folder / split / MANIFEST).write_text(json.dumps({"format": FORMAT, "version": VERSION, "shards": shards}))
    torch.manual_seed(0)
    options = {"patch_size": SIDE, "latent_dim": 8, "encoder_blocks": 1, "decoder_blocks": 1, "detail": 2}
    checkpoint.save(model_class("BSQPatchAutoEncoder")(**options), folder / "t.pth")
    checkpoint.save(model_class("PatchAutoEncoder")(**options), folder / "a.pth")


if __name__ == "__main__":
    cli.main("python -m bench.streaming", streaming)
