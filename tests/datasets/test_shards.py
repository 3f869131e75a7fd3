"""WebDataset shards: making them, reading them, training on them, and bulk jobs over them that are killed."""

import errno
import gzip
import io
import json
import os
import random
import shutil
import signal
import tarfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build, command, run, sentence  # noqa: F401  a fixture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tqdm import tqdm

from homework.codec.archive import Reader
from homework.compress import compress, decompress, info
from homework.core import checkpoint, files
from homework.core.devices import generator
from homework.datasets import shards
from homework.datasets.bulk import shard_name
from homework.datasets.image_files import image_paths, read_image, spread
from homework.datasets.images import ImageDataset
from homework.datasets.shard_dataset import ShardDataset, WindowOrder, has_shards, split_shards
from homework.datasets.shard_paths import Chain, n_images
from homework.datasets.sharding import parse_bytes, shard
from homework.datasets.shards import MANIFEST, Shard, open_shard, shards_in
from homework.datasets.tokens import TokenDataset
from homework.features import features
from homework.tokenize import tokenize

OPTIONS = ["--latent_dim", "8", "--encoder_blocks", "1", "--decoder_blocks", "1", "--detail", "2", "--bottleneck", "4",
           "--patch_size", "5", "--pca", "0", "--batch_size", "3", "--warmup", "2", "--device", "cpu",
           "--output", "out.pth"]  # fmt: skip


def pictures(folder: Path, n: int, seed: int = 0) -> Path:
    """Noise of 10x15, in PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for i in range(n):
        Image.fromarray(draw.integers(0, 256, (10, 15, 3), dtype=np.uint8)).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Folders of images, train (23) and valid (8), and of shards of five of them at most, shards/train and shards/valid."""
    folder = tmp_path_factory.mktemp("shards")
    for i, (split, n) in enumerate({"train": 23, "valid": 8}.items()):
        pictures(folder / split, n, i)
        shard(str(folder / split), str(folder / "shards" / split), size="9KB")
    assert len(shards_in(folder / "shards/train")) == 5
    return folder


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    checkpoint.save(build("BSQPatchAutoEncoder"), tmp_path / "tokenizer.pth")
    return tmp_path / "tokenizer.pth"


def damage(path: Path) -> str:
    """Spoils the first image of a shard, and returns its name."""
    name, (start, length) = next(iter(Shard(str(path)).places.items()))
    content = bytearray(path.read_bytes())
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    return name


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- making them ----------------------------------------------------------------------------------------------------------


def test_shards_are_the_same_bytes_whatever_the_files_age_and_place(made, tmp_path):
    pictures(tmp_path / "elsewhere/train", 23)
    shard(str(tmp_path / "elsewhere/train"), str(tmp_path / "train"), size="9KB")
    assert content(tmp_path / "train") == content(made / "shards/train")
    for path in shards_in(tmp_path / "train"):
        with tarfile.open(path) as tar:
            assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}
        assert Path(path).stat().st_size <= 9000


def test_what_is_missing_is_made_and_no_more(made, tmp_path, capsys):
    shard(str(made / "train"), str(tmp_path / "train"), size="9KB")
    before, kept = content(tmp_path / "train"), tmp_path / "train/train-000000.tar"
    age = kept.stat().st_mtime_ns
    for name in (MANIFEST, "train-000003.tar"):
        (tmp_path / "train" / name).unlink()
    shard(str(made / "train"), str(tmp_path / "train"), size="9KB")
    assert content(tmp_path / "train") == before and kept.stat().st_mtime_ns == age
    assert "23 images in 5 shards, of which 4 were there" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is not a shard of these images at this --size"):
        shard(str(made / "train"), str(tmp_path / "train"), size="7KB")
    shard(str(made / "train"), str(tmp_path / "train"), size="7KB", replace=True)
    assert len(shards_in(tmp_path / "train")) == 8


def test_shards_of_shards_hold_the_same_images(made, tmp_path):
    shard(str(made / "shards/train"), str(tmp_path / "more"), size="1GB")
    (path,) = shards_in(tmp_path / "more")
    old = [read_image(p) for p in image_paths(str(made / "train"))]
    assert all(np.array_equal(a, read_image(b)) for a, b in zip(old, image_paths(path), strict=True))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("name", ["a" * 250, "ä" * 120, "a b'c", "deep/" * 60 + "x", "1.2.3", os.fsdecode(b"\xff")])
