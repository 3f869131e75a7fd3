"""Whole runs of the command on tiny packages, and on one that owes nothing to this package."""

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, build
from fakes import AUTOREGRESSIVE, BSQ, forked, package, write_images
from PIL import Image

from grader import __main__ as main
from grader import sandbox
from grader.frames import read as frames_in
from grader.measure import costs
from grader.remote import Processes
from homework.core import checkpoint


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data"))


def grade(folder, *arguments):
    # as for a user: from another folder than the checkout
    return subprocess.run([sys.executable, "-m", "grader", *map(str, arguments)], cwd=folder, text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
                          timeout=1200)  # fmt: skip


@pytest.fixture
def grade_in_forks(monkeypatch, capsys):
    """The same in this process, and without confinement: code, what was printed, and the report."""

    def grade(folder, *arguments):
        with monkeypatch.context() as context:
            context.chdir(folder)
            context.setattr(sandbox, "start", forked)
            context.setattr(main.signal, "signal", lambda *handler: None)
            code = main.main([*map(str, arguments), "--json", "report.json"])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out, json.loads((folder / "report.json").read_text())

    return grade


def test_a_good_submission(tmp_path, images, grade_in_forks):
    folder = package(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "ab123.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"homework/{path.name}")
    printed, report = grade_in_forks(tmp_path, "ab123.zip", "--data", images, "-v")
    assert [part["points"] for part in report["parts"]] == [30, 30, 15, 15, 10, 5]
    assert (report["total"], report["extra"], report["official"], report["images"]) == (100, 5, True, 12)
    assert all(not part["reason"] for part in report["parts"])
    assert "100.0 / 100   +5.0 extra" in printed and "not the official points" not in printed


def test_names_in_a_submission_reach_neither_the_terminal_nor_stop_the_grading(tmp_path, images, grade_in_forks):
    folder = package(tmp_path / "in\x1b[2J", ae="", bsq="", autoregressive="")
    for name in b"\x1b]0;title\x07.pth", b"a\nmodels: none.pth", "\u202ehtp.pth".encode(), b"\xff.pth":
        with contextlib.suppress(OSError):  # on systems with other names
            Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"")
    printed, report = grade_in_forks(tmp_path, folder.parent, "--data", images)
    assert all(c.isprintable() for line in printed.split("\n") for c in line) and len(report["parts"]) == 6
    assert [line.startswith("models: ") for line in printed.split("\n")].count(True) == 1 and len(report["models"]) >= 3


def test_trained_copies_are_graded_before_shipped_models(tmp_path, images, grade_in_forks):
    """A submission of this package: the report names the checkpoints that count, and options find those of both folders."""
    shipped = tmp_path / "homework/pretrained"
    shutil.copytree(checkpoint.PACKAGE, tmp_path / "homework", ignore=shutil.ignore_patterns("*.pth", "__pycache__"))
    for name in "PatchAutoEncoder", "BSQPatchAutoEncoder", "AutoregressiveModel":
        checkpoint.save(build(name), shipped / f"{name}.pth")
    checkpoint.save(build("PatchAutoEncoder", bottleneck=5), tmp_path / "homework/PatchAutoEncoder.pth")
    checkpoint.save(build("VQPatchAutoEncoder"), shipped / "VQPatchAutoEncoder.pth")
    printed, report = grade_in_forks(tmp_path, ".", "--data", images, "--tokenizer", "VQPatchAutoEncoder.pth")
    models = ["pretrained/AutoregressiveModel.pth", "pretrained/BSQPatchAutoEncoder.pth", "PatchAutoEncoder.pth",
              "pretrained/VQPatchAutoEncoder.pth"]  # fmt: skip
    assert report["models"] == models and f"models: {', '.join(models)}\n" in printed
    assert report["checkpoints"] == {"bsq": "pretrained/VQPatchAutoEncoder.pth"}
    measures = {part["name"]: part["measures"] for part in report["parts"]}
    assert measures["auto-encoder"]["channels"] == 5 and measures["prior"]["n_tokens"] == 16
    assert measures["causality"]["leaks"] == 0 and measures["causality"]["moved"] > 0
    assert measures["generation"]["frames"] == 8 and measures["generation"]["nats"] < 6.5


def test_every_fault_costs_only_its_part(tmp_path, images):
    """A crash, floods and forks and writing, a leak, an early end and a missing class, all in one submission."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(images / "sample")
    noise = f"""
import os, time, torch
print("noise" * 1_000_000)
if os.fork() == 0:
    time.sleep(1000)
try:
    open({str(tmp_path / "evil")!r}, "w")
except OSError:
    pass
