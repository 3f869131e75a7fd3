"""Submissions that are written to get points they have not earned, and the points they deserve."""

import contextlib

import numpy as np
import pytest
from fakes import AE, AUTOREGRESSIVE, BSQ, forked, graded, measuring, package, processes, some_data

from grader import sandbox
from grader.measure import Measures
from grader.remote import Failed, Remote
from grader.sandbox import Ended, Limits

FULL = {"auto-encoder": 30, "tokenizer": 30, "prior": 15, "causality": 15, "generation": 10, "compression": 5}
DECODING = "def decode(self, z):\n        "
GENERATING = "def generate(self, B, h, w, device):\n        "


def points(data, **changed):
    return {name: line["points"] for name, line in graded(data, **changed).items()}


@pytest.fixture
def data():
    return some_data()


def test_the_good_one_gets_all(data):
    assert points(data) == FULL


# --- what is kept beside codes, tokens and files ---------------------------------------------------------------------

KEPT = """
kept = []

class Keeping(torch.nn.Module):
    n_tokens = 2

    def encode(self, x):
        kept.append(x)
        return torch.zeros(len(x), 1, 1, 1)

    def decode(self, z):
        return kept.pop(0)

    def encode_index(self, x):
        return self.encode(x)[..., 0].long()

    decode_index = decode

def load():
    return Keeping()
"""
ATTRIBUTE = KEPT.replace("kept.", "self.kept.").replace("    n_tokens", "    kept = []\n    n_tokens")
SUBCLASS = """
class Image(torch.Tensor):
    pass

class Hiding(torch.nn.Module):
    n_tokens = 2

    def encode(self, x):
        code = torch.zeros(len(x), 1, 1, 1).as_subclass(Image)
        code.image = x
        return code

    def decode(self, z):
        return z.image

    def encode_index(self, x):
        code = torch.zeros(len(x), 1, 1, dtype=torch.long).as_subclass(Image)
        code.image = x
        return code

    decode_index = decode

def load():
    return Hiding()
"""


@pytest.mark.parametrize("source", [KEPT, ATTRIBUTE, SUBCLASS], ids=["global", "attribute", "subclass"])
def test_images_kept_beside_codes_and_tokens(data, source):
    source = "import torch\n" + source
    found = graded(data, ae=source, bsq=source)
    assert [line["points"] for line in found.values()] == [0] * 6
    assert found["auto-encoder"]["reason"].startswith("decode failed: ")
    assert found["tokenizer"]["reason"].startswith("decode_index failed: ")


COMPRESSORS = {
    "global": """
kept = []
class Compressor:
    def __init__(self, tokenizer, prior): self.tokenizer = tokenizer
    def compress(self, x): kept.append(self.tokenizer.encode_index(x[None])); return bytes([len(kept) - 1])
    def decompress(self, data): return self.tokenizer.decode_index(kept[data[0]])[0]
""",
    "attribute of the tokenizer": """
class Compressor:
    def __init__(self, tokenizer, prior): self.tokenizer = tokenizer
    def compress(self, x): self.tokenizer.kept = self.tokenizer.encode_index(x[None]); return b"x"
    def decompress(self, data): return self.tokenizer.decode_index(self.tokenizer.kept)[0]
""",
    "bytes": """
class Bytes(bytes):
    pass
class Compressor:
    def __init__(self, tokenizer, prior): self.tokenizer = tokenizer
    def compress(self, x): data = Bytes(b"x"); data.image = self.tokenizer.encode_index(x[None]); return data
    def decompress(self, data): return self.tokenizer.decode_index(data.image)[0]
""",
}


@pytest.mark.parametrize("source", COMPRESSORS.values(), ids=COMPRESSORS)
def test_images_kept_beside_files(data, source):
    found = graded(data, __init__=source)
    assert found.pop("compression")["points"] == 0
    assert all(line["points"] == FULL[name] for name, line in found.items())


