"""A run on disk: its name, and the state that it resumes from."""

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from homework.core import files, registry

RESUME_OVERRIDES = ("model", "save_every", "output", "device")  # the options that may differ when a run is resumed
STATE_FIELDS = ("name", "update", "seconds", "measures", "sums")  # what describes a run besides its tensors
MODULES = ("model", "average", "optimizer")


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


def find_state(model: str) -> Path:
    """The file that a training resumes from: next to a checkpoint ``model``, or of the latest run of the model so named."""
    if model.endswith(".pth"):
        paths = [path for path in [Path(model).with_suffix(".state.pth")] if path.is_file()]
    else:
        registry.model_class(model)  # ValueError for an unknown name
        paths = sorted(Path("checkpoints").glob(f"*_{model}.state.pth"))
    if not paths:
        raise ValueError(f"There is no unfinished run of {model} in checkpoints/ to resume; leave --resume out.")
    return paths[-1]


def resume_settings(settings: dict, overrides: dict) -> tuple[dict, dict]:
    """The settings that the unfinished run of ``settings["model"]`` began with, but for RESUME_OVERRIDES, and its state.
    ValueError if one of ``overrides``, the user's other options, differs, or the file is not a state."""
    path = find_state(settings["model"])
    state = files.read(path)
    needed = {"settings", "group", "class", "config", *STATE_FIELDS, *MODULES}
    if not isinstance(state, dict) or not needed <= state.keys():
        raise ValueError(f"{path} holds no state of a training; leave --resume out.")
    began = settings | state["settings"]  # an old state may lack a new option
    for name, value in overrides.items():
        if value != (state["settings"] | state["settings"]["options"]).get(name):
            raise ValueError(f"--resume uses the options that the run began with, but --{name} differs; leave it out, or "
                             "begin a new run from the checkpoint, as MODEL.")  # fmt: skip
    now = {"save_every": settings["save_every"], "device": settings["device"]}
    return began | now | {"output": settings["output"] or began["output"]}, state


def write_state(run: Any, path: Path) -> None:
    """Writes all that the ``run`` (:class:`homework.training.loop.Run`) needs to continue exactly."""
    state = {name: getattr(run, name) for name in ("settings", "group", *STATE_FIELDS)}
    state |= {"class": type(run.model).__name__, "config": run.model.config}
    files.write(state | {name: getattr(run, name).state_dict() for name in MODULES}, path)


def restore(run: Any, state: dict) -> None:
    """Gives a ``run`` the ``state``. ValueError if it takes another number of samples an update, or its model differs."""
    if state["group"] != run.group:
        raise ValueError(f"Samples an update: {state['group']}, but now {run.group}; use as many processes as before.")
    for name in STATE_FIELDS:
        setattr(run, name, state[name])
    try:
        for name in MODULES:
            getattr(run, name).load_state_dict(state[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"checkpoints/{run.name}.state.pth does not fit this version's {state['class']}.") from error
