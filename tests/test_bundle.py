"""bundle.py: what goes into the zip, and what is refused."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from conftest import ROOT, build

from grader import frames, submission
from grader.measure import Data, Measures
from grader.remote import Processes
from grader.sandbox import Limits
from homework.core import checkpoint

SCRIPT = ROOT / "bundle.py"


def bundle(folder, *arguments):
    command = [sys.executable, "-S", str(SCRIPT), *map(str, arguments)]  # -S: the standard library alone
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "homework"
    for name in ("__init__.py", "deep/model.py", "X.pth", "__pycache__/a.pyc", "deep/__pycache__/b.pyc", "stray.pyc",
                 ".hidden", ".git/config", ".ipynb_checkpoints/x.py", "X.pth.12.tmp", "run.log", "logs/events",
                 "events.out.tfevents.1", "data.zip.part"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_only_what_belongs_in(package):
    done = bundle(package.parent, "homework", "ab123")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(package.parent / "ab123.zip") as archive:
        names = archive.namelist()
        assert names == ["homework/X.pth", "homework/__init__.py", "homework/deep/model.py"]
        assert archive.read("homework/deep/model.py") == b"deep/model.py"
    assert all(name.removeprefix("homework/") in done.stdout for name in names) and "MB  ab123.zip" in done.stdout
    assert sorted(path.name for path in package.parent.iterdir()) == ["ab123.zip", "homework"]


def test_a_trained_copy_replaces_the_shipped_model(package):
    (package / "pretrained").mkdir()
    for name in "X.pth", "Y.pth":
        (package / "pretrained" / name).write_text("shipped")
    done = bundle(package.parent, "homework", "id")
    with zipfile.ZipFile(package.parent / "id.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".pth")]
        assert names == ["homework/X.pth", "homework/pretrained/Y.pth"]
        assert archive.read("homework/X.pth") == b"X.pth"
    assert "X.pth: the trained copy is packed, the shipped pretrained/X.pth is not" in done.stdout.splitlines()
    assert "Y.pth: " not in done.stdout


@pytest.mark.parametrize("trained, channels", [(False, 128), (True, 6)])
def test_the_shipped_package_is_packed_and_graded(tmp_path, trained, channels):
    """It fits, and the auto-encoder that is graded is the trained copy where there is one, else the shipped model."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "homework", tmp_path / "homework", ignore=lambda folder, names: ignored(folder, names) | {
        name for name in names if name.endswith(".pth") and Path(folder).name == "homework"})  # fmt: skip
    if trained:
        checkpoint.save(build("PatchAutoEncoder", patch_size=25), tmp_path / "homework/PatchAutoEncoder.pth")
    done = bundle(tmp_path, "homework", "id")
    assert done.returncode == 0, done.stderr
    (tmp_path / "out").mkdir()
    submission.unpack(tmp_path / "id.zip", tmp_path / "out")
    assert (tmp_path / "out/homework/core/checkpoint.py").is_file() and (tmp_path / "out/homework/py.typed").is_file()
    models = submission.models(tmp_path / "out")
    assert ("PatchAutoEncoder.pth" in models, "pretrained/PatchAutoEncoder.pth" in models) == (trained, not trained)
    images, sizes, _ = frames.read(ROOT / "data")
    limits = Limits(cpu_seconds=300, wall_seconds=300, memory=16 << 30, processes=256, disk=1 << 30)
    processes = Processes(tmp_path / "out", tmp_path / "scratch", limits, images.shape[1:3])
    found = Measures(Data(images[:4], sizes[:4]), processes.start).autoencoder()
    assert found["channels"] == channels
    assert trained or found["mse"] < 0.01


def test_same_files_same_bytes(package):
    bundle(package.parent, "homework", "a")
    for path in package.rglob("*"):
        os.utime(path, (1e9, 1e9))
    os.chmod(package / "X.pth", 0o600)
    bundle(package.parent, "homework", "b")
    assert (package.parent / "a.zip").read_bytes() == (package.parent / "b.zip").read_bytes()


def test_it_is_packed_as_well_as_can_be(package):
    content = (ROOT / "bundle.py").read_bytes() * 20
    (package / "long.py").write_bytes(content)
    bundle(package.parent, "homework", "a")
    smallest = zlib.compressobj(9, zlib.DEFLATED, -15)
    with zipfile.ZipFile(package.parent / "a.zip") as archive:
        size = archive.getinfo("homework/long.py").compress_size
    assert size == len(smallest.compress(content) + smallest.flush())


def test_the_grader_takes_it_whatever_the_folder_is_called(package, tmp_path):
    package.rename(tmp_path / "mine")
    (tmp_path / "mine/link.pth").symlink_to(tmp_path / "mine/X.pth")  # packed as a file: the grader refuses links
    assert bundle(tmp_path, "mine", "id").returncode == 0
    (tmp_path / "out").mkdir()
    submission.unpack(tmp_path / "id.zip", tmp_path / "out")
    assert (tmp_path / "out/homework/link.pth").read_text() == "X.pth"
    assert (tmp_path / "out/homework/deep/model.py").is_file()


def test_what_is_no_file_is_not_replaced(package, tmp_path):
    os.mkfifo(tmp_path / "ab123.zip")
    done = bundle(tmp_path, "homework", "ab123")
    assert done.returncode == 1 and done.stderr.startswith("error: ab123.zip is a folder, a pipe or a device, which stays")
    assert (tmp_path / "ab123.zip").is_fifo()


def test_too_large(package):
    (package / "large.pth").write_bytes(os.urandom(20_100_000))
    (package.parent / "id.zip").write_text("the one from before")
    done = bundle(package.parent, "homework", "id")
    assert done.returncode == 1
    assert "20 MB are allowed" in done.stderr
    assert re.fullmatch(r" *20\.1\d MB  homework/large\.pth", done.stderr.splitlines()[1])
    assert (package.parent / "id.zip").read_text() == "the one from before"
    assert not list(package.parent.glob("*.tmp"))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["missing", "id"], "There is no folder missing."),
        (["homework", "../id"], "must be a plain name"),
        (["homework", "id.zip"], "must be a plain name"),
        (["homework/logs", "id"], "holds no Python files"),
        (["homework"], "required: ID"),
        (["", "id"], "The folder is an empty text; name that of the package"),
    ],
)
def test_mistakes_take_one_sentence(package, arguments, sentence):
    done = bundle(package.parent, *arguments)
    assert done.returncode == 1
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(package.parent.glob("*.zip"))


@pytest.mark.parametrize("where", ["gone.pth", "deep"])
def test_a_link_to_nothing_or_to_a_folder_is_named(package, where):
    (package / "model.pth").symlink_to(package / where)
    done = bundle(package.parent, "homework", "id")
    assert done.returncode == 1 and "model.pth" in done.stderr
