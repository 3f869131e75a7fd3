"""Images to grids of tokens: ``python -m homework.tokenize TOKENIZER OUTPUT IMAGES...``, also under torchrun."""

if __name__ == "tokenize":  # in place of the standard library's, see homework.py
    import homework  # noqa: F401

import collections
import zlib
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from homework.core import checks, cli, devices, files, fingerprint
from homework.datasets.features import INDEX, FeatureDataset, FeatureModel
from homework.datasets.image_files import decoded, image_paths, report_bad_images
from homework.datasets.images import to_float
from homework.datasets.mnist import FILES, MnistImages, find
from homework.priors.pairs import load_tokenizer
from homework.tokenizers.base import Tokenizer
from homework.training import distributed

MOST = 16  # copies are moved by fewer pixels than these
Result = tuple[tuple[int, int], np.ndarray] | str  # the image's (H, W) and its grid (h, w), or what is wrong with it


def tokenize(tokenizer: str, output: str, *images: str, batch_size: int = 16, image_size: str | None = None, copies: int = 0,
             shift: int | None = None, split: str | None = None, skip_bad: bool = False, codes: bool = False,
             device: str = "auto") -> None:  # fmt: skip
    """Writes the tokens of images, sorted by path, to a file that TokenDataset reads.

    Examples:
        python -m homework.tokenize BSQPatchAutoEncoder data/tokenized_train.pth data/train --copies 3
        python -m homework.tokenize mine/bsq.pth mine/tokenized_valid.pth mine/valid --image_size 128x192

    Args:
        tokenizer: checkpoint of a model that makes tokens, as homework/BSQPatchAutoEncoder.pth.
        output: the .pth file to write.
        images: files, folders or dataset.json files; or MNIST's folder; or, for a SOM, one that homework.features wrote.
        batch_size: images that go through the model at once.
        image_size: HEIGHTxWIDTH in pixels, to which images are scaled and cropped; as they are by default.
        copies: also as many randomly mirrored and shifted copies of each image, from which a prior learns more.
        shift: pixels to move copies by at most, the same for all grids of a cascade; below a patch and 16 by default.
        split: of MNIST: train, valid or test.
        skip_bad: leave out images that are damaged or of another size than most; they are an error by default.
        codes: also write the table (K,d) of the vectors of all codes, under "codes".
        device: auto, cpu, cuda or mps.
    """
    cli.at_least(1, batch_size=batch_size)
    cli.at_least(0, copies=copies, shift=0 if shift is None else shift)
    if not images:
        raise ValueError("Name the images to tokenize: files, folders or dataset.json files, after the output.")
    cli.check_output(output)
    size, model = cli.parse_image_size(image_size), load_tokenizer(tokenizer)
    shift = min(*model.patch_shape, MOST) - 1 if shift is None else shift
    fields = {"tokenizer": fingerprint.identity(model), "shift": shift if copies else 0}
    if codes:
        fields["codes"] = model.code_table().clone()  # a clone, for a view would be saved with all that it views
    data = open_folder(images[0], split) if len(images) == 1 else None
    if data:
        if copies or size:
            raise ValueError("--copies and --image_size are for files of images; digits and feature maps stay as they are.")
        parts = [encode_dataset(model.to(devices.pick_device(device)), data, batch_size)]
    elif split is not None:
        raise ValueError("--split is for MNIST's folder alone, named mnist; leave it out, and name a folder of images.")
    else:
        paths = image_paths(images)
        try:
            local_device = distributed.setup(devices.pick_device(device))
            model.to(local_device)
            parts = distributed.gather(encode_files(model, paths, batch_size, size, local_device, copies, shift))
        finally:
            distributed.cleanup()
    if parts is not None:
        _write(dict(item for part in parts for item in part.items()), model.n_tokens, output, skip_bad, fields)


def open_folder(folder: str, split: str | None) -> FeatureDataset | MnistImages | None:
    """The feature maps, or the digits of MNIST's ``split``, in ``folder``; None if it holds neither."""
    if Path(folder, INDEX).is_file():
        return FeatureDataset(folder)
    folder = Path(folder).resolve()
    if folder.name != "mnist" or not any(find(folder, name) for name in FILES):
        return None
    if split is None:
        raise ValueError(f"{folder} holds MNIST; name the digits by --split train, valid or test.")
    return MnistImages(split, root=folder.parent)


