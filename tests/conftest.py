"""What the tests share: the checkout, tiny models, a folder of tiny real frames, and ways to run a command."""

import contextlib
import gzip
import importlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import programs
import pytest
import torch
from hypothesis import settings
from PIL import Image
from tensorboard.summary.writer import event_file_writer

from homework.core import cli
from homework.core.files import write
from homework.core.registry import model_class
from homework.datasets import mnist
from homework.priors.cascade import Cascade

ROOT = Path(__file__).parents[1]
SIZE = (20, 30)  # of the frames here, in pixels
GRID = (4, 6)  # of the same frames in patches of 5
K = 16

# constructor arguments of a tiny model, and a batch for it, by name: every name in the registry needs an entry
_AE = {"latent_dim": 8, "encoder_blocks": 1, "decoder_blocks": 1, "detail": 4}
TINY = {
    "PatchAutoEncoder": {"patch_size": 5, "bottleneck": 6, **_AE},
    "ConvAutoEncoder": {"min_channel": 4, "max_channel": 6, "latent_channel": 3},
    "BSQPatchAutoEncoder": {"patch_size": 5, "codebook_bits": 4, **_AE},
    "VQPatchAutoEncoder": {"patch_size": 5, "n_tokens": K, "code_dim": 4, **_AE},
    "VQVAE": {"height": SIZE[0], "width": SIZE[1], "n_tokens": K, "code_dim": 4, "stride": 5, **_AE},
    "SOM": {"n_codes": K, "patch": 1, "height": GRID[0], "width": GRID[1],
            "autoencoder": {"model": "PatchAutoEncoder", "config": {"patch_size": 5, "bottleneck": 3, **_AE}}},
    "AutoregressiveModel": {"d_latent": 8, "n_tokens": K, "n_layers": 2, "n_heads": 2, "height": GRID[0], "width": GRID[1]},
    "PixelCNN": {"c_hidden": 8, "num_res_block": 2, "kernel_size": 5},
    "CascadeStage": {"in_dim": 8, "hidden_dim": 16, "self_attn_heads": 2, "cross_attn_heads": 2, "sliding_window": 9,
                     "n_tokens": K, "height": GRID[0], "width": GRID[1], "coarse_tokens": 5, "coarse_height": 2,
                     "coarse_width": 3},
    "GatedPixelCNN": {"c_hidden": 6, "n_layers": 2, "n_tokens": K, "height": GRID[0], "width": GRID[1], "first_kernel": 5},
}  # fmt: skip

settings.register_profile("project", deadline=None, max_examples=50)  # a busy machine is not a failure
settings.load_profile("project")
# logs are read in the order of their names, which end in a number: of two in one second .10 would come before .9
event_file_writer._global_uid = event_file_writer.AtomicCounter(10**9)
torch.set_num_threads(1)  # the models are tiny, and results must not depend on the machine's cores


def build(name: str, seed: int = 0, **options) -> torch.nn.Module:
    """A tiny model of the registry."""
    torch.manual_seed(seed)
    return model_class(name)(**TINY[name] | options)


def batch_for(model: torch.nn.Module, B: int = 3, seed: int = 0) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """What ``model.loss`` takes: images (B,20,30,3), features (B,4,6,3), grids (B,4,6), or coarse grids (B,2,3), or vectors
    (B,4,6,d) in place of these, and such grids."""
    generator = torch.Generator().manual_seed(seed)
    if model.data == "images":
        return torch.rand(B, *SIZE, 3, generator=generator) - 0.5
    if model.data == "features":
        return torch.randn(B, *GRID, 3, generator=generator)
    grids = torch.randint(model.n_tokens, (B, *GRID), generator=generator)
    if model.data == "multiscale":
        if model.context_dim:
            dtype = model.head.weight.dtype
            return torch.randn(B, *GRID, model.context_dim, generator=generator).to(dtype), grids
        size = model.config["coarse_height"], model.config["coarse_width"]
        return torch.randint(model.config["coarse_tokens"], (B, *size), generator=generator), grids
    return grids


def run(*arguments: object, cwd: Path, processes: int = 1, fresh: bool = False, options: tuple[str, ...] = (),
        **env: str) -> subprocess.CompletedProcess:  # fmt: skip
    """``python ARGUMENTS`` in a process of its own, forked off one that has imported PyTorch, unless it must be ``fresh``;
    with ``processes`` in several, as torchrun starts them, or by ``torchrun OPTIONS ARGUMENTS`` if fresh or with options."""
    words, environment = [*map(str, arguments)], os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
    if not fresh and not options and (words[0] == "-m" or words[0].endswith(".py")):
        return programs.run(words, cwd, environment, processes)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *options]
    command = [sys.executable, *(torchrun if processes > 1 else []), *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=programs.SECONDS)


