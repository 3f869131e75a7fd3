"""Draws what the layers of PixelCNN and GatedPixelCNN see: ``python -m homework.receptive_field``. See ``--help``."""

from pathlib import Path

import torch
from torch import Tensor, nn

from homework.core import checks, cli, files
from homework.priors.pixelcnn import GatedPixelCNN, PixelCNN

CHANNELS = 8
DRAWS = 32  # random models and pictures that a weighted map is the mean of


def receptive_field(
    layers: int = 4, size: int = 11, kernel: int = 3, seed: int = 0, out: str = "receptive_field.png"
) -> None:
    """Draws, for each depth from 1 to LAYERS, which pixels the output in the middle of a picture depends on.

    There are four maps a depth: how strongly (the mean size of the gradient over random weights and pictures, on a
    logarithmic scale), and whether at all; of PixelCNN, and of GatedPixelCNN. A cross marks the middle.

    Args:
        layers: the largest number of layers: a masked convolution and residual blocks, or gated layers.
        size: height and width of the picture, odd.
        kernel: of the first layer, odd; the others are 3x3.
        seed: of the weights and pictures.
        out: the PNG to write.
    """
    cli.at_least(1, layers=layers)
    cli.check_seed(seed)
    checks.odd(3, **{"--size": size, "--kernel": kernel})
    if Path(str(out)).suffix.lower() != ".png" or Path(str(out)).is_dir():
        raise ValueError(f"--out is {out}, but must be a .png file.")
    maps = [
        (name, depth, weighted(name, depth, size, kernel, seed), seen(name, depth, size, kernel))
        for name in MODELS
        for depth in range(1, layers + 1)
    ]
    draw(maps, layers, str(out))
    print(f"{out}: the fields of 1 to {layers} layers in {size}x{size} pixels")


# models of ``depth`` layers, the first of them ``kernel`` wide, that take pictures (B,1,H,W)
MODELS = {
    "PixelCNN": lambda depth, kernel: PixelCNN(1, CHANNELS, depth - 1, kernel),
    "GatedPixelCNN": lambda depth, kernel: GatedPixelCNN(
        CHANNELS, depth, n_tokens=2, first_kernel=kernel, embedding_dim=1, position="none"
    ),
}


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    """(H,W): the size of the gradient of the output in the middle by each pixel of ``x`` (1,1,H,W)."""
    x = x.requires_grad_()
    H, W = x.shape[2:]
    model.net(x)[..., H // 2, W // 2].sum().backward()
    return x.grad[0, 0].abs()


def weighted(name: str, depth: int, size: int, kernel: int = 3, seed: int = 0) -> Tensor:
    """(size,size) float64: the mean of ``gradient`` over random weights and pictures, the largest being 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        total = torch.zeros(size, size, dtype=torch.float64)
        for _ in range(DRAWS):
            model = MODELS[name](depth, kernel).double()
            total += gradient(model, torch.randn(1, 1, size, size, dtype=torch.float64))
    return total / total.max()


def seen(name: str, depth: int, size: int, kernel: int = 3) -> Tensor:
    """(size,size) bool: whether the output in the middle depends on a pixel.

    All weights and pixels are positive, so that no ReLU is shut and no two ways from a pixel to the output cancel out: the
    gradient is 0 exactly where there is no way.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name](depth, kernel).double()
    with torch.no_grad():
        for p in model.parameters():  # each layer gives a mean of its inputs, which leaves tanh and sigmoid a slope
            fan_in = p[0].numel() if p.ndim > 1 else 1
            p.fill_(1 / fan_in if p.ndim > 1 else 0)
    return gradient(model, torch.full((1, 1, size, size), 0.5, dtype=torch.float64)) > 0


def draw(maps: list[tuple[str, int, Tensor, Tensor]], layers: int, out: str) -> None:
    """Writes a PNG of (name, depth, weighted, seen): a row for each depth, the two maps of each name side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import LogNorm

    names = list(dict.fromkeys(name for name, *_ in maps))
    figure, axes = plt.subplots(layers, 4, figsize=(9, 2.25 * layers + 0.6), squeeze=False, layout="constrained")
    for name, depth, strength, yes in maps:
        left, right = axes[depth - 1][2 * names.index(name) : 2 * names.index(name) + 2]
        shade = left.imshow(strength.where(yes, torch.nan).numpy(), norm=LogNorm(1e-4, 1), cmap="viridis")
        left.set_facecolor("0.9")
        right.imshow(yes.numpy(), cmap="Blues", vmin=0, vmax=1.4)
        if depth == 1:
            left.set_title(f"{name}\ngradient")
            right.set_title(f"{name}\ndepends or not")
        for axis in (left, right):
            middle = len(yes) // 2
            axis.plot(middle, middle, "rx", markersize=7, markeredgewidth=2)
            axis.set_xticks([x - 0.5 for x in range(1, len(yes))], labels=[])
            axis.set_yticks([y - 0.5 for y in range(1, len(yes))], labels=[])
            axis.grid(color="white", linewidth=0.5)
            axis.tick_params(length=0)
    for depth in range(1, layers + 1):
        axes[depth - 1][0].set_ylabel(f"{depth} layer{'s' * (depth > 1)}")
    figure.colorbar(shade, ax=axes, shrink=0.5, label="mean gradient, of the largest")
    with files.replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    cli.main("python -m homework.receptive_field", receptive_field)
