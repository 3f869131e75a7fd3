"""Data sets: images in a memory-mapped cache, grids of tokens; and the commands that put the images in place."""

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable
from http.client import HTTPException
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePath, PureWindowsPath

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from homework import checkpoint, cli

SPLITS = ("train", "valid")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
URL = "https://utexas.box.com/shared/static/qubjm5isldqvyimfj9rsmbnvnbezwcv4.zip"
HOW_TO_GET = "python -m homework.data download, or python -m homework.data import ZIP_OR_FOLDER if you have the zip"

Source = str | Path | Iterable[str | Path]


def to_float(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-0.5, 0.5], on the same device."""
    return pixels.float().div_(255).sub_(0.5)


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-0.5, 0.5] (clamped to it) -> uint8, rounded to the nearest."""
    return images.float().add(0.5).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def image_paths(source: Source, root: str | Path = "data") -> list[str]:
    """The image files that ``source`` names, sorted, each once.

    Args:
        source: a split ("train", "valid": the folder of that name in ``root``), a folder (its own image files, not
            those of folders in it), an image file, a dataset.json, or several of these.
    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: there are no images in it, or a dataset.json is of another form.
    """
    if isinstance(source, str) and source in SPLITS:
        if not (Path(root) / source).is_dir():
            raise FileNotFoundError(f"There is no folder {Path(root) / source}; get the images with {HOW_TO_GET}.")
        source = Path(root) / source
    sources = [source] if isinstance(source, str | Path) else list(source)
    paths = set()
    for path in map(Path, sources):
        if path.is_dir():
            paths.update(str(p) for p in path.iterdir() if _is_image(p))
        elif not path.is_file():
            raise FileNotFoundError(f"There is no file or folder {path}.")
        elif path.suffix.lower() != ".json":
            paths.add(str(path))
        elif not path.name.endswith("_info.json"):  # notes that lie among the course's images
            paths.update(_read_dataset_json(path))
    if not paths:
        raise ValueError(f"There are no images in {', '.join(map(str, sources[:3])) or 'an empty list'}.")
    return sorted(paths)


def _is_image(path: PurePath) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _read_dataset_json(path: Path) -> list[str]:
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
    """One image file, upright.

    Args:
        image_size: (H, W): scale until it covers this, then cut out the centre. None leaves the image as it is.
    Returns:
        (H, W, 3) uint8 RGB.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image, or a damaged one.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16 bits of grey, which convert() would clip to white
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            image = image.convert("RGB")
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise ValueError(f"{path} cannot be read as an image ({type(error).__name__}); is it damaged?") from error
    if image_size is not None:
        image = ImageOps.fit(image, image_size[::-1])
    return np.asarray(image)


def check_size(path: str, image: np.ndarray, first_path: str, size: tuple[int, int]) -> None:
    """ValueError, naming both files, if ``image`` is not of ``size`` (H, W)."""
    if image.shape[:2] != tuple(size):
        raise ValueError(
            f"{path} is {image.shape[0]}x{image.shape[1]} but {first_path} is {size[0]}x{size[1]} (height x width); "
            "pass --image_size HxW to scale and crop all of them."
        )


class ImageDataset:
    """Images of one size, decoded once into a memory-mapped file.

    ``ds[i]`` is uint8 (H, W, 3); ``names`` are the paths, sorted; ``size`` is (H, W).

    The cache lies in ``root/.cache`` (N*H*W*3 bytes), or in a temporary folder where that cannot be written. It is made
    anew when a file's name, size or time changes.
    """

    def __init__(self, source: Source = "train", image_size: tuple[int, int] | None = None, root: str | Path = "data"):
        """
        Args:
            source: see :func:`image_paths`.
            image_size: (H, W) to scale and crop to; None requires that all images have one size.
            root: the folder of the splits.
        Raises:
            FileNotFoundError: no such source.
            ValueError: there are no images, one is damaged, or one does not fit (the first is named).
        """
        self.names = image_paths(source, root)
        whole = str(source) if isinstance(source, str | Path) else self.names
        self.images = np.load(_cache(self.names, whole, image_size, Path(root)), mmap_mode="r")  # (N, H, W, 3)
        self.size = self.images.shape[1:3]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(np.array(self.images[i]))

    def batch(self, indices: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """The images at ``indices`` (B) as float32 (B, H, W, 3) in [-0.5, 0.5] on ``device``."""
        pixels = torch.from_numpy(np.asarray(self.images[np.asarray(indices)]))
        return to_float(pixels.to(device))  # moved as bytes: a quarter of the traffic

    def augment(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Mirrors each image of (B, H, W, 3) left-right, in place, with probability 1/2 from a CPU ``generator``."""
        mirrored = (torch.rand(len(batch), generator=generator) < 0.5).nonzero()[:, 0].to(batch.device)
        batch[mirrored] = batch[mirrored].flip(2)
        return batch

    def model_defaults(self) -> dict:
        """What a model's constructor should know of the data: nothing."""
        return {}


