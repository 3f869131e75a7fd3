"""The tab Tokens: the grid over the picture, and what another token at a position would change."""

import dataclasses
import math
from typing import cast

import numpy as np
import torch
from torch import Tensor

from homework.bsq import BSQPatchAutoEncoder
from homework.core import checks
from homework.core.model import ordinary_tensors
from homework.datasets.images import to_float
from homework.evaluation import metrics
from homework.evaluation.measure import distortion
from homework.priors.images import decode
from homework.studio_tabs.models import Models, Source, command_line, fitted
from homework.tokenizers.som import SOM

SCALE = 6  # how many times larger the picture under the grid is
ALTERNATIVES = 10
FRAME = (255, 210, 0)  # the colour around the position


@dataclasses.dataclass(frozen=True)
class View:
    """An image (H,W,3) uint8, the tokens (h,w) of its encoder, those at present, and the position looked at."""

    image: Tensor
    encoded: Tensor
    grid: Tensor
    position: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class Alternative:
    """A token, its probability given those before it, and the picture (H',W',3) uint8 of its patch and those around."""

    token: int
    probability: float
    picture: np.ndarray


@ordinary_tensors
def start(models: Models, source: Source) -> View:
    """The image, scaled and cropped to the prior's size, with its tokens."""
    image = fitted(source, models.size)
    grid = models.tokenizer.encode_index(to_float(image).to(models.tokenizer.device)).cpu()
    return View(image, grid, grid, (grid.shape[0] // 2, grid.shape[1] // 2))


def at_pixel(models: Models, view: View, x: int, y: int) -> View:
    """Looks at the position under a pixel of what :func:`draw` draws."""
    (P, Q), (h, w) = models.tokenizer.patch_shape, view.grid.shape
    return dataclasses.replace(view, position=(min(y // (P * SCALE), h - 1), min(x // (Q * SCALE), w - 1)))


def at_position(view: View, row: int, column: int) -> View:
    """Looks at another position; ValueError if there is none such."""
    h, w = view.grid.shape
    checks.integer(0, h - 1, **{"The row": row})
    checks.integer(0, w - 1, **{"The column": column})
    return dataclasses.replace(view, position=(row, column))


def put(models: Models, view: View, token: int) -> View:
    """As :func:`replace`; ValueError if the tokenizer has no such token."""
    checks.integer(0, models.tokenizer.n_tokens - 1, **{"The token": token})
    return replace(view, token)


def replace(view: View, token: int) -> View:
    """With another token at the position."""
    grid = view.grid.clone()
    grid[view.position] = token
    return dataclasses.replace(view, grid=grid)


def replaced(view: View, tokens: list[int]) -> Tensor:
    """(n,h,w): a grid for each of n tokens, with it at the position."""
    return torch.stack([replace(view, token).grid for token in tokens])


def decoded(models: Models, grids: Tensor, view: View) -> np.ndarray:
    """Grids (n,h,w) -> (n,H,W,3) uint8, as large as the image."""
    H, W = view.image.shape[:2]
    return decode(models.tokenizer, grids.to(models.tokenizer.device))[:, :H, :W].numpy()


def draw(models: Models, view: View) -> np.ndarray:
    """The decoded picture, enlarged, with lines between the tokens, and a frame around the position."""
    return framed(decoded(models, view.grid[None], view)[0], models.tokenizer.patch_shape, view.position)


def framed(picture: np.ndarray, patch: tuple[int, int], position: tuple[int, int]) -> np.ndarray:
    """(H,W,3) uint8 -> (H*SCALE,W*SCALE,3), with lines between patches of (P,Q) pixels, and a frame around one of them."""
    (P, Q), (i, j) = (side * SCALE for side in patch), position
    picture = picture.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    picture[::P] = picture[::P] // 2 + 64
    picture[:, ::Q] = picture[:, ::Q] // 2 + 64
    inner = picture[i * P + 3 : (i + 1) * P - 2, j * Q + 3 : (j + 1) * Q - 2].copy()
    picture[i * P : (i + 1) * P + 1, j * Q : (j + 1) * Q + 1] = FRAME
    picture[i * P + 3 : (i + 1) * P - 2, j * Q + 3 : (j + 1) * Q - 2] = inner
    return picture


@ordinary_tensors
def probabilities(models: Models, view: View) -> Tensor:
    """(K): of the tokens at the position, given those before it."""
    grid = view.grid[None].to(models.prior.device)
    return models.prior(grid)[0][0][view.position].double().softmax(dim=-1).cpu()


def alternatives(models: Models, view: View) -> list[Alternative]:
    """The most probable tokens at the position."""
    p, tokens = probabilities(models, view).topk(min(ALTERNATIVES, models.prior.n_tokens))
    pictures = [around(models, view, picture) for picture in decoded(models, replaced(view, tokens.tolist()), view)]
    return [Alternative(*found) for found in zip(tokens.tolist(), p.tolist(), pictures, strict=True)]


def around(models: Models, view: View, picture: np.ndarray) -> np.ndarray:
    """Cuts (H,W,3) down to the patch at the position and those around it, enlarged."""
    (P, Q), (i, j) = models.tokenizer.patch_shape, view.position
    part = picture[max(0, i - 2) * P : (i + 3) * P, max(0, j - 2) * Q : (j + 3) * Q]
    return part.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


@dataclasses.dataclass(frozen=True)
class Flip:
    """One bit of the token's code flipped: by how much the bits of all tokens and the PSNR in dB would change, and the
    picture (H',W',3) uint8 of its patch and those around."""

    bit: int  # counted from the lowest
    bits: float
    psnr: float
    picture: np.ndarray


@ordinary_tensors
def flips(models: Models, view: View) -> list[Flip]:
    """Of each bit at the position, from the highest, as :func:`describe` writes them; none if the codes have no bits."""
    if not isinstance(models.tokenizer, BSQPatchAutoEncoder):
        return []
    bits = range(models.tokenizer.bsq.codebook_bits)[::-1]
    grids = torch.stack([view.grid, *(flip(models, view, i).grid for i in range(len(bits)))])
    costs = models.prior.bits(grids.to(models.prior.device)).sum(dim=(1, 2)).tolist()
    pictures = decoded(models, grids, view)
    errors = [metrics.psnr(distortion(picture, view.image.numpy())[0]) for picture in pictures]
    changes = zip(bits, costs[1:], errors[1:], pictures[1:], strict=True)
    return [Flip(bit, cost - costs[0], error - errors[0], around(models, view, picture))
            for bit, cost, error, picture in changes]  # fmt: skip


def flip(models: Models, view: View, index: int) -> View:
    """With a bit of the token's code flipped, where index 0 is the highest: of the token at present, whatever is shown."""
    bits = cast(BSQPatchAutoEncoder, models.tokenizer).bsq.codebook_bits
    return replace(view, int(view.grid[view.position]) ^ 2 ** (bits - 1 - index))


@ordinary_tensors
def draw_lattice(models: Models, view: View) -> np.ndarray | None:
    """(H,W,3) uint8: what each unit of a self-organizing map decodes to, at its position on the lattice, with a frame around
    the token at the position; None for other tokenizers."""
    if not isinstance(som := models.tokenizer, SOM):
        return None
    picture = (255 * som.codebook_picture()).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    (P, Q), units = som.patch_shape, som.units_on_sheet()
    for i, j in (units == view.grid[view.position].to(units.device)).nonzero().tolist():
        inner = picture[i * P + 1 : (i + 1) * P - 1, j * Q + 1 : (j + 1) * Q - 1].copy()
        picture[i * P : (i + 1) * P, j * Q : (j + 1) * Q] = FRAME
        picture[i * P + 1 : (i + 1) * P - 1, j * Q + 1 : (j + 1) * Q - 1] = inner
    return picture


def replace_by_unit(models: Models, view: View, x: int, y: int) -> View:
    """With the unit under a pixel of what :func:`draw_lattice` draws as the token; as it is where there is none."""
    som = cast(SOM, models.tokenizer)
    (P, Q), units = som.patch_shape, som.units_on_sheet()
    unit = int(units[min(y // P, units.shape[0] - 1), min(x // Q, units.shape[1] - 1)])
    return replace(view, unit) if unit >= 0 else view


def describe(models: Models, view: View) -> str:
    """The token at the position: its code in binary, its probability, and the bits that this makes."""
    token, n_bits = int(view.grid[view.position]), max(1, (models.tokenizer.n_tokens - 1).bit_length())
    p = float(probabilities(models, view)[token])
    bits = -math.log2(p) if p else math.inf
    return (f"Row {view.position[0]}, column {view.position[1]}: token {token}, code {token:0{n_bits}b}, probability "
            f"{p:.3g}, {bits:.2f} bits")  # fmt: skip


@ordinary_tensors
def cost(models: Models, view: View, grid: Tensor) -> tuple[float, float]:
    """Bits of a grid under the prior, and the PSNR in dB of what it decodes to."""
    bits = float(models.prior.bits(grid[None].to(models.prior.device)).sum())
    return bits, metrics.psnr(distortion(decoded(models, grid[None], view)[0], view.image.numpy())[0])


def balance(models: Models, view: View) -> str:
    """What all tokens cost, and how that differs from the encoder's."""
    bits, psnr = cost(models, view, view.grid)
    changed = int((view.grid != view.encoded).sum())
    if not changed:
        return f"{bits:,.1f} bits, {psnr:.2f} dB: the encoder's tokens"
    before = cost(models, view, view.encoded)
    return (f"{bits:,.1f} bits ({bits - before[0]:+,.1f}), {psnr:.2f} dB ({psnr - before[1]:+.2f}), with "
            f"{changed} of {view.grid.numel()} tokens changed")  # fmt: skip


def command(models: Models, source: Source) -> str:
    """The command line that writes the encoder's tokens."""
    H, W = models.size
    return command_line("tokenize", models.names[0], "tokens.pth", source.name, image_size=f"{H}x{W}")
