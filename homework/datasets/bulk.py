"""Bulk jobs: one output for each shard, made once, by any number of processes, whatever ends them meanwhile."""

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from homework.core import checks, files
from homework.core.files import printable
from homework.core.processes import own_share
from homework.datasets.shards import REMOTE, members_of, shards_in

JOB = "job.json"  # in the folder of the outputs: by what options they are made, and of which shards
LEFT_OUT = ".left_out.txt"  # beside an output, in place of its suffix: a line about each image that it lacks


def for_each_shard(sources: Sequence[str], folder: str | Path, suffix: str, job: dict[str, Any], skip_bad: bool,
                   make: Callable[[list[str], Path, list[str]], None]) -> None:  # fmt: skip
    """Calls ``make(paths, output, bad)`` for each shard whose output is not there: the sorted paths of its images, the file
    to write, whole or not at all, and a list that takes a sentence about each image that was left out. Under torchrun, each
    process takes every n-th shard. They exchange nothing, so that none waits, and a group that is started again, with as
    many or fewer, does what is missing.

    Args:
        sources: of shards, see :func:`homework.datasets.shards.shards_in`.
        folder: of the outputs, each named like its shard, with ``suffix``.
        job: plain data that the outputs depend on. ValueError if the folder's outputs were made by other data.
        skip_bad: continue after a shard that cannot be read; all that was left out, by earlier runs too, is said at the end.
            ValueError if nothing could be made.
    """
    targets, bad = begin(sources, Path(folder), suffix, job), list[str]()
    own = own_share(list(targets.items()))
    for url, output in own:
        beside, here = output.with_suffix(LEFT_OUT), list[str]()
        if output.exists():
            bad += beside.read_text("utf-8").splitlines() if beside.exists() else []
            continue
        try:
            make(sorted(_paths(url)), output, here)
        except ValueError as error:
            if not skip_bad:
                raise
            here.append(str(error))
        lines = [printable(sentence) for sentence in here]
        bad += lines
        beside.unlink(missing_ok=True)  # of an output that was removed, to be made again
        if lines and output.exists():
            with files.replacing(beside) as temporary:
                temporary.write_text("\n".join(lines), "utf-8")
    if bad:
        named = "".join(f"\n  {line}" for line in bad)
        tqdm.write(f"Left out:{named}", file=sys.stderr)  # by every process, of its own
    done = sum(output.exists() for output in targets.values())
    print(f"{folder}: {done} of {checks.count(len(targets), 'shard')} done")
    if bad and not any(output.exists() for _, output in own):
        raise ValueError("No shard was done, for all were left out.")


def begin(sources: Sequence[str], folder: Path, suffix: str, job: dict[str, Any]) -> dict[str, Path]:
    """Makes the folder; returns the output for each shard."""
    urls: list[str] = []
    for source in sources:
        if (found := shards_in(source)) is None:
            raise ValueError(f"{source} names no shards, but --shards is about these; leave it out, or write as in "
                             "'data/train-{000000..000999}.tar'.")  # fmt: skip
        urls += found
    targets = {url: folder / f"{shard_name(url, i)}{suffix}" for i, url in enumerate(urls)}
    by_output: dict[Path, str] = {}
    for url, output in targets.items():
        if output in by_output:
            raise ValueError(f"{url} and {by_output[output]} would both become {output}; name them in two commands, with a "
                             "folder each.")  # fmt: skip
        by_output[output] = url
    shards = {output.name: url if REMOTE.match(url) else os.path.abspath(url) for url, output in targets.items()}
    job, before = json.loads(json.dumps(job)) | {"shards": shards}, {"shards": dict[str, str]()}
    if (folder / JOB).is_file():
        before = read_job(folder)
        if changed := [key for key in before | job if key != "shards" and before.get(key) != job.get(key)]:
            what = ", ".join(changed)
            raise ValueError(f"{folder} has outputs made by another {what}; name another folder, or remove it.")
    for output in targets.values():
        if output.name in before["shards"]:
            if (other := before["shards"][output.name]) != shards[output.name]:
                raise ValueError(f"{output} is of the shard {other}, not of {shards[output.name]}; name another folder.")
        elif output.exists():
            raise ValueError(f"{output} is there, but no earlier run of this command made it; name another folder.")
    if before != (job := job | {"shards": before["shards"] | shards}):
        with files.replacing(folder / JOB) as temporary:
            temporary.write_text(json.dumps(job, indent=1), "utf-8")
    return targets


def read_job(folder: Path) -> dict[str, Any]:
    """The job.json in a folder of outputs: what these depend on, and under "shards" the shard of each. ValueError if it is
    damaged; OSError if it cannot be read."""
    try:
        job = dict(json.loads((folder / JOB).read_text("utf-8")))
        return job | {"shards": dict(job["shards"])}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{folder / JOB} is damaged; name another folder.") from error


def missing(folder: str | Path) -> list[str]:
    """The names of the outputs that the folder is to have, but has not yet; none if its job.json names none."""
    try:
        names = [*read_job(Path(folder))["shards"]]
    except (OSError, ValueError):
        return []
    return [name for name in names if not (Path(folder) / str(name)).exists()]


def shard_name(url: str, i: int) -> str:
    """The name of shard ``i`` without its folder and suffix; its number, if a pipe's command has none."""
    names = re.findall(r"([^\s/\\'\"]+?)\.(?:tar|tgz)\b", url)
    return names[-1] if names else f"{i:06}"


def _paths(url: str) -> list[str]:
    try:
        paths = members_of(url)
    except OSError as error:  # of what is read, not of a full disk
        raise ValueError(str(error)) from error
    if not paths:
        raise ValueError(f"There are no images in {url}.")
    return paths
