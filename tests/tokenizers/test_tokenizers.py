"""What every registered tokenizer and every data set promises, whatever its kind."""

import numpy as np
import pytest
import torch
from conftest import GRID, SIZE, TINY, K, batch_for, build

from homework.core import checkpoint, registry
from homework.core.files import write
from homework.datasets import kinds, mnist
from homework.datasets.base import Dataset
from homework.datasets.features import FeatureModel
from homework.datasets.image_files import report_bad_images
from homework.datasets.sharding import shard
from homework.features import features
from homework.tokenize import tokenize
from homework.tokenizers.base import Tokenizer, usage

TOKENIZERS = [name for name in TINY if issubclass(registry.model_class(name), Tokenizer)]


def test_the_tokenizers_are_known():
    assert TOKENIZERS == ["BSQPatchAutoEncoder", "VQPatchAutoEncoder", "VQVAE", "SOM"]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("without_gradients", [True, False])
def test_results_are_ordinary_tensors(name, without_gradients):
    """They can be written to, and take part in what needs gradients."""
    model = build(name).eval()
    x = torch.rand(2, *SIZE, 3) - 0.5
    with torch.set_grad_enabled(not without_gradients):
        index = model.encode_index(x)
        results = [index, model.decode_index(index), model.code_vectors(index), model.code_table(), model(x)[0]]
    results += model.images(batch_for(model)).values()
    assert not any(result.is_inference() for result in results)
    weight = torch.ones((), requires_grad=True)
    sum((weight * result).square().sum() for result in results if result.is_floating_point()).backward()
    assert weight.grad.isfinite()
    with torch.no_grad():
        for result in results:
            before = result.clone()
            result += 1
            assert torch.equal(result, before + 1)
    assert torch.is_grad_enabled() and model(x)[0].requires_grad


