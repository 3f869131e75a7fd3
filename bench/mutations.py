"""Mutates files of every kind, each of which must then be refused or still be right: ``python -m bench.mutations``."""

import collections
import io
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from homework.codec import archive, format
from homework.codec.compressor import Compressor
from homework.codec.enhanced_compressor import EnhancedCompressor
from homework.codec.enhancement import EnhancementLayer
from homework.core import checkpoint, cli, devices, files
from homework.core.fingerprint import identity
from homework.core.registry import model_class
from homework.datasets.image_files import read_image
from homework.datasets.tokens import TokenDataset
from homework.tokenizers.base import Tokenizer

SIZES = ((20, 30), (23, 41), (5, 5))  # of images, in pixels: the prior's grid, tiles, one patch
SMALL = {"patch_size": 5, "codebook_bits": 4, "latent_dim": 8, "encoder_blocks": 1, "decoder_blocks": 1, "detail": 4}
SLOW = 20  # seconds in which any file must have been read
Kind = tuple[list[bytes], Callable[[bytes, Path], object]]  # files as written, and what reads one, from bytes or a path


def mutate(data: bytes, draw: np.random.Generator) -> bytes:
    """Flips, overwrites, cuts, inserts, moves or adds some bytes, up to three times."""
    data = bytearray(data)
    for _ in range(draw.integers(1, 4)):
        at, n, what = int(draw.integers(len(data) + 1)), int(draw.integers(1, 9)), int(draw.integers(8))
        if what < 3 and at < len(data):
            data[at] ^= 1 << int(draw.integers(8))
        elif what == 3:
            data[at : at + n] = draw.bytes(len(data[at : at + n]))
        elif what == 4:
            del data[at : at + n]
        elif what == 5:
            data[at:at] = draw.bytes(n)
        elif what == 6:
            data[at:at] = data[:n]
        else:
            del data[at:]
    return bytes(data)


def repaired(data: bytes, draw: np.random.Generator) -> bytes:
    """A compressed file with a mutated header or index, and all the checksums in it put right: it is wrong, and nothing but
    the tokens shows it."""
    head = archive.Reader(io.BytesIO(data)).head
    if data[:2] == format.IMAGE:
        size = (int(draw.integers(1, 20)), int(draw.integers(1, 2 ** draw.integers(1, 20))))
        header = head[:7] + (head[7:8] if draw.integers(4) else draw.bytes(1)) + head[8:]
        length = int(draw.integers(12)) if draw.integers(2) else len(data) - len(head) - 8
        header += b"".join(map(format.leb128, (*size, length)))
        return header + bytes([format.crc8(header)]) + data[len(head) + 4 :]
    at, _ = archive.PLACES.unpack_from(data, len(head))
    index = zlib.compress(mutate(zlib.decompress(data[at:-4]), draw))
    header = head + archive.PLACES.pack(at, at + len(index) + 4)
    payloads = data[archive.first_payload(head) : at]
    return header + format.crc32(header) + payloads + index + format.crc32(index)


def mutations(n: int = 1_000_000, start: int = 0, minutes: float = 60, keep: str = "mutations") -> None:
    """Reads n mutated files: compressed images, archives, token files, checkpoints and pictures in turn. The k-th is always
    the same. Stops at the first that ends in another error than a sentence, takes long, or is read as something that was
    never written, and keeps it.

    Args:
        n: how many files.
        start: the number of the first, to resume.
        minutes: to stop after, whatever n is.
        keep: folder for the file at which it stops.
    """
    cli.at_least(0, start=start)
    cli.at_least(1, n=n)
    devices.pick_device("cpu")
    torch.set_num_threads(1)
    kinds, counts, began = make(), collections.Counter(), time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        right = {kind: [read(data, Path(folder, "file")) for data in written] for kind, (written, read) in kinds.items()}
        for k in tqdm(range(start, n), desc="mutations", unit="file", mininterval=5):
            kind = list(kinds)[k % len(kinds)]
            try:
                counts[kind, one_mutation(k, kinds[kind], right[kind], Path(folder, "file"))] += 1
            except Exception as error:
                path = Path(keep, f"{kind}_{k}")
                with files.replacing(path) as temporary:
                    temporary.write_bytes(mutated(k, kinds[kind][0])[1])
                raise ValueError(f"Mutation {k}, kept as {path}, is not refused in a sentence: {error!r}") from error
            if time.monotonic() - began > 60 * minutes:
                break
    for kind in kinds:
        print(f"{kind:<12} {counts[kind, 'refused']:>9,} refused, {counts[kind, 'right']:>7,} read as they were")
    print(f"{counts.total():,} files; to continue: --start {start + counts.total()}")


