"""Packs a package into a zip to hand in: ``python bundle.py homework ID`` writes ``ID.zip`` with one folder, homework/.

Caches, hidden files, logs and unfinished downloads stay out. A copy that a training left, homework/NAME.pth, is packed in
place of the shipped homework/pretrained/NAME.pth. The same files give the same bytes. Knows files only.
"""

import argparse
import os
import re
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Never

TOP = "homework"
SHIPPED = "pretrained"
MAX_MB = 20
LEFT_OUT = ("__pycache__", "*.pyc", "*.pyo", ".*", "*.tmp", "*.part", "*.log", "logs", "events.out.tfevents.*", "*~")


def collect(folder: Path) -> list[Path]:
    """The files of ``folder`` to pack, sorted. ValueError if the folder does not exist or holds no Python file."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not left_out(name)]
        links = [name for name in folders if Path(parent, name).is_symlink()]  # which os.walk does not enter
        files += [Path(parent, name) for name in names + links if not left_out(name)]
    for path in files:
        if not path.is_file():  # a link's file is packed as a file
            raise ValueError(f"{path} is a link to a folder or to nothing, or no file; put a copy there, or remove it.")
    if not any(path.suffix == ".py" for path in files):
        raise ValueError(f"{folder} holds no Python files; name the folder of the package.")
    replaced = {folder / SHIPPED / name for name in replacements(folder)}
    return sorted(set(files) - replaced, key=lambda path: path.relative_to(folder).as_posix())


def left_out(name: str) -> bool:
    """Whether files and folders of this name stay out."""
    return any(fnmatch(name, pattern) for pattern in LEFT_OUT)


def replacements(folder: Path) -> list[str]:
    """The names of the checkpoints in ``folder`` that are packed in place of shipped ones, sorted."""
    return sorted(path.name for path in folder.glob("*.pth") if (folder / SHIPPED / path.name).is_file())


def pack(folder: Path, target: Path) -> list[Path]:
    """Writes ``target``, completely or not at all, and returns the files in it.

    Raises ValueError, listing the largest files, if it would have more than 20 MB.
    """
    if target.exists() and not target.is_file():  # which a rename would replace
        raise ValueError(f"{target} is a folder, a pipe or a device, which stays as it is; choose another ID, or remove it.")
    files = collect(folder)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            for path in files:
                # date, mode and system are fixed, so that the bytes depend only on names and contents
                entry = zipfile.ZipInfo(f"{TOP}/{path.relative_to(folder).as_posix()}", (1980, 1, 1, 0, 0, 0))
                entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o100644 << 16, 3
                archive.writestr(entry, path.read_bytes(), compresslevel=9)  # that of the archive is not for such entries
            packed = {path: entry.compress_size for path, entry in zip(files, archive.infolist(), strict=True)}
        if temporary.stat().st_size > MAX_MB * 1e6:
            largest = sorted(files, key=lambda path: packed[path], reverse=True)[:5]
            listed = "\n".join(f"  {megabytes(packed[path])}  {path}" for path in largest)
            size = megabytes(temporary.stat().st_size).strip()
            raise ValueError(f"The zip would have {size}; {MAX_MB} MB are allowed. Remove what is not needed. The largest, "
                             f"packed:\n{listed}")  # fmt: skip
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return files


def megabytes(size: int) -> str:
    return f"{size / 1e6:6.2f} MB"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Never:  # argparse would exit with 2
        sys.exit(f"error: {message}. See python bundle.py --help.")


def main() -> None:
    parser = Parser(prog="python bundle.py", description="Packs a package into ID.zip to hand in.")
    parser.add_argument("folder", help="the package, e.g. homework")
    parser.add_argument("id", metavar="ID", help="letters, digits, - and _; the zip is called ID.zip")
    args = parser.parse_args()
    try:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", args.id):
            raise ValueError(f"The ID is {args.id!r}, but must be a plain name: letters, digits, - and _.")
        if not args.folder:  # as of a variable that the shell does not know; Path would take it for the current folder
            raise ValueError("The folder is an empty text; name that of the package, as in homework, or . for this one.")
        folder, target = Path(args.folder), Path(f"{args.id}.zip")
        for path in pack(folder, target):
            print(f"{megabytes(path.stat().st_size)}  {path.relative_to(folder)}")
        for name in replacements(folder):
            print(f"{name}: the trained copy is packed, the shipped {SHIPPED}/{name} is not")
        print(f"{megabytes(target.stat().st_size)}  {target}")
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")
    except OSError as error:
        parser.exit(1, f"error: {error.strerror}: {error.filename}.\n")


if __name__ == "__main__":
    main()
