"""Models on disk: no code runs, nothing damaged gets in, and a write that fails leaves what was there."""

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import build, file_size_limit, run, skip_if_ignored
from hypothesis import given
from hypothesis import strategies as st

from homework.core import checkpoint, files
from homework.priors.pairs import SHIPPED, load_cascade
from homework.training import resume

NAME = "PatchAutoEncoder"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "m.pth"
    checkpoint.save(build(NAME), path, {"valid": {"loss": 0.5}})
    return path


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return a.config == b.config and mine.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in mine.items())


# --- what is in it --------------------------------------------------------------------------------------------------------


def test_it_is_plain_data_of_the_documented_form(file):
    data = torch.load(file, weights_only=True)
    assert set(data) == {"model", "config", "state_dict", "meta"} and data["model"] == NAME
    assert data["config"] == build(NAME).config and data["meta"] == {"valid": {"loss": 0.5}}
    assert all(isinstance(v, torch.Tensor) and v.device.type == "cpu" for v in data["state_dict"].values())
    json.dumps({"config": data["config"], "meta": data["meta"]})


def test_what_was_loaded_can_be_saved_again(file, tmp_path):
    model = checkpoint.load(file)
    checkpoint.save(model, tmp_path / "deep" / "er" / "again.pth")  # folders are made
    assert same(checkpoint.load(tmp_path / "deep" / "er" / "again.pth"), model)
    assert [p.name for p in (tmp_path / "deep" / "er").iterdir()] == ["again.pth"]


def test_weights_are_float32_whatever_the_default_type_is(file):
    torch.set_default_dtype(torch.float64)
    try:
        model = checkpoint.load(file)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and same(model, checkpoint.load(file))


def test_loading_leaves_the_global_generator_as_it_was():
    generator = torch.get_rng_state()
    for path in sorted(checkpoint.PRETRAINED.glob("*.pth")):
        checkpoint.load(path)
    load_cascade(SHIPPED)  # whose codebooks are parts of one
    assert torch.equal(torch.get_rng_state(), generator)


# --- what is refused ------------------------------------------------------------------------------------------------------


class Evil:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["pickle", "torch", "legacy torch", "in the config", "in the weights"])
def test_code_is_refused_and_does_not_run(form, tmp_path, file):
    path, proof = tmp_path / "evil.pth", tmp_path / "it ran".replace(" ", "_")
    evil, data = Evil(proof), torch.load(file, weights_only=True)
    if form == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        content = {"in the config": data | {"config": evil}, "in the weights": data | {"state_dict": {"a": evil}}}
        torch.save(content.get(form, evil), path, _use_new_zipfile_serialization=form != "legacy torch")
    for read in (files.read, checkpoint.load):
        with pytest.raises(ValueError, match="code"):
            read(path)
    assert not proof.exists()
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())
    assert proof.exists()  # it would have run


