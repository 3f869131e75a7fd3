"""PixelCNN and Gated PixelCNN: sizes, masks, causality at every position, the incremental form, learning, and sampling."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import K, batch_for, build, sentence
from PIL import Image
from torch import nn

from bench.digits import digits
from homework.core import checkpoint, registry
from homework.core.fingerprint import fingerprint
from homework.datasets.mnist import MnistDataset
from homework.nn.blocks import MaskedConv2d
from homework.priors.pixelcnn import GatedPixelCNN, PixelCNN, ResidualBlock, RowAttention, he_init
from homework.priors.sampling import generate
from homework.priors.steps import Steps

h, w = 6, 7
PRIORS = {
    "PixelCNN": lambda: PixelCNN(c_hidden=8, num_res_block=2, kernel_size=5),
    "PixelCNN without blocks": lambda: PixelCNN(c_hidden=8, num_res_block=0, kernel_size=3),
    "Gated, binary": lambda: GatedPixelCNN(6, 3, n_tokens=2, height=h, width=w, embedding_dim=3),
    "Gated, 9 tokens": lambda: GatedPixelCNN(6, 2, n_tokens=9, height=8, width=8, kernel=5, first_kernel=3),
    "Gated, one layer": lambda: GatedPixelCNN(6, 1, n_tokens=9, height=h, width=w, first_kernel=5, position="none"),
    "Gated, codes": lambda: GatedPixelCNN(6, 2, n_tokens=9, height=h, width=w, code_dim=4),
    "Gated, attention": lambda: GatedPixelCNN(6, 2, n_tokens=9, height=h, width=w, first_kernel=3, attention=1),
    "Gated, attention to codes": lambda: GatedPixelCNN(6, 3, 9, first_kernel=3, code_dim=4, position="none", attention=2),
}
every_prior = pytest.mark.parametrize("name", PRIORS)


def make(name: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = PRIORS[name]()
    if model.config.get("code_dim"):
        model.set_codes(torch.randn(model.n_tokens, model.config["code_dim"]))
    return model.eval()


def grids(model: torch.nn.Module, B: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randint(model.n_tokens, (B, h, w), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def by_steps(model: torch.nn.Module, tokens: torch.Tensor, first: int = 0) -> torch.Tensor:
    """(B,h,w) -> logits (B,N-first,K) of the incremental form, which is given the first tokens at once."""
    steps, tokens = model.steps(*tokens.shape), tokens.flatten(1)
    logits = [steps(tokens[:, :first])] + [steps(tokens[:, n : n + 1]) for n in range(first, tokens.shape[1] - 1)]
    return torch.stack(logits, dim=1)


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# --- sizes, masks, weights ------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_source():
    assert parameters(PixelCNN()) == parameters(PixelCNN(c_in=1, c_hidden=128, num_res_block=5)) == 307_073
    assert parameters(ResidualBlock(128, 128)) == 53_504


@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("kind", ["A", "B"])
def test_masked_convolution_is_a_convolution_with_masked_weights(kind, k):
    torch.manual_seed(0)
    conv, x = MaskedConv2d(kind, 2, 3, k).double(), torch.randn(2, 2, 6, 9, dtype=torch.float64)
    mask = torch.zeros(k, k, dtype=torch.float64)
    mask[: k // 2] = 1
    mask[k // 2, : k // 2 + (kind == "B")] = 1
    expected = F.conv2d(x, conv.weight * mask, conv.bias, padding=k // 2)
    assert torch.allclose(conv(x), expected, atol=1e-12)
    before = conv.weight.detach().clone()
    conv(x).sum().backward()
    assert torch.equal(conv.weight, before) and (before != 0).all(), "the stored weights stay whole"
    assert ((conv.weight.grad != 0) == (mask != 0)).all()


@pytest.mark.parametrize("layer", [MaskedConv2d("A", 4, 64, 5), MaskedConv2d("B", 4, 64, 3), nn.Conv2d(16, 64, 1)])
def test_first_weights_keep_the_size_of_what_passes(layer):
    """After a ReLU, the mean square is that of the input; hidden taps must not count as inputs."""
    torch.manual_seed(0)
    he_init(layer)
    assert (layer.bias == 0).all()
    reach, x = layer.kernel_size[0] // 2, torch.randn(8, layer.in_channels, 32, 32)
    inside = slice(reach, 32 - reach)
    assert F.relu(layer(x))[..., inside, inside].square().mean().item() == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MaskedConv2d("C", 1, 1, 3), "mask_type is 'C'"),
        (lambda: MaskedConv2d("A", 1, 1, 4), "kernel_size is 4, but must be an odd"),
        (lambda: ResidualBlock(8, 6), "c_out is 6, but must be c_in = 8"),
        (lambda: GatedPixelCNN(kernel=2), "kernel is 2"),
        (lambda: GatedPixelCNN(first_kernel=1), "first_kernel is 1"),
        (lambda: GatedPixelCNN(position="1d"), "position is '1d'"),
        (lambda: GatedPixelCNN(attention=-1), "attention is -1"),
        (lambda: GatedPixelCNN(n_layers=4, attention=5), "attention is 5, but .* n_layers = 4"),
        (lambda: PixelCNN(c_in=3)(torch.zeros(1, 4, 4, dtype=torch.int64)), "c_in is 3"),
    ],
)
def test_what_cannot_be_built_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- what a position depends on -------------------------------------------------------------------------------------------


@every_prior
def test_causal_at_every_position_by_perturbation(name):
    """Another token at n leaves the logits up to n as they are, and moves some later ones."""
    model = make(name)
    tokens = grids(model, B=1)
    others = tokens.repeat(h * w, 1, 1).flatten(1)  # grid n has another token at n
    positions = torch.arange(h * w)
    others[positions, positions] = (others[positions, positions] + 1) % model.n_tokens
    with torch.no_grad():
        base, moved = model(tokens)[0].flatten(1, 2), model(others.view(-1, h, w))[0].flatten(1, 2)
    changed = (moved - base).abs().amax(dim=-1) / base.abs().max()  # (N,N): token n, position
    assert changed.tril().max() < 1e-6
    assert all(changed[n, n + 1 :].max() > 1e-6 for n in range(h * w - 1))


def inputs_of(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """What ``net`` takes, (B,C,h,w) in float64: the tokens themselves, or their embeddings."""
    if isinstance(model, PixelCNN):
        return tokens[:, None].double()
    return (model.embed(tokens) + model.positions(h, w)).permute(0, 3, 1, 2).detach()


def reach(model: torch.nn.Module) -> set[tuple[int, int]]:
    """All (rows down, columns right) from which the layers lead to a position: one step after the other."""
    if isinstance(model, PixelCNN):
        r = model.config["kernel_size"] // 2
        field = {(y, x) for y in range(-r, 1) for x in range(-r, r + 1) if (y, x) < (0, 0)}
        steps = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0)]
        for _ in model.blocks:
            field = {(y + a, x + b) for y, x in field for a, b in steps}
        return field
    r = sum(layer.reach for layer in model.layers)
    above = {(y, x) for y in range(1 - h, 0) for x in range(1 - w, w)} if any(model.attentions) else set()
    return above | {(y, x) for y in range(-r, 1) for x in range(-r, r + 1) if (y, x) < (0, 0)}


@every_prior
def test_causal_at_every_position_by_gradient(name):
    """The gradient is 0 for the current and all later positions, not for any earlier one of the field: a mean over random
    weights, as a ReLU may be shut in one draw."""
    total = torch.zeros(h * w, h * w, dtype=torch.float64)
    for seed in range(12):
        model = make(name, seed).double()
        x = inputs_of(model, grids(model, B=1, seed=seed)).expand(h * w, -1, -1, -1).clone().requires_grad_()
        logits = model.net(x).flatten(2).sum(dim=1)  # (N,K,h,w) -> (N,N)
        logits.diagonal().sum().backward()  # copy n of the grid has the gradient of position n
        total += x.grad.abs().sum(dim=1).flatten(1)  # (N,C,h,w) -> (N,N)
    field = reach(model)
    for n in range(h * w):
        seen = {(m // w - n // w, m % w - n % w) for m in total[n].nonzero()[:, 0].tolist()}
        inside = {(y, x) for y, x in field if 0 <= n // w + y < h and 0 <= n % w + x < w}
        assert seen == inside, f"position {n}"


@every_prior
def test_first_position_is_the_same_for_every_grid(name):
    model = make(name)
    logits = model(grids(model, B=5))[0][:, 0, 0]
    assert torch.equal(logits, logits[:1].expand_as(logits))


# --- the contract ---------------------------------------------------------------------------------------------------------


@every_prior
def test_logits_and_loss(name):
    model = make(name)
    tokens = grids(model)
    logits, extra = model(tokens)
    assert logits.shape == (2, h, w, model.n_tokens) and logits.dtype == torch.float32 and extra == {}
    losses = model.loss(tokens)
    p = logits.softmax(-1).gather(-1, tokens[..., None])
    assert losses["loss"].item() == pytest.approx(-p.log().mean().item(), rel=1e-5)
    assert losses["bits_per_image"].item() == pytest.approx(-p.log2().sum().item() / 2, rel=1e-5)
    if model.n_tokens == 2:
        assert losses["nats_per_image"].item() == pytest.approx(-p.log().sum().item() / 2, rel=1e-5)
        assert losses["bits_per_pixel"].item() == pytest.approx(-p.log2().mean().item(), rel=1e-5)


def test_pixelcnn_is_binary_cross_entropy():
    model = make("PixelCNN")
    tokens = grids(model)
    odds = model.net(tokens[:, None].float())
    assert odds.shape == (2, 1, h, w)
    expected = F.binary_cross_entropy_with_logits(odds[:, 0], tokens.float()).item()
    assert model.loss(tokens)["loss"].item() == pytest.approx(expected, rel=1e-6)
    logits = model(tokens)[0]
    assert (logits[..., 0] == 0).all() and torch.equal(logits[..., 1], odds[:, 0])


def test_codes_are_read_and_not_trained():
    model = PRIORS["Gated, codes"]()
    assert model.loss(grids(model))["loss"].isnan(), "a forgotten set_codes must show"
    table = torch.randn(9, 4)
    model.set_codes(table)
    assert "codes" in model.state_dict() and "codes" not in dict(model.named_parameters())
    logits = model(grids(model))[0]
    assert logits.isfinite().all()
    model.set_codes(table.flip(0))
    assert torch.equal(model(8 - grids(model))[0], logits), "only a token's vector counts"
    with pytest.raises(ValueError, match=r"\(9, 3\), but this prior reads 9 vectors of code_dim = 4"):
        model.set_codes(table[:, :3])
    with pytest.raises(ValueError, match="this prior reads none"):
        make("Gated, binary").set_codes(table)


def test_attention_is_a_weighted_mean_of_the_rows_above():
    """Against the definition, position by position, with angles of 1, 100 ** -1/4, ... a row or column."""
    torch.manual_seed(0)
    attention, d = RowAttention(5, 3).double(), RowAttention.channels
    x, e = torch.randn(1, 5, h, w, dtype=torch.float64), torch.randn(1, 3, h, w, dtype=torch.float64)
    speeds = 100 ** (-torch.arange(d // 4) / (d // 4))

    def turned(vector: torch.Tensor, row: int, column: int) -> torch.Tensor:
        turn = torch.exp(1j * torch.cat((row * speeds, column * speeds)))
        points = torch.complex(*vector.chunk(2)) * turn
        return torch.cat((points.real, points.imag))

    found = attention(x, e)[0]
    for row, column in (0, 0), (0, 4), (1, 0), (3, 2), (h - 1, w - 1):
        here, mean = x[0, :, row, column], torch.zeros(d, dtype=torch.float64)
        if row:
            seen = [(i, j) for i in range(row) for j in range(w)]
            both = [attention.key_value(torch.cat((x[0, :, i, j], e[0, :, i, j]))) for i, j in seen]  # key and value
            keys = torch.stack([turned(kv[:d], *position) for kv, position in zip(both, seen, strict=True)])
            weights = (keys @ turned(attention.query(here), row, column) / d**0.5).softmax(0)
            mean = weights @ torch.stack([kv[d:] for kv in both])
        assert torch.allclose(found[:, row, column], here + attention.out(mean), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (2, 2)])
def test_attention_in_grids_of_one_row_or_column(size):
    torch.manual_seed(0)
    model = GatedPixelCNN(6, 2, 9, first_kernel=3, position="none", attention=1).eval()
    tokens = torch.randint(9, (2, *size))
    with torch.inference_mode():
        full = model(tokens)[0].flatten(1, 2)
    assert torch.allclose(by_steps(model, tokens), full, atol=1e-5)


def test_where_attention_is_enters_the_fingerprint():
    """After the second layer or the third: tensors of the same shapes, and another function."""
    models = [GatedPixelCNN(6, 3, 9, attention=attention) for attention in (2, 3)]
    for model in models:
        for value in model.state_dict().values():
            value.fill_(0.5)
    assert fingerprint(models[0]) != fingerprint(models[1])


def test_attention_finds_what_convolutions_cannot_reach():
    """The last row repeats the first one, 6 rows away, where two layers reach 2: only the attention can learn it."""
    losses = {}
    for attention in 0, 1:
        torch.manual_seed(0)
        model = GatedPixelCNN(16, 2, 4, 7, w, first_kernel=3, embedding_dim=8, attention=attention)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(300):
            tokens = torch.randint(4, (16, 7, w))
            tokens[:, -1] = tokens[:, 0]
            optimizer.zero_grad()
            logits = model(tokens)[0][:, -1]  # (B,w,K)
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, -1].flatten())  # (B,w,K) -> (B*w,K)
            loss.backward()
            optimizer.step()
        losses[attention] = loss.item()
    assert losses[0] > 0.9 * math.log(4) and losses[1] < 0.2 * math.log(4), losses


def test_positions():
    model = make("Gated, 9 tokens")
    with pytest.raises(ValueError, match="A 9x4 grid is larger than the 8x8 .* --height 9 --width 4, or .*none"):
        model(torch.zeros(1, 9, 4, dtype=torch.int64))
    with torch.no_grad():
        model.row += torch.randn_like(model.row)
    logits = model(torch.zeros(1, 8, 8, dtype=torch.int64))[0]
    assert not torch.allclose(logits[0, 5, 5], logits[0, 6, 5])
    anywhere = make("Gated, one layer")
    logits = anywhere(torch.zeros(1, 20, 20, dtype=torch.int64))[0]
    assert torch.allclose(logits[0, 5, 5], logits[0, 16, 15], atol=1e-6)


@pytest.mark.parametrize("name", ["PixelCNN", "GatedPixelCNN"])
def test_one_batch_is_overfitted(name):
    torch.manual_seed(0)
    model = PixelCNN(c_hidden=24, num_res_block=2) if name == "PixelCNN" else GatedPixelCNN(16, 2, 2, h, w, embedding_dim=4)
    tokens = grids(model, B=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(tokens)["loss"].backward()
        optimizer.step()
    assert model.loss(tokens)["loss"] < 0.1 * math.log(2)


# --- token by token -------------------------------------------------------------------------------------------------------


@every_prior
@pytest.mark.parametrize("first", [0, 1, w, w + 3, h * w - 1])
def test_steps_equal_the_full_pass_at_every_position(name, first):
    model = make(name)
    tokens = grids(model, B=3)
    with torch.inference_mode():
        full = model(tokens)[0].flatten(1, 2)
    assert torch.allclose(by_steps(model, tokens, first), full[:, first:], atol=1e-5)


@every_prior
def test_steps_in_float64(name):
    """The weights' type is kept; with so many bits, sums in another order do not excuse a difference."""
    model = make(name).double()
    tokens = grids(model, B=3)
    with torch.inference_mode():
        full = model.to_logits(model.net(inputs_of(model, tokens)).permute(0, 2, 3, 1)).flatten(1, 2)  # (B,K,h,w) -> (B,N,K)
    assert torch.allclose(by_steps(model, tokens), full, atol=1e-12)


