"""Prints the layers of a model: ``python -m homework.summary MODEL``. See ``--help``."""

import re

import torch

from homework.core import cli, registry
from homework.datasets.kinds import DATASETS

SIZES = {"images": "100x150", "features": "80x120", "tokens": "20x30", "multiscale": "20x30", "mnist": "28x28"}


def summary(model: str, *, image_size: str | None = None, depth: int = 4, **options) -> None:
    """Prints a table of a model's layers: the shape that each gives, its parameters and its multiplications. Any
    argument of the model's constructor is an option too, as in --c_hidden 64.

    Examples:
        python -m homework.summary BSQPatchAutoEncoder
        python -m homework.summary PixelCNN --c_hidden 64 --depth 2

    Args:
        model: a model's name.
        image_size: HEIGHTxWIDTH of the input, in pixels or tokens (of a cascade's stage: of the finer grid).
        depth: how deep into nested layers to go.
        options: arguments of the model's constructor.
    """
    from torchinfo import summary as table  # of the extra "report"

    cli.at_least(1, depth=depth)
    cls = registry.model_class(model)
    H, W = cli.parse_image_size(image_size or SIZES[cls.data])
    holds = DATASETS[cls.data].holds
    size = {} if holds == "features" else {"height": H, "width": W}  # there they are a feature map's
    built = registry.build(cls, options, size, others=("image_size", "depth"))
    if holds == "pairs of grids":
        coarse = torch.zeros(1, built.config["coarse_height"], built.config["coarse_width"], dtype=torch.int64)
        x = [(coarse, torch.zeros(1, H, W, dtype=torch.int64))]  # a list of arguments, of which there is one
    else:
        x = torch.zeros(1, H, W, dtype=torch.int64) if holds == "grids" else torch.zeros(1, H, W, 3)
    columns = ("output_size", "num_params", "mult_adds")
    shown = table(built.eval(), input_data=x, depth=depth, col_names=columns, row_settings=("var_names",), verbose=0)
    # torchinfo counts a layer that is called by another than its parent twice
    shown.total_params = sum(p.numel() for p in built.parameters())
    shown.trainable_params = sum(p.numel() for p in built.parameters() if p.requires_grad)
    print(re.sub(r"\(Units\.(.).*?\)", r"(\1)", str(shown)))  # torchinfo writes (Units.MEGABYTES) for millions


if __name__ == "__main__":
    cli.main("python -m homework.summary", summary)
