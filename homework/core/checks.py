"""Checks of arguments: a ValueError that names the argument, its value and what is allowed."""

import math
import re
from collections.abc import Iterable
from typing import Any


def integer(low: int, high: int | None = None, **arguments: Any) -> None:
    """ValueError unless all ``arguments`` are integers from ``low`` to ``high``, or of any size above."""
    for name, value in arguments.items():
        if type(value) is not int or value < low or (high is not None and value > high):
            allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
            raise ValueError(f"{name} is {value!r}, but must be an integer {allowed}.")


def odd(low: int, **arguments: Any) -> None:
    """ValueError unless all ``arguments`` are odd numbers of at least ``low``."""
    for name, value in arguments.items():
        if type(value) is not int or value < low or value % 2 == 0:
            raise ValueError(f"{name} is {value!r}, but must be an odd number of at least {low}.")


def positive(**arguments: Any) -> None:
    """ValueError unless all ``arguments`` are finite numbers above 0."""
    for name, value in arguments.items():
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}, but must be a number above 0.")


def fraction(**arguments: Any) -> None:
    """ValueError unless all ``arguments`` are numbers of at least 0 and below 1."""
    for name, value in arguments.items():
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise ValueError(f"{name} is {value!r}, but must be at least 0 and below 1.")


def boolean(**arguments: Any) -> None:
    """ValueError unless all ``arguments`` are True or False."""
    for name, value in arguments.items():
        if type(value) is not bool:
            raise ValueError(f"{name} is {value!r}, but must be True or False.")


def choice(allowed: Iterable[str], **arguments: Any) -> None:
    """ValueError unless all ``arguments`` are among the ``allowed`` words."""
    for name, value in arguments.items():
        if type(value) is not str or value not in allowed:
            raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(allowed)}.")


def not_negative(**arguments: Any) -> None:
    """ValueError unless all ``arguments`` are finite numbers of at least 0."""
    for name, value in arguments.items():
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value!r}, but must be a number of at least 0.")


def parse_size(text: object) -> tuple[int, int] | None:
    """``"100x150"`` -> ``(100, 150)``, two integers from 1 to 99999; None for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})", str(text))
    return (int(match[1]), int(match[2])) if match else None
