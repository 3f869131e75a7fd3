"""The table of everything that can be trained: one name, one class. Checkpoints name their class by it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from homework.core import checks

if TYPE_CHECKING:
    from homework.core.model import Model

# a name's module, imported when it is first asked for since the models import this file; or, once registered, the class
MODELS: dict[str, str | type[Model]] = {
    "PatchAutoEncoder": "homework.ae",
    "ConvAutoEncoder": "homework.tokenizers.conv_ae",
    "BSQPatchAutoEncoder": "homework.bsq",
    "VQPatchAutoEncoder": "homework.tokenizers.vq",
    "VQVAE": "homework.tokenizers.vq",
    "SOM": "homework.tokenizers.som",
    "AutoregressiveModel": "homework.autoregressive",
    "PixelCNN": "homework.priors.pixelcnn",
    "GatedPixelCNN": "homework.priors.pixelcnn",
    "CascadeStage": "homework.priors.cascade_stage",
}
# what no gradients train, but a command of its own makes: in checkpoints, and not in what can be trained
FITTED = {
    "EnhancementLayer": "homework.codec.enhancement",
    "SubsampledTokenizer": "homework.tokenizers.subsampled",
}
ENTRY_POINTS = "homework.models"  # the group in which other installed packages name their classes


def register(cls: type[Model]) -> type[Model]:
    """Class decorator: puts a model into the table, under its class's name; the same definition again, as in a notebook,
    replaces it. ValueError if another class has the name, or ``cls`` does not inherit from :class:`Model`."""
    from homework.core.model import Model  # here, so that listing the commands does not wait for torch

    if not (isinstance(cls, type) and issubclass(cls, Model)):
        raise ValueError(f"{cls!r} cannot be registered: it must be a class that inherits from homework.Model.")
    name, known = cls.__name__, MODELS.get(cls.__name__)
    owner = (known.__module__, known.__qualname__) if isinstance(known, type) else (known, name)
    if known and owner != (cls.__module__, cls.__qualname__):
        raise ValueError(f"{name} cannot be registered: {owner[0]} has a model of this name; choose another.")
    MODELS[name] = cls
    return cls


def model_class(name: str) -> type[Model]:
    """The class called ``name``: of the table, or of an installed package. ValueError if there is no usable one."""
    if name not in MODELS and name not in FITTED:
        installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
        if name not in installed:
            if name and Path(name).exists():
                found = "a folder" if Path(name).is_dir() else "a file, but no checkpoint (.pth)"
                raise checks.Misplaced(f"{name} is {found}; a model's name or a checkpoint belongs here.")
            known = [*MODELS, *installed]
            near = checks.did_you_mean(name, known, f"; the known ones are {', '.join(known)}.")
            raise ValueError(f"There is no model {name!r}{near}")
        point = installed[name]
        try:
            cls = register(point.load())
        except (ImportError, AttributeError) as error:
            raise ValueError(f"The model {name} is {point.value} of a package, but cannot be imported: {error}.") from error
        if cls.__name__ != name:
            raise ValueError(f"The model {name} is {point.value} of a package, but a class of another name.")
    entry = MODELS.get(name) or FITTED[name]
    return entry if isinstance(entry, type) else getattr(importlib.import_module(entry), name)


def build(cls: type[Model], options: dict, defaults: dict, base: Model | None = None, others: Iterable[str] = ()) -> Model:
    """A model of ``cls`` with a user's ``options`` for its constructor, and those ``defaults``, of the data, that it has.
    A trained ``base`` gives the weights to start from; the options may change what has no weights, or add to them.
    ValueError if an option is unknown (``others`` are not the constructor's), is refused, or does not fit the base."""
    known = list(inspect.signature(cls).parameters)
    if unknown := [k for k in options if k not in known]:
        near = checks.did_you_mean(f"--{unknown[0]}", [f"--{k}" for k in [*known, *others]])
        raise ValueError(f"There is no option --{unknown[0]} of {checks.article(cls.__name__)}{near}")
    wanted = {k: v for k, v in defaults.items() if k in known} | options
    if base is None:
        try:
            return cls(**wanted)
        except TypeError as error:
            raise ValueError(f"An option of {cls.__name__} has a value of the wrong kind: {error}.") from error
    try:
        model = cls(**base.config | options)
        model.load_state_dict(base.state_dict(), strict=False)  # what an option adds or takes away may differ
    except (RuntimeError, TypeError):
        model = None
    for k, v in wanted.items():
        lacking = model is None or k in cls.new_options  # what the data starts comes with no base
        if base.config[k] != v and ((lacking and k in options) or k == "n_tokens"):
            raise ValueError(f"The checkpoint has {k} = {base.config[k]}, but {v} is needed; train a new {cls.__name__}.")
    if model is None:
        raise ValueError("The checkpoint does not fit the options.")
    return model


def build_part(name: str, spec: dict, example: str) -> Model:
    """The model {"model": its name, "config": {...}} that another model's argument ``name`` asks for, with new weights.
    ValueError if ``spec`` is something else; ``example`` is the name of a model that would do."""
    if not isinstance(spec, dict) or spec.keys() != {"model", "config"} or not isinstance(spec["config"], dict):
        raise ValueError(f'{name} is {spec!r}, but must be of the form {{"model": "{example}", "config": {{...}}}}.')
    return build(model_class(spec["model"]), spec["config"], {})
