"""Fits and prunes self-organizing maps, and thins out their grids: ``python -m homework.som fit|prune|subsample``. See
``--help``."""

import math
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from homework.core import checkpoint, checks, cli, devices
from homework.datasets.features import FeatureDataset, has_features
from homework.priors.pairs import load_tokenizer
from homework.tokenizers.som import SOM
from homework.tokenizers.som_fit import evaluate_codebook, fit_in_passes, pruned
from homework.tokenizers.subsampled import SubsampledTokenizer
from homework.training import resume


def fit(features: str, output: str, *, n_codes: int = 1024, patch: int | str = 1, lattice: str = "plane", passes: int = 20,
        radius_start: float = 0.0, radius_end: float = 1.0, coarser: str | None = None, limit: int | None = None,
        batch_size: int = 64, device: str = "auto") -> None:  # fmt: skip
    """Trains a SOM in batch steps: a pass over all features finds every patch's best unit, and then all units move.
    Curves and pictures are in logs/{date}_SOM/.

    Examples:
        python -m homework.som fit features homework/SOM.pth
        python -m homework.som fit features fine.pth --coarser coarse.pth

    Args:
        features: a folder with train/ and valid/, each written by homework.features.
        output: the checkpoint to write, .pth.
        n_codes: units, from 1 to 8192.
        patch: the side of a patch in positions of the feature map, or HEIGHTxWIDTH, or map for one code for all of it.
        lattice: line, plane or ROWSxCOLUMNS.
        radius_start: the neighbourhood's first radius in steps of the lattice; 0 for half of its longer side.
        radius_end: its last one.
        coarser: the checkpoint of a SOM, on whose residuals to fit the new one: what it, with all coarser ones, leaves.
        passes: over the training features; the radius shrinks from one to the next.
        limit: how many images to use at most, evenly spread over all.
        batch_size: images at once.
        device: auto, cpu, cuda or mps.
    """
    cli.at_least(1, passes=passes, batch_size=batch_size, limit=1 if limit is None else limit)
    cli.check_output(output)
    device = devices.pick_device(device)
    train, valid = (FeatureDataset(split, root=features) for split in ("train", "valid"))
    options = {"n_codes": n_codes, "patch": patch, "lattice": lattice}
    options |= {"radius_start": radius_start, "radius_end": radius_end}
    if coarser is None:
        with devices.keeping_generators():
            model = SOM(**options, **train.model_defaults())
        train.prepare(model)
    else:
        train.check(before := checkpoint.load(coarser, "SOM"))
        if (known := (before.config["height"], before.config["width"])) != train.size[:2]:
            raise ValueError(f"{coarser} is for maps of {known[0]}x{known[1]}, but those of {features} are "
                             f"{train.size[0]}x{train.size[1]}; fit both on the same features.")  # fmt: skip
        model = before.finer(**options)
    model.to(device).train()
    n = min(len(train), limit or len(train))
    order = torch.arange(n) * len(train) // n
    writer = SummaryWriter(Path("logs") / resume.new_name("SOM"))
    with tqdm(total=passes * n, desc="fitting", unit="img") as bar:
        for i, measures in enumerate(fit_in_passes(model, train, order, batch_size, passes, bar.update), start=1):
            for k, v in measures.items():
                writer.add_scalar(f"train/{k}", v, i)
            bar.set_postfix(radius=f"{measures['radius']:.3g}", usage=f"{measures['usage']:.3g}")
    _, results = evaluate_codebook(model.eval(), valid, batch_size, topographic=True)
    for k, v in results.items():
        writer.add_scalar(f"valid/{k}", v, passes)
    for k, pictures in model.images(valid.batch(torch.arange(min(8, len(valid))), device)).items():
        writer.add_images(k, pictures, passes)
    writer.close()
    meta = {"command": cli.command_line("som"), "valid": results}
    checkpoint.save(model.cpu(), output, meta)
    n, figures = checks.count(len(valid), "validation image"), ", ".join(f"{k} {v:.5g}" for k, v in results.items())
    print(f"{output}: {figures} on {n}")


