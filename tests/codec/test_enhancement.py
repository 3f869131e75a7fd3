"""The second grid: what the tokens leave of an image, quantized, coded, in files and on the command line."""

import functools
import io
import json
import math

import numpy as np
import pytest
import torch
from conftest import SIZE, K, build, run, sentence
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.mutations import mutate
from homework import Compressor, EnhancedCompressor, EnhancementLayer, generation, pillow
from homework.codec import archive, dial, format
from homework.codec.enhanced_compressor import MOST, step_at
from homework.codec.enhancement import MAGNITUDES, SLICES, STEPS, Context, around, lmbda_of, quality_of, size_of
from homework.codec.loading import NONE, compressor_of
from homework.codec.range_coder import TOTAL, RangeDecoder, RangeEncoder, finish
from homework.core import checkpoint
from homework.core.fingerprint import identity
from homework.datasets.images import to_float, to_uint8

N = 12  # components
QUALITIES = [63, 80, 100]


def smooth(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """(H,W,3) in [-0.5,0.5]: noise, most of it coarse."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 2 + size[0] // 6, 2 + size[1] // 6, generator=draw)
    x = torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0].permute(1, 2, 0)  # (1,3,H,W) -> (H,W,3)
    return (0.8 * x + 0.2 * torch.rand(*size, 3, generator=draw) - 0.5).clamp(-0.5, 0.5)


@pytest.fixture(scope="module")
def models():
    """A tokenizer, a prior, and the enhancement layer of the tokenizer."""
    tokenizer, prior = build("BSQPatchAutoEncoder").eval(), build("AutoregressiveModel").eval()
    x = torch.stack([smooth(SIZE, 100 + i) for i in range(24)])
    with torch.no_grad():
        tokens = tokenizer.encode_index(x)
        residuals = x - tokenizer.decode_index(tokens)
    layer = EnhancementLayer(K, 5, N)
    layer.fit(residuals, tokens.numpy(), rounds=2)
    layer.meta = {"tokenizer": identity(tokenizer)}
    return tokenizer, prior, layer


@pytest.fixture
def here(models, tmp_path, monkeypatch):
    """A folder with the models' checkpoints and some images."""
    tokenizer, prior, layer = models
    checkpoint.save(tokenizer, tmp_path / "tokenizer.pth")
    checkpoint.save(prior, tmp_path / "prior.pth", {"tokenizer": identity(tokenizer)})
    checkpoint.save(layer, tmp_path / "layer.pth", layer.meta)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        pixels = to_uint8(smooth((SIZE[0] + i, SIZE[1]), i)).numpy()
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


MODELS = "tokenizer.pth", "prior.pth"


# --- the layer ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(1, STEPS), st.integers(0, 99),
       st.sampled_from([0, 1, MAGNITUDES - 1]))  # fmt: skip
def test_any_numbers_come_back(models, B, T, h, w, step, seed, most):
    layer, draw = models[2], np.random.default_rng(seed)
    tokens, q = draw.integers(0, K, (B, T, h, w)), draw.integers(-most, most + 1, (B, T, h, w, N))
    encoders = [RangeEncoder() for _ in range(B)]
    layer.encode(encoders, q, tokens, step)
    payloads = [finish(encoder) for encoder in encoders]
    words = [np.frombuffer(data + bytes(-len(data) % 4 + 8), ">u4").astype(np.uint32) for data in payloads]
    assert np.array_equal(layer.decode([RangeDecoder(w) for w in words], tokens, step), q)
    bits = layer.bits(q.reshape(-1, h, w, N), tokens.reshape(-1, h, w), step).reshape(B, -1).sum(axis=1)
    for data, n in zip(payloads, bits, strict=True):
        assert abs(8 * len(data) - n) <= 40 + 0.001 * n
    alone = RangeEncoder()
    layer.encode([alone], q[:1], tokens[:1], step)
    assert finish(alone) == payloads[0], "an image's bytes depend on the batch"


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_what_is_expected_depends_on_nothing_later(models, h, w, seed):
    layer, draw = models[2], np.random.default_rng(seed)
    tokens, q = draw.integers(0, K, (1, h, w)), draw.integers(0, 5, (1, h, w, N))
    order = list(Context(layer.tables[3], tokens, N).order())
    k, coset = order[draw.integers(len(order))]
    known = Context(layer.tables[3], tokens, N)
    for at in known.order():
        if at == (k, coset):
            break
        known.put(*at, q[(..., *SLICES[at[1]], at[0])])
    (levels,) = [level for *at, level in layer.walk(q, tokens, 4) if tuple(at) == (k, coset)]
    assert np.array_equal(known.levels(k, coset), levels)


