"""The grader: scoring in this process, the sandbox on small faults, and whole runs on tiny fake submissions."""

import io
import os
import stat
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from grader import submission
from grader.measure import Data

# --- a good submission in a few lines: frames are grey 5x5 squares, a token is a square's grey level ------------------

AE = """
import torch

class AutoEncoder(torch.nn.Module):
    P = 5

    def encode(self, x):  # (B,H,W,3) -> (B,h,w,75)
        B, H, W, _ = x.shape
        x = x.view(B, H // self.P, self.P, W // self.P, self.P, 3)
        return x.transpose(2, 3).flatten(3)

    def decode(self, z):
        B, h, w, _ = z.shape
        x = z.view(B, h, w, self.P, self.P, 3).transpose(2, 3)
        return x.reshape(B, h * self.P, w * self.P, 3)

def load():
    return AutoEncoder()
"""

BSQ = """
import torch

class Tokenizer(torch.nn.Module):
    n_tokens = 16

    def encode_index(self, x):  # (B,H,W,3) -> (B,h,w)
        grey = torch.nn.functional.avg_pool2d(x.mean(-1)[:, None], 5)[:, 0]
        return ((grey + 0.5) * 15).round().long().clamp(0, 15)

    def decode_index(self, tokens):
        x = (tokens.float() / 15 - 0.5)[..., None].repeat(1, 1, 1, 3)
        return x.repeat_interleave(5, 1).repeat_interleave(5, 2)

def load():
    return Tokenizer()
"""

AUTOREGRESSIVE = """
import torch

class Prior(torch.nn.Module):
    K = 16

    def forward(self, tokens):  # a token probably repeats the one before it
        flat = tokens.flatten(1)
        logits = torch.zeros(*flat.shape, self.K)
        logits[:, 1:] = 2.0 * torch.nn.functional.one_hot(flat[:, :-1], self.K)
        return logits.view(*tokens.shape, self.K), {}

    def generate(self, B, h, w, device):
        tokens = torch.zeros(B, h * w, dtype=torch.long)
        for n in range(h * w):
            logits, _ = self(tokens.view(B, h, w))
            tokens[:, n] = torch.multinomial(logits.flatten(1, 2)[:, n].softmax(-1), 1)[:, 0]
        return tokens.view(B, h, w)

def load():
    return Prior()
"""

COMPRESSOR = """
import torch

class Compressor:
    def __init__(self, tokenizer, prior):
        self.tokenizer = tokenizer

    def compress(self, x):
        tokens = self.tokenizer.encode_index(x[None])[0]
        return bytes(tokens.shape) + bytes(tokens.flatten().tolist())

    def decompress(self, data):
        h, w = data[:2]
        return self.tokenizer.decode_index(torch.tensor(list(data[2:])).view(1, h, w))[0]
"""


def package(folder, init=COMPRESSOR, ae=AE, bsq=BSQ, autoregressive=AUTOREGRESSIVE):
    (folder / "homework").mkdir(parents=True)
    for name, source in dict(__init__=init, ae=ae, bsq=bsq, autoregressive=autoregressive).items():
        (folder / f"homework/{name}.py").write_text(source)
    return folder / "homework"


def built(source):
    """The model that the module with this source would load."""
    names = {}
    exec(source, names)
    return names["load"]()


