"""How measures turn into points, what is out of bounds, and whole gradings by hand-written packages."""

from types import SimpleNamespace

import pytest

from grader import parts
from grader.grading import Outcome, attempt, mark
from grader.measure import Measures

AE = dict(mse=0.001, channels=8, numbers_per_image=100, values_per_image=45000)
TOKENIZER = dict(mse=0.001, tokens=600, largest_index=1023)
SAMPLES = dict(frames=8, different=8, new=8, nats=1.0, n_codes=1024)


@pytest.mark.parametrize(
    "name, measures, points",
    [
        ("auto-encoder", AE | dict(mse=0.010, channels=256), 30),
        ("auto-encoder", AE | dict(channels=257), 0),
        ("auto-encoder", AE | dict(mse=0.0125), 15),
        ("auto-encoder", AE | dict(mse=0.015), 0),
        ("auto-encoder", AE | dict(mse=float("nan")), 0),
        ("auto-encoder", AE | dict(numbers_per_image=7500), 30),
        ("auto-encoder", AE | dict(numbers_per_image=7501), 0),
        ("tokenizer", TOKENIZER | dict(mse=0.005, tokens=1200), 30),
        ("tokenizer", TOKENIZER | dict(mse=0.005, tokens=1201), 0),
        ("tokenizer", TOKENIZER | dict(mse=0.009), 6),
        ("tokenizer", TOKENIZER | dict(largest_index=2**14 - 1), 30),
        ("tokenizer", TOKENIZER | dict(largest_index=2**14), 0),
        ("tokenizer", TOKENIZER | dict(tokens=1200, largest_index=1024), 0),
        ("prior", dict(bits=4500.0), 15),
        ("prior", dict(bits=4700.0), 5),
        ("prior", dict(bits=4800.0), 0),
        ("prior", dict(bits=float("nan")), 0),
        ("causality", dict(leaks=0, moved=3, first_leak=""), 15),
        ("causality", dict(leaks=1, moved=3, first_leak="there"), 0),
        ("causality", dict(leaks=0, moved=0, first_leak=""), 0),
        ("generation", SAMPLES | dict(nats=6.49), 10),
        ("generation", SAMPLES | dict(nats=6.5), 0),
        ("generation", SAMPLES | dict(nats=2.6, n_codes=16), 10),
        ("generation", SAMPLES | dict(nats=2.7, n_codes=16), 0),
        ("generation", SAMPLES | dict(different=7), 0),
        ("generation", SAMPLES | dict(new=6), 10),
        ("generation", SAMPLES | dict(new=5), 0),
        ("compression", dict(ratio=14.0, mse=0.01, difference=0.0), 5),
        ("compression", dict(ratio=10.75, mse=0.01, difference=0.0), 2.5),
        ("compression", dict(ratio=7.5, mse=0.01, difference=0.0), 0),
        ("compression", dict(ratio=99.0, mse=0.011, difference=0.0), 0),
        ("compression", dict(ratio=99.0, mse=0.01, difference=0.01), 0),
    ],
)
def test_points(name, measures, points):
    (part,) = [part for part in parts.PARTS if part.name == name]
    fraction, reason = part.score(measures)
    assert fraction * part.out_of == pytest.approx(points)
    assert bool(reason) == (fraction < 1)


def test_the_parts_are_worth_100():
    assert sum(part.out_of for part in parts.PARTS if not part.extra) == 100
    assert all(callable(getattr(Measures, part.measure)) for part in parts.PARTS)


@pytest.mark.parametrize("tokenizer", [1.0, 0.6, 0.0])
def test_what_needs_a_tokenizer_counts_as_far_as_it_does(tokenizer):
    outcome = Outcome(dict(bits=4500.0), "", 1.0, 1.0, [], "")
    for part in parts.PARTS:
        if part.name == "prior":
            fraction, line = mark(part, outcome, tokenizer)
            assert fraction == tokenizer and line["points"] == pytest.approx(15 * tokenizer)
            assert (line["reason"] == "") == (tokenizer == 1)
    assert [part.name for part in parts.PARTS if not part.scaled] == ["auto-encoder", "tokenizer"]


def test_a_failure_costs_the_part():
    for part in parts.PARTS:
        fraction, line = mark(part, Outcome(None, "crashed", 1.0, 1.0, [], ""), 0.5)
        assert (fraction, line["points"], line["reason"], line["figures"]) == (0, 0, "crashed", "")


def test_whatever_goes_wrong_is_a_reason():
    def measure():
        raise RuntimeError("first\x1b[31m\nsecond")

    outcome = attempt(measure, SimpleNamespace(output="", cpu_seconds=0.0, guards=["Landlock"]))
    assert outcome.measures is None and outcome.guards == ["Landlock"]
    assert outcome.reason == "could not be measured: RuntimeError: first?[31m second"
