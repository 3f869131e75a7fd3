"""WebDataset shards: tar files of images, as local files, URLs and pipes, and how to read any image of one."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import math
import os
import re
import shutil
import tarfile
import tempfile
import threading
import weakref
import zlib
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast

from homework.core.files import FULL, printable
from homework.datasets.decoding import readable_suffixes

MANIFEST = "shards.json"  # in a folder of shards
FORMAT, VERSION = "homework shards", 1
MOST_SHARDS = 10**6  # that braces may name
REMOTE = re.compile(r"(pipe:|[a-z][a-z0-9]*://)")  # how what webdataset's gopen opens begins
NAMED = re.compile(REMOTE.pattern + r"|.*\.(tar|tgz|tar\.(gz|bz2|xz))(\}*$|::)", re.IGNORECASE | re.DOTALL)
PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}  # by a file's first two bytes
_LOCK = threading.Lock()
_OPEN: dict[tuple, "Shard"] = {}  # the last used last
_most_open = 8


class Member(str):
    """The path of an image in a shard, SHARD/NAME, which knows where SHARD ends."""

    shard: str

    @classmethod
    def of(cls, shard: str, name: str) -> "Member":
        path = cls(f"{shard}/{name}")
        path.shard = shard
        return path

    @property
    def name(self) -> str:
        return str(self[len(self.shard) + 1 :])


def is_image(path: PurePath) -> bool:
    """Whether the name is one of an image file that is not hidden."""
    return path.suffix.lower() in readable_suffixes() and not path.name.startswith(".")


# --- which shards are meant ------------------------------------------------------------------------------------------------


def shards_in(source: str | Path) -> list[str] | None:
    """The shards that ``source`` names; None if it names none. FileNotFoundError if a local one does not exist; ValueError
    for braces that do not match.

    Args:
        source: ``data/train-{000000..000999}.tar``, ``https://...``, ``pipe:COMMAND``, several of these with ``::`` between
            them, as in webdataset, or a folder that ``python -m homework.data shard`` made.
    """
    text = str(source)
    folder = Path(text)
    if folder.is_dir():
        return [str(folder / name) for name in read_manifest(folder)] if (folder / MANIFEST).is_file() else None
    if not NAMED.match(text):
        return None
    urls = _expanded(text)
    for url in urls:
        if not REMOTE.match(url) and not Path(url).is_file():
            raise FileNotFoundError(f"There is no shard {url}" + f", which {text} names" * (url != text) + ".")
    return urls


def _expanded(text: str) -> list[str]:
    if not re.search(r"[{}]|::", text):
        return [text]
    from webdataset.shardlists import expand_urls

    ranges = [(int(a), int(b)) for a, b in re.findall(r"\{(\d{1,18})\.\.(\d{1,18})\}", text)]
    if (n := math.prod(max(1, b - a + 1) for a, b in ranges)) > MOST_SHARDS:
        raise ValueError(f"{text} names {n:,} shards, but at most {MOST_SHARDS:,} can be used at once.")
    try:
        return list(expand_urls(text))
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{text} does not name shards ({error}); write as in data/train-{{000000..000999}}.tar.") from error


def read_manifest(folder: Path) -> dict[str, dict[str, int]]:
    """{name: {"images", "bytes"}} of the shards in a folder, from its shards.json; or ValueError."""
    path = folder / MANIFEST
    return parse_manifest(path.read_bytes(), path)


def parse_manifest(content: bytes, path: str | Path) -> dict[str, dict[str, int]]:
    try:
        manifest = json.loads(content)
        found = {str(shard["name"]): {key: int(shard[key]) for key in ("images", "bytes")} for shard in manifest["shards"]}
        if (manifest["format"], manifest["version"]) != (FORMAT, VERSION) or not found:
            raise ValueError("another format, or no shards")
        if any(n < 0 for shard in found.values() for n in shard.values()):
            raise ValueError("negative numbers")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or not of this version; make it again with python -m homework.data shard.") \
            from error  # fmt: skip
    return found


# --- what is in a shard ----------------------------------------------------------------------------------------------------


class Bounded:
    """A file of ``length`` bytes for tarfile, which would get memory for as many as a header claims before it reads."""

    def __init__(self, file: BinaryIO, length: int):
        self.file, self.length, self.seek, self.tell = file, length, file.seek, file.tell

    def read(self, n: int) -> bytes:
        return self.file.read(max(0, min(n, self.length - self.file.tell())))


class Shard:
    """The images of one shard, in its order: ``names``, and ``read(name)``, their bytes, from any thread.

    A local tar is read where it is. What can only be read from its start, a URL, a pipe or a compressed tar, is first copied
    to a temporary file that has no name, so that memory does not grow with a shard, and nothing is left after a crash."""

    def __init__(self, url: str):
        self.url, self.file = url, _unpacked(url)
        self._lock = threading.Lock()
        weakref.finalize(self, self.file.close)
        self.places = {}  # start and length in bytes, by name; of two of a name the last counts, as in any tar
        try:
            length = self.file.seek(0, io.SEEK_END)
            self.file.seek(0)
            with tarfile.open(fileobj=cast(BinaryIO, Bounded(self.file, length)), mode="r:") as tar:
                for member in tar:
                    if member.size < 0 or member.issparse() or member.isreg() and member.offset_data + member.size > length:
                        raise tarfile.ReadError("a file has more bytes than there are, or is sparse")
                    if member.isreg() and is_image(PurePath(member.name)):
                        self.places[member.name] = member.offset_data, member.size
                    tar.members = []  # type: ignore[attr-defined]  # which would hold every header
                self.file.seek(tar.offset)
                if self.file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("it has no end")
        except (tarfile.TarError, EOFError, OSError, OverflowError, RecursionError, ValueError) as error:
            raise ValueError(f"{printable(url)} is not a tar file, or damaged or cut short ({error}).") from error
        self.names = list(self.places)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, name: str) -> bytes:
        start, length = self.places[name]
        with self._lock:
            self.file.seek(start)
            return self.file.read(length)


def keep_open(n: int) -> None:
    """Lets at least ``n`` shards be open at a time."""
    global _most_open
    _most_open = max(_most_open, n)


class Unreadable(OSError):
    """Of a shard at a URL, or from a program, that cannot be read, for whatever reason but a full disk here."""


def open_shard(url: str) -> Shard:
    """A shard; the last few stay open. ValueError if it is damaged; OSError, of which a remote one's is
    :class:`Unreadable`, if it cannot be read."""
    info = None if REMOTE.match(url) else os.stat(url)
    key = url, info and (info.st_mtime_ns, info.st_size)
    with _LOCK:  # other threads want the same one
        shard = _OPEN.pop(key) if key in _OPEN else Shard(url)
        _OPEN[key] = shard
        while len(_OPEN) > _most_open:
            del _OPEN[next(iter(_OPEN))]
    return shard


def open_image(path: str | Path) -> BinaryIO:
    """The bytes of an image file, or of an image in a shard."""
    return io.BytesIO(open_shard(path.shard).read(path.name)) if isinstance(path, Member) else open(path, "rb")


def file_size(path: str | Path) -> int:
    """The bytes that an image's file has."""
    return open_shard(path.shard).places[path.name][1] if isinstance(path, Member) else os.path.getsize(path)


