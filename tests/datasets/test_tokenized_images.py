"""Tokens that a search found, from images to a tokenizer that has learned from them."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import build, sentence
from PIL import Image

from homework.codec.compressor import Compressor
from homework.codec.dial import lmbda_at, target
from homework.codec.search import search
from homework.core import checkpoint, files, fingerprint
from homework.datasets.images import to_float
from homework.datasets.tokenized_images import TokenizedImages
from homework.datasets.tokens import TokenDataset
from homework.training.loop import Run

SIZE = {"patch_size": 5, "latent_dim": 8, "encoder_blocks": 1, "decoder_blocks": 1, "detail": 4}
TOKENIZERS = {
    "BSQPatchAutoEncoder": {"codebook_bits": 4} | SIZE,
    "VQPatchAutoEncoder": {"n_tokens": 16, "code_dim": 4} | SIZE,
}


@pytest.fixture(params=TOKENIZERS)
def folder(request, tmp_path, monkeypatch):
    """Six images of 22x31, a tokenizer, a prior over its grids of 5x7, and the tokens of a search."""
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (3, 4, 3), np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((31, 22)).save(tmp_path / "images" / f"{i}.png")
    model = build(request.param, **TOKENIZERS[request.param])
    prior = build("AutoregressiveModel", n_tokens=16, d_latent=8, n_layers=1, n_heads=2, height=5, width=7)
    prior.meta["tokenizer"] = fingerprint.identity(model)
    checkpoint.save(model, tmp_path / "tokenizer.pth")
    checkpoint.save(prior, tmp_path / "prior.pth", prior.meta)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tokenized(command, *more: str):
    for split in "train", "valid":
        done = command("tokenize", "tokenizer.pth", f"tokenized_{split}.pth", "images", *more)
        assert done.returncode == 0, done.stderr


def searched(command):
    tokenized(command, "--prior", "prior.pth", "--effort=2", "--quality=20,80", "--batch_size=4")


def test_tokens_are_those_of_the_search_at_a_quality_of_each_images_own(command, folder):
    searched(command)
    data, found = TokenizedImages(root="."), []
    model, prior = checkpoint.load("tokenizer.pth"), checkpoint.load("prior.pth")
    for i in range(6):
        pixels = torch.from_numpy(np.array(Image.open(data.names[i])))
        x, index, lmbda = data[i]
        assert torch.equal(x, to_float(pixels)) and x.shape == (22, 31, 3) and index.shape == (5, 7)
        both = [search(model, prior, pixels, lmbda_at(quality), 2) for quality in (20, 80)]
        assert torch.equal(index, both[[lmbda_at(20), lmbda_at(80)].index(pytest.approx(float(lmbda)))])
        found.append([torch.equal(index, one) for one in both])
    assert {(True, False), (False, True)} <= set(map(tuple, found))


def test_an_encoder_learns_to_make_them_and_the_decoder_stays(command, folder):
    searched(command)
    options = ["--data=.", "--batch_size=2", "--epochs=60", "--lr=0.01", "--warmup=5", "--ema=0.9", "--validate_every=180"]
    done = command("train", "tokenizer.pth", "--dataset=tokenized_images", "--output=more.pth", *options)
    assert done.returncode == 0, done.stderr
    x, index, _ = TokenizedImages(root=".").batch(range(6))
    (trained,) = folder.glob("checkpoints/*.pth")
    before, after = checkpoint.load("tokenizer.pth"), checkpoint.load(trained)
    same = [float((model.encode_index(x) == index).float().mean()) for model in (before, after)]
    assert same[1] > same[0] + 0.1
    assert torch.equal(before.decode_index(index), after.decode_index(index))


def test_files_of_either_tokenizer_are_read_by_the_other(command, folder):
    searched(command)
    options = ["--dataset=tokenized_images", "--data=.", "--batch_size=2", "--lr=0.01", "--warmup=5", "--epochs=20"]
    assert command("train", "tokenizer.pth", *options, "--output=more.pth").returncode == 0
    for one, other in ("tokenizer.pth", "more.pth"), ("more.pth", "tokenizer.pth"):
        assert command("compress", one, "prior.pth", "images", "a.hwa", "--effort=0").returncode == 0
        done = command("compress", "decompress", other, "prior.pth", "a.hwa", f"by_{one}")
        assert done.returncode == 0, done.stderr
        assert len(list((folder / f"by_{one}").iterdir())) == 6
    tokenized(command, "--prior", "prior.pth")  # and it resumes there
    assert command("train", "more.pth", *options, "--output=most.pth").returncode == 0
    tokens = [fingerprint.codes_of(checkpoint.load(f"{name}.pth")) for name in ("tokenizer", "more", "most")]
    assert tokens[0] == tokens[1] == tokens[2]
    every = {fingerprint.of_all_weights(checkpoint.load(f"{name}.pth")) for name in ("tokenizer", "more", "most")}
    assert len(every) == 3  # so that resumed work does not mix their tokens
    # trained on images, the decoder becomes another
    (folder / "train").symlink_to("images")
    (folder / "valid").symlink_to("images")
    assert command("train", "more.pth", "--data=.", "--batch_size=2", "--epochs=1", "--output=new.pth").returncode == 0
    assert fingerprint.identity(checkpoint.load("new.pth")) != tokens[0]["identity"]


def test_a_decoder_learns_from_them_and_the_tokens_stay(command, folder):
    """It is another tokenizer, whose images are nearer, but the priors of these tokens go on with it."""
    searched(command)
    options = ["--dataset=tokenized_images", "--data=.", "--batch_size=2", "--lr=0.01", "--warmup=5", "--epochs=40"]
    done = command("train", "tokenizer.pth", "--learns=decoder", *options, "--output=better.pth")
    assert done.returncode == 0, done.stderr
    x, index, _ = TokenizedImages(root=".").batch(range(6))
    (trained,) = folder.glob("checkpoints/*.pth")
    before, after = checkpoint.load("tokenizer.pth"), checkpoint.load(trained)
    for tokens in index, before.encode_index(x):  # the search's and its encoder's own
        with torch.no_grad():
            errors = [float(F.mse_loss(model.decode_index(tokens)[:, :22, :31], x)) for model in (before, after)]
        assert errors[1] < 0.9 * errors[0]
    assert torch.equal(before.encode_index(x), after.encode_index(x))
    assert torch.equal(before.code_table(), after.code_table())
    assert fingerprint.identity(before) == fingerprint.identity(after)
    assert fingerprint.fingerprint(before) != fingerprint.fingerprint(after)
    for one, other in ("tokenizer.pth", "better.pth"), ("better.pth", "tokenizer.pth"):
        assert command("compress", one, "prior.pth", "images", "a.hwa", "--effort=0").returncode == 0
        assert "tokenizer" in sentence(command("compress", "decompress", other, "prior.pth", "a.hwa", "out"))
    # its encoder, trained further on the tokens of before, makes codes for this decoder
    assert command("train", "better.pth", "--learns=encoder", *options, "--output=most.pth").returncode == 0
    assert fingerprint.codes_of(checkpoint.load("most.pth")) == fingerprint.codes_of(checkpoint.load("better.pth"))
    done = command("compress", "decompress", "most.pth", "prior.pth", "a.hwa", "out")
    assert done.returncode == 0, done.stderr
    after.meta[fingerprint.TOKENS_OF] = "nothing"
    checkpoint.save(after, "damaged.pth", after.meta)
    assert "damaged" in sentence(command("compress", "damaged.pth", "prior.pth", "images", "b.hwa"))


def dialed(command):
    """A tokenizer that has learned what a search finds at a quality of 20 and of 80; these images, tokens and lmbdas."""
    searched(command)
    options = ["--data=.", "--batch_size=2", "--epochs=150", "--lr=0.01", "--warmup=5", "--ema=0.9", "--validate_every=450"]
    done = command("train", "tokenizer.pth", "--dataset=tokenized_images", "--dial=True", "--output=dial.pth", *options)
    assert done.returncode == 0, done.stderr
    return checkpoint.load("dial.pth"), *TokenizedImages(root=".").batch(range(6))


def test_an_encoder_with_a_dial_makes_tokens_for_any_quality(command, folder):
    model, x, index, lmbda = dialed(command)
    own, other = (float((model.encode_at(x, values) == index).float().mean()) for values in (lmbda, 1e-4 / lmbda))
    assert own > other + 0.02
    low = model.encode_at(x, lmbda_at(20))
    assert not torch.equal(low, model.encode_at(x, lmbda_at(80)))
    assert torch.equal(low, model.encode_at(x.view(2, 3, *x.shape[1:]), lmbda_at(20)).view(low.shape))
    assert torch.equal(low[0], model.encode_at(x[0], torch.tensor(lmbda_at(20))))
    assert torch.equal(low[0], search(model, checkpoint.load("prior.pth"), x[0], lmbda_at(20), 0))
    assert torch.equal(model.encode_index(x), model.encode_at(x, lmbda_at(50)))
    assert torch.equal(model.encode_at(x, lmbda_at(1)), model.encode_at(x, lmbda_at(10)))
    fresh = build(type(model).__name__, **model.config)  # has learned nothing yet
    assert torch.equal(fresh.encode_at(x, lmbda_at(20)), fresh.encode_index(x))
    with pytest.raises(ValueError, match="quality"):
        model.loss((x, index))
    for wrong in -1.0, 0.0, float("nan"):
        with pytest.raises(ValueError, match="lmbda is"):
            model.encode_at(x, wrong)
    half = checkpoint.load("dial.pth").bfloat16()
    assert half.encode_at(x.bfloat16(), lmbda_at(20)).shape == low.shape


def test_with_a_dial_quality_counts_without_a_search(command, folder):
    model, x, *_ = dialed(command)
    prior, compress = checkpoint.load("prior.pth"), ["compress", "dial.pth", "prior.pth", "images", "a.hwa", "--effort=0"]
    for quality in 20, 80:
        expected = model.encode_at(x, lmbda_at(quality)).numpy()
        assert (Compressor(model, prior, quality=quality).to_tokens(x) == expected).all()
        assert command(*compress, f"--quality={quality}").returncode == 0
        assert command("compress", "decompress", "tokenizer.pth", "prior.pth", "a.hwa", str(quality)).returncode == 0
        with Image.open(f"{quality}/0.png") as image:
            decoded = to_float(torch.from_numpy(np.array(image)))
        near = model.decode_index(torch.from_numpy(expected[0]))[:22, :31].clamp(-0.5, 0.5)
        assert torch.allclose(decoded, near, atol=1 / 255)
        assert command("tokenize", "dial.pth", "t.pth", "images", f"--quality={quality}").returncode == 0
        assert (TokenDataset("t.pth").tokens == expected).all()
        assert TokenDataset("t.pth").lmbda == pytest.approx(torch.full((6,), lmbda_at(quality)))
    every = [model.encode_at(x[:1], lmbda_at(quality)).numpy() for quality in range(1, 101)]
    aimed = Compressor(model, prior, target=target(1000, None)).to_tokens(x[:1])
    assert any((aimed == one).all() for one in every)
    assert "effort" in sentence(command(compress[0], "tokenizer.pth", *compress[2:], "--quality=20"))
    assert "dial" in sentence(command("tokenize", "tokenizer.pth", "t.pth", "images", "--quality=20"))


@pytest.mark.parametrize("lmbda", ["text", torch.ones(()), torch.ones(5), torch.zeros(6), torch.full((6,), torch.nan),
                                   torch.ones(6, 1), torch.ones(6, dtype=torch.complex64)])  # fmt: skip
def test_a_damaged_lmbda_is_a_sentence(command, folder, lmbda):
    searched(command)
    files.write(files.read(folder / "tokenized_train.pth") | {"lmbda": lmbda}, folder / "tokenized_train.pth")
    train = ["train", "tokenizer.pth", "--dataset=tokenized_images", "--data=."]
    assert "lmbda" in sentence(command(*train))
    Path("tokenized_train").mkdir()
    for name in "one.pth", "two.pth":  # as tokenize --shards writes them
        files.write(files.read("tokenized_valid.pth"), f"tokenized_train/{name}")
    assert len(TokenDataset("tokenized_train").lmbda) == 12
    for damage in {"lmbda": lmbda}, {"lmbda": None}:
        files.write(files.read("tokenized_valid.pth") | damage, "tokenized_train/two.pth")
        with pytest.raises(ValueError, match="lmbda"):
            TokenDataset("tokenized_train")


@pytest.mark.parametrize("damage", ["text", {}, {"fingerprint": "00", "legacy": "00", "identity": "00"}, [1]])
def test_a_damaged_fingerprint_is_a_sentence(command, folder, damage):
    model = checkpoint.load("tokenizer.pth")
    checkpoint.save(model, "damaged.pth", {fingerprint.CODES_OF: damage})
    assert "damaged" in sentence(command("compress", "damaged.pth", "prior.pth", "images", "a.hwa", "--effort=0"))


@pytest.mark.parametrize("learns", ["encoder", "decoder"])
def test_a_resumed_run_keeps_them(command, folder, monkeypatch, learns):
    searched(command)
    options = ["--dataset=tokenized_images", "--data=.", "--batch_size=2", "--epochs=4", "--validate_every=3",
               f"--learns={learns}"]  # fmt: skip
    step = Run.step

    def interrupted(self):
        if self.update == 6:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", interrupted)
        assert command("train", "tokenizer.pth", *options, "--output=more.pth").returncode == 130
    done = command("train", next((folder / "checkpoints").glob("*r.pth")), "--resume")
    assert done.returncode == 0, done.stderr
    before, after = checkpoint.load("tokenizer.pth"), checkpoint.load("more.pth")
    assert fingerprint.identity(after) == fingerprint.identity(before)
    assert (fingerprint.fingerprint(after) == fingerprint.fingerprint(before)) == (learns == "encoder")


def test_measures(folder):
    model, x, index = checkpoint.load("tokenizer.pth"), torch.rand(2, 22, 31, 3) - 0.5, torch.randint(16, (2, 5, 7))
    with torch.no_grad():
        loss = model.loss((x, index))
        assert loss["loss"] == model.distance(model.latent(x), index)
        assert loss["mse"] == pytest.approx(F.mse_loss(model.decode_index(index)[:, :22, :31], x))
        assert loss["own_mse"] == pytest.approx(F.mse_loss(model(x)[0], x))
        own = model.loss((x, model.encode_index(x)))
    assert own["mse"] == pytest.approx(own["own_mse"]) and own["loss"] < loss["loss"]


def test_what_does_not_go_together_is_refused(command, folder):
    searched(command)
    train = ["train", "tokenizer.pth", "--dataset=tokenized_images", "--data=."]
    assert "checkpoint" in sentence(command("train", checkpoint.load("tokenizer.pth").__class__.__name__, *train[2:]))
    model = checkpoint.load("tokenizer.pth")
    with torch.no_grad():
        model.encoder.out.weight += 1
    checkpoint.save(model, "other.pth")
    assert "another tokenizer" in sentence(command("train", "other.pth", *train[2:]))
    assert "images" in sentence(command("train", "PatchAutoEncoder", *train[2:]))
    tokenized(command, "--copies=1")
    assert "--copies" in sentence(command(*train))


def test_options_of_a_search_want_a_prior_of_the_same_tokens(command, folder):
    tokenize = ["tokenize", "tokenizer.pth", "out.pth", "images"]
    assert "--prior" in sentence(command(*tokenize, "--effort=3"))
    assert "--prior" in sentence(command(*tokenize, "--quality=30"))
    assert "quality" in sentence(command(*tokenize, "--prior=prior.pth", "--quality=0"))
    assert "--effort" in sentence(command(*tokenize, "--prior=prior.pth", "--effort=0"))
    checkpoint.save(build("AutoregressiveModel", n_tokens=8, d_latent=8, n_layers=1, n_heads=2), "other.pth")
    assert "codes" in sentence(command(*tokenize, "--prior=other.pth"))
    assert not (folder / "out.pth").exists()


def test_copies_are_searched_too(command, folder):
    tokenized(command, "--copies=1", "--prior", "prior.pth", "--effort=1")
    found = TokenDataset("tokenized_train.pth")
    assert len(found) == 12
    plain = folder / "plain.pth"
    assert command("tokenize", "tokenizer.pth", plain, "images", "--copies=1").returncode == 0
    assert found.names == TokenDataset(plain).names
    differs = (found.tokens != TokenDataset(plain).tokens).any(axis=(1, 2))
    assert differs[0::2].any() and differs[1::2].any()
