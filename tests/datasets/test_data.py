import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from homework.core.files import write
from homework.datasets import download, images
from homework.datasets.image_files import image_paths, read_image
from homework.datasets.images import ImageDataset, to_float, to_uint8
from homework.datasets.near_copies import NearCopies
from homework.datasets.tokens import TokenDataset

SIZE = (6, 8)


def picture(path: Path, size: tuple[int, int] = SIZE, seed: int = 0, **options) -> Path:
    """Writes noise of (H, W) to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return conftest.run("-m", "homework.data", *arguments, cwd=cwd, no_proxy="127.0.0.1")


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """An empty folder for decoded images, and for nothing else."""
    monkeypatch.setenv("HOMEWORK_CACHE", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache"


# Images


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from([".jpg", ".png", ".JPEG", ".bmp"]), min_size=1, max_size=6),
    st.tuples(*[st.integers(1, 20)] * 2),
)
def test_cache_holds_what_the_files_hold(suffixes, size):
    with tempfile.TemporaryDirectory() as root:
        for i, suffix in enumerate(suffixes):
            picture(Path(root, "train", f"{i}{suffix}"), size, seed=i)
        dataset = ImageDataset("train", root=root)
        assert len(dataset) == len(suffixes) and tuple(dataset.size) == size
        for i, image in enumerate(dataset):
            assert image.dtype == torch.uint8
            assert np.array_equal(image.numpy(), np.asarray(Image.open(dataset.names[i]).convert("RGB")))


# any bytes that a Unix file name can have, as Python sees them
file_names = st.binary(min_size=1, max_size=12).filter(lambda b: not set(b) & set(b"\0/")).map(os.fsdecode)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse some of these file names")
@settings(max_examples=25, deadline=None)
@given(st.sets(file_names, min_size=1, max_size=5))
def test_odd_file_names_are_sorted_and_cached(stems):
    with tempfile.TemporaryDirectory() as root:
        paths = [str(picture(Path(root, "train", f"a{stem}.png"))) for stem in stems]
        Path(root, "train", "00000_info.json").write_text("{}")
        Path(root, "train", "._a.png").write_text("left by macOS")
        Path(root, "train", "notes.txt").touch()
        assert image_paths("train", root) == sorted(paths)
        assert image_paths([*paths[::-1], Path(root, "train")]) == sorted(paths)
        assert ImageDataset("train", root=root).names == sorted(paths)


def test_odd_size_is_named_and_image_size_helps(tmp_path):
    for i, size in enumerate([SIZE, SIZE, (9, 7), (5, 5)]):
        picture(tmp_path / "train" / f"{i}.png", size)
    with pytest.raises(ValueError, match=r"2\.png is 9x7 but .*0\.png is 6x8.*--image_size"):
        ImageDataset("train", root=tmp_path)
    assert [i.shape for i in ImageDataset("train", image_size=(4, 3), root=tmp_path)] == [(4, 3, 3)] * 4


@settings(max_examples=40, deadline=None)
@given(*[st.integers(24, 120)] * 4)
def test_image_size_scales_to_cover_and_cuts_the_centre(h, w, H, W):
    y, x = np.mgrid[:h, :w].astype(np.uint8) * 2  # pixels that know where they are
    with tempfile.TemporaryDirectory() as root:
        Image.fromarray(np.stack([y, x, x], axis=-1)).save(path := Path(root, "a.png"))
        image = read_image(path, (H, W)).astype(float) / 2
    assert image.shape == (H, W, 3)
    scale = max(H / h, W / w)
    rows = (np.arange(H) + 0.5 - H / 2) / scale + h / 2 - 0.5
    columns = (np.arange(W) + 0.5 - W / 2) / scale + w / 2 - 0.5
    inner = slice(4, -4)  # the filter has no neighbours at the border
    assert abs(image[inner, inner, 0] - rows[inner, None]).max() < 1
    assert abs(image[inner, inner, 1] - columns[None, inner]).max() < 1


@pytest.mark.parametrize("form", ["png", "tif", "grey tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, form):
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    if form == "grey tif":
        pixels[:] = pixels[..., :1]
    stored = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    transposed = pixels.transpose(1, 0, 2)
    stored |= {5: transposed, 6: transposed[::-1], 7: transposed[::-1, ::-1], 8: transposed[:, ::-1]}
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored[orientation]))
    path = tmp_path / f"a.{form[-3:]}"
    (image.convert("L") if form == "grey tif" else image).save(path, exif=exif)
    assert np.array_equal(read_image(path), pixels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    image = Image.new("RGB", (8, 6), "white").convert(mode)
    image.save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    (pixels,) = ImageDataset(tmp_path, root=tmp_path)
    assert pixels.shape == (6, 8, 3) and (pixels == 255).all()


def test_16_bit_grey_is_scaled(tmp_path):
    grey = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.repeat(grey[..., None] // 256, 3, axis=2))


def damaged(path: Path, how: str) -> None:
    whole = picture(path, (64, 64)).read_bytes()
    cases = {"empty": b"", "garbage": b"garbage" * 99, "truncated": whole[: len(whole) // 2], "head": whole[:30]}
    path.write_bytes(cases[how])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("how", ["empty", "garbage", "truncated", "head"])
def test_damaged_file_is_named_and_leaves_no_cache(tmp_path, own_cache, how, suffix):
    for i in range(3):
        picture(tmp_path / "train" / f"{i}.{suffix}", (64, 64))
    damaged(tmp_path / "train" / f"1.{suffix}", how)
    with pytest.raises(ValueError, match=rf"1\.{suffix} cannot be read"):
        ImageDataset("train", root=tmp_path)
    assert list(own_cache.iterdir()) == []


def test_cache_is_made_once_and_again_after_a_change(tmp_path, monkeypatch, own_cache):
    path = picture(tmp_path / "train" / "0.png", seed=1)
    picture(tmp_path / "train" / "1.png", seed=2)
    ImageDataset("train", root=tmp_path)
    ImageDataset("train", image_size=(3, 3), root=tmp_path)
    with monkeypatch.context() as context:
        context.setattr(images, "decoded", lambda *_: pytest.fail("decoded again"))
        before = ImageDataset("train", root=tmp_path)
    picture(path, seed=3)
    os.utime(path, ns=(1, 1))
    after = ImageDataset("train", root=tmp_path)
    assert not torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert len(list(own_cache.iterdir())) == 2  # the old one is gone, that of another size is not
    kept = set(own_cache.iterdir())
    monkeypatch.setattr(images, "DECODED", images.DECODED + 1)
    ImageDataset("train", root=tmp_path)
    assert len(set(own_cache.iterdir()) - kept) == 1  # a version that decodes otherwise does not read what is kept


def test_cache_falls_back_to_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    picture(tmp_path / "data" / "train" / "0.png")
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOMEWORK_CACHE", str(tmp_path / "file" / "cache"))  # no folder can be made here
    for _ in range(2):
        assert len(ImageDataset("train", root=tmp_path / "data")) == 1
    (made,) = (tmp_path / "temporary").rglob("*.npy")
    if os.name == "posix":
        assert made.parent.stat().st_mode & 0o777 == 0o700
        made.parent.chmod(0o777)  # others may have put anything into it
        with pytest.raises(OSError, match="set HOMEWORK_CACHE"):
            ImageDataset("train", root=tmp_path / "data")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="caches are elsewhere on these systems")
def test_the_cache_is_where_caches_are(tmp_path, monkeypatch):
    """And neither beside the images nor in the current folder."""
    picture(tmp_path / "data" / "train" / "0.png")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "data")
    for variables, expected in ({"XDG_CACHE_HOME": str(tmp_path / "x")}, "x/homework"), ({}, "home/.cache/homework"):
        for name in ("HOMEWORK_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        ImageDataset("train", root=".")
        assert images.cache_folder() == tmp_path / expected and len(list((tmp_path / expected).iterdir())) == 1
    assert files(tmp_path / "data") == ["train/0.png"]


def test_caches_that_no_one_uses_are_removed_and_other_files_stay(tmp_path, own_cache):
    for name in ("a", "b"):
        ImageDataset(picture(tmp_path / name / "0.png").parent)
    (own_cache / "mine-notes.npy").touch()
    for path in own_cache.iterdir():
        os.utime(path, (1, 1))
    in_use = Path(ImageDataset(tmp_path / "a").images.filename)
    made = Path(ImageDataset(tmp_path / "a", image_size=(3, 3)).images.filename)
    assert set(own_cache.iterdir()) == {in_use, made, own_cache / "mine-notes.npy"}


def test_an_old_cache_that_cannot_be_removed_stays(tmp_path, own_cache, monkeypatch):
    picture(tmp_path / "a" / "0.png")
    own_cache.mkdir(exist_ok=True)
    (old := own_cache / ("0" * 8 + "-" + "0" * 24 + ".npy")).touch()
    os.utime(old, (1, 1))

    def refused(path, missing_ok=False):  # as on Windows, while another process has it open
        raise PermissionError(13, "The file is in use", str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    assert len(ImageDataset(tmp_path / "a")) == 1 and old.exists()


def test_a_limit_decodes_no_others(tmp_path):
    for i in range(3):
        picture(tmp_path / "train" / f"{i}.png", seed=i)
    whole = ImageDataset("train", root=tmp_path)
    damaged(tmp_path / "train" / "2.png", "empty")
    part = ImageDataset("train", root=tmp_path, limit=2)
    assert len(part) == 2 and part.names == whole.names[:2] and torch.equal(part[1], whole[1])


def test_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch, own_cache):
    picture(tmp_path / "train" / "0.png")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images, "_decode_all", full)
    with pytest.raises(OSError, match="The disk is full"):
        ImageDataset("train", root=tmp_path)
    assert list(own_cache.iterdir()) == []


def test_processes_may_make_the_cache_at_once(tmp_path, own_cache):
    for i in range(50):
        picture(tmp_path / "data" / "train" / f"{i}.png", seed=i)
    code = "from homework.data import ImageDataset; print(int(ImageDataset().images.astype(int).sum()))"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE) for _ in range(2)]
    sums = {int(process.communicate()[0]) for process in started}
    assert sums == {sum(int(read_image(p).astype(int).sum()) for p in (tmp_path / "data" / "train").iterdir())}
    assert len(list(own_cache.iterdir())) == 1


def test_a_file_that_vanishes_while_old_caches_are_looked_for_raises_nothing(tmp_path, own_cache):
    """Another process removes an old cache between our listing of the folder and our look at it."""
    picture(tmp_path / "train" / "0.png")
    ImageDataset("train", root=tmp_path)
    (made,) = own_cache.iterdir()
    (own_cache / f"{'0' * 8}-{'0' * 24}.npy").symlink_to("gone")  # listed, but there is nothing to look at
    made.unlink()
    assert len(ImageDataset("train", root=tmp_path)) == 1


def test_missing_and_empty_folders(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="homework.data download"):
        ImageDataset("train", root=tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ImageDataset(tmp_path / "nowhere", root=tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="no images"):
        ImageDataset("train", root=tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file or folder data/train; get the frames with python -m homework.data"):
        image_paths("data/train")


def dataset_json(path: Path, names: list[str]) -> Path:
    entries = {str(i): {"image_fpath": name, "labels": []} for i, name in enumerate(names, start=1)}
    path.write_text(json.dumps({"_default": entries}))
    return path


def test_dataset_json_looks_beside_itself_then_here(tmp_path, monkeypatch):
    beside, here = picture(tmp_path / "a" / "x" / "0.png"), picture(tmp_path / "b" / "1.png")
    absolute = picture(tmp_path / "2.png")
    monkeypatch.chdir(tmp_path / "b")
    path = dataset_json(tmp_path / "a" / "dataset.json", ["x/0.png", "1.png", str(absolute)])
    assert sorted(map(os.path.abspath, image_paths(path))) == sorted(map(str, [beside, here, absolute]))
    with pytest.raises(FileNotFoundError, match="gone.png"):
        image_paths(dataset_json(tmp_path / "c.json", ["gone.png"]))


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"_default": 3}', '{"_default": {"1": {"path": "a"}}}', "\x80", "[" * 100_000,
])  # fmt: skip
def test_other_json_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="a.json is not a dataset.json"):
        image_paths(tmp_path / "a.json")


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 65), st.sampled_from(["folder", "json"]))
def test_a_folder_without_splits_is_split_by_position(n, form):
    with tempfile.TemporaryDirectory() as folder:
        root, names = Path(folder), [f"{i:03}.png" for i in range(n)]
        for i, name in enumerate(names):
            picture(root / name, (2, 3), seed=i)
        if form == "json":
            root = dataset_json(root / "dataset.json", names[::-1])
        train, valid = ([Path(p).name for p in image_paths(split, root)] for split in ("train", "valid"))
        assert valid == names[::20] and sorted(train + valid) == names and train == sorted(train)
        datasets = {split: ImageDataset(split, root=root) for split in ("train", "valid")}
        assert datasets["train"].images.filename != datasets["valid"].images.filename
        for split, dataset in datasets.items():  # neither's cache has replaced the other's
            assert np.array_equal(ImageDataset(split, root=root).images, dataset.images)
            assert np.array_equal(dataset[0].numpy(), read_image(dataset.names[0]))


def test_splits_win_over_images_beside_them(tmp_path):
    picture(tmp_path / "0.png")
    inside = picture(tmp_path / "train" / "1.png")
    assert image_paths("train", tmp_path) == [str(inside)]
    with pytest.raises(FileNotFoundError, match="no folder .*valid, but .*train; .* python -m homework.data import .*train"):
        image_paths("valid", tmp_path)


def test_what_cannot_be_split_is_named(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match="no folder .*train, nor images in .*; get them with"):
        image_paths("train", tmp_path)
    picture(tmp_path / "0.png")
    for root in (tmp_path, dataset_json(tmp_path / "dataset.json", ["0.png"])):
        with pytest.raises(ValueError, match="only one image in"):
            image_paths("valid", root)


def test_pixels_survive_the_way_to_floats_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(pixels)), pixels)
    assert to_float(pixels)[[0, 255]].tolist() == [-0.5, 0.5]
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


@pytest.mark.parametrize("as_type", [np.array, torch.tensor])
def test_batch_gathers_in_the_order_asked_for(tmp_path, as_type):
    for i in range(5):
        picture(tmp_path / "train" / f"{i}.png", seed=i)
    dataset = ImageDataset("train", root=tmp_path)
    batch = dataset.batch(as_type([3, 0, 3]))
    assert batch.dtype == torch.float32
    assert torch.equal(batch, torch.stack([to_float(dataset[i]) for i in (3, 0, 3)]))


def test_augment_mirrors_half_of_the_images(tmp_path):
    picture(tmp_path / "train" / "0.png")
    dataset = ImageDataset("train", root=tmp_path)
    batch = dataset.batch(np.zeros(200, dtype=np.int64))
    once, again = (dataset.augment(batch.clone(), torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(once, again)
    same, mirrored = ((once == b).flatten(1).all(1) for b in (batch, batch.flip(2)))
    assert (same ^ mirrored).all() and 70 < mirrored.sum() < 130  # 4 standard deviations


@pytest.mark.skipif(not (ROOT / "data" / "valid").is_dir(), reason="the real frames are not in data/valid")
def test_real_frames(tmp_path):
    paths = image_paths("valid", ROOT / "data")
    dataset = ImageDataset(paths[:3], root=tmp_path)
    assert len(paths) == 1280 and dataset[0].shape == (100, 150, 3) and dataset.model_defaults() == {}


# Tokens


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.int64])
def test_tokens_of_any_integer_type(tmp_path, dtype):
    if dtype == torch.uint16 and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        pytest.skip("this torch cannot save uint16")
    tokens = torch.arange(24).reshape(4, 2, 3)
    write({"tokens": tokens.to(dtype), "n_tokens": 99, "names": list("abcd")}, tmp_path / "tokenized_train.pth")
    dataset = TokenDataset("train", root=tmp_path)
    assert len(dataset) == 4 and dataset.names == list("abcd")
    assert dataset.model_defaults() == {"n_tokens": 99, "height": 2, "width": 3}
    assert torch.equal(torch.stack(list(dataset)), tokens) and dataset[0].dtype == torch.int64
    batch = dataset.batch(torch.tensor([2, 0]))
    assert torch.equal(batch, tokens[[2, 0]]) and dataset.augment(batch, torch.Generator()) is batch


def test_plain_tensor_of_tokens(tmp_path):
    torch.save(torch.tensor([[[1, 7]]]), tmp_path / "a.pth")
    assert TokenDataset(tmp_path / "a.pth").n_tokens == 8
    torch.save(torch.tensor([[[1, 255]]], dtype=torch.uint8), tmp_path / "a.pth")
    assert TokenDataset(tmp_path / "a.pth").n_tokens == 256


def test_other_token_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="homework.tokenize TOKENIZER .*tokenized_valid.pth .*valid"):
        TokenDataset("valid", root=tmp_path)
    grids = torch.zeros(2, 2, 2, dtype=torch.int64)
    for content in (
        grids.float(),
        grids[0],
        grids[:0],
        {"model": "X"},
        {"tokens": grids + 5, "n_tokens": 5},
        [1],
        grids - 1,
    ):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(ValueError, match="a.pth holds"):
            TokenDataset(tmp_path / "a.pth")


# The commands


def archive(path: Path, names: list[str]) -> Path:
    """A zip with a different picture under each name."""
    with zipfile.ZipFile(path, "w") as file:
        for i, name in enumerate(names):
            file.writestr(name, picture(path.parent / "scratch.png", seed=i).read_bytes())
    return path


NAMES = [
    "deep/data/train/0.png",
    "deep/data/train/1.png",
    "deep/data/valid/0.png",
    "deep/data/train/0_info.json",
    "readme.png",
]


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


@pytest.mark.parametrize("unpacked", [False, True])
def test_import_of_a_zip_or_folder(tmp_path, unpacked):
    source = archive(tmp_path / "a.zip", NAMES)
    contents = {name: zipfile.ZipFile(source).read(name) for name in NAMES}
    if unpacked:
        zipfile.ZipFile(source).extractall(source := tmp_path / "a")
    download.import_(source, tmp_path / "data")
    assert files(tmp_path / "data") == ["train/0.png", "train/1.png", "valid/0.png"]
    for name in NAMES[:3]:
        assert Path(tmp_path, "data", *Path(name).parts[2:]).read_bytes() == contents[name]


def test_import_replaces_only_when_asked_to(tmp_path):
    elsewhere = picture(tmp_path / "elsewhere" / "9.png").parent
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(elsewhere)
    source = archive(tmp_path / "a.zip", NAMES)
    with pytest.raises(ValueError, match="train exists already; pass --replace"):
        download.import_(source, tmp_path / "data")
    assert (tmp_path / "data" / "train").is_symlink()
    download.import_(source, tmp_path / "data", replace=True)
    assert files(tmp_path / "data") == ["train/0.png", "train/1.png", "valid/0.png"]
    assert files(elsewhere) == ["9.png"]  # what the link pointed to


def test_bad_images_are_left_out_where_that_is_asked_for(tmp_path, capsys):
    for i in range(4):
        picture(tmp_path / "images" / f"{i}.png", seed=i)
    (tmp_path / "images/1.png").write_bytes(b"no image")
    picture(tmp_path / "images/2.png", (5, 5))
    with pytest.raises(ValueError, match="1.png cannot be read"):
        ImageDataset(tmp_path / "images")
    data = ImageDataset(tmp_path / "images", skip_bad=True)
    assert [Path(name).name for name in data.names] == ["0.png", "3.png"] and data.batch([1]).shape == (1, *SIZE, 3)
    assert [Path(line.split()[0]).name for line in data.left_out] == ["1.png", "2.png"]
    assert "Left out" not in capsys.readouterr().err
    assert "1.png cannot be read" in data.left_out[0] and "2.png is 5x5, most are 6x8" in data.left_out[1]
    download.import_(tmp_path / "images", tmp_path / "data", valid_every=4, skip_bad=True)
    assert files(tmp_path / "data") == ["train/000001_0.png", "train/000003_2.png", "valid/000004_3.png"]
    out, said = capsys.readouterr()
    assert said.count("train/000002_1.png cannot be read") == 1 and "train: 2 images" in out


def test_an_import_that_cannot_take_their_place_leaves_the_old_images(tmp_path, monkeypatch):
    for split in "train", "valid":
        picture(tmp_path / "data" / split / "old.png")
    rename = os.rename

    def refused(source, target):  # as on Windows, while another program has a new file open
        if Path(target).parent == tmp_path / "data" and not Path(source).name.startswith("old-"):
            raise PermissionError(13, "Access is denied", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(PermissionError):
        download.import_(archive(tmp_path / "a.zip", NAMES), tmp_path / "data", replace=True)
    assert files(tmp_path / "data") == ["train/old.png", "valid/old.png"]


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize(
    "name",
    [
        "../train/0.png",
        "/train/0.png",
        "a/../../train/0.png",
        r"..\train\0.png",
        r"C:\train\0.png",
        link("train/l.png"),
    ],
    ids=str,
)
def test_zip_that_climbs_out_is_refused(tmp_path, name):
    source = archive(tmp_path / "a.zip", NAMES)
    with zipfile.ZipFile(source, "a") as file:
        file.writestr(name, b"/etc/passwd")
    with pytest.raises(ValueError, match="leads out"):
        download.import_(source, tmp_path / "x" / "data")
    assert not (tmp_path / "x").exists()


def test_damaged_zip_leaves_nothing(tmp_path):
    whole = archive(tmp_path / "a.zip", NAMES).read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"1.png") + 60] ^= 1  # in the second image's pixels: only its CRC tells
    for broken in (b"", b"no zip", whole[: len(whole) // 2], bytes(flipped)):
        (tmp_path / "a.zip").write_bytes(broken)
        with pytest.raises(ValueError, match="a.zip is not a zip, or a damaged one"):
            download.import_(tmp_path / "a.zip", tmp_path / "data")
        assert not (tmp_path / "data").exists() or os.listdir(tmp_path / "data") == []


def test_import_needs_images_and_single_names(tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        download.import_(archive(tmp_path / "a.zip", ["a/0.txt"]), tmp_path / "data")
    with pytest.raises(ValueError, match="several train/0.png"):
        download.import_(archive(tmp_path / "a.zip", ["a/train/0.png", "b/train/0.png"]), tmp_path / "data")
    with pytest.raises(FileNotFoundError, match="gone.zip"):
        download.import_(tmp_path / "gone.zip", tmp_path / "data")


@pytest.mark.parametrize("zipped", [False, True])
def test_import_without_a_split_makes_one(tmp_path, zipped):
    names = [f"p/{i}.png" for i in range(6)]
    for i, name in enumerate(names):
        picture(tmp_path / name, seed=i)
    source = archive(tmp_path / "a.zip", names) if zipped else tmp_path / "p"
    download.import_(source, tmp_path / "data", valid_every=3)
    assert files(tmp_path / "data" / "valid") == ["000003_2.png", "000006_5.png"]
    assert len(files(tmp_path / "data" / "train")) == 4


@pytest.mark.parametrize("n", [2, 5, 19])
def test_of_few_images_one_validates(tmp_path, n, capsys):
    for i in range(n):
        picture(tmp_path / "p" / f"{i:02}.png", seed=i)
    download.import_(tmp_path / "p", tmp_path / "data")
    assert "--valid_every N changes that" in capsys.readouterr().out
    assert len(image_paths("valid", tmp_path / "data")) == 1 and len(image_paths("train", tmp_path / "data")) == n - 1


def test_one_image_cannot_be_shared_out(tmp_path):
    picture(tmp_path / "p" / "0.png")
    with pytest.raises(ValueError, match="holds only one image, but training and validation need one each"):
        download.import_(tmp_path / "p", tmp_path / "data")


def test_import_keeps_folders_below_the_splits(tmp_path):
    """And takes neither hidden files nor what the source's own path is called."""
    source = tmp_path / "valid" / "source"
    names = ["train/cat/0.png", "train/dog/0.png", "valid/cat/1.png"]
    for i, name in enumerate([*names, ".trash/train/2.png"]):
        picture(source / name, seed=i)
    download.import_(source, tmp_path / "data")
    assert files(tmp_path / "data") == names
    download.import_(source / "train", tmp_path / "again")
    assert len(files(tmp_path / "again")) == 2 and (tmp_path / "again" / "valid").is_dir()


