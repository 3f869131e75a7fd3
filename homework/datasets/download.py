"""Gets the data: the course's zip and MNIST from the network, or what the user already has."""

import contextlib
import os
import shutil
import stat
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException, HTTPResponse
from io import FileIO
from pathlib import Path, PurePath, PureWindowsPath
from typing import IO

from PIL import Image
from tqdm import tqdm

from homework.core import checks, cli
from homework.datasets import mnist as idx
from homework.datasets.decoding import decode
from homework.datasets.image_files import SPLITS, images_in, is_hidden, is_image, read_dataset_json, report_bad_images
from homework.datasets.near_copies import NearCopies

URL = "https://utexas.box.com/shared/static/qubjm5isldqvyimfj9rsmbnvnbezwcv4.zip"
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist"
Opener = Callable[[], IO[bytes]]
Entries = list[tuple[PurePath, Opener]]  # the path of a file, and what opens it for reading


def download(dir: str = "data", url: str = URL, *, distinct: float = 0.0, replace: bool = False) -> None:
    """Downloads the course's SuperTuxKart frames (about 500 MB) and unpacks them into DIR/train and DIR/valid. The
    same command resumes a download that was cut off.

    Examples:
        python -m homework.data download --distinct 2
        python -m homework.data download --dir elsewhere --replace

    Args:
        dir: the folder to unpack into.
        url: the address of the zip.
        distinct: leave out of train what hardly differs from an image before it, see python -m homework.data import --help.
        replace: replace the folders train and valid if they exist.
    """
    folder = Path(dir)
    part = folder / "supertux_data.zip.part"
    check_distinct(distinct)
    _check_free(folder, SPLITS, replace)
    fetch(url, part)
    try:
        import_(part, folder, distinct=distinct, replace=replace)
    except ValueError as error:
        part.unlink()
        raise ValueError(f"{url} sent a broken file, now removed; run the same command again. ({error})") from error
    part.unlink()


def mnist(dir: str = "data", url: str = MNIST_URL, *, replace: bool = False) -> None:
    """Downloads MNIST (LeCun, Cortes and Burges; 11 MB): four IDX files into DIR/mnist.

    Examples:
        python -m homework.data mnist
        python -m homework.data mnist --dir elsewhere

    Args:
        dir: the folder to put mnist into.
        url: the address of the folder with the four files.
        replace: replace the folder mnist if it exists.
    """
    folder = Path(dir)
    _check_free(folder, ["mnist"], replace)
    parts = {name: folder / f"{name}.gz.part" for name in idx.FILES}
    for name, part in parts.items():
        fetch(f"{url}/{name}.gz", part, "FOLDER")
    try:
        _put_idx(parts, folder, replace)
    finally:
        for part in parts.values():
            part.unlink()


def import_(zip_or_folder: str | Path, dir: str | Path = "data", *, valid_every: int = 20, distinct: float = 0.0,
            skip_bad: bool = False, replace: bool = False) -> None:  # fmt: skip
    """Puts images that you already have into DIR/train and DIR/valid, and MNIST's files into DIR/mnist.

    Examples:
        python -m homework.data import supertux_data.zip
        python -m homework.data import my_pictures --dir mine --valid_every 10

    Args:
        zip_or_folder: a zip or a folder that holds folders train and valid at any depth; or one without such folders,
            or a dataset.json, of whose images one in VALID_EVERY goes into valid, or the last of fewer; or a folder with
            MNIST's files.
        dir: the folder to put them into.
        valid_every: one image in so many goes into valid, where the source itself does not say.
        distinct: leave out of train what hardly differs from an image before it: by less than so many of 255 grey levels,
            in root mean square over 10x15 pixels, as 2; by default nothing.
        skip_bad: leave out images that are damaged; by default they are copied like the others, and nothing is decoded.
        replace: replace the folders train and valid if they exist.
    """
    source, folder = Path(zip_or_folder), Path(dir)
    if not source.exists():
        raise FileNotFoundError(f"There is no file or folder {source}.")
    cli.at_least(2, valid_every=valid_every)
    check_distinct(distinct)
    how = folder, replace, skip_bad, distinct
    if source.is_dir():
        images, paths = sorted(images_in(source)), [path for path in sorted(source.rglob("*")) if path.is_file()]
        digits = {path.name.removesuffix(".gz"): path for path in reversed(paths)}  # the first of several stays
        if digits := {name: digits[name] for name in idx.FILES if name in digits}:
            _put_idx(digits, folder, replace)
        if not digits or images:
            entries: Entries = [(path.relative_to(source), partial(FileIO, path)) for path in images]
            _put(_by_split(entries, source, valid_every), *how)
    elif source.suffix.lower() == ".json":
        entries = [(Path(path), partial(FileIO, path)) for path in read_dataset_json(source)]
        _put(_share_out(entries, source, valid_every), *how)
    else:
        try:
            with zipfile.ZipFile(source) as archive:
                _put(_by_split(_zip_entries(archive, source), source, valid_every), *how)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{source} is not a zip, or a damaged one ({error}).") from error


