"""A process and all that descend from it: what they use, and their end. Linux shows them in /proc; elsewhere only the
process group is known."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

LINUX = sys.platform == "linux"
TICKS, PAGE = (os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")) if LINUX else (100, 4096)


@dataclass(frozen=True)
class Process:
    """One row of /proc/PID/stat: times in seconds, memory in bytes."""

    pid: int
    state: str
    parent: int
    session: int
    cpu: float
    waited_cpu: float
    threads: int
    started: int
    memory: int


def adopt_orphans(yes: bool) -> None:
    """Whether a process whose parent among our descendants dies becomes our child, so that it is not lost."""
    if LINUX:
        set_child_subreaper = 36
        ctypes.CDLL(None).prctl(set_child_subreaper, ctypes.c_ulong(yes), *(ctypes.c_ulong(0) for _ in range(3)))


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """This process gets the signal ``number`` as soon as ``parent``, its parent process, ends."""
    if LINUX:
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, *(ctypes.c_ulong(a) for a in (number, 0, 0, 0)))
        if os.getppid() != parent:
            os.kill(os.getpid(), number)


class Tree:
    """A child of this process, which started a session, and its descendants.

    Attributes:
        cpu: seconds that they have used, also those that ended, as far as they were seen.
        memory: bytes they hold now; shared ones once, where the kernel says which.
        threads: how many they have now.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.cpu, self.memory, self.threads = 0.0, 0, 0
        self._seen: dict[tuple[int, int], float] = {}  # (pid, start) -> CPU seconds
        self._first = _read(pid)

    def sample(self, memory_limit: int = 0) -> list[Process]:
        """The living processes; updates the attributes. Memory is counted closely if it seems to exceed the limit."""
        found = self._living()
        self._seen |= {(p.pid, p.started): p.cpu for p in found}
        waited = sum(p.cpu + p.waited_cpu for p in found)
        self.cpu = max(self.cpu, sum(self._seen.values()), waited)
        self.memory = sum(p.memory for p in found)
        if self.memory > memory_limit:  # forks share pages
            self.memory = sum(min(p.memory, _proportional(p.pid)) for p in found)
        self.threads = sum(p.threads for p in found)
        return found

    def kill(self) -> None:
        """Ends all of them."""
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        end = time.monotonic() + 5
        while (found := self.sample(sys.maxsize)) and time.monotonic() < end:  # again: one may fork meanwhile
            for process in found:
                with contextlib.suppress(OSError):
                    os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.01)

    def _living(self) -> list[Process]:
        if not LINUX:
            return []
        children = _children()
        # orphans have come to us; a session other than ours distinguishes them from other children of this process
        start = self._first.started if self._first else 0
        orphans = [p for p in children.get(os.getpid(), []) if p.session != os.getsid(0) and p.started >= start]
        todo = [p for p in orphans if p.pid == self.pid or p.state not in "ZX"]
        for p in orphans:
            if p.pid != self.pid and p.state == "Z":
                with contextlib.suppress(OSError):
                    os.waitpid(p.pid, os.WNOHANG)
        return _below(todo, children)


def end_with(parent: int, pipe: tuple[int, ...]) -> None:
    """Returns in a child of this process. This process ends as that child does or as soon as ``parent`` has ended, and all
    that descend from it then end, too. The file descriptors ``pipe`` remain the child's alone."""
    if not LINUX:
        return
    adopt_orphans(True)
    me, child = os.getpid(), os.fork()
    if child == 0:
        die_with(me)
        return
    for fd in pipe:
        os.close(fd)
    wake = {signal.SIGCHLD, signal.SIGCONT}  # SIGCONT: also if the child has stopped this process
    signal.pthread_sigmask(signal.SIG_BLOCK, wake)
    die_with(parent, signal.SIGCONT)
    code = 1
    while os.getppid() == parent:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            break
        if pid == 0:
            signal.sigwait(wake)
    while found := _below(_children().get(me, []), _children()):
        for process in found:
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.01)
    os._exit(code if code >= 0 else 128 - code)


def disk_use(folder: Path) -> int:
    """Bytes of all files below the folder, of each at least a block."""

    def measured(unit: str) -> int:
        du = subprocess.run(["du", "-s", unit, "--", folder], stdin=subprocess.DEVNULL, capture_output=True)
        return int((du.stdout.split() or [b"0"])[0])

    return max(1024 * measured("-k"), 4096 * measured("--inodes"))


def _children() -> dict[int, list[Process]]:
    """All processes by their parents."""
    children: dict[int, list[Process]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (p := _read(int(name))):
            children.setdefault(p.parent, []).append(p)
    return children


def _below(todo: list[Process], children: dict[int, list[Process]]) -> list[Process]:
    """The living ones of these processes and of all that descend from them."""
    found, todo = [], [*todo]
    while todo:
        p = todo.pop()
        todo += children.get(p.pid, [])
        if p.state not in "ZX":
            found.append(p)
    return found


def _read(pid: int) -> Process | None:
    try:
        row = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        user, system, waited_user, waited_system = (int(ticks) / TICKS for ticks in row[11:15])
        return Process(pid, row[0], int(row[1]), int(row[3]), user + system, waited_user + waited_system, int(row[17]),
                       int(row[19]), int(row[21]) * PAGE)  # fmt: skip
    except (OSError, ValueError, IndexError):  # it has ended
        return None


def _proportional(pid: int) -> int:
    """Bytes of memory, a page that n processes share as 1/n."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return sys.maxsize
