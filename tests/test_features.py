"""Feature maps on disk: what is written is what the auto-encoder says, whole or not at all, and is read without copies."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GRID, ROOT, build, run, sentence
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from homework import FeatureDataset, ImageDataset, som
from homework.core import checkpoint, files, fingerprint
from homework.datasets import features as feature_maps
from homework.datasets.features import FeatureModel, shard_path, write_index, write_shard
from homework.datasets.image_files import image_paths
from homework.datasets.kinds import DATASETS
from homework.datasets.sharding import shard
from homework.datasets.shards import Shard
from homework.features import features
from homework.tokenize import tokenize
from homework.tokenizers import encoding
from homework.training import resume

N, C = 24, 3  # images in train/, numbers at a position


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ae") / "ae.pth"
    model = build("PatchAutoEncoder", bottleneck=C)
    with torch.no_grad():
        model.encoder.out.weight.mul_(30)  # maps whose numbers differ visibly
    checkpoint.save(model, path, {"valid": {"mse": 0.5}})
    return path


@pytest.fixture
def folder(autoencoder, data, tmp_path) -> Path:
    features(autoencoder, data / "train", tmp_path / "train", batch_size=4, shard=10, device="cpu")
    return tmp_path / "train"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_two_processes_write_what_one_does(autoencoder, data, folder, tmp_path):
    options = ["--batch_size", 4, "--shard", 10, "--device", "cpu"]
    done = run("-m", "homework.features", autoencoder, data / "train", "two", *options, cwd=tmp_path, processes=2)
    assert done.returncode == 0 and done.stdout.count("24 feature maps") == 1, done.stderr
    assert contents(tmp_path / "two") == contents(folder)


def test_bad_images_are_left_out_where_that_is_asked_for(autoencoder, data, tmp_path, capsys):
    source = shutil.copytree(data / "train", tmp_path / "images")
    (source / "003.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="003.jpg cannot be read"):
        features(autoencoder, source, tmp_path / "out", device="cpu")
    for made in range(2):  # the second time it resumes
        features(autoencoder, source, tmp_path / "new", skip_bad=True, device="cpu")
        work, _, said = capsys.readouterr().err.partition("Left out 1 of 24 images: ")
        assert made or "encoding" in work
        assert "003.jpg" not in work and "003.jpg cannot be read" in said
    assert len(FeatureDataset(tmp_path / "new")) == 23


def test_maps_of_shards_are_those_of_the_folder(folder, autoencoder, data, tmp_path):
    shard(str(data / "train"), str(tmp_path / "shards"), size="20KB")
    features(autoencoder, tmp_path / "shards", tmp_path / "new", batch_size=4, shard=10, device="cpu")
    one, other = FeatureDataset(folder), FeatureDataset(tmp_path / "new")
    assert torch.equal(one.batch(torch.arange(N)), other.batch(torch.arange(N)))
    assert [Path(name).name for name in one.names] == [Path(name).name for name in other.names]


def test_maps_are_those_of_the_model(folder, autoencoder, data):
    dataset, images = FeatureDataset(folder), ImageDataset("train", root=data)
    assert len(dataset) == N and dataset.size == (*GRID, C) and dataset.names == images.names
    model = checkpoint.load(autoencoder)
    with torch.no_grad():
        z = model.encode(images.batch(torch.arange(N)))
    assert torch.allclose(dataset.batch(torch.arange(N)), z, rtol=2**-10, atol=1e-4) and z.std() > 1
    assert dataset[5].dtype == torch.float32 and torch.equal(dataset[5], dataset.batch(np.array([5]))[0])
    assert torch.equal(dataset[-1], dataset[N - 1]) and len(list(dataset)) == N
    assert sorted(contents(folder)) == ["autoencoder.pth", *(f"features_{i:05}.npy" for i in range(3)), "index.json"]
    index = json.loads((folder / "index.json").read_text())
    assert index["shards"] == [10, 10, 4] and index["image_size"] == [20, 30] and index["size"] == [*GRID, C]
    assert index["autoencoder"] == fingerprint.identity(model) and index["finished"] is True


def test_shards_are_memory_mapped_half_precision(folder):
    shards = [FeatureDataset(folder).maps(i) for i in range(3)]
    assert all(isinstance(shard, np.memmap) and shard.dtype == np.float16 for shard in shards)
    assert [shard.shape for shard in shards] == [(n, *GRID, C) for n in (10, 10, 4)]


@given(st.lists(st.integers(0, 9), max_size=20), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_batches_over_shards_of_any_sizes(tmp_path_factory, drawn, sizes):
    """In the order asked for, with repetitions."""
    folder, n = tmp_path_factory.mktemp("shards"), sum(sizes)
    maps = np.arange(n * 4, dtype=np.float16).reshape(n, 1, 2, 2)
    index = {"format": "homework features", "version": 1, "size": [1, 2, 2], "image_size": [4, 8], "shards": sizes}
    write_index(folder, index | {"autoencoder": "0", "names": [f"{i}" for i in range(n)]}, finished=True)
    for i, end in enumerate(np.cumsum(sizes)):
        write_shard(shard_path(folder, i), sizes[i], np.split(maps[end - sizes[i] : end], [1]))
    wanted = np.array(drawn, dtype=np.int64) % n
    batch = FeatureDataset(folder).batch(torch.from_numpy(wanted))
    assert batch.dtype == torch.float32 and np.array_equal(batch.numpy(), maps[wanted])


def test_it_is_a_data_set_for_the_training_loop(folder, autoencoder):
    dataset = DATASETS["features"]("train", root=folder.parent)
    assert len(dataset) == N and dataset.holds == "features"
    batch = dataset.batch(torch.tensor([3]))
    assert dataset.augment(batch, torch.Generator()) is batch
    model = checkpoint.load(autoencoder)
    spec = {"model": "PatchAutoEncoder", "config": model.config}
    assert dataset.model_defaults() == {"autoencoder": spec, "height": GRID[0], "width": GRID[1]}

    class Model(FeatureModel):
        def set_autoencoder(self, autoencoder):
            self.state = autoencoder.state_dict()

    dataset.prepare(trained := Model())
    assert all(torch.equal(v, trained.state[k]) for k, v in model.state_dict().items())
    assert checkpoint.load(dataset.autoencoder).meta == {"valid": {"mse": 0.5}}


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_what_was_interrupted_resumes_to_the_same_bytes(folder, autoencoder, data, tmp_path, monkeypatch, after):
    """The run ends with the ``after``-th batch of 7; shards of 3, 3 and 1 batches."""
    options = {"batch_size": 4, "shard": 10, "device": "cpu"}
    calls, to_float = [], encoding.to_float

    def failing(pixels):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return to_float(pixels)

    with monkeypatch.context() as context:
        context.setattr(encoding, "to_float", failing)
        with pytest.raises(KeyboardInterrupt):
            features(autoencoder, data / "train", tmp_path / "other", **options)
    assert len(list((tmp_path / "other").glob("*.npy"))) == after // 3
    with pytest.raises(ValueError, match="is unfinished; the same python"):
        FeatureDataset(tmp_path / "other")
    kept = {name: (tmp_path / "other" / name).stat().st_mtime_ns for name in contents(tmp_path / "other") if ".npy" in name}
    features(autoencoder, data / "train", tmp_path / "other", **options)
    assert contents(tmp_path / "other") == contents(folder)
    for name, mtime in kept.items():
        assert (tmp_path / "other" / name).stat().st_mtime_ns == mtime, "made again"


def test_an_empty_output_is_refused(autoencoder, data, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    assert "The output is empty" in sentence(command("features", autoencoder, data / "train", ""))
    assert contents(tmp_path) == before


def test_temporary_files_of_dead_processes_alone_are_removed(autoencoder, data, tmp_path):
    own, dead = files.temporary_in(tmp_path).name, subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, *others = (tmp_path / "out" / name for name in (own.replace(str(os.getpid()), str(dead.pid)), own, "mine.tmp"))
    left.parent.mkdir()
    for path in left, *others:
        path.touch()
    features(autoencoder, data / "train", left.parent, device="cpu")
    assert not left.exists() and all(path.exists() for path in others)


def test_a_killed_run_leaves_no_damaged_shard(autoencoder, data, tmp_path):
    options = ["--batch_size", "1", "--shard", "2"]
    command = [sys.executable, "-m", "homework.features", str(autoencoder), str(data / "train"), "out", *options]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list((tmp_path / "out").glob("*.npy")) and process.poll() is None and time.time() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shards = sorted((tmp_path / "out").glob("*.npy"))
    assert shards and all(np.load(path).shape == (2, *GRID, C) for path in shards)
    features(autoencoder, data / "train", tmp_path / "out", batch_size=1, shard=2, device="cpu")
    features(autoencoder, data / "train", tmp_path / "whole", batch_size=1, shard=2, device="cpu")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_folder_is_left_as_it_is(folder, autoencoder, data, command):
    before = contents(folder)
    done = command("features", autoencoder, data / "train", folder, "--batch_size", 4, "--shard", 10)
    assert done.returncode == 0 and contents(folder) == before and "24 feature maps of 4x6x3 in 3 files" in done.stdout


def test_other_maps_are_refused_or_replaced(folder, autoencoder, data, tmp_path, command):
    before = contents(folder)
    checkpoint.save(build("PatchAutoEncoder", bottleneck=C, seed=1), tmp_path / "other.pth")
    given = ("--shard", 10)
    for arguments, what in [
        ((tmp_path / "other.pth", data / "train", folder, *given), "autoencoder differ"),
        ((autoencoder, data / "valid", folder, *given), "shards and names differ"),
        ((autoencoder, data / "train", folder, *given, "--image_size", "10x15"), "size and image_size differ"),
        ((autoencoder, data / "train", folder), "shards differ"),
    ]:
        message = sentence(command("features", *arguments))
        assert what in message and "name another folder, or pass --replace" in message
    assert contents(folder) == before
    (folder / "index.json").unlink()
    assert "but no index.json" in sentence(command("features", autoencoder, data / "train", folder, *given))
    assert command("features", autoencoder, data / "valid", folder, "--replace").returncode == 0
    assert len(FeatureDataset(folder)) == 8 and len(contents(folder)) == 3


@pytest.mark.parametrize("name", ["index.json", "features_00001.npy", "autoencoder.pth"])
@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "garbage"])
def test_a_damaged_file_is_named(folder, autoencoder, data, command, name, how):
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    if how != "missing":
        (folder / name).write_bytes({"empty": b"", "truncated": whole[:-9], "garbage": b"garbage" * 99}[how])
    with pytest.raises((ValueError, FileNotFoundError), match=name if (name, how) != ("index.json", "missing") else "train"):
        FeatureDataset(folder).model_defaults()
    done = command("features", autoencoder, data / "train", folder, "--shard", 10, "--batch_size", 4)
    if name == "autoencoder.pth" or how == "missing" and name != "index.json":
        assert done.returncode == 0 and (folder / name).read_bytes() == whole
    else:
        assert name in sentence(done) and ("--replace" in done.stderr or "remove it" in done.stderr)


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"names": 3}, {"shards": [10, 10, 5]}, {"size": [4, 6]}, {"finished": 1}, {"shards": [10, 10, 3, 1]},
     {"size": [4, 6, True]}, {"autoencoder": None}],
)  # fmt: skip
def test_an_index_that_does_not_go_with_the_files(folder, change):
    index = json.loads((folder / "index.json").read_text()) | change
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index.json|features_00002.npy does not hold"):
        FeatureDataset(folder)


def test_another_auto_encoder_beside_the_maps_is_noticed(folder):
    checkpoint.save(build("PatchAutoEncoder", bottleneck=C, seed=1), folder / "autoencoder.pth")
    with pytest.raises(ValueError, match="autoencoder.pth is not the auto-encoder that made"):
        FeatureDataset(folder).model_defaults()


def test_missing_maps_are_named_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="homework.features AUTOENCODER IMAGES .*valid"):
        FeatureDataset("valid", root=tmp_path)
    dataset = FeatureDataset.__new__(FeatureDataset)
    dataset.names = []
    with pytest.raises(IndexError):
        dataset[0]


def test_images_of_other_sizes_and_damaged_ones_are_named(autoencoder, data, tmp_path, command):
    images = tmp_path / "images"
    images.mkdir()
    for i, path in enumerate(sorted((data / "train").iterdir())[:3]):
        (images / f"{i}.jpg").write_bytes(path.read_bytes())
    (images / "1.jpg").write_bytes(b"no image")
    assert "1.jpg cannot be read" in sentence(command("features", autoencoder, images, tmp_path / "out"))
    (images / "1.jpg").write_bytes((ROOT / "data" / "sample" / "temple.jpg").read_bytes())
    done = command("features", autoencoder, images, tmp_path / "out")
    assert "1.jpg is" in sentence(done) and "0.jpg is 20x30" in done.stderr and "--image_size" in done.stderr
    assert command("features", autoencoder, images, tmp_path / "scaled", "--image_size", "10x15").returncode == 0
    assert FeatureDataset(tmp_path / "scaled").size == (2, 3, C)


def test_limit_and_frame(autoencoder, data, tmp_path, command):
    done = command("features", autoencoder, data / "train", tmp_path / "some", "--limit", 6)
    assert done.returncode == 0 and [Path(n).stem for n in FeatureDataset(tmp_path / "some").names] == [
        f"{i:03}" for i in (0, 4, 8, 12, 16, 20)
    ]
    pages = [Image.new("RGB", (30, 20), colour) for colour in ("red", "green", "blue")]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    pages[2].save(tmp_path / "blue.png")
    for source, options in ("a.tif", ["--frame", 2]), ("blue.png", []):
        assert command("features", autoencoder, tmp_path / source, tmp_path / source[0], *options).returncode == 0
    assert torch.equal(*(FeatureDataset(tmp_path / name)[0] for name in "ab"))
    done = command("features", autoencoder, tmp_path / "a.tif", tmp_path / "a")
    assert "feature maps already, whose frame differ" in sentence(done)


def test_wrong_arguments_end_in_one_sentence(autoencoder, data, tmp_path, command):
    checkpoint.save(build("BSQPatchAutoEncoder"), tmp_path / "tokenizer.pth")
    checkpoint.save(build("PixelCNN"), tmp_path / "prior.pth")
    wild = build("PatchAutoEncoder")
    with torch.no_grad():
        wild.encoder.out.weight.mul_(1e9)
    checkpoint.save(wild, tmp_path / "wild.pth")
    (tmp_path / "file").touch()
    out, images = tmp_path / "out", data / "valid"
    for arguments, words in [
        ((tmp_path / "tokenizer.pth", images, out), "holds a BSQPatchAutoEncoder, which makes tokens"),
        ((tmp_path / "prior.pth", images, out), "holds a PixelCNN, which makes no maps"),
        ((tmp_path / "none.pth", images, out), "no checkpoint"),
        ((tmp_path / "wild.pth", images, out), "too large for float16"),
        ((autoencoder, tmp_path / "nowhere", out), "no file or folder"),
        ((autoencoder, images, tmp_path / "file"), "must be a folder"),
        ((autoencoder, images, out, "--shard", 0), "--shard is 0"),
        ((autoencoder, images, out, "--batch_size", 2.5), "--batch_size is 2.5"),
        ((autoencoder, images, out, "--replace", 3), "--replace takes no value"),
        ((autoencoder, images, out, "--image_size", 7), "--image_size is '7'"),
    ]:
        assert words in sentence(command("features", *arguments)), arguments


# --- a file for each WebDataset shard --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded(data, tmp_path_factory) -> Path:
    """Folders train and valid of shards, the 24 images of train/ in four."""
    folder = tmp_path_factory.mktemp("sharded")
    for split in "train", "valid":
        size = sum(path.stat().st_size + 1024 for path in (data / split).iterdir()) // 4
        shard(str(data / split), str(folder / split), size=str(size))
    assert len(list((folder / "train").glob("*.tar"))) == 4
    return folder


@pytest.fixture
def both(sharded, autoencoder, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Features of both splits, without and with --shards, in batches of one, as else these would be others."""
    monkeypatch.chdir(tmp_path)
    for split in "train", "valid":
        features(autoencoder, sharded / split, tmp_path / "whole" / split, batch_size=1, device="cpu")
        features(autoencoder, sharded / split, tmp_path / "parts" / split, batch_size=1, shards=True, device="cpu")
    return tmp_path / "whole", tmp_path / "parts"


