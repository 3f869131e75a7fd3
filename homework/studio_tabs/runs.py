"""The tab Train: trainings in processes of their own, by the ordinary command."""

import dataclasses
import inspect
import re
import shlex
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

from homework.core import registry
from homework.datasets import download
from homework.evaluation.logs import Log

SAMPLES, IMPORTED, VALID_EVERY = "data/sample", "studio/samples", 6  # 18 images: 15 to train on, 3 to validate on
# a training of seconds, on the samples; of these options a model gets those that it has
TINY = {"patch_size": 8, "latent_dim": 64, "encoder_blocks": 1, "decoder_blocks": 2, "height": 64, "width": 96}
QUICK = "--image_size 64x96 --warmup 20 --ema 0.99 --validate_every 50"
OWN = ("model", "data", "epochs", "batch_size", "lr", "limit", "output", "name", "resume")  # options that the page sets
END = 60  # seconds that a training may take to save, when the page ends


@dataclasses.dataclass(frozen=True)
class Options:
    """Of ``python -m homework.train``. None and "" leave one out, as 0 does ``lr`` and ``limit``; ``further`` has more of
    them as on a command line."""

    model: str
    data: str
    epochs: float | None = None
    batch_size: int | None = None
    lr: float | None = None
    limit: int | None = None
    output: str = ""
    further: str = ""

    def command(self, name: str | None = None) -> list[str]:
        """The words of the command; ``name`` is that of the run. ValueError if ``further`` makes no sense."""
        try:
            further = shlex.split(self.further)
        except ValueError as error:
            raise ValueError(f"In the further options, {self.further!r}, a quotation mark is not closed.") from error
        for word in further:
            option = word.partition("=")[0]
            if option.startswith("--") and option[2:].replace("-", "_") in OWN:
                raise ValueError(f"{option} is among the further options, but the page sets it itself; leave it out there.")
        output = self.output or (name and f"studio/{name}.pth")
        options = {"data": IMPORTED if self.data == SAMPLES else self.data, "epochs": number(self.epochs),
                   "batch_size": self.batch_size, "lr": number(self.lr) or None, "limit": self.limit or None,
                   "output": output, "name": name}  # fmt: skip
        given = [[f"--{key}", str(value)] for key, value in options.items() if value not in (None, "")]
        return ["python", "-m", "homework.train", self.model, *sum(given, []), *further]


def number(value: float | None) -> float | None:
    """From what a browser sends, for which 1 and 1.0 are the same."""
    return int(value) if value is not None and value == int(value) else value


def quick_options(model: str) -> str:
    """Further options with which a model of the registry that learns from images has a curve on the samples within seconds;
    "" for all others."""
    if model not in registry.MODELS or (cls := registry.model_class(model)).data != "images":
        return ""
    known = inspect.signature(cls).parameters
    return " ".join([QUICK, *(f"--{name} {value}" for name, value in TINY.items() if name in known)])


def import_command() -> list[str]:
    return ["python", "-m", "homework.data", "import", SAMPLES, "--dir", IMPORTED, "--valid_every", str(VALID_EVERY)]


def script(options: Options, name: str | None = None) -> str:
    """The command lines that do what the page does, one a line."""
    commands = [import_command()] * (options.data == SAMPLES) + [options.command(name)]
    return "\n".join(map(shlex.join, commands))


class Run:
    """A training in a process of its own. What it prints goes to a file, so that it needs neither the page nor its server;
    and Ctrl-C in the server's terminal does not reach it, for :meth:`stop` is to end it, once.

    Args:
        name: of the run, and of its folder in logs/.
        command: the words of the command line.
        output: the file for what it prints.
    """

    def __init__(self, name: str, command: list[str], output: Path):
        self.name, self.command, self.output, self.log = name, command, output, Log(Path("logs", name))
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(output, "wb") as file:
            self.process = subprocess.Popen([sys.executable, *command[1:]], stdin=subprocess.DEVNULL, stdout=file,
                                            stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        self.stopped = False

    @property
    def is_live(self) -> bool:
        return self.process.poll() is None

    @property
    def can_resume(self) -> bool:
        return not self.is_live and Path("checkpoints", f"{self.name}.state.pth").is_file()

    def stop(self) -> None:
        """Asks it to save and to end; a second time would end it at once."""
        if self.is_live and not self.stopped:
            self.stopped = True
            self.process.terminate()

    def message(self) -> str:
        """How far it is, what came of it, or the sentence with which the command failed."""
        text, code = self.output.read_text("utf-8", errors="replace"), self.process.poll()
        if code == 1 and "error: " in text:
            return text.rpartition("error: ")[2].strip()
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip() not in ("", "Stopped.")]
        if code is None:
            return f"{'Saving ... ' * self.stopped}{lines[-1] if lines else 'Starting ...'}"
        last = next((line for line in reversed(lines) if "%|" not in line), "")  # not a progress bar
        if self.stopped and code:
            return f"Stopped. {last if self.can_resume else 'Nothing was saved, as it had hardly begun.'}"
        return last


class Runs:
    """The trainings that the page has started, by name; their output goes to files in ``folder``. Any number of people may
    use it at once."""

    def __init__(self, folder: Path):
        self.folder, self.lock = folder, threading.Lock()
        self.by_name: dict[str, Run] = {}

    def start(self, options: Options) -> Run:
        """A new one, with a name of its own. ValueError or OSError if the options cannot be read or the samples are not
        there; all other errors are the command's."""
        options.command()  # an error comes before anything is written
        with self.lock:
            if options.data == SAMPLES and not all(Path(IMPORTED, split).is_dir() for split in ("train", "valid")):
                download.import_(SAMPLES, IMPORTED, valid_every=VALID_EVERY, replace=True)
            name = self._new_name(options.model)
            return self._run(name, options.command(name))

    def resume(self, name: str) -> Run:
        """The unfinished run of this name, which continues; or just itself, if it is being trained."""
        with self.lock:
            if (run := self.by_name.get(name)) and run.is_live:
                return run
            return self._run(name, ["python", "-m", "homework.train", f"checkpoints/{name}.pth", "--resume"])

    def unfinished(self) -> list[str]:
        """The names of all runs that :meth:`resume` takes, the latest first."""
        saved = {path.name.removesuffix(".state.pth") for path in Path("checkpoints").glob("*.state.pth")}
        return sorted(saved | {name for name, run in list(self.by_name.items()) if run.is_live}, reverse=True)

    def close(self) -> list[Run]:
        """Stops all trainings and waits until they have saved; returns those that can be resumed."""
        live = [run for run in self.by_name.values() if run.is_live]
        for run in live:
            run.stop()
        end = time.monotonic() + END
        for run in live:
            try:
                run.process.wait(max(0, end - time.monotonic()))
            except subprocess.TimeoutExpired:  # it goes on to save, and then ends
                continue
        return [run for run in live if run.can_resume]

    def _new_name(self, model: str) -> str:
        """As the command itself names runs."""
        stem = re.sub(r"[^\w.-]", "-", Path(model).stem)
        while True:
            name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{stem}"
            if name not in self.by_name and not Path("logs", name).exists():
                return name
            time.sleep(0.1)

    def _run(self, name: str, command: list[str]) -> Run:
        self.by_name[name] = run = Run(name, command, self.folder / f"{name}.txt")
        return run
