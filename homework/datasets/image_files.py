"""Image files: which ones a user means, and how to read one upright, in RGB, at the right size."""

import collections
import io
import itertools
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from homework.core import checks
from homework.core.files import printable
from homework.core.processes import say, say_once
from homework.datasets.decoding import decode, missing_plugin, readable_suffixes
from homework.datasets.shard_paths import paths_in
from homework.datasets.shards import Member, as_member, is_image, members_of, open_image, shards_in

SPLITS = ("train", "valid")
DATA = "data"  # where data are by default
PIXELS_READ_AHEAD = 2**24  # of image files, at a time
BAND = 256  # rows of an image that Pillow hands over at a time
HELD_OUT = 20  # where there are no splits, one image of so many is for validation
HOW_TO_GET = "python -m homework.data download, or python -m homework.data import ZIP_OR_FOLDER if you have the zip"
Source = str | Path | Iterable[str | Path]
_REPORTED: set[tuple[str, int]] = set()  # files whose number of frames has been said, and which frame


class FileFacts(NamedTuple):
    """How many frames or pages an image file has, and the CRC-32 of its bytes, begun with the number of the frame read."""

    n_frames: int
    checksum: int


def image_paths(source: Source, root: str | Path = DATA) -> Sequence[str]:
    """The image files that ``source`` names, sorted, each once; of shards alone a list that is not held in memory, see
    :func:`homework.datasets.shard_paths.paths_in`. FileNotFoundError if there is no such file or folder; ValueError if there
    are no images in it, a single one that is to be split, or a dataset.json is of another form.

    Args:
        source: a split ("train", "valid"), a folder (all images in it and below it, but for hidden ones), an image file,
            a dataset.json, shards (see :func:`homework.datasets.shards.shards_in`), or several of these.
        root: of the splits: a folder with folders of their names; or a folder of images, or a dataset.json, of whose sorted
            images every 20th, from the first one on, is for validation.
    """
    if isinstance(source, str) and source in SPLITS:
        has_splits, folder = any(Path(root, split).is_dir() for split in SPLITS), Path(root)
        if not has_splits and (folder.is_file() or (folder.is_dir() and _holds_images(folder))):
            paths = image_paths(root)
            if len(paths) < 2:
                raise ValueError(f"There is only one image in {root}, but training and validation need one each.")
            say_once(f"{root} has no folders train and valid; of its {len(paths)} images every {HELD_OUT}th validates.")
            return paths[::HELD_OUT] if source == "valid" else sorted({*paths} - {*paths[::HELD_OUT]})
        other, source = Path(root, next(s for s in SPLITS if s != source)), Path(root, source)
        if not source.is_dir() and other.is_dir():
            raise FileNotFoundError(f"There is no folder {source}, but {other}; move some of its images there, or share all "
                                    f"out by python -m homework.data import {other} --dir FOLDER.")  # fmt: skip
        if not source.is_dir():
            raise FileNotFoundError(f"There is no folder {source}, nor images in {root}; get them with {HOW_TO_GET}.")
    sources = [source] if isinstance(source, str | Path) else list(source)
    if "" in sources:  # as of a variable that the shell does not know; Path would take it for the current folder
        raise ValueError("The path of an image or a folder is empty; name one, as in data/train, or . for this folder.")
    if not (found := paths_in(sources) or sorted(set[str]().union(*map(_named_by, sources)))):
        raise ValueError(f"There are no images in {', '.join(map(str, sources[:3])) or 'an empty list'}.")
    return found


def _named_by(source: str | Path) -> Iterable[str]:
    """The image files that one source names; FileNotFoundError if it does not exist."""
    path = Path(source)
    if isinstance(source, Member):
        return [source]
    if (shards := shards_in(source)) is not None:
        return (member for shard in shards for member in members_of(shard))
    if path.is_dir():
        return map(str, images_in(path))
    if (member := as_member(source)) is not None:
        return [member]
    if not path.is_file():
        remedy = f"; get the frames with {HOW_TO_GET}" if path.parts[:1] == (DATA,) else ""
        what = f"{path} is neither a file nor a folder." if path.exists() else f"There is no file or folder {path}{remedy}."
        raise FileNotFoundError(what)
    if path.suffix.lower() != ".json":
        return [str(path)]
    return [] if path.name.endswith("_info.json") else read_dataset_json(path)  # those are notes among the course's images


def _holds_images(root: Path) -> bool:
    """Whether there are images to be split; those in folders of the default one, such as data/sample, were not meant."""
    return any(map(is_image, root.iterdir())) or (root != Path(DATA) and any(images_in(root)))


def names_below(paths: Sequence[str]) -> list[str]:
    """The paths relative to the folder that holds all of them. ValueError if two are of the same file."""
    full = [os.path.abspath(path) for path in paths]
    base = os.path.commonpath(map(os.path.dirname, full))
    if twice := [path for path, n in collections.Counter(full).items() if n > 1]:
        both = [paths[i] for i, path in enumerate(full) if path == twice[0]][:2]
        raise ValueError(f"Some image is named twice, by different paths: {both[0]} and {both[1]}.")
    return [Path(os.path.relpath(path, base)).as_posix() for path in full]


