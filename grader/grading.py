"""The loop over the parts: each is measured and marked, and whatever goes wrong costs that part alone."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tqdm import tqdm

from grader.measure import Data, Measures
from grader.parts import PARTS, Part
from grader.remote import Failed, Processes
from grader.sandbox import Ended, printable

__all__ = ["Data", "Measures", "Processes", "lines", "mark"]


@dataclass(frozen=True)
class Outcome:
    """What came of a measure.

    Attributes:
        measures: None if the submission failed.
        reason: why it did, or "".
        seconds: wall-clock time.
        cpu_seconds: of the submission's processes, as far as it is known.
        guards: what confined them.
        output: the end of what they printed.
    """

    measures: dict | None
    reason: str
    seconds: float
    cpu_seconds: float
    guards: list[str]
    output: str


def lines(measures: Measures, processes: Processes, progress: bool = False) -> Iterator[dict]:
    """Measures and marks each part: a line of the report when it is done."""
    found: dict[str, Outcome] = {}  # by the measure, which two parts may share
    fraction: dict[str, float] = {}
    for part in PARTS:
        if part.measure not in found:
            with tqdm(desc=part.name, leave=False, disable=not progress, unit="step") as bar:

                def advance(done: int, total: int, bar: tqdm = bar) -> None:
                    bar.total, bar.n = total, done
                    bar.refresh()

                measures.progress = advance
                found[part.measure] = attempt(getattr(measures, part.measure), processes)
        fraction[part.name], line = mark(part, found[part.measure], fraction.get("tokenizer", 0.0))
        yield line


def attempt(measure: Callable[[], dict], processes: Processes) -> Outcome:
    """Measures; whatever goes wrong is the reason for no points."""
    processes.output, processes.cpu_seconds, start = "", 0.0, time.monotonic()
    value, reason = None, ""
    try:
        value = measure()
    except (Failed, Ended) as error:
        reason = str(error)
    except Exception as error:  # the grading of the other parts continues
        reason = f"could not be measured: {type(error).__name__}: {error}"
    return Outcome(value, " ".join(printable(reason).split()), time.monotonic() - start, processes.cpu_seconds,
                   processes.guards, processes.output)  # fmt: skip


def mark(part: Part, outcome: Outcome, tokenizer: float) -> tuple[float, dict]:
    """The fraction of the points, and a line of the report that says why not all of them; ``tokenizer`` is the fraction of
    the tokenizer's points."""
    fraction, reason = (0.0, outcome.reason) if outcome.measures is None else part.score(outcome.measures)
    if part.scaled and fraction > 0 and tokenizer < 1:
        fraction *= tokenizer
        reason = f"{reason}{'; ' * bool(reason)}counts as far as the tokenizer's points, {tokenizer:.0%}"
    return fraction, {
        "name": part.name,
        "points": round(part.out_of * fraction, 2),
        "out_of": part.out_of,
        "extra": part.extra,
        "figures": "" if outcome.measures is None else part.figures.format(**outcome.measures),
        "reason": reason,
        "measures": outcome.measures,
        "seconds": round(outcome.seconds, 2),
        "cpu_seconds": round(outcome.cpu_seconds, 2),
        "guards": outcome.guards,
        "output": outcome.output,
    }
