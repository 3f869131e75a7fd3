"""Work shared out to threads."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


def groups(things: Iterable, keys: Iterable) -> list[tuple]:
    """(key, the things that have it), in the order in which keys first occur."""
    found = collections.defaultdict(list)
    for thing, key in zip(things, keys, strict=True):
        found[key].append(thing)
    return list(found.items())


def pieces(things: list, n: int) -> list[list]:
    """``things``, at most ``n`` in each list."""
    return [things[i : i + n] for i in range(0, len(things), n)]


def in_parallel(f: Callable, things: Iterable, n: int) -> Iterator:
    """``f`` of each thing, in their order, ``n`` of them at a time in as many threads. Each computes with one torch thread,
    since many small steps of which each waits for all cores take longer than many at the same time."""
    before, pending = torch.get_num_threads(), collections.deque()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for thing in things:
            pending.append(pool.submit(f, thing))
            if len(pending) > n:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, what has not begun is left
        torch.set_num_threads(before)