def file_version(path: str | Path) -> tuple[int, int]:
    """By what an image's file is told from another of its path: its bytes, and when it, or its shard, was changed."""
    if isinstance(path, Member):
        return file_size(path), 0 if REMOTE.match(path.shard) else os.stat(path.shard).st_mtime_ns
    info = os.stat(path)
    return info.st_size, info.st_mtime_ns


def as_member(path: str | Path) -> Member | None:
    """The image in a local shard that a plain path names, as in ``a.tar/NAME``; None if it names none."""
    found = re.fullmatch(r"(.+?\.(?:tar|tgz|tar\.\w+))/(.+)", str(path))
    if not found or not Path(found[1]).is_file() or found[2] not in open_shard(found[1]).places:
        return None
    return Member.of(found[1], found[2])


def members_of(url: str) -> list[str]:
    """The paths of the images in a shard, in its order."""
    return [Member.of(url, name) for name in open_shard(url).names]


def _unpacked(url: str) -> BinaryIO:
    """A file that can seek, with the plain tar of a shard. ValueError if it is damaged; OSError if it cannot be read."""
    file = _copied(url) if REMOTE.match(url) else open(url, "rb")
    unpack = PACKED.get(file.read(2))
    file.seek(0)
    if not unpack:
        return file
    try:
        with file, unpack(file, "rb") as stream:
            return _in_temporary(stream)
    except (zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile, OSError) as error:
        raise ValueError(f"{printable(url)} is damaged or cut short ({error}).") from error


def _copied(url: str) -> BinaryIO:
    from webdataset.gopen import gopen

    try:
        with contextlib.closing(gopen(url)) as stream:
            return _in_temporary(stream)
    except (OSError, ValueError, ImportError) as error:  # some addresses need more packages
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        code = re.search(r"exit (\d+)", str(error))  # of the program; all that it was given may hold a password
        why = f"its program ended with exit code {code[1]}" if code else str(error)
        raise Unreadable(f"{printable(url)} cannot be read ({why}).") from error


def _in_temporary(stream: BinaryIO) -> BinaryIO:
    copy = tempfile.TemporaryFile()
    shutil.copyfileobj(stream, copy, 2**20)
    copy.seek(0)
    return copy
