"""Operating points of codecs, ours and others: what they say of each other, in sentences, in a plot and on a page."""

import dataclasses
import math
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from homework.evaluation import metrics
from homework.evaluation.report import cards, figure, table

COLUMNS = ("pixels", "bytes", "payload", "mse", "ms_ssim", "encode_s", "decode_s")  # what is measured of each image
COLOURS = {"ours": "#c0392b", "JPEG": "#7f7f7f", "WebP": "#2e8b57", "AVIF": "#e08a00", "JPEG XL": "#6a5acd"}


@dataclasses.dataclass
class Point:
    """An operating point of a codec: what it made of each image at one setting, ``rows`` (n, COLUMNS) float64."""

    codec: str
    setting: str | int
    rows: np.ndarray

    def __getitem__(self, name: str) -> float:
        """The mean of a column over all images, or "psnr", that of the mean error, in dB."""
        return metrics.psnr(self["mse"]) if name == "psnr" else float(self.rows[:, COLUMNS.index(name)].mean())

    def summary(self) -> dict:
        """Means by name."""
        psnrs = [metrics.psnr(mse) for mse in self.rows[:, COLUMNS.index("mse")]]
        return {
            "codec": self.codec,
            "setting": self.setting,
            "images": len(self.rows),
            "bytes": self["bytes"],
            "payload_bytes": self["payload"],
            "bits_per_pixel": 8 * self["bytes"] / self["pixels"],
            "psnr_of_mean_mse": self["psnr"],
            "mean_of_psnrs": sum(psnrs) / len(psnrs),
            **{name: self[name] for name in ("ms_ssim", "encode_s", "decode_s")},
        }

    def each(self, paths: list[str]) -> list[dict]:
        """The columns by name, for each of the images ``paths``, with their bits per pixel and PSNR."""
        found = []
        for path, row in zip(paths, self.rows.tolist(), strict=True):
            own = dict(zip(COLUMNS, row, strict=True))
            own |= {"bits_per_pixel": 8 * own["bytes"] / own["pixels"], "psnr": metrics.psnr(own["mse"])}
            found.append({"image": Path(path).name, "codec": self.codec, "setting": self.setting} | own)
        return found


Curves = dict[str, list[Point]]  # the points of each codec by its name, ours by "ours"


# --- comparing ------------------------------------------------------------------------------------------------------------


def curve(points: list[Point], rate: str = "bytes", quality: str = "psnr") -> metrics.Curve:
    """(rate, quality) of each point whose quality is finite."""
    return [(point[rate], point[quality]) for point in points if math.isfinite(point[quality])]


def rivals_at(curves: Curves, point: Point, rate: str, quality: str = "psnr") -> dict[str, tuple[float, float] | None]:
    """What the other codecs need for the quality of our ``point``: the rate of each, and by what fraction of it ours is
    smaller (negative if it is larger); None for a codec with no points as good, or none as bad."""
    needs = {name: metrics.rate_at(curve(p, rate, quality), point[quality]) for name, p in curves.items() if name != "ours"}
    return {name: need and (need, 1 - point[rate] / need) for name, need in needs.items()}


def comparison(curves: Curves, point: Point, rate: str) -> str:
    """Which codecs our ``point`` beats at its own PSNR, by how much, and which beat it, in a sentence or two."""
    found = rivals_at(curves, point, rate)
    saved = {name: f[1] for name, f in found.items() if f}
    parts = []
    for word, smaller in ("smaller", True), ("larger", False):
        some = [f"{name} (by {percent(abs(x), digits=0)})" for name, x in saved.items() if (x >= 0) == smaller]
        parts += [f"{word} than {listed(some)}"] * bool(some)
    sentences = [f"At our PSNR, ours is {', but '.join(parts)}."] * bool(parts)
    for word, sign in ("better", 1), ("worse", -1):
        beyond = [name for name, points in curves.items() if all(sign * (p["psnr"] - point["psnr"]) > 0 for p in points)]
        some = [name for name in beyond if name in found]
        sentences += [f"Every measured setting of {listed(some)} is {word} than ours."] * bool(some)
    return " ".join(sentences)


def listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + names[-1:])


def verdict(curves: Curves, original: float) -> list[str]:
    """Sentences about each of our points; ``original`` is the mean of the original files' bytes."""
    lines = []
    for p in curves["ours"]:
        lines += [
            f"{p.setting or 'Ours'}: {p['bytes']:,.1f} bytes an image ({p['payload']:,.1f} without header), "
            f"{original / p['bytes']:.1f} times fewer than the originals; "
            f"PSNR {p['psnr']:.2f} dB, MS-SSIM {p['ms_ssim']:.4f}.",
            f"  Whole files: {comparison(curves, p, 'bytes')}",
            f"  Payloads, without containers and headers: {comparison(curves, p, 'payload')}",
        ]
    return lines


