"""Work divided among threads."""

import collections
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch


def groups(things: Iterable, keys: Iterable) -> list[tuple]:
    """(key, the things that have it), in the order in which keys first occur."""
    found = collections.defaultdict(list)
    for thing, key in zip(things, keys, strict=True):
        found[key].append(thing)
    return list(found.items())


def pieces(things: Sequence, n: int) -> list:
    """``things``, at most ``n`` in each piece."""
    return [things[i : i + n] for i in range(0, len(things), n)]


_lock, _before = threading.Lock(), []  # torch's number of threads before the first of the calls that are open, for each


def in_parallel(f: Callable, things: Iterable, n: int) -> Iterator:
    """``f`` of each thing, in their order, ``n`` of them at a time in as many threads. Each computes with one torch thread,
    since many small steps that each wait for all cores take longer than many at the same time."""
    pool, pending = ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,)), collections.deque()
    with _lock:
        _before.append(_before[0] if _before else torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        for thing in things:
            pending.append(pool.submit(f, thing))
            if len(pending) > n:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, what has not begun is left
        with _lock:  # a new thread starts with the number that any has set last, so all restore that from before the first
            torch.set_num_threads(_before.pop())
