"""A submission on disk: checks a zip or folder, copies its package to a scratch folder, lists its models."""

import os
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PACKAGE = "homework"
MAX_ZIP_MB, MAX_UNPACKED_MB, MAX_FILES, MAX_PATH = 20, 200, 10_000, 255
COMPILED = {".pyc", ".pyo", ".so", ".pyd", ".dll", ".dylib"}  # a submission is what can be read


class Refused(ValueError):
    """The submission is not allowed."""


def unpack(source: str | Path, into: Path) -> None:
    """Puts the submission's package at ``into / "homework"``, without compiled code, hidden files and what a Mac adds.

    Args:
        source: a zip whose one top folder is ``homework``; or that folder, or a folder that holds it.
        into: an empty folder.
    Raises:
        ValueError: why the submission is refused; no path of a refused zip has been used.
        FileNotFoundError: there is no such file or folder.
    """
    source = Path(source)
    if source.is_dir():
        _copy(_package(source), into / PACKAGE)
    elif source.is_file():
        _unzip(source, into)
    else:
        raise FileNotFoundError(f"There is no submission {source}.")
    if not (into / PACKAGE / "__init__.py").is_file():
        raise ValueError(f"{source.name} holds no folder {PACKAGE}/ with an __init__.py.")


def ignored(name: str) -> bool:
    """Whether a file or folder of this relative path is left out of the submission."""
    path = PurePosixPath(name)
    return path.suffix in COMPILED or any(part in ("__pycache__", "__MACOSX") or part[0] == "." for part in path.parts)


def _package(folder: Path) -> Path:
    if (folder / PACKAGE).is_dir():
        return folder / PACKAGE
    if (folder / "__init__.py").is_file():
        return folder
    raise ValueError(f"{folder} neither is nor holds a package {PACKAGE}.")


def _copy(package: Path, into: Path) -> None:
    files = list(_files(package))
    _check_amount("folder", len(files), sum(path.stat().st_size for _, path in files))
    into.mkdir()
    for name, path in files:
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, into / name)


def _files(package: Path) -> Iterator[tuple[str, Path]]:
    """(relative path, the file it is) of the folder's files. Refused at one that must not be copied."""
    package = package.resolve()
    folders = [("", package)]
    while folders:
        above, folder = folders.pop()
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name = f"{above}{entry.name}"
            _check_path("folder", name)  # before the next level: links may go round in circles
            real = Path(os.path.realpath(entry.path))
            if ignored(entry.name) or not real.exists():  # a dangling link
                continue
            if not real.is_relative_to(package):
                raise Refused(f"The folder holds a link that leads out of it, {name!r}; put a copy in its place.")
            if real.is_dir():
                folders.append((f"{name}/", real))
            elif real.is_file():
                yield name, real
            else:
                raise Refused(f"The folder holds a special file, {name!r}.")


def _unzip(path: Path, into: Path) -> None:
    if path.stat().st_size > MAX_ZIP_MB * 1e6:
        raise ValueError(f"{path.name} has {path.stat().st_size / 1e6:.1f} MB; at most {MAX_ZIP_MB} MB are allowed.")
    try:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(into, check(archive.infolist()))
    except Refused:
        raise
    except OSError as error:  # for example a file and a folder of one name
        raise ValueError(f"{path.name} cannot be unpacked: {error.strerror or error}.") from error
    except Exception as error:  # zipfile and the decompressors raise many kinds
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path.name} is not a sound zip: {text}.") from error


def check(entries: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """Those to unpack. Refused with the reason if a zip with these entries must not be unpacked."""
    seen = set()
    for entry in entries:
        name = entry.filename
        _check_path("zip", name)
        if name.startswith("/") or re.match(r"[A-Za-z]:", name):
            raise Refused(f"The zip holds an absolute path, {name!r}.")
        if "\\" in name or ".." in name.split("/"):
            raise Refused(f"The zip holds a path that climbs out of its folder, {name!r}.")
        kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where the zip was made on another system than Unix
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise Refused(f"The zip holds a link or special file, {name!r}.")
        if entry.flag_bits & 1:
            raise Refused(f"The zip is encrypted, {name!r}.")
        path = "/".join(part for part in name.split("/") if part not in ("", "."))  # what it is unpacked to
        if path in seen:
            raise Refused(f"The zip holds {path!r} twice.")
        seen.add(path)
    entries = [entry for entry in entries if not ignored(entry.filename)]
    # zipfile never unpacks more of an entry than its file_size
    _check_amount("zip", len(entries), sum(entry.file_size for entry in entries))
    tops = sorted({entry.filename.split("/")[0] for entry in entries})
    if len(tops) > 1:
        some = ", ".join(top if top.isprintable() else repr(top) for top in tops[:5])
        raise Refused(f"The zip has more than one top folder: {some}; only {PACKAGE}/ is allowed.")
    if tops != [PACKAGE]:
        raise Refused(f"The top folder of the zip is {(tops or ['missing'])[0]!r}, but must be {PACKAGE!r}.")
    return entries


def _check_path(what: str, name: str) -> None:
    if len(name) > MAX_PATH:
        raise Refused(f"The {what} holds a path of more than {MAX_PATH} characters, {name[:20]!r}...")


def _check_amount(what: str, files: int, size: int) -> None:
    if files > MAX_FILES:
        raise Refused(f"The {what} holds {files} files; at most {MAX_FILES} are allowed.")
    if size > MAX_UNPACKED_MB * 1e6:
        verb = "unpacks to" if what == "zip" else "has"
        raise Refused(f"The {what} {verb} {size / 1e6:.0f} MB; at most {MAX_UNPACKED_MB} MB are allowed.")


def models(folder: Path) -> list[str]:
    """The checkpoints that the ``load()`` functions of ``folder / "homework"`` take, relative to it, sorted by model: a copy
    that a training left, NAME.pth, comes before the shipped pretrained/NAME.pth."""
    package = folder / PACKAGE
    found = {path.name: path for part in ("pretrained", ".") for path in (package / part).glob("*.pth")}
    return [path.relative_to(package).as_posix() for _, path in sorted(found.items())]


def checkpoint(folder: Path, name: str) -> str:
    """The path of the checkpoint called ``name`` in ``folder / "homework"`` or its pretrained/, relative to homework/.
    ValueError if there is none."""
    for file in (name, f"pretrained/{name}"):
        if Path(name).name == name and (folder / PACKAGE / file).is_file():
            return file
    raise ValueError(f"There is no {name} in homework/ or homework/pretrained/ of the submission; name a file without its "
                     f"folder, as in VQPatchAutoEncoder.pth. There are: {', '.join(models(folder)) or 'none'}.")  # fmt: skip
