"""Rate-distortion curves of codecs, ours and others: their operating points, and what they say of each other."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from homework.evaluation.metrics import psnr
from homework.evaluation.pages import percent

if TYPE_CHECKING:
    from scipy.interpolate import PchipInterpolator

COLUMNS = ("pixels", "bytes", "payload", "mse", "ms_ssim", "encode_s", "decode_s")  # what is measured of each image


@dataclasses.dataclass
class Point:
    """An operating point of a codec: what it made of each image at one setting, ``rows`` (n, COLUMNS) float64."""

    codec: str
    setting: str | int
    rows: np.ndarray

    def __getitem__(self, name: str) -> float:
        """The mean of a column over all images, or "psnr", that of the mean error, in dB."""
        return psnr(self["mse"]) if name == "psnr" else float(self.rows[:, COLUMNS.index(name)].mean())

    def summary(self) -> dict:
        """Means by name."""
        n, mean_psnr = len(self.rows), sum(map(psnr, self.rows[:, COLUMNS.index("mse")])) / len(self.rows)
        return {"codec": self.codec, "setting": self.setting, "images": n, "bytes": self["bytes"],
                "payload_bytes": self["payload"], "bits_per_pixel": 8 * self["bytes"] / self["pixels"],
                "psnr_of_mean_mse": self["psnr"], "mean_of_psnrs": mean_psnr,
                **{name: self[name] for name in ("ms_ssim", "encode_s", "decode_s")}}  # fmt: skip

    def each(self, paths: list[str]) -> list[dict]:
        """The columns by name, for each of the images ``paths``, with their bits per pixel and PSNR."""
        found = []
        for path, row in zip(paths, self.rows.tolist(), strict=True):
            own = dict(zip(COLUMNS, row, strict=True))
            own |= {"bits_per_pixel": 8 * own["bytes"] / own["pixels"], "psnr": psnr(own["mse"])}
            found.append({"image": Path(path).name, "codec": self.codec, "setting": self.setting} | own)
        return found


ANY = (-math.inf, math.inf)
Curves = dict[str, list[Point]]  # the points of each codec by its name, ours by "ours"
Curve = Sequence[tuple[float, float]]  # (rate in any unit above 0, quality in dB or another unit) of each point


def curve(points: list[Point], rate: str = "bytes", quality: str = "psnr") -> Curve:
    """(rate, quality) of each point whose quality is finite."""
    return [(point[rate], point[quality]) for point in points if math.isfinite(point[quality])]


def log_rate(curve: Curve) -> "PchipInterpolator":
    """The natural logarithm of a codec's rate as a function of its quality: a piecewise cubic that is monotone wherever the
    points are (Fritsch and Butland 1984), and so does not swing as one cubic through all of them may. Needs at least two
    points of different quality, in any order; of points of one quality the cheapest counts."""
    from scipy.interpolate import PchipInterpolator

    cheapest = {q: math.log(rate) for rate, q in sorted(curve, reverse=True)}
    return PchipInterpolator(*zip(*sorted(cheapest.items()), strict=True))


def common_range(*curves: Curve, within: tuple[float, float] = ANY) -> tuple[float, float] | None:
    """The qualities ``within`` these that all curves reach, from lowest to highest; None if there are none, or one curve has
    a single quality."""
    qualities = [{q for _, q in curve} for curve in curves]
    if min(map(len, qualities)) < 2:
        return None
    low, high = max(within[0], *map(min, qualities)), min(within[1], *map(max, qualities))
    return (low, high) if low < high else None


def rate_at(curve: Curve, quality: float) -> float | None:
    """The rate of a codec at this quality; None outside of its points."""
    if not curve or not min(q for _, q in curve) <= quality <= max(q for _, q in curve):
        return None
    if common_range(curve) is None:
        return min(rate for rate, _ in curve)
    return math.exp(log_rate(curve)(quality))


def bd_rate(curve: Curve, reference: Curve, within: tuple[float, float] = ANY) -> float | None:
    """Bjontegaard's difference in rate (VCEG-M33) of ``curve`` from ``reference``: the mean difference of the logarithms of
    both rates over their :func:`common_range` ``within`` these qualities, as a fraction: -0.5 is half the rate. None where
    they have none."""
    between = common_range(curve, reference, within=within)
    if between is None:
        return None
    difference = log_rate(curve).integrate(*between) - log_rate(reference).integrate(*between)
    return math.expm1(difference / (between[1] - between[0]))


def rivals_at(curves: Curves, point: Point | dict[str, float], rate: str,
              quality: str = "psnr") -> dict[str, tuple[float, float] | None]:  # fmt: skip
    """The rate of each other codec at the quality of our ``point``, and by what fraction of it ours is smaller (negative if
    it is larger); None for a codec without points as good, or as bad."""
    needs = {name: rate_at(curve(p, rate, quality), point[quality]) for name, p in curves.items() if name != "ours"}
    return {name: need and (need, 1 - point[rate] / need) for name, need in needs.items()}


def comparison(curves: Curves, point: Point, rate: str) -> str:
    """Which codecs our ``point`` beats at its own PSNR, by how much, and which beat it, in a sentence or two."""
    found, parts, sentences = rivals_at(curves, point, rate), [], []
    saved = {name: f[1] for name, f in found.items() if f}
    for word, smaller in ("smaller", True), ("larger", False):
        if some := [f"{name} (by {percent(abs(x), digits=0)})" for name, x in saved.items() if (x >= 0) == smaller]:
            parts.append(f"{word} than {listed(some)}")
    if parts:
        sentences.append(f"At our PSNR, ours is {', but '.join(parts)}.")
    for word, sign in ("better", 1), ("worse", -1):
        if beyond := [name for name in found if all(sign * (p["psnr"] - point["psnr"]) > 0 for p in curves[name])]:
            sentences.append(f"Every measured setting of {listed(beyond)} is {word} than ours.")
    return " ".join(sentences)


def listed(names: list[str]) -> str:  # as in "A, B and C"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def verdict(curves: Curves, original: float) -> list[str]:
    """A paragraph about each of our points; ``original`` is the mean of the original files' bytes."""
    return [
        f"{p.setting or 'Ours'}: {p['bytes']:,.1f} bytes an image ({p['payload']:,.1f} without header), "
        f"{original / p['bytes']:.1f} times fewer than the originals; PSNR {p['psnr']:.2f} dB, MS-SSIM {p['ms_ssim']:.4f}.\n"
        f"  Whole files: {comparison(curves, p, 'bytes')}\n"
        f"  Payloads, without containers and headers: {comparison(curves, p, 'payload')}"
        for p in curves["ours"]
    ]


