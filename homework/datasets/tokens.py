"""Grids of tokens on disk."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homework.core import checkpoint, files, fingerprint
from homework.datasets.base import Dataset, Indices
from homework.datasets.features import FeatureModel
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
    ``{"tokens": (N, h, w), "n_tokens": int, "names": the images' paths, "codes": (n_tokens, d) float32 or missing, "lmbda":
    (N) float32, at which each was found, or missing}``, or a plain tensor (N, h, w); or from the files in a folder,
    ``root/tokenized_{split}``, that ``tokenize --shards`` wrote. FileNotFoundError if there is no such file, ValueError if
    it holds something else."""

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
        if (not isinstance(tokens, Tensor) or tokens.ndim != 3 or not tokens.numel()
                or tokens.is_floating_point() or tokens.is_complex()):  # fmt: skip
            raise ValueError(f"{path} holds no grids of tokens (N, h, w); make it with python -m homework.tokenize.")
        fields = data if isinstance(data, dict) else {}
        try:
            self.tokens = tokens.numpy()  # numpy, because torch has hardly any operations for uint16
            self.n_tokens = int(fields.get("n_tokens", int(self.tokens.max()) + 1))
            self.names, self.shift = list(fields.get("names", [])), fields.get("shift")
            texts = {type(text) for text in (*self.names, fields.get("tokenizer", ""))}
            known = texts == {str} and self.n_tokens < 2**63
        except (TypeError, ValueError, RuntimeError, OverflowError):
            known = False
        if not known:
            raise ValueError(f"{path} has fields of other types than python -m homework.tokenize writes; make it with that.")
        if self.names and len(self.names) != len(self.tokens):
            raise ValueError(f"{path} has {len(self.tokens)} grids, but {len(self.names)} names; make it again, with python "
                             "-m homework.tokenize.")  # fmt: skip
        self.images = fields.get("images")  # by which grids of several tokenizers know that they go together
        self.codes_of = fields.get(fingerprint.CODES_OF)
        self.meta = {"tokenizer": fields["tokenizer"]} if "tokenizer" in fields else {}
        self.size = self.tokens.shape[1:]
        if self.tokens.min() < 0 or self.tokens.max() >= self.n_tokens:
            raise ValueError(f"{path} holds tokens outside of [0, {self.n_tokens}).")
        self.lmbda = checked_lmbda(path, fields.get("lmbda"), len(self.tokens))
        self.codes = codes = fields.get("codes")
        if codes is not None and (not isinstance(codes, Tensor) or codes.ndim != 2 or len(codes) != self.n_tokens):
            raise ValueError(f"{path} holds code vectors that are not a table of {self.n_tokens} rows; make it again.")


def checked_lmbda(path: Path, lmbda: Any, n: int) -> Tensor | None:
    """The lmbda (n) of each grid in a file, or None if it has none. ValueError for anything else."""
    shaped = isinstance(lmbda, Tensor) and lmbda.is_floating_point() and lmbda.shape == (n,)
    if lmbda is not None and not (shaped and ((lmbda > 0) & lmbda.isfinite()).all()):
        raise ValueError(f"{path} does not say of each of its {n} grids at which lmbda it was found; make it again, with "
                         "python -m homework.tokenize.")  # fmt: skip
    return lmbda


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
    names = [name for part in parts.values() for name in part["names"]]
    joined = one | {"tokens": tokens, "names": names, "images": images}
    if found := [lmbda for path, part in parts.items()
                 if (lmbda := checked_lmbda(path, part.get("lmbda"), len(part["tokens"]))) is not None]:  # fmt: skip
        joined["lmbda"] = torch.cat(found)  # of fewer grids, if some files have none: then it is refused
    return joined


