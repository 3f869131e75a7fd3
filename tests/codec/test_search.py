"""The search for tokens: J never rises, whatever the models; scores are the slopes that they claim to be."""

import itertools

import numpy as np
import pytest
import torch
from conftest import K, build, run
from hypothesis import given, settings
from hypothesis import strategies as st

from homework.codec import image_files, tiles
from homework.codec import search as module
from homework.codec.compressor import Compressor
from homework.codec.dial import Target, aim, lmbda_at, quality_at, sharpness_at, target
from homework.codec.search import Objective, search, search_rounds, spread_out
from homework.core import checkpoint
from homework.datasets.images import to_float, to_uint8
from homework.evaluation.pictures import save_picture
from homework.priors.base import Prior

TOKENIZERS = ("BSQPatchAutoEncoder", "VQPatchAutoEncoder", "SOM")
PRIORS = ("AutoregressiveModel", "GatedPixelCNN")


def pair(tokenizer: str, prior: str, seed: int = 0) -> tuple:
    """Untrained models whose decoder and prior nevertheless say something."""
    models = build(tokenizer, seed).eval(), build(prior, seed).eval()
    with torch.no_grad():
        for p in (*models[0].parameters(), *models[1].parameters()):
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
    return models


def image(H: int, W: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(H, W, 3, generator=torch.Generator().manual_seed(seed)) - 0.5


@torch.inference_mode()
def true_cost(tokenizer, prior, x, lmbda, grid) -> float:
    """J by its definition, with the prior as sharp as the search takes it."""
    (H, W), bits, sharpness = x.shape[:2], 0.0, sharpness_at(lmbda) if lmbda else 1.0
    mse = (tokenizer.decode_index(grid)[:H, :W] - x).double().square().mean()
    for (a, b), corners in tiles.tiles(tuple(grid.shape), prior.grid_size):
        for i, j in corners:
            tile = grid[i : i + a, j : j + b]
            log_p = (sharpness * prior(tile[None])[0][0].double()).log_softmax(dim=-1)
            bits -= log_p.gather(-1, tile[..., None]).sum().item() / np.log(2)
    return mse.item() + lmbda * bits / (H * W)


@settings(max_examples=25)
@given(tokenizer=st.sampled_from(TOKENIZERS), prior=st.sampled_from(PRIORS), H=st.integers(1, 48), W=st.integers(1, 67),
       quality=st.floats(1, 100), effort=st.integers(0, 5), seed=st.integers(0, 9))  # fmt: skip
def test_the_cost_never_rises(tokenizer, prior, H, W, quality, effort, seed):
    models, x, lmbda = pair(tokenizer, prior, seed), image(H, W, seed), lmbda_at(quality)
    first = models[0].encode_index(x)
    grid = search(*models, x, lmbda, effort)
    assert grid.shape == first.shape and grid.dtype == torch.int64 and 0 <= grid.min() <= grid.max() < K
    before, after = (true_cost(*models, x, lmbda, tokens) for tokens in (first, grid))
    assert after < before if (grid != first).any() else after == before
    assert effort or torch.equal(grid, first)
    assert torch.equal(search(*models, x, lmbda, effort), grid)  # and again the same
    rounds = [*search_rounds(*models, x, lmbda, effort)]
    assert torch.equal(rounds[0], first) and torch.equal(rounds[-1], grid) and not torch.is_inference_mode_enabled()
    costs = [true_cost(*models, x, lmbda, tokens) for tokens in rounds]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("tokenizer", ["BSQPatchAutoEncoder", "SOM"])
def test_large_images_are_searched_in_blocks_of_tiles(tokenizer, monkeypatch):
    """Each block lowers the J of the entire image, of which it sees only a part."""
    models, x, lmbda = pair(tokenizer, "AutoregressiveModel"), image(93, 131), 0.02
    blocks, real = [], module.improve

    def improve(objective, tokens, rounds):
        found = [tokens, *real(objective, tokens, rounds)][-1]
        blocks.append(float((objective.cost(found) - objective.cost(tokens)).sum()))
        yield found

    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 48 * 25)
    monkeypatch.setattr(module, "improve", improve)
    grid = search(*models, x, lmbda, 2)
    change = true_cost(*models, x, lmbda, grid) - true_cost(*models, x, lmbda, models[0].encode_index(x))
    assert len(blocks) > 8 and change < 0 and abs(change - sum(blocks)) < 1e-3 * abs(change)


