"""Two machines with two processes each, by bench.nodes: one that dies and comes back, a cable that is pulled out, and work
that they share."""

import time
from pathlib import Path

import pytest
import torch
from conftest import TINY, build, run

from bench.nodes import nodes
from homework.core import checkpoint
from homework.datasets.sharding import shard

BSQ = "BSQPatchAutoEncoder"
SLOW = """
import time
from homework.core import cli
from homework.train import train
from homework.training.loop import Run

step = Run.step

def slow(self):
    time.sleep(0.3)
    return step(self)

Run.step = slow
cli.main("train", train)
"""


@pytest.fixture
def two(tmp_path):
    try:
        with nodes(tmp_path) as pair:
            yield pair
    except OSError as error:
        pytest.skip(f"needs the command ip and the right to make network namespaces, as root on Linux: {error}")


def reached(state: Path, update: int) -> None:
    """Waits until the training has saved this update or a later one."""
    end = time.monotonic() + 120
    while not state.is_file() or torch.load(state, weights_only=True)["update"] < update:
        assert time.monotonic() < end, f"no update {update}"
        time.sleep(0.2)


def test_a_node_that_dies_and_a_cable_that_is_pulled_out_cost_time_alone(data, tmp_path, two):
    (tmp_path / "slow.py").write_text(SLOW)
    options = {"data": data, "batch_size": 1, "epochs": 8, "device": "cpu", "ema": 0.9, "name": "run"} | TINY[BSQ]
    typed = [BSQ, *(f"--{k}={v}" for k, v in options.items()), "--save_every", 0.01]  # 48 updates, saved after every other
    (tmp_path / "one").mkdir()
    whole = run("-m", "homework.train", *typed, "--accumulate", 4, cwd=tmp_path / "one")
    assert whole.returncode == 0, whole.stderr

    a, b = two
    first, _ = (node.start(tmp_path / "slow.py", *typed, processes=2) for node in two)
    reached(state := a.folder / "checkpoints" / "run.state.pth", 4)
    b.connect(False)
    time.sleep(20)
    b.connect(True)
    reached(state, 12)
    b.kill()
    time.sleep(1)
    second = b.start(tmp_path / "slow.py", *typed, processes=2)
    assert first.wait(300) == 0 and second.wait(60) == 0, a.log.read_text()[-5000:]
    assert "Resuming checkpoints/run.pth" in a.log.read_text()
    assert not (b.folder / "checkpoints").exists()  # where no disk is shared, none is needed

    found, expected = (checkpoint.load(folder / "checkpoints" / "run.pth").state_dict()
                       for folder in (a.folder, tmp_path / "one"))  # fmt: skip
    for k, v in expected.items():
        assert (found[k] - v).abs().max() < 1e-4, k


def test_nodes_share_the_work_on_shards(data, tmp_path, two):
    """What both write into one folder is what one process writes."""
    checkpoint.save(build(BSQ), tmp_path / "t.pth")
    checkpoint.save(build("AutoregressiveModel"), tmp_path / "p.pth")
    shard(str(data / "train"), str(tmp_path / "shards"), size="4KB")
    assert len(list((tmp_path / "shards").glob("*.tar"))) >= 8
    models, shards = [tmp_path / "t.pth", tmp_path / "p.pth"], tmp_path / "shards"
    jobs = {"tokens": ("tokenize", [models[0]], [shards]), "archives": ("compress", ["compress", *models, shards], [])}
    for name, (module, before, after) in jobs.items():
        for folder in "alone", "together":
            words = [*before, tmp_path / folder / name, *after, "--shards", "--device", "cpu"]
            arguments = ["-m", f"homework.{module}", *words]
            if folder == "alone":
                assert (done := run(*arguments, cwd=tmp_path)).returncode == 0, done.stderr
                continue
            for running in [node.start(*arguments, processes=2) for node in two]:
                assert running.wait(120) == 0, two[0].log.read_text()[-3000:]
        made, expected = ({path.name: path.read_bytes() for path in (tmp_path / folder / name).iterdir()}
                          for folder in ("together", "alone"))  # fmt: skip
        assert made == expected and len(made) > 8
