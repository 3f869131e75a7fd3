"""Draws the README's two pictures: ``python -m bench.figures [LOG_FOLDERS...]``.

overview.png: sample images, their reconstructions, and sampled frames, from the shipped models.
curves.png: loss against updates, read from the TensorBoard logs of the runs; also kept as curves.csv, to be added to.
"""

import csv
import math
import sys
from pathlib import Path

import torch
from PIL import Image

import homework.ae
import homework.autoregressive
import homework.bsq
from homework.data import ImageDataset, to_uint8

HERE = Path(__file__).parent / "figures"
SHOWN = {"PatchAutoEncoder": "mse", "BSQPatchAutoEncoder": "mse", "AutoregressiveModel": "bits_per_image"}


@torch.inference_mode()
def overview(columns: int = 6) -> None:
    """Writes overview.png: a row each of originals, auto-encoder, tokenizer; two of samples."""
    data = ImageDataset("data/sample", image_size=(100, 150))
    x = data.batch(torch.linspace(0, len(data) - 1, columns).long())
    tokenizer, prior = homework.bsq.load(), homework.autoregressive.load()
    grids = prior.generate(2 * columns, 20, 30, "cpu", generator=torch.Generator().manual_seed(0))
    rows = [x, homework.ae.load()(x)[0], tokenizer(x)[0], *tokenizer.decode_index(grids)[:, :100, :150].split(columns)]
    page = torch.full((len(rows) * 104 - 4, columns * 154 - 4, 3), 255, dtype=torch.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(to_uint8(row)):
            page[i * 104 : i * 104 + 100, j * 154 : j * 154 + 150] = image
    Image.fromarray(page.numpy()).save(HERE / "overview.png")


def read_curves(folders: list[str]) -> list[tuple[str, str, int, float]]:
    """(model, split, update, value) of every point: those that curves.csv has, and those of the runs' TensorBoard logs; a
    run of a model that was there before goes on where that ended. (To begin anew, take its lines out of the file.)"""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open(HERE / "curves.csv", newline="") as file:
        points = [(m, split, int(update), float(value)) for m, split, update, value in list(csv.reader(file))[1:]]
    ended = {m: update for m, _, update, _ in sorted(points, key=lambda point: point[2])}
    for folder in folders:
        model = Path(folder).name.split("_")[-1]
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        start = ended.get(model, 0)
        for split in ("train", "valid"):
            tag = f"{split}/{SHOWN[model]}"
            scalars = events.Scalars(tag) if tag in events.Tags()["scalars"] else []
            n = max(1, math.ceil(len(scalars) / 100))  # 100 points, each the mean of its neighbours
            for i in range(0, len(scalars), n):
                part = scalars[i : i + n]
                points.append((model, split, start + part[-1].step, sum(e.value for e in part) / len(part)))
                ended[model] = max(ended.get(model, 0), start + part[-1].step)
    return points


def curves(folders: list[str]) -> None:
    """Writes curves.csv and curves.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    points = read_curves(folders)
    with open(HERE / "curves.csv", "w", newline="") as file:
        csv.writer(file).writerows([("model", "split", "update", "value"), *points])
    models = list(dict.fromkeys(p[0] for p in points))
    figure, axes = plt.subplots(1, len(models), figsize=(4.5 * len(models), 3.2), layout="constrained")
    for axis, model in zip(axes if len(models) > 1 else [axes], models, strict=True):
        for split, style in (("train", "-"), ("valid", "o-")):
            mine = [p for p in points if p[:2] == (model, split)]
            axis.plot([p[2] for p in mine], [p[3] for p in mine], style, label=split, markersize=4, linewidth=1)
        axis.set(title=model, xlabel="update", ylabel=SHOWN[model].replace("_", " "), yscale="log")
        axis.grid(True, which="both", alpha=0.3)
        axis.legend()
    figure.savefig(HERE / "curves.png", dpi=110)


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    overview()
    if sys.argv[1:]:
        curves(sys.argv[1:])