def is_hidden(path: PurePath) -> bool:
    """Whether any part of a relative path begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def images_in(folder: Path) -> Iterator[Path]:
    """The image files in a folder and in those below it, except hidden ones. What is named like an image, but is a folder,
    a FIFO or a device, or needs a plugin, is left out, which stderr says."""
    others: dict[str, list[str]] = collections.defaultdict(list)
    for path in (parent / name for parent, names in _walk(folder) for name in names if not name.startswith(".")):
        if is_image(path) and path.is_file():
            yield path
        elif is_image(path):
            others["are named like images but are not files"].append(str(path))
        elif plugin := missing_plugin(path):
            others[f"need pip install {plugin}"].append(str(path))
    for why, paths in others.items():
        say_once(f"Left out, for they {why}: {_some(paths)}.")


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder and those below it, hidden ones and those named like images excepted, each once, with the names in it that
    are not of folders to come."""

    def fail(error: OSError) -> None:
        raise error

    seen = set()
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # by a link
            folders.clear()
            continue
        seen.add(real)
        shown = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in shown if not is_image(PurePath(name))]
        yield Path(parent), sorted(names) + [name for name in shown if name not in folders]


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + f" and {len(names) - 10} more" * (len(names) > 10)


def not_read(folder: Path) -> str:
    """What is in a folder and those below it besides images, hidden files excepted: "2 other files", or ""."""
    n = sum(not name.startswith(".") and not is_image(PurePath(name)) for _, names in _walk(folder) for name in names)
    return checks.count(n, "other file") if n else ""


def n_pixels(path: str) -> int:
    """The number of pixels of an image, as its file's header says; 0 if that cannot be read."""
    readable_suffixes()  # registers plugins
    try:
        with open_image(path) as stream, Image.open(stream) as file:
            return math.prod(file.size)
    except Exception:  # as in read_image, whose error says what is wrong
        return 0


def read_dataset_json(path: Path) -> list[str]:
    """``{"_default": {"1": {"image_fpath": ...}, ...}}``; relative to the file's folder, else to the current one."""
    try:
        names = [entry["image_fpath"] for entry in json.loads(path.read_text("utf-8"))["_default"].values()]
        candidates = [(path.parent / name, Path(name)) for name in names]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        form = '{"_default": {"1": {"image_fpath": "..."}, ...}}'
        raise ValueError(f"{path} is not a dataset.json of the form {form}.") from error
    for name, files in zip(names, candidates, strict=True):
        if not any(map(Path.is_file, files)):
            raise FileNotFoundError(f"{path} names {name}, but there is no such file.")
    return [str(next(filter(Path.is_file, files))) for files in candidates]