def test_any_name_survives(tmp_path, name):
    for i, stem in enumerate((name, "z")):
        path = tmp_path / "images" / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2, 3), i, np.uint8)).save(path)
    shard(str(tmp_path / "images"), str(tmp_path / "out"))
    levels = {path.name: int(read_image(path).max()) for path in image_paths(str(tmp_path / "out"))}
    assert levels == {f"{name}.png": 0, "z.png": 1}


@pytest.mark.parametrize("text, n", [("1GB", 10**9), ("1.5 kb", 1500), ("7", 7), ("0MB", None), ("x", None), ("-1", None)])
def test_sizes(text, n):
    if n:
        assert parse_bytes(text) == n
    else:
        with pytest.raises(ValueError, match="--size is"):
            parse_bytes(text)


# --- reading them ---------------------------------------------------------------------------------------------------------


def test_an_image_of_a_shard_is_that_of_the_folder(made):
    paths = image_paths(str(made / "shards/train"))
    assert [Path(p).name for p in paths] == [f"{i:03}.png" for i in range(23)] and all("train-0000" in p for p in paths)
    assert all(np.array_equal(read_image(p), read_image(made / "train" / Path(p).name)) for p in paths)


def test_an_image_of_a_shard_can_be_named_and_cached(made):
    member = f"{made}/shards/train/train-000001.tar/007.png"
    assert image_paths([member, str(made / "train/000.png")])[0] == member
    pair = ImageDataset([member, str(made / "train/007.png")])
    assert torch.equal(pair[0], pair[1])
    with pytest.raises(FileNotFoundError, match="There is no file or folder .*train-000001.tar/999.png"):
        image_paths(member.replace("007", "999"))


def test_urls_pipes_and_packed_tars_are_read_as_local_ones(made, tmp_path, serve):
    pytest.importorskip("webdataset", reason="there is no webdataset; pip install webdataset")
    if not shutil.which("curl"):
        pytest.skip("there is no curl, by which webdataset reads URLs")
    first = made / "shards/train/train-000000.tar"
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(first.read_bytes()))
    expected = [read_image(p) for p in image_paths(str(first))]
    url = f"{serve(content=made / 'shards/train')}/train-000000.tar"
    for source in url, f"pipe:cat {first}", str(tmp_path / "a.tar.gz"), f"pipe:cat {tmp_path / 'a.tar.gz'}":
        assert all(np.array_equal(a, read_image(b)) for a, b in zip(expected, image_paths(source), strict=True))
    for source in url.replace("train-", "none-"), "pipe:cat none.tar 2> /dev/null":
        with pytest.raises(OSError, match="cannot be read .its program ended with exit code"):
            image_paths(source)


def test_braces_name_shards(made):
    pytest.importorskip("webdataset", reason="there is no webdataset; pip install webdataset")
    folder = made / "shards/train"
    assert shards_in(f"{folder}/train-{{000001..000003}}.tar") == [f"{folder}/train-00000{i}.tar" for i in (1, 2, 3)]
    assert len(image_paths(f"{folder}/train-{{000000..000004}}.tar")) == 23
    with pytest.raises(FileNotFoundError, match=r"no shard .*train-000005.tar, which .*\{000004..000009\}.tar names"):
        image_paths(f"{folder}/train-{{000004..000009}}.tar")
    with pytest.raises(ValueError, match="does not name shards .*Unbalanced"):
        image_paths(f"{folder}/train-{{000004..000009.tar")


@pytest.mark.parametrize("source", ["data/train", "a.png", "a.tar.png", "dataset.json", "x.target", ""])
def test_what_names_no_shards(source):
    assert shards_in(source) is None


@given(st.integers(0, 8999))
@settings(max_examples=20)
def test_a_shard_that_is_cut_short_is_named(made, tmp_path_factory, n):
    whole = (made / "shards/train/train-000000.tar").read_bytes()
    path = tmp_path_factory.getbasetemp() / "cut.tar"
    path.write_bytes(whole[: min(n, len(whole) - 1024)])
    with pytest.raises(ValueError, match="cut.tar is not a tar file, or damaged or cut short"):
        image_paths(str(path))


