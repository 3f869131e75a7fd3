"""What a run is made of: its data, and the weights that it starts from."""

import inspect
import sys

from torch import Tensor, nn

from homework.core import cli
from homework.core.fingerprint import is_same
from homework.datasets.kinds import DATASETS
from homework.training import distributed


def open_data(cls: type, settings: dict) -> tuple:
    """The training and the validation data for a model of ``cls``: its own kind of data, or the one that --dataset names.

    ValueError if there is no such data set, it does not suit the model, or an option is not for it.
    """
    name = settings["dataset"] or cls.data
    kind = DATASETS[cls.data].holds
    fitting = [k for k, v in DATASETS.items() if v.holds == kind]
    if name not in fitting:
        raise ValueError(f"--dataset is {name!r}, but {cls.__name__} is trained on {kind}: {', '.join(fitting)}.")
    options = {k: settings[k] for k in ("image_size", "binarize", "coarse") if settings[k] is not None}
    for k in options:
        if k not in inspect.signature(DATASETS[name]).parameters:
            raise ValueError(f"--{k} is not for the data set {name}; leave it out.")
    if "image_size" in options:
        options["image_size"] = cli.parse_image_size(options["image_size"])
    return tuple(DATASETS[name](split, root=settings["data"], **options) for split in ("train", "valid"))


def token_codes(cls: type, data) -> Tensor:
    """The tokenizer's code vectors (K,d) that came with ``data``, for a prior of ``cls`` to read. ValueError if there are
    none, or it does not read them."""
    if not getattr(cls, "reads_codes", False):
        raise ValueError(f"--inputs codes is not for {cls.__name__}, which reads no code vectors; leave it out.")
    if data.codes is None:
        raise ValueError("--inputs codes needs the tokenizer's code vectors, but these tokens came without; make them with "
                         "python -m homework.tokenize ... --codes.")  # fmt: skip
    return data.codes


def load_matching_weights(model: nn.Module, other: nn.Module, path: str) -> None:
    """Copies the weights of ``other`` whose name and shape fit into ``model``; ValueError, naming ``path``, if none does."""
    own, theirs = model.state_dict(), other.state_dict()
    fitting = {name: tensor for name, tensor in theirs.items() if name in own and own[name].shape == tensor.shape}
    for name in [name for name, tensor in fitting.items() if tensor.ndim == 0]:  # counters and flags tell of what is beside
        beside = [k for k in own if k.rpartition(".")[0] == name.rpartition(".")[0]]
        if not all(k in fitting for k in beside):
            del fitting[name]
    if not fitting:
        raise ValueError(f"--init is {path}, but no weights of a {type(other).__name__} fit a {type(model).__name__}.")
    model.load_state_dict(fitting, strict=False)
    if distributed.rank() == 0:
        print(f"{path}: took over {sum(t.numel() for t in fitting.values()):,} of {sum(t.numel() for t in own.values()):,} "
              f"weights", file=sys.stderr)  # fmt: skip


def check_origin(path: str, meta: dict, data: dict) -> None:
    """ValueError if the model at ``path``, of which ``meta`` tells, was trained on the grids of another tokenizer than those
    of which ``data`` tells."""
    for key, option in ("tokenizer", "--data"), ("coarse_tokenizer", "--coarse"):
        if key in meta and not is_same(data.get(key, meta[key]), meta[key]):
            raise ValueError(f"{path} was trained on the grids of another tokenizer than those of {option}; make them with "
                             "that one, or train a new model by its name.")  # fmt: skip
