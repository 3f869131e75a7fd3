"""The grader: scoring in this process, the sandbox on small faults, and whole runs on tiny fake submissions."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, build
from PIL import Image

from grader import frames, measure, parts, sandbox, submission
from grader.measure import Data
from grader.sandbox import Failed
from homework.core import checkpoint

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


# --- points ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, measures, points",
    [
        ("auto-encoder", dict(mse=0.010, channels=256), 30),
        ("auto-encoder", dict(mse=0.001, channels=257), 0),
        ("auto-encoder", dict(mse=0.0125, channels=8), 15),
        ("auto-encoder", dict(mse=0.015, channels=8), 0),
        ("auto-encoder", dict(mse=float("nan"), channels=8), 0),
        ("tokenizer", dict(mse=0.005, tokens=1200), 30),
        ("tokenizer", dict(mse=0.005, tokens=1201), 0),
        ("tokenizer", dict(mse=0.009, tokens=600), 6),
        ("prior", dict(bits=4500.0), 15),
        ("prior", dict(bits=4700.0), 5),
        ("prior", dict(bits=4800.0), 0),
        ("prior", dict(bits=float("nan")), 0),
        ("causality", dict(leaks=0, moved=3, first_leak=""), 15),
        ("causality", dict(leaks=1, moved=3, first_leak="there"), 0),
        ("causality", dict(leaks=0, moved=0, first_leak=""), 0),
        ("generation", dict(frames=8, different=8, nats=6.49), 10),
        ("generation", dict(frames=8, different=8, nats=6.5), 0),
        ("generation", dict(frames=8, different=7, nats=1.0), 0),
        ("compression", dict(ratio=14.0, mse=0.1, difference=0.0), 5),
        ("compression", dict(ratio=10.75, mse=0.01, difference=0.0), 2.5),
        ("compression", dict(ratio=7.5, mse=0.01, difference=0.0), 0),
        ("compression", dict(ratio=99.0, mse=0.11, difference=0.0), 0),
        ("compression", dict(ratio=99.0, mse=0.01, difference=0.01), 0),
    ],
)
def test_points(name, measures, points):
    (part,) = [part for part in parts.PARTS if part.name == name]
    fraction, reason = part.score(measures)
    assert fraction * part.out_of == pytest.approx(points)
    assert bool(reason) == (fraction < 1)


def test_the_parts_are_worth_100():
    assert sum(part.out_of for part in parts.PARTS if not part.extra) == 100
    assert [part.name for part in parts.PARTS] == list(measure.MEASURES)


# --- measures --------------------------------------------------------------------------------------------------------


def test_measures_against_formulas(data):
    x = torch.from_numpy(data.frames).float() / 255 - 0.5
    found = measure.autoencoder(built(AE.replace("return x.reshape", "return 0.5 * x.reshape")), data)
    assert found["mse"] == pytest.approx((x / 2).square().mean().item())
    assert (found["channels"], found["numbers_per_image"]) == (75, 20 * 30 * 3)

    tokens = built(BSQ).encode_index(x)
    found = measure.tokenizer(built(BSQ.replace("0.5) * 15", "0.5) * 14")), data)
    assert found["mse"] > 1e-4 and found["tokens"] == 24
    assert measure.tokenizer(built(BSQ), data)["mse"] < 1e-12

    found = measure.prior(built(BSQ), built(AUTOREGRESSIVE), data)
    logp = built(AUTOREGRESSIVE)(tokens)[0].log_softmax(-1)
    bits = -logp.gather(-1, tokens[..., None]).sum() / np.log(2) / 12
    assert found["bits"] == pytest.approx(bits.item(), rel=1e-5) and found["n_tokens"] == 16


def test_images_of_incomplete_patches_are_cropped():
    data = Data(grey_squares(3)[:, :18, :27], np.full(3, 1000))
    padding = "x = torch.nn.functional.pad(x, (0, 0, 0, 3, 0, 2)); B, H, W, _ = x.shape"
    assert measure.autoencoder(built(AE.replace("B, H, W, _ = x.shape", padding)), data)["mse"] < 1e-12


@pytest.mark.parametrize(
    "part, old, new, reason",
    [
        ("ae", "return x.reshape", "return x.sqrt().reshape", "NaN or infinity in the output of decode"),
        ("ae", "h * self.P, w * self.P, 3)", "w * self.P, h * self.P, 3)", "decode must return images (12, 20, 30, 3)"),
        ("ae", ".flatten(3)", ".flatten(2)", "encode must return (B,h,w,channels), not a tensor (12, 4, 450)"),
        ("ae", "B, h, w, _ = z.shape", "1 / 0", "decode failed: ZeroDivisionError"),
        ("bsq", ".round().long()", ".round()", "encode_index must return integers, not torch.float32"),
        ("bsq", ".clamp(0, 15)", "- 9", "encode_index returned the negative index -9"),
        ("bsq", ".clamp(0, 15)", ".clamp(0, 15).flatten(1)", "not a tensor (12, 24)"),
        ("bsq", ".repeat_interleave(5, 1)", "", "decode_index must return images"),
        ("autoregressive", ".view(*tokens.shape, self.K), {}", ".view(*tokens.shape, self.K)", "(logits, dict)"),
        ("autoregressive", ".view(*tokens.shape, self.K), {}", ", {}", "not a tensor (12, 24, 16)"),
        ("autoregressive", "logits[:, 1:] = 2.0", "logits[0, 7, 3] = torch.nan; logits[:, 1:] += 2.0",
         "NaN or infinity in the logits"),
        ("autoregressive", "K = 16", "K = 15", "no logit"),
    ],
)  # fmt: skip
def test_wrong_outputs_are_named(data, part, old, new, reason):
    source = dict(ae=AE, bsq=BSQ, autoregressive=AUTOREGRESSIVE)[part]
    assert old in source
    model = built(source.replace(old, new))
    if part == "autoregressive" and "K = 15" in new:  # one_hot itself would refuse
        model.forward = lambda tokens: (torch.zeros(*tokens.shape, 15), {})
    with pytest.raises(Failed) as failed:
        if part == "ae":
            measure.autoencoder(model, data)
        elif part == "bsq":
            measure.tokenizer(model, data)
        else:
            measure.prior(built(BSQ), model, data)
    assert reason in str(failed.value)


class Leaking(torch.nn.Module):
    """The fake prior, but the logits at flat position ``to`` depend a little on the token at ``of``."""

    def __init__(self, to, of, weight=0.01):
        super().__init__()
        self.prior, self.to, self.of, self.weight = built(AUTOREGRESSIVE), to, of, weight

    def forward(self, tokens):
        logits, _ = self.prior(tokens)
        logits.flatten(1, 2)[:, self.to, 5] += self.weight * tokens.flatten(1)[:, self.of]
        return logits, {}


@pytest.mark.parametrize("h, w", [(4, 6), (20, 30)])
def test_a_leak_at_a_single_position_is_found(h, w):
    data = Data(grey_squares(2, h, w), np.full(2, 1000))
    assert measure.causality(built(BSQ), built(AUTOREGRESSIVE), data)["leaks"] == 0
    N = h * w
    for to, of in [(N // 2, N // 2), (N // 2, N // 2 + 1), (0, 0), (0, N - 1), (N - 1, N - 1), (w, w + 1)]:
        found = measure.causality(built(BSQ), Leaking(to, of), data)
        assert found["leaks"] >= 1, (to, of)
        assert f"row {to // w}, column {to % w} " in found["first_leak"]
        assert found["perturbations"] >= 100


def test_a_dependence_on_the_past_is_not_a_leak(data):
    assert measure.causality(built(BSQ), Leaking(9, 8), data)["leaks"] == 0
    found = measure.causality(built(BSQ), built(AUTOREGRESSIVE), data)
    assert 0 < found["moved"] < found["perturbations"]  # nothing follows the last position


def test_causality_of_odd_priors(data):
    constant = built(AUTOREGRESSIVE)
    constant.forward = lambda tokens: (torch.zeros(*tokens.shape, 16), {})
    found = measure.causality(built(BSQ), constant, data)
    assert (found["leaks"], found["moved"]) == (0, 0)
    noisy = built(AUTOREGRESSIVE)
    noisy.forward = lambda tokens: (torch.rand(*tokens.shape, 16), {})
    with pytest.raises(Failed, match="differ from call to call"):
        measure.causality(built(BSQ), noisy, data)
    masked = Leaking(9, 9)  # a mask's huge logit must not hide a leak
    masked.prior.forward = lambda tokens: (torch.full((*tokens.shape, 16), -1e9).index_fill(-1, torch.arange(9), 0), {})
    assert measure.causality(built(BSQ), masked, data)["leaks"]


def test_generation(data):
    found = measure.generation(built(BSQ), built(AUTOREGRESSIVE), data)
    assert (found["frames"], found["different"]) == (8, 8) and 0 < found["nats"] < np.log(16)
    model = built(AUTOREGRESSIVE)
    model.generate = lambda B, h, w, device: torch.zeros(B, h, w, dtype=torch.long)
    assert measure.generation(built(BSQ), model, data)["different"] == 1
    model.generate = lambda B, h, w, device: torch.zeros(B, w, h, dtype=torch.long)
    with pytest.raises(Failed, match=r"generate must return \(8, 4, 6\)"):
        measure.generation(built(BSQ), model, data)


def test_compression(data):
    names = {}
    exec(COMPRESSOR, names)
    models = built(BSQ), built(AUTOREGRESSIVE)
    found = measure.compression(*models, data, Compressor=names["Compressor"])
    assert found["ratio"] == pytest.approx(1000 / 26) and found["difference"] == 0 and found["images"] == 12

    class Lossy(names["Compressor"]):
        def compress(self, x):
            return super().compress(x)[:-1] + b"\0"

    class Remembering(names["Compressor"]):  # keeps the image and stores next to nothing
        def compress(self, x):
            self.image = self.tokenizer.decode_index(self.tokenizer.encode_index(x[None]))[0]
            return b"x"

        def decompress(self, data):
            return self.image

    assert measure.compression(*models, data, Compressor=Lossy)["difference"] > 0.05
    with pytest.raises(Failed, match="decompress failed: AttributeError"):
        measure.compression(*models, data, Compressor=Remembering)


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


# --- the sandbox -----------------------------------------------------------------------------------------------------

FAULTS = """
import atexit, ctypes, os, signal, socket, subprocess, sys, threading, time

