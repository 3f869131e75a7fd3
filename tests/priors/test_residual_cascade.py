"""Residual scales: codebooks that quantize what coarser ones leave, the stages that read their sum, and files under both."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GRID, SIZE, TINY, K, build, run, sentence
from PIL import Image

from homework import generation
from homework.codec.cascade_compressor import CascadeCompressor
from homework.core import checkpoint, fingerprint
from homework.datasets.features import FeatureDataset
from homework.datasets.images import ImageDataset
from homework.datasets.tokens import MultiscaleDataset, TokenDataset
from homework.evaluation.samples import sample
from homework.features import features as make_features
from homework.priors.cascade import Cascade
from homework.som import fit
from homework.tokenize import tokenize
from homework.tokenizers.som import SOM, cut
from homework.tokenizers.som_fit import pruned
from homework.train import train

BOOKS = {"map": ("map", 4), "coarse": ("2x3", 8), "fine": (1, K)}  # patch and codes: 1x1, 2x2 and 4x6 codes for an image
SIZES = [(1, 1), (2, 2), GRID]
SMALL = {"in_dim": 8, "hidden_dim": 16, "num_dec_layers": 1, "self_attn_heads": 2, "num_enc_layers": 1}


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """A folder in which the commands made features, three codebooks, each residual on those before it, their tokens, two
    stages and cascade.json."""
    folder = tmp_path_factory.mktemp("residual")
    spec, stages, before = TINY["SOM"]["autoencoder"], [], []
    with pytest.MonkeyPatch.context() as context:
        context.chdir(folder)
        checkpoint.save(build(spec["model"], **spec["config"]), "ae.pth")
        for split in "train", "valid":
            make_features("ae.pth", data / split, f"features/{split}", device="cpu")
        for k, (name, (patch, codes)) in enumerate(BOOKS.items()):
            coarser = f"{before[-1]}.pth" if before else None
            options = {"n_codes": codes, "patch": patch, "passes": 8, "radius_end": 0.2, "coarser": coarser, "device": "cpu"}
            fit("features", f"{name}.pth", **options)
            for split in "train", "valid":
                tokenize(f"{name}.pth", f"{name}/tokenized_{split}.pth", data / split, device="cpu")
            if before:
                options = {"data": name, "coarse": ",".join(before), "tokenizer": f"{name}.pth", "epochs": 2}
                train("CascadeStage", batch_size=4, output=f"stage{k - 1}.pth", device="cpu", **options, **SMALL)
                paths = f"stage{k - 1}.pth", coarser, f"{name}.pth"
                stages.append(dict(zip(("model_path", "lr_codebook_path", "hr_codebook_path"), paths, strict=True)))
            before.append(name)
    (folder / "cascade.json").write_text(json.dumps({"stages": stages}))
    return folder


@pytest.fixture
def books(cascade) -> list[SOM]:
    return list(cascade.codebooks)


def frames(data, n=4):
    return ImageDataset("valid", root=data).batch(range(n))


def features(split="train"):
    maps = FeatureDataset(split, root="features")
    return maps.batch(range(len(maps)))


# --- codebooks ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_each_codebook_quantizes_what_those_before_it_leave(books):
    """The definition, one patch after the other."""
    z, left = features(), features()
    for book in books:
        patches, grid = cut(left, book.patch), book.encode_features(z)
        nearest = (patches[..., None, :] - book.codebook).square().sum(dim=-1).argmin(dim=-1)
        assert (nearest == grid).float().mean() > 0.999  # but for ties
        left = left - book.to_features(book.codebook[grid])


@torch.no_grad()
def test_grids_decode_to_the_sum_of_their_vectors(cascade, books, data):
    grids = cascade.encode(frames(data))
    z = torch.zeros(len(grids[0]), *GRID, 3)
    for k, (book, x_hat) in enumerate(zip(books, cascade.decode(grids), strict=True)):
        z = z + book.to_features(book.codebook[grids[k]])
        assert torch.allclose(x_hat, book.autoencoder.decode(z), atol=1e-6)
        assert torch.allclose(x_hat[:, : SIZE[0], : SIZE[1]], book(frames(data))[0], atol=1e-6)
    assert torch.equal(books[2].context(grids[:2]), cut(books[1].sum_of(grids[:2]), books[2].patch))


@torch.no_grad()
def test_each_scale_keeps_more_of_the_data_it_was_fitted_on(books):
    z, errors = features(), []
    for k in range(3):
        kept = books[k].sum_of([book.encode_features(z) for book in books[: k + 1]])
        errors.append(float((z - kept).square().mean()))
    assert float(z.square().mean()) > errors[0] > errors[1] > errors[2]


@torch.no_grad()
def test_tokens_do_not_depend_on_the_batch(books, data):
    x = frames(data, 8)
    for book in books:
        grid = book.encode_index(x)
        assert torch.equal(grid, torch.stack([book.encode_index(one) for one in x]))
        assert torch.equal(grid, book.encode_index(x.flip(0)).flip(0))


def test_one_codebook_alone_takes_the_mean_for_what_it_does_not_know(books):
    fine = books[2]
    unknown = sum(book.codebook.unflatten(1, (-1, 3)).mean(dim=(0, 1)) for book in books[:2])
    grid = torch.arange(K)[:, None, None]
    expected = fine.autoencoder.decode(fine.codebook[grid] + unknown)
    assert torch.allclose(fine.decode_index(grid), expected, atol=1e-6)
    assert fine.codebook_picture().isfinite().all() and set(fine.images(features("valid"))) >= {"features", "codebook"}


def test_a_checkpoint_is_exact_and_bears_the_coarser_codebooks(books, tmp_path, data):
    checkpoint.save(books[2], tmp_path / "half.pth", {}, torch.float16)
    other = checkpoint.load("fine.pth")
    assert torch.equal(other.encode_index(frames(data)), books[2].encode_index(frames(data)))
    assert [codes for codes, _ in other.config["coarser"]] == [4, 8] and other.n_coarser == 2
    half = checkpoint.load(tmp_path / "half.pth")
    assert fingerprint.identity(half) == fingerprint.identity(other) and half.follows(books[1])
    with torch.no_grad():
        other.coarser_0[0, 0] += 1
    assert fingerprint.fingerprint(other) != fingerprint.fingerprint(books[2]) and not other.follows(books[1])


def test_a_pruned_codebook_is_another_one_to_follow(books):
    smaller = pruned(books[1], list(range(1, 8)))
    assert smaller.follows(books[0]) and not books[2].follows(smaller) and books[2].follows(books[1])
    assert not books[1].follows(None) and not books[1].follows(build("BSQPatchAutoEncoder"))
    assert books[0].follows(None)


@pytest.mark.parametrize("coarser, words", [
    (3, r"coarser is 3, but must be a list of 1 to 16 \[n_codes, patch\]"),
    ([[4]], r"coarser is \[\[4\]\]"),
    ([[0, 1]], "n_codes of coarser is 0"),
    ([[4, 5]], "patch is 5, which does not divide the map of 4x6"),
])  # fmt: skip
def test_coarser_codebooks_that_cannot_be_are_named(coarser, words):
    with pytest.raises(ValueError, match=words):
        build("SOM", coarser=coarser)


def test_a_new_codebook_is_fitted_on_features_of_the_same_kind(stages, command, tmp_path):
    other = build("SOM", height=8)
    other.set_autoencoder(checkpoint.load("ae.pth"))
    checkpoint.save(other, tmp_path / "other.pth")
    message = sentence(command("som", "fit", "features", tmp_path / "x.pth", "--coarser", tmp_path / "other.pth"))
    assert "is for maps of 8x6, but those of features are 4x6" in message
    checkpoint.save(build("SOM", seed=5), tmp_path / "other.pth")
    message = sentence(command("som", "fit", "features", tmp_path / "x.pth", "--coarser", tmp_path / "other.pth"))
    assert "features of another auto-encoder" in message


def test_grids_of_other_codebooks_are_refused(books, data):
    grids = [book.encode_index(frames(data)) for book in books]
    for wrong in (grids[::-1], [grids[1], grids[1]], [grids[0] + 4]):
        with pytest.raises(ValueError, match="the coarsest first"):
            books[2].context(wrong)


# --- stages and cascades --------------------------------------------------------------------------------------------------


def test_stages_are_trained_on_what_the_cascade_gives_them(cascade, data):
    assert cascade.sizes == SIZES and [stage.context_dim for stage in cascade.stages] == [18, 3]
    grids = cascade.encode(frames(data, 8))
    for k, (fine, coarse) in enumerate([("coarse", "map"), ("fine", "map,coarse")], start=1):
        both = MultiscaleDataset("valid", fine, coarse, f"{fine}.pth")
        known, tokens = both.batch(range(8))
        assert torch.equal(known, cascade.known(grids[:k])) and torch.equal(tokens, grids[k])
        assert torch.equal(both[3][0], known[3])
        assert both.model_defaults()["context_dim"] == known.shape[-1] == cascade.stages[k - 1].context_dim
    bits = cascade.bits(grids)
    loss = cascade.stages[1].loss((cascade.known(grids[:2]), grids[2]))
    assert bits[2] == pytest.approx(float(loss["bits_per_image"]))


def test_without_their_tokenizer_grids_are_read_as_tokens(stages):
    both = MultiscaleDataset("valid", "fine", "coarse", "ae.pth")
    assert torch.equal(both[0][0], TokenDataset("valid", "coarse")[0]) and "context_dim" not in both.model_defaults()


@pytest.mark.parametrize("coarse, words", [
    ("coarse", "--coarse names 1 folders, but the grids of --tokenizer, fine.pth, need 2"),
    ("map,coarse,fine", "--coarse names 3 folders, .* need 2"),
    ("coarse,map", "give those of all coarser codebooks, the coarsest first"),
])  # fmt: skip
def test_a_stage_needs_the_grids_of_all_coarser_codebooks(stages, command, coarse, words):
    options = "--data", "fine", "--coarse", coarse, "--tokenizer", "fine.pth", "--output", "x.pth"
    done = command("train", "CascadeStage", *options)
    assert re.search(words, sentence(done))


def changed(stages, k, **entries):
    return [stage | entries if i == k else stage for i, stage in enumerate(stages)]


def test_a_cascade_refuses_codebooks_that_do_not_follow_each_other(stages, folder):
    for name, book in ("other", pruned(checkpoint.load("coarse.pth"), list(range(8)))), ("map2", checkpoint.load("map.pth")):
        with torch.no_grad():
            book.codebook += 0.5
        checkpoint.save(book, folder / f"{name}.pth")
    for name in "stage0", "stage1":
        stage = checkpoint.load(f"{name}.pth")
        checkpoint.save(stage, folder / f"{name}_of_any.pth")  # without knowing its codebooks
    swapped = changed(stages, 0, model_path="stage0_of_any.pth", hr_codebook_path="other.pth")
    swapped = changed(swapped, 1, model_path="stage1_of_any.pth", lr_codebook_path="other.pth")
    with pytest.raises(ValueError, match="fine.pth is residual, and was fitted on what other codebooks leave"):
        Cascade(swapped)
    with pytest.raises(ValueError, match="coarse.pth is residual, and was fitted on what other codebooks leave"):
        Cascade(changed(stages, 0, lr_codebook_path="map2.pth", model_path="stage0_of_any.pth"))
    plain = build("SOM", n_codes=8, patch="2x3")
    checkpoint.save(plain, folder / "plain.pth")
    with pytest.raises(ValueError, match="reads the vectors of residual codebooks, but plain.pth is none on 1 coarser ones"):
        Cascade(changed(stages[:1], 0, hr_codebook_path="plain.pth", model_path="stage0_of_any.pth"))


def short(stages):
    """The stages, with the finest codebook alone."""
    last = {"hr_codebook_path": stages[-1]["hr_codebook_path"]}
    return [{"model_path": stage["model_path"]} | (last if stage is stages[-1] else {}) for stage in stages]


def test_the_finest_codebook_bears_the_others(stages, cascade, folder, data):
    same = Cascade(short(stages))
    for pair in zip(same.codebooks, cascade.codebooks, strict=True):
        for known_by in fingerprint.fingerprint, fingerprint.identity:
            assert len(set(map(known_by, pair))) == 1
    for grids in zip(same.encode(frames(data)), cascade.encode(frames(data)), strict=True):
        assert torch.equal(*grids)
    (folder / "short.json").write_text(json.dumps({"stages": short(stages)}))
    Image.fromarray(np.asarray(frames(data)[0] * 255 + 127.5, dtype=np.uint8)).save("one.png")
    for config, file in ("cascade.json", "long.hwi"), ("short.json", "short.hwi"):
        done = run("-m", "homework.compress", "compress", "fine.pth", config, "one.png", file, "--device", "cpu", cwd=folder)
        assert done.returncode == 0, done.stderr
    assert (folder / "long.hwi").read_bytes() == (folder / "short.hwi").read_bytes()


def test_a_codebook_that_bears_other_ones_is_refused(stages, cascade):
    with pytest.raises(ValueError, match="Only coarse.pth is named as a codebook, but it does not bear the 2 coarser ones"):
        Cascade(changed(short(stages), 1, hr_codebook_path="coarse.pth"))
    with pytest.raises(ValueError, match="Stage 0 has no lr_codebook_path"):
        Cascade(changed(short(stages), 0, hr_codebook_path="coarse.pth"))
    with pytest.raises(ValueError, match="Stage 0 has no model_path"):
        Cascade([{}, short(stages)[1]])


def test_what_is_measured_is_what_generation_makes(stages, folder, tmp_path):
    """All grids together, not the finest one alone."""
    _, batches = sample("cascade.json", 3, None, 2, 5, torch.device("cpu"))
    generation.cascade(stages, num_images=3, out_dir=str(tmp_path), seed=5, batch_size=2, device="cpu")
    pictures = [np.asarray(Image.open(tmp_path / f"{i}_stage1.png")) for i in range(3)]
    assert np.array_equal(torch.cat(list(batches)).numpy(), np.stack(pictures))


def test_samples_and_files_come_back(cascade, folder, data, tmp_path):
    grids = cascade.generate(torch.tensor([[[1]], [[3]]]), torch.Generator().manual_seed(0))
    assert [grid.shape[1:] for grid in grids] == SIZES
    *_, again = cascade.refine(grids[:2], torch.Generator().manual_seed(1))
    assert again.shape == grids[2].shape
    compressor, x = CascadeCompressor(cascade), frames(data, 5)
    payloads = compressor.compress_batch(list(x))
    expected = cascade.decode(cascade.encode(x))[-1]
    for one, x_hat, alone in zip(expected, compressor.decompress_batch(payloads), payloads, strict=True):
        assert torch.allclose(one, x_hat, atol=1e-5) and torch.allclose(compressor.decompress(alone), x_hat, atol=1e-5)
    total = 8 * sum(map(len, payloads)) / 5
    assert sum(cascade.bits(cascade.encode(x))) < total < sum(cascade.bits(cascade.encode(x))) + 8 * 24


def test_the_commands_in_a_fresh_process(stages, folder, data, tmp_path):
    pair = "fine.pth", "cascade.json"
    for arguments in (["generation", "cascade", "--config", "cascade.json", "--out_dir", tmp_path / "new"],
                      ["compress", "compress", *pair, data / "valid", tmp_path / "v.hwa"],
                      ["compress", "decompress", *pair, tmp_path / "v.hwa", tmp_path / "back"]):  # fmt: skip
        done = run("-m", f"homework.{arguments[0]}", *arguments[1:], cwd=folder)
        assert done.returncode == 0, done.stderr
    back = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "back").glob("*.png"))])
    x_hat = Cascade(stages).decode(Cascade(stages).encode(frames(data, 8)))[-1][:, : SIZE[0], : SIZE[1]]
    assert np.abs(back - ((x_hat + 0.5).clamp(0, 1) * 255).numpy()).max() <= 0.6
    assert (tmp_path / "new" / "sheet.png").is_file()


def test_a_cascade_that_comes_along_needs_no_config(stages, folder, data, command, monkeypatch, tmp_path):
    """Its models are named as pretrained ones are, wherever the command is given."""
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    options = "--num_images", 1, "--out_dir", "new"
    named = [{key: Path(path).stem.title() for key, path in stage.items()} for stage in stages]
    for name in {name for stage in named for name in stage.values()}:
        model = checkpoint.load(folder / f"{name.lower()}.pth")
        checkpoint.save(model, tmp_path / "pretrained" / f"{name}.pth", model.meta, torch.float16)
    (tmp_path / "pretrained" / "cascade.json").write_text(json.dumps({"stages": named}))
    done = command("generation", "cascade", *options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "0_stage1.png").is_file()
    done = command("compress", "Fine", "cascade.json", data / "valid", "v.hwa")
    assert done.returncode == 0 and Path("v.hwa").is_file(), done.stderr
