import io
import subprocess
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from homework import BSQPatchAutoEncoder, PatchAutoEncoder, TokenDataset
from homework.core import checkpoint, files
from homework.datasets.image_files import read_image
from homework.datasets.images import to_float
from homework.datasets.tokens import MultiscaleDataset
from homework.tokenize import tokenize
from homework.tokenizers.encoding import draw_move, mirrored_and_shifted, smallest_type

ROOT = Path(__file__).parents[1]
TINY = {"patch_size": 5, "latent_dim": 8, "encoder_blocks": 1, "decoder_blocks": 1, "detail": 4}

needs_uint16 = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6), reason="this torch cannot save uint16"
)


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    return conftest.run("-m", "homework.tokenize", *arguments, **options)


@pytest.fixture
def tokenizer(tmp_path):
    torch.manual_seed(0)
    checkpoint.save(BSQPatchAutoEncoder(codebook_bits=9, **TINY), tmp_path / "tokenizer.pth")
    return tmp_path / "tokenizer.pth"


@pytest.fixture
def images(tmp_path):
    """Seven pictures of 10x15: a grid of 2x3."""
    for i in range(7):
        picture(tmp_path / "images" / f"{i}.png", (10, 15), i)
    return tmp_path / "images"


def picture(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def test_tokens_are_those_of_the_model_in_sorted_order(tmp_path, tokenizer, images):
    paths = sorted(map(str, images.iterdir()))
    tokenize(tokenizer, tmp_path / "out.pth", *paths[:2:-1], images, paths[0], batch_size=3)
    dataset = TokenDataset(tmp_path / "out.pth")
    assert dataset.names == paths and dataset.n_tokens == 512 and tuple(dataset.size) == (2, 3)
    model = checkpoint.load(tokenizer)
    for i in range(0, 7, 3):
        pixels = torch.from_numpy(np.stack([read_image(p) for p in paths[i : i + 3]]))
        with torch.no_grad():
            assert torch.equal(dataset.batch(torch.arange(i, min(i + 3, 7))), model.encode_index(to_float(pixels)))
    assert len(np.unique(dataset.tokens)) > 7


@needs_uint16
@given(st.integers(1, 2**62))
def test_the_type_is_the_smallest_that_fits(n_tokens):
    chosen = smallest_type(n_tokens)
    assert np.iinfo(chosen).max >= n_tokens - 1
    for smaller in (np.uint8, np.uint16, np.int32, np.int64):
        if smaller == chosen:
            break
        assert np.iinfo(smaller).max < n_tokens - 1


@needs_uint16
@pytest.mark.parametrize("bits, dtype", [(8, torch.uint8), (9, torch.uint16), (17, torch.int32), (40, torch.int64)])
def test_the_file_has_the_smallest_type(tmp_path, images, bits, dtype):
    checkpoint.save(BSQPatchAutoEncoder(codebook_bits=bits, **TINY), tmp_path / "t.pth")
    tokenize(tmp_path / "t.pth", tmp_path / "out.pth", images)
    stored = files.read(tmp_path / "out.pth")
    assert stored["tokens"].dtype == dtype and stored["n_tokens"] == 2**bits


def test_sizes_that_differ_are_helped_by_image_size(tmp_path, tokenizer, images):
    picture(images / "0_odd.png", (10, 20))
    with pytest.raises(ValueError, match=r"1 of 8 .*; pass --skip_bad .*; sizes differ; pass --image_size"):
        tokenize(tokenizer, tmp_path / "out.pth", images)
    (images / "0_odd.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="1 of 8 images") as error:
        tokenize(tokenizer, tmp_path / "out.pth", images)
    assert "sizes differ" not in str(error.value)


def test_a_limit_takes_images_evenly(tmp_path, tokenizer, images):
    tokenize(tokenizer, tmp_path / "out.pth", images, limit=3)
    assert [Path(name).name for name in TokenDataset(tmp_path / "out.pth").names] == ["0.png", "2.png", "4.png"]


def test_a_frame_is_chosen(tmp_path, tokenizer):
    frames = [np.random.default_rng(i).integers(0, 256, (10, 15, 3), dtype=np.uint8) for i in range(3)]
    first, *others = map(Image.fromarray, frames)
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    for i, frame in enumerate(frames):
        tokenize(tokenizer, tmp_path / f"{i}.pth", tmp_path / "a.tif", frame=i)
        expected = checkpoint.load(tokenizer).encode_index(to_float(torch.from_numpy(frame)))
        assert torch.equal(TokenDataset(tmp_path / f"{i}.pth")[0], expected)
    with pytest.raises(ValueError, match="--frame is 3, but .*a.tif has 3 frames or pages"):
        tokenize(tokenizer, tmp_path / "x.pth", tmp_path / "a.tif", frame=3)
    with pytest.raises(ValueError, match="--frame is -1"):
        tokenize(tokenizer, tmp_path / "x.pth", tmp_path / "a.tif", frame=-1)


def test_bad_images_are_named_and_nothing_is_written(tmp_path, tokenizer, images):
    picture(images / "0_odd.png", (10, 20))
    (images / "3_bad.jpg").write_bytes(b"no image")
    done = run(tokenizer, "out.pth", images, cwd=tmp_path)
    assert done.returncode == 1 and not (tmp_path / "out.pth").exists()
    assert "2 of 9 images cannot be used; pass --skip_bad" in done.stderr
    assert "0_odd.png is 10x20" in done.stderr and "3_bad.jpg cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_skip_bad_writes_the_rest_and_names_the_others(tmp_path, tokenizer, images, capsys):
    tokenize(tokenizer, tmp_path / "good.pth", images)
    picture(images / "0_odd.png", (10, 20))
    (images / "3_bad.jpg").write_bytes(b"no image")
    tokenize(tokenizer, tmp_path / "out.pth", images, skip_bad=True)
    good, rest = TokenDataset(tmp_path / "good.pth"), TokenDataset(tmp_path / "out.pth")
    assert rest.names == good.names and np.array_equal(rest.tokens, good.tokens)
    message = capsys.readouterr().err
    assert "Left out 2 of 9" in message and "0_odd.png" in message and "3_bad.jpg" in message


def test_many_bad_images_are_counted(tmp_path, tokenizer, images, capsys):
    for i in range(13):
        (images / f"bad{i:02}.jpg").touch()
    with pytest.raises(ValueError, match=r"13 of 20 images(?s:.*)bad09.jpg(?s:.*)and 3 more") as raised:
        tokenize(tokenizer, tmp_path / "out.pth", images)
    assert "bad10" not in str(raised.value)
    with pytest.raises(ValueError, match="1 of 1 image "):
        tokenize(tokenizer, tmp_path / "out.pth", images / "bad00.jpg", skip_bad=True)
    capsys.readouterr()
    tokenize(tokenizer, tmp_path / "out.pth", images, skip_bad=True)
    said = capsys.readouterr().err
    assert all(f"bad{i:02}.jpg" in said for i in range(13))  # those that are left out are all named


def test_image_size_fits_all(tmp_path, tokenizer, images):
    picture(images / "odd.png", (33, 17))
    tokenize(tokenizer, tmp_path / "out.pth", images, image_size="20x15")
    assert TokenDataset(tmp_path / "out.pth").batch(torch.arange(8)).shape == (8, 4, 3)


def test_wrong_arguments(tmp_path, tokenizer, images):
    checkpoint.save(PatchAutoEncoder(patch_size=5, latent_dim=8, bottleneck=4), tmp_path / "ae.pth")
    first = images / "0.png"
    before = first.read_bytes()
    for message, arguments, options in [
        ("holds a PatchAutoEncoder", (tmp_path / "ae.pth", tmp_path / "out.pth", images), {}),
        ("must be a .pth file", (tokenizer, first, images), {}),  # OUTPUT forgotten, files by *.png
        ("Name the images", (tokenizer, tmp_path / "out.pth"), {}),
        ("--batch_size is 0", (tokenizer, tmp_path / "out.pth", images), {"batch_size": 0}),
    ]:
        with pytest.raises(ValueError, match=message):
            tokenize(*arguments, **options)
    assert first.read_bytes() == before and not (tmp_path / "out.pth").exists()


def test_what_holds_something_else_is_not_replaced(tmp_path, tokenizer, images):
    """A model, most of all the tokenizer itself, and the state of a training."""
    files.write({"settings": {}, "optimizer": {}}, tmp_path / "run.state.pth")
    (tmp_path / "damaged.pth").write_bytes(b"junk")
    for path in tokenizer, tmp_path / "run.state.pth", tmp_path / "damaged.pth":
        before = path.read_bytes()
        with pytest.raises(ValueError, match=f"The output is {path}, but that file holds something else"):
            tokenize(tokenizer, path, images)
        assert path.read_bytes() == before
    for limit in 3, 2:
        tokenize(tokenizer, tmp_path / "out.pth", images, limit=limit)
    assert len(TokenDataset(tmp_path / "out.pth")) == 2


@pytest.mark.parametrize("paths, options, message", [
    (["images", ""], {}, "path of an image or a folder is empty"),
    (["images"], {"copies": 1, "shift": 2**63}, "--shift is 9223"),
])  # fmt: skip
def test_an_empty_path_and_a_shift_beyond_every_image_are_refused(tmp_path, tokenizer, images, paths, options, message):
    with pytest.raises(ValueError, match=message):
        tokenize(tokenizer, tmp_path / "out.pth", *(path and tmp_path / path for path in paths), **options)


def test_two_processes_write_what_one_writes(tmp_path, tokenizer, images):
    one = run(tokenizer, "one.pth", images, "--batch_size", 2, cwd=tmp_path)
    two = run(tokenizer, "two.pth", images, "--batch_size", 2, cwd=tmp_path, processes=2)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    a, b = (files.read(tmp_path / f"{name}.pth") for name in ("one", "two"))
    assert torch.equal(a["tokens"].long(), b["tokens"].long()) and a["names"] == b["names"]
    assert a["n_tokens"] == b["n_tokens"] and a["tokens"].dtype == b["tokens"].dtype


def test_only_the_first_process_says_what_there_is_to_say(tmp_path, tokenizer, images):
    """Once for all processes, also of the files that others read."""
    frames = [Image.fromarray(np.full((10, 15, 3), i, np.uint8)) for i in range(2)]
    for i in range(7):
        frames[0].save(images / f"{i}.gif", save_all=True, append_images=frames[1:])
    (images / "folder.png").mkdir()
    done = run(tokenizer, "out.pth", images, "--batch_size", 2, cwd=tmp_path, processes=2)
    assert done.returncode == 0 and len(TokenDataset(tmp_path / "out.pth")) == 14, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "several frames" in line)
    assert all(f"{i}.gif (2)" in line for i in range(7))
    assert done.stderr.count("are named like images but are not files") == 1


def test_each_file_is_read_once(tmp_path, tokenizer, images, monkeypatch):
    """What is decoded is what the checksum is of, even if a file changes meanwhile."""
    read, opened = io.open, []
    for module in "builtins", "io":
        monkeypatch.setattr(f"{module}.open", lambda path, *a, **how: (opened.append(str(path)), read(path, *a, **how))[1])
    tokenize(tokenizer, tmp_path / "out.pth", images, copies=1)
    assert sorted(path for path in opened if path.endswith(".png")) == sorted(map(str, images.iterdir()))


def test_more_processes_than_batches(tmp_path, tokenizer, images):
    done = run(tokenizer, "out.pth", images, cwd=tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    assert len(TokenDataset(tmp_path / "out.pth")) == 7


# --- mirrored and shifted copies ------------------------------------------------------------------------------------------


def test_copies_are_mirrored_and_shifted_images():
    """Each copy is the image or its mirror image, moved by less than a patch, with the edge repeated; all ways occur."""
    x, seen = torch.arange(12 * 20).view(1, 12, 20, 1).expand(2000, -1, -1, 3), set()
    moves = torch.stack([draw_move(4, origin, copy) for origin in range(1000) for copy in (1, 2)])
    for y in mirrored_and_shifted(x, moves)[..., 0]:
        middle = y[6, 10:12]  # far from the edges
        mirror = bool(middle[1] < middle[0])
        down, right = middle[0] // 20 - 6, 9 - middle[0] % 20 if mirror else middle[0] % 20 - 10
        columns = (torch.arange(20) + right).clamp(0, 19)
        columns = 19 - columns if mirror else columns
        seen.add((mirror, int(down), int(right)))
        rows = (torch.arange(12) + down).clamp(0, 11)
        assert torch.equal(y, x[0, :, :, 0][rows][:, columns])
    assert {(m, d, r) for m in (False, True) for d in range(-4, 5) for r in range(-4, 5)} >= seen and len(seen) > 150


def test_copies_are_written_beside_their_images(tmp_path, tokenizer, images):
    for name, copies in ("plain", 0), ("more", 2), ("again", 2):
        tokenize(tokenizer, tmp_path / f"{name}.pth", images, copies=copies)
    plain, more, again = (files.read(tmp_path / f"{name}.pth") for name in ("plain", "more", "again"))
    assert torch.equal(more["tokens"], again["tokens"]) and len(more["tokens"]) == 3 * len(plain["tokens"])
    originals = [i for i, name in enumerate(more["names"]) if "#" not in name]
    assert [more["names"][i] for i in originals] == plain["names"]
    assert torch.equal(more["tokens"][originals], plain["tokens"])
    with pytest.raises(ValueError, match="--copies is -1"):
        tokenize(tokenizer, tmp_path / "x.pth", images, copies=-1)


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"batch_size": 5}, {"batch_size": 3, "skip_bad": True}])
def test_the_same_copies_are_made_whatever_else_is_encoded(tmp_path, tokenizer, images, options):
    """Of images that are in other batches, beside images of other sizes, and called by other paths."""
    tokenize(tokenizer, tmp_path / "one.pth", images, copies=3)
    if "skip_bad" in options:
        (images / "3_bad.jpg").write_bytes(b"no image")
        picture(images / "0_odd.png", (10, 20))
    images = images.rename(tmp_path / "elsewhere")
    tokenize(tokenizer, tmp_path / "other.pth", images, copies=3, **options)
    one, other = (files.read(tmp_path / f"{name}.pth") for name in ("one", "other"))
    assert torch.equal(one["tokens"], other["tokens"]) and one["images"] == other["images"]
    assert [Path(name).name for name in one["names"]] == [Path(name).name for name in other["names"]]