class MultiscaleDataset(Dataset):
    """The same images as coarser and as finer grids of tokens, for the stages of a cascade: ``tokenized_{split}.pth`` in the
    folders ``coarse`` and ``root``. ``ds[i]`` are two int64 grids, (hc, wc) and (h, w). Errors as of :class:`TokenDataset`;
    ValueError also if ``coarse`` is missing, or the two are not of the same images.

    If the checkpoint ``tokenizer`` made the finer grids and is residual, ``coarse`` are the folders of all coarser grids,
    the coarsest first, with commas between them, and ``ds[i]`` has in place of the first grid what these together say, the
    tokenizer's ``context`` (h, w, d) float32.
    """

    holds = "pairs of grids"

    def __init__(self, split: str = "train", root: str | Path = "data", coarse: str | Path | None = None,
                 tokenizer: str | Path | None = None):  # fmt: skip
        if coarse is None:
            raise ValueError("--coarse is missing: name the folder with the tokens of the coarser grids.")
        self.fine, folders = TokenDataset(split, root), str(coarse).split(",")
        self.coarser = [TokenDataset(split, folder) for folder in folders]
        self.coarse, self.names = self.coarser[-1], self.fine.names
        for folder, grids in zip(folders, self.coarser, strict=True):
            check_same_images(self.fine, f"{root}/tokenized_{split}.pth", grids, f"{folder}/tokenized_{split}.pth")
        self.residual = residual_tokenizer(tokenizer, self.fine.meta.get("tokenizer"))
        if len(folders) != (n := self.residual.n_coarser if self.residual else 1):
            raise ValueError(f"--coarse names {len(folders)} folders, but the grids of --tokenizer, {tokenizer}, need {n}: "
                             "one, or of a residual codebook those of all coarser ones, the coarsest first.")  # fmt: skip
        pair = ("coarse_", self.coarse), ("", self.fine)
        self.meta = {f"{prefix}tokenizer": data.meta["tokenizer"] for prefix, data in pair if data.meta}

    def __len__(self) -> int:
        return len(self.fine)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        coarse, fine = self.batch([range(len(self))[i]])
        return coarse[0], fine[0]

    def batch(self, indices: Indices, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        return self.known(indices).to(device), self.fine.batch(indices, device)

    @torch.no_grad()
    def known(self, indices: Indices) -> Tensor:
        """What a stage reads: grids (B,hc,wc) int64, or (B,h,w,d) float of residual ones."""
        grids = [data.batch(indices) for data in self.coarser]
        return self.residual.context(grids) if self.residual else grids[-1]

    def model_defaults(self) -> dict:
        coarse = {f"coarse_{k.removeprefix('n_')}": v for k, v in self.coarse.model_defaults().items()}
        residual = {"context_dim": self.known([0]).shape[-1]} if self.residual else {}
        return self.fine.model_defaults() | coarse | residual


def check_same_images(fine: TokenDataset, path: str, coarse: TokenDataset, coarse_path: str) -> None:
    """ValueError unless the grids in two files are of the same images."""
    if len(coarse) != len(fine) or coarse.names != fine.names:
        raise ValueError(f"{coarse_path} ({len(coarse)} grids) and {path} ({len(fine)} grids) are not of the same "
                         "images; make both with python -m homework.tokenize from the same ones.")  # fmt: skip
    if coarse.shift != fine.shift:
        raise ValueError(f"The copies in {coarse_path} were moved by up to {coarse.shift} pixels, but those in {path} by "
                         f"up to {fine.shift}; make both with one --shift.")  # fmt: skip
    if coarse.images and fine.images and coarse.images != fine.images:
        raise ValueError(f"{coarse_path} and {path} are of files of the same names, but of other images, or of copies moved "
                         "otherwise; make both with python -m homework.tokenize from the same ones.")  # fmt: skip


def residual_tokenizer(path: str | Path | None, made_by: str | None) -> FeatureModel | None:
    """The tokenizer in a checkpoint, if there is one, and it is the one that grids were ``made_by``, and residual."""
    if path is None or made_by is None or not (path := checkpoint.locate(path)).is_file():
        return None
    model = checkpoint.load(path)
    return model if isinstance(model, FeatureModel) and model.n_coarser and fingerprint.is_of(made_by, model) else None
