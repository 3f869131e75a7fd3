"""Large images in blocks: the same tokens and pixels as at once, in memory that does not grow with the image."""

import itertools
import json
import math
import sys
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from conftest import K, build, run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tqdm import tqdm

from homework import Compressor
from homework.codec import compressor as module
from homework.codec import format, image_files, tiles
from homework.core import checkpoint
from homework.datasets.image_files import image_paths
from homework.nn.blocks import halo
from homework.priors.uniform import Uniform
from homework.tokenizers.base import Tokenizer

CONV = {"model": "ConvAutoEncoder", "config": {"min_channel": 4, "max_channel": 6, "latent_channel": 3}}
LOCAL = {
    "BSQ": ("BSQPatchAutoEncoder", {"encoder_blocks": 2}),
    "VQ": ("VQPatchAutoEncoder", {}),
    "SOM": ("SOM", {"patch": 2}),
    "convolutional SOM": ("SOM", {"autoencoder": CONV}),
}


def strong(name: str) -> Tokenizer:
    """Its layers all change what they see, so that too small a halo shows; in float64, where rounding does not."""
    kind, options = LOCAL[name]
    tokenizer, generator = build(kind, **options).eval().double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in tokenizer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * (p[0].numel() if p.ndim > 1 else 9) ** -0.5)
    return tokenizer


# --- the blocks -----------------------------------------------------------------------------------------------------------


@given(st.tuples(st.integers(1, 60), st.integers(1, 60)), st.integers(1, 400), st.integers(0, 12))
def test_blocks_cover_each_position_once_with_all_that_it_depends_on(grid, n, halo):
    times, sizes = np.zeros(grid, int), set()
    numbers = np.arange(math.prod(grid)).reshape(grid)
    for block, around, within in tiles.blocks(grid, n, halo):
        times[block] += 1
        assert 0 < numbers[block].size <= n and np.array_equal(numbers[around][within], numbers[block])
        sizes.add(numbers[around].shape)
        for own, more, length in zip(block, around, grid, strict=True):
            assert more.start <= max(0, own.start - halo) and more.stop >= min(length, own.stop + halo)
    assert (times == 1).all() and len(sizes) == 1


