"""Image files to coded chunks, and files back to images."""

import contextlib
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from homework.codec import archive, format
from homework.codec.compressor import Compressor
from homework.codec.parallel import groups, in_parallel, pieces
from homework.core import files
from homework.datasets.image_files import decoded, n_pixels
from homework.datasets.images import to_float, to_uint8

PIXELS_READ_AT_ONCE = 2**24  # of image files that are read ahead
LOSSLESS = {".png": "PNG", ".bmp": "BMP", ".ppm": "PPM", ".tif": "TIFF", ".tiff": "TIFF"}
# --- files ----------------------------------------------------------------------------------------------------------------

Coded = tuple[list[str], tuple[int, int], np.ndarray, list[bytes]]  # paths, (H,W), grids (B,h,w), payloads: one chunk


def names_below(paths: list[str]) -> list[str]:
    """The paths relative to the folder that holds all of them. ValueError if two are of the same file."""
    full = [os.path.abspath(path) for path in paths]
    base = os.path.commonpath(map(os.path.dirname, full))
    if len(set(full)) < len(full):
        raise ValueError("Some image is named twice, by different paths.")
    return [Path(os.path.relpath(path, base)).as_posix() for path in full]


def encode_files(
    compressor: Compressor, paths: list[str], bad: dict[str, str], bar: tqdm, scaled: tuple[int, int] | None = None
) -> Iterator[Coded]:
    """The chunks that image files become, ``scaled`` to that (H,W) if it is given; ``bad`` gets a sentence about each that
    cannot be one."""

    def work(part: tuple[list[str], tuple[int, int], np.ndarray]) -> Coded:
        names, size, pixels = part
        grids = compressor.to_tokens(to_float(torch.from_numpy(pixels)))  # (B,H,W,3)
        return names, size, grids, compressor.encode(grids)

    for chunk in in_parallel(work, _same_size(compressor, paths, bad, bar, scaled), compressor.workers):
        yield chunk
        bar.update(len(chunk[0]))


def _same_size(
    compressor: Compressor, paths: list[str], bad: dict[str, str], bar: tqdm, scaled: tuple[int, int] | None
) -> Iterator[tuple]:
    """Paths, their (H,W) and pixels (B,H,W,3) uint8, of as many images as are coded together."""
    at_once = min(compressor.batch_size, -(-len(paths) // compressor.workers))
    for batch, images in decoded(_read_ahead(paths, at_once), scaled):
        good = {}
        for path, image in zip(batch, images, strict=True):
            try:
                if isinstance(image, str):
                    raise ValueError(image)
                format.check_size(path, image.shape[:2])
                good[path] = image
            except ValueError as error:
                bad[path] = str(error)
        for size, some in groups(good, [image.shape[:2] for image in good.values()]):
            for part in pieces(some, compressor.images_at_once(compressor.grid(size))):
                yield part, size, np.stack([good[path] for path in part])
        bar.update(len(batch) - len(good))


def _read_ahead(paths: list[str], n: int) -> Iterator[list[str]]:
    """At most ``n`` paths at a time, fewer where the images are large."""
    batch, size = [], 0
    for path in paths:
        own = n_pixels(path)
        if batch and (len(batch) == n or size + own > PIXELS_READ_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += own
    yield batch


def _tell_bad(bad: dict[str, str], n: int, skip_bad: bool) -> None:
    if not bad:
        return
    if n == 1:
        raise ValueError(*bad.values())
    named = "\n  ".join(list(bad.values())[:10] + [f"and {len(bad) - 10} more"] * (len(bad) > 10))
    if len(bad) == n or not skip_bad:
        remedy = "there are no others" if len(bad) == n else "pass --skip_bad to leave them out"
        raise ValueError(f"{len(bad)} of {n} images cannot be used; {remedy}:\n  {named}")
    print(f"Left out {len(bad)} of {n} images:\n  {named}", file=sys.stderr)


def _verify(compressor: Compressor, path: Path, kept: list[np.ndarray]) -> None:
    """ValueError, which calls the file "it", unless it decodes to the grids ``kept``, in the order of its images."""
    n_bytes = 0
    with open(path, "rb") as file, tqdm(total=len(kept), desc="verifying", unit="img") as bar:
        reader = archive.Reader(file, "it")
        for grids in compressor.read([(reader, i) for i in range(len(kept))]):
            for i, grid in grids.items():
                if not np.array_equal(grid, kept[i]):
                    raise ValueError(f"{reader.label(i)} has other tokens.")
                n_bytes += reader.lengths[i]
            bar.update(len(grids))
            bar.set_postfix_str(f"{n_bytes:,} bytes")


def _write(compressor: Compressor, reader: archive.Reader, paths: dict[int, Path], form: str) -> None:
    """Writes the images of a file that have a path."""
    items, n_bytes = [(reader, i) for i in paths], 0

    def save(grids: dict[int, np.ndarray]) -> list[int]:
        places = [items[k][1] for k in grids]
        images = compressor.to_images(list(grids.values()), [reader.sizes[i] for i in places])
        return [_save(to_uint8(image).cpu().numpy(), paths[i], form) for i, image in zip(places, images, strict=True)]

    with tqdm(total=len(paths), desc="decompressing", unit="img") as bar:
        for lengths in compressor.read(items, save):
            n_bytes += sum(lengths)
            bar.update(len(lengths))
            bar.set_postfix_str(f"{n_bytes:,} bytes")


def _save(image: np.ndarray, path: Path, form: str) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, format=form, compress_level=1)  # of PNG: as large as with 6, nearly, in half the time
    return path.stat().st_size


def png_names(names: list[str]) -> list[str]:
    """a.jpg -> a.png; but where this gives two images one name, all keep theirs: a.jpg.png."""
    short = [str(Path(name).with_suffix(".png")) for name in names]
    return short if len(set(short)) == len(short) else [f"{name}.png" for name in names]


@contextlib.contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder, whose files are in ``path`` after the block, or nowhere after an error in it."""
    temporary = (path if path.is_dir() else path.parent) / f"{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with files.relabel_errors(temporary, path):
            temporary.mkdir(parents=True)
            yield temporary
        for file in [file for file in temporary.rglob("*") if file.is_file()]:
            target = path / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
