"""README.md and docs/*.md are run as they are: their commands in order, with smaller settings after them, and their Python.

A command is in a ``bash`` block. Each is checked to name a module, or a target of the Makefile, and options that exist. Each
is also run, in one folder for each document, but for those of NOT_RUN, and of experiments.md, which is a log.
"""

import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, files

from homework.core.registry import MODELS, model_class
from homework.datasets import mnist

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in DOCUMENTS}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LOOP = re.compile(r"^for (\w+) in (.*?); do set -- \$\1.*?\n(.*?)^done", re.MULTILINE | re.DOTALL)

# what takes the network, a server, minutes, or another machine; each has tests of its own, or none that a test could run
NOT_RUN = {
    "python -m homework.data download": "the network: test_data.py",
    "python -m homework.data mnist": "the network: test_mnist.py",
    "python -m homework.evaluate BSQPatchAutoEncoder": "minutes, for AVIF at its slowest: test_evaluate.py",
    "python -m homework.evaluate cascade/": "the same",
    "python -m homework.demo": "the same: test_demo.py",
    "python -m homework.studio": "a server: test_studio.py",
    "python -m grader": "minutes: tests/grader",
    "systemd-run": "the same, and a system that has it",
    "python bundle.py": "at the end of the README, below",
    "python -m bench": "minutes, and it draws into bench/figures",
    "python -m homework.train BSQPatchAutoEncoder --resume": "an unfinished run: test_train.py",
    "tensorboard": "a server",
    "make": "a new environment",
    "pip": "the network",
    "export": "only for what follows",
}
_SMALL = "--latent_dim 8 --encoder_blocks 1 --decoder_blocks 1 --detail 2"
TINY = {  # options that make a new model small, or a search short, by the beginning of the command
    "compress compress BSQPatchAutoEncoder cascade.json": "--effort 0",
    "compress compress cascade/fine.pth bench/configs/cascade.json": "--effort 0",
    "compress compress": "--effort 1",
    "tokenize BSQPatchAutoEncoder mine/searched/tokenized_train.pth": "--effort 1 --limit 4",
    "tokenize BSQPatchAutoEncoder mine/searched/tokenized_valid.pth": "--effort 1 --limit 4",
    "train PatchAutoEncoder": f"{_SMALL} --bottleneck 4",
    "train ConvAutoEncoder": "--min_channel 4 --max_channel 6",
    "train BSQPatchAutoEncoder": _SMALL,
    "train VQPatchAutoEncoder": _SMALL,
    "train VQVAE": f"{_SMALL} --height 28 --width 28",
    "train SOM": "--n_codes 4",
    # a single process
    "train AutoregressiveModel --d_latent 256 --n_layers 8 --fsdp": "--d_latent 8 --n_layers 1 --n_heads 1 --nofsdp",
    "train AutoregressiveModel": "--d_latent 8 --n_layers 1 --n_heads 1",
    "train PixelCNN": "--c_hidden 4 --num_res_block 1",
    "train GatedPixelCNN": "--c_hidden 4 --n_layers 1",
    "train CascadeStage": "--in_dim 8 --hidden_dim 8 --num_dec_layers 1",
    "enhancement": "--n_components 4",
    "evaluate samples BSQPatchAutoEncoder,AutoregressiveModel": "--n 6",
    "som fit": "--n_codes 4 --passes 1 --limit 8",
    "som prune": "--threshold 1",
    "data shard mine/train": "--size 4KB",
    "sample": "--temperature 0.5",
    "receptive_field": "--layers 1",
}
QUICK = ("docs/generation.md",)  # with a small prior in the pretrained one's place, as if just trained
SAMPLES = 4  # of the 18, temple.jpg and volcano_island.jpg among them, which documents name
CHECKS = {  # of what a document's Python leaves
    "README.md": "assert again.shape == (100, 150, 3) and again.dtype == torch.uint8 and new.shape == (4, 20, 30)\n"
    "assert 0 < float(bits) < 6000 and isinstance(data, bytes) and len(data) < 1500",
    "docs/codec.md": "assert len(data) < 1500 and x_hat.shape == (100, 150, 3)",
    "docs/tokenizers.md": "assert x_hat.shape == x.shape and vectors.shape == (4, 20, 30, 16)",
    "docs/priors.md": "assert 0 < float(nats) < 200 and (halves[:, :14] == digits[:, :14]).all()",
    "docs/generation.md": "assert frames.shape == (2, 100, 150, 3) and (rest[:, :10] == grids[:, :10]).all()\n"
    "assert logits.shape == (2, 1024)",
    "docs/architecture.md": "assert grids.shape == (2, 20, 30) and 750 < len(data) <= 771",
}
# reads [commands, Python, whether to print what each command writes], runs the Python and then the commands in one process
RUNNER = """
import contextlib, io, json, os, runpy, shlex, sys, traceback
sys.path.insert(0, os.environ["CHECKOUT"])
from homework.datasets import mnist
mnist.N_TRAIN = 24
commands, python, pages = json.load(sys.stdin)
if python:
    exec(compile(python, "the Python of the document", "exec"), {"__name__": "example"})
help = {}
for command in commands:
    words = shlex.split(command)
    sys.argv = words[2:]
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output) if pages else contextlib.nullcontext():
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code:
            sys.exit(f"{command}: exit code {stop.code}")
    except BaseException:
        traceback.print_exc()
        sys.exit(command)
    help[command] = output.getvalue()
if pages:
    print(json.dumps(help))
"""


