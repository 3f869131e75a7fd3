"""Runs a function in a child process and returns its result, whatever the code does.

The child reads its task from stdin and writes its answer to a file of its scratch folder, so that its output cannot
disturb either. The process ends right after the answer, without atexit handlers; a forked copy of it writes no answer.
"""

import contextlib
import importlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grader.confine import confine

FLAGS = ("-I", "-S", "-B", "-u", "-X", "utf8", "-X", "faulthandler")  # -I, -S: no path but the one that it is given
PIECE = 1 << 20  # bytes read or written at once
TAIL = 8000  # bytes of a child's output that are kept
MARK = "GRADER_PART"  # environment variable by which all processes of a part are known
KEPT = ("PATH", "PYTHONHOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT",
        "OMP_NUM_THREADS", "MKL_NUM_THREADS")  # fmt: skip


class Failed(Exception):
    """Raised by a function in the child: its message, one sentence, is the reason that is reported."""


@dataclass
class Outcome:
    """The result of a run.

    Attributes:
        value: what the function returned, None if it did not return.
        reason: why not, in one line; "" if it did.
        output: the end of what it printed.
        seconds: wall-clock time.
        guards: what confined it, see :func:`grader.confine.confine`.
    """

    value: dict | None
    reason: str
    output: str
    seconds: float
    guards: list[str]


@dataclass(frozen=True)
class Limits:
    """What a child and its descendants may use together.

    Attributes:
        cpu_seconds: of all threads.
        wall_seconds: only a backstop, for one that waits for ever.
        memory: bytes.
        processes: and threads, at a time.
        disk: bytes of the files in its scratch folder.
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

    def __init__(self, process: subprocess.Popen, read: int, write: int, limits: Limits) -> None:
        self._process, self._read, self._write, self._limits = process, read, write, limits
        self._started = time.monotonic()
        self._reason = ""
        self._tail = bytearray()
        self._cpu: dict[tuple[str, str], float] = {}  # (pid, its start) -> CPU seconds
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        self._reader = threading.Thread(target=_drain, args=(process.stdout, self._tail), daemon=True)
        self._reader.start()
        self.guards: list[str] = []

    def send(self, data: bytes) -> None:
        """Sends all of ``data``. Ended if the child no longer reads."""
        rest = memoryview(data)
        end = self._started + self._limits.wall_seconds
        while rest:
            self._wait(end, self._limits.wall_seconds, write=True)
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
            self._wait(end, seconds, write=False)
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
        return sum(self._cpu.values())

    def _wait(self, end: float, seconds: float, write: bool) -> None:
        """Returns when the pipe may be ready; Ended if the child has ended or time is over."""
        fds = [[self._read], [self._write]]
        while True:
            ended = self._process.poll() is not None
            readable, writable, _ = select.select([] if write else fds[0], fds[1] if write else [], [], 0 if ended else 0.1)
            if readable or writable:
                return
            if ended or self._reason:
                raise self._ended()
            self._watch()
            if time.monotonic() > end and not self._reason:
                self._stop(f"gave no answer within {seconds:g} s")

    def _watch(self) -> None:
        if time.monotonic() - self._started > self._limits.wall_seconds:
            self._stop(f"stopped at the time limit of {self._limits.wall_seconds:g} s")

    def _stop(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._process.kill()

    def _ended(self) -> Ended:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._stop("closed the pipe to the grader")
            code = self._process.wait()
        if self._reason:
            return Ended(self._reason)
        if code < 0 or code > 128:
            number = -code if code < 0 else code - 128
            name = signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"
            return Ended(f"crashed ({name}{', perhaps out of memory' if name == 'SIGKILL' else ''})")
        return Ended(f"ended before it reported (exit code {code})")


@contextlib.contextmanager
def start(target: str, submission: Path, scratch: Path, limits: Limits) -> Iterator[Child]:
    """Starts a confined child, and ends it and all its descendants at the exit.

    Args:
        target: "module:function", called in the child with the two ends of a pipe to here, read and write (BinaryIO);
            when it returns, the child ends.
        submission: folder that goes first on the child's ``sys.path``; its ``homework`` is the only one there.
        scratch: folder to make; the child's working directory, and the only one in which it may write.
        limits: what it may use.
    """
    submission, scratch = submission.resolve(), scratch.resolve()
    scratch.mkdir(parents=True)
    token = secrets.token_hex(16)
    (theirs_read, write), (read, theirs_write) = os.pipe(), os.pipe()
    task = dict(target=target, submission=str(submission), scratch=str(scratch), read=theirs_read, write=theirs_write,
                path=_import_path())  # fmt: skip
    command = [sys.executable, *FLAGS, str(Path(__file__).with_name("child.py")), json.dumps(task)]
    try:
        process = subprocess.Popen(command, cwd=scratch, env=_environment(scratch, token), start_new_session=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   pass_fds=(theirs_read, theirs_write))  # fmt: skip
        os.close(theirs_read)
        os.close(theirs_write)
        child = Child(process, read, write, limits)
        try:
            line = bytearray()
            while not line.endswith(b"\n"):  # before any code of the submission runs
                line += child.receive(1, limits.wall_seconds)
            child.guards = json.loads(line)
            yield child
        finally:
            _kill(process, token)
            child._reader.join(timeout=5)
    finally:
        os.close(read)
        os.close(write)


def _import_path() -> list[str]:
    """The folders of the standard library and of the installed packages, none with a ``homework`` of its own but the
    latter, where another finder prevents its import."""
    folders = [os.path.abspath(path) for path in sys.path if path]
    return [path for path in folders if path.endswith("-packages") or not os.path.isdir(os.path.join(path, "homework"))]


# --- the parent's side -----------------------------------------------------------------------------------------------


def run(
    target: str,
    arguments: dict,
    submission: Path,
    scratch: Path,
    time_limit: float,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Calls ``target`` in a child process that may write only in ``scratch``.

    Args:
        target: "module:function"; it gets ``progress`` (a function of done and total, both int) and the arguments,
            and returns a dict of plain data.
        arguments: plain data.
        submission: folder that goes first on the child's ``sys.path``.
        scratch: folder to make; the child's working directory.
        time_limit: seconds.
        on_progress: called now and then with the latest arguments of ``progress``.
    """
    submission, scratch = submission.resolve(), scratch.resolve()
    scratch.mkdir(parents=True)
    token = secrets.token_hex(16)
    task = dict(target=target, arguments=arguments, submission=str(submission), scratch=str(scratch), token=token)
    command = [sys.executable, "-P", "-X", "faulthandler", "-c", "from grader import sandbox; sandbox.child()"]
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=scratch, env=_environment(scratch, token), start_new_session=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    try:
        tail = bytearray()
        reader = threading.Thread(target=_drain, args=(process.stdout, tail), daemon=True)
        reader.start()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(task).encode())
            process.stdin.close()
        while process.poll() is None and time.monotonic() - start < time_limit:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
            with contextlib.suppress(OSError, ValueError):
                done, total = (scratch / "progress").read_text().split()
                on_progress(int(done), int(total))
        code = process.poll()
    finally:
        _kill(process, token)
    seconds = time.monotonic() - start
    reader.join(timeout=5)
    answer = _answer(scratch / f"{token}.json")
    if answer is not None:
        reason = answer.get("reason", "")
    elif code is None:
        reason = f"stopped at the time limit of {time_limit:g} s"
    elif code < 0:
        name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
        reason = f"crashed ({name}{', perhaps out of memory' if name == 'SIGKILL' else ''})"
    else:
        reason = f"ended before it reported (exit code {code})"
    answer = answer or {}
    return Outcome(answer.get("value"), printable(reason), printable(tail.decode("utf-8", "replace")), seconds,
                   answer.get("guards", []))  # fmt: skip


