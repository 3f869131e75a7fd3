"""What every command line shares: its help, checks of common options, and a user's mistake reported in one sentence."""

import contextlib
import inspect
import io
import math
import os
import re
import shlex
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Never, TextIO

from tqdm import tqdm

from homework.core import arguments, checkpoint, checks, devices, files, registry
from homework.core.files import printable

EXTRAS = {"jinja2": "report", "matplotlib": "report", "scipy": "report", "torchinfo": "report", "gradio": "studio",
          "torch_fidelity": "fid", "webdataset": "shards"}
# packages, and the extra that has them; commands import them late
HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # when the terminal closes; Windows has none


def parse_image_size(size: str | None) -> tuple[int, int] | None:
    """``"100x150"`` -> ``(100, 150)``: height and width in pixels; ``None`` stays ``None``. ValueError for anything else."""
    if size is None:
        return None
    if sides := checks.parse_size(size):
        if math.prod(sides) > checks.MAX_PIXELS:
            raise ValueError(f"--image_size is {size}, but an image may have at most {checks.MAX_PIXELS:,} pixels.")
        return sides
    raise ValueError(f"--image_size is {size!r}, but must be HEIGHTxWIDTH in pixels, as in 100x150.")


def at_least(low: int, **options: object) -> None:
    checks.integer(low, None, **{f"--{name}": value for name, value in options.items()})


def check_output(path: str | Path, name: str = "The output", field: str = "state_dict") -> None:
    """ValueError unless a .pth file can be written to ``path``, before the work: nothing is there, or a file of the same
    kind, with this ``field``: "state_dict" of models, "tokens" of token grids."""
    path = Path(path)
    if path.suffix != ".pth" or path.is_dir() or any(p.exists() and not p.is_dir() for p in path.parents):
        raise ValueError(f"{name} is {path}, but must be a .pth file in a folder.")
    if checkpoint.PRETRAINED in path.resolve().parents:
        raise ValueError(f"{name} is {path}, but the pretrained models stay as they are; name a file in another folder.")
    if path.is_file() and not files.holds(path, field):
        raise ValueError(f"{name} is {path}, but that file holds something else; name another one, or remove it.")
    files.check_writable(path)


def command_line(module: str) -> str:
    """The command line of ``python -m homework.MODULE``, for checkpoints; without arguments if this process is another one,
    such as a notebook, whose arguments are its own."""
    arguments = sys.argv[1:] if Path(sys.argv[0]).stem == module else []
    return shlex.join(["python", "-m", f"homework.{module}", *arguments])


def check_seed(seed: int) -> None:
    """ValueError unless it is an integer that a generator takes, from 0 to 2^63 - 1."""
    checks.integer(0, 2**63 - 1, **{"--seed": seed})


@contextlib.contextmanager
def on_signals(handler: Callable, *signals: signal.Signals) -> Iterator[None]:
    """Calls ``handler`` on ``signals``, as far as Python allows it: in the main thread alone. That of a closed terminal
    stays ignored if it is."""
    with contextlib.ExitStack() as stack:
        for sig in set(signals) if threading.current_thread() is threading.main_thread() else ():
            if sig is HANGUP and signal.getsignal(sig) is signal.SIG_IGN:  # by nohup
                continue
            stack.callback(signal.signal, sig, signal.signal(sig, handler))
        yield


def _exit(number: int, frame: FrameType | None) -> None:
    """Ends the process as a signal would, but by an exception, so that temporary files are removed."""
    sys.exit(128 + number)