def _cache(names: list[str], source: str | list[str], image_size: tuple[int, int] | None, root: Path) -> Path:
    """The .npy file (N, H, W, 3) uint8 of the images ``names``, made if need be; it replaces others of ``source``."""
    source = hashlib.sha256(repr((os.getcwd(), str(root), source, image_size)).encode()).hexdigest()[:8]
    content = hashlib.sha256()
    for name in names:
        stat = os.stat(name)
        content.update(os.fsencode(f"{os.path.abspath(name)}\0{stat.st_size}\0{stat.st_mtime_ns}\0"))
    file_name = f"{source}-{content.hexdigest()[:24]}.npy"
    temporary = Path(tempfile.gettempdir()) / f"homework-cache-{getattr(os, 'getuid', int)()}"
    folders = [root / ".cache", temporary] if root.is_dir() else [temporary]
    for folder in folders:
        if (folder / file_name).is_file():
            return folder / file_name
    for folder in folders:
        try:
            with checkpoint.replacing(folder / file_name) as path, open(path, "wb") as file:
                _decode_all(names, image_size, file)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and error.filename in names:
                raise
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(f"The disk is full: the images need a cache in {folder}; make room there.") from error
            if folder == folders[-1]:
                raise
            continue  # a read-only data folder
        for old in folder.glob(f"{source}-*"):  # what this source was before, and what killed processes left
            if old.name != file_name and (old.suffix == ".npy" or old.stat().st_mtime < time.time() - 3600):
                old.unlink(missing_ok=True)
        return folder / file_name
    raise AssertionError("unreachable")


def _decode_all(names: list[str], image_size: tuple[int, int] | None, file) -> None:
    # plain writes, not a writable map: on a full disk the one raises OSError, the other kills the process
    size = None
    with ThreadPool(os.cpu_count()) as pool, tqdm(total=len(names), desc="decoding", unit="img", leave=False) as bar:
        for start in range(0, len(names), 256):  # in pieces, so that decoding cannot run away from a slow disk
            chunk = names[start : start + 256]
            for name, image in zip(chunk, pool.imap(lambda n: read_image(n, image_size), chunk), strict=True):
                if size is None:
                    size = image.shape[:2]
                    header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), *size, 3)}
                    np.lib.format.write_array_header_1_0(file, header)
                check_size(name, image, names[0], size)
                file.write(image.tobytes())
                bar.update()


