"""The file format: the head that all files begin with, and one image's file; no models and no images in here.

::

    one image   head, width, height, length of the payload, CRC-8 | payload | CRC-32
    archive     head, start of the index, file's length,   CRC-32 | payload, payload, ... | zlib(index), CRC-32
    head        magic (2), version (1), fingerprint of the tokenizer (2), of the prior (2), arithmetic and patch side (1),
                in floats the probe (2), or with an enhancement layer its fingerprint (2)
    payload     the sharpness and the tokens; with an enhancement layer their length, these, step (1), second grid, CRC-32

Numbers are little-endian; width, height and length are LEB128 (seven bits a byte, the lowest first, the top bit says that
another byte follows). The grid has ceil(H/P) x ceil(W/P) tokens for patches of side P. What comes after the tokens in a
payload may be missing, for an image without a second grid.
"""

import dataclasses
import math
import os
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from homework.core.checks import MAX_PIXELS

# of files that are written: on integers, in floats, and with an enhancement layer. 2, 3 and 4 were these before payloads had
# a sharpness; 1 has the layout of 2, but knows models by their legacy fingerprints. Files in floats of 1 and 2 have no probe
FORMAT, FLOAT_FORMAT, ENHANCED_FORMAT = 5, 6, 7
IMAGE, ARCHIVE = b"\xb51", b"\xb5N"  # no text begins with \xb5: in UTF-8 it only continues a character
SUFFIXES = (".hwi", ".hwa")  # of their names, which may be others


@dataclasses.dataclass(frozen=True)
class ModelPair:
    """By what files know the tokenizer and the prior that wrote them, and that are needed to read them."""

    # of tokenizer and prior, 32 bytes each: 1 the legacy ones of format 1, 2 those of all others
    fingerprints: dict[int, tuple[bytes, bytes]]
    patch: int  # side P of a patch in pixels, 1 to 127
    exact: bool  # whether the prior's arithmetic is on integers
    probe: bytes = b""  # if it is not, the 2 bytes of homework.codec.entropy.probe
    enhancement: bytes = b""  # the fingerprint of the enhancement layer, 32 bytes; without one, nothing
    enhanced: bool = False  # whether they write files with it

    @property
    def version(self) -> int:
        """Of the format of the files that they write."""
        if self.enhanced:
            return ENHANCED_FORMAT
        return FORMAT if self.exact else FLOAT_FORMAT

    def head(self, magic: bytes, version: int | None = None) -> bytes:
        """The first 8 bytes of a file, or 10 with the probe or the enhancement layer. ValueError if it cannot say the patch
        size."""
        version = version or self.version
        if not 1 <= self.patch <= 127:
            raise ValueError(f"Patches have a side of {self.patch} pixels, but a file can say 1 to 127; use a tokenizer "
                             "with smaller ones.")  # fmt: skip
        tokenizer, prior = self.fingerprints[min(version, 2)]
        # the version is in the low four bits and, as a check, 15 minus it in the high ones
        last = self.patch + 128 * (not self.exact)
        more = self.probe if has_probe(version) else self.enhancement[:2] if is_enhanced(version) else b""
        return magic + bytes([version + 16 * (15 - version), *tokenizer[:2], *prior[:2], last]) + more

    def crc(self, size: tuple[int, int], tokens: np.ndarray, version: int | None = None) -> int:
        """CRC-32 of an image's tokens, (h,w) in raster order as uint32, after all that they depend on: both complete
        fingerprints, the head's eighth byte, and the height and width in pixels as uint32. Of (h,w,n), as
        :class:`homework.codec.enhanced_compressor.EnhancedCompressor` has them, the tokens are the first numbers."""
        tokens = tokens[..., 0] if tokens.ndim == 3 else tokens
        known = b"".join(self.fingerprints[min(version or self.version, 2)]) + self.head(IMAGE)[7:8]
        return zlib.crc32(np.ascontiguousarray(tokens, "<u4"), zlib.crc32(known + struct.pack("<II", *size)))


def has_probe(version: int) -> bool:
    """Whether files of this format have a probe."""
    return version in (3, 6)


def is_enhanced(version: int) -> bool:
    """Whether files of this format have an enhancement layer."""
    return version in (4, 7)


def is_sharpened(version: int) -> bool:
    """Whether payloads of this format begin with a sharpness."""
    return version >= 5


def image_file(models: ModelPair, size: tuple[int, int], payload: bytes, crc: int) -> bytes:
    """One image's file: 16 to 22 bytes more than its payload, 2 more in floats or with an enhancement layer. ValueError if
    ``size`` (H,W) is too large."""
    check_size("The image", size)
    header = models.head(IMAGE) + leb128(size[1]) + leb128(size[0]) + leb128(len(payload))
    return header + bytes([crc8(header)]) + payload + struct.pack("<I", crc)


def check_size(name: str, size: tuple[int, int]) -> None:
    """ValueError if an image of ``size`` (H,W) is larger than a file may hold."""
    if min(size) < 1 or math.prod(size) > MAX_PIXELS:
        raise ValueError(f"{name} has {size[0]}x{size[1]} pixels (height x width), but 1 to {MAX_PIXELS:,} are allowed.")


def with_enhancement(tokens: bytes, enhancement: bytes) -> bytes:
    """The payload of a file with an enhancement layer."""
    return leb128(len(tokens)) + tokens + enhancement


def parts(payload: bytes) -> tuple[bytes, bytes]:
    """The inverse of :func:`with_enhancement`. ValueError if the first part is longer than the payload."""
    data = iter(payload)
    try:
        length = read_leb128(data)
    except StopIteration:
        raise ValueError("it has no length") from None
    rest = bytes(data)
    if length > len(rest) or not payload.startswith(leb128(length)):  # the shortest way to say it is the only one
        raise ValueError("the length of its first grid is wrong")
    return rest[:length], rest[length:]


def may_replace(path: str) -> bool:
    """Whether there is no file at ``path``, an empty one, or one that begins as ours do."""
    if not os.path.isfile(path):
        return True
    with open(path, "rb") as file:
        return file.read(2) in (b"", IMAGE, ARCHIVE)


def crc8(data: bytes) -> int:
    """With the polynomial x^8 + x^2 + x + 1; finds every error in up to 8 neighbouring bits."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = 2 * crc ^ (0x107 if crc & 0x80 else 0)
    return crc


def crc32(data: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(data))


def leb128(number: int) -> bytes:
    low = [number >> shift & 127 for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([byte + 128 for byte in low[:-1]] + low[-1:])


def read_leb128(data: Iterator[int]) -> int:
    """Takes its bytes, at most four, from the iterator. StopIteration if they run out."""
    number = 0
    for shift in range(0, 28, 7):
        byte = next(data)
        number += (byte & 127) << shift
        if byte < 128:
            break
    return number