@given(st.integers(1, STEPS), st.integers(0, 99))
def test_numbers_are_drawn_as_often_as_their_frequencies_say(models, step, seed):
    """What they take is the entropy of what they were drawn from, within five standard deviations; signs are even."""
    layer, tokens = models[2], np.random.default_rng(seed).integers(0, K, (64, 5, 4))
    q = layer.generate(tokens, step, torch.Generator().manual_seed(seed))
    assert np.array_equal(q, layer.generate(tokens, step, torch.Generator().manual_seed(seed)))
    table = layer.tables[step - 1]
    p = (table.weights.astype(float) + 1) / TOTAL
    surprise = -np.log2(p)
    mean = (p * surprise).sum(axis=1)
    variance = (p * surprise**2).sum(axis=1) - mean**2
    excess, spread = 0.0, 0.0
    for k, coset, level in layer.walk(np.abs(q), tokens, step):
        excess += (surprise[level, np.abs(q[(..., *SLICES[coset], k)])] - mean[level]).sum()
        spread += variance[level].sum()
    assert abs(excess) < 5 * math.sqrt(spread)
    n = np.count_nonzero(q)
    assert abs((q > 0).sum() - n / 2) <= 5 * math.sqrt(n) / 2


def test_neighbours_are_summed():
    z = np.arange(12).reshape(1, 3, 4)
    edges, corners = around(z)
    assert (edges[0, 1, 1], corners[0, 1, 1]) == (1 + 9 + 4 + 6, 0 + 2 + 8 + 10)
    assert (edges[0, 0, 0], corners[0, 0, 0]) == (1 + 4, 5)


def test_tables_are_frequencies_and_the_basis_is_orthonormal(models):
    layer = models[2]
    assert (layer.frequencies >= 0).all() and (layer.frequencies.sum(dim=-1) == TOTAL - MAGNITUDES).all()
    assert torch.allclose(layer.basis @ layer.basis.T, torch.eye(N), atol=1e-5)
    assert (layer.points.diff(dim=-1) >= 0).all() and (layer.points[:, 0] == 0).all()
    sizes = [size_of(step) for step in range(1, STEPS + 1)]
    assert sizes == sorted(sizes, reverse=True) and math.isclose(sizes[-1], 0.105)


def test_a_finer_step_leaves_less_and_takes_more(models):
    tokenizer, _, layer = models
    x = torch.stack([smooth(SIZE, i) for i in range(4)])
    tokens = tokenizer.encode_index(x)
    residual = (x - tokenizer.decode_index(tokens)).detach()
    left, bits = [float(residual.square().mean())], [0.0]
    for step in range(1, STEPS + 1):
        q = layer.quantize(layer.coefficients(residual), tokens.numpy(), step, lmbda_of(step))
        assert np.abs(q).max() < MAGNITUDES
        left.append(float((residual - layer.residual(q, step)).square().mean()))
        bits.append(float(layer.bits(q, tokens.numpy(), step).sum()))
    assert left == sorted(left, reverse=True) and bits == sorted(bits)
    assert left[-1] < 0.35 * left[0], "it has twelve of the 75 components of a patch"


def test_dear_bits_are_not_spent(models):
    tokenizer, _, layer = models
    x = smooth(SIZE)[None]
    tokens = tokenizer.encode_index(x).numpy()
    c = layer.coefficients((x - tokenizer.decode_index(torch.from_numpy(tokens))).detach())
    taken = [layer.bits(layer.quantize(c, tokens, 5, lmbda), tokens, 5).sum() for lmbda in (1e-9, lmbda_of(5), 0.1, 100.0)]
    assert taken == sorted(taken, reverse=True) and taken[0] > taken[1] > taken[2]


@pytest.mark.parametrize("options", [(1, 5, 3), (16, 0, 3), (16, 5, 76), (16, 5, 0)])
def test_sizes_are_checked(options):
    wrong = {1: "n_tokens is 1", 0: f"{'patch_size' if options[1] == 0 else 'n_components'} is 0", 76: "n_components is 76"}
    with pytest.raises(ValueError, match=next(text for value, text in wrong.items() if value in options)):
        EnhancementLayer(*options)


