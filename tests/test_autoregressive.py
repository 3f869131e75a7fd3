"""The prior: causality at every position, the cache against the whole forward pass, sampling against a naive sampler."""

import itertools
import math

import pytest
import torch
from conftest import GRID, TINY, K, build
from hypothesis import given, settings
from hypothesis import strategies as st

from homework import AutoregressiveModel, autoregressive
from homework.priors import sampling
from homework.priors.raster import NEIGHBOURS

MODES = ("none", "1d", "2d")
every_mode = pytest.mark.parametrize("position", MODES)


def prior(seed: int = 0, **options) -> torch.nn.Module:
    """A tiny one in eval mode, with every parameter off its starting value (position embeddings start at zero)."""
    model = build("AutoregressiveModel", seed, **options).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
    return model


def grids(B: int, h: int = GRID[0], w: int = GRID[1], n_tokens: int = K, seed: int = 0) -> torch.Tensor:
    return torch.randint(n_tokens, (B, h, w), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def naive_sampler(model, B, h, w, prefix=None, **options) -> torch.Tensor:
    """The reference: a whole forward pass for every token, no cache."""
    tokens = torch.zeros(B, h * w, dtype=torch.int64)
    start = 0
    if prefix is not None:
        start = prefix[0].numel()
        tokens[:, :start] = prefix.flatten(1)
    for n in range(start, h * w):
        logits, _ = model(tokens.view(B, h, w))
        tokens[:, n] = sampling.sample(logits.flatten(1, 2)[:, n], **options)
    return tokens.view(B, h, w)


# --- causality ------------------------------------------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize("neighbours", range(1, len(NEIGHBOURS) + 1))
@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_token_moves_later_positions_alone(position, neighbours, n_layers):
    """Every token of the grid is changed in turn: no logit at it or before it moves, all later ones do."""
    model, grid = prior(position=position, neighbours=neighbours, n_layers=n_layers), grids(1)
    N = grid.numel()
    changed = grid.flatten().repeat(N, 1)  # row t: token t is another one
    changed[range(N), range(N)] = (changed[range(N), range(N)] + 1 + torch.arange(N) % (K - 1)) % K
    with torch.no_grad():
        before = model(grid)[0].flatten(1, 2)  # (1,N,K)
        after = model(changed.view(N, *GRID))[0].flatten(1, 2)  # (N,N,K)
    moved = (after - before).abs().amax(dim=-1)  # [t, n]: how far the logits at n follow token t
    for t in range(N):
        assert moved[t, : t + 1].max() <= 1e-6, f"token {t} is seen at {int(moved[t, : t + 1].argmax())}"
        assert t + 1 == N or moved[t, t + 1 :].min() > 1e-6, f"token {t} is not seen at all later positions"


@every_mode
def test_gradients_come_from_earlier_tokens_alone(position):
    """All tokens of the grid differ, so each has rows of the embedding of its own."""
    (h, w), N = GRID, GRID[0] * GRID[1]
    model = prior(position=position, n_tokens=N)
    grid = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    for n in range(N):
        logits = model(grid.view(1, h, w))[0].flatten(0, 2)  # (N,K)
        (g,) = torch.autograd.grad(logits[n].square().sum(), model.embedding.weight)
        g = g.view(len(model.neighbours), N + 1, -1).abs().sum(dim=(0, 2))  # by token: (m,K+1,D) -> (K+1)
        assert (g[grid[n:]] == 0).all(), f"position {n} reads itself or a later one"
        assert (g[grid[:n]] > 0).all(), f"position {n} does not see all earlier ones"
        assert g[N] > 0  # what is outside of the grid


@every_mode
def test_the_first_position_depends_on_nothing(position):
    model = prior(position=position)
    with torch.no_grad():
        logits = model(grids(20))[0][:, 0, 0]
    assert (logits - logits[0]).abs().max() <= 1e-6


@every_mode
@pytest.mark.parametrize("neighbours", [1, 2, 8])
@pytest.mark.parametrize("size", [(1, 2), (2, 2)])
def test_probabilities_of_all_grids_sum_to_one(position, neighbours, size):
    model = prior(n_tokens=3, position=position, neighbours=neighbours)
    everything = torch.tensor(list(itertools.product(range(3), repeat=size[0] * size[1]))).view(-1, *size)
    with torch.no_grad():
        logits = model.double()(everything)[0].log_softmax(dim=-1)
    p = logits.gather(-1, everything[..., None]).sum(dim=(1, 2, 3)).exp()
    assert math.isclose(p.sum(), 1, rel_tol=1e-9) and p.min() > 0 and p.max() / p.min() > 1.2


# --- the cache ------------------------------------------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize("size", [GRID, (1, 1), (1, 6), (4, 1), (3, 5)])
@pytest.mark.parametrize("B", [1, 5])
def test_steps_are_the_forward_pass_at_every_position(position, size, B):
    model, grid = prior(position=position), grids(B, *size)
    with torch.inference_mode():
        whole = model(grid)[0].flatten(1, 2)
        steps, tokens = model.steps(B, *size), grid.flatten(1)
        for n in range(tokens.shape[1]):
            logits = steps(tokens[:, n - 1 : n] if n else tokens[:, :0])
            assert logits.shape == (B, K) and torch.allclose(logits, whole[:, n], atol=1e-5), n


@every_mode
@pytest.mark.parametrize("known", [1, 6, 9, 18, 23])
def test_steps_continue_after_any_number_of_known_tokens(position, known):
    model, grid = prior(position=position, neighbours=8), grids(2)
    with torch.inference_mode():
        whole, tokens, steps = model(grid)[0].flatten(1, 2), grid.flatten(1), model.steps(2, *GRID)
        assert torch.allclose(steps(tokens[:, :known]), whole[:, known], atol=1e-5)
        for n in range(known + 1, tokens.shape[1]):
            assert torch.allclose(steps(tokens[:, n - 1 : n]), whole[:, n], atol=1e-5), n


@pytest.mark.parametrize("window", [1, 2, 5, 7, 23, 24, 25])
@pytest.mark.parametrize("size", [GRID, (1, 6), (3, 5)])
def test_steps_are_the_forward_pass_with_any_window(window, size):
    model, grid = prior(window=window), grids(3, *size)
    with torch.inference_mode():
        whole, tokens, steps = model(grid)[0].flatten(1, 2), grid.flatten(1), model.steps(3, *size)
        for n in range(tokens.shape[1]):
            assert torch.allclose(steps(tokens[:, max(0, n - 1) : n]), whole[:, n], atol=1e-5), n


@pytest.mark.parametrize("window", [1, 3, 6, 10, 24, 100])
def test_attention_in_blocks_is_masked_attention(window):
    """All scores, and a mask of what each position sees: itself and the window - 1 positions before it."""
    attention, n = prior(window=window).layers[0].attention, 24
    x = torch.randn(2, n, 8, generator=torch.Generator().manual_seed(0))
    distance = torch.arange(n)[:, None] - torch.arange(n)
    seen = (distance >= 0) & (distance < window)
    with torch.no_grad():
        q, k, v = attention.qkv(x).view(2, n, 3, 2, 4).permute(2, 0, 3, 1, 4)  # (B,n,3D) -> 3 x (B,heads,n,d)
        scores = q @ k.transpose(2, 3) / 4**0.5 + attention.bias[:, distance.where(seen, 0)]
        y = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1) @ v
        expected = attention.out(y.transpose(1, 2).flatten(2))
        assert torch.allclose(attention(x), expected, atol=1e-5)
    assert prior(window=window)(grids(1))[0].isfinite().all()