def grey_squares(n, h=4, w=6):
    """(n,5h,5w,3) uint8 of the fake tokenizer's grey levels."""
    levels = np.random.default_rng(0).integers(0, 16, (n, h, w)) * 17
    return np.repeat(levels[..., None].repeat(5, 1).repeat(5, 2), 3, -1).astype(np.uint8)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A data folder with 12 frames in valid/, three other ones in sample/."""
    root = tmp_path_factory.mktemp("data")
    for name, n in (("valid", 12), ("sample", 3)):
        (root / name).mkdir()
        for i, frame in enumerate(grey_squares(n)):
            Image.fromarray(frame).save(root / name / f"{i:02}.jpg", quality=100)
    return root


@pytest.fixture
def data():
    return Data(grey_squares(12), np.full(12, 1000))


def grade(folder, *arguments):
    # as for a user: from another folder than the checkout
    return subprocess.run([sys.executable, "-m", "grader", *map(str, arguments)], cwd=folder, text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
                          timeout=1200)  # fmt: skip


# --- zips ------------------------------------------------------------------------------------------------------------


def entry(name, mode=stat.S_IFREG | 0o644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    "entries, reason",
    [
        ([entry("homework/../../evil")], "climbs out"),
        ([entry("../evil")], "climbs out"),
        ([entry("homework/..")], "climbs out"),
        ([entry("homework\\..\\evil")], "climbs out"),
        ([entry("/etc/evil")], "absolute path"),
        ([entry("C:/evil")], "absolute path"),
        ([entry("homework/link", stat.S_IFLNK | 0o777)], "link or special file"),
        ([entry("homework/pipe", stat.S_IFIFO | 0o777)], "link or special file"),
        ([entry("homework/a.py"), entry("other/a.py")], "more than one top folder: homework, other"),
        ([entry("homework/a.py"), entry("readme.txt")], "more than one top folder"),
        ([entry("solution/a.py")], "top folder of the zip is 'solution'"),
        ([entry("homework")], "holds no folder homework/"),
        ([entry("homework/a"), entry("homework/a/b")], "cannot be unpacked"),
        ([], "top folder of the zip is 'missing'"),
    ],
)
def test_refused_zips_leave_nothing(tmp_path, entries, reason):
    with zipfile.ZipFile(tmp_path / "id.zip", "w") as archive:
        for info in entries:
            archive.writestr(info, "target")
    (tmp_path / "scratch/out").mkdir(parents=True)
    with pytest.raises(ValueError, match=reason.replace("\\", "\\\\")):
        submission.unpack(tmp_path / "id.zip", tmp_path / "scratch/out")
    if "unpacked" not in reason and "holds no" not in reason:
        assert not list((tmp_path / "scratch/out").iterdir())
    assert [path.name for path in tmp_path.rglob("*evil*")] == []


def test_large_and_broken_zips(tmp_path):
    out, path = tmp_path / "out", tmp_path / "id.zip"
    out.mkdir()

    def refusal():
        with pytest.raises(ValueError) as refused:
            submission.unpack(path, out)
        assert not list(out.iterdir())
        return str(refused.value)

    path.write_bytes(b"PK no zip")
    assert "not a sound zip" in refusal()
    path.write_bytes(bytes(20_000_001))
    assert "at most 20 MB" in refusal()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for i in range(3):
            bomb.writestr(f"homework/{i}", bytes(70_000_000))
    assert path.stat().st_size < 1_000_000 and "unpacks to 210 MB" in refusal()
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("homework/a.py", "1")
        archive.writestr("homework/a.py", "2")
    assert "twice" in refusal()
    with pytest.raises(FileNotFoundError):
        submission.unpack(tmp_path / "missing.zip", out)


def test_damaged_contents(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("homework/a.py", "x = 1  # a text to find")
    (tmp_path / "id.zip").write_bytes(stream.getvalue().replace(b"a text to find", b"another text!!"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="not a sound zip: Bad CRC-32"):
        submission.unpack(tmp_path / "id.zip", tmp_path / "out")


def test_folders(tmp_path):
    source = package(tmp_path / "a")
    (source / "__pycache__").mkdir()
    for i, given in enumerate((source, source.parent)):
        out = tmp_path / f"out{i}"
        out.mkdir()
        submission.unpack(given, out)
        assert sorted(path.name for path in (out / "homework").iterdir()) == [
            "__init__.py", "ae.py", "autoregressive.py", "bsq.py"]  # fmt: skip
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither is nor holds a package"):
        submission.unpack(tmp_path / "empty", tmp_path / "out0")
