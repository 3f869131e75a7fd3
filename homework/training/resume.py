"""A run on disk: its name, and the state that it resumes from."""

import time
from datetime import datetime
from pathlib import Path

from homework.core import files
from homework.core.registry import model_class


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
    """The file that a training resumes from: beside the checkpoint ``model``, or of the latest run of the model so named.

    ValueError if there is none, or no such model.
    """
    if str(model).endswith(".pth"):
        paths = [path for path in [Path(model).with_suffix(".state.pth")] if path.is_file()]
    else:
        model_class(str(model))
        paths = sorted(Path("checkpoints").glob(f"*_{model}.state.pth"))
    if not paths:
        raise ValueError(f"There is no unfinished run of {model} in checkpoints/ to resume; leave --resume out.")
    return paths[-1]


STATE_FIELDS = ("name", "update", "seconds", "measures", "sums")  # what a run tells of itself when it is resumed


def read_state(path: Path) -> dict:
    """What :meth:`Run.save` wrote beside a checkpoint, to resume from; ValueError if the file holds something else."""
    state = files.read(path)
    if (
        not isinstance(state, dict)
        or not {"settings", "group", "class", "config", "optimizer", *STATE_FIELDS} <= state.keys()
    ):
        raise ValueError(f"{path} holds no state of a training; leave --resume out.")
    return state