@pytest.mark.parametrize("window", [2, 5, 100])
@pytest.mark.parametrize("known", [0, 7, 18])
def test_selected_steps_are_those_of_the_selected_grids(window, known):
    """The batch grows, then shrinks, then is put in another order; equal rows then continue in different ways."""
    model, tokens = prior(window=window), grids(3).flatten(1)
    draws = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        steps = model.steps(3, *GRID)
        steps(tokens[:, :known])
        for n, rows in enumerate(([2, 0, 2, 1, 1], [4, 1, 0], [1], [0, 0]), known + 1):
            steps.select(torch.tensor(rows))
            tokens = tokens[rows]
            tokens[:, n - 1 :] = torch.randint(K, (len(rows), tokens.shape[1] - n + 1), generator=draws)
            expected = model(tokens.view(-1, *GRID))[0].flatten(1, 2)[:, n]
            assert torch.allclose(steps(tokens[:, n - 1 : n]), expected, atol=1e-5), n


@pytest.mark.parametrize("options", [{"num_beam": 4, "beam_width": 5}, {"beams": 3}])
def test_generating_passes_the_options_on(options):
    """Their naive forms are in test_sampling.py."""
    model = prior()
    a, b = (model.generate(2, *GRID, generator=torch.Generator().manual_seed(1), prefix=grids(2)[:, :1], **options)
            for _ in range(2))  # fmt: skip
    assert torch.equal(a, b) and torch.equal(a[:, :1], grids(2)[:, :1])
    with torch.inference_mode():
        c = sampling.generate(model.steps(2, *GRID), 2, *GRID, generator=torch.Generator().manual_seed(1),
                              prefix=grids(2)[:, :1], **options)  # fmt: skip
    assert torch.equal(a, c)


