"""Vector quantization: nearest entries, gradients, moving averages, restarts, several processes, and its tokenizers."""

import copy
import math
import os
import runpy
import signal

import pytest
import torch
import torch.nn.functional as F
from conftest import GRID, SIZE, TINY, K, batch_for, build, run, sentence
from hypothesis import given
from hypothesis import strategies as st

from homework import ImageDataset
from homework.core import checkpoint, files
from homework.tokenizers.base import RatePredictor, usage
from homework.tokenizers.vector_quantizer import VectorQuantizer, nearest
from homework.tokenizers.vq import VQVAE, VQPatchAutoEncoder
from homework.training.loop import Run

VQ = "VQPatchAutoEncoder"
both = pytest.mark.parametrize("name", [VQ, "VQVAE"])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizer(n_tokens: int = 6, code_dim: int = 3, fresh: bool = False, **options) -> VectorQuantizer:
    """One whose entries are all in use, or ``fresh`` from its constructor."""
    torch.manual_seed(0)
    made = VectorQuantizer(n_tokens, code_dim, **options)
    if not fresh:
        made.frequency.fill_(1 / n_tokens)
        made.updates.fill_(10**6)
    return made


# --- the nearest entry ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 99))
def test_nearest_by_brute_force(n, K, d, seed):
    x, entries = draw(n, d, seed=seed), draw(K, d, seed=seed + 100)
    distances = (x[:, None].double() - entries.double()).square().sum(dim=-1)  # (n,K)
    index = nearest(x, entries)
    assert index.dtype == torch.int64 and index.shape == (n,)
    assert torch.allclose(distances.gather(1, index[:, None])[:, 0], distances.min(dim=1).values, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 50, 64, 1000, 10**9])
def test_in_pieces_as_in_one(monkeypatch, at_once):
    sizes, addmm = [], torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: (sizes.append(a[1].shape[0] * a[2].shape[1]), addmm(*a, **k))[1])
    x, entries = draw(100, 5), draw(50, 5, seed=1)
    assert torch.equal(nearest(x, entries, at_once), torch.cdist(x, entries).argmin(dim=1))
    assert max(sizes) <= max(at_once, 50)  # one vector's distances are the least there can be
    assert sum(sizes) == 100 * 50


def test_the_first_of_equals_is_taken():
    entries = torch.tensor([[3.0, 0], [1, 0], [0, 1], [1, 0], [0, -1]]).repeat(20, 1)
    x = torch.tensor([[2.0, 0], [1, 0], [0, 0], [0, 2]])  # as far from (3,0) as from (1,0); ...; as far from 1, 2 and 4
    assert nearest(x, entries).tolist() == [0, 1, 1, 2]


def test_many_entries():
    entries = F.normalize(draw(2**16, 8), dim=-1)
    wanted = torch.arange(0, 2**16, 97)
    assert torch.equal(nearest(entries[wanted], entries), wanted)


# --- gradients and losses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_straight_through(ema_decay):
    """The value is exactly the entry's, and the gradient exactly the one that comes from above."""
    made, x, g = quantizer(ema_decay=ema_decay), (100 * draw(4, 5, 3)).requires_grad_(), draw(4, 5, 3, seed=1)
    q, index, _ = made(x)
    assert torch.equal(q, made.codebook[index]) and index.shape == (4, 5)
    assert torch.allclose(q, x + (q - x).detach(), atol=1e-4)
    q.backward(g)
    assert torch.equal(x.grad, g) and made.codebook.grad is None


def test_straight_through_on_the_sphere():
    """... times the slope of u = x/|x|: (g - (g.u) u)/|x|."""
    made, x, g = quantizer(l2_norm=True), draw(20, 3).requires_grad_(), draw(20, 3, seed=1)
    q, index, _ = made(x)
    assert torch.allclose(q.norm(dim=-1), torch.ones(20)) and torch.equal(q.detach(), made.decode_index(index).detach())
    q.backward(g)
    with torch.no_grad():
        u = F.normalize(x, dim=-1)
        assert torch.allclose(x.grad, (g - (g * u).sum(-1, keepdim=True) * u) / x.norm(dim=-1, keepdim=True), atol=1e-6)


