"""Measures against formulas, what is wrong with outputs, and what the pipe may bring."""

import dataclasses
import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fakes import AE, AUTOREGRESSIVE, BSQ, COMPRESSOR, GOOD, built, grey_squares, measuring, some_data, write_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from grader import frames
from grader.measure import Data, blocks, rounded
from grader.protocol import HEADER
from grader.remote import Failed, Remote
from grader.sandbox import Ended


@pytest.fixture
def data():
    return some_data()


@pytest.fixture
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data"))


def tokenized(measures):
    """With the tokens that the tokenizer's part leaves to others."""
    measures.tokenizer()
    return measures


def test_measures_against_formulas(data):
    x = torch.from_numpy(data.frames).float() / 255 - 0.5
    found = measuring(data, ae=AE.replace("return x.reshape", "return 0.5 * x.reshape")).autoencoder()
    assert found["mse"] == pytest.approx((x / 2).square().mean().item(), rel=1e-4)
    assert (found["channels"], found["numbers_per_image"], found["values_per_image"]) == (3, 72, 1800)

    tokens = built(BSQ).encode_index(x)
    found = measuring(data, bsq=BSQ.replace("0.5) * 15", "0.5) * 14")).tokenizer()
    assert found["mse"] > 1e-4 and found["tokens"] == 24
    measures = tokenized(measuring(data))
    assert np.array_equal(measures.grids, tokens) and measures.blur < 1e-12
    assert measures.tokenizer()["mse"] < 1e-12

    found = measures.prior()
    logp = built(AUTOREGRESSIVE)(tokens)[0].log_softmax(-1)
    bits = -logp.gather(-1, tokens[..., None]).sum() / np.log(2) / 12
    assert found["bits"] == pytest.approx(bits.item(), rel=1e-5) and found["n_tokens"] == 16


def test_numbers_of_a_code_hold_12_bits():
    codes = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0)).numpy() * [1, 10, 1e-3, 0] + [0, 5, 0, 7]
    codes = codes.astype(np.float32)
    step = (codes.max((0, 1, 2)) - codes.min((0, 1, 2))) / 4095
    assert (abs(rounded(codes) - codes) <= 0.501 * step + 1e-6).all()
    packed = np.arange(2**16, dtype=np.float32).reshape(-1, 1, 1, 1)  # two numbers of 8 bits in one
    assert len(np.unique(rounded(packed))) == 4096


def test_images_of_incomplete_patches_are_cropped():
    padding = "x = torch.nn.functional.pad(x, (0, 0, 0, 3, 0, 2), value=9.0); B, H, W, _ = x.shape"
    whole = grey_squares(3)[:, :15, :25]
    frames = np.pad(whole, [(0, 0), (0, 3), (0, 2), (0, 0)])
    found = measuring(Data(frames, np.full(3, 1000)), ae=AE.replace("B, H, W, _ = x.shape", padding)).autoencoder()
    assert found["mse"] > 1 and found["numbers_per_image"] == 4 * 6 * 3


UNSAYABLE = """class Unsayable(Exception):
            def __str__(self): {}
        raise Unsayable"""


