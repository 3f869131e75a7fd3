"""The commands: ``homework NAME ...`` does what ``python -m homework.NAME ...`` does. See ``homework --help``."""

import ast
import os
import runpy
import sys
from pathlib import Path

import homework
from homework.core import checks

COMMANDS = ("train", "tokenize", "generation", "compress", "enhancement", "data", "evaluate", "sample", "features", "som",
            "summary", "receptive_field", "demo", "studio")  # fmt: skip


def describe(name: str) -> str:
    """What a command does: the first sentence of its module's docstring, which is read without importing the module."""
    source = Path(__file__).with_name(f"{name}.py").read_text("utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").split(": ``")[0].splitlines()[0]


def main() -> None:
    """Runs the command that the command line names, or lists the commands; exits with 1 if it does not exist."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {command:<17}{describe(command)}." for command in COMMANDS]
        usage = "Usage: homework COMMAND ARGUMENTS, or python -m homework.COMMAND ARGUMENTS"
        hint = "Options of a command: homework COMMAND --help. Version: homework --version."
        try:
            print(usage, "", *lines, "", hint, sep="\n", flush=True)
        except BrokenPipeError:  # by a reader such as head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python would complain at exit
    elif name == "--version":
        print(f"homework {homework.__version__}")
    elif name in COMMANDS:
        sys.argv = [name, *arguments]  # runpy puts the path of the module instead of the name
        runpy.run_module(f"homework.{name}", run_name="__main__", alter_sys=True)
    else:
        remedy = checks.did_you_mean(name, COMMANDS, f"; the commands are {', '.join(COMMANDS)}.")
        sys.exit(f"error: There is no command {name!r}{remedy}")


if __name__ == "__main__":
    main()
