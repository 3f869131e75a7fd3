"""The package as others get it: the wheel, its contents, and what an installation of it does outside of the checkout."""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, run, sentence

import homework
from homework import __main__ as commands
from homework.core import registry
from homework.datasets.kinds import DATASETS

FOLDERS = ("bench", "grader", "homework", "tests")
PAIR = "BSQPatchAutoEncoder", "AutoregressiveModel"
SAMPLE = ROOT / "data/sample/temple.jpg"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the checkout, in which a training has left a model and other folders are there too."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "golden", "figures"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "bundle.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("data", "logs", "checkpoints", "demo"):
        (folder / name).mkdir()
    (folder / "homework/Trained.pth").write_bytes(b"a training's copy")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "wheels").iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> SimpleNamespace:
    """A new environment with the wheel, which finds the other packages where they are; and an empty folder to work in."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=300)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel]
    done = subprocess.run(install, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    ours = sysconfig.get_path("purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")})
    Path(ours, "others.pth").write_text("\n".join(paths) + "\n")  # adds paths only: no editable checkout in them
    (folder / "work").mkdir()

    def call(*arguments: object) -> subprocess.CompletedProcess:
        program, *rest = map(str, arguments)
        command, work = [scripts / program, *rest], folder / "work"
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=600)

    return SimpleNamespace(call=call, work=folder / "work", venv=folder / "venv")


# --- the wheel -------------------------------------------------------------------------------------------------------


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    source = ROOT / "homework"
    wanted = {path.relative_to(ROOT).as_posix() for path in source.rglob("*.py")}
    wanted |= {f"homework/pretrained/{path.name}" for path in (source / "pretrained").glob("*.pth")} | {"homework/py.typed"}
    wanted |= {f"homework/pretrained/{path.name}" for path in (source / "pretrained").glob("*.json")}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (source / "evaluation/templates").glob("*")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert len([name for name in names if name.endswith(".pth")]) >= 9
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())
    assert names == wanted


def test_the_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert (metadata["Name"], metadata["Version"]) == ("homework", homework.__version__)
    assert metadata["License-Expression"] == "MIT" and metadata["Requires-Python"] == ">=3.11"
    lines = [line for line in metadata.get_all("Requires-Dist") if ";" not in line]  # of no extra
    required = {line.rstrip("0123456789.,<>= ") for line in lines}
    assert required == {"torch", "numpy", "pillow", "constriction", "tensorboard", "fire", "tqdm"}
    assert set(metadata.get_all("Provides-Extra")) == {"report", "studio", "fid", "shards", "docs", "dev"}


def test_the_pinned_versions_are_in_the_ranges_of_the_metadata(wheel):
    requirements = pytest.importorskip("packaging.requirements")
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split("\n") if "==" in line)
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist")
    ranges = {r.name: r.specifier for r in map(requirements.Requirement, lines)
              if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in ("report", "shards"))}  # fmt: skip
    assert pins.keys() == ranges.keys()
    assert all(version in ranges[name] for name, version in pins.items())


# --- an installation -------------------------------------------------------------------------------------------------


def test_the_installation_is_not_the_checkout(installed):
    done = installed.call("python", "-c", "import homework; print(homework.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(installed.venv), done.stderr
    done = installed.call("python", "-c", "import importlib.metadata as m; print(m.version('homework'))")
    assert done.stdout.strip() == homework.__version__
    assert installed.call("homework", "--version").stdout.strip() == f"homework {homework.__version__}"
    assert installed.call("homework", "--help").stdout.count("\n") > len(commands.COMMANDS)


def test_a_reconstruction(installed):
    code = (
        "import sys, homework, numpy, torch; from PIL import Image; "
        "x = torch.from_numpy(numpy.array(Image.open(sys.argv[1]).convert('RGB'))) / 255 - 0.5; "
        "x_hat = homework.ae.load()(x)[0]; print(x_hat.shape == x.shape, float((x_hat - x).square().mean()))"
    )
    done = installed.call("python", "-c", code, SAMPLE)
    assert done.returncode == 0, done.stderr
    same, mse = done.stdout.split()
    assert same == "True" and float(mse) < 0.01
    assert "pretrained" in done.stderr  # which model it was


def test_a_generated_frame(installed):
    done = installed.call("homework", "generation", *PAIR, 1, "out", "--batch_size", 1)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (installed.work / "out").iterdir()) == ["generation_0.png", "sheet.png"]


def test_a_compressed_file(installed):
    done = installed.call("homework", "compress", "compress", *PAIR, SAMPLE, "x.hwi")
    assert done.returncode == 0, done.stderr
    assert 100 < (installed.work / "x.hwi").stat().st_size < 1000
    done = installed.call("python", "-m", "homework.compress", "decompress", *PAIR, "x.hwi", "again.png")
    assert done.returncode == 0 and (installed.work / "again.png").is_file(), done.stderr
    site = installed.venv / ("Lib" if os.name == "nt" else "lib")
    assert not [path for path in site.rglob("homework/*.pth")]  # nothing is written into the package


# --- the command -----------------------------------------------------------------------------------------------------


def test_every_command_is_listed_with_what_it_does(tmp_path):
    done = run("-X", "importtime", "-m", "homework", cwd=tmp_path)
    assert done.returncode == 0 and "torch" not in done.stderr  # a list that takes no time
    sources = {path.stem: path.read_text("utf-8") for path in (ROOT / "homework").glob("*.py")}
    runnable = {name for name, source in sources.items() if 'if __name__ == "__main__":' in source}
    assert runnable == {*commands.COMMANDS, "__main__"}
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert list(lines) == list(commands.COMMANDS)
    assert all(len(line.split()) > 3 and "``" not in line and len(line) < 125 for line in lines.values())
    assert run("-m", "homework", "--help", cwd=tmp_path).stdout == done.stdout


@pytest.mark.parametrize("arguments", [("som", "prune", "--help"), ("train", "Nothing"), ("compress",)])
def test_a_command_is_its_module(tmp_path, arguments):
    name, *rest = arguments
    short, long = run("-m", "homework", *arguments, cwd=tmp_path), run("-m", f"homework.{name}", *rest, cwd=tmp_path)
    assert (short.returncode, short.stdout, short.stderr) == (long.returncode, long.stdout, long.stderr)
    assert short.stdout + short.stderr


@pytest.mark.parametrize("name, remedy", [("generaton", "did you mean generation?"), ("xyz", "the commands are train, ")])
def test_an_unknown_command_takes_one_sentence(tmp_path, name, remedy):
    assert sentence(run("-m", "homework", name, cwd=tmp_path)).startswith(f"There is no command {name!r}; {remedy}")


def test_a_missing_package_of_an_extra_takes_one_sentence(tmp_path):
    (tmp_path / "torchinfo.py").write_text("raise ModuleNotFoundError('missing', name='torchinfo')")
    done = run("-m", "homework", "summary", "PixelCNN", cwd=tmp_path)
    assert sentence(done) == 'This command needs the package torchinfo; pip install "homework[report]".'


# --- CONTRIBUTING.md -------------------------------------------------------------------------------------------------


@pytest.fixture
def contributed(monkeypatch) -> dict:
    """The names that the examples define, with their classes registered."""
    names, text = {"__name__": "contributed"}, (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    monkeypatch.setitem(DATASETS, "stripes", names["Stripes"])
    yield names
    for name in "GreyTokenizer", "Bigram":
        registry.MODELS.pop(name)


def test_the_examples_work_like_models_of_the_package(contributed, command, tmp_path, monkeypatch):
    """Trained by the command, saved and loaded; the prior samples and codes the tokenizer's grids."""
    monkeypatch.chdir(tmp_path)
    options = "--dataset", "stripes", "--epochs", 1, "--batch_size", 8, "--device", "cpu", "--output", "grey.pth"
    done = command("train", "GreyTokenizer", *options)
    assert done.returncode == 0, done.stderr
    tokenizer, prior = homework.load("grey.pth"), contributed["Bigram"](16).eval()
    assert not tokenizer.levels.equal(contributed["GreyTokenizer"]().levels)
    x = contributed["Stripes"]("valid").batch([0, 5])[:, :98, :147]
    grids = tokenizer.encode_index(x)
    assert grids.shape == (2, 20, 30) and tokenizer.encode_index(x[1]).equal(grids[1])
    assert prior.generate(2, 20, 30).shape == (2, 20, 30)
    compressor = homework.Compressor(tokenizer, prior)
    again = compressor.decompress(compressor.compress(x[1]))
    assert again.equal(tokenizer(x[1])[0].detach())
