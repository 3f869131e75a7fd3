"""Which pixels an output of PixelCNN and GatedPixelCNN depends on, and how strongly."""

import itertools
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from homework.core import files
from homework.priors.pixelcnn import GatedPixelCNN, PixelCNN

CHANNELS = 8
DRAWS = 32  # random models and images that a weighted map is the mean of

# models of ``depth`` layers, the first of them ``kernel`` wide, that take images (B,1,H,W)
MODELS = {
    "PixelCNN": lambda depth, kernel: PixelCNN(1, CHANNELS, depth - 1, kernel),
    "GatedPixelCNN": lambda depth, kernel: GatedPixelCNN(CHANNELS, depth, n_tokens=2, first_kernel=kernel, embedding_dim=1,
                                                         position="none"),
}  # fmt: skip


def gradient(model: nn.Module, x: Tensor, position: tuple[int, int] | None = None) -> Tensor:
    """(H,W): the size of the gradient of the output at a position (row, column), by default in the middle, by each pixel of
    ``x`` (1,1,H,W)."""
    i, j = position or (x.shape[2] // 2, x.shape[3] // 2)
    model.net(x.requires_grad_())[..., i, j].sum().backward()
    return x.grad[0, 0].abs()


def weighted(name: str, depth: int, size: int, kernel: int = 3, seed: int = 0,
             position: tuple[int, int] | None = None) -> Tensor:  # fmt: skip
    """(size,size) float64: the mean of ``gradient`` over random weights and images, the largest being 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        total = torch.zeros(size, size, dtype=torch.float64)
        for _ in range(DRAWS):
            model = MODELS[name](depth, kernel).double()
            total += gradient(model, torch.randn(1, 1, size, size, dtype=torch.float64), position)
    return total / total.max()


def seen(name: str, depth: int, size: int, kernel: int = 3, position: tuple[int, int] | None = None) -> Tensor:
    """(size,size) bool: whether the output at a position, by default in the middle, depends on a pixel. All weights and
    pixels are positive, so that no ReLU is shut and no two paths from a pixel to the output cancel out: the gradient is 0
    exactly where there is no path."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name](depth, kernel).double()
    with torch.no_grad():
        for p in model.parameters():  # each layer gives a mean of its inputs, which leaves tanh and sigmoid a slope
            p.fill_(1 / p[0].numel() if p.ndim > 1 else 0)
    return gradient(model, torch.full((1, 1, size, size), 0.5, dtype=torch.float64), position) > 0


def draw(layers: int, size: int, kernel: int, seed: int, out: str | Path, position: tuple[int, int]) -> None:
    """Writes a PNG: a row for each depth from 1 to ``layers``, and in it :func:`weighted` and :func:`seen` of each model."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.25 * layers + 0.6), layout="constrained")
    axes = figure.subplots(layers, 2 * len(MODELS), squeeze=False)
    borders = [x - 0.5 for x in range(1, size)]
    maps = list(itertools.product(enumerate(MODELS), range(1, layers + 1)))
    for (k, name), depth in tqdm(maps, "receptive fields", unit="field"):
        strength, yes = weighted(name, depth, size, kernel, seed, position), seen(name, depth, size, kernel, position)
        left, right = axes[depth - 1][2 * k : 2 * k + 2]
        shade = left.imshow(strength.where(yes, torch.nan).numpy(), norm=LogNorm(1e-4, 1), cmap="viridis")
        left.set_facecolor("0.9")
        right.imshow(yes.numpy(), cmap="Blues", vmin=0, vmax=1.4)
        if depth == 1:
            left.set_title(f"{name}\ngradient")
            right.set_title(f"{name}\ndepends or not")
        for axis in (left, right):
            axis.plot(*position[::-1], "rx", markersize=7, markeredgewidth=2)
            axis.set(xticks=borders, yticks=borders, xticklabels=[], yticklabels=[])
            axis.grid(color="white", linewidth=0.5)
            axis.tick_params(length=0)
        axes[depth - 1][0].set_ylabel(f"{depth} layer{'s' * (depth > 1)}")
    figure.colorbar(shade, ax=axes, shrink=0.5, label="mean gradient, of the largest")
    with files.replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