def spoil(path: Path) -> str:
    """Damages the last image of a shard, and returns its name."""
    name, (start, length) = [*Shard(str(path)).places.items()][-1]
    content = path.read_bytes()
    path.write_bytes(content[:start] + bytes(length) + content[start + length :])
    return name


def test_maps_of_each_shard_are_those_of_all_bit_for_bit(both, monkeypatch):
    monkeypatch.setattr(feature_maps, "MOST_OPEN", 2)
    whole, parts = (FeatureDataset("train", root) for root in both)
    for order in torch.arange(N), torch.randperm(N, generator=torch.Generator().manual_seed(0)):
        assert torch.equal(whole.batch(order), parts.batch(order))
    assert len(parts) == N and parts.maps.cache_info().currsize == 2  # which are open
    assert whole.size == parts.size and [*parts.names] == whole.names and not isinstance(parts.names, list)
    assert whole.model_defaults() == parts.model_defaults() and whole.fingerprint == parts.fingerprint
    stems = [f"train-{i:06}" for i in range(4)]
    assert {*contents(both[1] / "train")} == {"autoencoder.pth", "job.json", *(f"{s}.npy" for s in stems),
                                              *(f"{s}.names.json" for s in stems)}  # fmt: skip
    found = resume.fingerprint(parts)
    assert found == resume.fingerprint(whole)  # and what it was when all names were taken at once
    maps = hashlib.sha256(repr((whole.names, [])).encode() + whole.batch(torch.arange(N)).numpy().tobytes())
    assert found == [N, maps.hexdigest()]


