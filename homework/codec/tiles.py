"""Grids larger than a prior's, in tiles."""

import itertools
from collections.abc import Iterator

TILES = 64  # of one image that are coded together


def tiles(grid: tuple[int, int], tile: tuple[int, int]) -> Iterator[tuple[tuple[int, int], list[tuple[int, int]]]]:
    """Cuts a ``grid`` (h,w) into tiles of at most ``tile`` (height,width), the largest grid of the prior, in the order in
    which a payload holds them: at most TILES of one size at a time, coded in turns, the first token of each, then the second
    ones, and so on. First come the complete tiles in raster order, then those cut off at the right, at the bottom, at both.
    Yields ((a,b), corners): the size of some tiles, and for each the row and column of its first token in the grid."""
    for (a, tops), (b, lefts) in itertools.product(*map(_sides, grid, tile)):
        corners = itertools.product(tops, lefts)
        while some := list(itertools.islice(corners, TILES)):
            yield (a, b), some


def _sides(length: int, part: int) -> list[tuple[int, range]]:
    complete = length - length % part
    return [(part, range(0, complete, part)), (length - complete, range(complete, length, part))]
