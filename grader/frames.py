"""The images that a submission is measured on, and those that it has learned from."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image


def read(root: str | Path) -> tuple[np.ndarray, np.ndarray, Path]:
    """All JPEG images of ``root / "valid"``, or of ``root / "sample"`` where that has none, in sorted order.

    Returns:
        frames: uint8 (N,H,W,3).
        sizes: int64 (N,), bytes of each JPEG file.
        folder: the one that was read.
    Raises:
        ValueError: there are no images, one cannot be read, or they differ in size; names the file.
    """
    for folder in (Path(root) / "valid", Path(root) / "sample"):
        if paths := jpegs(folder):
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


def jpegs(folder: Path) -> list[Path]:
    """The JPEG files in a folder, sorted."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


def known(root: str | Path, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """The JPEG images of ``root / "train"`` that have this size (H,W): float32 (b,H//5,W//5,3), means of 5x5 pixels in
    [-0.5,0.5], in batches. None where there is no such folder."""
    paths = jpegs(Path(root, "train"))
    H, W = size
    for start in range(0, len(paths), 1000):
        batch = []
        for path in paths[start : start + 1000]:
            with contextlib.suppress(OSError, Image.DecompressionBombError), Image.open(path) as image:
                if image.size == (W, H):
                    batch.append(np.asarray(image.convert("RGB").crop((0, 0, W // 5 * 5, H // 5 * 5)).reduce(5)))
        if batch:
            yield np.stack(batch).astype(np.float32) / 255 - 0.5