def test_each_loss_moves_its_own_side_alone():
    made, x = quantizer(), draw(20, 3).requires_grad_()
    _, index, losses = made(x)
    error = (x - made.codebook[index]).detach()
    for loss in losses.values():
        assert torch.allclose(loss.detach(), error.square().mean())
    by_x, by_entries = torch.autograd.grad(losses["commitment"], (x, made.codebook), allow_unused=True, retain_graph=True)
    assert torch.allclose(by_x, 2 * error / 60) and by_entries is None
    by_x, by_entries = torch.autograd.grad(losses["codebook"], (x, made.codebook), allow_unused=True)
    assert by_x is None and torch.allclose(by_entries, torch.zeros(6, 3).index_add(0, index, -2 * error / 60), atol=1e-7)


def test_moving_averages_replace_the_codebook_loss():
    assert quantizer(ema_decay=0.9)(draw(4, 3))[2].keys() == {"commitment"}
    assert not quantizer(ema_decay=0.9).codebook.requires_grad  # so no optimizer, and no weight decay, gets at it


def test_weights_of_the_losses():
    x = batch_for(build(VQ))
    one, other = build(VQ).loss(x), build(VQ, codebook_weight=3.0, commitment_weight=0.5).loss(x)
    assert torch.allclose(other["codebook_loss"], 3 * one["codebook_loss"])
    assert torch.allclose(other["commitment_loss"], 2 * one["commitment_loss"])
    assert torch.allclose(one["commitment_loss"], 0.25 * one["codebook_loss"])  # the paper's beta
    assert torch.allclose(one["loss"], one["mse"] + one["codebook_loss"] + one["commitment_loss"])


@pytest.mark.parametrize("l2_norm", [True, False])
def test_weight_decay_does_not_hurt(l2_norm):
    """AdamW at the rates of a training, without a gradient for longer than an unused entry lives."""
    made, x = quantizer(64, 8, l2_norm=l2_norm), draw(500, 8)
    before = made.entries().clone(), made.encode_index(x)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(300):
        made.codebook.grad = torch.zeros_like(made.codebook)
        optimizer.step()
    assert made.codebook.norm() < 0.998 * before[0].norm() or l2_norm  # decay there was
    assert torch.allclose(made.entries(), before[0], atol=1e-4 if l2_norm else 0.005)
    assert (made.encode_index(x) == before[1]).float().mean() > (0.99 if l2_norm else 0.95)


# --- moving averages ------------------------------------------------------------------------------------------------------


def test_moving_averages_are_the_papers():
    """Appendix A.1, with its own m and N, on batches of one size."""
    made, gamma, n = quantizer(ema_decay=0.8, restart_below=0.0), 0.8, 40
    N = torch.full((6,), n / 6, dtype=torch.float64)
    m = made.codebook.double() * N[:, None]
    for update in range(12):
        x = draw(n, 3, seed=update) + update / 4
        index = made(x)[1]
        chosen = F.one_hot(index, 6).double()  # (n,K)
        N = gamma * N + (1 - gamma) * chosen.sum(dim=0)
        m = gamma * m + (1 - gamma) * chosen.T @ x.double()
        made.after_update()
        assert torch.allclose(made.codebook.double(), m / N[:, None], atol=1e-5)
        assert torch.allclose(made.frequency.double(), N / n, atol=1e-6)


def test_entries_that_are_never_chosen_stay_finite():
    made = quantizer(ema_decay=0.5, restart_below=0.0)
    with torch.no_grad():
        made.codebook[3] = 1e3
    for _ in range(140):  # down to 2^-140, nearly the least float there is
        made(torch.zeros(5, 3))
        made.after_update()
    assert made.codebook.isfinite().all() and torch.equal(made.codebook[3], torch.full((3,), 1e3))