def test_steps_of_the_full_size():
    torch.manual_seed(0)
    model, tokens = PixelCNN(), torch.randint(2, (1, 28, 28))
    with torch.inference_mode():
        full, steps, new = model(tokens)[0].flatten(1, 2)[0], model.steps(1, 28, 28), tokens.flatten(1)
        logits = [steps(new[:, :0])] + [steps(new[:, n : n + 1]) for n in range(783)]
    assert torch.allclose(torch.cat(logits), full, atol=1e-5)


@every_prior
def test_samples_are_those_of_the_naive_sampler(name):
    model = make(name).train()

    class Naive(Steps):
        """The whole grid again for each token."""

        tokens = torch.zeros(3, 0, dtype=torch.int64)

        def advance(self, new):
            self.tokens = torch.cat((self.tokens, new), dim=1)
            padded = F.pad(self.tokens, (0, h * w - self.tokens.shape[1]))
            return model(padded.view(3, h, w))[0].flatten(1, 2)[:, self.tokens.shape[1]]

    prefix = grids(model, B=3)[:, :2]
    for options in ({}, {"temperature": 0.7, "prefix": prefix}, {"temperature": 0}, {"prefix": prefix[:, :0]}):
        a = model.generate(3, h, w, generator=torch.Generator().manual_seed(1), **options)
        with torch.no_grad():
            b = generate(Naive(model, h, w), 3, h, w, generator=torch.Generator().manual_seed(1), **options)
        assert torch.equal(a, b) and a.shape == (3, h, w) and model.training
        if "prefix" in options:
            assert torch.equal(a[:, : options["prefix"].shape[1]], options["prefix"])


