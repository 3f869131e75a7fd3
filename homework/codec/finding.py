"""Which images of an archive, or of a folder of archives, a user means."""

import fnmatch
from pathlib import Path

from homework.codec.archive import Reader
from homework.codec.format import IMAGE
from homework.core.files import printable


def find(reader: Reader, only: str) -> list[int]:
    """Which images are meant by a name, or by names and shell patterns with commas between them."""
    if reader.kind == IMAGE:
        raise ValueError(f"{reader.name} is one image, not an archive of several; leave --only out.")
    return _matches([(name,) for name in reader.names], only, reader.name)


def _matches(images: list[tuple[str, ...]], only: str, where: str) -> list[int]:
    """The numbers of the images that are meant, each of which has one or more names."""
    wanted: set[int] = set()
    known = set().union(*images)
    for part in [only] if only in known else only.split(","):
        found = {i for i, names in enumerate(images) if part in names}
        found = found or {i for i, names in enumerate(images) if any(fnmatch.fnmatchcase(name, part) for name in names)}
        if not found:
            shown = ", ".join([*(printable(names[0]) for names in images[:3]), *["..."] * (len(images) > 3)])
            raise ValueError(f"{where} holds no image {part or repr(part)}; it holds {shown} (see the command info).")
        wanted |= found
    return sorted(wanted)


def read_folder(folder: str) -> dict[str, Reader]:
    """The headers of the archives in a folder, by path. FileNotFoundError if there are none."""
    readers = {}
    for path in (str(path) for path in sorted(Path(folder).glob("*.hwa")) if path.is_file()):  # no pipes
        with open(path, "rb") as file:
            readers[path] = Reader(file, path)
    if not readers:
        raise FileNotFoundError(f"There are no archives (.hwa) in {folder}.")
    return readers


def find_in_folder(folder: str, only: str | None) -> dict[str, list[int]]:
    """The numbers of the images that are meant in each archive of a folder; by ARCHIVE/NAME, or by NAME in any archive."""
    images = [(path, i, name) for path, reader in read_folder(folder).items() for i, name in enumerate(reader.names)]
    names = [(f"{Path(path).stem}/{name}", name) for path, _, name in images]
    found: dict[str, list[int]] = {}
    for k in range(len(images)) if only is None else _matches(names, only, folder):
        found.setdefault(images[k][0], []).append(images[k][1])
    return found
