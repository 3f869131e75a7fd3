"""The contract of data sets: what the training loop asks of them."""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor


class Dataset:
    """Samples that a model is trained on.

    Attributes:
        holds: what a sample is: "images", "grids", "pairs of grids" or "features". A model takes every data set that holds
            the same as its own kind.
        names: what the samples are called, as the paths of images; empty if they have no names.
        meta: what a checkpoint keeps of the data, such as the identity of the tokenizer that made it.
        codes: the tokenizer's code vectors (K,d), if they came with the data.
    """

    holds: ClassVar[str]
    names: list[str]
    meta: dict[str, Any] = {}
    codes: Tensor | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, indices: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Any:
        """The samples at ``indices`` (B), as a model takes them, on ``device``."""
        raise NotImplementedError

    def augment(self, batch: Any, generator: torch.Generator, indices: Tensor | None = None) -> Any:
        """A batch of the samples at ``indices``, changed at random by draws from a CPU ``generator``; as it is by
        default."""
        return batch

    def model_defaults(self) -> dict[str, Any]:
        """Arguments of a model's constructor that follow from the data; those that it does not know are left out."""
        return {}

    def prepare(self, model: Any) -> None:
        """Called once with each new model, before its first update."""
