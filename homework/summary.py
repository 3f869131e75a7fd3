"""Prints the layers of a model: ``python -m homework.summary MODEL``. See ``--help``."""

import torch
from torchinfo import summary as table

from homework import cli
from homework.data import DATASETS
from homework.registry import build, model_class

SIZES = {"images": "100x150", "tokens": "20x30", "mnist": "28x28"}


def summary(model: str, image_size: str | None = None, depth: int = 4, **options) -> None:
    """Prints a table of a model's layers: the shape that each gives, its parameters and its multiplications.

    Any argument of the model's constructor is an option too, as in --c_hidden 64.

    Args:
        model: a model's name.
        image_size: HEIGHTxWIDTH of the input, in pixels or tokens; by default the frames', their grids', or MNIST's.
        depth: how deep into nested layers to go.
        options: arguments of the model's constructor.
    """
    if type(depth) is not int or depth < 1:
        raise ValueError(f"--depth is {depth!r}, but must be a whole number of at least 1.")
    cls = model_class(str(model))
    H, W = cli.parse_size(image_size or SIZES[cls.data])
    built = build(cls, options, {"height": H, "width": W}, others=("image_size", "depth"))
    grids = DATASETS[cls.data].holds == "grids"
    x = torch.zeros(1, H, W, dtype=torch.int64) if grids else torch.zeros(1, H, W, 3)
    columns = ("output_size", "num_params", "mult_adds")
    print(table(built.eval(), input_data=x, depth=depth, col_names=columns, row_settings=("var_names",), verbose=0))


if __name__ == "__main__":
    cli.main("python -m homework.summary", summary)
