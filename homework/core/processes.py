"""Which of the processes that work together under ``torchrun`` this is, and what the first one alone says."""

import functools
import os
import sys
from typing import Any

from tqdm import tqdm


def rank() -> int:
    """The number of this process, from 0; 0 is the one that writes files."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """The number of processes that work together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def own_share(items: Any) -> Any:
    """Every n-th of the ``items``, a list or a tensor, for this one of n processes, from its own number on."""
    return items[rank() :: world_size()]


def check_alone(what: str, remedy: str = "leave torchrun out") -> None:
    """ValueError if there are several processes, each of which would do all of the work."""
    if world_size() > 1:
        raise ValueError(f"{what} is not shared out among the {world_size()} processes; {remedy}.")


def say(sentence: str) -> None:
    """Prints to stderr, above any progress bar, on the first process alone."""
    if rank() == 0:
        tqdm.write(sentence, file=sys.stderr)


@functools.cache
def say_once(sentence: str) -> None:
    """Says what this process has not said yet."""
    say(sentence)
