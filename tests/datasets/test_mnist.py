"""MNIST: the IDX files, their split and binarization, getting them, and training on them."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, K, build, digits, files, idx, run, sentence, write_mnist
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from homework.core import checkpoint
from homework.datasets import download, mnist
from homework.datasets.images import to_float
from homework.datasets.kinds import DATASETS
from homework.datasets.mnist import MnistDataset, MnistImages, read_idx
from homework.datasets.tokens import TokenDataset
from homework.tokenize import tokenize

REAL = ROOT.parent / "shared" / "data" / "mnist"
TRAIN, TEST = mnist.FILES[0], mnist.FILES[2]


# --- files ---------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.booleans())
def test_idx_round_trip(tmp_path_factory, shape, zipped):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path_factory.mktemp("idx") / ("a.gz" if zipped else "a")
    path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    assert np.array_equal(read_idx(path), array)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0, 3, 15, 16, 17, 100, 2000])
def test_a_file_cut_short_is_described_in_bytes(tmp_path, kept, zipped):
    """Zipped, its head can always be read: gzip's own end is what is missing as well."""
    whole = idx(digits(3))
    path = tmp_path / ("a.gz" if zipped else "a")
    path.write_bytes(gzip.compress(whole[:kept]) if zipped else whole[:kept])
    with pytest.raises(ValueError) as error:
        read_idx(path)
    message = str(error.value)
    assert str(path) in message and f"{kept}" in message and "homework.data mnist" in message
    assert kept < 16 or str(len(whole)) in message


def test_a_gzip_file_cut_short_is_described_in_bytes(tmp_path):
    whole = gzip.compress(idx(digits(3)))
    for kept in (len(whole) // 2, len(whole) - 4):
        (tmp_path / "a.gz").write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=rf"a.gz (should hold {16 + 3 * 784} bytes .* holds \d+;|is damaged)"):
            read_idx(tmp_path / "a.gz")


