"""The prior on integers: the same in every batch, form, carrier and number of threads, and close to the floats."""

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import GRID, K, build, run
from hypothesis import given, settings
from hypothesis import strategies as st

from homework.codec.entropy import ExactPrior, FloatPrior, as_learned, entropy_model
from homework.codec.integer_layers import ExactLinear, ExactNorm, exp2_table
from homework.codec.precision import full_precision
from homework.codec.range_coder import TOTAL

CARRIERS = (torch.float32, torch.float64, torch.int64)


def prior(seed: int = 0, noise: float = 0.2, **options) -> torch.nn.Module:
    """A tiny one in eval mode, every parameter off its starting value."""
    model = build("AutoregressiveModel", seed, **{"window": 5, "d_latent": 16} | options).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(noise * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
    return model


def grids(B: int, h: int = GRID[0], w: int = GRID[1], seed: int = 0, n_tokens: int = K) -> torch.Tensor:
    return torch.randint(n_tokens, (B, h, w), generator=torch.Generator().manual_seed(seed))


def weights_of(model, grid: torch.Tensor, chosen: np.ndarray | None = None) -> torch.Tensor:
    return torch.from_numpy(model.weights(grid.numpy(), as_learned(len(grid)) if chosen is None else chosen))


def by_steps(model, grid: torch.Tensor, chosen: np.ndarray | None = None) -> torch.Tensor:
    steps, tokens = model.steps(*grid.shape, as_learned(len(grid)) if chosen is None else chosen), grid.flatten(1).numpy()
    return torch.from_numpy(np.stack([steps(tokens[:, max(0, n - 1) : n]) for n in range(tokens.shape[1])], axis=1))


# --- identical integers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"window": 100}, {"n_layers": 3, "n_heads": 4}, {"position": "1d"}, {"position": "none"}]
)
def test_all_carriers_and_both_forms_give_the_same_integers(options):
    model, grid = prior(**options), grids(3)
    coders = [ExactPrior(model, carrier) for carrier in CARRIERS]
    at_once = weights_of(coders[0], grid)
    assert at_once.shape == (3, grid[0].numel(), K) and at_once.dtype == torch.float32
    for one in coders:
        assert torch.equal(weights_of(one, grid), at_once) and torch.equal(by_steps(one, grid), at_once)
    assert len({one.fingerprints[2] for one in coders}) == 1


