"""Work divided among threads."""

import collections
import contextlib
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


def in_parallel(f: Callable, things: Iterable, n: int) -> Iterator:
    """``f`` of each thing, in their order, ``n`` of them at a time in as many threads. Each computes with one torch thread,
    since many small steps that each wait for all cores take longer than many at the same time."""
    pending = collections.deque()
    with one_torch_thread():
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


_lock, _before = threading.Lock(), []  # the number of threads before the first of the blocks that are open, for each of them


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """One torch thread within the block. New threads start with the number that any thread has set last, so blocks that
    overlap in time all restore the number from before the first."""
    with _lock:
        _before.append(_before[0] if _before else torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            torch.set_num_threads(_before.pop())