# --- commands -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def prior(tmp_path):
    path = tmp_path / "p.pth"
    checkpoint.save(build("PixelCNN"), path)
    return path


def pictures(folder) -> dict[str, np.ndarray]:
    return {p.name: np.asarray(Image.open(p)) for p in folder.iterdir()}


def test_sample_command(command, prior, tmp_path):
    options = ("--image_size", "8x6", "--device", "cpu")
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        done = command("sample", prior, 4, tmp_path / folder, f"--seed={seed}", *options)
        assert done.returncode == 0 and "sheet.png" in done.stdout, done.stderr
    a, b, c = (pictures(tmp_path / folder) for folder in "abc")
    assert set(a) == {"sheet.png", *(f"sample_{i}.png" for i in range(4))}
    assert all(np.array_equal(a[k], b[k]) for k in a) and any(not np.array_equal(a[k], c[k]) for k in a)
    assert a["sample_0.png"].shape == (8, 6) and set(np.unique(a["sample_0.png"])) <= {0, 255}
    assert np.array_equal(a["sheet.png"][4:20:2, 4:16:2], a["sample_0.png"])  # twice the size, inside the margin
    done = command("sample", prior, 1, tmp_path / "a", *options)
    assert "1 image, each" in done.stdout and "3 pictures of an earlier run, such as sample_1.png" in done.stderr
    assert set(pictures(tmp_path / "a")) == set(a)
    assert command("sample", prior, 1, tmp_path / "a", "--overwrite", *options).returncode == 0
    assert set(pictures(tmp_path / "a")) == {"sheet.png", "sample_0.png"}


