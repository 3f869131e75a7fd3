"""Fits and prunes self-organizing maps: ``python -m homework.som fit|prune``. See ``--help``."""

import math
import sys
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from homework.core import checkpoint, cli, devices
from homework.datasets.features import INDEX, FeatureDataset
from homework.tokenizers.base import usage_of
from homework.tokenizers.som import SOM
from homework.tokenizers.som_fit import evaluate_codebook, pruned
from homework.tokenizers.vq import nearest
from homework.training import resume

# --- the command line -----------------------------------------------------------------------------------------------------


def fit(
    features: str,
    output: str,
    n_codes: int = 1024,
    patch: int | str = 1,
    lattice: str = "plane",
    passes: int = 20,
    radius_start: float = 0.0,
    radius_end: float = 1.0,
    limit: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> None:
    """Trains a SOM in batch steps: each pass over all features finds every patch's best unit, and then moves all units.
    Curves and pictures are in logs/{date}_SOM/.

    Args:
        features: a folder with train/ and valid/, each written by homework.features.
        output: the checkpoint to write, .pth.
        n_codes: units, from 1 to 8192.
        patch: the side of a patch in places of the feature map, or HEIGHTxWIDTH, or map for one code for all of it.
        lattice: line, plane or ROWSxCOLUMNS.
        radius_start: the neighbourhood's first radius in steps of the lattice; 0 for half of its longer side.
        radius_end: its last one.
        passes: over the training features; the radius shrinks from one to the next.
        limit: how many images to use at most, evenly spread over all.
        batch_size: images at once.
        device: auto, cpu, cuda or mps.
    """
    cli.at_least(1, passes=passes, batch_size=batch_size)
    if limit is not None:
        cli.at_least(1, limit=limit)
    check_output(output)
    device = devices.pick_device(device)
    train, valid = (FeatureDataset(split, root=str(features)) for split in ("train", "valid"))
    radii = {"radius_start": radius_start, "radius_end": radius_end}
    model = SOM(n_codes, patch, lattice, **radii, **train.model_defaults())
    train.prepare(model)
    model.to(device).train()
    order = torch.arange(len(train)) if limit is None or limit >= len(train) else torch.arange(limit) * len(train) // limit
    batches = order.split(batch_size)
    some = [model.to_patches(train.batch(b, device)).flatten(0, 2) for b in batches[:: -(-len(batches) // 16)]]
    model.lay_out(torch.cat(some))  # each (B,h,w,d) -> (n,d)
    writer = SummaryWriter(Path("logs") / resume.new_name("SOM"))
    with tqdm(total=passes * len(order), unit="img") as bar:
        for i in range(passes):
            model.set_progress(i / max(1, passes - 1))
            total, error, units = (0, 0), torch.zeros((), device=device), model.codebook.detach()
            for indices in batches:
                x = model.to_patches(train.batch(indices, device)).flatten(0, 2)  # (B,h,w,d) -> (n,d)
                best = nearest(x, units)
                total = tuple(a + b for a, b in zip(total, model.statistics(x, best), strict=True))
                error += (x - units[best]).square().sum()
                bar.update(len(indices))
            model.batch_step(*total)
            measures = {k: float(v) for k, v in usage_of(total[0], n_codes).items()} | {"radius": model.radius}
            measures["mse"] = float(error / (total[0].sum() * model.codebook.shape[1]))
            for k, v in measures.items():
                writer.add_scalar(f"train/{k}", v, i + 1)
            bar.set_postfix(radius=f"{model.radius:.3g}", usage=f"{measures['usage']:.3g}")
    counts, figures = evaluate_codebook(model.eval(), valid, batch_size, device, topographic=True)
    figures |= {k: float(v) for k, v in usage_of(counts, n_codes).items()}
    for k, v in figures.items():
        writer.add_scalar(f"valid/{k}", v, passes)
    for k, pictures in model.images(valid.batch(torch.arange(min(8, len(valid))), device)).items():
        writer.add_images(k, pictures, passes)
    writer.close()
    command = " ".join(["python -m homework.som", *sys.argv[1:]])
    checkpoint.save(model.cpu(), str(output), {"command": command, "valid": figures})
    shown = ", ".join(f"{k} {v:.5g}" for k, v in figures.items())
    print(f"{output}: {shown} on {len(valid)} validation images")


def check_output(path: str) -> None:
    """ValueError unless a checkpoint can be written to ``path``."""
    if Path(str(path)).suffix != ".pth" or Path(str(path)).is_dir():
        raise ValueError(f"The output is {path}, but must be a .pth file.")


def prune(
    model: str,
    features: str,
    threshold: int,
    output: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> None:
    """Removes the units of a SOM that stand for fewer patches than a threshold; the rest keep their order on the lattice.

    Tokens have to be made anew: those of the SOM as it was mean other units.

    Args:
        model: the checkpoint of a SOM.
        features: a folder written by homework.features, or one with such folders train/ and valid/, of which train/ counts.
        threshold: units that were best for fewer patches than this are removed; at least one is kept.
        output: the checkpoint to write; by default MODEL_pruned.pth.
        batch_size: images at once.
        device: auto, cpu, cuda or mps.
    """
    cli.at_least(1, threshold=threshold, batch_size=batch_size)
    path, features, device = Path(str(model)), Path(str(features)), devices.pick_device(device)
    target = Path(str(output)) if output else path.with_stem(f"{path.stem}_pruned")
    check_output(target)
    som = checkpoint.load(path, "SOM").to(device)
    data = FeatureDataset(features if (features / INDEX).is_file() else "train", root=features)
    before = evaluate_codebook(som, data, batch_size, device)
    counts, _ = before
    left = (counts >= threshold).nonzero()[:, 0].tolist()
    if not left:
        raise ValueError(f"--threshold is {threshold}, but no unit stands for so many patches: the most that one has is "
                         f"{int(counts.max())}.")  # fmt: skip
    smaller = pruned(som, left) if len(left) < som.n_tokens else som
    smaller.meta = som.meta | {"pruned": f"fewer than {threshold} of {int(counts.sum())} patches"}
    checkpoint.save(smaller, target, smaller.meta)
    print(f"On {len(data)} feature maps of {features}:")
    per_image = int(counts.sum()) // len(data)
    after = evaluate_codebook(smaller, data, batch_size, device) if smaller is not som else before
    for name, one in ("before", before), ("after", after):
        counts, m = one
        m |= usage_of(counts, len(counts))
        print(f"{name:6} {len(counts):5} units: MSE {m['mse']:.6f} per number, quantization error "
              f"{m['quantization_error']:.4f}, {m['usage']:.1%} used; {per_image * math.log2(len(counts)):.0f} bits an "
              f"image if all codes were alike, {per_image * m['entropy']:.0f} by their frequencies")  # fmt: skip
    anew = "its tokens have to be made anew" if smaller is not som else "tokens of the old one are still its own"
    print(f"{target}: {som.n_tokens - len(left)} of {som.n_tokens} units removed; {anew}")


if __name__ == "__main__":
    cli.main("python -m homework.som", {"fit": fit, "prune": prune})