def test_what_reads_maps_reads_those_of_each_shard(both, command):
    for root in both:
        som.fit(str(root), f"{root.name}.pth", n_codes=6, passes=3, batch_size=5, device="cpu")
        tokenize(f"{root.name}.pth", f"{root.name}_tokens.pth", str(root / "train"), device="cpu")
    one, other = (files.read(f"{root.name}.pth")["state_dict"] for root in both)
    assert all(torch.equal(one[k], other[k]) for k in one)
    one, other = (files.read(f"{root.name}_tokens.pth") for root in both)
    assert torch.equal(one["tokens"], other["tokens"]) and one["names"] == other["names"]
    folders = [folder for root in both for folder in (root, root / "train")]
    said = [command("som", "prune", "whole.pth", folder, 1, "--output", "x.pth") for folder in folders]
    assert all(done.returncode == 0 for done in said) and len({done.stdout.splitlines()[1] for done in said}) == 1


def test_what_is_missing_is_made_and_no_more(both, sharded, autoencoder, capsys):
    folder = both[1] / "train"
    before, ages = contents(folder), {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    for name in "train-000003.npy", "train-000001.npy", "train-000001.names.json":
        (folder / name).unlink()
    capsys.readouterr()
    assert len(FeatureDataset(folder)) < N
    assert "2 files missing; the same python -m homework.features" in capsys.readouterr().err
    features(autoencoder, sharded / "train", folder, batch_size=1, shards=True, device="cpu")
    assert contents(folder) == before and "4 of 4 shards done" in capsys.readouterr().out
    made = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != ages[path.name]}
    assert made == {f"train-{i:06}{end}" for i in (1, 3) for end in (".npy", ".names.json")}
    (folder / "train-000002.names.json").write_text('["a"]')
    with pytest.raises(ValueError, match="train-000002.names.json is missing or damaged; remove .*train-000002.npy, and"):
        [*FeatureDataset(folder).names]
    (folder / "train-000002.npy").write_bytes(before["train-000002.npy"][:-9])
    with pytest.raises(ValueError, match="train-000002.npy is damaged; remove it, and the same"):
        FeatureDataset(folder)


