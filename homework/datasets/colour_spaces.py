"""ICC profiles for images whose files say otherwise what their numbers mean: PNG by gAMA and cHRM, PNG and AVIF by the code
points of ITU-T H.273."""

import functools
import struct
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

WHITE = (0.3127, 0.3290)  # D65; chromaticities are x and y of CIE 1931
SRGB = (*WHITE, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # of white, red, green and blue
PRIMARIES = {
    1: SRGB,
    2: SRGB,  # not said
    5: (*WHITE, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*WHITE, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (*WHITE, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (*WHITE, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (*WHITE, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}  # fmt: skip
# exponents; None is sRGB's curve, which is also that of video on a screen
TRANSFERS = {1: None, 2: None, 4: 2.2, 5: 2.8, 6: None, 8: 1.0, 13: None, 14: None, 15: None}
D50 = np.array([0.9642, 1, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
USUAL = 0.45455, 0.005  # of gAMA, and how far from it sRGB's curve is still meant
HEAD = 1 << 16  # bytes in which an AVIF file describes its image
GREYS = ("1", "L", "LA", "I;16", "I")


class Space(NamedTuple):
    """White, red, green and blue as chromaticities, and the exponent from numbers to light; None for sRGB's curve."""

    chromaticities: tuple[float, ...]
    exponent: float | None


def profile_of(image: Image.Image) -> bytes | None:
    """The ICC profile of an image that has none of its own, in its current frame; None if it is, or may be, in sRGB.
    ValueError, which says what it has, for code points of which no profile can be made, such as those of HDR."""
    if (points := code_points(image)) is not None:
        primaries, transfer = points
        if primaries not in PRIMARIES or transfer not in TRANSFERS:
            hdr = "brightness beyond white (HDR), " * (transfer in (16, 18))
            raise ValueError(f"{hdr}colour primaries {primaries} and transfer characteristics {transfer} of ITU-T H.273")
        space = Space(PRIMARIES[primaries], TRANSFERS[transfer])
    elif image.format == "PNG" and "srgb" not in image.info:
        gamma, chromaticities = image.info.get("gamma") or USUAL[0], tuple(image.info.get("chromaticity", SRGB))
        chromaticities = chromaticities if len(chromaticities) == len(SRGB) else SRGB  # of a damaged file
        usual = abs(gamma - USUAL[0]) < USUAL[1] or not 0.01 < gamma < 100
        space = Space(chromaticities, None if usual else 1 / gamma)
    else:
        return None
    if image.mode in GREYS:
        return None if space.exponent is None else profile(Space(SRGB, space.exponent), grey=True)
    return None if space == Space(SRGB, None) else profile(space)


def code_points(image: Image.Image) -> tuple[int, int] | None:
    """Colour primaries and transfer characteristics, as the file says before its pixels; None if it does not, or has been
    read and closed."""
    file = getattr(image, "fp", None)
    if image.format not in ("PNG", "AVIF") or file is None or getattr(file, "closed", False):
        return None
    at = file.tell()
    try:
        file.seek(0)
        if image.format == "AVIF":
            _, found, points = file.read(HEAD).partition(b"colrnclx")
            return struct.unpack(">HH", points[:4]) if found and len(points) >= 4 else None
        points = chunk(file, b"cICP")
        return (points[0], points[1]) if len(points) == 4 else None
    finally:
        file.seek(at)


def chunk(file: IO[bytes], name: bytes) -> bytes:
    """The data of that chunk of a PNG file, if it comes before the pixels; b"" if there is none."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == name:
            return file.read(length) if length < HEAD else b""
        if kind == b"IDAT":
            break
        file.seek(length + 4, 1)
    return b""


@functools.lru_cache(16)
def profile(space: Space, grey: bool = False) -> bytes:
    """A matrix profile of RGB, or one of ``grey``, as ICC.1:2001 has them. None of them if the chromaticities are of no
    colours: then b""."""
    x = np.linspace(0, 1, 4096)
    srgb = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)  # IEC 61966-2-1
    levels = np.rint(65535 * (srgb if space.exponent is None else x**space.exponent)).astype(">u2")
    curve = b"curv" + struct.pack(">II", 0, len(levels)) + levels.tobytes()
    tags = {b"wtpt": _xyz(D50), b"cprt": b"text" + bytes(4) + b"none\0",
            b"desc": b"desc" + bytes(4) + struct.pack(">I", 1) + bytes(80)}  # fmt: skip
    if grey:
        tags[b"kTRC"] = curve
    else:
        matrix = _matrix(space.chromaticities)
        if not np.isfinite(matrix).all() or np.abs(matrix).max() > 100:
            return b""
        tags |= {name + b"XYZ": _xyz(column) for name, column in zip((b"r", b"g", b"b"), matrix.T, strict=True)}
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data.ljust(-(-len(data) // 4) * 4, b"\0")
    head = struct.pack(">I4sI", 128 + len(table + body), bytes(4), 0x02400000) + b"mntr" + (b"GRAY" if grey else b"RGB ")
    head += b"XYZ " + bytes(12) + b"acsp"
    return (head.ljust(68, b"\0") + _xyz(D50)[8:]).ljust(128, b"\0") + table + body


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(float(value) * 65536) for value in values))


def _matrix(chromaticities: tuple[float, ...]) -> np.ndarray:
    """(3,3), whose columns are XYZ of red, green and blue, for eyes that take D50 for white (Bradford's transform)."""
    with np.errstate(all="ignore"):
        x, y = np.array(chromaticities, float).reshape(4, 2).T
        white, *colours = np.stack([x / y, np.ones(4), (1 - x - y) / y], -1)  # (4,3)
        try:
            matrix = np.stack(colours, -1) * np.linalg.solve(np.stack(colours, -1), white)
            adapted = np.diag((BRADFORD @ D50) / (BRADFORD @ white))
            return np.linalg.solve(BRADFORD, adapted @ BRADFORD @ matrix)
        except np.linalg.LinAlgError:
            return np.full((3, 3), np.nan)
