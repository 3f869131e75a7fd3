"""Files that are written completely or not at all, and plain data in them, read without running code."""

import contextlib
import os
import pickle
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path next to ``path``; renames it to ``path`` at the end, or removes it after an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with relabel_errors(temporary, path):
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # an error of the block itself says more
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def relabel_errors(temporary: Path, path: Path) -> Iterator[None]:
    """Lets the errors about a ``temporary`` file, or one in such a folder, speak of the ``path`` that it was to become."""
    try:
        yield
    except OSError as error:
        if str(error.filename).startswith(str(temporary)):
            error.filename = str(path) + str(error.filename)[len(str(temporary)) :]
        raise


def write(data: dict, path: str | Path) -> None:
    """Writes plain data (tensors, numbers, strings, lists, dicts); an OSError, as of a full disk, leaves the old file."""
    with replacing(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save(data, file)
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:  # torch wraps the error of a failed write in its own
            raise OSError(f"{path} could not be written ({str(error).splitlines()[0]}); is the disk full?") from error


def read(path: str | Path) -> dict:
    """The plain data in ``path``, onto the CPU. ValueError if it holds code, is damaged, or torch has not written it."""
    with open(path, "rb") as file:
        try:
            packed = zipfile.is_zipfile(file)
            if packed and zipfile.ZipFile(file).testzip():  # torch.load looks at no checksums
                raise EOFError("a checksum is wrong")
            file.seek(0)
            if not packed and file.read(1) != b"\x80":  # what a pickle begins with, as older torch wrote them
                raise EOFError("not a checkpoint")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path} is not a plain checkpoint: it holds objects that could run code; refused.") from error
        except Exception as error:  # the readers raise nearly anything on damaged data
            raise ValueError(f"{path} is damaged or not a checkpoint.") from error
