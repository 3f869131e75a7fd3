"""What the simplest auto-encoder reaches, principal components of patches: ``python -m bench.pca``."""

import torch
from torch import Tensor
from tqdm import tqdm

from homework.core import cli
from homework.datasets.images import ImageDataset
from homework.nn.blocks import pad_to_patches, unpatch

BATCH = 64


def patches(x: Tensor, P: int) -> Tensor:
    """(B,H,W,3) -> (B,h,w,P*P*3), edge-padded to complete patches."""
    x = pad_to_patches(x, P)
    x = x.unflatten(2, (-1, P)).unflatten(1, (-1, P))  # (B,h*P,w*P,3) -> (B,h,P,w,P,3)
    return x.transpose(2, 3).flatten(3)  # (B,h,P,w,P,3) -> (B,h,w,P*P*3)


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
    data, size = ImageDataset(train), 3 * patch_size**2
    used = torch.arange(0, len(data), max(1, len(data) // limit))[:limit]
    total, squares, n = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64), 0
    for some in tqdm(used.split(BATCH), "covariance"):
        x = patches(data.batch(some), patch_size).flatten(0, 2)  # (B,h,w,d) -> (n,d)
        total, squares, n = total + x.sum(dim=0), squares + (x.T @ x).double(), n + len(x)
    mean = total / n
    axes = torch.linalg.eigh(squares / n - mean.outer(mean)).eigenvectors[:, -numbers:].float()  # (d,numbers)
    mean, data, error = mean.float(), ImageDataset(valid), 0.0
    for some in tqdm(torch.arange(len(data)).split(BATCH), "error"):
        images = data.batch(some)
        x = patches(images, patch_size)
        again = unpatch((x - mean) @ axes @ axes.T + mean, patch_size)[:, : images.shape[1], : images.shape[2]]
        error += (again - images).square().mean(dim=(1, 2, 3)).sum().item()
    print(f"{numbers} numbers for a patch of {patch_size}x{patch_size}: MSE {error / len(data):.5f}")


if __name__ == "__main__":
    cli.main("python -m bench.pca", pca)
