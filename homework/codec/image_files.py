"""Image files to a compressed file, and compressed files back to images."""

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from homework.codec import dial, format
from homework.codec.archive import ArchiveWriter, Reader, target_names
from homework.codec.compressor import PIXELS_AT_ONCE, Compressor
from homework.codec.parallel import groups, in_parallel
from homework.core import devices, files
from homework.datasets.bulk import for_each_shard
from homework.datasets.image_files import batches_of, decoded, names_below, read_ahead, report_bad_images
from homework.datasets.images import to_uint8
from homework.datasets.shards import file_size

LOSSLESS = {".png": "PNG", ".bmp": "BMP", ".ppm": "PPM", ".tif": "TIFF", ".tiff": "TIFF"}
SHARE = 1 / 32  # of an archive's images, so that 32 threads have work; with any number of them its bytes are the same
Chunk = tuple[list[str], tuple[int, int], Sequence]  # paths, (H,W), and images (H,W,3) uint8, or grids (B,h,w)


def compress_files(compressor: Compressor, paths: list[str], output: str, *, pack: bool, scaled: tuple[int, int] | None,
                   frame: int = 0, skip_bad: bool, verify: bool, old: str | None = None,
                   quiet: bool = False, psnr: bool | None = None,
                   left_out: list[str] | None = None) -> tuple[int, int, float]:  # fmt: skip
    """Compresses image files, ``scaled`` to that (H,W) if it is given, or the ``frame`` of those with several, to
    ``output``: an archive if ``pack``, else the one image's file. ``skip_bad`` leaves out those that are damaged; ``verify``
    decodes what was written and compares tokens; an ``old`` archive's images come first; ``psnr`` decodes images, by default
    unless ``quiet``. Returns how many images were compressed, the bytes of their own files, and their mean PSNR in dB, 0
    without it. ValueError if images are bad or have one path, or the file does not decode; then nothing is written."""
    decodes = not quiet if psnr is None else psnr
    names, kept, original, psnrs = dict(zip(paths, names_below(paths), strict=True)), [], 0, []
    with ExitStack() as until_replaced, files.replacing(output) as temporary, open(temporary, "wb") as file:
        bad, writer = [], ArchiveWriter(file, compressor.models) if pack else None
        n_old, read = _copy(old, writer) if old and writer else (0, None)
        if writer and not skip_bad:  # what is bound to fail fails before the work
            writer.check_targets([*names.values()])
        with (
            tqdm(total=len(paths), desc="compressing", unit="img", disable=quiet) as bar,
            closing(_same_size(compressor, paths, bad, bar, scaled, frame)) as chunks,
            closing(in_parallel(partial(_encode, compressor, decodes, bar), chunks, compressor.workers)) as encoded,
        ):
            for (part, size, grids), payloads, quality in encoded:
                psnrs += quality
                crcs = [compressor.models.crc(size, grid) for grid in grids]
                if writer:
                    writer.add([names[path] for path in part], [size] * len(part), payloads, crcs)
                else:
                    file.write(compressor.image_file(size, payloads[0], crcs[0]))
                kept += map(_digest, grids) if verify else []
                original += sum(map(file_size, part))
                if not compressor.effort:
                    bar.update(len(part))
                bar.set_postfix_str(f"{file.tell():,} bytes")
        report_bad_images(bad, len(paths), skip_bad, left_out=left_out)
        if writer:
            writer.close()
        file.flush()
        os.fsync(file.fileno())
        if verify:
            try:
                _verify(compressor, temporary, n_old, kept, quiet)
            except ValueError as error:
                raise ValueError(f"{output} is not written, for it would not decode to the tokens that were coded: "
                                 f"{error}") from error  # fmt: skip
        if old:  # of two that append at once, the second looks when the first one's archive is in place
            until_replaced.enter_context(files.locked(old))
        if old and _version(os.stat(old)) != read:
            raise ValueError(f"{old} was changed by another program meanwhile, and stays as that left it; run the same "
                             "command again.")  # fmt: skip
    return len(paths) - len(bad), original, sum(psnrs) / max(1, len(psnrs))


