"""The sandbox on hostile children: each kind of confinement, limits, the end of processes and of scratch folders."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from grader import bubblewrap, sandbox, scratch
from grader.sandbox import Ended, Limits

MIB, LINUX = 1 << 20, sys.platform == "linux"
LIMITS = Limits(cpu_seconds=120, wall_seconds=120, memory=4 << 30, processes=64, disk=64 * MIB)

# serve() answers one call of a function by {"value": ..} or {"reason": ..}
FAULTS = """
import ctypes, json, mmap, os, resource, shutil, signal, socket, stat, subprocess, sys, tempfile, threading, time
libc = ctypes.CDLL(None, use_errno=True)
SYSCALLS = {"add_key": 217, "keyctl": 219} if os.uname().machine == "aarch64" else {"add_key": 248, "keyctl": 250}

def serve(read, write):
    name, arguments = json.loads(read.readline())
    try:
        answer = {"value": globals()[name](**arguments)}
    except BaseException as error:
        answer = {"reason": f"{type(error).__name__}: {error}"}
    write.write(json.dumps(answer).encode() + b"\\n")
    write.flush()

def good(n): return {"n": n}
def leave_hard(): os._exit(0)
def leave(): sys.exit(3)
def crash(): ctypes.string_at(0)
def abort(): os.abort()
def loop():
    while True: pass
def loops():
    for i in range(3): os.fork()
    loop()
def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(1000)
def flood():
    for i in range(300):
        print("x" * 100_000); print("y\\x1b[31m" * 300, file=sys.stderr)
    print("the end")
def close():
    for fd in (0, 1, 2): os.close(fd)
    return 1
def nap(): time.sleep(1000)
def hold(size): data = bytearray(size); data[::4096] = b"x" * len(data[::4096]); time.sleep(1000)
def allocate(size): return len(bytearray(size))
def hoard(size):
    for i in range(5):
        if os.fork() == 0: hold(size)
    time.sleep(1000)
def linger():  # leaves children, in the process group and out of it
    for leader in (False, True):
        if os.fork() == 0:
            if leader: os.setsid()
            if os.fork() == 0: time.sleep(1000)
            os._exit(0)
    time.sleep(0.3)
def daemon():
    fields = open("/proc/self/stat").read().rsplit(")", 1)[-1].split()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            ctypes.memset(int(fields[47]), 0, int(fields[48]) - int(fields[47]))  # its environment
            time.sleep(1000)
        os._exit(0)
    time.sleep(0.3)
def twice():  # both copies come back to serve()
    mine = os.fork() != 0
    if mine: time.sleep(0.5)
    return mine
def bomb():
    while True: os.fork()
def c_bomb():
    while True: libc.fork()
def threads():
    for i in range(1000): threading.Thread(target=time.sleep, args=(1000,)).start()
    time.sleep(1000)
def kill(pid): os.kill(pid, signal.SIGKILL)
def c_kill(pid): return libc.kill(pid, signal.SIGKILL)
def shell(): subprocess.run(["true"])
def c_shell(): return libc.system(b"true")
def c_write(path): return bool(libc.fopen(path.encode(), b"w"))
def connect(port): socket.socket().connect(("127.0.0.1", port))
def c_connect(port):
    import _socket
    address = bytes([2, 0, port >> 8, port & 255, 127, 0, 0, 1]) + bytes(8)
    return libc.connect(libc.socket(2, 1, 0), address, 16)
def c_service(path):
    own = libc.socket(1, 1, 0)
    return libc.connect(own, (1).to_bytes(2, "little") + path.encode() + bytes(1), len(path) + 3)
