"""Images to small files and back: ``python -m homework.compress compress|decompress|info``. See ``--help``."""

import contextlib
import functools
import io
import json as json_format
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from homework.codec import archive, format
from homework.codec.dial import QUALITY, quality_at, target
from homework.codec.finding import find, find_in_folder, read_folder
from homework.core import checkpoint, checks, cli, devices, fingerprint
from homework.core.files import check_regular, printable
from homework.core.processes import check_alone
from homework.datasets.bulk import missing
from homework.datasets.image_files import image_paths, not_read
from homework.priors.cascade import Cascade
from homework.priors.pairs import check_prior, is_cascade, load_cascade
from homework.tokenizers.base import Tokenizer

# what computes is imported where it is called: `info` of a file needs no models


def compress(tokenizer: str | Path, autoregressive: str | Path, *images_and_output: str | Path,
             image_size: str | None = None, frame: int = 0, effort: int | None = None, quality: float = QUALITY,
             lmbda: float | None = None, target_bytes: float | None = None, target_psnr: float | None = None,
             on_average: bool = False, enhancement: str | Path = "auto", append: bool = False, verify: bool = False,
             skip_bad: bool = False, shards: bool = False, dry_run: bool = False, quiet: bool = False, batch_size: int = 64,
             threads: int | None = None, device: str = "auto") -> None:  # fmt: skip
    """Compresses an image into a small file, or a folder of images into an archive.

    Examples:
        python -m homework.compress compress BSQPatchAutoEncoder AutoregressiveModel data/sample/temple.jpg temple.hwi
        python -m homework.compress compress BSQPatchAutoEncoder AutoregressiveModel data/sample sample.hwa --quality 70

    Args:
        tokenizer: checkpoint of a tokenizer.
        autoregressive: checkpoint of a prior over that tokenizer's grids; or the JSON file of a cascade, whose finest
            codebook the tokenizer then is: its images have one size, see --image_size, and there is no search.
        images_and_output: an image, a folder, or several images, folders, dataset.json files or WebDataset shards; last, the
            file to write. - is standard input, for one image, and standard output.
        image_size: HEIGHTxWIDTH in pixels, to which images are scaled and cropped before; as they are by default.
        frame: of images with several frames or pages, the number of the one to compress, from 0.
        effort: from 0 to 9, how long to look for better tokens than the encoder's: fewer bytes and less error. 5, the
            default, takes a second or two of a core for an image of 150x100, 0 no time, and 9, which ends where none of the
            changes that promise most helps, minutes.
        quality: from 1 to 100: fewer bytes or less error, by what a bit is worth. 50 is what the pretrained models were
            trained for. Above 62 an enhancement layer codes what the tokens leave of the image. With effort 0, qualities
            up to 62 other than 50 take a tokenizer with a dial, such as the pretrained BSQPatchAutoEncoder.
        lmbda: the same as a number: the mean squared error (pixels from 0 to 1) that a bit per pixel is worth, 0.01 for 50.
        target_bytes: find the quality for each image at which its file has at most so many bytes.
        target_psnr: find the quality for each image at which it comes back with at least so many dB.
        on_average: with a target, one quality for all images, which reach it on average. To find it, all of them are
            compressed up to seven times, and then once more: eight times as long as with a quality that is given.
        enhancement: checkpoint of an enhancement layer, see python -m homework.enhancement; auto for the one that belongs to
            the tokenizer, if there is one, or none.
        append: add the images to the archive that the file is, which the same models must have written.
        verify: decode what was written, and compare it with what was to be written; fails if they differ.
        skip_bad: leave out images that are damaged; otherwise they are an error.
        shards: write one archive for each shard, into the folder that is named last; the same command, started again, makes
            those that are missing, and several processes under torchrun share the shards out.
        dry_run: do everything, but leave no file.
        quiet: show neither progress nor the result; this saves the time of decoding for the PSNR.
        batch_size: images that go through the models at once.
        threads: of the CPU; as many as it has cores by default.
        device: auto, cpu, cuda or mps.
    """
    *sources, output = map(str, images_and_output or [""])
    cli.at_least(0, frame=frame)
    if not sources:
        raise ValueError("Name the image or the folder to compress and, after it, the file to write.")
    scaled, aimed = cli.parse_image_size(image_size), target(target_bytes, target_psnr)
    quality, names = quality if lmbda is None else quality_at(lmbda), (tokenizer, autoregressive, enhancement)
    if shards:
        if append or on_average or dry_run or "-" in (*sources, output):
            raise ValueError("--append, --on_average, --dry_run and - are for one file; leave them out, or --shards.")
        if not output or (os.path.exists(output) and not os.path.isdir(output)):
            raise ValueError(f"The last argument is {output!r}, but with --shards it must be a folder.")
        job = {"image_size": scaled, "frame": frame, "effort": effort, "quality": quality, "batch_size": batch_size,
               "target_bytes": target_bytes, "target_psnr": target_psnr}  # fmt: skip
        options = {"scaled": scaled, "frame": frame, "skip_bad": skip_bad, "verify": verify, "quiet": quiet}
        from homework.codec.image_files import compress_shards

        compressor = _load(names, batch_size, threads, device, effort, quality, aimed)
        return compress_shards(compressor, sources, output, job, **options)
    if Path(output).is_dir() or _is_image(output) or Path(output).suffix.lower() in {".json", ".pth"}:
        raise ValueError(f"The last argument is the file to write, but {output} is a folder, an image or a checkpoint.")
    check_regular(Path(output))
    if output != "-" and not format.may_replace(output):
        raise ValueError(f"{output} exists, but is not a file of homework.compress: it stays; name another, or remove it.")
    if append and not os.path.isfile(output):
        raise FileNotFoundError(f"There is no archive {output} to append to; leave --append out.")
    checkpoint.refuse_other(tokenizer)  # before the images, which would then be one argument too few
    check_alone("One archive", "name shards and --shards, or leave torchrun out")
    before = os.path.getsize(output) if append else 0
    from homework.codec.image_files import average_quality, compress_files

    with _standard_input(sources) as sources, _written(output, dry_run) as written:
        paths = list(image_paths(sources))
        for folder in filter(os.path.isdir, sources):
            if others := not_read(Path(folder)):
                print(f"Left out of {printable(folder)}: {others}.", file=sys.stderr)
        pack = append or len(sources) > 1 or paths != [str(Path(sources[0]))]
        if on_average and not aimed:
            raise ValueError("--on_average is about a target; add --target_bytes or --target_psnr.")
        compressor = _load(names, batch_size, threads, device, effort, quality, aimed)
        old = output if append else None
        options = {"pack": pack, "scaled": scaled, "frame": frame, "skip_bad": skip_bad}
        if on_average and aimed:
            compressor = compressor.at(average_quality(compressor, paths, aimed, options, old, quiet))
        n, original, psnr = compress_files(compressor, paths, written, **options, verify=verify, quiet=quiet, old=old)
        size = os.path.getsize(written) - before
    _say(f"{output}: {checks.count(n, 'image')}, {size:,} bytes, {size / n:,.1f} an image, "
         f"{original / size:.1f} times fewer than the {original:,} of the originals, {psnr:.2f} dB"
         f"{'; verified, all tokens come back' * verify}{'; not written' * dry_run}", output, quiet)  # fmt: skip