def compress_shards(compressor: Compressor, sources: list[str], folder: str, job: dict, **options: Any) -> None:
    """An archive for each shard, in ``folder``; ``job`` and ``skip_bad`` as of
    :func:`homework.datasets.bulk.for_each_shard`, ``options`` as of :func:`compress_files`."""

    def make(paths: list[str], output: Path, bad: list[str]) -> None:
        compress_files(compressor, paths, str(output), pack=True, **options, left_out=bad)

    job = {"command": "compress", "models": compressor.models.head(format.ARCHIVE).hex(),
           "encoders": compressor.encoders} | job  # fmt: skip
    for_each_shard(sources, folder, ".hwa", job, options["skip_bad"], make)


def _version(info: os.stat_result) -> tuple[int, int, int]:
    """What distinguishes a file from the one that replaces it."""
    return info.st_ino, info.st_mtime_ns, info.st_size


def _copy(old: str, writer: ArchiveWriter) -> tuple[int, tuple[int, int, int]]:
    """Copies the images of an archive into another; returns how many, and the version that was read. ValueError if it is of
    other models or of another format, whose payloads are others."""
    with open(old, "rb") as file:
        reader = Reader(file, old)
        reader.check(writer.models)
        if reader.kind != format.ARCHIVE or reader.version != writer.models.version:
            raise ValueError(f"{old} is not an archive of format {writer.models.version}, and nothing can be appended to "
                             "it; use a --quality of the same kind, up to 62 or above, if it is of format 5 or 7; if it "
                             "is of an earlier one, decompress it, and compress all images together.")  # fmt: skip
        for chunk in reader.chunks:
            writer.add(*zip(*((reader.names[i], reader.sizes[i], reader.stored(i), reader.crcs[i]) for i in chunk),
                            strict=True))  # fmt: skip
        return len(reader.names), _version(os.fstat(file.fileno()))


def average_quality(compressor: Compressor, paths: list[str], aimed: dial.Target, options: dict, old: str | None = None,
                    quiet: bool = False) -> float:  # fmt: skip
    """The quality at which all images reach the target on average; ``options`` as of :func:`compress_files`, and images that
    they leave out are not said. ValueError if there is none, or if the images cannot be appended to an ``old`` archive."""
    if old:  # what is bound to fail fails before the work
        with open(old, "rb") as file:
            reader = Reader(file, old)
        reader.check(compressor.models)
        if not options["skip_bad"]:
            target_names([*reader.names, *names_below(paths)])
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder, "output"))  # not the user's, which stays as it is if no quality reaches the target

        def make(quality: int) -> tuple[int, float, float]:
            at = compressor.at(compressor.nearest(quality))
            n, _, psnr = compress_files(at, paths, output, verify=False, quiet=quiet, psnr=True, left_out=[], **options)
            return quality, os.path.getsize(output) / n, psnr

        return compressor.nearest(dial.aim(aimed, make, "The mean of the images"))


def _encode(compressor: Compressor, decodes: bool, bar: tqdm, chunk: Chunk) -> tuple[Chunk, list[bytes], list[float]]:
    """A chunk with grids instead of images, its payloads, and, if it ``decodes``, the PSNR in dB of each image as it will be
    decompressed, infinite if it is the same. The ``bar`` moves with each image that is searched, which takes the longest."""
    part, size, pixels = chunk
    images = list(map(torch.from_numpy, pixels))

    def searched() -> None:
        with bar.get_lock():  # other threads count their images
            bar.update()

    grids = compressor.to_tokens(images, searched)
    if math.prod(size) > PIXELS_AT_ONCE:
        devices.release_memory()
    quality = compressor.psnr(images, grids) if decodes else []
    return (part, size, grids), compressor.encode(grids), quality


def _same_size(compressor: Compressor, paths: list[str], bad: list[str], bar: tqdm,
               scaled: tuple[int, int] | None, frame: int) -> Iterator[Chunk]:  # fmt: skip
    """As many images of one size as are coded together, a SHARE of all at most; ``bad`` gets a sentence about each that
    cannot be one."""
    at_once = min(compressor.batch_size, math.ceil(len(paths) * SHARE))
    for batch, images in decoded(read_ahead(paths, at_once), scaled, frame):
        found = dict(zip(batch, images, strict=True))
        images.clear()  # so that nothing keeps an image after it was yielded
        for path in batch:
            if why := _unusable(path, found[path]):
                bad.append(why)
                del found[path]
        bar.update(len(batch) - len(found))
        for size, some in groups(found, [image.shape[:2] for image in found.values()]):
            for part in batches_of(some, compressor.images_at_once(compressor.grid(size))):
                yield part, size, [found.pop(path) for path in part]


