"""Grids larger than a prior's, in tiles."""

import itertools
from collections.abc import Iterator

TILES = 64  # of one image that are coded together


def tiles(grid: tuple[int, int], tile: tuple[int, int]) -> Iterator[tuple[tuple[int, int], list[tuple[int, int]]]]:
    """Cuts a ``grid`` (h,w) that is larger than a prior's into tiles, and yields them in the order in which a payload holds
    them: at most TILES of one size at a time, coded in turns, the first token of each, then the second ones, and so on.

    Args:
        tile: (height,width), the largest grid of the prior.
    Returns:
        ((a,b), places): the size of some tiles, and for each the row and column of its first token in the grid. First come
        the whole tiles in raster order, then those cut off at the right, at the bottom, and at both.
    """
    for a, tops in _sides(grid[0], tile[0]):
        for b, lefts in _sides(grid[1], tile[1]):
            places = itertools.product(tops, lefts)
            while some := list(itertools.islice(places, TILES)):
                yield (a, b), some


def _sides(length: int, part: int) -> list[tuple[int, range]]:
    whole = length - length % part
    return [(part, range(0, whole, part)), (length - whole, range(whole, length, part))]
