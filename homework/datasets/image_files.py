"""Image files: which ones a user means, and how to read one upright, in RGB, at the right size."""

import itertools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, features

SPLITS = ("train", "valid")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
if "avif" in features.modules and features.check("avif"):  # from Pillow 11.3 on, where it was built with libavif
    SUFFIXES += (".avif",)
BAND = 256  # rows of an image that Pillow hands over at a time
HELD_OUT = 20  # where there are no splits, one image of so many is for validation
HOW_TO_GET = "python -m homework.data download, or python -m homework.data import ZIP_OR_FOLDER if you have the zip"
Source = str | Path | Iterable[str | Path]


def image_paths(source: Source, root: str | Path = "data") -> list[str]:
    """The image files that ``source`` names, sorted, each once. FileNotFoundError if there is no such file or folder;
    ValueError if there are no images in it, a single one that is to be split, or a dataset.json is of another form.

    Args:
        source: a split ("train", "valid"), a folder (its own image files, not those of folders in it), an image file, a
            dataset.json, or several of these.
        root: of the splits: a folder with folders of their names; or a folder of images, or a dataset.json, of whose sorted
            images every 20th, from the first one on, is for validation.
    """
    if isinstance(source, str) and source in SPLITS:
        has_splits, folder = any(Path(root, split).is_dir() for split in SPLITS), Path(root)
        if not has_splits and (folder.is_file() or (folder.is_dir() and any(map(is_image, folder.iterdir())))):
            paths = image_paths(root)
            if len(paths) < 2:
                raise ValueError(f"There is only one image in {root}, but training and validation need one each.")
            return paths[::HELD_OUT] if source == "valid" else sorted({*paths} - {*paths[::HELD_OUT]})
        source = Path(root) / source
        if not source.is_dir():
            raise FileNotFoundError(f"There is no folder {source}, nor images in {root}; get them with {HOW_TO_GET}.")
    sources = [source] if isinstance(source, str | Path) else list(source)
    paths = set()
    for path in map(Path, sources):
        if path.is_dir():
            paths.update(str(p) for p in path.iterdir() if is_image(p))
        elif not path.is_file():
            raise FileNotFoundError(f"There is no file or folder {path}.")
        elif path.suffix.lower() != ".json":
            paths.add(str(path))
        elif not path.name.endswith("_info.json"):  # notes among the course's images
            paths.update(read_dataset_json(path))
    if not paths:
        raise ValueError(f"There are no images in {', '.join(map(str, sources[:3])) or 'an empty list'}.")
    return sorted(paths)


def is_image(path: PurePath) -> bool:
    """Whether the name is one of an image file that is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def not_read(folder: Path) -> str:
    """What is in a folder besides the images that :func:`image_paths` takes: "2 folders and 1 other file", or ""."""
    others = [p for p in folder.iterdir() if not is_image(p) and not p.name.startswith(".")]
    n_folders = sum(map(Path.is_dir, others))
    counts = (n_folders, "folder"), (len(others) - n_folders, "other file")
    return " and ".join(f"{n:,} {what}{'s' * (n > 1)}" for n, what in counts if n)


def n_pixels(path: str) -> int:
    """The number of pixels of an image, as its file's header says; 0 if that cannot be read."""
    try:
        with Image.open(path) as file:
            return math.prod(file.size)
    except Exception:  # as in read_image, whose error says what is wrong
        return 0