def test_accumulated_batches_count_as_one():
    one, two, x = quantizer(ema_decay=0.8), quantizer(ema_decay=0.8), draw(40, 3)
    one(x)
    for part in x.split(10):
        two(part)
    for made in (one, two):
        made.after_update()
    assert torch.allclose(one.codebook, two.codebook, atol=1e-6) and torch.allclose(one.frequency, two.frequency)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_weights_change_after_the_update_alone(ema_decay):
    made, x = quantizer(ema_decay=ema_decay, fresh=True), draw(40, 3)
    before = copy.deepcopy(made.state_dict())

    def changed() -> bool:
        return any(not torch.equal(v, before[k]) for k, v in made.state_dict().items())

    made(x)
    assert not changed()
    made.statistics = None
    made.eval()(x)
    with torch.no_grad():
        made.train()(x)
    made.encode_index(x)
    made.after_update()  # nothing was to be learned from any of these
    assert not changed()
    made(x)
    made.after_update()
    assert changed()


# --- first entries and restarts -------------------------------------------------------------------------------------------


def rows_of(entries: torch.Tensor, x: torch.Tensor) -> list[int]:
    """Which row of ``x`` each entry equals; -1 for none."""
    same = (entries[:, None] == x).all(dim=-1)  # (K,n)
    return [int(row.nonzero()[0, 0]) if row.any() else -1 for row in same]


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("restart_below", [0.0, 0.1])
def test_the_first_entries_are_vectors_of_the_first_batch(ema_decay, restart_below):
    made, x = quantizer(fresh=True, ema_decay=ema_decay, restart_below=restart_below), draw(4, 5, 3)
    made(x)
    made.after_update()
    rows = rows_of(made.codebook, x.flatten(0, 1))
    assert -1 not in rows and len(set(rows)) == 6
    assert torch.allclose(made.frequency, torch.tensor(1 / 6)) and made.updates == 1


def test_of_few_vectors_each_is_taken_once_and_the_rest_wait():
    made, batches = quantizer(n_tokens=10, fresh=True), [draw(4, 3, seed=i) for i in range(3)]
    made.updates.fill_(10**6)
    with torch.no_grad():
        made.codebook += 1e3  # too far away to be chosen
    for i, x in enumerate(batches):
        made(x)
        made.after_update()
        rows = rows_of(made.codebook, torch.cat(batches[: i + 1]))
        assert len({row for row in rows if row >= 0}) == min(4 * (i + 1), 10) == sum(row >= 0 for row in rows)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_dead_entries_are_restarted_at_data(ema_decay):
    made, x = quantizer(ema_decay=ema_decay), draw(30, 3)
    with torch.no_grad():
        made.codebook[[1, 4]] = 50.0  # too far away to be chosen
    made.frequency[[1, 4]] = torch.tensor([0.09, 0.5]) / 6  # one of them for long
    live, before = [0, 2, 3, 4, 5], made.codebook.clone()
    expected = quantizer(ema_decay=ema_decay, restart_below=0.0)
    expected.load_state_dict(made.state_dict())
    for each in (made, expected):
        each(x)
        each.after_update()
    assert rows_of(made.codebook[1:2], x) != [-1] and made.frequency[1] == torch.tensor(1 / 6)
    assert torch.equal(made.codebook[live], expected.codebook[live])
    assert torch.equal(made.frequency[live], expected.frequency[live])
    assert torch.equal(made.codebook[4], before[4]) and torch.equal(expected.codebook[1], before[1])
    index = made.encode_index(x[rows_of(made.codebook[1:2], x)])
    assert index.tolist() == [1]  # and is chosen from now on
    if ema_decay:  # of its averages nothing is left: the next ones start from the new position
        target = draw(1, 3, seed=9)
        at = made.codebook[1].clone()
        made.accumulate_statistics(target, torch.tensor([1]))
        made.after_update()
        N = 0.9 / 6 + 0.1
        assert torch.allclose(made.codebook[1], (0.9 / 6 * at + 0.1 * target[0]) / N, atol=1e-5)


def test_no_restarts_in_the_last_fifth_of_a_training():
    model = build("VQPatchAutoEncoder", restart_below=1.0)
    for f, moves in (0.0, True), (0.79, True), (0.8, False), (0.99, False), (0.0, True):
        model.set_progress(f)
        model.quantizer.updates.fill_(5)
        model.train().loss(batch_for(model))  # entries that nobody chose are dead, whatever the threshold
        before = model.quantizer.codebook.detach().clone()
        model.after_update()
        assert torch.equal(before, model.quantizer.codebook) != moves, f


