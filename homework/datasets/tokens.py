"""Grids of tokens on disk."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homework.core import files, fingerprint
from homework.datasets.base import Dataset, Indices
from homework.datasets.image_files import SPLITS


class Grids(Dataset):
    """Grids of tokens, ``tokens`` (N, h, w) of any integer type; ``ds[i]`` is int64 (h, w) in [0, ``n_tokens``)."""

    holds = "grids"
    tokens: np.ndarray
    n_tokens: int
    size: tuple[int, ...]  # (h, w)

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Indices, device: torch.device | str = "cpu") -> Tensor:
        return torch.from_numpy(self.tokens[np.asarray(indices)].astype(np.int64)).to(device)

    def model_defaults(self) -> dict:
        return {"n_tokens": self.n_tokens, "height": self.size[0], "width": self.size[1]}


def write_tokens(path: str | Path, grids: dict[str, np.ndarray], n_tokens: int, fields: dict[str, Any]) -> np.ndarray:
    """Writes grids (h, w) by name, and more ``fields``, as :class:`TokenDataset` reads them; returns them as (N, h, w)."""
    tokens = np.stack(list(grids.values()))
    names = [str(name) for name in grids]  # of a plain type
    files.write({"tokens": torch.from_numpy(tokens), "n_tokens": n_tokens, "names": names} | fields, path)
    return tokens


class TokenDataset(Grids):
    """Grids of tokens that ``homework.tokenize`` wrote, from a file or from that of a split, ``root/tokenized_{split}.pth``:
    ``{"tokens": (N, h, w), "n_tokens": int, "names": the images' paths, "codes": (n_tokens, d) float32 or missing}``, or a
    plain tensor (N, h, w); or from the files in a folder, ``root/tokenized_{split}``, that ``tokenize --shards`` wrote.
    FileNotFoundError if there is no such file, ValueError if it holds something else."""

    def __init__(self, source: str | Path = "train", root: str | Path = "data"):
        path = Path(root) / f"tokenized_{source}.pth" if source in SPLITS else Path(source)
        if source in SPLITS and path.with_suffix("").is_dir() and not path.is_file():
            path = path.with_suffix("")
        if not path.is_file() and not path.is_dir():
            images = Path(root) / source if source in SPLITS else "IMAGES"
            raise FileNotFoundError(f"There are no tokens {path}; make them with python -m homework.tokenize TOKENIZER "
                                    f"{path} {images}.")  # fmt: skip
        data = _joined(path) if path.is_dir() else files.read(path)
        tokens = data.get("tokens") if isinstance(data, dict) else data
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.is_floating_point() or not tokens.numel():
            raise ValueError(f"{path} holds no grids of tokens (N, h, w); make it with python -m homework.tokenize.")
        fields = data if isinstance(data, dict) else {}
        try:
            self.tokens = tokens.numpy()  # numpy, because torch has hardly any operations for uint16
            self.n_tokens = int(fields.get("n_tokens", int(self.tokens.max()) + 1))
            self.names, self.shift = list(fields.get("names", [])), fields.get("shift")
            known = type(fields.get("tokenizer", "")) is str and self.n_tokens < 2**63
        except (TypeError, ValueError, RuntimeError, OverflowError):
            known = False
        if not known:
            raise ValueError(f"{path} has fields of other types than python -m homework.tokenize writes; make it with that.")
        self.images = fields.get("images")  # by which grids of several tokenizers know that they go together
        self.codes_of = fields.get(fingerprint.CODES_OF)
        self.meta = {"tokenizer": fields["tokenizer"]} if "tokenizer" in fields else {}
        self.size = self.tokens.shape[1:]
        if self.tokens.min() < 0 or self.tokens.max() >= self.n_tokens:
            raise ValueError(f"{path} holds tokens outside of [0, {self.n_tokens}).")
        self.codes = codes = fields.get("codes")
        if codes is not None and (not isinstance(codes, Tensor) or codes.ndim != 2 or len(codes) != self.n_tokens):
            raise ValueError(f"{path} holds code vectors that are not a table of {self.n_tokens} rows; make it again.")


def _joined(folder: Path) -> dict[str, Any]:
    """What the files of a folder hold, as if they were one. FileNotFoundError if there are none; ValueError if they do not
    go together."""
    parts = {path: files.read(path) for path in sorted(folder.glob("*.pth"))}
    if not parts:
        raise FileNotFoundError(f"There are no files of tokens in {folder}; make them with python -m homework.tokenize "
                                f"TOKENIZER {folder} SHARDS --shards.")  # fmt: skip
    (first, one), alike = next(iter(parts.items())), ("n_tokens", "tokenizer", "shift", fingerprint.CODES_OF)
    for path, part in parts.items():
        tokens = part.get("tokens") if isinstance(part, dict) else None
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or not isinstance(part.get("names"), list):
            raise ValueError(f"{path} holds no grids of tokens (N, h, w); make it with python -m homework.tokenize.")
        if tokens.shape[1:] != one["tokens"].shape[1:] or any(part.get(key) != one.get(key) for key in alike):
            raise ValueError(f"{path} holds grids of another size or tokenizer than {first}; make all of them in one "
                             "python -m homework.tokenize ... --shards, with --image_size.")  # fmt: skip
    images = hashlib.sha256(repr([part.get("images") for part in parts.values()]).encode()).hexdigest()[:16]
    tokens = torch.from_numpy(np.concatenate([part["tokens"].numpy() for part in parts.values()]))
    return one | {"tokens": tokens, "names": [name for part in parts.values() for name in part["names"]], "images": images}


class MultiscaleDataset(Dataset):
    """The same images as coarser and as finer grids of tokens, for the stages of a cascade: ``tokenized_{split}.pth`` in the
    folders ``coarse`` and ``root``. ``ds[i]`` are two int64 grids, (hc, wc) and (h, w). Errors as of :class:`TokenDataset`;
    ValueError also if ``coarse`` is missing, or the two are not of the same images."""

    holds = "pairs of grids"

    def __init__(self, split: str = "train", root: str | Path = "data", coarse: str | Path | None = None):
        if coarse is None:
            raise ValueError("--coarse is missing: name the folder with the tokens of the coarser grids.")
        self.coarse, self.fine = (TokenDataset(split, folder) for folder in (coarse, root))
        self.names = self.fine.names
        one, other = (f"{folder}/tokenized_{split}.pth" for folder in (coarse, root))
        if len(self.coarse) != len(self.fine) or self.coarse.names != self.fine.names:
            raise ValueError(f"{one} ({len(self.coarse)} grids) and {other} ({len(self.fine)} grids) are not of the same "
                             "images; make both with python -m homework.tokenize from the same ones.")  # fmt: skip
        if self.coarse.shift != self.fine.shift:
            raise ValueError(f"The copies in {one} were moved by up to {self.coarse.shift} pixels, but those in {other} by "
                             f"up to {self.fine.shift}; make both with one --shift.")  # fmt: skip
        if self.coarse.images and self.fine.images and self.coarse.images != self.fine.images:
            raise ValueError(f"{one} and {other} are of files of the same names, but of other images, or of copies moved "
                             "otherwise; make both with python -m homework.tokenize from the same ones.")  # fmt: skip
        pair = ("coarse_", self.coarse), ("", self.fine)
        self.meta = {f"{prefix}tokenizer": data.meta["tokenizer"] for prefix, data in pair if data.meta}

    def __len__(self) -> int:
        return len(self.fine)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.coarse[i], self.fine[i]

    def batch(self, indices: Indices, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        return self.coarse.batch(indices, device), self.fine.batch(indices, device)

    def model_defaults(self) -> dict:
        coarse = {f"coarse_{k.removeprefix('n_')}": v for k, v in self.coarse.model_defaults().items()}
        return self.fine.model_defaults() | coarse