@every_mode
def test_code_vectors_instead_of_embeddings(position):
    """A model that reads codes is causal, steps as it goes, and its codes are saved, but not trained."""
    model = prior(code_dim=3, position=position)
    assert model.loss(grids(2))["loss"].isnan(), "a forgotten set_codes must show"
    with pytest.raises(ValueError, match="set_codes forgotten"):
        model.generate(1, *GRID, generator=torch.Generator().manual_seed(0))
    model.set_codes(torch.randn(K, 3, generator=torch.Generator().manual_seed(1)))
    grid = grids(2)
    with torch.inference_mode():
        whole, tokens, steps = model(grid)[0].flatten(1, 2), grid.flatten(1), model.steps(2, *GRID)
        for n in range(tokens.shape[1]):
            assert torch.allclose(steps(tokens[:, max(0, n - 1) : n]), whole[:, n], atol=1e-5), n
        changed = grid.clone()
        changed[:, 1, 2] = (changed[:, 1, 2] + 1) % K
        moved = (model(changed)[0].flatten(1, 2) - whole).abs().amax(dim=(0, 2))
        assert moved[: GRID[1] + 3].max() <= 1e-6 and moved[GRID[1] + 3] > 1e-6
    assert "codes" in model.state_dict() and "codes" not in dict(model.named_parameters())
    with pytest.raises(ValueError, match=r"\(16, 5\), but this prior reads 16 vectors of code_dim = 3"):
        model.set_codes(torch.zeros(K, 5))
    with pytest.raises(ValueError, match="this prior reads none"):
        prior().set_codes(torch.zeros(K, 5))


def test_without_positions_a_grid_may_be_larger_than_the_constructor_said():
    model, grid = prior(position="none"), grids(2, 6, 9)
    with torch.inference_mode():
        whole, steps, tokens = model(grid)[0].flatten(1, 2), model.steps(2, 6, 9), grid.flatten(1)
        assert torch.allclose(steps(tokens[:, :30]), whole[:, 30], atol=1e-5)
        assert torch.allclose(steps(tokens[:, 30:31]), whole[:, 31], atol=1e-5)
    assert model.generate(1, 6, 9, generator=torch.Generator().manual_seed(0)).shape == (1, 6, 9)


@pytest.mark.parametrize("wrong", [-1, K, K + 3])
def test_a_prefix_of_tokens_that_do_not_exist_is_refused(wrong):
    prefix = grids(2)[:, :2].clone()
    prefix[1, 0, 1] = wrong
    with pytest.raises(ValueError, match=f"grid to continue holds token {wrong}, .* 0 to {K - 1}"):
        prior().generate(2, *GRID, prefix=prefix)


# --- sampling -------------------------------------------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize("rows", [None, 0, 1, 3, 4])
def test_greedy_tokens_are_the_naive_samplers(position, rows):
    model = prior(position=position)
    prefix = None if rows is None else grids(3, seed=7)[:, :rows]
    fast = model.generate(3, *GRID, temperature=0, prefix=prefix)
    assert fast.dtype == torch.int64 and torch.equal(fast, naive_sampler(model, 3, *GRID, prefix=prefix, temperature=0))
    if rows:
        assert torch.equal(fast[:, :rows], prefix)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.9}])
def test_drawn_tokens_are_the_naive_samplers(options):
    model = prior()
    fast = model.generate(3, *GRID, generator=torch.Generator().manual_seed(1), **options)
    slow = naive_sampler(model, 3, *GRID, generator=torch.Generator().manual_seed(1), **options)
    assert torch.equal(fast, slow)


def test_a_seed_repeats_and_other_seeds_differ():
    model = prior()
    draws = [model.generate(2, *GRID, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0][0], draws[0][1])  # the grids of one batch are drawn on their own
    assert 0 <= min(d.min() for d in draws) and max(d.max() for d in draws) < K


def test_samples_follow_the_models_probabilities():
    """All nine 1x2 grids of 3 tokens, drawn 9000 times."""
    model = prior(n_tokens=3)
    everything = torch.tensor(list(itertools.product(range(3), repeat=2))).view(-1, 1, 2)
    with torch.no_grad():
        p = model(everything)[0].log_softmax(dim=-1).gather(-1, everything[..., None]).sum(dim=(1, 2, 3)).exp()
    drawn = model.generate(9000, 1, 2, generator=torch.Generator().manual_seed(0)).flatten(1)
    counts = torch.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9)
    assert ((counts - 9000 * p) ** 2 / (9000 * p)).sum() < 26.1  # chi-square, 8 degrees of freedom, 1 in 1000


