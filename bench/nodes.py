"""Two machines on one: network namespaces joined by a virtual cable, with a process of a training on each. What they send,
how much faster they are than one, and what a machine that dies costs: ``python -m bench.nodes``, as root on Linux, with
iproute2."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from homework.core import cli

ADDRESS = "10.213.7."
OPTIONS = ["--device", "cpu", "--batch_size", "8", "--name", "run"]
# torchrun's new nodes do not find the old ones when the store is shared
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "PYTHONPATH": os.getcwd()}


def ip(*words: str) -> None:
    """The command ip with these words. OSError if it is not there, or refuses."""
    done = subprocess.run(["ip", *" ".join(words).split()], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Node:
    """One of two, number 0 or 1, with the address 10.213.7.1 or .2 at its end of the cable, and a folder of its own."""

    def __init__(self, i: int, folder: Path):
        self.i, self.name, self.end = i, f"homework-{os.getpid()}-{i}", f"hw{os.getpid()}e{i}"
        self.folder = folder / f"node{i}"
        self.folder.mkdir()
        self.log = self.folder / "log"
        self.running: subprocess.Popen | None = None

    def start(self, *arguments: object, processes: int = 1) -> subprocess.Popen:
        """Starts ``torchrun ARGUMENTS`` with so many processes here, and as many on the other node."""
        torchrun = f"""-m torch.distributed.run --nnodes 2 --nproc-per-node {processes} --max-restarts 3 --rdzv-backend c10d
            --rdzv-id x --rdzv-endpoint {ADDRESS}1:29400 --local-addr {ADDRESS}{self.i + 1}
            --rdzv-conf is_host={self.i == 0},keep_alive_interval=1,keep_alive_max_attempt=3""".split()
        command = ["ip", "netns", "exec", self.name, sys.executable, *torchrun, *map(str, arguments)]
        env = os.environ | ENVIRONMENT | {"GLOO_SOCKET_IFNAME": self.end}
        with open(self.log, "a") as log:
            self.running = subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log)
        return self.running

    def kill(self) -> None:
        """Ends all that runs here at once, as a power cut does."""
        if self.running:
            found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout
            for pid in found.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            self.running.wait()
            self.running = None

    def connect(self, there: bool) -> None:
        """Puts the cable in, or pulls it out."""
        ip("-n", self.name, "link set", self.end, "up" if there else "down")

    def sent(self) -> int:
        """Bytes that have left through the cable, with all headers."""
        path = f"/sys/class/net/{self.end}/statistics/tx_bytes"
        return int(subprocess.run(["ip", "netns", "exec", self.name, "cat", path], capture_output=True).stdout)


@contextlib.contextmanager
def nodes(folder: Path) -> Iterator[tuple[Node, Node]]:
    """Two nodes, with their folders in ``folder``. OSError where they cannot be made."""
    if not shutil.which("ip"):
        raise OSError("the command ip is missing, of the package iproute2")
    pair = Node(0, folder), Node(1, folder)
    try:
        for node in pair:
            ip("netns add", node.name)
        ip("link add", pair[0].end, "type veth peer name", pair[1].end)
        for node in pair:
            ip("link set", node.end, "netns", node.name)
            ip("-n", node.name, f"addr add {ADDRESS}{node.i + 1}/24 dev", node.end)
            ip("-n", node.name, "link set lo up")
            node.connect(True)
        yield pair
    finally:
        for node in pair:
            node.kill()
            with contextlib.suppress(OSError):
                ip("netns del", node.name)


def samples_done(log: Path) -> int:
    """How many samples the training has said to be done with."""
    found = re.findall(r"\| (\d+)/\d+ \[", log.read_text(errors="replace")) if log.is_file() else []
    return int(found[-1]) if found else 0


def wait(log: Path, samples: int, process: subprocess.Popen | None) -> float:
    """Waits until the training that ``process`` runs is done with as many samples; the time then. ValueError, with what it
    said last, if it has ended before."""
    while samples_done(log) < samples:
        if process is None or process.poll() is not None:
            raise ValueError(f"the training has ended: {' '.join(log.read_text(errors='replace').splitlines()[-1:])}")
        time.sleep(0.05)
    return time.perf_counter()


def measure(model: str = "AutoregressiveModel", data: str = "data") -> None:
    """Prints the images a second of one process and of two nodes, the bytes that a node sends in an update, and the seconds
    from a node's death to the next update with it, of which starting Python and PyTorch again is a part."""
    command = ["-m", "homework.train", model, "--data", os.path.abspath(data), *OPTIONS]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        alone, n, log = folder / "alone", 400, folder / "log"
        alone.mkdir()
        with open(log, "w") as file:
            one = subprocess.Popen([sys.executable, *command], cwd=alone, env=os.environ | ENVIRONMENT, stderr=file)
        begin = wait(log, 100, one)
        first = samples_done(log)
        speed = (n - first) / (wait(log, n, one) - begin)
        one.kill()
        one.wait()
        print(f"one process: {speed:.2f} images/s")
        with nodes(folder) as (a, b):
            for node in a, b:
                node.start(*command, "--save_every", "0.05")
            begin, sent, first = wait(a.log, 200, a.running), a.sent(), samples_done(a.log)
            end = wait(a.log, 2 * n, a.running)
            done = samples_done(a.log) - first
            print(f"two nodes: {done / (end - begin):.2f} images/s, {done / (end - begin) / speed:.2f} times as many; "
                  f"{(a.sent() - sent) / (done / 16) / 1e6:.2f} MB sent by each in an update")  # fmt: skip
            b.kill()
            begin = time.perf_counter()
            a.log.write_text("")
            b.start(*command, "--save_every", "0.05")
            print(f"a node that dies and is started again: {wait(a.log, 1, a.running) - begin:.0f} s until the next update")


if __name__ == "__main__":
    cli.main("python -m bench.nodes", measure)
