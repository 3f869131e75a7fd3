"""An archive of many images: writing it, and reading files of either kind."""

import os
import posixpath
import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import BinaryIO

import numpy as np

from homework.codec.format import (
    ARCHIVE,
    ENHANCED_FORMAT,
    FORMAT,
    IMAGE,
    ModelPair,
    check_size,
    crc8,
    crc32,
    has_probe,
    is_enhanced,
    is_sharpened,
    parts,
    read_leb128,
)
from homework.codec.range_coder import OTHER_FLOATS, damaged
from homework.core.files import printable

MAX_INDEX = 2**24  # bytes of an archive's index, unpacked
MAX_CHUNK = 255  # images that are coded together
PLACES = struct.Struct("<QQ")  # in an archive, after the head: start of the index, length of the file; a CRC-32 follows
MAX_NAME, MAX_FOLDERS, MAX_PART = 4095, 255, 255  # bytes of a name, folders in it, and bytes of each of these
NOT_IN_NAMES = (0, *b"\\:") if os.name == "nt" else (0,)  # on Windows there are drives and backslashes


class ArchiveWriter:
    """Writes an archive chunk by chunk to a ``file`` that can seek; :meth:`close` completes it."""

    def __init__(self, file: BinaryIO, models: ModelPair):
        self.file, self.models = file, models
        self.chunks, self.names, self.columns = [], [], []
        self.index_size = 8
        file.write(bytes(first_payload(models.head(ARCHIVE))))

    def add(self, names: Sequence[str], sizes: Sequence, payloads: Sequence[bytes], crcs: Sequence[int]) -> None:
        """Appends images that were coded together, at most MAX_CHUNK: their names, (H,W), payloads and CRC-32.
        ValueError for a name that :func:`check_names` refuses, or if a size or the archive is too large."""
        check_names(encoded := encode_names(names))
        for name, size in zip(names, sizes, strict=True):
            check_size(printable(name), size)
        self.chunks.append(len(names))
        self.names += encoded
        self.columns += [(*size, len(p), crc) for size, p, crc in zip(sizes, payloads, crcs, strict=True)]
        self.index_size += entries_size(encoded) + 1
        self._check_size()
        self.file.writelines(payloads)

    def check_targets(self, more: Sequence[str] = ()) -> None:
        """ValueError if the names so far, and ``more``, cannot all be unpacked, or are too many."""
        target_names([*(name.decode("utf-8", "surrogateescape") for name in self.names), *more])
        self._check_size(encode_names(more))

    def _check_size(self, more: Sequence[bytes] = ()) -> None:
        if self.index_size + entries_size(more) > MAX_INDEX:
            n = len(self.names) + len(more)
            raise ValueError(f"These are too many images for one archive ({n:,}); make several of them.")

    def close(self) -> None:
        """Writes the index, and then the header. ValueError as in :meth:`check_targets`."""
        self.check_targets()
        start = self.file.tell()
        counts = struct.pack("<II", len(self.names), len(self.chunks)) + bytes(self.chunks)
        columns = np.array(self.columns, "<u4").T.copy()  # (4,n)
        planes = columns.view(np.uint8).reshape(4, -1, 4).transpose(0, 2, 1)  # (4,4n) -> (4,n,4) -> (4,4,n)
        index = zlib.compress(counts + planes.tobytes() + b"\0".join(self.names), 9)  # like bytes side by side pack better
        self.file.write(index + crc32(index))
        header = self.models.head(ARCHIVE) + PLACES.pack(start, self.file.tell())
        self.file.seek(0)
        self.file.write(header + crc32(header))


def first_payload(head: bytes) -> int:
    """Where it starts in an archive."""
    return len(head) + PLACES.size + 4


def check_names(names: Sequence[bytes]) -> None:
    """ValueError if one could lead out of the folder that an archive is unpacked into, has, like ``./a``, a twin, or is
    longer than a file's name can be."""
    for name in names:
        parts = name.split(b"/")
        fits = len(name) <= MAX_NAME and len(parts) <= MAX_FOLDERS + 1 and max(map(len, parts)) <= MAX_PART
        if not fits or any(c in name for c in NOT_IN_NAMES) or not {b"", b".", b".."}.isdisjoint(parts):
            shown = printable(name.decode("utf-8", "surrogateescape"))
            raise ValueError(f"'{shown[:60]}{'...' * (len(shown) > 60)}' cannot be a name in an archive: it must be a "
                             f"relative path without '..', of at most {MAX_NAME:,} bytes, {MAX_PART} for each part, and "
                             f"{MAX_FOLDERS} folders.")  # fmt: skip


def encode_names(names: Sequence[str]) -> list[bytes]:
    """As they are in an index; a file's name need not be UTF-8."""
    return [name.encode("utf-8", "surrogateescape") for name in names]


def entries_size(names: Sequence[bytes]) -> int:
    """Bytes of the index that images of these names take, but for a byte each chunk."""
    return sum(map(len, names)) + 17 * len(names)


