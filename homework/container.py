"""The file format: tokens as range-coded bytes, one image's file, an archive of many; no models and no images in here.

::

    one image   head, width, height, length of the payload, CRC-8 | payload | CRC-32
    archive     head, place of the index, file's length,   CRC-32 | payload, payload, ... | zlib(index), CRC-32
    head        magic (2), format (1), hash of the tokenizer (2), of the prior (2), arithmetic and patch side (1)

Numbers are little-endian; width, height and length are LEB128 (seven bits a byte, the lowest first, the top bit says that
another byte follows). The grid has ceil(H/P) x ceil(W/P) tokens for patches of side P.
"""

import dataclasses
import itertools
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath, PurePosixPath
from typing import BinaryIO

import numpy as np
from constriction import stream

Categorical, RangeEncoder, RangeDecoder = stream.model.Categorical, stream.queue.RangeEncoder, stream.queue.RangeDecoder

FORMAT = 1
IMAGE, ARCHIVE = b"\xb51", b"\xb5N"  # no text begins with \xb5: in UTF-8 it only continues a character
TOTAL = 2**24  # the frequencies of all tokens together: the precision of the range coder
MAX_PIXELS = 2**26  # of an image: what a header may claim must be bounded
MAX_INDEX = 2**24  # bytes of an archive's index, unpacked
MAX_CHUNK = 255  # images that are coded together
TILES = 64  # of one image that are coded together
SLACK = 64  # bits by which tokens may cost more than their payload has; the coder's own loss is below 33

# --- range-coded tokens ---------------------------------------------------------------------------------------------------
#
# A prior says how likely token k is by a whole number weight[k] >= 0; the weights of all K tokens sum to TOTAL - K, and the
# frequency of k is weight[k] + 1 of TOTAL. constriction gets the weights as float32. Its fixed-point model spreads
# TOTAL - K over the tokens in proportion and then adds 1 to each, so here its scale is exactly 1, every partial sum is a
# whole number below 2^24, which float32 holds exactly, and what it codes with are our integers and nothing else.


