"""Images to feature maps: ``python -m homework.features AUTOENCODER IMAGES OUTPUT``."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from homework.core import checkpoint, checks, cli, devices, files, fingerprint
from homework.datasets.features import AUTOENCODER, FORMAT, INDEX, VERSION, open_shard, read_index, shard_path
from homework.datasets.image_files import check_size, decoded, image_paths, read_image
from homework.datasets.images import to_float
from homework.tokenizers.base import AutoEncoder, Tokenizer


def features(autoencoder: str, images: str, output: str, *, image_size: str | None = None, batch_size: int = 64,
             shard: int = 1024, replace: bool = False, device: str = "auto") -> None:  # fmt: skip
    """Writes the feature maps of images, sorted by path, into a folder that FeatureDataset reads. The same command
    resumes an unfinished run: complete shards that are there are kept.

    Examples:
        python -m homework.features homework/ConvAutoEncoder.pth data/train features/train
        python -m homework.features homework/ConvAutoEncoder.pth data/valid features/valid --image_size 80x120

    Args:
        autoencoder: checkpoint of a model that makes maps of numbers, as homework/ConvAutoEncoder.pth.
        images: a file, a folder or a dataset.json.
        output: the folder to write: features_00000.npy ..., float16 (n,h,w,C), index.json, and autoencoder.pth, a copy.
        image_size: HEIGHTxWIDTH in pixels, to which images are scaled and cropped; as they are by default.
        batch_size: images that go through the model at once.
        shard: images in a file.
        replace: remove other feature maps that are in the output folder; they are an error by default.
        device: auto, cpu, cuda or mps.
    """
    output = Path(output)
    cli.at_least(1, batch_size=batch_size, shard=shard)
    if output.exists() and not output.is_dir():
        raise ValueError(f"The output is {output}, but must be a folder.")
    size = cli.parse_image_size(image_size)
    model = checkpoint.load(autoencoder)
    if not isinstance(model, AutoEncoder) or isinstance(model, Tokenizer):
        made = "tokens (see python -m homework.tokenize)" if isinstance(model, Tokenizer) else "no maps of images"
        found = checks.article(type(model).__name__)
        raise ValueError(f"{autoencoder} holds {found}, which makes {made}; name an auto-encoder.")
    names = image_paths(images)
    H, W = size or read_image(names[0]).shape[:2]
    with torch.inference_mode():
        h, w, C = model.encode(torch.zeros(1, H, W, 3)).shape[1:]
    index = {"format": FORMAT, "version": VERSION, "size": [h, w, C], "image_size": [H, W],
             "shards": [min(shard, len(names) - start) for start in range(0, len(names), shard)],
             "autoencoder": fingerprint.identity(model), "names": names}  # fmt: skip
    missing = prepare(output, index, replace)
    checkpoint.save(model, output / AUTOENCODER, model.meta)
    if missing:
        write_index(output, index, finished=False)
    model.to(devices.pick_device(device))
    with tqdm(total=len(names), desc="encoding", unit="img") as bar:
        bar.update(len(names) - sum(index["shards"][i] for i in missing))
        for i, maps in encode_shards(model, index, missing, batch_size, size, bar):
            write_shard(shard_path(output, i), maps)
    write_index(output, index, finished=True)
    written = checks.count(len(index["shards"]), "file")
    print(f"{output}: {checks.count(len(names), 'feature map')} of {h}x{w}x{C} in {written}")


def prepare(folder: Path, index: dict, replace: bool) -> list[int]:
    """Makes ``folder`` ready for the shards of ``index``, and returns those to be made; ``replace`` removes other maps."""
    there = sorted(folder.glob("features_*.npy"))
    if replace:
        (folder / INDEX).unlink(missing_ok=True)  # first: without it, what is left is not taken for complete
        for path in there:
            path.unlink()
    elif (folder / INDEX).is_file():
        found = read_index(folder)
        if other := [k for k in index if found[k] != index[k]]:
            raise ValueError(f"{folder} has feature maps already, whose {' and '.join(other)} differ; name another folder, "
                             "or pass --replace to make them again.")  # fmt: skip
    elif there:
        raise ValueError(f"{folder} has feature maps, but no {INDEX}; pass --replace to make them again.")
    for path in folder.glob("*.tmp"):  # what a killed run left
        path.unlink()
    missing = [i for i in range(len(index["shards"])) if not shard_path(folder, i).is_file()]
    for i in set(range(len(index["shards"]))) - set(missing):
        open_shard(folder, index, i)
    return missing


@torch.inference_mode()
def encode_shards(model: AutoEncoder, index: dict, missing: list[int], batch_size: int, image_size: tuple[int, int] | None,
                  bar: tqdm) -> Iterator[tuple[int, np.ndarray]]:  # fmt: skip
    """The shards ``missing``, one after the other: (i, float16 (n, h, w, C)). Batches end with a shard, so that it is the
    same whether others were there already or not. ValueError, naming the image, if one is damaged or of another size, or its
    map has numbers too large for float16."""
    ends = np.cumsum(index["shards"])
    names = {i: index["names"][end - n : end] for i, (n, end) in enumerate(zip(index["shards"], ends, strict=True))}
    batches = [names[i][at : at + batch_size] for i in missing for at in range(0, len(names[i]), batch_size)]
    device, images = model.device, decoded(batches, image_size)
    for i in missing:
        maps = []
        while sum(map(len, maps)) < len(names[i]):
            batch, pixels = next(images)
            for path, image in zip(batch, pixels, strict=True):
                if isinstance(image, str):
                    raise ValueError(image)
                check_size(path, image, index["names"][0], index["image_size"])
            x = to_float(torch.from_numpy(np.stack(pixels)).to(device))  # (B, H, W, 3)
            z = model.encode(x).half().cpu()
            if not z.isfinite().all():
                raise ValueError(f"The feature maps of {batch[0]} and others are too large for float16; train the "
                                 "auto-encoder with --use_final_enc_activation.")  # fmt: skip
            maps.append(z.numpy())
            bar.update(len(batch))
        yield i, np.ascontiguousarray(np.concatenate(maps))


def write_shard(path: Path, maps: np.ndarray) -> None:
    """Writes maps (n, h, w, C) as a .npy file."""
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(maps))
        file.write(maps.tobytes())  # on a full disk an OSError, unlike np.save's own error, says so


def write_index(folder: Path, index: dict, finished: bool) -> None:
    with files.replacing(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index | {"finished": finished}, indent=1), "utf-8")


if __name__ == "__main__":
    cli.main("python -m homework.features", features)
