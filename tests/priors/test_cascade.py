"""A cascade made of its files: trained stage by stage, sampled, coded; and what does not go together is refused."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GRID, SIZE, TINY, K, build, run, sentence
from PIL import Image

from homework import load
from homework.codec.cascade_compressor import CascadeCompressor
from homework.core import checkpoint, files, fingerprint
from homework.datasets.images import ImageDataset
from homework.datasets.tokens import MultiscaleDataset
from homework.priors.cascade import Cascade

SMALL = {"in_dim": 8, "hidden_dim": 16, "num_dec_layers": 1, "self_attn_heads": 2, "cross_attn_heads": 2}
BOOKS = {"map": "map", "coarse": 2, "fine": 1}  # patches of codebooks: 1x1, 2x3 and 4x6 codes for an image


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """A folder with codebooks {name}.pth and their tokens {name}/, two stages stage0.pth and stage1.pth trained on these for
    a moment by the command, and cascade.json."""
    folder = tmp_path_factory.mktemp("cascade")
    ae = build(TINY["SOM"]["autoencoder"]["model"], **TINY["SOM"]["autoencoder"]["config"])
    for name, patch in BOOKS.items():
        book = build("SOM", patch=patch)
        book.set_autoencoder(ae)
        images = ImageDataset("train", root=data)
        book.lay_out(book.latent(images.batch(range(len(images)))).flatten(0, 2))
        checkpoint.save(book, folder / f"{name}.pth")
        for split in "train", "valid":
            output = f"{name}/tokenized_{split}.pth"
            done = run(
                "-m", "homework.tokenize", f"{name}.pth", output, data / split, "--copies", 1, "--shift", 3, cwd=folder
            )
            assert done.returncode == 0, done.stderr
    stages = []
    for k, (coarse, fine) in enumerate([("map", "coarse"), ("coarse", "fine")]):
        options = {"epochs": 2, "batch_size": 4, "warmup": 2, "device": "cpu", "data": fine, "coarse": coarse}
        options |= SMALL | {"num_enc_layers": k, "output": f"stage{k}.pth", "tokenizer": f"{fine}.pth", "model_lr": 2e-3}
        options |= {"use_sliding_window": True, "sliding_window": 9, "lr_step": 5, "keep_every": 10} if k else {}
        (folder / f"stage{k}.json").write_text(json.dumps(options))
        done = run("-m", "homework.train", "CascadeStage", "--config", f"stage{k}.json", cwd=folder)
        assert done.returncode == 0, done.stderr
        stages.append(
            {"model_path": f"stage{k}.pth", "lr_codebook_path": f"{coarse}.pth", "hr_codebook_path": f"{fine}.pth"}
        )
    stages[1] |= {"temperature": 0.9, "num_beam": 2, "beam_width": 3}
    (folder / "cascade.json").write_text(json.dumps({"stages": stages}))
    return folder


def frames(data, n=4):
    return ImageDataset("valid", root=data).batch(range(n))


def test_stages_know_their_sizes_rates_and_codebooks(folder, cascade):
    assert cascade.sizes == [(1, 1), (2, 3), GRID]
    for k, stage in enumerate(cascade.stages):
        assert stage.config["num_enc_layers"] == k and stage.learning_rate == 2e-3
        assert stage.meta["tokenizer"] == fingerprint.identity(cascade.codebooks[k + 1])
        assert stage.meta["coarse_tokenizer"] == fingerprint.identity(cascade.codebooks[k])
        assert stage.meta["valid"]["bits_per_image"] > 0
    kept = sorted((folder / "checkpoints").glob("*_CascadeStage_*.pth"))  # a checkpoint every 10 updates of 24
    assert [p.stem.rsplit("_", 1)[1] for p in kept] == ["10", "20"] and load(kept[0]).meta["update"] == 10


def test_bits_are_those_of_the_stages_and_their_sum_is_what_the_coder_needs(cascade, data):
    grids = cascade.encode(frames(data))
    bits = cascade.bits(grids)
    assert bits[0] == math.log2(K) and len(bits) == 3
    assert bits[2] == pytest.approx(float(cascade.stages[1].loss((grids[1], grids[2]))["bits_per_image"]))
    compressor = CascadeCompressor(cascade)
    rows = compressor.to_tokens(frames(data))
    payloads = compressor.encode(rows)
    mean = 8 * sum(map(len, payloads)) / len(payloads)
    assert sum(bits) - 8 < mean < sum(bits) + 40
    assert np.array_equal(compressor.decode(payloads, (1, rows.shape[2]), list("abcd")), rows)
    for row, *image in zip(rows, *grids, strict=True):
        assert all(map(np.array_equal, compressor.entropy_model.split(row), image))


def test_what_the_caller_allows_changes_no_payload(cascade, data):
    compressor = CascadeCompressor(cascade)
    expected = compressor.encode(rows := compressor.to_tokens(frames(data)))
    with torch.autocast("cpu", torch.bfloat16):
        assert compressor.encode(rows) == expected


def test_samples_start_from_the_condition_and_repeat_by_seed(cascade):
    condition = torch.tensor([[[3]], [[5]]])
    one, same, other = (cascade.generate(condition, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one[0], condition) and [g.shape for g in one] == [(2, *size) for size in cascade.sizes]
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[2], other[2])
    assert [x.shape for x in cascade.decode(one)] == 3 * [(2, *SIZE, 3)]


@pytest.mark.parametrize("condition", [None, 7, "image"])
def test_the_command_writes_every_picture_and_a_sheet(cascade, command, tmp_path, data, condition):
    image = sorted((data / "valid").iterdir())[0]
    given = [] if condition is None else ["--condition", image if condition == "image" else condition]
    options = {"config": "cascade.json", "num_images": 3, "seed": 69, "out_dir": tmp_path}
    done = command("generation", "cascade", *(f"--{k}={v}" for k, v in options.items()), *given)
    assert done.returncode == 0, done.stderr
    names = {f"{i}_{part}.png" for i in range(3) for part in ("condition", "stage0", "stage1")} | {"sheet.png"}
    assert {p.name for p in tmp_path.iterdir()} == names
    pictures = {name: np.asarray(Image.open(tmp_path / name)) for name in names}
    assert all(p.shape == (*SIZE, 3) for name, p in pictures.items() if name != "sheet.png")
    assert np.array_equal(pictures["sheet.png"][4 : 4 + SIZE[0], 4 : 4 + SIZE[1]], pictures["0_condition.png"])
    if condition is not None:
        assert np.array_equal(pictures["0_condition.png"], pictures["2_condition.png"])
        code = 7 if condition == 7 else int(cascade.encode(frames(data, 1))[0])
        picture = (cascade.codebooks[0].decode_index(torch.tensor([[code]])).detach() + 0.5).clamp(0, 1) * 255
        assert np.abs(pictures["0_condition.png"] - picture.numpy()).max() <= 0.51
    done = command("generation", "cascade", *(f"--{k}={v}" for k, v in (options | {"num_images": 2}).items()), "--overwrite")
    assert done.returncode == 0 and {p.name for p in tmp_path.iterdir()} == {n for n in names if not n.startswith("2_")}


def changed(stages, k, **entries):
    stages = [dict(stage) for stage in stages]
    stages[k] |= entries
    return stages


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: changed(s, 1, lr_codebook_path="fine.pth"), "Stage 1.*another codebook than lr_codebook_path fine.pth"),
        (lambda s: changed(s, 0, hr_codebook_path="fine.pth"), "Stage 0.*another codebook than hr_codebook_path fine.pth"),
        (lambda s: changed(s, 1, model_path="stage0.pth"), "Stage 1: stage0.pth was trained on the grids of another"),
        (lambda s: s[::-1], "Stage 1 reads the grids of map.pth, but stage 0 makes those of fine.pth"),
        (lambda s: changed(s, 1, model_path="fine.pth"), "fine.pth holds a SOM, but a CascadeStage"),
        (lambda s: changed(s, 0, lr_codebook_path="stage1.pth"), "stage1.pth holds a CascadeStage, but a tokenizer"),
        (lambda s: changed(s, 0, model_path="none.pth"), "no checkpoint none.pth"),
        (lambda s: changed(s, 0, beam="x"), "Stage 0 has an unknown entry 'beam'"),
        (lambda s: [{k: v for k, v in s[0].items() if k != "model_path"}], "Stage 0 has no model_path"),
        (lambda s: changed(s, 1, temperature=-1), "Stage 1: temperature is -1"),
        (lambda s: s[1:], "Stage 0 reads grids of 2x3, but a cascade starts from one code for the whole image"),
        (lambda s: [], "stages"),
        (lambda s: 3, "stages"),
    ],
)
def test_what_does_not_go_together_ends_in_one_sentence(stages, command, change, words, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        Cascade(change(stages))
    (tmp_path / "c.json").write_text(json.dumps({"stages": change(stages)}))
    assert sentence(command("generation", "cascade", "--config", tmp_path / "c.json", "--out_dir", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, words",
    [
        (["--condition", K], f"--condition is {K}, but the codebook has the codes 0 to {K - 1}"),
        (["--num_images", 0], "--num_images is 0"),
        (["--seed", -1], "--seed is -1"),
        (["--condition", "none.png"], "--condition is none.png, but must be an integer"),
        (["--condition", 1.5], "--condition is 1.5, but must be an integer"),
        (["--condition", "."], "--condition is ., but must be an integer"),
    ],
)
def test_a_bad_option_ends_in_one_sentence(stages, command, options, words, tmp_path):
    done = command("generation", "cascade", "--config", "cascade.json", "--out_dir", tmp_path / "out", *options)
    assert words in sentence(done) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, words",
    [
        (["--data", "fine"], "--coarse is missing"),
        (["--data", "fine", "--coarse", "nowhere"], "nowhere"),
        (
            ["--data", "fine", "--coarse", "coarse", "--use_sliding_window", "--sliding_window", 25],
            "longer than the grid",
        ),
        (["--data", "fine", "--coarse", "other"], "not of the same images"),
        (["--data", "fine", "--coarse", "moved"], "moved by up to 2 pixels, but those in fine.* by up to 3; .*--shift"),
        (
            ["--data", "fine", "--coarse", "coarse", "--coarse_tokens", 5],
            f"for 5 different coarse tokens, but this data has {K}",
        ),
        (["--data", "fine", "--coarse", "coarse", "--lr_step", 0], "--lr_step is 0"),
        (["--data", "fine", "--coarse", "coarse", "--lr_step", 5, "--lr_factor", 2], "--lr_factor is 2"),
        (["--data", "fine", "--coarse", "coarse", "--keep_every", 0], "--keep_every is 0"),
    ],
)
def test_training_a_stage_on_what_does_not_fit_ends_in_one_sentence(stages, folder, command, options, words):
    for split in "train", "valid":
        tokens = files.read(folder / f"coarse/tokenized_{split}.pth")
        files.write(tokens | {"names": tokens["names"][::-1]}, folder / f"other/tokenized_{split}.pth")
        files.write(tokens | {"shift": 2}, folder / f"moved/tokenized_{split}.pth")
    said = sentence(command("train", "CascadeStage", *options, "--device", "cpu", "--output", "bad.pth"))
    assert re.search(words, said), said


@pytest.mark.parametrize(
    "fine, coarse, option", [("coarse", "coarse", "--data"), ("fine", "other_coarse", "--coarse")], ids=["fine", "coarse"]
)
def test_a_stage_goes_on_with_the_grids_of_its_own_codebooks_alone(stages, folder, command, tmp_path, fine, coarse, option):
    for split in "train", "valid":
        tokens = files.read(folder / "coarse" / f"tokenized_{split}.pth")
        files.write(tokens | {"tokenizer": "another"}, tmp_path / "other_coarse" / f"tokenized_{split}.pth")
    coarse = tmp_path / coarse if coarse.startswith("other") else coarse
    done = command("train", "stage1.pth", "--data", fine, "--coarse", coarse, "--output", tmp_path / "on.pth")
    assert f"trained on the grids of another tokenizer than those of {option}" in sentence(done)


def test_tokens_of_another_tokenizer_are_shown_in_grey(stages, command, monkeypatch, tmp_path):
    tokens = Path("fine").resolve()
    other = build("SOM", seed=7)
    checkpoint.save(other, tmp_path / "other.pth")
    monkeypatch.chdir(tmp_path)
    options = ["--d_latent", 8, "--n_heads", 2, "--n_layers", 1, "--epochs", 0.2, "--batch_size", 2, "--output", "prior.pth"]
    done = command("train", "AutoregressiveModel", "--data", tokens, "--tokenizer", "other.pth", *options)
    assert done.returncode == 0 and "other.pth did not make these tokens" in done.stderr


@pytest.mark.parametrize("tool", ["generation", "compress", "evaluate"])
def test_a_stage_alone_is_no_prior(stages, command, data, tmp_path, tool):
    arguments = {
        "generation": ["coarse.pth", "stage0.pth", 1, tmp_path / "out"],
        "compress": ["coarse.pth", "stage0.pth", data / "valid", tmp_path / "out"],
        "evaluate": ["coarse.pth", "stage0.pth", data / "valid", "--out", tmp_path / "out"],
    }
    message = sentence(command(tool, *arguments[tool]))
    assert "stage0.pth holds a CascadeStage, which needs a coarser grid" in message and not (tmp_path / "out").exists()


def test_a_stage_makes_no_features(stages, command, data, tmp_path):
    message = sentence(command("features", "stage1.pth", data / "valid", tmp_path / "out"))
    assert "holds a CascadeStage, which makes no maps of images" in message


def test_a_pair_of_grids_is_of_one_image(stages):
    both = MultiscaleDataset("train", "fine", coarse="coarse")
    coarse, fine = both.batch([3, 1])
    assert torch.equal(coarse[1], both[1][0]) and torch.equal(fine[0], both[3][1]) and len(both) == 48
    assert both.model_defaults() == {"n_tokens": K, "height": 4, "width": 6, "coarse_tokens": K, "coarse_height": 2,
                                     "coarse_width": 3}  # fmt: skip