def test_restarts_depend_on_the_update_alone():
    a, b, c = (quantizer(n_tokens=64, fresh=True) for _ in range(3))
    c.updates.fill_(7)
    for i, made in enumerate((a, b, c)):
        torch.manual_seed(i)
        made(draw(500, 3))
        made.after_update()
    assert torch.equal(a.codebook, b.codebook) and not torch.equal(a.codebook, c.codebook)


def test_all_entries_of_a_bad_start_come_into_use():
    """Eight clusters; all entries but one start far from any. (Some clusters may share one in the end, as with k-means.)"""
    made = quantizer(8, 2, ema_decay=0.9)
    angle = torch.arange(8) * math.pi / 4
    centres = 10 * torch.stack([angle.cos(), angle.sin()], dim=1)
    with torch.no_grad():
        made.codebook[1:] += 1e4
    assert len(made.encode_index(centres).unique()) == 1
    for i in range(200):
        x = centres.repeat(16, 1) + 0.1 * draw(128, 2, seed=i)
        made(x)
        made.after_update()
    assert len(made.encode_index(x).unique()) == 8
    assert (made.decode_index(made.encode_index(x)) - x).square().mean() < 0.1 * x.square().mean()


TWO = """
import sys, torch
from homework.training import distributed
from homework.tokenizers.vector_quantizer import VectorQuantizer

distributed.setup(torch.device("cpu"))
rank, world = distributed.rank(), distributed.world_size()
states = []
for ema_decay in 0.0, 0.9:
    torch.manual_seed(0)
    made = VectorQuantizer(16, 3, ema_decay=ema_decay, restart_below=0.5)
    restarted = 0
    for update in range(40):
        x = torch.randn(24, 3, generator=torch.Generator().manual_seed(update)) + update / 10
        made(x.view(world, -1, 3)[rank])  # each process its share
        made.after_update()
        restarted += int((made.frequency == 1 / 16).sum())
    assert restarted > 30
    states.append(made.state_dict())
every = distributed.gather(states)
if rank == 0:
    torch.save(every, sys.argv[1])
distributed.cleanup()
"""


