"""Two machines: network namespaces joined by a cable, one process on each; a machine that dies and comes back, and a cable
that is pulled out. Needs Linux, the command ip of iproute2, and the right to make namespaces."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, run

from homework.core import checkpoint

BSQ, NODES, ADDRESS, SUBNET = "BSQPatchAutoEncoder", ("a", "b"), "10.213.7.", "24"
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


def ip(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *" ".join(words).split()], capture_output=True, text=True)


@pytest.fixture
def nodes():
    """The names of two namespaces with the addresses 10.213.7.1 and .2, and of their ends of the cable."""
    names = [f"homework-{os.getpid()}-{name}" for name in NODES]
    ends = [f"hw{os.getpid()}{name}" for name in NODES]
    if not shutil.which("ip") or any(ip("netns add", name).returncode for name in names):
        pytest.skip("needs the command ip, and the right to make network namespaces (as root on Linux)")
    try:
        if ip("link add", ends[0], "type veth peer name", ends[1]).returncode:
            pytest.skip("needs the right to make virtual network devices")
        for i, (name, end) in enumerate(zip(names, ends, strict=True)):
            ip("link set", end, "netns", name)
            ip("-n", name, f"addr add {ADDRESS}{i + 1}/{SUBNET} dev", end)
            for device in end, "lo":
                ip("-n", name, "link set", device, "up")
        yield list(zip(names, ends, strict=True))
    finally:
        for name in names:
            ip("netns del", name)


@pytest.fixture
def start(nodes, tmp_path):
    """``start(i, *arguments)`` begins torchrun on node i, in a folder of its own; all are killed in the end."""
    running: list[subprocess.Popen] = []

    def begin(i: int, *arguments: object) -> subprocess.Popen:
        name, end = nodes[i]
        (tmp_path / NODES[i]).mkdir(exist_ok=True)
        torchrun = f"""-m torch.distributed.run --nnodes 2 --nproc-per-node 1 --max-restarts 3 --rdzv-backend c10d
            --rdzv-id x --rdzv-endpoint {ADDRESS}1:29400 --local-addr {ADDRESS}{i + 1}
            --rdzv-conf is_host={i == 0},keep_alive_interval=1,keep_alive_max_attempt=3""".split()
        command = ["ip", "netns", "exec", name, sys.executable, *torchrun, *map(str, arguments)]
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": end,
                            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # fmt: skip  # else no new node finds the others
        with open(tmp_path / NODES[i] / "stderr", "a") as log:
            running.append(subprocess.Popen(command, cwd=tmp_path / NODES[i], env=env, stdout=log, stderr=log,
                                            start_new_session=True))  # fmt: skip
        return running[-1]

    yield begin
    for process in running:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """With all that it has started, at once, as by a power cut."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    for children in Path("/proc").glob("[0-9]*/stat"):  # torchrun's own are in sessions of their own
        with contextlib.suppress(OSError):
            fields = children.read_text().rpartition(")")[2].split()
            if int(fields[1]) == process.pid:
                os.kill(int(children.parent.name), 9)
    process.wait()


def reached(log: Path, update: int, seconds: float = 120) -> None:
    """Waits until the training has saved this update or a later one."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, KeyError, RuntimeError):
            if torch.load(log, weights_only=True)["update"] >= update:
                return
        time.sleep(0.2)
    pytest.fail(f"no update {update} within {seconds} s")


def test_a_node_that_dies_and_a_cable_that_is_pulled_out_cost_time_alone(data, tmp_path, nodes, start):
    (tmp_path / "slow.py").write_text(SLOW)
    options = {"data": data, "batch_size": 2, "epochs": 8, "device": "cpu", "ema": 0.9, "name": "run"} | TINY[BSQ]
    typed = [BSQ, *(f"--{k}={v}" for k, v in options.items()), "--save_every", 0.01]  # 48 updates, saved after every other
    (tmp_path / "one").mkdir()
    whole = run("-m", "homework.train", *typed, "--accumulate", 2, cwd=tmp_path / "one")
    assert whole.returncode == 0, whole.stderr

    first, second = (start(i, tmp_path / "slow.py", *typed) for i in range(2))
    state = tmp_path / "a" / "checkpoints" / "run.state.pth"
    reached(state, 4)
    name, end = nodes[1]
    ip("-n", name, "link set", end, "down")
    time.sleep(5)
    ip("-n", name, "link set", end, "up")
    reached(state, 12)
    kill(second)
    time.sleep(1)
    second = start(1, tmp_path / "slow.py", *typed)
    log = tmp_path / "a" / "stderr"
    assert first.wait(300) == 0 and second.wait(60) == 0, log.read_text()[-5000:]
    assert "Resuming checkpoints/run.pth" in log.read_text()
    assert not (tmp_path / "b" / "checkpoints").exists()  # what has no disk in common needs none

    found, expected = (checkpoint.load(tmp_path / node / "checkpoints" / "run.pth").state_dict() for node in ("a", "one"))
    for k, v in expected.items():
        assert (found[k] - v).abs().max() < 1e-4, k
