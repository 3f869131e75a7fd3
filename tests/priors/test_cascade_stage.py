"""A stage of a cascade: causality at every position, the cache against the whole forward pass, and what it refuses."""

import itertools
import math

import pytest
import torch
from conftest import GRID, TINY, K, batch_for, build
from hypothesis import given, settings
from hypothesis import strategies as st

from homework import CascadeStage
from homework.core import checkpoint
from homework.nn.blocks import ACTIVATIONS
from homework.nn.transformer import DecoderLayer
from homework.priors import sampling

N, HC, WC, KC = GRID[0] * GRID[1], 2, 3, 5
# the default stage, one with a window, decoders alone, and coarse grids whose sides do not divide the fine ones
KINDS = {
    "whole": {},
    "window": {"use_sliding_window": True, "sliding_window": 5},
    "decoder": {"num_enc_layers": 0},
    "class": {"num_enc_layers": 0, "coarse_height": 1, "coarse_width": 1},
    "odd": {"coarse_height": 3, "coarse_width": 4, "use_sliding_window": True, "sliding_window": 7, "neighbours": 1},
    "finer above": {"coarse_height": 5, "coarse_width": 7},
    # those that read vectors in place of tokens
    "context": {"context_dim": 3, "num_enc_layers": 1},
    "windowed context": {"context_dim": 3, "num_enc_layers": 0, "use_sliding_window": True, "sliding_window": 5},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_kind_on_tokens = pytest.mark.parametrize("kind", [kind for kind in KINDS if "context" not in kind])


def stage(kind: str = "whole", seed: int = 0, **options) -> CascadeStage:
    """A tiny one in eval mode, in float64, with every parameter off its starting value (modulations start at zero)."""
    model = build("CascadeStage", seed, **KINDS[kind] | options).eval().double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=p.dtype))
    return model