def printable(text: str) -> str:
    """``text`` with "?" for control characters, which could disturb a terminal, except line feed and tab."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text.replace("\r", "\n"))


def _environment(scratch: Path, token: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    homes = dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"), str(scratch))
    # the same packages as here: HOME, under which a user may have installed some, is another one
    path = os.pathsep.join([str(Path(__file__).parent.parent), *map(os.path.abspath, sys.path)])
    return kept | homes | {
        MARK: token,
        "PYTHONPATH": path,
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONIOENCODING": "utf-8:replace",
        "PYTHONUNBUFFERED": "1",
        "TORCHDYNAMO_DISABLE": "1",  # torch.compile would start a C++ compiler
    }  # fmt: skip


def _drain(pipe: Any, tail: bytearray) -> None:
    while chunk := pipe.read1(65536):
        tail += chunk
        del tail[:-TAIL]


def _answer(path: Path) -> dict | None:
    try:
        return json.loads(path.read_bytes()[:1_000_000])
    except (OSError, ValueError):
        return None


def _kill(process: subprocess.Popen, token: str) -> None:
    """Ends the child and its forks: its process group, and on Linux also those that left the group."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
    mark = f"{MARK}={token}".encode()
    for _ in range(20):  # again: one may fork during the search
        found = False
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in environment.read_bytes().split(b"\0"):
                    os.kill(int(environment.parent.name), signal.SIGKILL)
                    found = True
        if not found:
            return
        time.sleep(0.05)


# --- the child's side ------------------------------------------------------------------------------------------------


def child() -> None:
    """The child process, from its first line to its last."""
    task = json.load(sys.stdin)
    pid, scratch = os.getpid(), Path(task["scratch"])
    answer: dict[str, Any] = {"guards": confine(scratch)}
    sys.path.insert(0, task["submission"])

    def progress(done: int, total: int) -> None:
        (scratch / "progress").write_text(f"{done} {total}")

    try:
        module, name = task["target"].split(":")
        function = getattr(importlib.import_module(module), name)
        answer["value"] = function(progress=progress, **task["arguments"])
    except BaseException as error:  # noqa: B036  sys.exit and KeyboardInterrupt are failures of this part only
        answer["reason"] = describe(error)
        with contextlib.suppress(Exception):
            traceback.print_exception(error)
    if os.getpid() == pid:
        temporary = scratch / f"{task['token']}.tmp"
        temporary.write_text(json.dumps(answer))
        temporary.replace(scratch / f"{task['token']}.json")
    os._exit(0)


def describe(error: BaseException) -> str:
    """One line for the report, at most 300 characters."""
    line = next(iter(str(error).strip().splitlines()), "")[:300]
    if isinstance(error, Failed):
        return line
    if isinstance(error, SystemExit):
        return f"called sys.exit({line})"
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
