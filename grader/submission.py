"""A submission on disk: checks a zip before it is unpacked, copies the package to a scratch folder, lists its models."""

import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path

PACKAGE = "homework"
MAX_ZIP_MB, MAX_UNPACKED_MB, MAX_FILES = 20, 200, 10_000


def unpack(source: str | Path, into: Path) -> None:
    """Puts the submission's package at ``into / "homework"``.

    Args:
        source: a zip whose one top folder is ``homework``; or that folder, or a folder that holds it.
        into: an empty folder.
    Raises:
        ValueError: why the submission is refused; no path of a refused zip has been used.
        FileNotFoundError: there is no such file or folder.
    """
    source = Path(source)
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(_package(source), into / PACKAGE, ignore=ignored, ignore_dangling_symlinks=True)
    elif source.is_file():
        _unzip(source, into)
    else:
        raise FileNotFoundError(f"There is no submission {source}.")


def _package(folder: Path) -> Path:
    if (folder / PACKAGE).is_dir():
        return folder / PACKAGE
    if (folder / "__init__.py").is_file():
        return folder
    raise ValueError(f"{folder} neither is nor holds a package {PACKAGE}.")


def _unzip(path: Path, into: Path) -> None:
    if path.stat().st_size > MAX_ZIP_MB * 1e6:
        raise ValueError(f"{path.name} has {path.stat().st_size / 1e6:.1f} MB; at most {MAX_ZIP_MB} MB are allowed.")
    try:
        with zipfile.ZipFile(path) as archive:
            check(archive.infolist())
            archive.extractall(into)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path.name} is not a sound zip: {error}.") from error
    except OSError as error:  # for example a file and a folder of one name
        raise ValueError(f"{path.name} cannot be unpacked: {error.strerror or error}.") from error
    if not (into / PACKAGE).is_dir():
        raise ValueError(f"{path.name} holds no folder {PACKAGE}/.")


def check(entries: list[zipfile.ZipInfo]) -> None:
    """ValueError with the reason if a zip with these entries must not be unpacked."""
    if len(entries) > MAX_FILES:
        raise ValueError(f"The zip holds {len(entries)} files; at most {MAX_FILES} are allowed.")
    size = sum(entry.file_size for entry in entries)  # zipfile never unpacks more of an entry than this
    if size > MAX_UNPACKED_MB * 1e6:
        raise ValueError(f"The zip unpacks to {size / 1e6:.0f} MB; at most {MAX_UNPACKED_MB} MB are allowed.")
    seen = set()
    for entry in entries:
        name = entry.filename
        if name.startswith("/") or re.match(r"[A-Za-z]:", name):
            raise ValueError(f"The zip holds an absolute path, {name!r}.")
        if "\\" in name or ".." in name.split("/"):
            raise ValueError(f"The zip holds a path that climbs out of its folder, {name!r}.")
        kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where the zip was made on another system than Unix
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"The zip holds a link or special file, {name!r}.")
        if entry.flag_bits & 1:
            raise ValueError(f"The zip is encrypted, {name!r}.")
        if name in seen:
            raise ValueError(f"The zip holds {name!r} twice.")
        seen.add(name)
    tops = sorted({entry.filename.split("/")[0] for entry in entries})
    if len(tops) > 1:
        raise ValueError(f"The zip has more than one top folder: {', '.join(tops[:5])}; only {PACKAGE}/ is allowed.")
    if tops != [PACKAGE]:
        raise ValueError(f"The top folder of the zip is {(tops or ['missing'])[0]!r}, but must be {PACKAGE!r}.")


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
