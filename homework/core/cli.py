"""What every command line shares: arguments by Fire, and a user's mistake reported in one sentence."""

import contextlib
import inspect
import io
import itertools
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial, wraps
from pathlib import Path
from types import FrameType

import fire

from homework.core import checks
from homework.core.files import printable

REPORT_PACKAGES = ("jinja2", "matplotlib", "scipy", "torchinfo")  # of the extra "report"; commands import them late


def parse_image_size(size: str | None) -> tuple[int, int] | None:
    """``"100x150"`` -> ``(100, 150)``: height and width in pixels; ``None`` stays ``None``. ValueError for anything else."""
    if size is None:
        return None
    if sides := checks.parse_size(size):
        return sides
    raise ValueError(f"--image_size is {size!r}, but must be HEIGHTxWIDTH in pixels, as in 100x150.")


def at_least(low: int, **options: object) -> None:
    checks.integer(low, None, **{f"--{name}": value for name, value in options.items()})


def switches(**options: object) -> None:
    """ValueError, naming the first of the ``options`` that is not True or False: Fire gave it the word after it."""
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ValueError(f"--{name} takes no value, but got {value}; put it at the end.")


def check_output(path: str | Path, name: str = "The output") -> None:
    """ValueError unless a .pth file can be written to ``path``."""
    path = Path(str(path))  # Fire takes 2026 for a number
    if path.suffix != ".pth" or path.is_dir() or any(p.exists() and not p.is_dir() for p in path.parents):
        raise ValueError(f"{name} is {path}, but must be a .pth file in a folder.")
    if Path(__file__).parents[1] / "pretrained" in path.resolve().parents:
        raise ValueError(f"{name} is {path}, but the pretrained models stay as they are; name a file in another folder.")


def command_line(module: str) -> str:
    """The command line of ``python -m homework.MODULE``, for checkpoints; without arguments if this process is another one,
    such as a notebook, whose arguments are its own."""
    arguments = sys.argv[1:] if Path(sys.argv[0]).stem == module else []
    return " ".join([f"python -m homework.{module}", *arguments])


def check_seed(seed: int) -> None:
    """ValueError unless it is an integer that a generator takes, from 0 to 2^63 - 1."""
    checks.integer(0, 2**63 - 1, **{"--seed": seed})


def with_config(arguments: list[str], parameters: Iterable[str]) -> list[str]:
    """Replaces ``--config FILE`` by the options in that JSON object, except those that the command line gives itself, by
    name or, as the first of the command's ``parameters``, by position. ValueError if the file is not one JSON object."""
    at = next((i for i, a in enumerate(arguments) if a.split("=")[0] == "--config"), None)
    if at is None:
        return arguments
    path, used = (arguments[at].split("=", 1)[1], 1) if "=" in arguments[at] else ("".join(arguments[at + 1 : at + 2]), 2)
    try:
        options = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path} must hold one JSON object, options by name.")
    rest = arguments[:at] + arguments[at + used :]
    given = {a.split("=")[0].lstrip("-").replace("-", "_") for a in rest}
    given |= {name.removeprefix("no") for name in given}  # --noaugment
    given |= {name for name, a in zip(parameters, itertools.takewhile(lambda a: a[:1] != "-", rest), strict=False)}
    return rest + [f"--{k}={v!r}" for k, v in options.items() if k not in given]


@contextlib.contextmanager
def on_signals(handler: Callable, *signals: signal.Signals) -> Iterator[None]:
    """Calls ``handler`` on ``signals``, as far as Python allows it: in the main thread alone."""
    with contextlib.ExitStack() as stack:
        for sig in signals if threading.current_thread() is threading.main_thread() else ():
            stack.callback(signal.signal, sig, signal.signal(sig, handler))
        yield


def _exit(number: int, frame: FrameType | None) -> None:
    """Ends the process as a signal would, but by an exception, so that temporary files are removed."""
    sys.exit(128 + number)


Command = Callable[..., None] | dict[str, Callable[..., None]]  # one function, or several by name


def main(name: str, command: Command) -> None:
    """Runs ``command`` with the arguments of the command line; ``name`` is how a user calls it. A ValueError or OSError
    becomes one sentence on stderr and exit code 1 (if HOMEWORK_DEBUG=1, a traceback); Ctrl-C exits with 130, and SIGTERM
    with 143."""
    debug, hook = os.environ.get("HOMEWORK_DEBUG"), threading.excepthook
    if not debug:  # no traceback for an OSError of a thread, such as TensorBoard's: who waits for it raises it again
        threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else hook(args)
    try:
        with on_signals(_exit, signal.SIGTERM):
            parse(name, command, sys.argv[1:])()
        sys.stdout.flush()
    except BrokenPipeError:  # stdout's reader, such as head, has closed it; Python must not complain of it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name not in REPORT_PACKAGES:
            raise
        print(f'error: This command needs the package {error.name}; pip install "homework[report]".', file=sys.stderr)
        sys.exit(1)
    except (ValueError, OSError) as error:
        if debug:
            raise
        sentence = str(error)
        if isinstance(error, OSError) and error.strerror:  # the system's own words, and the file that they are about
            sentence = f"{error.strerror}{f': {error.filename}' if error.filename else ''}."
        print("error:", printable(sentence, but="\n"), file=sys.stderr)
        sys.exit(1)
    finally:
        threading.excepthook = hook


def parse(name: str, command: Command, arguments: list[str]) -> Callable[[], None]:
    """The call that ``arguments`` ask for; Fire only binds them, so that the errors of the call itself are ours to word.
    For --help, a call that prints it. ValueError, or OSError for --config, if they ask for none."""
    calls: list[Callable[[], None]] = []

    def record(function: Callable) -> Callable:
        return wraps(function)(lambda *args, **options: calls.append(partial(function, *args, **options)))

    parts = command if isinstance(command, dict) else {}
    part = [argument for argument in arguments[:1] if argument in parts]
    if {"-h", "--help"} & set(arguments):  # Fire wants its own flags after a lone "--"
        arguments = [*part, "--", "--help"]
    os.environ.setdefault("PAGER", "cat")
    fire.helptext.LINE_LENGTH = 240  # Fire cuts off defaults of half of this
    arguments = ["'-'" if argument == "-" else argument for argument in arguments]  # which is Fire's separator
    arguments = with_config(arguments, inspect.signature(command).parameters if callable(command) else ())
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            recorded = record(command) if callable(command) else {key: record(f) for key, f in parts.items()}
            fire.Fire(recorded, command=arguments, name=name)
    except fire.core.FireExit as stop:
        if stop.code == 0:
            return partial(print, re.sub(r"\x1b\[\d*m", "", stderr.getvalue()).strip())  # without colours
        what = (stderr.getvalue().splitlines() or ["wrong arguments"])[0].removeprefix("ERROR: ").rstrip(".")
        what = what.replace("Cannot find key:", "There is no command")
        what = what.replace("Could not consume arg:", "There is no option" if " --" in what else "There is no argument for")
        raise ValueError(f"{what}. See {' '.join([name, *part])} --help.") from stop
    if not calls:
        raise ValueError(f"Name a command: {', '.join(parts)}. See {name} --help.")
    return calls[0]