@pytest.mark.parametrize("sides", [(20, 30), (25, 60)])
def test_effort_9_ends_where_it_starts(sides, monkeypatch):
    """Also in an image of several blocks, each of which is searched again after its neighbours have changed."""
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 48 * 25)
    models, x = pair("BSQPatchAutoEncoder", "AutoregressiveModel"), image(*sides)
    grid = search(*models, x, 0.01, 9)
    for effort in 1, 5, 9:
        assert torch.equal(search(*models, x, 0.01, effort, tokens=grid), grid)


def test_effort_9_leaves_no_token_that_would_help(monkeypatch):
    """Each of the others is tried at each position, if there are no more than CANDIDATES."""
    models, x = pair("BSQPatchAutoEncoder", "AutoregressiveModel"), image(20, 30)
    grid = search(*models, x, 0.01, 9)
    all_of_it = slice(0, grid.shape[0]), slice(0, grid.shape[1])
    objective = Objective(*models, x, grid, all_of_it, tuple(grid.shape), 0.01)
    J = objective.cost(grid)
    assert K <= module.CANDIDATES
    for i, j, token in itertools.product(*map(range, (*grid.shape, K))):
        other = grid.clone()
        other[i, j] = token
        change = objective.cost(other) - J
        assert module.around(change, module.FAR)[i, j] > -1e-7 or change.sum() > -1e-7
    monkeypatch.setattr(module, "CANDIDATES", 2)
    assert objective.cost(grid).sum() < objective.cost(search(*models, x, 0.01, 9)).sum()


def test_more_effort_costs_less_and_is_worth_it():
    models, costs = pair("BSQPatchAutoEncoder", "AutoregressiveModel"), np.zeros(4)
    for seed in range(2):
        x = image(20, 30, seed)
        costs += [true_cost(*models, x, 0.01, search(*models, x, 0.01, effort)) for effort in (0, 1, 5, 9)]
    assert costs[0] > costs[1] > costs[2] >= costs[3]


def test_quality_is_a_dial():
    models, found = pair("BSQPatchAutoEncoder", "AutoregressiveModel"), {}
    for quality in 1, 30, 99:
        x = image(20, 30)
        grid = search(*models, x, lmbda_at(quality), 5)
        found[quality] = true_cost(*models, x, 0, grid), models[1].bits(grid[None]).sum().item()
    errors, bits = zip(*found.values(), strict=True)
    assert errors[0] > errors[2] and bits[0] < bits[1] < bits[2]
    assert lmbda_at(60) == lmbda_at(50) / 2 and lmbda_at(5) == lmbda_at(15) * 2
    assert lmbda_at(1) == pytest.approx(lmbda_at(5) * 2**2.4) and lmbda_at(2) < lmbda_at(1)


@pytest.mark.parametrize("quality", [0, 101, float("nan"), True, "50"])
def test_a_wrong_quality(quality):
    with pytest.raises(ValueError, match="quality is .* from 1 to 100"):
        lmbda_at(quality)


