"""Binary spherical quantization: signs and their gradient, codes and indices, losses and measures by hand."""

import ast
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, batch_for, build
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call

from homework import BSQPatchAutoEncoder, bsq
from homework.bsq import BSQ, diff_sign
from homework.tokenizers.base import RatePredictor, usage

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
TINY_FLOAT = 1e-45  # the smallest float32 above zero


# --- the sign -------------------------------------------------------------------------------------------------------------


@given(st.lists(finite, min_size=1, max_size=20))
def test_sign_is_exactly_minus_one_below_zero_and_one_elsewhere(values):
    x = torch.tensor(values, requires_grad=True)
    assert diff_sign(x).tolist() == [-1.0 if v < 0 else 1.0 for v in x.tolist()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_sign_at_the_edges(dtype):
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([0.0, -0.0, tiny, -tiny, 3.7, -3.7, 300.0, -300.0], dtype=dtype)
    sign = diff_sign(x)
    assert sign.dtype == dtype and sign.tolist() == [1, 1, 1, -1, 1, -1, 1, -1]
    assert diff_sign(torch.tensor([TINY_FLOAT, -TINY_FLOAT])).tolist() == [1, -1]


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=20))
def test_gradient_of_the_sign_is_that_of_the_identity(pairs):
    x, g = torch.tensor(pairs).T
    x = x.clone().requires_grad_()
    diff_sign(x).backward(g)
    assert torch.equal(x.grad, g)


def test_straight_through_gradient_is_that_of_the_path_without_the_sign():
    """d/dx of f(sign(u(x))) is J_u^T f'(sign(u)): compared with finite differences of x -> f'(code) . u(x)."""
    torch.manual_seed(0)
    quantizer = BSQ(4, 6).double()
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randn(5, 6, dtype=torch.float64)
    code = quantizer.encode(x)
    (quantizer.decode(code) - target).square().sum().backward()
    with torch.no_grad():
        slope = 2 * (quantizer.decode(code) - target) @ quantizer.up.weight  # f'(code), (5,4)
        for n, d in itertools.product(range(5), range(6)):
            step = torch.zeros_like(x)
            step[n, d] = 1e-6
            difference = ((quantizer.project(x + step) - quantizer.project(x - step)) * slope).sum() / 2e-6
            assert math.isclose(difference, x.grad[n, d], rel_tol=1e-5, abs_tol=1e-7)


# --- codes and indices ----------------------------------------------------------------------------------------------------