def test_import_of_a_dataset_json(tmp_path):
    names = [f"{i % 2}/{i // 2}.png" for i in range(7)]  # the same names in two folders
    for i, name in enumerate(names):
        picture(tmp_path / name, seed=i)
    download.import_(dataset_json(tmp_path / "d.json", names), tmp_path / "data", valid_every=3)
    assert files(tmp_path / "data" / "valid") == ["000003_1.png", "000006_2.png"]
    assert len(files(tmp_path / "data" / "train")) == 5
    stored = {p.read_bytes() for p in (tmp_path / "data").rglob("*.png")}
    assert stored == {(tmp_path / name).read_bytes() for name in names}


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("have", [None, 0, 1, 500_000, 999_999, 1_000_000])
def test_resumed_download_equals_the_file(tmp_path, serve, have, ranges):
    content = np.random.default_rng(0).bytes(1_000_000)
    if have is not None:
        (tmp_path / "part").write_bytes(content[:have])
    download.fetch(serve(content=content, ranges=ranges), tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == content


def test_a_part_longer_than_the_file_starts_over(tmp_path, serve):
    (tmp_path / "part").write_bytes(b"of another file")
    download.fetch(serve(content=b"short"), tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == b"short"


def test_cut_connections_come_to_an_end(tmp_path, serve):
    content = np.random.default_rng(0).bytes(250_000)
    url = serve(content=content, cut=100_000)
    for have in (100_000, 200_000):
        with pytest.raises(OSError, match=f"broke after {have} of 250000 bytes; run the same command again"):
            download.fetch(url, tmp_path / "part")
    download.fetch(url, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == content


def test_download_command(tmp_path, serve):
    content = archive(tmp_path / "a.zip", NAMES).read_bytes()
    done = run("download", "--url", serve(content=content), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "data") == ["train/0.png", "train/1.png", "valid/0.png"]  # the zip itself is gone
    again = run("download", "--url", serve(status=500), cwd=tmp_path)
    assert again.returncode == 1 and "exists already" in again.stderr


def test_download_says_what_is_wrong(tmp_path, serve):
    with pytest.raises(OSError, match="answered 404 Not Found; .*data import ZIP"):
        download.download(tmp_path / "data", serve(status=404))
    with pytest.raises(OSError, match="no connection"):
        download.download(tmp_path / "data", "http://127.0.0.1:1/a.zip")
    assert not (tmp_path / "data").exists()
    with pytest.raises(ValueError, match="broken file, now removed"):
        download.download(tmp_path / "data", serve(content=b"<html>Please log in</html>"))
    assert files(tmp_path / "data") == []


# --- near-copies ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=30), st.floats(0.5, 60))
def test_near_copies_are_near_what_is_kept_and_what_is_kept_is_not(greys, distance):
    """Of plain images, whose distance is that of their greys."""
    near, kept = NearCopies(distance), list[int]()
    for grey in greys:
        left_out = near.has(Image.new("L", (30, 20), grey))
        assert left_out == any(abs(grey - other) < distance for other in kept)
        kept += [] if left_out else [grey]


def test_more_are_remembered_than_there_was_room_for():
    near, draw = NearCopies(1), np.random.default_rng(0)
    frames = [Image.fromarray(draw.integers(0, 256, (10, 15, 3), np.uint8)) for _ in range(1100)]
    assert not any(map(near.has, frames)) and all(map(near.has, frames))


def test_import_of_distinct_images(tmp_path, capsys):
    """Frames of three scenes, each with a little noise; those to validate on stay."""
    draw = np.random.default_rng(0)
    for split in "train", "valid":
        (tmp_path / "in" / split).mkdir(parents=True)
        for i in range(12):
            x = np.full((20, 30, 3), 60 * (i % 3) + 30) + draw.integers(-2, 3, (20, 30, 3))
            Image.fromarray(x.astype(np.uint8)).save(tmp_path / f"in/{split}/{i:02}.png")
    (tmp_path / "in/train/99.png").write_bytes(b"damaged")  # copied like the others
    download.import_(tmp_path / "in", tmp_path / "all")
    assert len(files(tmp_path / "all")) == 25
    capsys.readouterr()
    download.import_(tmp_path / "in", tmp_path / "out", distinct=2)
    valid = [f"valid/{i:02}.png" for i in range(12)]
    assert files(tmp_path / "out") == ["train/00.png", "train/01.png", "train/02.png", "train/99.png", *valid]
    assert "9 images that hardly differ from one before" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--distinct"):
        download.import_(tmp_path / "in", tmp_path / "out", distinct=-1, replace=True)
