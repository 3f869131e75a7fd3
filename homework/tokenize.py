"""Images to grids of tokens: ``python -m homework.tokenize TOKENIZER OUTPUT IMAGES...``, also under torchrun."""

import collections
import os
import sys
from collections.abc import Iterator
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from homework import checkpoint, cli, distributed
from homework.data import to_float
from homework.images import SUFFIXES, image_paths, read_image

Result = tuple[tuple[int, int], np.ndarray] | str  # the image's (H, W) and its grid (h, w), or what is wrong with it


def tokenize(
    tokenizer: str,
    output: str,
    *images: str,
    batch_size: int = 16,
    image_size: str | None = None,
    skip_bad: bool = False,
    device: str = "auto",
) -> None:
    """Writes the tokens of images, sorted by path, to a file that TokenDataset reads.

    Args:
        tokenizer: checkpoint of a model that makes tokens, as homework/BSQPatchAutoEncoder.pth.
        output: the .pth file to write.
        images: files, folders or dataset.json files.
        batch_size: images that go through the model at once.
        image_size: HEIGHTxWIDTH in pixels, to which images are scaled and cropped; as they are by default.
        skip_bad: leave out images that are damaged or of another size than most; otherwise they are an error.
        device: auto, cpu, cuda or mps.
    """
    tokenizer, output, *images = map(str, (tokenizer, output, *images))  # Fire takes 2026 for a number
    if not images:
        raise ValueError("Name the images to tokenize: files, folders or dataset.json files, after the output.")
    if Path(output).is_dir() or Path(output).suffix.lower() in SUFFIXES:
        raise ValueError(f"The output is {output}, but must be a .pth file.")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"--batch_size is {batch_size}, but must be a whole number of at least 1.")
    if not isinstance(skip_bad, bool):
        raise ValueError(f"--skip_bad takes no value, but got {skip_bad}; put it at the end.")
    size = cli.parse_size(image_size)
    model = checkpoint.load(tokenizer)
    if not hasattr(model, "encode_index"):
        raise ValueError(f"{tokenizer} holds a {type(model).__name__}, which makes no tokens; name a tokenizer.")
    paths = image_paths(images)
    try:
        local_device = distributed.setup(cli.pick_device(device))
        results = distributed.gather(encode_files(model.to(local_device), paths, batch_size, size, local_device))
    finally:
        distributed.cleanup()
    if results is not None:
        _write(dict(item for part in results for item in part.items()), model.n_tokens, output, skip_bad)


@torch.inference_mode()
def encode_files(
    model: torch.nn.Module,
    paths: list[str],
    batch_size: int,
    image_size: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Result]:
    """This process's share of ``paths``: whole batches, so that several processes get exactly what one would get."""
    batches = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]
    batches = batches[distributed.rank() :: distributed.world_size()]
    results = {}
    with tqdm(total=sum(map(len, batches)), desc="tokenizing", unit="img", disable=distributed.rank() > 0) as bar:
        for batch, images in _decoded(batches, image_size):
            by_size = collections.defaultdict(dict)
            for path, image in zip(batch, images, strict=True):
                if isinstance(image, str):
                    results[path] = image
                else:
                    by_size[image.shape[:2]][path] = image
            for size, group in by_size.items():
                pixels = torch.from_numpy(np.stack(list(group.values()))).to(device)  # (B, H, W, 3)
                grids = model.encode_index(to_float(pixels)).cpu().numpy().astype(smallest_type(model.n_tokens))
                results |= {path: (size, grid) for path, grid in zip(group, grids, strict=True)}
            bar.update(len(batch))
    return results


def _decoded(batches: list[list[str]], image_size: tuple[int, int] | None) -> Iterator[tuple[list, list]]:
    """Every batch with its images; while one is being used, the next is decoded."""
    pending = collections.deque()
    with ThreadPool(os.cpu_count()) as pool:
        for batch in [*batches, []]:
            pending.append((batch, pool.map_async(partial(_read, image_size), batch)))
            if len(pending) > 1:
                batch, images = pending.popleft()
                yield batch, images.get()


def _read(image_size: tuple[int, int] | None, path: str) -> np.ndarray | str:
    try:
        return read_image(path, image_size)
    except (ValueError, OSError) as error:
        return str(error)


def smallest_type(n_tokens: int) -> type:
    """The smallest numpy type for 0 ... ``n_tokens`` - 1; unsigned up to 16 bits, beyond which it saves nothing."""
    types = {8: np.uint8, 16: np.uint16, 31: np.int32, 63: np.int64}
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        del types[16]  # earlier torch cannot save it
    return next(t for bits, t in types.items() if n_tokens <= 1 << bits)


def _write(results: dict[str, Result], n_tokens: int, output: str, skip_bad: bool) -> None:
    results = dict(sorted(results.items()))
    sizes = collections.Counter(r[0] for r in results.values() if not isinstance(r, str))
    size = max(sizes, key=sizes.get, default=None)  # the size of most of them is the right one
    bad = [
        r if isinstance(r, str) else f"{path} is {r[0][0]}x{r[0][1]}, most are {size[0]}x{size[1]} (see --image_size)"
        for path, r in results.items()
        if isinstance(r, str) or r[0] != size
    ]
    named = "\n  ".join(bad[:10] + [f"and {len(bad) - 10} more"] * (len(bad) > 10))
    if bad and not (skip_bad and len(bad) < len(results)):
        remedy = "pass --skip_bad to leave them out" if len(bad) < len(results) else "there are no others"
        raise ValueError(f"{len(bad)} of {len(results)} images cannot be used; {remedy}:\n  {named}")
    if bad:
        print(f"Left out {len(bad)} of {len(results)} images:\n  {named}", file=sys.stderr)
    grids = {path: r[1] for path, r in results.items() if not isinstance(r, str) and r[0] == size}
    tokens = torch.from_numpy(np.stack(list(grids.values())))  # (N, h, w)
    checkpoint.write({"tokens": tokens, "n_tokens": n_tokens, "names": list(grids)}, output)
    print(f"{output}: {len(grids)} grids of {tokens.shape[1]}x{tokens.shape[2]} tokens, {n_tokens} codes")


if __name__ == "__main__":
    cli.main("python -m homework.tokenize", tokenize)
