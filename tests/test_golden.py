"""Files that were once written with the shipped models decode, in a fresh process, to the tokens that were coded.

After a change of the shipped models or of the format they are made anew, by ``python tests/test_golden.py``.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run

GOLDEN = Path(__file__).parent / "golden"
MODELS = [ROOT / "homework" / "pretrained" / f"{name}.pth" for name in ("BSQPatchAutoEncoder", "AutoregressiveModel")]
FILES = ("sample.hwa", "temple.hwi", "odd.hwi")  # all sample images; one alone; one of 47x211 pixels, in tiles
DECODE = """
import sys
import numpy as np
import torch
from homework.codec.archive import Reader
from homework.codec.compressor import Compressor
from homework.core import checkpoint
torch.set_num_threads(int(sys.argv[1]))
compressor = Compressor(*map(checkpoint.load, sys.argv[2:4]), batch_size=int(sys.argv[4]))
grids = {}
for path in sys.argv[6:]:
    with open(path, "rb") as file:
        reader = Reader(file)
        for some in compressor.read([(reader, i) for i in range(len(reader.names))]):
            grids |= {f"{path.rpartition('/')[2]} {reader.names[i]}": grid for i, grid in some.items()}
np.savez(sys.argv[5], **grids)
"""


def decode(out: Path, threads: int, batch_size: int) -> dict[str, np.ndarray]:
    files = [(GOLDEN / name).as_posix() for name in FILES]
    done = run("-c", DECODE, threads, *MODELS, batch_size, out, *files, cwd=ROOT, OMP_NUM_THREADS=str(threads))
    assert done.returncode == 0, done.stderr
    with np.load(out) as grids:
        return dict(grids)


@pytest.mark.parametrize("threads, batch_size", [(1, 1), (2, 64)])
def test_golden_files_decode_to_their_tokens(tmp_path, threads, batch_size):
    with np.load(GOLDEN / "tokens.npz") as file:
        expected = dict(file)
    found = decode(tmp_path / "tokens.npz", threads, batch_size)
    assert found.keys() == expected.keys() and len(found) == 20
    for name, grid in found.items():
        assert np.array_equal(grid, expected[name]), name


def make() -> None:
    """Writes the files anew, and the tokens that the tokenizer makes of the same images."""
    import torch
    from PIL import Image

    from homework.codec.compressor import Compressor
    from homework.compress import compress
    from homework.core import checkpoint
    from homework.datasets.image_files import image_paths, read_image
    from homework.datasets.images import to_float

    GOLDEN.mkdir(exist_ok=True)
    paths = image_paths(ROOT / "data" / "sample")
    odd = np.tile(read_image(paths[0]), (1, 2, 1))[20:67, 30:241]
    Image.fromarray(odd).save(GOLDEN / "odd.png")
    compressor, tokens = Compressor(*map(checkpoint.load, MODELS)), {}
    for name, sources in zip(FILES, (paths, [str(ROOT / "data/sample/temple.jpg")], [str(GOLDEN / "odd.png")]), strict=True):
        compress(*map(str, MODELS), *sources, str(GOLDEN / name))
        for path in sources:
            x = to_float(torch.from_numpy(read_image(path)))
            key = Path(path).name if name.endswith("hwa") else ""
            tokens[f"{name} {key}"] = compressor.decompress_tokens([compressor.compress(x)])[0].astype(np.uint16)
    (GOLDEN / "odd.png").unlink()
    np.savez_compressed(GOLDEN / "tokens.npz", **tokens)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    make()