def test_two_processes_share_shards_out(both, sharded, autoencoder, tmp_path):
    arguments = autoencoder, sharded / "train", "two", "--shards", "--batch_size", 1, "--device", "cpu"
    done = run("-m", "homework.features", *arguments, cwd=tmp_path, processes=2)
    assert done.returncode == 0 and "4 of 4 shards done" in done.stdout, done.stderr
    assert contents(tmp_path / "two") == contents(both[1] / "train")


def test_bad_images_and_shards_of_maps_are_named_at_the_end(sharded, autoencoder, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sharded / "train", "x")
    name, cut = spoil(Path("x/train-000001.tar")), Path("x/train-000002.tar")
    cut.write_bytes(cut.read_bytes()[:-3000])
    job = "features", autoencoder, "x", "out", "--shards", "--device", "cpu"
    assert f"train-000001.tar/{name} cannot be read" in sentence(command(*job))
    for _ in range(2):  # the second time it makes nothing
        done = command(*job, "--skip_bad")
        assert done.returncode == 0 and "out: 3 of 4 shards done" in done.stdout
        end = done.stderr[done.stderr.index("Left out:") :]
        assert f"train-000001.tar/{name} cannot be read" in end and "train-000002.tar is not a tar file" in end
        assert done.stderr.count(name) == 1
    left = [path for path in image_paths(sharded / "train") if "000002" not in path and Path(path).name != name]
    assert [Path(path).name for path in FeatureDataset("out").names] == [Path(path).name for path in left]
    alone = "features", autoencoder, "x/train-000002.tar", "none", "--shards", "--skip_bad"
    assert "No shard was done" in sentence(command(*alone))


