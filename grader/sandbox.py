"""Runs a submission's code in a child process, talks to it by a pipe, and survives whatever it does.

The child is confined by bubblewrap where that is installed, else by what it does to itself (:mod:`grader.namespaces`,
:mod:`grader.confine`). Nothing that it writes to a file is ever read here.
"""

import contextlib
import dataclasses
import json
import mimetypes
import os
import select
import signal
import site
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grader import bubblewrap, cgroup
from grader.processes import Tree, adopt_orphans, disk_use
from grader.scratch import remove

FLAGS = ("-I", "-S", "-B", "-u", "-X", "utf8", "-X", "faulthandler")  # -I, -S: no path but the one that it is given
PIECE = 1 << 20  # bytes read or written at once
TAIL = 8000  # bytes of a child's output that are kept
REFERENCE = 0.011  # seconds of calibrate() there
INIT = 4  # processes of the confinement itself
SLACK = 16  # processes that a cgroup lets more start: the grader then says itself what the reason is
PAUSE = 0.1  # seconds between two looks at what it uses
# the last ones are what the standard library reads, and does not survive if it sees them but may not
SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime",
          "/sys/devices/system/cpu", *map(str, mimetypes.knownfiles))  # fmt: skip
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Limits:
    """What a child and its descendants may use together.

    Attributes:
        cpu_seconds: of all threads.
        wall_seconds: only a backstop, for one that waits for ever.
        memory: bytes.
        processes: and threads, at a time.
        disk: bytes in its scratch folder.
    """

    cpu_seconds: float
    wall_seconds: float
    memory: int
    processes: int
    disk: int


class Ended(Exception):
    """The child ended, or overran a limit; the message is the printable reason, one line."""