def mutated(k: int, written: list[bytes]) -> tuple[int, bytes]:
    """Which of the files the k-th mutation is of, and what becomes of it."""
    draw = np.random.default_rng(k)
    i = int(draw.integers(len(written)))
    ours = written[i][:2] in (format.IMAGE, format.ARCHIVE)
    return i, (repaired if ours and draw.integers(4) == 0 else mutate)(written[i], draw)


def one_mutation(k: int, kind: Kind, right: list, path: Path) -> str:
    """Whether the file is "refused" or read "right". AssertionError if neither, or if it takes long."""
    i, data = mutated(k, kind[0])
    began = time.process_time()
    try:
        found = kind[1](data, path)
    except (ValueError, OSError) as error:
        assert str(error) and len(str(error)) < 1000, "there is no sentence"
        found = None
    assert time.process_time() - began < SLOW, "it takes long"
    # an index that is wrong, with all checksums right, may have other names, or an image twice: never another image
    assert found is None or found == right[i] or isinstance(found, set) and found <= right[i], "it is read as another"
    return "refused" if found is None else "right"


def layer_of(tokenizer: Tokenizer) -> EnhancementLayer:
    """An enhancement layer for a tokenizer with patches of 5x5 pixels, fitted to noise."""
    layer = EnhancementLayer(tokenizer.n_tokens, 5, 6)
    layer.fit(torch.rand(12, 20, 30, 3) - 0.5, torch.randint(tokenizer.n_tokens, (12, 4, 6)).numpy(), rounds=1)
    layer.meta = {"tokenizer": identity(tokenizer)}
    return layer


def make() -> dict[str, Kind]:
    """Some small files of each kind, by untrained models."""
    torch.manual_seed(0)
    tokenizer = model_class("BSQPatchAutoEncoder")(**SMALL).eval()
    prior = model_class("AutoregressiveModel")(d_latent=8, n_tokens=16, n_layers=2, n_heads=2, height=4, width=6).eval()
    pixelcnn = model_class("GatedPixelCNN")(c_hidden=6, n_layers=2, n_tokens=16, height=4, width=6, first_kernel=5).eval()
    exact, in_floats = Compressor(tokenizer, prior), Compressor(tokenizer, pixelcnn)
    images = [torch.rand(*size, 3) - 0.5 for size in SIZES]
    enhanced = EnhancedCompressor(tokenizer, prior, layer_of(tokenizer), quality=85)

    def grids(compressor: Compressor, data: bytes) -> set:
        reader = archive.Reader(io.BytesIO(data))
        found = compressor.read([(reader, i) for i in range(len(reader.names))])
        return {(reader.sizes[i], grid.tobytes()) for some in found for i, grid in some.items()}

    def read(data: bytes, path: Path) -> set:
        return grids(in_floats if data[7:8] > b"\x7f" else enhanced, data)

    def packed(compressor: Compressor) -> bytes:
        file = io.BytesIO()
        writer = archive.ArchiveWriter(file, compressor.models)
        for i, x in enumerate(images):
            grid, size = compressor.to_tokens(x[None]), tuple(x.shape[:2])
            writer.add([f"{i}.png"], [size], compressor.encode(grid), [compressor.models.crc(size, grid[0])])
        writer.close()
        return file.getvalue()

    def saved(write: Callable[[Path], object]) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder, "file"))
            return Path(folder, "file").read_bytes()

    def tokens(data: bytes, path: Path) -> tuple:
        path.write_bytes(data)
        found = TokenDataset(path)
        return found.tokens.tobytes(), found.n_tokens, tuple(found.names)

    def weights(data: bytes, path: Path) -> tuple:
        path.write_bytes(data)
        model = checkpoint.load(path)
        return type(model), tuple((name, tensor.numpy().tobytes()) for name, tensor in model.state_dict().items())

    def picture(data: bytes, path: Path) -> bool:
        path.write_bytes(data)
        pixels = read_image(path)  # of some pixels, for most formats have no checksums
        return pixels.dtype == np.uint8 and pixels.shape[2] == 3

    some = {"tokens": torch.randint(16, (5, 4, 6), dtype=torch.uint8), "n_tokens": 16, "names": list("abcde")}
    temple = Image.open(Path(__file__).parents[1] / "data" / "sample" / "temple.jpg").resize((30, 20))
    return {
        "image": ([c.compress(x) for c in (exact, in_floats, enhanced) for x in images], read),
        "archive": ([packed(exact), packed(in_floats), packed(enhanced)], read),
        "tokens": ([saved(lambda path: files.write(some, path))], tokens),
        "checkpoint": ([saved(lambda path: checkpoint.save(prior, path))], weights),
        "picture": ([saved(lambda path, f=f: temple.save(path, f)) for f in ("PNG", "JPEG", "GIF", "TIFF")], picture),
    }


if __name__ == "__main__":
    cli.main("python -m bench.mutations", mutations)