def decompress(tokenizer: str | Path, autoregressive: str | Path, file: str | Path, output: str | Path, *,
               only: str | None = None, enhancement: str | Path = "auto", preview: bool = False, overwrite: bool = False,
               dry_run: bool = False, quiet: bool = False, batch_size: int = 128, threads: int | None = None,
               device: str = "auto") -> None:  # fmt: skip
    """Turns a file that `compress` wrote into an image, or an archive into a folder of PNG images.

    Examples:
        python -m homework.compress decompress BSQPatchAutoEncoder AutoregressiveModel sample.hwa again
        python -m homework.compress decompress BSQPatchAutoEncoder AutoregressiveModel sample.hwa one.png --only temple.jpg

    Args:
        tokenizer: checkpoint of the tokenizer that the file was written with.
        autoregressive: checkpoint of the prior, or the JSON file of the cascade, that it was written with.
        file: what to decompress; - is standard input. Or a folder of archives, see compress --shards.
        output: the image to write (.png, .bmp, .ppm, .tif), or for an archive the folder, in which those of several archives
            have a folder each; - is standard output, for one image as PNG.
        only: names of images in an archive, or ARCHIVE/NAME in a folder of them, with commas between them, or shell patterns
            such as "*.jpg"; a single image may be written as one. All images by default.
        enhancement: checkpoint of the enhancement layer that it was written with, if it was; auto for the one that belongs
            to the tokenizer.
        preview: decode the tokens alone, without what an enhancement layer added.
        overwrite: replace images that exist.
        dry_run: do everything, but leave no file.
        quiet: show neither progress nor the result.
        batch_size: images that go through the models at once.
        threads: of the CPU; as many as it has cores by default.
        device: auto, cpu, cuda or mps.
    """
    file, output = str(file), str(output)
    if preview and enhancement != "auto":
        raise ValueError("A preview needs no enhancement layer; leave --enhancement or --preview out.")
    names = tokenizer, autoregressive, "none" if preview else enhancement
    load = functools.cache(lambda: _load(names, batch_size, threads, device))  # once, and not before it is needed
    how = {"preview": preview, "overwrite": overwrite, "dry_run": dry_run, "quiet": quiet}
    if not os.path.isdir(file):
        _decompress(load, file, output, lambda reader: None if only is None else find(reader, only), **how)
        return
    found = find_in_folder(file, only)
    alone = only is not None and sum(map(len, found.values())) == 1 and not os.path.isdir(output)
    if not alone and (output == "-" or _is_image(output)):
        raise ValueError(f"{file} holds several such images; name a folder for them, not {output}.")
    for path, wanted in found.items():
        own = output if alone else os.path.join(output, Path(path).stem)
        _decompress(load, path, own, lambda reader, wanted=wanted: None if only is None else wanted, **how)