@pytest.fixture
def command(monkeypatch, capsys):
    """``command("train", "PatchAutoEncoder", ...)``: the command line in this process -> returncode, stdout, stderr."""

    def of_module(functions: dict, module: str, arguments: tuple):
        if module == "som":
            return {name: functions[name] for name in ("fit", "prune")}
        if module == "generation":
            return {"cascade": functions["cascade"]} if arguments[:1] == ("cascade",) else functions["generate"]
        if module == "evaluate" and arguments[:1] == ("samples",):
            return {"samples": functions["samples"]}
        if module == "compress" and arguments[:1] in (("decompress",), ("info",)):
            return {name: functions[name] for name in ("decompress", "info")}
        return functions[module]

    def call(module: str, *arguments: object) -> SimpleNamespace:
        functions = vars(importlib.import_module(f"homework.{module}"))
        monkeypatch.setattr(sys, "argv", [f"{module}.py", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main(f"python -m homework.{module}", of_module(functions, module, arguments))
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return call


def sentence(done) -> str:
    """The one sentence with which a command failed; asserts that it failed so, by exit code 1 and without a traceback."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.strip().splitlines()[-1] == lines[0], done.stderr
    return lines[0].removeprefix("error: ")


def files(folder: Path) -> set[str]:
    """All files under ``folder``, relative to it."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def skip_if_ignored(sig: str) -> None:
    """Skips a test of a signal that programs which the tests start ignore, as under nohup."""
    if signal.getsignal(getattr(signal, sig)) == signal.SIG_IGN:
        pytest.skip(f"the tests were started so that {sig} is ignored")


@contextlib.contextmanager
def file_size_limit(n: int):
    """No file may grow beyond ``n`` bytes: the nearest thing to a full disk that needs no rights."""
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Decoded images are cached in a folder of the tests, not in the user's."""
    with pytest.MonkeyPatch.context() as context:
        context.setenv("HOMEWORK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A data folder: train/ (24) and valid/ (8) hold 20x30 pieces of the sample frames as JPEG, next to
    tokenized_train.pth and tokenized_valid.pth with 4x6 grids of 16 codes (the grey levels of the same pieces)."""
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    frames = [np.asarray(Image.open(p).convert("RGB")) for p in sorted((ROOT / "data" / "sample").glob("*.jpg"))]
    for split, n in ("train", 24), ("valid", 8):
        (folder / split).mkdir()
        grids = []
        for i in range(n):
            frame = frames[draw.integers(len(frames))]
            top, left = (draw.integers(full - part) for full, part in zip(frame.shape, SIZE, strict=False))
            piece = frame[top : top + SIZE[0], left : left + SIZE[1]]
            Image.fromarray(piece).save(folder / split / f"{i:03d}.jpg", quality=90)
            grey = piece.mean(axis=2).reshape(GRID[0], 5, GRID[1], 5).mean(axis=(1, 3))  # (20,30) -> (4,5,6,5) -> (4,6)
            grids.append((grey * K / 256).astype(np.uint8))
        tokens = {"tokens": torch.from_numpy(np.stack(grids)), "n_tokens": K, "names": [f"{i}" for i in range(n)]}
        write(tokens, folder / f"tokenized_{split}.pth")
    return folder


@pytest.fixture(scope="session")
def real_frames(tmp_path_factory) -> list[Path]:
    """32 real validation frames (100x150), from the checkout or from the zip next to it; without either, a skip."""
    folder, archive = ROOT / "data" / "valid", ROOT.parent / "shared" / "data" / "supertux_data.zip"
    if folder.is_dir():
        return sorted(folder.glob("*.jpg"))[::40][:32]
    if not archive.is_file():
        pytest.skip("there are no real frames here: neither data/valid nor the course's zip")
    with zipfile.ZipFile(archive) as z:
        names = sorted(n for n in z.namelist() if Path(n).parent.name == "valid" and n.endswith(".jpg"))[::40][:32]
        folder = tmp_path_factory.mktemp("real")
        return [Path(z.extract(n, folder)) for n in names]


# --- a server -------------------------------------------------------------------------------------------------------------


class Server(BaseHTTPRequestHandler):
    """Serves ``content``, or the files of the folder ``content``; ``ranges``: knows Range; ``cut``: breaks off after so many
    bytes; ``status``: an error."""

    content, ranges, cut, status = b"", True, None, None

    def do_GET(self):
        content = self.content
        if isinstance(content, Path):
            content = content / self.path[1:]
            content = content.read_bytes() if content.is_file() else None
        if self.status or content is None:
            return self.send_error(self.status or 404)
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if self.ranges else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Starts a Server with the given settings on this machine; returns its URL."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(**settings):
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), type("Set", (Server,), settings)))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


# --- a browser -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="there is no playwright; pip install playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium; apt install chromium, or install Google Chrome")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


# --- a small MNIST --------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def digits(n: int, seed: int = 0) -> np.ndarray:
    """Noise (n,28,28), half of it quite black."""
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (n, 28, 28), dtype=np.uint8) * draw.integers(0, 2, (n, 28, 28), dtype=np.uint8)


def write_mnist(folder: Path, zipped: bool = True) -> Path:
    """A small MNIST: 32 digits for training and validation, 9 for testing."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(mnist.FILES):
        n = 9 if name.startswith("t10k") else 32
        content = idx(digits(n, seed=i) if "images" in name else np.arange(n, dtype=np.uint8) % 10)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content, 1) if zipped else content)
    return folder


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A data folder with a small MNIST, whose first 24 digits are for training."""
    monkeypatch.setattr(mnist, "N_TRAIN", 24)
    write_mnist(tmp_path / "data" / "mnist")
    return tmp_path / "data"


@pytest.fixture
def stages(folder, monkeypatch):
    """Those of the cascade in the module's ``folder``, which becomes the current one."""
    monkeypatch.chdir(folder)
    return json.loads((folder / "cascade.json").read_text())["stages"]


@pytest.fixture
def cascade(stages):
    return Cascade(stages)
