"""Whole runs of the command on tiny packages, and on one that owes nothing to this package."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, build
from fakes import AUTOREGRESSIVE, BSQ, package, write_images

from homework.core import checkpoint


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data"))


def grade(folder, *arguments):
    # as for a user: from another folder than the checkout
    return subprocess.run([sys.executable, "-m", "grader", *map(str, arguments)], cwd=folder, text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
                          timeout=1200)  # fmt: skip


def left_behind(tmp_path):
    """Processes of a sandbox below this folder that still run (Linux; none elsewhere)."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"\0HOME={tmp_path}".encode() in b"\0" + environment.read_bytes():
                found.append(environment.parent.name)
    return found



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