def good(progress, n): progress(n, n); return {"n": n}
def leave(progress): sys.exit("enough")
def leave_hard(progress): os._exit(0)
def crash(progress): ctypes.string_at(0)
def loop(progress):
    while True: pass
def deaf(progress):
    signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(1000)
def fail(progress): raise ValueError("first line\\nsecond \\x1b[31m line")
def flood(progress):
    for i in range(300):
        print("x" * 100_000); print("y" * 1000, file=sys.stderr)
    print("the end")
    return {}
def close(progress):
    for fd in (0, 1, 2): os.close(fd)
    return {"n": 1}
def late(progress):
    atexit.register(time.sleep, 1000)
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return {"n": 1}
def twice(progress):  # both copies come back to the sandbox
    mine = os.fork() != 0
    if mine: time.sleep(0.3)
    return {"n": 1 if mine else 2}
def linger(progress):  # leaves children, in the process group and out of it
    for leader in (False, True):
        if os.fork() == 0:
            if leader: os.setsid()
            if os.fork() == 0: time.sleep(1000)
            os._exit(0)
    return {"n": 1}
def bomb(progress):
    while True: os.fork()
def kill(progress): os.kill(os.getppid(), signal.SIGKILL)
def shell(progress): subprocess.run(["true"])
def c_shell(progress): return {"code": ctypes.CDLL(None).system(b"true")}
def c_write(progress, path): return {"stream": bool(ctypes.CDLL(None).fopen(path.encode(), b"w"))}
def connect(progress, port): socket.socket().connect(("127.0.0.1", port))
def listen(progress): socket.socket().bind(("127.0.0.1", 0))
def look_up(progress): socket.getaddrinfo("localhost", 80)
def write(progress, path): open(path, "w")
def append(progress, path): os.open(path, os.O_WRONLY | os.O_APPEND)
def remove(progress, path): os.remove(path)
def rename(progress, path): open("mine", "w").close(); os.replace("mine", path)
def mode(progress, path): os.chmod(path, 0)
def folder(progress, path): os.mkdir(path + ".d")
def link(progress, path): os.symlink(path, "link"); open("link", "a")
def hard_link(progress, path): os.link(path, "link"); open("link", "a")
def fd_remove(progress, path):
    os.remove(os.path.basename(path), dir_fd=os.open(os.path.dirname(path), os.O_RDONLY))