@pytest.mark.parametrize("name", TOKENIZERS)
def test_patch_size_gives_the_grid(name):
    model = build(name)
    P, Q = model.patch_shape
    with torch.no_grad():
        index = model.encode_index(torch.zeros(*SIZE, 3))
        assert index.shape == (-(-SIZE[0] // P), -(-SIZE[1] // Q)) and index.dtype == torch.int64
        assert model.decode_index(index).shape == (index.shape[0] * P, index.shape[1] * Q, 3)
    assert torch.equal(model.code_table()[index], model.code_vectors(index)) and model.n_tokens == K


@pytest.mark.parametrize("name", TOKENIZERS)
def test_feature_maps_are_for_those_that_read_them(name):
    model, z = build(name), torch.randn(2, *GRID, 3)
    if isinstance(model, FeatureModel):
        assert model.encode_features(z).shape == (2, *GRID)
    else:
        with pytest.raises(ValueError, match=f"the model {name} makes tokens of images"):
            model.encode_features(z)


# --- data sets ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(data, tmp_path, monkeypatch):
    """``opened(name)``: the training split of each data set of the table."""

    def call(name: str) -> Dataset:
        if name in ("images", "tokens"):
            return kinds.DATASETS[name]("train", root=data)
        if name == "shards":
            for split in "train", "valid":
                shard(str(data / split), str(tmp_path / split), size="10KB")
            return kinds.DATASETS[name]("train", root=tmp_path)
        if name == "multiscale":
            names = [str(i) for i in range(24)]
            write({"tokens": torch.zeros(24, 2, 3, dtype=torch.uint8), "n_tokens": 5, "names": names,
                   "tokenizer": "x"}, tmp_path / "tokenized_train.pth")  # fmt: skip
            return kinds.DATASETS[name]("train", root=data, coarse=tmp_path)
        if name == "tokenized_images":
            checkpoint.save(build("BSQPatchAutoEncoder"), tmp_path / "bsq.pth")
            tokenize(tmp_path / "bsq.pth", tmp_path / "tokenized_train.pth", data / "train", device="cpu")
            return kinds.DATASETS[name]("train", root=tmp_path)
        if name == "features":
            spec = TINY["SOM"]["autoencoder"]
            checkpoint.save(build(spec["model"], **spec["config"]), tmp_path / "ae.pth")
            features(tmp_path / "ae.pth", data / "train", tmp_path / "train", device="cpu")
            return kinds.DATASETS[name]("train", root=tmp_path)
        digits = np.random.default_rng(0).integers(0, 256, (24, 28, 28), dtype=np.uint8)
        monkeypatch.setattr(mnist, "read_split", lambda split, root: digits)
        return kinds.DATASETS[name]("train")

    return call


def parts(batch) -> tuple:
    return batch if isinstance(batch, tuple) else (batch,)


@pytest.mark.parametrize("name", kinds.DATASETS)
def test_every_data_set_keeps_the_contract(name, opened):
    dataset = opened(name)
    assert isinstance(dataset, Dataset) and len(dataset) == 24
    assert (len(dataset.names) in (0, 24) or name == "shards") and all(isinstance(n, str) for n in dataset.names)
    assert isinstance(dataset.meta, dict) and (dataset.codes is None or len(dataset.codes))
    floats, integers = (torch.float32, 4), (torch.int64, 3)
    wanted = {"images": [floats], "features": [floats], "pairs of grids": [integers] * 2,
              "images and their tokens": [floats, integers]}.get(dataset.holds, [integers])  # fmt: skip
    indices = torch.tensor([3, 0, 3])
    for batch in dataset.batch(indices), dataset.batch(indices.numpy()), dataset.batch([3, 0, 3]):
        for part, kind in zip(parts(batch), wanted, strict=True):
            assert (part.dtype, part.ndim) == kind and len(part) == 3 and torch.equal(part[0], part[2])
    for part, changed in zip(parts(batch), parts(dataset.augment(batch, torch.Generator(), indices)), strict=True):
        assert changed.shape == part.shape and changed.dtype == part.dtype
    takes = {m: [kinds.DATASETS[kind].holds for kind in (m.data, *m.more_data)] for m in map(registry.model_class, TINY)}
    model = next(m for m, kinds_of_data in takes.items() if dataset.holds in kinds_of_data)
    made = registry.build(model, {}, dataset.model_defaults())
    if name == "tokenized_images":
        with pytest.raises(ValueError, match="a new BSQPatchAutoEncoder cannot learn"):
            dataset.prepare(made)
        return
    dataset.prepare(made)
    if isinstance(made, FeatureModel):
        weights = dataset.load_autoencoder().state_dict()
        assert all(torch.equal(v, weights[k]) for k, v in made.autoencoder.state_dict().items())


class Stripes(Dataset):
    """A third party's data set."""

    holds = "images"

    def __init__(self, split: str, root: str = ""):
        self.meta = {"pattern": split}

    def __len__(self) -> int:
        return 12

    def batch(self, indices, device="cpu"):
        rows = torch.arange(20, device=device).view(1, 20, 1, 1) + torch.as_tensor(indices, device=device).view(-1, 1, 1, 1)
        return (rows % 2 - 0.5).float().expand(-1, -1, 30, 3)


def test_another_data_set_is_one_line_in_the_table(command, tmp_path, monkeypatch):
    monkeypatch.setitem(kinds.DATASETS, "stripes", Stripes)
    monkeypatch.chdir(tmp_path)
    options = [f"--{k}={v}" for k, v in TINY["PatchAutoEncoder"].items()]
    done = command("train", "PatchAutoEncoder", "--dataset", "stripes", "--epochs", 1, "--batch_size", 4, "--device", "cpu",
                   "--output", "s.pth", *options)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert checkpoint.load("s.pth").meta["pattern"] == "train"


# --- images that cannot be used -------------------------------------------------------------------------------------------


def test_bad_images_are_reported(capsys):
    bad = [f"{i}.png cannot be read" for i in range(12)]
    report_bad_images([], 3, skip_bad=False)
    with pytest.raises(ValueError, match=r"12 of 20 images cannot be used; pass --skip_bad to leave them out:\n  0") as e:
        report_bad_images(bad, 20, skip_bad=False)
    assert "9.png" in str(e.value) and "10.png" not in str(e.value) and str(e.value).endswith("and 2 more")
    with pytest.raises(ValueError, match="12 of 12 images cannot be used; there are no others"):
        report_bad_images(bad, 12, skip_bad=True)
    assert capsys.readouterr().err == ""
    report_bad_images(bad[:1], 3, skip_bad=True)
    assert capsys.readouterr().err == "Left out 1 of 3 images: 0.png cannot be read\n"


def test_usage_is_a_fraction_of_all_codes():
    assert usage(torch.tensor([0, 5, 5]), 8)["usage"] == 2 / 8
