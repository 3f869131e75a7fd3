"""Draws the README's pictures from the shipped models: ``python -m bench.figures [LOG_FOLDERS...]``.

overview.png: sample images, their reconstructions, and sampled frames; pairs.png: those of every tokenizer and prior;
second_grids.png: sampled frames with and without second grids.
digits.png, endings.png: MNIST's digits, sampled and completed; they need data/mnist.
curves.png: loss against updates, read from the TensorBoard logs of the runs; also kept as curves.csv, to be added to.
``python -m bench.figures cascade NAME=LOG_FOLDER...`` draws those of a cascade alone, cascade_curves.png; and
``python -m bench.figures codes FOLDER`` codes.png, from the tokenizers and the prior of digits in FOLDER; and
``python -m bench.figures dial`` dial.png: sample images at two qualities, beside other codecs of as many bytes; and
``python -m bench.figures studio`` studio_*.png, the page of homework.studio.
"""

import csv
import math
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

import homework.ae
import homework.autoregressive
import homework.bsq
from bench import studio
from homework.codec.loading import compressor_of, detail_at
from homework.core import checkpoint
from homework.datasets.images import ImageDataset, to_float, to_uint8
from homework.datasets.mnist import MnistImages
from homework.evaluation import walkthrough
from homework.evaluation.metrics import psnr
from homework.evaluation.pictures import on_sheet, save_picture
from homework.priors.images import generate_images
from homework.priors.uniform import Uniform
from homework.sample import sample

HERE = Path(__file__).parent / "figures"
SHOWN = {"PatchAutoEncoder": "mse", "BSQPatchAutoEncoder": "mse", "VQPatchAutoEncoder": "mse",
         "VQVAE": "mse", "AutoregressiveModel": "bits_per_image", "GatedPixelCNN": "bits_per_image",
         "PixelCNN": "loss", "ConvAutoEncoder": "mse", "SOM": "mse", "CascadeStage": "bits_per_image"}  # fmt: skip


def save_sheet(rows: list[torch.Tensor], name: str) -> None:
    """Writes rows of images (n,H,W,3), float in [-0.5,0.5], with white between them."""
    save_picture(on_sheet([to_uint8(row).numpy() for row in rows]), HERE / name)


@torch.inference_mode()
def frames(columns: int = 6) -> None:
    """Writes overview.png: a row each of originals, auto-encoder, BSQ, VQ, and samples of both. And pairs.png: a row each of
    originals, and of what BSQ and VQ make of them; of samples of each one's transformer, of each one's GatedPixelCNN; and of
    tokens of BSQ, and of VQ, that were drawn independently."""
    data = ImageDataset("data/sample", image_size=(100, 150))
    x = data.batch(torch.linspace(0, len(data) - 1, columns).long())

    def sampled(tokenizer: nn.Module, prior: nn.Module) -> torch.Tensor:
        grids = prior.generate(columns, 20, 30, "cpu", generator=torch.Generator().manual_seed(0))
        return tokenizer.decode_index(grids)[:, :100, :150]

    bsq, vq = homework.bsq.load(), homework.load("VQPatchAutoEncoder")
    pairs = [(bsq, "AutoregressiveModel"), (vq, "VQAutoregressiveModel"), (bsq, "GatedPixelCNN"), (vq, "VQGatedPixelCNN")]
    rows = [sampled(tokenizer, homework.load(name)) for tokenizer, name in pairs]
    save_sheet([x, homework.ae.load()(x)[0], bsq(x)[0], vq(x)[0], *rows[:2]], "overview.png")
    rows += [sampled(tokenizer, Uniform(tokenizer.n_tokens)) for tokenizer in (bsq, vq)]
    save_sheet([x, bsq(x)[0], vq(x)[0], *rows], "pairs.png")


def second_grids(columns: int = 3, scale: int = 2) -> None:
    """Writes second_grids.png: sampled frames, and below them the same with second grids of three qualities."""
    bsq, prior = homework.bsq.load(), homework.autoregressive.load()
    rows = []
    for quality in (50, 65, 80, 100):
        detail = detail_at(bsq, quality)
        ((_, images),) = generate_images(bsq, prior, columns, (100, 150), columns, seed=1, detail=detail)
        rows.append(list(images.numpy()))
    save_picture(on_sheet(rows, scale), HERE / "second_grids.png")


def digits() -> None:
    """Writes digits.png and endings.png: sampled digits, and endings of digits of MNIST's test set."""
    prior = "MnistGatedPixelCNN"
    with tempfile.TemporaryDirectory() as folder:
        for name, options in ("digits", {"n_images": 64}), ("endings", {"n_images": 8, "complete": "0,1,2,3,4"}):
            sample(prior, output_path=f"{folder}/{name}", **options)
            shutil.copy(f"{folder}/{name}/sheet.png", HERE / f"{name}.png")


