"""What every command line shares: arguments by Fire, and a user's mistake told in one sentence."""

import contextlib
import functools
import io
import os
import re
import sys

import fire
import torch


def parse_size(size: str | None) -> tuple[int, int] | None:
    """``"100x150"`` -> ``(100, 150)``: height and width in pixels; ``None`` stays ``None``. ValueError for anything else."""
    if size is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})", str(size))
    if not match:
        raise ValueError(f"--image_size is {size!r}, but must be HEIGHTxWIDTH in pixels, as in 100x150.")
    return int(match[1]), int(match[2])


def pick_device(name: str = "auto") -> torch.device:
    """The torch device called ``name``; "auto" takes CUDA, then MPS, then the CPU. ValueError if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"The device {name!r} cannot be used here; use --device auto, cpu, cuda or mps.") from error
    return torch.device(name)


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
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            fire.Fire(recorded, command=arguments, name=name)
    except fire.core.FireExit as stop:
        if stop.code == 0:  # --help: Fire writes it to stderr, but a reader pipes stdout
            print(re.sub(r"\x1b\[\d*m", "", said.getvalue()).split("\n", 2)[-1].strip())
            return
        lines = said.getvalue().splitlines() or ["ERROR: wrong arguments"]
        _fail(f"{lines[0].removeprefix('ERROR: ').rstrip('.')}. See {name} --help.")
    if not calls:
        _fail(f"Name a command: {', '.join(command)}. See {name} --help.")
    try:
        calls[0]()
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        if os.environ.get("HOMEWORK_DEBUG"):
            raise
        if isinstance(error, OSError) and error.strerror:
            _fail(f"{error.strerror}{f': {error.filename}' if error.filename else ''}.")
        _fail(str(error))


def _fail(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(1)