# --- the plot and the page ------------------------------------------------------------------------------------------------


def plot(curves: Curves) -> Figure:
    """PSNR over bytes an image: whole files as lines, payloads dashed, ours as stars."""
    fig = Figure(figsize=(8, 5), layout="constrained")
    axes = fig.subplots()
    for name, points in curves.items():
        for rate, dashes in ("bytes", "-"), ("payload", "--"):
            xy = sorted(curve(points, rate))
            style = {"color": COLOURS.get(name), "linestyle": dashes, "linewidth": 1.6 if rate == "bytes" else 1.1}
            if name == "ours":
                style |= {"marker": "*", "markersize": 15, "markeredgecolor": "white", "zorder": 5}
                style |= {"markerfacecolor": "white", "markeredgecolor": COLOURS[name]} if rate == "payload" else {}
            else:
                style |= {"marker": "o", "markersize": 3.5 if rate == "bytes" else 0}
            axes.plot(*zip(*xy, strict=True), label=name if rate == "bytes" else None, **style) if xy else None
    axes.plot([], [], color="black", linestyle="--", linewidth=1.1, label="payload, without container")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="bytes an image", ylabel="PSNR of the mean error (dB)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return fig


def body(facts: dict) -> str:
    """The page's contents, in HTML; the plot and the pictures lie beside it."""
    curves, n = facts["curves"], len(facts["curves"]["ours"][0].rows)
    first = curves["ours"][0].summary()
    mean, payload = first["bytes"], first["payload_bytes"]
    numbers = cards(
        (f"{mean:,.0f} bytes", f"an image, of which {payload:,.0f} are coded tokens"),
        (f"{facts['original'] / mean:.1f}×", f"smaller than the original files, of {facts['original']:,.0f} bytes"),
        (f"{first['psnr_of_mean_mse']:.2f} dB", "PSNR of the mean error"),
        (f"{first['ms_ssim']:.4f}", "MS-SSIM"),
        (f"{first['bits_per_pixel']:.3f}", "bits per pixel"),
    )
    several = f" The figures below are of the first of our pairs, {escape(first['setting'])}." * (len(curves["ours"]) > 1)
    left_out = "".join(f"<p>{sentence}</p>\n" for sentence in facts["left_out"])
    each = "\n".join(at_our_quality(curves, point) for point in curves["ours"])
    pictures = "\n".join(row(facts, picture, i) for i, picture in enumerate(facts["pictures"]))
    maps = "".join(
        figure(f"bits_{i}", f"{name}, bits", name, p["captions"]["bits"], *p["size"][::-1])
        for i, p in enumerate(facts["pictures"])
        for name in [escape(p["name"])]
    )
    single = (
        "It needs a curve, but ours is a single point here, which the table above compares instead. "
        "(Several tokenizers and priors, with commas between them, make a curve.)"
    )
    settings = "; ".join(f"{name}: {said}" for name, said in facts["said"].items())
    exact = (
        "The prior computes in whole numbers, so that these files decode to the same tokens on every machine."
        if facts["exact"]
        else "The prior computes in floats, so that these files decode to the same tokens only on machines of this kind."
    )
    return f"""<h1>Rate and distortion</h1>
<p>{n:,} {"images were" if n > 1 else "image was"} compressed by our tokenizer and prior, and by the codecs that everybody
uses. What counts is how few bytes an image takes, and how near to the original it comes back.{several}</p>
{numbers}
{each}
{left_out}<div class="card white"><img src="rates.png" alt="PSNR over bytes an image, a line for each codec" width="1152"
 height="720"></div>
<h2>Bjontegaard rate</h2>
<p>The mean difference in bytes at equal PSNR, over all qualities that both codecs of a pair reach: −50 % is half the bytes.
{single * (len(curves["ours"]) == 1)}</p>
{bjontegaard_table(facts["bjontegaard"], several=len(curves["ours"]) > 1)}
<h2>Pictures at equal bytes</h2>
<p>Every codec at the quality, of 0 to 100, whose file comes nearest to ours in bytes. A codec whose smallest file is larger
is shown at that one.</p>
{pictures}
<h2>Where the bits go</h2>
<p>What each patch costs in our file, by the frequencies that the coder used, over the picture in grey: dark blue where the
prior expected what it saw, bright where it took {facts["highest"]:.4g} bits or more, as many as a patch would cost without
a prior.</p>
<div class="grid">{maps}</div>
<h2>All operating points</h2>
<p><b>PSNR</b> is that of the squared error averaged over all images, <b>mean PSNR</b> the mean of each image's own. Times
are milliseconds an image: ours are wall-clock times ({facts["where"]}), those of the others are the processor time of the
one thread that coded the image.</p>
{operating_points(curves)}
<h2>What was compared</h2>
<p>Whole files are what a folder would hold, header and container included. <b>Payload</b> is the coded picture alone. Ours:
the coded tokens. JPEG: the entropy-coded scan; the tables that decode it are left out, though no decoder does without them.
WebP: the VP8 chunk. AVIF: the media data box. JPEG XL: the codestream, which is the whole of its file.</p>
<p>Our decoder needs two models, {facts["models"] / 1e6:,.1f} MB together, which no file counts, as none counts the other
decoders' programs. Ours has learned from images much like these, while the others were made for any picture. {exact}</p>
<p>Settings, with 8 bits a channel: {settings}. Rates between operating points are interpolated: the logarithm of the bytes
as a monotone piecewise cubic of PSNR. MS-SSIM is the mean of the three colour channels, with as many of the paper's five
scales as the image has room for.</p>"""