def test_maps_of_several_sizes_are_no_data_set(both, autoencoder, tmp_path, command, monkeypatch):
    for i, size in enumerate([(30, 20), (30, 20), (30, 40), (30, 20)]):
        (tmp_path / f"images/{i // 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(tmp_path / f"images/{i // 2}/{i}.png")
    for i in range(2):
        shard(f"images/{i}", f"shards/{i}")
    url = "shards/0/0-000000.tar::shards/1/1-000000.tar"
    pytest.importorskip("webdataset", reason="there is no webdataset; pip install webdataset")
    assert "3.png is 20x30 but" in sentence(command("features", autoencoder, url, "out", "--shards"))
    assert command("features", autoencoder, url, "out", "--shards", "--skip_bad").returncode == 0
    with pytest.raises(ValueError, match="1-000000.npy has maps of another size than .*0-000000.npy; .* with --image_size"):
        FeatureDataset("out")


def test_folders_of_the_two_kinds_do_not_mix(both, sharded, autoencoder, data, command):
    whole, parts = (root / "train" for root in both)
    before = contents(whole), contents(parts)
    for message, *arguments in [
        ("made without --shards; name another folder", sharded / "train", whole, "--shards"),
        ("has outputs made with --shards; name another", sharded / "train", parts),
        ("has outputs made with --shards; name another", sharded / "train", parts, "--replace"),
        ("made by another batch_size", sharded / "train", parts, "--shards"),
        ("names no shards", data / "train", "new", "--shards"),
        ("--limit, --replace and --shard are not for --shards", sharded / "train", "new", "--shards", "--limit", 3),
        ("--limit, --replace and --shard are not for --shards", sharded / "train", "new", "--shards", "--shard", 3),
    ]:
        assert message in sentence(command("features", autoencoder, *arguments))
    assert (contents(whole), contents(parts)) == before and not list(Path().glob("new/*.npy"))
