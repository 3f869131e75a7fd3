"""The sharpness of a prior: a power of its probabilities that each payload names, the best for its tokens."""

import math

import numpy as np
import pytest
import torch
from conftest import GRID, SIZE, K, build
from hypothesis import given
from hypothesis import strategies as st

from homework.codec import dial, tiles
from homework.codec.compressor import Compressor
from homework.codec.entropy import AS_LEARNED, EIGHTHS, ExactPrior, FloatPrior, as_learned, sharpest
from homework.codec.range_coder import TOTAL, equal_weights, intervals
from homework.priors.base import Prior
from homework.tokenizers.base import LMBDA

N = math.prod(GRID)


def prior(name: str = "AutoregressiveModel") -> Prior:
    """With opinions, but not about all that it may see."""
    model = build(name).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    return model


def tokens_at(model: Prior, temperature: float, B: int = 4, seed: int = 0) -> np.ndarray:
    """(B,h,w) drawn from p^(1/temperature), normalized."""
    draws = torch.Generator().manual_seed(seed)
    return model.generate(B, *GRID, temperature=temperature, generator=draws).numpy()


def n_bits(weights: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Weights (B,N,K) and grids (B,h,w) -> (B) bits by the coder's own frequencies."""
    own = np.take_along_axis(weights, tokens.reshape(len(tokens), -1, 1), 2)[..., 0].astype(float) + 1
    return (math.log2(TOTAL) - np.log2(own)).sum(axis=1)


# --- the powers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", [torch.float32, torch.float64, torch.int64])
def test_weights_are_the_powers_of_what_was_learned_the_same_at_once_and_step_by_step(carrier):
    model, grids = prior(), torch.randint(K, (len(EIGHTHS), *GRID), generator=torch.Generator().manual_seed(1)).numpy()
    coder, numbers = ExactPrior(model, carrier), np.arange(len(EIGHTHS))
    weights = coder.weights(grids, numbers)
    assert np.array_equal(weights, ExactPrior(model).weights(grids, numbers))
    step, tokens = coder.steps(*grids.shape, numbers), grids.reshape(len(grids), -1)
    by_steps = [step(tokens[:, max(0, n - 1) : n]) for n in range(N)]
    assert np.array_equal(np.stack(by_steps, axis=1), weights)
    p = coder.weights(grids, as_learned(len(grids))).astype(float) + 1
    powers = p ** (EIGHTHS[:, None, None] / 8)
    assert np.abs(weights / TOTAL - powers / powers.sum(axis=-1, keepdims=True)).max() < 1e-3


@pytest.mark.parametrize("name", ["AutoregressiveModel", "GatedPixelCNN"])
def test_the_bits_of_a_prior_are_of_normalized_powers(name):
    model, grids = prior(name), torch.from_numpy(tokens_at(prior(name), 1.0, 2))
    with torch.no_grad():
        p = model(grids)[0].double().softmax(dim=-1)
    for sharpness in 0.5, 1.0, 1.7:
        powers = p**sharpness
        own = (powers / powers.sum(dim=-1, keepdim=True)).gather(-1, grids[..., None])[..., 0]
        bits, _ = model.replacement_bits(grids, sharpness)
        assert torch.allclose(bits.double(), -own.log2(), atol=1e-3)
        with torch.no_grad():
            assert torch.allclose(model.bits(grids, sharpness), bits, atol=1e-4)
    assert torch.equal(model.bits(grids), model.bits(grids, 1.0))


@pytest.mark.parametrize("name", ["AutoregressiveModel", "GatedPixelCNN"])
def test_what_a_replacement_takes_is_right_where_nothing_comes_after_it(name):
    model, grids, last = prior(name), torch.from_numpy(tokens_at(prior(name), 1.0, 2)), (slice(None), -1, -1)
    own, more = model.replacement_bits(grids, 1.4)
    for token in range(K):
        other = grids.clone()
        other[last] = token
        with torch.no_grad():
            assert torch.allclose(model.bits(other, 1.4)[last], (own + more[..., token])[last], atol=1e-3)


# --- the choice -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(-3, 20), st.floats(0.01, 9)), min_size=1, max_size=5), st.integers(1, 3))
def test_the_best_is_found(curves, n):
    """Of parabolas, the sum of n in turn."""
    at, steep = np.array(curves * n).T

    def bits(number):
        return steep * (number - at) ** 2

    costs = np.stack([bits(number).reshape(-1, n).sum(axis=1) for number in range(len(EIGHTHS))])
    chosen = sharpest(bits, n)
    assert np.allclose(np.take_along_axis(costs, chosen[None], 0)[0], costs.min(axis=0))


@given(st.lists(st.lists(st.integers(0, 9), min_size=16, max_size=16), min_size=1, max_size=6))
def test_what_one_takes_does_not_depend_on_the_others(curves):
    """Also where costs are not convex; where they are all alike, the power stays 1."""
    costs = np.array([*curves, [3] * 16])
    together = sharpest(lambda power: costs[:, power], 1)
    assert together.tolist() == [int(sharpest(lambda power, own=own: own[None, power], 1)[0]) for own in costs]
    assert together[-1] == AS_LEARNED and all(own[k] <= own[AS_LEARNED] for own, k in zip(costs, together, strict=True))


def test_tokens_that_a_prior_excludes_count_as_the_coder_takes_them():
    model = FloatPrior(prior("GatedPixelCNN"))
    bits = model.model.bits
    grids = tokens_at(prior("GatedPixelCNN"), 0.3, 1)

    def excluded(index, sharpness=1.0):
        found = bits(index, sharpness)
        found[:, 0, 0] = torch.inf
        return found

    model.model.bits = excluded
    assert EIGHTHS[model.sharpest(grids, 1)[0]] > 8


@pytest.mark.parametrize("kind", [ExactPrior, FloatPrior])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.2])
def test_the_power_that_is_chosen_takes_the_fewest_bits(kind, temperature):
    coder, grids = kind(model := prior()), tokens_at(prior(), temperature)
    exact = ExactPrior(model)
    costs = np.stack([n_bits(exact.weights(grids, np.full(4, number)), grids) for number in range(len(EIGHTHS))])
    found, chosen = coder.intervals(grids, None)
    assert np.all(np.take_along_axis(costs, chosen[None], 0)[0] <= costs.min(axis=0) + 0.5)
    assert np.array_equal(chosen, coder.sharpest(grids, 1)) and found.shape == (2, 4, N)
    assert np.array_equal(found, coder.intervals(grids, chosen)[0])
    together = coder.sharpest(grids, 4)
    assert together.shape == (1,) and costs.sum(axis=1)[together[0]] <= costs.sum(axis=1).min() + 0.5
    assert temperature == 1 or (EIGHTHS[together[0]] > 8) == (temperature < 1)


