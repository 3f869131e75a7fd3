"""Who may know whom: imports go downwards only, and what a file must not know it does not import."""

import ast
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run

from homework import registry

# from the top down: a file imports files of lower layers alone; a new file has to find its layer
LAYERS = [
    {"demo", "evaluate"},
    {"compress"},
    {"train", "features", "generation", "sample", "summary", "receptive_field"},
    {"trainer", "tokenize", "coarse_to_fine"},
    {"exact", "cascade"},
    {"autoregressive", "pixelcnn"},
    {"prior", "som"},
    {"sampling", "bsq", "vq", "conv_ae", "pixel_steps", "exact_steps"},
    {"ae", "data"},
    {"rates"},
    {"report", "feature_data"},
    {"checkpoint", "distributed", "download"},
    {"registry", "cli", "images", "lattice", "transformer", "raster", "masked_conv"},
    {"container", "metrics", "codecs", "mnist"},
    {"checks"},
]
LAYER = {name: -i for i, names in enumerate(LAYERS) for name in names}
SOURCES = sorted(p for p in (ROOT / "homework").glob("*.py") if p.stem != "__init__")


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
    parts = (name.split(".") for name in imports(path))
    return {p[1] if len(p) > 1 else "__init__" for p in parts if p[0] == "homework"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_imports_go_downwards(path):
    assert path.stem in LAYER, f"{path.name} has no layer yet: put it into LAYERS"
    upwards = {other for other in of_the_package(path) if LAYER[other] >= LAYER[path.stem]}
    assert not upwards, f"{path.name} imports {upwards}"


def test_the_readme_lists_files_before_those_that_they_use():
    text = (ROOT / "README.md").read_text("utf-8").split("## Reading the code")[1].split("Letters everywhere")[0]
    place = {name: i for i, row in enumerate(text.splitlines()) for name in re.findall(r"\(homework/(\w+)\.py\)", row)}
    assert place.keys() == {path.stem for path in SOURCES}
    for path in SOURCES:
        above = {other for other in of_the_package(path) if place[other] < place[path.stem]}
        assert not above, f"{path.name} uses {above}, which the README lists above it"


@pytest.mark.parametrize(
    "name, strangers",
    [
        ("autoregressive", {"ae", "bsq", "images", "data"}),  # a prior knows no images, no tokenizers
        ("cascade", {"ae", "bsq", "vq", "images", "data", "cli", "container", "registry"}),
        ("pixelcnn", {"ae", "bsq", "images", "data", "autoregressive"}),
        ("mnist", set(LAYER)),
        ("bsq", {"autoregressive", "sampling"}),
        ("vq", {"autoregressive", "sampling", "bsq"}),
        ("ae", {"bsq", "vq", "autoregressive", "sampling"}),
        ("som", {"autoregressive", "sampling", "bsq", "conv_ae"}),
        ("lattice", set(LAYER) - {"checks"}),
        ("coarse_to_fine", {"ae", "bsq", "vq", "som", "cascade", "images", "data", "cli"}),
        ("sampling", set(LAYER) - {"checks"}),
        ("data", {"ae", "bsq", "autoregressive", "sampling", "registry"}),
        ("checkpoint", {"train", "data", "ae", "bsq", "autoregressive"}),
        ("train", {"ae", "bsq", "autoregressive", "sampling"}),
        ("trainer", {"train", "ae", "bsq", "autoregressive", "sampling"}),
        ("tokenize", {"ae", "bsq", "autoregressive", "sampling"}),
        ("generation", {"ae", "bsq", "autoregressive"}),
        ("container", set(LAYER)),  # a file format: no models, no images
        ("exact", {"ae", "bsq", "vq", "images", "data", "container"}),
        ("exact_steps", set(LAYER)),  # it gets the model
        ("metrics", set(LAYER)),
        ("codecs", set(LAYER)),
        ("report", set(LAYER) - {"checkpoint"}),
        ("rates", set(LAYER) - {"metrics", "report"}),
        ("evaluate", {"ae", "bsq", "vq", "autoregressive", "exact"}),
        ("compress", {"ae", "bsq", "vq", "autoregressive"}),
    ],
)
def test_what_a_file_must_not_know(name, strangers):
    assert not of_the_package(ROOT / "homework" / f"{name}.py") & strangers


@pytest.mark.parametrize("name", ["train", "trainer"])
def test_the_training_loop_knows_no_model(name):
    """No model's name in a comparison, a call or a subscript; a default file name and the documentation may hold one."""
    tree = ast.parse((ROOT / "homework" / f"{name}.py").read_text("utf-8"))
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
    """homework/tokenize.py bears a standard module's name: it must never be found as ``tokenize``."""
    done = run("-c", "import homework.train, tokenize; print(tokenize.__file__)", cwd=tmp_path)
    assert done.returncode == 0 and "homework" not in done.stdout, done.stderr
    for path in [*SOURCES, *(ROOT / "grader").glob("*.py")]:
        assert "sys.path" not in path.read_text("utf-8") or path.parent.name == "grader", path.name