class TokenDataset:
    """Grids of tokens that ``homework.tokenize`` wrote.

    ``ds[i]`` is int64 (h, w) in [0, n_tokens); ``names`` are the images' paths; ``size`` is (h, w).
    """

    def __init__(self, source: str | Path = "train", root: str | Path = "data"):
        """
        Args:
            source: a split ("train", "valid": ``root/tokenized_{split}.pth``) or a file, which holds
                ``{"tokens": (N, h, w), "n_tokens": int, "names": [str]}`` or a plain tensor (N, h, w).
        Raises:
            FileNotFoundError: no such file.
            ValueError: the file holds something else.
        """
        path = Path(root) / f"tokenized_{source}.pth" if source in SPLITS else Path(source)
        if not path.is_file():
            images = Path(root) / source if source in SPLITS else "IMAGES"
            raise FileNotFoundError(
                f"There are no tokens {path}; make them with python -m homework.tokenize TOKENIZER {path} {images}."
            )
        data = checkpoint.read(path)
        tokens = data.get("tokens") if isinstance(data, dict) else data
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.is_floating_point() or not tokens.numel():
            raise ValueError(f"{path} holds no grids of tokens (N, h, w); make it with python -m homework.tokenize.")
        self.tokens = tokens.numpy()  # numpy, because torch can hardly do a thing with uint16
        known = data if isinstance(data, dict) else {}
        self.n_tokens = int(known.get("n_tokens", self.tokens.max() + 1))
        self.names = list(known.get("names", []))
        self.size = self.tokens.shape[1:]
        if self.tokens.min() < 0 or self.tokens.max() >= self.n_tokens:
            raise ValueError(f"{path} holds tokens outside of [0, {self.n_tokens}).")

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(self.tokens[i].astype(np.int64))

    def batch(self, indices: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """The grids at ``indices`` (B) as int64 (B, h, w) on ``device``."""
        return torch.from_numpy(self.tokens[np.asarray(indices)].astype(np.int64)).to(device)

    def augment(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """The batch as it is: a mirrored image has other tokens, not mirrored ones."""
        return batch

    def model_defaults(self) -> dict:
        """What a prior's constructor should know of the data."""
        return {"n_tokens": self.n_tokens, "height": self.size[0], "width": self.size[1]}


DATASETS = {"images": ImageDataset, "tokens": TokenDataset}


def download(dir: str = "data", url: str = URL, replace: bool = False) -> None:
    """Downloads the course's SuperTuxKart frames (163 MB) and unpacks them into DIR/train and DIR/valid.

    A download that was cut off goes on where it stopped when the same command is run again.

    Args:
        dir: the folder to unpack into.
        url: where the zip lies.
        replace: replace the folders train and valid if they exist.
    """
    folder = Path(str(dir))  # Fire takes 2026 for a number
    part = folder / "supertux_data.zip.part"
    _check_free(folder, SPLITS, replace)
    fetch(url, part)
    try:
        import_(part, folder, replace=replace)
    except ValueError as error:
        part.unlink()
        raise ValueError(f"{url} sent a broken file, now removed; run the same command again. ({error})") from error
    part.unlink()


def fetch(url: str, part: Path) -> None:
    """Downloads ``url`` to the file ``part``, going on behind what it holds. OSError if it cannot be completed."""
    have = part.stat().st_size if part.exists() else 0
    advice = f"check the network, or get {url} by other means and run python -m homework.data import ZIP."
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing lies behind what is here: it is whole, or of another file
            if error.headers.get("Content-Range") != f"bytes */{have}":
                part.unlink()
                fetch(url, part)
            return
        raise OSError(f"The server answered {error.code} {error.reason}; {advice}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise OSError(f"There is no connection ({getattr(error, 'reason', error)}); {advice}") from error
    part.parent.mkdir(parents=True, exist_ok=True)
    with response:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # the server knows no ranges and sends the file from its start
        total = have + int(response.headers.get("Content-Length", 0))
        bar = tqdm(total=total or None, desc="downloading", initial=have, unit="B", unit_scale=True)
        with open(part, "ab" if have else "wb") as file, bar:
            while block := _read_block(response):
                file.write(block)
                bar.update(len(block))
            have = file.tell()
    if have < total:
        raise OSError(f"The connection broke after {have} of {total} bytes; run the same command again to go on.")


def _read_block(response) -> bytes:
    try:
        return response.read1(1 << 16)
    except (OSError, HTTPException):  # cut off, as the count of bytes will tell
        return b""


def import_(zip_or_folder: str, dir: str = "data", valid_every: int = 20, replace: bool = False) -> None:
    """Puts images that you already have into DIR/train and DIR/valid.

    Args:
        zip_or_folder: a zip or a folder that holds folders train and valid at any depth; or a dataset.json, whose
            images all go into train but for one in 20, which goes into valid.
        dir: the folder to put them into.
        valid_every: another number than 20 for a dataset.json.
        replace: replace the folders train and valid if they exist.
    """
    source, folder = Path(str(zip_or_folder)), Path(str(dir))
    if not source.exists():
        raise FileNotFoundError(f"There is no file or folder {source}.")
    if source.is_dir():
        members = _by_split([(path, path) for path in sorted(source.rglob("*")) if path.is_file()], source)
        _put(members, lambda path: open(path, "rb"), folder, replace)
    elif source.suffix.lower() == ".json":
        if not isinstance(valid_every, int) or valid_every < 2:
            raise ValueError(f"--valid_every is {valid_every}, but must be a whole number of at least 2.")
        members = {}
        for i, path in enumerate(_read_dataset_json(source), start=1):  # numbered: a name may occur in several folders
            members[f"{SPLITS[i % valid_every == 0]}/{i:06d}_{Path(path).name}"] = path
        _put(members, lambda path: open(path, "rb"), folder, replace)
    else:
        try:
            with zipfile.ZipFile(source) as archive:
                entries = [(PureWindowsPath(i.filename), i) for i in archive.infolist()]  # knows both / and \\
                for path, info in entries:
                    if path.anchor or ".." in path.parts or stat.S_ISLNK(info.external_attr >> 16):
                        raise ValueError(f"{source} holds {info.filename!r}, which leads out of its folder; refused.")
                _put(_by_split(entries, source), archive.open, folder, replace)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{source} is no zip, or a damaged one ({error}).") from error


def _by_split(entries: list[tuple[PurePath, object]], source: Path) -> dict[str, object]:
    """``{"train/name.jpg": entry}`` for the images among ``entries`` that lie in a folder train or valid."""
    members = {}
    for path, entry in entries:
        if path.parent.name in SPLITS and _is_image(path):
            name = f"{path.parent.name}/{path.name}"
            if name in members:
                raise ValueError(f"{source} holds several {name} in different folders; import one of these folders.")
            members[name] = entry
    if not members:
        raise ValueError(f"{source} holds no folder train or valid with images in it.")
    return members


def _check_free(folder: Path, splits: Iterable[str], replace: bool) -> None:
    for split in splits:
        if os.path.lexists(folder / split) and not replace:
            raise ValueError(f"{folder / split} exists already; pass --replace to replace it.")


def _put(members: dict[str, object], opener: Callable, folder: Path, replace: bool) -> None:
    """Writes ``{"train/name.jpg": entry}`` into ``folder``, each from ``opener(entry)``; after an error, none."""
    splits = sorted({name.split("/")[0] for name in members})
    _check_free(folder, splits, replace)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=folder) as temporary:
        for split in splits:
            Path(temporary, split).mkdir()
        for name, entry in tqdm(members.items(), desc="copying", unit="img"):
            with opener(entry) as read, open(Path(temporary, name), "wb") as written:
                shutil.copyfileobj(read, written)
        for split in splits:
            if os.path.lexists(folder / split):  # if it is a link, only the link goes
                os.rename(folder / split, Path(temporary, f"old-{split}"))
            os.rename(Path(temporary, split), folder / split)
    for split in splits:
        print(f"{folder / split}: {sum(name.startswith(split) for name in members)} images")


if __name__ == "__main__":
    cli.main("python -m homework.data", {"download": download, "import": import_})
