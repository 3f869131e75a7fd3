"""Images to grids of tokens: ``python -m homework.tokenize TOKENIZER OUTPUT IMAGES...``, also under torchrun."""

if __name__ == "tokenize":  # in place of the standard library's, see homework.py
    import homework  # noqa: F401

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from homework.codec import dial
from homework.codec.parallel import in_parallel
from homework.codec.search import search
from homework.core import checkpoint, checks, cli, devices, fingerprint
from homework.datasets.bulk import for_each_shard
from homework.datasets.features import FeatureDataset, has_features
from homework.datasets.image_files import image_paths, report_frames, spread
from homework.datasets.mnist import FILES, MnistImages, find
from homework.datasets.tokens import write_tokens
from homework.priors.base import Prior
from homework.priors.pairs import load_pair, load_tokenizer
from homework.tokenizers.base import Tokenizer
from homework.tokenizers.encoding import Encoded, Results, encode_dataset, encode_files, images_fingerprint, of_one_size
from homework.training import distributed

MOST = 16  # copies are moved by fewer pixels than these


def tokenize(tokenizer: str, output: str, *images: str, batch_size: int = 16, image_size: str | None = None, copies: int = 0,
             shift: int | None = None, frame: int = 0, limit: int | None = None, split: str | None = None,
             skip_bad: bool = False, shards: bool = False, codes: bool = False, prior: str | None = None,
             effort: int = dial.EFFORT, quality: str | None = None, device: str = "auto") -> None:  # fmt: skip
    """Writes the tokens of images, sorted by path, to a file that TokenDataset reads.

    Examples:
        python -m homework.tokenize BSQPatchAutoEncoder data/tokenized_train.pth data/train --copies 3
        python -m homework.tokenize mine/bsq.pth mine/tokenized_valid.pth mine/valid --prior mine/prior.pth --quality 20,60

    Args:
        tokenizer: checkpoint of a model that makes tokens, as homework/BSQPatchAutoEncoder.pth.
        output: the .pth file to write; with --shards the folder.
        images: files, folders, dataset.json files or WebDataset shards; or MNIST's folder; or, for a SOM, one that
            homework.features wrote.
        batch_size: images that go through the model at once.
        image_size: HEIGHTxWIDTH in pixels, to which images are scaled and cropped; as they are by default.
        copies: also as many randomly mirrored and shifted copies of each image, from which a prior learns more.
        shift: pixels to move copies by at most, the same for all grids of a cascade; below a patch and 16 by default.
        frame: the frame or page to take of files with several, from 0.
        limit: how many images to use at most, evenly spread over the sorted ones; all by default.
        split: of MNIST: train, valid or test.
        skip_bad: leave out images that are damaged or of another size than most; they are an error by default.
        shards: write one file for each shard, however many there are; the same command, started again, makes those that are
            missing, and several processes under torchrun share the shards out.
        codes: also write the table (K,d) of the vectors of all codes, under "codes".
        prior: of that tokenizer's tokens: those are written that compress would find under it, in place of the encoder's.
        effort: with a prior, how long to look for them, from 1 to 9; a second or two of a core for 600 tokens by default.
        quality: of the tokens, from 1 to 100, with a prior or of a tokenizer with a dial; with commas between several, each
            image gets one of them. 50 by default.
        device: auto, cpu, cuda or mps.
    """
    cli.at_least(1, batch_size=batch_size, limit=1 if limit is None else limit)
    cli.at_least(0, copies=copies, frame=frame)
    checks.integer(0, 99999, **{"--shift": 0 if shift is None else shift})
    if not images:
        raise ValueError("Name the images to tokenize: files, folders or dataset.json files, after the output.")
    checkpoint.refuse_other(tokenizer)  # before the output, which would then be one argument too early
    if shards:
        check_bulk(output, limit, split)
    else:
        cli.check_output(output, field="tokens")
    size = cli.parse_image_size(image_size)
    qualities = [dial.QUALITY] if quality is None else dial.parse_qualities(quality)
    checks.integer(1, 9, **{"--effort": effort})
    if prior is None and effort != dial.EFFORT:
        raise ValueError("--effort is of a search under a prior; name one by --prior.")
    model, judge = (load_tokenizer(tokenizer), None) if prior is None else load_pair(tokenizer, prior, torch.device("cpu"))
    if quality is not None and not judge and not model.has_dial:
        raise ValueError("--quality is of a search under a prior, or of a tokenizer with a dial, which this one does not "
                         "have; name a --prior.")  # fmt: skip
    shift = min(*model.patch_shape, MOST) - 1 if shift is None else shift
    known = fingerprint.codes_of(model)
    fields = {"tokenizer": known["identity"], fingerprint.CODES_OF: known, "shift": shift if copies else 0}
    if codes:
        fields["codes"] = model.code_table().clone()  # a clone, for a view would be saved with all that it views
    data = open_folder(images[0], split) if len(images) == 1 and not shards else None
    if data and (copies or size or frame or judge or quality is not None):
        raise ValueError("--copies, --image_size, --frame, --prior and --quality are for files of images; digits and "
                         "feature maps stay as they are.")  # fmt: skip
    if split is not None and not data:
        raise ValueError("--split is for MNIST's folder alone, named mnist; leave it out, and name a folder of images.")
    paths = [] if data or shards else spread(image_paths(images), limit)
    moved = (shift, size) if copies else ()
    model.to(distributed.own_device(devices.pick_device(device)))
    improve = searcher(model, judge.to(model.device), effort) if judge else None
    lmbdas = [dial.lmbda_at(quality) for quality in qualities if judge or model.has_dial]
    how = (batch_size, size, copies, shift, frame, lmbdas, improve)
    if shards:
        models = {"tokenizer": fingerprint.of_all_weights(model), "prior": judge and fingerprint.identity(judge)}
        job = {"command": "tokenize", **models, "batch_size": batch_size, "image_size": size, "copies": copies,
               "shift": shift, "frame": frame, "codes": codes, "effort": effort, "quality": qualities}  # fmt: skip

        def make(members: list[str], path: Path, bad: list[str]) -> None:
            write(encode_files(model, members, *how, shared=False), path, model, fields, frame, moved, skip_bad, bad)

        return for_each_shard(images, output, ".pth", job, skip_bad, make)
    with distributed.group(distributed.LONG):
        own = encode_dataset(model, data, batch_size, limit) if data else encode_files(model, paths, *how)
        parts = distributed.gather(own)
    if parts is not None:
        results = dict(item for part in parts for item in part.items())
        tokens = write(results, output, model, fields, frame, moved, skip_bad)
        written = f"{checks.count(len(tokens), 'grid')} of {tokens.shape[1]}x{tokens.shape[2]} tokens"
        print(f"{output}: {written}, {len(np.unique(tokens))} of {model.n_tokens} codes used")