def listen(): socket.socket().bind(("127.0.0.1", 0))
def look_up(): socket.getaddrinfo("localhost", 80)
def write(path): open(path, "w")
def append(path): os.open(path, os.O_WRONLY | os.O_APPEND)
def remove(path): os.remove(path)
def rename(path): open("mine", "w").close(); os.replace("mine", path)
def mode(path): os.chmod(path, 0)
def folder(path): os.mkdir(path + ".d")
def link(path): os.symlink(path, "link"); open("link", "a")
def hard_link(path): os.link(path, "link"); open("link", "a")
def fd_remove(path): os.remove(os.path.basename(path), dir_fd=os.open(os.path.dirname(path), os.O_RDONLY))
def allowed():
    with tempfile.TemporaryDirectory() as folder:
        open(os.path.join(folder, "x"), "w").close()
    with open(os.devnull, "w") as null: null.write("x")
    os.makedirs(os.path.expanduser("~/.cache/deep"))
    open("here", "w").close(); shutil.copy("here", "copy"); os.rename("here", "there"); os.remove("there")
    import mimetypes; mimetypes.init()  # reads files of /etc, where there are any
    return {"home": os.path.expanduser("~"), "secret": os.environ.get("SECRET"), "cwd": os.getcwd(), "path": sys.path}
def metadata(path):
    v = path.encode()
    libc.chmod(v, 0o777); libc.chown(v, 12, 12); libc.utimes(v, None); libc.setxattr(v, b"user.x", b"1", 1, 0)
    libc.unlink(v); libc.truncate(v, 0); libc.rename(v, b"mine"); libc.mkdir(v + b".d", 0o777); libc.link(v, b"hard")
def read(path):
    found = []
    for call in (lambda: open(path).read(), lambda: os.listdir(path), lambda: os.listdir(os.path.dirname(path)),
                 lambda: libc.open(path.encode(), 0) >= 0 or 1 / 0):
        try: found.append(call())
        except (OSError, ZeroDivisionError): pass
    return found
def environment(pid): return open(f"/proc/{pid}/environ").read()
def device(): return [libc.mknod(b"null", kind | 0o666, 0x103) for kind in (stat.S_IFCHR, stat.S_IFBLK)]
def shared_memory(key): return libc.shmget(key, 4096, 0o1600)
def limit(pid): return libc.prlimit(pid, 7, (ctypes.c_uint64 * 2)(64, 4096), None)
def fill(mib):
    written = 0
    for i in range(mib):
        try:
            with open(f"f{i}", "wb") as file: written += file.write(bytes(1 << 20))
        except OSError: pass
    if written == mib << 20: time.sleep(30)
    return written
def litter(n):
    for i in range(n): os.mkdir(f"d{i}")
    time.sleep(30)
def keep_key(path): return libc.syscall(SYSCALLS["add_key"], b"user", b"kept", b"secret", 6, -4)
def kept_key(path): return libc.syscall(SYSCALLS["keyctl"], 10, -4, b"user", b"kept", 0) >= 0
def keep_hint(path): return libc.fcntl(os.open(path, os.O_RDONLY), 1036, ctypes.byref(ctypes.c_uint64(4)))
def kept_hint(path):
    hint = ctypes.c_uint64(); libc.fcntl(os.open(path, os.O_RDONLY), 1035, ctypes.byref(hint)); return hint.value
def keep_flag(path): return libc.ioctl(os.open(path, os.O_RDONLY), 0x40086602, ctypes.byref(ctypes.c_long(0xC0)))
def kept_flag(path): return 0  # reading them is denied, too
def slow(pid): return libc.sched_setaffinity(pid, 8, ctypes.byref(ctypes.c_ulong(1)))
def memory_files(): return libc.memfd_create(b"x", 0)
def capabilities(): return [line for line in open("/proc/self/status") if line.startswith("CapEff")]
def traps():  # where a parent might read
    for name in ("progress", "answer.json", "answer.tmp"): os.mkfifo(name)
    os.symlink("/dev/zero", "zero.json"); os.symlink("..", "loop")
    os.mkdir("locked", 0); open("read_only", "w").close(); os.chmod("read_only", 0)
def deep():
    for i in range(1100): libc.mkdir(b"deep", 0o700); libc.chdir(b"deep")  # more levels and characters than Python can take
