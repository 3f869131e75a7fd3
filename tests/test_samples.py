"""``python -m homework.evaluate samples``: distances between sets of features, the features, and the command."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import SIZE, K, build, sentence
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from homework import evaluate
from homework.core import checkpoint
from homework.evaluation import distances, extractors, samples

seeds = st.integers(0, 2**31)


def normal(seed: int, n: int, D: int) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


# --- distances -------------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(2, 40), st.integers(1, 30))
def test_a_set_has_no_frechet_distance_from_itself_in_any_order(seed, n, D):
    x = normal(seed, n, D) * 10 ** (seed % 7 - 3) + seed % 5
    other = x[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    assert 0 <= distances.frechet_distance(x, other) <= 1e-9 * x.double().square().sum().item()


@given(seeds, st.integers(1, 6))
def test_the_frechet_distance_is_the_closed_form_of_equation_6(seed, D):
    """Of commuting covariances it is |m1 - m2|^2 + sum (s1 - s2)^2; sets are given exact means and covariances."""
    draw = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(draw.standard_normal((D, D)))
    found, wanted = [], 0.0
    means, stds = draw.standard_normal((2, D)), draw.uniform(0, 3, (2, D))
    for mean, std in zip(means, stds, strict=True):
        white = draw.standard_normal((50, D))
        white = np.linalg.qr(white - white.mean(axis=0))[0] * np.sqrt(49)  # covariance 1, mean 0
        found.append(torch.from_numpy(white * std @ turn.T + mean))
    wanted = np.square(means[0] - means[1]).sum() + np.square(stds[0] - stds[1]).sum()
    assert distances.frechet_distance(*found) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_the_frechet_distance_of_any_gaussians_has_the_root_of_the_product():
    scipy = pytest.importorskip("scipy.linalg")
    x, y = normal(0, 60, 5) @ normal(1, 5, 5), normal(2, 40, 5) @ normal(3, 5, 5) + 1
    c, d = np.cov(x.T.numpy()), np.cov(y.T.numpy())
    wanted = (x.mean(0) - y.mean(0)).square().sum().item() + np.trace(c + d - 2 * scipy.sqrtm(c @ d).real)
    assert distances.frechet_distance(x, y) == pytest.approx(wanted, rel=1e-5)


def test_the_kernel_distance_is_the_papers_written_out():
    x, y = normal(0, 7, 4).double(), normal(1, 9, 4).double() + 0.5

    def k(a, b):
        return ((a @ b) / 4 + 1) ** 3

    pairs = [[k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j] for z in (x, y)]
    within = [sum(values) / len(values) for values in pairs]
    between = sum(k(a, b) for a in x for b in y) / 63
    assert distances.kernel_distance(x, y)[0] == pytest.approx(float(sum(within) - 2 * between))


def test_the_kernel_distance_has_no_bias_and_its_error_is_right():
    """Of two halves of one distribution, and of two distributions whose distance is known from many more vectors."""
    for shift in 0.0, 0.3:
        found = [distances.kernel_distance(normal(2 * i, 60, 5), normal(2 * i + 1, 60, 5) + shift) for i in range(200)]
        values, errors = np.array(found).T
        truth = 0 if shift == 0 else distances.kernel_distance(normal(997, 4000, 5), normal(998, 4000, 5) + shift)[0]
        spread = values.std(ddof=1)
        assert abs(values.mean() - truth) < 3 * spread / np.sqrt(200) + (0.01 if shift else 0)
        assert 0.9 * spread < np.sqrt(np.square(errors).mean()) < 1.8 * spread  # at 0 it is sqrt(2) too large


@given(seeds, st.integers(5, 30), st.integers(1, 8))
def test_precision_and_recall_are_1_for_equal_sets_and_0_far_apart(seed, n, D):
    x = normal(seed, n, D)
    x[: n // 2] = x[0]  # copies, whose balls may have no radius
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert distances.precision_recall(x, x[order]) == (1, 1)
    assert distances.precision_recall(x, x + 1000) == (0, 0)


def test_samples_of_one_kind_alone_have_precision_but_no_recall():
    reference = torch.cat([normal(0, 100, 2), normal(1, 100, 2) + 50])
    precision, recall = distances.precision_recall(normal(2, 100, 2), reference)
    assert precision > 0.8 and 0.3 < recall < 0.5


def test_the_number_in_memory_at_once_makes_no_difference(monkeypatch):
    x, y = normal(0, 50, 3), normal(1, 30, 3)
    found = []
    for block in distances.BLOCK, 64:
        monkeypatch.setattr(distances, "BLOCK", block)
        near = distances.nearest(x, y).mean().item()
        found.append([*distances.kernel_distance(x, y), *distances.precision_recall(x, y), near])
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_what_was_learned_by_heart_shows():
    train, valid = normal(0, 500, 4), normal(1, 400, 4)
    unseen = distances.nearest(valid, train)

    def near(samples: torch.Tensor) -> dict[str, float]:
        return distances.memorized(distances.nearest(samples, train), unseen)

    fresh, copied = near(normal(2, 400, 4)), near(train[:400] + 0.01 * normal(3, 400, 4))
    assert fresh["share_near"] < 0.12 and fresh["median"] == pytest.approx(fresh["reference_median"], rel=0.2)
    assert copied["share_near"] > 0.95 and copied["median"] < 0.1 * copied["reference_median"]
    assert near(valid)["share_near"] == pytest.approx(distances.NEAR, abs=0.005)


# --- features --------------------------------------------------------------------------------------------------------------


def pictures(n: int, seed: int = 0, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """(n,H,W,3) uint8"""
    return torch.randint(256, (n, *size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def gradient() -> torch.Tensor:
    """(1,40,60,3) uint8, the same on all machines."""
    y, x, c = np.ogrid[:40, :60, :3]
    return torch.from_numpy(((3 * y + 2 * x + 50 * c) % 256).astype(np.uint8))[None]


@pytest.mark.parametrize("name", ["autoencoder", "random"])
@pytest.mark.parametrize("size", [SIZE, (100, 150), (3, 2)])
def test_features_are_ordinary_numbers_whatever_the_size_and_the_batch(name, size):
    extractor, images = extractors.load_extractors(name, torch.device("cpu")), pictures(5, size=size)
    one, other = (samples.extract(images.split(b), 5, extractor, torch.device("cpu"), "")[name] for b in (5, 2))
    assert one.shape == (5, 256) and one.dtype == torch.float32 and one.isfinite().all() and not one.requires_grad
    assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, values",
    [("autoencoder", [-0.01250277, 0.01912474, 0.06887504]), ("random", [0.44102049, 0.02568592, 0.01824279])],
)
def test_features_stay_what_they_are(name, values):
    extractor = extractors.load_extractors(name, torch.device("cpu"))[name]
    with torch.inference_mode():
        assert extractor(gradient())[0, ::100].tolist() == pytest.approx(values, abs=1e-4)


def test_a_feature_that_no_reference_image_varies_does_not_drown_the_others():
    features = normal(0, 20, 8)
    features[:, 0] = 1
    other = normal(1, 20, 8)
    other[:, 0] = 1.01
    found = samples.Comparison(extractors.load_extractors("random", torch.device("cpu")), {"random": features})
    assert found.figures({"random": other})["random"]["frechet_distance"] < 20
    same = samples.Comparison(found.extractors, {"random": torch.ones(5, 8)})
    assert same.figures({"random": torch.ones(5, 8)})["random"]["kernel_distance"] == pytest.approx(0, abs=1e-9)


def test_random_weights_are_the_same_everywhere():
    weights = torch.cat([weight.flatten() for weight in extractors.RandomConvolutions().buffers()]).double()
    assert weights[:3].tolist() == pytest.approx([0.12912870943546295, -0.21704716980457306, -0.4327743351459503], abs=1e-12)
    assert weights.square().sum().item() == pytest.approx(446.5211693356032, abs=1e-9)


def test_inception_is_left_out_or_missed_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)  # not installed
    assert list(extractors.load_extractors(None, torch.device("cpu"))) == ["autoencoder", "random"]
    assert capsys.readouterr().err == 'FID is left out: it needs pip install "homework[fid]".\n'
    with pytest.raises(ModuleNotFoundError):
        extractors.load_extractors("inception", torch.device("cpu"))

    def offline(*_):
        raise OSError("no network")

    package = ModuleType("torch_fidelity")
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    package.FeatureExtractorInceptionV3 = offline
    assert list(extractors.load_extractors(None, torch.device("cpu"))) == ["autoencoder", "random"]
    assert "no network" in capsys.readouterr().err
    with pytest.raises(OSError, match="weights of Inception"):
        extractors.load_extractors("random,inception", torch.device("cpu"))


def test_inception_gets_bytes_in_channels_and_its_features_stay_as_they_are(monkeypatch):
    package = ModuleType("torch_fidelity")
    package.FeatureExtractorInceptionV3 = lambda name, layers: lambda x: (x.float().mean(dim=(2, 3)) * len(layers),)
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    found = extractors.load_extractors("inception", torch.device("cpu"))
    images = {name: pictures(9, seed) for seed, name in enumerate(("x", "y"))}
    x, y = (samples.extract([some], 9, found, torch.device("cpu"), "") for some in images.values())
    assert torch.allclose(x["inception"], images["x"].float().mean(dim=(1, 2)))
    own = samples.Comparison(found, y).figures(x)["inception"]
    assert own["frechet_distance"] == distances.frechet_distance(x["inception"], y["inception"])


# --- the command -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch, data):
    """The current folder, with tiny models and 12 pictures in set/; and a link to the data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    checkpoint.save(build("BSQPatchAutoEncoder"), "t.pth")
    checkpoint.save(build("AutoregressiveModel"), "p.pth")
    Path("data").symlink_to(data)
    write("set", pictures(12))
    return tmp_path