def write(results: Results, output: str | Path, model: Tokenizer, fields: dict, frame: int, moved: tuple, skip_bad: bool,
          left_out: list[str] | None = None) -> np.ndarray:  # fmt: skip
    """Writes the grids of images of one size, and returns them, (N,h,w); ``moved`` says how copies were made. ValueError if
    some cannot be used, unless ``skip_bad``, see :func:`homework.datasets.image_files.report_bad_images`."""
    report_frames({path: one.n_frames for path, one in sorted(results.items()) if isinstance(one, Encoded)}, frame)
    encoded = of_one_size(results, skip_bad, left_out)
    images_known = images_fingerprint(encoded.values(), frame, *moved)
    fields = fields | ({"images": images_known} if images_known else {})
    if None not in (lmbdas := [one.lmbda for one in encoded.values()]):
        fields["lmbda"] = torch.tensor(lmbdas)
    return write_tokens(output, {name: one.grid for name, one in encoded.items()}, model.n_tokens, fields)


def check_bulk(output: str, limit: int | None, split: str | None) -> None:
    if not output or Path(output).suffix == ".pth" or (Path(output).exists() and not Path(output).is_dir()):
        raise ValueError(f"The output is {output!r}, but with --shards it must be a folder.")
    if limit is not None or split is not None:
        raise ValueError("--limit and --split are not for --shards; name fewer shards.")


def searcher(model: Tokenizer, prior: Prior, effort: int) -> Callable[[Tensor, Tensor, list[float]], Tensor]:
    """What :func:`homework.tokenizers.encoding.encode_files` improves grids by."""

    def improve(images: Tensor, grids: Tensor, lmbdas: list[float]) -> Tensor:
        def found(i: int) -> Tensor:
            return search(model, prior, images[i], lmbdas[i], effort, grids[i])

        workers = torch.get_num_threads() if model.device.type == "cpu" else 1
        return torch.stack(list(in_parallel(found, range(len(images)), workers)))

    return improve


def open_folder(folder: str, split: str | None) -> FeatureDataset | MnistImages | None:
    """The feature maps, or the digits of MNIST's ``split``, in ``folder``; None if it holds neither."""
    if has_features(Path(folder)):
        return FeatureDataset(folder)
    folder = Path(folder).resolve()
    if folder.name != "mnist" or not any(find(folder, name) for name in FILES):
        return None
    if split is None:
        raise ValueError(f"{folder} holds MNIST; name the digits by --split train, valid or test.")
    return MnistImages(split, root=folder.parent)


if __name__ == "__main__":
    cli.main("python -m homework.tokenize", tokenize)
