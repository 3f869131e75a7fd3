"""A run on disk: its name, and the state that it resumes from."""

import hashlib
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homework.core import checkpoint, devices, files, registry
from homework.core.processes import say
from homework.datasets.base import Dataset
from homework.training import sharded

# the options that may differ when a run is resumed
RESUME_OVERRIDES = ("save_every", "output", "device", "tokenizer", "timeout", "fsdp")
STATE_FIELDS = ("name", "update", "seconds", "measures", "sums")  # what describes a run besides its tensors
MODULES = ("model", "average", "optimizer")


def new_name(model: str, name: str | None = None, keeps: bool = False) -> str:
    """The name of a run: by default the present time and the model's name; claimed by making the log's folder, as two runs
    may start in one second. ValueError if a run has this ``name`` already, or one of those of the checkpoints that this one
    ``keeps``, NAME_UPDATE."""
    if name is not None:
        paths = [Path("logs", name), Path("checkpoints", f"{name}.pth")]
        kept = Path("checkpoints").glob(f"{name}_*.pth") if keeps else ()
        paths += [path for path in kept if path.stem.removeprefix(f"{name}_").isdecimal()]
        if taken := [path for path in paths if path.exists()]:
            remedy = "add --resume" if Path("checkpoints", f"{name}.state.pth").is_file() else "remove that one"
            raise ValueError(f"--name is {name}, but {taken[0]} is there already; choose another, or {remedy}.")
        Path("logs", name).mkdir(parents=True)
        return name
    while True:
        name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{model}"
        try:
            Path("logs", name).mkdir(parents=True)
            return name
        except FileExistsError:
            if not Path("logs", name).is_dir():
                raise
            time.sleep(0.1)


def checkpoints_of(model: str, name: str | None, began: bool = False) -> list[Path]:
    """The checkpoints, there or not, of the run that a training resumes: of the run called ``name``, but if ``model`` is a
    checkpoint, only if that run is unfinished; or else ``model`` if it is one, or those of the model so named that have a
    date for a name. A run that ``began`` from ``model``, a checkpoint, has others than that one."""
    named, is_file = Path("checkpoints", f"{name}.pth"), model.endswith(".pth") and not began
    if name is not None and (not is_file or named.with_suffix(".state.pth").is_file()):
        return [named]
    if is_file:
        return [Path(model)]
    if model.endswith(".pth"):
        model = type(checkpoint.load(model)).__name__
    registry.model_class(model)  # ValueError for an unknown name
    dated = Path("checkpoints").glob(f"????-??-??_??-??-??_{model}.*pth")
    return sorted({path.with_name(f"{path.name.partition('.')[0]}.pth") for path in dated})


def find_state(model: str, name: str | None, restarted: bool = False, asked: bool = True) -> Path | None:
    """The file that a training resumes from, next to the latest of :func:`checkpoints_of` that has one. If it was
    ``restarted``, and the user has not ``asked`` for --resume, it is next to the latest of all. None if it was restarted
    when it had ended. ValueError if there is no such file."""
    paths = checkpoints_of(model, name, began=not asked)
    if not asked:
        paths = paths[-1:]
    states = [state for path in paths if (state := path.with_suffix(".state.pth")).is_file()]
    if not states and not (restarted and len(paths) == 1 and paths[0].is_file()):
        what, other = (f"of {model}", "the --name of the run if it has one") if name is None else (name, "another --name")
        raise ValueError(f"There is no unfinished run {what} in checkpoints/ to resume; leave --resume out, or give "
                         f"{other}.")  # fmt: skip
    return states[-1] if states else None


