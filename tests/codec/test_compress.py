"""Pictures to files and back, with models: all sizes, both arithmetics, the command line, and whatever can be wrong."""

import contextlib
import io
import json
import math
import os
import stat
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GRID, ROOT, SIZE, K, build, file_size_limit, files, run, sentence
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.mutations import mutate
from homework import Compressor, compress
from homework.codec import archive, format, image_files, search, tiles
from homework.codec.entropy import FloatPrior, as_learned
from homework.codec.image_files import compress_files
from homework.codec.parallel import in_parallel
from homework.core import checkpoint, cli
from homework.datasets.decoding import readable_suffixes
from homework.datasets.image_files import read_image
from homework.datasets.images import to_float, to_uint8
from homework.nn.blocks import pad_to_patches
from homework.priors.base import Prior
from homework.priors.uniform import Uniform
from homework.tokenizers.base import Tokenizer

SIZES = [(1, 1), (5, 5), SIZE, (3, 61), (47, 100)]  # one patch, odd ones, the prior's grid, and 2x1 and 3x4 tiles


@pytest.fixture(scope="module")
def models():
    """A tokenizer and a prior with strong opinions."""
    tokenizer, prior = build("BSQPatchAutoEncoder").eval(), build("AutoregressiveModel").eval()
    with torch.no_grad():
        prior.head.weight *= 8
    return tokenizer, prior


@pytest.fixture(params=["exact", "float", "VQ exact", "BSQ-PixelCNN", "VQ-PixelCNN"])
def compressor(models, request, monkeypatch):
    """Every pair: either tokenizer, under a transformer on integers and under a prior in floats."""
    if request.param == "float":
        monkeypatch.setattr("homework.codec.compressor.entropy_model", FloatPrior)
    tokenizer = build("VQPatchAutoEncoder").eval() if "VQ" in request.param else models[0]
    prior = build("GatedPixelCNN").eval() if "PixelCNN" in request.param else models[1]
    made = Compressor(tokenizer, prior)
    assert made.models.exact == ("exact" in request.param)
    return made