# --- scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"neighbours": 1, "window": 5}, {"code_dim": 3, "position": "none"}])
def test_replacement_bits_are_the_slope_by_one_hot_tokens(options):
    prior = build("AutoregressiveModel", **options).double().eval()
    if options.get("code_dim"):
        prior.set_codes(torch.randn(K, 3, generator=torch.Generator().manual_seed(1)).double())
    tokens = torch.randint(K, (2, 3, 5), generator=torch.Generator().manual_seed(2))
    B, h, w = tokens.shape
    padded, around = prior._pad(tokens), prior._lookup(h, w, tokens.device)[1]
    table = prior.table().detach().view(around.shape[1], K + 1, -1)
    onehot = torch.nn.functional.one_hot(padded, K + 1).double().requires_grad_()
    x = sum(onehot[:, around[:, i]] @ table[i] for i in range(len(table)))
    log_p = prior._logits(x, h, w).log_softmax(dim=-1)
    (slope,) = torch.autograd.grad(-log_p.gather(-1, tokens.flatten(1)[..., None]).sum() / np.log(2), onehot)
    later = slope.view(B, h + 2, w + 4, K + 1)[:, 2:, 2:-2, :K]
    bits = -log_p.detach().view(B, h, w, K) / np.log(2)
    expected = (later - later.gather(-1, tokens[..., None])) + bits - bits.gather(-1, tokens[..., None])
    own, more = prior.replacement_bits(tokens)
    assert torch.allclose(more, expected, atol=1e-9) and torch.allclose(own, prior.bits(tokens), atol=1e-9)
    with torch.inference_mode():
        assert all(map(torch.equal, prior.replacement_bits(tokens.clone()), (own, more)))
    own, alone = Prior.replacement_bits(prior, tokens)
    assert torch.allclose(alone, bits - own[..., None], atol=1e-9) and torch.allclose(own, prior.bits(tokens), atol=1e-9)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_scores_have_the_slope_of_the_error(tokenizer):
    """A small step of one code, where the square of the step does not count, and without bits."""
    models, x = pair(tokenizer, "AutoregressiveModel"), image(18, 27)
    grid = models[0].encode_index(x)
    with torch.no_grad():
        objective = Objective(*models, x, grid, (slice(0, 4), slice(0, 6)), (4, 6), 1e-12)
        J, scores = objective.scores(grid)
        assert abs(J.sum() - (models[0].decode_index(grid)[:18, :27] - x).square().mean()) < 1e-6
        code, eps = models[0].code_vectors(grid).double(), 1e-4
        decoder = models[0].double()
        for k in 3, 11:
            step = models[0].code_vectors(torch.tensor(k)) - code[2, 3]
            moved = code.clone()
            moved[2, 3] += eps * step
            actual = sum(s * (decoder.decode(c)[:18, :27] - x).square().mean() for s, c in ((1, moved), (-1, code))) / eps
            square = objective.steepness * step.square().sum()
            assert abs(scores[2, 3, k] - square - actual) < 1e-3 * float(actual.abs() + square)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_scores_are_the_same_in_parts(tokenizer, monkeypatch):
    """A block in the middle of an image that ends before its patches do; the last parts are smaller than the others."""
    models, x = pair(tokenizer, "AutoregressiveModel"), image(178, 207)
    grid = models[0].encode_index(x)
    block = slice(8, 20), slice(6, 24)
    with torch.no_grad():
        objective = Objective(*models, x, grid, block, (4, 6), 0.01)
        J, scores = objective.scores(grid[block])
        monkeypatch.setattr(module, "SCORED_AT_ONCE", 25 * 7 * 9)
        in_parts, scores_in_parts = objective.scores(grid[block])
        assert torch.allclose(J, objective.cost(grid[block]), atol=1e-9)
    assert not torch.equal(scores, scores_in_parts) or tokenizer == "SOM"
    assert torch.allclose(J, in_parts, atol=1e-9) and torch.allclose(scores, scores_in_parts, rtol=1e-3, atol=1e-8)


@given(a=st.integers(1, 20), b=st.integers(1, 20), sides=st.sampled_from([1, 3, 5]), levels=st.sampled_from([1, 3, 2**20]),
       seed=st.integers(0, 999))  # fmt: skip
def test_positions_that_are_tried_together_are_apart(a, b, sides, levels, seed):
    """Also where many promise the same; and none without a promise."""
    promise = torch.randint(levels, (a, b), generator=torch.Generator().manual_seed(seed)).float()
    assert not spread_out(torch.full((a, b), -torch.inf), sides).any()
    chosen = spread_out(promise, sides)
    rows, columns = chosen.nonzero(as_tuple=True)
    apart = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())
    assert (apart + 9 * torch.eye(len(rows), dtype=torch.long) >= sides).all()
    assert promise[chosen].max() == promise.max()


