"""Makes WebDataset shards of image files: the same bytes of the same images, whenever and wherever."""

import json
import os
import re
import tarfile
from pathlib import Path

from tqdm import tqdm

from homework.core import checks, files
from homework.datasets.image_files import image_paths, names_below
from homework.datasets.shards import FORMAT, MANIFEST, VERSION, Shard, file_size, open_image

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
ENDS = 2 * tarfile.BLOCKSIZE  # bytes after the last file of a tar
Plan = list[tuple[str, list[tuple[str, str, int]]]]  # for each shard its name, and path, name in it and bytes of its images


def shard(images: str, output: str, *, size: str = "1GB", limit: int | None = None, replace: bool = False) -> None:
    """Packs images into WebDataset shards, tar files of about one size, for data that are too many for a folder. The same
    command resumes an unfinished run: complete shards that are there are kept.

    Examples:
        python -m homework.data shard data/train shards/train
        python -m homework.data shard data/valid shards/valid --size 100MB

    Args:
        images: a folder, a dataset.json, or other shards.
        output: the folder to write: NAME-000000.tar ..., NAME being the folder's own, and last shards.json, an index.
        size: of a shard at most, in bytes, KB, MB or GB; one that holds a single larger image is larger.
        limit: how many images to use at most, the first ones by their paths; all by default.
        replace: remove other shards that are in the output folder; they are an error by default.
    """
    folder, most = Path(output), parse_bytes(size)
    checks.integer(1, **{"--limit": 1 if limit is None else limit})
    if not output or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"The output is {output!r}, but must be a folder.")
    paths = list(image_paths(images)[:limit])
    if inside := [path for path in paths if folder.resolve() in Path(path).resolve().parents]:
        raise ValueError(f"{inside[0]} is in the output folder {folder}; name another folder.")
    names = names_below(paths)
    order = sorted(range(len(paths)), key=lambda i: names[i])
    plan = share_out([(paths[i], names[i], file_size(paths[i])) for i in order], most, folder.resolve().name)
    kept = _kept(folder, plan, replace)
    with tqdm(total=len(paths), desc="sharding", unit="img") as bar:
        for name, members in plan:
            if name not in kept:
                write_shard(folder / name, members)
            bar.update(len(members))
    sizes = [(folder / name).stat().st_size for name, _ in plan]
    shards = [{"name": name, "images": len(members), "bytes": n} for (name, members), n in zip(plan, sizes, strict=True)]
    n, n_bytes = len(paths), sum(sizes)
    with files.replacing(folder / MANIFEST) as temporary:
        manifest = {"format": FORMAT, "version": VERSION, "images": n, "bytes": n_bytes, "shards": shards}
        temporary.write_text(json.dumps(manifest, indent=1), "utf-8")
    made = f", of which {len(kept)} were there" * bool(kept)
    print(f"{folder}: {checks.count(n, 'image')} in {checks.count(len(plan), 'shard')}{made}")


def parse_bytes(text: str) -> int:
    """"1.5GB" -> 1500000000. ValueError for anything else, and for none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", str(text), re.IGNORECASE)
    n = float(found[1]) * UNITS[found[2].upper()] if found else 0.0
    if not 1 <= n < 2**60:
        raise ValueError(f"--size is {text!r}, but must be a number of bytes above 0, as in 500MB or 1GB.")
    return int(n)


def share_out(images: list[tuple[str, str, int]], most: int, name: str) -> Plan:
    """Images (path, name, bytes), in their order, in shards of at most ``most`` bytes, but for one image at least."""
    plan: Plan = []
    left = 0
    for image in images:
        taken = len(_header(image[1], image[2])) + image[2] + -image[2] % tarfile.BLOCKSIZE
        if not plan or taken > left:
            plan.append((f"{name}-{len(plan):06}.tar", []))
            left = most - ENDS
        plan[-1][1].append(image)
        left -= taken
    return plan


def _header(name: str, size: int) -> bytes:
    """Of a file in a tar, whatever its own time and owner."""
    info = tarfile.TarInfo(name)
    info.size = size  # all else is 0 or empty, and mode 0644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def write_shard(path: Path, members: list[tuple[str, str, int]]) -> None:
    """Writes a tar of files (path, name, bytes), whole or not at all. ValueError if one has another size meanwhile."""
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        for source, name, size in members:
            with open_image(source) as stream:
                content = stream.read()
            if len(content) != size:
                raise ValueError(f"{source} was changed meanwhile; run the same command again.")
            file.write(_header(name, size) + content + bytes(-size % tarfile.BLOCKSIZE))
        file.write(bytes(ENDS))
        file.flush()
        os.fsync(file.fileno())


def _kept(folder: Path, plan: Plan, replace: bool) -> set[str]:
    """The shards of the plan that are in ``folder`` already. ValueError if there are others; ``replace`` removes all."""
    there = {path.name: path for path in folder.glob("*.tar")}
    if replace:
        (folder / MANIFEST).unlink(missing_ok=True)  # first: without it, what is left is not taken for complete
    planned, kept = dict(plan), set()
    for name, path in there.items():
        expected = {name: size for _, name, size in planned.get(name, [])}
        if replace:
            path.unlink()
        elif name in planned and {n: place[1] for n, place in Shard(str(path)).places.items()} == expected:
            kept.add(name)
        else:
            raise ValueError(f"{path} is not a shard of these images at this --size; name another folder, or pass --replace "
                             "to remove the shards in it.")  # fmt: skip
    return kept
