"""Pictures that a person looks at: of numbers, side by side on a sheet, and as files. Knows no models."""

import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from homework.core import checks, files
from homework.datasets.image_files import batches_of
from homework.datasets.images import to_float

MARGIN = 4  # pixels between the pictures of a sheet


def heat(x: Tensor) -> Tensor:
    """(...) from 0 to 1 (clamped to it) -> (...,3) uint8: dark blue, red, light yellow."""
    ramp = np.array([[20, 16, 64], [190, 50, 95], [255, 240, 160]])
    x = x.float().cpu().numpy()
    return torch.from_numpy(np.stack([np.interp(x, [0, 0.5, 1], c) for c in ramp.T], axis=-1).astype(np.uint8))


def on_sheet(rows: Sequence[Sequence[np.ndarray]], scale: int = 1) -> np.ndarray:
    """Pictures (H,W) or (H,W,3) uint8 of one size, by rows, on a white sheet, each of their pixels ``scale`` wide."""
    H, W, *colours = rows[0][0].shape
    H, W = H * scale + MARGIN, W * scale + MARGIN
    sheet = np.full((len(rows) * H + MARGIN, len(rows[0]) * W + MARGIN, *colours), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            enlarged = np.asarray(picture).repeat(scale, axis=0).repeat(scale, axis=1)
            sheet[i * H + MARGIN : (i + 1) * H, j * W + MARGIN : (j + 1) * W] = enlarged
    return sheet


def in_rows(pictures: Sequence) -> list[Sequence]:
    """The pictures in rows, as near to a square as their number allows."""
    return batches_of(pictures, max(1, round(len(pictures) ** 0.5)))


def float_image(image: np.ndarray) -> Tensor:
    """(H,W,3) uint8 -> float in [-0.5,0.5]."""
    return to_float(torch.from_numpy(np.array(image)))


def save_picture(image: Tensor | np.ndarray, path: Path) -> None:
    """Writes (H,W) or (H,W,3) uint8 as a PNG, completely or not at all."""
    with files.replacing(path) as temporary:
        Image.fromarray(np.asarray(image)).save(temporary, format="PNG")


def remove_stale(folder: Path, pattern: str, written: Collection[str], overwrite: bool) -> None:
    """Removes, with ``overwrite``, what an earlier run of a command left in ``folder``: files whose names match the regular
    expression ``pattern`` and are not among those just ``written``. Without, says on stderr that they are there."""
    stale = sorted(p for p in folder.iterdir() if re.fullmatch(pattern, p.name) and p.name not in written)
    if overwrite:
        for path in stale:
            path.unlink()
    elif stale:
        print(f"{folder}: {checks.count(len(stale), 'picture')} of an earlier run, such as {stale[0].name}, stayed; "
              "--overwrite removes them.", file=sys.stderr)  # fmt: skip
