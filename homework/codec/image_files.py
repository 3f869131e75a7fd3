"""Image files to a compressed file, and compressed files back to images."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from homework.codec import format
from homework.codec.archive import ArchiveWriter, Reader
from homework.codec.compressor import Compressor
from homework.codec.parallel import groups, in_parallel, pieces
from homework.core import files
from homework.datasets.image_files import decoded, n_pixels, report_bad_images
from homework.datasets.images import to_uint8

PIXELS_READ_AT_ONCE = 2**24  # of image files that are read ahead
LOSSLESS = {".png": "PNG", ".bmp": "BMP", ".ppm": "PPM", ".tif": "TIFF", ".tiff": "TIFF"}
Chunk = tuple[list[str], tuple[int, int], Sequence]  # paths, (H,W), and images (H,W,3) uint8, or grids (B,h,w)


def compress_files(compressor: Compressor, paths: list[str], output: str, *, pack: bool, scaled: tuple[int, int] | None,
                   skip_bad: bool, verify: bool) -> tuple[int, int]:  # fmt: skip
    """Compresses image files, ``scaled`` to that (H,W) if it is given, to ``output``: an archive if ``pack``, else the one
    image's file. ``skip_bad`` leaves out those that are damaged; ``verify`` decodes what was written and compares tokens.
    Returns how many images there are in it, and the bytes of their own files. ValueError if images are bad or have one path,
    or the file does not decode; then nothing is written."""
    names, kept, original = dict(zip(paths, names_below(paths), strict=True)), [], 0
    with files.replacing(output) as temporary, open(temporary, "wb") as file:
        bad, writer = [], ArchiveWriter(file, compressor.models) if pack else None
        with tqdm(total=len(paths), desc="compressing", unit="img") as bar:
            chunks = _same_size(compressor, paths, bad, bar, scaled)
            for (part, size, grids), payloads in in_parallel(partial(_encode, compressor), chunks, compressor.workers):
                crcs = [compressor.models.crc(size, grid) for grid in grids]
                if writer:
                    writer.add([names[path] for path in part], [size] * len(part), payloads, crcs)
                else:
                    file.write(format.image_file(compressor.models, size, payloads[0], crcs[0]))
                kept += list(grids.astype(np.int32)) if verify else []
                original += sum(map(os.path.getsize, part))
                bar.update(len(part))
                bar.set_postfix_str(f"{file.tell():,} bytes")
        report_bad_images(bad, len(paths), skip_bad)
        if writer:
            writer.close()
        file.flush()
        os.fsync(file.fileno())
        if verify:
            try:
                _verify(compressor, temporary, kept)
            except ValueError as error:
                raise ValueError(f"{output} is not written, for it would not decode to the tokens that were coded: "
                                 f"{error}") from error  # fmt: skip
    return len(paths) - len(bad), original


def names_below(paths: list[str]) -> list[str]:
    """The paths relative to the folder that holds all of them. ValueError if two are of the same file."""
    full = [os.path.abspath(path) for path in paths]
    base = os.path.commonpath(map(os.path.dirname, full))
    if len(set(full)) < len(full):
        raise ValueError("Some image is named twice, by different paths.")
    return [Path(os.path.relpath(path, base)).as_posix() for path in full]


def _encode(compressor: Compressor, chunk: Chunk) -> tuple[Chunk, list[bytes]]:
    """A chunk with grids instead of images, and its payloads."""
    part, size, images = chunk
    grids = compressor.to_tokens(list(map(torch.from_numpy, images)))
    return (part, size, grids), compressor.encode(grids)


def _same_size(compressor: Compressor, paths: list[str], bad: list[str], bar: tqdm,
               scaled: tuple[int, int] | None) -> Iterator[Chunk]:  # fmt: skip
    """As many images of one size as are coded together; ``bad`` gets a sentence about each that cannot be one."""
    at_once = min(compressor.batch_size, -(-len(paths) // compressor.workers))
    for batch, images in decoded(_read_ahead(paths, at_once), scaled):
        found = dict(zip(batch, images, strict=True))
        images.clear()  # so that nothing keeps an image after it was yielded
        for path in batch:
            if why := _unusable(path, found[path]):
                bad.append(why)
                del found[path]
        bar.update(len(batch) - len(found))
        for size, some in groups(found, [image.shape[:2] for image in found.values()]):
            for part in pieces(some, compressor.images_at_once(compressor.grid(size))):
                yield part, size, [found.pop(path) for path in part]


def _unusable(path: str, image: np.ndarray | str) -> str:
    """A sentence that says why an image cannot be compressed, or ""; ``image`` may be such a sentence itself."""
    try:
        if not isinstance(image, str):
            format.check_size(path, image.shape[:2])
    except ValueError as error:
        return str(error)
    return image if isinstance(image, str) else ""


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


def _verify(compressor: Compressor, path: Path, kept: list[np.ndarray]) -> None:
    """ValueError, which calls the file "it", unless it decodes to the grids ``kept``, in the order of its images."""
    n_bytes = 0
    with open(path, "rb") as file, tqdm(total=len(kept), desc="verifying", unit="img") as bar:
        reader = Reader(file, "it")
        for grids in compressor.read([(reader, i) for i in range(len(kept))]):
            for i, grid in grids.items():
                if not np.array_equal(grid, kept[i]):
                    raise ValueError(f"{reader.label(i)} has other tokens.")
                n_bytes += reader.lengths[i]
            bar.update(len(grids))
            bar.set_postfix_str(f"{n_bytes:,} bytes")


def decompress_file(compressor: Compressor, reader: Reader, wanted: Sequence[int], target: Path, folder: bool) -> None:
    """Writes the ``wanted`` images of a file as PNG files in the folder ``target``, or one image as ``target`` itself, in
    the lossless format of its suffix. ValueError if any is damaged or of other models; then nothing is written."""
    reader.check(compressor.models)  # before any folder is made
    items, n_bytes = [(reader, i) for i in wanted], 0
    with _complete_folder(target) if folder else files.replacing(target) as temporary:
        names = [temporary / name for name in png_names(reader.names)] if folder else [temporary] * len(reader.names)
        kind = "PNG" if folder else LOSSLESS[target.suffix.lower()]

        def save(k: int, pixels: torch.Tensor) -> int:
            path = names[wanted[k]]
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels.cpu().numpy())
            del pixels  # Pillow has a copy, of 96 MB for a photo
            image.save(path, format=kind, compress_level=1)  # of PNG: as large as with 6, nearly, in half the time
            return path.stat().st_size

        with tqdm(total=len(wanted), desc="decompressing", unit="img") as bar:
            for lengths in compressor.read_images(items, save, to_uint8):
                n_bytes += sum(lengths.values())
                bar.update(len(lengths))
                bar.set_postfix_str(f"{n_bytes:,} bytes")


def png_names(names: list[str]) -> list[str]:
    """a.jpg -> a.png; but where this gives two images one name, all keep theirs: a.jpg.png."""
    short = [str(Path(name).with_suffix(".png")) for name in names]
    return short if len(set(short)) == len(short) else [f"{name}.png" for name in names]


@contextlib.contextmanager
def _complete_folder(path: Path) -> Iterator[Path]:
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