@pytest.mark.parametrize("name", ["AutoregressiveModel", "GatedPixelCNN"])
def test_each_image_of_a_batch_names_its_own(name):
    """In four bits, the first of its payload, which is no longer than these and the bits of the tokens."""
    model, tokenizer = prior(name), build("BSQPatchAutoEncoder").eval()
    grids = np.concatenate([tokens_at(model, t, 1) for t in (0.3, 0.7, 1.0, 2.0)])
    compressor = Compressor(tokenizer, model)
    payloads = compressor.encode(grids)
    chosen = compressor.entropy_model.sharpest(grids, 1)
    assert [payload[0] >> 4 for payload in payloads] == chosen.tolist() and len(set(chosen.tolist())) == 4
    assert np.array_equal(compressor.decode(payloads, GRID, list("abcd")), grids)
    files = compressor.compress_tokens(grids, SIZE)
    assert all(np.array_equal(*pair) for pair in zip(compressor.decompress_tokens(files), grids, strict=True))
    bits = (math.log2(TOTAL) - np.log2(compressor.entropy_model.intervals(grids, chosen)[0][1])).sum(axis=1)
    assert all(len(payload) <= (4 + n) / 8 + 1.01 for payload, n in zip(payloads, bits.tolist(), strict=True))


def test_an_image_of_several_tiles_has_one_sharpness():
    model, tokenizer = prior(), build("BSQPatchAutoEncoder").eval()
    compressor, (h, w) = Compressor(tokenizer, model), GRID
    grid = np.tile(tokens_at(model, 0.3, 1)[0], (3, 3))[: 3 * h - 1, : 3 * w - 2]
    parts = [*compressor.intervals(grid[None])]
    assert tiles.some(grid.shape, GRID) == [(0, 0), (0, w), (h, 0), (h, w)]
    assert len(parts) > 2 and len({int(chosen[0]) for *_, chosen in parts}) == 1 and parts[0][-1][0] > AS_LEARNED
    (payload,) = compressor.encode(grid[None])
    assert payload[0] >> 4 == parts[0][-1][0]
    assert np.array_equal(compressor.decode([payload], grid.shape, ["it"])[0], grid)


def test_the_tiles_that_decide_are_all_over_a_large_image():
    corners = tiles.some((40 * 20, 40 * 30 + 7), (20, 30))
    rows, columns = ({corner[k] // length for corner in corners} for k, length in enumerate((20, 30)))
    assert rows == {5, 15, 25, 35} == columns
    assert tiles.some((20, 75), (20, 30)) == [(0, 0), (0, 30)] and tiles.some((39, 30), (20, 30)) == [(0, 0)]


def test_four_bits_say_it():
    cumulative, frequency = intervals(equal_weights(16, 16), np.arange(16))
    assert (cumulative == np.arange(16) * (TOTAL // 16)).all() and (frequency == TOTAL // 16).all()
    assert len(EIGHTHS) == 16 and EIGHTHS[AS_LEARNED] == 8


# --- the dial -------------------------------------------------------------------------------------------------------------


def test_the_search_expects_sharper_priors_where_bits_are_dear():
    found = [dial.sharpness_at(dial.lmbda_at(quality)) for quality in range(1, 101)]
    assert found == sorted(found, reverse=True) and found[0] == 1.75 and found[-1] == 0.95
    assert dial.sharpness_at(LMBDA) == 1.1 and 8 * 0.95 >= EIGHTHS[0] and 8 * 1.75 <= EIGHTHS[-1]