@given(st.lists(st.lists(st.integers(0, 99).map(str), max_size=5), max_size=6), st.data())
def test_a_chain_is_the_lists_after_one_another(lists, data):
    whole, made = sum(lists, []), list[int]()
    chain = Chain([*map(len, lists)], lambda k: (made.append(k), lists[k])[1])
    assert len(chain) == len(whole) and bool(chain) == bool(whole) and not made
    n = data.draw(st.integers(1, 9) | st.none())
    assert spread(chain, n) == spread(whole, n)
    assert made == sorted({*made}) and len(made) <= (n or 30)  # each list once, and none that has none of these
    places = data.draw(st.slices(len(whole)))
    assert [*chain] == whole and chain[places] == whole[places] and [*reversed(chain)] == whole[::-1]
    for i in range(-len(whole), len(whole)):
        assert chain[i] == whole[i]
    for i in -len(whole) - 1, len(whole):
        with pytest.raises(IndexError):
            chain[i]


@given(st.lists(st.sampled_from([0, 1, 2, 3, 4]), min_size=1, max_size=8), st.integers(1, 30))
@settings(max_examples=20)
def test_paths_in_shards_are_those_of_a_list_of_all(made, numbers, limit):
    """Whichever shards are named, in whatever order, and as often."""
    urls = [f"{made}/shards/train/train-{i:06}.tar" for i in numbers]
    listed = sorted({member for url in urls for member in shards.members_of(url)})
    paths = image_paths(urls)
    assert not isinstance(paths, list) and [*paths] == listed and spread(paths, limit) == spread(listed, limit)
    assert image_paths([*urls, made / "valid"]) == sorted([*listed, *image_paths(made / "valid")])


def test_only_shards_with_wanted_images_are_opened(made, tmp_path):
    shutil.copytree(made / "shards/train", tmp_path / "train")
    for i in 2, 4:
        cut(tmp_path / f"train/train-00000{i}.tar")
    assert [Path(path).name for path in spread(image_paths(tmp_path / "train"), 3)] == ["000.png", "007.png", "015.png"]
    with pytest.raises(ValueError, match="train-000002.tar is not a tar file, or damaged"):
        list(image_paths(tmp_path / "train"))
    shutil.copy(made / "shards/valid/valid-000001.tar", tmp_path / "train/train-000001.tar")
    with pytest.raises(ValueError, match="train-000001.tar holds 3 images, but 5 by shards.json"):
        list(image_paths(tmp_path / "train"))


@pytest.mark.parametrize("url, name", [("a/b-01.tar", "b-01"), ("https://h/x.tar.gz", "x"), ("pipe:cat 'h/y.tgz'|cat", "y"),
                                       ("pipe:cat", "000007")])  # fmt: skip
def test_names_of_outputs(url, name):
    assert shard_name(url, 7) == name


# --- training on them -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 99), st.data())
def test_an_order_is_a_permutation_that_goes_through_few_shards_at_a_time(counts, window, seed, data):
    n = sum(counts)
    order = WindowOrder(np.array(counts), window, partial(generator, seed, 0))
    whole = order[0:n].tolist()
    assert sorted(whole) == list(range(n))
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start, n))
    again = WindowOrder(np.array(counts), window, partial(generator, seed, 0))
    assert again[start:stop].tolist() == whole[start:stop]
    shards = np.searchsorted(np.cumsum(counts), whole, side="right").tolist()
    first, last = {s: shards.index(s) for s in shards}, {s: len(shards) - shards[::-1].index(s) for s in shards}
    assert max(sum(first[s] <= i < last[s] for s in first) for i in range(n)) <= window


def test_the_shuffle_depends_on_the_seed_and_the_epoch_alone(made):
    data = ShardDataset("train", made / "shards")

    def order(*numbers):
        return data.order(23, partial(generator, *numbers))[0:23].tolist()

    assert order(0, 0) == order(0, 0) != order(0, 1) != order(1, 0) != order(0, 0)
    assert sorted(data.order(12, partial(generator, 0, 0))[0:12].tolist()) == list(range(12))