# --- files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", PRIORS)
def test_files_are_the_same_in_any_company(prior):
    models = pair("BSQPatchAutoEncoder", prior)
    images = [image(23, 41), image(20, 30, 1), image(20, 30, 2), image(20, 30, 3)]
    searched, plain = Compressor(*models, effort=3), Compressor(*models, effort=0)
    files = searched.compress_batch(images)
    assert [searched.compress(x) for x in images] == files
    assert sum(map(len, files)) < sum(map(len, plain.compress_batch(images)))
    for grid, x in zip(plain.decompress_tokens(files), images, strict=True):  # decoding knows nothing of effort
        assert np.array_equal(grid, searched.to_tokens(x[None])[0])


def test_files_of_a_search_are_the_same_in_fresh_processes(tmp_path):
    models = pair("BSQPatchAutoEncoder", "AutoregressiveModel")
    paths = [str(tmp_path / "t.pth"), str(tmp_path / "p.pth")]
    for model, path in zip(models, paths, strict=True):
        checkpoint.save(model, path)
    x = [to_uint8(image(23, 41, i)) for i in range(3)]
    (tmp_path / "images").mkdir()
    for i in range(3):
        save_picture(x[i].numpy(), tmp_path / "images" / f"{i}.png")
    for output, images, *threads in ("1.hwa", "images", 1), ("2.hwa", "images", 2), ("1.hwi", "images/1.png"):
        options = ["--effort", 2, *(["--threads", *threads] if threads else [])]
        done = run("-m", "homework.compress", "compress", *paths, images, output, *options, cwd=tmp_path, fresh=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "1.hwa").read_bytes() == (tmp_path / "2.hwa").read_bytes()
    assert (tmp_path / "1.hwi").read_bytes() == Compressor(*map(checkpoint.load, paths), effort=2).compress(to_float(x[1]))


@pytest.mark.parametrize("prior", PRIORS)
def test_a_default_device_changes_nothing(prior):
    """Tensors that name no device are made on the default one, and have no numbers on "meta"."""
    models, x = pair("BSQPatchAutoEncoder", prior), image(23, 41)
    expected = Compressor(*models, effort=1).compress(x)
    with torch.device("meta"):
        compressor = Compressor(*models, effort=1)
        grid = compressor.to_tokens(x[None])  # here and, for files, in other threads
        assert compressor.compress_tokens(grid, (23, 41)) == [compressor.compress(x)] == [expected]
        assert np.array_equal(compressor.decode(compressor.encode(grid), grid.shape[1:], ["it"]), grid)
        assert torch.equal(compressor.decompress(expected), models[0].decode_index(torch.from_numpy(grid[0]))[:23, :41])
        samples = [models[1].generate(2, 3, 4, generator=torch.Generator().manual_seed(0), num_beam=n) for n in (1, 2)]
    for n, found in enumerate(samples, 1):
        same = models[1].generate(2, 3, 4, generator=torch.Generator().manual_seed(0), num_beam=n)
        assert torch.equal(found, same)


@pytest.mark.parametrize("effort, steps", [(0, {2}), (1, {1})])
def test_the_bar_moves_with_each_image_that_is_searched(effort, steps, tmp_path, monkeypatch):
    moved = []

    class Bar(image_files.tqdm):
        def update(self, n=1):
            moved.append(n)
            super().update(n)

    for i in range(4):
        save_picture(to_uint8(image(20, 30, i)), tmp_path / f"{i}.png")
    monkeypatch.setattr(image_files, "tqdm", Bar)
    monkeypatch.setattr(image_files, "SHARE", 1)
    compressor = Compressor(*pair("BSQPatchAutoEncoder", "AutoregressiveModel"), batch_size=2, effort=effort)
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    image_files.compress_files(compressor, paths, str(tmp_path / "a"), pack=True, scaled=None, skip_bad=False, verify=False)
    assert sum(moved) == 4 and set(moved) - {0} == steps


# --- the dial -------------------------------------------------------------------------------------------------------------


def test_quality_and_lmbda_are_inverse():
    for quality in 1, 1.5, 4.9, 5, 12.5, 50, 100:
        assert quality_at(lmbda_at(quality)) == pytest.approx(quality)
    for lmbda in 0, 2, -0.01, float("nan"), True:
        with pytest.raises(ValueError, match="lmbda is .* a number from 0.0003125 to 1.194"):
            quality_at(lmbda)