def _unusable(path: str, image: np.ndarray | str) -> str:
    """A sentence that says why an image cannot be compressed, or ""; ``image`` may be such a sentence itself."""
    if isinstance(image, str):
        return image
    try:
        format.check_size(path, image.shape[:2])
    except ValueError as error:
        return str(error)
    return ""


def _digest(grid: np.ndarray) -> bytes:
    """What stands for a grid, since those of all images may be too many to keep."""
    return hashlib.sha256(np.ascontiguousarray(grid, "<i8").tobytes()).digest()


def _verify(compressor: Compressor, path: Path, n_old: int, kept: list[bytes], quiet: bool) -> None:
    """ValueError, which calls the file "it", unless it decodes, and after ``n_old`` images to those ``kept``."""
    n, n_bytes = n_old + len(kept), 0
    with open(path, "rb") as file, tqdm(total=n, desc="verifying", unit="img", disable=quiet) as bar:
        reader = Reader(file, "it")
        with closing(compressor.read([(reader, i) for i in range(n)])) as read:
            for grids in read:
                for i, grid in grids.items():
                    if i >= n_old and _digest(grid) != kept[i - n_old]:
                        raise ValueError(f"{reader.label(i)} has other tokens.")
                    n_bytes += reader.lengths[i]
                bar.update(len(grids))
                bar.set_postfix_str(f"{n_bytes:,} bytes")


def targets(reader: Reader, wanted: Sequence[int], target: Path, folder: bool) -> list[Path]:
    """Where the ``wanted`` images of a file go: into the folder ``target`` by their names, or one as ``target`` itself.
    ValueError if the names of an archive go nowhere."""
    if not folder:
        return [target]
    names = target_names(reader.names)
    return [target / names[i] for i in wanted]


def check_free(paths: list[Path]) -> None:
    """ValueError, naming the first, if some of the ``paths`` exist."""
    if taken := [path for path in paths if os.path.lexists(path)]:
        more = f", like {len(taken) - 1:,} more," * (len(taken) > 1)
        raise ValueError(f"{taken[0]} exists{more} and is not overwritten; name another output, or pass --overwrite.")


def decompress_file(compressor: Compressor, reader: Reader, wanted: Sequence[int], target: Path, folder: bool,
                    quiet: bool = False) -> None:  # fmt: skip
    """Writes the ``wanted`` images of a file as PNG files in the folder ``target``, or one image as ``target`` itself, in
    the lossless format of its suffix. ValueError if any is damaged or of other models; then nothing is written."""
    reader.check(compressor.models)  # before any folder is made
    items, n_bytes = [(reader, i) for i in wanted], 0
    with _complete_folder(target) if folder else files.replacing(target) as temporary:
        paths = targets(reader, wanted, temporary, folder)
        kind = "PNG" if folder else LOSSLESS[target.suffix.lower()]

        def save(k: int, pixels: torch.Tensor) -> int:
            paths[k].parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels.cpu().numpy())
            del pixels  # Pillow has a copy, of 96 MB for a photo
            with open(paths[k], "xb") as file:  # in a folder that takes a.png and A.png for one, an error
                image.save(file, format=kind, compress_level=1)  # of PNG: as large as with 6, nearly, in half the time
            return paths[k].stat().st_size

        bar = tqdm(total=len(wanted), desc="decompressing", unit="img", disable=quiet)
        with bar, closing(compressor.read_images(items, save, to_uint8)) as saved:
            for lengths in saved:
                n_bytes += sum(lengths.values())
                bar.update(len(lengths))
                bar.set_postfix_str(f"{n_bytes:,} bytes")


@contextmanager
def _complete_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder, whose files are in ``path`` after the block, or nowhere after an error in it."""
    temporary = files.temporary_in(path if path.is_dir() else path.parent)
    try:
        with files.relabel_errors(temporary, path):
            temporary.mkdir(parents=True)
            yield temporary
        moves = [(file, path / file.relative_to(temporary)) for file in temporary.rglob("*") if file.is_file()]
        for _, target in moves:  # what cannot be is found before anything is moved
            target.parent.mkdir(parents=True, exist_ok=True)
            files.check_regular(target)
        for file, target in moves:
            os.replace(file, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
