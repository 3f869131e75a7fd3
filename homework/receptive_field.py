"""Draws what the layers of PixelCNN and GatedPixelCNN see: ``python -m homework.receptive_field``. See ``--help``."""

from pathlib import Path

from homework.core import checks, cli, files
from homework.evaluation.pages import require
from homework.evaluation.receptive_fields import draw


def receptive_field(*, layers: int = 4, size: int = 11, kernel: int = 3, seed: int = 0,
                    out: str = "receptive_field.png") -> None:  # fmt: skip
    """Draws, for each depth from 1 to LAYERS, which pixels the output in the middle of an image depends on.

    There are four maps a depth: how strongly (the mean size of the gradient over random weights and images, on a
    logarithmic scale), and whether at all; of PixelCNN, and of GatedPixelCNN. A cross marks the middle.

    Examples:
        python -m homework.receptive_field
        python -m homework.receptive_field --layers 8 --size 21 --out fields.png

    Args:
        layers: the largest number of layers: a masked convolution and residual blocks, or gated layers.
        size: height and width of the image, odd.
        kernel: of the first layer, odd; the others are 3x3.
        seed: of the weights and images.
        out: the PNG to write.
    """
    cli.at_least(1, layers=layers)
    cli.check_seed(seed)
    checks.odd(3, **{"--size": size, "--kernel": kernel})
    if Path(out).suffix.lower() != ".png" or Path(out).is_dir():
        raise ValueError(f"--out is {out}, but must be a .png file.")
    files.check_writable(Path(out))
    require("matplotlib")
    draw(layers, size, kernel, seed, out)
    print(f"{out}: the fields of {'a layer' if layers == 1 else f'1 to {layers} layers'} in {size}x{size} pixels")


if __name__ == "__main__":
    cli.main("python -m homework.receptive_field", receptive_field)
