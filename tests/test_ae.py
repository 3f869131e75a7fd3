"""The patch auto-encoder: shapes for every patch size and image size, padding, patches at their positions."""

import pytest
import torch
from conftest import build
from hypothesis import given, settings
from hypothesis import strategies as st

from homework import ImageDataset, PatchAutoEncoder, ae
from homework.nn.blocks import pad_to_patches, unpatch

sizes = st.tuples(st.integers(1, 61), st.integers(1, 61))


def image(size: tuple[int, int], B: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(B, *size, 3, generator=torch.Generator().manual_seed(seed)) - 0.5


def padded_by_hand(x: torch.Tensor, P: int) -> torch.Tensor:
    """Every pixel beyond the edge is the nearest one inside."""
    H, W = x.shape[1:3]
    rows = [min(i, H - 1) for i in range(-(-H // P) * P)]
    columns = [min(i, W - 1) for i in range(-(-W // P) * P)]
    return x[:, rows][:, :, columns]


@settings(max_examples=25)
@given(st.integers(5, 25), sizes)
def test_any_patch_size_on_any_image(P, size):
    model, x = build("PatchAutoEncoder", patch_size=P), image(size, B=2)
    h, w = -(-size[0] // P), -(-size[1] // P)
    with torch.no_grad():
        z = model.encode(x)
        assert z.shape == (2, h, w, model.config["bottleneck"])
        whole = model.decode(z)
        assert whole.shape == (2, h * P, w * P, 3)
        x_hat, measures = model(x)
        assert torch.equal(x_hat, whole[:, : size[0], : size[1]]) and isinstance(measures, dict)
        assert torch.equal(z, model.encode(padded_by_hand(x, P)))  # the padding repeats the edge


@given(st.integers(1, 30), sizes)
def test_padding_repeats_the_last_row_and_column(P, size):
    x = image(size)
    assert torch.equal(pad_to_patches(x, P), padded_by_hand(x, P))


@given(st.integers(1, 6), st.tuples(*[st.integers(1, 5)] * 3), st.integers(1, 3))
def test_unpatch_puts_each_patch_at_its_position(P, shape, C):
    B, h, w = shape
    x = torch.arange(B * h * w * P * P * C).view(B, h, w, P * P * C)
    pixels = unpatch(x, P)
    assert pixels.shape == (B, h * P, w * P, C)
    for i in range(h):
        for j in range(w):
            patch = pixels[:, i * P : (i + 1) * P, j * P : (j + 1) * P]
            assert torch.equal(patch.reshape(B, -1), x[:, i, j])  # (B,P,P,C) -> (B,P*P*C)


@pytest.mark.parametrize("name", ["PatchAutoEncoder", "BSQPatchAutoEncoder"])
@pytest.mark.parametrize("size", [(20, 30), (23, 31)])
def test_the_batch_dimension_may_be_left_out_or_be_several(name, size):
    model, x = build(name).eval(), image(size, B=6)
    with torch.no_grad():
        z, x_hat = model.encode(x), model(x)[0]
        whole = model.decode(z)
        for i in range(6):
            assert torch.allclose(model.encode(x[i]), z[i], atol=1e-5)
            assert torch.allclose(model.decode(z[i]), whole[i], atol=1e-5)
            assert torch.allclose(model(x[i])[0], x_hat[i], atol=1e-5)
        several = x.view(2, 3, *size, 3)
        assert torch.allclose(model(several)[0], x_hat.view(several.shape), atol=1e-5)


def test_a_patch_is_seen_by_its_own_vector():
    """Without blocks nothing looks around: a pixel moves its own patch's vector alone."""
    model, x = build("PatchAutoEncoder", encoder_blocks=0), image((20, 30))
    with torch.no_grad():
        moved = x.clone()
        moved[0, 7, 11] += 0.3  # patch (1, 2)
        changed = (model.encode(moved) - model.encode(x)).abs().sum(dim=-1)[0] > 0
    assert changed.nonzero().tolist() == [[1, 2]]


def test_its_parts_by_their_course_names_and_defaults():
    model = PatchAutoEncoder()
    assert {k: model.config[k] for k in ("patch_size", "latent_dim", "bottleneck")} == {
        "patch_size": 25, "latent_dim": 128, "bottleneck": 128}  # fmt: skip
    assert PatchAutoEncoder(5, 8, 4).encode(image((20, 30))).shape == (1, 4, 6, 4)  # in this order
    assert callable(ae.load)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (2, 20, 30, 4), (3,)])
def test_what_is_not_an_image_is_named(shape):
    with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        build("PatchAutoEncoder").encode(torch.zeros(shape))


def test_loss_is_the_mean_squared_error_and_its_psnr():
    model, x = build("PatchAutoEncoder"), image((20, 30), B=2)
    losses = model.loss(x)
    mse = (model(x)[0] - x).square().mean()
    assert torch.allclose(losses["loss"], mse) and torch.allclose(losses["mse"], mse)
    assert torch.allclose(losses["psnr"], 10 * torch.log10(1 / mse))


@pytest.mark.parametrize("name", ["PatchAutoEncoder", "BSQPatchAutoEncoder"])
def test_one_batch_can_be_overfitted(name, data):
    """A few frames alone: an error far below that of their mean colour."""
    model = build(name, **{"codebook_bits": 10} if "BSQ" in name else {}, latent_dim=24)
    x = ImageDataset("train", root=data).batch(torch.arange(4))
    grey = (x - x.mean(dim=(1, 2), keepdim=True)).square().mean()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.loss(x)["loss"]
        loss.backward()
        optimizer.step()
    assert loss < 0.15 * grey and loss < 0.005, f"{loss:.4f} of {grey:.4f}"