def resume_settings(settings: dict, given: dict, restarted: bool, asked: bool) -> tuple[dict, dict | None]:
    """The settings that the unfinished run of ``settings["model"]`` began with, but for those of RESUME_OVERRIDES that are
    among the ``given`` ones, the user's options; and its state, or None if it had ended before a restart. ``restarted`` and
    ``asked`` as of :func:`find_state`. ValueError if another one that is given differs, or the file is not a state."""
    if (path := find_state(settings["model"], settings["name"], restarted, asked)) is None:
        return settings, None
    state = files.read(path)
    needed = {"settings", "group", "class", "config", *STATE_FIELDS, *MODULES}
    if not isinstance(state, dict) or not needed <= state.keys():
        raise ValueError(f"{path} holds no state of a training; leave --resume out.")
    if settings["model"] != state["class"] and not settings["model"].endswith(".pth"):
        raise ValueError(f"{path} is of a {state['class']}, not of {settings['model']}; name that one to resume it.")
    began = settings | state["settings"]  # an old state may lack a new option
    known = state["settings"] | state["settings"]["options"] | {"name": state["name"]}
    for name, value in given.items():
        if name not in ("model", *RESUME_OVERRIDES) and value != known.get(name):
            raise ValueError(f"--resume uses the options that the run began with, but --{name} differs; leave it out, or "
                             "begin a new run from the checkpoint, as MODEL.")  # fmt: skip
    began |= {name: given[name] for name in RESUME_OVERRIDES if name in given}
    if "device" not in given:
        began["device"] = device_here(began["device"])
    return began, state


def device_here(name: str) -> str:
    """The name of the device that a run was on; "auto" if this machine lacks it, which stderr says."""
    try:
        devices.pick_device(name)
    except ValueError:
        say(f"The run was on the device {name}, which cannot be used here; it resumes on {devices.pick_device()}.")
        return "auto"
    return name


def state_of(run: Any) -> dict:
    """All that the ``run`` (:class:`homework.training.loop.Run`) needs to continue exactly, whole on the first process; all
    of them have to call it."""
    state = {name: getattr(run, name) for name in ("settings", "group", "data", *STATE_FIELDS)}
    state |= {"class": type(run.model).__name__, "config": run.model.config, "meta": run.model.meta}
    return state | {name: sharded.gathered(getattr(run, name).state_dict()) for name in MODULES}


def fingerprint(data: Dataset) -> list:
    """The number of samples, and a SHA-256 of their names, of what a checkpoint keeps of the data, such as the identity of
    the tokenizer, and of the samples: all, or of those of more than 32 MB as many, evenly spread; of shards one."""
    sha = hashlib.sha256(b"([")  # in all repr((names, meta)), bit by bit, for there may be more names than memory
    for i, name in enumerate(data.names):
        sha.update(f"{', ' * (i > 0)}{name!r}".encode())
    sha.update(f"], {sorted(data.meta.items())!r})".encode())
    n, size = len(data), sum(x.nbytes for x in _tensors(data.batch([0])))
    checked = min(n, max(1, 2**25 // size)) if data.random_access else 1
    for x in _tensors(data.batch(torch.arange(checked) * n // checked)):
        sha.update(x.contiguous().numpy().tobytes())
    return [n, sha.hexdigest()]


def _tensors(batch: Any) -> tuple[Tensor, ...]:
    return batch if isinstance(batch, tuple) else (batch,)


def check_data(state: dict, data: list[list]) -> None:
    """ValueError unless the :func:`fingerprint` of the training data and that of the validation data are what the run with
    this ``state`` began with; early states do not say."""
    for split, then, now in zip(("training", "validation"), state.get("data", ()), data, strict=False):
        if then != now:
            others = f"{now[0]} others" if now[0] == then[0] else now[0]
            raise ValueError(f"--resume needs the data that the run began with, {then[0]} {split} samples, but there are "
                             f"{others} now; bring those back, or begin a new run from the checkpoint, as MODEL.")


def accumulated(group: int, batch_size: int, n_processes: int) -> int:
    """How many batches each of the processes accumulates for an update of ``group`` samples. ValueError if that does not
    come out even."""
    if group % (batch_size * n_processes):
        raise ValueError(f"This run takes {group} samples an update, {batch_size} at once, which {n_processes} processes "
                         f"cannot share equally; use {group // batch_size}, or a number that divides that.")  # fmt: skip
    return group // (batch_size * n_processes)


def restore(run: Any, state: dict) -> None:
    """Gives a ``run`` the ``state``. ValueError if its model differs."""
    for name in STATE_FIELDS:
        setattr(run, name, state[name])
    try:
        for name in ("model", "average"):
            sharded.load(getattr(run, name), state[name])
        sharded.load_optimizer(run.optimizer, state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"checkpoints/{run.name}.state.pth does not fit this version's {state['class']}.") from error
