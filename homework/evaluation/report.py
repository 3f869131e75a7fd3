"""Pages of results: their style, the parts that they are made of, and pictures of numbers. Knows no models."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from homework.core import files

MARGIN = 4  # pixels between the pictures of a sheet
CSS = """
:root { color-scheme: light dark;
  --page: #f6f5f1; --card: #fff; --ink: #22242a; --soft: #666a73; --line: #e2dfd6; --accent: #2f6f9f; }
@media (prefers-color-scheme: dark) { :root {
  --page: #15171b; --card: #1e2126; --ink: #e8e6e1; --soft: #a0a4ad; --line: #32363d; --accent: #7db8e2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.15; margin: 0 0 .6rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .3rem; }
h3 { font-size: .95rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }
p { max-width: 46rem; margin: 0 0 1.1rem; color: var(--soft); }
p b { color: var(--ink); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; margin: 0 0 1rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.numbers .card { margin: 0; font-size: .85rem; color: var(--soft); line-height: 1.35; }
.numbers b { display: block; font-size: 1.5rem; color: var(--accent); line-height: 1.3; font-variant-numeric: tabular-nums; }
.row, .grid { display: grid; gap: .75rem; }
.row { grid-template-columns: repeat(5, 1fr); }
.row.three { grid-template-columns: repeat(3, 1fr); }
.white { background: #fff; }
.grid { grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .8rem; line-height: 1.35; color: var(--soft); margin-top: .35rem; }
figcaption b { display: block; color: var(--ink); }
img { display: block; width: 100%; height: auto; border-radius: 5px; }
img.codes { image-rendering: pixelated; }
.scroll { overflow-x: auto; padding: .5rem 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .5rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; padding-left: 0; min-width: 4.5rem; }
td + td { white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
table.total tr:last-child td, tr.ours td { font-weight: 600; }
tr.ours td { color: var(--accent); }
svg { display: block; width: 100%; height: 7rem; }
svg path { fill: var(--accent); }
@media (max-width: 44rem) {
  main { padding: 1.5rem .9rem 3rem; }
  .row, .row.three { grid-template-columns: 1fr 1fr; }
  .row:not(.three) figure:first-child { grid-column: 1 / -1; }
  .grid { grid-template-columns: 1fr 1fr; }
  .scroll { padding: .25rem .6rem; }
  th, td { padding: .35rem .3rem; }
}
"""


def page(title: str, body: str) -> str:
    """A whole HTML page, which refers to nothing but the pictures that ``body`` does."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{CSS}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def cards(*items: tuple[str, str]) -> str:
    """Boxes, each with a number and, smaller, what it is."""
    return '<div class="numbers">' + "".join(f'<div class="card"><b>{a}</b>{b}</div>' for a, b in items) + "</div>"


def figure(file: str, alt: str, title: str, text: str, width: int, height: int, kind: str = "pixels") -> str:
    """The picture ``file``.png, width x height pixels, over its title and text; of kind "codes", its pixels stay sharp."""
    return (
        f'<figure><img class="{kind}" src="{file}.png" alt="{alt}" width="{width}" height="{height}">'
        f"<figcaption><b>{title}</b>{text}</figcaption></figure>"
    )


def table(head: list[str], rows: list[list[str]], total: bool = False, ours: int = 0) -> str:
    """Cells as HTML, in a box of its own that scrolls where it is too wide; ``total`` sets off the last row, ``ours`` the
    first so many."""
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{cell}</th>" for cell in head)
    return (
        f'<div class="card scroll"><table{" class=total" * total}><thead><tr>{head}</tr></thead><tbody>'
        + "".join(f"<tr{' class=ours' * (i < ours)}>{line}</tr>" for i, line in enumerate(lines))
        + "</tbody></table></div>"
    )


def heat(x: Tensor) -> Tensor:
    """(...) from 0 to 1 (clamped to it) -> (...,3) uint8: dark blue, red, light yellow."""
    ramp = np.array([[20, 16, 64], [190, 50, 95], [255, 240, 160]])
    x = x.float().cpu().numpy()
    return torch.from_numpy(np.stack([np.interp(x, [0, 0.5, 1], c) for c in ramp.T], axis=-1).astype(np.uint8))


def on_sheet(rows: Sequence[Sequence[np.ndarray]], scale: int = 1) -> np.ndarray:
    """Pictures (H,W) or (H,W,3) uint8 of one size, row by row, on one sheet with white between them, each pixel ``scale``
    wide."""
    H, W, *colours = rows[0][0].shape
    H, W = H * scale, W * scale
    sheet = np.full((len(rows) * (H + MARGIN) + MARGIN, len(rows[0]) * (W + MARGIN) + MARGIN, *colours), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = MARGIN + i * (H + MARGIN), MARGIN + j * (W + MARGIN)
            sheet[top : top + H, left : left + W] = np.asarray(picture).repeat(scale, axis=0).repeat(scale, axis=1)
    return sheet


def save_picture(image: Tensor | np.ndarray, path: Path) -> None:
    """Writes (H,W) or (H,W,3) uint8 as a PNG, whole or not at all."""
    with files.replacing(path) as temporary:
        Image.fromarray(np.asarray(image)).save(temporary, format="PNG")
