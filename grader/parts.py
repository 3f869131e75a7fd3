"""The parts of the grade: what each is worth, and how its figures turn into points."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One line of the report.

    Attributes:
        name: also the key in ``grader.measure.MEASURES``.
        out_of: points at most.
        figures: the measures in one line, a format string of their names.
        score: measures -> (fraction of the points in [0,1], why it is not 1 or "").
        extra: its points come on top of the 100.
    """

    name: str
    out_of: int
    figures: str
    score: Callable[[dict], tuple[float, str]]
    extra: bool = False


def linear(value: float, full: float, none: float) -> float:
    """1 at ``full`` and better, 0 at ``none`` and worse, linear between; 0 for NaN. Either may be the larger one."""
    fraction = (value - none) / (full - none)
    return min(fraction, 1.0) if fraction > 0 else 0.0


def _between(what: str, value: float, full: float, none: float) -> tuple[float, str]:
    fraction = linear(value, full, none)
    return fraction, "" if fraction == 1 else f"{what} is {value:.4g}; full points at {full:g}, none at {none:g}"


def autoencoder(m: dict) -> tuple[float, str]:
    if m["channels"] > 256:
        return 0.0, f"the bottleneck has {m['channels']} channels; at most 256 are allowed"
    return _between("MSE", m["mse"], 0.010, 0.015)


def tokenizer(m: dict) -> tuple[float, str]:
    if m["tokens"] > 1200:
        return 0.0, f"an image takes {m['tokens']} tokens; at most 1200 are allowed"
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
    if not m["nats"] < 6.5:
        return 0.0, f"the mean negative log-likelihood is {m['nats']:.3g} nats per token; it must be under 6.5"
    return 1.0, ""


def compression(m: dict) -> tuple[float, str]:
    if not m["difference"] <= 1e-4:
        return 0.0, f"no exact round trip: an image comes back with pixels off by {m['difference']:.3g} of its tokens'"
    if not m["mse"] <= 0.1:
        return 0.0, f"MSE is {m['mse']:.3g}; at most 0.1 is allowed"
    return _between("the ratio to JPEG", m["ratio"], 14, 7.5)


PARTS = (
    Part("auto-encoder", 30, "MSE {mse:.5f}, {channels} channels", autoencoder),
    Part("tokenizer", 30, "MSE {mse:.5f}, {tokens} tokens, {codes_used} codes used", tokenizer),
    Part("prior", 15, "{bits:.0f} bits per image", prior),
    Part("causality", 15, "{perturbations} perturbations, {leaks} leaked, {moved} moved what follows", causality),
    Part("generation", 10, "{frames} frames, {different} different, {nats:.2f} nats per token", generation),
    Part("compression", 5, "{ratio:.1f} times smaller than JPEG, MSE {mse:.5f}", compression, extra=True),
)
