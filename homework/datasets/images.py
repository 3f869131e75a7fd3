"""Images of one size in a memory-mapped cache."""

import contextlib
import errno
import hashlib
import os
import tempfile
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from homework.core import files
from homework.datasets.base import Dataset, Indices
from homework.datasets.image_files import Source, check_size, image_paths, read_image


def to_float(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-0.5, 0.5], on the same device."""
    return pixels.float().div_(255).sub_(0.5)


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-0.5, 0.5] (clamped to it) -> uint8, rounded to the nearest."""
    return images.float().add(0.5).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


class Images(Dataset):
    """Images of one size, ``images`` (N, H, W, 3) uint8; ``ds[i]`` is uint8 (H, W, 3)."""

    holds = "images"
    images: np.ndarray
    size: tuple[int, ...]  # (H, W)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(np.array(self.images[i]))

    def batch(self, indices: Indices, device: torch.device | str = "cpu") -> Tensor:
        pixels = torch.from_numpy(np.asarray(self.images[np.asarray(indices)]))
        return to_float(pixels.to(device))  # moved as bytes: a quarter of the traffic


class ImageDataset(Images):
    """Images, see :func:`image_paths`, decoded once into a memory-mapped file; ``names`` are the paths, sorted.

    The cache is in ``root/.cache`` (N*H*W*3 bytes; beside a dataset.json), or in a temporary folder where that cannot be
    written. It is made again when a file's name, size or time changes. ``image_size`` is (H, W) to scale and crop to; None
    requires that all images have one size: a ValueError names the first that is of another, or damaged.
    """

    def __init__(self, source: Source = "train", image_size: tuple[int, int] | None = None, root: str | Path = "data"):
        self.names = image_paths(source, root)
        origin = str(source) if isinstance(source, str | Path) else self.names
        self.images = np.load(_cache(self.names, origin, image_size, Path(root)), mmap_mode="r")
        self.size = self.images.shape[1:3]

    def augment(self, batch: Tensor, generator: torch.Generator, indices: Tensor | None = None) -> Tensor:
        """Mirrors each image of (B, H, W, 3) left-right, in place, with probability 1/2 from a CPU ``generator``."""
        mirrored = (torch.rand(len(batch), generator=generator) < 0.5).nonzero()[:, 0].to(batch.device)
        batch[mirrored] = batch[mirrored].flip(2)
        return batch


def _cache(names: list[str], origin: str | list[str], image_size: tuple[int, int] | None, root: Path) -> Path:
    """The .npy file (N, H, W, 3) uint8 of the images ``names``, made if need be; it replaces others of ``origin``."""
    prefix = hashlib.sha256(repr((os.getcwd(), str(root), origin, image_size)).encode()).hexdigest()[:8]
    content = hashlib.sha256()
    for name, stat in zip(names, map(os.stat, names), strict=True):
        content.update(os.fsencode(f"{os.path.abspath(name)}\0{stat.st_size}\0{stat.st_mtime_ns}\0"))
    beside = root.parent if root.is_file() else root
    folders = [beside / ".cache"] * beside.is_dir()
    folders += [Path(tempfile.gettempdir()) / f"homework-cache-{getattr(os, 'getuid', int)()}"]
    paths = [folder / f"{prefix}-{content.hexdigest()[:24]}.npy" for folder in folders]
    return next((path for path in paths if path.is_file()), None) or _make_cache(names, image_size, paths, prefix)


def _make_cache(names: list[str], image_size: tuple[int, int] | None, paths: list[Path], prefix: str) -> Path:
    """Writes the cache to the first of ``paths`` that can be written, and removes others of its ``prefix`` there."""
    for path in paths:
        try:
            with files.replacing(path) as temporary, open(temporary, "wb") as file:
                _decode_all(names, image_size, file)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(f"The disk is full: the images need a cache in {path.parent}; make room there.") from error
            if path == paths[-1] or error.filename in names:  # an image that is gone, not a read-only folder
                raise
            continue
        for old in path.parent.glob(f"{prefix}-*"):  # what this source was before, and what killed processes left
            with contextlib.suppress(FileNotFoundError):  # another process that makes the same cache renames its own file
                if old != path and (old.suffix == ".npy" or old.stat().st_mtime < time.time() - 3600):
                    old.unlink()
        return path
    raise AssertionError("unreachable")


def _decode_all(names: list[str], image_size: tuple[int, int] | None, file: BinaryIO) -> None:
    # plain writes, not a writable map: on a full disk the one raises OSError, the other kills the process
    size = None
    with ThreadPool(os.cpu_count()) as pool, tqdm(total=len(names), desc="decoding", unit="img", leave=False) as bar:
        for start in range(0, len(names), 256):  # in pieces, so that decoding cannot run away from a slow disk
            chunk = names[start : start + 256]
            for name, image in zip(chunk, pool.imap(lambda n: read_image(n, image_size), chunk), strict=True):
                if size is None:
                    size = image.shape[:2]
                    header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), *size, 3)}
                    np.lib.format.write_array_header_1_0(file, header)
                check_size(name, image, names[0], size)
                file.write(image.tobytes())
                bar.update()