def test_two_processes_are_one(tmp_path, monkeypatch):
    (tmp_path / "two.py").write_text(TWO)
    monkeypatch.setattr("sys.argv", ["two.py", str(tmp_path / "1.pt")])
    runpy.run_path(str(tmp_path / "two.py"))
    done = run(tmp_path / "two.py", tmp_path / "2.pt", cwd=tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    (alone,), (first, second) = (torch.load(tmp_path / f"{n}.pt") for n in (1, 2))
    for one, a, b in zip(alone, first, second, strict=True):
        for k in one:
            assert torch.equal(a[k], b[k]), k  # bit for bit, so they never drift apart
            assert torch.allclose(one[k].float(), a[k].float(), atol=1e-5), k


# --- measures -------------------------------------------------------------------------------------------------------------


def test_usage_entropy_and_perplexity_by_hand():
    measures = usage(torch.tensor([[3, 3, 3, 3], [7, 7, 0, 15]]), 16)  # frequencies 4/8, 2/8, 1/8, 1/8
    assert math.isclose(measures["usage"], 4 / 16) and math.isclose(measures["entropy"], 1.75, rel_tol=1e-6)
    assert math.isclose(measures["perplexity"], 2**1.75, rel_tol=1e-6)


@both
def test_measures_of_a_batch_are_those_of_its_tokens(name):
    model = build(name)
    x = batch_for(model, B=5)
    losses = model.loss(x)
    for k, v in usage(model.encode_index(x), K).items():
        assert torch.allclose(losses[k], v)


def test_rates_are_probabilities_given_earlier_codes():
    """At every position, 2^-bits of all codes sum to one; and a code moves the bits of later positions and its own alone."""
    torch.manual_seed(0)
    predictor, entries = RatePredictor(3, 5), 3 * draw(5, 3)
    torch.nn.init.normal_(predictor.bias)
    grid = torch.randint(5, (1, 4, 5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = predictor.bits_of_entries(entries[grid], grid, entries)
        assert before.shape == grid.shape and (before > 0).all()
        for n in range(20):
            total = 0
            for k in range(5):
                other = grid.clone()
                other[0, n // 5, n % 5] = k
                bits = predictor.bits_of_entries(entries[other], other, entries).flatten()
                assert torch.allclose(bits[:n], before.flatten()[:n], atol=1e-5), n
                total += 2 ** -bits[n]
            assert math.isclose(total, 1, rel_tol=1e-4)
    code = entries[grid].requires_grad_()
    (g,) = torch.autograd.grad(predictor.bits_of_entries(code, grid, entries)[0, 0, 0], code)
    with torch.no_grad():  # at the first position, which has no context: (p - 1) times the prediction, in bits
        prediction, p = predictor.predict(code)[0, 0, 0], 2 ** -before[0, 0, 0]
    assert torch.allclose(g[0, 0, 0], (p - 1) * prediction / math.log(2), atol=1e-6) and g[0, 1:].abs().sum() == 0


def test_rate_loss_is_the_bits_of_a_token():
    model = build(VQ, rate_weight=0.01)
    losses = model.loss(batch_for(model))
    assert torch.allclose(losses["rate_loss"], 0.01 * losses["bits_per_token"]) and losses["bits_per_token"] > 0
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert build(VQ).rate is None
    assert torch.allclose(model(batch_for(model)[0])[1]["rate_loss"], model(batch_for(model)[:1])[1]["rate_loss"])


# --- the tokenizers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("l2_norm", [True, False])
@pytest.mark.parametrize("n_tokens", [1, 2, 1000])
def test_every_index_comes_back(l2_norm, n_tokens):
    model = build(VQ, n_tokens=n_tokens, l2_norm=l2_norm)
    index = torch.arange(n_tokens)[:, None, None]
    assert torch.equal(model.quantizer.encode_index(model.code_vectors(index)), index)
    assert model.code_vectors(index).shape == (n_tokens, 1, 1, 4)
    small = torch.arange(min(n_tokens, 200)).to(torch.uint8)
    assert torch.equal(model.code_vectors(small[None]), model.code_vectors(small.long()[None]))


@pytest.mark.parametrize("size", [SIZE, (23, 31), (28, 28)])
def test_tokenizer_makes_grids_with_and_without_the_batch_dimension(size):
    P = 4 if size == (28, 28) else 5  # MNIST: 7x7
    model = build(VQ, patch_size=P)
    h, w = -(-size[0] // P), -(-size[1] // P)
    x = draw(3, *size, 3).clamp(-0.5, 0.5)
    with torch.no_grad():
        grid = model.encode_index(x)
        assert grid.shape == (3, h, w) and grid.dtype == torch.int64 and 0 <= grid.min() and grid.max() < K
        assert torch.equal(model.encode(x), model.code_vectors(grid))
        whole = model.decode_index(grid)
        assert whole.shape == (3, h * P, w * P, 3)
        assert torch.equal(model(x)[0], whole[:, : size[0], : size[1]])
        for i in range(3):
            assert torch.equal(model.encode_index(x[i]), grid[i])
            assert torch.allclose(model.decode_index(grid[i]), whole[i], atol=1e-6)
            assert torch.allclose(model(x[i])[0], model(x)[0][i], atol=1e-6)


def test_a_code_for_a_whole_image_makes_only_so_many_pictures():
    model = build("VQVAE", n_tokens=3)
    x = batch_for(model, B=40)
    with torch.no_grad():
        grid, x_hat = model.encode_index(x), model(x)[0]
        assert grid.shape == (40, 1, 1) and x_hat.shape == x.shape and model.encode_index(x[0]).shape == (1, 1)
        assert torch.equal(model.decode_index(grid), x_hat)
        assert 2 <= len(x_hat.unique(dim=0)) <= 3
    assert model.patch_size == model.patch_shape == SIZE  # a grid of one, for who asks so


def test_a_size_that_the_stride_does_not_divide():
    model = build("VQVAE", height=18, width=27, stride=5)
    x = draw(2, 18, 27, 3)
    assert model(x)[0].shape == x.shape == model.decode_index(model.encode_index(x)).shape


@pytest.mark.parametrize("shape", [(2, 20, 31, 3), (30, 20, 3)])
def test_an_image_of_another_size_is_named_with_the_remedy(shape):
    with pytest.raises(ValueError, match=f"{shape[-3]}x{shape[-2]}.*20x30.*--height {shape[-3]} --width {shape[-2]}"):
        build("VQVAE").encode_index(torch.zeros(shape))


@both
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (3,)])
def test_what_is_not_an_image_is_named(name, shape):
    with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        build(name).encode_index(torch.zeros(shape))


def test_by_their_course_arguments():
    config = VQPatchAutoEncoder().config
    assert (config["patch_size"], config["latent_dim"], config["n_tokens"]) == (5, 128, 1024)
    assert VQPatchAutoEncoder(10, 16, 8).n_tokens == 8 and VQVAE(30, 40, 16, 8).n_tokens == 8


@pytest.mark.parametrize("argument, value", [("l2_norm", 1), ("ema_decay", 1), ("restart_below", 1.5), ("code_dim", 0)])
def test_bad_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value}"):
        build(VQ, **{argument: value})
    with pytest.raises(ValueError, match=f"{argument} is {value}"):
        VectorQuantizer(4, **{"code_dim": 4, argument: value})


def learn(model, x: torch.Tensor, updates: int, lr: float) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(updates):
        optimizer.zero_grad()
        losses = model.loss(x)
        losses["loss"].backward()
        optimizer.step()
        model.after_update()
    return losses


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.95}, {"l2_norm": False}], ids=str)
def test_one_batch_can_be_overfitted_with_nearly_all_codes_in_use(options, data):
    """Four frames, that is 96 patches, of 64 codes: an error far below that of the frames' mean colours."""
    model = build(VQ, n_tokens=64, code_dim=8, latent_dim=24, **options)
    x = ImageDataset("train", root=data).batch(torch.arange(4))
    grey = (x - x.mean(dim=(1, 2), keepdim=True)).square().mean()
    losses = learn(model, x, 150, 5e-3)
    assert losses["mse"] < 0.15 * grey and losses["mse"] < 0.005, f"{losses['mse']:.4f} of {grey:.4f}"
    assert losses["usage"] > 0.6 and losses["perplexity"] > 25