# --- files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effort", [0, 1])
@pytest.mark.parametrize("quality", QUALITIES)
def test_an_image_comes_back_as_its_grids_decoded(models, effort, quality):
    tokenizer, _, layer = models
    compressor = EnhancedCompressor(*models, effort=effort, quality=quality)
    images = [smooth(size, i) for i, size in enumerate([SIZE, SIZE, (3, 61), (47, 100), (1, 1)])]
    data = compressor.compress_batch(images)
    assert data == [compressor.compress(x) for x in images]
    for x, x_hat, grid, file in zip(images, compressor.decompress_batch(data), compressor.decompress_tokens(data), data,
                                    strict=True):  # fmt: skip
        tokens, step, q = grid[..., 0], grid[0, 0, 1], grid[..., 2:]
        version = format.ENHANCED_FORMAT if step else format.FORMAT
        assert file[2] == version + 16 * (15 - version) and archive.Reader(io.BytesIO(file)).version == version
        assert step in (0, step_at(quality))
        plain = tokenizer.decode_index(torch.from_numpy(tokens))
        whole = plain + layer.residual(q[None], step)[0] if step else plain
        assert torch.allclose(x_hat, whole[: x.shape[0], : x.shape[1]], atol=1e-5)
        assert compressor.compress_tokens(grid[None], (x.shape[0], x.shape[1])) == [file]
    assert [grid[0, 0, 1] > 0 for grid in compressor.decompress_tokens(data)][:4] == [True] * 4


@pytest.mark.parametrize("quality", QUALITIES)
def test_the_second_grid_pays(models, quality):
    """J = D + lambda R with it is never above J without."""
    compressor = EnhancedCompressor(*models, effort=1, quality=quality)
    for seed in range(6):
        x = smooth(SIZE, seed) if seed < 5 else torch.zeros(*SIZE, 3)
        costs = []
        for wide in compressor, Compressor(*models[:2], effort=1, quality=min(quality, MOST)):
            data = wide.compress(x)
            D = float((wide.decompress(data) - x).square().mean())
            costs.append(D + dial.lmbda_at(quality) * 8 * len(data) / x[..., 0].numel())
        assert costs[0] <= costs[1] + dial.lmbda_at(quality) * 8 * 10 / x[..., 0].numel()  # but for its own header


def test_at_low_qualities_files_are_as_without(models):
    for options in {"effort": 0}, {"effort": 1, "quality": 20}, {"effort": 1, "quality": 62}:
        enhanced, plain = EnhancedCompressor(*models, **options), Compressor(*models[:2], **options)
        x = smooth((23, 37))
        assert enhanced.compress(x) == plain.compress(x)
        assert torch.equal(enhanced.decompress(plain.compress(x)), plain.decompress(plain.compress(x)))


def test_a_preview_is_the_tokens_decoded(models):
    enhanced, plain = EnhancedCompressor(*models, quality=90), Compressor(*models[:2])
    x = smooth((23, 37))
    data = enhanced.compress(x)
    (grid,) = enhanced.decompress_tokens([data])
    ((_, first),) = [*plain.read_images([(archive.Reader(io.BytesIO(data), preview=True), 0)])][0].items()
    assert torch.equal(first, plain.to_images([grid[..., 0]], [(23, 37)])[0])
    with pytest.raises(ValueError, match="enhancement layer whose fingerprint begins with .{4}; name it by --enhancement"):
        plain.decompress(data)
    other = EnhancementLayer(K, 5, N)
    other.meta = models[2].meta
    with pytest.raises(ValueError, match=r"begins with .{4}, not .{4}; name it"):
        EnhancedCompressor(*models[:2], other).decompress(data)


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_damage_is_found(models, seed):
    compressor = EnhancedCompressor(*models, quality=85)
    x = smooth((10, 15))
    data = compressor.compress(x)
    changed = mutate(data, np.random.default_rng(seed))
    try:
        found = compressor.decompress(changed)
    except ValueError as error:
        assert len(str(error)) < 1000
    else:
        assert changed == data or torch.equal(found, compressor.decompress(data))


