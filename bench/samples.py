"""Samples of the shipped models at several settings, compared with validation frames, beside training frames and what the
tokenizers keep of frames: ``python -m bench.samples``. Prints tables in Markdown; the command that made the documents'.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homework import generation
from homework.core import checkpoint, cli, devices
from homework.core.model import ordinary_tensors
from homework.datasets.image_files import image_paths, spread
from homework.datasets.images import to_float, to_uint8
from homework.evaluation import samples as sets
from homework.evaluation.extractors import load_extractors
from homework.priors.pairs import SHIPPED, load_cascade, load_tokenizer
from homework.tokenizers.base import Tokenizer

BATCH = 128
BSQ, VQ = "BSQPatchAutoEncoder", "VQPatchAutoEncoder"
SETTINGS: dict[str, tuple[str, str, dict[str, Any]]] = {  # by the name of a folder
    "bsq_transformer_t0.8": (BSQ, "AutoregressiveModel", {"temperature": 0.8}),
    "bsq_transformer_t0.9": (BSQ, "AutoregressiveModel", {"temperature": 0.9}),
    "bsq_transformer_t1.0": (BSQ, "AutoregressiveModel", {}),
    "bsq_transformer_t1.1": (BSQ, "AutoregressiveModel", {"temperature": 1.1}),
    "bsq_transformer_p0.95": (BSQ, "AutoregressiveModel", {"top_p": 0.95}),
    "bsq_transformer_p0.9": (BSQ, "AutoregressiveModel", {"top_p": 0.9}),
    "bsq_transformer_c4": (BSQ, "AutoregressiveModel", {"candidates": 4}),
    "bsq_transformer_q80": (BSQ, "AutoregressiveModel", {"quality": 80}),
    "bsq_transformer_q100": (BSQ, "AutoregressiveModel", {"quality": 100}),
    "bsq_gatedpixelcnn": (BSQ, "GatedPixelCNN", {}),
    "bsq_uniform": (BSQ, "uniform", {}),
    "vq_transformer": (VQ, "VQAutoregressiveModel", {}),
    "vq_gatedpixelcnn": (VQ, "VQGatedPixelCNN", {}),
}


def samples(folder: str = "samples", *, n: int = 384, train: str = "data/train", valid: str = "data/valid",
            device: str = "auto") -> None:  # fmt: skip
    """Samples each setting into a folder of its own, where it is not there yet, and prints a table for each extractor.

    Examples:
        python -m bench.samples
        python -m bench.samples samples --n 1280 --device cuda

    Args:
        folder: for the samples, and samples.json with all figures.
        n: images of each row; samples.json says how many reference images there are.
        train: the frames that the models were trained on.
        valid: the reference images.
        device: auto, cpu, cuda or mps.
    """
    cli.at_least(4, n=n)
    place, top = devices.pick_device(device), Path(folder)
    for name, (tokenizer, prior, options) in SETTINGS.items():
        if not (top / name / f"generation_{n - 1}.png").is_file():
            models = [str(checkpoint.PRETRAINED / f"{model}.pth") for model in (tokenizer, prior)]
            models[1] = prior if prior == "uniform" else models[1]
            generation.generate(*models, n, str(top / name), batch_size=BATCH, device=device, **options)
    extractors = load_extractors(None, place)

    def read(paths: list[str], what: str) -> sets.Features:
        return sets.extract(sets.file_batches(paths, paths[0], None, BATCH), len(paths), extractors, place, what)

    seen, unseen = image_paths(train), image_paths(valid)
    comparison, found = sets.Comparison(extractors, read(unseen, "valid"), read(seen, "train")), {}
    some = {"training": spread(seen, n), "validation": spread(unseen, n)}
    found["training frames"] = read(some["training"], "training frames")
    for tokenizer, (kind, paths) in itertools.product((BSQ, VQ), some.items()):
        model = load_tokenizer(checkpoint.PRETRAINED / f"{tokenizer}.pth").to(place)
        row = f"{kind} frames, what {tokenizer} keeps of them"
        found[row] = sets.extract(kept(model, paths), n, extractors, place, row)
    drawn = sets.sample_cascade(load_cascade(SHIPPED, place), n, BATCH, torch.Generator().manual_seed(0))
    found["cascade"] = sets.extract(drawn, n, extractors, place, "cascade")
    for name, (_, prior, options) in SETTINGS.items():
        row = " ".join([prior, *(f"--{option} {value}" for option, value in options.items())])
        found[row] = read([str(top / name / f"generation_{i}.png") for i in range(n)], row)
    figures = {row: comparison.figures(features) for row, features in found.items()}
    for name in extractors:
        print(f"\n{name}:\n")
        print(sets.table(f"{n} images", {row: sets.row(values[name]) for row, values in figures.items()}))
    facts = {"n": n, "reference": len(unseen), "train": len(seen), "rows": figures}
    (top / "samples.json").write_text(json.dumps(facts, indent=1))


def kept(model: Tokenizer, paths: list[str]) -> Iterator[Tensor]:
    """What a tokenizer keeps of images, (B,H,W,3) uint8."""
    for images in sets.file_batches(paths, paths[0], None, BATCH // 4):
        yield again(model, images)


@ordinary_tensors
def again(model: Tokenizer, images: Tensor) -> Tensor:
    H, W = images.shape[1:3]
    x_hat = model.decode_index(model.encode_index(to_float(images).to(model.device)))
    return to_uint8(x_hat)[:, :H, :W].cpu()


if __name__ == "__main__":
    cli.main("python -m bench.samples", samples)