def test_completions_keep_the_given_rows(command, prior, small, tmp_path):  # noqa: F811
    done = command("sample", prior, 3, tmp_path / "out", "--complete", "7,2", "--rows", 9, "--data", small, "--device=cpu")
    assert done.returncode == 0, done.stderr
    found = pictures(tmp_path / "out")
    assert len(found) == 7 and found["sheet.png"].shape == (2 * 60 + 4, 5 * 60 + 4)
    for i, number in enumerate([7, 7, 7, 2, 2, 2]):
        expected = MnistDataset("test", small)[number].numpy() * 255
        assert np.array_equal(found[f"sample_{i}.png"][:9], expected[:9])
    assert not np.array_equal(found["sample_0.png"], found["sample_1.png"])
    kept = found["sheet.png"][4:60:2, 64:120:2]
    assert (kept[9:] == 128).all() and set(np.unique(kept[:9])) <= {0, 255}


def test_completion_of_an_image_file(command, prior, tmp_path):
    grey = np.full((8, 8), 200, np.uint8)
    grey[:, :4] = 60
    Image.fromarray(grey).save(tmp_path / "a.png")
    arguments = ("--complete", tmp_path / "a.png", "--rows", 8, "--binarize", 0.5, "--image_size", "8x8", "--device=cpu")
    done = command("sample", prior, 1, tmp_path / "out", *arguments)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(pictures(tmp_path / "out")["sample_0.png"], np.where(grey > 127, 255, 0))