def _decompress(load: Callable, file: str, output: str, choose: Callable, *, preview: bool, overwrite: bool, dry_run: bool,
                quiet: bool) -> None:  # fmt: skip
    """Decompresses the images of a file that ``choose(reader)`` names by their numbers; all if it is None."""
    from homework.codec.image_files import LOSSLESS, check_free, decompress_file, targets

    suffix = Path(output).suffix.lower()
    is_image, target = suffix in LOSSLESS or output == "-", Path(os.path.abspath(output))
    with _opened(file) as (stream, name):
        reader = archive.Reader(stream, name, preview)
        found = choose(reader)
        wanted = range(len(reader.names)) if found is None else found
        folder = reader.kind == format.ARCHIVE and (found is None or len(wanted) > 1 or not is_image)
        if folder and (target.is_file() or is_image or (_is_image(output) and not target.is_dir())):
            raise ValueError(f"{name} is an archive: name a folder, not {output}, or one of its images by --only NAME, and "
                             f"a file that ends in {', '.join(LOSSLESS)}.")  # fmt: skip
        if not folder and (output != "-" and target.is_dir() or not is_image):
            raise ValueError(f"The output is {output}, but must be an image: a file that ends in {', '.join(LOSSLESS)}.")
        if output != "-" and not folder:
            check_regular(target)
        if output != "-" and not overwrite:
            check_free(targets(reader, wanted, target, folder))
        with _written(output if output == "-" else str(target), dry_run, suffix or ".png") as written:
            decompress_file(load(), reader, wanted, Path(written), folder, quiet)
    _say(f"{output}: {checks.count(len(wanted), 'image')}{'; not written' * dry_run}", output, quiet)


def _is_image(path: str) -> bool:
    """Whether a path is named like an image of another format, though homework.pillow may have made ours known to Pillow."""
    return Path(path).suffix.lower() in Image.registered_extensions().keys() - {*format.SUFFIXES}


@contextlib.contextmanager
def _standard_input(sources: list[str]) -> Iterator[list[str]]:
    """The ``sources``, with "-" as a file of what standard input holds; messages do not name this file."""
    if "-" not in sources:
        yield sources
        return
    if len(sources) > 1:
        raise ValueError("Standard input (-) is one image, so it is compressed alone; name files for an archive.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "standard input")
        path.write_bytes(sys.stdin.buffer.read())
        try:
            yield [str(path)]
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "Standard input")) from error


@contextlib.contextmanager
def _written(output: str, dry_run: bool, suffix: str = "") -> Iterator[str]:
    """The path to write for ``output``: itself; for "-" and for a dry run a temporary one, and the block's end copies what
    is there to standard output, or nowhere."""
    if output != "-" and not dry_run:
        yield output
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"output{suffix}")
        yield str(path)
        if not dry_run:
            sys.stdout.buffer.write(path.read_bytes())
            sys.stdout.buffer.flush()


@contextlib.contextmanager
def _opened(file: str) -> Iterator[tuple[BinaryIO, str]]:
    """A file of ours, made to seek if it is a pipe, and what messages call it; "-" is standard input."""
    if file == "-":
        yield io.BytesIO(sys.stdin.buffer.read()), "Standard input"
        return
    with open(file, "rb") as stream:
        yield stream if stream.seekable() else io.BytesIO(stream.read()), file


def _say(text: str, output: str, quiet: bool) -> None:
    """Prints a result, and not into the output that standard output is."""
    if not quiet:
        print(printable(text), file=sys.stderr if output == "-" else sys.stdout)


