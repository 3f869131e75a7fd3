"""Files that were once written with the pretrained models decode, in a fresh process, to the tokens that were coded.

``golden`` holds files of format 1, ``golden/v2`` the same images in format 2, and ``golden/tokens.npz`` the tokens of both;
``golden/v4`` has files with an enhancement layer, and their grids. All of these are of the tokenizer and the prior that were
the pretrained ones then, which lie in ``golden``; ``golden/prior2`` has such files of that tokenizer and the present
prior, ``golden/decoder2`` of the tokenizer after it, which lies there. In ``golden/v7``, of the same models, payloads name
a power; so they do in ``golden/decoder3``, of the present tokenizer. A new version of the format, or a new model, gets files
of its own, by ``python tests/test_golden.py``; all others stay.
"""

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run

from homework.codec.archive import Reader

GOLDEN = Path(__file__).parent / "golden"
PRETRAINED = ROOT / "homework" / "pretrained"
LAYER = PRETRAINED / "EnhancementLayer.pth"
BSQ, PRIOR = "BSQPatchAutoEncoder.pth", "AutoregressiveModel.pth"
# by folder: the version of the format, the tokenizer, the prior, and the file with the grids
FOLDERS = {
    ".": (1, GOLDEN / BSQ, GOLDEN / PRIOR, "tokens.npz"),
    "v2": (2, GOLDEN / BSQ, GOLDEN / PRIOR, "../tokens.npz"),
    "v4": (4, GOLDEN / BSQ, GOLDEN / PRIOR, "grids.npz"),
    "prior2": (4, GOLDEN / BSQ, PRETRAINED / PRIOR, "grids.npz"),
    "decoder2": (4, GOLDEN / "decoder2" / BSQ, PRETRAINED / PRIOR, "grids.npz"),
    "v7": (7, GOLDEN / "decoder2" / BSQ, PRETRAINED / PRIOR, "grids.npz"),
    "decoder3": (7, PRETRAINED / BSQ, PRETRAINED / PRIOR, "grids.npz"),
}
FILES = ("temple.hwi", "odd.hwi", "sample.hwa")  # an image; one of 47x211 pixels, in tiles; all sample images
DECODE = """
import sys
import numpy as np
import torch
from homework.codec.archive import Reader
from homework.codec.loading import load_compressor
torch.set_num_threads(int(sys.argv[1]))
compressor = load_compressor(*sys.argv[2:4], torch.device("cpu"), int(sys.argv[4]), enhancement=sys.argv[6])
grids = {}
for path in sys.argv[7:]:
    with open(path, "rb") as file:
        reader = Reader(file)
        for some in compressor.read([(reader, i) for i in range(len(reader.names))]):
            named = {f"{path.rpartition('/')[2]} {reader.names[i]}": grid for i, grid in some.items()}
            grids |= {name: grid if sys.argv[6] == "none" else grid.astype(np.int16) for name, grid in named.items()}
np.savez_compressed(sys.argv[5], **grids)
"""


def decode(folder: str, names: tuple[str, ...], out: Path, threads: int, batch_size: int) -> dict[str, np.ndarray]:
    version, *models, _ = FOLDERS[folder]
    files = [(GOLDEN / folder / name).as_posix() for name in names]
    layer = LAYER if version >= 4 else "none"
    done = run("-c", DECODE, threads, *models, batch_size, out, layer, *files, cwd=ROOT, OMP_NUM_THREADS=str(threads))
    assert done.returncode == 0, done.stderr
    with np.load(out) as grids:
        return dict(grids)


@pytest.mark.parametrize("names, threads, batch_size", [(FILES, 1, 64), (FILES[:2], 2, 1)])
@pytest.mark.parametrize("folder", FOLDERS)
def test_golden_files_decode_to_their_tokens(tmp_path, folder, names, threads, batch_size):
    version, *_, grids = FOLDERS[folder]
    for name in names:
        with open(GOLDEN / folder / name, "rb") as file:
            assert Reader(file).version == version
    with np.load(GOLDEN / folder / grids) as file:
        expected = {key: grid for key, grid in file.items() if key.startswith(names)}
    found = decode(folder, names, tmp_path / "tokens.npz", threads, batch_size)
    assert found.keys() == expected.keys() and len(found) == (20 if "sample.hwa" in names else 2)
    for name, grid in found.items():
        assert np.array_equal(grid, expected[name]), name


def make() -> None:
    """Writes the files of the last folder."""
    from PIL import Image

    from homework.compress import compress
    from homework.datasets.image_files import image_paths, read_image

    name_of, (_, tokenizer, prior, grids) = list(FOLDERS.items())[-1]
    folder = GOLDEN / name_of
    folder.mkdir(exist_ok=True)
    paths, odd = image_paths(ROOT / "data" / "sample"), folder / "odd.png"
    Image.fromarray(np.tile(read_image(paths[0]), (1, 2, 1))[20:67, 30:241]).save(odd)
    for name, sources in zip(FILES, ([ROOT / "data/sample/temple.jpg"], [odd], paths), strict=True):
        compress(tokenizer, prior, *sources, folder / name, effort=0, quality=85, enhancement=LAYER)
    odd.unlink()
    decode(name_of, FILES, folder / grids, 1, 64)


if __name__ == "__main__":
    make()