def write(folder: str, images: torch.Tensor) -> None:
    Path(folder).mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.numpy()).save(Path(folder, f"{i}.png"))


def figures(path: str = "samples.json") -> dict:
    return json.loads(Path(path).read_text())


def test_a_folder_is_compared_and_all_figures_are_written(command, here):
    done = command("evaluate", "samples", "set", "data/valid", "--train", "data/train", "--batch_size", 5)
    assert done.returncode == 0, done.stderr
    found = figures()
    assert found["images"] == {"samples": 12, "reference": 8, "train": 24}
    assert set(found["features"]) == {"autoencoder", "random"}
    for name, values in found["features"].items():
        assert values["frechet_distance"] > 0 and values["kernel_distance_standard_error"] > 0
        assert 0 <= values["nearest_training_image"]["share_near"] <= 1
        assert f"| {name} | {values['frechet_distance']:.2f} | {values['kernel_distance']:.4f} ± " in done.stdout
    assert done.stdout.splitlines()[-1] == "samples.json: 12 samples of set, 8 reference images"


def test_from_python_with_pathlib_paths(command, here):
    assert command("evaluate", "samples", "set", "data/valid", "--features", "random").returncode == 0
    evaluate.samples(Path("set"), Path("data/valid"), features="random", out=Path("paths.json"))
    assert figures("paths.json") == figures()


