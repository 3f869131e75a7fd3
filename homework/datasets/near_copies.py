"""Near-copies among images, such as those of a kart that waits for the start, from which training learns little."""

import numpy as np
from PIL import Image

SIZE = 15, 10  # width and height of a thumbnail, in pixels


class NearCopies:
    """Finds, among images that come one after the other, those that hardly differ from an earlier one.

    An image is a near-copy of another if their thumbnails, (10,15,3) uint8, differ by less than ``distance`` in root mean
    square. Only images that are not near-copies are remembered, in 1.8 KB each; the time for an image grows with their
    number.
    """

    def __init__(self, distance: float):
        self.distance, self.n = distance, 0
        self.kept = np.empty((1024, 3 * SIZE[0] * SIZE[1]), np.float32)
        self.squares = np.empty(1024, np.float32)  # the sum of those of each

    def has(self, image: Image.Image) -> bool:
        """Whether the ``image`` is a near-copy of one that is remembered; if not, it is from now on."""
        x = np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.BOX), np.float32).ravel() - 127.5
        squares = x @ x
        # |a - b|^2 = |a|^2 - 2 ab + |b|^2: a product with a matrix, ten times as fast as differences
        distances = self.squares[: self.n] - self.kept[: self.n] @ (2 * x) + squares
        if self.n and distances.min() < self.distance**2 * len(x):
            return True
        if self.n == len(self.kept):
            self.kept, self.squares = (np.concatenate([a, np.empty_like(a)]) for a in (self.kept, self.squares))
        self.kept[self.n], self.squares[self.n], self.n = x, squares, self.n + 1
        return False
