"""Files of ``homework.compress`` as a format of Pillow: ``import homework.pillow`` once, then ``Image.open("a.hwi")``.

``image.save("a.hwi", quality=50, effort=5)`` writes one image, and ``image.save("a.hwa", save_all=True,
append_images=others)`` an archive, whose images are frames and may differ in size. The options are those of ``compress``:
``quality``, ``effort``, ``lmbda``, ``target_bytes``, ``target_psnr``. The pretrained models are loaded once, when a file
needs them; :func:`use` names others.
"""

import contextlib
import io
import os
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import torch
from PIL import Image, ImageFile

from homework.codec import archive, dial, format
from homework.codec.compressor import Compressor, in_order
from homework.codec.loading import AUTO, load_compressor
from homework.codec.parallel import in_parallel
from homework.core import checkpoint, devices
from homework.datasets.decoding import n_frames_of, to_rgb
from homework.datasets.images import to_uint8

PAIR = (checkpoint.PRETRAINED / "BSQPatchAutoEncoder.pth", checkpoint.PRETRAINED / "AutoregressiveModel.pth")
_named: list[Compressor] = []  # of the pairs given to use(), the last one first
_loading = threading.Lock()


def use(tokenizer: str | Path, prior: str | Path, device: str = "auto", enhancement: str | Path = AUTO) -> None:
    """From now on files are written by this pair, and those that it wrote can be read, besides those of the pretrained pair
    and of others that were named before. All are checkpoints or names, as for ``compress``. FileNotFoundError or ValueError
    if they cannot be loaded, or do not belong together."""
    compressor = _load(tokenizer, prior, device, enhancement)
    _named[:] = [compressor, *(other for other in _named if other.models != compressor.models)]


def _load(tokenizer: str | Path, prior: str | Path, device: str, enhancement: str | Path = AUTO) -> Compressor:
    return load_compressor(tokenizer, prior, devices.pick_device(device), batch_size=64, enhancement=enhancement)


@cache
def _pretrained() -> Compressor:
    return _load(*PAIR, "auto", checkpoint.PRETRAINED / "EnhancementLayer.pth")


def _compressors() -> Iterator[Compressor]:
    """Of the pairs in use, the one that writes first. OSError if the pretrained one is needed and cannot be loaded."""
    yield from list(_named)
    with _loading, _for_pillow():
        pretrained = _pretrained()
    yield pretrained


def _compressor_for(reader: archive.Reader) -> Compressor:
    """The one that wrote a file. OSError if none in use has."""
    for n in len(reader.head), 7:  # if none is the same, perhaps the enhancement layer alone is another
        for compressor in _compressors():
            if compressor.models.head(reader.kind, reader.version)[:n] == reader.head[:n]:
                return compressor
    raise OSError(f"{reader.name} was written by the tokenizer {reader.head[3:5].hex()} and the prior "
                  f"{reader.head[5:7].hex()}, but they are not in use; name their checkpoints by homework.pillow.use"
                  "(TOKENIZER, PRIOR).")  # fmt: skip


@contextlib.contextmanager
def _for_pillow() -> Iterator[None]:
    """What Pillow's users expect of a file that cannot be read or written: an OSError."""
    try:
        yield
    except ValueError as error:
        raise OSError(str(error)) from error


# --- reading --------------------------------------------------------------------------------------------------------------


class CompressedImage(ImageFile.ImageFile):
    """A file of one image. Opening reads the header alone and needs no models; loading decodes, in RGB."""

    format, format_description = "HWI", "image of homework.compress"
    n_frames, is_animated, _frame = 1, False, 0
    _reader: archive.Reader

    def _open(self) -> None:
        with _for_pillow():
            self._reader = archive.Reader(cast(BinaryIO, self.fp), os.fsdecode(self.filename) or "The file")
        self._mode, self.n_frames = "RGB", len(self._reader.names)
        self._show(0)

    def _show(self, frame: int) -> None:
        height, width = self._reader.sizes[frame]
        self.fp, self._frame, self._size = self._reader.file, frame, (width, height)
        self.tile = [("homework", (0, 0, width, height), 0, (self._reader, frame))]

    def tell(self) -> int:
        return self._frame

    def load_prepare(self) -> None:
        self.im = Image.core.new(self.mode, self.size)  # other frames may have had another size