def intervals(weights: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a coder has to know of each token: its share of [0, TOTAL).

    Args:
        weights: float32 (N,K), whole numbers >= 0 that sum to TOTAL - K in each row.
        tokens: int64 (N) in [0,K).
    Returns:
        below (N), own (N) int64: the frequencies of all smaller tokens together, and the token's own.
    """
    N, K = weights.shape
    start = np.arange(N) * K
    flat = np.ascontiguousarray(weights).reshape(-1)  # (N,K) -> (N*K)
    cuts = np.stack([start, start + tokens], axis=1).reshape(-1)  # (N,2) -> (2N)
    below = np.add.reduceat(flat, cuts)[::2].astype(np.int64)  # sums of [start, token), of [token, next start), and so on
    below[tokens == 0] = 0  # reduceat takes an empty range for one number
    return below + tokens, flat[start + tokens].astype(np.int64) + 1


def intervals_by_steps(step: Callable[[np.ndarray], np.ndarray], tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The intervals (R,N), (R,N) of tokens (R,N) int64, place by place as :meth:`Streams.decode` finds them again.

    Args:
        step: takes the (R,n) tokens since its last call, n = 0 at first and then 1, and returns the weights (R,K) of the
            place behind them.
    """
    parts = [intervals(step(tokens[:, max(0, n - 1) : n]), tokens[:, n]) for n in range(tokens.shape[1])]
    below, own = (np.stack(part, axis=1) for part in zip(*parts, strict=True))  # N x (R) -> (R,N)
    return below, own


def encode(below: np.ndarray, own: np.ndarray) -> bytes:
    """The payload of a stream of tokens, given their intervals (N), (N) as :func:`intervals` makes them.

    Each token is coded as the middle one of three symbols, below, own and above, which gives the same bytes as coding it
    among all K, at the price of three numbers a token and not K. The payload is the shortest that a decoder which reads
    zeros behind its end takes for these tokens, but for zero bytes that say how much has been coded.
    """
    above = TOTAL - below - own
    first, last = below == 0, above == 0
    encoder = RangeEncoder()
    if (first & (above < 2) | last & (below < 2)).any():  # one or two tokens in all, too few for three symbols
        for parts in np.stack([below, own, above], axis=1):
            if (parts > 0).sum() > 1:
                encoder.encode(int(parts[0] > 0), Categorical(as_weights(parts[parts > 0]), perfect=False))
    else:
        parts = np.stack([below, own, above], axis=1)  # (N,3); where nothing is below or above, the other side is split
        parts[first] = np.stack([own, above - 1, np.ones_like(own)], axis=1)[first]
        parts[last] = np.stack([np.ones_like(own), below - 1, own], axis=1)[last]
        symbols = (1 - first + last).astype(np.int32)
        encoder.encode(symbols, Categorical(perfect=False), as_weights(parts))
    return _shortest(encoder)


def as_weights(frequencies: np.ndarray) -> np.ndarray:
    return (frequencies - 1).astype(np.float32)


def _shortest(encoder: RangeEncoder) -> bytes:
    """Any number in the interval that the encoder arrived at tells its tokens; takes one whose last bytes are zero."""
    words, (lower, width) = encoder.pos()  # finished 32-bit words, and the interval in units of the 64 bits behind them
    n = 4 * words
    sealed = int.from_bytes(encoder.get_compressed().astype(">u4").tobytes().ljust(n + 8, b"\0"), "big")  # one such number
    lower = sealed - (sealed - lower) % 2**64
    for kept in range(9):
        unit = 256 ** (8 - kept)
        number = -(-lower // unit) * unit
        if number < lower + width:
            return number.to_bytes(n + 8, "big")[: n + kept]
    raise AssertionError("unreachable: the unit has come to 1")


class Streams:
    """Decodes payloads in lockstep, a token or several of each at a time.

    Args:
        payloads: what :func:`encode` returned, S of them.
        names: what the payloads are called in messages.
    """

    def __init__(self, payloads: Sequence[bytes], names: Sequence[str]):
        padded = [payload + bytes(-len(payload) % 4 + 8) for payload in payloads]
        self.decoders = [RangeDecoder(np.frombuffer(p, ">u4").astype(np.uint32)) for p in padded]
        self.names = names
        self.bits_left = np.array([8.0 * len(payload) + SLACK for payload in payloads])

    def next(self, weights: np.ndarray) -> np.ndarray:
        """Takes weights (S*T,K) as in :func:`intervals`, T rows for the next T tokens of each stream, and returns the tokens
        (S*T) int64. ValueError, naming the first of them, if a payload cannot hold what has been read from it."""
        R, K = weights.shape
        S, tokens = len(self.decoders), []
        try:
            for row, w in enumerate(weights if K > 1 else ()):
                tokens.append(self.decoders[row * S // R].decode(Categorical(w, perfect=False, lazy=True)))
        except Exception:  # an AssertionError today: the bytes point outside of every token's interval
            raise damaged(self.names[row * S // R], "its tokens cannot be decoded") from None
        tokens = np.array(tokens or [0] * R)
        own = weights[np.arange(R), tokens].astype(np.float64) + 1
        self.bits_left -= (math.log2(TOTAL) - np.log2(own)).reshape(S, -1).sum(axis=1)  # (S*T) -> (S,T)
        if (self.bits_left < 0).any():  # so the time is bounded by the payload, whatever size a header claims
            raise damaged(self.names[self.bits_left.argmin()], "its tokens take more bits than it has")
        return tokens

    def decode(self, step: Callable[[np.ndarray], np.ndarray], R: int, N: int) -> np.ndarray:
        """The next N tokens of R rows, S*T as of :meth:`next`, place by place: (R,N) int64. ``step`` as of
        :func:`intervals_by_steps`. ValueError as of :meth:`next`."""
        tokens = np.empty((R, N), np.int64)
        for n in range(N):
            tokens[:, n] = self.next(step(tokens[:, max(0, n - 1) : n]))
        return tokens


def tiles(grid: tuple[int, int], tile: tuple[int, int]) -> Iterator[tuple[tuple[int, int], list[tuple[int, int]]]]:
    """Cuts a ``grid`` (h,w) that is larger than a prior's into tiles, and yields them in the order in which a payload holds
    them: at most TILES of one size at a time, coded in turns, the first token of each, then the second ones, and so on.

    Args:
        tile: (height,width), the largest grid of the prior.
    Returns:
        ((a,b), places): the size of some tiles, and for each the row and column of its first token in the grid. First come
        the whole tiles in raster order, then those cut off at the right, at the bottom, and at both.
    """
    for a, tops in _sides(grid[0], tile[0]):
        for b, lefts in _sides(grid[1], tile[1]):
            places = itertools.product(tops, lefts)
            while some := list(itertools.islice(places, TILES)):
                yield (a, b), some


def _sides(length: int, part: int) -> list[tuple[int, range]]:
    whole = length - length % part
    return [(part, range(0, whole, part)), (length - whole, range(whole, length, part))]


# --- what both kinds of file begin with -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Models:
    """What wrote a file, and is needed to read it: sha256 of the tokenizer and of the prior (32 bytes each; in a file's head
    the first two), the side P of a patch in pixels (1 to 127), and whether the prior's arithmetic is on integers."""

    tokenizer: bytes
    prior: bytes
    patch: int
    exact: bool

    def head(self, magic: bytes) -> bytes:
        if not 1 <= self.patch <= 127:
            raise ValueError(f"Patches have a side of {self.patch} pixels, but a file can say 1 to 127; use a tokenizer "
                             "with smaller ones.")  # fmt: skip
        # the format's number in the low four bits and, for check, 15 minus it in the high ones
        form = FORMAT + 16 * (15 - FORMAT)
        return magic + bytes([form]) + self.tokenizer[:2] + self.prior[:2] + bytes([self.patch + 128 * (not self.exact)])

    def crc(self, size: tuple[int, int], tokens: np.ndarray) -> int:
        """CRC-32 of an image's tokens, (h,w) in raster order as uint32, behind all that they depend on: both whole hashes,
        the head's last byte, and the height and width in pixels, as uint32."""
        start = zlib.crc32(self.tokenizer + self.prior + self.head(IMAGE)[-1:] + struct.pack("<II", *size))
        return zlib.crc32(np.ascontiguousarray(tokens, "<u4"), start)


def damaged(name: str, how: str) -> ValueError:
    return ValueError(f"{name} is damaged: {how}.")


def check_size(name: str, size: tuple[int, int]) -> None:
    """ValueError if an image of ``size`` (H,W) is larger than a file may hold."""
    if min(size) < 1 or math.prod(size) > MAX_PIXELS:
        raise ValueError(f"{name} has {size[0]}x{size[1]} pixels (height x width), but 1 to {MAX_PIXELS:,} are allowed.")


def crc8(data: bytes) -> int:
    """With the polynomial x^8 + x^2 + x + 1; finds every error in up to 8 neighbouring bits."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = 2 * crc ^ (0x107 if crc & 0x80 else 0)
    return crc


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


# --- writing --------------------------------------------------------------------------------------------------------------


def image_file(models: Models, size: tuple[int, int], payload: bytes, crc: int) -> bytes:
    """One image's file: 16 to 22 bytes more than its payload. ValueError if ``size`` (H,W) is too large."""
    check_size("The image", size)
    header = models.head(IMAGE) + leb128(size[1]) + leb128(size[0]) + leb128(len(payload))
    return header + bytes([crc8(header)]) + payload + struct.pack("<I", crc)


class ArchiveWriter:
    """Writes an archive chunk by chunk to a ``file`` that can seek; :meth:`close` makes it whole."""

    HEADER = struct.Struct("<8sQQ")  # head, place of the index, length of the file; a CRC-32 follows

    def __init__(self, file: BinaryIO, models: Models):
        self.file, self.models = file, models
        self.chunks, self.names, self.columns = [], [], []
        self.index_size = 8
        file.write(bytes(self.HEADER.size + 4))

    def add(self, names: Sequence[str], sizes: Sequence, payloads: Sequence[bytes], crcs: Sequence[int]) -> None:
        """Appends images that were coded together, at most MAX_CHUNK: their names, (H,W), payloads and CRC-32.
        ValueError if a name is not a safe relative path, a size is too large, or the archive has grown too large."""
        for name, size in zip(names, sizes, strict=True):
            check_name(name)
            check_size(name, size)
        self.chunks.append(len(names))
        self.names += [name.encode("utf-8", "surrogateescape") for name in names]  # a file's name need not be UTF-8
        self.columns += [(*size, len(p), crc) for size, p, crc in zip(sizes, payloads, crcs, strict=True)]
        self.index_size += sum(map(len, self.names[-len(names) :])) + 17 * len(names) + 1
        if self.index_size > MAX_INDEX:
            raise ValueError(f"These are too many images for one archive ({len(self.names):,}); make several of them.")
        for payload in payloads:
            self.file.write(payload)

    def close(self) -> None:
        """Writes the index, and then the header. ValueError if a name occurs twice."""
        if len(set(self.names)) < len(self.names):
            raise ValueError("An archive cannot hold two images of one name.")
        at = self.file.tell()
        counts = struct.pack("<II", len(self.names), len(self.chunks)) + bytes(self.chunks)
        columns = np.array(self.columns, "<u4").T.copy()  # (4,n)
        planes = columns.view(np.uint8).reshape(4, -1, 4).transpose(0, 2, 1)  # (4,4n) -> (4,n,4) -> (4,4,n)
        index = zlib.compress(counts + planes.tobytes() + b"\0".join(self.names), 9)  # like bytes side by side pack better
        self.file.write(index + struct.pack("<I", zlib.crc32(index)))
        header = self.HEADER.pack(self.models.head(ARCHIVE), at, self.file.tell())
        self.file.seek(0)
        self.file.write(header + struct.pack("<I", zlib.crc32(header)))


def check_name(name: str) -> None:
    """ValueError if ``name`` could lead out of the folder that an archive is unpacked into, or stands for the same file as
    another (``./a`` and ``a``)."""
    for path in (PurePosixPath(name), PurePath(name)):  # on Windows the second also knows drives and backslashes
        if path.as_posix() != name or not path.parts or path.anchor or ".." in path.parts or "\0" in name:
            raise ValueError(f"{name!r} cannot be a name in an archive: it must be a relative path without '..'.")


def may_replace(path: str) -> bool:
    """Whether there is no file at ``path``, an empty one, or one that begins as ours do."""
    if not os.path.isfile(path):
        return True
    with open(path, "rb") as file:
        return file.read(2) in (b"", IMAGE, ARCHIVE)


# --- reading --------------------------------------------------------------------------------------------------------------


class Reader:
    """A file of either kind, checked but for the payloads, of which none has been read; one image is an archive of one.

    Attributes: ``kind`` (IMAGE or ARCHIVE), ``head`` (8 bytes), ``patch``, ``exact``, ``length`` of the file in bytes; and a
    list each of ``names`` (one image has the name ""), ``sizes`` (H,W), ``lengths`` of the payloads in bytes, ``starts``,
    ``crcs``, and ``chunks``, ranges of images that were coded together.

    Args:
        file: opened for reading bytes; must be able to seek.
        name: what messages call it.
    Raises:
        ValueError: it is none of this package, of a newer version, cut short, too long, or damaged: the message says which.
    """

    def __init__(self, file: BinaryIO, name: str = "The file"):
        self.file, self.name = file, name
        self.length = file.seek(0, 2)
        file.seek(0)
        start = file.read(64)  # a header has at most 28
        self.kind, self.head, form = start[:2], start[:8], start[2:3]
        if not any(magic.startswith(self.kind) for magic in (IMAGE, ARCHIVE)):
            raise ValueError(f"{name} is no file that homework.compress wrote.")
        if form and (form[0] // 16 != 15 - form[0] % 16 or form[0] % 16 < FORMAT):
            raise damaged(name, "its header is not as it was written")
        if form and form[0] % 16 > FORMAT:
            raise ValueError(
                f"{name} was written by a newer version of this package: it is of format {form[0] % 16}, but this version "
                f"reads up to {FORMAT}; update it."
            )
        self.patch, self.exact = (start[7] % 128, start[7] < 128) if len(start) > 7 else (0, False)
        self._read_image(start) if self.kind == IMAGE else self._read_archive(start)
        for size in self.sizes:
            check_size(self.name, size)
        if not self.patch:
            raise damaged(name, "its header is not as it was written")

    def _read_image(self, start: bytes) -> None:
        data = iter(start[8:])
        try:
            width, height, length = read_leb128(data), read_leb128(data), read_leb128(data)
            check = next(data)
        except StopIteration:
            raise self._cut_short() from None
        at = len(start) - len(list(data))
        if crc8(start[: at - 1]) != check:
            raise damaged(self.name, "its header is not as it was written")
        self._check_length(at + length + 4)
        self.file.seek(at + length)
        self.names, self.sizes, self.lengths, self.starts = [""], [(height, width)], [length], [at]
        self.crcs = list(struct.unpack("<I", self.file.read(4)))
        self.chunks = [range(1)]

    def _read_archive(self, start: bytes) -> None:
        form = ArchiveWriter.HEADER
        if len(start) < form.size + 4:
            raise self._cut_short()
        if struct.pack("<I", zlib.crc32(start[: form.size])) != start[form.size : form.size + 4]:
            raise damaged(self.name, "its header is not as it was written")
        _, at, length = form.unpack_from(start)
        self._check_length(length)
        if not form.size + 4 <= at <= length - 4 or length - at > 2 * MAX_INDEX:
            raise damaged(self.name, "its header is not as it was written")
        self.file.seek(at)
        packed = self.file.read(length - at)
        if struct.pack("<I", zlib.crc32(packed[:-4])) != packed[-4:]:
            raise damaged(self.name, "its index is not as it was written")
        try:
            self._read_index(_unzip(packed[:-4]), form.size + 4, at)
        except (ValueError, struct.error, zlib.error) as error:
            raise damaged(self.name, f"its index is none ({error})") from None

    def _read_index(self, index: bytes, first: int, end: int) -> None:
        n, n_chunks = struct.unpack_from("<II", index)
        counts = np.frombuffer(index, np.uint8, n_chunks, 8).astype(np.int64)
        planes = np.frombuffer(index, np.uint8, 16 * n, 8 + n_chunks).reshape(4, 4, n)
        columns = np.ascontiguousarray(planes.transpose(0, 2, 1)).view("<u4")[..., 0].astype(np.int64)  # (4,4,n) -> (4,n)
        self.names = index[8 + n_chunks + 16 * n :].decode("utf-8", "surrogateescape").split("\0")
        height, width, self.lengths, self.crcs = columns.tolist()
        self.sizes = list(zip(height, width, strict=True))
        ends = first + np.cumsum(columns[2])
        self.starts = (ends - columns[2]).tolist()
        stops = np.cumsum(counts).tolist()
        self.chunks = [range(a, b) for a, b in zip([0, *stops], stops, strict=False)]
        unique = n > 0 and len(set(self.names)) == len(self.names) == n
        if not (unique and counts.all() and stops[-1:] == [n] and ends[-1] == end):
            raise ValueError("its parts do not fit each other")
        for name in self.names:
            check_name(name)

    def _check_length(self, said: int) -> None:
        if self.length < said:
            raise self._cut_short(said)
        if self.length > said:
            raise ValueError(f"{self.name} is longer than it says: it has {self.length:,} bytes, not {said:,}.")

    def _cut_short(self, said: int | None = None) -> ValueError:
        of = f" of {said:,}" if said else ""
        return ValueError(f"{self.name} is cut short: it has {self.length:,}{of} bytes.")

    def check(self, models: Models) -> None:
        """ValueError, saying which, if the file was written with another tokenizer, prior or arithmetic than ``models``."""
        own = models.head(self.kind)
        for what, part in ("tokenizer", slice(3, 5)), ("prior", slice(5, 7)):
            if own[part] != self.head[part]:
                raise ValueError(
                    f"{self.name} was written with another {what}, whose hash begins with {self.head[part].hex()}; "
                    f"that of the one given begins with {own[part].hex()}; name the {what} that wrote it."
                )
        if own != self.head:
            raise ValueError(f"{self.name} was written with another patch size or arithmetic than that of the models given.")

    def grid(self, i: int) -> tuple[int, int]:
        """(h,w) in tokens of image ``i``."""
        return tuple(-(-side // self.patch) for side in self.sizes[i])

    def label(self, i: int) -> str:
        """What messages call image ``i``."""
        return f"{self.name}, image {self.names[i]}," if self.names[i] else self.name

    def payload(self, i: int) -> bytes:
        """The coded tokens of image ``i``; only they are read."""
        self.file.seek(self.starts[i])
        return self.file.read(self.lengths[i])

    def check_tokens(self, i: int, models: Models, tokens: np.ndarray) -> None:
        """ValueError if ``tokens`` (h,w) are not those that image ``i`` was written with."""
        if models.crc(self.sizes[i], tokens) != self.crcs[i]:
            raise ValueError(f"{self.label(i)} is damaged, or of other models: the checksum of its tokens is wrong.")


def _unzip(data: bytes) -> bytes:
    """ValueError if more than MAX_INDEX bytes come out, or the stream does not end where the data does."""
    unpacker = zlib.decompressobj()
    index = unpacker.decompress(data, MAX_INDEX)
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("it is larger than allowed, or has no end")
    return index