def test_samples_are_those_of_the_folder(made):
    data, folder = ShardDataset("train", made / "shards"), ImageDataset("train", root=made)
    assert len(data) == 23 and data.size == folder.size == (10, 15) and torch.equal(data[22], folder[22])
    indices = torch.tensor([22, 0, 7, 7])
    assert torch.equal(data.batch(indices), folder.batch(indices))
    data.prefetch(torch.tensor([7, 3]))
    assert torch.equal(data.batch(indices), folder.batch(indices)) and list(data.ahead) == [3]
    data.prefetch([])
    assert not data.ahead
    scaled = ShardDataset("valid", made / "shards", image_size=(5, 5))
    assert scaled.batch([3]).shape == (1, 5, 5, 3)


def test_splits(made, tmp_path):
    pytest.importorskip("webdataset", reason="there is no webdataset; pip install webdataset")
    train = f"{made}/shards/train/train-{{000000..000004}}.tar"
    assert [len(split_shards(split, train)) for split in ("train", "valid")] == [4, 1]
    assert has_shards(made / "shards") and has_shards(made / "shards/train") and not has_shards(made / "train")
    assert [len(split_shards(split, made / "shards/train")) for split in ("train", "valid")] == [4, 1]
    left_out = set[str]()
    assert n_images(["pipe:false"], left_out) == {"pipe:false": 0} and "exit code 1" in left_out.pop()
    with pytest.raises(OSError, match="exit code 1"):
        n_images(["pipe:false"])
    both = f"{train}::{made}/shards/valid/valid-000000.tar"
    assert split_shards("valid", both) == [f"{made}/shards/valid/valid-000000.tar"] and len(split_shards("train", both)) == 5
    with pytest.raises(ValueError, match="names 1 shard for validation and none for training"):
        split_shards("train", f"{made}/shards/train/train-000000.tar")


def test_a_full_disk_is_no_fault_of_a_shard(made, monkeypatch):
    pytest.importorskip("webdataset", reason="there is no webdataset; pip install webdataset")

    def full(stream):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "_in_temporary", full)
    with pytest.raises(OSError, match="No space left"):
        n_images([f"pipe:cat {made}/shards/train/train-000001.tar"], set())


