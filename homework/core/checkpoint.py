"""Models on disk."""

import sys
from pathlib import Path

import torch

from homework.core.files import read, write
from homework.core.registry import model_class

PACKAGE = Path(__file__).parents[1]
PRETRAINED = PACKAGE / "pretrained"


def save(model: torch.nn.Module, path: str | Path, meta: dict | None = None, dtype: torch.dtype | None = None) -> None:
    """Writes ``{"model", "config", "state_dict", "meta"}``.

    Args:
        model: one of the registry's classes; ``model.config`` holds its constructor's arguments.
        path: the ``.pth`` file.
        meta: JSON-able facts about the training (command, figures).
        dtype: stores floating-point weights in this type (float16 halves the file); as they are by default.
    """
    state = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    name = type(model).__name__
    write({"model": name, "config": dict(model.config), "state_dict": state, "meta": meta or {}}, path)


def load(path: str | Path, name: str | None = None) -> torch.nn.Module:
    """The model in ``path``, in eval mode, float32, on the CPU.

    Args:
        path: a file that :func:`save` wrote.
        name: the class that it must be, or None for any.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds code, or holds another model than ``name``.
    """
    path = locate(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}; train one with python -m homework.train.")
    data = read(path)
    if not isinstance(data, dict) or not {"model", "config", "state_dict"} <= data.keys():
        raise ValueError(f"{path} is not a checkpoint of this package.")
    if name is not None and data["model"] != name:
        raise ValueError(f"{path} holds a {data['model']}, but a {name} is needed here.")
    try:
        model = model_class(data["model"])(**data["config"])
        model.load_state_dict(data["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not fit this version's {data['model']}: {str(error).splitlines()[-1]}") from error
    model.meta = data.get("meta", {})
    return model.eval()


def locate(path: str | Path) -> Path:
    """The file that ``path`` means: itself where it is there. Where it is not, a model's name (``BSQPatchAutoEncoder``), or
    ``homework/NAME.pth``, means the copy that a training left in ./homework or in the package, or else the pretrained model;
    which one is printed on stderr."""
    path = Path(path)
    if path.is_file() or not (path.parent.name == "homework" or str(path) == path.stem):
        return path
    file = f"{path.stem}.pth"
    found = next((p for p in (Path("homework") / file, PACKAGE / file, PRETRAINED / file) if p.is_file()), None)
    if found is None:
        return path
    print(f"{path.stem}: {found}", file=sys.stderr)
    return found


def load_reference(name: str) -> torch.nn.Module:
    """The model ``name`` that :func:`locate` finds, in eval mode."""
    return load(name, name)
