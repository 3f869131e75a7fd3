"""The grader: scoring in this process, the sandbox on small faults, and whole runs on tiny fake submissions."""

import contextlib
import io
import os
import socket
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from grader import sandbox, submission
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