@pytest.mark.parametrize("cut", [tiles.tiles, lambda grid, tile: tiles.blocks(grid, math.prod(tile), 9)])
@pytest.mark.parametrize("grid", [(1, 2**26), (2**26, 1), (2**13, 2**13)])
def test_the_first_of_a_large_grid_costs_nothing(cut, grid):
    """Whatever a header claims."""
    tracemalloc.start()
    try:
        assert len(list(itertools.islice(cut(grid, (20, 30)), 3))) == 3
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", LOCAL)
def test_halos_are_as_wide_as_the_networks_see(name):
    """And, of networks with one grid between their layers, no wider."""
    tokenizer = strong(name)
    P = max(tokenizer.patch_shape)
    x = torch.rand(31 * P, 31 * P, 3, dtype=torch.float64) - 0.5
    latents = tokenizer.latent(x)
    x[15 * P : 16 * P, 15 * P : 16 * P] *= -1
    (rows, columns) = (tokenizer.latent(x) != latents).any(dim=-1).nonzero(as_tuple=True)
    seen = max((rows - 15).abs().max(), (columns - 15).abs().max())
    assert seen == tokenizer.encoder_halo or "conv" in name and seen <= tokenizer.encoder_halo
    index = torch.randint(K, (31, 31), generator=torch.Generator().manual_seed(0))
    pixels = tokenizer.decode_index(index)
    index[15, 15] = (index[15, 15] + 1) % K
    (rows, columns) = (tokenizer.decode_index(index) != pixels).any(dim=-1).nonzero(as_tuple=True)
    assert max((rows // P - 15).abs().max(), (columns // P - 15).abs().max()) <= tokenizer.decoder_halo


@pytest.mark.parametrize("name, halos", [("BSQPatchAutoEncoder", (4, 10)), ("VQPatchAutoEncoder", (4, 10)), ("VQVAE", None)])
def test_halos_of_the_shipped_models(name, halos):
    from homework.core.registry import model_class

    tokenizer = model_class(name)()
    assert (tokenizer.encoder_halo, tokenizer.decoder_halo) == (halos or (None, None))
    assert halos is None or halo(tokenizer.encoder) == halos[0]


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("size", [(91, 103), (9, 900), (200, 30)])
def test_tokens_and_pixels_are_those_of_the_whole(name, size, monkeypatch):
    tokenizer = strong(name)
    compressor = Compressor(tokenizer, Uniform(K))
    images = torch.rand(2, *size, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    grids = compressor.to_tokens(images)
    whole = compressor.to_images(list(grids), [size] * 2)
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 40 * max(tokenizer.patch_shape) ** 2)
    assert len(list(compressor.blocks(grids.shape[1:], 0))) > 1
    assert np.array_equal(compressor.to_tokens(images), grids)
    for x, x_hat in zip(compressor.to_images(list(grids), [size] * 2), whole, strict=True):
        assert x.shape == (*size, 3) and (x - x_hat).abs().max() < 1e-5
    files = compressor.compress_batch(list(images))
    for x, x_hat in zip(compressor.decompress_batch(files), whole, strict=True):
        assert (x - x_hat).abs().max() < 1e-5


# --- memory ---------------------------------------------------------------------------------------------------------------


class Counting(Tokenizer):
    """One grey level a patch; notes the most pixels that it was given, or made, at once."""

    n_tokens, patch_size = K, 5

    def __init__(self, halo: int | None):
        super().__init__()
        self.encoder_halo = self.decoder_halo = halo
        self.most = 0

    def encode_index(self, x):
        self.most = max(self.most, x[..., 0].numel())
        return ((x[..., ::5, ::5, 0] + 0.5) * K).long().clamp(0, K - 1)

    def decode_index(self, index):
        self.most = max(self.most, 25 * index.numel())
        return ((index + 0.5) / K - 0.5).repeat_interleave(5, -2).repeat_interleave(5, -1)[..., None].repeat(1, 1, 3)


@pytest.mark.parametrize("halo", [0, 3, None])
def test_no_more_of_a_large_image_than_a_block_goes_through_the_tokenizer(halo, monkeypatch):
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 2**12)
    compressor = Compressor(Counting(halo), Uniform(K))
    for x in torch.rand(80, 90, 3) - 0.5, torch.rand(160, 180, 3) - 0.5, torch.rand(3, 9600, 3) - 0.5:
        x_hat = compressor.decompress(compressor.compress(x))
        assert torch.equal(x_hat[::5, ::5], ((x[::5, ::5, :1] + 0.5) * K).floor().add(0.5).div(K).sub(0.5).expand(-1, -1, 3))
    assert compressor.tokenizer.most <= 4 * 2**12 if halo is not None else compressor.tokenizer.most > 5 * 9600 - 1


@pytest.mark.parametrize("effort, sides, most", [(0, (1000, 2500), 10), (1, (500, 1250), 60)])
def test_a_large_image_takes_little_more_memory_than_a_small_one(tmp_path, effort, sides, most):
    """On the command line, in both directions, in bytes a pixel; Pillow alone takes 7 when it writes."""
    if sys.platform != "linux":
        pytest.skip("the peak is counted in other units, or not at all")
    checkpoint.save(build("BSQPatchAutoEncoder", patch_size=25), tmp_path / "t.pth")
    checkpoint.save(build("AutoregressiveModel"), tmp_path / "p.pth")
    for name, side in zip(("small", "large"), sides, strict=True):
        Image.effect_noise((side, side), 50).convert("RGB").save(tmp_path / f"{name}.bmp")
    code = f"""
import json, resource
from homework.codec import search
from homework.compress import compress, decompress
search.ROUND = 1
peaks = []
for name in "small", "large":
    compress("t.pth", "p.pth", name + ".bmp", name + ".hwi", effort={effort})
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    decompress("t.pth", "p.pth", name + ".hwi", name + "_back.bmp")
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""
    done = run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _, small, *large = json.loads(done.stdout.splitlines()[-1])  # in KB, as Linux counts
    growth = [(peak - small) * 1024 / (sides[1] ** 2 - sides[0] ** 2) for peak in large]
    assert growth[0] < most and growth[1] < 35, (small, large)  # in one go it would be 18 and 75


def test_nothing_keeps_an_image_that_is_being_compressed(tmp_path):
    """But what compresses it; or else a folder of photos would be in memory twice."""
    for i, side in enumerate([20, 30, 30]):
        Image.new("RGB", (side, side)).save(tmp_path / f"{i}.png")
    compressor = Compressor(Pixels(0), Uniform(K), batch_size=3)
    chunks = image_files._same_size(compressor, image_paths(tmp_path), [], tqdm(), None, 0)
    for part, _, images in chunks:
        kept = [weakref.ref(image) for image in images]
        del images
        assert len(kept) == len(part) and not any(reference() is not None for reference in kept)


@settings(max_examples=30)
@given(st.integers(0, 26), st.integers(0, 2**26), st.binary(max_size=40))
def test_what_a_header_claims_costs_nothing(power, more, payload):
    """Its few bytes hold some dozens of tokens, whose decoding ends in a refusal before there is an image of 2^26."""
    H = 2**power
    size = (H, max(1, 2**26 // H - more % 2 ** (26 - power) // 2))
    data = format.image_file(CLAIMED.models, size, payload, 0)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="is damaged"):
            CLAIMED.decompress_tokens([data])
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


class Pixels(Counting):
    patch_size = 1


CLAIMED = Compressor(Pixels(0), Uniform(K))
