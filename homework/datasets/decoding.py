"""The pixels of an image file as they are meant: upright, in sRGB, of any depth; or refused, with the reason."""

import contextlib
import io
from functools import cache, lru_cache
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from homework.datasets import colour_spaces

BITS, MEANING, MAXIMUM, PLANES, NUMBERS, PROFILE = 258, 262, 281, 284, 339, 34675  # tags of TIFF
YCBCR, CIELAB = 6, 8  # values of MEANING
KINDS = {1: "unsigned integers", 2: "signed integers", 3: "floats"}
PLUGINS = {".jxl": "pillow-jxl-plugin", ".heic": "pillow-heif", ".heif": "pillow-heif"}  # what Pillow needs for these
SIXTEEN_BITS = ("PNG", "PPM", "TIFF", "JPEG2000", "JXL")  # formats whose greys of 16 bits Pillow reads rightly
CLOSE = 2  # levels: an ICC profile that changes colours by no more is taken for sRGB's own


class Unreadable(ValueError):
    """What is wrong with an image file, in a sentence for the user."""


@cache
def readable_suffixes() -> frozenset[str]:
    """The suffixes of all image files that Pillow reads itself, and by the plugins for JPEG XL and HEIF if these are
    installed; registers them."""
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401  registers itself
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    found = Image.registered_extensions()  # of plugins that write, too
    stubs = {name for name, (factory, _) in Image.OPEN.items()
             if isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)}  # fmt: skip
    others = {*stubs, "EPS", "MPEG", "HWI", "HWA"}  # the last two are homework.pillow's, whose images have lost detail
    return frozenset(suffix for suffix, name in found.items() if name in Image.OPEN and name not in others)


def missing_plugin(path: PurePath) -> str | None:
    """The package without which an image file cannot be read, by its suffix; None if nothing is missing."""
    suffix = path.suffix.lower()
    return None if suffix in readable_suffixes() else PLUGINS.get(suffix)