def test_a_set_is_like_itself(command, here):
    assert command("evaluate", "samples", "data/valid", "data/valid", "--out", "own.json").returncode == 0
    for values in figures("own.json")["features"].values():
        assert values["frechet_distance"] < 1e-6 and values["precision"] == values["recall"] == 1
        assert "nearest_training_image" not in values


def test_names_order_and_batch_size_make_no_difference(command, here):
    write("turned", pictures(12).flip(0))
    for i, (folder, batch) in enumerate([("set", 64), ("turned", 5)]):
        options = "--batch_size", batch, "--out", f"{i}.json"
        assert command("evaluate", "samples", folder, "data/valid", *options).returncode == 0
    one, other = (figures(f"{i}.json")["features"] for i in (0, 1))
    for name in one:
        for key in one[name].keys() - {"features"}:
            assert one[name][key] == pytest.approx(other[name][key], rel=1e-3), key


def test_models_give_the_figures_of_what_generation_writes(command, here):
    """Also with its sheet.png among the pictures."""
    options = "--seed", 3, "--top_p", 0.9, "--temperature", 1.5, "--batch_size", 5
    assert command("generation", "t.pth", "p.pth", 11, "generated", *options).returncode == 0
    assert command("evaluate", "samples", "generated", "data/valid", "--out", "folder.json").returncode == 0
    done = command("evaluate", "samples", "t.pth,p.pth", "data/valid", "--n", 11, *options)
    assert done.returncode == 0, done.stderr
    one, other = figures("folder.json")["features"], figures()["features"]
    for name in one:
        assert one[name]["frechet_distance"] == pytest.approx(other[name]["frechet_distance"], rel=1e-4)
    assert figures()["sampling"] == {"temperature": 1.5, "top_k": None, "top_p": 0.9, "quality": 50}
    assert figures()["seed"] == 3