def changed(grid: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """(1,h,w) -> (h*w,h,w): in row t token t is another one."""
    n = grid.numel()
    rows = grid.flatten().repeat(n, 1)
    rows[range(n), range(n)] = (rows[range(n), range(n)] + 1 + torch.arange(n) % (n_tokens - 1)) % n_tokens
    return rows.view(n, *grid.shape[1:])


# --- causality ------------------------------------------------------------------------------------------------------------


@every_kind
def test_a_fine_token_moves_later_positions_alone(kind):
    model = stage(kind)
    coarse, fine = batch_for(model, 1)
    with torch.no_grad():
        before = model((coarse, fine))[0].flatten(1, 2)  # (1,N,K)
        after = model((coarse.expand(N, *coarse.shape[1:]), changed(fine, K)))[0].flatten(1, 2)  # (N,N,K)
    moved = (after - before).abs().amax(dim=-1)  # [t, n]: how far the logits at n follow token t
    for t in range(N):
        assert moved[t, : t + 1].max() <= 1e-12, f"token {t} is seen at {int(moved[t, : t + 1].argmax())}"
        assert t + 1 == N or moved[t, t + 1] > 1e-9, f"token {t} is not seen at the next position"
        assert "use_sliding_window" in KINDS[kind] or t + 1 == N or moved[t, t + 1 :].min() > 1e-9


@every_kind_on_tokens
def test_a_coarse_token_moves_every_position(kind):
    model = stage(kind)
    coarse, fine = batch_for(model, 1)
    others = changed(coarse, KC)
    with torch.no_grad():
        moved = (model((others, fine.expand(len(others), -1, -1)))[0] - model((coarse, fine))[0]).abs().amax(dim=-1)
    assert moved.min() > 1e-9  # the first position too


def test_a_window_hides_what_is_further_back():
    """One layer and one neighbour: of the fine tokens, position n sees n-1 (its neighbour) to n-3 (that of position n-2)."""
    model = stage(use_sliding_window=True, sliding_window=3, num_dec_layers=1, neighbours=1)
    coarse, fine = batch_for(model, 1)
    with torch.no_grad():
        after = model((coarse.expand(N, -1, -1), changed(fine, K)))[0].flatten(1, 2)
        moved = (after - model((coarse, fine))[0].flatten(1, 2)).abs().amax(dim=-1) > 1e-12
    distance = torch.arange(N) - torch.arange(N)[:, None]  # [t, n]
    assert torch.equal(moved, (distance >= 1) & (distance <= 3))


@pytest.mark.parametrize("kind", ["whole", "window", "class"])
def test_probabilities_of_all_grids_sum_to_one(kind):
    model = stage(kind, n_tokens=3, height=2, width=2, sliding_window=2)
    everything = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    coarse = batch_for(model, 1)[0].expand(len(everything), -1, -1)
    with torch.no_grad():
        logits = model((coarse, everything))[0].log_softmax(dim=-1)
    p = logits.gather(-1, everything[..., None]).sum(dim=(1, 2, 3)).exp()
    assert math.isclose(p.sum(), 1, rel_tol=1e-9) and p.min() > 0 and p.max() / p.min() > 1.2


@pytest.mark.parametrize("reach, layers", [(1, 0), (3, 1), (5, 2)])
def test_a_position_sees_the_vectors_around_it(reach, layers):
    """Of a convolution of 3x3, and 5x5 more by each block; here of the first position, which has no other to attend to."""
    model = stage("context", num_enc_layers=layers, height=8, width=8)
    context, fine = torch.zeros(1, 8, 8, 3, dtype=torch.float64), torch.zeros(1, 8, 8, dtype=torch.int64)
    with torch.no_grad():
        expected = model((context, fine))[0][0, 0, 0]
        for i in range(8):
            other = context.clone()
            other[0, i, 0] = 1
            assert torch.equal(model((other, fine))[0][0, 0, 0], expected) == (i > reach)


@every_kind_on_tokens
def test_the_coarse_position_over_a_fine_one_is_the_nearest_by_proportion(kind):
    model = stage(kind)
    hc, wc = model.config["coarse_height"], model.config["coarse_width"]
    over = [r * hc // GRID[0] * wc + c * wc // GRID[1] for r in range(GRID[0]) for c in range(GRID[1])]
    assert model.coarse_position.tolist() == list(range(model.prefix)) + over


# --- the incremental form -------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("known", [0, 7, 23])
def test_steps_are_the_forward_pass_at_every_position(kind, known):
    model = stage(kind)
    coarse, fine = batch_for(model)
    with torch.inference_mode():
        whole, tokens = model((coarse, fine))[0].flatten(1, 2), fine.flatten(1)
        steps = model.steps(coarse, *GRID)
        assert torch.allclose(steps(tokens[:, :known]), whole[:, known], atol=1e-10)
        for n in range(known + 1, N):
            assert torch.allclose(steps(tokens[:, n - 1 : n]), whole[:, n], atol=1e-10), n


@every_kind
@pytest.mark.parametrize("known", [0, 9, 22])
def test_selected_steps_are_those_of_the_selected_grids(kind, known):
    """The batch grows, then shrinks, then is put in another order; equal rows then continue in different ways."""
    model = stage(kind)
    coarse, fine = batch_for(model)
    with torch.inference_mode():
        steps, tokens = model.steps(coarse, *GRID), fine.flatten(1).clone()
        steps(tokens[:, :known])
        draws = torch.Generator().manual_seed(0)
        for rows in ([2, 0, 2, 1, 1], [4, 1, 0], [1], [0, 0]):
            if known == N - 1:
                break
            steps.select(torch.tensor(rows))
            coarse, tokens = coarse[rows], tokens[rows]
            tokens[:, known:] = torch.randint(K, (len(rows), N - known), generator=draws)
            known += 1
            logits = steps(tokens[:, known - 1 : known])
            expected = model((coarse, tokens.view(-1, *GRID)))[0].flatten(1, 2)[:, known]
            assert torch.allclose(logits, expected, atol=1e-10)


def test_conditions_are_computed_once(monkeypatch):
    model, calls = stage(), []
    coarse, fine = batch_for(model)
    counted = {"encode": CascadeStage.encode, "_modulation": CascadeStage._modulation}
    for name, f in counted.items():
        monkeypatch.setattr(CascadeStage, name, lambda *args, f=f, name=name: (calls.append(name), f(*args))[1])
    model.generate(coarse, *GRID, generator=torch.Generator().manual_seed(0))
    assert sorted(calls) == ["_modulation", "_modulation", "encode"]


@torch.no_grad()
def naive_sampler(model, coarse, prefix=None, **options) -> torch.Tensor:
    """The reference: a whole forward pass for every token, no cache."""
    tokens = torch.zeros(len(coarse), N, dtype=torch.int64)
    start = 0 if prefix is None else prefix[0].numel()
    if prefix is not None:
        tokens[:, :start] = prefix.flatten(1)
    for n in range(start, N):
        logits, _ = model((coarse, tokens.view(-1, *GRID)))
        tokens[:, n] = sampling.sample(logits.flatten(1, 2)[:, n], **options)
    return tokens.view(-1, *GRID)


@every_kind
def test_drawn_tokens_are_the_naive_samplers(kind):
    model = stage(kind)
    coarse, fine = batch_for(model)
    for options in ({"temperature": 0, "prefix": fine[:, :2]}, {"temperature": 0.7, "top_k": 5}):
        fast = model.generate(coarse, *GRID, generator=torch.Generator().manual_seed(1), **options)
        slow = naive_sampler(model, coarse, generator=torch.Generator().manual_seed(1), **options)
        assert fast.dtype == torch.int64 and torch.equal(fast, slow)


@every_kind
def test_many_draws_and_beam_search_find_more_probable_grids(kind):
    """Their naive forms are in test_sampling.py; here, that they go with a stage's steps."""
    model = stage(kind)
    coarse, _ = batch_for(model)

    def nats(grids):
        with torch.no_grad():
            p = model((coarse, grids))[0].log_softmax(dim=-1)
        return -p.gather(-1, grids[..., None]).sum(dim=(1, 2, 3))

    draws = [{}, {"num_beam": 16, "beam_width": 3}]
    one, many = (model.generate(coarse, *GRID, generator=torch.Generator().manual_seed(0), **o) for o in draws)
    best = model.generate(coarse, *GRID, beams=4)
    assert (nats(many) < nats(one)).all() and (nats(best) < nats(many)).all()
    assert torch.equal(best, model.generate(coarse, *GRID, beams=4))


def test_generating_does_without_dropout_and_leaves_the_mode_as_it_was():
    model = stage(dropout=0.5)
    coarse, _ = batch_for(model)
    expected = model.generate(coarse, *GRID, temperature=0)
    model.train()
    assert torch.equal(model.generate(coarse, *GRID, temperature=0), expected) and model.training
    with pytest.raises(ValueError, match="top_k"):
        model.generate(coarse, *GRID, top_k=0)
    assert model.training and not model.eval().training


# --- what it refuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(3, 2, 4, 6), (2, 4, 4, 6), (2, 3, 6, 4), (2, 3, 4, 5), (1, 1, 4, 6), (4, 6, 4, 6)])
def test_grids_of_other_sizes_are_refused_with_what_is_needed(sizes):
    model, (hc, wc, h, w) = stage(), sizes
    coarse, fine = torch.zeros(1, hc, wc, dtype=torch.int64), torch.zeros(1, h, w, dtype=torch.int64)
    said = f"refines 2x3 grids to 4x6, but was given {hc}x{wc} to refine to {h}x{w}"
    for call in (lambda: model((coarse, fine)), lambda: model.steps(coarse, h, w), lambda: model.generate(coarse, h, w)):
        with pytest.raises(ValueError, match=said):
            call()


@pytest.mark.parametrize("token", [-1, "first", 1000])
@pytest.mark.parametrize("which, codes", [("coarse", KC), ("fine", K)])
def test_tokens_out_of_range_are_refused(which, codes, token):
    model, token = stage(), codes if token == "first" else token
    coarse, fine = batch_for(model)
    {"coarse": coarse, "fine": fine}[which][0, 0, 1] = token
    for call in (lambda: model.steps(coarse, *GRID)(fine[:, 0]), lambda: model.generate(coarse, *GRID, prefix=fine[:, :1])):
        said = f"{which} grid holds token {token}, .* 0 to {codes - 1}"
        with pytest.raises(ValueError, match=said), torch.inference_mode():
            call()


BAD = [
    ({"in_dim": 10, "self_attn_heads": 4}, "in_dim is 10.*multiple of self_attn_heads = 4.*change either"),
    ({"in_dim": 10, "cross_attn_heads": 3}, "in_dim is 10.*multiple of cross_attn_heads = 3.*change either"),
    ({"use_sliding_window": True, "sliding_window": 25}, "sliding_window is 25, a window longer than the grid.*1 to 24"),
    ({"use_sliding_window": True, "num_enc_layers": 0}, "use_sliding_window is true.*num_enc_layers = 0.*leave it out"),
    ({"hidden_activation": "swish"}, "hidden_activation is 'swish'.*relu, relu2, leaky_relu, elu, gelu, silu, tanh"),
    ({"neighbours": 9}, "neighbours is 9.*1 to 8"),
    ({"dropout": 1.0}, r"dropout is 1\.0.*below 1"),
    ({"model_lr": 0}, "model_lr is 0.*above 0"),
    ({"recompute": 1}, "recompute is 1.*True or False"),
    ({"context_dim": -1}, "context_dim is -1.*at least 0"),
    ({"use_sliding_window": "yes"}, "use_sliding_window is 'yes'.*True or False"),
]


@pytest.mark.parametrize("options, said", BAD)
def test_bad_configurations_are_refused_with_the_remedy(options, said):
    with pytest.raises(ValueError, match=said):
        build("CascadeStage", **options)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 5), st.booleans(), st.integers(0, 1), st.integers(1, 30))
