"""Runs the notebooks and stores what they show in them: ``python -m bench.notebooks [NAMES...]``, see ``make notebooks``."""

import base64
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"}}  # fmt: skip
PHOTOGRAPHS = 80_000  # characters of a PNG from which it is stored as a JPEG


def execute(path: Path, folder: Path, **parameters: object) -> nbformat.NotebookNode:
    """The notebook at ``path`` with its outputs, run in ``folder``, where what it needs is copied, with these values in
    place of those in its cell tagged "parameters". ValueError for a parameter that it does not have, nbclient's
    CellExecutionError if a cell fails."""
    shutil.copytree(path.parent, folder / "notebooks")
    shutil.copytree(ROOT / "data/sample", folder / "data/sample")
    notebook = nbformat.read(path, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    for name, value in parameters.items():
        cell.source, found = re.subn(rf"^{name} = .*", f"{name} = {value!r}", cell.source, flags=re.MULTILINE)
        if not found:
            raise ValueError(f"{path.name} has no parameter {name}.")
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # one thread: what is stored must not depend on the number of cores
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(folder / "ipython")}
    resources = {"metadata": {"path": str(folder / "notebooks")}}
    client = NotebookClient(notebook, timeout=1800, kernel_name="python3", record_timing=False, resources=resources)
    return client.execute(env=environment)


def clean(notebook: nbformat.NotebookNode) -> None:
    """Leaves what a reader sees: no progress bars, nothing of the machine, and no large pictures."""
    notebook.metadata = METADATA
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if len(output.get("data", {}).get("image/png", "")) > PHOTOGRAPHS:
                    output.data["image/jpeg"] = to_jpeg(output.data.pop("image/png"))


def to_jpeg(png: str) -> str:
    """A PNG in base64 -> a JPEG in base64, with its colours at full resolution."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        image.convert("RGB").save(file, "JPEG", quality=80, subsampling=0, optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    for path in [NOTEBOOKS / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        clean(notebook)
        nbformat.write(notebook, path)
        print(f"{path}: {path.stat().st_size / 2**20:.2f} MB")
