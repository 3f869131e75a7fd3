"""Images to feature maps: ``python -m homework.features AUTOENCODER IMAGES OUTPUT``."""

from pathlib import Path

import torch

from homework.core import checkpoint, checks, cli, devices, fingerprint
from homework.core.processes import own_share
from homework.datasets.bulk import for_each_shard
from homework.datasets.features import (
    AUTOENCODER,
    FORMAT,
    INDEX,
    VERSION,
    prepare_folder,
    shard_path,
    write_index,
    write_part,
    write_shard,
)
from homework.datasets.image_files import batches_of, image_paths, read_image, report_bad_images, spread, without_bad_images
from homework.tokenizers.base import AutoEncoder, Tokenizer
from homework.tokenizers.encoding import encode_maps, encode_shards
from homework.training import distributed

IN_FILE = 1024  # images


def features(autoencoder: str, images: str, output: str, *, image_size: str | None = None, batch_size: int = 64,
             shard: int = IN_FILE, frame: int = 0, limit: int | None = None, replace: bool = False,
             skip_bad: bool = False, shards: bool = False, device: str = "auto") -> None:  # fmt: skip
    """Writes the feature maps of images, sorted by path, into a folder that FeatureDataset reads. The same command
    resumes an unfinished run: complete shards that are there are kept. Under torchrun they are shared out.

    Examples:
        python -m homework.features homework/ConvAutoEncoder.pth data/train features/train
        python -m homework.features homework/ConvAutoEncoder.pth data/valid features/valid --image_size 80x120

    Args:
        autoencoder: checkpoint of a model that makes maps of numbers, as homework/ConvAutoEncoder.pth.
        images: a file, a folder, a dataset.json or WebDataset shards.
        output: the folder to write: features_00000.npy ..., float16 (n,h,w,C), index.json, and autoencoder.pth, a copy; with
            --shards, in place of the first two, SHARD.npy and SHARD.names.json for each shard.
        image_size: HEIGHTxWIDTH in pixels, to which images are scaled and cropped; as they are by default.
        batch_size: images that go through the model at once.
        shard: images in a file.
        frame: the frame or page to take of files with several, from 0.
        limit: how many images to use at most, evenly spread over the sorted ones; all by default.
        replace: remove other feature maps that are in the output folder; they are an error by default.
        skip_bad: leave out images that are damaged or of another size than most, for which all are decoded twice, and name
            them at the end; they are an error by default.
        shards: write one file for each WebDataset shard, however many there are; the same command, started again, makes
            those that are missing, and several processes under torchrun share the shards out.
        device: auto, cpu, cuda or mps.
    """
    if not str(output):
        raise ValueError("The output is empty; name the folder to write the feature maps to.")
    output = Path(output)
    cli.at_least(1, batch_size=batch_size, shard=shard, limit=1 if limit is None else limit)
    cli.at_least(0, frame=frame)
    if output.exists() and not output.is_dir():
        raise ValueError(f"The output is {output}, but must be a folder.")
    if shards and (limit is not None or replace or shard != IN_FILE):
        raise ValueError("--limit, --replace and --shard are not for --shards; name fewer shards, or another folder.")
    size = cli.parse_image_size(image_size)
    model = checkpoint.load(autoencoder)
    if not isinstance(model, AutoEncoder) or isinstance(model, Tokenizer):
        made = "tokens (see python -m homework.tokenize)" if isinstance(model, Tokenizer) else "no maps of images"
        found = checks.article(type(model).__name__)
        raise ValueError(f"{autoencoder} holds {found}, which makes {made}; name an auto-encoder.")
    if shards:
        return of_each_shard(model, images, output, batch_size, size, frame, skip_bad, device)
    names, bad = spread(image_paths(images), limit), list[str]()
    n = len(names)
    names = without_bad_images(names, size, frame, bad) if skip_bad else names
    H, W = size or read_image(names[0], frame=frame).shape[:2]
    with torch.inference_mode():
        h, w, C = model.encode(torch.zeros(1, H, W, 3)).shape[1:]
    index = {"format": FORMAT, "version": VERSION, "size": [h, w, C], "image_size": [H, W],
             "shards": [len(part) for part in batches_of(names, shard)], "autoencoder": fingerprint.identity(model),
             "names": names} | ({"frame": frame} if frame else {})  # fmt: skip

    def prepare() -> list[int]:
        missing = prepare_folder(output, index, replace)
        checkpoint.save(model, output / AUTOENCODER, model.meta)
        if missing:
            write_index(output, index, finished=False)
        return missing

    with distributed.group(distributed.LONG):
        place = distributed.own_device(devices.pick_device(device))
        missing = own_share(distributed.of_first(prepare))
        for i, maps in encode_shards(model.to(place), index, missing, batch_size, size, frame):
            write_shard(shard_path(output, i), index["shards"][i], maps)
        every = distributed.gather(None)  # waits until all are done
    if every is None:  # not the first process
        return
    write_index(output, index, finished=True)
    report_bad_images(bad, n, skip_bad)
    written = checks.count(len(index["shards"]), "file")
    print(f"{output}: {checks.count(len(names), 'feature map')} of {h}x{w}x{C} in {written}")


def of_each_shard(model: AutoEncoder, images: str, output: Path, batch_size: int, size: tuple[int, int] | None, frame: int,
                  skip_bad: bool, device: str) -> None:  # fmt: skip
    """The feature maps of each shard in a file of its own, see :func:`homework.datasets.bulk.for_each_shard`."""
    if (output / INDEX).is_file():
        raise ValueError(f"{output} has feature maps made without --shards; name another folder, or remove it.")
    job = {"command": "features", "autoencoder": fingerprint.identity(model), "batch_size": batch_size, "image_size": size,
           "frame": frame}  # fmt: skip

    def make(members: list[str], path: Path, bad: list[str]) -> None:
        names = without_bad_images(members, size, frame, bad) if skip_bad else members
        write_part(path, names, encode_maps(model, batches_of(names, batch_size), size, frame))

    model.to(distributed.own_device(devices.pick_device(device)))
    for_each_shard([images], output, ".npy", job, skip_bad, make)
    if not (output / AUTOENCODER).is_file():
        checkpoint.save(model, output / AUTOENCODER, model.meta)


if __name__ == "__main__":
    cli.main("python -m homework.features", features)