@settings(max_examples=40)
def test_a_configuration_is_refused_or_works(D, heads, cross, windowed, encoder, window):
    options = {"in_dim": D, "self_attn_heads": heads, "cross_attn_heads": cross, "use_sliding_window": windowed,
               "num_enc_layers": encoder, "sliding_window": window}  # fmt: skip
    good = D % heads == 0 and D % cross == 0 and (not windowed or (encoder and window <= N))
    if good:
        model = build("CascadeStage", **options)
        assert model(batch_for(model))[0].isfinite().all()
    else:
        with pytest.raises(ValueError, match="is .*; (change|leave|it must)"):
            build("CascadeStage", **options)


# --- training -------------------------------------------------------------------------------------------------------------


def test_loss_is_the_cross_entropy_in_nats_and_bits():
    model = stage()
    coarse, fine = batch = batch_for(model)
    losses, log_p = model.loss(batch), model(batch)[0].detach().log_softmax(dim=-1)
    nats = -float(log_p.gather(-1, fine[..., None]).sum())
    assert math.isclose(losses["loss"].item(), nats / (3 * N), rel_tol=1e-5)
    assert math.isclose(losses["bits_per_image"], nats / 3 / math.log(2), rel_tol=1e-5)


def test_an_untrained_model_is_about_as_good_as_guessing():
    model = build("CascadeStage", in_dim=64, n_tokens=256)
    assert math.log(256) - 0.1 < model.loss(batch_for(model, 4))["loss"] < 1.1 * math.log(256)


