"""The closed table of everything that can be trained: one name, one class. Checkpoints name their class by it."""

import importlib

MODELS = {
    "PatchAutoEncoder": "homework.ae",
    "BSQPatchAutoEncoder": "homework.bsq",
    "AutoregressiveModel": "homework.autoregressive",
}


def model_class(name: str) -> type:
    """The class called ``name``. ValueError, listing the known names, if there is none."""
    if name not in MODELS:
        raise ValueError(f"There is no model {name!r}; the known ones are {', '.join(MODELS)}.")
    return getattr(importlib.import_module(MODELS[name]), name)  # imported late: the models import this layer