@given(st.binary(max_size=64), st.booleans())
def test_other_files_are_refused(tmp_path_factory, content, zipped):
    path = tmp_path_factory.mktemp("idx") / "a.gz"
    path.write_bytes(gzip.compress(content) if zipped else content)
    try:
        array = read_idx(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert zipped and array.dtype == np.uint8 and idx(array) == content


def test_a_flipped_bit_is_noticed(tmp_path):
    content = bytearray(gzip.compress(idx(digits(3)), 0))  # stored, so that only the checksum tells
    content[len(content) // 2] ^= 1
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(ValueError, match="a.gz is damaged"):
        read_idx(tmp_path / "a.gz")


def test_split(small):
    first, last = (read_idx(small / "mnist" / f"{name}.gz") for name in (TRAIN, TEST))
    for split, expected in (("train", first[:24]), ("valid", first[24:]), ("test", last)):
        assert np.array_equal(mnist.read_split(split, small), expected)
    with pytest.raises(ValueError, match="train, valid and test, but not 'all'"):
        mnist.read_split("all", small)
    (small / "mnist" / f"{TEST}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=f"{TEST}.gz; get MNIST with python -m homework.data mnist"):
        mnist.read_split("test", small)


def test_too_few_digits_are_refused(tmp_path):
    write_mnist(tmp_path / "mnist")
    with pytest.raises(ValueError, match="N > 50000 for training"):
        mnist.read_split("valid", tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="MNIST's files are not beside the checkout")
def test_the_real_files():
    splits = {split: MnistDataset(split, REAL.parent) for split in ("train", "valid", "test")}
    assert {k: len(v) for k, v in splits.items()} == {"train": 50_000, "valid": 10_000, "test": 10_000}
    ink = splits["valid"].tokens.mean()
    assert 0.15 < ink < 0.25 and splits["valid"].tokens.max() == 1


# --- binarization ---------------------------------------------------------------------------------------------------------


def test_grids_of_ink(small):
    raw = mnist.read_split("train", small)
    dataset, half = MnistDataset("train", small), MnistDataset("train", small, binarize=0.5)
    assert len(dataset) == 24 and dataset[3].shape == (28, 28) and dataset[3].dtype == torch.int64
    indices = torch.tensor([5, 0, 5])
    assert torch.equal(dataset.batch(indices), torch.from_numpy(raw[[5, 0, 5]] > 0).long())
    assert torch.equal(half.batch(indices), torch.from_numpy(raw[[5, 0, 5]] >= 128).long())
    assert torch.equal(dataset.batch(indices), torch.stack([dataset[5], dataset[0], dataset[5]]))
    batch = dataset.batch(indices)
    assert dataset.augment(batch, torch.Generator(), indices) is batch
    assert dataset.model_defaults() == {"n_tokens": 2, "height": 28, "width": 28}


def test_sampled_ink(small):
    """Validation is one draw; training draws afresh, black never, white always, grey as often as it is bright."""
    raw = mnist.read_split("train", small)
    dataset = MnistDataset("train", small, binarize="sample")
    assert torch.equal(dataset.batch([0, 1]), MnistDataset("train", small, binarize="sample").batch([0, 1]))
    indices = np.zeros(2000, dtype=np.int64)
    fixed = dataset.batch(indices)
    once, again, other = (dataset.augment(fixed, torch.Generator().manual_seed(s), indices) for s in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other) and once.dtype == torch.int64
    p, mean = raw[0] / 255, once.double().mean(0).numpy()
    assert (abs(mean - p) < 5 * np.sqrt(p * (1 - p) / 2000) + 1e-9).all()
    first = torch.from_numpy(raw[0].copy())
    assert (once[:, first == 0] == 0).all() and (once[:, first == 255] == 1).all()
    assert 0.38 < fixed[0, first > 0].double().mean() < 0.62  # uniform greys: half of their pixels


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, "half", True, None, float("nan"), [0.5]])
def test_other_binarizations_are_named(small, value):
    with pytest.raises(ValueError, match="binarize is .*below 1, or sample"):
        MnistDataset("train", small, binarize=value)


def test_images_for_tokenizers(small):
    raw = torch.from_numpy(mnist.read_split("valid", small).copy())
    dataset = MnistImages("valid", small)
    batch = dataset.batch(torch.tensor([2, 0]))
    assert len(dataset) == 8 and batch.shape == (2, 28, 28, 3) and dataset[2].shape == (28, 28, 3)
    assert all(torch.equal(batch[..., c], to_float(raw[[2, 0]])) for c in range(3))
    assert dataset.augment(batch, torch.Generator()) is batch and dataset.model_defaults() == {"height": 28, "width": 28}


# --- getting it -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_import_of_a_folder(tmp_path, zipped):
    write_mnist(tmp_path / "source" / "deep", zipped)
    download.import_(tmp_path / "source", tmp_path / "data")
    names = [f"{name}.gz" if zipped else name for name in mnist.FILES]
    assert files(tmp_path / "data") == {f"mnist/{name}" for name in names}
    for name in names:
        assert (tmp_path / "data/mnist" / name).read_bytes() == (tmp_path / "source/deep" / name).read_bytes()
    with pytest.raises(ValueError, match="mnist exists already; pass --replace"):
        download.import_(tmp_path / "source", tmp_path / "data")
    download.import_(tmp_path / "source", tmp_path / "data", replace=True)


def test_import_takes_images_beside_them(tmp_path):
    write_mnist(tmp_path / "source" / "mnist")
    for split in ("train", "valid"):
        (tmp_path / "source" / split).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / "source" / split / "a.png")
    download.import_(tmp_path / "source", tmp_path / "data")
    assert {"train/a.png", "valid/a.png", f"mnist/{TRAIN}.gz"} <= files(tmp_path / "data")


def test_import_of_a_damaged_or_missing_file_leaves_nothing(tmp_path):
    source = write_mnist(tmp_path / "source", zipped=False)
    whole = (source / TEST).read_bytes()
    (source / TEST).write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=f"{TEST} should hold {len(whole)} bytes .* holds {len(whole) - 100};"):
        download.import_(source, tmp_path / "data")
    (source / TEST).unlink()
    with pytest.raises(ValueError, match=f"MNIST's file {TEST} is not there"):
        download.import_(source, tmp_path / "data")
    assert not files(tmp_path / "data")


