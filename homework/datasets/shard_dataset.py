"""Images for training from WebDataset shards: in the order of the shards, shuffled in a window that moves over them."""

import functools
import os
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from homework.core import checks
from homework.core.processes import say_once
from homework.datasets.base import Indices
from homework.datasets.image_files import HELD_OUT, check_size, read_image
from homework.datasets.images import Images, mirrored, to_float
from homework.datasets.shard_paths import BAD, n_images, names_in
from homework.datasets.shards import Member, keep_open, shards_in

WINDOW = 4  # shards whose images are shuffled together; a batch may be of two windows


class WindowOrder:
    """A permutation of the numbers 0 ... n-1 of samples in shards, drawn as it is needed: the shards in random order, a few
    at a time, and the samples of these few in random order. Position i is a function of i and the seed alone, and what is
    held in memory are the numbers of one window.

    Args:
        counts: the number of samples in each shard, (S).
        window: how many shards are shuffled together.
        seeded: generators, see :meth:`homework.datasets.base.Dataset.order`.
    """

    def __init__(self, counts: np.ndarray, window: int, seeded: Callable[..., torch.Generator]):
        shards = torch.randperm(len(counts), generator=seeded()).numpy()
        self.windows = [shards[i : i + window] for i in range(0, len(shards), window)]
        self.starts = np.cumsum(counts) - counts  # of each shard, among the numbers
        self.ends = np.cumsum([counts[window].sum() for window in self.windows])  # of each window, among the positions
        self.counts, self.seeded = counts, seeded
        self.samples = functools.lru_cache(2)(self._samples)

    def _samples(self, w: int) -> Tensor:
        numbers = np.concatenate([np.arange(self.starts[s], self.starts[s] + self.counts[s]) for s in self.windows[w]])
        return torch.from_numpy(numbers)[torch.randperm(len(numbers), generator=self.seeded(w))]

    def __getitem__(self, places: slice) -> Tensor:
        start, stop, _ = places.indices(int(self.ends[-1]))
        if start >= stop:
            return torch.empty(0, dtype=torch.int64)
        first, last = np.searchsorted(self.ends, [start, stop - 1], side="right").tolist()
        begin = int(self.ends[first] - len(self.samples(first)))  # the position at which the first window begins
        windows = torch.cat([self.samples(w) for w in range(first, last + 1)])
        return windows[start - begin : stop - begin]