def _prepare_streams() -> None:
    """Opens what a caller has closed (``>&-``), whose number the next file would get; and stdout shows what it cannot encode
    as escapes."""
    for name, mode in ("stdin", "r"), ("stdout", "w"), ("stderr", "w"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class Plain:
    """A stream that shows control characters, as of a name that was typed, as escapes, so that they do not reach the
    terminal."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self.stream.write(printable(text, but="\n"))
        return len(text)


class Lenient(Plain):
    """A stream whose reader may leave, as of ``2>&1 | head``: what is written then is lost. For tqdm keeps its lock when it
    cannot write, and the threads that count images would wait for that without end. Tqdm's own control characters stay."""

    def write(self, text: str) -> int:
        with contextlib.suppress(BrokenPipeError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.stream.flush()


def sentence(error: Exception) -> str:
    """What an error says to a user; of an OSError, the system's own words, and the file that they are about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}."
    return str(error)


def _stop(text: str, code: int = 1) -> Never:
    """Ends the process with this text, on a line of its own."""
    for bar in [*getattr(tqdm, "_instances", ())]:  # of the work that has ended so
        bar.close()
    print(text, file=sys.stderr)
    sys.exit(code)


Command = Callable[..., None] | dict[str, Callable[..., None]]  # one function, or several by name


def main(name: str, command: Command) -> None:
    """Runs ``command`` with the arguments of the command line; ``name`` is how a user calls it. A ValueError or OSError
    becomes one sentence on stderr and exit code 1 (if HOMEWORK_DEBUG=1, a traceback); Ctrl-C exits with 130, SIGTERM with
    143, and a terminal that closes with 129."""
    _prepare_streams()
    debug, hook = os.environ.get("HOMEWORK_DEBUG"), threading.excepthook
    if not debug:  # no traceback for an OSError of a thread, such as TensorBoard's: who waits for it raises it again
        threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else hook(args)
    stdout, stderr = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Plain(stdout), Lenient(stderr)  # type: ignore[assignment]
    try:
        with on_signals(_exit, signal.SIGTERM, HANGUP):
            run(name, command, sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # stdout's reader, such as head, has closed it; Python must not complain of it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        _stop("\nStopped.", 130)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        _stop(f'error: This command needs the package {error.name}; pip install "homework[{EXTRAS[error.name]}]".')
    except (MemoryError, RuntimeError) as error:
        if debug or not devices.is_out_of_memory(error):
            raise
        _stop("error: The memory is too small for this; take smaller images, a smaller model or a lower --batch_size.")
    except (ValueError, OSError) as error:
        if debug:
            raise
        _stop("error: " + printable(sentence(error), but="\n"))
    finally:
        threading.excepthook, sys.stdout, sys.stderr = hook, stdout, stderr


def run(name: str, command: Command, words: list[str]) -> None:
    """Makes the call that the ``words`` of a command line ask for, or prints the help. ValueError, or OSError for --config,
    if they ask for none."""
    wants_help = bool({"-h", "--help"} & set(words[: [*words, "--"].index("--")]))
    if isinstance(command, dict):
        if not words or words[0] not in command:
            if wants_help:
                return print(list_commands(name, command))
            what = f"Name a command: {', '.join(command)}."
            if words:
                what = f"There is no command {words[0]}{checks.did_you_mean(words[0], command)}"
            raise ValueError(f"{what} See {name} --help.")
        name, command, words = f"{name} {words[0]}", command[words[0]], words[1:]
    if wants_help:
        return print(help_page(name, command, [word for word in words if word in registry.MODELS]))
    try:
        arguments.bind(command, words)()
    except arguments.BadArguments as error:
        raise ValueError(f"{error} See {name} --help.") from error
    except checks.Misplaced as error:
        if not (order := arguments.order(command)):
            raise
        raise ValueError(f"{error} The order is: {name} {' '.join(order)}.") from error


def list_commands(name: str, commands: dict[str, Callable[..., None]]) -> str:
    first = {part: re.split(r"(?<=\.)\s", inspect.getdoc(function) or "")[0] for part, function in commands.items()}
    lines = [f"  {part:<12}{' '.join(sentence.split())}" for part, sentence in first.items()]
    return "\n".join([f"Usage: {name} COMMAND ARGUMENTS", "", *lines, "", f"Arguments of a command: {name} COMMAND --help."])


def help_page(name: str, function: Callable, models: list[str]) -> str:
    """The help of ``function``: its docstring, arguments and options, and the options of the ``models``, if it takes any."""
    about = (inspect.getdoc(function) or "").partition("\nArgs:\n")[0].strip()
    own, usage = arguments.parameters(function), " ".join([name, *arguments.order(function), "[OPTIONS]"])
    page = [f"Usage: {usage}", about, *sections(own, function)]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
        page.append(textwrap.fill(f"Models: {', '.join(registry.MODELS)}. The options of one: {name} MODEL --help.", 120))
        for model in models:
            cls = registry.model_class(model)
            table = {k: v for k, v in arguments.parameters(function, model).items() if k not in own}
            table |= {k: table[k].replace(default=value) for k, value in cls.new_options.items()}
            page += sections(table, cls, f" of {model}")
    return "\n\n".join(page)


def sections(table: arguments.Table, described: Callable, of: str = "") -> list[str]:
    """The arguments and the options in ``table``, with the texts of the docstring's Args."""
    texts = {"config": "a JSON file with any of these options by name; those on the command line win."}
    docstring = inspect.getdoc(described) or ""
    for names, text in re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", docstring, re.MULTILINE):
        texts |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    rows: dict[str, list[str]] = {"Arguments": [], "Options": []}
    for name, parameter in table.items():
        default, option = parameter.default, f"--{name}={arguments.kind(parameter).upper().replace(' OR ', '|')}"
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        if default is parameter.empty:
            option = name.upper() + " ..." * (parameter.kind is parameter.VAR_POSITIONAL)
        elif arguments.is_switch(name, table):
            option = f"--{name}, --no{name}" if default else f"--{name}"
        text = texts.get(name, "") + f" Default: {default}" * all(default is not x for x in (parameter.empty, None, False))
        row = textwrap.fill(f"  {option:<24}  {text.strip()}", 120, subsequent_indent=" " * 28, break_on_hyphens=False)
        rows["Arguments" if default is parameter.empty else "Options"].append(row)
    return ["\n".join([f"{title}{of}:", *lines]) for title, lines in rows.items() if lines]