"""
    leak = "logits[:, 7, 3] += flat[:, 8]\n        return logits.view"
    end = "import os; os._exit(0)\n        tokens = torch.zeros(B,"
    prior = AUTOREGRESSIVE.replace("return logits.view", leak).replace("tokens = torch.zeros(B,", end)
    package(tmp_path, __init__="", ae="import ctypes\nctypes.string_at(0)", bsq=noise + BSQ, autoregressive=prior)
    done = grade(tmp_path, ".", "--json", "report.json", "-vv")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    reasons = {part["name"]: part["reason"] for part in report["parts"]}
    assert [part["points"] for part in report["parts"]] == [0, 30, 15, 0, 0, 0]
    assert reasons["auto-encoder"] == "crashed (SIGSEGV)"
    assert "row 1, column 1 depend on" in reasons["causality"]
    assert reasons["generation"] == "ended before it reported (exit code 0)"
    assert reasons["compression"] == "not implemented"
    assert not report["official"] and report["images"] == 3 and "not the official points" in done.stdout
    assert "noise" in done.stdout and "audit hook" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "homework", "report.json"]  # no scratch, no evil


# --- a package that owes nothing to this one, in its author's own way --------------------------------------------------

THEIRS = {
    "__init__": "from .codec import Compressor",
    "pca": """
import torch

