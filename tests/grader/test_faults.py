"""Submissions that once got points they had not earned, or stopped the grader, graded where they act."""

import contextlib
import io

import pytest
from conftest import ROOT
from fakes import some_data

from grader import __main__ as command
from grader.grading import attempt, mark
from grader.measure import Measures
from grader.parts import PARTS
from grader.remote import Processes
from grader.sandbox import Limits

FAULTS = ROOT.parent / "shared" / "faults" / "submissions"
# the part, and the reason for no points; none where what it does outside is stopped, and the part itself is honest
DESERVED = {
    "01_forge_file": ("auto-encoder", "load() failed"),
    "02_patch_measures": ("auto-encoder", ""),  # of its own process
    "07_compressor_global": ("compression", "decompress failed"),
    "08_prior_leak_by_memory": ("causality", "depend on its own token or a later one"),
    "12_packed_tokens": ("tokenizer", "there is a token"),
    "20_progress_fifo": ("auto-encoder", "failed"),
    "22b_answer_dev_zero": ("auto-encoder", "failed"),
    "24c_value_types": ("auto-encoder", "load() failed"),
    "30_env_wiped_daemon": ("auto-encoder", ""),
    "34_metadata_of_victim": ("auto-encoder", ""),
    "44_disk_fill": ("auto-encoder", "load() failed"),
    "55_stale_other_parts": ("auto-encoder", "failed"),
}
pytestmark = pytest.mark.skipif(not FAULTS.is_dir(), reason="there are no hostile submissions here")


@pytest.mark.parametrize("name", DESERVED)
def test_points(name, tmp_path):
    data = some_data(4, 20, 30)
    limits = Limits(cpu_seconds=120, wall_seconds=300, memory=16 << 30, processes=64, disk=64 << 20)
    processes = Processes(FAULTS / name, tmp_path / "scratch", limits, data.frames.shape[1:3])
    wanted, reason = DESERVED[name]
    part = next(part for part in PARTS if part.name == wanted)
    measures = Measures(data, processes.start)
    if part.scaled:
        measures.tokenizer()  # whose grids the others measure
    fraction, line = mark(part, attempt(getattr(measures, part.measure), processes), tokenizer=1.0)
    assert reason in line["reason"] and fraction == (0 if reason else 1), line
    assert not list((tmp_path / "scratch").iterdir())


def test_a_package_without_code_is_refused(capsys):
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()) as error:
        command.main([str(FAULTS / "18b_empty_homework_full")])
    assert "holds no folder homework/ with an __init__.py" in error.getvalue()