def test_more_shades_than_two(command, tmp_path):
    model = build("GatedPixelCNN")
    checkpoint.save(model, tmp_path / "g.pth")
    arguments = ("--image_size=4x6", "--temperature=2", "--device=cpu")
    done = command("sample", tmp_path / "g.pth", 2, tmp_path / "out", *arguments)
    assert done.returncode == 0, done.stderr
    assert set(np.unique(pictures(tmp_path / "out")["sample_1.png"])) <= {i * 255 // (K - 1) for i in range(K)}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["p.pth", 0, "out"], "N_IMAGES is 0"),
        (["p.pth", 10**24, "out"], "N_IMAGES is 1000000000000000000000000, but must be below 2"),
        (["p.pth", 1, "out", "--temperature=-1"], "temperature is -1"),
        (["p.pth", 1, "out", "--temperature", 10**400], "temperature is 10+, but must be 0"),
        (["p.pth", 1, "out", "--rows=29", "--complete=0"], "--rows is 29, but must be from 0 to 28"),
        (["p.pth", 1, "out", "--complete=9"], "numbers 0 to 8"),
        (["p.pth", 1, "out", "--complete=gone.png"], "gone.png"),
        (["p.pth", 1, "out", "--complete=0", "--binarize=2"], "binarize is 2"),
        (["ae.pth", 1, "out"], "holds a PatchAutoEncoder, but a prior is needed"),
        (["many.pth", 1, "out"], "The 1024 tokens of .*homework.generation"),
    ],
)
def test_mistakes_end_in_one_sentence(command, prior, small, tmp_path, monkeypatch, arguments, message):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    checkpoint.save(build("PatchAutoEncoder"), "ae.pth")
    checkpoint.save(build("GatedPixelCNN", n_tokens=1024), "many.pth")
    assert re.search(message, sentence(command("sample", *arguments, "--device=cpu")))
    assert not (tmp_path / "out").exists()


