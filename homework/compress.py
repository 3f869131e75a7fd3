"""Images to small files and back: ``python -m homework.compress compress|decompress|info``. See ``--help``."""

import os
import sys
from pathlib import Path

from PIL import Image

from homework.codec import archive, format
from homework.core import checkpoint, checks, cli, devices, fingerprint
from homework.datasets.image_files import image_paths, not_read
from homework.priors.pairs import check_prior, load_pair
from homework.tokenizers.base import Tokenizer

# what computes is imported where it is called: `info` of a file needs no models


def compress(tokenizer: str, autoregressive: str, *images_and_output: str, image_size: str | None = None,
             verify: bool = False, skip_bad: bool = False, batch_size: int = 64, device: str = "auto") -> None:  # fmt: skip
    """Compresses an image into a small file, or a folder of images into an archive.

    Examples:
        python -m homework.compress compress BSQPatchAutoEncoder AutoregressiveModel data/sample/temple.jpg temple.hwi
        python -m homework.compress compress BSQPatchAutoEncoder AutoregressiveModel data/sample sample.hwa --verify

    Args:
        tokenizer: checkpoint of a tokenizer.
        autoregressive: checkpoint of a prior over that tokenizer's grids.
        images_and_output: an image, a folder, or several images, folders or dataset.json files; last, the file to write.
        image_size: HEIGHTxWIDTH in pixels, to which images are scaled and cropped before; as they are by default.
        verify: decode what was written, and compare it with what was to be written; fails if they differ.
        skip_bad: leave out images that are damaged; otherwise they are an error.
        batch_size: images that go through the models at once.
        device: auto, cpu, cuda or mps.
    """
    *sources, output = images_and_output or [""]
    if not sources:
        raise ValueError("Name the image or the folder to compress and, after it, the file to write.")
    if Path(output).is_dir() or Path(output).suffix.lower() in {*Image.registered_extensions(), ".json", ".pth"}:
        raise ValueError(f"The last argument is the file to write, but {output} is a folder, an image or a checkpoint.")
    if not format.may_replace(output):
        raise ValueError(f"{output} exists, but is not a file of homework.compress: it stays; name another, or remove it.")
    scaled, paths = cli.parse_image_size(image_size), image_paths(sources)
    for folder in filter(os.path.isdir, sources):
        if others := not_read(Path(folder)):
            print(f"Left out of {folder}: {others}.", file=sys.stderr)
    from homework.codec.image_files import compress_files

    pack = len(sources) > 1 or paths != [str(Path(sources[0]))]
    compressor = _load(tokenizer, autoregressive, batch_size, device)
    n, original = compress_files(compressor, paths, output, pack=pack, scaled=scaled, skip_bad=skip_bad, verify=verify)
    size = os.path.getsize(output)
    print(f"{output}: {checks.count(n, 'image')}, {size:,} bytes, {size / n:,.1f} an image, "
          f"{original / size:.1f} times fewer than the {original:,} of the originals"
          f"{'; verified, all tokens come back' * verify}")  # fmt: skip


def decompress(tokenizer: str, autoregressive: str, file: str, output: str, *, only: str | None = None,
               batch_size: int = 128, device: str = "auto") -> None:  # fmt: skip
    """Turns a file that `compress` wrote into an image, or an archive into a folder of PNG images.

    Examples:
        python -m homework.compress decompress BSQPatchAutoEncoder AutoregressiveModel sample.hwa again
        python -m homework.compress decompress BSQPatchAutoEncoder AutoregressiveModel sample.hwa one.png --only temple.jpg

    Args:
        tokenizer: checkpoint of the tokenizer that the file was written with.
        autoregressive: checkpoint of the prior that it was written with.
        file: what to decompress.
        output: the image to write (.png, .bmp, .ppm, .tif), or for an archive the folder.
        only: the name of one image in an archive, which is written as an image; all by default.
        batch_size: images that go through the models at once.
        device: auto, cpu, cuda or mps.
    """
    from homework.codec.image_files import LOSSLESS, decompress_file

    target = Path(os.path.abspath(output))
    with open(file, "rb") as stream:
        reader = archive.Reader(stream, file)
        wanted = range(len(reader.names)) if only is None else [_find(reader, only)]
        folder, is_image = reader.kind == format.ARCHIVE and only is None, target.suffix.lower() in LOSSLESS
        if folder and (target.is_file() or is_image):
            raise ValueError(f"{file} is an archive: name a folder, not {output}, or one of its images by --only NAME.")
        if not folder and (target.is_dir() or not is_image):
            raise ValueError(f"The output is {output}, but must be an image: a file that ends in {', '.join(LOSSLESS)}.")
        decompress_file(_load(tokenizer, autoregressive, batch_size, device), reader, wanted, target, folder)
    print(f"{output}: {checks.count(len(wanted), 'image')}")