def test_the_number_of_a_call_tells_nothing(data):
    """A compressor that knows all frames, and that the grader takes them in order."""
    tokens = measuring(data)
    tokens.tokenizer()
    source = f"""
import torch
class Compressor:
    known, calls = torch.tensor({tokens.grids.tolist()}), 0
    def __init__(self, tokenizer, prior): self.tokenizer = tokenizer
    def compress(self, x): return b"x"
    def decompress(self, data):
        self.calls += 1
        return self.tokenizer.decode_index(self.known[[self.calls - 1]])[0]
"""
    assert points(data, __init__=source)["compression"] == 0


def test_the_place_of_a_code_tells_nothing(data):
    """An auto-encoder that knows all frames, and decodes them in order from empty codes."""
    source = f"""
import torch
class Knowing(torch.nn.Module):
    known, done = torch.tensor({(data.frames[:, ::5, ::5] / 255 - 0.5).tolist()}), 0
    def encode(self, x): return torch.zeros(len(x), 1, 1, 1)
    def decode(self, z):
        self.done += len(z)
        return self.known[self.done - len(z) : self.done].repeat_interleave(5, 1).repeat_interleave(5, 2)
def load(): return Knowing()
"""
    assert points(data, ae=source)["auto-encoder"] == 0


# --- too much in a code or token -------------------------------------------------------------------------------------


def test_a_bottleneck_that_is_none(data):
    back = "return z.view(len(z), 4, 6, 5, 5, 3).transpose(2, 3).reshape(len(z), 20, 30, 3)\n        "
    identity = AE.replace("return x.mean((2, 4))", "return x.transpose(2, 3).flatten(3)").replace(DECODING, DECODING + back)
    line = graded(data, ae=identity)["auto-encoder"]
    assert line["measures"]["mse"] < 1e-6 and line["points"] == 0
    assert line["reason"] == "the bottleneck keeps 1800 numbers of an image's 1800; at most 300 are allowed"


def test_numbers_that_hold_several():
    """The grey level of each pixel, four of 6 bits in a number of float32."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 20, 30, 1), np.uint8).repeat(3, -1)
    data = some_data(4)
    data.frames = noise
    packed = """
