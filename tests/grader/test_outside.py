"""What a grader may do that knows the course's interface alone: it asks no mode of gradients, writes into what it gets, and
differentiates through it."""

import pytest
import torch
import torch.nn.functional as F
from conftest import GRID, SIZE, K, build

import homework


@pytest.fixture
def x():
    return torch.rand(3, *SIZE, 3, generator=torch.Generator().manual_seed(0)) - 0.5


@pytest.fixture
def prior():
    return build("AutoregressiveModel")


def nats(prior, tokens):
    logits, extra = prior(tokens)
    assert logits.shape == (*tokens.shape, K) and isinstance(extra, dict)
    return F.cross_entropy(logits.flatten(0, -2), tokens.flatten())


def has_gradients(model):
    return all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_auto_encoder(x):
    model = build("PatchAutoEncoder")
    code = model.encode(x)
    code *= 1.0
    x_hat = model.decode(code)
    x_hat -= x
    x_hat.square().mean().backward()
    assert has_gradients(model)
    assert model(x)[0].shape == x.shape


@pytest.mark.parametrize("name", ["BSQPatchAutoEncoder", "VQPatchAutoEncoder"])
def test_tokenizer(x, name):
    model = build(name)
    tokens = model.encode_index(x)
    assert tokens.shape == (3, *GRID) and tokens.dtype == torch.int64
    tokens[0] = 0
    x_hat = model.decode_index(tokens)
    x_hat.clamp_(-0.5, 0.5)
    loss = F.mse_loss(model(x)[0], x)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_prior_on_frames_and_on_its_samples(x, prior):
    tokenizer = build("BSQPatchAutoEncoder")
    tokens = tokenizer.encode_index(x)
    nats(prior, tokens).backward()
    assert has_gradients(prior)
    samples = prior.generate(2, *GRID, device=torch.device("cpu"))
    assert samples.shape == (2, *GRID) and 0 <= samples.min() <= samples.max() < K
    prior.zero_grad()
    nats(prior, samples).backward()
    assert has_gradients(prior)
    images = tokenizer.decode_index(samples)
    images += 0.5
    samples[0, 0, 0] = 0


def test_compressor(x, prior):
    """It leaves both models as they were."""
    tokenizer = build("BSQPatchAutoEncoder")
    compressor = homework.Compressor(tokenizer, prior)
    data = compressor.compress(x[0])
    assert isinstance(data, bytes)
    image = compressor.decompress(data)
    image += 0.5
    assert torch.allclose(image - 0.5, tokenizer.decode_index(tokenizer.encode_index(x[:1]))[0], atol=1e-5)
    nats(prior, tokenizer.encode_index(x)).backward()
    assert has_gradients(prior) and torch.get_default_dtype() == torch.float32