def commands_of(text: str) -> list[str]:
    """The commands in a document's bash blocks, without comments, its loops unrolled, ``homework NAME`` spelled out."""
    lines = []
    for language, block in BLOCK.findall(text):
        if language == "bash":
            lines += [re.sub(r" +#.*", "", line).strip() for line in LOOP.sub(_unrolled, block).splitlines()]
    return [re.sub(r"^homework (\w+)", r"python -m homework.\1", line) for line in lines if line]


def _unrolled(loop: re.Match) -> str:
    """The body of a loop over "A B C", with $1, $2 and $3, for each of its items."""
    items = [item.split() for item in shlex.split(loop[2])]
    return "".join(re.sub(r"\$(\d)", lambda m, item=item: item[int(m[1]) - 1], loop[3]) for item in items)


def python_command(command: str) -> str | None:
    """What a command runs as ``python ...``, with one process in place of torchrun's; None if it is another program."""
    command = re.sub(r"^[A-Z_]+=\S+ ", "", command)
    command = re.sub(r"^(torchrun( --[a-z-]+ (\d+|c10d|node1:\d+))+|systemd-run .*? python) ", "python ", command)
    return command if command.startswith("python ") else None


def execute(commands: list[str], python: str, folder: Path, pages: bool = False) -> subprocess.CompletedProcess:
    environment = {**os.environ, "CHECKOUT": str(ROOT), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    runner = [sys.executable, "-W", "ignore::RuntimeWarning:runpy", "-c", RUNNER]
    what = json.dumps([commands, python, pages])
    return subprocess.run(runner, cwd=folder, env=environment, input=what, capture_output=True, text=True, timeout=600)


# --- what is written ------------------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_shows_python_early():
    lines = TEXT["README.md"].splitlines()
    start = lines.index("```python")
    assert len(lines) <= 220 and lines.index("```", start) < 45 and start < 40
    assert TEXT["README.md"].count("![") == 1


PARTS = ("samples", "fit", "prune", "cascade", "compress", "decompress", "info", "import", "download", "mnist", "shard")


def help_page(command: str) -> str:
    """The module of a command, and the part of it whose help page has the options."""
    words = shlex.split(command)
    return " ".join(words[:4] if words[3:] and words[3] in PARTS else words[:3])


def test_every_command_names_a_module_and_options_that_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("optional-dependencies", {})
    found = []
    for text in TEXT.values():
        inline = [" ".join(c.split()) for c in re.findall(r"`((?:python -m|make) [^`]*[^`.])`", BLOCK.sub("", text))]
        for command in commands_of(text) + [c for c in inline if not re.search(r"NAME|MODEL\b|MODULE", c)]:
            if command.startswith("make "):
                assert command.split()[1] in targets, command
            elif command.startswith("pip "):
                assert set(re.findall(r"\[(\w+)\]", command)) <= set(extras), command
            elif python_command(command):
                found.append(python_command(command))
            else:
                assert command.split()[0] in ("export", "tensorboard"), command
    assert len(found) > 100
    for command in found:
        words = shlex.split(command)
        module = words[2].replace(".", "/")
        path = ROOT / (words[1] if words[1] != "-m" else f"{module}.py")
        assert path.is_file() or (ROOT / module / "__main__.py").is_file(), command
    found = [c for c in found if c.startswith("python -m") and "bench.figures" not in c]  # bench.figures has no help page
    done = execute(sorted({f"{help_page(c)} --help" for c in found}), "", ROOT, pages=True)
    assert done.returncode == 0, done.stderr
    pages = json.loads(done.stdout.splitlines()[-1])
    of_models = "".join(f" --{option}" for name in MODELS for option in inspect.signature(model_class(name)).parameters)
    for command in found:
        page = pages[f"{help_page(command)} --help"] + of_models * bool(re.search(r"homework\.(train|summary)", command))
        for option in (word.split("=")[0] for word in shlex.split(command) if re.match(r"--?[a-z]", word)):
            if option not in ("-m", "--help"):  # -vv is -v twice; what must be given is in capitals
                assert option[:2] in page if option[1] != "-" else option in page or option[2:].upper() in page, command


def slug(heading: str) -> str:
    """The anchor that GitHub and MkDocs give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("name", TEXT)
def test_every_link_leads_somewhere(name):
    text = BLOCK.sub("", TEXT[name])
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        path = ((ROOT / name).parent / file).resolve() if file else ROOT / name
        assert path.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", BLOCK.sub("", path.read_text("utf-8")), re.MULTILINE)
            assert anchor in map(slug, headings), target
        if name != "README.md":  # what the site has, see docs/hooks.py
            in_site = any(path.is_relative_to(ROOT / folder) for folder in ("docs", "bench/figures"))
            assert in_site or (path.is_relative_to(ROOT / "homework") and path.suffix == ".py"), target
    for path in re.findall(r"`((?:homework|tests|bench|docs|grader)/[\w/]+(?:\.(?:py|csv|json|md))?/?)`", text):
        assert (ROOT / path).exists(), path


def test_every_page_and_every_module_is_in_the_site():
    pages = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(f"docs/{page}" for page in pages) == sorted(name for name in TEXT if name != "README.md")
    api = "".join(text for name, text in TEXT.items() if name.startswith("docs/api/"))
    package = ROOT / "homework"
    modules = [p.stem for p in package.glob("*.py") if not p.stem.startswith("_") and p.stem != "homework"]  # runs nothing
    modules += [p.parent.name for p in package.glob("*/__init__.py")]
    assert sorted(re.findall(r"^::: homework\.(\w+)$", api, re.MULTILINE)) == sorted(modules)


# --- what is run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder as the documents assume it: frames in data/train and data/valid and their tokens, the same in a zip and in
    my_images/, a few digits in data/mnist, the configurations in bench/. And small.pth, a prior for QUICK."""
    folder = tmp_path_factory.mktemp("workplace")
    images = sorted((ROOT / "data/sample").glob("*.jpg"))
    for part in ("data/train", "data/valid", "my_images", "source/data/train", "source/data/valid"):
        (folder / part).mkdir(parents=True)
        for i in range(20 if part == "my_images" else 8):
            shutil.copy(images[i % len(images)], folder / part / f"{i:02}.jpg")
    shutil.make_archive(str(folder / "supertux_data"), "zip", folder / "source")
    shutil.copytree(ROOT / "data/sample", folder / "data/sample", ignore=lambda *_: [p.name for p in images[:-SAMPLES]])
    shutil.copytree(ROOT / "bench/configs", folder / "bench/configs")
    (folder / "data/mnist").mkdir()
    draw = np.random.default_rng(0)
    for file in mnist.FILES:
        shape = (32, 28, 28) if "images" in file else (32,)
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        (folder / "data/mnist" / file).write_bytes(header + draw.integers(0, 10, shape, np.uint8).tobytes())
    tokens = [f"python -m homework.tokenize BSQPatchAutoEncoder data/tokenized_{s}.pth data/{s}" for s in ("train", "valid")]
    prior = small("python -m homework.train AutoregressiveModel --output small.pth --name small --lr 0.01 --warmup 0")
    done = execute([*tokens, f"{prior} --epochs 20 --validate_every 40"], "", folder)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(folder / "logs")
    return folder


def small(command: str) -> str:
    """A command with options after it that make it quick; of one option given twice, the last counts."""
    if ".train " in command:
        command += " --epochs 1 --batch_size 4 --accumulate 1 --limit 8 --device cpu"
    if "--init" in command:  # must fit the weights that it starts from
        return command
    return next((f"{command} {options}" for start, options in TINY.items() if f"homework.{start} " in command), command)


def to_run(text: str) -> list[str]:
    """The commands of a document that are run, see NOT_RUN."""
    return [small(python_command(c)) for c in commands_of(text) if not c.startswith(tuple(NOT_RUN))]


RUN = [name for name, text in TEXT.items() if name != "docs/experiments.md" and (to_run(text) or "```python" in text)]


@pytest.mark.parametrize("name", RUN)
def test_the_commands_and_the_python_run(name, workplace, tmp_path):
    folder = tmp_path / "work"
    shutil.copytree(workplace, folder)
    (folder / "tests").symlink_to(ROOT / "tests")  # files and the prior of an earlier version
    if name == "README.md":  # its path begins with nothing
        for split in ("train", "valid"):
            shutil.rmtree(folder / "data" / split)
            (folder / f"data/tokenized_{split}.pth").unlink()
    if name in QUICK:
        (folder / "homework").mkdir()
        shutil.copy(folder / "small.pth", folder / "homework/AutoregressiveModel.pth")
    python = "\n".join(block for language, block in BLOCK.findall(TEXT[name]) if language == "python")
    before = files(folder)
    done = execute(to_run(TEXT[name]), python + "\n" + CHECKS.get(name, ""), folder)
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    assert not not_ignored(files(folder) - before)
    if name == "README.md":
        check_the_path(folder)


def not_ignored(paths: set[str]) -> set[str]:
    """Those that git would show as new files of the checkout; none where this is not a checkout."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        return set()
    names = "\0".join(sorted(paths))
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "-z", "--stdin"], cwd=ROOT, input=names, capture_output=True, text=True
    )
    return paths - set(done.stdout.split("\0"))


def check_the_path(folder: Path) -> None:
    """What the README's steps leave; and its step 8 in the same folder."""
    names = [*(f"generation_{i}.png" for i in range(8)), "sheet.png"]
    assert sorted(p.name for p in (folder / "generated").iterdir()) == names
    assert len(list((folder / "completed").iterdir())) == 5
    assert len(list((folder / "again").iterdir())) == SAMPLES
    assert len(list((folder / "mine/generated").iterdir())) == 9
    assert len(list((folder / "checkpoints").glob("*.pth"))) == 6
    shutil.copy(ROOT / "bundle.py", folder)
    for module in (ROOT / "homework").glob("*.py"):
        shutil.copy(module, folder / "homework")
    bundle = next(c for c in commands_of(TEXT["README.md"]) if c.startswith("python bundle.py"))
    done = subprocess.run([sys.executable, *shlex.split(bundle)[1:]], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and (folder / "ID.zip").is_file(), done.stderr
