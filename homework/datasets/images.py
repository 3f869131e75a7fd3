"""Images of one size in a memory-mapped cache."""

import contextlib
import errno
import hashlib
import os
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from homework.core import files
from homework.datasets.base import Dataset, Indices
from homework.datasets.image_files import Source, batches_of, check_size, decoded, image_paths, without_bad_images
from homework.datasets.shards import file_version

DECODED = 2  # what decoding gives: another number when it gives other pixels, so that what is kept is made again
KEPT = 30 * 24 * 3600  # seconds that a cache is kept without being used


def to_float(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-0.5, 0.5], on the same device."""
    return pixels.float().div_(255).sub_(0.5)


def as_float(pixels: Tensor) -> Tensor:
    """uint8, or float of any precision in [-0.5, 0.5] -> float32 in [-0.5, 0.5], on the same device."""
    return to_float(pixels) if pixels.dtype == torch.uint8 else pixels.float()


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-0.5, 0.5] (clamped to it) -> uint8, rounded to the nearest."""
    return images.float().add(0.5).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def mirrored(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each image of (B, H, W, 3) left-right, in place, with probability 1/2 from a CPU ``generator``."""
    chosen = (torch.rand(len(batch), generator=generator) < 0.5).nonzero()[:, 0].to(batch.device)
    batch[chosen] = batch[chosen].flip(2)
    return batch


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

    The file (N*H*W*3 bytes) is in :func:`cache_folder`. It is made again when an image's name, size or time changes.
    ``image_size`` is (H, W) to scale and crop to; None requires that all images have one size: a ValueError names the first
    that is of another, or damaged; ``skip_bad`` leaves these out, for which all are decoded each time, and ``left_out`` says
    what is wrong with them. ``limit`` takes the first so many images.
    """

    def __init__(self, source: Source = "train", image_size: tuple[int, int] | None = None, root: str | Path = "data",
                 limit: int | None = None, skip_bad: bool = False):  # fmt: skip
        self.names = list(image_paths(source, root)[:limit])
        if skip_bad:
            self.left_out = list[str]()
            self.names = without_bad_images(self.names, image_size, 0, self.left_out)
        origin = str(root), str(source) if isinstance(source, str | Path) else self.names, limit
        self.images = np.load(_cache(self.names, origin, image_size), mmap_mode="r")
        self.size = self.images.shape[1:3]

    def augment(self, batch: Tensor, generator: torch.Generator, indices: Tensor | None = None) -> Tensor:
        return mirrored(batch, generator)


def cache_folder() -> Path:
    """Where decoded images are kept: the folder HOMEWORK_CACHE, else the platform's for caches, else, where that cannot be
    written, a temporary one that only this user may write. OSError if there is none."""
    home, uid = Path(os.path.expanduser("~")), getattr(os, "getuid", int)()
    platform = {"win32": ("LOCALAPPDATA", home / "AppData/Local"), "darwin": ("", home / "Library/Caches")}
    variable, default = platform.get(sys.platform, ("XDG_CACHE_HOME", home / ".cache"))
    own = os.environ.get("HOMEWORK_CACHE") or Path(os.environ.get(variable) or default, "homework")
    temporary = Path(tempfile.gettempdir(), f"homework-cache-{uid}")
    for folder in Path(own), temporary:
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            info = folder.lstat()
            private = stat.S_ISDIR(info.st_mode) and info.st_uid == uid and not (os.name == "posix" and info.st_mode & 0o022)
            if os.access(folder, os.W_OK) and (private or folder != temporary):
                return folder
    raise OSError(f"Decoded images need a folder, but neither {own} nor {temporary} can be used; set HOMEWORK_CACHE to one.")


def _cache(names: list[str], origin: tuple, image_size: tuple[int, int] | None) -> Path:
    """The .npy file (N, H, W, 3) uint8 of the images ``names``, made if need be; it replaces others of ``origin``."""
    prefix = hashlib.sha256(repr((os.getcwd(), origin, image_size)).encode()).hexdigest()[:8]
    content = hashlib.sha256(bytes([DECODED]))
    for name in names:
        size, changed = file_version(name)
        content.update(os.fsencode(f"{os.path.abspath(name)}\0{size}\0{changed}\0"))
    path = cache_folder() / f"{prefix}-{content.hexdigest()[:24]}.npy"
    if path.is_file():
        os.utime(path)  # it is in use
        return path
    try:
        with files.replacing(path) as temporary, open(temporary, "wb") as file:
            _decode_all(names, image_size, file)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(f"The disk is full: the images need a cache in {path.parent}; make room there, or set "
                          "HOMEWORK_CACHE to another folder.") from error  # fmt: skip
        raise
    for old in path.parent.glob("[0-9a-f]" * 8 + "-" + "[0-9a-f]" * 24 + ".npy"):
        with contextlib.suppress(OSError):  # another process has removed it, or, on Windows, has it open
            unused = time.time() - old.stat().st_mtime > KEPT
            if old != path and (old.name.startswith(prefix) or unused):  # what this source was before, and what no one uses
                old.unlink()
    return path


def _decode_all(names: list[str], image_size: tuple[int, int] | None, file: BinaryIO) -> None:
    # plain writes, not a writable map: on a full disk the one raises OSError, the other kills the process
    size = None
    with tqdm(total=len(names), desc="decoding", unit="img", leave=False) as bar:
        for batch, images in decoded(batches_of(names, 128), image_size):
            for name, image in zip(batch, images, strict=True):
                if isinstance(image, str):
                    raise ValueError(image)
                if size is None:
                    size = image.shape[:2]
                    header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), *size, 3)}
                    np.lib.format.write_array_header_1_0(file, header)
                check_size(name, image, names[0], size)
                file.write(image.tobytes())
            bar.update(len(batch))
