"""Images to bytes and back."""

import copy
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homework.codec import archive, dial, format, range_coder, tiles
from homework.codec.entropy import EIGHTHS, as_learned, entropy_model, probe
from homework.codec.parallel import groups, in_parallel, own_threads
from homework.codec.search import search
from homework.core import checks
from homework.core.fingerprint import fingerprint, legacy_fingerprint, of_all_weights
from homework.datasets.image_files import batches_of
from homework.datasets.images import as_float, to_uint8
from homework.priors.base import Prior
from homework.priors.cascade import Cascade
from homework.tokenizers.base import Tokenizer

OVERSHOOT = 0.25  # how far an image's values may be beyond [-0.5,0.5], as those of decoded images are
PIXELS_AT_ONCE = 2**17  # that go through the tokenizer together: with more, memory costs more than it saves
Item = tuple[archive.Reader, int]  # a file, and which of its images


class Compressor:
    """Images to bytes and back: the tokens of a tokenizer, range-coded under a prior::

        x (H,W,3) -> encode_at -> grid (h,w) -> tiles of the prior's size -> weights -> range coder -> file
        file -> range coder <-> the prior's steps -> grid (h,w) -> decode_index -> crop -> x_hat (H,W,3)

    The grid comes back exactly: under a transformer, which computes on integers (:mod:`homework.codec.integer_layers`), on
    every machine and in any batch; under other priors, which take the same float steps in both directions, on machines of
    one kind: others refuse the file, by :func:`homework.codec.entropy.probe`. The models are copied, in eval mode, to
    ``device`` (None for where the tokenizer is): what becomes of the caller's changes no file. ``batch_size`` images, or
    tiles of them, go through them at once. ValueError if the two do not go together.

    ``effort``, from 0 to 9, says how long to look for better tokens than the encoder's, which are those of 0, and
    ``quality``, from 1 to 100, what is better: error is weighed against bits, see :func:`homework.codec.search.search`. With
    a ``target`` the quality is each image's own, see :func:`homework.codec.dial.aim`. All of these matter to compressing
    only. With effort 0 it takes a tokenizer with a dial to have another quality than 50.
    """

    priors: type = Prior  # what it takes as one; a subclass takes something else
    prior: Any

    def __init__(self, tokenizer: Tokenizer, autoregressive: Prior | Cascade, device: str | torch.device | None = None,
                 batch_size: int = 64, effort: int = 0, quality: float = dial.QUALITY,
                 target: dial.Target | None = None):  # fmt: skip
        if not isinstance(tokenizer, Tokenizer) or not isinstance(autoregressive, self.priors):
            raise ValueError(f"A Compressor takes a tokenizer and a prior, but these are a {type(tokenizer).__name__} and a "
                             f"{type(autoregressive).__name__}; load them by homework.load.")  # fmt: skip
        if tokenizer.n_tokens != autoregressive.n_tokens:
            raise ValueError(f"The tokenizer has {tokenizer.n_tokens} codes, but the prior was trained on "
                             f"{autoregressive.n_tokens}; train a prior on this tokenizer's grids.")  # fmt: skip
        checks.integer(1, None, batch_size=batch_size)
        self.device = tokenizer.device if device is None else torch.device(device)
        with torch.inference_mode(False):  # in float32, since the fingerprints are of that
            self.tokenizer = copy.deepcopy(tokenizer).to(self.device, torch.float32).eval().requires_grad_(False)
            self.prior = copy.deepcopy(autoregressive).to(self.device, torch.float32).eval().requires_grad_(False)
        self._set(effort, quality, target)
        self.entropy_model = entropy_model(self.prior)
        self.batch_size = batch_size
        self.workers = own_threads() if self.device.type == "cpu" else 1
        tokenizers, priors = {1: legacy_fingerprint(self.tokenizer), 2: fingerprint(self.tokenizer)}, self.entropy_model
        pairs = {version: (tokenizers[version], own) for version, own in priors.fingerprints.items()}
        (found,) = [b""] if priors.exact else in_parallel(probe, [priors], 1)
        self.pair = format.ModelPair(pairs, max(tokenizer.patch_shape), priors.exact, found)

    @property
    def models(self) -> format.ModelPair:
        """By what files know the models."""
        return self.pair

    @property
    def encoders(self) -> list[str]:
        """By what work that is resumed knows what makes the tokens."""
        return [of_all_weights(self.tokenizer)]

    def at(self, quality: float, effort: int | None = None, target: dial.Target | None = None) -> "Compressor":
        """The same, with its models, but of another quality and effort (its own if None), and with this target or none.
        ValueError as for the constructor's."""
        other = copy.copy(self)
        other._set(self.effort if effort is None else effort, quality, target)
        return other

    def _set(self, effort: int, quality: float, target: dial.Target | None) -> None:
        checks.integer(0, 9, effort=effort)
        dial.lmbda_at(quality)  # ValueError if it is none
        if effort == 0 and not self.tokenizer.has_dial and (target or quality != dial.QUALITY):
            raise ValueError("With effort 0 the tokens are the encoder's, which has no dial, and so one quality; use an "
                             "effort from 1 to 9.")  # fmt: skip
        self.effort, self.quality, self.target = effort, quality, target

    def compress(self, x: Tensor) -> bytes:
        """One image (H,W,3), float (of any precision, but computed with as float32) in [-0.5,0.5] -> its file. ValueError if
        it is of another shape, too large, or far from this range."""
        return self.compress_batch([x])[0]

    def decompress(self, data: bytes) -> Tensor:
        """A file of one image -> (H,W,3) float on the compressor's device: ``decode_index`` of the tokens, cropped.
        ValueError, saying which, if it is damaged, cut short, another program's, of a newer version or of other models."""
        return self.decompress_batch([data])[0]

    def compress_batch(self, images: Tensor | Sequence[Tensor]) -> list[bytes]:
        """As :meth:`compress`, for (B,H,W,3) or several images (H,W,3), of any sizes."""
        same = groups(range(len(images)), map(image_size, images))
        parts = [(size, part) for size, where in same for part in self.parts(where, self.grid(size))]

        def work(part: tuple) -> dict[int, bytes]:
            size, where = part
            grids = self.to_tokens([images[i] for i in where])
            return dict(zip(where, self.compress_tokens(grids, size), strict=True))

        return in_order(in_parallel(work, parts, self.workers))

    def decompress_batch(self, files: Sequence[bytes]) -> list[Tensor]:
        """As :meth:`decompress`, for several. (In another batch the last bits of the floats may differ, but no token.)"""
        return in_order(self.read_images(_single(files)))

    def compress_tokens(self, grids: Tensor | np.ndarray, size: tuple[int, int]) -> list[bytes]:
        """(B,h,w) integers in [0,K), the grids of images of ``size`` (H,W) -> a file each. ValueError for any others."""
        grids = self.checked(torch.as_tensor(grids, device="cpu").detach().numpy(), size)
        # floats repeat only in the batch in which they were coded, and a file of its own is a batch of one
        together = self.entropy_model.exact and len(grids)
        payloads = self.encode(grids) if together else [self.encode(grid[None])[0] for grid in grids]
        crcs = [self.models.crc(size, grid) for grid in grids]
        return [self.image_file(size, *coded) for coded in zip(payloads, crcs, strict=True)]

    def image_file(self, size: tuple[int, int], payload: bytes, crc: int) -> bytes:
        """One image's file, see :func:`homework.codec.format.image_file`."""
        return format.image_file(self.models, size, payload, crc)

    def checked(self, grids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Grids (B,h,w) of images of ``size`` (H,W), as int64. ValueError if they are none."""
        if grids.dtype.kind not in "iu":
            raise ValueError(f"Tokens must be integers, but these are of {grids.dtype}.")
        if grids.ndim != 3 or grids.shape[1:] != self.grid(size):
            raise ValueError(f"Grids {grids.shape} are not (B,{','.join(map(str, self.grid(size)))}), as images of "
                             f"{size[0]}x{size[1]} pixels have them.")  # fmt: skip
        K = np.broadcast_to(self.entropy_model.n_tokens, grids.shape)
        if (wrong := (grids < 0) | (grids >= K)).any():
            raise ValueError(f"Tokens must be from 0 to {K[wrong][0] - 1}.")
        return grids.astype(np.int64)

    def decompress_tokens(self, files: Sequence[bytes]) -> list[np.ndarray]:
        """The grids (h,w) int64 of files. ValueError as in :meth:`decompress`."""
        return in_order(self.read(_single(files)))

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h,w) of an image of ``size`` (H,W)."""
        return -(-size[0] // self.models.patch), -(-size[1] // self.models.patch)

    def grid_in(self, reader: archive.Reader, i: int) -> tuple[int, int]:
        """(h,w) of image ``i`` of a file. ValueError if it cannot be one of these models."""
        return reader.grid(i)

    def payload(self, reader: archive.Reader, i: int) -> Any:
        """What :meth:`decode` takes of image ``i`` of a file."""
        return reader.payload(i)

    def to_tokens(self, images: Tensor | Sequence[Tensor], searched: Callable[[], object] = lambda: None) -> np.ndarray:
        """Images (H,W,3) of one size, float in [-0.5,0.5] or uint8 -> grids (B,h,w) int64. Calls ``searched`` after the
        search for each. ValueError if the tokenizer's grids have another size."""
        if not self.chooses:
            return self.extended(self.encoded(images, self.quality))
        grids = []
        for i in range(len(images)):  # one by one: in a batch, floats may be others
            grids.append(self.chosen(images[i], self.encoded(images[i : i + 1], self.quality)[0]))
            if self.effort:
                searched()
        return np.stack(grids)

    @property
    def chooses(self) -> bool:
        """Whether :meth:`chosen` has something to do."""
        return bool(self.effort or self.target)

    def extended(self, tokens: np.ndarray) -> np.ndarray:
        """The encoder's tokens (B,h,w) as grids."""
        return tokens

    @torch.inference_mode()
    def encoded(self, images: Tensor | Sequence[Tensor], quality: float) -> np.ndarray:
        """As :meth:`to_tokens`, without a search: the tokens of the encoder at a quality."""
        H, W = images[0].shape[:2]
        grids = np.empty((len(images), *(grid := self.grid((H, W)))), np.int64)
        for block, around, within in self.blocks(grid, self.tokenizer.encoder_halo):
            for part in batches_of(range(len(images)), max(1, PIXELS_AT_ONCE // (H * W))):
                x = torch.stack([images[i][tiles.scaled(around, self.models.patch)] for i in part])  # (B,H,W,3) of the block
                tokens = self.tokenizer.encode_at(as_float(x).to(self.device), self.lmbda_at(quality)).cpu().numpy()
                if tokens.shape[1:] != self.grid((x.shape[1], x.shape[2])):
                    raise ValueError(f"The tokenizer makes grids {tokens.shape[1:]} of images {tuple(x.shape[1:3])}, which "
                                     f"are not patches of {self.models.patch} pixels; a file cannot say so.")  # fmt: skip
                grids[(slice(part.start, part.stop), *block)] = tokens[(slice(None), *within)]
        return grids

    def chosen(self, x: Tensor, encoded: np.ndarray) -> np.ndarray:
        """Better tokens (h,w) than the encoder's for an image (H,W,3), as good as the target demands if there is one."""

        def measured(quality: int) -> tuple[np.ndarray, int, float]:
            grid = self.at_quality(x, encoded, quality)
            return grid, len(self.compress_tokens(grid[None], (x.shape[0], x.shape[1]))[0]), self.psnr([x], [grid])[0]

        if self.target:
            return dial.aim(self.target, measured, "The image")
        return self.at_quality(x, encoded, self.quality)

    def at_quality(self, x: Tensor, encoded: np.ndarray, quality: float) -> np.ndarray:
        """The grid of an image (H,W,3) at a quality, given the encoder's tokens (h,w) at the compressor's own."""
        if quality != self.quality and self.tokenizer.has_dial:
            encoded = self.encoded(x[None], quality)[0]
        if self.effort:
            start, lmbda = torch.from_numpy(encoded), self.lmbda_at(quality)
            encoded = search(self.tokenizer, self.prior, x, lmbda, self.effort, start).cpu().numpy()
        return self.completed(x, encoded, quality)

    def lmbda_at(self, quality: float) -> float:
        """That of the search, see :func:`homework.codec.search.search`. ValueError for a quality that is none."""
        return dial.lmbda_at(quality)

    def nearest(self, quality: float) -> float:
        """The quality of those that there are at this effort that gives the same files as ``quality``."""
        return quality

    def completed(self, x: Tensor, tokens: np.ndarray, quality: float) -> np.ndarray:
        """Tokens (h,w) of an image (H,W,3) with what else its file holds at a quality: here nothing."""
        return tokens

    def psnr(self, images: Sequence[Tensor], grids: Sequence[np.ndarray]) -> list[float]:
        """In dB, of images (H,W,3) of one size, float or uint8, as they come back from their grids (h,w), rounded to 8 bits
        a channel; infinite for one that is the same."""
        (H, W), errors = images[0].shape[:2], [0.0] * len(images)
        for i, where, x_hat in self.decoded_blocks(grids, [(H, W)] * len(images)):
            x = images[i][where]
            pixels = (x if x.dtype == torch.uint8 else to_uint8(x)).cpu().numpy()
            difference = np.subtract(to_uint8(x_hat).cpu().numpy(), pixels, dtype=np.float32)
            errors[i] += float(np.square(difference).sum())
        return [10 * math.log10(255**2 * 3 * H * W / error) if error else math.inf for error in errors]

    def to_images(self, grids: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]],
                  convert: Callable[[Tensor], Tensor] = lambda x: x) -> list[Tensor]:  # fmt: skip
        """Grids (h,w) of one size, and (H,W) of their images -> the images (H,W,3) float, on the device; or what ``convert``
        makes of their blocks, as other numbers of each pixel."""
        images: list[Tensor] = []
        for i, where, x in self.decoded_blocks(grids, sizes):
            x = convert(x)
            if i == len(images):
                images.append(torch.empty(*sizes[i], *x.shape[2:], dtype=x.dtype, device=x.device))
            images[i][where] = x
        return images

    def decoded_blocks(self, grids: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]],
                       ) -> Iterator[tuple[int, tiles.Slices, Tensor]]:  # fmt: skip
        """The images of :meth:`to_images` in parts: which image, which of its pixels, and these (H',W',3) float."""
        P = self.models.patch
        for part in batches_of(range(len(grids)), max(1, PIXELS_AT_ONCE // (grids[0].size * P**2))):
            for block, around, within in self.blocks(grids[0].shape, self.tokenizer.decoder_halo):
                index = torch.from_numpy(np.stack([grids[i][around] for i in part])).to(self.device)
                with torch.inference_mode():  # one by itself as a person would decode it, without a batch
                    found = self.tokenizer.decode_index(index) if len(part) > 1 else [self.tokenizer.decode_index(index[0])]
                for i, x in zip(part, found, strict=True):
                    (H, W), (rows, columns) = sizes[i], tiles.scaled(block, P)  # at the edge, more than the image has
                    yield i, (rows, columns), x[tiles.scaled(within, P)][: H - rows.start, : W - columns.start]

    def blocks(self, grid: tuple[int, int], halo: int | None) -> Iterator[tuple]:
        """See :func:`homework.codec.tiles.blocks`; a single one if the image is small, or its patches depend on all."""
        n, most = math.prod(grid), PIXELS_AT_ONCE // self.models.patch**2
        return tiles.blocks(grid, n if halo is None or n <= most else most, halo or 0)

    def encode(self, grids: np.ndarray) -> list[bytes]:
        """(B,h,w) int64 -> B payloads, which are a chunk: if the prior computes in floats, :meth:`decode` needs them all."""
        encoders = [range_coder.RangeEncoder() for _ in grids]
        for k, (_, _, found, powers) in enumerate(self.intervals(grids)):
            parts = found.transpose(1, 0, 3, 2).reshape(len(grids), 2, -1)  # (2,B,T,N) -> (B,2,N,T) -> (B,2,N*T)
            if k == 0:
                named = range_coder.intervals(range_coder.equal_weights(len(grids), len(EIGHTHS)), powers)  # (2,B)
                parts = np.concatenate([named.T[..., None], parts], axis=-1)  # (B,2,1+N*T)
            for encoder, part in zip(encoders, parts, strict=True):
                range_coder.append(encoder, *part)
        return list(map(range_coder.finish, encoders))

    def intervals(self, grids: np.ndarray) -> Iterator[tuple[tuple[int, int], list, np.ndarray, np.ndarray]]:
        """Of grids (B,h,w) int64, tiles of one size at a time: the size (a,b), the T corners, the tiles' intervals (2,B,T,N)
        int64, see :func:`homework.codec.range_coder.intervals`, and the power of each image (B) int64, see
        :mod:`homework.codec.entropy`, the same for all of its tiles: the best for some of them."""
        model, grid = self.entropy_model, grids.shape[1:]
        powers, tile = None, tiles.fitting((model.height, model.width), grid)
        if tile != grid:  # a single tile says it itself, in the same pass
            some = tiles.cut(grids, tile, tiles.some(grid, tile))  # (B,t,a,b)
            powers = model.sharpest(some.reshape(-1, *tile), some.shape[1])
        for (a, b), corners in self.tiles(grid):
            parts = tiles.cut(grids, (a, b), corners)  # (B,T,a,b)
            found, used = model.intervals(parts.reshape(-1, a, b), powers if powers is None else powers.repeat(len(corners)))
            yield (a, b), corners, found.reshape(2, *parts.shape[:2], a * b), used[:: len(corners)]  # (2,B*T,N) -> (2,B,T,N)

    def decode(self, payloads: Sequence[bytes], grid: tuple[int, int], names: Sequence[str],
               sharpened: bool = True) -> np.ndarray:  # fmt: skip
        """The grids (B,h,w) int64 of payloads, which begin with a power's number if ``sharpened``. ValueError, by one of the
        names, if a payload is damaged or too long."""
        decoder = range_coder.BatchDecoder(payloads, names, self.entropy_model.exact)
        even = range_coder.equal_weights(len(payloads), len(EIGHTHS))
        powers = decoder.next(even) if sharpened else as_learned(len(payloads))
        found: list[tuple[tuple[int, int], np.ndarray]] = []
        for (a, b), corners in self.tiles(grid):
            R = len(payloads) * len(corners)
            step = self.entropy_model.steps(R, a, b, powers.repeat(len(corners)))
            tokens = decoder.decode(step, R, a * b).astype(np.int32)  # (B*T,N)
            found += zip(corners, tokens.reshape(len(payloads), -1, a, b).swapaxes(0, 1), strict=True)  # (T,B,a,b)
        decoder.finish()
        grids = np.empty((len(payloads), *grid), np.int64)  # only now: what a header claims, the tokens have paid for
        for (top, left), tile in found:
            grids[:, top : top + tile.shape[1], left : left + tile.shape[2]] = tile
        return grids

    def tiles(self, grid: tuple[int, int]) -> Iterator[tuple]:
        """Of the prior's size, see :func:`homework.codec.tiles.tiles`."""
        return tiles.tiles(grid, (self.entropy_model.height, self.entropy_model.width))

    def read(self, items: Sequence[Item], use: Callable = lambda grids: grids) -> Iterator[dict]:
        """The grids (h,w) int64 of images in files, some of one size at a time, by their position in ``items``; or what
        ``use`` makes of them, in the threads that decode. ValueError, naming it, if a file is damaged or of other models."""
        for reader in dict.fromkeys(reader for reader, _ in items):
            reader.check(self.models)
        positions = {item: k for k, item in enumerate(items)}

        def work(coded: tuple[list[Item], list]) -> dict:
            batch, payloads = coded
            reader, i = batch[0]
            names = [reader.label(i) for reader, i in batch]
            grids = self.decode(payloads, self.grid_in(reader, i), names, reader.sharpened)
            for (reader, i), grid in zip(batch, grids, strict=True):
                reader.check_tokens(i, self.models, grid)
            return use({positions[item]: grid for item, grid in zip(batch, grids, strict=True) if item in positions})

        coded = ((batch, [self.payload(reader, i) for reader, i in batch]) for batch in self._batches(items))
        yield from in_parallel(work, coded, self.workers)

    def read_images(self, items: Sequence[Item], use: Callable = lambda k, image: image,
                    convert: Callable[[Tensor], Tensor] = lambda x: x) -> Iterator[dict]:  # fmt: skip
        """As :meth:`read`, but decoded: the images (H,W,3) float, or what ``use`` makes of a position and its image;
        ``convert`` as in :meth:`to_images`."""

        def decoded(grids: dict[int, np.ndarray]) -> dict:
            sizes = [reader.sizes[i] for reader, i in (items[k] for k in grids)]
            images = self.to_images(list(grids.values()), sizes, convert)
            return {k: use(k, images.pop(0)) for k in grids}  # kept by none but its user

        return self.read(items, decoded)

    def _batches(self, items: Sequence[Item]) -> Iterator[list[Item]]:
        """What is decoded together: any images of one size if the arithmetic is exact, otherwise a file's chunks."""
        if self.entropy_model.exact:
            for (grid, _), some in groups(items, [(self.grid_in(reader, i), reader.sharpened) for reader, i in items]):
                yield from self.parts(some, grid)
            return
        for reader, some in groups([i for _, i in items], [reader for reader, _ in items]):
            wanted = set(some)
            for chunk in reader.chunks:
                if not wanted.isdisjoint(chunk):
                    grids = {self.grid_in(reader, i) for i in chunk}
                    if len(grids) > 1 or len(chunk) > self.images_at_once(min(grids), archive.MAX_CHUNK):
                        raise range_coder.damaged(reader.name, "its chunks are not as they were written")
                    yield [(reader, i) for i in chunk]

    def parts(self, things: Sequence, grid: tuple[int, int]) -> list:
        """``things``, of images with grids (h,w), in parts to code at once: enough of them to keep all threads at work."""
        return batches_of(things, min(self.images_at_once(grid), -(-len(things) // self.workers)))

    def images_at_once(self, grid: tuple[int, int], n: int | None = None) -> int:
        """How many images with grids (h,w) have ``n`` tiles in all, by default as many as are coded together; at least 1."""
        n_tiles = -(-grid[0] // self.entropy_model.height) * -(-grid[1] // self.entropy_model.width)
        return max(1, (n or min(self.batch_size, archive.MAX_CHUNK)) // n_tiles)

    def by_patch(self, bits: Tensor, grid: np.ndarray) -> Tensor:
        """The bits of each token of a grid -> (h,w): those of each patch."""
        return bits


def in_order(batches: Iterable[dict]) -> list:
    """The values of dictionaries that together hold each position once, by position."""
    found = {k: value for batch in batches for k, value in batch.items()}
    return [found[k] for k in range(len(found))]


def image_size(x: Tensor) -> tuple[int, int]:
    """(H,W) of an image, float (H,W,3). ValueError for any other tensor, also if a value is NaN or out of range."""
    if not isinstance(x, Tensor):
        raise ValueError(f"An image is a float tensor (H,W,3), but this is a {type(x).__name__}.")
    if x.ndim != 3 or x.shape[-1] != 3 or not x.is_floating_point():
        raise ValueError(f"An image is a float tensor (H,W,3), but this is {tuple(x.shape)} of {x.dtype}.")
    size = x.shape[0], x.shape[1]
    format.check_size("The image", size)
    low, high = (value.item() for value in x.detach().float().aminmax())
    if not -0.5 - OVERSHOOT <= low <= high <= 0.5 + OVERSHOOT:  # nor if one is nan
        raise ValueError(f"An image's values are from -0.5 to 0.5, but these are from {low:g} to {high:g}; bring them "
                         "there, as homework.data.to_float does with uint8.")  # fmt: skip
    return size


def _single(files: Sequence[bytes]) -> list[Item]:
    """Files of one image each. ValueError, saying which, for an archive."""
    names = [f"File {k}" if len(files) > 1 else "The file" for k in range(len(files))]
    items = [(archive.Reader(io.BytesIO(data), name), 0) for data, name in zip(files, names, strict=True)]
    for reader, _ in items:
        if reader.kind != format.IMAGE:
            raise ValueError(f"{reader.name} is an archive; unpack it with python -m homework.compress decompress.")
    return items