def test_summary_of_pixelcnn(command):
    done = command("summary", "PixelCNN")
    assert done.returncode == 0 and "307,073" in done.stdout and "MaskedConv2d (first)" in done.stdout, done.stderr
    small_one = command("summary", "PixelCNN", "--c_hidden", 8, "--image_size", "4x4")
    assert f"{parameters(PixelCNN(c_hidden=8)):,}" in small_one.stdout and "[1, 8, 4, 4]" in small_one.stdout
    assert "did you mean --c_hidden?" in sentence(command("summary", "PixelCNN", "--c_hiden", 1))
    assert "the known ones are" in sentence(command("summary", "Nonsense"))


def test_summary_of_checkpoints(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wide = build("GatedPixelCNN", c_hidden=7)
    checkpoint.save(wide, "wide.pth")
    checkpoint.save(build("CascadeStage"), "stage.pth")
    checkpoint.save(build("VQVAE"), "vqvae.pth")
    done = command("summary", "wide.pth")
    assert done.returncode == 0 and f"{parameters(wide):,}" in done.stdout and "[1, 4, 6" in done.stdout, done.stderr
    done = command("summary", "VQGatedPixelCNN")  # a trained model, of which no class has the name
    assert done.returncode == 0 and f"{parameters(checkpoint.load('VQGatedPixelCNN')):,}" in done.stdout, done.stderr
    for path in "stage.pth", "vqvae.pth":
        assert command("summary", path).returncode == 0
    assert "c_hidden = 7, but 8" in sentence(command("summary", "wide.pth", "--c_hidden", 8))
    assert "no checkpoint none.pth" in sentence(command("summary", "none.pth"))
    assert "A 9x9 grid is larger than the 4x6" in sentence(command("summary", "wide.pth", "--image_size", "9x9"))


def test_summary_is_of_the_size_that_the_options_say(command):
    done = command("summary", "GatedPixelCNN", "--height", 3, "--width", 5, "--c_hidden", 7)
    assert done.returncode == 0 and "[1, 7, 3, 5]" in done.stdout, done.stderr


@pytest.mark.parametrize("name", registry.MODELS)
def test_summary_of_every_model(command, name):
    model = build(name)
    x = batch_for(model)
    size = "x".join(map(str, (x[1] if isinstance(x, tuple) else x).shape[1:3]))
    options = [f"--{k}={v}" for k, v in model.config.items() if v is not None and not isinstance(v, bool)]
    done = command("summary", name, "--image_size", size, *options)
    total = sum(p.numel() for p in model.parameters())
    assert done.returncode == 0 and f"{total:,}" in done.stdout, done.stderr or done.stdout


def test_digits_in_nats(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = PixelCNN(c_hidden=8, num_res_block=1).eval()
    checkpoint.save(model, "p.pth")
    for split, binarize in ("test", 0), ("valid", "sample"):
        digits("p.pth", split=split, binarize=binarize)
        cells = capsys.readouterr().out.splitlines()[-1].split(" | ")
        grids = MnistDataset(split, "data", binarize)
        nats = model.loss(grids.batch(torch.arange(len(grids))))["nats_per_image"].item()
        assert cells[0] == "| p.pth" and abs(float(cells[2].split(" ± ")[0]) - nats) < 0.01
    checkpoint.save(build("GatedPixelCNN"), "t.pth")
    for models, why in ([], "Name the priors to compare"), (["t.pth"], "t.pth is not a prior over digits"):
        with pytest.raises(ValueError, match=why):
            digits(*models)