def prune(model: str, features: str, threshold: float, *, output: str | None = None, batch_size: int = 64,
          device: str = "auto") -> None:  # fmt: skip
    """Removes the units of a SOM that are the best for fewer patches than a threshold; the others keep their positions.
    Tokens have to be made again: those of the SOM as it was mean other units.

    Examples:
        python -m homework.som prune homework/SOM.pth features 10
        python -m homework.som prune SOM features/train 1 --output small.pth

    Args:
        model: the checkpoint of a SOM.
        features: a folder written by homework.features, or one with such a folder train/.
        threshold: units that are the best for fewer patches than this are removed: a number of patches, such as 20, or below
            1 a share of the mean over all units, such as 0.1, which suits any number of images.
        output: the checkpoint to write; by default MODEL_pruned.pth.
        batch_size: images at once.
        device: auto, cpu, cuda or mps.
    """
    cli.at_least(1, batch_size=batch_size)
    if type(threshold) not in (int, float) or not (0 < threshold < 1 or threshold % 1 == 0 < threshold):
        raise ValueError(f"--threshold is {threshold!r}, but must be a number of patches, an integer of at least 1, or a "
                         "share of the mean between 0 and 1, as in 0.1.")  # fmt: skip
    path, features, device = Path(model), Path(features), devices.pick_device(device)
    target = Path(output) if output else path.with_name(f"{path.stem}_pruned.pth")
    cli.check_output(target)
    som = checkpoint.load(path, "SOM").to(device)
    data = FeatureDataset(features if has_features(features) else "train", root=features)
    counts, before = evaluate_codebook(som, data, batch_size)
    n_patches = int(counts.long().sum())  # beyond 2^24 float32 would round
    fewest, most = threshold if threshold >= 1 else threshold * counts.mean().item(), int(counts.max())
    if fewest > most:
        raise ValueError(f"--threshold is {threshold}, but must be at most {most} to leave a unit, for none is the best for "
                         "more patches.")  # fmt: skip
    left = (counts >= fewest).nonzero()[:, 0].tolist()
    smaller, after = som, before
    if len(left) < som.n_tokens:
        smaller = pruned(som, left)
        _, after = evaluate_codebook(smaller, data, batch_size)
    meta = som.meta | {"pruned": f"fewer than {fewest:.6g} of {n_patches} patches"}
    checkpoint.save(smaller, target, meta)
    print(f"On {checks.count(len(data), 'feature map')} of {features}:")
    per_image = n_patches // len(data)
    for name, n, m in ("before", som.n_tokens, before), ("after", smaller.n_tokens, after):
        print(f"{name:6} {n:5} units: MSE {m['mse']:.6f} per number, quantization error {m['quantization_error']:.4f}, "
              f"{m['usage']:.1%} used; {per_image * math.log2(n):.0f} bits an image if all codes were equally frequent, "
              f"{per_image * m['entropy']:.0f} by their frequencies")  # fmt: skip
    remedy = "its tokens have to be made again" if smaller is not som else "the old one's tokens remain valid"
    print(f"{target}: {som.n_tokens - len(left)} of {som.n_tokens} units removed; {remedy}")


def subsample(tokenizer: str, output: str, *, patch: int | str = 2) -> None:
    """Makes a coarser codebook of one for a cascade: of each patch of its tokens that in the middle.

    Examples:
        python -m homework.som subsample fine.pth middle.pth --patch 2x3
        python -m homework.som subsample middle.pth map.pth --patch 5x5

    Args:
        tokenizer: the checkpoint of a SOM that is not residual, or of another tokenizer that decodes code vectors; or one
            that this command made, for a still coarser grid.
        output: the checkpoint to write, .pth.
        patch: the side of a patch in tokens of that tokenizer, or HEIGHTxWIDTH; all of its grid for a cascade's first one.
    """
    cli.check_output(output)
    if (sides := checks.parse_sides(patch)) is None:
        raise ValueError(f"--patch is {patch!r}, but must be an integer of at least 1, or HEIGHTxWIDTH.")
    coarse = SubsampledTokenizer.part_of(load_tokenizer(tokenizer), *sides)
    checkpoint.save(coarse, output, coarse.meta | {"command": cli.command_line("som")})
    print(f"{output}: a code for {sides[0]}x{sides[1]} tokens of {tokenizer}, which are "
          f"{coarse.patch_size[0]}x{coarse.patch_size[1]} pixels (height x width)")  # fmt: skip


if __name__ == "__main__":
    cli.main("python -m homework.som", {"fit": fit, "prune": prune, "subsample": subsample})
