"""Checks of arguments: each raises a ValueError that names the first bad argument, its value and what is allowed. Numbers
are int or float, and not True or False."""

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

MAX_PIXELS = 2**26  # of an image: what a header or an option may ask for must be bounded
LARGEST = 1e30  # what is computed from numbers has to fit into float32, which ends at 3.4e38


class Misplaced(ValueError):
    """What was given belongs to another argument; a command adds their order to the sentence."""


def require(allowed: str, fits: Callable[[Any], bool], arguments: dict[str, Any]) -> None:
    """``allowed`` words what ``fits``, after "must be"."""
    for name, value in arguments.items():
        if not fits(value):
            raise ValueError(f"{name} is {value!r}, but must be {allowed}.")


def is_number(value: Any) -> bool:
    return type(value) in (int, float)


def integer(low: int, high: int | None = None, **arguments: Any) -> None:
    allowed = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    require(allowed, lambda v: type(v) is int and low <= v and (high is None or v <= high), arguments)
    require("below 2^63", lambda v: v < 2**63, arguments)  # as PyTorch and Python's ranges take them


def odd(low: int, **arguments: Any) -> None:
    require(f"an odd number of at least {low}", lambda v: type(v) is int and v >= low and v % 2 == 1, arguments)


def positive(**arguments: Any) -> None:
    require("a number above 0", lambda v: is_number(v) and 0 < v <= LARGEST, arguments)


def not_negative(**arguments: Any) -> None:
    require("a number of at least 0", lambda v: is_number(v) and 0 <= v <= LARGEST, arguments)


def fraction(**arguments: Any) -> None:
    require("at least 0 and below 1", lambda v: is_number(v) and 0 <= v < 1, arguments)


def boolean(**arguments: Any) -> None:
    require("True or False", lambda v: type(v) is bool, arguments)


def choice(allowed: Iterable[str], **arguments: Any) -> None:
    require(f"one of {', '.join(allowed)}", lambda v: type(v) is str and v in allowed, arguments)


def parse_size(text: object) -> tuple[int, int] | None:
    """``"100x150"`` -> ``(100, 150)``, two integers from 1 to 99999; None for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})", str(text))
    return (int(match[1]), int(match[2])) if match else None


def parse_sides(patch: object) -> tuple[int, int] | None:
    """A side, 2 -> (2, 2), or as :func:`parse_size`; None for anything else."""
    return ((patch, patch) if patch > 0 else None) if type(patch) is int else parse_size(patch)


def article(noun: str) -> str:
    """"an integer", "a number"."""
    return f"{'an' if noun[0] in 'aeioAEIO' else 'a'} {noun}"


def count(n: int, noun: str) -> str:
    """"1 image", "2,000 images"."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def did_you_mean(name: str, known: Iterable[str], otherwise: str = ".") -> str:
    """The end of a sentence on a ``name`` that does not exist: the nearest of the ``known`` ones, or ``otherwise``."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else otherwise
