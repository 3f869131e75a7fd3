"""What every command line shares: arguments by Fire, and a user's mistake told in one sentence."""

import contextlib
import functools
import inspect
import io
import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import fire

from homework.core import checks

REPORT_PACKAGES = ("jinja2", "matplotlib", "scipy", "torchinfo")  # of the extra "report"; commands import them late

def parse_image_size(size: str | None) -> tuple[int, int] | None:
    """``"100x150"`` -> ``(100, 150)``: height and width in pixels; ``None`` stays ``None``. ValueError for anything else."""
    if size is None:
        return None
    sides = checks.parse_size(size)
    if not sides:
        raise ValueError(f"--image_size is {size!r}, but must be HEIGHTxWIDTH in pixels, as in 100x150.")
    return sides


def at_least(low: int, **options) -> None:
    """ValueError, naming the first of the ``options`` that is no whole number of at least ``low``."""
    checks.integer(low, **{f"--{name}": value for name, value in options.items()})


def switches(**options) -> None:
    """ValueError, naming the first of the ``options`` that is not True or False: Fire gave it the word behind it."""
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ValueError(f"--{name} takes no value, but got {value}; put it at the end.")


def check_seed(seed: int) -> None:
    """ValueError unless it is a whole number that a generator takes, from 0 to 2^63 - 1."""
    checks.integer(0, 2**63 - 1, **{"--seed": seed})


def with_config(arguments: list[str], parameters: Iterable[str]) -> list[str]:
    """Replaces ``--config FILE`` by the options in that JSON object, but for those that the command line gives itself, by
    name or, as the first of the command's ``parameters``, by place.

    ValueError if the file is not one JSON object; OSError if it cannot be read.
    """
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


def main(name: str, command) -> None:
    """Runs ``command`` (a function, or a dict of them by name) with the arguments of the command line.

    Fire only binds the arguments; the call itself happens outside of it, so that its errors are ours to word.
    Any ValueError or OSError becomes one sentence on stderr and exit code 1 (with HOMEWORK_DEBUG=1 in the environment,
    a traceback); Ctrl-C exits with 130.
    """
    calls = []

    def record(function):
        @functools.wraps(function)
        def bound(*args, **kwargs):
            calls.append(functools.partial(function, *args, **kwargs))

        return bound

    recorded = {key: record(f) for key, f in command.items()} if isinstance(command, dict) else record(command)
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):  # Fire wants its own flags behind a lone "--"
        arguments = [a for a in arguments[:1] if isinstance(command, dict) and a in command] + ["--", "--help"]
    os.environ.setdefault("PAGER", "cat")
    fire.helptext.LINE_LENGTH = 240  # Fire cuts off defaults of half of this
    said = io.StringIO()
    try:
        arguments = with_config(arguments, () if isinstance(command, dict) else inspect.signature(command).parameters)
        with contextlib.redirect_stderr(said):
            fire.Fire(recorded, command=arguments, name=name)
    except fire.core.FireExit as stop:
        if stop.code == 0:  # --help: Fire writes it to stderr, but a reader pipes stdout
            try:
                print(re.sub(r"\x1b\[\d*m", "", said.getvalue()).strip(), flush=True)
            except BrokenPipeError:
                _close_stdout()
            return
        lines = said.getvalue().splitlines() or ["ERROR: wrong arguments"]
        part = f" {arguments[0]}" if isinstance(command, dict) and arguments[0] in command else ""
        what = lines[0].removeprefix("ERROR: ").rstrip(".").replace("Cannot find key:", "There is no command")
        what = what.replace("Could not consume arg:", "There is no option" if " --" in what else "There is no place for")
        _fail(f"{what}. See {name}{part} --help.")
    except (ValueError, OSError) as error:
        _fail(_sentence(error))
    if not calls:
        _fail(f"Name a command: {', '.join(command)}. See {name} --help.")
    if not os.environ.get("HOMEWORK_DEBUG"):  # who waits for a thread, as for TensorBoard's, gets its error too
        threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else threading.__excepthook__(args)
    try:
        calls[0]()
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name not in REPORT_PACKAGES:
            raise
        _fail(f'This command needs the package {error.name}; pip install "homework[report]".')
    except (ValueError, OSError) as error:
        if os.environ.get("HOMEWORK_DEBUG"):
            raise
        _fail(_sentence(error))


def _sentence(error: Exception) -> str:
    """The system's own message and the file it speaks of, or the message that the error bears."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}."
    return str(error)


def _close_stdout() -> None:
    """Its reader, as ``head``, has seen enough; without this Python would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(1)
