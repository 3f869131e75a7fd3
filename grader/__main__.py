"""The command line: ``python -m grader ID.zip [-v|-vv] [--json report.json]``."""

import os
import sys

if os.name != "posix":
    sys.exit("error: The grader needs Linux or macOS; on Windows run it in WSL.")
if __name__ == "__main__":  # python -m puts the current folder first, but of that only this package is meant
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != os.path.realpath(".")]

import argparse
import contextlib
import json
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Never

from grader import frames, grading, submission
from grader.sandbox import Limits, calibrate, printable
from grader.scratch import folder as scratch_folder


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Never:  # argparse would exit with 2
        sys.exit(f"error: {message}. See python -m grader --help.")


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise ValueError
    return value


positive.__name__ = "number of seconds"  # as argparse words it: "invalid number of seconds value"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m grader",
        description="Grades a submission: 100 points, and 5 extra for compression.",
    )
    parser.add_argument("submission", help="a zip whose top folder is homework, or that folder, or one that holds it")
    parser.add_argument("-v", dest="verbose", action="count", default=0,
                        help="progress, measures and time of each part; -vv: also the end of what it printed (default: "
                             "one line for each part, and why it has not all points)")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="also write the report, with all measures, to FILE (default: none)")
    parser.add_argument("--data", metavar="FOLDER", default="data",
                        help="grades on the images of its valid/, or else of its sample/ (default: data)")  # fmt: skip
    parser.add_argument("--tokenizer", metavar="FILE", help="another tokenizer of the submission: a checkpoint in its "
                        "homework/ or homework/pretrained/, which homework.load() reads (default: what homework.bsq.load() "
                        "returns)")  # fmt: skip
    parser.add_argument("--prior", metavar="FILE", help="another prior, likewise (default: what "
                        "homework.autoregressive.load() returns)")  # fmt: skip
    parser.add_argument("--time_limit", metavar="SECONDS", type=positive, default=600.0,
                        help="CPU time of each process of the submission, on a common core of the 2020s; a slower one has "
                             "more (default: 600 seconds)")  # fmt: skip
    return parser.parse_args(argv)


def grade(args: argparse.Namespace) -> dict:
    """Grades, printing as it goes. Returns the report, plain data. ValueError or OSError if nothing can be graded."""
    if empty := [name for name, value in vars(args).items() if value == ""]:  # as of a variable that the shell does not know
        raise ValueError(f"The {empty[0]} is an empty text; name a file or folder, or . for this folder.")
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise ValueError(f"There is no folder {Path(args.json).absolute().parent} to write the report to.")
    if args.json and os.path.exists(args.json) and not os.path.isfile(args.json):  # which a rename would replace
        raise ValueError(f"The report cannot be written to {args.json}, which is a folder, a pipe or a device; name a file.")
    with scratch_folder() as scratch:
        package = Path(scratch, "submission")
        package.mkdir()
        submission.unpack(args.submission, package)
        named = {"bsq": args.tokenizer, "autoregressive": args.prior}
        checkpoints = {module: submission.checkpoint(package, file) for module, file in named.items() if file}
        models = submission.models(package)
        images, sizes, folder = frames.read(args.data)
        official = folder.name == "valid"
        tell = partial(say, report_follows=bool(args.json))
        tell(one_line(f"{args.submission} on the {len(images)} images of {folder}"))
        tell(one_line(f"models: {', '.join(models) or 'none'}") + "\n")
        report = {"submission": str(args.submission), "data": str(folder), "images": len(images), "official": official,
                  "models": models, "checkpoints": checkpoints, "time_limit": args.time_limit, "parts": []}  # fmt: skip
        cpu_seconds = args.time_limit * max(1.0, calibrate())
        limits = Limits(cpu_seconds, 4 * cpu_seconds, memory=16 * 2**30, processes=256, disk=2**30)
        data = grading.Data(images, sizes, partial(frames.known, args.data, images.shape[1:3]))
        processes = grading.Processes(package, scratch, limits, images.shape[1:3], checkpoints)
        for line in grading.lines(grading.Measures(data, processes.start), processes, progress=args.verbose > 0):
            report["parts"].append(line)
            tell("\n".join(shown(line, args.verbose)))
        report["total"] = round(sum(line["points"] for line in report["parts"] if not line["extra"]), 2)
        report["extra"] = round(sum(line["points"] for line in report["parts"] if line["extra"]), 2)
        tell(f"\n{'total':14}{report['total']:6.1f} / 100   {report['extra']:+.1f} extra")
        if not official:
            tell(f"There are no images in {Path(args.data, 'valid')}: graded on the few of {folder}, "
                 "these are not the official points.")  # fmt: skip
    return report


def say(text: str, report_follows: bool) -> None:
    """Prints a line at once. OSError if that fails, as on a full disk, unless a report is still to be written."""
    try:
        print(text, flush=True)
    except OSError:
        silence()
        if not report_follows:
            raise


def silence() -> None:
    """Lets what is printed from now on, and what is still to be flushed, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line(text: str) -> str:
    """``text`` with names in it, which may hold anything, as a terminal can show it."""
    return printable(text).replace("\n", "?")


def shown(line: dict, verbose: int) -> Iterator[str]:
    """The lines that are printed of one of the report, and of its details."""
    points = f"{line['points']:+6.1f}" if line["extra"] else f"{line['points']:6.1f}"
    yield f"{line['name']:14}{points} / {line['out_of']:<3}   {line['figures']}".rstrip()
    indent = " " * 29
    if line["reason"]:
        yield f"{indent}{line['reason']}"
    if verbose >= 1:
        for name, value in (line["measures"] or {}).items():
            if value != "":
                yield f"{indent}{name}: {f'{value:.6g}' if isinstance(value, float) else value}"
        guards = ", ".join(line["guards"]) or "nothing yet"
        yield f"{indent}{line['seconds']:.1f} s, {line['cpu_seconds']:.1f} s of CPU time, confined by {guards}"
    if verbose >= 2:
        yield from (f"{indent}| {text}" for text in line["output"].strip().splitlines())


def write(report: dict, path: str) -> None:
    """Writes the report as JSON, completely or not at all."""
    temporary = Path(path).with_name(f".{os.getpid()}.tmp")  # short: names have a limit
    try:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def stop(number: int, frame: object) -> Never:
    """Ends the grader, so that its scratch folder and children go; not again while they do."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def main(argv: list[str] | None = None) -> int:
    """0 for a complete grading, whatever the points; 1 for a refused submission or wrong usage."""
    for name, mode in ("stdin", "r"), ("stdout", "w"), ("stderr", "w"):
        if getattr(sys, name) is None:  # closed by the caller, as by >&-: the next pipe would get its number
            setattr(sys, name, open(os.devnull, mode))
    args = arguments(argv)
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, stop)
    try:
        report = grade(args)
        if args.json:
            write(report, args.json)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has left
        silence()
        return 1
    except (ValueError, OSError) as error:
        text = f"{error.strerror}: {error.filename}." if isinstance(error, OSError) and error.filename else str(error)
        print(f"error: {one_line(text)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
