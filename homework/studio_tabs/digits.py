"""The tab Digits: PixelCNN ends a digit whose upper rows are drawn; and the pixels that it and Gated PixelCNN see."""

import functools

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from homework.core import checkpoint, checks
from homework.core.model import ordinary_tensors
from homework.evaluation.pictures import on_sheet
from homework.evaluation.receptive_fields import seen
from homework.priors.base import Prior
from homework.priors.images import complete_rows, from_shades
from homework.priors.pairs import check_prior
from homework.studio_tabs.models import command_line
from homework.studio_tabs.sampling import Settings

SIDE, ROWS = 28, 14  # pixels of a digit, and the rows that are kept at first
ENDINGS, IN_A_ROW = 8, 4  # in all, and side by side
PRIORS = {"PixelCNN": "PixelCNN", "Gated PixelCNN": "MnistGatedPixelCNN"}  # by what the page calls them
KERNEL, DEPTH, MOST_DEPTH = 7, 6, 8  # of the first layer; layers at first, as many as the shipped PixelCNN has; at most
SCALE = 10  # how many times larger the maps of what is seen are
SEEN, BLIND, POSITION = (70, 130, 220), (225, 60, 60), (255, 210, 0)


@functools.cache
def prior(name: str, device: torch.device) -> Prior:
    """One of ``PRIORS``, loaded when it is first asked for. FileNotFoundError or ValueError if it cannot be."""
    return check_prior(PRIORS[name], checkpoint.load(PRIORS[name])).to(device)


def read_pad(text: str) -> Tensor:
    """(28,28) int64 of 0 and 1, from as many characters by rows, which a browser sends. ValueError if they are not that."""
    if len(text) != SIDE * SIDE or not set(text) <= {"0", "1"}:
        raise ValueError(f"The drawing has to be {SIDE}x{SIDE} pixels of ink or background.")
    return torch.tensor([int(character) for character in text]).view(SIDE, SIDE)


def to_pad(grid: Tensor) -> str:
    """What :func:`read_pad` reads."""
    return "".join(map(str, grid.flatten().tolist()))


def example(digit: int) -> Tensor:
    """(28,28) int64 of 0 and 1: a digit as a font has it, about as large and as bold as those of MNIST."""
    picture = Image.new("L", (SIDE, SIDE))
    draw, font, middle = ImageDraw.Draw(picture), ImageFont.load_default(22), (SIDE / 2, SIDE / 2)
    draw.text(middle, str(digit), 255, font, anchor="mm", stroke_width=1)
    return torch.from_numpy((np.asarray(picture) > 127).astype(np.int64))


@ordinary_tensors
def endings(model: Prior, grid: Tensor, rows: int, settings: Settings) -> Tensor:
    """(8,28,28) int64: what the prior draws below the first ``rows`` of a digit. ValueError for rows or settings that make
    no sense."""
    checks.integer(0, SIDE, **{"The number of rows": rows})
    settings.check()
    return complete_rows(model, grid[None], rows, ENDINGS, **settings.sampling())[0][2:]


def sheet(digits: Tensor) -> np.ndarray:
    """(n,28,28) -> (H,W) uint8: all digits, some side by side."""
    pictures = list(from_shades(digits, 2))
    return on_sheet([pictures[i : i + IN_A_ROW] for i in range(0, len(pictures), IN_A_ROW)], scale=4)


def endings_command(name: str, rows: int, settings: Settings) -> str:
    """The command line that writes the same digits, given the drawing as digit.png."""
    options = {"complete": "digit.png", "rows": rows} | settings.options()
    return command_line("sample", PRIORS[name], ENDINGS, "endings", **options)


def at_pixel(x: int, y: int) -> tuple[int, int]:
    """The position (row, column) under a pixel of what :func:`draw_field` draws."""
    return min(y // SCALE, SIDE - 1), min(x // SCALE, SIDE - 1)


def fields(position: tuple[int, int], depth: int) -> tuple[Tensor, Tensor]:
    """(28,28) bool: which pixels the output of PixelCNN, and which that of Gated PixelCNN, depends on at a position. The
    second are all that come before it within reach of ``depth`` layers; what the first lack is the blind spot."""
    plain, gated = (seen(name, depth, SIDE, KERNEL, position) for name in ("PixelCNN", "GatedPixelCNN"))
    return plain, gated


def draw_field(grid: Tensor, field: Tensor, blind: Tensor, position: tuple[int, int]) -> np.ndarray:
    """(H,W,3) uint8: a digit, enlarged, with colours on what is seen, the blind spot and the position."""
    shade = from_shades(grid, 2)[..., None].repeat(3, axis=-1).astype(np.float32)
    for mask, colour, strength in (field, SEEN, 0.6), (blind, BLIND, 0.75):
        shade[mask.numpy()] = (1 - strength) * shade[mask.numpy()] + strength * np.array(colour)
    shade[position] = POSITION
    picture = shade.astype(np.uint8).repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    picture[::SCALE] = picture[::SCALE] // 4 * 3 + 20  # lines between the pixels
    picture[:, ::SCALE] = picture[:, ::SCALE] // 4 * 3 + 20
    return picture


def describe(plain: Tensor, gated: Tensor, position: tuple[int, int]) -> str:
    """How many pixels are seen, and how many are not."""
    n, blind = int(gated.sum()), int((gated & ~plain).sum())
    return (f"Row {position[0]}, column {position[1]} (yellow): Gated PixelCNN sees {n} pixels (blue), PixelCNN "
            f"{n - blind} of them; the blind spot (red) is the other {blind}.")  # fmt: skip


def field_command(position: tuple[int, int], depth: int) -> str:
    """The command line that draws the same fields, and those of fewer layers."""
    row, column = position
    return command_line("receptive_field", layers=depth, size=SIDE, kernel=KERNEL, row=row, column=column)
