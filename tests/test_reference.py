"""The trained models in the package: they load as documented, are small, and work on real frames."""

import importlib

import numpy as np
import pytest
import torch
from conftest import ROOT

import homework
from homework.codec.cascade_compressor import CascadeCompressor
from homework.core import registry
from homework.datasets.image_files import read_image
from homework.datasets.images import to_float
from homework.priors.pairs import load_cascade

NAMES = ["PatchAutoEncoder", "BSQPatchAutoEncoder", "AutoregressiveModel"]
PAIRS = [("VQPatchAutoEncoder", "VQAutoregressiveModel"), ("BSQPatchAutoEncoder", "GatedPixelCNN"),
         ("VQPatchAutoEncoder", "VQGatedPixelCNN")]  # fmt: skip
CASCADE = ["CascadeScene", "CascadeStage0", "CascadeStage1", "CascadeStage2"]
PRETRAINED = ROOT / "homework" / "pretrained"
SHIPPED = sorted(PRETRAINED.glob("*.pth"))


@pytest.fixture(scope="module")
def models() -> dict[str, torch.nn.Module]:
    missing = [name for name in NAMES if not (PRETRAINED / f"{name}.pth").is_file()]
    if missing:
        pytest.skip(f"not trained yet: {', '.join(missing)}")
    return {name: importlib.import_module(registry.MODELS[name]).load() for name in NAMES}


@pytest.fixture(scope="module")
def frames(real_frames) -> torch.Tensor:
    """(16,100,150,3) float in [-0.5,0.5]."""
    return to_float(torch.from_numpy(np.stack([read_image(p) for p in real_frames[::2]])))


def test_they_load_in_eval_mode_and_stay_under_20_megabytes(models):
    assert all(type(m).__name__ == name and not m.training for name, m in models.items())
    assert sum(path.stat().st_size for path in SHIPPED) < 20e6


def test_they_go_together(models):
    tokenizer, prior = models["BSQPatchAutoEncoder"], models["AutoregressiveModel"]
    assert tokenizer.n_tokens == prior.n_tokens == 1024 and tokenizer.patch_size == 5
    assert (prior.config["height"], prior.config["width"]) == (20, 30)


@torch.inference_mode()
def test_images_come_back(models, frames):
    """The bounds are the grader's for full points; the README's figures are of all 1280 frames."""
    for name, bound in (("PatchAutoEncoder", 0.010), ("BSQPatchAutoEncoder", 0.005)):
        x_hat, _ = models[name](frames)
        assert (x_hat - frames).square().mean() < bound, name
    tokenizer = models["BSQPatchAutoEncoder"]
    grids = tokenizer.encode_index(frames)
    assert grids.shape == (16, 20, 30) and len(grids.unique()) > 200  # many of the 1024 codes
    assert (tokenizer.decode_index(grids) - frames).square().mean() < 0.005


@torch.inference_mode()
def test_the_prior_expects_what_it_sees(models, frames):
    tokenizer, prior = models["BSQPatchAutoEncoder"], models["AutoregressiveModel"]
    grids = tokenizer.encode_index(frames[:8])
    bits = prior.loss(grids)["bits_per_image"]
    assert bits < 4500
    shuffled = grids.flatten(1)[:, torch.randperm(600, generator=torch.Generator().manual_seed(0))].view(grids.shape)
    assert prior.loss(shuffled)["bits_per_image"] > 1.2 * bits  # the same tokens out of order are not a frame


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
@torch.inference_mode()
def test_the_other_pairs_work_too(names, frames):
    """The tokenizer brings frames back, its prior expects these grids rather than shuffled ones, and they come in files."""
    paths = [PRETRAINED / f"{name}.pth" for name in names]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"not trained yet: {' or '.join(names)}")
    tokenizer, prior = map(homework.load, paths)
    grids = tokenizer.encode_index(frames[:4])
    assert (tokenizer.decode_index(grids) - frames[:4]).square().mean() < 0.005
    bits = prior.loss(grids)["bits_per_image"]
    shuffled = grids.flatten(1)[:, torch.randperm(600, generator=torch.Generator().manual_seed(0))].view(grids.shape)
    assert bits < 4800 and prior.loss(shuffled)["bits_per_image"] > bits + 500
    compressor = homework.Compressor(tokenizer, prior)
    (file,) = compressor.compress_tokens(grids[:1], (100, 150))
    assert np.array_equal(compressor.decompress_tokens([file])[0], grids[0].numpy())


@torch.inference_mode()
def test_the_cascade_goes_from_coarse_to_fine(frames):
    """Each finer grid of tokens brings the frames nearer, each stage expects what it sees, and files come back."""
    cascade = load_cascade("cascade.json")
    assert sum((PRETRAINED / f"{name}.pth").stat().st_size for name in CASCADE) < 6e6
    grids = cascade.encode(frames)
    mse = [float((x_hat - frames).square().mean()) for x_hat in cascade.decode(grids)]
    assert mse[1:] == sorted(mse[1:], reverse=True) and max(mse) < 0.03 and mse[-1] < 0.005
    bits = cascade.bits(grids)
    other = cascade.bits([grids[0].roll(8, 0), *grids[1:]])  # of another frame
    assert bits[0] == 6 and bits[1] < other[1] - 3 and sum(bits) < 2200
    compressor = CascadeCompressor(cascade)
    (payload,) = compressor.compress_batch(list(frames[:1]))
    assert torch.allclose(compressor.decompress(payload), cascade.decode(grids)[-1][0], atol=1e-4)


@torch.inference_mode()
def test_the_pixel_prior_expects_digits():
    """About 65 nats a digit; an image of a model that knows nothing costs 543."""
    if not (PRETRAINED / "PixelCNN.pth").is_file():
        pytest.skip("not trained yet: PixelCNN")
    prior = homework.load("PixelCNN")
    new = prior.generate(4, 28, 28, generator=torch.Generator().manual_seed(0))
    assert 0.02 < new.float().mean() < 0.4  # strokes, neither an empty page nor a full one
    nats = prior.loss(new)["nats_per_image"]
    assert nats < 110 and prior.loss(new.flip(1))["nats_per_image"] > nats + 5  # upside down they are odder
