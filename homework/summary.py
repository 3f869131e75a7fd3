"""Prints the layers of a model: ``python -m homework.summary MODEL``. See ``--help``."""

import re

import torch

from homework.core import checkpoint, cli, devices, registry
from homework.core.model import Model
from homework.datasets.kinds import DATASETS

# of a kind of data, or else of what it holds
SIZES = {"images": (100, 150), "features": (80, 120), "grids": (20, 30), "pairs of grids": (20, 30), "mnist": (28, 28),
         "mnist_images": (28, 28)}  # fmt: skip


def summary(model: str, *, image_size: str | None = None, depth: int = 4, **options) -> None:
    """Prints a table of the layers of a new model or of a trained one: the shape that each gives, its parameters and its
    multiplications. Any argument of the model's constructor is an option too, as in --c_hidden 64.

    Examples:
        python -m homework.summary BSQPatchAutoEncoder
        python -m homework.summary PixelCNN --c_hidden 64 --depth 2

    Args:
        model: a model's name, for a new one, or a checkpoint: its path, or a trained model's name such as VQGatedPixelCNN.
        image_size: HEIGHTxWIDTH of the input, in pixels or tokens (of a cascade's stage: of the finer grid); by
            default that of the checkpoint, or what --height and --width say.
        depth: how deep into nested layers to go.
        options: arguments of the model's constructor.
    """
    from torchinfo import summary as table  # of the extra "report"

    cli.at_least(1, depth=depth)
    cls, base = find_model(model)
    holds = DATASETS[cls.data].holds
    own = (base.config if base else {}) | options if holds != "features" else {}  # a SOM's sides are a feature map's
    default = SIZES.get(cls.data, SIZES[holds])
    default = tuple(own.get(side, n) for side, n in zip(("height", "width"), default, strict=True))
    H, W = cli.parse_image_size(image_size) or default
    size = {} if base or holds == "features" else {"height": H, "width": W}
    with devices.keeping_generators():
        built = registry.build(cls, options, size, base, others=("image_size", "depth"))
    if holds == "pairs of grids":
        coarse = torch.zeros(1, *built.coarse_shape, dtype=torch.float32 if built.context_dim else torch.int64)
        x = [(coarse, torch.zeros(1, H, W, dtype=torch.int64))]  # a list of arguments, of which there is one
    else:
        x = torch.zeros(1, H, W, dtype=torch.int64) if holds == "grids" else torch.zeros(1, H, W, 3)
    columns = ("output_size", "num_params", "mult_adds")
    try:
        shown = table(built.eval(), input_data=x, depth=depth, col_names=columns, row_settings=("var_names",), verbose=0)
    except RuntimeError as error:  # by which torchinfo replaces the model's own
        raise error.__cause__ or error from None
    # torchinfo counts a layer that is called by another than its parent twice
    shown.total_params = sum(p.numel() for p in built.parameters())
    shown.trainable_params = sum(p.numel() for p in built.parameters() if p.requires_grad)
    print(re.sub(r"\(Units\.(.).*?\)", r"(\1)", str(shown)))  # torchinfo writes (Units.MEGABYTES) for millions


def find_model(name: str) -> tuple[type[Model], Model | None]:
    """The class called ``name`` and None, or the class of the checkpoint ``name`` and the model in it. ValueError or OSError
    if there is neither."""
    try:
        return registry.model_class(name), None
    except ValueError:
        path = checkpoint.locate(name)
        if path.suffix != ".pth" and not path.is_file():
            raise
    base = checkpoint.load(path)
    return type(base), base


if __name__ == "__main__":
    cli.main("python -m homework.summary", summary)
