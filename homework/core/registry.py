"""The closed table of everything that can be trained: one name, one class. Checkpoints name their class by it."""

import importlib
import inspect

MODELS = {
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


def register(cls: type) -> type:
    """A class decorator that enters a model of one's own into the table, under the class's name."""
    MODELS[cls.__name__] = cls.__module__
    return cls


def model_class(name: str) -> type:
    """The class called ``name``. ValueError, listing the known names, if there is none."""
    if name not in MODELS:
        raise ValueError(f"There is no model {name!r}; the known ones are {', '.join(MODELS)}.")
    return getattr(importlib.import_module(MODELS[name]), name)  # imported late: the models import this layer


def build(cls: type, options: dict, defaults: dict, base=None, others: tuple[str, ...] = ()):
    """A model of ``cls`` with a user's options.

    Args:
        cls: one of the table's classes.
        options: arguments of its constructor.
        defaults: more of them, from the data; those that it does not know are left out.
        base: a trained model whose weights to start from; the options may change what has no weights, or add to them.
        others: names of options that do exist, but are not the constructor's, for the message about an unknown one.
    Raises:
        ValueError: an option is unknown (the known ones are listed), has a value that the constructor refuses, or
            gives tensors another shape than ``base`` has.
    """
    known = list(inspect.signature(cls).parameters)
    unknown = [k for k in options if k not in known]
    if unknown:
        rest = f"; those of every training are {', '.join(others)}" if others else ""
        raise ValueError(f"There is no option --{unknown[0]}. Those of {cls.__name__} are {', '.join(known)}{rest}.")
    wanted = {k: v for k, v in defaults.items() if k in known} | options
    if base is None:
        try:
            return cls(**wanted)
        except TypeError as error:
            raise ValueError(f"An option of {cls.__name__} has a value of the wrong kind: {error}.") from error
    try:
        model = cls(**base.config | {k: v for k, v in wanted.items() if k in options})
        model.load_state_dict(base.state_dict(), strict=False)  # what an option adds or takes away may differ
    except (RuntimeError, TypeError):
        model = None
    for k, v in wanted.items():
        if base.config[k] != v and ((model is None and k in options) or k == "n_tokens"):
            raise ValueError(f"The checkpoint has {k} = {base.config[k]}, but {v} is needed here; train a new "
                             f"{cls.__name__} instead of going on from it.")  # fmt: skip
    if model is None:
        raise ValueError("The checkpoint does not fit the options.")
    return model
