"""Images to bytes and back."""

import io
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from homework.codec import archive, format, range_coder, tiles
from homework.codec.entropy import entropy_model
from homework.codec.parallel import groups, in_parallel, pieces
from homework.core.fingerprint import fingerprint, legacy_fingerprint
from homework.priors.base import Prior
from homework.tokenizers.base import Tokenizer

WEIGHTS_AT_ONCE = 2**21  # numbers that a prior returns from a parallel pass; with many more, memory costs more than it saves
PIXELS_AT_ONCE = 2**17  # that go through the tokenizer together, for the same reason
Item = tuple[archive.Reader, int]  # a file, and which of its images


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

    def __init__(
        self,
        tokenizer: Tokenizer,
        autoregressive: Prior,
        device: str | torch.device | None = None,
        batch_size: int = 64,
    ):
        if tokenizer.n_tokens != autoregressive.n_tokens:
            raise ValueError(f"The tokenizer has {tokenizer.n_tokens} codes, but the prior was trained on "
                             f"{autoregressive.n_tokens}; train a prior on this tokenizer's grids.")  # fmt: skip
        self.device = tokenizer.device if device is None else torch.device(device)
        self.tokenizer = tokenizer.to(self.device).eval()
        self.entropy_model = entropy_model(autoregressive.to(self.device).eval())
        self.batch_size = batch_size
        self.workers = torch.get_num_threads() if self.device.type == "cpu" else 1
        known = {1: legacy_fingerprint(tokenizer), format.FORMAT: fingerprint(tokenizer)}
        self.models_by_format = {
            form: format.Models(known[form], print_, max(tokenizer.patch_shape), self.entropy_model.exact, form)
            for form, print_ in self.entropy_model.fingerprints.items()
        }
        self.models = self.models_by_format[format.FORMAT]

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
        if grids.size and not 0 <= grids.min() <= grids.max() < self.entropy_model.n_tokens:
            raise ValueError(f"Tokens must be from 0 to {self.entropy_model.n_tokens - 1}.")
        # floats must find the batch again that they were coded in, and here a batch of one
        payloads = self.encode(grids) if self.entropy_model.exact else [self.encode(grid[None])[0] for grid in grids]
        return [
            format.image_file(self.models, size, payload, self.models.crc(size, grid))
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
        for (a, b), places in tiles.tiles(grids.shape[1:], (self.entropy_model.height, self.entropy_model.width)):
            cut = np.stack([grids[:, top : top + a, left : left + b] for top, left in places], axis=1)  # (B,T,a,b)
            for parts, part in zip((below, own), self.intervals(cut.reshape(-1, a, b)), strict=True):  # (B*T,a,b)
                part = part.reshape(*cut.shape[:2], a * b).transpose(0, 2, 1)  # (B*T,N) -> (B,T,N) -> (B,N,T)
                parts.append(part.reshape(len(grids), -1))  # (B,N,T) -> (B,N*T)
        return [range_coder.encode(*image) for image in zip(*(np.concatenate(p, axis=1) for p in (below, own)), strict=True)]

    def intervals(self, grids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(R,a,b) int64 -> (R,N), (R,N), see :func:`container.intervals`."""
        K, N = self.entropy_model.n_tokens, grids[0].size
        tokens = grids.reshape(-1, N)  # (R,a,b) -> (R,N)
        if not self.entropy_model.exact:  # only the decoder's own steps, in its own batch, give its floats again
            return range_coder.intervals_by_steps(self._step(*grids.shape), tokens)
        parts = []
        for some in torch.from_numpy(grids).split(max(1, WEIGHTS_AT_ONCE // (N * K))):
            weights = self.entropy_model.weights(some).numpy().reshape(-1, K)  # (r,N,K) -> (r*N,K)
            parts.append(range_coder.intervals(weights, some.numpy().reshape(-1)))  # (r,a,b) -> (r*N)
        below, own = (np.concatenate(part).reshape(-1, N) for part in zip(*parts, strict=True))  # (R*N) -> (R,N)
        return below, own

    def _step(self, R: int, a: int, b: int) -> Callable[[np.ndarray], np.ndarray]:
        """The prior's steps over R grids of a x b, from arrays to arrays."""
        step = self.entropy_model.steps(R, a, b)
        return lambda tokens: step(torch.from_numpy(tokens)).numpy()

    def decode(self, payloads: Sequence[bytes], grid: tuple[int, int], names: Sequence[str]) -> np.ndarray:
        """The grids (B,h,w) int64 of payloads. ValueError, by one of the names, if a payload is damaged."""
        streams = range_coder.BatchDecoder(payloads, names)
        grids = np.empty((len(payloads), *grid), np.int64)
        for (a, b), places in tiles.tiles(grid, (self.entropy_model.height, self.entropy_model.width)):
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
            reader.check(self.models_by_format)
        places = {item: k for k, item in enumerate(items)}

        def work(coded: tuple[list[Item], list[bytes]]):
            batch, payloads = coded
            reader, i = batch[0]
            grids = self.decode(payloads, reader.grid(i), [reader.label(i) for reader, i in batch])
            for (reader, i), grid in zip(batch, grids, strict=True):
                reader.check_tokens(i, self.models_by_format, grid)
            return use({places[item]: grid for item, grid in zip(batch, grids, strict=True) if item in places})

        coded = ((batch, [reader.payload(i) for reader, i in batch]) for batch in self._batches(items))
        yield from in_parallel(work, coded, self.workers)

    def _batches(self, items: Sequence[Item]) -> Iterator[list[Item]]:
        """What is decoded together: any images of one size if the arithmetic is exact, otherwise a file's chunks."""
        if self.entropy_model.exact:
            for grid, some in groups(items, [reader.grid(i) for reader, i in items]):
                yield from self.parts(some, grid)
            return
        for reader, some in groups([i for _, i in items], [reader for reader, _ in items]):
            wanted = set(some)
            for chunk in reader.chunks:
                if not wanted.isdisjoint(chunk):
                    grids = {reader.grid(i) for i in chunk}
                    if len(grids) > 1 or len(chunk) > max(1, archive.MAX_CHUNK // self.n_tiles(*grids)):
                        raise range_coder.damaged(reader.name, "its chunks are not as they were written")
                    yield [(reader, i) for i in chunk]

    def parts(self, things: list, grid: tuple[int, int]) -> list[list]:
        """``things``, of images with grids (h,w), in parts to code at once: enough of them to keep all threads at work."""
        return pieces(things, min(self.images_at_once(grid), -(-len(things) // self.workers)))

    def n_tiles(self, grid: tuple[int, int]) -> int:
        return -(-grid[0] // self.entropy_model.height) * -(-grid[1] // self.entropy_model.width)

    def images_at_once(self, grid: tuple[int, int]) -> int:
        """How many images with grids (h,w) to code together."""
        return max(1, min(self.batch_size, archive.MAX_CHUNK) // self.n_tiles(grid))


def image_size(x: Tensor) -> tuple[int, int]:
    """(H,W) of an image. ValueError if it is none."""
    if x.ndim != 3 or x.shape[-1] != 3 or not x.is_floating_point():
        raise ValueError(f"An image is a float tensor (H,W,3), but this is {tuple(x.shape)} of {x.dtype}.")
    format.check_size("The image", x.shape[:2])
    return tuple(x.shape[:2])


def _single(files: Sequence[bytes]) -> list[Item]:
    """Files of one image each. ValueError, saying which, if one is not."""
    names = [f"File {k}" for k in range(len(files))] if len(files) > 1 else ["The file"]
    readers = [archive.Reader(io.BytesIO(data), name) for data, name in zip(files, names, strict=False)]
    for reader in readers:
        if reader.kind != format.IMAGE:
            raise ValueError(f"{reader.name} is an archive; unpack it with python -m homework.compress decompress.")
    return [(reader, 0) for reader in readers]
