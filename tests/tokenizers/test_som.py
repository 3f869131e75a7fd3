"""Self-organizing maps: Kohonen's rule, the lattice, pruning, and a tokenizer like the others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GRID, SIZE, TINY, K, batch_for, build, run, sentence
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from homework import load
from homework.core import checkpoint, fingerprint
from homework.datasets.features import FeatureDataset
from homework.datasets.tokens import TokenDataset
from homework.tokenizers.base import usage
from homework.tokenizers.lattice import Lattice, neighbourhood, u_matrix
from homework.tokenizers.som import SOM, parse_patch
from homework.tokenizers.som_fit import evaluate_codebook, pruned

shapes = st.sampled_from([(1, 12, "line"), (3, 4, "plane"), (2, 6, "2x6"), (12, 1, "12x1")])


# --- the lattice --------------------------------------------------------------------------------------------------------


@given(shape=shapes)
def test_units_are_in_raster_order(shape):
    rows, columns, name = shape
    lattice = Lattice(name, 12)
    assert (lattice.rows, lattice.columns) == (rows, columns)
    assert lattice.positions.tolist() == [[r, c] for r in range(rows) for c in range(columns)]
    assert lattice.scaled().abs().max() == 1 and torch.allclose(lattice.scaled().mean(dim=0), torch.zeros(2), atol=1e-6)


@given(shape=shapes, kept=st.sets(st.integers(0, 11), min_size=1))
def test_units_that_are_left_keep_their_positions(shape, kept):
    rows, columns, _ = shape
    lattice = Lattice(f"{rows}x{columns}", len(kept), sorted(kept))
    assert torch.equal(lattice.positions, Lattice(f"{rows}x{columns}", 12).positions[sorted(kept)])
    sheet = lattice.on_sheet(torch.arange(len(kept)), -1).flatten()
    assert [i for i in range(12) if sheet[i] >= 0] == sorted(kept) and sheet[sheet >= 0].tolist() == list(range(len(kept)))


@pytest.mark.parametrize(
    "shape, n, kept, words",
    [
        ("circle", 12, None, "lattice is 'circle'.*line, plane or ROWSxCOLUMNS"),
        ("3x5", 12, None, "3x5, which has 15 units, but n_codes is 12"),
        ("line", 2, [0, 1], "ROWSxCOLUMNS"),
        ("3x4", 2, [1, 0], "rising"),
        ("3x4", 2, [0, 12], "12"),
        ("3x4", 2, [0, 1, 2], "n_codes = 2"),
        ("3x4", 2, [0, "1"], "list of integers"),
    ],
)
def test_a_lattice_that_cannot_be_is_named(shape, n, kept, words):
    with pytest.raises(ValueError, match=words):
        Lattice(shape, n, kept)


@given(shape=shapes, radius=st.floats(0.3, 20))
def test_the_neighbourhood_is_gaussian(shape, radius):
    positions = Lattice(shape[2], 12).positions
    h = neighbourhood(positions, radius)
    for i, j in (0, 0), (0, 5), (11, 3):
        distance = float((positions[i] - positions[j]).norm())
        assert h[i, j] == pytest.approx(np.exp(-(distance**2) / (2 * radius**2)), rel=1e-4, abs=1e-12)
    assert torch.equal(h, h.T) and torch.equal(h.diagonal(), torch.ones(12))


def test_the_u_matrix_is_the_mean_distance_from_neighbours():
    codebook = torch.tensor([[0.0], [1.0], [5.0]])
    assert u_matrix(codebook, Lattice("line", 3).positions).tolist() == [1.0, 2.5, 4.0]
    assert u_matrix(codebook[:2], Lattice("1x9", 2, [0, 8]).positions).tolist() == [0.0, 0.0]  # neighbours were pruned


# --- Kohonen's rule -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=[(1, "plane"), (2, "line"), ("4x3", "4x4"), ("map", "16x1")], ids=str)
def som(request):
    model = build("SOM", patch=request.param[0], lattice=request.param[1])
    model.placed.fill_(True)
    return model.train()


def patches(model, z):
    return model.to_patches(z).flatten(0, 2)


def naive_best(model, x):
    return torch.cdist(x.double(), model.codebook.double()).argmin(dim=1)


def test_a_gradient_step_is_kohonens_rule(som):
    """w_k <- w_k + rate sum_x h(k, b(x)) (x - w_k), one patch after the other, from the same weights."""
    z = batch_for(som)
    for f in 0.0, 0.5, 1.0:
        som.set_progress(f)
        som.zero_grad()
        losses = som.loss(z)
        losses["loss"].backward()
        x, w = patches(som, z), som.codebook.detach()
        best, h = naive_best(som, x), neighbourhood(som.positions, som.radius)
        move, error = torch.zeros_like(w), 0.0
        for n in range(len(x)):
            move += h[:, best[n], None] * (x[n] - w)
            error += (h[:, best[n]] * (x[n] - w).square().sum(dim=1)).sum().item()
        assert torch.allclose(som.codebook.grad, -2 * move / x.numel(), rtol=1e-3, atol=1e-5)
        assert losses["loss"].item() == pytest.approx(error / x.numel(), rel=1e-4)


def test_a_batch_step_is_where_that_gradient_is_zero(som):
    """The gradient of the weighted error with the winners of before held fixed."""
    z = batch_for(som, B=8)
    som.set_progress(0.7)
    x = patches(som, z)
    best = naive_best(som, x)
    som.batch_step(*som.statistics(x, best)[:2])
    w = som.codebook.detach().clone().requires_grad_()
    h = neighbourhood(som.positions, som.radius)
    (h[:, best] * (x - w[:, None]).square().sum(dim=-1)).sum().backward()
    assert w.grad.abs().max() < 1e-3


def test_batch_steps_lower_the_error_as_the_radius_shrinks(som):
    som.radius_end = 0.3  # a radius of one unit leaves neighbours close together, at the price of some error
    x = patches(som, batch_for(som, B=16))
    som.lay_out(x)
    errors = []
    for i in range(12):
        som.set_progress(i / 11)
        best = naive_best(som, x)
        errors.append((x - som.codebook[best]).square().mean().item())
        som.batch_step(*som.statistics(x, best)[:2])
    assert errors[-1] < errors[0]


def test_measures_are_those_of_the_definition(som):
    z = batch_for(som, B=5)
    m, x = som.loss(z), patches(som, z)
    d = torch.cdist(x.double(), som.codebook.detach().double())
    order = d.argsort(dim=1)
    steps = (som.positions[order[:, 0]] - som.positions[order[:, 1]]).norm(dim=1)
    assert float(m["quantization_error"]) == pytest.approx(float(d.min(dim=1).values.mean()), rel=1e-4)
    assert float(m["mse"]) == pytest.approx(float(d.min(dim=1).values.square().mean()) / x.shape[1], rel=1e-4)
    assert float(m["topographic_error"]) == pytest.approx(float((steps > 1.5).float().mean()), abs=1e-6)
    for k, v in usage(order[:, 0], K).items():
        assert torch.allclose(m[k], v)


def test_a_sorted_line_has_no_topographic_error_and_a_shuffled_one_has():
    model = build("SOM", lattice="line")
    z = batch_for(model, B=6)
    line = torch.linspace(-2, 2, K)[:, None].expand(-1, 3)
    for order, wrong in (torch.arange(K), False), (torch.randperm(K, generator=torch.Generator().manual_seed(1)), True):
        model.codebook.data.copy_(line[order])
        assert (float(model.loss(z)["topographic_error"]) > 0) == wrong


def test_the_radius_shrinks_to_its_end():
    model = build("SOM", lattice="4x4", radius_start=3.0, radius_end=0.5)
    radii = []
    for f in 0, 0.25, 0.5, 1:
        model.set_progress(f)
        radii.append(model.radius)
    assert radii[0] == 3 and radii[-1] == pytest.approx(0.5) and radii == sorted(radii, reverse=True)
    default = build("SOM", lattice="2x8")
    assert default.radius == 4 and default.radius_end == 1  # from half of the longer side to one unit


def test_units_start_spread_over_the_first_batch_and_no_later_one():
    model = build("SOM").train()
    z = batch_for(model, B=8) + 5
    model.loss(z)
    before = model.codebook.clone()
    assert not model.placed and torch.equal(model.codebook, before)  # a loss changes nothing
    model.after_update()
    assert model.placed and (model.codebook.mean(dim=0) - 5).abs().max() < 0.5
    x = patches(model, z)
    nearest = model.codebook.detach()[naive_best(model, x)]
    assert float((x - nearest).square().mean()) < float((x - x.mean(dim=0)).square().mean())
    placed = model.codebook.clone()
    model.loss(z - 9)
    model.after_update()
    assert torch.equal(model.codebook, placed)


# --- a tokenizer --------------------------------------------------------------------------------------------------------


def test_patches_come_back(som):
    z = batch_for(som)
    assert torch.equal(som.to_features(som.to_patches(z)), z)


def test_index_to_code_to_index_for_all_codes(som):
    index = torch.arange(K)[:, None, None]
    assert torch.equal(naive_best(som, som.code_vectors(index).flatten(0, 2)), torch.arange(K))
    with torch.no_grad():
        x = som.decode_index(index)
    assert x.shape == (K, *(p * 5 for p in som.patch), 3)


def test_images_of_any_size_and_of_any_batch_shape():
    model = build("SOM", patch=2).eval()
    with torch.no_grad():
        x = torch.rand(2, 3, 17, 24, 3) - 0.5
        index = model.encode_index(x)
        assert index.shape == (2, 3, 2, 3) and torch.equal(index[1, 2], model.encode_index(x[1, 2]))
        assert model.decode_index(index).shape == (2, 3, 20, 30, 3)
        assert model(x)[0].shape == x.shape and torch.equal(model.encode(x), model.code_vectors(index))
        padded = torch.cat([x, x[..., -1:, :, :].expand(-1, -1, 3, -1, -1)], dim=-3)  # the edge is repeated
        assert torch.equal(model.encode_index(padded), index)


def test_one_code_for_the_whole_map():
    model = build("SOM", patch="map").eval()
    with torch.no_grad():
        x = torch.rand(2, *SIZE, 3) - 0.5
        assert model.encode_index(x).shape == (2, 1, 1) and model.decode_index(model.encode_index(x)).shape == x.shape
        with pytest.raises(ValueError, match="25x30.*one code for images of up to 20x30.*--image_size 20x30"):
            model.encode_index(torch.zeros(1, 25, 30, 3))
        with pytest.raises(ValueError, match="one code for an image.*2x2"):
            model.decode_index(torch.zeros(1, 2, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    "patch, words",
    [
        (7, "patch is 7, which does not divide the map of 20x30.*1, 2, 5, 10"),
        ("3x4", "3x4"),
        (0, "patch is 0"),
        ("x", "patch"),
    ],
)
def test_a_patch_that_does_not_divide_the_map_is_named_with_those_that_do(patch, words):
    with pytest.raises(ValueError, match=words):
        parse_patch(patch, 20, 30)


def test_pictures_show_the_codebook_and_its_distances(som):
    pictures = som.images(batch_for(som))
    sides = som.lattice.rows, som.lattice.columns
    assert pictures["codebook"].shape == (1, 3, *(n * p * 5 for n, p in zip(sides, som.patch, strict=True)))
    assert pictures["u_matrix"].shape == (1, 3, *sides)
    for picture in pictures.values():
        assert picture.min() >= 0 and picture.max() <= 1
    with torch.no_grad():
        one = (som.decode_index(torch.tensor([[[0]]]))[0] + 0.5).clamp(0, 1).permute(2, 0, 1)
    assert torch.allclose(pictures["codebook"][0, :, : one.shape[1], : one.shape[2]], one, atol=1e-5)


# --- pruning ------------------------------------------------------------------------------------------------------------


def test_pruning_keeps_the_order_and_the_positions_of_the_rest(som):
    som.eval()
    left = [0, 3, 4, 9, 15]
    smaller = pruned(som, left)
    assert smaller.n_tokens == 5 and torch.equal(smaller.codebook, som.codebook[left])
    assert torch.equal(smaller.positions, som.positions[left])
    again = pruned(smaller, [1, 3])  # what is left of what was left
    assert torch.equal(again.positions, som.positions[[3, 9]]) and torch.equal(again.codebook, som.codebook[[3, 9]])
    x = patches(som, batch_for(som, B=8))
    before, after = (torch.cdist(x, m.codebook).min(dim=1).values for m in (som, smaller))
    assert (after >= before - 1e-6).all()


def test_a_pruned_map_comes_back_from_its_file(tmp_path):
    smaller = pruned(build("SOM").eval(), [1, 5, 6])
    checkpoint.save(smaller, tmp_path / "s.pth")
    again = load(tmp_path / "s.pth")
    assert again.config == smaller.config and torch.equal(again.positions, smaller.positions)


# --- the commands, from images to tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "radii, words",
    [
        ({"radius_start": -1}, "radius_start is -1, but must be 0"),
        ({"radius_start": 0.5, "radius_end": 2}, "radius_start is 0.5, .*at least radius_end, which is 2"),
        ({"radius_start": True}, "radius_start is True"),
        ({"radius_end": 0}, "radius_end is 0, but must be a number above 0"),
    ],
)
def test_a_radius_that_cannot_shrink_is_named(radii, words):
    with pytest.raises(ValueError, match=words):
        build("SOM", **radii)


def test_pruning_nothing_leaves_the_file_and_its_tokens_as_they_are(features, command, monkeypatch, tmp_path):
    monkeypatch.chdir(features)
    done = command("som", "fit", "features", "whole.pth", "--n_codes", 4, "--passes", 2, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    done = command("som", "prune", "whole.pth", "features", "--threshold", 1, "--output", "same.pth")
    assert done.returncode == 0 and "0 of 4 units removed; the old one's tokens remain valid" in done.stdout
    one, other = checkpoint.load("whole.pth"), checkpoint.load("same.pth")
    assert one.config == other.config and torch.equal(one.codebook, other.codebook)


def test_a_share_of_the_mean_prunes_any_number_of_images_and_pruning_everything_is_refused(features, command, monkeypatch):
    monkeypatch.chdir(features)
    done = command("som", "fit", "features", "few.pth", "--n_codes", K, "--passes", 2, "--limit", 2, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    som, data = load("few.pth"), FeatureDataset("train", root="features")
    counts, _ = evaluate_codebook(som, data, batch_size=8)
    assert command("som", "prune", "few.pth", "features", "--threshold", 0.9).returncode == 0
    assert load("few_pruned.pth").n_tokens == int((counts >= 0.9 * counts.mean()).sum()) < K
    most = int(counts.max())
    message = sentence(command("som", "prune", "few.pth", "features", "--threshold", most + 1, "--output", "none.pth"))
    assert f"--threshold is {most + 1}" in message and f"must be at most {most} to leave a unit" in message
    assert not Path("none.pth").exists()
    assert command("som", "prune", "few.pth", "features", "--threshold", most).returncode == 0  # and it works
    assert load("few_pruned.pth").n_tokens == int((counts == most).sum())


def test_pruning_counts_more_patches_than_float32_can(features, command, monkeypatch):
    monkeypatch.chdir(features)
    checkpoint.save(build("SOM"), "many.pth")
    counts, measures = torch.full((30,), 10_000_001.0), {"mse": 0.1, "quantization_error": 0.1, "usage": 1.0, "entropy": 1.0}
    monkeypatch.setattr("homework.som.evaluate_codebook", lambda *_: (counts, measures))
    done = command("som", "prune", "many.pth", "features", "--threshold", 1)
    assert done.returncode == 0, done.stderr
    assert load("many_pruned.pth").meta["pruned"] == "fewer than 1 of 300000030 patches"


def test_validation_is_at_the_radius_of_the_training(features, command, monkeypatch):
    """The average of the weights is measured, and must know how far the training has come."""
    monkeypatch.chdir(features)
    options = ["--data", "features", "--patch", 1, "--n_codes", 16, "--epochs", 4, "--batch_size", 4, "--output", "loop.pth"]
    done = command("train", "SOM", *options, "--radius_start", 3, "--radius_end", 0.5)
    assert done.returncode == 0, done.stderr
    assert "radius 0.5" in done.stdout


def test_patches_need_not_be_square(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(build("SOM", patch="1x3"), "som.pth")
    done = command("generation", "som.pth", "uniform", 1, "out", "--image_size", "20x30")
    assert done.returncode == 0, done.stderr
    assert Image.open("out/generation_0.png").size == (30, 20)


@pytest.fixture(scope="module")
def features(data, tmp_path_factory):
    """A folder with an auto-encoder ae.pth, and the features of the frames in data/."""
    folder = tmp_path_factory.mktemp("som")
    spec = TINY["SOM"]["autoencoder"]
    checkpoint.save(build(spec["model"], **spec["config"]), folder / "ae.pth")
    for split in "train", "valid":
        done = run("-m", "homework.features", "ae.pth", data / split, f"features/{split}", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_one_continues_with_the_features_of_its_own_autoencoder_alone(features, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec, options = TINY["SOM"]["autoencoder"], ["--data", features / "features", "--epochs", 0.5, "--batch_size", 4]
    for name, seed in ("own", 0), ("other", 1):
        som = build("SOM")
        som.set_autoencoder(build(spec["model"], seed, **spec["config"]))
        checkpoint.save(som, f"{name}.pth", dtype=torch.float16)
    assert command("train", "own.pth", *options, "--device", "cpu", "--output", "again.pth").returncode == 0
    error = sentence(command("train", "other.pth", *options, "--device", "cpu"))
    assert "features of another auto-encoder than" in error and "train a new SOM" in error


def test_the_generic_loop_trains_one_that_then_makes_tokens(features, data, command, monkeypatch):
    monkeypatch.chdir(features)
    done = command("train", "SOM", "--data", "features", "--n_codes", K, "--patch", 2, "--epochs", 12, "--batch_size", 4,
                   "--warmup", 2, "--device", "cpu", "--output", "loop.pth")  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = load("loop.pth")
    assert model.meta["valid"]["quantization_error"] > 0 and model.placed
    ae = load("ae.pth")  # the tokenizer bears its auto-encoder
    own = model.autoencoder.state_dict()
    assert all(torch.allclose(own[k], v, atol=1e-2) for k, v in ae.state_dict().items())

    assert command("tokenize", "loop.pth", "loop/tokenized_train.pth", data / "train").returncode == 0
    tokens = TokenDataset("train", "loop")
    assert command("tokenize", "loop.pth", "again.pth", "features/train").returncode == 0  # the same, of feature maps
    again = TokenDataset("again.pth")
    assert again.names == tokens.names and again.meta == tokens.meta and (again.tokens == tokens.tokens).mean() > 0.98
    assert tokens.size == (2, 3) and tokens.n_tokens == K and tokens.meta["tokenizer"] == fingerprint.identity(model)


def fit(command, *options):
    return command("som", "fit", "features", "fitted.pth", "--n_codes", K, "--passes", 4, "--device", "cpu", *options)


def test_batch_steps_prune_and_tokens_of_the_old_codebook(features, data, command, monkeypatch):
    monkeypatch.chdir(features)
    shutil.rmtree("logs", ignore_errors=True)
    done = fit(command)
    assert done.returncode == 0 and "quantization_error" in done.stdout, done.stderr
    (log,) = Path("logs").glob("*_SOM/events*")
    events = EventAccumulator(str(log), size_guidance={"scalars": 0, "images": 0}).Reload()
    mse = [event.value for event in events.Scalars("train/mse")]
    assert len(mse) == 4 and mse[-1] < mse[1] and [event.value for event in events.Scalars("train/radius")][-1] == 1
    assert {"codebook", "u_matrix"} <= {tag.split("/")[0] for tag in events.Tags()["images"]}
    assert {"valid/topographic_error", "valid/perplexity"} <= set(events.Tags()["scalars"])
    done = command("som", "prune", "fitted.pth", "features", "--threshold", 40)
    assert done.returncode == 0, done.stderr
    new = load("fitted_pruned.pth")
    assert 0 < new.n_tokens < K and f"{K - new.n_tokens} of {K} units removed" in done.stdout
    assert "before" in done.stdout and "after" in done.stdout and "bits an" in done.stdout

    for split in "train", "valid":
        assert command("tokenize", "fitted.pth", f"old/tokenized_{split}.pth", data / split).returncode == 0
    done = command("train", "AutoregressiveModel", "--data", "old", "--epochs", 1, "--batch_size", 4, "--d_latent", 8,
                   "--n_layers", 1, "--device", "cpu", "--output", "prior.pth")  # fmt: skip
    assert done.returncode == 0, done.stderr
    size = f"{SIZE[0]}x{SIZE[1]}"
    assert command("generation", "fitted.pth", "prior.pth", 1, "new", "--image_size", size).returncode == 0
    assert np.asarray(Image.open("new/generation_0.png")).shape == (*SIZE, 3)
    message = sentence(command("generation", "fitted_pruned.pth", "prior.pth", 1, "new", "--image_size", size))
    assert "fitted_pruned.pth" in message and "train" in message
    # as many codes, but another codebook
    assert fit(command, "--radius_end", 0.5).returncode == 0
    message = sentence(command("generation", "fitted.pth", "prior.pth", 1, "new", "--image_size", size))
    assert "trained on the grids of another tokenizer than fitted.pth" in message


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["prune", "fitted.pth", "features", "--threshold", 0], "--threshold is 0"),
        (["prune", "fitted.pth", "features", "--threshold", 1.5], "--threshold is 1.5, but must be a number of"),
        (["prune", "fitted.pth", "features", "--threshold", "x"], "is 'x', but must be a number"),
        (["prune", "ae.pth", "features", "--threshold", 1], "a SOM is needed"),
        (["prune", "none.pth", "features", "--threshold", 1], "no checkpoint none.pth"),
        (["fit", "features", "x.pth", "--patch", 5], "patch is 5, which does not divide the map of 4x6"),
        (["fit", "features", "x.pth", "--lattice", "5x5", "--n_codes", 16], "5x5, which has 25 units"),
        (["fit", "features", "x.pth", "--passes", 0], "--passes is 0"),
        (["fit", "features", "folder", "--n_codes", 16], "must be a .pth"),
        (["fit", "nowhere", "x.pth"], "nowhere"),
    ],
)
def test_a_mistake_ends_in_one_sentence(features, command, monkeypatch, arguments, words):
    monkeypatch.chdir(features)
    assert words in sentence(command("som", *arguments))


def test_tokens_of_feature_maps_are_for_their_own_auto_encoder(features, command, monkeypatch):
    monkeypatch.chdir(features)
    checkpoint.save(build("BSQPatchAutoEncoder"), "bsq.pth")
    checkpoint.save(build("SOM", seed=1), "other.pth")
    assert "makes tokens of images" in sentence(command("tokenize", "bsq.pth", "x.pth", "features/train"))
    assert "another auto-encoder" in sentence(command("tokenize", "other.pth", "x.pth", "features/train"))
    assert "--copies" in sentence(command("tokenize", "other.pth", "x.pth", "features/train", "--copies", 1))


def test_a_whole_line_of_json(features, command, monkeypatch, tmp_path):
    """--config names any option, as for every command."""
    monkeypatch.chdir(features)
    (tmp_path / "c.json").write_text(json.dumps({"n_codes": 4, "lattice": "line", "passes": 2, "device": "cpu"}))
    done = command("som", "fit", "features", "line.pth", "--config", tmp_path / "c.json")
    assert done.returncode == 0, done.stderr
    assert isinstance(load("line.pth"), SOM) and load("line.pth").lattice.rows == 1
    assert GRID == (load("line.pth").config["height"], load("line.pth").config["width"])