def check_distinct(distinct: float) -> None:
    checks.require("a number from 0 to 255", lambda v: checks.is_number(v) and 0 <= v <= 255, {"--distinct": distinct})


def fetch(url: str, part: Path, what: str = "ZIP") -> None:
    """Downloads ``url`` to the file ``part``, resuming after the bytes that it holds. OSError if it cannot be completed."""
    have = part.stat().st_size if part.exists() else 0
    advice = f"check the network, or get {url} by other means and run python -m homework.data import {what}."
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing follows what is here: it is complete, or of another file
            if error.headers.get("Content-Range") != f"bytes */{have}":
                part.unlink()
                fetch(url, part, what)
            return
        raise OSError(f"The server answered {error.code} {error.reason}; {advice}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise OSError(f"There is no connection ({getattr(error, 'reason', error)}); {advice}") from error
    part.parent.mkdir(parents=True, exist_ok=True)
    with response:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # the server ignores ranges and sends the file from its start
        total = have + int(response.headers.get("Content-Length", 0))
        bar = tqdm(total=total or None, desc="downloading", initial=have, unit="B", unit_scale=True)
        with open(part, "ab" if have else "wb") as file, bar:
            while block := _read_block(response):
                file.write(block)
                bar.update(len(block))
            have = file.tell()
    if have < total:
        raise OSError(f"The connection broke after {have} of {total} bytes; run the same command again to resume.")


def _read_block(response: HTTPResponse) -> bytes:
    try:
        return response.read1(1 << 16)
    except (OSError, HTTPException):  # cut off, as the count of bytes will show
        return b""


def _put_idx(files: dict[str, Path], folder: Path, replace: bool) -> None:
    """Copies MNIST's files into ``folder``/mnist, gzipped ones as .gz, once all have been read without an error."""
    if missing := [name for name in idx.FILES if "images" in name and name not in files]:
        raise ValueError(f"MNIST's file {missing[0]} is not there, beside {next(iter(files.values()))}.")
    with _new_folders(folder, ["mnist"], replace) as new:
        for name, path in files.items():
            copy = new / "mnist" / (f"{name}.gz" if path.read_bytes()[:2] == b"\x1f\x8b" else name)
            shutil.copyfile(path, copy)
            idx.read_idx(copy, path)
    print(f"{folder / 'mnist'}: {checks.count(len(files), 'file')}")


def _zip_entries(archive: zipfile.ZipFile, source: Path) -> Entries:
    infos = [(PureWindowsPath(info.filename), info) for info in archive.infolist()]  # splits at both / and \\
    for path, info in infos:
        if path.anchor or ".." in path.parts or stat.S_ISLNK(info.external_attr >> 16):
            raise ValueError(f"{source} holds {info.filename!r}, which leads out of its folder; refused.")
    return [(path, partial(archive.open, info)) for path, info in infos]


def _by_split(entries: Entries, source: Path, valid_every: int) -> dict[str, Opener]:
    """``{"train/name.jpg": opener}`` for the images in and below folders train and valid; if there are none, for all
    images."""
    entries, members = [(path, opener) for path, opener in entries if is_image(path) and not is_hidden(path)], {}
    for path, opener in entries:
        if inside := [i for i, part in enumerate(path.parts[:-1]) if part in SPLITS]:
            name = "/".join(path.parts[inside[-1] :])
            if name in members:
                raise ValueError(f"{source} holds several {name} in different folders; import one of these folders.")
            members[name] = opener
    return members or _share_out(entries, source, valid_every)


def _share_out(entries: Entries, source: Path, valid_every: int) -> dict[str, Opener]:
    """One entry in ``valid_every`` goes into valid, or the last of fewer, the others into train; numbered, for a name may
    occur twice. ValueError for fewer than two."""
    if len(entries) < 2:
        what = "only one image" if entries else "no images"
        raise ValueError(f"{source} holds {what}, but training and validation need one each.")
    every = min(valid_every, len(entries))
    print(f"One image in {every} is for validation; --valid_every N changes that.")
    numbered = enumerate(entries, start=1)
    return {f"{SPLITS[i % every == 0]}/{i:06d}_{path.name}": opener for i, (path, opener) in numbered}


def _put(members: dict[str, Opener], folder: Path, replace: bool, skip_bad: bool, distinct: float) -> None:
    """Writes ``{"train/name.jpg": opener}`` into ``folder``, damaged images unless ``skip_bad``, near-copies for training
    unless they are to be ``distinct``; after an error, nothing."""
    bad, written, n_copies = list[str](), list[str](), 0
    splits, near = sorted({name.split("/")[0] for name in members}), NearCopies(distinct)
    with _new_folders(folder, splits, replace) as new:
        for name, opener in tqdm(members.items(), desc="copying", unit="img"):
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            with opener() as read, open(new / name, "wb") as file:
                shutil.copyfileobj(read, file)
            image = _decoded(new / name, name) if skip_bad or distinct else None
            if skip_bad and isinstance(image, str):
                bad.append(image)
            elif distinct and name.startswith("train/") and isinstance(image, Image.Image) and near.has(image):
                n_copies += 1
            else:
                written.append(name)
                continue
            (new / name).unlink()
        report_bad_images(bad, len(members), skip_bad)
    if n_copies:
        print(f"Left out of {folder / 'train'}: {checks.count(n_copies, 'image')} that hardly differ from one before.")
    for split in splits:
        print(f"{folder / split}: {checks.count(sum(name.startswith(split) for name in written), 'image')}")


def _decoded(path: Path, name: str) -> Image.Image | str:
    """An image called ``name``, or why it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return decode(stream, name)[0]
    except ValueError as error:
        return str(error)


@contextlib.contextmanager
def _new_folders(folder: Path, names: list[str], replace: bool) -> Iterator[Path]:
    """Yields a temporary folder with empty folders ``names``; at the end, unless there was an error, these replace those of
    the same names in ``folder``."""
    _check_free(folder, names, replace)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=folder) as temporary:
        new = Path(temporary)
        for name in names:
            (new / name).mkdir()
        yield new
        for name in names:
            old = new / f"old-{name}"
            try:
                if os.path.lexists(folder / name):  # if it is a link, only the link goes
                    os.rename(folder / name, old)
                os.rename(new / name, folder / name)
            finally:
                if os.path.lexists(old) and not os.path.lexists(folder / name):
                    os.rename(old, folder / name)


def _check_free(folder: Path, names: list[str] | tuple[str, ...], replace: bool) -> None:
    for name in names:
        if os.path.lexists(folder / name) and not replace:
            raise ValueError(f"{folder / name} exists already; pass --replace to replace it.")