def decode(stream: BinaryIO, path: str | Path, frame: int = 0) -> tuple[Image.Image, int]:
    """An image in RGB, upright, in sRGB, transparent pixels on white, 16 bits a channel cut down to the upper 8; and how
    many frames or pages the file has, of which this is number ``frame`` from 0. ValueError if ``path`` is not an image, is
    damaged, too large for Pillow, has no such frame, or has numbers of which it is unknown how bright they are."""
    readable_suffixes()
    try:
        with Image.open(stream) as file:
            n_frames = n_frames_of(file)
            if frame >= n_frames:
                s = "s" * (n_frames > 1)
                raise Unreadable(f"--frame is {frame}, but {path} has {n_frames} frame{s} or page{s}, counted from 0.")
            if frame:
                file.seek(frame)
            return to_rgb(file, path, in_place=True), n_frames
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large: Pillow reads up to {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels.") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        if isinstance(error, UnidentifiedImageError) and (tags := _tags_of(stream)):
            raise _refused(path, _layout(tags)) from error
        plugin = missing_plugin(Path(path))
        advice = f"pip install {plugin}" if plugin else "is it damaged?"
        raise ValueError(f"{path} cannot be read as an image ({type(error).__name__}); {advice}") from error


def n_frames_of(image: Image.Image) -> int:
    """How many frames or pages an image has: at least 1."""
    return 1 if image.format == "PSD" else max(getattr(image, "n_frames", 1), 1)  # Photoshop's are layers


def to_rgb(image: Image.Image, name: str | Path, in_place: bool = False) -> Image.Image:
    """An image of Pillow, in its current frame, as :func:`decode` returns it; ``in_place`` turns it itself upright, not a
    copy. :class:`Unreadable` if it is unknown how bright its numbers are."""
    tags = _tags(image.tag_v2) if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if (layout := _unknown(image, tags) or _unlike_pillow(image)) is not None:
        raise _refused(name, layout)
    try:
        profile = _profile(image)
    except ValueError as error:
        raise _refused(name, str(error)) from None
    if image.mode == "L" and (depth := _raw_mode(image)) in ("L;2", "L;4") and "transparency" in image.info:
        image.info["transparency"] *= 255 // (2 ** int(depth[2]) - 1)  # as the pixels will be
    if in_place:
        ImageOps.exif_transpose(image, in_place=True)  # a copy of a photo would take 100 MB
    else:
        image = ImageOps.exif_transpose(image)
    return _to_rgb(_to_8_bits(image, tags) if image.mode.startswith("I") else image, profile)


def _refused(path: str | Path, layout: str) -> Unreadable:
    return Unreadable(f"{path} cannot be read: it has {layout}; convert it to a PNG of 8 or 16 bits a channel.")


# --- depth ----------------------------------------------------------------------------------------------------------------


def _tags(directory: TiffImagePlugin.ImageFileDirectory_v2) -> dict[int, tuple]:
    values = {tag: directory.get(tag) for tag in (BITS, MEANING, MAXIMUM, PLANES, NUMBERS)}
    return {tag: v if isinstance(v, tuple) else (v,) for tag, v in values.items() if v is not None}


def _tags_of(stream: BinaryIO) -> dict[int, tuple]:
    """The tags of a TIFF file that Pillow does not open; {} if it is not one, or damaged."""
    try:
        stream.seek(0)
        head = stream.read(8)
        directory = TiffImagePlugin.ImageFileDirectory_v2(head + stream.read(8 * (head[2:3] == b"+" or head[3:4] == b"+")))
        stream.seek(directory.next)
        directory.load(stream)
        return _tags(directory)
    except Exception:  # as in decode
        return {}


def _layout(tags: dict[int, tuple]) -> str:
    bits, kinds = (sorted(set(tags.get(tag, (1,)))) for tag in (BITS, NUMBERS))
    numbers = [KINDS.get(kind, "unknown numbers") for kind in kinds]
    layout = f"{' and '.join(_few(bits))} bits a channel, {' and '.join(_few(numbers))}"
    layout += f", photometric interpretation {tags[MEANING][0]}" if MEANING in tags else ""
    return layout + ", in planes" * (tags.get(PLANES) == (2,))


def _few(values: list) -> list[str]:
    """At most three, and that there are more: a damaged file may name thousands."""
    return [str(value) for value in values[:3]] + ["others"] * (len(values) > 3)


def _unknown(file: Image.Image, tags: dict[int, tuple]) -> str | None:
    """What an image has whose numbers Pillow reads wrongly, or of which no one knows the white; None for the others."""
    channels, bits = len(tags.get(BITS, (1,))), max(tags.get(BITS, (1,)))
    sixteen = file.format in SIXTEEN_BITS or (file.format is None and file.mode.startswith("I;16"))  # not of a file
    if file.mode == "F" or (file.mode.startswith("I") and (bits > 16 or not sixteen)):
        return "floats or 32 bits a pixel, of unknown white"
    in_planes = channels > 1 and tags.get(PLANES) == (2,)
    if in_planes and tags.get(MEANING) in ((YCBCR,), (CIELAB,)):  # of which Pillow takes the planes for others
        return _layout(tags)
    if set(tags.get(NUMBERS, (1,))) != {1} or (in_planes and (bits > 8 or file.mode == "LA")):
        return _layout(tags)
    if channels > 1 and bits > 8 and _depth(tags) < bits:
        return f"{_depth(tags)} of {_layout(tags)}"
    return _layout(tags) if bits > 16 else None


def _raw_mode(image: Image.Image) -> str:
    """How a file that is not yet decoded has its pixels, as Pillow calls it; "" if it does not say."""
    arguments = image.tile[0].args if isinstance(image, ImageFile.ImageFile) and image.tile else None
    arguments = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return arguments if isinstance(arguments, str) else ""


def _unlike_pillow(file: Image.Image) -> str | None:
    """What a file that is not yet decoded has, besides TIFF's, of which Pillow would make other pixels; None for others."""
    if file.format == "PNG" and "transparency" in file.info and _raw_mode(file) == "RGB;16B":
        return "16 bits a channel, and one colour for what is transparent"
    if file.format == "JPEG2000" and file.mode != "I;16" and (bits := _bits_of_jpeg2000(file)) != 8:
        return f"{bits or 'several numbers of'} bits a channel, as JPEG 2000"  # white would become black, or grey
    return None


def _bits_of_jpeg2000(file: Image.Image) -> int:
    """Of each channel, as the head of the file says; 0 if they differ. 8 if it has been read and closed."""
    stream = getattr(file, "fp", None)
    if stream is None or getattr(stream, "closed", False):
        return 8
    at = stream.tell()
    stream.seek(0)
    head = stream.read(256)
    stream.seek(at)
    _, boxed, image_header = head.partition(b"ihdr")  # height (4), width (4), channels (2), bits - 1 and a sign
    bits = (image_header[10:11] if boxed else head[42:43]) or b"\x07"
    return 0 if bits == b"\xff" else bits[0] % 128 + 1


def _depth(tags: dict[int, tuple]) -> int:
    """How many bits of each number are used: 12 in 16, if the largest value is said to be 4095."""
    bits, most = max(tags.get(BITS, (16,))), max(tags.get(MAXIMUM, (0,)))
    return (most + 1).bit_length() - 1 if 255 <= most < 2**bits and most & (most + 1) == 0 else bits


def _to_8_bits(image: Image.Image, tags: dict[int, tuple]) -> Image.Image:
    """Greys of 9 to 16 bits, which convert() would clip to white, cut down to the upper 8."""
    grey, clear = np.asarray(image), image.info.get("transparency")
    levels = (grey // 2 ** (_depth(tags) - 8)).clip(0, 255)
    levels = 255 - levels if tags.get(MEANING) == (0,) else levels  # white is 0
    return Image.fromarray(np.where(grey == clear, 255, levels).astype(np.uint8))


# --- colour ---------------------------------------------------------------------------------------------------------------


def _profile(image: Image.Image) -> bytes | None:
    """The ICC profile of an image in its current frame. ValueError, which says what it has, if it is in no space of which
    there is one."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # whose info has that of any page that was looked at
        return image.tag_v2.get(PROFILE)
    return image.info.get("icc_profile") or colour_spaces.profile_of(image)


def _to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An image of any mode with 8 bits a channel in sRGB, given its ICC profile, on white where it is transparent: what
    convert() alone would show there is often black or noise."""
    clear = image.convert("RGBA") if image.has_transparency_data else None
    mode = {"CMYK": "CMYK", "1": "L", "L": "L", "LA": "L"}.get(image.mode, "RGB")
    colours = _converted(image if clear is None or mode == "L" else clear, mode)
    transform = _to_srgb(profile, mode) if profile and image.mode != "LAB" else None
    colours = transform.apply(colours) if transform else _converted(colours, "RGB")
    if clear is None:
        return colours
    colours.putalpha(clear.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # which would copy


@lru_cache(16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From an ICC profile to sRGB, for images of ``mode``. None if they stay as they are: the profile is sRGB's own, or is
    damaged, or of another mode."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        exact = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE  # dark greys would be off by 7 levels
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=exact)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(*[levels] * 3), axis=-1).reshape(len(levels), -1, 3)  # (18,18,18,3) -> (18,324,3)
    colours = Image.fromarray(cube if mode == "RGB" else cube[..., 0])
    moved = np.abs(np.asarray(transform.apply(colours)).astype(int) - np.asarray(colours.convert("RGB")))
    return transform if moved.max() > CLOSE else None