CONFIGURATIONS = [
    {"window": 1},
    {"window": 7, "n_heads": 4, "neighbours": 3},
    {"window": 200, "position": "1d", "n_layers": 3},
    {"window": 70, "position": "none", "d_latent": 24},
    {"window": 13, "code_dim": 4},
]


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("B, h, w", [(1, 10, 15), (64, 3, 5), (2, 1, 1)])
def test_steps_in_numpy_are_those_in_torch(options, B, h, w):
    """On grids smaller and larger than the window and than a block, with any number of tokens in the first step."""
    model = prior(height=10, width=15, **options)
    if "code_dim" in options:
        model.set_codes(torch.randn(K, 4, generator=torch.Generator().manual_seed(0)))
    grid, one, other = grids(B, h, w), ExactPrior(model), ExactPrior(model, torch.float64)
    assert one.in_numpy and not other.in_numpy
    at_once = weights_of(one, grid)
    assert torch.equal(by_steps(one, grid), at_once) and torch.equal(by_steps(other, grid), at_once)
    for n in (0, h * w // 2, h * w - 1):
        step = one.steps(B, h, w, as_learned(B))
        assert torch.equal(torch.from_numpy(step(grid.flatten(1)[:, :n].numpy())), at_once[:, n])


def test_steps_of_several_threads_do_not_meet():
    """They share the model alone: each gets its own numbers, at the same time, in one thread or in many."""
    one = ExactPrior(prior(d_latent=64, window=20))
    some = [grids(B, h, w, seed=B) for B, h, w in ((1, 4, 5), (3, *GRID), (16, 3, 6), (5, 4, 5))]
    expected = [weights_of(one, grid) for grid in some]
    with ThreadPoolExecutor(len(some), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in range(3):
            found = pool.map(lambda grid: by_steps(one, grid), some)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    steps = [one.steps(*grid.shape, as_learned(len(grid))) for grid in some]
    for n in range(18):
        for step, grid, at_once in zip(steps, some, expected, strict=True):
            assert np.array_equal(step(grid.flatten(1)[:, max(0, n - 1) : n].numpy()), at_once[:, n].numpy())


@pytest.mark.parametrize("threads", [1, 2])
def test_batch_and_threads_do_not_matter(threads):
    """64 at once, one at a time, in parallel and step by step; wide enough that threads share the products."""
    model = prior(d_latent=128, n_tokens=300, noise=0.02)
    one, grid = ExactPrior(model), grids(64, n_tokens=300)
    expected = torch.cat([weights_of(one, g[None]) for g in grid])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(weights_of(one, grid), expected)
        assert torch.equal(by_steps(one, grid), expected)
        assert torch.equal(by_steps(one, grid[:1]), expected[:1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_cuda_gives_the_same_integers():
    model, grid = prior(d_latent=128, n_tokens=300, noise=0.02), grids(8, n_tokens=300)
    expected = weights_of(ExactPrior(model), grid)
    there = ExactPrior(model.cuda())
    assert torch.equal(weights_of(there, grid), expected) and torch.equal(by_steps(there, grid), expected)


def test_what_the_caller_allows_does_not_matter():
    """Reduced precision of matrix products and autocast are switched off inside, and left as they were outside."""
    model, grid = prior(d_latent=64), grids(4)
    one = ExactPrior(model)
    expected = weights_of(one, grid)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(weights_of(one, grid), expected) and torch.equal(by_steps(one, grid), expected)
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch has one setting for all backends")
def test_what_is_allowed_to_one_backend_does_not_matter():
    """torch's newer switches, which it refuses to mix with the older one."""
    one, grid, backend = ExactPrior(prior(d_latent=64)), grids(4), torch.backends.mkldnn.matmul
    expected, before = weights_of(one, grid), backend.fp32_precision
    try:
        for precision in "bf16", "tf32", "ieee":
            backend.fp32_precision = precision
            assert torch.equal(weights_of(one, grid), expected) and torch.equal(by_steps(one, grid), expected)
            with full_precision(torch.device("cpu")):
                assert backend.fp32_precision == "ieee"
            assert backend.fp32_precision == precision
    finally:
        backend.fp32_precision = before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has no setting for all backends")
def test_a_setting_for_all_backends_stays_one():
    everywhere, backend = torch.backends, torch.backends.cuda.matmul
    before = everywhere.fp32_precision, backend.fp32_precision
    try:
        everywhere.fp32_precision, backend.fp32_precision = "tf32", "none"
        with full_precision(torch.device("cpu")):
            assert backend.fp32_precision == "ieee"
        assert backend.fp32_precision == "tf32"
        everywhere.fp32_precision = "ieee"
        assert backend.fp32_precision == "ieee"
    finally:
        everywhere.fp32_precision, backend.fp32_precision = before


def test_blocks_that_overlap_in_time_restore_the_precision_at_the_end_of_the_last():
    def block(begun: threading.Event, end: threading.Event) -> None:
        with full_precision(torch.device("cpu")):
            begun.set()
            end.wait(60)

    torch.set_float32_matmul_precision("medium")
    try:
        events = [(threading.Event(), threading.Event()) for _ in range(2)]
        threads = [threading.Thread(target=block, args=pair) for pair in events]
        for thread, (begun, _) in zip(threads, events, strict=True):
            thread.start()
            begun.wait(60)
        for thread, (_, end), after in zip(threads, events, ("highest", "medium"), strict=True):
            end.set()
            thread.join()
            assert torch.get_float32_matmul_precision() == after
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_default_dtype_does_not_matter():
    model, grid = prior(), grids(2)
    expected = weights_of(ExactPrior(model), grid)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(by_steps(ExactPrior(model), grid), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("d_latent, n_heads, bias", [(128, 4, -10.0), (128, 1, -100.0), (16, 2, 0.0)])
def test_no_score_is_so_low_that_later_positions_are_seen(d_latent, n_heads, bias):
    """Queries, keys and biases as far apart as integers can be; the first 12 positions do not see the others."""
    options = {"d_latent": d_latent, "n_heads": n_heads, "n_layers": 1, "window": 70, "height": 4, "width": 6}
    model = build("AutoregressiveModel", 0, **options).eval()
    attention, weight = model.layers[0].attention, torch.zeros(3 * d_latent, d_latent)
    weight[:d_latent, 0], weight[d_latent : 2 * d_latent, 0], weight[2 * d_latent :] = 1e3, -1e4, 5
    with torch.no_grad():
        attention.qkv.weight.copy_(weight)
        attention.bias.fill_(bias)
        model.embedding.weight[:, 0].mul_(30)
    one, grid = ExactPrior(model), grids(1, 4, 6)
    other = grid.clone()
    other[0, 2:] = (other[0, 2:] + 5) % K
    at_once = weights_of(one, grid)
    assert torch.equal(weights_of(one, other)[:, :12], at_once[:, :12]) and torch.equal(by_steps(one, grid), at_once)


def test_another_process_gets_the_same_integers(tmp_path):
    model, grid = prior(), grids(2)
    torch.save((model.config, model.state_dict(), grid), tmp_path / "model.pth")
    code = (
        "import sys, torch; from homework import AutoregressiveModel;"
        "from homework.codec.entropy import ExactPrior, as_learned;"
        "config, state, grid = torch.load(sys.argv[1]); model = AutoregressiveModel(**config); model.load_state_dict(state);"
        "one = ExactPrior(model); weights = torch.from_numpy(one.weights(grid.numpy(), as_learned(2)));"
        "torch.save((weights, one.fingerprints[2]), sys.argv[2])"
    )
    assert run("-c", code, tmp_path / "model.pth", tmp_path / "out.pth", cwd=tmp_path, OMP_NUM_THREADS="2").returncode == 0
    weights, fingerprint = torch.load(tmp_path / "out.pth")
    one = ExactPrior(model)
    assert torch.equal(weights, weights_of(one, grid)) and fingerprint == one.fingerprints[2]


@settings(max_examples=12)
@given(st.integers(0, 2**31), st.floats(0, 30), st.integers(1, 9), st.sampled_from([8, 16, 48]))
def test_even_wild_weights_stay_exact(seed, noise, window, d_latent):
    """float32 and int64 agree whatever the weights are: what must not overflow is clamped, or the export refuses."""
    model, grid = prior(seed, noise, window=window, d_latent=d_latent), grids(2, seed=seed)
    try:
        one = ExactPrior(model)
    except OverflowError:
        return
    weights = weights_of(one, grid)
    assert torch.equal(weights, weights_of(ExactPrior(model, torch.int64), grid))
    assert torch.equal(weights, by_steps(one, grid))
    assert (weights >= 0).all() and (weights.double().sum(dim=-1) == TOTAL - K).all()


# --- what the integers mean -------------------------------------------------------------------------------------------


def test_frequencies_are_close_to_the_floats():
    model, grid = prior(), grids(20)
    with torch.inference_mode():
        p = model(grid)[0].flatten(1, 2).softmax(dim=-1)
    q = (weights_of(ExactPrior(model), grid) + 1) / TOTAL
    assert (q.double().sum(dim=-1) - 1).abs().max() < 1e-6 and q.min() >= 1 / TOTAL
    assert (p * (p / q).log2()).sum(dim=-1).mean() < 2e-3  # bits a token


@pytest.mark.parametrize("factor", [1, 30])
def test_large_weights_are_exported_with_fewer_bits(factor):
    """With factor 30 the residual stream's twelve bits leave the last layer no room."""
    model, grid = prior(), grids(20)
    with torch.no_grad():
        model.layers[-1].up.weight /= factor**0.5
        model.layers[-1].up.bias /= factor**0.5
        model.layers[-1].down.weight *= factor  # the same function
        p = model(grid)[0].flatten(1, 2).softmax(dim=-1)
    one = ExactPrior(model)
    q = (weights_of(one, grid) + 1) / TOTAL
    assert (p * (p / q).log2()).sum(dim=-1).mean() < (2e-3 if factor == 1 else 0.1)  # bits a token
    assert torch.equal(by_steps(one, grid), weights_of(one, grid))


def test_integers_are_causal():
    """Every token of the grid is changed in turn: no frequency at it or before it moves."""
    one, grid = ExactPrior(prior(window=4)), grids(1)
    N = grid.numel()
    changed = grid.flatten().repeat(N, 1)
    changed[range(N), range(N)] = (changed[range(N), range(N)] + 1) % K
    moved = (weights_of(one, changed.view(N, *GRID)) != weights_of(one, grid)).any(dim=-1)  # [t, n]
    for t in range(N):
        assert not moved[t, : t + 1].any() and (t + 1 == N or moved[t, t + 1])


def test_weights_sum_to_the_total_even_where_one_token_is_certain():
    model = prior()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.linspace(0, 100, K))
    weights = weights_of(ExactPrior(model), grids(2))
    assert (weights.double().sum(dim=-1) == TOTAL - K).all() and (weights[..., -1] > 0.99 * TOTAL).all()


def test_a_model_that_reads_codes_is_exported_too():
    model = prior(code_dim=4)
    model.set_codes(torch.randn(K, 4, generator=torch.Generator().manual_seed(0)))
    grid = grids(2)
    with torch.inference_mode():
        p = model(grid)[0].flatten(1, 2).softmax(dim=-1)
    one = ExactPrior(model)
    q = (weights_of(one, grid) + 1) / TOTAL
    assert (p * (p / q).log2()).sum(dim=-1).mean() < 2e-3
    assert torch.equal(by_steps(one, grid), weights_of(one, grid))


def test_the_fingerprint_distinguishes_models():
    model = prior()
    prints = {ExactPrior(model).fingerprints[2], ExactPrior(prior(1)).fingerprints[2]}
    with torch.no_grad():
        model.layers[0].up.weight[0, 0] += 0.1
    prints |= {ExactPrior(model).fingerprints[2], FloatPrior(model).fingerprints[2]}
    assert len(prints) == 4 and {len(p) for p in prints} == {32}


# --- its parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits, fractional", list(itertools.product((4, 8, 14), (2, 4, 5))))
def test_the_table_of_powers_is_rounded_rightly(bits, fractional):
    table = exp2_table(bits, fractional)
    assert table[0] == 2**bits and table[-1] == 0 and table[-2] > 0 and table == sorted(table, reverse=True)
    for i, entry in enumerate(table):
        assert abs(entry - 2.0 ** (bits - i / 2**fractional)) <= 0.5 + 1e-6


@settings(max_examples=50)
@given(st.integers(1, 300), st.integers(0, 2**31), st.floats(1e-3, 30), st.integers(0, 8), st.sampled_from([63, 511, 1023]))
def test_a_linear_layer_never_leaves_24_bits(n, seed, size, in_bits, limit):
    """With the largest inputs, of the signs that add up the most, float32 still gives what int64 gives."""
    draws = torch.Generator().manual_seed(seed)
    weight = size * torch.randn(5, n, generator=draws, dtype=torch.float64)
    bias = size * torch.randn(5, generator=draws, dtype=torch.float64)
    try:
        layers = [ExactLinear(weight, bias, in_bits, limit, 4, carrier) for carrier in CARRIERS]
    except OverflowError:
        return
    x = torch.cat([limit * weight.sign(), -limit * weight.sign(),
                   torch.randint(-limit, limit + 1, (50, n), generator=draws).double()])  # fmt: skip
    outputs = [layer(x.to(carrier)) for layer, carrier in zip(layers, CARRIERS, strict=True)]
    assert all(torch.equal(y.long(), outputs[0].long()) for y in outputs)
    assert outputs[0].abs().max() <= layers[0].bound
    real = (x / 2**in_bits) @ weight.T + bias
    unit = 2.0 ** (in_bits - 4) / layers[0].divisor.double()  # of each row's weights
    step = 0.5 * 2.0**-4 + 0.51 * unit * (x.abs().sum(dim=1, keepdim=True) + 1) / 2**in_bits
    assert ((outputs[0] / 2.0**4 - real).abs() <= step).all()


@given(st.lists(st.integers(-(2**17), 2**17), min_size=8, max_size=8))
def test_the_norm_divides_by_the_floored_root(values):
    mean = sum(v * v for v in values) // 8
    expected = [max(-511, min(511, 64 * v // math.isqrt(mean + 1))) for v in values]
    for carrier in CARRIERS:
        y = ExactNorm(8, carrier)(torch.tensor([values]).to(carrier))
        assert y[0].tolist() == expected


# --- floats -----------------------------------------------------------------------------------------------------------


def test_other_priors_and_too_large_ones_are_coded_with_floats():
    assert entropy_model(prior()).exact
    with torch.no_grad():
        wild = prior()
        wild.head.weight.mul_(1e6)
    assert not entropy_model(wild).exact and not entropy_model(prior(window=2000)).exact


def test_float_weights_repeat_and_are_the_models():
    model, grid = prior(), grids(3)
    one = FloatPrior(model)
    weights = by_steps(one, grid)
    assert torch.equal(weights, by_steps(one, grid)) and (weights.double().sum(dim=-1) == TOTAL - K).all()
    with torch.inference_mode():
        p = model(grid)[0].flatten(1, 2).softmax(dim=-1)
    assert ((weights + 1) / TOTAL - p).abs().max() < 1e-5
    assert entropy_model(model).n_tokens == one.n_tokens == K
