"""Feature maps on disk: memory-mapped shards with an index, or one for each WebDataset shard with the names of its images
beside it, as ``homework.features`` writes them; and their data set."""

import functools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from homework.core import checkpoint, checks, files, fingerprint
from homework.core.model import Model
from homework.core.processes import say_once
from homework.datasets.base import Dataset, Indices
from homework.datasets.bulk import JOB, missing, read_job
from homework.datasets.image_files import SPLITS
from homework.datasets.shard_paths import Chain

FORMAT, VERSION = "homework features", 1
INDEX, AUTOENCODER = "index.json", "autoencoder.pth"
NAMES = ".names.json"  # beside the maps of a WebDataset shard, in place of their suffix: the paths of their images
MOST_OPEN = 256  # files of maps at a time
AGAIN = "the same python -m homework.features as before makes it again."


class FeatureModel(Model):
    """The contract of a model of feature maps that bears the ``autoencoder`` which made them. One that quantizes what
    ``n_coarser`` codebooks leave of them defines :meth:`context`."""

    data = "features"
    autoencoder: Model
    n_coarser: int = 0

    def set_autoencoder(self, model: Model) -> None:
        """Takes the weights of the auto-encoder. ValueError if it is of another kind than its own."""
        raise NotImplementedError

    def context(self, grids: Sequence[Tensor]) -> Tensor:
        """Grids (B,h',w') int64 of the coarser codebooks, the coarsest first -> (B,h,w,d) float: the sum of their vectors,
        cut into the patches of the own grid. ValueError if they are not grids of these."""
        raise NotImplementedError


def shard_path(folder: Path, i: int) -> Path:
    return folder / f"features_{i:05d}.npy"