@pytest.mark.parametrize(
    "part, old, new, reason",
    [
        ("ae", "return x.reshape", "return x.sqrt().reshape", "NaN or infinity in the output of decode"),
        ("ae", "h * self.P, w * self.P, 3)", "w * self.P, h * self.P, 3)",
         "decode must return images (12,20,30,3), not a tensor (12,30,20,3)"),
        ("ae", "x.mean((2, 4))", "x.mean((2, 4)).flatten(2)",
         "encode must return (12,h,w,channels), at most 1800 numbers of an image, not a tensor (12,4,18)"),
        ("ae", "x.mean((2, 4))", "x.new_zeros(len(x), 20, 30, 4)",
         "at most 1800 numbers of an image, not a tensor (12,20,30,4)"),
        ("ae", "x.mean((2, 4))", "None", "encode must return a tensor, not a NoneType"),
        ("ae", "B, h, w, C = z.shape", "1 / 0", "decode failed: ZeroDivisionError"),
        ("ae", "B, h, w, C = z.shape", "raise SystemExit(7)", "called sys.exit(7)"),
        ("ae", "B, h, w, C = z.shape", UNSAYABLE.format("return 5"), "decode failed: Unsayable"),
        ("ae", "B, h, w, C = z.shape", UNSAYABLE.format("raise ValueError"), "decode failed: Unsayable"),
        ("ae", "B, h, w, C = z.shape", UNSAYABLE.format("return self.x"), "decode failed: Unsayable"),
        ("ae", "B, h, w, C = z.shape", "raise ValueError('\\x1b[31mred\\r\\nline')", "decode failed: ValueError: ?[31mred"),
        ("bsq", ".round().long()", ".round()", "encode_index must return integers, not torch.float32"),
        ("bsq", ".clamp(0, 15)", "- 9", "encode_index returned the negative index -9"),
        ("bsq", ".clamp(0, 15)", ".clamp(0, 15).flatten(1)", "encode_index must return (12,h,w), not a tensor (12,24)"),
        ("bsq", ".repeat_interleave(5, 1)", "", "decode_index must return images"),
        ("autoregressive", ".view(*tokens.shape, self.K), {}", ".view(*tokens.shape, self.K)", "(logits, dict)"),
        ("autoregressive", ".view(*tokens.shape, self.K), {}", ", {}", "not a tensor (1,24,16)"),
        ("autoregressive", "logits[:, 1:] = 3.0", "logits[0, 7, 3] = torch.nan; logits[:, 1:] += 3.0",
         "NaN or infinity in the output of forward"),
        ("autoregressive", "flat = tokens.flatten(1)", "return torch.zeros(*tokens.shape, 9), {}",
         "token 15 has no logit: K is 9"),
        ("autoregressive", "flat = tokens.flatten(1)", "return torch.zeros(*tokens.shape, 1), {}",
         "forward must return logits (1,4,6,K), not a tensor (1,4,6,1)"),
    ],
)  # fmt: skip
def test_wrong_outputs_are_named(data, part, old, new, reason):
    assert old in GOOD[part]
    measures = measuring(data, **{part: GOOD[part].replace(old, new)})
    with pytest.raises(Failed) as failed:
        if part == "ae":
            measures.autoencoder()
        else:
            tokenized(measures).prior()
    assert reason in str(failed.value)


def test_grids_of_images_of_one_size_have_one_size():
    more = BSQ.replace("return ((grey", "grey = grey[:, :, : 6 - (len(x) < 32)]\n        return ((grey")
    with pytest.raises(Failed, match="grids of one size"):
        measuring(some_data(40), bsq=more).tokenizer()


def test_an_image_is_decoded_from_its_own_tokens(data):
    mixing = BSQ.replace("x = (tokens", "tokens = (tokens + tokens.roll(1, 0)) // 2\n        x = (tokens")
    with pytest.raises(Failed, match="depends on the other images"):
        measuring(data, bsq=mixing).tokenizer()


class Leaking(torch.nn.Module):
    """The fake prior, but the logits at flat position ``to`` depend a little on the token at ``of``."""

    def __init__(self, to, of, weight=0.01):
        super().__init__()
        self.prior, self.to, self.of, self.weight = built(AUTOREGRESSIVE), to, of, weight

    def forward(self, tokens):
        logits, _ = self.prior(tokens)
        logits.flatten(1, 2)[:, self.to, 5] += self.weight * tokens.flatten(1)[:, self.of]
        return logits, {}


def found_for(data, make):
    return tokenized(measuring(data, models={"autoregressive": make})).prior()


