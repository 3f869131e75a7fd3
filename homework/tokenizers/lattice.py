"""Positions of the units of a self-organizing map: on a line or on a plane, some of them removed."""

import math

import torch
from torch import Tensor

from homework.core import checks


class Lattice:
    """The ``positions`` (n,2) float, row and column, of a map's units, in raster order; its sides are ``rows`` and
    ``columns`` (a line has one row).

    Args:
        shape: "line", "plane" (as near to a square as the number of units allows) or "ROWSxCOLUMNS".
        n: units that are left.
        kept: which of a full lattice's units these are, rising; None for all.
    """

    def __init__(self, shape: str, n: int, kept: list[int] | None = None):
        if kept is not None and (not isinstance(kept, list) or any(type(k) is not int for k in kept)):
            raise ValueError(f"kept is {kept!r}, but must be a list of integers, the units that are left.")
        sides = checks.parse_size(shape)
        if not sides and shape not in ("line", "plane"):
            raise ValueError(f"lattice is {shape!r}, but must be line, plane or ROWSxCOLUMNS, as in 32x32.")
        if not sides and kept is not None:
            raise ValueError(f"kept is {kept}, so lattice must be ROWSxCOLUMNS, as before pruning, not {shape!r}.")
        if not sides:
            rows = 1 if shape == "line" else next(r for r in range(math.isqrt(n), 0, -1) if n % r == 0)
            sides = rows, n // rows
        self.rows, self.columns = sides
        full = self.rows * self.columns
        if kept is None and n != full:
            raise ValueError(f"lattice is {shape}, which has {full} units, but n_codes is {n}; change either.")
        kept = list(range(n)) if kept is None else kept
        if len(kept) != n or kept != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < full:
            raise ValueError(f"kept is {kept}, but must be n_codes = {n} different units of the lattice's {full}, rising.")
        self.kept, index = kept, torch.tensor(kept)
        self.positions = torch.stack([index.div(self.columns, rounding_mode="floor"), index % self.columns], dim=1).float()

    def scaled(self) -> Tensor:
        """(n,2) positions with -1 and 1 at the ends of the longer side, and the middle at 0."""
        sides = torch.tensor([self.rows, self.columns])
        return (2 * self.positions - (sides - 1)) / max(1, int(sides.max()) - 1)

    def on_sheet(self, values: Tensor, empty: float = 0.0) -> Tensor:
        """(n,...) values of the units -> (rows,columns,...), ``empty`` where there is none."""
        sheet = values.new_full((self.rows * self.columns, *values.shape[1:]), empty)
        sheet[torch.tensor(self.kept, device=values.device)] = values
        return sheet.unflatten(0, (self.rows, self.columns))  # (rows*columns,...) -> (rows,columns,...)


def squared_distances(positions: Tensor) -> Tensor:
    """(n,2) positions -> (n,n)."""
    return (positions[:, None] - positions).square().sum(dim=-1)


def neighbourhood(positions: Tensor, radius: float) -> Tensor:
    """(n,2) positions -> (n,n): exp(-distance^2 / (2 radius^2)), Kohonen's Gaussian neighbourhood, 1 for the unit itself."""
    return squared_distances(positions).div(-2 * radius * radius).exp()


def u_matrix(codebook: Tensor, positions: Tensor) -> Tensor:
    """(n,d) codebook -> (n,): the mean distance of each unit's vector from those of its up to eight neighbours on the
    lattice (Ultsch and Siemon 1990); 0 for a unit without any. High values are borders between clusters."""
    beside = (squared_distances(positions) <= 2).fill_diagonal_(False)
    distances = torch.cdist(codebook, codebook)  # (n,n)
    return (distances * beside).sum(dim=1) / beside.sum(dim=1).clamp_min(1)
