"""What the simplest auto-encoder reaches, principal components of patches: ``python -m bench.pca``."""

import torch
from tqdm import tqdm

from homework.core import cli
from homework.datasets.images import ImageDataset
from homework.nn.blocks import pad_to_patches, unpatch
from homework.nn.pca import components, patches

BATCH = 64


@torch.inference_mode()
def pca(train: str = "data/train", valid: str = "data/valid", patch_size: int = 25, numbers: int = 128,
        limit: int = 4000) -> None:  # fmt: skip
    """Prints the mean squared error of images from the principal components of their patches.

    Examples:
        python -m bench.pca
        python -m bench.pca --patch_size 5 --numbers 10

    Args:
        train: the folder of images that the components are of.
        valid: the folder of images on which the error is measured.
        patch_size: P, of patches of P x P pixels.
        numbers: how many components are kept of a patch.
        limit: how many of the training images are used.
    """
    cli.at_least(1, patch_size=patch_size, numbers=numbers, limit=limit)
    data = ImageDataset(train)
    used = torch.arange(0, len(data), max(1, len(data) // limit))[:limit]
    batches = (pad_to_patches(data.batch(some), patch_size) for some in tqdm(used.split(BATCH), "covariance"))
    mean, axes, _ = components((patches(x, patch_size).flatten(0, 2) for x in batches), numbers)
    data, error = ImageDataset(valid), 0.0
    for some in tqdm(torch.arange(len(data)).split(BATCH), "error"):
        images = data.batch(some)
        x = patches(pad_to_patches(images, patch_size), patch_size)
        again = unpatch((x - mean) @ axes @ axes.T + mean, patch_size)[:, : images.shape[1], : images.shape[2]]
        error += (again - images).square().mean(dim=(1, 2, 3)).sum().item()
    print(f"{numbers} numbers for a patch of {patch_size}x{patch_size}: MSE {error / len(data):.5f}")


if __name__ == "__main__":
    cli.main("python -m bench.pca", pca)
