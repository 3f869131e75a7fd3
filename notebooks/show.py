"""How the notebooks draw pictures."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from torch import Tensor

from homework.data import to_uint8

plt.rcParams |= {"figure.dpi": 90, "font.size": 9, "axes.titlesize": 9, "axes.grid": False}


def show(pictures: Sequence[Tensor], titles: Sequence[str] = (), labels: Sequence[str] = (), columns: int = 0,
         width: float = 10.0) -> None:  # fmt: skip
    """Draws pictures, float (H,W,3) in [-0.5,0.5] or uint8 (H,W,3), in rows of so many ``columns``, by default all in one:
    ``titles`` above the first of them, ``labels`` before the rows. ``width`` is in inches."""
    columns = columns or len(pictures)
    rows, (H, W) = -(-len(pictures) // columns), pictures[0].shape[:2]
    height = rows * width / columns * H / W + 0.25 * -(-len(titles) // columns)
    _, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, picture in zip(axes.flat, pictures, strict=False):
        axis.imshow(to_uint8(picture) if picture.is_floating_point() else picture)
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title)
    for axis, label in zip(axes[:, 0], labels, strict=False):
        axis.set_ylabel(label)
    plt.show()
