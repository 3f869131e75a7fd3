"""The command line: what it leaves behind, and what the words on it mean."""

import os

import fire
import pytest

from homework.core import cli


def show(path: str, *images: str, n: int = 1) -> None:
    """Shows images.

    Args:
        path: where to.
        images: what.
        n: how often.
    """


@pytest.mark.parametrize("pager", [None, "more"])
@pytest.mark.parametrize("arguments", [["out", "a", "--n", "2"], ["--help"], ["--no_such"]])
def test_parsing_leaves_the_process_as_it_was(monkeypatch, pager, arguments):
    monkeypatch.delenv("PAGER", raising=False)
    if pager:
        monkeypatch.setenv("PAGER", pager)
    before, length = dict(os.environ), fire.helptext.LINE_LENGTH
    if arguments == ["--no_such"]:
        with pytest.raises(ValueError):
            cli.parse("show", show, arguments)
    else:
        cli.parse("show", show, arguments)()
    assert dict(os.environ) == before and fire.helptext.LINE_LENGTH == length