def test_a_run_on_shards_resumes_bit_for_bit(made, tmp_path, command, monkeypatch):  # noqa: F811
    """Also in the middle of a shard, and the order does not depend on what was read before."""
    monkeypatch.chdir(tmp_path)
    train = ["train", "PatchAutoEncoder", "--data", made / "shards", "--epochs", "1", "--shuffle_shards", "2", *OPTIONS]
    assert command(*train, "--name", "whole").returncode == 0
    from homework.training.loop import Run

    step = Run.step

    def interrupted(self):
        self.stopped = signal.SIGINT if self.update == 3 else 0
        return step(self)

    monkeypatch.setattr(Run, "step", interrupted)
    assert command(*train, "--name", "parts").returncode == 130
    monkeypatch.setattr(Run, "step", step)
    assert command("train", "PatchAutoEncoder", "--resume", "--name", "parts").returncode == 0
    whole, parts = (files.read(f"checkpoints/{name}.pth")["state_dict"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_damaged_image_ends_a_training_or_is_left_out(made, tmp_path, command, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    for split in "train", "valid":
        shard(str(made / split), f"data/{split}", size="9KB")
    name = damage(Path("data/train/train-000002.tar"))
    train = ["train", "PatchAutoEncoder", "--data", "data", "--epochs", "1", *OPTIONS]
    said = sentence(command(*train))
    assert f"train-000002.tar/{name} cannot be read as an image" in said
    done = command(*train, "--skip_bad")
    assert done.returncode == 0 and f"Left out:\n  data/train/train-000002.tar/{name} cannot be read" in done.stderr
    assert done.stderr.count(name) == 1
    cut(Path("data/train/train-000001.tar"))
    assert "train-000001.tar is not a tar file, or damaged or cut short" in sentence(command(*train))
    done = command(*train, "--skip_bad")
    assert done.returncode == 0 and "Left out:\n  data/train/train-000001.tar is not a tar file" in done.stderr
    data, whole = ShardDataset("train", "data", skip_bad=True), ImageDataset("train", root=made)
    both = run("-m", "homework.train", *train[1:], "--skip_bad", cwd=tmp_path, processes=2)  # each decodes its own share
    assert both.returncode == 0 and [both.stderr.count(x) for x in ("Left out:", "000001.tar is not", name)] == [1, 1, 1]
    others = [11, 11, 12, 13, 14, 11, 11]  # for samples 5 to 11: the same position of the next shard, or the next sample
    assert torch.equal(data.batch(range(5, 12)), whole.batch(others))


# --- bulk jobs ------------------------------------------------------------------------------------------------------------


def test_every_shard_becomes_a_file_of_tokens_with_the_grids_of_its_images(made, tmp_path, tokenizer, capsys):
    tokenize(tokenizer, tmp_path / "all.pth", str(made / "shards/train"))
    tokenize(tokenizer, tmp_path / "out", str(made / "shards/train"), shards=True)
    assert "out: 5 of 5 shards done" in capsys.readouterr().out
    whole = files.read(tmp_path / "all.pth")
    parts = [files.read(path) for path in sorted((tmp_path / "out").glob("*.pth"))]
    assert torch.equal(torch.cat([part["tokens"] for part in parts]), whole["tokens"])
    assert sum((part["names"] for part in parts), []) == whole["names"]
    with pytest.raises(ValueError, match="has outputs made by another copies"):
        tokenize(tokenizer, tmp_path / "out", str(made / "shards/train"), shards=True, copies=1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on Windows")
@pytest.mark.parametrize("kind", ["tokenize", "compress", "features"])
def test_a_job_that_is_killed_again_and_again_makes_what_an_uninterrupted_one_makes(made, tmp_path, tokenizer, kind):
    checkpoint.save(build("AutoregressiveModel"), tmp_path / "prior.pth")
    checkpoint.save(build("PatchAutoEncoder"), tmp_path / "ae.pth")

    def job(folder: Path) -> None:
        source, options = str(made / "shards/train"), {"shards": True, "batch_size": 2, "device": "cpu"}
        if kind == "tokenize":
            tokenize(tokenizer, folder, source, **options)
        elif kind == "features":
            features(tmp_path / "ae.pth", source, folder, **options)
        else:
            compress(tokenizer, tmp_path / "prior.pth", source, folder, **options, effort=0, quiet=True)

    job(tmp_path / "one")
    expected, draw, partly, there = content(tmp_path / "one"), random.Random(0), 0, {}
    for _ in range(8):
        child, enough = os.fork(), len(there) + draw.randint(0, 2)
        if not child:
            tqdm.set_lock(threading.RLock())  # its own, for one that is shared stays taken when who has it is killed
            job(tmp_path / "many")
            os._exit(0)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if len(list(tmp_path.glob("many/*.*"))) >= enough:
                time.sleep(draw.uniform(0, 0.02))
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                break
        there = content(tmp_path / "many") if (tmp_path / "many").exists() else {}
        there = {name: data for name, data in there.items() if not name.endswith(".tmp")}
        assert there.items() <= expected.items()
        partly += 1 < len(there) < len(expected)
        if there == expected:
            shutil.rmtree(tmp_path / "many")
            there = {}
    assert partly
    job(tmp_path / "many")
    assert {n: data for n, data in content(tmp_path / "many").items() if not n.endswith(".tmp")} == expected


def test_two_processes_make_what_one_makes(made, tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "shards/train", "shards")
    tokenize(tokenizer, tmp_path / "one", "shards", shards=True, device="cpu")
    done = run("-m", "homework.tokenize", tokenizer, "two", "shards", "--shards", cwd=tmp_path, processes=2)
    assert done.returncode == 0 and "5 of 5 shards done" in done.stdout, done.stderr
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_bad_images_and_shards_are_named_at_the_end(made, tmp_path, tokenizer, command, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    shard(str(made / "train"), "data/train", size="9KB")
    name = damage(Path("data/train/train-000001.tar"))
    cut(Path("data/train/train-000002.tar"))
    said = sentence(command("tokenize", tokenizer, "out", "data/train", "--shards", "--device", "cpu"))
    assert f"train-000001.tar/{name} cannot be read" in said
    done = command("tokenize", tokenizer, "out", "data/train", "--shards", "--skip_bad", "--device", "cpu")
    assert done.returncode == 0 and "4 of 5 shards done" in done.stdout
    end = done.stderr[done.stderr.index("Left out:") :]
    assert f"train-000001.tar/{name} cannot be read" in end and "train-000002.tar is not a tar file, or damaged" in end
    assert len(files.read("out/train-000001.pth")["tokens"]) == 4
    again = command("tokenize", tokenizer, "out", "data/train", "--shards", "--skip_bad", "--device", "cpu")  # makes nothing
    assert again.stderr[again.stderr.index("Left out:") :] == end
    shutil.copy(made / "shards/train/train-000001.tar", "data/train/train-000001.tar")
    Path("out/train-000001.pth").unlink()
    done = command("tokenize", tokenizer, "out", "data/train", "--shards", "--skip_bad", "--device", "cpu")
    assert "train-000001" not in done.stderr[done.stderr.index("Left out:") :] and not [*Path("out").glob("*.left_out.txt")]
    alone = ["tokenize", tokenizer, "none", "data/train/train-000002.tar", "--shards", "--skip_bad", "--device", "cpu"]
    assert "No shard was done" in sentence(command(*alone))


def test_wrong_arguments_of_a_job(made, tmp_path, tokenizer):
    copy = shutil.copy(made / "shards/train/train-000003.tar", tmp_path)
    job = partial(tokenize, tokenizer, shards=True)
    for message, arguments, options in [
        ("names no shards, but --shards is about these", (tmp_path / "out", made / "train"), {}),
        ("with --shards it must be a folder", (tmp_path / "out.pth", made / "shards/train"), {}),
        ("--limit and --split are not for --shards", (tmp_path / "out", made / "shards/train"), {"limit": 3}),
        ("would both become", (tmp_path / "out", made / "shards/train", copy), {}),
    ]:
        with pytest.raises(ValueError, match=message):
            job(*map(str, arguments), **options)
    assert not list(tmp_path.glob("out/*.pth"))


def test_an_empty_shard_is_named(tmp_path, tokenizer):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    with pytest.raises(ValueError, match="There are no images in .*a.tar"):
        tokenize(tokenizer, tmp_path / "out", str(tmp_path / "a.tar"), shards=True)


def test_a_prior_is_trained_on_a_folder_of_token_files(made, tmp_path, tokenizer):
    for split in "train", "valid":
        tokenize(tokenizer, tmp_path / f"whole/tokenized_{split}.pth", str(made / "shards" / split))
        tokenize(tokenizer, tmp_path / f"parts/tokenized_{split}", str(made / "shards" / split), shards=True)
    whole, parts = (TokenDataset("train", tmp_path / name) for name in ("whole", "parts"))
    assert np.array_equal(whole.tokens, parts.tokens) and whole.names == parts.names and whole.meta == parts.meta
    other = tmp_path / "parts/tokenized_train/train-000001.pth"
    files.write(files.read(other) | {"tokenizer": "another"}, other)
    with pytest.raises(ValueError, match="train-000001.pth holds grids of another .* than .*train-000000.pth"):
        TokenDataset("train", tmp_path / "parts")


def test_a_folder_of_archives_is_read_as_one(made, tmp_path, tokenizer, capsys):
    checkpoint.save(build("AutoregressiveModel"), tmp_path / "prior.pth")
    models, options = (tokenizer, tmp_path / "prior.pth"), {"effort": 0, "device": "cpu", "quiet": True}
    compress(*models, str(made / "shards/train"), str(tmp_path / "many"), shards=True, **options)
    compress(*models, str(made / "train"), str(tmp_path / "one.hwa"), **options)
    compress(*models, str(made / "shards/valid"), str(tmp_path / "valid.hwa"), **options)  # or into a single one
    with open(tmp_path / "valid.hwa", "rb") as file:
        assert Reader(file).names[4:6] == ["valid-000000.tar/004.png", "valid-000001.tar/005.png"]
    capsys.readouterr()
    info(str(tmp_path / "many"))
    assert "23 images in 5 archives" in capsys.readouterr().out.splitlines()[-1]
    info(str(tmp_path / "many"), json=True)
    found = [image["name"] for one in json.loads(capsys.readouterr().out) for image in one["images"]]
    assert found == [f"{i:03}.png" for i in range(23)]
    del options["effort"]
    decompress(*models, str(tmp_path / "one.hwa"), str(tmp_path / "one"), **options)
    decompress(*models, str(tmp_path / "many"), str(tmp_path / "all"), **options)
    paths = sorted((tmp_path / "all").glob("*/*.png"))
    assert [path.parent.name for path in paths[::5]] == [f"train-{i:06}" for i in range(5)]
    assert len(paths) == 23
    assert all(np.array_equal(read_image(path), read_image(tmp_path / "one" / path.name)) for path in paths)
    for only in "011.png", "train-000002/011.png":
        decompress(*models, str(tmp_path / "many"), str(tmp_path / "x.png"), only=only, overwrite=True, **options)
        assert np.array_equal(read_image(tmp_path / "x.png"), read_image(tmp_path / "one/011.png"))
    decompress(*models, str(tmp_path / "many"), str(tmp_path / "some"), only="*4.png,020.png", **options)
    assert sorted(path.name for path in (tmp_path / "some").rglob("*.png")) == ["004.png", "014.png", "020.png"]
    with pytest.raises(ValueError, match="many holds no image 99.png; it holds train-000000/000.png"):
        decompress(*models, str(tmp_path / "many"), str(tmp_path / "y.png"), only="99.png", **options)
    (tmp_path / "many/train-000003.hwa").unlink()
    info(str(tmp_path / "many"))
    assert "many: 1 archive missing, train-000003.hwa; compress --shards makes them" in capsys.readouterr().out


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """Of a tar, whose size may be anything, in base 256."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11)
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("what", [
    header("b.jpg", -512), header("b.jpg", -1), header("b.jpg", 2**50), header("b.jpg", 2**80), header("x", 2**34, b"x"),
    header("x", 2**34, b"L"), (header("x", 2, b"L") + b"q\0" + bytes(510)) * 3000,
    header("x", 38, b"x") + b"38 GNU.sparse.size=1000000000000000000\n" + bytes(474), header("b.jpg", 0, b"S"),
])  # fmt: skip
def test_headers_that_lie_are_damage(what, tmp_path):
    """Sizes below 0, on which tarfile goes round in circles, above what there is, and files that are read recursively."""
    image = header("a.jpg", 100) + bytes(512)
    (tmp_path / "a.tar").write_bytes(image + what + image + bytes(1024))
    with pytest.raises(ValueError, match="a.tar is not a tar file, or damaged or cut short"):
        open_shard(str(tmp_path / "a.tar"))


def test_a_job_knows_its_shards(made, tmp_path, tokenizer, monkeypatch):
    """Of a shard of the same name elsewhere, and of a file that was there before, there is no output yet."""
    monkeypatch.chdir(tmp_path)
    for folder in "one", "two":
        shutil.copytree(made / "shards/train", folder)
    tokenize(tokenizer, "out", "one/train-000001.tar", shards=True, device="cpu")
    tokenize(tokenizer, "out", "one/train-000002.tar", shards=True, device="cpu")
    with pytest.raises(ValueError, match="out/train-000001.pth is of the shard .*one/train-000001.tar, not of .*two/"):
        tokenize(tokenizer, "out", "two/train-000001.tar", shards=True, device="cpu")
    Path("out/train-000003.pth").write_bytes(b"mine")
    with pytest.raises(ValueError, match="train-000003.pth is there, but no earlier run"):
        tokenize(tokenizer, "out", "one", shards=True, device="cpu")
    Path("out/job.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="job.json is damaged"):
        tokenize(tokenizer, "out", "one", shards=True, device="cpu")


def test_shards_of_shards_go_elsewhere(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "shards/train", "x")
    before = content(tmp_path / "x")
    for source in "x", "x/../x", "x/train-000000.tar":
        with pytest.raises(ValueError, match="is in the output folder x; name another"):
            shard(source, "x", replace=True)
    assert content(tmp_path / "x") == before
    with pytest.raises(ValueError, match="--size is '9"):
        shard("x", "y", size="9" * 400)
    with pytest.raises(ValueError, match="names 100,000,000 shards, but at most 1,000,000"):
        shards_in("a-{000000..99999999}.tar")
