"""Many images through a model: grids of tokens from a tokenizer, feature maps from an auto-encoder."""

import collections
import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from homework.core import fingerprint
from homework.core.processes import own_share, rank
from homework.datasets.features import FeatureDataset, FeatureModel
from homework.datasets.image_files import (
    FileFacts,
    batches_of,
    check_size,
    decoded,
    most_frequent,
    other_size,
    report_bad_images,
    spread,
)
from homework.datasets.images import to_float
from homework.datasets.mnist import MnistImages
from homework.tokenizers.base import AutoEncoder, Tokenizer


class Encoded(NamedTuple):
    """The grid (h, w) of an image of ``size`` (H, W) in pixels; ``origin`` is a checksum of its file, 0 if there is none."""

    size: tuple[int, ...]
    grid: np.ndarray
    origin: int = 0
    n_frames: int = 1  # of the file
    lmbda: float | None = None  # at which it was found, if there is a choice


Results = dict[str, Encoded | str]  # by name; instead of an image that cannot be used, what is wrong with it


def progress(batches: list[list], what: str, done: int = 0) -> tqdm:
    """A bar over all items of the batches, after those that are ``done`` already, which only the first process shows."""
    return tqdm(total=done + sum(map(len, batches)), initial=done, desc=what, unit="img", disable=rank() > 0)


# --- grids of tokens ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def encode_dataset(model: Tokenizer, data: FeatureDataset | MnistImages, batch_size: int,
                   limit: int | None = None) -> Results:  # fmt: skip
    """The grids of this process's share of ``data``, or of ``limit`` samples evenly spread over it, by name. ValueError for
    feature maps that another auto-encoder made, or that the tokenizer does not read."""
    encode: Callable[[Tensor], Tensor] = model.encode_index
    if isinstance(data, FeatureDataset):
        if isinstance(model, FeatureModel) and not fingerprint.is_of(data.fingerprint, model.autoencoder):
            raise ValueError("These feature maps are of another auto-encoder; use the tokenizer's own, or name images.")
        encode = model.encode_features
    batches, results = own_share(batches_of(spread(list(range(len(data))), limit), batch_size)), Results()
    with progress(batches, "tokenizing") as bar:
        for indices in batches:
            grids = as_smallest_type(encode(data.batch(indices, model.device)), model.n_tokens)  # (B,h,w)
            results |= {data.names[i]: Encoded(data.size[:2], grid) for i, grid in zip(indices, grids, strict=True)}
            bar.update(len(indices))
    return results


@torch.inference_mode()
def encode_files(model: Tokenizer, paths: list[str], batch_size: int, image_size: tuple[int, int] | None = None,
                 copies: int = 0, shift: int = 0, frame: int = 0, lmbdas: Sequence[float] = (),
                 improve: Callable[[Tensor, Tensor, list[float]], Tensor] | None = None,
                 shared: bool = True) -> Results:  # fmt: skip
    """The grids of this process's share of ``paths``, or of all if they are not ``shared`` out, by path, of number ``frame``
    of files with several. Copy k of an image is called PATH#k, and mirrored and moved by at most ``shift`` pixels as k and
    its file's content say: whatever the tokenizer and the batch, the same copies are made. These say as well which of the
    ``lmbdas``, if there are any, an image has; with them, ``improve`` makes better grids of images (B,H,W,3) uint8, their
    grids (B,h,w) and lmbdas (B)."""
    batches, results, facts = batches_of(paths, batch_size), Results(), dict[str, FileFacts]()
    batches = own_share(batches) if shared else batches  # complete ones, so that several processes get what one would
    with progress(batches, "tokenizing") as bar:
        for batch, images in decoded(batches, image_size, frame, facts):
            by_size: dict[tuple[int, ...], dict[str, np.ndarray]] = collections.defaultdict(dict)
            for path, image in zip(batch, images, strict=True):
                if isinstance(image, str):
                    results[path] = image
                else:
                    by_size[image.shape[:2]][path] = image
            for size, group in by_size.items():
                pixels = torch.from_numpy(np.stack(list(group.values()))).to(model.device)  # (B,H,W,3)
                n_frames, origins = zip(*(facts[path] for path in group), strict=True)
                for copy in range(1 + copies):
                    moved = pixels
                    if copy:
                        moves = torch.stack([draw_move(shift, origin, copy) for origin in origins])  # (B,3)
                        moved = mirrored_and_shifted(pixels, moves.to(pixels.device))
                    x, own = to_float(moved), [lmbdas[(origin + copy) % len(lmbdas)] for origin in origins if lmbdas]
                    each = torch.tensor(own, device=x.device)
                    index = model.encode_at(x, each) if own else model.encode_index(x)  # (B,h,w)
                    if improve:
                        index = improve(moved, index, own)
                    grids = as_smallest_type(index, model.n_tokens)
                    for i, (path, grid, origin) in enumerate(zip(group, grids, origins, strict=True)):
                        more = 1 if copy else n_frames[i], own[i] if own else None
                        results[f"{path}#{copy}" if copy else path] = Encoded(size, grid, origin, *more)
            bar.update(len(batch))
    return results


