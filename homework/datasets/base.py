"""The contract of data sets: what the training loop asks of them."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from homework.core.model import Model

Indices = np.ndarray | Tensor | Sequence[int]


class Sliceable(Protocol):
    def __getitem__(self, places: slice, /) -> Tensor: ...


class Dataset:
    """Samples that a model is trained on. The loop calls the constructor as ``(split, root=..., **options)``, with a split
    of "train" or "valid", the folder that ``--data`` names, and those of its options that the class has.
    A class becomes available as ``--dataset NAME`` by ``homework.datasets.kinds.DATASETS[NAME] = CLASS``."""

    holds: ClassVar[str]  # "images", "grids", "pairs of grids" or "features"; a model takes all that hold what its kind does
    random_access: ClassVar[bool] = True  # False if samples that are far from each other take long to read
    names: Sequence[str] = ()  # what the samples are called, as the paths of images; or, of streams, the shards with them
    left_out: Collection[str] = ()  # a sentence about each bad sample that is not used, as far as that is known by now
    meta: dict[str, Any] = {}  # what a checkpoint keeps of the data, such as the identity of the tokenizer that made it
    codes: Tensor | None = None  # the tokenizer's code vectors (K,d), if they came with the data

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, i: int) -> Any:
        return self.batch([range(len(self))[i]])[0]

    def batch(self, indices: Indices, device: torch.device | str = "cpu") -> Any:
        """The samples at ``indices`` (B), as a model takes them, on ``device``: (B,H,W,3) float32 in [-0.5,0.5] for images,
        (B,h,w) int64 for grids, two of these for pairs, (B,h,w,C) float32 for features."""
        raise NotImplementedError

    def order(self, n: int, seeded: Callable[..., torch.Generator]) -> Sliceable:
        """The order of an epoch: a permutation of the first ``n`` indices, of which only slices ``order[i:j]``, (j-i) int64,
        are taken. ``seeded()``, and ``seeded(k)`` for any integers k, are CPU generators to draw it by."""
        return torch.randperm(n, generator=seeded())

    def prefetch(self, indices: Indices) -> None:
        """Says of which samples the next batches will be, so that they can be read meanwhile."""

    def augment(self, batch: Any, generator: torch.Generator, indices: Tensor | None = None) -> Any:
        """A batch of the samples at ``indices``, changed by draws from a CPU ``generator``; unchanged by default."""
        return batch

    def model_defaults(self) -> dict[str, Any]:
        """Arguments of a model's constructor that follow from the data; those that it does not have are left out."""
        return {}

    def prepare(self, model: Model) -> None:
        """Called once with each new model, before its first update."""

    def check(self, model: Model) -> None:
        """Called with a trained model that is to be trained further on this data; ValueError if it cannot be."""
