"""Token grids that a prior made, as image files."""

from pathlib import Path

from torch import Tensor

from homework.core.model import ordinary_tensors
from homework.datasets.images import to_uint8
from homework.evaluation.report import save_picture
from homework.tokenizers.base import Tokenizer


@ordinary_tensors
def decode(tokenizer: Tokenizer, grids: Tensor) -> Tensor:
    """(B,h,w) int64 grids -> (B,H,W,3) uint8 images on the CPU."""
    return to_uint8(tokenizer.decode_index(grids)).cpu()


def save_images(images: Tensor, folder: Path, first: int) -> None:
    """Writes (B,H,W,3) uint8 images as generation_{first}.png and so on, each completely or not at all."""
    for i, image in enumerate(images, first):
        save_picture(image, folder / f"generation_{i}.png")