def test_second_grids_that_are_none_are_refused(models):
    compressor = EnhancedCompressor(*models, quality=85)
    (grid,) = compressor.decompress_tokens([compressor.compress(smooth(SIZE))])
    for change in {(0, 0, 1): 3}, {(1, 1, 4): MAGNITUDES}, {(..., 1): STEPS + 1}, {(..., 1): 0}, {(0, 0, 0): K}:
        wrong = grid.copy()
        for where, value in change.items():
            wrong[where] = value
        with pytest.raises(ValueError, match="second grid has one step|Tokens must be"):
            compressor.compress_tokens(wrong[None], SIZE)
    with pytest.raises(ValueError, match=r"are not \(B,h,w,14\)"):
        compressor.compress_tokens(grid[None, ..., :-1], SIZE)
    assert compressor.compress_tokens(grid[None, ..., 0], SIZE), "tokens alone are an image without a second grid"


def test_what_does_not_go_together_is_refused(models):
    tokenizer, prior, layer = models
    with pytest.raises(ValueError, match="made for another tokenizer"):
        EnhancedCompressor(build("BSQPatchAutoEncoder", seed=1), prior, layer)
    with pytest.raises(ValueError, match="needs a prior on integers"):
        EnhancedCompressor(tokenizer, build("GatedPixelCNN"), layer)
    with pytest.raises(ValueError, match="With effort 0"):
        EnhancedCompressor(*models, effort=0, quality=30)
    assert EnhancedCompressor(*models, effort=0, quality=90).at(70).models.enhanced


def test_a_target_is_reached_on_either_side(models):
    x = smooth(SIZE)
    made = {q: EnhancedCompressor(*models, effort=1, quality=q) for q in (40, 90)}
    sizes = {q: len(compressor.compress(x)) for q, compressor in made.items()}
    fine = made[90].psnr([x], made[90].decompress_tokens([made[90].compress(x)]))[0] - 0.2
    for effort, kind, value in (1, "psnr", fine), (1, "bytes", sizes[90]), (1, "bytes", sizes[40] + 8), (0, "psnr", fine):
        compressor = EnhancedCompressor(*models, effort=effort, target=dial.Target(kind, value))
        data = compressor.compress(x)
        psnr = compressor.psnr([x], compressor.decompress_tokens([data]))[0]
        assert len(data) <= value if kind == "bytes" else psnr >= value


@pytest.mark.parametrize("effort", [0, 1])
def test_a_target_can_be_the_smallest_file_there_is(models, effort):
    """Without a second grid it is as without a layer, and so it is read."""
    x = smooth(SIZE)
    made = {q: EnhancedCompressor(*models, effort=1, quality=q).compress(x) for q in (1, 50)}
    if effort == 0:
        made = {50: EnhancedCompressor(*models, effort=0).compress(x)}
    smallest = min(made.values(), key=len)
    compressor = EnhancedCompressor(*models, effort=effort, target=dial.Target("bytes", len(smallest)))
    data = compressor.compress(x)
    assert len(data) <= len(smallest) and data[2] % 16 == format.FORMAT
    assert torch.equal(compressor.decompress(data), Compressor(*models[:2]).decompress(data))


def test_the_tokenizers_own_layer_is_found(models, here, monkeypatch):
    monkeypatch.setattr(checkpoint, "PRETRAINED", here)
    monkeypatch.setattr(checkpoint, "PACKAGE", here / "nowhere")
    assert type(compressor_of(*models[:2])) is Compressor
    (here / "layer.pth").rename(here / "EnhancementLayer.pth")
    assert type(compressor_of(*models[:2])) is EnhancedCompressor
    assert type(compressor_of(*models[:2], enhancement=NONE)) is Compressor
    assert type(compressor_of(build("BSQPatchAutoEncoder", seed=1), models[1])) is Compressor, "it is of another tokenizer"
    assert type(compressor_of(models[0], build("GatedPixelCNN"))) is Compressor, "that is not on integers"


# --- commands -------------------------------------------------------------------------------------------------------------


