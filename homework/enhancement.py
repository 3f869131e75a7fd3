"""Fits an enhancement layer, the second grid of compressed files: ``python -m homework.enhancement``. See ``--help``."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from homework.codec.enhancement import STEPS, EnhancementLayer, lmbda_of, quality_of
from homework.core import checkpoint, cli, devices
from homework.core.fingerprint import identity
from homework.datasets.image_files import batches_of, spread
from homework.datasets.tokenized_images import TokenizedImages
from homework.evaluation import metrics
from homework.priors.pairs import load_tokenizer
from homework.tokenizers.base import Tokenizer


def enhancement(tokenizer: str, data: str, output: str, *, n_components: int = 40, limit: int = 1000,
                image_size: str | None = None, batch_size: int = 32, device: str = "auto") -> None:  # fmt: skip
    """Fits the enhancement layer of a tokenizer: what codes in a file the part of an image that its tokens leave, for
    qualities above 62. Takes about a quarter of an hour of a core for 1 000 images of 150x100, and 3 GB of memory.

    Examples:
        python -m homework.enhancement BSQPatchAutoEncoder mine/searched mine/EnhancementLayer.pth
        python -m homework.enhancement mine/bsq.pth mine/searched mine/EnhancementLayer.pth --n_components 30 --limit 300

    Args:
        tokenizer: checkpoint of a tokenizer.
        data: a folder with images' tokens, tokenized_train.pth, by homework.tokenize, best with --prior and a --quality of
            60 to 70; and tokenized_valid.pth, on which what the layer gives is shown, if it is there.
        output: the checkpoint to write, .pth.
        n_components: numbers that a patch is coded by, at most three for each of its pixels.
        limit: how many images to use at most, evenly spread.
        image_size: HEIGHTxWIDTH in pixels, to which images are scaled and cropped; as they are by default, and as the tokens
            were made.
        batch_size: images that are decoded at once.
        device: auto, cpu, cuda or mps.
    """
    cli.at_least(1, limit=limit, batch_size=batch_size)
    cli.check_output(output)
    model = load_tokenizer(tokenizer).to(devices.pick_device(device)).eval()
    P, Q = model.patch_shape
    if P != Q:
        raise ValueError(f"The tokenizer has patches of {P}x{Q} pixels, but an enhancement layer needs squares.")
    layer = EnhancementLayer(model.n_tokens, P, n_components)
    size = cli.parse_image_size(image_size)
    layer.fit(*residuals(model, TokenizedImages("train", data, size), limit, batch_size))
    checkpoint.save(layer, output, {"tokenizer": identity(model)})
    if (Path(data) / "tokenized_valid.pth").is_file():
        x, tokens = residuals(model, TokenizedImages("valid", data, size), limit, batch_size)
        print(f"tokens alone: {metrics.psnr(float(x.square().mean())):.2f} dB")
        for step in range(1, STEPS + 1):
            q = layer.quantize(layer.coefficients(x), tokens, step, lmbda_of(step))
            left = float((x - layer.residual(q, step)).square().mean())
            print(f"quality {quality_of(step):3}: {metrics.psnr(left):.2f} dB, "
                  f"{layer.bits(q, tokens, step).sum() / len(x) / 8:,.0f} bytes more an image")  # fmt: skip
    print(f"{output}: an enhancement layer of {n_components} components")


def residuals(model: Tokenizer, data: TokenizedImages, limit: int, batch_size: int) -> tuple[Tensor, np.ndarray]:
    """What the tokens of images leave of these, (B,h*P,w*P,3) float32 on the CPU and 0 beyond the images, and the tokens
    (B,h,w) int64. ValueError for tokens of another tokenizer."""
    data.check(model)
    some = spread(range(len(data)), limit)
    left, index = [], []
    with torch.inference_mode(), tqdm(total=len(some), desc="decoding", unit="img") as bar:
        for part in batches_of(some, batch_size):
            x, tokens, *_ = data.batch(part)
            x_hat = model.decode_index(tokens.to(model.device)).cpu()
            own = torch.zeros_like(x_hat)
            own[:, : x.shape[1], : x.shape[2]] = x - x_hat[:, : x.shape[1], : x.shape[2]]
            left.append(own)
            index.append(tokens)
            bar.update(len(part))
    return torch.cat(left), torch.cat(index).numpy()


if __name__ == "__main__":
    cli.main("python -m homework.enhancement", enhancement)