def note(): open("note", "w").write("from part 1")
def peek(path):
    found = []
    for name in ("..", path, f"{path}/note"):
        try: found.append(open(name).read() if name.endswith("note") else os.listdir(name))
        except OSError: pass
    return [item for item in found if "note" in item or "from part 1" in item]
def load():
    import homework
    return homework.__file__
def everything(): import torch, numpy; return torch.ones(3).sum().item()
def endless(): return "x" * 50_000_000
"""


@pytest.fixture(params=["bubblewrap", "namespaces", "none"])
def confined(request, monkeypatch):
    """Each kind of confinement that this system has."""
    if request.param == "bubblewrap" and not bubblewrap.usable():
        pytest.skip("bubblewrap is not installed, or not allowed here")
    monkeypatch.setattr(sandbox, "confinement", lambda: request.param)
    return request.param


@pytest.fixture
def call(tmp_path):
    """Calls a function of the faults: value, reason, output, guards."""
    faults = tmp_path / "submission"
    faults.mkdir()
    (faults / "faults.py").write_text(FAULTS)

    def call(name, limits=LIMITS, seconds=60, **arguments):
        found = SimpleNamespace(value=None, reason="")
        with sandbox.start("faults:serve", faults, tmp_path / f"scratch-{name}", limits) as child:
            try:
                child.send(json.dumps([name, arguments]).encode() + b"\n")
                line = bytearray()
                while not line.endswith(b"\n"):
                    line += child.receive(1, seconds)
                vars(found).update(json.loads(line))
            except Ended as error:
                found.reason = str(error)
        found.guards, found.output, found.cpu_seconds = child.guards, child.output, child.cpu_seconds
        assert not left_behind(tmp_path) and not (tmp_path / f"scratch-{name}").exists()
        return found

    return call


def left_behind(tmp_path):
    """Processes of a sandbox below this folder that still run (Linux; none elsewhere)."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{tmp_path}/" in file.read_bytes().decode("utf-8", "replace") and file.parent.name != str(os.getpid()):
                found.append(file.parent.name)
    return found


def guarded(found, *guards):
    """Skips if none of these guards held: the system has none."""
    if not {*guards} & {*found.guards}:
        pytest.skip(f"this system has no {' or '.join(guards)}: held by {', '.join(found.guards)}")


# --- ordinary children -----------------------------------------------------------------------------------------------


def test_a_good_function(call, confined, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "x")
    assert call("good", n=3).value == {"n": 3}
    found = call("allowed")
    assert found.reason == "" and found.value["secret"] is None and not Path(ROOT, "faults").exists()
    assert found.value["home"] == found.value["cwd"] == str(tmp_path / "scratch-allowed")
    assert str(ROOT) not in found.value["path"]
    assert found.guards[-1] == "audit hook" and (confined == "none" or confined in found.guards or not LINUX)


def test_torch_works_inside(call, confined):
    found = call("everything")
    assert found.value == 3 and found.cpu_seconds > 0.1


@pytest.mark.parametrize(
    "name, reason",
    [
        ("leave_hard", "ended before it reported (exit code 0)"),
        ("crash", "crashed (SIGSEGV)"),
        ("abort", "crashed (SIGABRT)"),
        ("leave", "SystemExit: 3"),
    ],
)
def test_ends(call, confined, name, reason):
    found = call(name)
    assert (found.value, found.reason) == (None, reason)


def test_prints_disturb_nothing(call):
    found = call("flood")
    assert found.reason == "" and found.output.rstrip().endswith("the end") and "\x1b" not in found.output
    assert len(found.output) <= sandbox.TAIL
    assert call("close").value == 1


def test_the_pipe_believes_no_length(tmp_path):
    """A child that answers endlessly, or never reads, costs the parent no memory and only the time it is given."""
    (tmp_path / "faults.py").write_text("""
def much(read, write):
    while True: write.write(b"x" * 1_000_000)
def nothing(read, write):
    import time; time.sleep(1000)
""")
    with sandbox.start("faults:much", tmp_path, tmp_path / "much", LIMITS) as child:
        assert child.receive(10, 60) == b"x" * 10
    with sandbox.start("faults:nothing", tmp_path, tmp_path / "nothing", LIMITS) as child:
        with pytest.raises(Ended, match=r"gave no answer within 0\.5 s"):
            child.receive(1, 0.5)
    short = Limits(120, 3, 4 << 30, 64, MIB)
    with sandbox.start("faults:nothing", tmp_path, tmp_path / "deaf", short) as child:
        with pytest.raises(Ended, match="time limit of 3 s|no answer within 3 s"):
            child.send(bytes(10_000_000))