def noise(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """(H,W,3) in [-0.5,0.5]."""
    return torch.rand(*size, 3, generator=torch.Generator().manual_seed(seed)) - 0.5


def floats(path: Path) -> torch.Tensor:
    """A picture as (H,W,3) in [-0.5,0.5]."""
    return to_float(torch.from_numpy(np.array(read_image(path))))


def picture(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_uint8(noise(size, seed)).numpy()).save(path)
    return path


def greedy(coder, size: tuple[int, int], probable: bool) -> np.ndarray:
    """(h,w): at each position the most probable token, or the least probable."""
    step, tokens = coder.steps(1, *size, as_learned(1)), np.empty((1, 0), np.int64)
    for _ in range(math.prod(size)):
        weights = step(tokens[:, -1:])
        tokens = np.append(tokens, [weights.argmax(-1) if probable else weights.argmin(-1)], axis=1)
    return tokens.reshape(size)


def bits(coder, grid: np.ndarray) -> float:
    """What a grid costs under the prior as it was learned, tile by tile."""
    total = 0.0
    for (a, b), corners in tiles.tiles(grid.shape, (coder.height, coder.width)):
        for top, left in corners:
            tokens, step = grid[None, top : top + a, left : left + b].reshape(1, -1), coder.steps(1, a, b, as_learned(1))
            for n, token in enumerate(tokens[0]):
                total += 24 - math.log2(step(tokens[:, max(0, n - 1) : n])[0, token] + 1)
    return total


# --- the class ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_an_image_comes_back_as_its_tokens_decoded(compressor, size):
    x = noise(size)
    data = compressor.compress(x)
    index = compressor.tokenizer.encode_index(x)
    x_hat = compressor.decompress(data)
    assert x_hat.shape == x.shape and torch.equal(x_hat, compressor.tokenizer.decode_index(index)[: size[0], : size[1]])
    (grid,) = compressor.decompress_tokens([data])
    assert np.array_equal(grid, index.numpy()) and grid.dtype == np.int64
    assert len(data) <= math.ceil(bits(compressor.entropy_model, grid) / 8) + 24


@pytest.mark.parametrize("how", ["random", "constant", "most probable", "least probable"])
@pytest.mark.parametrize("grid", [GRID, (1, 1), (5, 7)])
def test_tokens_come_back(compressor, how, grid):
    size = tuple(5 * side for side in grid)
    if how == "random":
        tokens = np.random.default_rng(0).integers(K, size=grid)
    elif how == "constant":
        tokens = np.full(grid, K - 1)
    elif grid != (5, 7):
        tokens = greedy(compressor.entropy_model, grid, how == "most probable")
    else:
        tokens = np.zeros(grid, int)
    (data,) = compressor.compress_tokens(tokens[None], size)
    assert np.array_equal(compressor.decompress_tokens([data])[0], tokens)
    assert len(data) <= math.ceil(bits(compressor.entropy_model, tokens) / 8) + 24


@settings(max_examples=15)
@given(st.integers(1, 33), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_images_of_any_size_come_back(exactly, H, W, seed):
    x = noise((H, W), seed)
    assert torch.equal(exactly.decompress(exactly.compress(x)), exactly.tokenizer(x)[0])


@pytest.fixture(scope="module")
def exactly(models):
    return Compressor(*models)


def test_a_batch_of_many_sizes_is_what_its_images_are(compressor):
    images = [noise(SIZES[i % 4], i) for i in range(6)]
    data = compressor.compress_batch(images)
    assert data == [compressor.compress(x) for x in images]
    for x_hat, one in zip(compressor.decompress_batch(data), data, strict=True):
        assert torch.allclose(x_hat, compressor.decompress(one), atol=1e-5)
    for grid, one in zip(compressor.decompress_tokens(data), data, strict=True):
        assert np.array_equal(grid, compressor.decompress_tokens([one])[0])
    assert compressor.compress_batch(torch.stack(images[1::4])) == data[1::4]  # (B,H,W,3)


def test_batch_size_and_threads_change_no_byte(models, exactly):
    images = [noise(SIZES[i % 4], i) for i in range(6)]
    data = exactly.compress_batch(images)
    torch.set_num_threads(2)
    try:
        other = Compressor(*models, batch_size=3)
        assert other.compress_batch(images) == data
        for a, b in zip(other.decompress_tokens(data), exactly.decompress_tokens(data), strict=True):
            assert np.array_equal(a, b)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("prior", ["AutoregressiveModel", "GatedPixelCNN"])
def test_an_archive_has_the_same_bytes_with_any_number_of_threads(prior, tmp_path):
    """Images are coded together, which is what the bytes of a prior in floats may depend on."""
    paths = [str(tmp_path / f"{i}.png") for i in range(70)]
    for i, path in enumerate(paths):
        Image.fromarray(to_uint8(noise((10, 10), i)).numpy()).save(path)
    compressor = Compressor(build("BSQPatchAutoEncoder"), build(prior))
    for compressor.workers in 1, 2, 5:
        output = str(tmp_path / f"{compressor.workers}.hwa")
        compress_files(compressor, paths, output, pack=True, scaled=None, skip_bad=False, verify=True)
    with open(output, "rb") as file:
        assert max(map(len, archive.Reader(file).chunks)) == 3
    assert len({(tmp_path / f"{n}.hwa").read_bytes() for n in (1, 2, 5)}) == 1


def test_more_tiles_than_are_coded_at_once(models, monkeypatch):
    monkeypatch.setattr(tiles, "TILES", 2)
    few = Compressor(*models)
    x = noise((100, 60))  # 20x12 tokens: 5x2 tiles of 4x6
    assert torch.equal(few.decompress(few.compress(x)), models[0](x)[0])


class Repeating(Prior):
    """A prior that has ``forward`` alone, and no parameters: a token is probably the one before it."""

    def __init__(self, n_tokens: int):
        super().__init__()
        self.n_tokens = n_tokens

    def forward(self, tokens):
        before = F.pad(tokens.flatten(1), (1, -1))  # (B,h,w) -> (B,N)
        return 3.0 * F.one_hot(before, self.n_tokens).view(*tokens.shape, -1), {}  # (B,N,K) -> (B,h,w,K)


@pytest.mark.parametrize("cls", [Uniform, Repeating])
def test_a_prior_needs_only_forward_and_no_parameters(models, cls):
    other = Compressor(models[0], cls(K))
    images = [noise(SIZES[i % 4], i) for i in range(5)]
    files = other.compress_batch(images)
    for x, data, x_hat in zip(images, files, other.decompress_batch(files), strict=True):
        assert torch.allclose(x_hat, models[0](x)[0], atol=1e-5)
        n_bits = bits(other.entropy_model, models[0].encode_index(x).numpy())
        assert len(data) <= math.ceil(n_bits / 8) + 24
        assert cls is Repeating or abs(n_bits - 4 * models[0].encode_index(x).numel()) < 0.01
    same = torch.zeros(*SIZE, 3)
    assert cls is Uniform or len(other.compress(same)) < len(Compressor(models[0], Uniform(K)).compress(same))


class Grey(Tokenizer):
    """A tokenizer without parameters, of grey levels; its images cannot be written into."""

    n_tokens, patch_size = K, 5

    def encode_index(self, x):
        grey = pad_to_patches(x.reshape(-1, *x.shape[-3:]), 5).mean(dim=-1)  # (...,H,W,3) -> (B,H,W,3) -> (B,H,W)
        index = ((F.avg_pool2d(grey, 5) + 0.5) * K).long().clamp(0, K - 1)  # (B,h,w)
        return index.view(*x.shape[:-3], *index.shape[1:])  # (B,h,w) -> (...,h,w)

    def decode_index(self, index):
        grey = ((index + 0.5) / K - 0.5).repeat_interleave(5, -2).repeat_interleave(5, -1)
        return grey[..., None].expand(*grey.shape, 3)


def test_a_tokenizer_needs_only_its_contract():
    tokenizer, images = Grey(), [noise(SIZES[i % 4], i) for i in range(5)]
    other = Compressor(tokenizer, Uniform(K))
    for x, x_hat in zip(images, other.decompress_batch(other.compress_batch(images)), strict=True):
        H, W, _ = x.shape
        assert torch.equal(x_hat, tokenizer.decode_index(tokenizer.encode_index(x))[:H, :W])
        x_hat += 1


@pytest.mark.parametrize("around", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_images_are_ordinary_tensors(models, around):
    """Usable under autograd and for writing into them, wherever they were made; and images may need a gradient."""
    x = noise(SIZE)
    with around():
        made = Compressor(*models)
        data = made.compress(x.clone().requires_grad_())
        images = [made.decompress(data), *made.decompress_batch([data] * 3)]
    images += made.to_images(made.decompress_tokens([data] * 2), [SIZE] * 2)
    for x_hat in images:
        x_hat += 1
        F.mse_loss(x_hat.requires_grad_(), x).backward()
        assert x_hat.grad.shape == x.shape and x_hat.grad.abs().sum() > 0


def test_calls_that_overlap_leave_the_number_of_threads():
    """The first to begin ends first; also in a thread that begins afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one, other = (in_parallel(lambda n: (n, torch.get_num_threads()), range(5), 2) for _ in range(2))
        found = [next(one), next(other), *one, *other]
        assert sorted(found) == [(n, 1) for n in range(5) for _ in range(2)] and torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


def test_a_compressor_made_while_another_works_has_all_threads():
    """A thread that begins meanwhile starts with the one thread that the other's pool has set."""
    before, models = torch.get_num_threads(), (build("BSQPatchAutoEncoder").eval(), build("AutoregressiveModel").eval())
    torch.set_num_threads(2)
    try:
        working = in_parallel(lambda n: n, range(5), 2)
        next(working)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda: Compressor(*models).workers).result() == 2
        assert list(working) == [1, 2, 3, 4]
    finally:
        torch.set_num_threads(before)


def test_calls_in_several_threads_leave_to_each_its_number_of_threads():
    """Also to one that begins while another's call has set the number to 1; and a new thread starts with a caller's."""
    before, started = torch.get_num_threads(), [threading.Event() for _ in range(3)]

    def call(k: int, n: int | None) -> int:
        if n:
            torch.set_num_threads(n)
        for _ in in_parallel(lambda i: i, range(3), 1):
            started[k].set()
            assert started[2].wait(60)
        return torch.get_num_threads()

    try:
        with ThreadPoolExecutor(3) as pool:
            found = []
            for k, n in enumerate((4, 2, None)):
                found.append(pool.submit(call, k, n))
                assert started[k].wait(60)
            assert [call.result(60) for call in found] == [4, 2, 4]
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() in (2, 4)
    finally:
        torch.set_num_threads(before)


def test_an_error_of_the_caller_ends_the_threads(folder, models, monkeypatch):
    """While it is being handled, its traceback keeps all frames alive."""
    made = Compressor(*models)
    monkeypatch.setattr(archive.ArchiveWriter, "add", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        try:
            compress_files(made, sorted(map(str, Path("photos").iterdir())), "a.tok", pack=True, scaled=None, skip_bad=False,
                           verify=False)  # fmt: skip
        finally:
            assert not any(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())


def test_what_is_not_an_image_is_reported(exactly):
    for value, message in [
        (noise((4, 4))[..., :2], "(4, 4, 2)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "uint8"),
        (np.zeros((4, 4, 3), np.float32), "this is a ndarray"),
        (noise((4, 4))[None], "(1, 4, 4, 3)"),
        (torch.zeros(0, 4, 3), "0x4"),
        (torch.full((4, 4, 3), torch.nan), "nan to nan"),
        (noise((4, 4)).index_fill(0, torch.tensor(2), torch.nan), "from nan"),
        (torch.full((4, 4, 3), -torch.inf), "-inf"),
        (255 * (noise((4, 4)) + 0.5), "from -0.5 to 0.5"),
        (torch.linspace(0, 1, 48).view(4, 4, 3), "from 0 to 1"),
    ]:
        with pytest.raises(ValueError) as raised:
            exactly.compress(value)
        assert message in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_any_precision_are_computed_with_in_float32(exactly, dtype):
    x = noise((23, 31)).to(dtype)
    assert exactly.compress(x) == exactly.compress(x.float())
    assert exactly.decompress(exactly.compress(x)).dtype == torch.float32


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, "64"])
def test_a_batch_size_that_is_none_is_reported(models, batch_size):
    with pytest.raises(ValueError, match="batch_size is .*, but must be an integer of at least 1"):
        Compressor(*models, batch_size=batch_size)


def spoil(model: torch.nn.Module, how: str) -> None:
    """Changes all weights, or what else a model computes with."""
    if how == "load_state_dict":
        model.load_state_dict({name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()})
    elif how == "optimizer":
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        torch.optim.SGD(model.parameters(), lr=1.0).step()
    elif how == "data":
        for p in model.parameters():
            p.data = torch.ones_like(p)
    elif how == "in place":
        for p in model.parameters():
            p.data.zero_()
    else:
        model.train() if how == "train" else model.to(getattr(torch, how))


@pytest.mark.parametrize("how", ["load_state_dict", "optimizer", "data", "in place", "train", "float64", "float16"])
@pytest.mark.parametrize("prior", ["AutoregressiveModel", "GatedPixelCNN"])
def test_what_becomes_of_the_models_changes_no_file(how, prior):
    pair, x = (build("BSQPatchAutoEncoder").train(), build(prior).train()), noise(SIZE)
    made, other = Compressor(*pair), Compressor(build("BSQPatchAutoEncoder"), build(prior))
    assert all(model.training for model in pair)  # the caller's stay as they are
    data = other.compress(x)
    for model in pair:
        spoil(model, how)
    assert made.compress(x) == data and torch.equal(made.decompress(data), other.decompress(data))
    if how not in ("train", "float64"):
        with pytest.raises(ValueError, match="another tokenizer"):
            Compressor(*pair).decompress(data)


def test_other_floats_are_named_as_what_they_may_be(compressor, monkeypatch):
    """As of another kind of machine: the tokens decode to others, or not at all."""
    data = compressor.compress(noise((47, 100)))
    steps = type(compressor.entropy_model).steps

    def others(*args):
        step = steps(*args)
        return lambda tokens: np.roll(step(tokens), 1, axis=-1)

    monkeypatch.setattr(type(compressor.entropy_model), "steps", others)
    with pytest.raises(ValueError, match="The file is damaged") as raised:
        compressor.decompress(data)
    assert ("coded in floats on another kind of machine" in str(raised.value)) == (not compressor.models.exact)


def test_a_file_of_slightly_other_floats_is_refused_before_anything_is_decoded(models, monkeypatch):
    prior = build("GatedPixelCNN").eval()
    data = Compressor(models[0], prior).compress(noise(SIZE))
    assert Compressor(models[0], prior).compress(noise(SIZE)) == data and archive.Reader(io.BytesIO(data)).version == 6
    steps = type(prior).steps

    def others(*args):
        step = steps(*args)
        return lambda tokens: step(tokens) * (1 + 2**-20)

    monkeypatch.setattr(type(prior), "steps", others)
    other = Compressor(models[0], prior)
    monkeypatch.setattr(Compressor, "decode", lambda *args: pytest.fail("a token was decoded"))
    for read in other.decompress, lambda data: other.decompress_tokens([data]):
        with pytest.raises(ValueError, match="The file was written by a machine whose floats differ from this one's"):
            read(data)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="this CPU has no instructions to leave out")
def test_a_processor_without_the_instructions_of_this_one_is_another_machine(call, folder):
    checkpoint.save(build("GatedPixelCNN").eval(), "g.pth")
    arguments = "compress", "t.pth", "g.pth", "photos", "a.tok", "--effort", 0
    done = run("-m", "homework.compress", *arguments, cwd=folder, fresh=True, ATEN_CPU_CAPABILITY="default")
    assert done.returncode == 0, done.stderr
    before = files(folder)
    for last in (("decompress", "t.pth", "g.pth", "a.tok", "back"), (*arguments, "--append")):
        assert "a.tok was written by a machine whose floats differ" in sentence(call(*last))
    assert files(folder) == before


def test_the_probe_takes_one_thread_as_coding_does(models, monkeypatch):
    threads = []
    monkeypatch.setattr("homework.codec.compressor.probe", lambda model: threads.append(torch.get_num_threads()) or b"ab")
    torch.set_num_threads(2)
    try:
        Compressor(models[0], build("GatedPixelCNN"))
        Compressor(*models)  # on integers there is none
        assert threads == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_what_follows_the_tokens_is_refused(compressor, tmp_path):
    """A megabyte in a payload, with the header and all checksums right."""
    x = noise((23, 31))
    (grid,) = compressor.decompress_tokens([compressor.compress(x)])
    (payload,) = compressor.encode(grid[None])
    for n in 9, 2**20:
        crc = compressor.models.crc((23, 31), grid)
        with pytest.raises(ValueError, match=f"it has {n - 8:,}|it has {n:,}|bytes after its tokens"):
            compressor.decompress(format.image_file(compressor.models, (23, 31), payload + bytes(n), crc))


def test_wrong_tokens_are_reported(exactly):
    for grid, size, message in [
        (np.zeros((1, 4, 6), int), (20, 31), "20x31"),
        (np.zeros((4, 6), int), SIZE, "20x30"),
        (np.full((1, 4, 6), K), SIZE, "from 0 to 15"),
        (np.full((1, 4, 6), -1), SIZE, "from 0 to 15"),
        (np.full((1, 4, 6), 1.5), SIZE, "integers, but these are of float64"),
        (torch.full((1, 4, 6), torch.nan), SIZE, "integers, but these are of float32"),
        (torch.ones(1, 4, 6, dtype=torch.bool), SIZE, "integers, but these are of bool"),
    ]:
        with pytest.raises(ValueError, match=message):
            exactly.compress_tokens(grid, size)


def test_no_images_are_no_files(compressor):
    assert compressor.compress_tokens(np.zeros((0, 4, 6), int), SIZE) == compressor.compress_batch([]) == []
    assert compressor.decompress_batch([]) == compressor.decompress_tokens([]) == []


def test_models_that_do_not_go_together_are_reported(models):
    with pytest.raises(ValueError, match="32 codes, but the prior was trained on 16"):
        Compressor(build("BSQPatchAutoEncoder", codebook_bits=5), models[1])
    for pair in [models[::-1], ("t.pth", "p.pth"), (models[0], None), (build("PatchAutoEncoder"), models[1])]:
        with pytest.raises(ValueError, match=f"but these are a {type(pair[0]).__name__} and a {type(pair[1]).__name__}"):
            Compressor(*pair)


def test_files_of_other_models_are_reported(compressor, models):
    data = compressor.compress(noise(SIZE))
    other = build("BSQPatchAutoEncoder", seed=1), build("AutoregressiveModel", seed=1)
    with pytest.raises(ValueError, match="another tokenizer"):
        Compressor(other[0], models[1]).decompress(data)
    with pytest.raises(ValueError, match="another prior"):
        Compressor(compressor.tokenizer, other[1]).decompress(data)


def test_files_of_float_and_integer_arithmetic_are_distinguished(models, exactly, monkeypatch):
    data = exactly.compress(noise(SIZE))
    monkeypatch.setattr("homework.codec.compressor.entropy_model", FloatPrior)
    with pytest.raises(ValueError, match="another prior"):
        Compressor(*models).decompress(data)


@pytest.mark.parametrize("size", [SIZE, (23, 31)])
def test_no_mutation_gives_a_wrong_picture(compressor, size):
    """Through the models: a ValueError, or the same tokens."""
    draw = np.random.default_rng(0)
    data = compressor.compress(noise(size))
    (right,) = compressor.decompress_tokens([data])
    wrong = 0
    for _ in range(80):
        changed = bytearray(data if draw.integers(2) else mutate(data, draw))
        if len(changed) == len(data):
            changed[draw.integers(12, len(data))] ^= 1 << draw.integers(8)  # after the header, where only decoding shows it
        try:
            assert np.array_equal(compressor.decompress_tokens([bytes(changed)])[0], right)
        except ValueError as error:
            assert str(error).startswith("The file "), error
            wrong += 1
    assert wrong > 50


# --- the command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch, models):
    """The current folder, with a tokenizer t.pth, a prior p.pth, and six pictures in photos/, one of another size."""
    monkeypatch.chdir(tmp_path)
    checkpoint.save(models[0], "t.pth")
    checkpoint.save(models[1], "p.pth")
    for i in range(6):
        picture(tmp_path / "photos" / f"{i}.png", (11, 44) if i == 3 else SIZE, i)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_search(monkeypatch):
    """What is found has tests of its own; here it would only take time."""
    monkeypatch.setattr(search, "TRIALS", (0,) * 10)


@pytest.fixture
def call(monkeypatch, capsys):
    def call(name: str, *arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["compress.py", name, *map(str, arguments)])
        capsys.readouterr()
        code, names = 0, ("compress", "decompress", "info")
        try:
            cli.main("python -m homework.compress", {name: getattr(compress, name) for name in names})
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return call


def expected(models, path: Path) -> np.ndarray:
    """What a picture becomes: (H,W,3) uint8."""
    with torch.inference_mode():
        return to_uint8(models[0](floats(path))[0]).numpy()


def check_pictures(models, folder: Path, pairs: dict[str, str]) -> None:
    """Pictures written, by what they were made from."""
    for written, source in pairs.items():
        got, wanted = read_image(folder / written).astype(int), expected(models, folder / source).astype(int)
        assert got.shape == wanted.shape and abs(got - wanted).max() <= 1, written  # of floats in another batch


def test_one_image_there_and_back(call, folder, models):
    done = call("compress", "t.pth", "p.pth", "photos/3.png", "3.tok", "--verify")
    assert done.returncode == 0 and "verified" in done.stdout and "1 image," in done.stdout, done.stderr
    assert call("decompress", "t.pth", "p.pth", "3.tok", "new/3.png").returncode == 0
    check_pictures(models, folder, {"new/3.png": "photos/3.png"})
    assert files(folder / "new") == {"3.png"}
    assert Compressor(*models).compress(floats("photos/3.png")) == Path("3.tok").read_bytes()


@pytest.mark.parametrize("arithmetic", ["exact", "float"])
def test_a_folder_there_and_back(call, folder, models, arithmetic, monkeypatch):
    if arithmetic == "float":
        monkeypatch.setattr("homework.codec.compressor.entropy_model", FloatPrior)
    done = call("compress", "t.pth", "p.pth", "photos", "photos.tok", "--verify", "--batch_size", 4)
    assert done.returncode == 0 and "verified" in done.stdout and "6 images" in done.stdout, done.stderr
    assert call("decompress", "t.pth", "p.pth", "photos.tok", "back", "--batch_size", 3).returncode == 0
    assert files(folder) == {"t.pth", "p.pth", "photos.tok", *(f"{f}/{i}.png" for i in range(6) for f in ("photos", "back"))}
    check_pictures(models, folder, {f"back/{i}.png": f"photos/{i}.png" for i in range(6)})
    done = call("decompress", "t.pth", "p.pth", "photos.tok", "four.bmp", "--only", "4.png")
    assert done.returncode == 0, done.stderr
    check_pictures(models, folder, {"four.bmp": "photos/4.png"})


@pytest.mark.parametrize("source", ["photos/3.png", "photos"])
def test_pictures_are_scaled_before(call, folder, source):
    done = call("compress", "t.pth", "p.pth", source, "small.tok", "--image_size", "12x18", "--verify")
    assert done.returncode == 0, done.stderr
    back = "3.png" if source.endswith(".png") else "back"
    assert call("decompress", "t.pth", "p.pth", "small.tok", back).returncode == 0
    pictures = [folder / back] if source.endswith(".png") else list((folder / back).iterdir())
    assert {Image.open(path).size for path in pictures} == {(18, 12)}
    assert "--image_size is" in sentence(call("compress", "t.pth", "p.pth", source, "a.tok", "--image_size", "12"))


def test_it_works_in_fresh_processes(folder, models):
    done = run("-m", "homework.compress", "compress", "t.pth", "p.pth", "photos", "a.tok", "--effort", 0, cwd=folder)
    assert done.returncode == 0 and "bytes" in done.stderr, done.stderr  # the bar says how many so far
    done = run("-m", "homework.compress", "decompress", "t.pth", "p.pth", "a.tok", "back", cwd=folder, fresh=True,
               OMP_NUM_THREADS="2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_pictures(models, folder, {f"back/{i}.png": f"photos/{i}.png" for i in range(6)})


def test_several_sources_keep_their_folders(call, folder, models):
    picture(folder / "photos/sub/x.y.png", seed=9)
    Path("more").mkdir()
    Path("more/dataset.json").write_text(json.dumps({"_default": {"1": {"image_fpath": "../photos/sub/x.y.png"}}}))
    done = call("compress", "t.pth", "p.pth", "photos/0.png", "more/dataset.json", "a.tok")
    assert done.returncode == 0, done.stderr
    done = call("decompress", "t.pth", "p.pth", "a.tok", "back")
    assert done.returncode == 0 and files(folder / "back") == {"0.png", "sub/x.y.png"}, done.stderr
    check_pictures(models, folder, {"back/0.png": "photos/0.png", "back/sub/x.y.png": "photos/sub/x.y.png"})


def test_a_folder_of_one_image_is_an_archive(call, folder):
    picture(folder / "single/a.png")
    assert call("compress", "t.pth", "p.pth", "single", "a.tok").returncode == 0
    assert Path("a.tok").read_bytes()[:2] == format.ARCHIVE


def test_pictures_of_one_name_and_two_kinds(call, folder, models):
    picture(folder / "both/a.png", seed=1)
    picture(folder / "both/a.bmp", seed=2)
    call("compress", "t.pth", "p.pth", "both", "a.tok")
    call("decompress", "t.pth", "p.pth", "a.tok", "back")
    check_pictures(models, folder, {"back/a.png.png": "both/a.png", "back/a.bmp.png": "both/a.bmp"})


def test_a_folder_that_is_there_keeps_what_else_it_holds(call, folder):
    picture(folder / "back/0.png", (5, 5))
    picture(folder / "back/mine.png")
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    text, before = sentence(call("decompress", "t.pth", "p.pth", "a.tok", "back")), Path("back/0.png").read_bytes()
    assert "back/0.png exists and is not overwritten" in text and "--overwrite" in text
    assert files(folder / "back") == {"0.png", "mine.png"} and Path("back/0.png").read_bytes() == before
    assert call("decompress", "t.pth", "p.pth", "a.tok", "back", "--overwrite").returncode == 0
    assert files(folder / "back") == {"mine.png", *(f"{i}.png" for i in range(6))}
    assert read_image("back/0.png").shape == (*SIZE, 3)


@pytest.mark.parametrize("source, output", [("photos", "photos"), ("photos/0.png", "photos/0.png")])
def test_originals_are_not_overwritten(call, folder, source, output):
    call("compress", "t.pth", "p.pth", source, "a.tok")
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    assert "exists" in sentence(call("decompress", "t.pth", "p.pth", "a.tok", output))
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before


def test_what_cannot_be_overwritten_is_found_before_anything_is_written(call, folder):
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    (folder / "back" / "5.png").mkdir(parents=True)
    text = sentence(call("decompress", "t.pth", "p.pth", "a.tok", "back", "--overwrite"))
    assert "back/5.png is a folder" in text and list((folder / "back").iterdir()) == [folder / "back" / "5.png"]


def test_two_names_that_a_folder_takes_for_one_are_an_error(call, folder, monkeypatch):
    """As where A.png and a.png are the same: the second would be written over the first."""
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    monkeypatch.setattr(image_files, "target_names", lambda names: ["0.png"] * len(names))
    assert "exists" in sentence(call("decompress", "t.pth", "p.pth", "a.tok", "back"))
    assert not Path("back").exists()


def test_a_file_and_a_folder_that_would_get_one_name(call, folder, models):
    picture(folder / "x/a.jpg")
    picture(folder / "x/a.png/x.jpg", seed=1)
    done = call("compress", "t.pth", "p.pth", "x/a.jpg", "x/a.png/x.jpg", "a.tok", "--verify")
    assert done.returncode == 0, done.stderr
    assert call("decompress", "t.pth", "p.pth", "a.tok", "back").returncode == 0
    check_pictures(models, folder, {"back/a.jpg.png": "x/a.jpg", "back/a.png/x.jpg.png": "x/a.png/x.jpg"})


def test_the_longest_names_there_and_back(call, folder):
    name = "n" * 251
    picture(folder / "long" / f"{name}.png")
    assert call("compress", "t.pth", "p.pth", "long", "o" * 255).returncode == 0
    assert call("decompress", "t.pth", "p.pth", "o" * 255, "back").returncode == 0
    assert files(folder / "back") == {f"{name}.png"}


def test_controls_in_names_are_shown_as_escapes(call, folder):
    """A row of `info` cannot be forged, nor the terminal be told anything."""
    name = "a\n  99  0.1  1 x 1  00000000  b\x1b[31m\x9b\u202e.png"
    picture(folder / "odd" / name)
    shown = "a\\n  99  0.1  1 x 1  00000000  b\\x1b[31m\\x9b\\u202e.png"
    done = call("compress", "t.pth", "p.pth", "odd", f"{name}.hwa")
    assert done.returncode == 0 and done.stdout.startswith(f"{shown}.hwa: ") and done.stdout.count("\n") == 1
    text = call("info", f"{name}.hwa").stdout
    assert text.startswith(f"{shown}.hwa: ") and text.splitlines()[-1].endswith(f"  {shown}") and "\x1b" not in text
    assert json.loads(call("info", f"{name}.hwa", "--json").stdout)["images"][0]["name"] == name
    Path(f"odd/{name}").write_bytes(b"no image")
    text = sentence(call("compress", "t.pth", "p.pth", "odd", "b.hwa"))
    assert f"odd/{shown} cannot be read" in text


def test_only_several_names_and_patterns(call, folder):
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    for k, (only, names) in enumerate({"0.png,4.png": "04", "[1-3].png": "123", "?.png": "012345", "5.*,0.png": "05",
                                       "2.png": "2", "1.png,2.png": "12"}.items()):  # fmt: skip
        done = call("decompress", "t.pth", "p.pth", "a.tok", f"some{k}", f"--only={only}")
        assert done.returncode == 0 and files(folder / f"some{k}") == {f"{name}.png" for name in names}, done.stderr
    assert "no image 9*" in sentence(call("decompress", "t.pth", "p.pth", "a.tok", "more", "--only", "0.png,9*"))
    assert "name a folder" in sentence(call("decompress", "t.pth", "p.pth", "a.tok", "b.png", "--only", "0.png,1.png"))
    assert not Path("more").exists() and not Path("b.png").exists()


def test_a_name_that_looks_like_a_pattern_means_itself(call, folder):
    for name in "[0].png", "0.png", "a,b.png":
        picture(folder / "odd" / name)
    call("compress", "t.pth", "p.pth", "odd", "a.tok")
    for k, only in enumerate(("[0].png", "a,b.png")):
        assert call("decompress", "t.pth", "p.pth", "a.tok", f"some{k}", f"--only={only}").returncode == 0
        assert files(folder / f"some{k}") == {only}


@pytest.mark.parametrize("arithmetic", ["exact", "float"])
def test_images_are_appended(call, folder, models, arithmetic, monkeypatch):
    if arithmetic == "float":
        monkeypatch.setattr("homework.codec.compressor.entropy_model", FloatPrior)
    picture(folder / "more/6.png", seed=6)
    picture(folder / "more/7.png", (47, 31), seed=7)
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    first = Path("a.tok").read_bytes()
    done = call("compress", "t.pth", "p.pth", "more", "a.tok", "--append", "--verify")
    assert done.returncode == 0 and "a.tok: 2 images" in done.stdout, done.stderr
    assert call("decompress", "t.pth", "p.pth", "a.tok", "back").returncode == 0
    sources = {f"{i}.png": f"{'photos' if i < 6 else 'more'}/{i}.png" for i in range(8)}
    check_pictures(models, folder / "back", {name: f"../{source}" for name, source in sources.items()})
    both = Path("a.tok").read_bytes()
    for spoil, message, *arguments in [
        (None, "two images of one name", "more", "a.tok"),
        (None, "no archive", "more", "none.tok"),
        (None, f"not an archive of format {5 if arithmetic == 'exact' else 6}", "more", "one.tok"),
        (first[:-1], "cut short", "more", "a.tok"),
        (first[:34] + bytes([first[34] ^ 64]) + first[35:], "is damaged", "more", "a.tok", "--verify"),
    ]:
        call("compress", "t.pth", "p.pth", "photos/0.png", "one.tok")
        Path("a.tok").write_bytes(before := spoil or both)
        assert message in sentence(call("compress", "t.pth", "p.pth", *arguments, "--append"))
        assert Path("a.tok").read_bytes() == before and not Path("none.tok").exists()


def test_two_appends_at_once_lose_no_image(call, folder, monkeypatch):
    picture(folder / "6.png", seed=6)
    picture(folder / "7.png", seed=7)
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    first = Path("a.tok").read_bytes()
    copied = image_files._copy

    def copied_in_time(*arguments):
        found = copied(*arguments)
        monkeypatch.setattr(image_files, "_copy", copied)
        assert call("compress", "t.pth", "p.pth", "6.png", "a.tok", "--append").returncode == 0
        return found

    monkeypatch.setattr(image_files, "_copy", copied_in_time)
    assert "was changed by another program" in sentence(call("compress", "t.pth", "p.pth", "7.png", "a.tok", "--append"))
    assert Path("a.tok").read_bytes() != first
    assert call("compress", "t.pth", "p.pth", "7.png", "a.tok", "--append").returncode == 0
    images = json.loads(call("info", "a.tok", "--json").stdout)["images"]
    assert [image["name"] for image in images[-2:]] == ["6.png", "7.png"]


def test_appends_that_end_in_one_moment_lose_no_image(folder, models, monkeypatch):
    """Both have read the archive before either replaces it, and what replaces it takes a while."""
    compressor = Compressor(*models, effort=0)
    options = dict(pack=True, scaled=None, skip_bad=False, verify=False, quiet=True)
    compress_files(compressor, ["photos/0.png"], "a.tok", **options)
    both, replace = threading.Barrier(2), os.replace
    monkeypatch.setattr(image_files.os, "fsync", lambda file: both.wait(20))
    monkeypatch.setattr(image_files.os, "replace", lambda *paths: (time.sleep(0.2), replace(*paths)))

    def append(i: int) -> str:
        paths = [str(picture(folder / f"more{i}.png", seed=i))]
        try:
            compress_files(compressor, paths, "a.tok", **options, old="a.tok")
            return paths[0]
        except ValueError as error:
            assert "was changed by another program" in str(error)
            return ""

    with ThreadPoolExecutor(2) as pool:
        done = [path for path in pool.map(append, range(2)) if path]
    with open("a.tok", "rb") as file:
        assert len(done) == 1 and len(archive.Reader(file).names) == 2


def test_a_file_that_is_cut_short_while_it_is_read_is_reported(call, folder):
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    with open("a.tok", "r+b") as file:
        reader = archive.Reader(file, "a.tok")
        file.truncate(reader.starts[-1])
        with pytest.raises(ValueError, match=f"a.tok, image {reader.names[5]}, is damaged: it has been cut short"):
            reader.payload(5)
        reader.payload(4)


def test_names_that_cannot_be_unpacked_are_found_before_the_work(call, folder, monkeypatch):
    for name in "photos/0.jpg", f"photos/{'x' * 251}.png":  # a.png and a.jpg would keep their names, and add .png
        picture(folder / "photos/0.png").rename(folder / name)
        picture(folder / "photos/0.png")
    monkeypatch.setattr(image_files, "_encode", None)
    assert "cannot be a name" in sentence(call("compress", "t.pth", "p.pth", "photos", "a.tok"))


def test_nothing_is_appended_by_other_models(call, folder):
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    before = Path("a.tok").read_bytes()
    checkpoint.save(build("AutoregressiveModel", seed=1), "other.pth")
    assert "another prior" in sentence(call("compress", "t.pth", "other.pth", "photos/0.png", "a.tok", "--append"))
    golden = ROOT / "tests" / "golden" / "sample.hwa"
    Path("old.tok").write_bytes(golden.read_bytes())
    assert "another" in sentence(call("compress", "t.pth", "p.pth", "photos/0.png", "old.tok", "--append"))
    assert Path("a.tok").read_bytes() == before and Path("old.tok").read_bytes() == golden.read_bytes()


def test_a_dry_run_leaves_nothing(call, folder):
    before = files(folder)
    done = call("compress", "t.pth", "p.pth", "photos", "a.tok", "--dry_run")
    assert done.returncode == 0 and files(folder) == before and done.stdout.endswith("; not written\n"), done.stderr
    real = call("compress", "t.pth", "p.pth", "photos", "a.tok").stdout
    assert done.stdout == real.replace("\n", "; not written\n")
    data, before = Path("a.tok").read_bytes(), files(folder)
    call("compress", "t.pth", "p.pth", "photos/0.png", "a.tok", "--dry_run")
    done = call("decompress", "t.pth", "p.pth", "a.tok", "back", "--dry_run")
    assert done.returncode == 0 and done.stdout == "back: 6 images; not written\n", done.stderr
    assert files(folder) == before and Path("a.tok").read_bytes() == data
    assert "exists" in sentence(call("decompress", "t.pth", "p.pth", "a.tok", "photos", "--dry_run"))


def test_quiet_says_nothing(call, folder):
    for arguments in [("compress", "t.pth", "p.pth", "photos", "a.tok", "--verify"),
                      ("decompress", "t.pth", "p.pth", "a.tok", "back")]:  # fmt: skip
        done = call(*arguments, "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "exists" in sentence(call("decompress", "t.pth", "p.pth", "a.tok", "back", "--quiet"))


def test_threads_change_no_byte(call, folder):
    call("compress", "t.pth", "p.pth", "photos/3.png", "a.tok")
    before = torch.get_num_threads()
    assert call("compress", "t.pth", "p.pth", "photos/3.png", "b.tok", "--threads", 3).returncode == 0
    assert torch.get_num_threads() == before and Path("a.tok").read_bytes() == Path("b.tok").read_bytes()
    for arguments in ("compress", "t.pth", "p.pth", "photos", "c.tok"), ("decompress", "t.pth", "p.pth", "a.tok", "c.png"):
        assert "--threads is 0" in sentence(call(*arguments, "--threads", 0))


def test_the_psnr_is_of_what_is_decompressed(call, folder):
    done = call("compress", "t.pth", "p.pth", "photos", "a.tok")
    call("decompress", "t.pth", "p.pth", "a.tok", "back")
    pairs = [[read_image(f"{where}/{i}.png") / 255 for where in ("photos", "back")] for i in range(6)]
    psnr = np.mean([-10 * np.log10(((x - y) ** 2).mean()) for x, y in pairs])
    assert abs(float(done.stdout.split(" dB")[0].split()[-1]) - psnr) < 0.011


def test_info_as_json(call, folder):
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    facts = json.loads(call("info", "a.tok", "--json").stdout)
    with open("a.tok", "rb") as file:
        reader = archive.Reader(file)
    assert facts["kind"] == "archive" and facts["format"] == 5 and facts["exact"] and facts["patch"] == 5
    assert facts["bytes"] == Path("a.tok").stat().st_size
    assert [image["name"] for image in facts["images"]] == reader.names
    assert [(image["height"], image["width"]) for image in facts["images"]] == reader.sizes
    assert [image["bytes"] for image in facts["images"]] == reader.lengths
    assert [int(image["crc32"], 16) for image in facts["images"]] == reader.crcs
    for path, role in ("t.pth", "tokenizer"), ("p.pth", "prior"):
        model = json.loads(call("info", path, "--json").stdout)
        assert model["role"] == role and model["fingerprint"] == facts[role]


@pytest.fixture
def piped(call, monkeypatch):
    """``piped(name, data)``: what a command writes to standard output, given ``data`` in standard input."""

    def piped(name: str, data: bytes, source: str = "-", *options: str) -> bytes:
        out = io.TextIOWrapper(io.BytesIO())
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
            patched.setattr(sys, "stdout", out)
            done = call(name, "t.pth", "p.pth", source, "-", *options)
        assert done.returncode == 0 and done.stderr.splitlines()[-1].startswith("-: "), done.stderr
        return out.buffer.getvalue()

    return piped


def test_standard_input_and_output(piped, folder, models):
    data = piped("compress", Path("photos/3.png").read_bytes())
    assert data == Compressor(*models).compress(floats("photos/3.png"))
    Path("3.png").write_bytes(piped("decompress", data))
    check_pictures(models, folder, {"3.png": "photos/3.png"})
    assert Path("3.png").read_bytes().startswith(b"\x89PNG")
    assert files(folder) == {"t.pth", "p.pth", "3.png", *(f"photos/{i}.png" for i in range(6))}


def test_an_archive_through_standard_output_and_input(piped, call, folder):
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    assert piped("compress", b"", "photos") == Path("a.tok").read_bytes()
    call("decompress", "t.pth", "p.pth", "a.tok", "3.png", "--only", "3.png")
    assert piped("decompress", Path("a.tok").read_bytes(), "-", "--only", "3.png") == Path("3.png").read_bytes()


@pytest.mark.parametrize("suffix, plugin", [("pgm", "PIL"), ("jfif", "PIL"), ("jxl", "pillow_jxl"), ("heic", "pillow_heif")])
def test_any_format_that_pillow_reads_comes_as_a_file_or_through_a_pipe(suffix, plugin, piped, call, folder, models):
    pytest.importorskip(plugin)
    readable_suffixes()  # registers the plugin, here for writing
    Image.open("photos/3.png").convert("L" if suffix == "pgm" else "RGB").save(name := f"a.{suffix}")
    data = Compressor(*models).compress(floats(name))
    assert call("compress", "t.pth", "p.pth", name, "a.tok").returncode == 0 and Path("a.tok").read_bytes() == data
    assert piped("compress", Path(name).read_bytes()) == data


@pytest.mark.skipif(os.name != "posix", reason="there is no /dev/fd")
def test_a_pipe_is_read_like_a_file(call, folder):
    """As in ``info <(cat a.tok)``."""
    call("compress", "t.pth", "p.pth", "photos/0.png", "0.tok")
    ends = os.pipe()
    os.write(ends[1], Path("0.tok").read_bytes())
    os.close(ends[1])
    assert "one image of 30x20" in call("info", f"/dev/fd/{ends[0]}").stdout
    os.close(ends[0])


def test_wrong_standard_input_is_reported(call, folder, monkeypatch):
    for data, message, *arguments in [
        (b"no image", "Standard input cannot be read as an image", "compress", "t.pth", "p.pth", "-", "a.tok"),
        (b"", "compressed alone", "compress", "t.pth", "p.pth", "-", "photos", "a.tok"),
        (b"no file", "Standard input is not a file that", "decompress", "t.pth", "p.pth", "-", "back"),
        (b"no file", "Standard input is not a file that", "info", "-"),
    ]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        assert message in sentence(call(*arguments))
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    assert "name a folder" in sentence(call("decompress", "t.pth", "p.pth", "a.tok", "-"))
    assert files(folder) == {"t.pth", "p.pth", "a.tok", *(f"photos/{i}.png" for i in range(6))}


FAULTS = ROOT.parent / "shared" / "faults" / "archives"


@pytest.mark.skipif(not FAULTS.is_dir(), reason="there are no faulty archives here")
def test_hostile_archives_end_in_a_sentence(call, folder):
    for path in sorted(FAULTS.iterdir()):
        pair = "BSQPatchAutoEncoder", "AutoregressiveModel"
        for arguments in ("info", path), ("info", path, "--json"), ("decompress", *pair, path, folder / path.stem):
            done = call(*arguments)
            assert done.returncode == 0 or sentence(done), path
            assert done.stdout.isprintable() or done.stdout.replace("\n", "").isprintable(), path


@pytest.mark.parametrize("output", ["pipe", "/dev/null"])
def test_what_is_not_a_file_is_no_output(call, folder, output):
    os.mkfifo("pipe")
    assert "a pipe or a device" in sentence(call("compress", "t.pth", "p.pth", "photos", output))
    assert call("compress", "t.pth", "p.pth", "photos/1.png", "one.tok").returncode == 0
    os.mkfifo("pipe.png")
    assert "a pipe or a device" in sentence(call("decompress", "t.pth", "p.pth", "one.tok", "pipe.png", "--overwrite"))
    assert stat.S_ISFIFO(os.stat("pipe").st_mode) and stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_names_that_are_numbers(call, folder):
    picture(folder / "7.png").rename("7")
    assert call("compress", "t.pth", "p.pth", 7, 2026).returncode == 0
    assert call("info", 2026).returncode == 0


def test_verify_reports_and_writes_nothing(call, folder, monkeypatch):
    decode = Compressor.decode
    call("compress", "t.pth", "p.pth", "photos/0.png", "a.tok")
    before = files(folder), Path("a.tok").read_bytes()
    monkeypatch.setattr(Compressor, "decode", lambda *args: (decode(*args) + 1) % K)
    for source in "photos", "photos/1.png":
        message = sentence(call("compress", "t.pth", "p.pth", source, "a.tok", "--verify"))
        assert message.startswith("a.tok is not written, for it would not decode to the tokens that were coded: it")
        assert (files(folder), Path("a.tok").read_bytes()) == before


def test_what_a_folder_holds_besides_is_reported(call, folder):
    assert "Left out" not in call("compress", "t.pth", "p.pth", "photos", "a.tok").stderr
    picture(folder / "photos" / "more" / "a.png", seed=9)
    (folder / "photos" / "more" / "notes.txt").write_text("")
    (folder / "photos" / "a.pdf").write_text("")
    assert "Left out of photos: 2 other files." in call("compress", "t.pth", "p.pth", "photos", "a.tok").stderr


def test_errors_speak_of_the_file_that_was_to_be_written(call, folder):
    """Not of the temporary one."""
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    long = "x" * 300
    assert sentence(call("compress", "t.pth", "p.pth", "photos", f"{long}.tok")).endswith(f"too long: {long}.tok.")
    assert sentence(call("decompress", "t.pth", "p.pth", "a.tok", f"new/{long}")).endswith(f"too long: {folder}/new/{long}.")


def test_info_needs_no_models(call, folder):
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    call("compress", "t.pth", "p.pth", "photos/3.png", "3.tok")
    Path("t.pth").unlink()
    Path("p.pth").unlink()
    text = call("info", "a.tok").stdout
    assert "6 images" in text and "patches of 5" in text and "on integers" in text and "44 x 11" in text
    assert f"{Path('a.tok').stat().st_size:,} bytes" in text and "5.png" in text
    text, size = call("info", "3.tok").stdout, Path("3.tok").stat().st_size
    assert "one image of 44x11 pixels" in text and "9x3 tokens" in text and f"{8 * size / 44 / 11:.4f} bits a pixel" in text
    assert f"{int.from_bytes(Path('3.tok').read_bytes()[-4:], 'little'):08x}" in text
    assert "format 5," in text and "format 1," in call("info", ROOT / "tests" / "golden" / "temple.hwi").stdout
    strangers = {"homework.bsq", "homework.ae", "homework.autoregressive", "homework.codec.integer_layers"}
    code = ("import sys; sys.argv = ['compress', 'info', '3.tok']; import runpy; runpy.run_module('homework.compress', "
            f"run_name='__main__'); print({strangers} & set(sys.modules))")  # fmt: skip
    done = run("-c", code, cwd=folder)
    assert done.stdout.endswith("set()\n"), done.stderr


def test_a_reader_that_has_seen_enough_ends_a_command_quietly(call, folder):
    """As in ``info photos.tok | head``."""
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    command = [sys.executable, "-m", "homework.compress", "info", folder / "a.tok"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_stop_no_command(call, folder, closed):
    """Nor does a file get the number of a closed one, and what is printed."""
    call("compress", "t.pth", "p.pth", "photos/0.png", "a.tok")
    line = f'"{sys.executable}" -m homework.compress compress t.pth p.pth photos/0.png b.tok --effort 0 {closed}'
    done = subprocess.run(line, shell=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert Path("a.tok").read_bytes() == Path("b.tok").read_bytes()


def test_names_that_the_terminal_cannot_show_are_escaped(call, folder):
    call("compress", "t.pth", "p.pth", picture(folder / "é.png"), "photos/1.png", "é.tok")
    done = run("-m", "homework.compress", "info", "é.tok", cwd=folder, fresh=True, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "\\xe9.tok: 2 images" in done.stdout and "\\xe9.png" in done.stdout, done.stderr


def test_info_of_a_checkpoint_is_what_files_say_of_it(call, folder):
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    text = call("info", "a.tok").stdout
    for path, role in ("t.pth", "tokenizer"), ("p.pth", "prior"):
        message = call("info", path).stdout
        assert message.startswith(f"{path}: {role} ") and message.split(": ")[1].split(", ")[0] in text
    checkpoint.save(build("PatchAutoEncoder"), "ae.pth")
    assert "ae.pth holds a PatchAutoEncoder" in sentence(call("info", "ae.pth"))


# --- mistakes -------------------------------------------------------------------------------------------------------------

SPOILED = {
    "is not a file that": lambda data: b"\x89PNG" + data,
    "is cut short": lambda data: data[: len(data) - 3],
    "is longer than": lambda data: data + b"more",
    "newer version": lambda data: data[:2] + bytes([8 + 16 * 7]) + data[3:],
    "is damaged: its header": lambda data: data[:6] + bytes([data[6] ^ 16]) + data[7:],
    "is damaged": lambda data: data[:34] + bytes([data[34] ^ 128]) + data[35:] if data[1:2] == b"N" else data[:-1] + b"x",
}


@pytest.mark.parametrize("message", SPOILED)
@pytest.mark.parametrize("source, output", [("photos", "back"), ("photos/0.png", "back.png")])
def test_spoiled_files_are_reported_and_nothing_is_written(call, folder, source, output, message):
    call("compress", "t.pth", "p.pth", source, "a.tok")
    Path("a.tok").write_bytes(SPOILED[message](Path("a.tok").read_bytes()))
    before = files(folder)
    text = sentence(call("decompress", "t.pth", "p.pth", "a.tok", output))
    assert message in text and text.startswith("a.tok") and files(folder) == before and not Path(output).exists()


@pytest.mark.parametrize("role", ["tokenizer", "prior"])
def test_files_of_another_model_are_reported_and_nothing_is_written(call, folder, role):
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    name = {"tokenizer": "BSQPatchAutoEncoder", "prior": "AutoregressiveModel"}[role]
    checkpoint.save(build(name, seed=1), "other.pth")
    pair = ("other.pth", "p.pth") if role == "tokenizer" else ("t.pth", "other.pth")
    assert f"another {role}" in sentence(call("decompress", *pair, "a.tok", "back"))
    assert not Path("back").exists()


def test_one_damaged_image_in_an_archive_leaves_no_picture_but_the_others_can_be_had(call, folder):
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    with open("a.tok", "rb") as file:
        reader = archive.Reader(file)
    data = bytearray(Path("a.tok").read_bytes())
    data[reader.starts[4]] ^= 64
    Path("a.tok").write_bytes(data)
    text = sentence(call("decompress", "t.pth", "p.pth", "a.tok", "back", "--batch_size", 1))
    assert f"image {reader.names[4]}, is damaged" in text
    assert not Path("back").exists()
    assert call("decompress", "t.pth", "p.pth", "a.tok", "one.png", "--only", reader.names[0]).returncode == 0


def test_damaged_pictures_are_named(call, folder):
    Path("photos/2.png").write_bytes(b"no image")
    Path("photos/9.jpg").touch()
    done = call("compress", "t.pth", "p.pth", "photos", "a.tok")
    assert done.returncode == 1 and "2 of 7 images cannot be used; pass --skip_bad" in done.stderr
    assert "2.png" in done.stderr and "9.jpg" in done.stderr and not Path("a.tok").exists()
    done = call("compress", "t.pth", "p.pth", "photos", "a.tok", "--verify", "--skip_bad")
    assert done.returncode == 0 and "Left out 2 of 7" in done.stderr and "5 images" in done.stdout
    assert "2.png" in sentence(call("compress", "t.pth", "p.pth", "photos/2.png", "b.tok", "--skip_bad"))
    assert not Path("b.tok").exists()


def test_wrong_arguments_are_reported_and_nothing_is_written(call, folder):
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    call("compress", "t.pth", "p.pth", "photos/0.png", "0.tok")
    checkpoint.save(build("PatchAutoEncoder"), "ae.pth")
    (folder / "diary").write_text("of one who forgot what comes last")
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    no_such = "t.pth", "p.pth", "photos", "b.tok", "--no_such", 1
    for message, name, *arguments in [
        ("Name the image", "compress", "t.pth", "p.pth"),
        ("Name the image", "compress", "t.pth", "p.pth", "photos"),
        ("0.png", "compress", "t.pth", "p.pth", "photos/1.png", "photos/0.png"),
        ("photos", "compress", "t.pth", "p.pth", "photos/1.png", "photos"),
        ("not a file of homework.compress", "compress", "t.pth", "p.pth", "photos", "diary"),
        ("none", "compress", "t.pth", "p.pth", "none", "b.tok"),
        ("twice", "compress", "t.pth", "p.pth", "photos/1.png", folder / "photos/1.png", "b.tok"),
        ("is needed", "compress", "ae.pth", "p.pth", "photos", "b.tok"),
        ("batch_size", "compress", "t.pth", "p.pth", "photos", "b.tok", "--batch_size", 0),
        ("--verify takes no value", "compress", "t.pth", "p.pth", "photos", "b.tok", "--verify=3"),
        ("There is no option --no_such. See python -m homework.compress compress --help", "compress", *no_such),
        ("There is no command compres; did you mean compress? See python -m homework.compress --help", "compres", "t.pth"),
        ("is empty; name one", "compress", "t.pth", "p.pth", "", "b.tok"),
        ("at most 67,108,864 pixels", "compress", "t.pth", "p.pth", "photos", "b.tok", "--image_size", "99999x99999"),
        ("holds no image ''", "decompress", "t.pth", "p.pth", "a.tok", "back", "--only", "0.png,"),
        ("none.tok", "decompress", "t.pth", "p.pth", "none.tok", "back"),
        ("folder", "decompress", "t.pth", "p.pth", "a.tok", "a.png"),
        ("folder", "decompress", "t.pth", "p.pth", "a.tok", "a.jpg"),
        ("a file that ends in .png", "decompress", "t.pth", "p.pth", "a.tok", "a.jpg", "--only", "0.png"),
        ("folder", "decompress", "t.pth", "p.pth", "a.tok", "0.tok"),
        (".png", "decompress", "t.pth", "p.pth", "0.tok", "photos"),
        (".png", "decompress", "t.pth", "p.pth", "0.tok", "a.jpg"),
        ("7.png; it holds 0.png, 1.png, 2.png, ...", "decompress", "t.pth", "p.pth", "a.tok", "b.png", "--only", "7.png"),
        ("one image", "decompress", "t.pth", "p.pth", "0.tok", "b.png", "--only", "0.png"),
        ("none.tok", "info", "none.tok"),
        ("not a file that", "info", "diary"),
    ]:
        text = sentence(call(name, *arguments))
        assert message in text, text
        assert {name: (folder / name).read_bytes() for name in files(folder)} == before, message


def test_a_full_disk_leaves_nothing(call, folder):
    call("compress", "t.pth", "p.pth", "photos", "a.tok")
    before = files(folder)
    with file_size_limit(100):
        assert sentence(call("compress", "t.pth", "p.pth", "photos", "b.tok")).endswith("large: b.tok.")
        assert sentence(call("decompress", "t.pth", "p.pth", "a.tok", "back")).endswith(f"large: {folder / 'back'}.")
    assert files(folder) == before and not Path("back").exists()


@pytest.mark.parametrize("name", ["compress", "decompress", "info"])
def test_help_describes_every_argument(call, name):
    import inspect

    text = call(name, "--help").stdout
    for argument in inspect.signature(getattr(compress, name)).parameters:
        assert argument.upper() in text or f"--{argument}" in text, argument
        assert f"    {argument}: " in getattr(compress, name).__doc__


# --- pictures as a person expects them ------------------------------------------------------------------------------------


def png(path: Path, pixels: np.ndarray, colour: int, *more: tuple[bytes, bytes]) -> None:
    """Writes (H,W) or (H,W,3) uint16 as a PNG of 16 bits a channel, which Pillow itself does for grey alone."""
    H, W = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", W, H, 16, colour, 0, 0, 0)
    parts = (b"IHDR", head), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    data = b"".join(struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(tmp_path, mode):
    alpha = np.zeros(SIZE, np.uint8)
    alpha[:10] = 255
    image = Image.new("L", SIZE[::-1], 60)
    image.putalpha(Image.fromarray(alpha))
    image = image.convert(mode) if mode != "P" else image.convert("RGBA").quantize(4)
    image.save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert abs(pixels[:10].astype(int) - 60).max() <= 2 and (pixels[10:] == 255).all()


def test_16_bits_a_channel_are_read_by_their_upper_half(tmp_path):
    colours = np.random.default_rng(0).integers(0, 2**16, (6, 8, 3), dtype=np.uint16)
    png(tmp_path / "a.png", colours, 2)
    assert np.array_equal(read_image(tmp_path / "a.png"), (colours // 256).astype(np.uint8))


def test_16_bits_of_grey_with_a_transparent_level(tmp_path):
    grey = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    png(tmp_path / "a.png", grey, 0, (b"tRNS", struct.pack(">H", 5000)))
    wanted = np.where(grey == 5000, 255, grey // 256)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.stack([wanted] * 3, axis=-1))


def test_16_bits_of_grey_in_a_pgm(tmp_path):
    grey = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    (tmp_path / "a.ppm").write_bytes(b"P5\n8 6\n65535\n" + grey.astype(">u2").tobytes())
    assert np.array_equal(read_image(tmp_path / "a.ppm")[..., 0], grey // 256)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_known_white_are_refused(tmp_path, dtype):
    Image.fromarray(np.ones((6, 8), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="a.tif cannot be read: it has floats or 32 bits"):
        read_image(tmp_path / "a.tif")


def test_one_quality_for_all_touches_no_archive_before_it_is_found(call, folder):
    call("compress", "t.pth", "p.pth", "photos/0.png", "photos/1.png", "a.tok")
    before, aim = Path("a.tok").read_bytes(), ("photos/3.png", "a.tok", "--append", "--on_average", "--effort", 1)
    assert "never at least 99" in sentence(call("compress", "t.pth", "p.pth", *aim, "--target_psnr", 99))
    assert Path("a.tok").read_bytes() == before
    assert call("compress", "t.pth", "p.pth", *aim, "--target_bytes", 999).returncode == 0
    assert "3 images" in call("info", "a.tok").stdout
    assert "--on_average is about a target" in sentence(call("compress", "t.pth", "p.pth", *aim))


def test_what_cannot_be_appended_is_found_before_one_quality_is(call, folder, monkeypatch):
    monkeypatch.chdir(folder / "photos")
    for name in "t.pth", "p.pth":
        (folder / name).rename(name)
    assert call("compress", "t.pth", "p.pth", "0.png", "1.png", "a.tok").returncode == 0
    monkeypatch.setattr(image_files, "compress_files", lambda *args, **kwargs: pytest.fail("An image was compressed."))
    aim = "--append", "--on_average", "--target_bytes", 999
    assert "images of one name" in sentence(call("compress", "t.pth", "p.pth", "1.png", "a.tok", *aim))
    checkpoint.save(build("AutoregressiveModel", seed=1), "p.pth")
    assert "another prior" in sentence(call("compress", "t.pth", "p.pth", "2.png", "a.tok", *aim))


def test_the_search_for_one_quality_is_quiet_and_says_what_is_left_out_once(call, folder):
    Path("photos/1.png").write_bytes(b"no picture")
    options = "photos", "a.tok", "--skip_bad", "--on_average", "--effort", 1, "--target_psnr", 1
    done = call("compress", "t.pth", "p.pth", *options)
    assert done.returncode == 0 and done.stderr.count("Left out 1 of 6 images") == 1 and "compressing" in done.stderr
    done = call("compress", "t.pth", "p.pth", *options, "--quiet")
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 1 and "Left out" in done.stderr and not done.stdout


def test_more_codes_than_frequencies_allow_are_refused():
    tokenizer = build("BSQPatchAutoEncoder", codebook_bits=24)
    with pytest.raises(ValueError, match="16777216 codes are too many"):
        Compressor(tokenizer, Uniform(tokenizer.n_tokens))
