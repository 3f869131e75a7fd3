"""What a run is made of: its data, and the model that it starts from."""

import inspect
from collections.abc import Callable

import torch
from torch import nn

from homework.core import checkpoint, checks, cli, devices, fingerprint, registry
from homework.core.model import Model
from homework.core.processes import say
from homework.datasets.base import Dataset
from homework.datasets.kinds import DATASETS
from homework.datasets.shard_dataset import has_shards
from homework.training import distributed


def set_up(settings: dict, state: dict | None, device: torch.device) -> tuple[Model, Dataset, Dataset]:
    """The model on ``device``, the training and the validation data of a new run, or of the one with this ``state``."""
    devices.seed_generators(settings["seed"], device)
    base = checkpoint.load(settings["model"]) if settings["model"].endswith(".pth") and not state else None
    cls = type(base) if base else registry.model_class(state["class"] if state else settings["model"])
    if cls.fitted_by:
        raise ValueError(f"No gradients train {checks.article(cls.__name__)}; make it by {cls.fitted_by}.")
    train_data, valid_data = open_data(cls, settings)
    model = registry.build(cls, state["config"], {}) if state else new_model(cls, base, settings, train_data, device)
    model.to(device, torch.float32)
    model.meta = model.keeps(train_data.meta, base) if not state else state.get("meta", train_data.meta)
    sizes = {"n_tokens": model.n_tokens, "coarse_tokens": model.config.get("coarse_tokens")}
    for name, K in train_data.model_defaults().items():
        if name in sizes and K != sizes[name]:
            which = "coarse tokens" if name == "coarse_tokens" else "tokens"
            raise ValueError(f"This {type(model).__name__} is for {sizes[name]} different {which}, but this data has {K}; "
                             "choose another --dataset or another model.")  # fmt: skip
    distributed.share(model)
    return model, train_data, valid_data


def new_model(cls: type[Model], base: Model | None, settings: dict, data: Dataset, device: torch.device) -> Model:
    """A model of ``cls`` to be trained on ``data``, which starts from the trained ``base`` if there is one."""
    options, reads_codes = settings["options"], settings["inputs"] == "codes"
    codes = data.codes if reads_codes else None
    if "code_dim" in options and cls.reads_codes:
        raise ValueError("--code_dim comes with the code vectors themselves; use --inputs codes.")
    if reads_codes and not cls.reads_codes:
        raise ValueError(f"--inputs codes is not for {cls.__name__}, which reads no code vectors; leave it out.")
    if reads_codes and codes is None:
        raise ValueError("--inputs codes needs the tokenizer's code vectors, but these tokens came without; make them with "
                         "python -m homework.tokenize ... --codes.")  # fmt: skip
    if codes is not None:
        options = options | {"code_dim": codes.shape[1]}
    others = ("resume", "config", *(k for k in settings if k not in ("model", "options")))
    model = registry.build(cls, options, cls.new_options | data.model_defaults(), base, others).to(device)
    if base:
        data.check(base)
        for key, option in ("tokenizer", "--data"), ("coarse_tokenizer", "--coarse"):
            if key in base.meta and not fingerprint.is_same(data.meta.get(key, base.meta[key]), base.meta[key]):
                raise ValueError(f"{settings['model']} was trained on the grids of another tokenizer than those of {option};"
                                 " make them with that one, or train a new model by its name.")  # fmt: skip
    else:
        data.prepare(model)
        model.start(data)
    if settings["init"]:
        load_matching_weights(model, checkpoint.load(settings["init"]), settings["init"])
    if codes is not None:
        model.set_codes(codes.to(device))
    return model


def open_data(cls: type[Model], settings: dict) -> tuple[Dataset, Dataset]:
    """The training and the validation data for a model of ``cls``: its own kind of data, or the one that --dataset names."""
    name, kinds = settings["dataset"] or cls.data, [DATASETS[kind].holds for kind in (cls.data, *cls.more_data)]
    fitting = [k for k, v in DATASETS.items() if v.holds in kinds]
    if name not in fitting:
        on = " or ".join(kinds)
        raise ValueError(f"--dataset is {name!r}, but {cls.__name__} is trained on {on}: {', '.join(fitting)}.")
    if name == "images" and has_shards(settings["data"]):
        name = "shards"
    names = ("image_size", "binarize", "coarse", "skip_bad", "shuffle_shards")
    options = {k: settings[k] for k in names if settings[k] not in (None, False)}
    for k in options:
        if k not in inspect.signature(DATASETS[name]).parameters:
            raise ValueError(f"--{k} is not for the data set {name}; leave it out.")
    if "tokenizer" in inspect.signature(DATASETS[name]).parameters:
        options["tokenizer"] = settings["tokenizer"]
    if settings["limit"] and "limit" in inspect.signature(DATASETS[name]).parameters:
        options["limit"] = settings["limit"]  # so that nothing is decoded in vain; the loop sees to it anyway
    if "image_size" in options:
        options["image_size"] = cli.parse_image_size(options["image_size"])
    dataset: Callable[..., Dataset] = DATASETS[name]
    train, valid = (dataset(split, root=settings["data"], **options) for split in ("train", "valid"))
    if "grids" in train.holds:
        check_splits(train, valid)
    return train, valid


def check_splits(train: Dataset, valid: Dataset) -> None:
    """ValueError if the grids of the one are, as far as that is known, of other tokenizers than those of the other."""
    most, own = ({k: K for k, K in data.model_defaults().items() if k.endswith("tokens")} for data in (train, valid))
    shared = train.meta.keys() & valid.meta.keys() & {"tokenizer", "coarse_tokenizer"}
    # fewer there may be: a plain tensor does not say how many there are
    if any(own[k] > most[k] for k in own) or not all(fingerprint.is_same(train.meta[k], valid.meta[k]) for k in shared):
        raise ValueError("The grids for training and those for validation are of different tokenizers; make both with the "
                         "same one, by python -m homework.tokenize.")  # fmt: skip


def load_matching_weights(model: nn.Module, other: nn.Module, path: str) -> None:
    """Copies the weights of ``other`` whose name and shape fit into ``model``; ValueError, naming ``path``, if none does."""
    own = model.state_dict()
    fitting = {k: tensor for k, tensor in other.state_dict().items() if k in own and own[k].shape == tensor.shape}
    for name in [name for name, tensor in fitting.items() if tensor.ndim == 0]:  # counters and flags describe their module
        module = name.rpartition(".")[0]
        if not all(k in fitting for k in own if k.rpartition(".")[0] == module):
            del fitting[name]
    if not fitting:
        raise ValueError(f"--init is {path}, but no weights of its {type(other).__name__} fit this {type(model).__name__}.")
    model.load_state_dict(fitting, strict=False)
    copied, all_ = (sum(t.numel() for t in tensors.values()) for tensors in (fitting, own))
    say(f"{path}: took over {copied:,} of {all_:,} weights")
