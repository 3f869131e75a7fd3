"""Grids larger than a prior's, in tiles; and images larger than memory should hold the features of, in blocks."""

import itertools
import math
from collections.abc import Iterator

TILES = 64  # of one image that are coded together


def tiles(grid: tuple[int, int], tile: tuple[int, int]) -> Iterator[tuple[tuple[int, int], list[tuple[int, int]]]]:
    """Cuts a ``grid`` (h,w) into tiles of at most ``tile`` (height,width), the largest grid of the prior, in the order in
    which a payload holds them: at most TILES of one size at a time, coded in turns, the first token of each, then the second
    ones, and so on. First come the complete tiles in raster order, then those cut off at the right, at the bottom, at both.
    Yields ((a,b), corners): the size of some tiles, and for each the row and column of its first token in the grid."""
    for (a, tops), (b, lefts) in itertools.product(*map(_sides, grid, tile)):
        corners = ((top, left) for top in tops for left in lefts)  # one by one: a header may claim millions
        while some := list(itertools.islice(corners, TILES)):
            yield (a, b), some


def _sides(length: int, part: int) -> list[tuple[int, range]]:
    complete = length - length % part
    sides = (part, range(0, complete, part)), (length - complete, range(complete, length, part))
    return [(side, starts) for side, starts in sides if starts]


Slices = tuple[slice, slice]  # rows and columns


def blocks(grid: tuple[int, int], n: int, halo: int) -> Iterator[tuple[Slices, Slices, Slices]]:
    """Cuts a ``grid`` (h,w) into blocks of at most ``n`` positions, about equal and as square as it allows. Yields for each
    its rows and columns; those of a larger block around it, with ``halo`` more on every side where the grid goes on; and its
    own within the larger. The larger ones are all of one size, so that each finds the memory that another has left."""
    h, w = grid
    width = _even(w, n // min(h, math.isqrt(n)))
    height = _even(h, n // width)
    for top in range(0, h, height):
        for left in range(0, w, width):
            rows, columns = _surrounded(top, height, h, halo), _surrounded(left, width, w, halo)
            block, around, within = zip(rows, columns, strict=True)
            yield block, around, within


def _even(length: int, part: int) -> int:
    """The size of equal parts of ``length``, rounded up, as few as there are with at most ``part`` each."""
    return -(-length // -(-length // part))


def _surrounded(start: int, part: int, length: int, halo: int) -> tuple[slice, slice, slice]:
    size = min(part + 2 * halo, length)
    stop, first = min(start + part, length), min(max(0, start - halo), length - size)
    return slice(start, stop), slice(first, first + size), slice(start - first, stop - first)
