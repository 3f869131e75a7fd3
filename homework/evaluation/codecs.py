"""The codecs that ours is measured against: JPEG, WebP, AVIF and JPEG XL, each at its slowest and best setting."""

import dataclasses
import importlib
import io
import re
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, features


def jpeg_payload(data: bytes) -> int:
    """Bytes of the entropy-coded scans, without the tables that decode them."""
    at, total = 2, 0
    while at + 4 <= len(data):
        marker, at = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xDA:  # start of scan: it lasts until a marker that is neither a stuffed zero nor a restart
            end = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL).search(data, at)
            end = end.start() if end else len(data)
            total, at = total + end - at, end
    return total


def webp_payload(data: bytes) -> int:
    """Bytes of the RIFF chunks that hold the image."""
    at, total = 12, 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        total += length * (data[at : at + 4] in (b"VP8 ", b"VP8L", b"ALPH"))
        at += 8 + length + length % 2
    return total


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """The type and contents of each box of an ISO base media file (ISO/IEC 14496-12, section 4.2)."""
    at, found = 0, []
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        length, start = (int.from_bytes(data[at + 8 : at + 16]), 16) if length == 1 else (length, 8)
        end = at + length if length else len(data)
        found.append((data[at + 4 : at + 8], data[at + start : end]))
        at = max(end, at + 8)
    return found


def avif_payload(data: bytes) -> int:
    """Bytes of the AV1 stream, which is the media data box (Exif would be there too, but our files have none)."""
    return sum(len(contents) for kind, contents in boxes(data) if kind == b"mdat")


def jxl_payload(data: bytes) -> int:
    """Bytes of the codestream: a bare one, or one in boxes (where a part's first four bytes count the parts)."""
    if data[:2] == b"\xff\x0a":
        return len(data)
    return sum(len(contents) - 4 * (kind == b"jxlp") for kind, contents in boxes(data) if kind in (b"jxlc", b"jxlp"))


@dataclasses.dataclass(frozen=True)
class Codec:
    """One of Pillow's codecs."""

    name: str
    format: str  # Pillow's name of it
    options: dict  # for Pillow, without the quality; one thread each, since several images are coded at the same time
    qualities: tuple[int, ...]  # increasing; for 150x100 pixels from about 21 (WebP, AVIF and JPEG XL: 25) to 32 dB
    payload: Callable[[bytes], int]  # how many bytes of a file are the coded image, without headers and container
    description: str  # of the options, for the report

    def encode(self, image: np.ndarray, quality: int) -> bytes:  # (H,W,3) uint8 -> its file
        file = io.BytesIO()
        Image.fromarray(image).save(file, self.format, quality=quality, **self.options)
        return file.getvalue()

    def decode(self, data: bytes) -> np.ndarray:  # a file -> (H,W,3) uint8
        with Image.open(io.BytesIO(data), formats=[self.format]) as image:
            return np.array(image.convert("RGB"))

    def timed(self, image: np.ndarray, quality: int) -> tuple[bytes, np.ndarray, float, float]:
        """The file, the decoded image, and the seconds of this thread's processor time that encoding and decoding took."""
        start = time.thread_time()
        data = self.encode(image, quality)
        middle = time.thread_time()
        return data, self.decode(data), middle - start, time.thread_time() - middle

    def nearest(self, image: np.ndarray, n_bytes: int) -> tuple[int, bytes]:
        """The quality and the file nearest to ``n_bytes``, of those that a bisection tries."""
        tried = self.bisect(image, lambda file: len(file) < n_bytes)
        return min(tried.items(), key=lambda item: (abs(len(item[1]) - n_bytes), item[0]))

    def within(self, image: np.ndarray, sizes: Sequence[int],
               tried: dict[int, bytes] | None = None) -> list[tuple[int, bytes]]:  # fmt: skip
        """For each of the sizes in bytes the quality and the file that is the largest within it, of those that bisections
        try, and of those ``tried`` before, to which they are added; the smallest file where none is."""
        tried = {} if tried is None else tried
        for size in sizes:
            self.bisect(image, lambda file, size=size: len(file) <= size, tried)
        ordered = sorted(tried.items(), key=lambda item: (len(item[1]), -item[0]))
        return [max([ordered[0], *(item for item in ordered if len(item[1]) <= size)], key=lambda item: len(item[1]))
                for size in sizes]  # fmt: skip

    def as_good(self, image: np.ndarray, mse: float) -> tuple[int, bytes]:
        """The lowest quality of a bisection whose error (pixels from 0 to 1) is at most ``mse``, else 100; and its file."""

        def worse(file: bytes) -> bool:
            return np.square(self.decode(file) / 255.0 - image / 255.0).mean() > mse

        tried = sorted(self.bisect(image, worse).items())
        return next((item for item in tried if not worse(item[1])), tried[-1])

    def bisect(self, image: np.ndarray, too_low: Callable[[bytes], bool],
               tried: dict[int, bytes] | None = None) -> dict[int, bytes]:  # fmt: skip
        """The files by quality that a bisection tries on its way to where ``too_low`` changes, added to those of ``tried``,
        which are not made again."""
        low, high, tried = int(self.format == "JPEG"), 100, {} if tried is None else tried
        while low <= high:
            middle = (low + high) // 2
            if middle not in tried:
                tried[middle] = self.encode(image, middle)
            low, high = (middle + 1, high) if too_low(tried[middle]) else (low, middle - 1)
        return tried


CODECS = (
    Codec("JPEG", "JPEG", {"subsampling": "4:2:0", "optimize": True}, (2, 4, 6, 8, 12, 17, 24, 34, 55), jpeg_payload,
          "4:2:0, optimized Huffman tables"),
    Codec("WebP", "WEBP", {"method": 6}, (0, 1, 2, 5, 10, 18, 30, 50), webp_payload, "method 6"),
    Codec("AVIF", "AVIF", {"speed": 0, "max_threads": 1}, (1, 6, 12, 18, 25, 33, 44), avif_payload, "speed 0"),
    Codec("JPEG XL", "JXL", {"effort": 9, "num_threads": 1}, (0, 4, 9, 15, 25, 40, 65), jxl_payload, "effort 9"),
)  # fmt: skip


def available() -> tuple[list[Codec], list[str]]:
    """The codecs that work with this Pillow, and a sentence about each that does not."""
    missing = {}
    if not features.check("webp"):
        missing["WebP"] = "this Pillow was built without it"
    if "avif" not in features.modules or not features.check("avif"):
        missing["AVIF"] = "Pillow has it from version 11.3 on, where it was built with libavif"
    try:
        importlib.import_module("pillow_jxl")  # registers the format
    except ImportError:
        missing["JPEG XL"] = "it needs the package pillow-jxl-plugin, which is not installed"
    return [c for c in CODECS if c.name not in missing], [f"{name} is left out: {why}." for name, why in missing.items()]