@given(sizes=st.lists(st.integers(1, 999), min_size=100, max_size=100), limit=st.integers(1, 999), monotone=st.booleans())
def test_an_aim_is_met_by_the_best_that_was_made_or_refused(sizes, limit, monotone):
    sizes, made = sorted(sizes) if monotone else sizes, []

    def make(quality: int) -> tuple[int, float, float]:
        made.append(quality)
        return quality, sizes[quality - 1], float(quality)

    if not monotone or sizes[0] <= limit:
        fitting = None
        try:
            found = aim(Target("bytes", limit), make, "It")
        except ValueError:
            assert not any(sizes[quality - 1] <= limit for quality in made)
        else:
            fitting = [quality for quality in made if sizes[quality - 1] <= limit]
            assert found == max(fitting)
        assert len(made) <= 7
        if monotone:
            assert fitting and found == max(q for q in range(1, 101) if sizes[q - 1] <= limit)
    else:
        with pytest.raises(ValueError, match=f"It takes {sizes[0]} bytes or more, so never at most {limit};"):
            aim(Target("bytes", limit), make, "It")


@pytest.mark.parametrize("prior", PRIORS)
def test_each_image_reaches_its_target(prior):
    models = pair("BSQPatchAutoEncoder", prior)
    images = [image(23, 41), image(20, 30, 1)]
    plain = Compressor(*models, effort=1, quality=1)
    most = max(map(len, plain.compress_batch(images))) + 2
    files = Compressor(*models, effort=1, target=Target("bytes", most)).compress_batch(images)
    assert max(map(len, files)) <= most
    finest = Compressor(*models, effort=1, quality=100)
    least = min(finest.psnr([x], finest.to_tokens(x[None]))[0] for x in images)
    found = Compressor(*models, effort=1, target=target(None, least))
    for data, x in zip(found.compress_batch(images), images, strict=True):
        assert found.psnr([x], found.decompress_tokens([data]))[0] >= least
    for aimed, sentence in (Target("psnr", 99), "never at least 99;"), (Target("bytes", 9), "never at most 9;"):
        with pytest.raises(ValueError, match=sentence):
            Compressor(*models, effort=1, target=aimed).compress(images[0])


def test_one_export_serves_all_qualities():
    models, x = pair("BSQPatchAutoEncoder", "AutoregressiveModel"), image(23, 41)
    first = Compressor(*models, effort=1, quality=70, target=Target("psnr", 1))
    other = first.at(30)
    assert other.entropy_model is first.entropy_model and (first.quality, first.target.kind) == (70, "psnr")
    assert other.compress(x) == Compressor(*models, effort=1, quality=30).compress(x)
    for compressor, quality in (first, 101), (Compressor(*models), 30):
        with pytest.raises(ValueError, match="quality"):
            compressor.at(quality)


@pytest.mark.parametrize("options", [{"effort": 0, "quality": 60}, {"effort": 0, "target": Target("psnr", 20)},
                                     {"effort": 10}, {"effort": -1}, {"effort": 2.5}, {"quality": 0}])  # fmt: skip
def test_wrong_settings_of_the_dial(options):
    with pytest.raises(ValueError, match="effort|quality"):
        Compressor(*pair("BSQPatchAutoEncoder", "AutoregressiveModel"), **options)


@pytest.mark.parametrize("lmbda, effort", [(0.01, 10), (0.01, -1), (0.01, 1.0), (0, 1), (float("nan"), 1), (-1, 1)])
def test_a_search_without_a_sense(lmbda, effort):
    with pytest.raises(ValueError, match="effort|lmbda"):
        search(*pair("BSQPatchAutoEncoder", "AutoregressiveModel"), image(20, 30), lmbda, effort)


def test_two_aims_or_a_wrong_one():
    with pytest.raises(ValueError, match="name one"):
        target(100, 20)
    for value in 0, -1, float("inf"), float("nan"):
        with pytest.raises(ValueError, match="target_psnr is .* above 0"):
            target(None, value)
    assert target(None, None) is None