def read_image(path: str | Path, image_size: tuple[int, int] | None = None, frame: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 sRGB of an image file, see :func:`decode`; if it has several frames or pages, that is said on stderr.
    With an ``image_size`` (H, W), the image is scaled until it covers this, and its centre cut out. ValueError if the file
    is not an image, or one that cannot be read; OSError if it may not be read."""
    with open_image(path) as stream:
        image, n_frames = _read(stream, path, image_size, frame)
    report_frames({str(path): n_frames}, frame)
    return image


def _read(stream: BinaryIO, path: str | Path, image_size: tuple[int, int] | None, frame: int) -> tuple[np.ndarray, int]:
    # a stream: given a path, Pillow maps grey TIFFs into memory, with sides that EXIF has swapped
    image, n_frames = decode(stream, path, frame)
    if image_size is not None:
        image = ImageOps.fit(image, image_size[::-1])
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, BAND):  # at once, Pillow would need the memory of two more copies
        pixels[top : top + BAND] = np.asarray(image.crop((0, top, image.width, min(top + BAND, image.height))))
    return pixels, n_frames


def report_frames(n_frames: dict[str, int], frame: int) -> None:
    """Says on stderr which of the files have several frames or pages, once for each file."""
    several = [f"{path} ({n})" for path, n in n_frames.items() if n > 1 and (path, frame) not in _REPORTED]
    if several:
        _REPORTED.update((path, frame) for path, n in n_frames.items() if n > 1)
        say_once(f"Of files with several frames or pages, number {frame} alone is read (compress, tokenize and features "
                 f"take --frame N, from 0): {_some(several)}.")  # fmt: skip


def check_size(path: str, image: np.ndarray, first_path: str, size: tuple[int, int]) -> None:
    """ValueError, naming both files, if ``image`` is not of ``size`` (H, W)."""
    if image.shape[:2] != tuple(size):
        raise ValueError(f"{path} is {image.shape[0]}x{image.shape[1]} but {first_path} is {size[0]}x{size[1]} (height x "
                         "width): sizes differ; pass --image_size HxW to scale and crop all of them.")  # fmt: skip


def report_bad_images(bad: list[str], n: int, skip_bad: bool, hint: str = "", left_out: list[str] | None = None) -> None:
    """Prints the sentences about ``bad`` ones of ``n`` images, or adds them to ``left_out`` if there is such a list.
    ValueError, with up to 10 of them and a ``hint`` of what helps, unless ``skip_bad`` and some are left."""
    bad = [printable(sentence) for sentence in bad]
    fails = bool(bad) and (len(bad) == n or not skip_bad)
    lines = bad[:10] + [f"and {len(bad) - 10} more"] if fails and len(bad) > 10 else bad
    named = f" {bad[0]}" if len(bad) == 1 else "".join(f"\n  {line}" for line in lines)
    if fails:
        remedy = "there are no others" if len(bad) == n else "pass --skip_bad to leave them out"
        raise ValueError(f"{len(bad)} of {checks.count(n, 'image')} cannot be used; {remedy}{hint}:{named}")
    if left_out is not None:
        left_out += bad
    elif bad:
        say(f"Left out {len(bad)} of {checks.count(n, 'image')}:{named}")


def most_frequent(sizes: Iterable[tuple[int, ...]]) -> tuple[tuple[int, ...], int]:
    """The most frequent of the sizes (H, W), the first of equals, and how often it occurs; (0, 0) and 0 of none."""
    return next(iter(collections.Counter(sizes).most_common(1)), ((0, 0), 0))


def other_size(path: str, size: tuple[int, ...], most: tuple[int, ...]) -> str:
    return "{} is {}x{}, most are {}x{}".format(path, *size, *most)


def without_bad_images(paths: Sequence[str], image_size: tuple[int, int] | None, frame: int,
                       left_out: list[str]) -> list[str]:  # fmt: skip
    """Those of the images that can be read, and are of the most frequent size; ``left_out`` takes a sentence about each of
    the others. Decodes all of them. ValueError if none can be used."""
    sizes: dict[str, tuple[int, ...]] = {}
    bad: list[str] = []
    for batch, images in decoded(batches_of(paths, 128), image_size, frame):
        for path, image in zip(batch, images, strict=True):
            if isinstance(image, str):
                bad.append(image)
            else:
                sizes[path] = image.shape[:2]
    most, _ = most_frequent(sizes.values())
    bad += [other_size(path, size, most) for path, size in sizes.items() if size != most]
    report_bad_images(bad, len(paths), skip_bad=True, left_out=left_out)
    return [path for path in paths if sizes.get(path) == most]


def decoded(batches: Iterable[list[str]], image_size: tuple[int, int] | None = None, frame: int = 0,
            facts: dict[str, FileFacts] | None = None) -> Iterator[tuple[list[str], list[np.ndarray | str]]]:  # fmt: skip
    """Every batch of paths with its images, as :func:`read_image` returns them; instead of one that cannot be read, a
    sentence that says why. While a batch is being used, threads decode the next. At the end, says which have several
    frames; unless the caller, who may be one of several processes, passes a dict to take the ``facts`` of each file."""
    n_frames: dict[str, int] = {}

    def read(path: str) -> np.ndarray | str:
        try:
            with open_image(path) as file:
                if facts is None:
                    image, n_frames[path] = _read(file, path, image_size, frame)
                else:  # the bytes that are decoded are those of the checksum, read once
                    content = file.read()
                    image, n = _read(io.BytesIO(content), path, image_size, frame)
                    facts[path] = FileFacts(n, zlib.crc32(content, frame))
            return image
        except (ValueError, OSError) as error:
            return str(error)

    try:
        with ThreadPool(os.cpu_count()) as pool:
            pending: Iterator[Any] = ((batch, pool.map_async(read, batch)) for batch in batches)
            for (batch, images), _ in itertools.pairwise(itertools.chain(pending, [None])):
                yield batch, images.get()
    finally:
        report_frames(dict(sorted(n_frames.items())), frame)


def batches_of(items: Any, n: int) -> list:
    """The ``items``, a sequence of any kind, at most ``n`` at a time."""
    return [items[i : i + n] for i in range(0, len(items), n)]


def read_ahead(paths: Sequence[str], n: int) -> Iterator[list[str]]:
    """At most ``n`` image files at a time, fewer where they are large, since those that are read ahead are all in memory."""
    batch, size = list[str](), 0
    for path in paths:
        own = n_pixels(path)
        if batch and (len(batch) == n or size + own > PIXELS_READ_AHEAD):
            yield batch
            batch, size = list[str](), 0
        batch.append(path)
        size += own
    yield batch


def spread(items: Sequence[Any], n: int | None) -> list:
    """``n`` of the items (all if None, or if there are fewer), evenly spaced."""
    n = len(items) if n is None else min(n, len(items))
    return [items[i * len(items) // n] for i in range(n)]