class CompressedArchive(CompressedImage):
    """An archive: each image is a frame, called ``info["name"]``."""

    format, format_description = "HWA", "archive of homework.compress"
    _close_exclusive_fp_after_loading = False

    def _open(self) -> None:
        super()._open()
        self.is_animated, self._fp = self.n_frames > 1, self._reader.file

    def seek(self, frame: int) -> None:
        """EOFError if there is no such frame; as from ``Image.open``, DecompressionBombError if it is too large."""
        if self._seek_check(frame):
            Image._decompression_bomb_check(self._reader.sizes[frame][::-1])
            self._show(frame)

    def _show(self, frame: int) -> None:
        super()._show(frame)
        self.info["name"] = self._reader.names[frame]


class _Decoder(ImageFile.PyDecoder):
    _pulls_fd = True

    def decode(self, buffer: Any) -> tuple[int, int]:
        reader, frame = self.args
        compressor = _compressor_for(reader)
        with _for_pillow():
            (pixels,) = in_order(compressor.read_images([(reader, frame)], convert=to_uint8))
        self.set_as_raw(pixels.cpu().numpy().tobytes())
        return -1, 0  # nothing is left to decode, and there was no error


# --- writing --------------------------------------------------------------------------------------------------------------


def _compressor_of(options: dict[str, Any]) -> Compressor:
    """The one that writes, as the options of ``save`` ask. ValueError if one is wrong."""
    quality, lmbda = options.get("quality", dial.QUALITY), options.get("lmbda")
    aimed = dial.target(options.get("target_bytes"), options.get("target_psnr"))
    return next(_compressors()).at(quality if lmbda is None else dial.quality_at(lmbda), options.get("effort"), aimed)


def _coded(compressor: Compressor, images: Iterator[Image.Image]) -> Iterator[tuple[tuple[int, int], bytes, int]]:
    """(H,W), payload and CRC-32 of each image."""

    def work(image: Image.Image) -> tuple[tuple[int, int], bytes, int]:
        size = image.height, image.width
        grids = compressor.to_tokens([torch.from_numpy(np.array(image))])
        return size, compressor.encode(grids)[0], compressor.models.crc(size, grids[0])

    with contextlib.closing(in_parallel(work, images, compressor.workers)) as coded:
        yield from coded


def _rgb(image: Image.Image) -> Image.Image:
    with _for_pillow():
        format.check_size("The image", (image.height, image.width))
        return to_rgb(image, "The image")


def _frames(images: list[Image.Image]) -> Iterator[Image.Image]:
    """All frames of the images, in RGB."""
    for image in images:
        before = image.tell()
        for frame in range(n_frames_of(image)):
            image.seek(frame)
            yield _rgb(image)
        image.seek(before)


def _save_image(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    compressor = _compressor_of(image.encoderinfo)
    (coded,) = _coded(compressor, iter([_rgb(image)]))
    file.write(compressor.image_file(*coded))


def _save_archive(image: Image.Image, file: IO[bytes], filename: str | bytes, all_frames: bool = False) -> None:
    compressor, options = _compressor_of(image.encoderinfo), image.encoderinfo
    images = _frames([image, *options.get("append_images", [])]) if all_frames else iter([_rgb(image)])
    buffer = io.BytesIO()  # the header comes last, and the file may be one that has other things before
    writer = archive.ArchiveWriter(buffer, compressor.models)
    for i, (size, payload, crc) in enumerate(_coded(compressor, images)):
        writer.add([f"{i:04}"], [size], [payload], [crc])
    writer.close()
    file.write(buffer.getbuffer())


def _save_all(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    _save_archive(image, file, filename, all_frames=True)


Image.register_decoder("homework", _Decoder)
Image.register_open("HWI", CompressedImage, lambda start: start.startswith(format.IMAGE))
Image.register_open("HWA", CompressedArchive, lambda start: start.startswith(format.ARCHIVE))
Image.register_save("HWI", _save_image)
Image.register_save("HWA", _save_archive)
Image.register_save_all("HWA", _save_all)
for name, suffix in zip(("HWI", "HWA"), format.SUFFIXES, strict=True):
    Image.register_extension(name, suffix)
    Image.register_mime(name, f"image/x-{name.lower()}")