def test_one_code_for_an_image_learns_as_many_images_as_there_are_codes(data):
    model = build("VQVAE", n_tokens=8, latent_dim=24)
    x = ImageDataset("train", root=data).batch(torch.arange(6))
    losses = learn(model, x, 150, 5e-3)
    assert losses["usage"] == 6 / 8  # each its own
    assert losses["mse"] < 0.3 * (x - x.mean(dim=0)).square().mean()


# --- through the commands -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, d", [(VQ, 4), ("VQVAE", 4), ("BSQPatchAutoEncoder", 4)])
def test_tokenize_writes_indices_and_the_vector_of_each_code(command, data, tmp_path, name, d):
    model = build(name)
    checkpoint.save(model, tmp_path / "t.pth")
    for flags in [], ["--codes"]:
        done = command("tokenize", tmp_path / "t.pth", tmp_path / "out.pth", data / "valid", *flags)
        assert done.returncode == 0, done.stderr
        stored = files.read(tmp_path / "out.pth")
        x = ImageDataset("valid", root=data).batch(torch.arange(8))
        assert torch.equal(stored["tokens"].long(), model.encode_index(x))
    assert stored["codes"].shape == (K, d) and stored["codes"].dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(stored["codes"][stored["tokens"].long()], model.code_vectors(stored["tokens"]))


def test_codes_that_are_too_many_are_refused_wherever_the_flag_stands(command, data, tmp_path):
    checkpoint.save(build("BSQPatchAutoEncoder", codebook_bits=21), tmp_path / "t.pth")
    for words in [data / "valid", "--codes"], ["--codes", data / "valid"]:
        message = sentence(command("tokenize", tmp_path / "t.pth", tmp_path / "out.pth", *words))
        assert str(2**21) in message and "--codes" in message and not (tmp_path / "out.pth").exists()


