"""The images that a submission is measured on."""

from pathlib import Path

import numpy as np
from PIL import Image


def read(root: str | Path) -> tuple[np.ndarray, np.ndarray, Path]:
    """All images of ``root / "valid"``, or of ``root / "sample"`` where that has none, in sorted order.

    Returns:
        frames: uint8 (N,H,W,3).
        sizes: int64 (N,), bytes of each JPEG file.
        folder: the one that was read.
    Raises:
        ValueError: there are no images, one cannot be read, or they differ in size; names the file.
    """
    for folder in (Path(root) / "valid", Path(root) / "sample"):
        if paths := sorted([*folder.glob("*.jpg"), *folder.glob("*.jpeg")]):
            break
    else:
        raise ValueError(f"There are no images in {root}/valid or {root}/sample; name the data folder with --data.")
    frames = np.empty((0, 0, 0, 3), np.uint8)
    for i, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                frame = np.asarray(image.convert("RGB"))
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} cannot be read as an image.") from error
        if i == 0:
            frames = np.empty((len(paths), *frame.shape), np.uint8)
        if frame.shape != frames.shape[1:]:
            (h, w), (H, W) = frame.shape[:2], frames.shape[1:3]
            raise ValueError(f"{path} is {h}x{w} pixels, but the images before it are {H}x{W}.")
        frames[i] = frame
    return frames, np.array([path.stat().st_size for path in paths]), folder
