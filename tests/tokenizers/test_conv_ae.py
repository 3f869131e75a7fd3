"""The convolutional auto-encoder: shapes, halving, translation, ranges, configuration, learning, the command."""

import json

import pytest
import torch
from conftest import build, sentence
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from homework import ConvAutoEncoder
from homework.core import checkpoint
from homework.tokenizers.conv_ae import ACTIVATIONS, Residual
from homework.train import train

NAME = "ConvAutoEncoder"


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed)) - 0.5


def awake(model: nn.Module) -> nn.Module:
    """The same with blocks that do something, as after a training; new ones start as the identity."""
    for block in model.modules():
        if isinstance(block, Residual):
            nn.init.normal_(block.around[-1].weight, std=0.3)
    return model


@settings(max_examples=25)
@given(st.integers(1, 4), st.tuples(st.integers(1, 37), st.integers(1, 37)), st.sampled_from([1, 3]), st.integers(1, 5))
def test_shapes_for_any_size_and_depth(num_layers, size, image_channel, latent_channel):
    model = build(NAME, num_layers=num_layers, image_channel=image_channel, latent_channel=latent_channel).eval()
    P, x = 2**num_layers, image(2, *size)
    h, w = -(-size[0] // P), -(-size[1] // P)
    with torch.no_grad():
        z = model.encode(x)
        assert z.shape == (2, h, w, latent_channel) and model.patch_size == model.stride == P
        whole = model.decode(z)
        assert whole.shape == (2, h * P, w * P, 3)
        assert torch.equal(model(x)[0], whole[:, : size[0], : size[1]]) and model(x)[0].shape == x.shape
        assert torch.allclose(model.encode(x[0]), z[0], atol=1e-5)
        assert torch.allclose(model.decode(z[1]), whole[1], atol=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_each_layer_halves_and_channels_grow_geometrically(num_layers):
    model, seen = build(NAME, num_layers=num_layers, min_channel=4, max_channel=32), []
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.register_forward_hook(lambda layer, x, y: seen.append(tuple(y.shape[1:])) if layer in halving else None)
    halving = [*model.encoder.layers[::2], *model.decoder.layers[1::2]]
    model(image(1, 32, 48))
    channels = {1: [32], 2: [4, 32], 3: [4, 11, 32], 4: [4, 8, 16, 32]}[num_layers]
    down = [(32 // 2**i, 48 // 2**i, D) for i, D in enumerate(channels, start=1)]
    assert seen == [*down, *down[-2::-1], (32, 48, 3)]


def test_moving_the_image_by_a_place_moves_the_map_away_from_the_borders():
    model, x = awake(build(NAME)).eval(), image(1, 40, 48)
    moved = x.roll((4, 8), dims=(1, 2))  # one position down, two to the right
    inner = (slice(None), slice(4, -4), slice(5, -5))
    with torch.no_grad():
        z, other = model.encode(x), model.encode(moved)
        assert torch.allclose(other[inner], z.roll((1, 2), dims=(1, 2))[inner], atol=1e-5)
        x_hat, other = model.decode(z), model.decode(z.roll((1, 2), dims=(1, 2)))
        inner = (slice(None), slice(16, -16), slice(20, -20))
        assert torch.allclose(other[inner], x_hat.roll((4, 8), dims=(1, 2))[inner], atol=1e-5)
        assert not torch.allclose(other[inner], x_hat[inner], atol=1e-3)


def test_a_place_sees_its_surroundings_but_not_the_whole_image():
    model, x = awake(build(NAME)).eval(), image(1, 80, 80)
    there = x.clone()
    there[0, 40, 40] += 0.3
    with torch.no_grad():
        changed = ((model.encode(there) - model.encode(x)).abs().sum(dim=-1)[0] > 1e-7).nonzero()
    assert changed.min() > 5 and changed.max() < 15 and len(changed) > 1


def test_grey_images_are_the_mean_of_their_channels():
    model, x = awake(build(NAME, image_channel=1)).eval(), image(2, 12, 16)
    grey = x.mean(dim=-1, keepdim=True).expand_as(x)
    with torch.no_grad():
        assert torch.allclose(model.encode(x), model.encode(grey), atol=1e-6)
        x_hat, _ = model(x)
        assert torch.equal(x_hat, x_hat[..., :1].expand_as(x_hat))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_final_activations_and_their_ranges(name):
    wild = 20 * image(1, 8, 8)
    options = {"encoder_activation_type": name, "decoder_activation_type": name}
    plain = build(NAME, **options)
    used = build(NAME, **options, use_final_enc_activation=True, use_final_dec_activation=True)
    with torch.no_grad():
        z, f = plain.encode(wild), ACTIVATIONS[name]()
        assert torch.equal(used.encode(wild), f(z))
        x = used.decode(z)
        expected = {"tanh": f(plain.decode(z)) / 2, "sigmoid": f(plain.decode(z)) - 0.5}.get(name, f(plain.decode(z)))
        assert torch.allclose(x, expected)
        if name in ("tanh", "sigmoid"):
            assert -0.5 <= x.min() < -0.1 and 0.1 < x.max() <= 0.5


def test_hidden_activations_differ_and_all_names_work():
    outputs = []
    for name in ACTIVATIONS:
        with torch.no_grad():
            outputs.append(awake(build(NAME, hidden_activation_type=name))(image(1, 8, 8))[0])
    assert all(not torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


def test_what_a_user_configures():
    model = ConvAutoEncoder(2e-3, 1, 8, 16, 3, 5, "elu", True, "tanh", True, "sigmoid")  # in this order
    assert model.learning_rate == 2e-3 and model.patch_size == 8 and model.config["latent_channel"] == 5
    assert ConvAutoEncoder().config == {
        "model_lr": 1e-3, "image_channel": 3, "min_channel": 32, "max_channel": 128, "num_layers": 2, "latent_channel": 8,
        "hidden_activation_type": "silu", "use_final_enc_activation": False, "encoder_activation_type": "tanh",
        "use_final_dec_activation": False, "decoder_activation_type": "sigmoid"}  # fmt: skip


ANY = st.one_of(st.none(), st.text("abc", max_size=3), st.integers(-5, 0), st.floats(max_value=0), st.just([3]))


@given(st.sampled_from(sorted(ConvAutoEncoder().config)), ANY)
def test_a_bad_value_is_named_with_what_is_allowed(name, value):
    with pytest.raises(ValueError) as error:
        build(NAME, **{name: value})
    assert str(error.value).startswith(f"{name} is {value!r}, but must be ")


def test_channels_that_shrink_are_refused():
    with pytest.raises(ValueError, match="min_channel is 9, but must be at most max_channel, which is 6"):
        build(NAME, min_channel=9)


def test_a_new_one_lets_the_image_through_and_soon_knows_one_by_heart():
    """A few frames alone: the error falls far below that of their mean colour."""
    x = nn.Upsample(scale_factor=4, mode="bilinear")(image(2, 5, 6).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    model = build(NAME, min_channel=8, max_channel=16, latent_channel=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    grey = (x - x.mean(dim=(1, 2), keepdim=True)).square().mean()
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.loss(x)["loss"]
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * grey, f"{loss:.4f} of {grey:.4f}"


def test_the_command_takes_a_json_file(data, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"model_lr": 2e-3, "image_channel": 3, "min_channel": 4, "max_channel": 8, "num_layers": 1}
    options |= {"latent_channel": 2, "hidden_activation_type": "relu", "use_final_enc_activation": True}
    options |= {"encoder_activation_type": "tanh", "use_final_dec_activation": True, "decoder_activation_type": "sigmoid"}
    (tmp_path / "ae.json").write_text(json.dumps(options))
    given = ("train", NAME, "--config", "ae.json", "--data", data)
    done = command(*given, "--epochs", 1, "--batch_size", 8, "--output", "ae.pth")
    assert done.returncode == 0, done.stderr
    model = checkpoint.load("ae.pth", NAME)
    assert model.config == options and model.encode(image(20, 30)).shape == (10, 15, 2)
    assert model.meta["valid"]["mse"] > 0
    (tmp_path / "ae.json").write_text(json.dumps(options | {"hidden_activation_type": "swish"}))
    assert sentence(command(*given)) == f"hidden_activation_type is 'swish', but must be one of {', '.join(ACTIVATIONS)}."


def test_a_folder_of_images_alone_is_data_enough(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for path in (data / "train").iterdir():
        (tmp_path / "images" / path.name).write_bytes(path.read_bytes())
    tiny = {"min_channel": 4, "max_channel": 4, "num_layers": 1, "latent_channel": 2}
    train(NAME, epochs=1, batch_size=8, data="images", output="ae.pth", device="cpu", **tiny)
    assert checkpoint.load("ae.pth").meta["update"] == 2  # of the 22 that are not for validation
