"""Pictures to small files and back: ``python -m homework.compress compress|decompress|info``. See ``--help``."""

import collections
import contextlib
import io
import itertools
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from homework import checkpoint, cli, container
from homework.data import to_float, to_uint8
from homework.generation import load_pair
from homework.images import decoded, image_paths, n_pixels, not_read

WEIGHTS_AT_ONCE = 2**21  # numbers that a prior returns from a parallel pass; with many more, memory costs more than it saves
PIXELS_AT_ONCE = 2**17  # that go through the tokenizer together, for the same reason
PIXELS_READ_AT_ONCE = 2**24  # of image files that are read ahead
LOSSLESS = {".png": "PNG", ".bmp": "BMP", ".ppm": "PPM", ".tif": "TIFF", ".tiff": "TIFF"}

Item = tuple[container.Reader, int]  # a file, and which of its images


class Compressor:
    """Images to bytes and back: the tokens of a tokenizer, range-coded under a prior.

    ::

        x (H,W,3) -> encode_index -> grid (h,w) -> tiles of the prior's size -> weights -> range coder -> file
        file -> range coder <-> the prior's steps -> grid (h,w) -> decode_index -> crop -> x_hat (H,W,3)

    The grid comes back exactly. Under a transformer, whose distributions are computed in whole numbers
    (:mod:`homework.exact`), it does so on every machine and in any batch. Other priors take the same float steps in both
    directions, which a machine of the same kind repeats; a file says which.

    Args:
        tokenizer: a model with ``encode_index``, ``decode_index``, ``n_tokens`` and ``patch_size``.
        autoregressive: a prior over its grids, with ``steps``. Both models are put into eval mode and onto ``device``.
        device: where the models compute; None for where the tokenizer is.
        batch_size: images, or tiles of them, that go through the models at once.
    Raises:
        ValueError: the models do not go together.
    """

    def __init__(self, tokenizer: nn.Module, autoregressive: nn.Module, device=None, batch_size: int = 64):
        from homework import exact  # here, because `info` does without any model

        if not hasattr(autoregressive, "steps"):
            raise ValueError(f"A {type(autoregressive).__name__} has no incremental form, so it cannot decode files; use a "
                             "trained prior.")  # fmt: skip
        if tokenizer.n_tokens != autoregressive.n_tokens:
            raise ValueError(f"The tokenizer has {tokenizer.n_tokens} codes, but the prior was trained on "
                             f"{autoregressive.n_tokens}; train a prior on this tokenizer's grids.")  # fmt: skip
        self.device = next(tokenizer.parameters()).device if device is None else torch.device(device)
        self.tokenizer = tokenizer.to(self.device).eval()
        self.coder = exact.coder(autoregressive.to(self.device).eval())
        self.batch_size = batch_size
        self.workers = torch.get_num_threads() if self.device.type == "cpu" else 1
        prints = fingerprint(tokenizer), self.coder.fingerprint
        self.models = container.Models(*prints, tokenizer.patch_size, self.coder.exact)

    # --- images ----------------------------------------------------------------------------------------------------------

    def compress(self, x: Tensor) -> bytes:
        """One image (H,W,3), float in [-0.5,0.5] -> its file. ValueError if it is of another shape or too large."""
        return self.compress_batch([x])[0]

    def decompress(self, data: bytes) -> Tensor:
        """A file of one image -> (H,W,3) float on the compressor's device: ``decode_index`` of the tokens, cropped.

        ValueError, saying which, if it is damaged, cut short, no such file, of a newer version or of other models.
        """
        return self.decompress_batch([data])[0]

    def compress_batch(self, images: Tensor | Sequence[Tensor]) -> list[bytes]:
        """As :meth:`compress`, for (B,H,W,3) or several images (H,W,3), of any sizes."""
        same = groups(range(len(images)), [image_size(x) for x in images])
        parts = [(size, part) for size, places in same for part in self.parts(places, self.grid(size))]

        def work(part: tuple) -> zip:
            size, places = part
            grids = self.to_tokens(torch.stack([images[i] for i in places]))
            return zip(places, self.compress_tokens(grids, size), strict=True)

        files = dict(itertools.chain.from_iterable(in_parallel(work, parts, self.workers)))
        return [files[i] for i in range(len(images))]

    def decompress_batch(self, files: Sequence[bytes]) -> list[Tensor]:
        """As :meth:`decompress`, for several. (A tokenizer's floats may differ in the last bits in another batch; the tokens
        do not.)"""
        items = _single(files)

        def to_images(grids: dict[int, np.ndarray]) -> zip:
            return zip(grids, self.to_images(list(grids.values()), [items[k][0].sizes[0] for k in grids]), strict=True)

        images = dict(itertools.chain.from_iterable(self.read(items, to_images)))
        return [images[k] for k in range(len(files))]

    # --- tokens ----------------------------------------------------------------------------------------------------------

    def compress_tokens(self, grids: Tensor | np.ndarray, size: tuple[int, int]) -> list[bytes]:
        """(B,h,w) integers in [0,K), the grids of images of ``size`` (H,W) -> a file each. ValueError if they are not."""
        grids = np.asarray(torch.as_tensor(grids).cpu(), np.int64)
        if grids.ndim != 3 or grids.shape[1:] != self.grid(size):
            raise ValueError(f"Grids {grids.shape} are not (B,{','.join(map(str, self.grid(size)))}), as images of "
                             f"{size[0]}x{size[1]} pixels have them.")  # fmt: skip
        if grids.size and not 0 <= grids.min() <= grids.max() < self.coder.n_tokens:
            raise ValueError(f"Tokens must be from 0 to {self.coder.n_tokens - 1}.")
        # floats must find the batch again that they were coded in, and here a batch of one
        payloads = self.encode(grids) if self.coder.exact else [self.encode(grid[None])[0] for grid in grids]
        return [
            container.image_file(self.models, size, payload, self.models.crc(size, grid))
            for payload, grid in zip(payloads, grids, strict=True)
        ]

    def decompress_tokens(self, files: Sequence[bytes]) -> list[np.ndarray]:
        """The grids (h,w) int64 of files. ValueError as in :meth:`decompress`."""
        grids = {k: grid for batch in self.read(_single(files)) for k, grid in batch.items()}
        return [grids[k] for k in range(len(files))]

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h,w) of an image of ``size`` (H,W)."""
        return tuple(-(-side // self.models.patch) for side in size)

    @torch.inference_mode()
    def to_tokens(self, x: Tensor) -> np.ndarray:
        """(B,H,W,3) float in [-0.5,0.5] -> grids (B,h,w) int64. ValueError if the tokenizer's grids have another size."""
        parts = x.split(max(1, PIXELS_AT_ONCE // (x.shape[1] * x.shape[2])))
        grids = np.concatenate([self.tokenizer.encode_index(part.to(self.device)).cpu().numpy() for part in parts])
        if grids.shape[1:] != self.grid(x.shape[1:3]):
            raise ValueError(f"The tokenizer makes grids {grids.shape[1:]} of images {tuple(x.shape[1:3])}, which are not "
                             f"patches of {self.models.patch} pixels; a file cannot say so.")  # fmt: skip
        return grids

    @torch.inference_mode()
    def to_images(self, grids: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Grids (h,w) of one size, and (H,W) of their images -> the images (H,W,3) float, on the device."""
        if len(grids) == 1:  # as a person would call it, without a batch
            return [self.tokenizer.decode_index(torch.from_numpy(grids[0]).to(self.device))[: sizes[0][0], : sizes[0][1]]]
        at_once, found = max(1, PIXELS_AT_ONCE // (grids[0].size * self.models.patch**2)), []
        for part in pieces(list(zip(grids, sizes, strict=True)), at_once):
            images = self.tokenizer.decode_index(torch.from_numpy(np.stack([grid for grid, _ in part])).to(self.device))
            found += [image[:H, :W] for image, (_, (H, W)) in zip(images, part, strict=True)]
        return found

    # --- the range coder -------------------------------------------------------------------------------------------------

    def encode(self, grids: np.ndarray) -> list[bytes]:
        """(B,h,w) int64 -> B payloads, which are a chunk: if the prior computes in floats, :meth:`decode` needs them all."""
        below, own = [], []
        for (a, b), places in container.tiles(grids.shape[1:], (self.coder.height, self.coder.width)):
            cut = np.stack([grids[:, top : top + a, left : left + b] for top, left in places], axis=1)  # (B,T,a,b)
            for parts, part in zip((below, own), self.intervals(cut.reshape(-1, a, b)), strict=True):  # (B*T,a,b)
                part = part.reshape(*cut.shape[:2], a * b).transpose(0, 2, 1)  # (B*T,N) -> (B,T,N) -> (B,N,T)
                parts.append(part.reshape(len(grids), -1))  # (B,N,T) -> (B,N*T)
        return [container.encode(*image) for image in zip(*(np.concatenate(p, axis=1) for p in (below, own)), strict=True)]

    def intervals(self, grids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(R,a,b) int64 -> (R,N), (R,N), see :func:`container.intervals`."""
        K, N = self.coder.n_tokens, grids[0].size
        tokens = grids.reshape(-1, N)  # (R,a,b) -> (R,N)
        if not self.coder.exact:  # only the decoder's own steps, in its own batch, give its floats again
            return container.intervals_by_steps(self._step(*grids.shape), tokens)
        parts = []
        for some in torch.from_numpy(grids).split(max(1, WEIGHTS_AT_ONCE // (N * K))):
            weights = self.coder.weights(some).numpy().reshape(-1, K)  # (r,N,K) -> (r*N,K)
            parts.append(container.intervals(weights, some.numpy().reshape(-1)))  # (r,a,b) -> (r*N)
        below, own = (np.concatenate(part).reshape(-1, N) for part in zip(*parts, strict=True))  # (R*N) -> (R,N)
        return below, own

    def _step(self, R: int, a: int, b: int) -> Callable[[np.ndarray], np.ndarray]:
        """The prior's steps over R grids of a x b, from arrays to arrays."""
        step = self.coder.steps(R, a, b)
        return lambda tokens: step(torch.from_numpy(tokens)).numpy()

    def decode(self, payloads: Sequence[bytes], grid: tuple[int, int], names: Sequence[str]) -> np.ndarray:
        """The grids (B,h,w) int64 of payloads. ValueError, by one of the names, if a payload is damaged."""
        streams = container.Streams(payloads, names)
        grids = np.empty((len(payloads), *grid), np.int64)
        for (a, b), places in container.tiles(grid, (self.coder.height, self.coder.width)):
            R = len(payloads) * len(places)
            tokens = streams.decode(self._step(R, a, b), R, a * b)  # (B*T,N)
            for (top, left), tile in zip(places, tokens.reshape(len(payloads), -1, a, b).swapaxes(0, 1), strict=True):
                grids[:, top : top + a, left : left + b] = tile  # (B*T,N) -> (B,T,a,b) -> (T,B,a,b)
        return grids

    def read(self, items: Sequence[Item], use: Callable = lambda grids: grids) -> Iterator:
        """The grids (h,w) int64 of images in files, some of one size at a time, by their place in ``items``; or what ``use``
        makes of these grids, in the threads that decode them.

        ValueError, saying which, if a file is damaged or of other models.
        """
        for reader in dict.fromkeys(reader for reader, _ in items):
            reader.check(self.models)
        places = {item: k for k, item in enumerate(items)}

        def work(coded: tuple[list[Item], list[bytes]]):
            batch, payloads = coded
            reader, i = batch[0]
            grids = self.decode(payloads, reader.grid(i), [reader.label(i) for reader, i in batch])
            for (reader, i), grid in zip(batch, grids, strict=True):
                reader.check_tokens(i, self.models, grid)
            return use({places[item]: grid for item, grid in zip(batch, grids, strict=True) if item in places})

        coded = ((batch, [reader.payload(i) for reader, i in batch]) for batch in self._batches(items))
        yield from in_parallel(work, coded, self.workers)

    def _batches(self, items: Sequence[Item]) -> Iterator[list[Item]]:
        """What is decoded together: any images of one size if the arithmetic is exact, otherwise a file's chunks."""
        if self.coder.exact:
            for grid, some in groups(items, [reader.grid(i) for reader, i in items]):
                yield from self.parts(some, grid)
            return
        for reader, some in groups([i for _, i in items], [reader for reader, _ in items]):
            wanted = set(some)
            for chunk in reader.chunks:
                if not wanted.isdisjoint(chunk):
                    grids = {reader.grid(i) for i in chunk}
                    if len(grids) > 1 or len(chunk) > max(1, container.MAX_CHUNK // self.n_tiles(*grids)):
                        raise container.damaged(reader.name, "its chunks are not as they were written")
                    yield [(reader, i) for i in chunk]

    def parts(self, things: list, grid: tuple[int, int]) -> list[list]:
        """``things``, of images with grids (h,w), in parts to code at once: enough of them to keep all threads at work."""
        return pieces(things, min(self.images_at_once(grid), -(-len(things) // self.workers)))

    def n_tiles(self, grid: tuple[int, int]) -> int:
        return -(-grid[0] // self.coder.height) * -(-grid[1] // self.coder.width)

    def images_at_once(self, grid: tuple[int, int]) -> int:
        """How many images with grids (h,w) to code together."""
        return max(1, min(self.batch_size, container.MAX_CHUNK) // self.n_tiles(grid))


def fingerprint(tokenizer: nn.Module) -> bytes:
    """The SHA-256 by which files know a tokenizer: of its class, configuration and weights as float32."""
    return checkpoint.digest(type(tokenizer).__name__, tokenizer.config, tokenizer.state_dict(), torch.float32)


def image_size(x: Tensor) -> tuple[int, int]:
    """(H,W) of an image. ValueError if it is none."""
    if x.ndim != 3 or x.shape[-1] != 3 or not x.is_floating_point():
        raise ValueError(f"An image is a float tensor (H,W,3), but this is {tuple(x.shape)} of {x.dtype}.")
    container.check_size("The image", x.shape[:2])
    return tuple(x.shape[:2])


def groups(things: Iterable, keys: Iterable) -> list[tuple]:
    """(key, the things that have it), in the order in which keys first occur."""
    found = collections.defaultdict(list)
    for thing, key in zip(things, keys, strict=True):
        found[key].append(thing)
    return list(found.items())


def pieces(things: list, n: int) -> list[list]:
    """``things``, at most ``n`` in each list."""
    return [things[i : i + n] for i in range(0, len(things), n)]


def in_parallel(f: Callable, things: Iterable, n: int) -> Iterator:
    """``f`` of each thing, in their order, ``n`` of them at a time in as many threads. Each computes with one torch thread,
    since many small steps of which each waits for all cores take longer than many at the same time."""
    before, pending = torch.get_num_threads(), collections.deque()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for thing in things:
            pending.append(pool.submit(f, thing))
            if len(pending) > n:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, what has not begun is left
        torch.set_num_threads(before)


def _single(files: Sequence[bytes]) -> list[Item]:
    """Files of one image each. ValueError, saying which, if one is not."""
    names = [f"File {k}" for k in range(len(files))] if len(files) > 1 else ["The file"]
    readers = [container.Reader(io.BytesIO(data), name) for data, name in zip(files, names, strict=False)]
    for reader in readers:
        if reader.kind != container.IMAGE:
            raise ValueError(f"{reader.name} is an archive; unpack it with python -m homework.compress decompress.")
    return [(reader, 0) for reader in readers]


# --- files ----------------------------------------------------------------------------------------------------------------

Coded = tuple[list[str], tuple[int, int], np.ndarray, list[bytes]]  # paths, (H,W), grids (B,h,w), payloads: one chunk


def compress(
    tokenizer: str,
    autoregressive: str,
    *images_and_output: str,
    image_size: str | None = None,
    verify: bool = False,
    skip_bad: bool = False,
    batch_size: int = 64,
    device: str = "auto",
) -> None:
    """Compresses a picture into a small file, or a folder of pictures into an archive.

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
    cli.switches(verify=verify, skip_bad=skip_bad)
    *sources, output = map(str, images_and_output) if images_and_output else [""]  # Fire takes 2026 for a number
    if not sources:
        raise ValueError("Name the image or the folder to compress and, after it, the file to write.")
    if Path(output).is_dir() or Path(output).suffix.lower() in {*Image.registered_extensions(), ".json", ".pth"}:
        raise ValueError(f"The last argument is the file to write, but {output} is a folder, a picture or a checkpoint.")
    if not container.may_replace(output):
        raise ValueError(f"{output} exists, but is no file of homework.compress, so it stays; name another, or remove it.")
    scaled, paths = cli.parse_size(image_size), image_paths(sources)
    for folder in filter(os.path.isdir, sources):
        if others := not_read(Path(folder)):
            print(f"Left out of {folder}: {others}.", file=sys.stderr)
    one = len(sources) == 1 and paths == [str(Path(sources[0]))]
    names = dict(zip(paths, names_below(paths), strict=True))
    compressor, bad, kept, start = _compressor(tokenizer, autoregressive, batch_size, device), {}, [], 0
    with checkpoint.replacing(output) as temporary, open(temporary, "wb") as file:
        writer = None if one else container.ArchiveWriter(file, compressor.models)
        with tqdm(total=len(paths), desc="compressing", unit="img") as bar:
            for part, size, grids, payloads in encode_files(compressor, paths, bad, bar, scaled):
                crcs = [compressor.models.crc(size, grid) for grid in grids]
                if one:
                    file.write(container.image_file(compressor.models, size, payloads[0], crcs[0]))
                else:
                    writer.add([names[path] for path in part], [size] * len(part), payloads, crcs)
                kept += list(grids.astype(np.int32)) if verify else []
                start += sum(map(os.path.getsize, part))
                bar.set_postfix_str(f"{file.tell():,} bytes")
        _tell_bad(bad, len(paths), skip_bad)
        if writer:
            writer.close()
        file.flush()
        os.fsync(file.fileno())
        if verify:
            try:
                _verify(compressor, temporary, kept)
            except ValueError as error:
                what = f"{output} is not written, for it would not decode to the tokens that were coded"
                raise ValueError(f"{what}: {error}") from error
    size, n = os.path.getsize(output), len(paths) - len(bad)
    print(f"{output}: {n} image{'s' * (n > 1)}, {size:,} bytes, {size / n:,.1f} an image, "
          f"{start / size:.1f} times fewer than the {start:,} of the originals"
          f"{'; verified, all tokens come back' * verify}")  # fmt: skip


def names_below(paths: list[str]) -> list[str]:
    """The paths relative to the folder that holds all of them. ValueError if two are of the same file."""
    full = [os.path.abspath(path) for path in paths]
    base = os.path.commonpath(map(os.path.dirname, full))
    if len(set(full)) < len(full):
        raise ValueError("Some image is named twice, by different paths.")
    return [Path(os.path.relpath(path, base)).as_posix() for path in full]


def encode_files(
    compressor: Compressor, paths: list[str], bad: dict[str, str], bar: tqdm, scaled: tuple[int, int] | None = None
) -> Iterator[Coded]:
    """The chunks that image files become, ``scaled`` to that (H,W) if it is given; ``bad`` gets a sentence about each that
    cannot be one."""

    def work(part: tuple[list[str], tuple[int, int], np.ndarray]) -> Coded:
        names, size, pixels = part
        grids = compressor.to_tokens(to_float(torch.from_numpy(pixels)))  # (B,H,W,3)
        return names, size, grids, compressor.encode(grids)

    for chunk in in_parallel(work, _same_size(compressor, paths, bad, bar, scaled), compressor.workers):
        yield chunk
        bar.update(len(chunk[0]))


def _same_size(
    compressor: Compressor, paths: list[str], bad: dict[str, str], bar: tqdm, scaled: tuple[int, int] | None
) -> Iterator[tuple]:
    """Paths, their (H,W) and pixels (B,H,W,3) uint8, of as many images as are coded together."""
    at_once = min(compressor.batch_size, -(-len(paths) // compressor.workers))
    for batch, images in decoded(_read_ahead(paths, at_once), scaled):
        good = {}
        for path, image in zip(batch, images, strict=True):
            try:
                if isinstance(image, str):
                    raise ValueError(image)
                container.check_size(path, image.shape[:2])
                good[path] = image
            except ValueError as error:
                bad[path] = str(error)
        for size, some in groups(good, [image.shape[:2] for image in good.values()]):
            for part in pieces(some, compressor.images_at_once(compressor.grid(size))):
                yield part, size, np.stack([good[path] for path in part])
        bar.update(len(batch) - len(good))


def _read_ahead(paths: list[str], n: int) -> Iterator[list[str]]:
    """At most ``n`` paths at a time, fewer where the images are large."""
    batch, size = [], 0
    for path in paths:
        own = n_pixels(path)
        if batch and (len(batch) == n or size + own > PIXELS_READ_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += own
    yield batch


def _tell_bad(bad: dict[str, str], n: int, skip_bad: bool) -> None:
    if not bad:
        return
    if n == 1:
        raise ValueError(*bad.values())
    named = "\n  ".join(list(bad.values())[:10] + [f"and {len(bad) - 10} more"] * (len(bad) > 10))
    if len(bad) == n or not skip_bad:
        remedy = "there are no others" if len(bad) == n else "pass --skip_bad to leave them out"
        raise ValueError(f"{len(bad)} of {n} images cannot be used; {remedy}:\n  {named}")
    print(f"Left out {len(bad)} of {n} images:\n  {named}", file=sys.stderr)


def _verify(compressor: Compressor, path: Path, kept: list[np.ndarray]) -> None:
    """ValueError, which calls the file "it", unless it decodes to the grids ``kept``, in the order of its images."""
    n_bytes = 0
    with open(path, "rb") as file, tqdm(total=len(kept), desc="verifying", unit="img") as bar:
        reader = container.Reader(file, "it")
        for grids in compressor.read([(reader, i) for i in range(len(kept))]):
            for i, grid in grids.items():
                if not np.array_equal(grid, kept[i]):
                    raise ValueError(f"{reader.label(i)} has other tokens.")
                n_bytes += reader.lengths[i]
            bar.update(len(grids))
            bar.set_postfix_str(f"{n_bytes:,} bytes")


def decompress(
    tokenizer: str,
    autoregressive: str,
    file: str,
    output: str,
    only: str | None = None,
    batch_size: int = 128,
    device: str = "auto",
) -> None:
    """Turns a file that `compress` wrote into a picture, or an archive into a folder of PNG pictures.

    Args:
        tokenizer: checkpoint of the tokenizer that the file was written with.
        autoregressive: checkpoint of the prior that it was written with.
        file: what to decompress.
        output: the picture to write (.png, .bmp, .ppm, .tif), or for an archive the folder.
        only: the name of one image in an archive, which becomes a picture; all by default.
        batch_size: images that go through the models at once.
        device: auto, cpu, cuda or mps.
    """
    file, target = str(file), Path(os.path.abspath(str(output)))
    with open(file, "rb") as stream:
        reader = container.Reader(stream, file)
        wanted = range(len(reader.names))
        if only is not None:
            if reader.kind == container.IMAGE:
                raise ValueError(f"{file} is one image, not an archive of several; leave --only out.")
            if str(only) not in reader.names:
                known = ", ".join([*map(printable, reader.names[:3]), *["..."] * (len(reader.names) > 3)])
                raise ValueError(f"{file} holds no image {only}; it holds {known} (see the command info).")
            wanted = [reader.names.index(str(only))]
        whole = reader.kind == container.ARCHIVE and only is None
        if whole and (target.is_file() or target.suffix.lower() in LOSSLESS):
            raise ValueError(f"{file} is an archive: name a folder, not {output}, or one of its images by --only NAME.")
        if not whole and (target.is_dir() or target.suffix.lower() not in LOSSLESS):
            raise ValueError(f"The output is {output}, but must be a picture: a file that ends in {', '.join(LOSSLESS)}.")
        compressor = _compressor(tokenizer, autoregressive, batch_size, device)
        reader.check(compressor.models)  # before any folder is made
        with _whole_folder(target) if whole else checkpoint.replacing(target) as temporary:
            names = [temporary / name for name in png_names(reader.names)] if whole else [temporary] * len(reader.names)
            form = "PNG" if whole else LOSSLESS[target.suffix.lower()]
            _write(compressor, reader, {i: names[i] for i in wanted}, form)
    print(f"{output}: {len(wanted)} image{'s' * (len(wanted) > 1)}")


def _write(compressor: Compressor, reader: container.Reader, paths: dict[int, Path], form: str) -> None:
    """Writes the images of a file that have a path."""
    items, n_bytes = [(reader, i) for i in paths], 0

    def save(grids: dict[int, np.ndarray]) -> list[int]:
        places = [items[k][1] for k in grids]
        images = compressor.to_images(list(grids.values()), [reader.sizes[i] for i in places])
        return [_save(to_uint8(image).cpu().numpy(), paths[i], form) for i, image in zip(places, images, strict=True)]

    with tqdm(total=len(paths), desc="decompressing", unit="img") as bar:
        for lengths in compressor.read(items, save):
            n_bytes += sum(lengths)
            bar.update(len(lengths))
            bar.set_postfix_str(f"{n_bytes:,} bytes")


def _save(image: np.ndarray, path: Path, form: str) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, format=form, compress_level=1)  # of PNG: as large as with 6, nearly, in half the time
    return path.stat().st_size


def png_names(names: list[str]) -> list[str]:
    """a.jpg -> a.png; but where this gives two images one name, all keep theirs: a.jpg.png."""
    short = [str(Path(name).with_suffix(".png")) for name in names]
    return short if len(set(short)) == len(short) else [f"{name}.png" for name in names]


@contextlib.contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder, whose files are in ``path`` after the block, or nowhere after an error in it."""
    temporary = (path if path.is_dir() else path.parent) / f"{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with checkpoint.as_of(temporary, path):
            temporary.mkdir(parents=True)
            yield temporary
        for file in [file for file in temporary.rglob("*") if file.is_file()]:
            target = path / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def info(file: str) -> None:
    """Prints what a file that `compress` wrote says of itself, for which it needs no models; or by which hash files know a
    tokenizer or a prior.

    Args:
        file: one image's file or an archive; or a checkpoint.
    """
    if Path(str(file)).suffix == ".pth":
        print(_who(str(file)))
        return
    with open(str(file), "rb") as stream:
        reader = container.Reader(stream, str(file))
    n, h, w = len(reader.names), *reader.grid(0)
    (H, W), pixels, payload = reader.sizes[0], sum(H * W for H, W in reader.sizes), sum(reader.lengths)
    one = f"one image of {W}x{H} pixels (width x height), {w}x{h} tokens"
    what = f"{n:,} image{'s' * (n > 1)}" if reader.kind == container.ARCHIVE else one
    print(f"{reader.name}: {what}, patches of {reader.patch} pixels")
    print(f"format {container.FORMAT}, tokenizer {reader.head[3:5].hex()}, prior {reader.head[5:7].hex()}, "
          f"arithmetic {'exact, in whole numbers' if reader.exact else 'in floats, of one kind of machine'}")  # fmt: skip
    for what, size in ("file", reader.length), ("coded tokens", payload):
        print(f"{what}: {size:,} bytes, {8 * size / n:,.1f} bits an image, {8 * size / pixels:.4f} bits a pixel")
    print("   bytes  bits/pixel    width x height     CRC-32  name")
    for name, (H, W), length, crc in zip(reader.names, reader.sizes, reader.lengths, reader.crcs, strict=True):
        print(f"{length:8,}  {8 * length / (H * W):10.4f}  {W:7} x {H:<7}   {crc:08x}  {printable(name)}".rstrip())


def _who(path: str) -> str:
    """What files say of the model in a checkpoint. ValueError if it is neither a tokenizer nor a prior."""
    from homework import exact

    model = checkpoint.load(path)
    if hasattr(model, "encode_index"):
        return f"{path}: tokenizer {fingerprint(model)[:2].hex()}, {type(model).__name__}"
    if hasattr(model, "steps") and model.data != "multiscale":
        return f"{path}: prior {exact.coder(model).fingerprint[:2].hex()}, {type(model).__name__}"
    raise ValueError(f"{path} holds a {type(model).__name__}, but a tokenizer or a prior writes files.")


def printable(name: str) -> str:
    """A file's name whose bytes are no UTF-8, too."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _compressor(tokenizer: str, autoregressive: str, batch_size: int, device: str) -> Compressor:
    cli.at_least(1, batch_size=batch_size)
    device = cli.pick_device(device)
    return Compressor(*load_pair(str(tokenizer), str(autoregressive), device), device, batch_size)


if __name__ == "__main__":
    cli.main("python -m homework.compress", {"compress": compress, "decompress": decompress, "info": info})