def test_a_forked_copy_does_not_answer(call, confined):
    assert call("twice").value is True


def test_a_child_that_cannot_start_says_why(call, monkeypatch):
    monkeypatch.setattr(sandbox, "FLAGS", ("-I", "-c", "raise SystemExit('no luck')"))
    with pytest.raises(Ended, match=r"^did not start: ended before it reported \(exit code 1\)\. no luck$"):
        call("good", n=1)


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loop", "loops"])
def test_cpu_time_is_limited_for_all_together(call, confined, name):
    begin = time.monotonic()
    found = call(name, Limits(0.5, 100, 4 << 30, 64, MIB))
    assert found.reason == "stopped at the limit of 0.5 s of CPU time"
    if LINUX:
        assert found.cpu_seconds > 0.5
        assert time.monotonic() - begin < 60


def test_waiting_costs_no_cpu_time(call, confined):
    found = call("deaf", Limits(1, 3, 4 << 30, 64, MIB))
    assert found.reason == "stopped at the time limit of 3 s" and found.cpu_seconds < 1


def test_memory_is_limited(call, confined):
    found = call("allocate", Limits(60, 60, 512 * MIB, 64, MIB), size=1 << 30)
    assert found.reason.startswith("MemoryError") or "memory" in found.reason
    assert call("allocate", Limits(60, 60, 512 * MIB, 64, MIB), size=100 * MIB).value == 100 * MIB
    if LINUX:
        found = call("hoard", Limits(60, 60, 400 * MIB, 64, MIB), size=100 * MIB)
        assert found.reason == "stopped at the limit of 0.391 GiB of memory"


def test_processes_are_limited(call, confined):
    few = Limits(60, 60, 8 << 30, 16, MIB)
    found = call("bomb", few)
    assert found.value is None and ("stopped at the limit of 16 processes" in found.reason or "Error" in found.reason)
    if LINUX:
        assert "stopped at the limit of 16 processes" in call("threads", few).reason + call("c_bomb", few).reason


def test_disk_is_limited(call, confined):
    found = call("fill", Limits(60, 60, 4 << 30, 64, 4 * MIB), mib=16)
    if {"bubblewrap", "namespaces"} & {*found.guards}:
        assert 0 < found.value <= 4 * MIB
    else:  # looked at now and then
        assert found.reason == "stopped at the limit of 0.00391 GiB of files"
        assert call("litter", Limits(60, 60, 4 << 30, 64, 4 * MIB), n=2000).reason == found.reason


def test_memory_that_nothing_counts_is_not_to_be_had(call, confined):
    found = call("memory_files")
    guarded(found, "seccomp")
    assert found.value == -1


# --- what lies outside -----------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "outside"
    path.write_text("kept")
    return path


@pytest.mark.parametrize("name", ["write", "append", "remove", "rename", "mode", "folder", "link", "hard_link", "fd_remove"])
def test_no_writing_outside(call, outside, name):
    before = outside.stat()
    found = call(name, path=str(outside))
    if name == "fd_remove":  # where reading is confined too, it does not even come so far
        assert found.reason.startswith(("PermissionError", "FileNotFoundError"))
    else:
        assert found.reason.startswith("PermissionError") and "The grader allows no writing outside" in found.reason
    assert outside.read_text() == "kept" and outside.stat().st_mode == before.st_mode
    assert not Path(f"{outside}.d").exists()


