"""Activation functions by the names that constructors take."""

import torch.nn.functional as F
from torch import Tensor, nn


class SquaredReLU(nn.Module):
    """max(x, 0)^2 (So et al., arXiv 2109.08668)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


ACTIVATIONS = {
    "relu": nn.ReLU, "relu2": SquaredReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU,
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "none": nn.Identity,
}  # fmt: skip