def between_points(curves: Curves, psnr: float | None, within: tuple[float, float]) -> list[str]:
    """What our points say together, a line for files and one for payloads: our rate at a ``psnr`` in dB and its share of
    each other codec's, and, if there are several, Bjontegaard's measure of ours against each over what both reach ``within``
    these PSNRs."""
    lines = []
    for rate, what in ("bytes", "Files"), ("payload", "Payloads"):
        others = {name: curve(points, rate) for name, points in curves.items()}
        ours = others.pop("ours")
        differences = []
        for name, other in others.items():
            both, difference = common_range(ours, other, within=within), bd_rate(ours, other, within)
            if both and difference is not None:
                differences.append(f"{name} {percent(difference)} ({both[0]:.2f} to {both[1]:.2f} dB)")
        if psnr is not None:
            if need := rate_at(ours, psnr):
                rivals = rivals_at(curves, {"psnr": psnr, rate: need}, rate)
                shares = [f"{1 - found[1]:.3f} of {name}'s {found[0]:,.1f}" for name, found in rivals.items() if found]
                said = f"ours take {', '.join([f'{need:,.1f} bytes', *shares])}"
            else:
                said = f"none, for ours reach {min(q for _, q in ours):.2f} to {max(q for _, q in ours):.2f} dB"
            lines.append(f"{what} at {psnr:.2f} dB: {said}.")
        if differences:
            lines.append(f"{what}, Bjontegaard rate of ours against {', '.join(differences)}.")
        elif within != ANY:
            lines.append(f"{what}, Bjontegaard rate: no other codec reaches two of these PSNRs together with ours.")
    return lines


def bjontegaard(curves: Curves) -> list[dict]:
    """A row for each codec: the :func:`bd_rate` of it against JPEG and of ours against it; None where both are the same."""
    rows = []
    for name, points in curves.items():
        row = {"codec": name}
        for what, one, other in ("against JPEG", points, curves["JPEG"]), ("of ours against it", curves["ours"], points):
            for rate, of in ("bytes", "files"), ("payload", "payloads"):
                row[f"{of} {what}"] = None if one is other else bd_rate(curve(one, rate), curve(other, rate))
        rows.append(row)
    return rows