def test_a_folder_goes_to_a_file_and_back(here, command):
    options = "--enhancement", "layer.pth"
    done = command("compress", *MODELS, "photos", "all.hwa", *options, "--quality", 90, "--effort", 1, "--verify")
    assert done.returncode == 0 and "verified" in done.stdout, done.stderr
    facts = json.loads(command("compress", "info", "all.hwa", "--json").stdout)
    layer = json.loads(command("compress", "info", "layer.pth", "--json").stdout)
    assert (facts["format"], facts["enhancement"], layer["role"]) == (7, layer["fingerprint"], "enhancement layer")
    assert f"enhancement layer {layer['fingerprint']}" in command("compress", "info", "all.hwa").stdout
    assert command("compress", "decompress", *MODELS, "all.hwa", "again", *options).returncode == 0
    assert command("compress", "decompress", *MODELS, "all.hwa", "first", "--preview").returncode == 0
    errors = {}
    for folder in "again", "first":
        pairs = [[np.array(Image.open(here / name / f"{i}.png"), float) for name in ("photos", folder)] for i in range(3)]
        errors[folder] = np.mean([np.square(x - y).mean() for x, y in pairs])
    assert errors["again"] < 0.5 * errors["first"]
    without = command("compress", "decompress", *MODELS, "all.hwa", "none", "--enhancement", "none")
    assert "enhancement layer whose fingerprint" in sentence(without)
    Image.new("RGB", SIZE, "olive").save("more.png")
    options = *options, "--append", "--effort", 0
    assert "not an archive of format 5" in sentence(command("compress", *MODELS, "more.png", "all.hwa", *options))
    assert command("compress", *MODELS, "more.png", "all.hwa", *options, "--quality", 90).returncode == 0
    assert len(json.loads(command("compress", "info", "all.hwa", "--json").stdout)["images"]) == 4


def test_another_process_decodes_the_same(here, models):
    compressor = EnhancedCompressor(*models, quality=75)
    x = to_float(torch.from_numpy(np.array(Image.open("photos/1.png"))))
    (here / "one.hwi").write_bytes(compressor.compress(x))
    options = "one.hwi", "one.png", "--enhancement", "layer.pth"
    done = run("-m", "homework.compress", "decompress", *MODELS, *options, cwd=here)
    assert done.returncode == 0, done.stderr
    own = to_uint8(compressor.decompress((here / "one.hwi").read_bytes())).numpy()
    assert np.abs(np.array(Image.open("one.png")).astype(int) - own).max() <= 1


def test_a_layer_is_fitted_to_searched_images(here, command):
    for split in "train", "valid":
        done = command("tokenize", "tokenizer.pth", f"searched/tokenized_{split}.pth", "photos", "--image_size", "20x30")
        assert done.returncode == 0, done.stderr
    options = "searched", "made.pth", "--n_components", 6, "--image_size", "20x30"
    done = command("enhancement", "tokenizer.pth", *options)
    assert done.returncode == 0 and f"quality {quality_of(STEPS)}" in done.stdout, done.stderr
    done = command("compress", *MODELS, "photos", "all.hwa", "--enhancement", "made.pth", "--quality", 80, "--effort", 0)
    assert done.returncode == 0, done.stderr
    other = build("BSQPatchAutoEncoder", seed=1)
    checkpoint.save(other, "other.pth")
    assert "tokens of another tokenizer" in sentence(command("enhancement", "other.pth", *options))
    assert "No gradients train an EnhancementLayer" in sentence(command("train", "EnhancementLayer"))


def test_pillow_reads_a_second_grid_also_where_its_pair_is_named_without_a_layer(models, monkeypatch):
    enhanced = EnhancedCompressor(*models, effort=0, quality=90)
    monkeypatch.setattr(pillow, "_named", [Compressor(*models[:2], effort=0)])
    monkeypatch.setattr(pillow, "_pretrained", lambda: enhanced)
    data = enhanced.compress(smooth(SIZE))
    assert np.array_equal(Image.open(io.BytesIO(data)), to_uint8(enhanced.decompress(data)).numpy())


@pytest.mark.parametrize("wrong, message", [("prior.pth", "EnhancementLayer"), ("nothing.pth", "homework.enhancement.")])
def test_a_wrong_layer_ends_in_one_sentence(here, command, wrong, message):
    assert message in sentence(command("compress", *MODELS, "photos", "all.hwa", "--enhancement", wrong))
    assert not (here / "all.hwa").exists()


@pytest.mark.parametrize("target", [("--target_psnr", 10), ("--target_psnr", 19), ("--target_bytes", 400)])
def test_without_a_search_a_mean_is_reached_too(here, command, target):
    options = *target, "--on_average", "--effort", 0, "--enhancement", "layer.pth"
    done = command("compress", *MODELS, "photos", "all.hwa", *options)
    assert done.returncode == 0, done.stderr


def test_a_preview_needs_no_layer(here, command):
    done = command("compress", "decompress", *MODELS, "all.hwa", "out", "--preview", "--enhancement", "layer.pth")
    assert "leave --enhancement or --preview out" in sentence(done)