def info(file: str | Path, *, json: bool = False) -> None:
    """Prints what a file that `compress` wrote says about itself, for which it needs no models; or by which fingerprint
    files know a tokenizer or a prior.

    Examples:
        python -m homework.compress info sample.hwa
        python -m homework.compress info homework/AutoregressiveModel.pth

    Args:
        file: one image's file, an archive or a folder of archives; or a checkpoint, or the JSON file of a cascade. - is
            standard input.
        json: print one JSON object, or a list of those of several archives.
    """
    file = str(file)
    if Path(file).suffix == ".pth" or is_cascade(file):
        facts = describe_checkpoint(file)
        sentence = f"{printable(file)}: {facts['role']} {facts['fingerprint']}, {facts['model']}"
        print(json_format.dumps(facts) if json else sentence)
        return
    if os.path.isdir(file):
        readers = list(read_folder(file).values())
    else:
        with _opened(file) as (stream, name):
            readers = [archive.Reader(stream, name)]
    if json:
        print(json_format.dumps(_facts(readers[0]) if not os.path.isdir(file) else [*map(_facts, readers)]))
        return
    for reader in readers:
        _describe(reader)
    if os.path.isdir(file) and (gone := missing(file)):
        shown = ", ".join(map(printable, gone[:3])) + ", ..." * (len(gone) > 3)
        print(f"{printable(file)}: {checks.count(len(gone), 'archive')} missing, {shown}; compress --shards makes them")
    if len(readers) > 1:
        n, size = sum(len(reader.names) for reader in readers), sum(reader.length for reader in readers)
        print(f"{printable(file)}: {n:,} images in {len(readers)} archives, {size:,} bytes, {size / n:,.1f} an image")


def _describe(reader: archive.Reader) -> None:
    n, h, w = len(reader.names), *reader.grid(0)
    (H, W), pixels, payload = reader.sizes[0], sum(H * W for H, W in reader.sizes), sum(reader.lengths)
    one = f"one image of {W}x{H} pixels (width x height), {w}x{h} tokens"
    what = checks.count(n, "image") if reader.kind == format.ARCHIVE else one
    print(f"{reader.name}: {what}, patches of {reader.patch} pixels")
    layer = f"enhancement layer {reader.head[8:].hex()}, " * reader.enhanced
    print(f"format {reader.version}, tokenizer {reader.head[3:5].hex()}, prior {reader.head[5:7].hex()}, {layer}"
          f"arithmetic {'exact, on integers' if reader.exact else 'in floats, of one kind of machine'}")  # fmt: skip
    coded = f"coded tokens{' and second grids' * reader.enhanced}"
    for what, size in ("file", reader.length), (coded, payload):
        print(f"{what}: {size:,} bytes, {8 * size / n:,.1f} bits an image, {8 * size / pixels:.4f} bits a pixel")
    print("   bytes  bits/pixel    width x height     CRC-32  name")
    for name, (H, W), length, crc in zip(reader.names, reader.sizes, reader.lengths, reader.crcs, strict=True):
        print(f"{length:8,}  {8 * length / (H * W):10.4f}  {W:7} x {H:<7}   {crc:08x}  {printable(name)}".rstrip())


def _facts(reader: archive.Reader) -> dict[str, Any]:
    """What `info` prints, for JSON; bytes of a name that are not UTF-8 are lone surrogates in it."""
    rows = zip(reader.names, reader.sizes, reader.lengths, reader.crcs, strict=True)
    return {
        "file": reader.name,
        "kind": "archive" if reader.kind == format.ARCHIVE else "image",
        "format": reader.version,
        "tokenizer": reader.head[3:5].hex(),
        "prior": reader.head[5:7].hex(),
        "exact": reader.exact,
        "enhancement": reader.head[8:].hex() if reader.enhanced else None,
        "patch": reader.patch,
        "bytes": reader.length,
        "images": [
            {"name": name, "height": H, "width": W, "bytes": length, "crc32": f"{crc:08x}"}
            for name, (H, W), length, crc in rows
        ],
    }


def describe_checkpoint(path: str) -> dict[str, str]:
    """How files know the model in a checkpoint, or a cascade. ValueError if it is none that files know."""
    from homework.codec.enhancement import EnhancementLayer
    from homework.codec.entropy import entropy_model

    model = load_cascade(path) if is_cascade(path) else checkpoint.load(path)
    if isinstance(model, Tokenizer | EnhancementLayer):
        role = "tokenizer" if isinstance(model, Tokenizer) else "enhancement layer"
        known = fingerprint.fingerprint(model)
    else:
        prior = model if isinstance(model, Cascade) else check_prior(path, model)
        role, known = "prior", entropy_model(prior).fingerprints[2]
    return {"file": path, "role": role, "fingerprint": known[:2].hex(), "model": type(model).__name__}


def _load(names: tuple[str | Path, str | Path, str | Path], batch_size: int, threads: int | None, device: str, *dial: Any):
    """The compressor of a tokenizer, a prior and an enhancement layer."""
    from homework.codec.loading import load_compressor
    from homework.training import distributed

    cli.at_least(1, batch_size=batch_size)
    cli.at_least(1, threads=1 if threads is None else threads)
    compressor = load_compressor(*names[:2], distributed.own_device(devices.pick_device(device)), batch_size, *dial,
                                 enhancement=names[2])  # fmt: skip
    compressor.workers = threads or compressor.workers
    return compressor


if __name__ == "__main__":
    cli.main("python -m homework.compress", {"compress": compress, "decompress": decompress, "info": info})