@torch.inference_mode()
def codes(folder: str, columns: int = 16) -> None:
    """Writes codes.png: a row each of digits of MNIST's validation split, of what vqvae.pth in ``folder`` makes of them by
    one code, and vq.pth by a grid of codes; and of samples of prior.pth over those grids."""
    x = MnistImages("valid").batch(torch.arange(columns))
    single, grid, prior = (checkpoint.load(f"{folder}/{name}.pth") for name in ("vqvae", "vq", "prior"))
    samples = prior.generate(columns, *grid.encode_index(x).shape[1:], generator=torch.Generator().manual_seed(0))
    save_sheet([x, single(x)[0], grid(x)[0], grid.decode_index(samples)], "codes.png")


def captioned(picture: torch.Tensor, text: str) -> np.ndarray:
    """(H,W,3) uint8 -> (H+14,W,3), with a line of text below."""
    H, W, _ = picture.shape
    sheet = Image.new("RGB", (W, H + 14), "white")
    sheet.paste(Image.fromarray(picture.numpy()))
    ImageDraw.Draw(sheet).text((1, H), text, "black", ImageFont.load_default(11))
    return np.asarray(sheet)


def dial(names: tuple[str, ...] = ("gran_paradiso_island", "zengarden")) -> None:
    """Writes dial.png: two rows for each sample image, of two qualities: the original, ours, AVIF, WebP and JPEG."""
    compressor, rows = compressor_of(homework.bsq.load(), homework.autoregressive.load()), []
    for name in names:
        x = to_float(ImageDataset(f"data/sample/{name}.jpg")[0])
        stopwatch = walkthrough.Stopwatch()
        shown, pictures = walkthrough.turn_dial(compressor, x, stopwatch, (30, 75), ("AVIF", "WebP", "JPEG"))
        for i, row in enumerate(shown["rows"]):
            rows.append([captioned(pictures["dial_original"][0], f"original; quality {row['quality']}")])
            for file in row["files"]:
                text = f"{file['name']}: {file['bytes']:,} bytes, {psnr(file['mse']):.1f} dB"
                rows[-1].append(captioned(pictures[f"dial_{file['name'].lower()}"][i], text))
    save_picture(on_sheet(rows), HERE / "dial.png")


def measure(name: str) -> str:
    """Which of its measures a model shows; its name ends with that of its class."""
    return next(m for cls, m in SHOWN.items() if name.endswith(cls))


def read_curves(folders: list[str], name: str) -> list[tuple[str, str, int, float]]:
    """(model, split, update, value) of every point: those that {name}.csv has, and those of the runs' TensorBoard logs; a
    run of a model that was there before continues where that ended. (To begin again, take its lines out of the file; to
    keep two of one class apart, give a name: NAME=FOLDER.)"""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (HERE / f"{name}.csv").touch()
    with open(HERE / f"{name}.csv", newline="") as file:
        points = [(m, split, int(update), float(value)) for m, split, update, value in list(csv.reader(file))[1:]]
    ended = {m: update for m, _, update, _ in sorted(points, key=lambda point: point[2])}
    for folder in folders:
        given, _, folder = folder.rpartition("=")
        model = given or Path(folder).name.split("_")[-1]
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        start = ended.get(model, 0)
        for split in ("train", "valid"):
            tag = f"{split}/{measure(model)}"
            scalars = events.Scalars(tag) if tag in events.Tags()["scalars"] else []
            n = max(1, math.ceil(len(scalars) / 100))  # 100 points, each the mean of its neighbours
            for i in range(0, len(scalars), n):
                part = scalars[i : i + n]
                points.append((model, split, start + part[-1].step, sum(e.value for e in part) / len(part)))
                ended[model] = max(ended.get(model, 0), start + part[-1].step)
    return points


def curves(folders: list[str], name: str) -> None:
    """Writes {name}.csv and {name}.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    points = read_curves(folders, name)
    with open(HERE / f"{name}.csv", "w", newline="") as file:
        csv.writer(file).writerows([("model", "split", "update", "value"), *points])
    models = list(dict.fromkeys(p[0] for p in points))
    figure, axes = plt.subplots(1, len(models), figsize=(4.5 * len(models), 3.2), layout="constrained")
    for axis, model in zip(axes if len(models) > 1 else [axes], models, strict=True):
        for split, style in (("train", "-"), ("valid", "o-")):
            mine = [p for p in points if p[:2] == (model, split)]
            axis.plot([p[2] for p in mine], [p[3] for p in mine], style, label=split, markersize=4, linewidth=1)
        axis.set(title=model, xlabel="update", ylabel=measure(model).replace("_", " "), yscale="log")
        axis.grid(True, which="both", alpha=0.3)
        axis.legend()
    figure.savefig(HERE / f"{name}.png", dpi=110)


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    if sys.argv[1:2] == ["cascade"]:
        curves(sys.argv[2:], "cascade_curves")
    elif sys.argv[1:2] == ["codes"]:
        codes(sys.argv[2])
    elif sys.argv[1:2] == ["dial"]:
        dial()
    elif sys.argv[1:2] == ["studio"]:
        studio.screenshots(HERE)
    else:
        frames()
        second_grids()
        digits()
        if sys.argv[1:]:
            curves(sys.argv[1:], "curves")