def allowed(progress):
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        open(os.path.join(folder, "x"), "w").close()
    with open(os.devnull, "w") as null: null.write("x")
    os.makedirs(os.path.expanduser("~/.cache/deep"))
    open("here", "w").close(); os.rename("here", "there"); os.remove("there")
    return {"home": os.path.expanduser("~"), "secret": os.environ.get("SECRET"), "cwd": os.getcwd()}
"""


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "outside"
    path.write_text("kept")
    return path


@pytest.fixture
def run(tmp_path):
    (tmp_path / "submission").mkdir()
    (tmp_path / "submission/faults.py").write_text(FAULTS)

    def run(name, time_limit=300, **arguments):
        scratch = tmp_path / f"scratch-{name}"
        return sandbox.run(f"faults:{name}", arguments, tmp_path / "submission", scratch, time_limit)

    return run


def left_behind(tmp_path):
    """Processes of a sandbox below this folder that still run (Linux; none elsewhere)."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"\0HOME={tmp_path}".encode() in b"\0" + environment.read_bytes():
                found.append(environment.parent.name)
    return found


def test_a_good_function(run, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    assert run("good", n=3).value == {"n": 3}
    outcome = run("allowed")
    assert outcome.reason == "" and outcome.value["secret"] is None
    assert outcome.value["home"] == outcome.value["cwd"] and "scratch-allowed" in outcome.value["cwd"]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("leave", "called sys.exit(enough)"),
        ("leave_hard", "ended before it reported (exit code 0)"),
        ("missing", "AttributeError: module 'faults' has no attribute 'missing'"),
        pytest.param("crash", "crashed (SIGSEGV)", marks=pytest.mark.skipif(os.name == "nt", reason="signals")),
    ],
)
def test_ends(run, name, reason):
    outcome = run(name)
    assert (outcome.value, outcome.reason) == (None, reason)