def save_to_bytes(data: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()


def zip_of(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"data")
    return buffer.getvalue()


FOREIGN = {
    "empty": b"",
    "text": b"PatchAutoEncoder",
    "json": b'{"model": "PatchAutoEncoder"}',
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(50),
    "zeros": bytes(1000),
    "zip": zip_of(["a/b.txt"]),
    "empty zip": zip_of([]),
    "zip that looks like torch's": zip_of(["m/data.pkl", "m/version", "m/data/0"]),
    "tensor": save_to_bytes(torch.zeros(3)),
    "list": save_to_bytes([1, 2]),
    "state_dict alone": save_to_bytes(build(NAME).state_dict()),
    "tokens": save_to_bytes({"tokens": torch.zeros(1, 2, 3, dtype=torch.uint8), "n_tokens": 4, "names": ["a"]}),
    "pickled number": pickle.dumps(5),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_foreign_files_are_refused_by_name(content, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match="x.pth"):
        checkpoint.load(tmp_path / "x.pth")


MODEL = build(NAME)
WRONG = {
    "unknown name": {"model": "Nonsense"},
    "name of another kind": {"model": ["PatchAutoEncoder"]},
    "other model's name": {"model": "AutoregressiveModel"},
    "unknown argument": {"config": MODEL.config | {"no_such": 1}},
    "other size": {"config": MODEL.config | {"latent_dim": 16}},
    "bad value": {"config": MODEL.config | {"patch_size": "five"}},
    "config of another kind": {"config": [1, 2]},
    "config with odd keys": {"config": {1: 2}},
    "missing weight": {"state_dict": dict(list(MODEL.state_dict().items())[1:])},
    "extra weight": {"state_dict": MODEL.state_dict() | {"extra": torch.zeros(1)}},
    "weight of another shape": {"state_dict": MODEL.state_dict() | {"encoder.patch.weight": torch.zeros(2, 3, 5, 5)}},
    "weight of another kind": {"state_dict": MODEL.state_dict() | {"encoder.patch.weight": "text"}},
    "weights of another kind": {"state_dict": [1, 2]},
    "weights with odd keys": {"state_dict": MODEL.state_dict() | {5: torch.zeros(1)}},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_wrong_contents_are_refused(change, tmp_path):
    path = tmp_path / "x.pth"
    right = {"model": NAME, "config": MODEL.config, "state_dict": dict(MODEL.state_dict()), "meta": {}}
    files.write(right | change, path)
    with pytest.raises(ValueError) as error:
        checkpoint.load(path)
    assert str(error.value).count("\n") == 0
    if change.get("model") == "Nonsense":
        assert "AutoregressiveModel" in str(error.value)  # the known ones are listed


def test_another_model_than_is_needed_is_named(file):
    with pytest.raises(ValueError, match="PatchAutoEncoder.*BSQPatchAutoEncoder"):
        checkpoint.load(file, "BSQPatchAutoEncoder")
    assert type(checkpoint.load(file, NAME)).__name__ == NAME


def test_a_missing_file_and_a_folder_are_told_apart_from_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "none.pth")):
        checkpoint.load(tmp_path / "none.pth")
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder"):
        checkpoint.load(tmp_path)


def damaged(content: bytes, file, folder) -> None:
    """ValueError naming the file, or nothing was lost."""
    path = folder / "damaged.pth"
    path.write_bytes(content)
    try:
        model = checkpoint.load(path)
    except ValueError as error:
        assert "damaged.pth" in str(error)
    else:
        assert same(model, checkpoint.load(file))


@given(st.floats(0, 1, exclude_max=True))
def test_truncated_files_are_refused(file, tmp_path_factory, part):
    content = file.read_bytes()
    path = tmp_path_factory.mktemp("truncated") / "damaged.pth"
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match="damaged.pth"):
        checkpoint.load(path)


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=3))
def test_flipped_bits_are_noticed_or_harmless(file, tmp_path_factory, flips):
    content = bytearray(file.read_bytes())
    for position, bit in flips:
        content[int(position * len(content))] ^= 2**bit
    damaged(bytes(content), file, tmp_path_factory.mktemp("flipped"))


def test_flips_in_the_zips_own_records_are_noticed_or_harmless(file, tmp_path):
    """One bit in each of its bytes that matter most: around the file names and in the directory at the end."""
    content = file.read_bytes()
    positions = {i for i in range(len(content)) if content[i : i + 2] == b"PK"}
    positions = sorted({i + d for i in positions for d in range(0, 46, 3) if i + d < len(content)})
    for n, i in enumerate(positions[:: max(1, len(positions) // 150)]):
        damaged(content[:i] + bytes([content[i] ^ 2 ** (n % 8)]) + content[i + 1 :], file, tmp_path)


def test_a_flip_in_a_weight_is_noticed(file, tmp_path):
    content, weight = file.read_bytes(), build(NAME).state_dict()["encoder.out.weight"].numpy().tobytes()
    i = content.index(weight) + 2
    (tmp_path / "x.pth").write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.load(tmp_path / "x.pth")


def test_a_weight_that_is_marked_as_a_folder_is_refused(file, tmp_path):
    """torch would load uninitialized memory for it, and all checksums are right."""
    content = bytearray(file.read_bytes())
    for entry in (i for i in range(len(content)) if content[i : i + 4] == b"PK\1\2"):
        assert not content[entry + 38] & 16  # of the attributes
        changed = bytearray(content)
        changed[entry + 38] |= 16
        (tmp_path / "x.pth").write_bytes(changed)
        with pytest.raises(ValueError, match="x.pth is damaged"):
            checkpoint.load(tmp_path / "x.pth")


# --- writing: whole or not at all -----------------------------------------------------------------------------------------


def big() -> torch.nn.Module:
    return build(NAME, seed=1, latent_dim=64)  # 150 kB


def test_a_full_disk_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "m.pth"
    checkpoint.save(build(NAME), path)
    with file_size_limit(50_000), pytest.raises(OSError) as error:
        checkpoint.save(big(), path)
    assert str(path) in str(error.value) and "Traceback" not in str(error.value)
    assert same(checkpoint.load(path), build(NAME)) and list(tmp_path.iterdir()) == [path]
    checkpoint.save(big(), path)
    assert same(checkpoint.load(path), big())


def test_a_full_disk_leaves_no_file_where_there_was_none(tmp_path):
    with file_size_limit(50_000), pytest.raises(OSError, match="m.pth"):
        checkpoint.save(big(), tmp_path / "m.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_truly_full(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tiny disk needs rights that this user does not have")
    try:
        path = tmp_path / "m.pth"
        checkpoint.save(build(NAME), path)
        with pytest.raises(OSError, match="m.pth") as error:
            checkpoint.save(big(), path)
        assert error.value.errno == errno.ENOSPC or "full" in str(error.value)
        assert same(checkpoint.load(path), build(NAME)) and list(tmp_path.iterdir()) == [path]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), RuntimeError("x")])
