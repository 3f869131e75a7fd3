"""Images with their grids of tokens."""

from pathlib import Path

import torch
from torch import Tensor

from homework.core import fingerprint
from homework.core.model import Model
from homework.datasets.base import Dataset, Indices
from homework.datasets.images import ImageDataset
from homework.datasets.tokens import TokenDataset


class TokenizedImages(Dataset):
    """Images, and the tokens that ``homework.tokenize`` found for them, in ``root/tokenized_{split}.pth``, for a tokenizer
    that is to make such tokens by itself. ``ds[i]`` is float32 (H,W,3) in [-0.5,0.5], int64 (h,w) and, if the file says it,
    float32 (), the lmbda at which they were found. Errors as of :class:`TokenDataset` and :class:`ImageDataset`, of which
    ``image_size`` is; ValueError also for tokens of copies, or of what is not an image."""

    holds = "images and their tokens"

    def __init__(self, split: str = "train", root: str | Path = "data", image_size: tuple[int, int] | None = None):
        self.tokens = TokenDataset(split, root)
        if self.tokens.shift or not self.tokens.images or not self.tokens.codes_of:
            raise ValueError(f"{root}/tokenized_{split}.pth does not hold one grid for each image of a folder; make it with "
                             "python -m homework.tokenize, without --copies.")  # fmt: skip
        self.meta = {fingerprint.CODES_OF: self.tokens.codes_of}
        self.images = ImageDataset([str(name) for name in self.tokens.names], image_size)
        self.names = self.images.names
        if self.names != self.tokens.names:
            raise ValueError(f"{root}/tokenized_{split}.pth names images twice, or not in order; make it with python -m "
                             "homework.tokenize.")  # fmt: skip

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Indices, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
        lmbda = [] if self.tokens.lmbda is None else [self.tokens.lmbda[torch.as_tensor(indices)].to(device)]
        return self.images.batch(indices, device), self.tokens.batch(indices, device), *lmbda

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        return tuple(part[0] for part in self.batch([range(len(self))[i]]))

    def model_defaults(self) -> dict:
        return {"n_tokens": self.tokens.n_tokens}

    def prepare(self, model: Model) -> None:
        raise ValueError(f"These are tokens of a trained tokenizer, so a new {type(model).__name__} cannot learn from them; "
                         "name that tokenizer's checkpoint in place of MODEL.")  # fmt: skip

    def check(self, model: Model) -> None:
        if not fingerprint.is_of(self.tokens.meta.get("tokenizer", ""), model):
            raise ValueError("These are tokens of another tokenizer than the one that is to be trained further; make them "
                             "with that one, by python -m homework.tokenize.")  # fmt: skip