def test_bit_i_of_the_index_is_coordinate_i():
    quantizer = BSQ(4, 3)
    code = torch.tensor([[-1.0, -1, -1, -1], [1, -1, -1, -1], [-1, 1, -1, -1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    index = torch.tensor([0, 1, 2, 12, 15])
    assert torch.equal(quantizer._code_to_index(code), index)
    assert torch.equal(quantizer._index_to_code(index), code)
    assert quantizer._code_to_index(torch.tensor([0.0, -0.0, 0.2, -0.2])) == 7  # zero counts as positive


@pytest.mark.parametrize("L", range(1, 13))
def test_every_index_comes_back(L):
    quantizer, index = BSQ(L, 3), torch.arange(2**L)
    code = quantizer._index_to_code(index)
    assert code.shape == (2**L, L) and set(code.unique().tolist()) == {-1.0, 1.0}
    assert len(code.unique(dim=0)) == 2**L
    assert torch.equal(quantizer._code_to_index(code), index)


@given(st.data(), st.integers(1, 62))
def test_large_indices_come_back(data, L):
    numbers = data.draw(st.lists(st.integers(0, 2**L - 1), min_size=1, max_size=8)) + [0, 2**L - 1]
    quantizer, index = BSQ(L, 2), torch.tensor(numbers)
    code = quantizer._index_to_code(index)
    assert torch.equal(quantizer._code_to_index(code), index) and quantizer._code_to_index(code).dtype == torch.int64
    assert code.tolist() == [[1.0 if n // 2**i % 2 else -1.0 for i in range(L)] for n in numbers]  # Python's own numbers


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_indices_of_every_stored_type_are_read(dtype):
    index = torch.tensor([0, 1, 200, 255], dtype=dtype)
    assert torch.equal(BSQ(8, 2)._index_to_code(index), BSQ(8, 2)._index_to_code(index.long()))


@pytest.mark.parametrize("bits", [0, 63, -1, 2.5, "10", True, None])
def test_bits_out_of_range_are_named(bits):
    with pytest.raises(ValueError, match="codebook_bits"):
        BSQ(bits, 8)


def test_quantizer_is_projection_norm_sign_projection():
    torch.manual_seed(1)
    quantizer, x = BSQ(5, 7), torch.randn(2, 3, 7)
    with torch.no_grad():
        down = x @ quantizer.down.weight.T + quantizer.down.bias
        u = down / down.norm(dim=-1, keepdim=True)
        assert torch.allclose(quantizer.project(x), u, atol=1e-6)
        code = torch.where(u < 0, -1.0, 1.0)
        assert torch.equal(quantizer.encode(x), code)
        assert torch.allclose(quantizer.decode(code), code @ quantizer.up.weight.T + quantizer.up.bias, atol=1e-6)
        index = quantizer.encode_index(x)
        assert index.shape == (2, 3) and index.dtype == torch.int64
        assert torch.allclose(quantizer.decode_index(index), quantizer.decode(code), atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 30), (23, 31)])
@pytest.mark.parametrize("bits", [1, 4, 20])
def test_tokenizer_makes_grids_with_and_without_the_batch_dimension(shape, bits):
    model = build("BSQPatchAutoEncoder", codebook_bits=bits)
    h, w = -(-shape[0] // 5), -(-shape[1] // 5)
    x = torch.rand(3, *shape, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        grid = model.encode_index(x)
        assert grid.shape == (3, h, w) and grid.dtype == torch.int64
        assert 0 <= grid.min() and grid.max() < model.n_tokens == 2**bits
        assert torch.equal(model.code_vectors(grid), model.encode(x)) and model.code_vectors(grid).shape[-1] == bits
        whole = model.decode_index(grid)
        assert whole.shape == (3, h * 5, w * 5, 3)
        assert torch.allclose(model(x)[0], whole[:, : shape[0], : shape[1]], atol=1e-6)
        for i in range(3):
            assert torch.equal(model.encode_index(x[i]), grid[i])
            assert torch.allclose(model.decode_index(grid[i]), whole[i], atol=1e-6)


def test_tokenizer_by_its_course_arguments():
    config = BSQPatchAutoEncoder().config
    assert (config["patch_size"], config["latent_dim"], config["codebook_bits"]) == (5, 128, 10)
    assert BSQPatchAutoEncoder(10, 16, 3).n_tokens == 8 and callable(bsq.load)


# --- measures and losses --------------------------------------------------------------------------------------------------


def test_usage_entropy_and_perplexity_by_hand():
    model = build("BSQPatchAutoEncoder")
    index = torch.tensor([[3, 3, 3, 3], [7, 7, 0, 15]])  # frequencies 4/8, 2/8, 1/8, 1/8 of 16 codes
    measures = usage(index, model.n_tokens)
    assert math.isclose(measures["usage"], 4 / 16, rel_tol=1e-6)
    assert math.isclose(measures["entropy"], 1.75, rel_tol=1e-6)  # bits
    assert math.isclose(measures["perplexity"], 2**1.75, rel_tol=1e-6)


@pytest.mark.parametrize("bits", [4, 40])
def test_measures_of_a_batch_are_those_of_its_tokens(bits):
    model = build("BSQPatchAutoEncoder", codebook_bits=bits)
    x = batch_for(model, B=4)
    counts = torch.bincount(model.encode_index(x).flatten().unique(return_inverse=True)[1]).double()
    p = counts / counts.sum()
    losses = model.loss(x)
    assert math.isclose(losses["entropy"], -(p * p.log2()).sum(), rel_tol=1e-5, abs_tol=1e-6)
    assert math.isclose(losses["usage"], len(p) / 2**bits, rel_tol=1e-5)
    assert losses.keys() >= {"usage", "entropy", "perplexity"}


def exact_entropy_loss(u: torch.Tensor, gamma: float, tau: float) -> torch.Tensor:
    """E[H(q(u))] - gamma H(E[q(u)]) of the paper, over all codes on the sphere: q(c|u) ~ exp(tau u.c) of the codes
    c in {-1,1}^L/sqrt(L); the second term of the independent bits' means, as in the paper's approximation."""
    L = u.shape[-1]
    codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=L)), dtype=u.dtype) / math.sqrt(L)  # (K,L)
    q = (tau * u @ codes.T).softmax(dim=-1)  # (n,K)
    sure = -(q * q.clamp_min(1e-300).log()).sum(dim=-1).mean()
    ones = (q[:, :, None] * (codes > 0)).sum(dim=1).mean(dim=0)  # (L): the mean probability of each bit
    used = -sum((p * p.clamp_min(1e-300).log()).sum() for p in (ones, 1 - ones))
    return sure - gamma * used


@pytest.mark.parametrize("gamma, tau", [(1.0, 1.0), (0.5, 3.0), (0.0, 10.0), (2.0, 100.0)])
def test_entropy_loss_is_the_papers(gamma, tau):
    options = {"entropy_weight": 0.3, "gamma": gamma, "inverse_temperature": tau}
    model = build("BSQPatchAutoEncoder", **options).double()
    x = batch_for(model).double()
    with torch.no_grad():
        u = model.bsq.project(model.latent(x)).flatten(0, -2)  # (B,h,w,L) -> (n,L)
        expected = 0.3 * exact_entropy_loss(u, gamma, tau)
        assert math.isclose(model.loss(x)["entropy_loss"], expected, rel_tol=1e-6, abs_tol=1e-9)


def test_commitment_loss_is_the_distance_to_the_corner_of_the_sphere():
    model = build("BSQPatchAutoEncoder", commitment_weight=0.25).double()
    x = batch_for(model).double()
    u = model.bsq.project(model.latent(x)).flatten(0, -2)
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64) / 2
    nearest = torch.cdist(u, corners).min(dim=-1).values.square().mean()
    assert torch.allclose(model.loss(x)["commitment_loss"], 0.25 * nearest)


def test_rates_are_probabilities_given_earlier_codes():
    """At every position, 2^-bits of all codes sum to one; and a code moves the bits of later positions and its own alone."""
    torch.manual_seed(0)
    L, (h, w) = 2, (6, 7)
    predictor = RatePredictor(L).double()
    grid = torch.randint(2, (1, h, w, L), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    with torch.no_grad():
        before = predictor.bits_of_signs(grid)
        assert before.shape == (1, h, w) and (before > 0).all()
        for n in range(h * w):
            total = 0
            for code in itertools.product([-1.0, 1.0], repeat=L):
                other = grid.clone()
                other[0, n // w, n % w] = torch.tensor(code)
                bits = predictor.bits_of_signs(other)
                assert torch.allclose(bits.flatten()[:n], before.flatten()[:n], atol=1e-12), n
                total += 2 ** -bits.flatten()[n]
            assert math.isclose(total, 1, rel_tol=1e-9)
        other = grid.clone()
        other[0, 2, 3] *= -1
        assert (predictor.bits_of_signs(other) - before)[0, 3, 3].abs() > 1e-6  # the position below sees it


def test_rate_loss_is_the_bits_of_a_token():
    model = build("BSQPatchAutoEncoder", rate_weight=0.01)
    x = batch_for(model)
    losses = model.loss(x)
    bits = model.rate.bits_of_signs(model.encode(x)).mean()
    assert torch.allclose(losses["bits_per_token"], bits) and torch.allclose(losses["rate_loss"], 0.01 * bits)
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert build("BSQPatchAutoEncoder").rate is None  # off by default, and then no weights
    assert torch.allclose(model(x[0])[1]["rate_loss"], 0.01 * model.rate.bits_of_signs(model.encode(x[:1])).mean())


def test_losses_are_off_by_default_and_added_when_on():
    off, x = build("BSQPatchAutoEncoder"), batch_for(build("BSQPatchAutoEncoder"))
    assert not any(k.endswith("_loss") for k in off.loss(x)) and off.loss(x)["loss"] == off.loss(x)["mse"]
    on = build("BSQPatchAutoEncoder", commitment_weight=0.1, entropy_weight=0.1)
    losses = on.loss(x)
    assert torch.allclose(losses["loss"], losses["mse"] + losses["commitment_loss"] + losses["entropy_loss"])
    for name in ("commitment_loss", "entropy_loss"):
        (g,) = torch.autograd.grad(on.loss(x)[name], on.bsq.down.weight)
        assert g.isfinite().all() and g.abs().sum() > 0


def test_entropy_loss_stays_finite_where_bits_are_certain():
    """At a high inverse temperature the probabilities are 0 and 1 to the last digit."""
    model = build("BSQPatchAutoEncoder", entropy_weight=1.0, inverse_temperature=1e6)
    loss = model.loss(batch_for(model))["loss"]
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_reconstruction_gradient_reaches_the_encoder_through_the_signs():
    model = build("BSQPatchAutoEncoder")
    parameters = dict(model.named_parameters())
    x = batch_for(model)
    loss = F.mse_loss(functional_call(model, parameters, (x,))[0], x)
    (g,) = torch.autograd.grad(loss, parameters["encoder.patch.weight"])
    assert g.abs().sum() > 0


# --- MPS ------------------------------------------------------------------------------------------------------------------


def test_no_bit_shifts_of_tensors():
    """They are wrong on Apple's MPS (PyTorch issue 147889). A shift of plain Python numbers is allowed."""
    for path in (ROOT / "homework").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = getattr(node, "attr", None) or getattr(node, "id", "")
            assert "shift" not in name or "bitwise" not in name, f"{path}:{node.lineno}"
            assert name not in ("__lshift__", "__rshift__", "__ilshift__", "__irshift__"), f"{path}:{node.lineno}"
            if path.parent.name in ("tokenizers", "nn", "priors") or path.name in ("bsq.py", "ae.py", "integer_layers.py"):
                assert not isinstance(getattr(node, "op", None), ast.LShift | ast.RShift), f"{path}:{node.lineno}"