def target_names(names: Sequence[str]) -> list[str]:
    """What the images are called when an archive is unpacked: a.jpg becomes a.png; but where this gives two of them one
    name, or makes one the folder of another, all keep theirs: a.jpg.png. ValueError if this is no better."""
    for targets in [posixpath.splitext(name)[0] + ".png" for name in names], [f"{name}.png" for name in names]:
        # sorted in this way, whatever is in a folder comes right after a file of the folder's name
        ordered = sorted(target.replace("/", "\0") for target in targets)
        clashes = [a for a, b in pairwise(ordered) if b == a or b.startswith(f"{a}\0")]
        if not clashes:
            break
    else:
        name = printable(clashes[0].replace("\0", "/").removesuffix(".png"))
        raise ValueError(f"An archive cannot hold two images of one name, or one in a folder of another's: {name}.")
    check_names([target.encode("utf-8", "surrogateescape") for target in targets])
    return targets


class Reader:
    """A ``file`` of either kind that can seek, checked but for the payloads, which stay unread; one image is an archive of
    one. ValueError, naming it ``name``, if another program or a newer version wrote it, or if it is cut short, too long or
    damaged.

    ``preview`` reads the first grid alone where there is a second one.

    Attributes: ``kind`` (IMAGE or ARCHIVE), ``head`` (8 bytes, or 10 with a probe or an enhancement layer), ``version`` of
    the format, ``enhanced`` (with that layer), ``sharpened`` (payloads begin with a sharpness), ``patch``, ``exact``,
    ``length`` of the file in bytes; and a list each of ``names`` (one image has the name ""), ``sizes`` (H,W), ``lengths``
    of the payloads in bytes, ``starts``, ``crcs``, and ``chunks``, ranges of images that were coded together.
    """

    def __init__(self, file: BinaryIO, name: str = "The file", preview: bool = False):
        self.file, self.name, self.preview = file, (name := printable(name)), preview
        self.length = file.seek(0, 2)
        file.seek(0)
        start = file.read(64)  # a header has at most 30
        self.kind, version = start[:2], start[2:3]
        if not any(magic.startswith(self.kind) for magic in (IMAGE, ARCHIVE)):
            raise ValueError(f"{name} is not a file that homework.compress wrote.")
        if version and (version[0] // 16 != 15 - version[0] % 16 or not version[0] % 16):
            raise self._changed("header")
        self.version = version[0] % 16 if version else FORMAT
        self.enhanced, self.sharpened = is_enhanced(self.version), is_sharpened(self.version)
        self.head = start[: 10 if self.enhanced or has_probe(self.version) else 8]
        if self.version > ENHANCED_FORMAT:
            raise ValueError(f"{name} was written by a newer version of this package: it is of format {self.version}, but "
                             f"this version reads up to {ENHANCED_FORMAT}; update it.")  # fmt: skip
        self.patch, self.exact = (start[7] % 128, start[7] < 128) if len(start) > 7 else (0, False)
        self._read_image(start) if self.kind == IMAGE else self._read_archive(start)
        for size in self.sizes:
            check_size(self.name, size)
        if not self.patch:
            raise self._changed("header")

    def _read_image(self, start: bytes) -> None:
        data = iter(start[len(self.head) :])
        try:
            width, height, length = read_leb128(data), read_leb128(data), read_leb128(data)
            check = next(data)
        except StopIteration:
            raise self._cut_short() from None
        at = len(start) - len(list(data))
        if crc8(start[: at - 1]) != check:
            raise self._changed("header")
        self._check_length(at + length + 4)
        self.file.seek(at + length)
        self.names, self.sizes, self.lengths, self.starts = [""], [(height, width)], [length], [at]
        self.crcs, self.chunks = list(struct.unpack("<I", self.file.read(4))), [range(1)]

    def _read_archive(self, start: bytes) -> None:
        first = first_payload(self.head)
        if len(start) < first:
            raise self._cut_short()
        if crc32(start[: first - 4]) != start[first - 4 : first]:
            raise self._changed("header")
        at, length = PLACES.unpack_from(start, len(self.head))
        self._check_length(length)
        if not first <= at <= length - 4 or length - at > 2 * MAX_INDEX:
            raise self._changed("header")
        self.file.seek(at)
        packed = self.file.read(length - at)
        if crc32(packed[:-4]) != packed[-4:]:
            raise self._changed("index")
        unpacker = zlib.decompressobj()
        try:
            counts = unpacker.decompress(packed[:-4], 8)
            n, n_chunks = struct.unpack("<II", counts)
            # zlib takes two bits at least for a name that is not a copy of another
            if not 0 < n_chunks <= n <= 4 * len(packed):
                raise ValueError(f"it claims {n:,} images in {n_chunks:,} chunks, for which it is too short")
            index = unpacker.decompress(unpacker.unconsumed_tail, min(MAX_INDEX, (17 + 1 + MAX_NAME) * n))
            if not unpacker.eof or unpacker.unused_data:
                raise ValueError("it is larger than allowed, or has no end")
            self._read_index(index, n, n_chunks, at)
        except (ValueError, struct.error, zlib.error) as error:
            raise damaged(self.name, f"its index cannot be read ({error})") from None

    def _read_index(self, index: bytes, n: int, n_chunks: int, end: int) -> None:
        counts = np.frombuffer(index, np.uint8, n_chunks).astype(np.int64)
        planes = np.frombuffer(index, np.uint8, 16 * n, n_chunks).reshape(4, 4, n)
        columns = np.ascontiguousarray(planes.transpose(0, 2, 1)).view("<u4")[..., 0].astype(np.int64)  # (4,4,n) -> (4,n)
        names = index[n_chunks + 16 * n :].split(b"\0")
        ends = first_payload(self.head) + np.cumsum(columns[2])
        stops = np.cumsum(counts).tolist()
        unique = len(set(names)) == len(names) == n
        if not (unique and counts.all() and stops[-1:] == [n] and ends[-1] == end):
            raise ValueError("its parts do not fit each other")
        check_names(names)
        self.names = [name.decode("utf-8", "surrogateescape") for name in names]
        *sides, self.lengths, self.crcs = columns.tolist()
        self.sizes = list(zip(*sides, strict=True))
        self.starts = (ends - columns[2]).tolist()
        self.chunks = [range(a, b) for a, b in zip([0, *stops], stops, strict=False)]

    def _check_length(self, claimed: int) -> None:
        if self.length < claimed:
            raise self._cut_short(f" of {claimed:,}")
        if self.length > claimed:
            raise ValueError(f"{self.name} is longer than it says: it has {self.length:,} bytes, not {claimed:,}.")

    def _cut_short(self, of: str = "") -> ValueError:
        return ValueError(f"{self.name} is cut short: it has {self.length:,}{of} bytes.")

    def _changed(self, part: str) -> ValueError:
        return damaged(self.name, f"its {part} is not as it was written")

    def check(self, models: ModelPair) -> None:
        """ValueError, saying which, if the file was written with another tokenizer, prior, enhancement layer or arithmetic
        than ``models``, or in floats that this machine does not compute."""
        wanted = models.head(self.kind, self.version)
        for what, part in ("tokenizer", slice(3, 5)), ("prior", slice(5, 7)):
            if wanted[part] != self.head[part]:
                of_format = " in files of format 1" * (self.version == 1)
                raise ValueError(f"{self.name} was written with another {what}, whose fingerprint{of_format} begins with "
                                 f"{self.head[part].hex()}; that of the one given begins with {wanted[part].hex()}; name "
                                 f"the {what} that wrote it.")  # fmt: skip
        if wanted[:8] != self.head[:8]:
            raise ValueError(f"{self.name} was written with another patch size or arithmetic than that of the models given.")
        if self.enhanced:
            if wanted != self.head and not self.preview:
                own = f", not {wanted[8:].hex()}" if models.enhancement else ""
                raise ValueError(f"{self.name} was written with an enhancement layer whose fingerprint begins with "
                                 f"{self.head[8:].hex()}{own}; name it by --enhancement, or decompress a preview, without "
                                 "it, by --preview.")  # fmt: skip
        elif wanted != self.head:
            raise ValueError(f"{self.name} was written by a machine whose floats differ from this one's (another processor, "
                             "--device or version of PyTorch); decompress it there, or compress the images under an "
                             "AutoregressiveModel, whose integers are the same on all machines.")  # fmt: skip

    def check_tokens(self, i: int, models: ModelPair, tokens: np.ndarray) -> None:
        """ValueError if ``tokens`` (h,w) are not those that image ``i`` was written with."""
        if models.crc(self.sizes[i], tokens, self.version) != self.crcs[i]:
            or_else = ["of other models", *[OTHER_FLOATS] * (not self.exact)]
            raise damaged(self.label(i), "the checksum of its tokens is wrong", *or_else)

    def grid(self, i: int) -> tuple[int, int]:
        """(h,w) in tokens of image ``i``."""
        return tuple(-(-side // self.patch) for side in self.sizes[i])

    def label(self, i: int) -> str:
        """What messages call image ``i``."""
        return f"{self.name}, image {printable(self.names[i])}," if self.names[i] else self.name

    def payload(self, i: int) -> bytes:
        """The coded tokens of image ``i``. ValueError as of :meth:`stored`."""
        return self.parts(i)[0]

    def parts(self, i: int) -> tuple[bytes, bytes]:
        """The coded tokens of image ``i``, and its coded second grid, empty if it has none. ValueError as of
        :meth:`stored`."""
        if not self.enhanced:
            return self.stored(i), b""
        try:
            return parts(self.stored(i))
        except ValueError as error:
            raise damaged(self.label(i), str(error)) from None

    def stored(self, i: int) -> bytes:
        """All that is coded of image ``i``; only that is read. ValueError if the file has been cut short meanwhile, or, for
        what is made of it, if it is damaged."""
        self.file.seek(self.starts[i])
        if len(data := self.file.read(self.lengths[i])) < self.lengths[i]:
            raise damaged(self.label(i), "it has been cut short while it was read")
        return data