def test_c_code_changes_nothing_outside(call, confined, outside):
    os.utime(outside, (1e9, 1e9))
    before = outside.stat()
    found = call("metadata", path=str(outside))
    guarded(found, "bubblewrap", "namespaces", "seccomp")
    after = outside.stat()
    fields = "st_mode", "st_uid", "st_gid", "st_mtime", "st_nlink"
    assert [getattr(after, name) for name in fields] == [getattr(before, name) for name in fields]
    assert outside.read_text() == "kept" and os.listxattr(outside) == [] and not Path(f"{outside}.d").exists()
    assert call("c_write", path=str(outside.with_name("by_c"))).value is False
    assert not outside.with_name("by_c").exists()


def test_the_data_and_the_home_cannot_be_read(call, confined, outside):
    found = call("read", path=str(outside))
    guarded(found, "bubblewrap", "Landlock")
    assert found.value == []
    assert call("read", path=str(ROOT / "data")).value == []
    assert call("read", path=str(ROOT / "homework/__init__.py")).value == []
    home = Path("~/.bash_history").expanduser()
    assert call("read", path=str(home)).value == []
    assert call("environment", pid=os.getpid()).reason.startswith(("PermissionError", "FileNotFoundError"))


def test_nothing_of_an_earlier_child_is_found(call, confined, tmp_path):
    assert call("note").reason == ""
    found = call("peek", path=str(tmp_path / "scratch-note"))
    assert found.value == []


@pytest.mark.parametrize("name", ["kill", "shell"])
def test_other_processes(call, confined, name):
    found = call(name, **({"pid": os.getpid()} if name == "kill" else {}))
    assert found.reason.startswith("PermissionError") and "The grader" in found.reason


def test_c_code_reaches_no_other_process(call, confined):
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        before = resource.prlimit(victim.pid, resource.RLIMIT_NOFILE) if LINUX else None
        found = call("limit", pid=victim.pid)
        guarded(found, "bubblewrap", "namespaces", "seccomp")
        assert found.value == -1 and resource.prlimit(victim.pid, resource.RLIMIT_NOFILE) == before
        found = call("c_kill", pid=victim.pid)
        guarded(found, "bubblewrap", "namespaces")  # Landlock alone stops it on new kernels only
        assert found.value == -1 and victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
    assert call("c_shell").value != 0


def test_no_network(call, confined):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        found = call("connect", port=server.getsockname()[1])
        assert found.reason.startswith("PermissionError")
        found = call("c_connect", port=server.getsockname()[1])
        guarded(found, "bubblewrap", "namespaces", "seccomp")
        assert found.value == -1
        with pytest.raises(TimeoutError):
            server.accept()
    short = Path(tempfile.mkdtemp(prefix="s"))  # a socket's path has at most 107 characters
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(short / "s"))
        service.listen()
        assert call("c_service", path=str(short / "s")).value == -1
    scratch.remove(short)
    for name in ("listen", "look_up"):
        assert call(name).reason.startswith("PermissionError")
    assert "The grader does not allow the network" in call("look_up").reason


def test_root_is_as_others_inside(call, confined):
    assert call("capabilities").value in (["CapEff:\t0000000000000000\n"], []) or not LINUX


@pytest.mark.parametrize("kind", ["key", "hint", "flag"])
def test_the_kernel_keeps_nothing_for_a_later_child(call, confined, tmp_path, kind):
    """Neither a key nor what it notes of a file of the submission, which is only read."""
    path = str(tmp_path / "submission/faults.py")
    found = call(f"keep_{kind}", path=path)
    guarded(found, "seccomp")
    assert found.value == -1 and not call(f"kept_{kind}", path=path).value


def test_no_processor_time_is_taken_from_others(call, confined):
    found = call("slow", pid=os.getpid())
    guarded(found, "seccomp")
    assert found.value == -1


def test_no_devices_and_no_shared_memory_that_stays(call, confined):
    found = call("device")
    guarded(found, "bubblewrap", "namespaces", "Landlock")
    assert found.value == [-1, -1]
    key = 0x6772 + os.getpid()
    found = call("shared_memory", key=key)
    guarded(found, "bubblewrap", "namespaces", "seccomp")
    with contextlib.suppress(FileNotFoundError):
        assert str(key) not in Path("/proc/sysvipc/shm").read_text().split()