def draw_move(most: int, origin: int, copy: int) -> Tensor:
    """How copy number ``copy`` of an image is moved, (3): down and right by -``most`` to ``most``, and 1 if mirrored."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{origin} {copy}".encode()))
    shift = torch.randint(-most, most + 1, (2,), generator=generator)
    return torch.cat([shift, torch.randint(2, (1,), generator=generator)])


def mirrored_and_shifted(x: Tensor, moves: Tensor) -> Tensor:
    """(B,H,W,3) images, mirrored or not and moved down and right as ``moves`` (B,3) say, edges repeated."""
    B, H, W, _ = x.shape
    down, right, mirror = moves.T[:, :, None]  # (B,3) -> 3 of (B,1)
    rows = (torch.arange(H, device=x.device) + down).clamp(0, H - 1)  # (B,H)
    columns = (torch.arange(W, device=x.device) + right).clamp(0, W - 1)  # (B,W)
    columns = torch.where(mirror == 1, W - 1 - columns, columns)
    return x[torch.arange(B, device=x.device)[:, None, None], rows[:, :, None], columns[:, None]]


def as_smallest_type(grids: Tensor, n_tokens: int) -> np.ndarray:
    return grids.cpu().numpy().astype(smallest_type(n_tokens))


def smallest_type(n_tokens: int) -> type:
    """The smallest numpy type for 0 ... ``n_tokens`` - 1; unsigned up to 16 bits, beyond which it saves nothing."""
    types = {8: np.uint8, 16: np.uint16, 31: np.int32, 63: np.int64}
    return next(t for bits, t in types.items() if n_tokens <= 2**bits)


def of_one_size(results: Results, skip_bad: bool, left_out: list[str] | None = None) -> dict[str, Encoded]:
    """The results, sorted by name, of the images of the most frequent size; ValueError if there are others, unless
    ``skip_bad``; see :func:`report_bad_images`."""
    sizes = [r.size for r in results.values() if not isinstance(r, str)]
    size, n = most_frequent(sizes)
    bad, good = [], {}
    for path, result in sorted(results.items()):
        if isinstance(result, str):
            bad.append(result)
        elif result.size != size:
            bad.append(other_size(path, result.size, size))
        else:
            good[path] = result
    hint = "; sizes differ; pass --image_size HxW to scale and crop all of them" * (n < len(sizes))
    report_bad_images(bad, len(results), skip_bad, hint, left_out)
    return good


def images_fingerprint(encoded: Iterable[Encoded], *how: object) -> str:
    """16 hexadecimal digits by which grids of several tokenizers know that they are of the same images, in one order, from
    checksums of the images' files and ``how`` these were changed; "" where there are none, as for feature maps."""
    origins = [e.origin for e in encoded]
    return hashlib.sha256(repr((origins, *how)).encode()).hexdigest()[:16] if any(origins) else ""


# --- feature maps ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def encode_maps(model: AutoEncoder, batches: list[list[str]], image_size: tuple[int, int] | None, frame: int = 0,
                first: tuple[str, tuple[int, int]] | None = None, done: int = 0) -> Iterator[np.ndarray]:  # fmt: skip
    """The feature maps of each batch of image files, float16 (B,h,w,C). ValueError, naming the image, if one is damaged or
    of another size than the ``first``, a path and (H,W), by default that of the batches; or its map has numbers too large
    for float16. ``done`` images are counted by the progress bar alone."""
    with progress(batches, "encoding", done) as bar:
        for batch, images in decoded(batches, image_size, frame):
            for path, image in zip(batch, images, strict=True):
                if isinstance(image, str):
                    raise ValueError(image)
                first = first or (path, image.shape[:2])
                check_size(path, image, *first)
            z = model.encode(to_float(torch.from_numpy(np.stack(images)).to(model.device))).half().cpu()  # (B,h,w,C)
            if not z.isfinite().all():
                raise ValueError(f"The feature maps of {batch[0]} and others are too large for float16; train the "
                                 "auto-encoder with --use_final_enc_activation.")  # fmt: skip
            yield z.contiguous().numpy()
            bar.update(len(batch))


def encode_shards(model: AutoEncoder, index: dict, missing: list[int], batch_size: int, image_size: tuple[int, int] | None,
                  frame: int = 0) -> Iterator[tuple[int, Iterator[np.ndarray]]]:  # fmt: skip
    """The shards ``missing`` of ``index``, one after the other: i, and the maps in it as of :func:`encode_maps`. Batches end
    with a shard, so that it is the same whether others were there already or not."""
    ends, n = np.cumsum(index["shards"]), index["shards"]
    batches = {i: batches_of(index["names"][ends[i] - n[i] : ends[i]], batch_size) for i in missing}
    first, done = (index["names"][0], index["image_size"]), len(index["names"]) - sum(n[i] for i in missing)
    maps = encode_maps(model, [batch for i in missing for batch in batches[i]], image_size, frame, first, done)
    for i in missing:
        yield i, itertools.islice(maps, len(batches[i]))