def test_generating_does_without_dropout_and_leaves_the_mode_as_it_was():
    model = prior(dropout=0.5)
    expected = model.generate(1, *GRID, temperature=0)
    model.train()
    assert torch.equal(model.generate(1, *GRID, temperature=0), expected) and model.training
    with pytest.raises(ValueError):
        model.generate(1, *GRID, top_k=0)
    assert model.training and not model.eval().training


TOO_LARGE = [("2d", (5, 6)), ("2d", (4, 7)), ("2d", (1, 24)), ("1d", (5, 5)), ("1d", (1, 25))]


@pytest.mark.parametrize("position, size", TOO_LARGE)
def test_too_large_a_grid_is_refused_with_the_remedy(position, size):
    model = prior(position=position)
    for call in (lambda: model(grids(1, *size)), lambda: model.generate(1, *size)):
        with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]}.*4x6.*--height {size[0]} --width {size[1]}"):
            call()


def test_a_one_dimensional_position_knows_the_number_of_positions_alone():
    assert prior(position="1d")(grids(1, 3, 8))[0].shape == (1, 3, 8, K)


# --- training -------------------------------------------------------------------------------------------------------------


def test_loss_is_the_cross_entropy_in_nats_and_bits():
    model, grid = prior(), grids(3)
    losses, log_p = model.loss(grid), model(grid)[0].detach().double().log_softmax(dim=-1)
    nats = -sum(log_p[b, i, j, grid[b, i, j]] for b in range(3) for i in range(4) for j in range(6))
    assert math.isclose(losses["loss"].item(), nats / 72, rel_tol=1e-5)
    assert math.isclose(losses["bits_per_image"], nats / 3 / math.log(2), rel_tol=1e-5)


def test_an_untrained_model_is_about_as_good_as_guessing():
    """A start with a far higher loss wastes the first updates."""
    model = AutoregressiveModel(d_latent=64, n_tokens=256, n_layers=2, height=4, width=6)
    assert math.log(256) - 0.1 < model.loss(grids(4, n_tokens=256))["loss"] < 1.1 * math.log(256)


@every_mode
def test_one_batch_can_be_overfitted(position):
    """Four grids: two bits tell which one it is, the rest can be known by heart."""
    model, grid = build("AutoregressiveModel", d_latent=32, position=position), grids(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        losses = model.loss(grid)
        losses["loss"].backward()
        optimizer.step()
    assert 1.9 < losses["bits_per_image"] < 3, losses  # of 96 at the start
    known = model.generate(4, *GRID, temperature=0, prefix=grid[:, :1])
    assert torch.equal(known, grid)  # and it completes them


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_activations_changes_no_gradient(dropout):
    gradients = []
    for recompute in (False, True):
        model = build("AutoregressiveModel", dropout=dropout, recompute=recompute)
        torch.manual_seed(5)
        model.loss(grids(2))["loss"].backward()
        gradients.append({k: p.grad for k, p in model.named_parameters()})
    assert all(torch.allclose(g, gradients[1][k], atol=1e-6) for k, g in gradients[0].items())


def test_dropout_is_for_training_alone():
    model = build("AutoregressiveModel", dropout=0.5)
    grid = grids(1)
    assert not torch.equal(model(grid)[0], model(grid)[0])
    assert torch.equal(model.eval()(grid)[0], model(grid)[0])


def test_images_are_the_datas_and_as_many_samples():
    pictures = prior().images(grids(6))
    assert torch.equal(pictures["data"], grids(6)[:4]) and pictures["samples"].shape == (4, *GRID)


# --- shapes and defaults --------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.sampled_from(MODES), st.integers(1, 8))
def test_forward_gives_logits_for_every_position(B, h, w, position, neighbours):
    model = prior(position=position, neighbours=neighbours)
    logits, extra = model(grids(B, h, w))
    assert logits.shape == (B, h, w, K) and logits.isfinite().all() and extra == {}


def test_its_course_arguments_and_defaults():
    config = AutoregressiveModel().config
    assert (config["d_latent"], config["n_tokens"]) == (128, 1024)
    assert AutoregressiveModel(16, 5)(grids(1, n_tokens=5))[0].shape == (1, *GRID, 5)  # in this order
    assert callable(autoregressive.load) and set(TINY["AutoregressiveModel"]) <= set(config)
