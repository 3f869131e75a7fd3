"""Draws what the layers of PixelCNN and GatedPixelCNN see: ``python -m homework.receptive_field``. See ``--help``."""

from pathlib import Path

from homework.core import checks, cli, files
from homework.evaluation.pages import require
from homework.evaluation.receptive_fields import draw

MAX_SIZE, MAX_LAYERS = 255, 64  # more takes hours, and shows nothing new


def receptive_field(*, layers: int = 4, size: int = 11, kernel: int = 3, row: int | None = None, column: int | None = None,
                    seed: int = 0, out: str = "receptive_field.png") -> None:  # fmt: skip
    """Draws, for each depth from 1 to LAYERS, which pixels the output at a position of an image depends on.

    There are four maps a depth: how strongly (the mean size of the gradient over random weights and images, on a
    logarithmic scale), and whether at all; of PixelCNN, and of GatedPixelCNN. A cross marks the position.

    Examples:
        python -m homework.receptive_field
        python -m homework.receptive_field --layers 8 --size 21 --out fields.png

    Args:
        layers: the largest number of layers: a masked convolution and residual blocks, or gated layers; at most 64.
        size: height and width of the image, at most 255; odd, so that it has a middle, unless a row and a column are given.
        kernel: of the first layer, odd and at most 255; the others are 3x3.
        row: of the position, counted from 0; by default the middle one.
        column: likewise.
        seed: of the weights and images.
        out: the PNG to write.
    """
    cli.check_seed(seed)
    checks.odd(3, **{"--kernel": kernel})
    if row is None or column is None:
        checks.odd(3, **{"--size": size})
    checks.integer(1, MAX_SIZE, **{"--size": size, "--kernel": kernel})
    checks.integer(1, MAX_LAYERS, **{"--layers": layers})
    position = size // 2 if row is None else row, size // 2 if column is None else column
    checks.integer(0, size - 1, **dict(zip(("--row", "--column"), position, strict=True)))
    if Path(out).suffix.lower() != ".png" or Path(out).is_dir():
        raise ValueError(f"--out is {out}, but must be a .png file.")
    files.check_writable(Path(out))
    require("matplotlib")
    draw(layers, size, kernel, seed, out, position)
    print(f"{out}: the fields of {'a layer' if layers == 1 else f'1 to {layers} layers'} in {size}x{size} pixels")


if __name__ == "__main__":
    cli.main("python -m homework.receptive_field", receptive_field)