def _find(reader: archive.Reader, name: str) -> int:
    if reader.kind == format.IMAGE:
        raise ValueError(f"{reader.name} is one image, not an archive of several; leave --only out.")
    if name not in reader.names:
        known = ", ".join([*map(printable, reader.names[:3]), *["..."] * (len(reader.names) > 3)])
        raise ValueError(f"{reader.name} holds no image {name}; it holds {known} (see the command info).")
    return reader.names.index(name)


def info(file: str) -> None:
    """Prints what a file that `compress` wrote says about itself, for which it needs no models; or by which fingerprint
    files know a tokenizer or a prior.

    Examples:
        python -m homework.compress info sample.hwa
        python -m homework.compress info homework/AutoregressiveModel.pth

    Args:
        file: one image's file or an archive; or a checkpoint.
    """
    if Path(file).suffix == ".pth":
        print(describe_checkpoint(file))
        return
    with open(file, "rb") as stream:
        reader = archive.Reader(stream, file)
    n, h, w = len(reader.names), *reader.grid(0)
    (H, W), pixels, payload = reader.sizes[0], sum(H * W for H, W in reader.sizes), sum(reader.lengths)
    one = f"one image of {W}x{H} pixels (width x height), {w}x{h} tokens"
    what = checks.count(n, 'image') if reader.kind == format.ARCHIVE else one
    print(f"{reader.name}: {what}, patches of {reader.patch} pixels")
    print(f"format {reader.version}, tokenizer {reader.head[3:5].hex()}, prior {reader.head[5:7].hex()}, "
          f"arithmetic {'exact, on integers' if reader.exact else 'in floats, of one kind of machine'}")  # fmt: skip
    for what, size in ("file", reader.length), ("coded tokens", payload):
        print(f"{what}: {size:,} bytes, {8 * size / n:,.1f} bits an image, {8 * size / pixels:.4f} bits a pixel")
    print("   bytes  bits/pixel    width x height     CRC-32  name")
    for name, (H, W), length, crc in zip(reader.names, reader.sizes, reader.lengths, reader.crcs, strict=True):
        print(f"{length:8,}  {8 * length / (H * W):10.4f}  {W:7} x {H:<7}   {crc:08x}  {printable(name)}".rstrip())


def describe_checkpoint(path: str) -> str:
    """How files know the model in a checkpoint. ValueError if it is neither a tokenizer nor a prior."""
    from homework.codec.entropy import entropy_model

    model = checkpoint.load(path)
    if isinstance(model, Tokenizer):
        return f"{path}: tokenizer {fingerprint.fingerprint(model)[:2].hex()}, {type(model).__name__}"
    known = entropy_model(check_prior(path, model)).fingerprints[format.FORMAT]
    return f"{path}: prior {known[:2].hex()}, {type(model).__name__}"


def printable(name: str) -> str:
    """A file's name, also if its bytes are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _load(tokenizer: str, autoregressive: str, batch_size: int, device: str):
    from homework.codec.compressor import Compressor

    cli.at_least(1, batch_size=batch_size)
    device = devices.pick_device(device)
    return Compressor(*load_pair(tokenizer, autoregressive, device), device, batch_size)


if __name__ == "__main__":
    cli.main("python -m homework.compress", {"compress": compress, "decompress": decompress, "info": info})