@pytest.mark.parametrize("kind", ["window", "class", "context"])
def test_one_batch_can_be_overfitted(kind):
    """Four grids, each with a coarse one of its own, which tells all of it: no bits are left."""
    model = build("CascadeStage", **{"in_dim": 16, "num_enc_layers": 1, "num_dec_layers": 1} | KINDS[kind])
    coarse, fine = batch_for(model, 4)
    coarse[:, 0, 0] = torch.arange(4) if kind != "context" else torch.eye(4)[:, :3]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        losses = model.loss((coarse, fine))
        losses["loss"].backward()
        optimizer.step()
    assert losses["bits_per_image"] < 1, losses  # of 96 at the start
    assert torch.equal(model.generate(coarse, *GRID, temperature=0), fine)
    assert torch.equal(model.generate(coarse, *GRID, beams=2), fine)


@every_kind
def test_recomputing_activations_changes_no_gradient(kind):
    gradients = []
    for recompute in (False, True):
        model = build("CascadeStage", dropout=0.3, recompute=recompute, **KINDS[kind])
        torch.manual_seed(5)
        model.loss(batch_for(model))["loss"].backward()
        gradients.append({k: p.grad for k, p in model.named_parameters()})
    assert all(torch.allclose(g, gradients[1][k], atol=1e-6) for k, g in gradients[0].items())


@every_kind
def test_every_parameter_gets_a_gradient_and_is_used(kind):
    model = build("CascadeStage", **KINDS[kind])
    model.loss(batch_for(model))["loss"].backward()
    assert [k for k, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@every_kind
def test_a_checkpoint_gives_the_same_stage(kind, tmp_path):
    model = build("CascadeStage", **KINDS[kind]).eval()
    checkpoint.save(model, tmp_path / "m.pth")
    other = checkpoint.load(tmp_path / "m.pth", "CascadeStage")
    with torch.no_grad():
        assert torch.equal(model(batch_for(model))[0], other(batch_for(model))[0]) and other.config == model.config


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    model = build("CascadeStage", hidden_activation=activation)
    assert model(batch_for(model))[0].isfinite().all()
    x = torch.linspace(-2, 2, 9)
    y, zero = ACTIVATIONS[activation]()(x), 0.5 if activation == "sigmoid" else 0
    assert y[4] == zero and (y[5:] > zero).all() and (y[:4] <= zero).all()


def test_a_condition_makes_no_difference_to_a_new_layer_s_norms():
    layer, x = DecoderLayer(8, 2, 5, 0, 16, "gelu", 2, 0.0), torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    a, b = (layer(x, layer.modulation(c)) for c in (torch.zeros(2, 5, 8), torch.ones(2, 5, 8)))
    assert torch.equal(a, b)


def test_images_are_the_datas_and_as_many_samples_of_the_same_coarse_grids():
    model = stage()
    coarse, fine = batch_for(model, 6)
    pictures = model.images((coarse, fine))
    expected = model.generate(coarse[:4], *GRID, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pictures["data"], fine[:4]) and torch.equal(pictures["samples"], expected)


def test_defaults():
    model = CascadeStage(model_lr=3e-4)
    assert model.learning_rate == 3e-4 and model.set_progress(0.5) is None
    assert model.encode(torch.zeros(2, 10, 15, dtype=torch.int64)).shape == (2, 150, 128)
    assert set(TINY["CascadeStage"]) <= set(model.config)