def test_download(tmp_path, serve):
    source = write_mnist(tmp_path / "source")
    download.mnist(tmp_path / "data", serve(content=source))
    assert files(tmp_path / "data") == {f"mnist/{name}.gz" for name in mnist.FILES}
    with pytest.raises(ValueError, match="exists already"):
        download.mnist(tmp_path / "data", "http://127.0.0.1:1")


def test_download_of_a_foreign_or_missing_file_leaves_nothing(tmp_path, serve):
    source = write_mnist(tmp_path / "source")
    (source / f"{TEST}.gz").write_bytes(b"<html>Please log in</html>")
    with pytest.raises(ValueError, match=f"{TEST}.gz.* is not an IDX file"):
        download.mnist(tmp_path / "data", serve(content=source))
    assert not files(tmp_path / "data")
    (source / f"{TEST}.gz").unlink()
    with pytest.raises(OSError, match="404 .*data import FOLDER"):
        download.mnist(tmp_path / "data", serve(content=source))


# --- training on it -------------------------------------------------------------------------------------------------------


@pytest.fixture
def train(command, small, tmp_path, monkeypatch):
    """Trains a tiny model on the small MNIST, in this process."""

    def call(model: str, **options):
        monkeypatch.chdir(tmp_path)
        own = {k: v for k, v in TINY[model].items() if k not in ("n_tokens", "height", "width")}
        settings = {"data": small, "epochs": 0.3, "batch_size": 4, "limit": 12, "device": "cpu"} | own | options
        return command("train", model, *(f"--{k}={v}" for k, v in settings.items()))

    return call


def trained(folder: Path, name: str):
    (path,) = folder.glob(f"checkpoints/*_{name}.pth")
    return checkpoint.load(path, name)


def test_pixelcnn_trains_on_mnist_by_default(train, tmp_path):
    done = train("PixelCNN")
    assert done.returncode == 0 and "bits_per_pixel" in done.stdout and "nats_per_image" in done.stdout, done.stderr
    valid = trained(tmp_path, "PixelCNN").meta["valid"]
    assert valid["nats_per_image"] == pytest.approx(784 * valid["loss"], rel=1e-5)
    assert valid["bits_per_pixel"] == pytest.approx(valid["bits_per_image"] / 784, rel=1e-5)


@pytest.mark.parametrize("name", ["GatedPixelCNN", "AutoregressiveModel"])
def test_any_prior_trains_on_mnist(train, tmp_path, name):
    done = train(name, dataset="mnist", binarize="sample")
    assert done.returncode == 0, done.stderr
    model = trained(tmp_path, name)
    assert model.n_tokens == 2 and (model.config["height"], model.config["width"]) == (28, 28)


def test_attention_to_the_rows_above_trains_in_bfloat16(train, tmp_path):
    done = train("GatedPixelCNN", dataset="mnist", attention=2, precision="bfloat16")
    assert done.returncode == 0, done.stderr
    model = trained(tmp_path, "GatedPixelCNN")
    assert model.config["attention"] == 2 and model.loss(torch.zeros(1, 28, 28, dtype=torch.int64))["loss"].isfinite()


def test_a_tokenizer_trains_on_mnist(train, tmp_path):
    done = train("BSQPatchAutoEncoder", dataset="mnist_images", patch_size=4)
    assert done.returncode == 0, done.stderr
    grid = trained(tmp_path, "BSQPatchAutoEncoder").encode_index(MnistImages("valid", tmp_path / "data").batch([0]))
    assert grid.shape == (1, 7, 7)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_digits_become_tokens(small, tmp_path, split):
    model, path = build("VQPatchAutoEncoder", patch_size=4).eval(), tmp_path / "vq.pth"
    checkpoint.save(model, path)
    tokenize(path, tmp_path / "tokenized_valid.pth", small / "mnist", split=split, batch_size=5, codes=True)
    tokens, data = TokenDataset("valid", root=tmp_path), MnistImages(split, small)
    expected = model.encode_index(data.batch(torch.arange(len(data))))
    assert expected.shape[1:] == (7, 7) and torch.equal(tokens.batch(torch.arange(len(data))), expected)
    assert tokens.names == data.names and tokens.codes.shape == (K, 4)