@both
def test_generation_takes_it(command, tmp_path, name):
    checkpoint.save(build(name), tmp_path / "t.pth")
    grid = (1, 1) if name == "VQVAE" else GRID
    checkpoint.save(build("AutoregressiveModel", height=grid[0], width=grid[1]), tmp_path / "p.pth")
    for prior in tmp_path / "p.pth", "uniform":
        done = command("generation", tmp_path / "t.pth", prior, 2, tmp_path / "out", "--image_size", "20x30")
        assert done.returncode == 0 and len(list((tmp_path / "out").glob("generation_*.png"))) == 2, done.stderr


@pytest.fixture
def train(command, data, tmp_path, monkeypatch):
    """``train(cwd, ...)``: 12 updates of a tiny model in the folder ``cwd`` -> what happened."""

    def call(cwd: str, *more: str, model: str = VQ, **options):
        (tmp_path / cwd).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / cwd)
        return command("train", *arguments(data, model, **options), *more)

    return call


def arguments(data, model: str, **options) -> list[str]:
    common = {"data": data, "batch_size": 2, "epochs": 1, "device": "cpu", "warmup": 4, "ema": 0.9}
    return [model, *(f"--{k}={v}" for k, v in (common | TINY[model] | options).items())]


def weights(folder) -> dict[str, torch.Tensor]:
    (path,) = (p for p in folder.glob("checkpoints/*.pth") if ".state" not in p.name)
    return checkpoint.load(path).state_dict()


@pytest.mark.parametrize("model, ema_decay", [(VQ, 0.0), (VQ, 0.9), ("VQVAE", 0.0)])
def test_training_and_resuming(train, tmp_path, monkeypatch, model, ema_decay):
    """A resumed run is the uninterrupted one, restarts included; what is saved is averaged, the moving averages too."""
    options = {"model": model, "ema_decay": ema_decay}
    runs, fit, step = [], Run.fit, Run.step
    monkeypatch.setattr(Run, "fit", lambda self: (runs.append(self), fit(self)))
    done = train("whole", **options)
    assert done.returncode == 0, done.stderr
    whole = weights(tmp_path / "whole")
    assert whole["quantizer.updates"] == 12 and whole["quantizer.frequency"].sum() > 0.9
    assert torch.equal(whole["quantizer.codebook"], runs[0].average.quantizer.codebook)
    assert not torch.equal(whole["quantizer.codebook"], runs[0].model.quantizer.codebook)

    def interrupted(self):
        if self.update == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", interrupted)
        assert train("cut", **options).returncode == 130
    torch.manual_seed(99)
    assert train("cut", "--resume", model=model).returncode == 0
    cut = weights(tmp_path / "cut")
    assert all(torch.equal(v, cut[k]) for k, v in whole.items())


def test_two_training_processes_are_one_with_twice_the_batch(train, data, tmp_path):
    options = {"augment": False, "epochs": 0.5, "ema_decay": 0.9}
    assert train("one", batch_size=4, **options).returncode == 0
    (tmp_path / "two").mkdir()
    done = run("-m", "homework.train", *arguments(data, VQ, **options), cwd=tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one["quantizer.updates"] == two["quantizer.updates"] == 3
    for k in one:
        assert torch.allclose(one[k].float(), two[k].float(), atol=1e-3), k


def test_training_lowers_the_error_and_tells_the_measures(train, tmp_path, data):
    options = {"n_tokens": 64, "code_dim": 8, "latent_dim": 16, "rate_weight": 1e-4}
    assert train("run", epochs=10, lr=5e-3, **options).returncode == 0
    valid = checkpoint.load(tmp_path / "run" / "homework" / f"{VQ}.pth").meta["valid"]
    assert {"usage", "entropy", "perplexity", "codebook_loss", "commitment_loss", "bits_per_token"} <= valid.keys()
    x = ImageDataset("valid", root=data).batch(torch.arange(8))
    assert valid["mse"] < 0.6 * x.var() and valid["perplexity"] > 4