def at_our_quality(curves: Curves, point: Point) -> str:
    columns = [("bytes", "psnr"), ("payload", "psnr"), ("bytes", "ms_ssim"), ("payload", "ms_ssim")]
    found = [rivals_at(curves, point, *column) for column in columns]
    rows = [["ours", *(cell for rate, _ in columns for cell in (f"{point[rate]:,.0f}", ""))]]
    for name in curves:
        if name != "ours":
            cells = [(f"{f[name][0]:,.0f}", percent(f[name][1])) if f[name] else ("–", "–") for f in found]
            rows.append([name, *(cell for pair in cells for cell in pair)])
    head = ["", "file bytes at our PSNR", "ours saves", "payload bytes at our PSNR", "ours saves"]
    head += ["file bytes at our MS-SSIM", "ours saves", "payload bytes at our MS-SSIM", "ours saves"]
    title = f"At our quality{f': {escape(str(point.setting))}' if point.setting else ''}"
    return f"""<h2>{title}</h2>
<p><b>Whole files.</b> {comparison(curves, point, "bytes")} <b>Payloads alone,
without containers and headers.</b> {comparison(curves, point, "payload")}</p>
{table(head, rows, ours=1)}"""


def bjontegaard(curves: Curves) -> list[dict]:
    """A row for each codec: Bjontegaard's mean difference in rate, as a fraction, of it against JPEG and of ours against it;
    None where the two are the same, have no quality in common, or one is a single point."""
    rows = []
    for name, points in curves.items():
        row = {"codec": name}
        for what, one, other in ("against JPEG", points, curves["JPEG"]), ("of ours against it", curves["ours"], points):
            for rate, of in ("bytes", "files"), ("payload", "payloads"):
                row[f"{of} {what}"] = None if one is other else metrics.bd_rate(curve(one, rate), curve(other, rate))
        rows.append(row)
    return rows


def bjontegaard_table(rows: list[dict], several: bool) -> str:
    """What :func:`bjontegaard` returned; without ours if that is not ``several`` points, as it has no curve then."""
    if not several:
        rows = [row for row in rows if row["codec"] != "ours"]
        rows = [{k: v for k, v in row.items() if not k.endswith("of ours against it")} for row in rows]
    cells = [["–" if v is None else v if k == "codec" else percent(v, "+") for k, v in row.items()] for row in rows]
    return table(["", *list(rows[0])[1:]], cells, ours=int(several))


def operating_points(curves: Curves) -> str:
    forms = {"bytes": ",.1f", "payload_bytes": ",.1f", "bits_per_pixel": ".3f"}
    forms |= {"psnr_of_mean_mse": ".2f", "mean_of_psnrs": ".2f", "ms_ssim": ".4f", "encode_s": ",.1f", "decode_s": ",.1f"}
    head = ["", "setting", "bytes", "payload", "bits per pixel", "PSNR", "mean PSNR", "MS-SSIM", "encode", "decode"]
    rows = []
    for name, points in curves.items():
        for point in points:
            s = point.summary()
            s |= {key: 1000 * s[key] for key in ("encode_s", "decode_s")}
            setting = escape(s["setting"]) if name == "ours" else f"quality {s['setting']}"
            rows.append([name, setting, *(f"{s[key]:{form}}" for key, form in forms.items())])
    return table(head, rows, ours=len(curves["ours"]))


def row(facts: dict, picture: dict, i: int) -> str:
    """One image by every codec."""
    name, (H, W), captions = escape(picture["name"]), picture["size"], picture["captions"]
    figures = "".join(
        figure(f"{file_name(key)}_{i}", f"{name}, {key}", key[:1].upper() + key[1:], captions[key], W, H)
        for key in ("original", "ours", *facts["said"])
    )
    return f'<article class="card"><h3>{name}</h3><div class="row three">{figures}</div></article>'


def percent(fraction: float, sign: str = "-", digits: int = 1) -> str:
    """With ``sign`` "+", a plus before what is positive."""
    return f"{fraction:{sign}.{digits}%}".replace("-", "−").replace("%", " %")


def file_name(codec: str) -> str:
    return codec.lower().replace(" ", "_")
