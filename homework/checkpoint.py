"""Models on disk: plain data, read without running code, written whole or not at all; and the names of runs."""

import contextlib
import hashlib
import os
import pickle
import time
import uuid
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import torch

from homework.registry import model_class

PACKAGE = Path(__file__).parent


def new_name(model: str) -> str:
    """The present time and the model's name; claimed by making the log's folder, as two runs may start in one second."""
    while True:
        name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{model}"
        try:
            Path("logs", name).mkdir(parents=True)
            return name
        except FileExistsError:
            if not Path("logs", name).is_dir():
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; renames it to ``path`` at the end, or removes it after an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with as_of(temporary, path):
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # an error of the block itself says more
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def as_of(temporary: Path, path: Path) -> Iterator[None]:
    """Lets the errors about a ``temporary`` file, or one in such a folder, speak of the ``path`` that it was to become."""
    try:
        yield
    except OSError as error:
        if str(error.filename).startswith(str(temporary)):
            error.filename = str(path) + str(error.filename)[len(str(temporary)) :]
        raise


def write(data: dict, path: str | Path) -> None:
    """Writes plain data (tensors, numbers, strings, lists, dicts) to ``path``; a full disk leaves the old file as it was.

    Raises OSError if it cannot be written.
    """
    with replacing(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save(data, file)
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:  # torch wraps the error of a failed write in its own
            raise OSError(f"{path} could not be written ({str(error).splitlines()[0]}); is the disk full?") from error


def read(path: str | Path) -> dict:
    """The plain data in ``path``, onto the CPU. ValueError if the file holds code, is damaged, or is not one that torch
    wrote; OSError if it cannot be opened."""
    with open(path, "rb") as file:
        try:
            packed = zipfile.is_zipfile(file)
            if packed and zipfile.ZipFile(file).testzip():  # torch.load looks at no checksums
                raise EOFError("a checksum is wrong")
            file.seek(0)
            if not packed and file.read(1) != b"\x80":  # what a pickle begins with, as older torch wrote them
                raise EOFError("no checkpoint")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            message = f"{path} is no plain checkpoint: it holds objects that could run code, and is refused."
            raise ValueError(message) from error
        except Exception as error:  # the readers raise nearly anything on damaged data
            raise ValueError(f"{path} is damaged or not a checkpoint.") from error


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
    if not Path(path).is_file():
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


def digest(name: str, config: dict, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> bytes:
    """SHA-256 of a model's name, configuration and tensors, these as ``dtype``: 32 bytes."""
    whole = hashlib.sha256(repr((name, sorted(config.items()))).encode())
    for key, tensor in sorted(tensors.items()):
        whole.update(repr((key, tuple(tensor.shape))).encode())
        whole.update(tensor.detach().cpu().to(dtype).contiguous().numpy().tobytes())
    return whole.digest()


def fingerprint(model: torch.nn.Module) -> str:
    """16 hexadecimal digits that tell a trained model from any other: of its name and its weights, rounded to float16, so
    that a checkpoint and its float16 copy have the same."""
    return digest(type(model).__name__, {}, model.state_dict(), torch.float16).hex()[:16]


def find_state(model: str) -> Path:
    """The file that a training resumes from: beside the checkpoint ``model``, or of the latest run of the model so named.

    ValueError if there is none, or no such model.
    """
    if str(model).endswith(".pth"):
        paths = [path for path in [Path(model).with_suffix(".state.pth")] if path.is_file()]
    else:
        model_class(str(model))
        paths = sorted(Path("checkpoints").glob(f"*_{model}.state.pth"))
    if not paths:
        raise ValueError(f"There is no unfinished run of {model} in checkpoints/ to resume; leave --resume out.")
    return paths[-1]


def load_reference(name: str) -> torch.nn.Module:
    """The trained model that lies in the package, ``homework/{name}.pth``, in eval mode."""
    return load(PACKAGE / f"{name}.pth", name)
