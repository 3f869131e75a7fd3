"""MNIST: the IDX format of its files, the split, and the digits as grids and as images."""

import contextlib
import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from homework.datasets.images import Images
from homework.datasets.tokens import Grids

FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
N_TRAIN = 50_000  # of the first file; the others of it are for validation
HOW_TO_GET = "python -m homework.data mnist, or python -m homework.data import FOLDER if you have the files"
AGAIN = f"get it again with {HOW_TO_GET}."


def read_idx(path: str | Path, known_as: str | Path | None = None) -> np.ndarray:
    """The array of bytes in an IDX file, plain or gzipped (".gz"): two zero bytes, 8 for "unsigned bytes", the number of
    dimensions, each of them in 4 bytes (big-endian), data. ValueError, which calls the file ``known_as``, for anything else;
    FileNotFoundError if there is no such file."""
    path, intact = Path(path), True
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile):
        content, intact = _unpack_damaged(path), False
    path = known_as or path
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 4 or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path} is not an IDX file of bytes, or its header is cut off ({len(content)} bytes); {AGAIN}")
    shape = np.frombuffer(content, ">u4", content[3], offset=4).tolist()
    head, wanted = 4 + 4 * len(shape), math.prod(shape)
    if len(content) != head + wanted:
        raise ValueError(f"{path} should hold {head + wanted} bytes (unpacked) but holds {len(content)}; {AGAIN}")
    if not intact:
        raise ValueError(f"{path} is damaged: its checksum is wrong; {AGAIN}")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _unpack_damaged(path: Path) -> bytes:
    """As much of a damaged gzip file as can be unpacked."""
    content = path.read_bytes()
    for part in (content, content[:-8]):  # the last 8 bytes hold a checksum, and zlib gives nothing if it is wrong
        with contextlib.suppress(zlib.error):
            return zlib.decompressobj(wbits=31).decompress(part)
    return b""


def find(folder: Path, name: str) -> Path | None:
    """The file ``name`` in ``folder``, or its ``name.gz``; None if there is neither."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_split(split: str = "train", root: str | Path = "data") -> np.ndarray:
    """Digits (N,28,28) uint8, 0 for the background, from ``root/mnist``: "train" has 50 000, "valid" the 10 000 after them
    in the same file, "test" the 10 000 of the other file. FileNotFoundError if the files are not there; ValueError if there
    is no such split, or a file is damaged or of another shape."""
    if split not in ("train", "valid", "test"):
        raise ValueError(f"MNIST has the splits train, valid and test, but not {split!r}.")
    folder, name = Path(root) / "mnist", FILES[2 if split == "test" else 0]
    if (path := find(folder, name)) is None:
        raise FileNotFoundError(f"There is no {folder / name}.gz; get MNIST with {HOW_TO_GET}.")
    digits = read_idx(path)
    if digits.ndim != 3 or digits.shape[1:] != (28, 28) or len(digits) <= N_TRAIN * (split != "test"):
        raise ValueError(f"{path} holds {digits.shape}, but digits are (N,28,28), N > {N_TRAIN} for training; {AGAIN}")
    return {"train": digits[:N_TRAIN], "valid": digits[N_TRAIN:], "test": digits}[split]


def binary(digits: np.ndarray, how: float | str = 0) -> np.ndarray:
    """The ink of (N,28,28) uint8, of the same shape and type: 1 for pixels brighter than ``how`` in [0, 1), white being 1;
    or, for "sample", with a probability of the brightness, by a fixed seed. ValueError for another ``how``."""
    if isinstance(how, str) and how == "sample":
        draws = np.random.default_rng(0).integers(0, 255, digits.shape, dtype=np.uint8)  # 0 .. 254
        return (draws < digits).astype(np.uint8)
    if not isinstance(how, int | float) or isinstance(how, bool) or not 0 <= how < 1:
        raise ValueError(f"binarize is {how!r}, but must be a brightness of at least 0 and below 1, or sample.")
    return (digits > 255 * how).astype(np.uint8)


class MnistDataset(Grids):
    """MNIST's digits as grids of two tokens: 1 where there is ink, see :func:`binary`, 0 elsewhere. Arguments and errors as
    of :func:`read_split` and :func:`binary`; with "sample", ``augment`` makes a new draw each time, and everything else sees
    one draw, always the same."""

    n_tokens, size = 2, (28, 28)

    def __init__(self, split: str = "train", root: str | Path = "data", binarize: float | str = 0):
        self.digits = read_split(split, root)
        self.tokens, self.meta = binary(self.digits, binarize), {"binarize": binarize}

    def augment(self, batch: Tensor, generator: torch.Generator, indices: Tensor | None = None) -> Tensor:
        if self.meta["binarize"] != "sample":
            return batch
        digits = torch.from_numpy(self.digits[np.asarray(indices)])
        return (torch.randint(255, digits.shape, generator=generator, dtype=torch.uint8) < digits).long().to(batch.device)


class MnistImages(Images):
    """MNIST's digits as images, for tokenizers: grey, the same in all three channels; see :func:`read_split`."""

    size = (28, 28)

    def __init__(self, split: str = "train", root: str | Path = "data"):
        digits = read_split(split, root)
        self.images = np.broadcast_to(digits[..., None], (*digits.shape, 3))  # a view: the channels take no memory
        self.names = [f"{split}/{i:05}" for i in range(len(digits))]

    def model_defaults(self) -> dict:
        return {"height": 28, "width": 28}