def test_an_unreadable_layer_of_ones_own_is_left_out(models, here, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "PRETRAINED", here / "nowhere")
    monkeypatch.setattr(checkpoint, "PACKAGE", here / "nowhere")
    (here / "homework").mkdir()
    (here / "homework" / "EnhancementLayer.pth").write_bytes(b"text")
    assert type(compressor_of(*models[:2])) is Compressor
    assert "EnhancementLayer.pth is left out: " in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["n_tokens", "patch_size", "meta", "basis", "frequencies", "edges"])
def test_a_layer_that_does_not_fit_is_refused(models, wrong):
    tokenizer, prior, layer = models
    options, damaged = {"n_tokens": K, "patch_size": 5, "n_components": N}, wrong in ("basis", "frequencies", "edges")
    other = EnhancementLayer(**options | {wrong: 4} if wrong in options else options)
    other.meta = {"tokenizer": 5} if wrong == "meta" else dict(layer.meta)
    if damaged:
        getattr(other, wrong)[0] = math.nan if wrong == "basis" else 10**7
    with pytest.raises(ValueError, match="is damaged" if damaged else "another tokenizer"):
        EnhancedCompressor(tokenizer, prior, other)


def test_the_damaged_file_is_named(models):
    compressor = EnhancedCompressor(*models, quality=85)
    good, size = compressor.compress(smooth(SIZE)), SIZE
    first, second = archive.Reader(io.BytesIO(good)).parts(0)
    crc = archive.Reader(io.BytesIO(good)).crcs[0]
    for tail in second[:1] + b"abc", second[:-1] + b"x", b"\x09" + second[1:]:
        bad = format.image_file(compressor.models, size, format.with_enhancement(first, tail), crc)
        with pytest.raises(ValueError, match="File 2 is damaged: its second grid is not as it was written"):
            compressor.decompress_batch([good, good, bad])
    padded = bytes([128 + len(first) % 128, len(first) // 128 + 128, 0]) + first + second
    with pytest.raises(ValueError, match="the length of its first grid is wrong"):
        compressor.decompress(format.image_file(compressor.models, size, padded, crc))


def test_numbers_of_any_kind(models):
    compressor = EnhancedCompressor(*models, quality=85)
    x = smooth(SIZE).requires_grad_()
    (grid,) = compressor.decompress_tokens([compressor.compress(x)])
    small = grid.astype(np.int8)
    assert compressor.compress_tokens(small[None], SIZE) == [compressor.compress(x)]
    small[2, 2, 5] = -128
    with pytest.raises(ValueError, match="numbers below 32"):
        compressor.compress_tokens(small[None], SIZE)
    assert compressor.compress_tokens(grid[None][:0], SIZE) == []
    first = [c.to_images([grid[..., 0]], [SIZE])[0] for c in (compressor, Compressor(*models[:2]))]
    assert torch.equal(*first)
    assert [step_at(q) for q in (1, 62.4, 62.5, 67.4, 67.5, 72.5, 97.5, 100)] == [0, 0, 1, 1, 2, 3, 8, 8]


# --- samples --------------------------------------------------------------------------------------------------------------


def test_samples_of_a_high_quality_have_a_second_grid(here, models, capfd):
    tokenizer, prior, layer = models
    call = functools.partial(generation.generate, *MODELS, 3, seed=4, batch_size=2, image_size=f"{SIZE[0]}x{SIZE[1]}")
    with pytest.raises(ValueError, match="quality of 80 has a second grid, but this tokenizer has no enhancement layer"):
        call("none", quality=80)
    (here / "homework").mkdir()
    checkpoint.save(layer, here / "homework" / "EnhancementLayer.pth", layer.meta)
    for quality in (50, 62, 80, 100):
        call(str(quality), quality=quality)
    names = [f"generation_{i}.png" for i in range(3)]
    found = {folder: [(here / folder / name).read_bytes() for name in names] for folder in ("50", "62", "80", "100")}
    assert found["50"] == found["62"] and len({*found["50"], *found["80"], *found["100"]}) == 9
    draw = torch.Generator().manual_seed(4)
    with torch.inference_mode():
        grids = prior.generate(2, *(side // 5 for side in SIZE), "cpu", generator=draw)
        q = layer.generate(grids.numpy(), step_at(80), draw)
        expected = to_uint8(tokenizer.decode_index(grids) + layer.residual(q, step_at(80)))
    for i, image in enumerate(expected):
        assert np.array_equal(np.asarray(Image.open(here / "80" / f"generation_{i}.png")), image.numpy())
    capfd.readouterr()
