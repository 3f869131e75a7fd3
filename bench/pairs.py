"""Auto-encoders and tokenizers side by side, each under its priors: ``python -m bench.pairs MODEL[=PRIOR,PRIOR] ...``.

Prints a table in Markdown; the command that made the README's.
"""

import torch
from tqdm import tqdm

from homework.codec import dial
from homework.core import checkpoint, cli
from homework.core.model import Model
from homework.datasets.images import ImageDataset
from homework.evaluation.metrics import errors, psnr
from homework.priors.base import Prior
from homework.priors.pairs import load_pair
from homework.tokenizers.base import Tokenizer

BATCH = 16


def pairs(*models: str, data: str = "data/valid", image_size: str | None = None, limit: int | None = None,
          quality: str = str(dial.QUALITY)) -> None:  # fmt: skip
    """Prints MSE, PSNR, codes used and bits an image, for every model on the same images.

    Args:
        models: checkpoints of auto-encoders and tokenizers; after that of a tokenizer, =, and the priors over its grids
            with commas between them.
        data: a folder of images.
        image_size: HEIGHTxWIDTH, to which they are scaled and cropped; as they are by default.
        limit: how many of them to use at most, the first ones by name; all by default.
        quality: of tokenizers with a dial, from 1 to 100; with several, with commas between them, a line for each.
    """
    if not models:
        raise ValueError("Name the checkpoints to compare, as in TOKENIZER.pth=PRIOR.pth,PRIOR.pth.")
    if limit is not None:
        cli.at_least(1, limit=limit)
    images = ImageDataset(str(data), cli.parse_image_size(image_size))
    n, qualities = min(len(images), limit or len(images)), dial.parse_qualities(str(quality))
    print("| model | parameters | quality | MSE | PSNR, dB | codes used | bits an image |\n|---|---|---|---|---|---|---|")
    for path, _, priors in (str(m).partition("=") for m in models):
        model = checkpoint.load(path)
        # says so if they do not go together
        loaded = [load_pair(path, p, torch.device("cpu"))[1] for p in priors.split(",") if p]
        for own in qualities if isinstance(model, Tokenizer) and model.has_dial else [None]:
            print("|", " | ".join(row(path, model, own, loaded, images, n)), "|", flush=True)


@torch.inference_mode()
def row(path: str, model: Model, quality: float | None, priors: list[Prior], images: ImageDataset,
        n: int) -> tuple[str, ...]:  # fmt: skip
    """The cells of one model's line, over the first n images, at a quality if it has a dial."""
    error, used, bits = 0.0, set(), [0.0] * len(priors)
    for indices in tqdm(torch.arange(n).split(BATCH), desc=path, leave=False):
        x = images.batch(indices)
        if isinstance(model, Tokenizer):
            grids = model.encode_index(x) if quality is None else model.encode_at(x, dial.lmbda_at(quality))
            x_hat = model.decode_index(grids)
            used.update(grids.unique().tolist())
        else:
            x_hat = model.decode(model.encode(x))
        error += sum(errors(x_hat[:, : x.shape[1], : x.shape[2]], x))
        for p, prior in enumerate(priors):
            bits[p] += prior.bits(grids).sum().item()
    codes = f"{len(used)} of {model.n_tokens}" if used else ""
    under = ", ".join(f"{total / n:,.0f} ({name(prior)})" for total, prior in zip(bits, priors, strict=True))
    size, at = f"{sum(p.numel() for p in model.parameters()):,}", "" if quality is None else f"{quality:g}"
    return f"{name(model)} ({path})", size, at, f"{error / n:.5f}", f"{psnr(error / n):.2f}", codes, under


def name(model: Model) -> str:
    reads_codes = isinstance(model, Prior) and model.stored_codes() is not None
    return type(model).__name__ + " reading codes" * reads_codes


if __name__ == "__main__":
    cli.main("python -m bench.pairs", pairs)
