"""The contracts: what every prior returns is an ordinary tensor, and models of one's own, made of the base classes alone,
train, tokenize, sample, compress and are evaluated by the package as it is."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GRID, SIZE, TINY, K, batch_for, build
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from homework import AutoregressiveModel, Compressor, load
from homework.compress import compress, decompress, info
from homework.core import registry
from homework.core.model import Model
from homework.core.registry import model_class, register
from homework.datasets.images import ImageDataset
from homework.evaluate import evaluate
from homework.generation import generate
from homework.priors.base import Prior
from homework.priors.cascade_stage import CascadeStage
from homework.priors.steps import NaiveSteps, Steps
from homework.priors.uniform import Uniform
from homework.tokenize import tokenize
from homework.tokenizers.base import QuantizedAutoEncoder, Tokenizer
from homework.train import train

P = 5  # pixels of a patch's side


# --- models of one's own --------------------------------------------------------------------------------------------------


class Palette(Tokenizer):
    """A patch is the nearest of K colours to its mean."""

    data, patch_size = "images", P

    def __init__(self, n_tokens: int = K):
        super().__init__()
        self.n_tokens = n_tokens
        self.colours = nn.Parameter(torch.linspace(-0.5, 0.5, n_tokens)[:, None].repeat(1, 3))

    def encode_index(self, x: Tensor) -> Tensor:
        *batch, H, W, _ = x.shape
        x = F.pad(x, (0, 0, 0, -W % P, 0, -H % P))
        means = x.unflatten(-2, (-1, P)).unflatten(-4, (-1, P)).mean(dim=(-4, -2))  # (...,h,P,w,P,3) -> (...,h,w,3)
        return (means[..., None, :] - self.colours).square().sum(dim=-1).argmin(dim=-1)

    def code_vectors(self, index: Tensor) -> Tensor:
        return self.colours[index]

    def decode_index(self, index: Tensor) -> Tensor:
        return self.code_vectors(index).repeat_interleave(P, dim=-3).repeat_interleave(P, dim=-2)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.decode_index(self.encode_index(x))[..., : x.shape[-3], : x.shape[-2], :], {}

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": F.mse_loss(self(x)[0], x)}


class Patches(nn.Module):
    """Cuts (B,H,W,3) into patches and embeds each; with ``back``, the other way round."""

    def __init__(self, C: int, back: bool = False):
        super().__init__()
        self.conv = (nn.ConvTranspose2d if back else nn.Conv2d)(*((C, 3) if back else (3, C)), P, P)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Signs(QuantizedAutoEncoder):
    """The signs of log2 K numbers, with a straight-through gradient."""

    def __init__(self, bits: int = 4):
        super().__init__(P, Patches(bits), Patches(bits, back=True))
        self.n_tokens = 2**bits
        self.register_buffer("powers", 2 ** torch.arange(bits), persistent=False)

    def quantize(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return z + (2.0 * (z > 0) - 1 - z).detach(), {"size_loss": 0.01 * z.square().mean()}

    def encode(self, x: Tensor) -> Tensor:
        return self.quantize(self.latent(x))[0]

    def encode_index(self, x: Tensor) -> Tensor:
        return ((self.latent(x) > 0) * self.powers).sum(dim=-1)

    def code_vectors(self, index: Tensor) -> Tensor:
        return 2.0 * (index[..., None] & self.powers > 0) - 1


class Bigram(Prior):
    """A token depends on the one before it alone."""

    def __init__(self, n_tokens: int = K):
        super().__init__()
        self.n_tokens = n_tokens
        self.logits = nn.Embedding(n_tokens + 1, n_tokens)  # the last row is for the first token

    def forward(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        before = F.pad(tokens.flatten(1), (1, 0), value=self.n_tokens)[:, :-1]
        return self.logits(before).view(*tokens.shape, self.n_tokens), {}


OWN = (Palette, Signs, Bigram)


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """The models above are known by name, and the current folder is a new one."""
    monkeypatch.chdir(tmp_path)
    for cls in OWN:
        assert register(cls) is cls and model_class(cls.__name__) is cls
    yield
    for cls in OWN:
        del registry.MODELS[cls.__name__]


@pytest.mark.parametrize("tokenizer", [Palette, Signs])
def test_models_of_ones_own_do_all_that_the_packages_do(registered, data, tokenizer, capsys):
    options = {"batch_size": 4, "warmup": 2, "device": "cpu"}
    generator = torch.get_rng_state()
    train(tokenizer.__name__, epochs=5, lr=0.02, data=data, output="t.pth", **options)
    for split in "train", "valid":
        tokenize("t.pth", f"tokens/tokenized_{split}.pth", data / split, codes=True)
    train("Bigram", epochs=5, lr=0.2, data="tokens", output="p.pth", tokenizer="t.pth", **options)
    coder, prior = load("t.pth"), load("p.pth")
    assert type(coder) is tokenizer and type(prior) is Bigram and prior.n_tokens == coder.n_tokens == K
    assert prior.meta["valid"]["bits_per_image"] < 24 * 4  # log2 K bits each without a prior

    generate("t.pth", "p.pth", 2, "new", image_size=f"{SIZE[0]}x{SIZE[1]}", device="cpu", num_beam=2)
    assert np.asarray(Image.open("new/generation_1.png")).shape == (*SIZE, 3)

    models, archive = (Path("t.pth"), Path("p.pth")), Path("all.hwa")
    compress(*models, data / "valid", archive, verify=True, device="cpu", effort=0)
    decompress(*models, archive, Path("again"), device="cpu")
    for path in archive, *models:
        info(path, json=True)
        info(path)
    assert "8 images" in capsys.readouterr().out
    for path in sorted((data / "valid").iterdir()):
        x = ImageDataset([str(path)], root=data).batch([0])
        with torch.no_grad():
            expected = coder.decode_index(coder.encode_index(x))[0].clamp(-0.5, 0.5) * 255 + 127.5
        decoded = np.asarray(Image.open(f"again/{path.stem}.png")).astype(np.float32)
        assert np.abs(decoded - expected.numpy()).max() <= 0.51

    evaluate("t.pth", "p.pth", data / "valid", limit=2, out="report", device="cpu")
    assert Path("report/index.html").is_file() and Path("report/rates.csv").read_text().count("ours") == 1
    assert torch.equal(torch.get_rng_state(), generator)  # the global one


# --- what the package's priors return -------------------------------------------------------------------------------------

NAMES = [name for name in registry.MODELS if issubclass(model_class(name), Prior | CascadeStage)]
PRIORS = {name: lambda name=name: build(name) for name in NAMES}
PRIORS |= {"Bigram": Bigram, "Uniform": lambda: Uniform(K)}
every_prior = pytest.mark.parametrize("name", PRIORS)
CACHED = functools.cache(lambda name: PRIORS[name]())


def inputs(model: Model, B: int = 2) -> tuple[int | Tensor, Tensor, int | tuple]:
    """The first argument of ``generate`` and ``steps``, B fine grids, and the batch that ``forward`` takes."""
    batch = batch_for(model, B)
    return (*batch, batch) if isinstance(model, CascadeStage) else (B, batch, batch)


@every_prior
def test_what_is_generated_is_an_ordinary_tensor(name):
    model = PRIORS[name]()
    first, grid, batch = inputs(model)
    for new in model.generate(first, *GRID), model.generate(first, *GRID, prefix=grid[:, :1], temperature=0):
        assert new.shape == grid.shape and new.dtype == torch.int64 and not new.is_inference()
        new[0, 0, 0] = 1
        logits = model((first, new) if isinstance(model, CascadeStage) else new)[0]
        loss = F.cross_entropy(logits.flatten(0, 2), grid.flatten())  # (B,h,w,K) -> (B*N,K)
        if name != "Uniform":
            loss.backward()
    for pictures in model.images(batch).values():
        assert pictures.shape == grid.shape and not pictures.is_inference()
        pictures += 1


INTEGERS = [torch.int64, torch.int32, torch.int16, torch.uint8]


@every_prior
@given(st.integers(0, GRID[0]), st.sampled_from(INTEGERS), st.sampled_from([{}, {"num_beam": 2}, {"beams": 2}]))
@settings(max_examples=8)
def test_a_prefix_of_any_rows_and_integers_is_kept(name, rows, dtype, options):
    model = CACHED(name)
    first, grid, _ = inputs(model)
    new = [model.generate(first, *GRID, prefix=grid[:, :rows].to(d), generator=torch.Generator().manual_seed(0), **options)
           for d in (torch.int64, dtype)]  # fmt: skip
    assert torch.equal(*new) and torch.equal(new[1][:, :rows], grid[:, :rows]) and new[1].dtype == torch.int64


@every_prior
@given(st.integers(1, GRID[0]), st.sampled_from([-1, "K", 200]), st.integers(0, GRID[1] - 1))
@settings(max_examples=8)
def test_a_prefix_with_a_token_out_of_range_is_refused_in_the_same_words(name, rows, token, column):
    """A full one too; by steps as well."""
    model = CACHED(name)
    first, grid, _ = inputs(model)
    grid[1, rows - 1, column] = token = model.n_tokens if token == "K" else token
    said = f"holds token {token}, but this model knows those from 0 to {model.n_tokens - 1}; use the tokenizer that it was"
    for call in (lambda: model.generate(first, *GRID, prefix=grid[:, :rows]),
                 lambda: model.eval().steps(first, *GRID)(grid[:, :rows].flatten(1))):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            call()


@every_prior
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool, torch.complex64])
def test_a_prefix_that_is_not_of_integers_is_refused_in_the_same_words(name, dtype):
    model = CACHED(name)
    first, grid, _ = inputs(model)
    for rows in 0, 1, GRID[0]:
        for call in (lambda rows=rows: model.generate(first, *GRID, prefix=grid[:, :rows].to(dtype)),
                     lambda rows=rows: model.eval().steps(first, *GRID)(grid[:, :rows].flatten(1).to(dtype))):  # fmt: skip
            with pytest.raises(ValueError, match=f"is {dtype}, but tokens are integers"):
                call()


@every_prior
def test_steps_take_any_integers_and_never_a_full_grid(name):
    model = CACHED(name).eval()
    first, grid, _ = inputs(model)
    tokens, N = grid.flatten(1), grid[0].numel()
    for dtype in INTEGERS:
        steps, expected = model.steps(first, *GRID), model.steps(first, *GRID)
        for part in tokens[:, :9], tokens[:, 9:10], tokens[:, 10:11]:
            assert torch.equal(steps(part.to(dtype)), expected(part))
    with pytest.raises(ValueError, match=f"is full: .* they take {N - 1} more, not {N}"):
        model.steps(first, *GRID)(tokens)
    steps = model.steps(first, *GRID)
    steps(tokens[:, : N - 1])
    steps.select(torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="is full: .* they take 0 more, not 1"):
        steps(tokens[[0, 0, 1], -1:])


@every_prior
@pytest.mark.parametrize("options", [{}, {"num_beam": 2}, {"beams": 2}])
def test_no_grids_at_all_are_generated_too(name, options):
    model = CACHED(name).eval()
    first, grid, _ = inputs(model, 0)
    for more in {}, {"prefix": grid[:, :2]}, {"prefix": grid}:
        new = model.generate(first, *GRID, **options, **more)
        assert new.shape == (0, *GRID) and new.dtype == torch.int64
    logits = model.steps(first, *GRID)(grid[:, :1].flatten(1))
    assert logits.shape == (0, model.n_tokens) and logits.is_floating_point()


@every_prior
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_steps_return_ordinary_tensors_without_a_graph(name, mode):
    """In any mode, whichever one they were made in and grids were selected in."""
    model = PRIORS[name]().eval()
    first, grid, batch = inputs(model)
    with torch.no_grad():
        whole, tokens = model(batch)[0].flatten(1, 2), grid.flatten(1)  # (B,h,w,K) -> (B,N,K)
    with mode():
        steps = model.steps(first, *GRID)
    assert isinstance(steps, Steps)
    for n, within in enumerate((torch.enable_grad, mode, torch.inference_mode, torch.no_grad)):
        with within():
            logits = steps(tokens[:, max(0, n - 1) : n])
            assert not logits.requires_grad and logits.is_inference() == (within is torch.inference_mode)
            logits += 0
            assert torch.allclose(logits, whole[:, n], atol=1e-5)
        with mode():
            steps.select(torch.tensor([1, 0]))
        tokens, whole = tokens.flip(0), whole.flip(0)


ALONE = [name for name in PRIORS if name != "CascadeStage"]  # without a coarser grid, which naive steps have not


@pytest.mark.parametrize("name", ALONE)
def test_fast_steps_are_the_naive_ones(name):
    """Over a batch that grows, shrinks and changes its order, in which equal rows then continue in different ways."""
    model, draws = PRIORS[name]().eval(), torch.Generator().manual_seed(0)
    fast, naive = model.steps(2, *GRID), NaiveSteps(model, 2, *GRID)
    tokens = torch.randint(model.n_tokens, (2, 8), generator=draws)
    for n in range(8, GRID[0] * GRID[1]):
        assert torch.allclose(fast(tokens), naive(tokens), atol=1e-5), n
        rows = torch.randint(len(tokens), (1 + n % 4,), generator=draws)
        fast.select(rows)
        naive.select(rows)
        tokens = torch.randint(model.n_tokens, (len(rows), 1), generator=draws)


@pytest.mark.parametrize("name", [name for name in ALONE if name != "Uniform"])
@pytest.mark.parametrize("options", [{"num_beam": 3, "beam_width": 4}, {"beams": 3}])
def test_searches_find_the_same_by_naive_steps(name, options, monkeypatch):
    model = PRIORS[name]().double()
    fast = model.generate(2, *GRID, generator=torch.Generator().manual_seed(0), **options)
    monkeypatch.setattr(type(model), "steps", Prior.steps)
    assert torch.equal(fast, model.generate(2, *GRID, generator=torch.Generator().manual_seed(0), **options))


def test_a_subclass_of_the_transformer_codes_by_what_it_computes_itself():
    class Sharper(AutoregressiveModel):
        def forward(self, tokens):
            logits, measures = super().forward(tokens)
            return 2 * logits, measures

        def steps(self, B, h, w, device="cpu"):
            return NaiveSteps(self, B, h, w, device)

    tokenizer, prior = build("BSQPatchAutoEncoder"), Sharper(**TINY["AutoregressiveModel"])
    compressor = Compressor(tokenizer, prior)
    assert not compressor.entropy_model.exact
    grids = torch.randint(K, (2, *GRID), generator=torch.Generator().manual_seed(0))
    files = compressor.compress_tokens(grids, SIZE)
    assert np.array_equal(np.stack(compressor.decompress_tokens(files)), grids)


def test_options_by_name_are_captured_and_positional_ones_without_a_name_are_refused():
    class Open(Model):
        def __init__(self, width: int, **options: int):
            super().__init__()

    class Unnamed(Model):
        def __init__(self, *sizes: int):
            super().__init__()

    config = Open(4, depth=3).config
    assert config == {"width": 4, "depth": 3} and Open(**config).config == config
    with pytest.raises(TypeError, match="no names in its config"):
        Unnamed(1, 2)