def read_index(folder: Path) -> dict:
    """The index.json of the shards in ``folder``: {"format", "version", "size": [h, w, C], "image_size": [H, W] in pixels,
    "shards": the number of maps in each, "autoencoder": its identity, "names": the images' paths, "finished": whether all
    shards are there}. ValueError if the file is damaged, or holds something else; OSError if it cannot be read."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text("utf-8"))
        known = (index["format"], index["version"], len(index["size"]), len(index["image_size"]), type(index["finished"]))
        sizes, texts = [*index["size"], *index["image_size"], *index["shards"]], [*index["names"], index["autoencoder"]]
        plain = all(type(n) is int and n > 0 for n in sizes) and all(type(t) is str for t in texts)
        if known != (FORMAT, VERSION, 3, 2, bool) or not plain or len(index["names"]) != sum(index["shards"]):
            raise ValueError("another format, values of other types, or counts that contradict each other")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or not an index of feature maps of this version; make the maps again with "
                         "python -m homework.features ... --replace.") from error  # fmt: skip
    return index


def open_maps(path: Path, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """The maps in a file, memory-mapped: float16 (n, h, w, C). ValueError if it is missing or damaged, or not of this
    ``shape``."""
    try:
        maps = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; {AGAIN}") from error
    except (ValueError, EOFError) as error:  # of a damaged header, or too few bytes after it
        raise ValueError(f"{path} is damaged; remove it, and {AGAIN}") from error
    if not isinstance(maps, np.ndarray) or maps.ndim != 4 or maps.dtype != np.float16 or maps.shape != (shape or maps.shape):
        expected = f"the {shape} float16 numbers of {INDEX}" if shape else "feature maps, (n, h, w, C) float16"
        raise ValueError(f"{path} does not hold {expected}; remove it, and {AGAIN}")
    return maps


def prepare_folder(folder: Path, index: dict, replace: bool) -> list[int]:
    """Makes ``folder`` ready for the shards of ``index``, and returns those to be made; ``replace`` removes other maps."""
    there = sorted(folder.glob("features_*.npy"))
    if (folder / JOB).is_file():
        raise ValueError(f"{folder} has outputs made with --shards; name another folder, or remove it.")
    if replace:
        (folder / INDEX).unlink(missing_ok=True)  # first: without it, what is left is not taken for complete
        for path in there:
            path.unlink()
    elif (folder / INDEX).is_file():
        found = read_index(folder)
        if other := [k for k in found | index if k != "finished" and found.get(k) != index.get(k)]:
            raise ValueError(f"{folder} has feature maps already, whose {' and '.join(other)} differ; name another folder, "
                             "or pass --replace to make them again.")  # fmt: skip
    elif there:
        raise ValueError(f"{folder} has feature maps, but no {INDEX}; pass --replace to make them again.")
    missing = [i for i in range(len(index["shards"])) if not shard_path(folder, i).is_file()]
    for i in set(range(len(index["shards"]))) - set(missing):
        open_maps(shard_path(folder, i), (index["shards"][i], *index["size"]))
    return missing


def write_shard(path: Path, n: int, batches: Iterable[np.ndarray]) -> None:
    """Writes ``n`` maps, which come as float16 ``batches`` (B, h, w, C), as a .npy file."""
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        for i, maps in enumerate(batches):
            if i == 0:
                header = np.lib.format.header_data_from_array_1_0(maps)
                np.lib.format.write_array_header_1_0(file, header | {"shape": (n, *maps.shape[1:])})
            file.write(maps.tobytes())  # on a full disk an OSError, unlike np.save's own error, says so
        file.flush()
        os.fsync(file.fileno())


def write_part(path: Path, names: list[str], batches: Iterable[np.ndarray]) -> None:
    """Writes the maps of the images ``names`` of a WebDataset shard, as :func:`write_shard`, after these names, for the maps
    say that both are there."""
    with files.replacing(path.with_suffix(NAMES)) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(names, file)
        file.flush()
        os.fsync(file.fileno())
    write_shard(path, len(names), batches)


def read_names(path: Path, n: int) -> list[str]:
    """The names of the ``n`` images whose maps are at ``path``. ValueError if their file is missing or damaged."""
    try:
        names = json.loads(path.with_suffix(NAMES).read_text("utf-8"))
        if not isinstance(names, list) or len(names) != n or not all(type(name) is str for name in names):
            raise ValueError("other names")
    except (ValueError, RecursionError, FileNotFoundError) as error:
        raise ValueError(f"{path.with_suffix(NAMES)} is missing or damaged; remove {path}, and {AGAIN}") from error
    return names


def write_index(folder: Path, index: dict, finished: bool) -> None:
    with files.replacing(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index | {"finished": finished}, indent=1), "utf-8")


def part_paths(folder: Path) -> list[Path]:
    """The files that ``features --shards`` wrote in a folder; none if that was another command."""
    return sorted(folder.glob("*.npy")) if (folder / JOB).is_file() else []


def has_features(folder: Path) -> bool:
    """Whether ``homework.features`` wrote maps in this folder."""
    return (folder / INDEX).is_file() or bool(part_paths(folder))


class FeatureDataset(Dataset):
    """Feature maps of images, as an auto-encoder's ``encode`` gives them, rounded to float16: memory-mapped shards in a
    folder, or that of a split, ``root/{split}``. FileNotFoundError if it has none; ValueError if any is missing or damaged.
    ``ds[i]`` is float32 (h, w, C); ``names`` are the images' paths, of which those of two files at most are in memory if
    ``features --shards`` made these; ``autoencoder`` is the path of the auto-encoder's checkpoint, ``fingerprint`` its
    identity."""

    holds = "features"
    counts: list[int]  # of maps in each shard
    size: tuple[int, ...]  # (h, w, C)

    def __init__(self, source: str | Path = "train", root: str | Path = "features"):
        folder = Path(root) / source if source in SPLITS else Path(source)
        self.autoencoder = folder / AUTOENCODER
        if (folder / INDEX).is_file():
            paths = self._read_index(folder)
        elif paths := part_paths(folder):
            self._read_parts(folder, paths)
        else:
            raise FileNotFoundError(f"There are no feature maps in {folder}; make them with python -m homework.features "
                                    f"AUTOENCODER IMAGES {folder}.")  # fmt: skip
        self.ends = np.cumsum(self.counts)
        self.maps = functools.lru_cache(MOST_OPEN)(lambda s: open_maps(paths[s]))  # (n, h, w, C) of shard s

    def _read_index(self, folder: Path) -> list[Path]:
        """Takes what the index says; returns the files of maps."""
        index = read_index(folder)
        if not index["finished"]:
            raise ValueError(f"{folder} is unfinished; the same python -m homework.features as before resumes it.")
        self.names, self.size, self.counts = index["names"], tuple(index["size"]), index["shards"]
        self.fingerprint = index["autoencoder"]
        paths = [shard_path(folder, i) for i in range(len(self.counts))]
        for path, n in zip(paths, self.counts, strict=True):
            open_maps(path, (n, *self.size))
        return paths

    def _read_parts(self, folder: Path, paths: list[Path]) -> None:
        """Takes what the files of ``features --shards`` say."""
        shapes = [open_maps(path).shape for path in paths]
        self.size, self.counts = shapes[0][1:], [shape[0] for shape in shapes]
        for path, shape in zip(paths, shapes, strict=True):
            if shape[1:] != self.size:
                raise ValueError(f"{path} has maps of another size than {paths[0]}; make all of them in one python -m "
                                 "homework.features ... --shards, with --image_size.")  # fmt: skip
        self.names = Chain(self.counts, lambda s: read_names(paths[s], self.counts[s]))
        self.fingerprint = str(read_job(folder).get("autoencoder"))
        if gone := missing(folder):
            say_once(f"{folder}: {checks.count(len(gone), 'file')} missing; the same python -m homework.features as before "
                     "makes them.")  # fmt: skip

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices: Indices, device: torch.device | str = "cpu") -> Tensor:
        indices = np.asarray(indices)
        shard_of = np.searchsorted(self.ends, indices, side="right")
        maps = np.empty((len(indices), *self.size), np.float16)
        for s in np.unique(shard_of):
            wanted = shard_of == s
            maps[wanted] = self.maps(s)[indices[wanted] - (self.ends[s] - self.counts[s])]
        return torch.from_numpy(maps).to(device).float()  # moved in half precision: half of the traffic

    def model_defaults(self) -> dict:
        model, (h, w, _) = self.load_autoencoder(), self.size
        return {"autoencoder": {"model": type(model).__name__, "config": model.config}, "height": h, "width": w}

    def prepare(self, model: Model) -> None:
        if isinstance(model, FeatureModel):
            model.set_autoencoder(self.load_autoencoder())

    def check(self, model: Model) -> None:
        if isinstance(model, FeatureModel) and not fingerprint.is_of(self.fingerprint, model.autoencoder):
            raise ValueError(f"The checkpoint is for features of another auto-encoder than {self.autoencoder}; make the "
                             f"features with that one, or train a new {type(model).__name__} by its name.")  # fmt: skip

    def load_autoencoder(self) -> Model:
        """The auto-encoder, in eval mode. ValueError if its file is damaged, or it is not the one that made the maps."""
        model = checkpoint.load(self.autoencoder)
        if not fingerprint.is_of(self.fingerprint, model):
            raise ValueError(f"{self.autoencoder} is not the auto-encoder that made the feature maps beside it; make them "
                             "again with python -m homework.features ... --replace.")  # fmt: skip
        return model
