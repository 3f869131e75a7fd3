"""Models on disk."""

import mimetypes
from pathlib import Path
from typing import Any

import torch

from homework.core import checks, devices, files, registry
from homework.core.model import Model
from homework.core.processes import say

PACKAGE = Path(__file__).parents[1]
PRETRAINED = PACKAGE / "pretrained"


def save(model: Model, path: str | Path, meta: dict | None = None, dtype: torch.dtype | None = None) -> None:
    """Writes ``{"model", "config", "state_dict", "meta"}`` to the ``.pth`` file ``path``, with floating-point weights in
    ``dtype`` if one is given (float16 halves the file), and JSON-able facts about the training as ``meta``."""
    state = {k: v.detach().to("cpu", dtype if v.is_floating_point() else None) for k, v in model.state_dict().items()}
    files.write({"model": type(model).__name__, "config": dict(model.config), "state_dict": state, "meta": meta or {}}, path)


def load(path: str | Path, name: str | None = None) -> Model:
    """The model in ``path``, which may be a model's name (see :func:`locate`), in eval mode, float32, on the CPU.
    FileNotFoundError if there is no such file; ValueError if it is damaged, holds code, or a model of another class than
    ``name`` (None for any)."""
    path = locate(path)
    refuse_other(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}; train one with python -m homework.train.")
    data = files.read(path)
    if not isinstance(data, dict) or not {"model", "config", "state_dict"} <= data.keys():
        raise checks.Misplaced(f"{path} is not a checkpoint of this package.")
    if name is not None and data["model"] != name:
        raise wrong_model(path, data["model"], checks.article(name))
    try:
        with devices.keeping_generators():  # the weights that a constructor draws are replaced
            model = registry.model_class(data["model"])(**data["config"])
        model.load_state_dict(data["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not fit this version's {data['model']}: {str(error).splitlines()[-1]}") from error
    model.meta = meta if isinstance(meta := data.get("meta"), dict) else {}
    return model.float().eval()  # whatever torch.set_default_dtype says


def refuse_other(path: str | Path) -> None:
    """ValueError if ``path``, where a checkpoint belongs, is a folder or an image."""
    path = _find(path)
    image = (mimetypes.guess_type(path.name)[0] or "").startswith("image/")
    if path.is_dir() or (image and path.is_file()):
        raise checks.Misplaced(f"{path} is {'an image' if image else 'a folder'}, but a checkpoint (.pth) is needed here.")


def wrong_model(path: str | Path, found: str, needed: str) -> ValueError:
    """For a checkpoint that holds a model of another class than is ``needed``, as in "a tokenizer"."""
    return checks.Misplaced(f"{path} holds {checks.article(found)}, but {needed} is needed here.")


def locate(path: str | Path) -> Path:
    """The file that ``path`` means: itself if it exists. Otherwise NAME and homework/NAME.pth mean the first that exists of
    ./homework/NAME.pth, where a training leaves its copy, the same in the package's folder, and the pretrained model; a line
    on stderr says which. ``path`` itself if none exists."""
    found = _find(path)
    if found != Path(path):
        say(f"{path}: using {found}")
    return found


def _find(path: str | Path) -> Path:
    path = Path(path)
    if path.is_file() or str(path) not in (path.stem, str(Path("homework", f"{path.stem}.pth"))):
        return path
    places = (folder / f"{path.stem}.pth" for folder in (Path("homework"), PACKAGE, PRETRAINED))
    return next((place for place in places if place.is_file()), path)


def load_reference(name: str) -> Any:
    """The model ``name`` that :func:`locate` finds, in eval mode."""
    return load(name, name)