def test_grids_of_two_tokenizers_are_paired_only_if_they_are_of_the_same_copies(tmp_path, tokenizer, images):
    torch.manual_seed(1)
    checkpoint.save(BSQPatchAutoEncoder(codebook_bits=3, **TINY | {"patch_size": 10}), tmp_path / "coarse.pth")

    def pair(coarse: dict, fine: dict) -> MultiscaleDataset:
        for name, model, options in ("coarse", tmp_path / "coarse.pth", coarse), ("fine", tokenizer, fine):
            tokenize(model, tmp_path / name / "tokenized_train.pth", images, **options)
        return MultiscaleDataset("train", tmp_path / "fine", coarse=tmp_path / "coarse")

    moved = {"copies": 2, "shift": 4}
    assert len(pair({}, {})) == 7 and len(pair({"image_size": "20x30"}, {})) == 7
    assert len(pair(moved | {"batch_size": 3}, moved)) == 21
    with pytest.raises(ValueError, match="of the same names, but of other images, or of copies moved otherwise"):
        pair(moved | {"image_size": "20x30"}, moved)
    pair({}, {})
    picture(images / "3.png", (10, 15), seed=99)
    tokenize(tokenizer, tmp_path / "fine" / "tokenized_train.pth", images)
    with pytest.raises(ValueError, match="of the same names, but of other images"):
        MultiscaleDataset("train", tmp_path / "fine", coarse=tmp_path / "coarse")
    data = files.read(tmp_path / "fine" / "tokenized_train.pth")
    del data["images"]  # as in files of earlier versions
    files.write(data, tmp_path / "fine" / "tokenized_train.pth")
    assert len(MultiscaleDataset("train", tmp_path / "fine", coarse=tmp_path / "coarse")) == 7
