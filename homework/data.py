"""Data sets: images in a memory-mapped cache, grids of tokens, MNIST; ``python -m homework.data`` puts them in place."""

import contextlib
import errno
import functools
import hashlib
import os
import tempfile
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from homework import checkpoint, cli
from homework.download import download, import_, mnist
from homework.feature_data import FeatureDataset
from homework.images import SPLITS, Source, check_size, image_paths, read_image
from homework.mnist import binary, read_split


def to_float(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-0.5, 0.5], on the same device."""
    return pixels.float().div_(255).sub_(0.5)


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-0.5, 0.5] (clamped to it) -> uint8, rounded to the nearest."""
    return images.float().add(0.5).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


class ImageDataset:
    """Images of one size, decoded once into a memory-mapped file.

    ``ds[i]`` is uint8 (H, W, 3); ``names`` are the paths, sorted; ``size`` is (H, W).

    Where ``root`` has no folders train/ and valid/, but images itself, or is a dataset.json, each 20th of its sorted images
    is for validation, the first one included, and the others are for training.

    The cache lies in ``root/.cache`` (N*H*W*3 bytes; beside a dataset.json), or in a temporary folder where that cannot be
    written. It is made anew when a file's name, size or time changes.
    """

    holds = "images"  # what a model is fed with; a grid data set has "grids"

    def __init__(self, source: Source = "train", image_size: tuple[int, int] | None = None, root: str | Path = "data"):
        """
        Args:
            source: see :func:`image_paths`.
            image_size: (H, W) to scale and crop to; None requires that all images have one size.
            root: the folder of the splits, a folder of images, or a dataset.json.
        Raises:
            FileNotFoundError: no such source.
            ValueError: there are no images, one is damaged, or one does not fit (the first is named).
        """
        self.names = image_paths(source, root)
        whole = str(source) if isinstance(source, str | Path) else self.names
        self.images = np.load(_cache(self.names, whole, image_size, Path(root)), mmap_mode="r")  # (N, H, W, 3)
        self.size = self.images.shape[1:3]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(np.array(self.images[i]))

    def batch(self, indices: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """The images at ``indices`` (B) as float32 (B, H, W, 3) in [-0.5, 0.5] on ``device``."""
        pixels = torch.from_numpy(np.asarray(self.images[np.asarray(indices)]))
        return to_float(pixels.to(device))  # moved as bytes: a quarter of the traffic

    def augment(self, batch: Tensor, generator: torch.Generator, indices: Tensor | None = None) -> Tensor:
        """Mirrors each image of (B, H, W, 3) left-right, in place, with probability 1/2 from a CPU ``generator``."""
        mirrored = (torch.rand(len(batch), generator=generator) < 0.5).nonzero()[:, 0].to(batch.device)
        batch[mirrored] = batch[mirrored].flip(2)
        return batch

    def model_defaults(self) -> dict:
        """What a model's constructor should know of the data: nothing."""
        return {}


def _cache(names: list[str], source: str | list[str], image_size: tuple[int, int] | None, root: Path) -> Path:
    """The .npy file (N, H, W, 3) uint8 of the images ``names``, made if need be; it replaces others of ``source``."""
    source = hashlib.sha256(repr((os.getcwd(), str(root), source, image_size)).encode()).hexdigest()[:8]
    content = hashlib.sha256()
    for name in names:
        stat = os.stat(name)
        content.update(os.fsencode(f"{os.path.abspath(name)}\0{stat.st_size}\0{stat.st_mtime_ns}\0"))
    file_name = f"{source}-{content.hexdigest()[:24]}.npy"
    temporary = Path(tempfile.gettempdir()) / f"homework-cache-{getattr(os, 'getuid', int)()}"
    beside = root.parent if root.is_file() else root
    folders = [beside / ".cache", temporary] if beside.is_dir() else [temporary]
    for folder in folders:
        if (folder / file_name).is_file():
            return folder / file_name
    for folder in folders:
        try:
            with checkpoint.replacing(folder / file_name) as path, open(path, "wb") as file:
                _decode_all(names, image_size, file)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and error.filename in names:
                raise
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(f"The disk is full: the images need a cache in {folder}; make room there.") from error
            if folder == folders[-1]:
                raise
            continue  # a read-only data folder
        for old in folder.glob(f"{source}-*"):  # what this source was before, and what killed processes left
            with contextlib.suppress(FileNotFoundError):  # another process that makes the same cache renames its own file
                if old.name != file_name and (old.suffix == ".npy" or old.stat().st_mtime < time.time() - 3600):
                    old.unlink()
        return folder / file_name
    raise AssertionError("unreachable")


def _decode_all(names: list[str], image_size: tuple[int, int] | None, file) -> None:
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


class TokenDataset:
    """Grids of tokens that ``homework.tokenize`` wrote.

    ``ds[i]`` is int64 (h, w) in [0, n_tokens); ``names`` are the images' paths; ``size`` is (h, w); ``codes`` are the
    tokenizer's code vectors, float32 (n_tokens, d), or None if they were not kept; ``meta`` holds the tokenizer's
    fingerprint, if it is known.
    """

    holds = "grids"

    def __init__(self, source: str | Path = "train", root: str | Path = "data"):
        """
        Args:
            source: a split ("train", "valid": ``root/tokenized_{split}.pth``) or a file, which holds
                ``{"tokens": (N, h, w), "n_tokens": int, "names": [str], "codes": (n_tokens, d) or missing}`` or a plain
                tensor (N, h, w).
        Raises:
            FileNotFoundError: no such file.
            ValueError: the file holds something else.
        """
        path = Path(root) / f"tokenized_{source}.pth" if source in SPLITS else Path(source)
        if not path.is_file():
            images = Path(root) / source if source in SPLITS else "IMAGES"
            raise FileNotFoundError(
                f"There are no tokens {path}; make them with python -m homework.tokenize TOKENIZER {path} {images}."
            )
        data = checkpoint.read(path)
        tokens = data.get("tokens") if isinstance(data, dict) else data
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.is_floating_point() or not tokens.numel():
            raise ValueError(f"{path} holds no grids of tokens (N, h, w); make it with python -m homework.tokenize.")
        self.tokens = tokens.numpy()  # numpy, because torch can hardly do a thing with uint16
        known = data if isinstance(data, dict) else {}
        self.n_tokens = int(known.get("n_tokens", self.tokens.max() + 1))
        self.names, self.shift = list(known.get("names", [])), known.get("shift")
        self.meta = {"tokenizer": known["tokenizer"]} if "tokenizer" in known else {}
        self.size = self.tokens.shape[1:]
        if self.tokens.min() < 0 or self.tokens.max() >= self.n_tokens:
            raise ValueError(f"{path} holds tokens outside of [0, {self.n_tokens}).")
        self.codes = known.get("codes")
        if self.codes is not None and (not isinstance(self.codes, Tensor) or self.codes.ndim != 2
                                       or len(self.codes) != self.n_tokens):  # fmt: skip
            raise ValueError(f"{path} holds code vectors that are no table of {self.n_tokens} rows; make it anew.")

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(self.tokens[i].astype(np.int64))

    def batch(self, indices: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """The grids at ``indices`` (B) as int64 (B, h, w) on ``device``."""
        return torch.from_numpy(self.tokens[np.asarray(indices)].astype(np.int64)).to(device)

    def augment(self, batch: Tensor, generator: torch.Generator, indices: Tensor | None = None) -> Tensor:
        """The batch as it is: a mirrored image has other tokens, not mirrored ones."""
        return batch

    def model_defaults(self) -> dict:
        """What a prior's constructor should know of the data."""
        return {"n_tokens": self.n_tokens, "height": self.size[0], "width": self.size[1]}


class MultiscaleDataset:
    """The same images as coarser and as finer grids of tokens, for the stages of a cascade.

    ``ds[i]`` are two int64 grids, the coarser one (hc, wc) and the finer one (h, w).
    """

    holds = "pairs of grids"

    def __init__(self, split: str = "train", root: str | Path = "data", coarse: str | Path | None = None):
        """
        Args:
            split: "train" or "valid": ``tokenized_{split}.pth`` in both folders.
            root: the folder with the tokens of the finer grids.
            coarse: the folder with those of the coarser ones.
        Raises:
            FileNotFoundError: a file is not there.
            ValueError: ``coarse`` is missing, a file holds something else, or the two are not of the same images.
        """
        if coarse is None:
            raise ValueError("--coarse is missing: name the folder with the tokens of the coarser grids.")
        self.coarse, self.fine = (TokenDataset(split, folder) for folder in (coarse, root))
        one, other = (f"{folder}/tokenized_{split}.pth" for folder in (coarse, root))
        if len(self.coarse) != len(self.fine) or self.coarse.names != self.fine.names:
            raise ValueError(f"{one} ({len(self.coarse)} grids) and {other} ({len(self.fine)} grids) are not of the same "
                             "images; make both with python -m homework.tokenize from the same ones.")  # fmt: skip
        if self.coarse.shift != self.fine.shift:
            raise ValueError(f"The copies in {one} were moved by up to {self.coarse.shift} pixels, but those in {other} by "
                             f"up to {self.fine.shift}; make both with one --shift.")  # fmt: skip
        self.meta = {f"{a}tokenizer": data.meta["tokenizer"] for a, data in (("coarse_", self.coarse), ("", self.fine))
                     if data.meta}  # fmt: skip

    def __len__(self) -> int:
        return len(self.fine)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.coarse[i], self.fine[i]

    def batch(self, indices: np.ndarray | Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """The grids at ``indices`` (B) as int64 (B, hc, wc) and (B, h, w) on ``device``."""
        return self.coarse.batch(indices, device), self.fine.batch(indices, device)

    def augment(self, batch: tuple, generator: torch.Generator, indices: Tensor | None = None) -> tuple:
        """The batch as it is, as for tokens."""
        return batch

    def model_defaults(self) -> dict:
        """What a stage's constructor should know of the data."""
        coarse = {"coarse_tokens": self.coarse.n_tokens, "coarse_height": self.coarse.size[0],
                  "coarse_width": self.coarse.size[1]}  # fmt: skip
        return self.fine.model_defaults() | coarse


class MnistDataset:
    """MNIST's digits as grids of two tokens: 1 where there is ink, 0 elsewhere.

    ``ds[i]`` is int64 (28, 28); ``size`` is (28, 28); ``n_tokens`` is 2.
    """

    holds, n_tokens, size = "grids", 2, (28, 28)

    def __init__(self, split: str = "train", root: str | Path = "data", binarize: float | str = 0):
        """
        Args:
            split: "train" (50 000), "valid" (10 000) or "test" (10 000).
            root: the folder in which mnist/ lies.
            binarize: a threshold in [0, 1): ink is what is brighter than it, black being 0 and white 1. Or "sample": a
                pixel is ink with a probability of its brightness; ``augment`` draws it afresh each time, and
                everything else sees one draw, always the same.
        Raises:
            FileNotFoundError: the files are not there.
            ValueError: a file is damaged, or binarize is something else.
        """
        self.digits = read_split(split, root)  # uint8 (N,28,28)
        self.drawn, self.meta = binarize == "sample", {"binarize": binarize}
        self.ink = binary(self.digits, binarize)

    def __len__(self) -> int:
        return len(self.ink)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(self.ink[i].astype(np.int64))

    def batch(self, indices: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """The digits at ``indices`` (B) as int64 (B, 28, 28) of 0 and 1 on ``device``."""
        return torch.from_numpy(self.ink[np.asarray(indices)]).to(device).long()

    def augment(self, batch: Tensor, generator: torch.Generator, indices: Tensor | None = None) -> Tensor:
        """The batch as it is; with binarize="sample" a fresh draw of the digits at ``indices``, from a CPU ``generator``."""
        if not self.drawn:
            return batch
        digits = torch.from_numpy(self.digits[np.asarray(indices)])
        return (torch.randint(255, digits.shape, generator=generator, dtype=torch.uint8) < digits).long().to(batch.device)

    def model_defaults(self) -> dict:
        """What a prior's constructor should know of the data."""
        return {"n_tokens": 2, "height": 28, "width": 28}


class MnistImages:
    """MNIST's digits as images, for tokenizers: grey, the same in all three channels. ``ds[i]`` is uint8 (28, 28, 3)."""

    holds, size = "images", (28, 28)

    def __init__(self, split: str = "train", root: str | Path = "data"):
        """``split``, ``root`` and errors as of :class:`MnistDataset`."""
        self.digits = read_split(split, root)  # uint8 (N,28,28)
        self.split = split

    @functools.cached_property
    def names(self) -> list[str]:
        """What a file of tokens calls the digits."""
        return [f"{self.split}/{i:05}" for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(self.digits[i].copy())[..., None].expand(-1, -1, 3)

    def batch(self, indices: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """The digits at ``indices`` (B) as float32 (B, 28, 28, 3) in [-0.5, 0.5] on ``device``."""
        grey = torch.from_numpy(self.digits[np.asarray(indices)]).to(device)
        return to_float(grey)[..., None].repeat(1, 1, 1, 3)

    def augment(self, batch: Tensor, generator: torch.Generator, indices: Tensor | None = None) -> Tensor:
        """The batch as it is: a mirrored digit is no digit."""
        return batch

    def model_defaults(self) -> dict:
        """What a model's constructor should know of the data."""
        return {"height": 28, "width": 28}


DATASETS = {
    "images": ImageDataset,
    "tokens": TokenDataset,
    "multiscale": MultiscaleDataset,
    "features": FeatureDataset,
    "mnist": MnistDataset,
    "mnist_images": MnistImages,
}


if __name__ == "__main__":
    cli.main("python -m homework.data", {"download": download, "mnist": mnist, "import": import_})
