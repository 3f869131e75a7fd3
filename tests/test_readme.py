"""The README is run as it stands: its commands in its order, with smaller settings behind them, and its Python."""

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from homework.core.registry import MODELS, model_class

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line.split(" #")[0].strip() for language, block in BLOCKS if not language for line in block.splitlines()]
PYTHON = [c for c in COMMANDS if c.startswith("python ")]
SMALL = {
    "PatchAutoEncoder": "--latent_dim 8 --bottleneck 4 --encoder_blocks 1 --decoder_blocks 1 --detail 2",
    "BSQPatchAutoEncoder": "--latent_dim 8 --encoder_blocks 1 --decoder_blocks 1 --detail 2",
    "AutoregressiveModel": "--d_latent 8 --n_layers 1 --n_heads 1",
}
TRAINING = "--epochs 1 --batch_size 4 --limit 8 --device cpu"


def execute(command: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, *shlex.split(command)[1:]]
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_every_command_names_a_module_and_options_that_exist():
    pages = {}
    for command in PYTHON:
        words = shlex.split(command)
        if words[1] != "-m":
            assert (ROOT / words[1]).is_file(), command
            continue
        module = words[2].replace(".", "/")
        assert (ROOT / f"{module}.py").is_file() or (ROOT / module / "__main__.py").is_file(), command
        if words[2] in ("homework.data", "bench.figures"):
            continue
        name = " ".join(words[2:4]) if words[3] in ("fit", "prune", "cascade", "compress") else words[2]
        page = pages.setdefault(name, execute(f"python -m {name} --help", ROOT).stdout)
        known = page + " ".join(f"--{k}" for name in MODELS for k in inspect.signature(model_class(name)).parameters)
        for option in (w.split("=")[0] for w in words if w.startswith("--") and len(w) > 2):
            assert option in known or option[2:].upper() in page, f"{command}: {option}"  # what must be given is in capitals


def test_every_linked_file_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        base = ROOT if (ROOT / target).exists() else ROOT / "homework"
        assert (base / target).exists(), target


def test_from_nothing_to_a_generated_frame(tmp_path):
    """The numbered steps, one after the other, in an empty folder."""
    section = README.split("## From nothing to a generated frame")[1].split("\n## ")[0]
    steps = [line.split(" #")[0].strip() for line in section.splitlines() if line.startswith("python ")]
    assert len(steps) >= 10
    source = tmp_path / "source" / "data"
    for split in ("train", "valid"):
        (source / split).mkdir(parents=True)
        for image in sorted((ROOT / "data/sample").glob("*.jpg"))[:8]:
            shutil.copy(image, source / split)
    shutil.make_archive(str(tmp_path / "supertux_data"), "zip", tmp_path / "source")
    (tmp_path / "data").mkdir()
    shutil.copytree(ROOT / "data/sample", tmp_path / "data/sample")
    for step in steps:
        if "download" in step or step.startswith("python bundle.py") or "grader" in step:  # have tests of their own
            continue
        model = next((m for m in SMALL if step.endswith(f"train {m}")), None)
        done = execute(f"{step} {TRAINING} {SMALL[model]}" if model else step, tmp_path)
        assert done.returncode == 0, f"{step}\n{done.stderr[-2000:]}"
    assert sorted(p.name for p in (tmp_path / "generated").iterdir()) == [f"generation_{i}.png" for i in range(8)]
    assert len(list((tmp_path / "completed").iterdir())) == 4
    assert len(list((tmp_path / "again").iterdir())) == 18
    assert len(list((tmp_path / "checkpoints").glob("*.pth"))) == 3
    shutil.copy(ROOT / "bundle.py", tmp_path)
    bundle = next(step for step in steps if step.startswith("python bundle.py"))
    for module in (ROOT / "homework").glob("*.py"):
        shutil.copy(module, tmp_path / "homework")
    done = execute(bundle, tmp_path)
    assert done.returncode == 0 and (tmp_path / "ID.zip").is_file(), done.stderr


def test_the_python_examples():
    first, second = (block for language, block in BLOCKS if language == "python")
    names = {}
    here = os.getcwd()
    os.chdir(ROOT)
    try:
        exec(first, names)
        exec(second, names)
    finally:
        os.chdir(here)
    assert names["again"].shape == (100, 150, 3) and names["again"].dtype == torch.uint8
    assert names["new"].shape == (4, 20, 30) and 0 < float(names["bits"]) < 6000 * 2
    assert isinstance(names["data"], bytes) and len(names["data"]) < 1500 and names["x_hat"].shape == (100, 150, 3)
