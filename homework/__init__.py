"""Image tokenizers and autoregressive priors: train, generate, grade."""

from homework.ae import PatchAutoEncoder
from homework.autoregressive import AutoregressiveModel
from homework.bsq import BSQPatchAutoEncoder
from homework.data import ImageDataset, TokenDataset

__all__ = ["AutoregressiveModel", "BSQPatchAutoEncoder", "ImageDataset", "PatchAutoEncoder", "TokenDataset"]
