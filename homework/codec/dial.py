"""How good compressed images are to be: a quality, or the size or PSNR that it is to reach."""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from homework.tokenizers.base import LMBDA

EFFORT, QUALITY = 5, 50  # of the commands, by default; at that quality lmbda is LMBDA
STEEP, STEEPNESS = 5, 6  # below this quality, so many times as steep: bits are so few that smaller steps change little
Found = TypeVar("Found")


def lmbda_at(quality: float) -> float:
    """Mean squared error (of pixels from 0 to 1) that a bit per pixel is worth at a quality from 1 to 100: half as much with
    every 10 more, and below STEEP with every 10 / STEEPNESS more. ValueError for another quality."""
    if type(quality) not in (int, float) or not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality!r}, but must be a number from 1 to 100.")
    return LMBDA * 2 ** ((QUALITY - quality + (STEEPNESS - 1) * max(0, STEEP - quality)) / 10)


def sharpness_at(lmbda: float) -> float:
    """The power of a prior's probabilities that fits tokens searched at an ``lmbda``, about, as measured on training frames:
    few bits make tokens more probable than a prior expects that has learned from an encoder's, many less so."""
    return min(1.75, max(0.95, 1.1 + math.log2(lmbda / LMBDA) / 8))


def parse_qualities(text: str) -> list[float]:
    """The qualities in a text, with commas between them. ValueError if one is not a quality."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"quality is {text!r}, but must be numbers from 1 to 100, such as 50 or 20,50,80.") from None
    for quality in found:
        lmbda_at(quality)
    return found


def quality_at(lmbda: float) -> float:
    """The inverse of :func:`lmbda_at`. ValueError for a value of no quality."""
    low, high = lmbda_at(100), lmbda_at(1)
    if type(lmbda) not in (int, float) or not low <= lmbda <= high:
        raise ValueError(f"lmbda is {lmbda!r}, but must be a number from {low:.7f} to {math.floor(1000 * high) / 1000}.")
    quality = QUALITY - 10 * math.log2(lmbda / LMBDA)
    return quality if quality >= STEEP else STEEP - (STEEP - quality) / STEEPNESS


class Target(NamedTuple):
    """``value`` is the most "bytes" of a file of its own, or the least "psnr" in dB. See :func:`aim`."""

    kind: str
    value: float

    def reached(self, n_bytes: float, psnr: float) -> bool:
        return n_bytes <= self.value if self.kind == "bytes" else psnr >= self.value


def target(target_bytes: float | None, target_psnr: float | None) -> Target | None:
    """ValueError unless at most one of both is given, above 0."""
    if target_bytes is not None and target_psnr is not None:
        raise ValueError("--target_bytes and --target_psnr are two aims; name one.")
    kind, value = ("bytes", target_bytes) if target_psnr is None else ("psnr", target_psnr)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"target_{kind} is {value!r}, but must be a number above 0.")
    return Target(kind, value)


def aim(target: Target, make: Callable[[int], tuple[Found, float, float]], what: str) -> Found:
    """The best of what is made at some qualities by bisection: with a target in bytes that of the highest PSNR in so many
    bytes, with one in PSNR that of the fewest bytes. ``make`` returns what it makes, its bytes and its PSNR in dB; ``what``
    names it. ValueError if none of these reaches the target."""
    low, high, made = 1, 100, []
    while low <= high:
        quality = (low + high) // 2
        made.append(make(quality))
        # the side on which the target's limit lies: bytes and PSNR both rise with quality, nearly
        if target.reached(*made[-1][1:]) == (target.kind == "bytes"):
            low = quality + 1
        else:
            high = quality - 1
    fitting = [one for one in made if target.reached(*one[1:])]
    if not fitting:
        if target.kind == "bytes":
            reach = f"takes {min(one[1] for one in made):,.0f} bytes or more, so never at most {target.value:,g}"
        else:
            reach = f"comes back with {max(one[2] for one in made):.2f} dB or less, so never at least {target.value:g}"
        raise ValueError(f"{what} {reach}; none of the {len(made)} qualities tried reaches further.")
    return max(fitting, key=lambda one: one[2] if target.kind == "bytes" else -one[1])[0]
