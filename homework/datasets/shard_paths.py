"""The images of any number of shards as a list of which only the part that is being looked at is in memory."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from tqdm import tqdm

from homework.core.processes import rank
from homework.datasets.shards import MANIFEST, REMOTE, Member, Unreadable, open_shard, parse_manifest, shards_in

BAD = ValueError, Unreadable, FileNotFoundError  # of a shard that is left out with skip_bad, unlike a full disk's


class Chain(Sequence[str]):
    """Lists of ``counts`` items, one after the other, of which ``part(k)`` makes number k when one of its items is asked
    for; the last two are held. A slice is a list."""

    def __init__(self, counts: Sequence[int], part: Callable[[int], Sequence[str]]):
        self.ends, self.part = np.cumsum(counts, dtype=np.int64), functools.lru_cache(2)(part)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __iter__(self) -> Iterator[str]:
        for k in range(len(self.ends)):
            yield from self.part(k)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(len(self))[i]]
        i = range(len(self))[i]
        k = int(np.searchsorted(self.ends, i, side="right"))
        return self.part(k)[i - int(self.ends[k])]  # from the part's end


def paths_in(sources: Iterable[str | Path]) -> Chain | None:
    """The paths of all images in the shards that ``sources`` name, sorted, each once; None if one of them names something
    else. A shard is opened when one of its paths is asked for. ValueError or OSError, then or now, if it cannot be read."""
    urls = set[str]()
    for source in sources:
        if isinstance(source, Member) or (named := shards_in(source)) is None:
            return None
        urls.update(named)
    counts = n_images(sorted(urls, key=lambda url: f"{url}/"))
    found = [(url, n) for url, n in counts.items() if n]
    return Chain([n for _, n in found], lambda k: sorted(Member.of(found[k][0], name) for name in names_in(*found[k])))


def names_in(url: str, n: int) -> list[str]:
    """The names of the ``n`` images in a shard, in its order. ValueError if it has more or fewer."""
    names = open_shard(url).names
    if len(names) != n:
        raise ValueError(f"{url} holds {len(names)} images, but {n} by {MANIFEST}, or when it was counted; make the shards "
                         "again with python -m homework.data shard.")  # fmt: skip
    return names


def n_images(urls: list[str], left_out: set[str] | None = None) -> dict[str, int]:
    """How many images are in each shard: as the shards.json beside it says, or else by reading it. None are in those that
    are damaged, if ``left_out`` is there to take a sentence about each."""

    def count(url: str) -> int:
        try:
            return len(open_shard(url))
        except BAD as error:
            if left_out is None:
                raise
            left_out.add(str(error))
            return 0

    known: dict[str, int] = {}
    for folder in dict.fromkeys(url.rpartition("/")[0] for url in urls if not url.startswith("pipe:")):
        known |= {f"{folder}/{name}" if folder else name: one["images"] for name, one in _manifest(folder).items()}
    others = [url for url in urls if url not in known]
    with tqdm(others, "counting images", unit="shard", leave=False, disable=rank() > 0 or not others) as bar:
        known |= {url: count(url) for url in bar}
    return {url: known[url] for url in urls}


def _manifest(folder: str) -> dict[str, dict[str, int]]:
    """Of the shards in a local or remote folder; {} if there is none."""
    path = f"{folder}/{MANIFEST}" if folder else MANIFEST
    if not REMOTE.match(path):
        return parse_manifest(Path(path).read_bytes(), path) if Path(path).is_file() else {}
    from webdataset.gopen import gopen

    with contextlib.suppress(OSError), contextlib.closing(gopen(path)) as stream:
        content = stream.read()
        return parse_manifest(content, path) if content else {}
    return {}
