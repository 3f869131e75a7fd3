"""Coarse grids that are parts of a finer one: the tokens, what they decode to, and a cascade of them."""

import json
from pathlib import Path

import pytest
import torch
from conftest import GRID, SIZE, K, build, run, sentence
from hypothesis import given
from hypothesis import strategies as st

from homework import SubsampledTokenizer
from homework.codec.cascade_compressor import CascadeCompressor
from homework.core import checkpoint
from homework.core.fingerprint import CODES_OF, codes_of, digest, fingerprint, identity
from homework.priors.cascade import Cascade, parts
from homework.priors.pairs import model_files
from homework.tokenizers.base import Tokenizer

NAMES = st.sampled_from(["BSQPatchAutoEncoder", "VQPatchAutoEncoder", "SOM"])
SIDES = st.sampled_from([(1, 1), (2, 2), (2, 3), (4, 6), (4, 1)])


coarser = SubsampledTokenizer.part_of


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 0.5


@given(NAMES, SIDES, st.integers(0, 99))
def test_tokens_are_the_middles_of_patches_of_tokens(name, sides, seed):
    fine, (P, Q) = build(name).eval(), sides
    coarse, x = coarser(fine, P, Q), noise(2, *SIZE, 3, seed=seed)
    all_of_them = fine.encode_index(x)
    index = coarse.encode_index(x)
    h, w = all_of_them.shape[1:]
    assert index.shape == (2, h // P, w // Q)
    for i, j in [(0, 0), (h // P - 1, w // Q - 1)]:
        assert torch.equal(index[:, i, j], all_of_them[:, i * P + P // 2, j * Q + Q // 2])
    assert coarse.patch_shape == tuple(n * m for n, m in zip(fine.patch_shape, sides, strict=True))
    assert coarse.n_tokens == fine.n_tokens and torch.equal(coarse.code_table(), fine.code_table())
    if sides == (1, 1):
        assert torch.equal(index, all_of_them)
        assert torch.allclose(coarse.decode_index(index), fine.decode_index(index), atol=1e-6)


@given(NAMES, SIDES, st.integers(0, K - 1))
def test_a_grid_of_one_code_is_decoded_like_a_fine_grid_of_it(name, sides, code):
    fine = build(name).eval()
    index = torch.full((1, 4 // sides[0], 6 // sides[1]), code)
    expected = fine.decode_index(torch.full((1, 4, 6), code))
    assert torch.allclose(coarser(fine, *sides).decode_index(index), expected, atol=1e-5)


@given(SIDES, st.integers(1, 23), st.integers(1, 33))
def test_images_of_any_size_get_complete_patches(sides, H, W):
    coarse = coarser(build("BSQPatchAutoEncoder").eval(), *sides)
    index = coarse.encode_index(noise(H, W, 3))
    P, Q = coarse.patch_shape
    assert index.shape == (-(-H // P), -(-W // Q)) and coarse(noise(H, W, 3))[0].shape == (H, W, 3)


def test_grids_of_features_are_those_of_images():
    fine = build("SOM").eval()
    coarse, x = coarser(fine, 2, 3), noise(2, *SIZE, 3)
    assert torch.equal(coarse.encode_features(fine.autoencoder.encode(x)), coarse.encode_index(x))
    with pytest.raises(ValueError, match="The grid is 4x6, which patches of 3x3 tokens do not divide"):
        coarser(fine, 3, 3).encode_features(fine.autoencoder.encode(x))


@pytest.mark.parametrize("spec, words", [
    ({"model": "PatchAutoEncoder", "config": {}}, "tokenizer is a PatchAutoEncoder, but must be a tokenizer that"),
    ({"model": "SOM", "config": {"coarser": [[4, "map"]]}}, "is a residual codebook"),
    ("SOM", "tokenizer is 'SOM', but must be of the form"), ({"model": "SOM"}, "must be of the form")])  # fmt: skip
def test_what_it_is_made_of_is_checked(spec, words):
    with pytest.raises(ValueError, match=words):
        SubsampledTokenizer(spec)
    with pytest.raises(ValueError, match="rows is 0"):
        SubsampledTokenizer({"model": "SOM", "config": {}}, 0, 2)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Tokenizer:
    """A folder with fine.pth, middle.pth and map.pth, made by commands; the fine tokenizer."""
    monkeypatch.chdir(tmp_path)
    fine = build("BSQPatchAutoEncoder").eval()
    checkpoint.save(fine, "fine.pth")
    for before, name, patch in ("fine", "middle", "2x3"), ("middle", "map", "2"):
        done = run("-m", "homework.som", "subsample", f"{before}.pth", f"{name}.pth", "--patch", patch, cwd=tmp_path)
        assert done.returncode == 0 and f"tokens of {before}.pth, which are" in done.stdout, done.stderr
    return fine


def test_it_is_made_by_a_command_and_trained_by_none(here, tmp_path):
    middle = checkpoint.load("middle.pth")
    x = noise(3, *SIZE, 3)
    assert torch.equal(middle.encode_index(x), here.encode_index(x)[:, 1::2, 1::3])
    assert fingerprint(middle) == fingerprint(coarser(here, 2, 3)) != fingerprint(coarser(here, 3, 2))
    for patch in ("0", "2x", "map", "x"):
        done = run("-m", "homework.som", "subsample", "fine.pth", "no.pth", "--patch", patch, cwd=tmp_path)
        assert "must be an integer of at least 1, or HEIGHTxWIDTH" in sentence(done) and not Path("no.pth").exists()
    done = run("-m", "homework.train", "SubsampledTokenizer", cwd=tmp_path)
    assert "make it by python -m homework.som subsample" in sentence(done)


SIZES = {"map": (1, 1), "middle": (2, 2), "fine": GRID}


@pytest.fixture
def stages(here) -> list[dict]:
    """Of a cascade of the three codebooks, untrained."""
    stages = []
    for k, (before, after) in enumerate([("map", "middle"), ("middle", "fine")]):
        (a, b), (h, w) = SIZES[before], SIZES[after]
        stage = build("CascadeStage", coarse_tokens=K, n_tokens=K, coarse_height=a, coarse_width=b, height=h, width=w)
        known = [identity(checkpoint.load(f"{name}.pth")) for name in (after, before)]
        checkpoint.save(stage, f"stage{k}.pth", dict(zip(["tokenizer", "coarse_tokenizer"], known, strict=True)))
        paths = {"lr_codebook_path": f"{before}.pth", "hr_codebook_path": f"{after}.pth"}
        stages.append({"model_path": f"stage{k}.pth"} | paths)
    return stages


def test_a_cascade_of_them_has_grids_in_grids(here, stages):
    """In each finer one the coarser one is found again; its last picture is the fine tokenizer's."""
    cascade, x = Cascade(stages), noise(2, *SIZE, 3)
    grids = cascade.encode(x)
    assert [tuple(grid.shape[1:]) for grid in grids] == list(SIZES.values())
    assert torch.equal(grids[2][:, 1::2, 1::3], grids[1]) and torch.equal(grids[1][:, 1::2, 1::2], grids[0])
    assert torch.equal(cascade.decode(grids)[-1], here.decode_index(grids[-1]))
    sampled = cascade.generate(grids[0], torch.Generator().manual_seed(0))
    assert [grid.shape for grid in sampled] == [grid.shape for grid in grids]


def test_the_finest_codebook_is_enough_to_name(stages):
    short = [{"model_path": "stage0.pth"}, {"model_path": "stage1.pth", "hr_codebook_path": "fine.pth"}]
    cascades, x = [Cascade(one) for one in (stages, short)], noise(2, *SIZE, 3)
    assert [[identity(book) for book in cascade.codebooks] for cascade in cascades] == [[
        identity(checkpoint.load(f"{name}.pth")) for name in SIZES]] * 2  # fmt: skip
    for a, b in zip(*(cascade.decode(cascade.encode(x)) for cascade in cascades), strict=True):
        assert torch.equal(a, b)
    payloads = [CascadeCompressor(cascade).compress(x[0]) for cascade in cascades]
    assert payloads[0] == payloads[1]


def test_another_encoder_of_the_same_codes_does_as_well(here, stages):
    """Stages trained on the grids of one go on with those of the other, and files are read by either."""
    other = checkpoint.load("fine.pth")
    with torch.no_grad():
        other.encoder.out.bias += 1
    checkpoint.save(other, "other.pth", {CODES_OF: codes_of(here)})
    short = [[{"model_path": "stage0.pth"}, {"model_path": "stage1.pth", "hr_codebook_path": path}]
             for path in ("fine.pth", "other.pth")]  # fmt: skip
    one, two = map(Cascade, short)
    x = noise(2, *SIZE, 3)
    assert not torch.equal(one.encode(x)[-1], two.encode(x)[-1])
    assert [fingerprint(book) for book in one.codebooks] == [fingerprint(book) for book in two.codebooks]
    data = CascadeCompressor(two).compress(x[0])
    assert torch.equal(CascadeCompressor(one).decompress(data), CascadeCompressor(two).decompress(data))


def test_a_class_of_ones_own_is_known_by_its_name(here):
    class Mine(SubsampledTokenizer):
        pass

    assert fingerprint(Mine.part_of(here, 2, 3)) != fingerprint(coarser(here, 2, 3))


def test_stages_that_know_the_weights_alone_go_on_with_these(here, stages):
    part = coarser(here, 2, 3)
    early = digest(part, part.state_dict(), torch.float16).hex()[:16]
    stage = checkpoint.load("stage1.pth")
    checkpoint.save(stage, "stage1.pth", stage.meta | {"coarse_tokenizer": early})
    Cascade(stages)


def test_the_condition_may_have_a_codebook_of_its_own(stages, command):
    scene = build("VQVAE", seed=3).eval()
    checkpoint.save(scene, "scene.pth")
    sizes = {"coarse_height": 1, "coarse_width": 1, "height": 2, "width": 2}
    stage = build("CascadeStage", coarse_tokens=scene.n_tokens, n_tokens=K, **sizes)
    checkpoint.save(stage, "stage0.pth", {"tokenizer": identity(checkpoint.load("middle.pth"))})
    stages = [{"model_path": "stage0.pth", "lr_codebook_path": "scene.pth"},
              {"model_path": "stage1.pth", "hr_codebook_path": "fine.pth"}]  # fmt: skip
    Path("cascade.json").write_text(json.dumps({"stages": stages}))
    cascade, x = Cascade(stages), noise(2, *SIZE, 3)
    grids = cascade.encode(x)
    assert torch.equal(grids[0], scene.encode_index(x)) and torch.equal(grids[2][:, 1::2, 1::3], grids[1])
    done = command("generation", "cascade", "--config", "cascade.json", "--num_images", 2, "--out_dir", "out")
    assert done.returncode == 0 and Path("out/1_stage1.png").is_file(), done.stderr
    assert model_files("fine.pth", "cascade.json") == {Path(f"{n}.pth") for n in ("fine", "scene", "stage0", "stage1")}


def test_what_does_not_fit_the_finest_codebook_is_refused(stages):
    short = [{"model_path": "stage0.pth"}, {"model_path": "stage1.pth", "hr_codebook_path": "fine.pth"}]
    other = build("BSQPatchAutoEncoder", seed=9).eval()
    checkpoint.save(other, "other.pth")
    with pytest.raises(ValueError, match="stage0.pth was trained on the grids of another codebook than lr_codebook_path 1x1 "
                                         "tokens of other.pth"):  # fmt: skip
        Cascade([short[0], short[1] | {"hr_codebook_path": "other.pth"}])
    with pytest.raises(ValueError, match="stage1.pth holds a CascadeStage, but a tokenizer is needed"):
        Cascade([short[0], short[1] | {"hr_codebook_path": "stage1.pth"}])
    with pytest.raises(ValueError, match="Stage 0: fine.pth holds a BSQPatchAutoEncoder, but a CascadeStage is needed"):
        Cascade([{"model_path": "fine.pth"}, short[1]])
    with pytest.raises(ValueError, match="grids of 3x4 are no parts of those of 4x6; name all by"):
        parts(other, "fine.pth", [(3, 4), (4, 6)])
    with pytest.raises(ValueError, match="Stage 0 has no lr_codebook_path"):
        Cascade([short[0] | {"hr_codebook_path": "middle.pth"}, short[1]])
