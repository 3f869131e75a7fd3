"""Many images through a model: grids of tokens from a tokenizer, feature maps from an auto-encoder."""

import collections
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from homework.core import fingerprint
from homework.datasets.features import FeatureDataset, FeatureModel
from homework.datasets.image_files import check_size, decoded, report_bad_images
from homework.datasets.images import to_float
from homework.datasets.mnist import MnistImages
from homework.tokenizers.base import AutoEncoder, Tokenizer
from homework.training import distributed

Results = dict[str, tuple[tuple[int, ...], np.ndarray] | str]  # an image's (H, W) and grid (h, w), or what is wrong with it


def batches_of(items: list, n: int) -> list[list]:
    """The items, ``n`` at a time."""
    return [items[i : i + n] for i in range(0, len(items), n)]


def progress(batches: list[list], what: str) -> tqdm:
    """A bar over all items of the batches, which only the first process shows."""
    return tqdm(total=sum(map(len, batches)), desc=what, unit="img", disable=distributed.rank() > 0)


def own_share(batches: list[list]) -> list[list]:
    """This process's batches: complete ones, so that several processes get exactly what one would."""
    return batches[distributed.rank() :: distributed.world_size()]


# --- grids of tokens ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def encode_dataset(model: Tokenizer, data: FeatureDataset | MnistImages, batch_size: int) -> Results:
    """The grids of this process's share of ``data``, by name. ValueError for feature maps that another auto-encoder made, or
    that the tokenizer does not read."""
    encode: Callable[[Tensor], Tensor] = model.encode_index
    if isinstance(data, FeatureDataset):
        if isinstance(model, FeatureModel) and not fingerprint.is_of(data.fingerprint, model.autoencoder):
            raise ValueError("These feature maps are of another auto-encoder; use the tokenizer's own, or name images.")
        encode = model.encode_features
    batches, results = own_share(batches_of(list(range(len(data))), batch_size)), Results()
    with progress(batches, "tokenizing") as bar:
        for indices in batches:
            grids = as_smallest_type(encode(data.batch(indices, model.device)), model.n_tokens)  # (B,h,w)
            results |= {data.names[i]: (data.size[:2], grid) for i, grid in zip(indices, grids, strict=True)}
            bar.update(len(indices))
    return results


@torch.inference_mode()
def encode_files(model: Tokenizer, paths: list[str], batch_size: int, image_size: tuple[int, int] | None = None,
                 copies: int = 0, shift: int = 0) -> Results:  # fmt: skip
    """The grids of this process's share of ``paths``, by path. Copy k of an image is called PATH#k, and moved by at most
    ``shift`` pixels."""
    batches, results = own_share(batches_of(paths, batch_size)), Results()
    with progress(batches, "tokenizing") as bar:
        for batch, images in decoded(batches, image_size):
            by_size: dict[tuple[int, ...], dict[str, np.ndarray]] = collections.defaultdict(dict)
            for path, image in zip(batch, images, strict=True):
                if isinstance(image, str):
                    results[path] = image
                else:
                    by_size[image.shape[:2]][path] = image
            for size, group in by_size.items():
                pixels = torch.from_numpy(np.stack(list(group.values()))).to(model.device)  # (B,H,W,3)
                for copy in range(1 + copies):
                    draws = torch.Generator().manual_seed(zlib.crc32(f"{batch[0]}#{copy}".encode()))
                    x = to_float(mirrored_and_shifted(pixels, shift, draws) if copy else pixels)
                    grids = as_smallest_type(model.encode_index(x), model.n_tokens)  # (B,h,w)
                    names = [f"{path}#{copy}" if copy else path for path in group]
                    results |= {name: (size, grid) for name, grid in zip(names, grids, strict=True)}
            bar.update(len(batch))
    return results


def mirrored_and_shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """(B,H,W,3) images, each mirrored or not, and moved by up to ``most`` pixels in both directions, edges repeated."""
    B, H, W, _ = x.shape
    down, right = torch.randint(-most, most + 1, (2, B, 1), generator=generator).to(x.device)
    mirror = torch.randint(2, (B, 1), generator=generator).to(x.device)
    rows = (torch.arange(H, device=x.device) + down).clamp(0, H - 1)  # (B,H)
    columns = (torch.arange(W, device=x.device) + right).clamp(0, W - 1)  # (B,W)
    columns = torch.where(mirror == 1, W - 1 - columns, columns)
    return x[torch.arange(B, device=x.device)[:, None, None], rows[:, :, None], columns[:, None]]


def as_smallest_type(grids: Tensor, n_tokens: int) -> np.ndarray:
    return grids.cpu().numpy().astype(smallest_type(n_tokens))


def smallest_type(n_tokens: int) -> type:
    """The smallest numpy type for 0 ... ``n_tokens`` - 1; unsigned up to 16 bits, beyond which it saves nothing."""
    types = {8: np.uint8, 16: np.uint16, 31: np.int32, 63: np.int64}
    return next(t for bits, t in types.items() if n_tokens <= 1 << bits)


def of_one_size(results: Results, skip_bad: bool) -> dict[str, np.ndarray]:
    """The grids, sorted by name, of the images of the most frequent size; ValueError if there are others, unless
    ``skip_bad``."""
    sizes = collections.Counter(r[0] for r in results.values() if not isinstance(r, str))
    size, _ = next(iter(sizes.most_common(1)), ((0, 0), 0))
    bad, good = [], {}
    for path, result in sorted(results.items()):
        if isinstance(result, str):
            bad.append(result)
        elif result[0] != size:
            bad.append("{} is {}x{}, most are {}x{} (see --image_size)".format(path, *result[0], *size))
        else:
            good[path] = result[1]
    report_bad_images(bad, len(results), skip_bad)
    return good


# --- feature maps ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def encode_shards(model: AutoEncoder, index: dict, missing: list[int], batch_size: int,
                  image_size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:  # fmt: skip
    """The shards ``missing`` of ``index``, one after the other: (i, float16 (n,h,w,C)). Batches end with a shard, so that it
    is the same whether others were there already or not. ValueError, naming the image, if one is damaged or of another size,
    or its map has numbers too large for float16."""
    ends = np.cumsum(index["shards"])
    batches = {i: batches_of(index["names"][ends[i] - index["shards"][i] : ends[i]], batch_size) for i in missing}
    images = decoded((batch for i in missing for batch in batches[i]), image_size)
    with progress(batches_of(index["names"], batch_size), "encoding") as bar:
        bar.update(len(index["names"]) - sum(index["shards"][i] for i in missing))
        for i in missing:
            maps = []
            for batch, (_, pixels) in zip(batches[i], images, strict=False):
                for path, image in zip(batch, pixels, strict=True):
                    if isinstance(image, str):
                        raise ValueError(image)
                    check_size(path, image, index["names"][0], index["image_size"])
                z = model.encode(to_float(torch.from_numpy(np.stack(pixels)).to(model.device))).half().cpu()  # (B,h,w,C)
                if not z.isfinite().all():
                    raise ValueError(f"The feature maps of {batch[0]} and others are too large for float16; train the "
                                     "auto-encoder with --use_final_enc_activation.")  # fmt: skip
                maps.append(z.numpy())
                bar.update(len(batch))
            yield i, np.ascontiguousarray(np.concatenate(maps))