@torch.inference_mode()
def encode_dataset(model: Tokenizer, data: FeatureDataset | MnistImages, batch_size: int) -> dict[str, Result]:
    """The grids of ``data``. ValueError for feature maps that another auto-encoder made, or the tokenizer does not read."""
    encode = model.encode_index
    if isinstance(data, FeatureDataset):
        if isinstance(model, FeatureModel) and not fingerprint.is_of(data.fingerprint, model.autoencoder):
            raise ValueError("These feature maps are of another auto-encoder; use the tokenizer's own, or name images.")
        encode = model.encode_features
    device, results = model.device, {}
    with tqdm(total=len(data), desc="tokenizing", unit="img") as bar:
        for indices in torch.arange(len(data)).split(batch_size):
            grids = encode(data.batch(indices, device)).cpu().numpy().astype(smallest_type(model.n_tokens))  # (B,h,w)
            results |= {data.names[i]: (data.size[:2], grid) for i, grid in zip(indices.tolist(), grids, strict=True)}
            bar.update(len(indices))
    return results


@torch.inference_mode()
def encode_files(model: Tokenizer, paths: list[str], batch_size: int, image_size: tuple[int, int] | None = None,
                 device: torch.device | str = "cpu", copies: int = 0, shift: int = 0) -> dict[str, Result]:  # fmt: skip
    """The grids of this process's share of ``paths``: complete batches, so that several processes get exactly what one
    would. Copy k of an image is called PATH#k, and moved by at most ``shift`` pixels."""
    batches = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]
    batches = batches[distributed.rank() :: distributed.world_size()]
    results = {}
    with tqdm(total=sum(map(len, batches)), desc="tokenizing", unit="img", disable=distributed.rank() > 0) as bar:
        for batch, images in decoded(batches, image_size):
            by_size = collections.defaultdict(dict)
            for path, image in zip(batch, images, strict=True):
                if isinstance(image, str):
                    results[path] = image
                else:
                    by_size[image.shape[:2]][path] = image
            for size, group in by_size.items():
                pixels = torch.from_numpy(np.stack(list(group.values()))).to(device)  # (B, H, W, 3)
                for copy in range(1 + copies):
                    draws = torch.Generator().manual_seed(zlib.crc32(f"{batch[0]}#{copy}".encode()))
                    x = to_float(mirrored_and_shifted(pixels, shift, draws) if copy else pixels)
                    grids = model.encode_index(x).cpu().numpy().astype(smallest_type(model.n_tokens))  # (B,h,w)
                    names = [f"{path}#{copy}" if copy else path for path in group]
                    results |= {name: (size, grid) for name, grid in zip(names, grids, strict=True)}
            bar.update(len(batch))
    return results


def mirrored_and_shifted(x: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """(B,H,W,3) images, each mirrored or not, and moved by up to ``most`` pixels in both directions, edges repeated."""
    B, H, W, _ = x.shape
    down, right = torch.randint(-most, most + 1, (2, B, 1), generator=generator).to(x.device)
    mirror = torch.randint(2, (B, 1), generator=generator).to(x.device)
    rows = (torch.arange(H, device=x.device) + down).clamp(0, H - 1)  # (B,H)
    columns = (torch.arange(W, device=x.device) + right).clamp(0, W - 1)  # (B,W)
    columns = torch.where(mirror == 1, W - 1 - columns, columns)
    return x[torch.arange(B, device=x.device)[:, None, None], rows[:, :, None], columns[:, None]]


def smallest_type(n_tokens: int) -> type:
    """The smallest numpy type for 0 ... ``n_tokens`` - 1; unsigned up to 16 bits, beyond which it saves nothing."""
    types = {8: np.uint8, 16: np.uint16, 31: np.int32, 63: np.int64}
    return next(t for bits, t in types.items() if n_tokens <= 1 << bits)


def _write(results: dict[str, Result], n_tokens: int, output: str, skip_bad: bool, fields: dict) -> None:
    """Writes the grids of the images of the most frequent size; ValueError if there are others, unless ``skip_bad``."""
    results = dict(sorted(results.items()))
    sizes = collections.Counter(r[0] for r in results.values() if not isinstance(r, str))
    size = max(sizes, key=sizes.get, default=None)
    bad = [r if isinstance(r, str) else f"{path} is {r[0][0]}x{r[0][1]}, most are {size[0]}x{size[1]} (see --image_size)"
           for path, r in results.items() if isinstance(r, str) or r[0] != size]  # fmt: skip
    report_bad_images(bad, len(results), skip_bad)
    grids = {path: r[1] for path, r in results.items() if not isinstance(r, str) and r[0] == size}
    tokens = torch.from_numpy(np.stack(list(grids.values())))  # (N, h, w)
    files.write({"tokens": tokens, "n_tokens": n_tokens, "names": list(grids)} | fields, output)
    used = len(np.unique(tokens.numpy()))
    size = f"{tokens.shape[1]}x{tokens.shape[2]}"
    print(f"{output}: {checks.count(len(grids), 'grid')} of {size} tokens, {used} of {n_tokens} codes used")


if __name__ == "__main__":
    cli.main("python -m homework.tokenize", tokenize)