def test_a_failure_reports_one_line_and_shows_the_rest(run):
    outcome = run("fail")
    assert outcome.reason == "ValueError: first line"
    assert "Traceback" in outcome.output and "second ?[31m line" in outcome.output


@pytest.mark.parametrize("name", ["loop", "deaf"])
def test_endless(run, tmp_path, name):
    outcome = run(name, time_limit=1.5)
    assert outcome.reason == "stopped at the time limit of 1.5 s" and outcome.value is None
    assert not left_behind(tmp_path)


def test_prints_disturb_nothing(run):
    outcome = run("flood")
    assert outcome.value == {} and outcome.output.rstrip().endswith("the end")
    assert len(outcome.output) <= sandbox.TAIL
    assert run("close").value == {"n": 1}


def test_what_comes_after_the_answer_is_cut_off(run):
    assert run("late").value == {"n": 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks(run, tmp_path):
    assert run("twice").value == {"n": 1}
    assert run("linger").value == {"n": 1}
    assert not left_behind(tmp_path)
    outcome = run("bomb")
    assert outcome.value is None and "no more than 32 forks" in outcome.output
    assert not left_behind(tmp_path)


@pytest.mark.parametrize("name", ["kill", "shell"])
def test_other_processes(run, name):
    outcome = run(name)
    assert outcome.reason.startswith("PermissionError") and "The grader" in outcome.reason


WRITING = ["write", "append", "remove", "rename", "mode", "folder", "link", "hard_link", "fd_remove"]


@pytest.mark.parametrize("name", WRITING)
def test_no_writing_outside(run, outside, name):
    mode = outside.stat().st_mode
    outcome = run(name, path=str(outside))
    if name == "fd_remove":  # where reading is confined too, it does not even come so far
        assert outcome.reason.startswith(("PermissionError", "FileNotFoundError"))
    else:
        assert outcome.reason.startswith("PermissionError") and "The grader allows no writing outside" in outcome.reason
    assert outside.read_text() == "kept" and outside.stat().st_mode == mode
    assert not Path(f"{outside}.d").exists()


def test_no_network(run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        outcome = run("connect", port=server.getsockname()[1])
        assert "The grader does not allow the network" in outcome.reason
        with pytest.raises(TimeoutError):
            server.accept()
    for name in ("listen", "look_up"):
        assert "The grader does not allow the network" in run(name).reason


def test_c_code_is_confined_where_the_kernel_does_it(run, tmp_path):
    outcome = run("c_write", path=str(tmp_path / "by_c"))
    if "Landlock" not in outcome.guards:
        pytest.skip("this kernel has no Landlock: C code is not confined")
    assert outcome.value == {"stream": False} and not (tmp_path / "by_c").exists()
    assert run("c_shell").value["code"] != 0


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_a_good_submission(tmp_path, images):
    folder = package(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "ab123.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"homework/{path.name}")
    done = grade(tmp_path, "ab123.zip", "--data", images, "--json", "report.json", "-v")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert [part["points"] for part in report["parts"]] == [30, 30, 15, 15, 10, 5]
    assert (report["total"], report["extra"], report["official"], report["images"]) == (100, 5, True, 12)
    assert all(not part["reason"] for part in report["parts"])
    assert "100.0 / 100   +5.0 extra" in done.stdout and "not the official points" not in done.stdout
    assert "audit hook" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ab123.zip", "in", "report.json"]  # no scratch left


def test_trained_copies_are_graded_before_shipped_models(tmp_path, images):
    """A submission of this package: the report names the checkpoints that count, and options find those of both folders."""
    shipped = tmp_path / "homework/pretrained"
    shutil.copytree(checkpoint.PACKAGE, tmp_path / "homework", ignore=shutil.ignore_patterns("*.pth", "__pycache__"))
    for name in "PatchAutoEncoder", "BSQPatchAutoEncoder", "AutoregressiveModel":
        checkpoint.save(build(name), shipped / f"{name}.pth")
    checkpoint.save(build("PatchAutoEncoder", bottleneck=5), tmp_path / "homework/PatchAutoEncoder.pth")
    checkpoint.save(build("VQPatchAutoEncoder"), shipped / "VQPatchAutoEncoder.pth")
    done = grade(tmp_path, ".", "--data", images, "--json", "report.json", "--tokenizer", "VQPatchAutoEncoder.pth")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    models = ["pretrained/AutoregressiveModel.pth", "pretrained/BSQPatchAutoEncoder.pth", "PatchAutoEncoder.pth",
              "pretrained/VQPatchAutoEncoder.pth"]  # fmt: skip
    assert report["models"] == models and f"models: {', '.join(models)}\n" in done.stdout
    assert report["checkpoints"] == {"bsq": "pretrained/VQPatchAutoEncoder.pth"}
    measures = {part["name"]: part["measures"] for part in report["parts"]}
    assert measures["auto-encoder"]["channels"] == 5 and measures["prior"]["n_tokens"] == 16
    assert all(part["points"] == part["out_of"] for part in report["parts"] if part["name"] in ("causality", "generation"))


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
    package(tmp_path, init="", ae="import ctypes\nctypes.string_at(0)", bsq=noise + BSQ, autoregressive=prior)
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
    assert "noise" in done.stdout and not (tmp_path / "evil").exists()
    assert not left_behind(tmp_path)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["missing.zip"], "There is no submission missing.zip."),
        (["two.zip"], "more than one top folder"),
        ([], "required: submission"),
        (["in", "--time_limit", "0"], "invalid number of seconds"),
        (["in", "--time_limit", "soon"], "invalid number of seconds"),
        (["in", "--data", "nowhere"], "There are no images in nowhere/valid or nowhere/sample"),
        (["in", "--json", "nowhere/report.json"], "There is no folder"),
        (["in", "--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_mistakes_take_one_sentence(tmp_path, arguments, sentence):
    package(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("homework/a.py", "")
        archive.writestr("other/a.py", "")
    done = grade(tmp_path, *arguments)
    assert done.returncode == 1
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "two.zip"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_stopping_the_grader_leaves_nothing(tmp_path, images):
    package(tmp_path, ae="import time; time.sleep(1000)")
    process = subprocess.Popen([sys.executable, "-m", "grader", ".", "--data", str(images)], cwd=tmp_path,
                               env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
                               stdout=subprocess.PIPE)  # fmt: skip
    process.stdout.readline()
    deadline = time.monotonic() + 300
    while not left_behind(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 143
    assert sorted(path.name for path in tmp_path.iterdir()) == ["homework"]
    assert not left_behind(tmp_path)