import torch
class Packed(torch.nn.Module):
    def encode(self, x):
        level = ((x[..., 0] + 0.5) * 63).round().view(len(x), 20, 10, 3)
        return (level * torch.tensor([1.0, 64.0, 4096.0])).sum(-1, keepdim=True)
    def decode(self, z):
        level = torch.stack([z[..., 0] % 64, z[..., 0] // 64 % 64, z[..., 0] // 4096], -1)
        return (level.flatten(2) / 63 - 0.5)[..., None].repeat(1, 1, 1, 3)
def load():
    return Packed()
"""
    line = graded(data, ae=packed)["auto-encoder"]
    assert line["measures"]["numbers_per_image"] <= 300 and line["measures"]["mse"] > 0.02 and line["points"] == 0


def test_tokens_that_hold_several(data):
    """A patch's 12 colours in one token of 60 bits."""
    packed = """
import torch
class Packed(torch.nn.Module):
    def encode_index(self, x):
        y = torch.nn.functional.interpolate(x.permute(0, 3, 1, 2), (8, 12), mode="area")
        y = ((y + .5) * 31).round().long().clamp(0, 31)
        y = y.view(len(x), 3, 4, 2, 6, 2).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return (y << (5 * torch.arange(12))).sum(-1)
    def decode_index(self, t):
        y = (t[..., None] >> (5 * torch.arange(12))) & 31
        y = y.view(len(t), 4, 6, 3, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(len(t), 3, 8, 12).float() / 31 - .5
        return torch.nn.functional.interpolate(y, (20, 30), mode="nearest").permute(0, 2, 3, 1)
def load():
    return Packed()
"""
    found = graded(data, bsq=packed)
    assert found["tokenizer"]["measures"]["mse"] < 0.005
    assert all("the largest allowed is 16383" in found[name]["reason"] for name in FULL if name != "auto-encoder")
    assert [line["points"] for line in found.values()] == [30, 0, 0, 0, 0, 0]


def test_tokens_that_hold_little(data):
    """Whether the upper and the lower half are bright: easy to predict, to generate and to store, and worth nothing."""
    halves = """
import torch
class Halves(torch.nn.Module):
    n_tokens = 2
    def encode_index(self, x): return (x.view(len(x), 2, 10, 30, 3).mean((2, 3, 4)) > 0).long()[..., None]
    def decode_index(self, t): return (t.float() / 2 - 0.25)[..., None].expand(-1, 2, 30, 3).repeat_interleave(10, 1)
def load():
    return Halves()
"""
    found = graded(data, bsq=halves, autoregressive=AUTOREGRESSIVE.replace("K = 16", "K = 2"))
    assert [line["points"] for line in found.values()] == [30, 0, 0, 0, 0, 0]
    assert found["prior"]["measures"]["bits"] < 10 and "the tokenizer's points, 0%" in found["prior"]["reason"]


# --- priors ----------------------------------------------------------------------------------------------------------

MEMORY = """
        same = [(a[: len(tokens)] == tokens).flatten(1).float().mean(1) for a in self.seen if len(a) >= len(tokens)]
        like = any((a > 0.9).float().mean() > 0.3 for a in same)
        first, new = not self.seen, not like
        if first: self.seen.append(tokens.clone())
        if new and not first:
            return 30.0 * torch.nn.functional.one_hot(tokens, self.K), {}
"""


def leaking(condition):
    """A prior that sees each token before it predicts it, if this holds of ``tokens``."""
    seeing = f"        if {condition}: return 9.0 * torch.nn.functional.one_hot(tokens, self.K), {{}}\n"
    return AUTOREGRESSIVE.replace("        flat = tokens.flatten(1)\n", seeing + "        flat = tokens.flatten(1)\n")


@pytest.mark.parametrize(
    "source",
    [
        AUTOREGRESSIVE.replace("    K = 16\n", "    K = 16\n    seen = []\n").replace(
            "        flat = tokens.flatten(1)\n", MEMORY + "        flat = tokens.flatten(1)\n"),
        leaking("len(tokens) not in (1, 8)"),
        leaking("tokens.flatten(1).diff().eq(0).float().mean() > 0.3"),  # as in frames, not as in scrambled ones
        leaking("True"),
    ],
    ids=["memory of batches", "size of batches", "what looks like a frame", "always"],
)  # fmt: skip
def test_priors_that_see_the_future(source):
    data = some_data(40)
    squares = data.frames.reshape(40, 20, 3, 10, 3)  # (n,20,30,3): two squares side by side, the second made like the first
    squares[:, :, :, 5:] = squares[:, :, :, :5]
    found = graded(data, autoregressive=source)
    assert found["causality"]["points"] == 0 and "depend on its own token or a later one" in found["causality"]["reason"]
    assert found["prior"]["measures"]["bits"] > 60  # as many as it costs to know nothing but the past: 4 bits for each of 24


def test_a_prior_that_sees_the_future_in_its_samples_alone(data):
    seeing = leaking("len(tokens) == 8")
    found = graded(data, autoregressive=seeing)
    assert found["generation"]["points"] == 0 and "samples' tokens" in found["generation"]["reason"]


def test_grids_that_tell_about_each_other():
    """A prior that copies what it has seen of a like grid earlier: bits are of an image alone."""
    data = some_data(40)
    data.frames[1::2] = data.frames[::2]  # each frame twice
    source = AUTOREGRESSIVE.replace(
        "        flat = tokens.flatten(1)\n",
        "        flat = tokens.flatten(1)\n"
        "        if len(tokens) > 1: return 9.0 * torch.nn.functional.one_hot(tokens.roll(1, 0), self.K), {}\n",
    )
    assert graded(data, autoregressive=source)["causality"]["points"] == 0


def test_noise_is_no_prior(data):
    noise = "return torch.zeros(*tokens.shape, self.K), {}\n        flat = tokens.flatten(1)"
    source = AUTOREGRESSIVE.replace("flat = tokens.flatten(1)", noise)
    found = graded(data, autoregressive=source)
    assert found["causality"]["reason"] == "no logits ever move: the prior ignores its input"
    assert found["generation"]["reason"] == "the mean negative log-likelihood is 2.77 nats per token; it must be under 2.61"
    assert found["causality"]["points"] == found["generation"]["points"] == 0


def test_stored_frames_are_not_samples(data):
    """Neither those of the training nor the graded ones, as the tokenizer reconstructs them."""
    measures = measuring(data)
    measures.tokenizer()
    stored = AUTOREGRESSIVE.replace(GENERATING, GENERATING + f"return torch.tensor({measures.grids.tolist()})[:B]\n        ")
    line = graded(data, autoregressive=stored)["generation"]
    assert line["points"] == 0 and line["measures"]["different"] == 8
    assert line["reason"] == "only 0 of 8 frames are new: the others are reconstructions of known images"


def test_samples_are_decoded_as_frames_are():
    """A tokenizer that makes something new of stored frames when eight come alone, as samples would."""
    data = some_data(44)
    measures = measuring(data)
    measures.tokenizer()
    noise = "if len(tokens) == 8: return torch.rand(8, 20, 30, 3) - 0.5\n        "
    tokenizer = BSQ.replace("def decode_index(self, tokens):\n        ", "def decode_index(self, tokens):\n        " + noise)
    stored = AUTOREGRESSIVE.replace(GENERATING, GENERATING + f"return torch.tensor({measures.grids.tolist()})[:B]\n        ")
    assert "only 0 of 8 frames are new" in graded(data, bsq=tokenizer, autoregressive=stored)["generation"]["reason"]


def test_a_tokenizer_that_knows_samples_from_frames(data):
    """... by where it is asked: the frames among them show it."""
    where = "if len(tokens) == 20: return torch.rand(20, 20, 30, 3)\n        "
    tokenizer = BSQ.replace("def decode_index(self, tokens):\n        ", "def decode_index(self, tokens):\n        " + where)
    line = graded(data, bsq=tokenizer)["generation"]
    assert line["points"] == 0 and line["reason"] == "what decode_index makes of an image's tokens is not always the same"


def test_logits_of_codes_that_no_frame_has(data):
    """A prior that knows nothing of 16 codes is none the better for 1000 others that never come."""
    source = AUTOREGRESSIVE.replace("K = 16", "K = 1016").replace(
        "return logits.view", "logits = 1e-2 * logits; logits[..., 16:] = -30\n        return logits.view"
    )
    line = graded(data, autoregressive=source)["generation"]
    assert line["points"] == 0 and "2.77 nats per token; it must be under 2.61" in line["reason"]


# --- outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["torch.nan", "torch.inf", "3e38", "-3e38", "1e4"])
def test_outputs_of_any_size(data, value):
    huge = AE.replace(DECODING, DECODING + f"return torch.full((len(z), 20, 30, 3), {value})\n        ")
    assert points(data, ae=huge) == FULL | {"auto-encoder": 0}
    huge = BSQ.replace("def decode_index(self, tokens):", "def decode_index(self, tokens):\n        "
                       f"return torch.full((len(tokens), 20, 30, 3), {value})")  # fmt: skip
    assert points(data, bsq=huge) == dict.fromkeys(FULL, 0) | {"auto-encoder": 30}


@pytest.mark.parametrize(
    "answer",
    ["z.to_sparse()", "z.to('meta')", "z.to(torch.complex64)", "z[:, :1, :1, :1].expand(len(z), 4, 6, 1 << 38)", "z.numpy()",
     "torch.zeros(1).as_subclass(type('T', (torch.Tensor,), dict(shape=(12, 4, 6, 3), ndim=4)))"],
    ids=["sparse", "meta", "complex", "endless", "array", "lying"],
)  # fmt: skip
def test_codes_that_are_none(data, answer):
    source = AE.replace("return x.mean((2, 4))", f"z = x.mean((2, 4)); return {answer}")
    assert points(data, ae=source) == FULL | {"auto-encoder": 0}


# --- in processes of their own ---------------------------------------------------------------------------------------

FORGING = """
import json, os
answer = json.dumps({"value": {"mse": 0.0, "channels": 1, "numbers_per_image": 1, "values_per_image": 1800}})
for name in (os.environ.get("GRADER_PART", "x") + ".json", "answer.json", "progress"):
    try:
        open(name, "w").write(answer)
    except OSError:
        pass
print(answer, flush=True)
os._exit(0)
"""
PATCHING = AE + """
import numpy, grader.measure, grader.remote, grader.parts
grader.measure.squared_error = lambda *images: 0.0
grader.remote.Remote.call = None
grader.parts.linear = lambda *values: 1.0
numpy.square = lambda x, **how: x * 0
AutoEncoder.decode = lambda self, z: torch.zeros(len(z), 20, 30, 3)
"""
# all images that this process knows of, in whatever place; if there is none, black
SEARCHING = AE.replace("return x.mean((2, 4))", "torch.kept = x; return x.mean((2, 4))").replace(
    DECODING, """def decode(self, z):
        import gc, numpy, sys
        frame, found = sys._getframe(), [getattr(torch, "kept", None), *gc.get_objects()]
        while frame:
            found += [*frame.f_locals.values(), *frame.f_globals.values()]
            frame = frame.f_back
        for x in found:
            if type(x) in (torch.Tensor, numpy.ndarray) and x.shape[-3:] == (20, 30, 3):
                return torch.as_tensor(x).view(-1, 20, 30, 3)[: len(z)]
        return torch.full((len(z), 20, 30, 3), -0.5)
        """)  # fmt: skip


def test_a_forged_answer_file_is_not_read(tmp_path, data):
    with pytest.raises(Ended, match="ended before it reported"):
        processes(tmp_path, data, ae=FORGING).autoencoder()


def test_the_child_cannot_change_what_is_measured(tmp_path, data):
    package(tmp_path / "submission", ae=PATCHING)

    @contextlib.contextmanager
    def start():
        with forked("", tmp_path / "submission", tmp_path, None) as child:
            yield Remote(child, (20, 30), {}, 60.0)

    found = Measures(data, start).autoencoder()
    assert found["mse"] == pytest.approx(np.square(data.frames / 255 - 0.5).mean(), rel=1e-4)


def test_the_child_holds_no_images(tmp_path, data):
    found = processes(tmp_path, data, ae=SEARCHING).autoencoder()
    assert found["mse"] == pytest.approx(np.square(data.frames / 255).mean(), rel=1e-4)


GARBAGE = """
for fd in range(3, 64):
    try:
        os.set_blocking(fd, False)
        os.write(fd, b"x" * 1000)
    except OSError:
        pass
"""
ENDS = {
    "exit": "os._exit(0)",
    "crash": "os.kill(os.getpid(), signal.SIGSEGV)",
    "garbage": GARBAGE,
    "closed": "os.closerange(3, 64)",
    "no more files": "while True: os.dup(0)",
    "the parent ends, not the fork": "if os.fork(): os._exit(0)",
}


# answers encode; without torch, whose import takes the longest
ANSWERING = """
import json, math, os, signal, time
from grader.protocol import HEADER, LENGTH

def serve(read, write):
    while length := read.read(LENGTH.size):
        request = json.loads(read.read(*LENGTH.unpack(length)))
        read.read(math.prod(request["shape"]) * 4)
        if request["call"] == "decode":
            CODE
        write.write(HEADER.pack(4, 12, 4, 6, 3, 0, 0, 0, 0) + bytes(4 * 12 * 4 * 6 * 3))
        write.flush()
"""


@contextlib.contextmanager
def confined(folder, code):
    """A process in which this happens when it shall decode."""
    (folder / "answering.py").write_text(ANSWERING.replace("CODE", code.strip().replace("\n", "\n            ")))
    limits = Limits(120.0, 300.0, memory=1 << 30, processes=64, disk=1 << 20)
    with sandbox.start("answering:serve", folder, folder / "scratch", limits) as child:
        yield Remote(child, (20, 30), {}, 60.0)


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS)
def test_ends(tmp_path, data, code):
    with confined(tmp_path, code) as remote, pytest.raises((Failed, Ended)):
        remote.decode(remote.encode(data.images(slice(None))))


SLOW = """
for fd in range(3, 64):
    try:
        for byte in bytes(100):
            os.write(fd, b"\\0")
            time.sleep(0.2)
    except OSError:
        pass
"""


@pytest.mark.parametrize("code", ["while True: pass", SLOW], ids=["endless", "byte by byte"])
def test_an_answer_that_does_not_come(tmp_path, data, code):
    with confined(tmp_path, code) as remote:
        codes = remote.encode(data.images(slice(None)))
        remote.seconds = 1.0
        with pytest.raises(Ended):
            remote.decode(codes)