def read_dataset_json(path: Path) -> list[str]:
    """``{"_default": {"1": {"image_fpath": ...}, ...}}``; relative to the file's folder, else to the current one."""
    try:
        names = [entry["image_fpath"] for entry in json.loads(path.read_text("utf-8"))["_default"].values()]
        found = [(path.parent / name, Path(name)) for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        form = '{"_default": {"1": {"image_fpath": "..."}, ...}}'
        raise ValueError(f"{path} is not a dataset.json of the form {form}.") from error
    for beside, here in found:
        if not (beside.is_file() or here.is_file()):
            raise FileNotFoundError(f"{path} names {here}, which does not exist.")
    return [str(beside if beside.is_file() else here) for beside, here in found]


def read_image(path: str | Path, image_size: tuple[int, int] | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file, upright; transparent pixels on white, 16 bits a channel cut down to the upper 8.
    With an ``image_size`` (H, W), the image is scaled until it covers this, and its centre cut out. ValueError if the file
    is not an image, is damaged, too large for Pillow, or has floats or 32 bits a pixel; OSError if it may not be read."""
    with open(path, "rb") as stream:  # given a path, Pillow maps grey TIFFs into memory, with sides that EXIF has swapped
        image = _decode(stream, path)
    if image_size is not None:
        image = ImageOps.fit(image, image_size[::-1])
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, BAND):  # at once, Pillow would need the memory of two more copies
        pixels[top : top + BAND] = image.crop((0, top, image.width, min(top + BAND, image.height)))
    return pixels


def _decode(stream: BinaryIO, path: str | Path) -> Image.Image:
    try:
        with Image.open(stream) as file:
            if file.mode != "F" and (file.mode != "I" or file.format in ("PNG", "PPM")):  # those have 16 bits
                image: Image.Image = file
                ImageOps.exif_transpose(image, in_place=True)  # a copy of a photo would take 100 MB
                if image.mode.startswith("I"):  # 16 bits of grey, which convert() would clip to white
                    grey, clear = np.asarray(image), image.info.get("transparency")
                    grey = np.where(grey == clear, 255, grey // 256)
                    image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
                if image.has_transparency_data:  # as on a page; what convert() alone would show is often black or noise
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
                return image if image.mode == "RGB" else image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large: Pillow reads up to {2 * Image.MAX_IMAGE_PIXELS:,} pixels.") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise ValueError(f"{path} cannot be read as an image ({type(error).__name__}); is it damaged?") from error
    raise ValueError(f"{path} cannot be read: it has floats or 32 bits a pixel, of unknown white; convert to 8 or 16 bits.")


def check_size(path: str, image: np.ndarray, first_path: str, size: tuple[int, int]) -> None:
    """ValueError, naming both files, if ``image`` is not of ``size`` (H, W)."""
    if image.shape[:2] != tuple(size):
        raise ValueError(f"{path} is {image.shape[0]}x{image.shape[1]} but {first_path} is {size[0]}x{size[1]} (height x "
                         "width); pass --image_size HxW to scale and crop all of them.")  # fmt: skip


def report_bad_images(bad: list[str], n: int, skip_bad: bool) -> None:
    """Prints up to 10 sentences about ``bad`` ones of ``n`` images. ValueError unless ``skip_bad`` and some are left."""
    lines = bad[:10] + [f"and {len(bad) - 10} more"] * (len(bad) > 10)
    named = f" {bad[0]}" if len(bad) == 1 else "".join(f"\n  {line}" for line in lines)
    if bad and (len(bad) == n or not skip_bad):
        remedy = "there are no others" if len(bad) == n else "pass --skip_bad to leave them out"
        raise ValueError(f"{len(bad)} of {n} images cannot be used; {remedy}:{named}")
    if bad:
        print(f"Left out {len(bad)} of {n} images:{named}", file=sys.stderr)


def decoded(batches: Iterable[list[str]], image_size: tuple[int, int] | None = None,
            ) -> Iterator[tuple[list[str], list[np.ndarray | str]]]:  # fmt: skip
    """Every batch of paths with its images, as :func:`read_image` returns them; instead of one that cannot be read, a
    sentence that says why. While a batch is being used, threads decode the next."""
    with ThreadPool(os.cpu_count()) as pool:
        pending = ((batch, pool.map_async(partial(_read, image_size), batch)) for batch in batches)
        for (batch, images), _ in itertools.pairwise(itertools.chain(pending, [None])):
            yield batch, images.get()


def _read(image_size: tuple[int, int] | None, path: str) -> np.ndarray | str:
    try:
        return read_image(path, image_size)
    except (ValueError, OSError) as error:
        return str(error)