class ShardDataset(Images):
    """Images of one size in WebDataset shards, see :func:`homework.datasets.shards.shards_in`; ``ds[i]`` is uint8 (H, W, 3).

    Nothing is decoded before it is used, and no images are listed: of each shard only the number of its images is known,
    from the shards.json beside it, or by reading it once. Sample i is image i - start of the shard whose range has it; so
    any batch can be made from its indices alone, as the loop asks, and a run resumes at its sample. That this is quick is
    due to :class:`WindowOrder`: an epoch goes through the shards a few at a time. Every process reads all shards.

    Args:
        split: "train" or "valid".
        root: a folder that holds a folder of shards for each split; or shards, of which those with ``valid`` in their names
            or those of their folders are for validation, or, where there are none, every 20th from the first one on.
        image_size: (H, W) to scale and crop to; None requires that all images have one size.
        skip_bad: in place of an image that is damaged or of another size take the next one that is not, and in place of one
            in a damaged shard that at the same position of the next shard; they are errors by default.
        shuffle_shards: how many shards are shuffled together.
    """

    random_access = False
    left_out: set[str]  # grows with the images that are asked for

    def __init__(self, split: str = "train", root: str | Path = "data", image_size: tuple[int, int] | None = None,
                 skip_bad: bool = False, shuffle_shards: int = WINDOW):  # fmt: skip
        self.left_out, self.damaged = set[str](), set[int]()
        found = n_images(split_shards(split, root), self.left_out if skip_bad else None)
        self.names, self.counts = [url for url, n in found.items() if n], np.array([n for n in found.values() if n], int)
        if not self.names:
            raise ValueError(f"There are no images in the shards of {root} for {split}.")
        self.ends, self.image_size, self.skip_bad, self.window = np.cumsum(self.counts), image_size, skip_bad, shuffle_shards
        keep_open(2 * shuffle_shards)
        self.pool = ThreadPoolExecutor(os.cpu_count())
        self.ahead: dict[int, Future] = {}  # images that are being decoded, by index
        self.size, self.first = image_size or (0, 0), None if image_size is None else ""  # the path of what has that size
        self._image(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(self._image(range(len(self))[i]))

    def batch(self, indices: Indices, device: torch.device | str = "cpu") -> Tensor:
        own = [(i, self.ahead.pop(i, None)) for i in np.asarray(indices).tolist()]
        images = [future.result() for future in [future or self.pool.submit(self._image, i) for i, future in own]]
        return to_float(torch.from_numpy(np.stack(images)).to(device))

    def prefetch(self, indices: Indices) -> None:
        for future in self.ahead.values():  # of what was not asked for
            future.cancel()
        self.ahead = {i: self.pool.submit(self._image, i) for i in np.asarray(indices).tolist()}

    def order(self, n: int, seeded: Callable[..., torch.Generator]) -> WindowOrder:
        used = np.diff(self.ends.clip(max=n), prepend=0)  # of each shard; none of those after the first n samples
        return WindowOrder(used[used > 0], self.window, seeded)

    def augment(self, batch: Tensor, generator: torch.Generator, indices: Tensor | None = None) -> Tensor:
        return mirrored(batch, generator)

    def _place(self, i: int) -> tuple[int, int]:
        """The shard of sample ``i``, and its position in it."""
        s = int(np.searchsorted(self.ends, i, side="right"))
        return s, i - int(self.ends[s] - self.counts[s])

    def _names(self, s: int) -> list[str]:
        try:
            return names_in(self.names[s], int(self.counts[s]))
        except BAD:
            self.damaged.add(s)
            raise

    def _image(self, i: int) -> np.ndarray:
        """Sample ``i``, (H,W,3) uint8; with ``skip_bad`` the next one that is good."""
        for _ in range(len(self)):
            s, k = self._place(i)
            if s in self.damaged:
                i = (int(self.ends[s]) + k) % len(self)
                continue
            try:
                path = Member.of(self.names[s], self._names(s)[k])
                image = read_image(path, self.image_size)
                if self.first is None:
                    self.first, self.size = path, image.shape[:2]
                check_size(path, image, self.first, (self.size[0], self.size[1]))
                return image
            except BAD as error:
                if not self.skip_bad:
                    raise
                self.left_out.add(str(error))
                i = (i + 1) % len(self) if s not in self.damaged else i
        raise ValueError(f"None of the images in {self.names[0]} and the shards after it can be used.")


def has_shards(root: str | Path) -> bool:
    """Whether ``root`` names shards for :class:`ShardDataset`."""
    folders = [Path(root) / "train", root] if Path(root).is_dir() else [root]
    return any(shards_in(folder) is not None for folder in folders)


def split_shards(split: str, root: str | Path) -> list[str]:
    """The shards in ``root`` for "train" or "valid", see :class:`ShardDataset`. ValueError for a single one."""
    own = shards_in(Path(root) / split) if Path(root).is_dir() else None
    if own is not None:
        return own
    urls = shards_in(root)
    if urls is None:
        raise FileNotFoundError(f"{Path(root) / split} is not a folder of shards; make it with python -m homework.data "
                                f"shard IMAGES {Path(root) / split}.")  # fmt: skip
    valid = [url for url in urls if re.search(r"(?<![a-z])valid(?![a-z])", "/".join(url.split("/")[-2:]))]
    if not valid:
        valid = urls[::HELD_OUT]
        say_once(f"No shards of {root} are named valid; every {HELD_OUT}th of {len(urls)} validates.")
    if len(valid) == len(urls):
        raise ValueError(f"{root} names {checks.count(len(urls), 'shard')} for validation and none for training; name both, "
                         "with :: between them, as in train-{000..999}.tar::valid-000.tar.")  # fmt: skip
    return valid if split == "valid" else [url for url in urls if url not in {*valid}]
