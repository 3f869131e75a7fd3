"""Work divided among threads."""

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


_open: list[int] = []  # for each of the calls that are open, torch's number of threads in the thread that made it


def own_threads() -> int:
    """How many torch threads this thread computes with while it is not in a pool."""
    own = torch.get_num_threads()
    # 1 perhaps only since this thread began while another call's pool had set it
    return next(iter(_open), own) if own == 1 else own


def in_parallel(f: Callable, things: Iterable, n: int) -> Iterator:
    """``f`` of each thing, in their order, ``n`` of them at a time in as many threads. Each computes with one torch thread,
    since many small steps that each wait for all cores take longer than many at the same time. A caller that may stop before
    the end closes the iterator (``contextlib.closing``), which ends the threads."""
    pool, pending = ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,)), collections.deque()
    _open.append(own := own_threads())
    try:
        for thing in things:
            pending.append(pool.submit(f, thing))
            if len(pending) > n:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, what has not begun is left
        torch.set_num_threads(own)  # for each thread its own; but a new one starts with the number that any has set last
        _open.remove(own)