def patches(x):  # (B,H,W,3) -> (B,h,w,75)
    B, H, W, _ = x.shape
    return x.reshape(B, H // 5, 5, W // 5, 5, 3).permute(0, 1, 3, 2, 4, 5).reshape(B, H // 5, W // 5, 75)

def images(p):
    B, h, w, _ = p.shape
    return p.reshape(B, h, w, 5, 5, 3).permute(0, 1, 3, 2, 4, 5).reshape(B, h * 5, w * 5, 3)

class PCA(torch.nn.Module):
    def __init__(self, x, components=8):
        super().__init__()
        p = patches(x).reshape(-1, 75)
        self.mean = p.mean(0)
        self.basis = torch.linalg.svd(p - self.mean, full_matrices=False)[2][:components].T

    def encode(self, x):
        return (patches(x) - self.mean) @ self.basis

    def decode(self, z):
        return images(z @ self.basis.T + self.mean)
""",
    "ae": """
import pathlib, torch
def load():
    return torch.load(pathlib.Path(__file__).with_name("pca.pickle"), weights_only=False)
""",
    "bsq": """
import pathlib, torch
from .pca import PCA

class Tokenizer(PCA):
    BITS = torch.tensor([6, 2, 2])  # of the binary code of each component, from its smallest to its largest value

    def __init__(self, x):
        super().__init__(x, 3)
        z = self.encode(x).flatten(0, -2)
        self.low, self.step = z.amin(0), (z.amax(0) - z.amin(0)) / 2**self.BITS

    def encode_index(self, x):
        level = ((self.encode(x) - self.low) / self.step).long().clamp(torch.tensor(0), 2**self.BITS - 1)
        return level @ torch.tensor([16, 4, 1])

    def decode_index(self, index):
        level = torch.stack([index // 16, index // 4 % 4, index % 4], -1)
        return self.decode(self.low + (level + 0.5) * self.step)

def load():
    return torch.load(pathlib.Path(__file__).with_name("tokenizer.pickle"), weights_only=False)
""",
    "autoregressive": """
import pathlib, torch

class Bigram:  # not even a module
    def __init__(self, grids):
        flat = grids.flatten(1)
        counts = torch.full((65, 1024), 1e-3)
        counts.index_put_((flat[:, :-1].flatten() // 16, flat[:, 1:].flatten()), torch.tensor(1.0), accumulate=True)
        counts[64] += torch.bincount(flat[:, 0], minlength=1024)
        self.logits = counts.log()

    def __call__(self, grids):
        before = torch.cat([torch.full((len(grids), 1), 64), grids.flatten(1)[:, :-1] // 16], 1)
        return self.logits[before].view(*grids.shape, 1024), {"extra": None}

    def generate(self, B, h, w, device):
        tokens = [torch.full((B,), 64 * 16)]
        for _ in range(h * w):
            tokens.append(torch.multinomial(self.logits[tokens[-1] // 16].softmax(-1), 1)[:, 0])
        return torch.stack(tokens[1:], 1).view(B, h, w)

def load():
    return torch.load(pathlib.Path(__file__).with_name("prior.pickle"), weights_only=False)
""",
    "codec": """
import lzma, numpy as np, torch
class Compressor:
    FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
    def __init__(self, tokenizer, prior):
        self.tokenizer = tokenizer
    def compress(self, x):
        tokens = self.tokenizer.encode_index(x[None]).numpy().astype("<u2")
        return lzma.compress(tokens.tobytes(), lzma.FORMAT_RAW, filters=self.FILTERS)
    def decompress(self, data):
        tokens = np.frombuffer(lzma.decompress(data, lzma.FORMAT_RAW, filters=self.FILTERS), "<u2").astype(np.int64)
        return self.tokenizer.decode_index(torch.from_numpy(tokens).view(1, 10, 15))[0]
""",
    "fit": """
import json, math, sys, pathlib, numpy as np, torch
from PIL import Image
from .ae import load
from .autoregressive import Bigram
from .bsq import Tokenizer
from .codec import Compressor
from .pca import PCA
paths = sorted(pathlib.Path(sys.argv[1]).glob("*.jpg"))
x = torch.stack([torch.from_numpy(np.array(Image.open(path).convert("RGB"))).float() / 255 - 0.5 for path in paths])
ae, tokenizer = PCA(x), Tokenizer(x)
grids = tokenizer.encode_index(x)
prior, codec = Bigram(grids), Compressor(tokenizer, None)
for model, name in ((ae, "pca"), (tokenizer, "tokenizer"), (prior, "prior")):
    torch.save(model, pathlib.Path(__file__).with_name(name + ".pickle"))
logp = prior(grids)[0].log_softmax(-1).gather(-1, grids[..., None])
chosen = range(len(x)) if len(x) <= 16 else np.linspace(0, len(x) - 1, 16).round().astype(int)
print(json.dumps({
    "auto-encoder": ((ae.decode(ae.encode(x)) - x) ** 2).mean().item(),
    "tokenizer": ((tokenizer.decode_index(grids) - x) ** 2).mean().item(),
    "prior": -logp.sum().item() / math.log(2) / len(x),
    "compression": sum(paths[i].stat().st_size for i in chosen) / sum(len(codec.compress(x[i])) for i in chosen),
}))
""",
}


def test_an_honest_package_of_somebody_else(tmp_path, grade_in_forks):
    """PCA of patches, binary codes of its components, counts of pairs, and lzma; all in pickles of whole objects. It gets
    what its own figures say, and confined it does the same."""
    (tmp_path / "in/homework").mkdir(parents=True)
    sample = tmp_path / "data/sample"
    sample.mkdir(parents=True)
    for path in (ROOT / "data/sample").glob("*.jpg"):
        with Image.open(path) as image:
            image.crop((40, 50, 115, 100)).save(sample / path.name, quality=95)
    for name, source in THEIRS.items():
        (tmp_path / f"in/homework/{name}.py").write_text(source)
    fit = subprocess.run([sys.executable, "-m", "homework.fit", sample], cwd=tmp_path / "in", capture_output=True, text=True)
    assert fit.returncode == 0, fit.stderr
    own = json.loads(fit.stdout)
    _, report = grade_in_forks(tmp_path, "in", "--data", sample.parent)
    found = {part["name"]: part for part in report["parts"]}
    for name, measure in (("auto-encoder", "mse"), ("tokenizer", "mse"), ("prior", "bits"), ("compression", "ratio")):
        assert found[name]["measures"][measure] == pytest.approx(own[name], rel=1e-3), name
    scale = (0.010 - own["tokenizer"]) / 0.005
    assert found["auto-encoder"]["points"] == 30 and 0.2 < scale < 1
    assert found["tokenizer"]["points"] == pytest.approx(30 * scale, abs=0.1)
    for name, points in (("prior", 15), ("causality", 15), ("generation", 10)):
        assert found[name]["points"] == pytest.approx(points * scale, abs=0.1), found[name]["reason"]
    assert found["compression"]["points"] == pytest.approx(5 * scale * min((own["compression"] - 7.5) / 6.5, 1), abs=0.1)

    frames = frames_in(sample.parent)[0]
    x = frames.astype(np.float32) / 255 - 0.5
    limits = sandbox.Limits(120.0, 300.0, memory=16 * 2**30, processes=256, disk=2**30)
    with Processes(tmp_path / "in", tmp_path / "scratch", limits, frames.shape[1:3]).start() as confined:
        assert confined.child.guards[-1] == "audit hook"
        tokens = confined.encode_index(x)
        x_hat = confined.decode_index(tokens)
        assert np.square(confined.decode(confined.encode(x)) - x).mean() == pytest.approx(own["auto-encoder"], rel=1e-3)
        assert np.square(x_hat - x).mean() == pytest.approx(own["tokenizer"], rel=1e-3)
        bits = costs(confined.forward(tokens, 1024), tokens).sum() / math.log(2) / len(x)
        assert bits == pytest.approx(own["prior"], rel=1e-3)
        assert confined.generate(2, 10, 15).max() < 1024
        assert np.abs(confined.decompress(confined.compress(x[0])) - x_hat[0]).max() < 1e-4