def test_a_write_that_stops_in_the_middle_leaves_the_old_file(error, tmp_path, monkeypatch):
    path = tmp_path / "m.pth"
    checkpoint.save(build(NAME), path)

    def half(data, file):
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError if isinstance(error, RuntimeError) else type(error)):
        checkpoint.save(build(NAME, seed=1), path)
    assert same(checkpoint.load(path), build(NAME)) and list(tmp_path.iterdir()) == [path]


def test_replacing_shows_the_new_file_only_at_the_end(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == path.parent
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_text("newer")
        raise ZeroDivisionError
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a pipe", "device"])
def test_what_is_not_a_file_is_never_replaced(kind, tmp_path):
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path(os.devnull)
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe") if kind == "link to a pipe" else os.rename(tmp_path / "pipe", path)
    mode, before = path.lstat().st_mode, sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"{path} is a folder, a pipe or a device"), files.replacing(path):
        raise AssertionError("nothing may be computed for it")
    assert path.lstat().st_mode == mode and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "x" * 251 + ".pth"])
def test_the_longest_names_can_be_written(name, tmp_path):
    checkpoint.save(build(NAME), tmp_path / name)
    assert same(checkpoint.load(tmp_path / name), build(NAME)) and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError, match="too long"):
        checkpoint.save(build(NAME), tmp_path / f"{name}xx")


KILLED = """
import os, signal
from homework.core import cli, files
def write(name, folder=False):
    with files.replacing("x") as temporary:
        temporary.mkdir() if folder else temporary.write_text("half")
        (temporary / "y").write_text("half") if folder else None
        os.kill(os.getpid(), getattr(signal, name))
cli.main("write", write)
"""


@pytest.mark.parametrize("folder", [False, True])
def test_only_what_killed_processes_left_is_removed(folder, tmp_path):
    done = run("-c", KILLED, "SIGKILL", folder, cwd=tmp_path)
    (left,) = tmp_path.iterdir()
    assert done.returncode == -signal.SIGKILL and left.name.endswith(".tmp")
    pid, place, _ = left.name[1:].split("-")
    others = [left.with_name(left.name.replace(a, b)) for a, b in ((pid, str(os.getppid())), (pid, "1"), (place, "0" * 8))]
    others += [tmp_path / "mine.tmp", tmp_path / f"{left.name}.txt"]
    for path in others:  # of a living process, of another user's, of another machine, and of a person
        path.touch()
    files.write({}, tmp_path / "y")
    assert set(tmp_path.iterdir()) == {*others, tmp_path / "y"}


@pytest.mark.parametrize("sig, code", [("SIGTERM", 143), ("SIGHUP", 129)])  # the latter of a terminal that closes
def test_signals_that_end_a_command_leave_no_temporary_file(tmp_path, sig, code):
    skip_if_ignored(sig)
    done = run("-c", KILLED, sig, cwd=tmp_path)
    assert done.returncode == code and list(tmp_path.iterdir()) == [] and done.stderr == ""


def test_under_nohup_a_terminal_that_closes_ends_nothing(tmp_path):
    ignored = KILLED.replace("def write", "signal.signal(signal.SIGHUP, signal.SIG_IGN)\ndef write")
    done = run("-c", ignored, "SIGHUP", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "x").read_text() == "half"


def test_sigterm_means_afterwards_what_it_meant_before(command, tmp_path):
    def handler(*args):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        command("compress", "info", tmp_path / "none")
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


@given(st.text())
def test_a_name_is_shown_on_one_line_without_controls(name):
    shown = files.printable(name)
    assert shown.isprintable() and (shown == name or not name.isprintable())
    assert files.printable(name + "\n", but="\n").split("\n")[-1] == ""


def test_controls_in_names_are_escaped():
    for name, shown in [("a\x1b[2Jb", "a\\x1b[2Jb"), ("a\x9bb", "a\\x9bb"), ("a\u202eb", "a\\u202eb"), ("ü ß", "ü ß"),
                        ("a\nb", "a\\nb"), (os.fsdecode(b"a\xff"), "a\\udcff"), ("a\u2028b", "a\\u2028b")]:  # fmt: skip
        assert files.printable(name) == shown


