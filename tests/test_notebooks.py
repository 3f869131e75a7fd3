"""The notebooks: they run from their first cell to their last, and what is stored in them is what a reader should see."""

import re

import pytest
from conftest import ROOT

for package in "nbformat", "nbclient", "ipykernel", "matplotlib":
    pytest.importorskip(package, reason=f"running notebooks needs {package}, of the extra dev")

import nbformat  # noqa: E402
from nbclient.exceptions import CellExecutionError  # noqa: E402

from bench.notebooks import METADATA, execute  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {  # parameters by notebook: the same steps, in seconds
    "course": {"AE_STEPS": 20, "BSQ_STEPS": 40, "PRIOR_STEPS": 20, "N_SAMPLES": 2},
    "codec": {"EFFORT": 1, "QUALITIES": [50], "OTHER_SIZES": []},
}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


@each_notebook
def test_a_notebook_runs(path, tmp_path):
    """Each cell, with its assertions, as ``make notebooks`` runs it but for the parameters."""
    notebook = execute(path, tmp_path, **SMALL[path.stem])
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


def test_a_cell_that_fails_is_an_error(tmp_path):
    first = nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]})
    (tmp_path / "source").mkdir()
    path = tmp_path / "source/short.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[first, nbformat.v4.new_code_cell("assert n == 1")]), path)
    execute(path, tmp_path / "first", n=1)
    with pytest.raises(CellExecutionError, match="AssertionError"):
        execute(path, tmp_path / "second", n=2)
    with pytest.raises(ValueError, match="short.ipynb has no parameter m"):
        execute(path, tmp_path / "third", m=2)


@each_notebook
def test_what_is_stored_in_a_notebook(path):
    """Outputs of one run without errors, and nothing of the machine that made them."""
    notebook, text = read(path), path.read_text("utf-8")
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert notebook.metadata == METADATA and all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert len([kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]) >= 8
    texts = "".join(re.split(r'"image/\w+": "[^"]*"', text))  # without pictures, in which anything may occur
    assert not re.search(r"/(?:home|root|tmp|work|usr|var|Users)/|[A-Z]:\\", texts)
    assert not re.search(r"0x[0-9a-f]{6}", texts)  # the address of an object


def test_the_notebooks_are_small_and_their_links_lead_somewhere():
    assert [path.stem for path in NOTEBOOKS] == sorted(SMALL)
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 1.5 * 2**20
    for path in NOTEBOOKS:
        text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (path.parent / target).is_file(), target
