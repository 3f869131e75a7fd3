"""The parts of the grade: what each is worth, what is allowed, and how its figures turn into points."""

import math
from collections.abc import Callable
from dataclasses import dataclass

MAX_CHANNELS = 256  # of the auto-encoder's bottleneck
MIN_SAVING = 6  # as many times fewer numbers than the image's has the bottleneck at least
MAX_TOKENS = 1200  # of an image
MAX_CODES = 2**14  # K
MAX_BITS = 12_000  # that an image's tokens could hold: 1200 of 10 bits


@dataclass(frozen=True)
class Part:
    """One line of the report.

    Attributes:
        name: of the line.
        measure: the method of :class:`grader.measure.Measures` that measures it; several may share one.
        out_of: points at most.
        figures: the measures in one line, a format string of their names.
        score: measures -> (fraction of the points in [0,1], why it is not 1 or "").
        scaled: whether its points count only as far as the tokenizer's: any tokens that hold little of the image are easy
            to predict and to store.
        extra: its points come on top of the 100.
    """

    name: str
    measure: str
    out_of: int
    figures: str
    score: Callable[[dict], tuple[float, str]]
    scaled: bool = False
    extra: bool = False


def linear(value: float, full: float, none: float) -> float:
    """1 at ``full`` and better, 0 at ``none`` and worse, linear between; 0 for NaN. Either may be the larger one."""
    fraction = (value - none) / (full - none)
    return min(fraction, 1.0) if fraction > 0 else 0.0


def _between(what: str, value: float, full: float, none: float) -> tuple[float, str]:
    fraction = linear(value, full, none)
    return fraction, "" if fraction == 1 else f"{what} is {value:.4g}; full points at {full:g}, none at {none:g}"


def autoencoder(m: dict) -> tuple[float, str]:
    if m["channels"] > MAX_CHANNELS:
        return 0.0, f"the bottleneck has {m['channels']} channels; at most {MAX_CHANNELS} are allowed"
    most = m["values_per_image"] // MIN_SAVING
    if m["numbers_per_image"] > most:
        return 0.0, (f"the bottleneck keeps {m['numbers_per_image']} numbers of an image's {m['values_per_image']}; at most "
                     f"{most} are allowed")  # fmt: skip
    return _between("MSE", m["mse"], 0.010, 0.015)


def too_much(tokens: int, largest_index: int) -> str:
    """Why so many tokens of an image, up to so large, are not allowed; "" if they are."""
    if tokens > MAX_TOKENS:
        return f"an image takes {tokens} tokens; at most {MAX_TOKENS} are allowed"
    if largest_index >= MAX_CODES:
        return f"there is a token {largest_index}; the largest allowed is {MAX_CODES - 1}"
    bits = tokens * math.log2(largest_index + 1)
    if bits > MAX_BITS:
        return f"the tokens of an image could hold {bits:.0f} bits; at most {MAX_BITS} are allowed"
    return ""


def tokenizer(m: dict) -> tuple[float, str]:
    if reason := too_much(m["tokens"], m["largest_index"]):
        return 0.0, reason
    return _between("MSE", m["mse"], 0.005, 0.010)


def prior(m: dict) -> tuple[float, str]:
    return _between("bits per image", m["bits"], 4500, 4800)


def causality(m: dict) -> tuple[float, str]:
    if m["leaks"]:
        return 0.0, m["first_leak"]
    if not m["moved"]:
        return 0.0, "no logits ever move: the prior ignores its input"
    return 1.0, ""


def generation(m: dict) -> tuple[float, str]:
    if m["different"] < m["frames"]:
        return 0.0, f"only {m['different']} of {m['frames']} frames are different"
    if m["new"] < 0.75 * m["frames"]:  # one or two may happen to be near
        return 0.0, f"only {m['new']} of {m['frames']} frames are new: the others are reconstructions of known images"
    most = min(6.5, 0.94 * math.log(m["n_codes"]))  # 6.5 of 1024 codes, of which noise has 6.93
    if not m["nats"] < most:
        return 0.0, f"the mean negative log-likelihood is {m['nats']:.3g} nats per token; it must be under {most:.3g}"
    return 1.0, ""


def compression(m: dict) -> tuple[float, str]:
    if not m["difference"] <= 1e-4:
        return 0.0, f"no exact round trip: an image comes back with pixels off by {m['difference']:.3g} of its tokens'"
    if not m["mse"] <= 0.010:
        return 0.0, f"MSE is {m['mse']:.3g}; at most 0.01 is allowed"
    return _between("the ratio to JPEG", m["ratio"], 14, 7.5)


PARTS = (
    Part("auto-encoder", "autoencoder", 30, "MSE {mse:.5f}, {channels} channels", autoencoder),
    Part("tokenizer", "tokenizer", 30, "MSE {mse:.5f}, {tokens} tokens, {codes_used} codes used", tokenizer),
    Part("prior", "prior", 15, "{bits:.0f} bits per image", prior, scaled=True),
    Part("causality", "prior", 15, "{perturbations} perturbations, {leaks} leaked, {moved} moved what follows", causality,
         scaled=True),
    Part("generation", "generation", 10, "{frames} frames, {different} different, {new} new, {nats:.2f} nats per token",
         generation, scaled=True),
    Part("compression", "compression", 5, "{ratio:.1f} times smaller than JPEG, MSE {mse:.5f}", compression, scaled=True,
         extra=True),
)  # fmt: skip