def test_a_folder_that_cannot_be_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        checkpoint.save(build(NAME), tmp_path / "file" / "m.pth")


# --- what a training resumes from -----------------------------------------------------------------------------------------


def test_the_latest_run_of_the_model_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dated = "2026-01-02_00-00-00_A", "2026-01-10_00-00-00_A", "2025-12-31_00-00-00_A", "2027-01-01_00-00-00_BSQA"
    for name in (*dated, "my_A"):
        files.write({}, f"checkpoints/{name.replace('A', NAME)}.state.pth")
    assert resume.find_state(NAME, None).name == f"2026-01-10_00-00-00_{NAME}.state.pth"
    assert resume.find_state("BSQPatchAutoEncoder", None).name == "2027-01-01_00-00-00_BSQPatchAutoEncoder.state.pth"
    old = f"checkpoints/2025-12-31_00-00-00_{NAME}"
    assert str(resume.find_state(f"{old}.pth", None)) == f"{old}.state.pth"
    for model in ("AutoregressiveModel", "checkpoints/none.pth", "Nonsense"):
        with pytest.raises(ValueError, match=model):
            resume.find_state(model, None)


def test_a_run_that_had_ended_before_a_restart_is_not_an_older_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old, new = (f"checkpoints/2026-01-{day}_00-00-00_{NAME}" for day in ("02", "10"))
    files.write({}, f"{old}.state.pth")
    checkpoint.save(build(NAME), "first.pth")
    for path in f"{new}.pth", "checkpoints/a.pth":
        files.write({}, path)
    for model, name in (NAME, None), ("first.pth", None), (NAME, "a"), ("first.pth", "a"):
        assert resume.find_state(model, name, restarted=True, asked=False) is None
    with pytest.raises(ValueError, match="no unfinished run of first.pth"):
        resume.find_state("first.pth", None)
    assert str(resume.find_state(NAME, None)) == f"{old}.state.pth"  # as a user might mean it
    files.write({}, f"{new}.state.pth")
    for model in NAME, "first.pth":
        assert str(resume.find_state(model, None, restarted=True, asked=False)) == f"{new}.state.pth"
    for model, name in ("AutoregressiveModel", None), (NAME, "b"):
        with pytest.raises(ValueError, match="no unfinished run"):
            resume.find_state(model, name, restarted=True, asked=False)


def test_a_run_that_was_to_be_resumed_is_the_same_after_a_restart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old, new = (f"checkpoints/2026-01-{day}_00-00-00_{NAME}" for day in ("02", "10"))
    for path in f"{old}.pth", f"{old}.state.pth", f"{new}.pth", "checkpoints/a.pth":
        files.write({}, path)
    for model, name in (NAME, None), (f"{old}.pth", None), (f"{old}.pth", "a"):
        assert str(resume.find_state(model, name, restarted=True)) == f"{old}.state.pth"
    for model, name in (f"{new}.pth", None), (NAME, "a"):  # and has ended
        assert resume.find_state(model, name, restarted=True) is None


# --- which file a name means ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder, and an empty package besides its pretrained/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "PACKAGE", tmp_path / "package")
    return tmp_path


@pytest.mark.parametrize("typed", ["BSQPatchAutoEncoder", "homework/BSQPatchAutoEncoder.pth"])
def test_a_name_means_the_latest_copy_or_else_the_pretrained_model(folder, capsys, typed):
    name = Path(typed).stem
    pretrained = checkpoint.PRETRAINED / f"{name}.pth"
    assert checkpoint.locate(typed) == pretrained and f"{typed}: using {pretrained}" in capsys.readouterr().err
    for copy in (folder / "package" / f"{name}.pth", Path("homework", f"{name}.pth")):
        checkpoint.save(build(name), copy)
        assert checkpoint.locate(typed) == copy
        assert capsys.readouterr().err == (f"{typed}: using {copy}\n" if str(copy) != typed else "")
        assert same(checkpoint.load(typed, name), build(name))
        capsys.readouterr()


@pytest.mark.parametrize("typed", ["BSQPatchAutoEncoder.pth", "other/BSQPatchAutoEncoder.pth", "homework/None.pth", "None"])
def test_other_paths_mean_themselves(folder, capsys, typed):
    assert checkpoint.locate(typed) == Path(typed) and capsys.readouterr().err == ""
    with pytest.raises(FileNotFoundError, match=typed):
        checkpoint.load(typed)


def test_a_file_that_exists_is_taken_whatever_it_is_called(folder):
    checkpoint.save(build(NAME), "BSQPatchAutoEncoder")
    assert checkpoint.locate("BSQPatchAutoEncoder") == Path("BSQPatchAutoEncoder")
