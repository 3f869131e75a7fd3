"""Who may know whom: imports go downwards only, and what a file must not know it does not import."""

import ast
import graphlib
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run

from homework.core import registry

COURSE = {"ae", "bsq", "autoregressive"}  # the three models that the course is about, at the top of the package
# from the top down: a file imports files of lower floors, and of its own floor without a circle
FLOORS = ["commands", "studio_tabs", "evaluation", "codec", "course", "priors", "tokenizers", "training", "datasets", "nn",
          "core"]  # fmt: skip
SOURCES = sorted(p for p in (ROOT / "homework").rglob("*.py") if p.stem not in ("__init__", "homework"))  # nor its stand-in


def name_of(path: Path) -> str:
    """``homework/codec/archive.py`` -> ``codec.archive``."""
    return ".".join(path.relative_to(ROOT / "homework").with_suffix("").parts)


NAMES = {name_of(path) for path in SOURCES}


def floor(name: str) -> int:
    """0 for the highest floor."""
    folder, _, _ = name.rpartition(".")
    return FLOORS.index(folder or ("course" if name in COURSE else "commands"))


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """The full names of what a file imports, relative imports included."""
    tree, found = ast.parse(path.read_text("utf-8")), set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join([path.parent.name] * (node.level > 0) + [node.module] * (node.module is not None))
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def of_the_package(path: Path) -> set[str]:
    """The files of the package that a file imports, as :func:`name_of` names them."""
    found = (name.removeprefix("homework.") for name in imports(path) if name.split(".")[0] == "homework")
    return {next((n for n in (name, name.rpartition(".")[0]) if n in NAMES), "__init__") for name in found}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_downwards(path):
    name = name_of(path)
    upwards = {other for other in of_the_package(path) - {"__init__"} if floor(other) < floor(name)}
    assert not upwards, f"{name} imports {upwards}"
    if floor(name) == 0:
        others = {other for other in of_the_package(path) if other != "__init__" and floor(other) == 0}
        assert not others, f"the command {name} imports other commands, {others}: what they share belongs on a lower floor"


def test_no_floor_goes_round_in_a_circle():
    graph = {name_of(path): of_the_package(path) - {"__init__"} for path in SOURCES}
    assert list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


@pytest.mark.parametrize(
    "name, strangers",
    [
        ("autoregressive", {"tokenizers", "datasets"}),  # a prior knows no images and no tokenizer
        ("priors.pixelcnn", {"tokenizers", "datasets"}),
        ("priors.cascade_stage", {"tokenizers", "datasets"}),
        ("priors.sampling", {"tokenizers", "datasets", "training", "nn"}),
        ("codec.format", {"priors", "tokenizers", "datasets", "nn"}),  # a file format: no models, no images
        ("codec.archive", {"priors", "tokenizers", "datasets", "nn"}),
        ("codec.range_coder", {"priors", "tokenizers", "datasets", "nn", "core"}),
        ("evaluation.metrics", {"codec", "datasets", "nn"}),
        ("evaluation.codecs", {"codec", "priors", "tokenizers", "datasets", "nn", "core"}),
    ],
)
def test_what_a_file_must_not_know(name, strangers):
    path = ROOT / "homework" / f"{name.replace('.', '/')}.py"
    assert not {other.split(".")[0] for other in of_the_package(path)} & strangers


@pytest.mark.parametrize("name", ["train", "training.loop", "training.settings", "training.resume"])
def test_the_training_loop_knows_no_model(name):
    """No model's name in a comparison, a call or a subscript; a default file name and the documentation may hold one."""
    tree = ast.parse((ROOT / "homework" / f"{name.replace('.', '/')}.py").read_text("utf-8"))
    free = {id(d) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for d in f.args.defaults + f.args.kw_defaults}
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            free.add(id(node.body[0].value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in free:
            assert not any(model in node.value for model in registry.MODELS), f"line {node.lineno}: {node.value!r}"
        assert getattr(node, "id", "") not in registry.MODELS


def test_the_grader_uses_the_package_from_outside():
    for path in (ROOT / "grader").glob("*.py"):
        assert not any(n.split(".")[0] == "homework" for n in imports(path, top_level_only=True)), path.name


def test_bundle_knows_files_alone():
    assert {name.split(".")[0] for name in imports(ROOT / "bundle.py")} <= sys.stdlib_module_names


def test_names_that_notebooks_rely_on(tmp_path):
    """In a fresh process, where nothing else has imported anything."""
    code = (
        "import homework; [homework.ae.load, homework.autoregressive.load, homework.bsq.load, homework.bsq.BSQ, "
        "homework.bsq.diff_sign, homework.PatchAutoEncoder, homework.BSQPatchAutoEncoder, homework.AutoregressiveModel, "
        "homework.ImageDataset, homework.TokenDataset]"
    )
    done = run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("-c", "from homework import *; PatchAutoEncoder, TokenDataset", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_no_module_hides_a_standard_one(tmp_path):
    """homework/tokenize.py has a standard module's name: it must never be found as ``tokenize``."""
    done = run("-c", "import homework.train, tokenize; print(tokenize.__file__)", cwd=tmp_path)
    assert done.returncode == 0 and "homework" not in done.stdout, done.stderr
    for path in [*SOURCES, *(ROOT / "grader").glob("*.py")]:
        assert "sys.path" not in path.read_text("utf-8") or path.parent.name == "grader", path.name
