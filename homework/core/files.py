"""Files that are written completely or not at all, and plain data in them, read without running code."""

import contextlib
import errno
import functools
import os
import pickle
import platform
import re
import shutil
import stat
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG  # of an OSError: there is no room for what is written


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path next to ``path``; renames it to ``path`` at the end, or removes it after an error. ValueError
    as in :func:`check_regular`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    check_regular(path)
    temporary = temporary_in(path.parent)
    try:
        with relabel_errors(temporary, path):
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # an error of the block itself says more
            temporary.unlink(missing_ok=True)


def check_regular(path: Path) -> None:
    """ValueError if ``path`` is a folder, a pipe or a device: a rename would put a file in its place."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"{path} is a folder, a pipe or a device, which stays as it is; name a file.")


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Holds a lock on the file at ``path``, for which all processes wait that ask for it; where the system has none, nothing
    happens."""
    with open(path, "rb") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # of a network's file system
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_writable(path: Path) -> None:
    """ValueError if no file can be written to ``path``, as far as that can be known without writing it."""
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{folder} is not a folder in which files can be made, but {path.parent} is to hold some.")
    check_regular(path)


def temporary_in(folder: Path) -> Path:
    """A short, unused name for a temporary file or folder in ``folder``. Removes what processes that were killed left there
    under such names."""
    _sweep(os.path.abspath(folder))
    return folder / f".{os.getpid()}-{_place()}-{uuid.uuid4().hex[:8]}.homework.tmp"


@functools.lru_cache(1024)  # once in each folder
def _sweep(folder: str) -> None:
    for name in os.listdir(folder) if os.name == "posix" and os.path.isdir(folder) else ():
        found = re.fullmatch(r"\.(\d{1,9})-(\w{8})-\w{8}\.homework\.tmp", name)
        if found and found[2] == _place():  # elsewhere, the number means another process
            try:
                os.kill(int(found[1]), 0)
            except ProcessLookupError:
                shutil.rmtree(path := os.path.join(folder, name), ignore_errors=True)
                with contextlib.suppress(OSError):
                    os.unlink(path)
            except PermissionError:  # a process of another user
                pass


@functools.cache
def _place() -> str:
    """Says, in 8 hexadecimal digits, where the number of a process means this process: the machine, and the container."""
    try:
        container = os.readlink("/proc/self/ns/pid")
    except OSError:
        container = ""
    return f"{zlib.crc32(f'{platform.node()} {container}'.encode()):08x}"


def printable(text: str, but: str = "") -> str:
    """A name, or what else others may have chosen, as it can be shown on one line: control characters, also those that turn
    the direction of writing, and bytes that are not UTF-8 become escapes, except for the characters in ``but``."""
    if text.isprintable():  # as nearly all are
        return text
    return "".join(c if c.isprintable() or c in but else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def relabel_errors(temporary: Path, path: Path) -> Iterator[None]:
    """Lets the errors about a ``temporary`` file, or one in such a folder, and of a full disk, speak of the ``path`` that it
    was to become."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in FULL:
            error.filename = str(path)
        elif str(error.filename).startswith(str(temporary)):
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
            if packed and _is_spoiled(zipfile.ZipFile(file)):
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


def holds(path: str | Path, field: str) -> bool:
    """Whether ``path`` is such a file, of a dict with this ``field``."""
    try:
        data = read(path)
    except (ValueError, OSError):
        return False
    return isinstance(data, dict) and field in data


def _is_spoiled(packed: zipfile.ZipFile) -> bool:
    """Whether torch would load other bytes than were written: it looks at no checksums, and where an entry has the attribute
    of a folder, 16, it loads whatever is in the memory."""
    return packed.testzip() is not None or any(entry.external_attr & 16 for entry in packed.infolist())
