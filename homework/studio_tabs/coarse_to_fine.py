"""The tab Coarse to fine: the grids of a cascade, taken from an image, drawn, or sampled given the coarser ones."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from homework.core import checks, cli
from homework.core.model import ordinary_tensors
from homework.datasets.images import to_float, to_uint8
from homework.evaluation.pictures import MARGIN, on_sheet
from homework.priors.cascade import Cascade
from homework.priors.pairs import is_shipped
from homework.studio_tabs.models import Source, command_line, fitted
from homework.studio_tabs.tokens import SCALE, framed

SIDE = 640  # pixels of a side of a sheet of codes, about


@dataclasses.dataclass(frozen=True)
class View:
    """A cascade, the grids (h,w) that there are, from the condition on, and a position in one of them, of codebook
    ``level``."""

    cascade: Cascade
    grids: tuple[Tensor, ...]
    level: int = 0
    position: tuple[int, int] = (0, 0)


def start(cascade: Cascade) -> View:
    """Just a condition, its first code."""
    return View(cascade, (torch.zeros(cascade.sizes[0], dtype=torch.int64),))


def encoded(cascade: Cascade, source: Source) -> View:
    """An image, scaled and cropped to the cascade's size, as all its codebooks see it."""
    grids = cascade.encode(to_float(fitted(source, cascade.image_size))[None])
    return View(cascade, tuple(grid[0].cpu() for grid in grids))


def at_level(view: View, level: int) -> View:
    """Looks at the grid of another codebook; ValueError if it is not there yet."""
    if not 0 <= level < len(view.grids):
        raise ValueError(f"There is no grid of {names(view.cascade)[level]} yet; sample it first.")
    return dataclasses.replace(view, level=level, position=(0, 0))


def at_pixel(view: View, x: int, y: int) -> View:
    """Looks at the position under a pixel of what :func:`draw` draws."""
    (P, Q), (h, w) = view.cascade.codebooks[view.level].patch_shape, view.cascade.sizes[view.level]
    return dataclasses.replace(view, position=(min(y // (P * SCALE), h - 1), min(x // (Q * SCALE), w - 1)))


def at_position(view: View, row: int, column: int) -> View:
    """Looks at another position of the same grid; ValueError if it has none such."""
    h, w = view.cascade.sizes[view.level]
    checks.integer(0, h - 1, **{"The row": row})
    checks.integer(0, w - 1, **{"The column": column})
    return dataclasses.replace(view, position=(row, column))


def draw(view: View, picture: np.ndarray) -> np.ndarray:
    """The ``picture`` of the grid that is looked at, enlarged, with lines between the tokens, and a frame around one."""
    return framed(picture, view.cascade.codebooks[view.level].patch_shape, view.position)


def replace(view: View, token: int) -> View:
    """With another token at the position. The finer grids, which were of another one, are no more. ValueError if the
    codebook has no such token."""
    checks.integer(0, view.cascade.codebooks[view.level].n_tokens - 1, **{"The code": token})
    grid = view.grids[view.level].clone()
    grid[view.position] = token
    return dataclasses.replace(view, grids=(*view.grids[: view.level], grid))


def refine(view: View, seed: int) -> Iterator[View]:
    """Keeps the grids up to the level that is looked at and samples the finer ones, one after another. ValueError for a seed
    that is none."""
    cli.check_seed(seed)
    kept = view.grids[: view.level + 1]
    for grid in view.cascade.refine([grid[None] for grid in kept], torch.Generator().manual_seed(seed)):
        kept = *kept, grid[0].cpu()
        yield dataclasses.replace(view, grids=kept)


@ordinary_tensors
def pictures(view: View) -> list[np.ndarray]:
    """(H,W,3) uint8: what each grid decodes to."""
    return [to_uint8(x[0]).cpu().numpy() for x in view.cascade.decode([grid[None] for grid in view.grids])]


def names(cascade: Cascade) -> list[str]:
    """Of its grids, by their sizes: "1x1", "4x6"."""
    return [f"{h}x{w}" for h, w in cascade.sizes]


def describe(view: View) -> str:
    """The token at the position, and what all of them cost where all are there."""
    i, j = view.position
    token = f"Row {i}, column {j} of {names(view.cascade)[view.level]}: code {int(view.grids[view.level][i, j])}"
    if len(view.grids) < len(view.cascade.sizes):
        return token
    bits = view.cascade.bits([grid[None].to(view.cascade.device) for grid in view.grids])
    costs = ", ".join(f"{name} {b:,.0f}" for name, b in zip(names(view.cascade), bits, strict=True))
    return f"{token}. Bits of the grids, each given the one before: {costs}"


@ordinary_tensors
def sheet(cascade: Cascade, level: int) -> np.ndarray:
    """(H',W',3) uint8: every code of a codebook, decoded by itself."""
    book, places = cascade.codebooks[level], cascade.codebooks[level].code_layout()
    decoded = to_uint8(book.decode_index(torch.arange(book.n_tokens, device=cascade.device)[:, None, None]))  # (K,1,1)
    step, scale = tile_scale(cascade, level)
    tiles = decoded.cpu()[:, ::step, ::step].numpy()
    blank = np.full_like(tiles[0], 255)
    return on_sheet([[tiles[code] if code >= 0 else blank for code in row] for row in places.tolist()], scale)


def tile_scale(cascade: Cascade, level: int) -> tuple[int, int]:
    """Every how many pixels of a code's picture the sheet shows, and how often."""
    width, columns = cascade.codebooks[level].patch_shape[1], cascade.codebooks[level].code_layout().shape[1]
    return max(1, round(width * columns / SIDE)), max(1, round(SIDE / (width * columns)))


def code_at(cascade: Cascade, level: int, x: int, y: int) -> int | None:
    """The code under a pixel of the :func:`sheet`; None if there is none."""
    places, (step, scale) = cascade.codebooks[level].code_layout(), tile_scale(cascade, level)
    H, W = (-(-side // step) * scale + MARGIN for side in cascade.codebooks[level].patch_shape)
    i, j = (min(p // side, n - 1) for p, side, n in zip((y, x), (H, W), places.shape, strict=True))
    return code if (code := int(places[i, j])) >= 0 else None


def command(view: View, path: str, seed: int) -> str:
    """The command line that samples from the same condition; a remark, if a finer grid was kept."""
    if view.level:
        return f"# from a grid of {names(view.cascade)[view.level]}: on this page alone"
    condition = int(view.grids[0][0, 0])
    config = None if is_shipped(path) else path
    words = {"config": config, "num_images": 1, "condition": condition, "seed": seed, "out_dir": "cascade/generated"}
    return command_line("generation", "cascade", **words)
