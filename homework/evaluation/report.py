"""The report of :mod:`homework.evaluate`: a plot, tables, and what its page shows."""

import csv
import itertools
from pathlib import Path
from typing import Any

from homework.core import files
from homework.evaluation.curves import Curves, bjontegaard, comparison, curve, rivals_at
from homework.evaluation.pages import write_page

COLOURS = {"ours": "#c0392b", "JPEG": "#7f7f7f", "WebP": "#2e8b57", "AVIF": "#e08a00", "JPEG XL": "#6a5acd"}


def write_report(folder: Path, curves: Curves, paths: list[str], results: dict[str, Any]) -> None:
    """Writes rates.csv (a row for each operating point), bjontegaard.csv, images.csv (a row for each image at each point),
    rates.png and index.html; ``results`` are the other entries that templates/rates.html needs."""
    points = {name: [point.summary() for point in points] for name, points in curves.items()}
    differences = bjontegaard(curves)
    write_csv(folder / "rates.csv", list(itertools.chain(*points.values())))
    write_csv(folder / "bjontegaard.csv", differences)
    write_csv(folder / "images.csv", [row for point in itertools.chain(*curves.values()) for row in point.each(paths)])
    plot(curves, folder / "rates.png")
    results |= {"points": points, "at_our_quality": at_our_quality(curves), "bjontegaard": differences}
    write_page("rates.html", "Rate and distortion", results, folder / "index.html")  # last, so that all it shows is there


def at_our_quality(curves: Curves) -> list[dict]:
    """Each of our points' summary, comparisons of "files" and "payloads" in sentences, and "rivals": by codec what
    :func:`rivals_at` finds for files and payloads, at equal PSNR and then at equal MS-SSIM."""
    found = []
    for point in curves["ours"]:
        columns = [rivals_at(curves, point, rate, q) for q in ("psnr", "ms_ssim") for rate in ("bytes", "payload")]
        rivals = {name: [column[name] for column in columns] for name in curves if name != "ours"}
        sentences = {"files": comparison(curves, point, "bytes"), "payloads": comparison(curves, point, "payload")}
        found.append(point.summary() | sentences | {"rivals": rivals})
    return found


def write_csv(path: Path, rows: list[dict]) -> None:
    """Rows of one form, under a head of their keys."""
    with files.replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def plot(curves: Curves, out: Path) -> None:
    """Writes a PNG of PSNR over bytes an image: whole files as lines, payloads dashed, ours as stars."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    fig = Figure(figsize=(8, 5), layout="constrained")
    axes = fig.subplots()
    for name, points in curves.items():
        for rate, linestyle, linewidth in ("bytes", "-", 1.6), ("payload", "--", 1.1):
            style = {"color": COLOURS.get(name), "linestyle": linestyle, "linewidth": linewidth}
            if name == "ours":
                face, edge = (COLOURS[name], "white") if rate == "bytes" else ("white", COLOURS[name])
                style |= {"marker": "*", "markersize": 15, "markerfacecolor": face, "markeredgecolor": edge, "zorder": 5}
            elif rate == "bytes":
                style |= {"marker": "o", "markersize": 3.5}
            if xy := sorted(curve(points, rate)):
                axes.plot(*zip(*xy, strict=True), label=name if rate == "bytes" else None, **style)
    axes.plot([], [], color="black", linestyle="--", linewidth=1.1, label="payload, without container")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="bytes an image", ylabel="PSNR of the mean error (dB)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    with files.replacing(out) as temporary:
        fig.savefig(temporary, format="png", dpi=144)
