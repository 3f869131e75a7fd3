"""``python -m grader``: mistakes, what lies around it, and its end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

NAMES = "__init__", "ae", "bsq", "autoregressive"


@pytest.fixture
def images(tmp_path_factory):
    """A data folder with two frames in valid/."""
    root = tmp_path_factory.mktemp("data")
    (root / "valid").mkdir()
    for i in range(2):
        Image.fromarray(np.full((20, 30, 3), 99 * i, np.uint8)).save(root / f"valid/{i}.jpg")
    return root


def package(folder, ae):
    (folder / "homework").mkdir(parents=True)
    for name in NAMES:
        (folder / f"homework/{name}.py").write_text(ae if name == "ae" else "")
    return folder / "homework"


def environment(folder, **more):
    return os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)} | more


def grade(folder, *arguments, **more):
    # as for a user: from another folder than the checkout
    return subprocess.run([sys.executable, "-m", "grader", *map(str, arguments)], cwd=folder, text=True,
                          capture_output=True, env=environment(folder, **more), timeout=600)  # fmt: skip


def left_behind(folder):
    """Processes of a sandbox below this folder (Linux)."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [file.parent.name] * (f"{folder}/grader-" in file.read_bytes().decode("utf-8", "replace"))
        except OSError:
            pass
    return found


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["missing.zip"], "There is no submission missing.zip."),
        (["two.zip"], "more than one top folder"),
        (["no_code.zip"], "no_code.zip holds no folder homework/ with an __init__.py."),
        (["escape\x1b[31m.zip"], "There is no submission escape?[31m.zip."),
        ([], "required: submission"),
        ([""], "The submission is an empty text; name a file or folder, or . for this folder."),
        (["in", "--json", ""], "The json is an empty text"),
        (["in", "--data="], "The data is an empty text"),
        (["in", "--time_limit", "0"], "invalid number of seconds"),
        (["in", "--time_limit", "soon"], "invalid number of seconds"),
        (["in", "--data", "nowhere"], "There are no images in nowhere/valid or nowhere/sample"),
        (["in", "--json", "nowhere/report.json"], "There is no folder"),
        (["in", "--json", "."], "The report cannot be written to ., which is a folder"),
        (["in", "--json", "pipe"], "The report cannot be written to pipe, which is a folder, a pipe or a device"),
        (["in", "--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_mistakes_take_one_sentence(tmp_path, arguments, sentence):
    package(tmp_path / "in", ae="")
    for name, files in ("two", ("homework/a.py", "other/a.py")), ("no_code", ("homework/notes.txt",)):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for file in files:
                archive.writestr(file, "")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(path.name for path in tmp_path.iterdir())
    done = grade(tmp_path, *arguments)
    assert done.returncode == 1
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before and (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_costs_no_report(tmp_path, images, closed):
    package(tmp_path / "in", ae="raise SystemExit")
    command = f'"{sys.executable}" -m grader in --data "{images}" --json report.json {closed}'
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert len(json.loads((tmp_path / "report.json").read_text())["parts"]) == 6


def test_modules_of_the_current_folder_are_not_imported(tmp_path):
    """Also where the grader itself lies in it, as in a checkout."""
    shutil.copytree(ROOT / "grader", tmp_path / "grader", ignore=shutil.ignore_patterns("__pycache__"))
    for name in "tqdm", "numpy", "PIL", "json", "argparse", "signal", "zipfile", "tempfile", "dataclasses":
        (tmp_path / f"{name}.py").write_text(f"open('{name}.ran', 'w'); raise SystemExit('hijacked')")
    for path in "", str(tmp_path), str(ROOT):
        done = grade(tmp_path, "missing.zip", PYTHONPATH=path)
        assert "There is no submission missing.zip." in done.stderr and done.returncode == 1
    assert not list(tmp_path.glob("*.ran"))


@pytest.mark.parametrize("gone", ["a full disk", "a closed pipe"])
def test_the_report_is_written_though_nothing_can_be_printed(tmp_path, images, gone):
    package(tmp_path, ae="")
    if gone == "a full disk":
        if not Path("/dev/full").exists():
            pytest.skip("there is no /dev/full here")
        out = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, out = os.pipe()
        os.close(reader)
    for options, code in (["--json", "report.json"], 0), ([], 1):
        command = [sys.executable, "-m", "grader", ".", "--data", str(images), *options]
        piped = {"cwd": tmp_path, "env": environment(tmp_path), "stdout": out, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run(command, **piped)
        assert done.returncode == code and "Traceback" not in done.stderr and "ignored" not in done.stderr, done.stderr
    os.close(out)
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["parts"]) > 3 and report["total"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_stopping_the_grader_leaves_nothing(tmp_path, images, number):
    package(tmp_path, ae="import time; time.sleep(1000)")
    process = subprocess.Popen([sys.executable, "-m", "grader", ".", "--data", str(images)], cwd=tmp_path,
                               env=environment(tmp_path), stdout=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a shell's & ignores it
    process.stdout.readline()
    deadline = time.monotonic() + 300
    while not left_behind(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    code = process.wait(300)
    assert code == {signal.SIGINT: 130, signal.SIGKILL: -9}.get(number, 128 + number)
    deadline = time.monotonic() + 20
    while left_behind(tmp_path) and time.monotonic() < deadline:  # the kernel does it, soon
        time.sleep(0.05)
    assert not left_behind(tmp_path)
    if number == signal.SIGKILL:  # its folder goes when the next one starts
        assert grade(tmp_path, ".", "--data", "nowhere").returncode == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["homework"]