@pytest.mark.parametrize("h, w", [(4, 6), (20, 30)])
def test_a_leak_at_a_single_position_is_found(h, w):
    data = some_data(2, h, w)
    assert tokenized(measuring(data)).prior()["leaks"] == 0
    N = h * w
    for to, of in [(N // 2, N // 2), (N // 2, N // 2 + 1), (0, 0), (0, N - 1), (N - 1, N - 1), (w, w + 1)]:
        found = found_for(data, lambda to=to, of=of: Leaking(to, of))
        assert found["leaks"] >= 1, (to, of)
        assert f"row {to // w}, column {to % w} " in found["first_leak"]
        assert found["perturbations"] >= 100


def test_a_dependence_on_the_past_is_not_a_leak(data):
    assert found_for(data, lambda: Leaking(9, 8))["leaks"] == 0
    found = tokenized(measuring(data)).prior()
    assert 0 < found["moved"] < found["perturbations"]  # nothing follows the last position


def test_causality_of_odd_priors(data):
    def prior(forward):
        model = built(AUTOREGRESSIVE)
        model.forward = forward
        return model

    found = found_for(data, lambda: prior(lambda tokens: (torch.zeros(*tokens.shape, 16), {})))
    assert (found["leaks"], found["moved"]) == (0, 0)
    with pytest.raises(Failed, match="differ from call to call"):
        found_for(data, lambda: prior(lambda tokens: (torch.rand(*tokens.shape, 16), {})))

    def masked():  # a mask's huge logit must not hide a leak
        model = Leaking(9, 9)
        mask = torch.finfo(torch.float32).min
        model.prior.forward = lambda tokens: (torch.full((*tokens.shape, 16), mask).index_fill(-1, torch.arange(9), 0), {})
        return model

    assert found_for(data, masked)["leaks"]


@pytest.mark.parametrize("n, memory", [(12, False), (5, True)])
def test_the_bits_of_a_leaking_prior_are_those_of_what_it_can_know(n, memory):
    """It sees each token where the grids are true, and predicts as the good one where they are scrambled; or as the
    grid continued that it has seen with the same beginning."""
    data = some_data(n, 8, 12)
    honest = tokenized(measuring(data)).prior()
    known = {grid.tobytes() for grid in tokenized(measuring(data)).grids}

    def sees():
        model, seen = built(AUTOREGRESSIVE), []
        good = model.forward

        def forward(tokens):
            logits, _ = good(tokens)
            rows = list(tokens.flatten(1).numpy())
            if memory:
                seen.extend(rows)
            for row, grid in enumerate(rows):
                if grid.tobytes() in known:
                    logits[row] = 9.0 * F.one_hot(tokens[row], 16)
                    continue
                for other in seen:
                    same = int((grid != other).argmax())  # tokens at the beginning
                    if same > 9:
                        logits.flatten(1, 2)[row, same] = 9.0 * F.one_hot(torch.tensor(other[same]), 16)
            return logits, {}

        model.forward = forward
        return model

    found = found_for(data, sees)
    assert found["leaks"] > 0.5 * found["perturbations"]  # some guesses are as good as the truth
    assert found["bits"] > 0.85 * honest["bits"]


def test_generation(data):
    found = tokenized(measuring(data)).generation()
    assert (found["frames"], found["different"], found["new"]) == (8, 8, 8) and 0 < found["nats"] < np.log(16)
    generating = "def generate(self, B, h, w, device):\n        "
    same = AUTOREGRESSIVE.replace(generating, generating + "return torch.zeros(B, h, w, dtype=torch.long)\n        ")
    assert tokenized(measuring(data, autoregressive=same)).generation()["different"] == 0
    turned = same.replace("B, h, w, dtype", "B, w, h, dtype")
    with pytest.raises(Failed, match=r"generate must return \(8,4,6\)"):
        tokenized(measuring(data, autoregressive=turned)).generation()


def test_samples_near_known_images_are_not_new(data):
    """Graded ones, and those of the training; mirrored or not."""
    grids = tokenized(measuring(data)).grids
    other = 15 - grids[:1]
    known = [np.zeros((3, 4, 6, 3), np.float32), (other[..., None].repeat(3, -1) / 15 - 0.5).astype(np.float32)]

    def new(grid, flipped="", known=tuple):
        generating = "def generate(self, B, h, w, device):\n        "
        stored = f"return torch.tensor({grid.tolist()}){flipped}.repeat(B, 1, 1)\n        "
        source = AUTOREGRESSIVE.replace(generating, generating + stored)
        return tokenized(measuring(dataclasses.replace(data, known=known), autoregressive=source)).generation()["new"]

    assert new(grids[:1]) == new(grids[5:6], ".flip(-1)") == 0
    assert new(other) == new(other, known=lambda: known[:1]) == 8
    assert new(other, known=lambda: known) == new(other, ".flip(-1)", lambda: known) == 0


def test_compression(data):
    found = tokenized(measuring(data)).compression()
    assert found["ratio"] == pytest.approx(1000 / 26) and found["difference"] == 0 and found["images"] == 12
    lossy = COMPRESSOR.replace("tokens.flatten().tolist())", "tokens.flatten().tolist()[:-1] + [0])")
    assert tokenized(measuring(data, __init__=lossy)).compression()["difference"] > 0.05
    for wrong, reason in (("''", "compress must return bytes, not a str"), ("b''", "must return at least one byte")):
        with pytest.raises(Failed, match=reason):
            found = COMPRESSOR.replace("return bytes(tokens.shape) + bytes(tokens.flatten().tolist())", f"return {wrong}")
            tokenized(measuring(data, __init__=found)).compression()


# --- the pipe --------------------------------------------------------------------------------------------------------


class Saying:
    """In place of a process: one that says these bytes and ends."""

    def __init__(self, data):
        self.data = data

    def send(self, data):
        pass

    def receive(self, n, seconds):
        if n > len(self.data):
            raise Ended("ended")
        piece, self.data = self.data[:n], self.data[n:]
        return piece


SIZES = st.one_of(st.integers(-9, 40), st.integers(-(2**63), 2**63 - 1))


@given(st.lists(SIZES, min_size=9, max_size=9), st.binary(max_size=5000), st.binary(max_size=80))
def test_whatever_a_process_says_is_right_or_fails(sizes, values, alone):
    x = np.zeros((2, 20, 30, 3), np.float32)
    tokens = np.zeros((2, 4, 6), np.int64)
    for data in (alone, HEADER.pack(*sizes) + values, HEADER.pack(4, 2, 4, 6, 3, 0, 0, 0, 0) + values):
        for call in ("encode", "encode_index", "compress", "decode_index", "forward", "generate"):
            remote = Remote(Saying(data), (20, 30), {}, 1)
            arguments = {"generate": (2, 4, 6), "forward": (tokens, range(2, 9)), "decode_index": (tokens,)}.get(call, (x,))
            try:
                found = getattr(remote, call)(*arguments)
            except (Failed, Ended) as error:
                assert len(str(error)) < 500 and "\n" not in str(error)
                assert all(c.isprintable() for c in str(error))
            else:
                assert np.isfinite(found).all() and found.dtype in (np.float32, np.int64, np.uint8)


def test_a_reason_is_cut_and_printable():
    text = ("\x1b]0;title\x07" + "long " * 1000).encode() + b"\xff\xfe"
    remote = Remote(Saying(HEADER.pack(-1, len(text), *[0] * 7) + text), (20, 30), {}, 1)
    with pytest.raises(Failed) as failed:
        remote.encode(np.zeros((2, 20, 30, 3), np.float32))
    assert str(failed.value).startswith("?]0;title?long long") and len(str(failed.value)) <= 400


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_numbers_that_are_no_pixels(value):
    values = struct.pack("<f", value) * (2 * 20 * 30 * 3)
    remote = Remote(Saying(HEADER.pack(4, 2, 20, 30, 3, 0, 0, 0, 0) + values), (20, 30), {}, 1)
    if np.isfinite(value):
        assert remote.decode_index(np.zeros((2, 4, 6), np.int64)).max() == 1e6
    else:
        with pytest.raises(Failed, match="NaN or infinity in the output of decode_index"):
            remote.decode_index(np.zeros((2, 4, 6), np.int64))


# --- frames ----------------------------------------------------------------------------------------------------------


def test_frames(images, tmp_path):
    pixels, sizes, folder = frames.read(images)
    assert pixels.shape == (12, 20, 30, 3) and folder == images / "valid"
    assert abs(pixels.astype(int) - grey_squares(12)).max() <= 2
    assert sizes.tolist() == [path.stat().st_size for path in sorted((images / "valid").iterdir())]
    with pytest.raises(ValueError, match="no images in"):
        frames.read(tmp_path)
    (tmp_path / "sample").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "sample/a.jpg")
    assert frames.read(tmp_path)[2] == tmp_path / "sample"
    Image.new("RGB", (30, 21)).save(tmp_path / "sample/b.jpg")
    with pytest.raises(ValueError, match="b.jpg is 21x30 pixels"):
        frames.read(tmp_path)
    (tmp_path / "sample/b.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="b.jpg cannot be read"):
        frames.read(tmp_path)


def test_known_images_are_those_of_training_of_the_same_size(images, tmp_path):
    assert not list(frames.known(images, (20, 30)))
    (tmp_path / "train").mkdir()
    for i, frame in enumerate(grey_squares(5)):
        Image.fromarray(frame[:, : 30 - (i == 2)]).save(tmp_path / f"train/{i}.{'JPEG' if i == 4 else 'jpg'}", quality=100)
    (tmp_path / "train/3.jpg").write_bytes(b"no image")
    (found,) = frames.known(tmp_path, (20, 30))
    assert abs(found - blocks(grey_squares(5)[[0, 1, 4]] / 255 - 0.5)).max() < 0.01
