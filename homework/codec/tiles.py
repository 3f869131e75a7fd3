"""Grids larger than a prior's, in tiles; and images larger than memory should hold the features of, in blocks."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

TILES = 64  # of one image that are coded together
UNLIMITED = (64, 64)  # tiles under a prior that takes grids of any size
Slices = tuple[slice, slice]  # rows and columns


def tiles(grid: tuple[int, int], tile: tuple[int, int]) -> Iterator[tuple[tuple[int, int], list[tuple[int, int]]]]:
    """Cuts a ``grid`` (h,w) into tiles of at most ``tile`` (height,width), the largest grid of the prior, in the order in
    which a payload holds them: at most TILES of one size at a time, coded in turns, the first token of each, then the second
    ones, and so on. First come the complete tiles in raster order, then those cut off at the right, at the bottom, at both.
    Yields ((a,b), corners): the size of some tiles, and for each the row and column of its first token in the grid."""
    for (a, tops), (b, lefts) in itertools.product(*map(_sides, grid, tile)):
        corners = ((top, left) for top in tops for left in lefts)  # one by one: a header may claim millions
        while some := list(itertools.islice(corners, TILES)):
            yield (a, b), some


def some(grid: tuple[int, int], tile: tuple[int, int]) -> list[tuple[int, int]]:
    """The corners of four complete tiles (a,b) of a ``grid`` (h,w), all over it, or of as many as there are."""
    rows, columns = grid[0] // tile[0], grid[1] // tile[1]
    found = {(rows * i // 8 * tile[0], columns * j // 8 * tile[1]) for i, j in ((1, 3), (3, 7), (5, 1), (7, 5))}
    return sorted(found)


def cut(grids: np.ndarray, tile: tuple[int, int], corners: Sequence[tuple[int, int]]) -> np.ndarray:
    """Grids (B,h,w,...), the size (a,b) of T tiles, and their corners -> (B,T,a,b,...)."""
    a, b = tile
    return np.stack([grids[:, top : top + a, left : left + b] for top, left in corners], axis=1)


def _sides(length: int, part: int) -> list[tuple[int, range]]:
    complete = length - length % part
    sides = (part, range(0, complete, part)), (length - complete, range(complete, length, part))
    return [(side, starts) for side, starts in sides if starts]


def largest(size: tuple[int, int] | None) -> tuple[int, int]:
    """The tiles of large grids under a prior of ``size`` (height,width), None if it takes any."""
    return size or UNLIMITED


def fitting(size: tuple[int, int] | None, grid: tuple[int, int]) -> tuple[int, int]:
    """The tiles of a ``grid`` (h,w) under a prior of ``size`` (height,width), None if it takes any."""
    height, width = largest(size)
    return min(height, grid[0]), min(width, grid[1])


def blocks(grid: tuple[int, int], n: int, halo: int,
           unit: tuple[int, int] = (1, 1)) -> Iterator[tuple[Slices, Slices, Slices]]:  # fmt: skip
    """Cuts a ``grid`` (h,w) into blocks of at most ``n`` positions, about equal and as square as it allows, each of complete
    tiles of ``unit`` (a,b), at least one. Yields for each its rows and columns; those of a larger block around it, with
    ``halo`` more on every side where the grid continues; and its own within the larger. The larger ones are all of one size,
    so that each finds the memory that another has left."""
    (h, w), (a, b) = grid, unit
    rows, columns, n = -(-h // a), -(-w // b), max(1, n // (a * b))  # in units
    width = _even(columns, n // min(rows, math.isqrt(n)))
    height = a * _even(rows, n // width)
    width *= b
    for top in range(0, h, height):
        for left in range(0, w, width):
            around_rows, around_columns = _surrounded(top, height, h, halo), _surrounded(left, width, w, halo)
            block, around, within = zip(around_rows, around_columns, strict=True)
            yield block, around, within


def _even(length: int, part: int) -> int:
    """The size of equal parts of ``length``, rounded up, as few as there are with at most ``part`` each."""
    return -(-length // -(-length // part))


def _surrounded(start: int, part: int, length: int, halo: int) -> tuple[slice, slice, slice]:
    size = min(part + 2 * halo, length)
    stop, first = min(start + part, length), min(max(0, start - halo), length - size)
    return slice(start, stop), slice(first, first + size), slice(start - first, stop - first)


def scaled(where: Slices, P: int, Q: int | None = None) -> Slices:
    """The pixels of some rows and columns of a grid of patches of P rows and Q columns, P if None."""
    rows, columns = where
    Q = Q or P
    return slice(rows.start * P, rows.stop * P), slice(columns.start * Q, columns.stop * Q)


def grown(where: Slices, halo: int | None, grid: tuple[int, ...]) -> Slices:
    """Rows and columns of a ``grid`` (h,w), with ``halo`` more on every side where it continues; all if None."""
    rows, columns = (
        slice(0, n) if halo is None else slice(max(0, s.start - halo), min(n, s.stop + halo))
        for s, n in zip(where, grid, strict=True)
    )
    return rows, columns


def relative(where: Slices, around: Slices) -> Slices:
    """Rows and columns of a grid as those of a larger part of it."""
    rows, columns = (slice(s.start - a.start, s.stop - a.start) for s, a in zip(where, around, strict=True))
    return rows, columns
