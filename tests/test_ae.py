"""The patch auto-encoder: shapes for every patch size and image size, padding, patches at their positions."""

import copy

import numpy as np
import pytest
import torch
from conftest import build
from hypothesis import given, settings
from hypothesis import strategies as st

from homework import ImageDataset, PatchAutoEncoder, ae
from homework.core import checkpoint, fingerprint, registry
from homework.datasets.images import Images
from homework.nn.blocks import pad_to_patches, unpatch
from homework.nn.pca import patches

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


class Patchy(Images):
    """Images whose patches of 5x5 pixels are of a low ``rank`` and a mean, after that of one of several kinds."""

    def __init__(self, N: int = 12, rank: int = 3, kinds: int = 1, noise: float = 0.0):
        g = torch.Generator().manual_seed(0)
        means, maps = torch.rand(kinds, 75, generator=g) * 0.4 - 0.2, torch.randn(kinds, rank, 75, generator=g) * 0.04
        kind = torch.randint(kinds, (N, 4, 6), generator=g)
        z = torch.randn(N, 4, 6, 1, rank, generator=g)
        x = (z @ maps[kind]).squeeze(-2) + means[kind] + noise * torch.randn(N, 4, 6, 75, generator=g)
        self.x, self.images, self.names = unpatch(x, 5), np.zeros(N), [str(i) for i in range(N)]

    def batch(self, indices, device="cpu"):
        return self.x[torch.as_tensor(indices)].to(device)


def started(data: Images, bottleneck: int, pca: int, **options) -> PatchAutoEncoder:
    model = build("PatchAutoEncoder", bottleneck=bottleneck, pca=pca, **options)
    model.start(data)
    return model


def error_of_svd(x: torch.Tensor, n: int) -> float:
    """The mean squared error of the best n linear numbers a patch of 5x5, from the singular values."""
    x = patches(x, 5).flatten(0, 2).double()  # (B,h,w,75) -> (m,75)
    return torch.linalg.svdvals(x - x.mean(dim=0))[n:].square().sum().item() / x.numel()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 75, 100])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_training_starts_exactly_at_pca(n, noise):
    data = Patchy(noise=noise)
    with torch.no_grad():
        mse = started(data, n, pca=1).loss(data.x)["loss"].item()
    assert mse == pytest.approx(error_of_svd(data.x, n), rel=1e-3, abs=1e-9)


def test_a_pca_of_each_kind_of_patches_loses_less_than_one_of_all():
    data = Patchy(40, rank=3, kinds=4)
    with torch.no_grad():
        model = started(data, 4, pca=4)  # three numbers and the kind
        x_hat, grid = model(data.x)[0], model.encode(data.x)
    assert set(grid[..., -1].unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
    assert (x_hat - data.x).square().mean() < 0.8 * error_of_svd(data.x, 4)


def test_what_is_added_to_pca_starts_at_nothing_and_is_trained():
    data = Patchy(2, noise=0.01)
    model = started(data, 4, pca=2)
    fixed = {k: v.clone() for k, v in model.named_buffers()}
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(model.loss(data.x)["loss"])
        losses[-1].backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0] and all(torch.equal(v, fixed[k]) for k, v in model.named_buffers())


@pytest.mark.parametrize("options", [{"pca": -1}, {"pca": 257}, {"pca": True}, {"pca": 2, "bottleneck": 1}])
def test_pca_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match="pca|bottleneck"):
        build("PatchAutoEncoder", **options)


def test_a_checkpoint_has_the_components_once_and_those_before_have_none(tmp_path):
    model = started(Patchy(), 4, pca=2).eval()
    checkpoint.save(model, tmp_path / "a.pth")
    again, x = checkpoint.load(tmp_path / "a.pth"), Patchy().x
    with torch.no_grad():
        assert torch.equal(again(x)[0], model(x)[0]) and torch.equal(copy.deepcopy(model)(x)[0], model(x)[0])
    assert not [k for k in model.state_dict() if k.startswith("decoder.") and "pca" in k]
    old = build("PatchAutoEncoder")
    assert old.config["pca"] == 0 and not [k for k in old.state_dict() if "pca" in k]
    del old.config["pca"]  # as it was before there was the option
    before = fingerprint.fingerprint(old), fingerprint.legacy_fingerprint(old)
    checkpoint.save(old, tmp_path / "old.pth")
    now = checkpoint.load(tmp_path / "old.pth")
    assert (fingerprint.fingerprint(now), fingerprint.legacy_fingerprint(now)) == before and now.config["pca"] == 0


def test_training_a_checkpoint_further_keeps_its_networks():
    base = build("PatchAutoEncoder")
    assert registry.build(PatchAutoEncoder, {}, PatchAutoEncoder.new_options, base).config["pca"] == 0
    with pytest.raises(ValueError, match="pca = 0, but 1"):
        registry.build(PatchAutoEncoder, {"pca": 1}, {}, base)
