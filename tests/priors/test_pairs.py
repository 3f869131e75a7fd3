"""Any tokenizer with any prior: {BSQ, VQ, SOM} x {transformer, Gated PixelCNN}, by the same commands, images to files."""

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import GRID, SIZE, TINY, K, build, run, sentence
from PIL import Image

from homework import Compressor, load
from homework.core import checkpoint, files
from homework.datasets.image_files import read_image
from homework.datasets.images import ImageDataset
from homework.datasets.tokens import TokenDataset
from homework.priors.pairs import load_pair

TOKENIZERS, PRIORS = ("BSQPatchAutoEncoder", "VQPatchAutoEncoder", "SOM"), ("AutoregressiveModel", "GatedPixelCNN")
EXACT = "arithmetic exact, "  # else "in floats"


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokens(request, data, tmp_path_factory):
    """A folder with a tokenizer t.pth, and the tokens and code vectors of the frames in data/."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint.save(build(request.param), folder / "t.pth")
    for split in ("train", "valid"):
        done = run("-m", "homework.tokenize", "t.pth", f"data/tokenized_{split}.pth", data / split, "--codes", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(params=itertools.product(PRIORS, ("embedding", "codes")), ids="-".join)
def pair(request, tokens, command, monkeypatch):
    """That folder, with a prior p.pth trained on these tokens for a moment, by either kind of input."""
    monkeypatch.chdir(tokens)
    name, inputs = request.param
    own = {k: v for k, v in TINY[name].items() if k not in ("n_tokens", "height", "width")}
    options = {"batch_size": 4, "epochs": 2, "warmup": 2, "device": "cpu", "inputs": inputs, "output": "p.pth"} | own
    done = command("train", name, *(f"--{k}={v}" for k, v in options.items()))
    assert done.returncode == 0, done.stderr
    return tokens


@pytest.mark.parametrize("prior", PRIORS)
def test_a_prior_that_reads_codes_knows_its_tokenizer_by_them(tmp_path, prior):
    for seed in 0, 1:
        checkpoint.save(build("VQPatchAutoEncoder", seed), tmp_path / f"t{seed}.pth")
    checkpoint.save(build("BSQPatchAutoEncoder", codebook_bits=4), tmp_path / "bsq.pth")
    model = build(prior, code_dim=4)
    model.set_codes(load(tmp_path / "t0.pth").code_vectors(torch.arange(K)[:, None, None])[:, 0, 0])
    checkpoint.save(model, tmp_path / "p.pth", dtype=torch.float16)
    load_pair(str(tmp_path / "t0.pth"), str(tmp_path / "p.pth"), torch.device("cpu"))
    for other in "t1.pth", "bsq.pth":
        with pytest.raises(ValueError, match="trained on the grids of another tokenizer"):
            load_pair(str(tmp_path / other), str(tmp_path / "p.pth"), torch.device("cpu"))


def test_nothing_is_coded_under_a_prior_that_gives_no_numbers(tmp_path, command, data):
    checkpoint.save(build("VQPatchAutoEncoder"), tmp_path / "t.pth")
    prior = build("GatedPixelCNN")
    with torch.no_grad():
        prior.head[-1].bias.fill_(torch.nan)
    checkpoint.save(prior, tmp_path / "p.pth")
    message = sentence(command("compress", tmp_path / "t.pth", tmp_path / "p.pth", data / "valid", tmp_path / "a.hwa"))
    assert "probabilities that are not numbers" in message and not (tmp_path / "a.hwa").exists()


def test_a_pair_trains_samples_compresses_and_evaluates(pair, data, command):
    tokenizer, prior = load("t.pth"), load("p.pth")
    assert prior.n_tokens == tokenizer.n_tokens == K and prior.meta["valid"]["bits_per_image"] > 0
    if prior.config["code_dim"]:  # the frozen vectors are the tokenizer's own
        table = tokenizer.code_vectors(torch.arange(K)[:, None, None])[:, 0, 0]
        assert torch.allclose(prior.codes[:K, : table.shape[1]], table, atol=1e-3)  # the copy is float16

    done = command("generation", "t.pth", "p.pth", 2, "new", "--image_size", f"{SIZE[0]}x{SIZE[1]}")
    assert done.returncode == 0 and np.asarray(Image.open("new/generation_1.png")).shape == (*SIZE, 3), done.stderr

    assert command("compress", "t.pth", "p.pth", data / "valid", "all.hwa", "--verify", "--effort", 0).returncode == 0
    done = run("-m", "homework.compress", "decompress", "t.pth", "p.pth", "all.hwa", "again", "--overwrite", cwd=pair)
    assert done.returncode == 0, done.stderr
    names = sorted(p.name for p in (data / "valid").iterdir())
    for name in names[:3]:
        x = ImageDataset([str(data / "valid" / name)], root=pair).batch([0])
        with torch.inference_mode():
            expected = (tokenizer(x)[0][0].clamp(-0.5, 0.5) + 0.5) * 255
        got = read_image(next((pair / "again").glob(f"{name.split('.')[0]}*"))).astype(np.float32)
        assert np.abs(got - expected.numpy()).max() <= 0.51
    said = run("-m", "homework.compress", "info", "all.hwa", cwd=pair).stdout
    assert (EXACT in said) == (type(prior).__name__ == "AutoregressiveModel") and "8 images" in said

    done = command("evaluate", "t.pth", "p.pth", data / "valid", "--limit", 2, "--out", "report")
    assert done.returncode == 0 and (pair / "report/index.html").is_file(), done.stderr


def test_a_prior_is_causal_and_cached_equals_naive(pair):
    prior, data = load("p.pth"), TokenDataset("valid", "data")
    grid = data.batch(np.arange(1))
    N = grid.numel()
    with torch.inference_mode():
        whole, steps, flat = prior(grid)[0].flatten(1, 2), prior.steps(1, *GRID), grid.flatten(1)
        stepped = torch.stack([steps(flat[:, max(0, n - 1) : n]) for n in range(N)], dim=1)
        assert torch.allclose(stepped, whole, atol=1e-4)
        changed = flat.repeat(N, 1)
        changed[range(N), range(N)] = (changed[range(N), range(N)] + 1) % K
        moved = (prior(changed.view(N, *GRID))[0].flatten(1, 2) - whole).abs().amax(-1) > 1e-5  # [t, n]
    for t in range(N - 1):
        assert not moved[t, : t + 1].any() and moved[t, t + 1 :].any()


def test_a_pair_is_graded_by_its_checkpoints(tmp_path, data):
    """The grader finds the other tokenizer and prior in the package, and names a file that is not there."""
    for source in checkpoint.PACKAGE.rglob("*.py"):
        copy = tmp_path / "homework" / source.relative_to(checkpoint.PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(source.read_text())
    tokenizer, prior = build("VQPatchAutoEncoder"), build("GatedPixelCNN")
    checkpoint.save(tokenizer, tmp_path / "homework/other.pth")
    checkpoint.save(prior, tmp_path / "homework/prior.pth")
    options = ["--data", data, "--json", "report.json", "--tokenizer", "other.pth"]
    done = run("-m", "grader", "homework", *options, "--prior", "prior.pth", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    parts = {part["name"]: part for part in json.loads((tmp_path / "report.json").read_text())["parts"]}
    assert "homework.ae.load() failed" in parts["auto-encoder"]["reason"]  # no file of that name here
    assert parts["tokenizer"]["points"] == parts["causality"]["points"] == 0  # which those of an untrained tokenizer scale
    assert parts["causality"]["measures"]["leaks"] == 0 and "nats" in parts["generation"]["measures"]
    assert parts["prior"]["measures"]["n_tokens"] == K and parts["compression"]["measures"]["difference"] <= 1e-4
    (tmp_path / "outside.pth").write_bytes((tmp_path / "homework/prior.pth").read_bytes())
    for file in "none.pth", "../outside.pth", tmp_path / "outside.pth", "homework/prior.pth":
        done = run("-m", "grader", "homework", *options, "--prior", file, cwd=tmp_path)
        assert sentence(done).startswith(f"There is no {file} in homework/ or homework/pretrained/ of the submission; name")


@pytest.mark.parametrize("K_prior, grid", [(K + 1, GRID), (K, (2, 2))])
def test_a_prior_that_does_not_fit_is_refused_in_one_sentence(tmp_path, monkeypatch, command, data, K_prior, grid):
    """One for other codes at once; one for smaller grids samples none of these, but still codes them, tile by tile."""
    monkeypatch.chdir(tmp_path)
    checkpoint.save(build("VQPatchAutoEncoder"), "t.pth")
    checkpoint.save(build("GatedPixelCNN", n_tokens=K_prior, height=grid[0], width=grid[1]), "p.pth")
    done = command("generation", "t.pth", "p.pth", 1, "new", "--image_size", f"{SIZE[0]}x{SIZE[1]}")
    if K_prior != K:
        assert "train a prior on this tokenizer's grids" in sentence(done)
        assert "codes" in sentence(command("compress", "t.pth", "p.pth", data / "valid", "a.hwa"))
    else:
        assert "larger than the 2x2" in sentence(done)
        x = ImageDataset("valid", root=data).batch([0])[0]
        compressor = Compressor(load("t.pth"), load("p.pth"))
        with torch.inference_mode():
            assert torch.equal(compressor.decompress(compressor.compress(x)), compressor.tokenizer(x[None])[0][0])


# --- options of training that pairs need ----------------------------------------------------------------------------------


def test_code_vectors_must_be_there(tokens, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    plain = files.read(tokens / "data/tokenized_train.pth")
    (tmp_path / "data").mkdir()
    for split in ("train", "valid"):
        files.write({k: v for k, v in plain.items() if k != "codes"}, f"data/tokenized_{split}.pth")
    assert "--codes" in sentence(command("train", "GatedPixelCNN", "--inputs", "codes"))
    assert "must be embedding or codes" in sentence(command("train", "GatedPixelCNN", "--inputs", "vectors"))
    assert "reads no code vectors" in sentence(command("train", "PixelCNN", "--inputs", "codes", "--dataset", "tokens"))
    assert "use --inputs codes" in sentence(command("train", "GatedPixelCNN", "--code_dim", 4))
    for bad in (torch.zeros(K + 1, 4), torch.zeros(K), [0.0]):
        files.write(plain | {"codes": bad}, "data/tokenized_train.pth")
        assert f"not a table of {K} rows" in sentence(command("train", "GatedPixelCNN", "--inputs", "codes"))


def test_weights_are_taken_over_where_they_fit(tmp_path, monkeypatch, command, data):
    """With a learning rate of almost nothing, what is saved is what was taken over."""
    monkeypatch.chdir(tmp_path)
    donor = build("BSQPatchAutoEncoder", seed=5)
    checkpoint.save(donor, "t.pth")
    own = [f"--{k}={v}" for k, v in TINY["VQPatchAutoEncoder"].items()]
    options = [*own, f"--data={data}", "--epochs=0.1", "--batch_size=2", "--lr=1e-12", "--output", "here/vq.pth"]
    done = command("train", "VQPatchAutoEncoder", *options, "--init", "t.pth")
    assert done.returncode == 0 and "t.pth: took over" in done.stderr, done.stderr
    state, new = donor.state_dict(), load("here/vq.pth").state_dict()
    shared = {k for k in state if k in new and state[k].shape == new[k].shape}
    assert {"encoder.patch.weight", "decoder.pixels.weight"} <= shared
    for k in shared:
        assert torch.allclose(new[k], state[k], atol=1e-3), k
    assert not (tmp_path / "homework").exists()
    checkpoint.save(build("PixelCNN"), "p.pth")
    refused = sentence(command("train", "VQPatchAutoEncoder", *options, "--init", "p.pth"))
    assert "no weights of its PixelCNN fit this VQPatchAutoEncoder" in refused
    assert "--init is for a new model" in sentence(command("train", "t.pth", *options, "--init", "t.pth"))
    (tmp_path / "folder.pth").mkdir()
    for output in "here", "folder.pth", "t.pth/x.pth":
        assert "must be a .pth file in a folder" in sentence(command("train", "t.pth", "--output", output))


def test_code_vectors_are_those_of_the_tokens_even_with_weights_taken_over(tokens, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    wanted = files.read(tokens / "data/tokenized_train.pth")["codes"]
    donor = build("GatedPixelCNN", code_dim=wanted.shape[1])
    donor.set_codes(torch.ones_like(wanted))
    checkpoint.save(donor, "p.pth")
    own = [f"--{k}={v}" for k, v in TINY["GatedPixelCNN"].items() if k not in ("n_tokens", "height", "width")]
    options = [f"--data={tokens / 'data'}", "--epochs=0.5", "--batch_size=4", "--inputs=codes", "--output=q.pth"]
    done = command("train", "GatedPixelCNN", *options, *own, "--init=p.pth")
    assert done.returncode == 0, done.stderr
    assert torch.allclose(load("q.pth").codes, wanted, atol=1e-3)


def test_one_code_for_an_image_is_no_grid_of_them(tmp_path, monkeypatch, command, data):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(build("VQVAE"), "t.pth")
    done = command("generation", "t.pth", "uniform", 1, "new")  # 100x150 by default
    assert "use --image_size 20x30" in sentence(done)
    assert command("generation", "t.pth", "uniform", 1, "new", "--image_size", "20x30").returncode == 0
