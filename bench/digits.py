"""Digits under priors over their pixels, in nats an image: ``python -m bench.digits PRIOR ...``."""

import math

import torch
from tqdm import tqdm

from homework.core import checkpoint, cli
from homework.datasets.mnist import MnistDataset
from homework.priors.base import Prior

BATCH = 100


@torch.inference_mode()
def digits(*priors: str, data: str = "data", split: str = "test", binarize: float | str = 0,
           limit: int | None = None) -> None:  # fmt: skip
    """Prints nats an image, with their standard error over images, and nats a pixel, for every prior on the same digits.

    Examples:
        python -m bench.digits PixelCNN MnistGatedPixelCNN --split valid
        python -m bench.digits checkpoints/queue_binarized.pth --binarize sample

    Args:
        priors: checkpoints or names of priors over 28x28 pixels with or without ink.
        data: the folder in which mnist is.
        split: train, valid or test.
        binarize: the brightness from 0 to 1 above which there is ink; or sample, for one draw by the brightness.
        limit: how many of them to use at most, the first ones; all by default.
    """
    if not priors:
        raise ValueError("Name the priors to compare, as in PixelCNN MnistGatedPixelCNN.")
    if limit is not None:
        cli.at_least(2, limit=limit)
    grids = MnistDataset(split, data, binarize)
    some = torch.arange(min(len(grids), limit or len(grids)))
    print("| prior | parameters | nats an image | nats a pixel |\n|---|---|---|---|")
    for path in priors:
        model = checkpoint.load(path)
        if not isinstance(model, Prior) or model.n_tokens != grids.n_tokens:
            raise ValueError(f"{path} is not a prior over digits, as PixelCNN and MnistGatedPixelCNN are.")
        own = [model.bits(grids.batch(i)).sum(dim=(1, 2)) for i in tqdm(some.split(BATCH), desc=path, leave=False)]
        nats = math.log(2) * torch.cat(own).double()
        n_parameters = sum(p.numel() for p in model.parameters())
        error = nats.std() / len(nats) ** 0.5
        print(f"| {path} | {n_parameters:,} | {nats.mean():.2f} ± {error:.2f} | {nats.mean() / 28**2:.5f} |", flush=True)


if __name__ == "__main__":
    cli.main("python -m bench.digits", digits)