def test_several_processes_share_the_digits_and_one_writes(small, tmp_path):
    checkpoint.save(build("VQPatchAutoEncoder", patch_size=4), tmp_path / "vq.pth")
    options = "vq.pth", "two.pth", small / "mnist", "--split", "test", "--batch_size", 2
    done = run("-m", "homework.tokenize", *options, cwd=tmp_path, processes=2)
    assert done.returncode == 0 and done.stdout.count("9 grids") == 1, done.stderr
    tokenize(tmp_path / "vq.pth", tmp_path / "one.pth", small / "mnist", split="test", batch_size=2)
    one, two = (TokenDataset(tmp_path / f"{name}.pth") for name in ("one", "two"))
    assert one.names == two.names and np.array_equal(one.tokens, two.tokens)


@pytest.mark.parametrize(
    "folder, options, message",
    [
        ("data/mnist", {}, "holds MNIST; name the digits by --split train, valid or test"),
        ("data/mnist", {"split": "dev"}, "the splits train, valid and test, but not 'dev'"),
        ("data/mnist", {"split": "test", "copies": 1}, "digits .* stay as they are"),
        ("data", {"split": "test"}, "--split is for MNIST's folder"),
    ],
)
def test_digits_that_cannot_become_tokens(small, tmp_path, folder, options, message):
    checkpoint.save(build("BSQPatchAutoEncoder", patch_size=4), tmp_path / "bsq.pth")
    with pytest.raises(ValueError, match=message):
        tokenize(tmp_path / "bsq.pth", tmp_path / "tokens.pth", tmp_path / folder, **options)
    assert not (tmp_path / "tokens.pth").exists()


@pytest.mark.parametrize(
    "model, options, message",
    [
        ("BSQPatchAutoEncoder", {"dataset": "mnist"}, "--dataset is 'mnist', but BSQ.* on images .*: .*mnist_images"),
        ("PixelCNN", {"dataset": "mnist_images"}, "trained on grids: tokens, mnist"),
        ("PixelCNN", {"dataset": "cifar"}, "--dataset is 'cifar'"),
        ("PixelCNN", {"image_size": "4x4"}, "--image_size is not for the data set mnist"),
        ("BSQPatchAutoEncoder", {"dataset": "mnist_images", "binarize": 0.5}, "--binarize is not for .* mnist_images"),
        ("PixelCNN", {"binarize": 2}, "binarize is 2"),
        ("GatedPixelCNN", {"dataset": "mnist", "n_tokens": 3}, "for 3 different tokens, but this data has 2"),
    ],
)
def test_what_does_not_suit_is_named(train, tmp_path, model, options, message):
    assert re.search(message, sentence(train(model, **options)))
    assert not (tmp_path / "checkpoints").exists()


def test_a_completion_is_binarized_as_the_prior_was_trained(train, command, tmp_path):
    assert train("PixelCNN", c_hidden=8, num_res_block=1, binarize=0.5, output="p.pth").returncode == 0
    assert checkpoint.load(tmp_path / "p.pth").meta["binarize"] == 0.5
    whole = []
    for options in [], ["--binarize", 0.5], ["--binarize", 0]:
        done = command("sample", "p.pth", 1, "out", "--complete", 0, "--rows", 28, *options)
        assert done.returncode == 0, done.stderr
        whole.append(np.asarray(Image.open(tmp_path / "out" / "sample_0.png")))
    assert (whole[0] == whole[1]).all() and (whole[0] != whole[2]).any()


def test_the_names_of_the_data_sets():
    assert {k: v.holds for k, v in DATASETS.items() if "mnist" in k} == {"mnist": "grids", "mnist_images": "images"}
