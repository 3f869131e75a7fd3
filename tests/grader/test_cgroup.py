"""Control groups: where one is made, what it bounds, and the end of all in it; live where there are some."""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grader import cgroup, sandbox
from grader.sandbox import Limits


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Makes this system one with such control groups, as files: what the grader belongs to, and files with their text."""

    def make(own, files):
        for name, text in files.items():
            (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "groups" / name).write_text(text.format(pid=os.getpid()))
        (tmp_path / "own").write_text(own)
        monkeypatch.setattr(cgroup, "ROOT", tmp_path / "groups")
        monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
        cgroup._parents.cache_clear()
        return tmp_path / "groups"

    yield make
    monkeypatch.undo()
    cgroup._parents.cache_clear()


def test_a_delegated_group_of_version_2(system, monkeypatch):
    monkeypatch.setattr(cgroup, "number", itertools.count(7))
    group = f"run.scope/grader-{os.getpid()}-7"
    files = dict.fromkeys((f"{group}/{file}" for file in ("memory.max", "memory.swap.max", "pids.max", "cgroup.procs")), "")
    root = system("0::/run.scope\n", {"run.scope/cgroup.subtree_control": ""} | files)
    with cgroup.group(memory=1000, pids=20) as made:
        assert made == {"memory": root / group, "pids": root / group}
        assert (root / group / "memory.max").read_text() == "1000" and (root / group / "memory.swap.max").read_text() == "0"
        assert (root / group / "pids.max").read_text() == "20"
        assert cgroup.within(sorted({*made.values()}), ["x"])[2].count(" > ") == 1  # joins it once
    assert (root / "run.scope/cgroup.subtree_control").read_text() == "+memory +pids"
    assert (root / group / "pids.max").read_text().startswith("0")  # while it is killed


def test_the_grader_alone_in_its_group_moves_below_it(system):
    """As long as a group of version 2 holds processes, it passes nothing on; here it never does."""
    procs = {"run.scope/cgroup.procs": "{pid}\n", "run.scope/grader/cgroup.procs": ""}
    root = system("0::/run.scope\n", procs | {"run.scope/cgroup.subtree_control/busy": ""})
    with cgroup.group(memory=1000, pids=20) as made:
        assert not made
    assert (root / "run.scope/grader/cgroup.procs").read_text() == "0"


@pytest.mark.parametrize(
    "own, files",
    [
        ("0::/\n", {"notes": ""}),  # no controllers
        ("0::/user.scope\n", {"user.scope/cgroup.procs": "{pid}\n1\n", "user.scope/cgroup.subtree_control/busy": ""}),
        ("4:memory:/user\n3:pids:/user\n0::/\n", {"memory/user/cgroup.procs": "", "pids/user/cgroup.procs": ""}),
        ("4:cpu,cpuacct:/\n", {"cpu/cgroup.procs": ""}),
        ("", {"notes": ""}),
    ],
    ids=["nothing mounted", "not alone", "of a manager", "other controllers", "no groups"],
)  # fmt: skip
def test_no_group_that_is_not_the_graders_to_divide(system, own, files):
    root = system(own, files)
    before = sorted(root.rglob("*"))
    with cgroup.group(memory=1000, pids=20) as made:
        assert not made and cgroup.within([], ["x"]) == ["x"]
    assert sorted(root.rglob("*")) == before


def test_groups_of_version_1(system):
    root = system("4:memory:/\n3:pids:/user\n", {"memory/cgroup.procs": "", "pids/cgroup.procs": ""})
    assert cgroup._parents() == {"memory": root / "memory"}


# --- live ------------------------------------------------------------------------------------------------------------

live = pytest.mark.skipif(not cgroup._parents(), reason="no control group here is the grader's to divide")


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@live
def test_all_in_a_group_end_together(tmp_path):
    daemons = "import os, time\nfor i in range(5):\n    if os.fork() == 0: os.setsid()\nos.write(1, b'%d\\n' % os.getpid())"
    with cgroup.group(memory=1 << 30, pids=40) as made:
        command = cgroup.within(sorted({*made.values()}), [sys.executable, "-c", f"{daemons}\ntime.sleep(99)"])
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        pids = [int(process.stdout.readline()) for _ in range(32)]
        folders = {*made.values()}
        assert all({*map(int, (folder / "cgroup.procs").read_text().split())} == {*pids} for folder in folders)
    process.wait()
    process.stdout.close()
    assert not any(map(running, pids)) and not any(folder.exists() for folder in folders)


@live
def test_a_group_bounds_what_forks(tmp_path):
    bomb = "import os, time\nwhile True:\n    try: os.fork()\n    except OSError: os.write(1, b'full'); time.sleep(99)"
    with cgroup.group(memory=1 << 30, pids=10) as made:
        if "pids" not in made:
            pytest.skip("no group of processes")
        process = subprocess.Popen(cgroup.within([made["pids"]], [sys.executable, "-c", bomb]), stdout=subprocess.PIPE)
        assert process.stdout.read(4) == b"full"
        assert len((made["pids"] / "cgroup.procs").read_text().split()) == 10
    process.wait()
    process.stdout.close()


@live
def test_a_child_is_in_its_group_and_what_a_killed_grader_left_goes(tmp_path):
    (tmp_path / "faults.py").write_text("def nap(read, write): read.read()")
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = [above / f"{cgroup.PREFIX}{dead.pid}-0" for above in {*cgroup._parents().values()}]
    for folder in left:
        folder.mkdir()
    daemon = subprocess.Popen(cgroup.within(left, ["sleep", "99"]))
    while not all((folder / "cgroup.procs").read_text() for folder in left):
        time.sleep(0.01)
    with sandbox.start("faults:nap", tmp_path, tmp_path / "nap", Limits(60, 60, 1 << 30, 64, 1 << 20)) as child:
        made = [guard for guard in child.guards if guard.startswith("cgroup of")]
        assert made == [f"cgroup of {kind}" for kind in cgroup._parents()]
        folders = [*Path(next(iter(cgroup._parents().values()))).glob(f"{cgroup.PREFIX}{os.getpid()}-*")]
        assert len(folders) == 1 and str(child._process.pid) in (folders[0] / "cgroup.procs").read_text().split()
        assert daemon.wait(10) == -9 and not any(folder.exists() for folder in left)
    assert not folders[0].exists()