def test_independent_tokens_are_sampled_too(command, here):
    done = command("evaluate", "samples", "t.pth,uniform", "data/valid", "--n", 6, "--limit", 5, "--features", "random")
    assert done.returncode == 0, done.stderr
    assert figures()["images"] == {"samples": 6, "reference": 5} and list(figures()["features"]) == ["random"]


def test_a_cascade_is_sampled_as_its_file_says(command, here, data):
    ae = build("PatchAutoEncoder", bottleneck=3)
    for name, patch, codes in ("map", "map", 7), ("fine", 1, K):
        book = build("SOM", patch=patch, n_codes=codes)
        book.set_autoencoder(ae)
        book.lay_out(torch.cat([book.latent(pictures(1, i) / 255 - 0.5) for i in range(32)]).flatten(0, 2))
        checkpoint.save(book, f"{name}.pth")
    checkpoint.save(build("CascadeStage", coarse_tokens=7, coarse_height=1, coarse_width=1), "stage.pth")
    stage = {"model_path": "stage.pth", "lr_codebook_path": "map.pth", "hr_codebook_path": "fine.pth"}
    Path("cascade.json").write_text(json.dumps({"stages": [stage]}))
    done = command("evaluate", "samples", "cascade.json", "data/valid", "--n", 6, "--seed", 1)
    assert done.returncode == 0, done.stderr
    done = command("generation", "cascade", "--config", "cascade.json", "--num_images", 6, "--seed", 1, "--batch_size", 64)
    assert done.returncode == 0, done.stderr
    write("finest", torch.stack([torch.from_numpy(np.array(Image.open(f"generated/{i}_stage0.png"))) for i in range(6)]))
    assert command("evaluate", "samples", "finest", "data/valid", "--out", "folder.json").returncode == 0
    one, other = (figures(path)["features"]["random"]["frechet_distance"] for path in ("samples.json", "folder.json"))
    assert one == pytest.approx(other, rel=1e-4)
    assert "leave it out" in sentence(command("evaluate", "samples", "cascade.json", "data/valid", "--top_p", 0.9))
    assert "leave it out" in sentence(command("evaluate", "samples", "cascade.json", "data/valid", "--image_size", "40x60"))


@pytest.mark.parametrize("arguments, message", [
    (["few", "data/valid"], "There are 3 images in few, but at least 4 are needed"),
    (["set", "few"], "There are 3 images in few, but at least 4 are needed"),
    (["t.pth,p.pth", "data/valid", "--n", 2], "There are 2 images in t.pth,p.pth, but"),
    (["empty", "data/valid"], "There are no images in empty."),
    (["none", "data/valid"], "There is no file or folder none."),
    (["mixed", "data/valid"], "mixed/z.png is 10x10 but mixed/0.png is 20x30"),
    (["set", "large"], "large/0.png is 40x60 but set/0.png is 20x30"),
    (["set", "data/valid", "--features", "resnet"], "--features has 'resnet', but may have autoencoder, random, inception"),
    (["set", "data/valid", "--features", "inception"], "This command needs the package torch_fidelity; pip install"),
    (["set", "data/valid", "--top_k", 5], "--top_k is for TOKENIZER,PRIOR; leave it out with set."),
    (["t.pth,p.pth", "data/valid", "--top_p", 2], "top_p is 2, but must be above 0"),
    (["t.pth,t.pth", "data/valid"], "t.pth holds a BSQPatchAutoEncoder, but a prior is needed here."),
    (["broken", "data/valid"], "broken/2.png"),
])  # fmt: skip
def test_mistakes_take_one_sentence_and_write_nothing(command, here, arguments, message):
    for folder, n in ("few", 3), ("mixed", 5), ("broken", 5):
        write(folder, pictures(n))
    write("large", pictures(5, size=(40, 60)))
    Image.new("RGB", (10, 10)).save("mixed/z.png")
    Path("broken/2.png").write_bytes(b"nothing")
    Path("empty").mkdir()
    assert sentence(command("evaluate", "samples", *arguments)).startswith(message)
    assert not Path("samples.json").exists()


def test_images_of_other_sizes_are_scaled_when_asked(command, here):
    write("large", pictures(5, size=(40, 60)))
    done = command("evaluate", "samples", "large", "data/valid", "--image_size", "20x30", "--features", "random")
    assert done.returncode == 0, done.stderr
    assert command("evaluate", "samples", "t.pth,p.pth", "large", "--n", 4, "--features", "random").returncode == 0