# --- only the submission's homework ----------------------------------------------------------------------------------


def test_only_the_homework_of_the_submission_is_imported(call, confined, tmp_path, monkeypatch):
    """A folder without __init__.py finds neither the package beside the grader nor an installed or linked one."""
    package = tmp_path / "submission/homework"
    package.mkdir()
    (package / "notes.txt").write_text("")
    assert (ROOT / "homework").is_dir()
    for folder in "checkout", "site-packages":
        (tmp_path / folder / "homework").mkdir(parents=True)
        (tmp_path / folder / "homework/__init__.py").write_text("")
    monkeypatch.setattr(sandbox.site, "getsitepackages", lambda: [str(tmp_path / "site-packages")])
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "checkout"), str(tmp_path / "site-packages"), str(ROOT)])
    found = call("load")
    assert found.reason == "ModuleNotFoundError: The submission has no homework/__init__.py."
    paths = call("allowed").value["path"]
    assert str(tmp_path / "checkout") not in paths and str(ROOT) not in paths and str(tmp_path / "site-packages") in paths
    (package / "__init__.py").write_text("")
    assert call("load").value == str(package / "__init__.py")


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linger", "daemon", "traps", "deep"])
def test_nothing_is_left(call, confined, name):
    assert call(name).reason == ""  # what is left, call() looks for


GRADER = """
import sys
from pathlib import Path
from grader import sandbox, scratch
sandbox.confinement = lambda: sys.argv[1]
with scratch.folder() as folder:
    (folder / "submission").mkdir()
    (folder / "submission/faults.py").write_text(sys.argv[2])
    limits = sandbox.Limits(100, 100, 4 << 30, 64, 1 << 20)
    with sandbox.start("faults:serve", folder / "submission", folder / "part", limits) as child:
        child.send(b'["daemon_then_nap", {}]\\n')
        child.receive(1, 100)
"""


@pytest.mark.skipif(not LINUX, reason="looks for processes in /proc")
def test_a_killed_grader_leaves_nothing(tmp_path, confined):
    faults = FAULTS + "\ndef daemon_then_nap(): daemon(); nap()\n"
    process = subprocess.Popen([sys.executable, "-c", GRADER, confined, faults], cwd=ROOT,
                               env=os.environ | {"TMPDIR": str(tmp_path)})  # fmt: skip
    deadline = time.monotonic() + 100
    while len(left_behind(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)  # the daemon is on its own
    if confined == "none":  # as a submission may, where Landlock knows no signals
        (watching,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(watching), signal.SIGSTOP)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while left_behind(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left_behind(tmp_path)
    assert [path.name[:7] for path in tmp_path.iterdir()] == ["grader-"]
    other = subprocess.run([sys.executable, "-c", "from grader import scratch; scratch.sweep()"], cwd=ROOT,
                           env=os.environ | {"TMPDIR": str(tmp_path)})  # fmt: skip
    assert other.returncode == 0 and not list(tmp_path.iterdir())


def test_scratch_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "grader-notes").mkdir()  # not a grader's: it has no lock
    (tmp_path / "grader-trap").mkdir()
    os.mkfifo(tmp_path / "grader-trap/lock")
    with scratch.folder() as first, scratch.folder() as second:  # those in use stay
        assert first.is_dir() and second.is_dir() and first != second
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "grader-notes"
    assert not first.exists() and not second.exists()


def test_deep_and_locked_folders_are_removed(tmp_path):
    folder = tmp_path / "deep"
    folder.mkdir()
    here = os.open(folder, os.O_RDONLY)
    for i in range(1100):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        if i == 10:
            os.mkdir("locked", 0, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        scratch.remove(folder)
        assert not folder.exists()
    finally:
        subprocess.run(["rm", "-rf", folder])  # pytest could not


def test_the_calibration_is_a_factor():
    assert 0.1 < sandbox.calibrate() < 50