class Child:
    """A confined process and the pipe to it.

    Attributes:
        guards: what confines it.
    """

    def __init__(self, process: subprocess.Popen, read: int, write: int, limits: Limits, scratch: Path) -> None:
        self.guards: list[str] = []
        self._process, self._read, self._write, self._limits, self._scratch = process, read, write, limits, scratch
        self._started = time.monotonic()
        self._tree = Tree(process.pid)
        self._lock = threading.Lock()  # of the tree
        self._reason = ""
        self._tail = bytearray()
        self._over = threading.Event()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._drain, self._watch)]
        for thread in self._threads:
            thread.start()

    def send(self, data: bytes) -> None:
        """Sends all of ``data``. Ended if the child no longer reads."""
        rest = memoryview(data)
        end = time.monotonic() + self._limits.wall_seconds
        while rest:
            self._wait(end, self._limits.wall_seconds, writing=True)
            try:
                rest = rest[os.write(self._write, rest[:PIECE]) :]
            except BlockingIOError:
                continue
            except OSError:  # nobody holds the other end
                raise self._ended() from None

    def receive(self, n: int, seconds: float) -> bytes:
        """Exactly n bytes, within ``seconds`` of wall-clock time. Ended if they do not come."""
        data = bytearray()
        end = time.monotonic() + seconds
        while len(data) < n:
            self._wait(end, seconds, writing=False)
            try:
                piece = os.read(self._read, min(n - len(data), PIECE))
            except BlockingIOError:
                continue
            if not piece:
                raise self._ended()
            data += piece
        return bytes(data)

    @property
    def output(self) -> str:
        """The end of what it printed."""
        return printable(self._tail.decode("utf-8", "replace"))

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the child and its descendants until now, as far as it can be known."""
        with self._lock:
            self._tree.sample(sys.maxsize)
            return self._tree.cpu

    def _wait(self, end: float, seconds: float, writing: bool) -> None:
        """Returns when the pipe may be ready; Ended if the child has ended or the ``seconds`` until ``end`` are over."""
        while True:
            ended = bool(self._reason) or self._process.poll() is not None
            fds: tuple[list[int], list[int]] = ([], [self._write]) if writing else ([self._read], [])
            if any(select.select(*fds, [], 0 if ended else PAUSE)):
                return
            if ended:
                raise self._ended()
            if time.monotonic() > end:
                self._stop(f"gave no answer within {seconds:g} s")

    def _drain(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            while chunk := os.read(self._process.stdout.fileno(), 65536):
                self._tail += chunk
                del self._tail[:-TAIL]

    def _watch(self) -> None:
        """Stops the child when it overruns a limit."""
        limits, pause = self._limits, PAUSE
        while not self._over.wait(pause):
            begin = time.monotonic()
            with self._lock:
                self._tree.sample(limits.memory)
                cpu, memory, threads = self._tree.cpu, self._tree.memory, self._tree.threads
            if cpu > limits.cpu_seconds:
                self._stop(f"stopped at the limit of {limits.cpu_seconds:.3g} s of CPU time")
            elif memory > limits.memory:
                self._stop(f"stopped at the limit of {limits.memory / 2**30:.3g} GiB of memory")
            elif threads > limits.processes + INIT:
                self._stop(f"stopped at the limit of {limits.processes} processes and threads")
            elif self._on_disk and disk_use(self._scratch) > limits.disk:
                self._stop(f"stopped at the limit of {limits.disk / 2**30:.3g} GiB of files")
            elif begin - self._started > limits.wall_seconds:
                self._stop(f"stopped at the time limit of {limits.wall_seconds:g} s")
            pause = min(max(PAUSE, 10 * (time.monotonic() - begin)), 5 * PAUSE)  # rarely on a busy machine

    @property
    def _on_disk(self) -> bool:
        """Whether it writes on the disk, and not in memory of its own."""
        return not {"bubblewrap", "namespaces"} & {*self.guards}

    def _stop(self, reason: str) -> None:
        self._reason = self._reason or reason
        with self._lock:
            self._tree.kill()

    def _end(self) -> None:
        self._over.set()
        with self._lock:
            self._tree.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(5)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _ended(self) -> Ended:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._stop("closed the pipe to the grader")
            code = self._process.wait()
        self._threads[0].join(1)  # its last words
        if self._reason:
            return Ended(self._reason)
        number = -code if code < 0 else code - 128  # bubblewrap adds 128 to that of a signal
        if number == signal.SIGXCPU:
            return Ended(f"stopped at the limit of {self._limits.cpu_seconds:.3g} s of CPU time")
        if number in {*signal.Signals}:
            name = signal.Signals(number).name
            return Ended(f"crashed ({name}{', perhaps out of memory' if name == 'SIGKILL' else ''})")
        return Ended(f"ended before it reported (exit code {code})")


@contextlib.contextmanager
def start(target: str, submission: Path, scratch: Path, limits: Limits) -> Iterator[Child]:
    """Starts a confined child, and ends it and all its descendants at the exit.

    Args:
        target: "module:function", called in the child with the two ends of a pipe to here, read and write (BinaryIO);
            when it returns, the child ends.
        submission: folder that goes first on the child's ``sys.path``; its ``homework`` is the only one there.
        scratch: folder to make, and to remove in the end; the child's working directory, and the only one in which it
            may write.
        limits: what it may use.
    """
    submission, scratch = submission.resolve(), scratch.resolve()
    scratch.mkdir(parents=True)
    (theirs_read, write), (read, theirs_write) = os.pipe(), os.pipe()
    child = None
    adopt_orphans(True)
    with cgroup.group(memory=limits.memory + limits.disk, pids=limits.processes + SLACK) as group:
        try:
            command = _command(target, submission, scratch, limits, theirs_read, theirs_write)
            command = cgroup.within(sorted({*group.values()}), command)
            process = subprocess.Popen(command, cwd=scratch, env=_environment(scratch), start_new_session=True,
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                       pass_fds=(theirs_read, theirs_write))  # fmt: skip
            child = Child(process, read, write, limits, scratch)
            os.close(theirs_read)
            os.close(theirs_write)
            line = bytearray()
            try:
                while not line.endswith(b"\n"):  # before any code of the submission runs
                    line += child.receive(1, limits.wall_seconds)
            except Ended as error:
                raise Ended(" ".join(f"did not start: {error}. {child.output[-200:]}".split())) from None
            child.guards = [*(f"cgroup of {kind}" for kind in group), *json.loads(line)]
            yield child
        finally:
            if child is not None:
                child._end()
            adopt_orphans(False)
            os.close(read)
            os.close(write)
            remove(scratch)


def confinement() -> str:
    """What stands around the child: "bubblewrap", or else "namespaces" if the system allows them."""
    return "bubblewrap" if bubblewrap.usable() else "namespaces"


def calibrate() -> float:
    """CPU time of a fixed computation, relative to that on an idle core of a common machine of the 2020s: a factor for
    limits of CPU time."""
    x = np.linspace(0, 1, 1 << 16, dtype=np.float32)
    seconds = []
    for _ in range(3):
        begin = time.thread_time()
        sum(range(400_000))
        for _ in range(100):
            x = np.sqrt(x * x + 1e-3)
        seconds.append(time.thread_time() - begin)
    return min(seconds) / REFERENCE


def printable(text: str) -> str:
    """``text`` with "?" for control characters, which could disturb a terminal, except line feed and tab."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text.replace("\r", "\n"))


def _command(target: str, submission: Path, scratch: Path, limits: Limits, read: int, write: int) -> list[str]:
    path, installed = _import_path()
    here, python = Path(__file__).parent, os.path.realpath(sys.executable)
    libraries = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if path]
    readable = [*SYSTEM, sys.base_prefix, sys.prefix, python, *path, *libraries, str(here), str(submission)]
    confined = {name: value for name, value in dataclasses.asdict(limits).items() if name != "wall_seconds"}
    task = dict(target=target, submission=str(submission), scratch=str(scratch), read=read, write=write, path=path,
                readable=readable, confinement=confinement(), parent=os.getpid(), limits=confined)  # fmt: skip
    command = [python, *FLAGS, str(here / "child.py"), json.dumps(task)]
    if task["confinement"] != "bubblewrap":
        return command
    return bubblewrap.command(command, readable, installed, scratch, limits.disk)


def _import_path() -> tuple[list[str], list[str]]:
    """The folders of the standard library and of packages, as here; and where a ``homework`` is installed in them. A
    checkout of one, which an editable installation points to, is not among them."""
    folders = dict.fromkeys(os.path.abspath(path) for path in sys.path if path)
    mine = {os.path.join(path, "homework"): path for path in folders if os.path.isdir(os.path.join(path, "homework"))}
    packages = [*site.getsitepackages(), site.getusersitepackages()]
    installed = [homework for homework, path in mine.items() if path in packages]
    return [path for path in folders if path not in mine.values() or path in packages], installed


def _environment(scratch: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    homes = dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"), str(scratch))
    # torch.compile would start a C++ compiler
    return kept | homes | {"USER": "grader", "CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
